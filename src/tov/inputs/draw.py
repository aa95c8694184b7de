"""Rows of a target or a pool as tokens: those that have something scored, all of them or so many drawn at random."""

from __future__ import annotations

import numpy as np

from tov.data.pool import Pool
from tov.errors import DataError
from tov.inputs.read import PoolRows, usable_rows
from tov.seeds import generator
from tov.text.encode import Encoded, Encoder, encode_placed

SAMPLE = 4096
"""Usable pool rows that are made tokens of for an estimate, drawn at random where there are more."""
RANDOM_ROWS = "random rows"
"""The stream of a seed by which the method random draws, in a selection and in a comparison alike."""


def encode_scored(target: Pool, encode: Encoder, *, role: str = "target") -> tuple[Encoded, np.ndarray]:
    """The rows of the target (or the test) that have a scored token, and their row_ids.

    Raises:
        DataError: none has, or one cannot be encoded.
    """
    rows = usable_rows(target.rows(0, len(target)))
    encoded = encode_placed(encode, rows, target.where)
    row_ids = np.flatnonzero(encoded.scored_counts > 0)
    if not len(row_ids):
        raise DataError(
            f"None of the {len(target):,} {role} rows has a scored token within {encode.max_length} tokens.",
            fix=f"Raise --max-length, or check that the {role}'s answers are not empty.",
        )
    return encoded.take(row_ids), row_ids


def drawing_order(rows: PoolRows, random: np.random.Generator) -> np.ndarray:
    """(usable rows,) their row_ids in the order in which they are drawn, uniformly and without repeats."""
    return random.permutation(np.flatnonzero(rows.usable))


def encode_drawn(rows: PoolRows, row_ids: np.ndarray, encode: Encoder) -> Encoded:
    """These usable rows of a pool as tokens.

    Raises:
        DataError: one cannot be encoded and such rows are not skipped.
    """
    places = [rows.pool.where(int(row_id)) for row_id in row_ids]
    return encode_placed(encode, usable_rows(rows.pool.at(row_ids)), places.__getitem__, skip=rows.skip)


def draw_rows(rows: PoolRows, size: int, random: np.random.Generator, encode: Encoder) -> tuple[np.ndarray, Encoded]:
    """Rows drawn uniformly without repeats from the usable rows that have a scored token; from one seed the fewer are the
    first of the more.

    Returns:
        (size,) row ids in the order drawn, and the rows encoded; fewer only if the pool has no more.

    Raises:
        DataError: no row has a scored token, or one cannot be encoded and such rows are not skipped.
    """
    candidates = drawing_order(rows, random)
    ids: list[int] = []
    parts: list[Encoded] = []
    for start in range(0, len(candidates), max(size, 1)):
        block = candidates[start : start + size]
        encoded = encode_drawn(rows, block, encode)
        good = np.flatnonzero(encoded.scored_counts > 0)[: size - len(ids)]
        ids += block[good].tolist()
        parts.append(encoded.take(good))
        if len(ids) >= size:
            break
    if not ids:
        raise DataError(
            f"No usable pool row has a scored token within {encode.max_length} tokens.",
            fix="Raise --max-length, or check that the pool's answers are not empty.",
        )
    return np.array(ids, np.int64), Encoded.concatenate(parts)


def sample_rows(
    rows: PoolRows, encode: Encoder, seed: int, among: np.ndarray | None = None, most: int | None = None
) -> tuple[np.ndarray, Encoded]:
    """Row_ids of usable rows of the pool, and these rows as tokens.

    Args:
        rows: the pool.
        encode: rows to tokens.
        seed: of the draw.
        among: (N,) bool, those of which they are; all if not given.
        most: rows; `SAMPLE` if not given.
    """
    usable = np.flatnonzero(rows.usable if among is None else rows.usable & among)
    drawn = min(len(usable), most or SAMPLE)
    picked = np.sort(generator(seed, "plan").choice(usable, drawn, replace=False))
    places = [rows.pool.where(int(row_id)) for row_id in picked]
    return picked, encode_placed(encode, usable_rows(rows.pool.at(picked)), places.__getitem__, skip=rows.skip)
