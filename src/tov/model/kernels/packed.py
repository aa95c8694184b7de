"""Batches without padding: rows end to end as one, which only the attention tells apart.

For training on a CPU (a batch of 16 sentences in random order is half padding) and for scans on a GPU. Linear layers, norms and
activations do not care where a row ends; the attention walks the rows (`tov.model.kernels.attention`). Whether a model can be
fed so is found out by trying. Speaks tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from tov.model.kernels.attention import ROWS, Rows, walks_rows, wide
from tov.model.load import OFFSET_POSITIONS
from tov.system import fault_of
from tov.text.batches import Batch
from tov.text.encode import IGNORED, Encoded

UNIT = 32
"""Tokens of a batch are filled up to a multiple of this: the first product of a shape costs milliseconds."""
TRIED = ((7, 21), (5, 11), (3, 11))
"""Steps between the ids of a row, and its tokens: one that is looked at, and two to stand before it."""
NARROWED = ("sliding_window", "attention_chunk_size", "local_attention")
"""Settings of models whose attention does not see the whole row."""


def pack(encoded: Encoded, rows: np.ndarray) -> Batch:
    """One batch of these rows end to end: (1, N) ids and labels, filled up with a row of which nothing is scored."""
    pairs = [encoded.row(int(row)) for row in rows]
    more = -sum(len(ids) for ids, _ in pairs) % UNIT
    ids = np.concatenate([*(ids for ids, _ in pairs), np.zeros(more, np.int64)]).astype(np.int64)
    labels = np.concatenate([*(labels for _, labels in pairs), np.full(more, IGNORED)]).astype(np.int64)
    lengths = np.array([len(ids) for ids, _ in pairs] + [more] * bool(more))
    return Batch(rows, ids[None], labels[None], lengths)


def options_for(model: Any, lengths: np.ndarray) -> dict[str, Any]:
    """What the model's forward must be told of rows of these lengths that stand end to end."""
    first = model.config.pad_token_id + 1 if model.config.model_type in OFFSET_POSITIONS else 0
    ends = np.concatenate([[0], np.cumsum(lengths)])
    places = first + np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
    # Of four dimensions: transformers leaves such a mask alone.
    seen = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=model.device)
    rows = Rows(lengths.tolist(), torch.from_numpy(ends.astype(np.int32)).to(model.device))
    return {"position_ids": torch.from_numpy(places)[None].to(model.device), "attention_mask": seen, ROWS: rows}


def told_of(model: Any, batch: Batch) -> dict[str, Any]:
    """`options_for` a batch whose rows stand end to end; nothing for another."""
    return options_for(model, batch.lengths) if batch.end_to_end else {}


_KNOWN: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()
"""Of a model, by its attention: whether it is `packable`."""


def packable(model: Any) -> bool:
    """Whether rows end to end are to a model without dropout what they are one by one.

    Two things show it: a row's states are what they are alone, and those of the last are bit for bit the same whatever
    stands before it. A head that makes one label of a text has nothing to say of rows end to end.
    """
    with wide(model), _evaluating(model):
        if not walks_rows(model):
            return False
        known = _KNOWN.setdefault(model, {})
        attention = model.config._attn_implementation
        if attention not in known:
            known[attention] = _tried(model)
        return known[attention]


@torch.no_grad()
def _tried(model: Any) -> bool:
    settings = model.config.get_text_config().to_dict()
    if any(settings.get(name) for name in NARROWED):
        return False
    size = settings["vocab_size"]
    row, *before = ([number * step % size for number in range(1, length + 1)] for step, length in TRIED)
    first = len(before[0])
    lengths = np.array([first, len(row)])
    try:
        alone = _states(model, row)
        one, two = (_states(model, ids + row, **options_for(model, lengths)) for ids in before)
    except Exception as error:  # a model that takes no positions, or no options: each says so in its own way
        if isinstance(fault_of(error), MemoryError):
            raise
        return False
    if (
        not alone.dim() == one.dim() == 3
        or one.shape[1] != lengths.sum()
        or not torch.equal(one[:, first:], two[:, first:])
    ):
        return False
    return bool((one[:, first:] - alone).norm() <= 0.05 * alone.norm())


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Within the block nothing drops out; each module's mode is as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _states(model: Any, ids: list[int], **options: Any) -> Tensor:
    """(1, T, ...) the last states of a causal model, a classifier's logits."""
    backbone = model.base_model if model.get_output_embeddings() is not None else model
    return backbone(input_ids=torch.tensor([ids], device=model.device), **options)[0].float()
