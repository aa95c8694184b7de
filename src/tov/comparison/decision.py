"""From pilot trainings to a method: the rule of `--method auto`. Pure NumPy: knows no files, models or methods.

A *pilot* is a training on a candidate's rows beside one on random rows, equal in everything else. The rule, chosen on the
3,025 finished trainings of a public study (`experiments/replay_gate.py`):

1. A candidate's gain is the mean of its pilots' differences from the random rows of the same pilot.
2. Its error is that mean's standard error; the differences vary as its own do, but at least as the median candidate's do.
3. The candidate of the largest gain is taken if its gain exceeds `CAUTION` errors.
4. Otherwise the candidate is taken whose gain less `CAUTION` errors is largest, if that is above 0.
5. Otherwise a safe candidate is taken, half of whose rows are random (`tov` or `uncertainty`, by the larger gain), unless its
   gain plus `CAUTION` errors is below 0; then random rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CAUTION = 1.5
"""Standard errors by which a gain must exceed 0. Between 1 and 2 the study's table changes little; below 1 more cells lose."""


@dataclass(frozen=True)
class Gain:
    """What the pilots say of a candidate, in the unit of the differences; larger is better.

    Attributes:
        mean: of the differences.
        error: of that mean; infinite where no candidate has two pilots.
        pilots: how many there were.
        caution: errors by which it must exceed 0.
    """

    mean: float
    error: float
    pilots: int
    caution: float = CAUTION

    @property
    def low(self) -> float:
        """What the gain is at least, with the caution of the rule."""
        return self.mean - self.caution * self.error

    @property
    def high(self) -> float:
        """Likewise at most."""
        return self.mean + self.caution * self.error


def gains_of(differences: Mapping[str, Sequence[float]], caution: float = CAUTION) -> dict[str, Gain]:
    """The gain of each candidate.

    Args:
        differences: candidate -> its pilots' differences from random rows, at least one each.
        caution: of the rule.
    """
    own = {name: np.var(values, ddof=1) for name, values in differences.items() if len(values) > 1}
    usual = float(np.median(list(own.values()))) if own else math.inf
    return {
        name: Gain(
            float(np.mean(values)), math.sqrt(max(float(own.get(name, 0.0)), usual) / len(values)), len(values), caution,
        )
        for name, values in differences.items()
    }  # fmt: skip


def best_of(gains: Mapping[str, Gain]) -> str | None:
    """The candidate that the rule takes; None for random rows. Of equal ones the first."""
    for worth in (lambda name: gains[name].mean, lambda name: gains[name].low):
        best = max(gains, key=worth, default=None)
        if best is not None and gains[best].low > 0:
            return best
    return None


def safest_of(hedged: Mapping[str, Gain]) -> str | None:
    """What is taken where no gain is sure; None for random rows, where it is surely worse. Of equal ones the first.

    Args:
        hedged: the candidates half of whose rows are random; these can be no more than half wrong.
    """
    best = max(hedged, key=lambda name: hedged[name].mean, default=None)
    return best if best is not None and hedged[best].high >= 0 else None


def halved(gains: Mapping[str, Gain], least: int, stay: Collection[str] = ()) -> list[str]:
    """The candidates that go on: the better half by mean, rounded up, beside those that stay whatever their gain.

    Args:
        gains: of all that are left.
        least: of them that go on.
        stay: step 5 of the rule asks for their gains in the end, so they have every pilot.
    """
    others = sorted((name for name in gains if name not in stay), key=lambda name: -gains[name].mean)
    staying = len(gains) - len(others)
    kept = others[: max(least - staying, math.ceil(len(others) / 2))]
    return [name for name in gains if name in stay or name in kept]
