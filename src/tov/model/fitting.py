"""Batches that turn out to be too large for the memory are halved, in the plan itself: later walks find the halves."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from tov.progress import heard
from tov.system import fault_of
from tov.text.batches import Batch, halves

T = TypeVar("T")


def passes(
    batches: list[Batch], work: Callable[[Batch], T], walk: int = 0, walks: int = 1
) -> Iterator[tuple[Batch, T]]:
    """Each batch with what `work` makes of it, in order.

    Where the memory is too small for a batch, its two halves take its place in the list, in the same order of rows. A row's
    numbers are the same but for rounding, which differs between layouts (`noise_floor`).

    Args:
        batches: longest rows first, so that what does not fit is found at once; changed in place.
        work: a pass; a batch of one row that does not fit is its error.
        walk: which walk over the batches this is, from 0, for the progress.
        walks: how many there will be.
    """
    place = 0
    while place < len(batches):
        batch = batches[place]
        made = _tried(work, batch)
        if made is None:
            _release()
            batches[place : place + 1] = halves(batch)
            continue
        yield batch, made[0]
        place += 1
        heard((walk + place / len(batches)) / walks)


def _tried(work: Callable[[Batch], T], batch: Batch) -> tuple[T] | None:
    """What came of a batch; None where it did not fit. Nothing of a pass that failed is held."""
    try:
        return (work(batch),)
    except Exception as error:
        if len(batch.rows) == 1 or not isinstance(fault_of(error), MemoryError):
            raise
        return None


def _release() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
