"""Rows for a budget of tokens, taken one after another by lists and loops and nothing clever."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass
class Left:
    """What may still be spent: in all, and by source; sources that are full stay so."""

    tokens: int
    of_source: dict[str, int]


def by_turns(
    lists: list[list[int]], lengths: list[int], sources: list[str], left: Left, *, until: int = 0
) -> list[int]:
    """Rows in the order of taking: each list in turn gives its first row that is not taken and whose source is not full.

    Ends when `until` tokens are left, when a row does not fit into what is left, or when no list has a row.
    """
    taken: list[int] = []
    lists = [list(rows) for rows in lists]
    while any(lists):
        for rows in lists:
            if left.tokens <= until:
                return taken
            while rows:
                row = rows.pop(0)
                if row in taken:
                    continue
                if lengths[row] > left.tokens:
                    return taken
                if lengths[row] <= left.of_source[sources[row]]:
                    break
                left.of_source[sources[row]] = 0
            else:
                continue
            left.tokens -= lengths[row]
            left.of_source[sources[row]] -= lengths[row]
            taken.append(row)
    return taken


def bins_best_first(rows: list[tuple[int, int, float]], bins: int) -> list[list[int]]:
    """The rows of each length bin, best first.

    Args:
        rows: (row_id, scored tokens, score) of every row that may be taken.
        bins: length bins, at most as many as rows.
    """
    by_length = sorted(rows, key=lambda row: (row[1], row[0]))
    parts, start = [], 0
    for number in range(bins):
        size = len(rows) // bins + (number < len(rows) % bins)
        part = by_length[start : start + size]
        parts.append([row[0] for row in sorted(part, key=lambda row: (-row[2], row[0]))])
        start += size
    return parts


def parts(shares: dict[str, str], n: int) -> list[int]:
    """What each part gets of n: sources with a share by name, then the rest.

    Each gets the whole of its share. What is left over goes one by one to the part that lacks most, the first of equals.

    Args:
        shares: source -> share, as it is written.
        n: rows, or tokens.
    """
    wanted = [Fraction(shares[name]) * n for name in sorted(shares)]
    wanted.append(n - sum(wanted, Fraction(0)))
    got = [int(share) for share in wanted]
    while sum(got) < n:
        lacking = [share - has for share, has in zip(wanted, got, strict=True)]
        got[lacking.index(max(lacking))] += 1
    return got
