"""Scores of unlike units on one scale. Pure NumPy."""

from __future__ import annotations

import numpy as np


def percentiles(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(rows,) the share of some rows that have less than a row, and half of those that have as much; NaN where it has none.

    Args:
        values: (rows,) larger is better.
        among: (rows,) bool, those that are counted; each has a value.
    """
    counted = np.sort(values[among])
    below, up_to = (np.searchsorted(counted, values, side=side) for side in ("left", "right"))
    return np.where(np.isnan(values), np.nan, (below + up_to) / (2 * max(len(counted), 1)))
