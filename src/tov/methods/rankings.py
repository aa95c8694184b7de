"""What a score table's rows are ranked by: (N,) numbers, larger is better, NaN for none. Pure NumPy on columns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from tov.config import RuleSettings
from tov.errors import RunError
from tov.scoring import normalized

Ranking = Callable[[pa.Table, RuleSettings], np.ndarray]


def column(name: str) -> Ranking:
    """A column as it stands."""

    def rank(scores: pa.Table, settings: RuleSettings) -> np.ndarray:
        if name not in scores.column_names:
            raise RunError(f"the scores have no column {name}", fix="give the command that scores again, with --force")
        return scores[name].to_numpy().astype(np.float64)

    return rank


def gain(scores: pa.Table, settings: RuleSettings) -> np.ndarray:
    """(N,) ToV's score under the settings' F and normaliser (Algorithm 1)."""
    values = scores[f"score_{settings.transform}"].to_numpy().astype(np.float64)
    return normalized(values, scores["loss_base"].to_numpy()) if settings.normalize == "initial-loss" else values


def end_state(name: str, *, sign: float = 1.0) -> Ranking:
    """A measure of the base model's end state, theta_bas_L."""

    def rank(scores: pa.Table, settings: RuleSettings) -> np.ndarray:
        epochs = sum(column.startswith("loss_base_") for column in scores.column_names)
        return sign * scores[f"{name}_{epochs}"].to_numpy().astype(np.float64)

    return rank
