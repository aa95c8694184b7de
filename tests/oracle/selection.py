"""The best rows of each length bin, with sorted lists and nothing clever."""

from __future__ import annotations


def top_by_bin(rows: list[tuple[int, int, float]], n: int, bins: int) -> set[int]:
    """Ids of n rows: equal shares of the best from each length bin, the odd ones from the shortest bins.

    Args:
        rows: (row_id, scored tokens, score) of every row that may be taken.
        n: rows to take, at most all.
        bins: length bins.
    """
    bins = min(bins, n, len(rows))
    by_length = sorted(rows, key=lambda row: (row[1], row[0]))
    sizes = [len(rows) // bins + (number < len(rows) % bins) for number in range(bins)]
    quotas = [n // bins + (number < n % bins) for number in range(bins)]
    taken: set[int] = set()
    start = 0
    for size, quota in zip(sizes, quotas, strict=True):
        best = sorted(by_length[start : start + size], key=lambda row: (-row[2], row[0]))
        taken |= {row[0] for row in best[:quota]}
        start += size
    return taken
