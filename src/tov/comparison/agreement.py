"""How far two rankings of the same rows agree: Spearman's correlation with an interval, and the overlap of the best halves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Z = 1.96
"""Standard errors on either side in an interval of 95 %."""
LEAST = 4
"""Rows of which an interval can be told."""


@dataclass(frozen=True)
class Agreement:
    """Of two rankings.

    Attributes:
        rows: that both rank.
        correlation: Spearman's, equal values at their mean rank; None where one ranking says nothing.
        low, high: its 95 % interval by Fisher's z, with the standard error sqrt((1 + r^2 / 2) / (rows - 3)) (Bonett and Wright
            2000); None of fewer than `LEAST` rows.
        top: rows of the best half.
        overlap: share of them that the best half of the other ranking has too; 0.5 is chance. None where `top` is 0.
    """

    rows: int
    correlation: float | None
    low: float | None
    high: float | None
    top: int
    overlap: float | None


def agreement(one: np.ndarray, two: np.ndarray) -> Agreement:
    """How far two rankings agree.

    Args:
        one, two: (rows,) numbers that the same rows are ranked by, larger is better; rows of which one has none (NaN) do not
            count. Of equal ones the first is the better.
    """
    both = ~(np.isnan(one) | np.isnan(two))
    one, two = one[both], two[both]
    rows, top = len(one), len(one) // 2
    correlation = _spearman(one, two)
    low, high = (None, None) if correlation is None or rows < LEAST else _interval(correlation, rows)
    best = [np.argsort(-values, kind="stable")[:top] for values in (one, two)]
    overlap = len(np.intersect1d(best[0], best[1])) / top if top else None
    return Agreement(rows, correlation, low, high, top, overlap)


def _spearman(one: np.ndarray, two: np.ndarray) -> float | None:
    from scipy.stats import spearmanr  # type: ignore[import-untyped]  # slow to import, and few runs have a proxy

    if any(len(np.unique(values)) < 2 for values in (one, two)):
        return None
    return round(float(spearmanr(one, two).statistic), 12)  # equal rankings agree by 1


def _interval(correlation: float, rows: int) -> tuple[float, float]:
    if abs(correlation) > 1 - 1e-12:  # Fisher's z has no end there
        return correlation, correlation
    error = Z * math.sqrt((1 + correlation**2 / 2) / (rows - 3))
    return math.tanh(math.atanh(correlation) - error), math.tanh(math.atanh(correlation) + error)
