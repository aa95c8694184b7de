"""Seeded draws without repeats. Pure NumPy: knows log-weights and nothing of where they are from."""

from __future__ import annotations

import numpy as np

from tov.errors import DataError
from tov.seeds import generator


def gumbel_top_k(log_weights: np.ndarray, n: int, seed: int, *, row_ids: np.ndarray | None = None) -> np.ndarray:
    """(n,) positions of distinct rows, drawn one after another with probability proportional to weight among those left.

    The n largest of `log w_i + G_i`, G_i independent standard Gumbel noise, are such a draw, in the order of drawing; so
    the first k of them are the draw of k. Rows of no weight (-inf) and rows without one (NaN) are never drawn; to leave
    out others, give them NaN.

    Args:
        log_weights: (N,) natural logarithm of the weights, up to a constant.
        n: rows to draw.
        seed: equal seeds draw equal rows.
        row_ids: (N,) non-negative ints that the noise is tied to, so that a row keeps its noise wherever it stands; the
            positions themselves if not given.

    Raises:
        DataError: fewer rows with a weight than asked for.

    Source: Vieira 2014; Kool, van Hoof and Welling 2019, arXiv 1903.06059; used by DSIR, arXiv 2302.03169.
    """
    row_ids = np.arange(len(log_weights)) if row_ids is None else row_ids
    keys = log_weights + gumbel_noise(int(row_ids.max(initial=-1)) + 1, seed)[row_ids]
    weighted = np.flatnonzero(log_weights > -np.inf)
    if n > len(weighted):
        raise DataError(
            f"n = {n:,} rows wanted without repeats, but {len(weighted):,} of {len(log_weights):,} have a weight",
            fix="lower --n, or spread the weights over more rows",
        )
    return weighted[np.lexsort((row_ids[weighted], -keys[weighted]))[:n]]


def gumbel_noise(rows: int, seed: int) -> np.ndarray:
    """(rows,) independent standard Gumbel noise: the best by log-weight plus noise are a draw by weight."""
    return generator(seed, "gumbel top-k").gumbel(size=rows)
