"""Tokens in a batch by the memory that is free, and that a run keeps the number."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tov.engine.batch_size import (
    HEAD_BYTES,
    LEAST,
    MOST,
    SHARE,
    Shape,
    batch_tokens_for,
    recorded_batch_tokens,
    shape_of,
)
from tov.methods.work import batch_tokens_of
from tov.model.logloss import CHUNK_TOKENS
from tov.runs.manifest import ModelRecord

GIB = 1 << 30
SMALL = Shape(width=576, vocabulary=49_152, item=2)
LARGE = Shape(width=4096, vocabulary=128_256, item=2)


@pytest.mark.parametrize(
    ("free", "shape", "tokens"),
    [(78 * GIB, SMALL, MOST), (62 * GIB, LARGE, MOST), (10 * GIB, LARGE, 16_384), (6 * GIB, LARGE, 8192),
     (3 * GIB, LARGE, LEAST), (0, SMALL, LEAST), (1 << 50, SMALL, MOST)],
)  # fmt: skip
def test_batches_of_known_machines(free: int, shape: Shape, tokens: int) -> None:
    assert batch_tokens_for(free, shape) == tokens


def test_the_number_is_a_power_of_two_that_fits_and_twice_as_many_do_not() -> None:
    for free in range(GIB, 20 * GIB, GIB // 3):
        tokens, room = batch_tokens_for(free, LARGE), SHARE * free - HEAD_BYTES * CHUNK_TOKENS * LARGE.vocabulary
        assert tokens & (tokens - 1) == 0
        assert tokens == LEAST or tokens * LARGE.a_token <= room
        assert tokens == MOST or 2 * tokens * LARGE.a_token > room


def test_more_memory_never_makes_a_batch_smaller_and_a_larger_model_never_larger() -> None:
    sizes = [batch_tokens_for(free, LARGE) for free in range(0, 40 * GIB, GIB)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3
    for change in ({"width": 8192}, {"vocabulary": 1 << 20}, {"item": 4}):
        larger = Shape(**{**vars(LARGE), **change})
        assert all(batch_tokens_for(free, larger) <= batch_tokens_for(free, LARGE) for free in range(0, 40 * GIB, GIB))


def test_the_shape_is_the_model_s(tiny_model: Any) -> None:
    config = tiny_model.config
    assert shape_of(tiny_model) == Shape(config.hidden_size, config.vocab_size, 4)
    assert shape_of(tiny_model.to(torch.bfloat16)).item == 2


def test_a_cpu_keeps_its_constant_and_a_run_the_number_that_it_was_begun_with() -> None:
    opened: Any = SimpleNamespace(loaded=SimpleNamespace(device=torch.device("cpu")))
    assert recorded_batch_tokens(opened) is None

    def tokens(asked: int | None, model: ModelRecord | None) -> int:
        run: Any = SimpleNamespace(manifest=SimpleNamespace(model=model))
        return batch_tokens_of(run, SimpleNamespace(batch_tokens=asked), opened)

    record = ModelRecord(name="m", task="instruction", max_length=8, batch_tokens=32_768)
    assert (tokens(None, None), tokens(None, record), tokens(512, record)) == (2048, 32_768, 512)
