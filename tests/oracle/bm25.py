"""BM25 with dictionaries: every word of every pair of rows by itself, in float64, from the definition."""

from __future__ import annotations

import math
from collections.abc import Sequence


def scores(
    pool: Sequence[Sequence[str]], target: Sequence[Sequence[str]], k1: float = 1.5, b: float = 0.75
) -> list[list[float]]:
    """[pool row][target row]: the BM25 score over the one that the target row's own words have.

    Args:
        pool: the words of each row.
        target: likewise; each row has a word.
    """
    mean = sum(len(row) for row in pool) / len(pool)
    return [
        [raw(row, query, pool, mean, k1, b) / raw(query, query, pool, mean, k1, b) for query in target] for row in pool
    ]


def raw(
    row: Sequence[str], query: Sequence[str], pool: Sequence[Sequence[str]], mean: float, k1: float, b: float
) -> float:
    """Of one row for one query, each of whose words counts as often as it is there."""
    total = []
    for word in query:
        having = sum(word in one for one in pool)
        idf = math.log(1 + (len(pool) - having + 0.5) / (having + 0.5))
        times = sum(one == word for one in row)
        if times:
            total.append(idf * times / (times + k1 * (1 - b + b * len(row) / mean)))
    return math.fsum(total)
