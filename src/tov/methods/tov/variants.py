"""The path variants as data: which state each training epoch starts from. One interpreter (`tov.methods.tov.fit`) walks them.

States have names: `start` is theta_0, `base-k` and `target-k` are theta_bas_k and theta_val_k of Algorithm 1. Every variant
ends each epoch k with `base-k` and `target-k`, the pair that the scan compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

START = "start"


@dataclass(frozen=True)
class Step:
    """Train for one epoch of `data`, from state `source` to state `result`.

    Attributes:
        epoch: k, from 1.
        data: the base set U at rate eta_k, or the target at rate eps * eta_k.
        source: name of the state it starts from.
        result: name of the state it ends in.
    """

    epoch: int
    data: Literal["base", "target"]
    source: str
    result: str


def interleaved(epochs: int) -> tuple[Step, ...]:
    """The target epoch stays in the trajectory: the next base epoch starts from theta_val_k (Algorithm 1)."""
    steps: list[Step] = []
    for k in range(1, epochs + 1):
        steps += [
            Step(k, "base", f"target-{k - 1}" if k > 1 else START, f"base-{k}"),
            Step(k, "target", f"base-{k}", f"target-{k}"),
        ]
    return tuple(steps)


def parallel(epochs: int) -> tuple[Step, ...]:
    """The base trajectory never sees the target: each target epoch branches off theta_bas_k and is discarded."""
    steps: list[Step] = []
    for k in range(1, epochs + 1):
        steps += [
            Step(k, "base", f"base-{k - 1}" if k > 1 else START, f"base-{k}"),
            Step(k, "target", f"base-{k}", f"target-{k}"),
        ]
    return tuple(steps)


def paired(epochs: int) -> tuple[Step, ...]:
    """Two full trajectories from theta_0, one with target epochs and one without, compared at each k."""
    steps: list[Step] = []
    for k in range(1, epochs + 1):
        steps += [
            Step(k, "base", f"base-{k - 1}" if k > 1 else START, f"base-{k}"),
            Step(k, "base", f"target-{k - 1}" if k > 1 else START, f"mixed-{k}"),
            Step(k, "target", f"mixed-{k}", f"target-{k}"),
        ]
    return tuple(steps)


VARIANTS: dict[str, Callable[[int], tuple[Step, ...]]] = {
    "interleaved": interleaved,
    "parallel": parallel,
    "paired": paired,
}
