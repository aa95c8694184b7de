"""Round robin with nothing clever: at each turn all free rows are looked at."""

from __future__ import annotations

import math


def round_robin(scores: list[list[float]], n: int, usable: list[bool], row_ids: list[int]) -> list[int]:
    """Positions of n rows in the order of taking; scores[row][target], NaN for none; targets take turns."""
    taken: list[int] = []
    target = 0
    while len(taken) < n:
        free = [
            row
            for row in range(len(scores))
            if usable[row] and row not in taken and not math.isnan(scores[row][target])
        ]
        if free:
            taken.append(min(free, key=lambda row: (-scores[row][target], row_ids[row])))
        target = (target + 1) % len(scores[0])
    return taken
