"""The chosen rows beside the pool and the target they were chosen for, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    others: dict[str, Sequence[Row]]


def look(rows: Sequence[Row], sizes: np.ndarray, beside: Beside, *, n: int) -> ChecksRecord:
    """What is seen of a choice.

    Args:
        rows: chosen ones, as many as are looked at.
        sizes: (rows,) their lengths.
        beside: pool, target and test.
        n: rows chosen.
    """
    chosen = facts(rows, beside.task, sizes=sizes, of=n)
    found = {
        "chosen": _within(rows),
        "pool": _within(beside.pool_rows[: len(rows)]),
        **{name: _among(rows, others) for name, others in beside.others.items()},
    }
    seen = {"chosen": chosen, "pool": beside.pool, **({"target": beside.target} if beside.target else {})}
    apart = warnings(chosen, beside.pool, beside.target, beside.task.length) if beside.target else []
    return ChecksRecord(rows=seen, repeats=found, warnings=[*apart, *repeat_warnings(found)])


def _within(rows: Sequence[Row]) -> Repeats:
    """How many rows repeat an earlier one."""
    exact = np.ones(len(rows), bool)
    exact[np.unique(_prompts(rows), return_index=True)[1]] = False
    return _repeats(exact, Near(list(map(question_text, rows))).repeats())


def _among(rows: Sequence[Row], others: Sequence[Row]) -> Repeats:
    """How many rows are found again among others."""
    near = Near(list(map(question_text, others))).of(map(question_text, rows)) >= 0
    return _repeats(np.isin(_prompts(rows), _prompts(others)), near)


def _prompts(rows: Sequence[Row]) -> np.ndarray:
    return np.array([prompt_hash(row) for row in rows], np.uint64)


def _repeats(exact: np.ndarray, near: np.ndarray) -> Repeats:
    return Repeats(exact=int(exact.sum()), near=int((near & ~exact).sum()), of=len(exact))
