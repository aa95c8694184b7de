"""From a filled score table to the rows chosen, by any method's ranking and any rule. The only caller of `selection.choose`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from tov.config import RuleSettings
from tov.methods.table import Method, imported
from tov.selection import Choice, choose, room_for
from tov.stages import Rows


def check_caps(settings: RuleSettings, rows: Rows, n: int) -> None:
    """Before anything is scored: whether the sources' caps can be met.

    Raises:
        ConfigError: a cap for a source that is not there.
        DataError: fewer than n usable rows within the caps.
    """
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
