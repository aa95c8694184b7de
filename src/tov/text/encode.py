"""From rows to token ids and a mask of scored tokens, as ragged arrays. Must not know models or scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tov.data.rows import Conversation
from tov.errors import DataError, ModelError
from tov.text.chat import PLAIN_TEMPLATE, Rendered, apply, has_generation_mask, render


@dataclass(frozen=True)
class Encoded:
    """Rows as tokens.

    Attributes:
        ids: (sum of lengths,) int32 token ids, rows one after another.
        scored: (sum of lengths,) bool, tokens whose log-loss counts; a row's first token never does.
        offsets: (rows + 1,) where each row starts.
        truncated: rows that were cut.
    """

    ids: np.ndarray
    scored: np.ndarray
    offsets: np.ndarray
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) tokens in each row."""
        return np.diff(self.offsets)

    @property
    def scored_counts(self) -> np.ndarray:
        """(rows,) scored tokens in each row."""
        return np.diff(np.concatenate([[0], np.cumsum(self.scored)])[self.offsets])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, scored) of one row."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[part], self.scored[part]

    def take(self, indices: Sequence[int] | np.ndarray) -> Encoded:
        """These rows, in this order."""
        rows = [self.row(int(index)) for index in indices]
        return _pack([ids for ids, _ in rows], [scored for _, scored in rows], 0)

    @staticmethod
    def concatenate(parts: Sequence[Encoded]) -> Encoded:
        """The rows of all parts, in order."""
        rows = [part.row(index) for part in parts for index in range(len(part))]
        return _pack([ids for ids, _ in rows], [scored for _, scored in rows], sum(part.truncated for part in parts))


def prepare(tokenizer: Any) -> Any:
    """Gives a tokenizer without a chat template the plain format (see `tov.text.chat`); returns the tokenizer."""
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    elif isinstance(tokenizer.chat_template, dict) and "default" in tokenizer.chat_template:
        tokenizer.chat_template = tokenizer.chat_template["default"]
    elif not isinstance(tokenizer.chat_template, str):
        raise ModelError(
            "the tokenizer has several chat templates and no default one",
            fix="set tokenizer.chat_template to one of them",
        )
    return tokenizer


def encode(tokenizer: Any, rows: Sequence[Conversation], *, max_length: int) -> Encoded:
    """Tokens and masks of rows; assistant tokens are scored, with the end-of-turn token, in all assistant turns.

    Rows over `max_length` tokens are cut at the end, so a row's answer may be lost: it then has no scored token.

    Args:
        tokenizer: as returned by `prepare`.
        rows: conversations.
        max_length: tokens a row may have.

    Raises:
        DataError: the chat template refuses a row, or its assistant part cannot be told.
    """
    if not rows:
        return _pack([], [], 0)
    marked = has_generation_mask(tokenizer) and tokenizer.is_fast and not any(row.plain for row in rows)
    pairs = [_by_generation_mask(tokenizer, row) for row in rows] if marked else _by_spans(tokenizer, rows)
    ids = [one[:max_length] for one, _ in pairs]
    scored = [mask[:max_length].copy() for _, mask in pairs]
    for mask in scored:
        mask[:1] = False  # nothing predicts the first token
    return _pack(ids, scored, sum(len(one) > max_length for one, _ in pairs))


def _pack(ids: list[np.ndarray], scored: list[np.ndarray], truncated: int) -> Encoded:
    offsets = np.cumsum([0, *(len(one) for one in ids)])
    if not ids:
        return Encoded(np.empty(0, np.int32), np.empty(0, bool), offsets, truncated)
    return Encoded(np.concatenate(ids).astype(np.int32), np.concatenate(scored).astype(bool), offsets, truncated)


def _by_generation_mask(tokenizer: Any, row: Conversation) -> tuple[np.ndarray, np.ndarray]:
    text = apply(tokenizer, row.messages)
    try:
        encoded = tokenizer.apply_chat_template(
            list(row.messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except Exception as error:
        raise DataError(
            f"the chat template's {{% generation %}} marks no assistant token ({error}) in:\n{text[:2000]}",
            fix="correct {% generation %} in the tokenizer's chat template",
        ) from error
    mask = np.array(encoded["assistant_masks"], bool)
    if not mask.any() and row.answer.strip():
        raise DataError(
            "the chat template marks no assistant token in a row that has an answer:\n"
            + tokenizer.decode(encoded["input_ids"]),
            fix="correct {% generation %} in the tokenizer's chat template",
        )
    if not row.has_answer:
        mask[:] = False
    return np.array(encoded["input_ids"]), mask


def _by_spans(tokenizer: Any, rows: Sequence[Conversation]) -> list[tuple[np.ndarray, np.ndarray]]:
    rendered = [render(tokenizer, row) for row in rows]
    if not tokenizer.is_fast:
        return [_by_token_prefix(tokenizer, one) for one in rendered]
    encoded = tokenizer(
        [one.text for one in rendered],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    pairs = []
    for one, ids, places in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ids, places = np.array(ids, np.int64), np.array(places, np.int64).reshape(-1, 2)
        mask = np.zeros(len(ids), bool)
        for start, stop in one.spans:
            mask |= (places[:, 1] > start) & (places[:, 1] <= stop) & (places[:, 1] > places[:, 0])
        pairs.append((ids, mask))
    return pairs


def _by_token_prefix(tokenizer: Any, one: Rendered) -> tuple[np.ndarray, np.ndarray]:
    """For tokenizers that cannot tell where a token came from: a span's tokens are what it adds to its prefix."""
    ids = tokenizer(one.text, add_special_tokens=False)["input_ids"]
    mask = np.zeros(len(ids), bool)
    for start, stop in one.spans:
        before, through = (tokenizer(one.text[:at], add_special_tokens=False)["input_ids"] for at in (start, stop))
        if ids[: len(before)] != before or ids[: len(through)] != through:
            raise DataError(
                f"cannot tell which tokens are the assistant's in:\n{one.text[:2000]}",
                fix="use the model's fast tokenizer (use_fast=True; tokenizer.json)",
            )
        mask[len(before) : len(through)] = True
    return np.array(ids, np.int64), mask
