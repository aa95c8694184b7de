"""How many tokens a batch of the scan has on a GPU where --batch-tokens is not given: by the memory that the model leaves.

Scores and artifacts depend on the layout of batches. So the number is the same for a model on a card whatever else runs
there, and it is recorded with the model of a run: whoever goes on with the run, on another card too, takes that one. Where it
turns out to be too large, batches are halved (`tov.model.fitting`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from tov.engine.models import Opened
from tov.model.logloss import CHUNK_TOKENS

LEAST, MOST = 2048, 32_768
"""Tokens in a batch. Fewer leave a GPU idle. More would leave a shard so few batches that rows of unlike length pad each
other, where they are padded."""
SHARE = 0.5
"""Of that memory, what a batch may take by the estimate; the rest is for attention, optimizers and other programs."""
PASSING = 24
"""Numbers a token and hidden unit that exist at once in a forward pass: norms, queries, keys, values, attention, a gated MLP
of about three times the width. What passes backward too (`less`, `tracin`) needs more with every layer, and has its batches
halved."""
HEAD_BYTES = 8
"""A chunk of the head against the whole vocabulary at worst: logits and their exponentials in fp32."""


@dataclass(frozen=True)
class Shape:
    """What the memory of a batch depends on.

    Attributes:
        width: of the hidden states.
        vocabulary: entries of the head; 0 for a classifier.
        item: bytes of a number: 2 in bf16, 4 in fp32.
    """

    width: int
    vocabulary: int
    item: int

    @property
    def a_token(self) -> int:
        """Bytes of a token in a batch."""
        return self.item * self.width * PASSING

    @property
    def head(self) -> int:
        """Bytes of the head's largest chunk."""
        return HEAD_BYTES * CHUNK_TOKENS * self.vocabulary


def batch_tokens_for(free: int, shape: Shape) -> int:
    """The largest power of two from `LEAST` to `MOST` whose tokens fit into half of the memory, beside the head.

    Args:
        free: bytes of the card, less those of the model.
        shape: of the model.
    """
    fitting = (SHARE * free - shape.head) / shape.a_token
    return LEAST if fitting < LEAST else min(MOST, 2 ** int(math.log2(fitting)))


def recorded_batch_tokens(opened: Opened) -> int | None:
    """The number for this model on its GPU; None elsewhere, where `auto_batch_tokens` is a constant."""
    device = opened.loaded.device
    if device.type != "cuda":
        return None
    model = opened.loaded.model
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return batch_tokens_for(torch.cuda.get_device_properties(device).total_memory - weights, shape_of(model))


def shape_of(model: Any) -> Shape:
    """Of a transformers model."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    vocabulary = 0 if head is None else int(head.weight.shape[0])
    item = next(weight.element_size() for weight in model.parameters() if weight.is_floating_point())
    return Shape(int(config.hidden_size), vocabulary, item)
