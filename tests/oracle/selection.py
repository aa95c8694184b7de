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


def top_with_caps(rows: list[tuple[int, int, float, str]], n: int, bins: int, left: dict[str, int]) -> list[int]:
    """Ids of n rows, best first, no more of a source than it has left.

    Rows are met best first, each taken if its length bin wants one more and its source has one left; then, if there are fewer
    than n, again without regard to bins.

    Args:
        rows: (row_id, scored tokens, score, source) of every row that may be taken.
        n: rows to take.
        bins: length bins.
        left: rows that each source may give.
    """
    bins, left = min(bins, n, len(rows)), dict(left)
    by_length = sorted(rows, key=lambda row: (row[1], row[0]))
    wanted: list[int] = [n // bins + (number < n % bins) for number in range(bins)]
    bin_of: dict[int, int] = {}
    start = 0
    for number in range(bins):
        size = len(rows) // bins + (number < len(rows) % bins)
        bin_of |= dict.fromkeys((row[0] for row in by_length[start : start + size]), number)
        start += size
    order = sorted(rows, key=lambda row: (-row[2], row[0]))
    taken: set[int] = set()
    for row_id, _, _, source in order:
        if wanted[bin_of[row_id]] and left[source]:
            wanted[bin_of[row_id]] -= 1
            left[source] -= 1
            taken.add(row_id)
    for row_id, _, _, source in order:
        if len(taken) < n and row_id not in taken and left[source]:
            left[source] -= 1
            taken.add(row_id)
    return [row[0] for row in order if row[0] in taken]
