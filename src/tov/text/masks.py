"""From rendered text to token ids and which of them are scored. Must not know rows, models, templates or scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tov.errors import DataError
from tov.text.spans import Rendered

Masked = tuple[np.ndarray, np.ndarray]
"""(T,) int64 token ids, special ones included, and (T,) bool, those that the assistant wrote."""


def by_spans(tokenizer: Any, rendered: Sequence[Rendered]) -> list[Masked]:
    """Texts as tokens, by the spans that are scored.

    Raises:
        DataError: the tokenizer cannot tell which tokens are in a span.
    """
    if not tokenizer.is_fast:
        return [_by_token_prefix(tokenizer, chat) for chat in rendered]
    encoded = tokenizer(
        [chat.text for chat in rendered],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    pairs = []
    for chat, ids, places in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ids, places = np.array(ids, np.int64), np.array(places, np.int64).reshape(-1, 2)
        mask = np.zeros(len(ids), bool)
        for start, stop in chat.spans:
            mask |= (places[:, 1] > start) & (places[:, 1] <= stop) & (places[:, 1] > places[:, 0])
        pairs.append((ids, mask))
    return pairs


def _by_token_prefix(tokenizer: Any, chat: Rendered) -> Masked:
    """For tokenizers that cannot tell where a token came from: a span's tokens are what it adds to its prefix."""
    ids = tokenizer(chat.text, add_special_tokens=False)["input_ids"]
    mask = np.zeros(len(ids), bool)
    for start, stop in chat.spans:
        before, through = (tokenizer(chat.text[:at], add_special_tokens=False)["input_ids"] for at in (start, stop))
        if ids[: len(before)] != before or ids[: len(through)] != through:
            raise DataError(
                f"tov cannot tell which tokens are the assistant's in:\n{chat.text[:2000]}",
                fix="Use the model's fast tokenizer (use_fast=True; tokenizer.json).",
            )
        mask[len(before) : len(through)] = True
    return np.array(ids, np.int64), mask
