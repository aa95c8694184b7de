"""Means over the tokens of ragged rows, and the log-loss that everything here is measured in (Eq. 7). Pure NumPy."""

from __future__ import annotations

import numpy as np


def row_means(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(rows,) float64 means of ragged rows; NaN for a row without tokens.

    Args:
        values: (T_total,) one value a scored token, rows one after another.
        offsets: (rows + 1,) where each row starts.
    """
    counts = np.diff(offsets)
    sums = np.add.reduceat(np.append(values.astype(np.float64), 0.0), offsets[:-1])
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def log_loss(logp: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(rows,) token-mean log-loss in nats (Eq. 7)."""
    return -row_means(logp, offsets)
