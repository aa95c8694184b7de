"""RDS+: rows that are near a target row in the model's own representation. Knows embeddings; no model, no text.

Ivison et al. 2025, "Large-Scale Data Selection for Instruction Tuning", arXiv 2503.01807. An embedding is the position-
weighted mean of the last hidden state, `sum_i i h_i / sum_i i`; pooling is done where the model is.
"""

from __future__ import annotations

import numpy as np

from tov.baselines.embeddings import Backend, best_cosine, nearest
from tov.baselines.round_robin import round_robin_of
from tov.errors import DataError


def rds_scores(pool: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(N,) `max_m cos(x, z_m)`, from -1 to 1: nearness to the nearest target row, for any rule that takes the best rows.

    Args:
        pool: (N, H) embeddings; NaN comes back for a row that is zero or not finite. It may be a memory map.
        target: (M, H) embeddings.

    Raises:
        DataError: a target row that is zero or not finite.

    Source: arXiv 2503.01807. Differs: the authors take rows by round robin; the maximum lets every other rule have them.
    """
    return best_cosine(pool, target)


def rds_round_robin(
    pool: np.ndarray, target: np.ndarray, n: int, *, usable: np.ndarray | None = None, backend: Backend = "numpy"
) -> np.ndarray:
    """(n,) distinct row ids in the order of taking: each target row in turn takes the free pool row of largest cosine.

    Memory: 16 M n bytes of candidates, each target row's n nearest, and one block of cosines; exact.

    Args:
        pool: (N, H) embeddings, position i is row_id i. It may be a memory map.
        target: (M, H) embeddings.
        n: rows to take.
        usable: (N,) bool, rows that may be taken; all if not given. Rows without a direction never are.
        backend: of the search, see `tov.baselines.embeddings.nearest`.

    Raises:
        DataError: fewer rows with an embedding than asked for, or a target row without one.

    Source: arXiv 2503.01807. Differs: ties go to the smaller row_id; target rows take turns in the order given.
    """
    if not len(target):
        raise DataError("the target has no rows", fix="give at least one")
    if not n:
        return np.empty(0, np.int64)
    return round_robin_of(nearest(target, pool, n, usable=usable, backend=backend).row_ids, n)
