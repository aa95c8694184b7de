"""LESS and TracIn from whole gradients, one pair of rows at a time, in float64."""

from __future__ import annotations

import numpy as np


def adam(g: np.ndarray, m: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The Adam direction of a gradient."""
    return np.array(
        [
            (0.9 * one_m + 0.1 * one_g) / (0.999 * one_v + 0.001 * one_g**2 + 1e-8) ** 0.5
            for one_g, one_m, one_v in zip(g, m, v, strict=True)
        ]
    )


def less(pool, target, m, v, matrix: np.ndarray, rates: list[float], subtasks: list[int]) -> list[float]:
    """LESS's score of every pool row: `pool` and `target` are (K, rows, P), `m` and `v` (K, P), `matrix` (P, d)."""
    scores = []
    for row in range(len(pool[0])):
        of_task = []
        for task in sorted(set(subtasks)):
            total = 0.0
            for k, rate in enumerate(rates):
                x = adam(pool[k][row], m[k], v[k]) @ matrix
                shots = [target[k][place] @ matrix for place, one in enumerate(subtasks) if one == task]
                cosines = [x @ z / np.sqrt(x @ x) / np.sqrt(z @ z) for z in shots]
                total += rate / sum(rates) * sum(cosines) / len(cosines)
            of_task.append(total)
        scores.append(max(of_task))
    return scores


def tracin(pool, target, rates: list[float]) -> list[float]:
    """TracIn's score of every pool row, from (K, rows, P) gradients."""
    return [
        sum(rate * sum(pool[k][row] @ z for z in target[k]) / len(target[k]) for k, rate in enumerate(rates))
        for row in range(len(pool[0]))
    ]
