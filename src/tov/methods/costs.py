"""What a run costs for all of its targets, from what a method says of one (`Method.cost`). Knows no method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tov.methods.base import CLUSTERS, LEAST_ROWS, Method, PoolStats, Stage


def cost_of(method: Method, stats: PoolStats) -> list[Stage] | None:
    """The stages of a run for all of its targets: each one's, less what it shares with the first. None where none is told.

    The clusters of a target, which nobody knows yet, are taken as equal parts of its rows and tokens.
    """
    if method.takes == "pilots":  # they ask for their candidates' costs themselves
        return method.cost(stats)
    k, before = clusters_asked(method, stats.settings), list[Stage]()
    if k:
        able = max(1, min(k, stats.target_rows // LEAST_ROWS))
        stats = replace(stats, targets=_equal_parts(stats, able))
        by_model = not getattr(stats.options, "encoder", None)
        before = [Stage(CLUSTERS, stats.target_tokens if by_model else 0)]
    of_targets = _of_targets(method, stats)
    return of_targets and [*before, *of_targets]


def clusters_asked(method: Method, settings: Any) -> int | None:
    """Into how many clusters a run by a method is to split its target; None for none, also where the method cannot."""
    return getattr(settings, "target_clusters", None) if "clusters" in method.uses else None


def _equal_parts(stats: PoolStats, k: int) -> tuple[tuple[int, int], ...]:
    """Rows and tokens of k equal parts of a target, to within one."""
    of_all = (stats.target_rows, stats.target_tokens)
    ends = [[one * part // k for one in of_all] for part in range(k + 1)]
    return tuple((end[0] - start[0], end[1] - start[1]) for start, end in pairwise(ends))


def _of_targets(method: Method, stats: PoolStats) -> list[Stage] | None:
    if len(stats.targets) < 2:
        return method.cost(stats)
    each = [replace(stats, target_rows=rows, target_tokens=tokens, targets=()) for rows, tokens in stats.targets]
    costs = [method.cost(one) or [] for one in each]
    less = {stage.name: stage for stage in method.shared(stats)}
    if not all(costs):
        return None
    return [_sum(stages, less.get(stages[0].name, Stage("")), len(costs) - 1) for stages in zip(*costs, strict=True)]


def _sum(stages: Sequence[Stage], less: Stage, times: int) -> Stage:
    whole = kept_by(stages)
    kept = None if whole is None or less.kept is None else whole - times * less.kept
    return replace(
        stages[0], forward=sum(one.forward for one in stages) - times * less.forward,
        backward=sum(one.backward for one in stages) - times * less.backward, kept=kept,
    )  # fmt: skip


def kept_by(stages: Sequence[Stage]) -> float | None:
    """Bytes that stages keep on disk together; None where nobody knows of one."""
    sizes = [stage.kept for stage in stages if stage.kept is not None]
    return sum(sizes) if len(sizes) == len(stages) else None
