"""Rows as token ids and the labels that count, in ragged arrays. Must not know tasks, models or scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tov.data.rows import Row
from tov.errors import DataError
from tov.progress import counted
from tov.text.shown import KINDS

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
        lost: (rows,) of the same units, those beyond the tokens that a row may have.
        left_out: (rows,) a bit for each of `tov.text.shown.KINDS` that a chat template leaves out; () without one.
    """

    ids: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    lost: np.ndarray
    left_out: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

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
        left_out = self.left_out[indices] if len(self.left_out) else None
        return pack([self.row(int(index)) for index in indices], self.sizes[indices], self.lost[indices], left_out)

    @staticmethod
    def concatenate(parts: Sequence[Encoded]) -> Encoded:
        """The rows of all parts, in order."""
        rows = [part.row(index) for part in parts for index in range(len(part))]
        sizes, lost = ([getattr(part, name) for part in parts] for name in ("sizes", "lost"))
        left_out = [part.left_out if len(part.left_out) else np.zeros(len(part), np.int64) for part in parts]
        return pack(rows, np.concatenate(sizes), np.concatenate(lost), np.concatenate(left_out))

    def left_out_kinds(self) -> dict[str, int]:
        """Of each kind that the chat template leaves out of rows, how many those are."""
        counts = {kind: int((self.left_out >> bit & 1).sum()) for bit, kind in enumerate(KINDS)}
        return {kind: count for kind, count in counts.items() if count}

    def left_out_notes(self, name: str) -> list[str]:
        """`in 3 target rows the model's chat template leaves out: tools`, a line for each kind."""
        return [left_out_note(kind, count, name) for kind, count in self.left_out_kinds().items()]


def left_out_note(kind: str, count: int, name: str) -> str:
    """`in 3 target rows the model's chat template leaves out: tools`."""
    return f"in {counted(count, f'{name} rows')} the model's chat template leaves out: {kind}"


class EncodeRows(Protocol):
    """How a task makes tokens and labels of its rows."""

    def __call__(
        self, tokenizer: Any, rows: Sequence[Any], /, *, max_length: int, labels: tuple[str, ...]
    ) -> Encoded: ...


@dataclass(frozen=True)
class Encoder:
    """From rows to tokens, for one model and task.

    Attributes:
        encode: the task's.
        tokenizer: the model's, as the task wants it.
        max_length: tokens a row may have, special ones included.
        labels: the model's labels by id; none where it has no head of its own.
    """

    encode: EncodeRows
    tokenizer: Any
    max_length: int
    labels: tuple[str, ...] = ()

    def __call__(self, rows: Sequence[Row]) -> Encoded:
        """Rows of the task as tokens and labels.

        Raises:
            DataError: a row cannot be encoded, as the task says.
        """
        if not rows:
            return pack([], np.empty(0, np.int64), np.empty(0, np.int64))
        return self.encode(self.tokenizer, rows, max_length=self.max_length, labels=self.labels)


def encode_placed(encode: Encoder, rows: Sequence[Row], where: Callable[[int], str], *, skip: bool = False) -> Encoded:
    """Rows as tokens; one that cannot be encoded is named by its place.

    Args:
        encode: rows to tokens.
        rows: of the task.
        where: number among the rows -> its place, for messages.
        skip: whether such a row has no token instead, and so none that is scored.

    Raises:
        DataError: a row cannot be encoded, unless it is skipped.
    """
    try:
        return encode(rows)
    except DataError:  # of one of them: which?
        parts = [_encode_one(encode, row, where(number), skip) for number, row in enumerate(rows)]
        return Encoded.concatenate(parts)


def _encode_one(encode: Encoder, row: Row, place: str, skip: bool) -> Encoded:
    try:
        return encode([row])
    except DataError as error:
        if skip:
            nothing = np.empty(0, np.int64)
            return pack([(nothing, nothing)], np.zeros(1, np.int64), np.zeros(1, np.int64))
        raise DataError(f"{place}: {error.problem}", allowed=error.allowed, fix=error.fix) from None


def pack(
    rows: Sequence[tuple[np.ndarray, np.ndarray]],
    sizes: np.ndarray,
    lost: np.ndarray,
    left_out: np.ndarray | None = None,
) -> Encoded:
    """Rows end to end.

    Args:
        rows: of each row (T,) token ids and (T,) labels, `IGNORED` where nothing is scored.
        sizes: (rows,) as `Encoded` has them.
        lost: (rows,) likewise.
        left_out: (rows,) likewise; None if no chat template was used.
    """
    offsets = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    nothing = [np.empty(0, np.int32)]
    ids, labels = (np.concatenate([row[at] for row in rows] or nothing).astype(np.int32) for at in (0, 1))
    none = np.empty(0, np.int64)
    return Encoded(ids, labels, offsets, sizes, lost, none if left_out is None else left_out.astype(np.int64))
