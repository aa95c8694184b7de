"""The chosen rows beside the pool and the target they were chosen for, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tov.checks.apart import repeat_warnings, warnings
from tov.checks.facts import facts
from tov.data.near import Near, question_text
from tov.data.rows import Row, prompt_hash
from tov.runs.manifest import ChecksRecord, Repeats, RowsFacts
from tov.tasks.base import Task


@dataclass(frozen=True)
class Beside:
    """What chosen rows are looked at beside.

    Attributes:
        task: of all rows.
        pool: what was seen of the pool.
        pool_rows: rows of it in random order.
        target: what was seen of the target; None where nothing was.
        others: rows of the `target` and the `test`, where they are at hand.
    """

    task: Task[Any]
    pool: RowsFacts
    pool_rows: Sequence[Row]
    target: RowsFacts | None
    others: Mapping[str, Sequence[Row]]
    _at_random: dict[int, Repeats] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def known(self) -> dict[str, _Questions]:
        """The others, as they are looked up in: once for all choices that are looked at beside them."""
        return {name: _Questions(rows) for name, rows in self.others.items()}

    def at_random(self, rows: int) -> Repeats:
        """How many of so many random rows of the pool repeat an earlier one."""
        if rows not in self._at_random:
            self._at_random[rows] = _Questions(self.pool_rows[:rows]).repeats()
        return self._at_random[rows]


class _Questions:
    """What rows are compared by."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.prompts = np.array([prompt_hash(row) for row in rows], np.uint64)
        self.near = Near(list(map(question_text, rows)))

    def repeats(self) -> Repeats:
        """How many rows repeat an earlier one."""
        exact = np.ones(len(self.prompts), bool)
        exact[np.unique(self.prompts, return_index=True)[1]] = False
        return _repeats(exact, self.near.repeats())

    def among(self, others: _Questions) -> Repeats:
        """How many rows are found again among others."""
        return _repeats(np.isin(self.prompts, others.prompts), self.near.among(others.near) >= 0)


def look(rows: Sequence[Row], sizes: np.ndarray, beside: Beside, *, n: int) -> ChecksRecord:
    """What is seen of a choice.

    Args:
        rows: chosen ones, as many as are looked at.
        sizes: (rows,) their lengths.
        beside: pool, target and test.
        n: rows chosen.
    """
    chosen = facts(rows, beside.task, sizes=sizes, of=n)
    mine = _Questions(rows)
    found = {
        "chosen": mine.repeats(),
        "pool": beside.at_random(len(rows)),
        **{name: mine.among(others) for name, others in beside.known.items()},
    }
    seen = {"chosen": chosen, "pool": beside.pool, **({"target": beside.target} if beside.target else {})}
    apart = warnings(chosen, beside.pool, beside.target, beside.task.length) if beside.target else []
    return ChecksRecord(rows=seen, repeats=found, warnings=[*apart, *repeat_warnings(found)])


def _repeats(exact: np.ndarray, near: np.ndarray) -> Repeats:
    return Repeats(exact=int(exact.sum()), near=int((near & ~exact).sum()), of=len(exact))
