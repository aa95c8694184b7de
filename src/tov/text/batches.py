"""The frozen batch plan: which rows share a batch, decided from lengths alone. Must not know models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tov.text.encode import IGNORED, Encoded


@dataclass(frozen=True)
class Batch:
    """Right-padded rows, or rows end to end.

    Attributes:
        rows: (B,) positions of the rows in the encoded shard.
        ids: (B, T) int64 token ids, 0 where padded; end to end: (1, N).
        labels: as `ids`, `IGNORED` where nothing is scored.
        lengths: (B,) tokens in each row; end to end: also of what fills them up, if anything does.
    """

    rows: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray

    @property
    def end_to_end(self) -> bool:
        """Whether the one line of tokens is several rows. One row that nothing fills up is the same either way."""
        return len(self.lengths) > len(self.ids)


def plan(lengths: np.ndarray, wanted: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Groups rows of like length, longest first, so that rows times the longest of them stay within `batch_tokens`.

    A row longer than the budget has a batch of its own. The plan depends on nothing but its arguments; both states of an
    epoch walk the same one, so that identical weights give identical numbers.

    Args:
        lengths: (rows,) tokens.
        wanted: (rows,) bool, rows to scan.
        batch_tokens: most tokens in a batch, padding included.
    """
    rows = _longest_first(lengths, wanted)
    groups, start = [], 0
    while start < len(rows):
        count = max(1, batch_tokens // int(lengths[rows[start]]))
        groups.append(rows[start : start + count])
        start += count
    return groups


def _longest_first(lengths: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(wanted)
    return rows[np.lexsort((rows, -lengths[rows]))]


def fill(lengths: np.ndarray, wanted: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """As `plan`, for rows end to end: longest first, as many as have at most `batch_tokens` tokens together."""
    rows = _longest_first(lengths, wanted)
    ends = np.cumsum(lengths[rows])
    groups, start = [], 0
    while start < len(rows):
        before = ends[start] - lengths[rows[start]]
        stop = max(start + 1, int(np.searchsorted(ends, before + batch_tokens, side="right")))
        groups.append(rows[start:stop])
        start = stop
    return groups


def halves(batch: Batch) -> list[Batch]:
    """A batch of several rows as two, each padded to its own longest row if rows are padded."""
    middle, parts = len(batch.rows) // 2, []
    if batch.end_to_end:
        cut = int(batch.lengths[:middle].sum())
        for rows, tokens in ((slice(middle), slice(cut)), (slice(middle, None), slice(cut, None))):
            parts.append(Batch(batch.rows[rows], batch.ids[:, tokens], batch.labels[:, tokens], batch.lengths[rows]))
        return parts
    for part in (slice(middle), slice(middle, None)):
        width = int(batch.lengths[part].max())
        parts.append(Batch(batch.rows[part], batch.ids[part, :width], batch.labels[part, :width], batch.lengths[part]))
    return parts


def collate(encoded: Encoded, rows: np.ndarray, width: int = 0) -> Batch:
    """One batch of these rows, padded to the longest or to `width`; the row order in its scored tokens is that of `rows`."""
    lengths = encoded.lengths[rows]
    filled = np.arange(max(int(lengths.max()), width)) < lengths[:, None]
    ids, labels = np.zeros(filled.shape, np.int64), np.full(filled.shape, IGNORED, np.int64)
    taken = np.repeat(encoded.offsets[rows] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    ids[filled], labels[filled] = encoded.ids[taken], encoded.labels[taken]
    return Batch(rows, ids, labels, lengths)


def batches_of(rows: Encoded, batch_tokens: int) -> list[Batch]:
    """The rows that have a scored token, in batches of at most `batch_tokens` tokens, padding included, longest first."""
    return [collate(rows, group) for group in plan(rows.lengths, rows.scored_counts > 0, batch_tokens)]
