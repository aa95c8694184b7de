"""Round robin: each target row in turn takes its best pool row that is still free. Pure NumPy, for any scores.

A selection rule of its own: it asks only for a score of each pool row for each target row (or sub-task, or model). Each target
gets n/M rows, to within one while it has rows left, however its scores compare in size to another's.

Source: RDS+ of Ivison et al. 2025, arXiv 2503.01807. Differs: ties and rows without a score are decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from tov.errors import DataError

_LOOK_AHEAD = 256


def top_candidates(
    scores: np.ndarray, n: int, *, usable: np.ndarray | None = None, row_ids: np.ndarray | None = None
) -> list[np.ndarray]:
    """For each of M columns, the positions of its n best rows, best first; fewer where fewer have a score.

    No row beyond a column's n best can be taken in n turns, so `round_robin_of` on these lists is exact, in O(M n).

    Args:
        scores: (N, M) larger is better, NaN (or infinite) for none.
        n: rows to be taken in all.
        usable: (N,) bool, rows that may be taken; all if not given.
        row_ids: (N,) ties go to the smaller one; the positions themselves if not given.
    """
    usable = np.ones(len(scores), bool) if usable is None else usable
    row_ids = np.arange(len(scores)) if row_ids is None else row_ids
    lists = []
    for column in scores.T:
        rows = np.flatnonzero(usable & np.isfinite(column))
        if 0 < n < len(rows):
            values = column[rows]
            rows = rows[values >= np.partition(values, -n)[-n]]
        lists.append(rows[np.lexsort((row_ids[rows], -column[rows]))[:n]])
    return lists


def round_robin_of(
    candidates: np.ndarray | Sequence[np.ndarray | list[int]], n: int, *, allow: Callable[[int], bool] | None = None
) -> np.ndarray:
    """(n,) distinct rows in the order of taking: targets 1..M in turn take their first candidate that is still free.

    A target whose list is used up passes its turn. With lists of the n best, as of `top_candidates` and of
    `tov.methods.shared.neighbours.nearest` at k = n, this is the selection from all rows.

    Args:
        candidates: M lists of row ids, best first, or an (M, k) matrix of them.
        n: rows to take.
        allow: asked once of each row before it is taken; a row that is not allowed is nobody's.

    Raises:
        DataError: the lists hold fewer than n distinct rows that are allowed.
    """
    lists = [np.asarray(rows, np.int64) for rows in candidates]
    among = np.unique(np.concatenate([np.empty(0, np.int64), *lists]))
    if n > len(among):
        raise _too_few(n, len(among))
    free = np.ones(among.max(initial=-1) + 1, bool)
    taken = list(islice(in_turn(lists, free, allow), n))
    if len(taken) < n:
        raise _too_few(n, len(taken))
    return np.array(taken, np.int64)


def in_turn(lists: Sequence[np.ndarray], free: np.ndarray, allow: Callable[[int], bool] | None = None) -> Iterator[int]:
    """Rows in the order of taking; arguments as of `turns`."""
    return (row for _, row in turns(lists, free, allow))


def turns(
    lists: Sequence[np.ndarray], free: np.ndarray, allow: Callable[[int], bool] | None = None
) -> Iterator[tuple[int, int]]:
    """(list, row) in the order of taking: the lists in turn give their first row that is still free, until none has any.

    Args:
        lists: of row ids, best first.
        free: (N,) bool, which the caller may change; a row that was given is free no more when the next one is asked for.
        allow: as of `round_robin_of`.
    """
    places, going = [0] * len(lists), True
    while going:
        going = False
        for target, rows in enumerate(lists):
            place = _first_free(rows, places[target], free)
            while allow and place < len(rows) and not allow(int(rows[place])):
                free[rows[place]] = False
                place = _first_free(rows, place, free)
            places[target] = place
            if place < len(rows):
                going = True
                yield target, int(rows[place])
                free[rows[place]] = False


def _too_few(n: int, rows: int) -> DataError:
    return DataError(
        f"The targets' candidates are {rows:,} rows, but --n asks for {n:,}.",
        fix="Lower --n, or give each target its n best rows.",
    )


def _first_free(rows: np.ndarray, start: int, free: np.ndarray) -> int:
    """The first place from `start` on whose row is free; the length of the list if there is none."""
    if start < len(rows) and free[rows[start]]:
        return start
    for ahead in range(start, len(rows), _LOOK_AHEAD):
        places = np.flatnonzero(free[rows[ahead : ahead + _LOOK_AHEAD]])
        if len(places):
            return ahead + int(places[0])
    return len(rows)
