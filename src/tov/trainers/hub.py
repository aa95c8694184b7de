"""The Hugging Face Hub: a folder with a data set card and the rows as they are, ready to be uploaded."""

from __future__ import annotations

from collections.abc import Sequence

from tov.trainers.base import Chosen, Facts, Trainer, Written

PARQUET = "data/train-00000-of-00001.parquet"


class Hub(Trainer):
    """Every kind, also several at once."""

    name = "hub"
    title = "the Hugging Face Hub"
    several = True
    folder = "dataset"

    def write(self, rows: Sequence[Chosen], kind: str, facts: Facts) -> Written:
        """The run's own table."""
        use = ["hf upload YOUR-NAME/YOUR-DATASET . . --repo-type dataset --private"]
        return Written({PARQUET: facts.selected}, list(rows), use=use)
