"""The path variants as data: which state each training epoch starts from. One interpreter (`tov.methods.tov.fit`) walks them.

States have names: `start` is theta_0, `base-k` and `target-k` are theta_bas_k and theta_val_k of Algorithm 1. Every variant
ends each epoch k with `base-k` and `target-k`, the pair that the scan compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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


_EPOCH: dict[str, tuple[tuple[Literal["base", "target"], str, str], ...]] = {
    # The target epoch stays in the trajectory: the next base epoch starts from theta_val_k (Algorithm 1).
    "interleaved": (("base", "target", "base"), ("target", "base", "target")),
    # The base trajectory never sees the target: each target epoch branches off theta_bas_k and is discarded.
    "parallel": (("base", "base", "base"), ("target", "base", "target")),
    # Two full trajectories from theta_0, one with target epochs and one without, compared at each k.
    "paired": (("base", "base", "base"), ("base", "target", "mixed"), ("target", "mixed", "target")),
}
"""The steps of an epoch: data, and the states that it leads from and to; one that the epoch has not made yet is the last's."""


def _steps(of_epoch: Sequence[tuple[Literal["base", "target"], str, str]], epochs: int) -> tuple[Step, ...]:
    steps: list[Step] = []
    for k in range(1, epochs + 1):
        made = set[str]()
        for data, source, result in of_epoch:
            start = f"{source}-{k}" if source in made else f"{source}-{k - 1}" if k > 1 else START
            steps.append(Step(k, data, start, f"{result}-{k}"))
            made.add(result)
    return tuple(steps)


VARIANTS: dict[str, Callable[[int], tuple[Step, ...]]] = {
    name: partial(_steps, of_epoch) for name, of_epoch in _EPOCH.items()
}
"""Name -> the steps of a path of so many epochs."""


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
