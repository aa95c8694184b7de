"""TSDS one number at a time: every distance, every density, every level tried from the lowest on."""

from __future__ import annotations

import math


def _distance(one: list[float], two: list[float]) -> float:
    sizes = [math.sqrt(sum(x * x for x in row)) for row in (one, two)]
    return math.sqrt(sum((x / sizes[0] - y / sizes[1]) ** 2 for x, y in zip(one, two, strict=True)))


def probabilities(
    pool: list[list[float]], target: list[list[float]], alpha: float, c: float, sigma: float, k: int, kde_k: int
) -> list[float]:
    """p of each pool row."""

    def rho(row: list[float]) -> float:
        near = sorted(_distance(row, other) for other in pool)[:kde_k]
        return sum(max(0.0, 1 - d * d / sigma**2) for d in near) if sigma else 1.0

    lists = []
    for row in target:
        near = sorted((_distance(row, other), place) for place, other in enumerate(pool))[:k]
        lists.append([(d, place, 1 / rho(pool[place])) for d, place in near])
    levels = sorted(sum(item[2] for item in near[:full]) for near in lists for full in range(1, k + 1))
    for s in levels:
        total = 0.0
        for near in lists:  # neighbours that are full at s, and the cost of having passed to the one after them
            full = max(full for full in range(k) if sum(item[2] for item in near[:full]) <= s * (1 + 1e-12))
            total += near[full][0] * sum(item[2] for item in near[:full]) - sum(d * r for d, _, r in near[:full])
        if alpha / c * total >= (1 - alpha) * len(target):
            break
    p = [0.0] * len(pool)
    for near in lists:
        own, left = min(s, sum(item[2] for item in near)), 1 / len(target)
        for _, place, room in near:
            p[place] += (held := min(left, room / own / len(target)))
            left -= held
    return p
