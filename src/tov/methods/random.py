"""What the methods are measured against: rows at random, all rows, and no training at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tov.inputs.draw import RANDOM_ROWS, drawing_order
from tov.methods.base import Method, PoolStats, Scorer, Stage
from tov.methods.shared.embedded import LookUp
from tov.seeds import generator

if TYPE_CHECKING:
    from tov.methods.work import Work


class Random(Method):
    """Uniform without repeats. A comparison draws its rows without a score table; these are the same rows, by the same seed.

    `score_random` is minus a row's place in the drawing order, in fp32 exact for the first 2^24 places.
    """

    name = "random"
    summary = "rows drawn uniformly at random"
    takes = "random"
    needs = "text"
    passes = "1, over the text alone"
    unit = "place in the drawing order, negated"

    def prepare(self, work: Work) -> Scorer:
        """Draws the order."""
        order = drawing_order(work.rows, generator(work.settings.seed, RANDOM_ROWS))
        scores = np.full(len(work.rows.pool), np.nan)
        scores[order] = -np.arange(1.0, len(order) + 1)
        return LookUp(column=self.column, scores=scores, about=f"drawn uniformly from {len(order):,} rows")

    def cost(self, stats: PoolStats) -> list[Stage]:
        """One reading of the pool's text; no token passes a model."""
        return [Stage("scan", kept=stats.table(1))]


class Full(Method):
    """The whole pool."""

    name = "full"
    summary = "every usable row of the pool"
    takes = "all"


class ZeroShot(Method):
    """The pretrained model."""

    name = "zero-shot"
    summary = "no rows; the pretrained model is tested without training"
    takes = "none"
