"""Several targets: each has its share of the choice, and takes it by the rule from its own scores. Pure NumPy.

Targets choose one after another, in the order given, from the rows that are left: a row that two of them want counts for the
first, and the second takes its next best. By round robin of targets they take turns, a row each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tov.config.choice import written
from tov.errors import ConfigError, DataError, did_you_mean
from tov.selection.choose import BY_SCORE, Best, Choice, among
from tov.selection.round_robin import top_candidates, turns
from tov.selection.shares import choose_by_source, choose_part, parts_of, whole_numbers


@dataclass(frozen=True)
class OfTarget:
    """What one of several targets chooses by.

    Attributes:
        name: of the target.
        scores: (N,) larger is better, NaN for none.
        best: for round-robin, gives each of its rows' k best; None where the target takes turns as a whole.
        weight: of its part beside those of the others that have no share.
    """

    name: str
    scores: np.ndarray
    best: Best | None = None
    weight: int = 1


def split_shares(
    shares: Mapping[str, float], sources: Sequence[str], targets: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """The shares of sources, and those of targets.

    Args:
        shares: name -> share of the choice.
        sources: of the pool.
        targets: of the run, where it has several; none otherwise.

    Raises:
        ConfigError: a name of neither, or of both; shares of one kind are more than 1 together, or shares of all targets less.
    """
    for name, share in shares.items():
        if targets and name not in (*sources, *targets):
            raise ConfigError(
                f"--share {name}={share:g}: no source and no target is called '{name}'"
                f"{did_you_mean(name, [*sources, *targets])}.",
                allowed=f"sources: {', '.join(sorted(sources))}; targets: {', '.join(targets)}",
                fix="Correct the name before '='.",
            )
        if name in sources and name in targets:
            raise ConfigError(
                f"--share {name}={share:g}: '{name}' is the name of a source and of a target.",
                fix="Call one of them otherwise: --target NAME=FILE or --pool NAME=FILE.",
            )
    of_sources = {name: share for name, share in shares.items() if name not in targets}
    of_targets = {name: share for name, share in shares.items() if name in targets}
    for kind in (of_sources, of_targets):
        total = sum(map(written, kind.values()))
        if total > 1:
            shown = " ".join(f"{name}={share:g}" for name, share in kind.items())
            raise ConfigError(
                f"--share: {shown} are {float(total):g} together.", allowed="shares of at most 1 together",
                fix="Lower one of them.",
            )  # fmt: skip
    if of_targets and not set(targets) - of_targets.keys() and (total := sum(map(written, of_targets.values()))) < 1:
        raise ConfigError(
            f"--share names every target, and the shares are {float(total):g} together.",
            fix="Let them be 1 together, or leave a target out: it then has the rest.",
        )
    return of_sources, of_targets


def target_numbers(shares: Mapping[str, float], weights: Mapping[str, int], n: int) -> list[int]:
    """Rows (or tokens) of each target: its share, the others the rest by their weights, by the largest remainder method."""
    others, left = (
        sum(weights[name] for name in weights.keys() - shares),
        written(1) - sum(map(written, shares.values())),
    )
    each = {name: left * weight / max(others, 1) for name, weight in weights.items()}
    return whole_numbers([n * (written(shares[name]) if name in shares else each[name]) for name in weights])


def choose_by_target(
    targets: Sequence[OfTarget], *, shares: Mapping[str, float], source_shares: Mapping[str, float], n: int,
    lengths: np.ndarray | None = None, **given: Any,
) -> Choice:  # fmt: skip
    """The rows of a choice for several targets.

    Args:
        targets: in the order in which they choose.
        shares: target -> share of the choice; the others share the rest by their weights.
        source_shares: source -> share of each target's part.
        n: rows to choose; or tokens to spend, where lengths are given.
        lengths: (N,) tokens of each row.
        **given: all else that `choose_by_source` takes; caps hold for each target.

    Returns:
        By score first (each target's best, then each one's second best), then by chance; `targets` says for whom.

    Raises:
        DataError: a target's part cannot be had.
        ConfigError: as of `choose_by_source`.
    """
    if given["rule"] == "round-robin" and not shares and all(one.best is None for one in targets):
        return _in_turn(targets, source_shares, n=n, lengths=lengths, **given)
    ends = list(itertools.accumulate(target_numbers(shares, {one.name: one.weight for one in targets}, n)))
    free, spent, choices = given["usable"].copy(), 0, dict[str, Choice]()
    for one, start, end in zip(targets, [0, *ends[:-1]], ends, strict=True):
        if end == spent:
            continue
        own = {**given, "usable": free, "scores": one.scores, "best": one.best or as_one(one.scores)}
        pay = partial(choose_by_source, shares=source_shares, lengths=lengths, **own)
        try:
            choice = choose_part(pay, end - spent, end - start)
        except DataError as error:
            part = f"{end - start:,} of {'--n' if lengths is None else '--tokens'} {n:,}"
            problem = f"The target {one.name}, whose part is {part}: {error.problem}"
            raise DataError(problem, allowed=error.allowed, fix=error.fix) from None
        spent += len(choice.row_ids) if lengths is None else int(lengths[choice.row_ids].sum())
        free[choice.row_ids] = False
        choices[one.name] = choice
    joined = _joined(choices)
    return replace(joined, notes=(*joined.notes, *_without([one.name for one in targets], shares, choices)))


def _without(names: Sequence[str], shares: Mapping[str, float], choices: Mapping[str, Choice]) -> Iterator[str]:
    """Why targets that were not given a share of 0 have nothing."""
    nothing = [name for name in names if name not in choices and shares.get(name) != 0]
    whole = sum(map(written, shares.values())) == 1  # then a larger choice has nothing for the others either
    others = [name for name in nothing if whole and name not in shares]
    few = [name for name in nothing if name not in others]
    if others:
        yield f"the shares of the other targets are 1 together, so nothing is left for {', '.join(others)}"
    if few:
        yield f"so few are asked for that nothing is left for {', '.join(few)}"


def as_one(scores: np.ndarray) -> Best:
    """The k best rows of a target that takes turns as a whole: one list."""

    def best(k: int, usable: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        [row_ids] = top_candidates(scores[:, None], k, usable=usable)
        return [row_ids], [scores[row_ids]]

    return best


def _in_turn(
    targets: Sequence[OfTarget], source_shares: Mapping[str, float], *, n: int, lengths: np.ndarray | None, **given: Any
) -> Choice:
    """Each target in turn takes its best row that is still free."""
    each = [as_one(one.scores) for one in targets]

    def best(k: int, usable: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        lists = [one(k, usable) for one in each]
        return [row_ids for [row_ids], _ in lists], [values for _, [values] in lists]

    able = np.isfinite([one.scores for one in targets]).any(0)
    scores = np.where(able, 0.0, np.nan)
    choice = choose_by_source(shares=source_shares, n=n, lengths=lengths, scores=scores, best=best, **given)
    parts = parts_of(source_shares, given["names"], given["caps"], 1) if source_shares else []
    of_part = [[list(given["names"]).index(name) for name in part.sources] for part in parts]
    names = np.array([one.name for one in targets], object)
    return replace(choice, targets=names[_whose(choice.row_ids, targets, given["codes"], of_part)])


def _whose(
    row_ids: np.ndarray, targets: Sequence[OfTarget], codes: np.ndarray, parts: Sequence[Sequence[int]]
) -> np.ndarray:
    """(n,) the place of the target that has taken each row: the turns once more, with the rows taken and no others."""
    whose, place_of = np.zeros(len(row_ids), np.int64), {int(row): place for place, row in enumerate(row_ids)}
    for mine in [row_ids[np.isin(codes[row_ids], part)] for part in parts] or [row_ids]:
        lists = [top_candidates(one.scores[mine][:, None], len(mine), row_ids=mine)[0] for one in targets]
        taken = among(mine, len(codes))
        for target, row in turns([mine[places] for places in lists], taken):
            whose[place_of[row]] = target
    return whose


def _joined(choices: Mapping[str, Choice]) -> Choice:
    """Rows by score in the order of their places in their own target's part, then rows by chance in row order."""
    parts = list(choices.values())
    row_ids, reasons = (np.concatenate([getattr(one, name) for one in parts]) for name in ("row_ids", "reasons"))
    places = np.concatenate([np.arange(len(one.row_ids)) for one in parts])
    whose = np.concatenate([np.full(len(one.row_ids), name, object) for name, one in choices.items()])
    chosen, lucky = np.flatnonzero(reasons == BY_SCORE), np.flatnonzero(reasons != BY_SCORE)
    order = np.concatenate([chosen[np.argsort(places[chosen], kind="stable")], lucky[np.argsort(row_ids[lucky])]])
    notes = tuple(dict.fromkeys(f"target {name}: {note}" for name, one in choices.items() for note in one.notes))
    edges = tuple(edge for one in parts for edge in one.bin_edges)
    return Choice(row_ids[order], reasons[order], edges, notes, whose[order])
