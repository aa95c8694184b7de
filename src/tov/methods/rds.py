"""RDS+: rows that are near a target row in the model's own representation.

Ivison et al. 2025, "Large-Scale Data Selection for Instruction Tuning", arXiv 2503.01807. An embedding is the position-
weighted mean of the last hidden state, `sum_i i h_i / sum_i i`; pooling is done where the model is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tov.methods.base import Scorer
from tov.methods.shared.embedded import EmbeddingMethod, EmbeddingOptions, embedded, read_embeddings
from tov.methods.shared.neighbours import best_cosine

if TYPE_CHECKING:
    from tov.methods.work import Work


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


class Rds(EmbeddingMethod):
    """RDS+: `score_rds`, the cosine to the nearest target row. Round robin goes by the embeddings themselves."""

    name = "rds"
    summary = "RDS+, rows near a target row in the hidden states of the model"
    options = EmbeddingOptions
    rule = "round-robin"
    unit = "cosine"
    source = "Ivison et al. 2025, arXiv 2503.01807"
    differs = "a row is embedded with its special tokens, exactly as the model reads it"

    def prepare(self, work: Work) -> Scorer:
        """Embeds, and compares."""
        embeddings = embedded(work)
        return self.look_up(work, embeddings, rds_scores(*read_embeddings(embeddings.folder)))
