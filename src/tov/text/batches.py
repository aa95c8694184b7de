"""The frozen batch plan: which rows share a batch, decided from lengths alone. Must not know models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tov.text.encode import IGNORED, Encoded


@dataclass(frozen=True)
class Batch:
    """Right-padded rows.

    Attributes:
        rows: (B,) positions of the rows in the encoded shard.
        ids: (B, T) int64 token ids, 0 where padded.
        labels: (B, T) int64, `IGNORED` where nothing is scored.
        lengths: (B,) tokens in each row.
    """

    rows: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray


def plan(lengths: np.ndarray, wanted: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Groups rows of like length, longest first, so that rows times the longest of them stay within `batch_tokens`.

    A row longer than the budget has a batch of its own. The plan depends on nothing but its arguments; both states of an
    epoch walk the same one, so that identical weights give identical numbers.

    Args:
        lengths: (rows,) tokens.
        wanted: (rows,) bool, rows to scan.
        batch_tokens: most tokens in a batch, padding included.
    """
    rows = np.flatnonzero(wanted)
    rows = rows[np.lexsort((rows, -lengths[rows]))]
    groups, start = [], 0
    while start < len(rows):
        count = max(1, batch_tokens // int(lengths[rows[start]]))
        groups.append(rows[start : start + count])
        start += count
    return groups


def halves(batch: Batch) -> list[Batch]:
    """A batch of several rows as two, each padded to its own longest row."""
    middle, parts = len(batch.rows) // 2, []
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
