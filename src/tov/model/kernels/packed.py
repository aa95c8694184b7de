"""Training batches without padding on a CPU: rows end to end as one, which only the attention tells apart.

A batch of 16 sentences in random order is half padding. Linear layers, norms and activations do not care where a row ends; the
attention walks the rows (`tov.model.kernels.attention`). Whether a model can be fed so is found out by trying. Speaks tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tov.model.kernels.attention import ROWS, walks_rows, wide
from tov.model.load import OFFSET_POSITIONS
from tov.text.batches import Batch
from tov.text.encode import IGNORED, Encoded

UNIT = 32
"""Tokens of a batch are filled up to a multiple of this: the first product of a shape costs milliseconds."""
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


def options_for(model: Any, lengths: Iterable[int]) -> dict[str, Any]:
    """What the model's forward must be told of rows of these lengths that stand end to end."""
    first = model.config.pad_token_id + 1 if model.config.model_type in OFFSET_POSITIONS else 0
    places = torch.cat([torch.arange(first, first + length) for length in lengths])[None]
    seen = torch.ones(1, 1, 1, 1, dtype=torch.bool)  # of four dimensions: transformers leaves it alone
    return {"position_ids": places, "attention_mask": seen, ROWS: [int(length) for length in lengths]}


@torch.no_grad()
def packable(model: Any) -> bool:
    """Whether rows end to end are to a model without dropout what they are one by one.

    Two things show it: a row's states are what they are alone, and those of the last are bit for bit the same whatever
    stands before it. A head that makes one label of a text has nothing to say of rows end to end.
    """
    settings = model.config.get_text_config().to_dict()
    if any(settings.get(name) for name in NARROWED):
        return False
    size = settings["vocab_size"]
    row, *before = ([number % size for number in ids] for ids in ((7, 5), (5, 7, 6), (8, 9, 4)))
    with wide(model), _evaluating(model):
        if not walks_rows(model):
            return False
        try:
            alone = _states(model, row)
            one, two = (_states(model, ids + row, **options_for(model, (3, 2))) for ids in before)
        except Exception:  # a model that takes no positions, or no options: each says so in its own way
            return False
    if not alone.dim() == one.dim() == 3 or one.shape[1] != 5 or not torch.equal(one[:, 3:], two[:, 3:]):
        return False
    return bool((one[:, 3:] - alone).norm() <= 0.05 * alone.norm())


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
    return backbone(input_ids=torch.tensor([ids]), **options)[0].float()
