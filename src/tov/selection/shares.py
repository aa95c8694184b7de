"""Shares of sources: each source that is named is chosen from by itself, and the others give the rest. Pure NumPy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from tov.config.choice import written
from tov.config.settings import EVERY_SOURCE
from tov.errors import ConfigError, DataError, did_you_mean
from tov.selection.budget import choose_tokens
from tov.selection.choose import BY_SCORE, Choice, choose, quotas_for, ranked_by


@dataclass(frozen=True)
class Part:
    """A part of a choice.

    Attributes:
        sources: that it is chosen from.
        until: rows (or tokens) that all parts up to this one have together. Of rows each part has exactly what lies between
            two of these; of tokens what its rows leave over is the next part's. Either is within one row of the share.
        share: of a source that is named; None for the rest.
    """

    sources: tuple[str, ...]
    until: int
    share: float | None = None

    @property
    def asked(self) -> str:
        """Who asks for it, for messages."""
        return (
            f"--share {self.sources[0]}={self.share:g}"
            if self.share is not None
            else "What --share leaves to the others"
        )

    @property
    def whose(self) -> str:
        """Whose rows they are, for notes."""
        return self.sources[0] if self.share is not None else "the sources without a share"


def parts_of(shares: Mapping[str, float], names: Sequence[str], caps: Mapping[str, float], n: int) -> list[Part]:
    """The parts of a choice, sources that are named first, by name, then the rest; numbers are as of `whole_numbers`.

    Args:
        shares: source -> share of the choice; at most 1 together.
        names: of the pool's sources.
        caps: source (or `EVERY_SOURCE`) -> largest share.
        n: rows (or tokens) to choose.

    Raises:
        ConfigError: a share of a source that is not there, one above its cap, or shares that leave something to no source.
    """
    for name, share in shares.items():
        if name not in names:
            raise ConfigError(
                f"--share {name}={share:g}: the pool has no source '{name}'{did_you_mean(name, names)}.",
                allowed=", ".join(sorted(names)),
                fix="Correct the name before '='.",
            )
        cap = caps.get(name, caps.get(EVERY_SOURCE, 1.0))
        if share > cap:
            raise ConfigError(
                f"--share {name}={share:g} is above --source-cap, which allows {cap:g} of it.",
                fix="Lower the share, or raise the cap.",
            )
    others, total = tuple(name for name in names if name not in shares), sum(map(written, shares.values()))
    if total < 1 and not others:
        raise ConfigError(
            f"--share names every source, and the shares are {float(total):g} together.",
            fix="Let them be 1 together, or leave a source out: it then gives the rest.",
        )
    named = sorted(shares)
    numbers = whole_numbers([written(shares[name]) * n for name in named] + [written(1) * n - total * n])
    parts = [
        Part((name,), until, shares[name]) for name, until in zip(named, itertools.accumulate(numbers), strict=False)
    ]
    return parts if total == 1 else [*parts, Part(others, n)]


def whole_numbers(quotas: Sequence[Fraction]) -> list[int]:
    """Whole numbers in place of quotas, with the same sum, by the largest remainder method (A. Hamilton, 1792).

    Args:
        quotas: at least 0; their sum is a whole number.

    Returns:
        Each quota rounded down, and one more for those with the largest remainders, the first ones of equal remainders.
    """
    numbers = [math.floor(quota) for quota in quotas]
    left_over = int(sum(quotas)) - sum(numbers)
    for place in sorted(range(len(quotas)), key=lambda place: numbers[place] - quotas[place])[:left_over]:
        numbers[place] += 1
    return numbers


def check_parts(parts: Sequence[Part], most: Mapping[str, int], unit: str, flag: str) -> None:
    """Whether each part can be had.

    Args:
        parts: of the choice.
        most: source -> rows (or tokens) that it may give at most.
        unit: rows or tokens.
        flag: by which they are asked for.

    Raises:
        DataError: a part is larger than its sources.
    """
    before = 0
    for part in parts:
        wanted, there = part.until - before, sum(most.get(name, 0) for name in part.sources)
        if wanted > there:
            raise DataError(
                f"{part.asked} is {wanted:,} of {parts[-1].until:,} {unit}, but at most {there:,} can be had there.",
                fix=f"Lower {flag}, choose other shares, or add rows to the pool.",
            )
        before = part.until


def choose_by_source(
    *, shares: Mapping[str, float], caps: Mapping[str, float], codes: np.ndarray, names: Sequence[str], n: int,
    lengths: np.ndarray | None = None, **given: Any,
) -> Choice:  # fmt: skip
    """The rows of a choice, each source that has a share by itself.

    Args:
        shares: source -> share of the choice.
        caps: source (or `EVERY_SOURCE`) -> largest share of the choice.
        codes: (N,) the source of each row, by its place in `names`.
        names: of the sources.
        n: rows to choose; or tokens to spend, where lengths are given.
        lengths: (N,) tokens of each row.
        **given: all else that `choose` takes.

    Returns:
        By score first (best first; of round robin, what each part takes first before what it takes second), then by chance.

    Raises:
        DataError: fewer rows (or tokens) than asked for, in all or of a part; or no row fits.
        ConfigError: as of `parts_of` and `quotas_for`.
    """
    one = partial(choose, **given) if lengths is None else partial(choose_tokens, lengths=lengths, **given)
    quotas = quotas_for(codes, names, caps, n)
    if not shares:
        return _not_empty(one(n=n, quotas=quotas), n)
    spent, choices, usable = 0, list[Choice](), given["usable"]
    parts, there = (
        parts_of(shares, names, caps, n),
        np.bincount(codes[usable], lengths if lengths is None else lengths[usable]),
    )
    most = {name: int(there[code]) if code < len(there) else 0 for code, name in enumerate(names)}
    check_parts(parts, most, "rows" if lengths is None else "tokens", "--n" if lengths is None else "--tokens")
    for before, part in zip([0, *(part.until for part in parts)], parts, strict=False):
        mine = usable & np.isin(codes, [names.index(name) for name in part.sources])
        if part.until == spent:
            continue
        pay = partial(one, quotas=None if part.share is not None else quotas, usable=mine)
        try:
            choice = choose_part(pay, part.until - spent, part.until - before)
        except DataError as error:
            raise DataError(f"{part.asked}: {error.problem}", allowed=error.allowed, fix=error.fix) from None
        spent += len(choice.row_ids) if lengths is None else int(lengths[choice.row_ids].sum())
        choices.append(Choice(choice.row_ids, choice.reasons, choice.bin_edges, _told(part, choice)))
    keys = ranked_by(given["scores"], given["rule"], given["seed"])
    return _not_empty(_joined(choices, None if given["rule"] == "round-robin" else keys), n)


def choose_part(pay: Callable[..., Choice], wanted: int, own: int) -> Choice:
    """The choice of one part of several, which may spend what those before it left over of their tokens.

    Args:
        pay: what chooses rows (or tokens) of a number `n`.
        wanted: its own share, and what was left over.
        own: its own share, which alone is taken where it has no more.

    Raises:
        DataError: as of `pay`, for its own share.
    """
    try:
        return pay(n=wanted)
    except DataError:
        if wanted <= own:
            raise
    choice = pay(n=own)
    return replace(
        choice, notes=(*choice.notes, f"{wanted - own:,} tokens that were left over elsewhere were not spent here")
    )


def _told(part: Part, choice: Choice) -> tuple[str, ...]:
    return tuple(f"{part.whose}: {note}" for note in choice.notes)


def _joined(choices: Sequence[Choice], keys: np.ndarray | None) -> Choice:
    row_ids, reasons = (np.concatenate([getattr(one, name) for one in choices]) for name in ("row_ids", "reasons"))
    places = np.concatenate([np.arange(len(one.row_ids)) for one in choices])
    chosen, lucky = np.flatnonzero(reasons == BY_SCORE), np.flatnonzero(reasons != BY_SCORE)
    ranks = places[chosen] if keys is None else -keys[row_ids[chosen]]
    ties = chosen if keys is None else row_ids[chosen]
    order = np.concatenate([chosen[np.lexsort((ties, ranks))], lucky[np.argsort(row_ids[lucky])]])
    edges = tuple(edge for one in choices for edge in one.bin_edges)
    return Choice(row_ids[order], reasons[order], edges, tuple(note for one in choices for note in one.notes))


def _not_empty(choice: Choice, n: int) -> Choice:
    if not len(choice.row_ids):
        raise DataError(
            f"--tokens is too small: not even the first row fits into a budget of {n:,}.", fix="Raise --tokens."
        )
    return choice
