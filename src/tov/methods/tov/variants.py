"""The path variants as data: which state each training epoch starts from. One interpreter (`tov.methods.tov.fit`) walks them.

States have names: `start` is theta_0, `base-k` and `target-k` are theta_bas_k and theta_val_k of Algorithm 1. Every variant
ends each epoch k with `base-k` and `target-k`, the pair that the scan compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def same_for_all(steps: Sequence[Step]) -> set[str]:
    """The base states of a path that are the same whatever the target: no target epoch comes before them."""
    same = set[str]()
    for step in steps:
        if step.data == "base" and step.result.startswith("base") and step.source in (*same, START):
            same.add(step.result)
    return same


def shared_base(steps: Sequence[Step], *, carry: bool) -> set[str]:
    """Those of them that need not be trained again for another target: all, or none where a step that depends on the target
    goes on with the optimizer's moments that their training leaves.

    Args:
        steps: of a variant.
        carry: whether target epochs go on with the base epoch's moments.
    """
    same, source = same_for_all(steps), {step.result: step.source for step in steps}
    for step in steps:
        if step.result not in same and (step.data == "base" or carry):
            came_from = step.source
            while came_from not in (*same, START):
                came_from = source[came_from]
            if came_from in same:
                return set()
    return same
