"""Rows by kind: k-means on their embeddings. Pure NumPy and SciPy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2  # type: ignore[import-untyped]

from tov.seeds import derive

STARTS, STEPS = 5, 30
"""Beginnings of k-means, of which the best end is taken, and the steps of each."""
DIGITS = 4
"""Vectors that are equal to so many digits are one place: a batch's layout rounds equal rows differently."""


@dataclass(frozen=True)
class Clusters:
    """Rows by kind.

    Attributes:
        rows: of each cluster, the numbers of its rows in order; the largest cluster first.
        central: of each cluster, the numbers of its rows, the nearest to their mean first.
        merged: how many rows each cluster had that was too small, and went to its nearest one.
    """

    rows: tuple[np.ndarray, ...]
    central: tuple[np.ndarray, ...]
    merged: tuple[int, ...]


def cluster_rows(vectors: np.ndarray, k: int, *, least: int, seed: int) -> Clusters:
    """At most k clusters of at least so many rows each; the same for the same vectors and seed.

    Source: k-means (Lloyd 1982) from k-means++ (Arthur, Vassilvitskii 2007). A cluster with fewer rows is joined to the one
    whose mean is nearest, the smallest first.

    Args:
        vectors: (M, D), of length 1.
        k: clusters, at most M.
        least: rows that a cluster has at least, if there are so many.
        seed: of the beginnings.
    """
    vectors = vectors.astype(np.float64)
    parts, merged = _parts(_labels(vectors, k, seed)), list[int]()
    while len(parts) > 1 and len(smallest := min(parts, key=lambda one: (len(one), one[0]))) < least:
        others = [one for one in parts if one is not smallest]
        means = np.stack([vectors[one].mean(0) for one in others])
        near = int(np.square(means - vectors[smallest].mean(0)).sum(1).argmin())
        others[near] = np.sort(np.concatenate([others[near], smallest]))
        parts, merged = others, [*merged, len(smallest)]
    parts = sorted(parts, key=lambda one: (-len(one), one[0]))
    return Clusters(tuple(parts), tuple(_central(vectors, one) for one in parts), tuple(merged))


def _labels(vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
    """(M,) the cluster of each row, of the beginning that ends with the least squared distances; of equal ones the first."""
    ends, k = list[tuple[float, np.ndarray]](), min(k, len(np.unique(vectors.round(DIGITS), axis=0)))
    for start in range(STARTS):
        random = np.random.default_rng(derive(seed, "target clusters", start))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a cluster that has lost its rows: there are fewer, then
            means, labels = kmeans2(vectors, k, iter=STEPS, minit="++", seed=random)
        ends.append((float(np.square(vectors - means[labels]).sum()), labels))
    return min(ends, key=lambda one: one[0])[1]


def _parts(labels: np.ndarray) -> Sequence[np.ndarray]:
    return [np.flatnonzero(labels == one) for one in np.unique(labels)]


def _central(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    away = np.square(vectors[rows] - vectors[rows].mean(0)).sum(1)
    return rows[np.argsort(away, kind="stable")]
