"""From a filled score table to the rows chosen, by any method's ranking and any rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tov.config.records import RuleSettings
from tov.data.pool import Pool
from tov.errors import ConfigError, DataError
from tov.inputs.read import Indexed, PoolRows
from tov.methods.base import Method
from tov.methods.spec import Variant
from tov.runs.folder import Run
from tov.scores.store import columns_in
from tov.scores.table import DEFAULT_TARGET, coded, column_name, measures_of, of_target, usable_in
from tov.selection.choose import Choice, choose, quotas_for


def check_choice(variant: Variant, settings: Any, rows: PoolRows, target: Indexed, n: int | None) -> None:
    """Before anything is scored: whether n rows can be chosen, and whether the method's options are of things that are there.

    Args:
        variant: the method.
        settings: of the run, with the rule named.
        rows: the pool.
        target: the target.
        n: rows to choose; None leaves numbers unchecked.

    Raises:
        ConfigError: a cap for a source that is not there, an option of a column or a package that is not, or `score=margin`
            where a row has no rejected answer.
        DataError: fewer than n usable rows within the caps, or by score outside the base set.
    """
    variant.method.check(variant.options, settings, target)
    check_pairs(settings.score, rows.pool)
    if n is None:
        return
    usable = int(rows.usable.sum())
    base = variant.method.base_size(settings, usable)
    if settings.rule != "score+random" and n > usable - base:
        raise DataError(
            f"--n asks for {n:,} rows by score, but {base:,} of the {usable:,} usable rows are the base set.",
            fix="Lower --n or --base-size, or use --rule score+random.",
        )
    if base and base == usable:
        raise DataError(
            f"All {usable:,} usable rows are the base set, so none is left to be chosen by score.",
            fix="Lower --base-size.",
        )
    if settings.source_cap:
        sizes = {source.name: len(source.table) for source in rows.pool.sources if len(source.table)}
        codes = np.repeat(np.arange(len(sizes)), list(sizes.values()))
        quotas = quotas_for(codes, list(sizes), settings.source_cap, n)
        assert quotas
        quotas.check(n, rows.usable)


def check_pairs(score: str, pool: Pool) -> None:
    """Raises ConfigError if a margin is asked for and a source has but one answer a row."""
    single = [source.name for source, layout in zip(pool.sources, pool.layouts, strict=True) if not layout.pairs]
    if score == "margin" and single:
        raise ConfigError(
            f"--score margin is for preference pairs, but the rows of '{single[0]}' have one answer.",
            allowed="a pool with the columns chosen and rejected",
            fix="Leave --score out.",
        )


def columns_for(method: Method, settings: RuleSettings, folder: Path, *, target: str = DEFAULT_TARGET) -> list[str]:
    """The columns of the score table in a folder that a choice reads."""
    available = columns_in(folder)
    wanted = method.columns(settings, measures_of(available, target))
    names = {column_name(column, target) for column in wanted} | {"source", "tokens", "in_base", "excluded"}
    return [name for name in available if name in names]


def choose_rows(
    method: Method,
    settings: RuleSettings,
    scores: pa.Table,
    run: Run,
    *,
    n: int,
    seed: int,
    target: str = DEFAULT_TARGET,
) -> tuple[Choice, np.ndarray]:
    """The choice, and (N,) the numbers that rows were ranked by.

    Args:
        method: whose ranking.
        settings: with rule and bins named.
        scores: the score table.
        run: that filled it, with what the method left beside it.
        n: rows to choose.
        seed: of all that is drawn.
        target: whose scores.

    Raises:
        DataError: fewer rows than asked for.
        ConfigError: the rule needs numbers that the table has not.
    """
    assert settings.rule
    assert settings.bins
    view = of_target(scores, target)
    values, best = method.rank(view, settings), None
    if settings.rule == "round-robin":
        assert run.manifest.scoring
        artifacts = {
            name: folder
            for name, folder in run.artifacts.items()
            if column_name(name.partition("@")[0], target) == name
        }
        mine = {name.partition("@")[0]: folder for name, folder in artifacts.items()}
        best = method.by_target(view, mine, run.manifest.scoring.options)
    quotas = quotas_for(*coded(scores["source"]), settings.source_cap, n) if settings.source_cap else None
    choice = choose(
        scores=values, tokens=scores["tokens"].to_numpy(), in_base=scores["in_base"].to_numpy(), usable=usable_in(scores),
        n=n, rule=settings.rule, bins=settings.bins, seed=seed, quotas=quotas, best=best,
    )  # fmt: skip
    return choice, values
