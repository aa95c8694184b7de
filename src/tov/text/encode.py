"""From rows to token ids and the labels that count, as ragged arrays. Must not know models or scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from tov.data.conversations import Conversation
from tov.data.labelled import Labelled, Tagged
from tov.data.rows import Row
from tov.errors import DataError, ModelError
from tov.text.chat import PLAIN_TEMPLATE, Rendered, apply, has_generation_mask, render

IGNORED = -100
"""The label of a token that is not scored, as transformers has it."""


@dataclass(frozen=True)
class Encoded:
    """Rows as tokens.

    Attributes:
        ids: (sum of lengths,) int32 token ids, rows one after another.
        labels: (sum of lengths,) int32, what must be predicted of each token, `IGNORED` where nothing. For conversations the
            token's own id (a row's first token never counts); for sentences the tag of the word that begins here; for
            labelled texts the label, at the first token.
        offsets: (rows + 1,) where each row starts.
        sizes: (rows,) the length that bins go by: scored tokens, words, or the tokens of a labelled text.
        lost: (rows,) scored tokens or words that were cut off, or that the tokenizer makes nothing of.
    """

    ids: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    lost: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) tokens in each row."""
        return np.diff(self.offsets)

    @property
    def scored(self) -> np.ndarray:
        """(sum of lengths,) bool, tokens with a label."""
        return self.labels != IGNORED

    @property
    def scored_counts(self) -> np.ndarray:
        """(rows,) tokens with a label in each row."""
        return np.diff(np.concatenate([[0], np.cumsum(self.scored)])[self.offsets])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, labels) of one row."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[part], self.labels[part]

    def take(self, indices: Sequence[int] | np.ndarray) -> Encoded:
        """These rows, in this order."""
        indices = np.asarray(indices, np.int64)
        return _pack([self.row(int(index)) for index in indices], self.sizes[indices], self.lost[indices])

    @staticmethod
    def concatenate(parts: Sequence[Encoded]) -> Encoded:
        """The rows of all parts, in order."""
        rows = [part.row(index) for part in parts for index in range(len(part))]
        sizes, lost = ([getattr(part, name) for part in parts] for name in ("sizes", "lost"))
        return _pack(rows, np.concatenate(sizes), np.concatenate(lost))


@dataclass(frozen=True)
class Encoder:
    """From rows to tokens, for one model and task.

    Attributes:
        tokenizer: as returned by `prepare`.
        max_length: tokens a row may have, special ones included.
        labels: the model's labels by id; none for instruction tuning.
    """

    tokenizer: Any
    max_length: int
    labels: tuple[str, ...] = ()

    def __call__(self, rows: Sequence[Row]) -> Encoded:
        """Rows of one task as tokens and labels.

        Raises:
            DataError: the chat template refuses a row, or its assistant part cannot be told.
        """
        if rows and isinstance(rows[0], Tagged):
            return _encode_tagged(self, cast(Sequence[Tagged], rows))
        if rows and isinstance(rows[0], Labelled):
            return _encode_labelled(self, cast(Sequence[Labelled], rows))
        return encode(self.tokenizer, cast(Sequence[Conversation], rows), max_length=self.max_length)


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
        return _pack([], np.empty(0, np.int64), np.empty(0, np.int64))
    marked = has_generation_mask(tokenizer) and tokenizer.is_fast and not any(row.plain for row in rows)
    pairs = [_by_generation_mask(tokenizer, row) for row in rows] if marked else _by_spans(tokenizer, rows)
    packed, lost = [], []
    for ids, scored in pairs:
        labels = np.where(scored, ids, IGNORED)[:max_length]
        labels[:1] = IGNORED  # nothing predicts the first token
        packed.append((ids[:max_length], labels))
        lost.append(int(scored[max_length:].sum()))
    sizes = np.array([int((labels != IGNORED).sum()) for _, labels in packed])
    return _pack(packed, sizes, np.array(lost))


def _pack(rows: Sequence[tuple[np.ndarray, np.ndarray]], sizes: np.ndarray, lost: np.ndarray) -> Encoded:
    offsets = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    nothing = [np.empty(0, np.int32)]
    ids, labels = (np.concatenate([row[at] for row in rows] or nothing).astype(np.int32) for at in (0, 1))
    return Encoded(ids, labels, offsets, sizes, lost)


def _encode_tagged(encoder: Encoder, rows: Sequence[Tagged]) -> Encoded:
    """Sentences: the first sub-token of a word carries its tag, the others and the special tokens none."""
    places = {label: place for place, label in enumerate(encoder.labels)}
    encoded = encoder.tokenizer(
        [list(row.words) for row in rows], is_split_into_words=True, truncation=True, max_length=encoder.max_length,
        return_attention_mask=False,
    )  # fmt: skip
    packed, sizes, lost = [], [], []
    for at, row in enumerate(rows):
        labels, before = np.full(len(encoded["input_ids"][at]), IGNORED), None
        for token, word in enumerate(encoded.word_ids(at)):
            if word is not None and word != before:
                labels[token] = places[row.tags[word]]
            before = word
        packed.append((np.array(encoded["input_ids"][at]), labels))
        sizes.append(int((labels != IGNORED).sum()))
        lost.append(len(row.words) - sizes[-1])
    return _pack(packed, np.array(sizes), np.array(lost))


def _encode_labelled(encoder: Encoder, rows: Sequence[Labelled]) -> Encoded:
    """Texts: the label stands at the first token; a text's length is its tokens without the special ones."""
    places = {label: place for place, label in enumerate(encoder.labels)}
    encoded = encoder.tokenizer(
        [row.text for row in rows], truncation=True, max_length=encoder.max_length, return_attention_mask=False
    )
    special = encoder.tokenizer.num_special_tokens_to_add()
    packed = []
    for ids, row in zip(encoded["input_ids"], rows, strict=True):
        labels = np.full(len(ids), IGNORED)
        labels[0] = places[row.label]
        packed.append((np.array(ids), labels))
    sizes = np.array([max(1, len(ids) - special) for ids, _ in packed])
    return _pack(packed, sizes, np.zeros(len(rows), np.int64))


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
