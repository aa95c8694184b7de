"""From turns, or rendered text, to token ids and which of them the assistant wrote. Must not know rows, models or scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tov.errors import DataError
from tov.text.chat import Message, Rendered, apply, is_answer

Masked = tuple[np.ndarray, np.ndarray]
"""(T,) int64 token ids, special ones included, and (T,) bool, those that the assistant wrote."""


def by_generation_mask(tokenizer: Any, messages: Sequence[Message]) -> Masked:
    """Turns as tokens, by a template that marks the assistant's text itself.

    Raises:
        DataError: the template refuses the turns, or marks no token of an answer.
    """
    text = apply(tokenizer, messages)
    try:
        encoded = tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except Exception as error:
        raise DataError(
            f"The chat template's {{% generation %}} marks no assistant token ({error}) in:\n{text[:2000]}",
            fix="Correct {% generation %} in the tokenizer's chat template.",
        ) from error
    mask = np.array(encoded["assistant_masks"], bool)
    if not mask.any() and str(messages[-1].get("content") or "").strip():
        raise DataError(
            "The chat template marks no assistant token in a row that has an answer:\n"
            + tokenizer.decode(encoded["input_ids"]),
            fix="Correct {% generation %} in the tokenizer's chat template.",
        )
    if not any(map(is_answer, messages)):
        mask[:] = False
    return np.array(encoded["input_ids"]), mask


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
