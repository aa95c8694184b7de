"""What rows are like: shares of rows with a trait, and their lengths. Knows no method, and no task by its name."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from tov.data.pool import Pool
from tov.data.rows import Row
from tov.errors import DataError
from tov.inputs.read import usable_rows
from tov.runs.manifest import RowsFacts
from tov.seeds import generator
from tov.tasks import TASKS
from tov.tasks.base import Task
from tov.text.encode import Encoder

LOOKED_AT = 2000
"""Rows of a pool, a target or a choice that are looked at; of more, these are drawn by the seed."""
LEVELS = np.linspace(0, 1, 51)
"""Of the quantiles of lengths."""
LETTERS = 1000
"""Characters of a row that its script is taken from."""


def drawn(row_ids: np.ndarray, seed: int) -> np.ndarray:
    """(at most `LOOKED_AT`,) of these rows, in the order drawn, so that the first k of them are as random as all."""
    return generator(seed, "rows looked at").choice(row_ids, min(len(row_ids), LOOKED_AT), replace=False)


def seen(pool: Pool, row_ids: np.ndarray, encode: Encoder | None, seed: int) -> tuple[list[Row], RowsFacts]:
    """Rows of a pool or target that are looked at, and what they are like.

    Args:
        pool: that has them.
        row_ids: all that could be looked at; those without a scored token are left out.
        encode: tells their lengths; without it, or if it refuses a row, they stay unknown.
        seed: of the draw.
    """
    rows, task, sizes = usable_rows(pool.at(drawn(row_ids, seed))), TASKS[pool.task], None
    if encode is not None:
        with suppress(DataError):
            encoded = encode(rows)
            scored = np.flatnonzero(encoded.scored_counts > 0)
            rows, sizes = [rows[place] for place in scored], encoded.sizes[scored]
    return rows, facts(rows, task, sizes=sizes, of=len(row_ids))


def facts(rows: Sequence[Row], task: Task[Any], *, sizes: np.ndarray | None, of: int | None = None) -> RowsFacts:
    """What rows are like.

    Args:
        rows: those that are looked at.
        task: whose rows they are.
        sizes: (rows,) lengths in the task's unit (`Encoded.sizes`); None where there are none.
        of: how many there are; default: these.
    """
    counts = Counter(trait for row in rows for trait in _traits(row, task))
    lengths = [] if sizes is None or not len(sizes) else np.quantile(sizes, LEVELS, method="inverted_cdf").tolist()
    return RowsFacts(
        rows=len(rows) if of is None else of, looked_at=len(rows), lengths=lengths,
        shares={trait: count / len(rows) for trait, count in sorted(counts.items())},
    )  # fmt: skip


def _traits(row: Row, task: Task[Any]) -> set[str]:
    written_in = script(row.text)
    return {*task.traits(row), *([f"are mostly in {written_in} letters"] if written_in else [])}


def script(text: str) -> str:
    """The script that most letters of a text's beginning are of, by their Unicode names: `Latin`, `Cyrillic`, `CJK`; "" without
    letters. Han characters are `CJK`; Japanese text is mostly `Hiragana` or `Katakana`, or `CJK` too."""
    counts = Counter(_script_of(sign) for sign in text[:LETTERS] if sign.isalpha())
    return min(counts, key=lambda name: (-counts[name], name)) if counts else ""


@cache
def _script_of(letter: str) -> str:
    word = unicodedata.name(letter, "OTHER").partition(" ")[0]
    return word if word == "CJK" else word.capitalize()


def share_over(rows: RowsFacts, length: int) -> float | None:
    """Share of the rows that are longer, to 2 %; None where lengths are not known."""
    return float(np.mean(np.array(rows.lengths) > length)) if rows.lengths else None
