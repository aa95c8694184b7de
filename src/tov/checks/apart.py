"""When chosen rows are far from pool and target, and the sentence that says so: one rule for all that is counted.

A share among the chosen rows is far apart if it lies outside what pool and target have, on one side of both, by more than
`APART` and by more than chance makes likely: `ERRORS` standard errors of the difference of two shares. A choice that is like
the pool (random rows) or like the target, or between the two, is never warned of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt

import numpy as np

from tov.checks.facts import share_over
from tov.progress import counted
from tov.runs.manifest import Repeats, RowsFacts

APART = 0.1
"""Of all rows: a difference of shares that matters."""
ERRORS = 4.0
"""Standard errors: beside 32 target rows of which 30 % have a trait, 35 % of all rows; beside a pool, 10 % of 512 rows."""

FEW = 32
"""Target rows under which the target's own chance is most of what a method sees."""


def few_target(rows: Mapping[str, int]) -> list[str]:
    """The sentence that says which targets are small; none where none is.

    Args:
        rows: target -> how many of its rows have a scored token. One that is alone goes without its name. The clusters of a
            target are one target here: a cluster is small by design.
    """
    small = {name: count for name, count in rows.items() if count < FEW}
    if not small:
        return []
    if len(small) > 1:
        *names, last = (f"{name} ({count:,})" for name, count in small.items())
        said = f"The targets {', '.join(names)} and {last} have few usable rows"
    else:
        [(name, count)] = small.items()
        said = f"The target{f' {name}' * (len(rows) > 1)} has {counted(count, 'usable rows')}"
    return [
        f"{said}. Under {FEW} the choice depends much on which rows they are. Add examples, "
        "or repeat the run with other seeds and see whether the choice stays."
    ]


def far(chosen: tuple[float, int], *others: tuple[float, int]) -> bool:
    """Whether a share lies outside those of all others, on one side.

    Args:
        chosen: the share among the chosen rows, and of how many rows it is.
        others: likewise of pool and target.
    """
    gaps = [chosen[0] - other[0] for other in others]
    same_side = all(gap > 0 for gap in gaps) or all(gap < 0 for gap in gaps)
    return same_side and all(
        abs(gap) > max(APART, ERRORS * _error(chosen, other)) for gap, other in zip(gaps, others, strict=True)
    )


def _error(one: tuple[float, int], other: tuple[float, int]) -> float:
    """Standard error of the difference of two shares that are one in truth."""
    (a, m), (b, n) = one, other
    both = (a * m + b * n) / (m + n)
    return sqrt(both * (1 - both) * (1 / m + 1 / n))


def warnings(chosen: RowsFacts, pool: RowsFacts, target: RowsFacts, unit: str) -> list[str]:
    """A sentence for each share that is far apart, the farthest first.

    Args:
        chosen: what was seen of the chosen rows.
        pool: likewise.
        target: likewise.
        unit: of lengths, in the plural.
    """
    if not (chosen.looked_at and pool.looked_at and target.looked_at):
        return []
    found = []
    for trait, shares in _shares(chosen, pool, target, unit):
        counted = [(share, one.looked_at) for share, one in zip(shares, (chosen, pool, target), strict=True)]
        if far(*counted):
            c, p, q = map(percent, shares)
            gap = min(abs(shares[0] - shares[1]), abs(shares[0] - shares[2]))
            found.append((-gap, f"{c} of the chosen rows {trait}, but {p} of the pool and {q} of the target."))
    return [sentence for _, sentence in sorted(found)]


def _shares(
    chosen: RowsFacts, pool: RowsFacts, target: RowsFacts, unit: str
) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Each trait, with its share among the three."""
    for trait in sorted(chosen.shares.keys() | pool.shares.keys() | target.shares.keys()):
        c, p, q = (rows.shares.get(trait, 0.0) for rows in (chosen, pool, target))
        yield trait, (c, p, q)
    if pool.lengths:
        half = int(np.median(pool.lengths))
        longer = [share_over(rows, half) for rows in (chosen, pool, target)]
        if None not in longer:
            c, p, q = (share or 0.0 for share in longer)
            yield f"are longer than {half:,} {unit}", (c, p, q)


def repeat_warnings(repeats: dict[str, Repeats]) -> list[str]:
    """Sentences on rows that are found again: within the choice more often than in the pool, in the target, in the test."""
    lines = []
    within, at_random = repeats.get("chosen"), repeats.get("pool")
    if within and at_random and within.of and at_random.of:
        shares = [((one.exact + one.near) / one.of, one.of) for one in (within, at_random)]
        if shares[0] > shares[1] and far(*shares):
            c, p = (percent(share) for share, _ in shares)
            lines.append(
                f"{c} of the chosen rows nearly repeat another one, but {p} of as many random rows of the pool."
            )
    for name in ("target", "test"):
        if name in repeats and repeats[name].exact + repeats[name].near:
            one = repeats[name]
            lines.append(
                f"{one.exact + one.near:,} of {one.of:,} chosen rows have the prompt of a {name} row, or nearly."
            )
    return lines


def percent(share: float) -> str:
    """`91 %`"""
    return f"{100 * share:.0f} %"
