"""From a filled score table to the rows chosen, by any method's ranking and any rule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tov.config.choice import RuleSettings, SelectionSettings
from tov.data.pool import Pool
from tov.errors import ConfigError, DataError, RunError
from tov.inputs.amount import Amount, most_of_source
from tov.inputs.read import Indexed, PoolRows, targets_of
from tov.methods.base import Method, no_turns
from tov.methods.clusters import check_clusters, check_shares
from tov.methods.costs import clusters_asked
from tov.methods.shared.percentiles import percentiles
from tov.methods.spec import Variant
from tov.progress import counted
from tov.runs.folder import Run
from tov.scores.store import columns_in
from tov.scores.table import DEFAULT_TARGET, LENGTH, artifacts_of, coded, column_name, measures_of, of_target, usable_in
from tov.selection.choose import Choice, quotas_for
from tov.selection.shares import check_parts, choose_by_source, parts_of
from tov.selection.targets import OfTarget, as_one, choose_by_target, split_shares
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
    targets, k = targets_of(target), clusters_asked(variant.method, settings)
    check_clusters(k, target)
    check_shares(k, _shares(settings))
    for one in targets.values():
        variant.method.check(variant.options, settings, one)
    if settings.rule == "round-robin" and len(targets) == 1 and not k:
        variant.method.check_turns(variant.options, target)
    check_pairs(settings.score, rows.pool)
    if n is not None:
        _check_base(variant, settings, int(rows.usable.sum()), n, flag)
    if settings.source_cap or _shares(settings):
        _check_sources(settings, rows, None if flag == "--tokens" else n, several(targets))


def _check_base(variant: Variant, settings: Any, usable: int, n: int, flag: str) -> None:
    base = variant.method.base_size(settings, usable)
    if settings.rule != "score+random" and n > usable - base:
        about = "" if flag == "--n" else "at least "
        raise DataError(
            f"{flag} asks for {about}{counted(n, 'rows')} by score, "
            f"but {base:,} of the {usable:,} usable rows are the base set.",
            fix=f"Lower {flag} or --base-size, or use --rule score+random.",
        )
    if base and base == usable:
        raise DataError(
            f"The base set is all {counted(usable, 'usable rows')}, so none is left to be chosen by score.",
            fix="Lower --base-size.",
        )


def _shares(settings: RuleSettings) -> dict[str, float]:
    return settings.share if isinstance(settings, SelectionSettings) else {}


def _coded_sources(pool: Pool) -> tuple[np.ndarray, list[str]]:
    """(N,) the source of each row, by its place among the names of the sources that have a row."""
    sizes = {source.name: len(source.table) for source in pool.sources if len(source.table)}
    return np.repeat(np.arange(len(sizes)), list(sizes.values())), list(sizes)


def several(targets: Iterable[str]) -> tuple[str, ...]:
    """The names of a run's targets, where it has more than one; a target alone needs none."""
    names = tuple(targets)
    return names if len(names) > 1 else ()


def _check_sources(settings: RuleSettings, rows: PoolRows, n: int | None, targets: Sequence[str]) -> None:
    """Caps and shares beside the pool's sources and the targets: their names, and for n rows their numbers."""
    codes, names = _coded_sources(rows.pool)
    shares, _ = split_shares(_shares(settings), names, targets)
    parts = parts_of(shares, names, settings.source_cap, n or 1)
    quotas = quotas_for(codes, names, settings.source_cap, n or 1)
    if n is None:
        return
    there = np.bincount(codes[rows.usable], minlength=len(names)).tolist()
    if shares:
        check_parts(parts, dict(zip(names, there, strict=True)), "rows", "--n")
    if quotas and parts[-1].share is None:
        before = parts[-2].until if len(parts) > 1 else 0
        quotas.check(n - before, rows.usable & np.isin(codes, [names.index(name) for name in parts[-1].sources]))


def check_tokens(
    settings: SelectionSettings, rows: PoolRows, target: Indexed, amount: Amount, encode: Encoder, seed: int
) -> None:  # fmt: skip
    """Before anything is scored: whether each source with a share has so many tokens, as far as that is certain.

    Raises:
        DataError: one has fewer.
    """
    codes, names = _coded_sources(rows.pool)
    shares, _ = split_shares(settings.share, names, several(targets_of(target)))
    if amount.tokens is None or not shares:
        return
    counts = np.bincount(codes[rows.usable], minlength=len(names)).tolist()
    most = {name: count * encode.max_length for name, count in zip(names, counts, strict=True)}
    most |= {name: most_of_source(rows, encode, seed, codes == names.index(name)) for name in shares}
    check_parts(parts_of(shares, names, settings.source_cap, amount.tokens), most, "tokens", "--tokens")


def check_pairs(score: str, pool: Pool) -> None:
    """Raises ConfigError if a margin is asked for and a source has but one answer a row."""
    single = [source.name for source, layout in zip(pool.sources, pool.layouts, strict=True) if not layout.pairs]
    if score == "margin" and single:
        raise ConfigError(
            f"--score margin is for preference pairs, but the rows of '{single[0]}' have one answer.",
            allowed="a pool with the columns chosen and rejected",
            fix="Leave --score out.",
        )


def columns_for(
    method: Method, settings: RuleSettings, folder: Path, *, targets: Iterable[str] = (DEFAULT_TARGET,)
) -> list[str]:
    """The columns of the score table in a folder that a choice for these targets reads."""
    available, names = columns_in(folder), {"source", "tokens", "in_base", "excluded"}
    for target in targets:
        wanted = method.columns(settings, measures_of(available, target))
        names |= {column_name(column, target) for column in wanted}
    if isinstance(settings, SelectionSettings) and settings.tokens:
        names.add(LENGTH)
    return [name for name in available if name in names]


def choose_rows(
    method: Method, settings: RuleSettings, scores: pa.Table, run: Run, *, seed: int, n: int | None = None,
    targets: Iterable[str] = (DEFAULT_TARGET,),
) -> tuple[Choice, np.ndarray]:  # fmt: skip
    """The choice, and (N,) the numbers that rows were ranked by; of several targets the largest percentile.

    Args:
        method: whose ranking.
        settings: with rule and bins named.
        scores: the score table.
        run: that filled it, with what the method left beside it.
        seed: of all that is drawn.
        n: rows to choose; by default what the settings ask for, rows or tokens.
        targets: whose scores; several share the choice.

    Raises:
        DataError: fewer rows (or tokens) than asked for.
        RunError: tokens are asked for, and the table is older than their column.
        ConfigError: the rule needs numbers that the table has not; a share of what is not there.
    """
    assert settings.rule
    assert settings.bins
    each = [_of_target(method, settings, scores, run, name) for name in targets]
    codes, names = coded(scores["source"])
    lengths = None
    if n is None:
        assert isinstance(settings, SelectionSettings)
        n = settings.n or settings.tokens
        lengths = lengths_in(scores) if settings.tokens else None
    assert n
    of_sources, of_targets = split_shares(_shares(settings), names, several(one.name for one in each))
    usable, in_base = usable_in(scores), scores["in_base"].to_numpy()
    given: dict[str, Any] = {
        "caps": settings.source_cap, "codes": codes, "names": names, "n": n, "lengths": lengths,
        "tokens": scores["tokens"].to_numpy(), "in_base": in_base, "usable": usable,
        "rule": settings.rule, "bins": settings.bins, "seed": seed,
    }  # fmt: skip
    if len(each) > 1:
        choice = choose_by_target(each, shares=of_targets, source_shares=of_sources, **given)
        free = usable & ~in_base
        ranks = [percentiles(one.scores, free & np.isfinite(one.scores)) for one in each]
        return choice, np.fmax.reduce(ranks)
    best = each[0].best
    if best is None and settings.rule == "round-robin":
        if method.round_robin and not clusters_asked(method, settings):
            raise no_turns()
        best = as_one(each[0].scores)  # a target left alone, or clusters that became one
    return choose_by_source(shares=of_sources, scores=each[0].scores, best=best, **given), each[0].scores


def _of_target(method: Method, settings: RuleSettings, scores: pa.Table, run: Run, target: str) -> OfTarget:
    view = of_target(scores, target)
    values, best = method.rank(view, settings), None
    if settings.rule == "round-robin" and method.round_robin:
        assert run.manifest.scoring
        best = method.by_target(view, artifacts_of(run.artifacts, target), run.manifest.scoring.options)
    record = run.manifest.targets.get(target)
    return OfTarget(target, values, best, (record.weight if record else None) or 1)


def check_again(settings: SelectionSettings, pool: Pool, folder: Path, targets: Iterable[str]) -> None:
    """Before a choice from scores that are there: what can be told without reading them.

    Raises:
        ConfigError: a cap or a share for a source that is not there, or a share above its cap.
        RunError: tokens are asked for, and the table is older than their column.
    """
    codes, names = _coded_sources(pool)
    parts_of(split_shares(settings.share, names, several(targets))[0], names, settings.source_cap, 1)
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
