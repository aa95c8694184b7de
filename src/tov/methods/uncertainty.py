"""What a scan with ToV's path measures of the base model's end state, theta_bas_L, without looking at the target's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa

from tov.config.choice import RuleSettings
from tov.methods.base import column_of
from tov.methods.tov.method import PathMethod


class _EndState(PathMethod):
    """Ranks by a measure of the last epoch's base state."""

    measure: ClassVar[str]
    sign: ClassVar[float] = 1.0

    def columns(self, settings: RuleSettings, available: Sequence[str]) -> Sequence[str]:
        """The measure of the last epoch."""
        parts = [name.rpartition("_") for name in available]
        epochs = [int(end) for start, _, end in parts if start == self.measure and end.isdigit()]
        return (f"{self.measure}_{max(epochs, default=1)}",)

    def rank(self, scores: pa.Table, settings: RuleSettings) -> np.ndarray:
        """(N,) the measure under theta_bas_L."""
        [name] = self.columns(settings, scores.column_names)
        return self.sign * column_of(scores, name)


class Uncertainty(_EndState):
    """Max-uncertainty: the token mean of log[p (1 - p)]."""

    name = "uncertainty"
    summary = "rows that the base state is least sure of: highest mean log[p (1 - p)]"
    source = "max-uncertainty of arXiv 2510.00386"
    measure = "uncertainty"


class HighestLoss(_EndState):
    """The hardest rows."""

    name = "highest-loss"
    summary = "rows with the highest log-loss under the base state"
    measure = "loss_base"


class LowestLoss(_EndState):
    """The easiest rows."""

    name = "lowest-loss"
    summary = "rows with the lowest log-loss under the base state"
    measure = "loss_base"
    sign = -1.0
