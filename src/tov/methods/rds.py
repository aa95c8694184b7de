"""RDS+: rows that are near a target row in the model's own representation.

Ivison et al. 2025, "Large-Scale Data Selection for Instruction Tuning", arXiv 2503.01807. An embedding is the position-
weighted mean of the last hidden state, `sum_i i h_i / sum_i i`; pooling is done where the model is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tov.methods.base import Scorer
from tov.methods.shared.embedded import EmbeddingMethod, EmbeddingOptions, embedded, read_embeddings
from tov.methods.shared.neighbours import best_cosine

if TYPE_CHECKING:
    from tov.methods.work import Work


class Rds(EmbeddingMethod):
    """RDS+: `score_rds`, the cosine to the nearest target row, from -1 to 1.

    Differs: the authors take rows by round robin, which goes by the embeddings themselves here; the maximum lets every other
    rule have the rows that are near.
    """

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
        return self.look_up(work, embeddings, best_cosine(*read_embeddings(embeddings.folder)))
