"""From a filled score table to the rows chosen, by any method's ranking and any rule. The only caller of `selection.choose`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tov.config import RuleSettings
from tov.data.pool import Pool
from tov.errors import DataError
from tov.methods import Arm
from tov.methods.table import Method, imported
from tov.path.fit import base_size_for
from tov.selection import Choice, choose, room_for
from tov.stages import Rows


def check_choice(arm: Arm, settings: Any, rows: Rows, target: Pool, n: int | None) -> None:
    """Before anything is scored: whether n rows can be chosen, and whether the method's options are of things that are there.

    Args:
        arm: the method.
        settings: of the run, with the rule named.
        rows: the pool.
        target: the target.
        n: rows to choose; None leaves numbers unchecked.

    Raises:
        ConfigError: a cap for a source that is not there, or an option of a column or a package that is not.
        DataError: fewer than n usable rows within the caps, or by score outside the base set.
    """
    if arm.method.check:
        imported(arm.method.check, f"the method '{arm.method.name}'")(arm.own, settings, target)
    if n is None:
        return
    usable = int(rows.usable.sum())
    base = base_size_for(settings, usable) if arm.method.of_path else 0
    if settings.rule != "score+random" and n > usable - base:
        raise DataError(
            f"n = {n:,} rows wanted by score, but {base:,} of the {usable:,} usable rows are the base set, which is trained on",
            fix="lower --n or --base-size, or use --rule score+random",
        )
    if settings.source_cap:
        room = room_for(rows.pool.source_names(np.arange(len(rows.pool))), settings.source_cap, n)
        assert room
        room.check(n, rows.usable)


def choose_rows(
    method: Method, settings: RuleSettings, scores: pa.Table, folder: Path, *, n: int, seed: int
) -> tuple[Choice, np.ndarray]:
    """The choice, and (N,) the numbers that rows were ranked by.

    Args:
        method: whose ranking.
        settings: with rule and bins named.
        scores: the score table.
        folder: of the run that filled it, with what the method left beside it.
        n: rows to choose.
        seed: of all that is drawn.

    Raises:
        DataError: fewer rows than asked for.
        ConfigError: the rule needs numbers that the table has not.
    """
    assert settings.rule
    assert settings.bins
    values = method.rank(scores, settings)
    best = None
    if settings.rule == "round-robin":
        best = imported(method.candidates or "", f"the method '{method.name}'")(folder, scores)
    choice = choose(
        scores=values, tokens=scores["tokens"].to_numpy(), in_base=scores["in_base"].to_numpy(),
        usable=np.array([not reason for reason in scores["excluded"].to_pylist()]), n=n, rule=settings.rule,
        bins=settings.bins, seed=seed, room=room_for(scores["source"].to_pylist(), settings.source_cap, n), best=best,
    )  # fmt: skip
    return choice, values
