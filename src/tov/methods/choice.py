"""From a filled score table to the rows chosen, by any method's ranking and any rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tov.config.choice import RuleSettings, SelectionSettings
from tov.data.pool import Pool
from tov.errors import ConfigError, DataError, RunError
from tov.inputs.amount import Amount, most_of_source
from tov.inputs.read import Indexed, PoolRows
from tov.methods.base import Method
from tov.methods.spec import Variant
from tov.runs.folder import Run
from tov.scores.store import columns_in
from tov.scores.table import DEFAULT_TARGET, LENGTH, coded, column_name, measures_of, of_target, usable_in
from tov.selection.choose import Choice, quotas_for
from tov.selection.shares import check_parts, choose_by_source, parts_of
from tov.text.encode import Encoder


def check_choice(
    variant: Variant, settings: Any, rows: PoolRows, target: Indexed, n: int | None, flag: str = "--n"
) -> None:
    """Before anything is scored: whether n rows can be chosen, and whether the method's options are of things that are there.

    Args:
        variant: the method.
        settings: of the run, with the rule named.
        rows: the pool.
        target: the target.
        n: rows to choose, or that a budget of tokens surely stands for; None leaves numbers unchecked.
        flag: that asks for them.

    Raises:
        ConfigError: a cap or a share for a source that is not there, a share above its cap, an option of a column or a
            package that is not, or `score=margin` where a row has no rejected answer.
        DataError: fewer than n usable rows within the caps, in a source with a share, or by score outside the base set.
    """
    variant.method.check(variant.options, settings, target)
    check_pairs(settings.score, rows.pool)
    if n is not None:
        _check_base(variant, settings, int(rows.usable.sum()), n, flag)
    if settings.source_cap or _shares(settings):
        _check_sources(settings, rows, None if flag == "--tokens" else n)


def _check_base(variant: Variant, settings: Any, usable: int, n: int, flag: str) -> None:
    base = variant.method.base_size(settings, usable)
    if settings.rule != "score+random" and n > usable - base:
        about = "" if flag == "--n" else "at least "
        raise DataError(
            f"{flag} asks for {about}{n:,} rows by score, but {base:,} of the {usable:,} usable rows are the base set.",
            fix=f"Lower {flag} or --base-size, or use --rule score+random.",
        )
    if base and base == usable:
        raise DataError(
            f"All {usable:,} usable rows are the base set, so none is left to be chosen by score.",
            fix="Lower --base-size.",
        )


def _shares(settings: RuleSettings) -> dict[str, float]:
    return settings.share if isinstance(settings, SelectionSettings) else {}


def _coded_sources(pool: Pool) -> tuple[np.ndarray, list[str]]:
    """(N,) the source of each row, by its place among the names of the sources that have a row."""
    sizes = {source.name: len(source.table) for source in pool.sources if len(source.table)}
    return np.repeat(np.arange(len(sizes)), list(sizes.values())), list(sizes)


def _check_sources(settings: RuleSettings, rows: PoolRows, n: int | None) -> None:
    """Caps and shares beside the pool's sources: their names, and for n rows their numbers."""
    codes, names = _coded_sources(rows.pool)
    parts = parts_of(_shares(settings), names, settings.source_cap, n or 1)
    quotas = quotas_for(codes, names, settings.source_cap, n or 1)
    if n is None:
        return
    there = np.bincount(codes[rows.usable], minlength=len(names)).tolist()
    if _shares(settings):
        check_parts(parts, dict(zip(names, there, strict=True)), "rows", "--n")
    if quotas and parts[-1].share is None:
        before = parts[-2].until if len(parts) > 1 else 0
        quotas.check(n - before, rows.usable & np.isin(codes, [names.index(name) for name in parts[-1].sources]))


def check_tokens(settings: SelectionSettings, rows: PoolRows, amount: Amount, encode: Encoder, seed: int) -> None:
    """Before anything is scored: whether each source with a share has so many tokens, as far as that is certain.

    Raises:
        DataError: one has fewer.
    """
    if amount.tokens is None or not settings.share:
        return
    codes, names = _coded_sources(rows.pool)
    counts = np.bincount(codes[rows.usable], minlength=len(names)).tolist()
    most = {name: count * encode.max_length for name, count in zip(names, counts, strict=True)}
    most |= {name: most_of_source(rows, encode, seed, codes == names.index(name)) for name in settings.share}
    check_parts(parts_of(settings.share, names, settings.source_cap, amount.tokens), most, "tokens", "--tokens")


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
    if isinstance(settings, SelectionSettings) and settings.tokens:
        names.add(LENGTH)
    return [name for name in available if name in names]


def choose_rows(
    method: Method,
    settings: RuleSettings,
    scores: pa.Table,
    run: Run,
    *,
    seed: int,
    n: int | None = None,
    target: str = DEFAULT_TARGET,
) -> tuple[Choice, np.ndarray]:
    """The choice, and (N,) the numbers that rows were ranked by.

    Args:
        method: whose ranking.
        settings: with rule and bins named.
        scores: the score table.
        run: that filled it, with what the method left beside it.
        seed: of all that is drawn.
        n: rows to choose; by default what the settings ask for, rows or tokens.
        target: whose scores.

    Raises:
        DataError: fewer rows (or tokens) than asked for.
        RunError: tokens are asked for, and the table is older than their column.
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
    codes, names = coded(scores["source"])
    lengths = None
    if n is None:
        assert isinstance(settings, SelectionSettings)
        n = settings.n or settings.tokens
        lengths = lengths_in(scores) if settings.tokens else None
    assert n
    choice = choose_by_source(
        shares=_shares(settings), caps=settings.source_cap, codes=codes, names=names, n=n, lengths=lengths, scores=values,
        tokens=scores["tokens"].to_numpy(), in_base=scores["in_base"].to_numpy(), usable=usable_in(scores),
        rule=settings.rule, bins=settings.bins, seed=seed, best=best,
    )  # fmt: skip
    return choice, values


def check_again(settings: SelectionSettings, pool: Pool, folder: Path) -> None:
    """Before a choice from scores that are there: what can be told without reading them.

    Raises:
        ConfigError: a cap or a share for a source that is not there, or a share above its cap.
        RunError: tokens are asked for, and the table is older than their column.
    """
    codes, names = _coded_sources(pool)
    parts_of(settings.share, names, settings.source_cap, 1)
    quotas_for(codes, names, settings.source_cap, 1)
    if settings.tokens and LENGTH not in columns_in(folder):
        raise _without_lengths()


def lengths_in(scores: pa.Table) -> np.ndarray:
    """(N,) tokens of each row.

    Raises:
        RunError: the table is older than their column.
    """
    if LENGTH not in scores.column_names:
        raise _without_lengths()
    return scores[LENGTH].to_numpy()


def _without_lengths() -> RunError:
    return RunError(
        "The scores were made by a version of tov that did not keep how many tokens a row has.",
        allowed="--n, a number of rows",
        fix="Give --n in place of --tokens, or score the pool anew: the command of the run, with --force.",
    )
