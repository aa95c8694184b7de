"""A row's scores from its tokens' log-probabilities, in plain Python: F on each token's gain, then the mean."""

from __future__ import annotations

import math


def row_scores(base: list[float], target: list[float]) -> dict[str, float]:
    """identity, abs and positive of one row in one epoch; a gain is log p after the target epoch minus before it."""
    gains = [after - before for before, after in zip(base, target, strict=True)]
    return {
        "identity": sum(gains) / len(gains),
        "abs": sum(abs(gain) for gain in gains) / len(gains),
        "positive": sum(max(gain, 0.0) for gain in gains) / len(gains),
    }


def uncertainty(base: list[float]) -> float:
    """Token mean of log[p (1 - p)], for tokens that are not certain."""
    return sum(math.log(math.exp(value) * (1.0 - math.exp(value))) for value in base) / len(base)
