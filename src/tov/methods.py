"""The methods that rows can be chosen by, one row of one table each; a new one joins by its row alone.

A method says which numbers of a score table rank the rows; how many are taken from which length bin is a rule of its own
(`tov.selection`). An *arm* of a comparison is a method with options after slashes: `tov/abs/score-only`, `tov/eps=1`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import yaml

from tov.config import Normalize, Rule, RuleSettings, Transform, ValOptimizer, Variant
from tov.errors import ConfigError, did_you_mean
from tov.scoring import normalized

Ranking = Callable[[pa.Table, RuleSettings], np.ndarray]


@dataclass(frozen=True)
class Method:
    """A way to choose rows.

    Attributes:
        name: as `--methods` calls it.
        summary: one phrase.
        takes: its rows: the best by `ranking`, any at random, all, or none (no training).
        ranking: (N,) float64 from a score table, larger is better, NaN for none.
        options: settings that change it, beside those of the path.
        source: where it is from.
    """

    name: str
    summary: str
    takes: Literal["best", "random", "all", "none"]
    ranking: Ranking | None = None
    options: tuple[str, ...] = ()
    source: str = ""


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


_RULE = ("rule", "bins")
METHODS = {
    method.name: method
    for method in (
        Method("tov", "rows whose log-loss falls when the model is tuned on the target", "best", gain,
               ("transform", "normalize", *_RULE), "Jain, Montanari, Sasoglu 2025, arXiv 2510.00386"),
        Method("uncertainty", "rows of which the base state is least sure: mean log[p (1 - p)]", "best",
               end_state("uncertainty"), _RULE, "max-uncertainty of arXiv 2510.00386"),
        Method("highest-loss", "rows of the highest log-loss under the base state", "best", end_state("loss_base"), _RULE),
        Method("lowest-loss", "rows of the lowest log-loss under the base state", "best",
               end_state("loss_base", sign=-1.0), _RULE),
        Method("random", "rows drawn uniformly", "random"),
        Method("full", "every usable row of the pool", "all"),
        Method("zero-shot", "no training", "none"),
    )
}  # fmt: skip
"""Name -> method."""

_KINDS = (
    ("transform", Transform), ("normalize", Normalize), ("rule", Rule), ("variant", Variant), ("val_optimizer", ValOptimizer),
)  # fmt: skip
_WORDS = {name: get_args(kind) for name, kind in _KINDS}
_PATH = ("base_size", "epochs", "variant", "learning_rate", "schedule", "eps", "val_optimizer", "sgd_learning_rate",
         "batch_size", "lora_rank", "lora_alpha", "lora_dropout", "amplify", "dtype")  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A method with its options.

    Attributes:
        name: as the user wrote it.
        method: the method.
        options: settings that it changes, as given.
    """

    name: str
    method: Method
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_arm(text: str) -> Arm:
    """An arm from `METHOD[/OPTION...]`; an option is a value that names its setting (`abs`, `paired`) or `SETTING=VALUE`.

    Raises:
        ConfigError: no such method or option, or one that cannot take effect.
    """
    name, *parts = text.split("/")
    if name not in METHODS:
        raise ConfigError(
            f"--methods got '{text}': no method '{name}'{did_you_mean(name, METHODS)}", allowed=", ".join(METHODS)
        )
    method, options = METHODS[name], dict[str, Any]()
    for part in parts:
        key, value = _option(text, part, method)
        if key in options:
            raise ConfigError(f"--methods got '{text}': {key} is given twice", fix="give it once")
        options[key] = value
    return Arm(text, method, options)


def _option(text: str, part: str, method: Method) -> tuple[str, Any]:
    named, equals, value = part.partition("=")
    key = named if equals else next((key for key, words in _WORDS.items() if part in words), None)
    effective = (*method.options, *(_PATH if method.takes == "best" else ()))
    if method.ranking is not gain:
        effective = tuple(name for name in effective if name != "amplify")  # it moves the target's state alone
    if key is None or key not in effective:
        words = [word for key in effective for word in _WORDS.get(key, ())]
        raise ConfigError(
            f"--methods got '{text}': '{part}' is no option of {method.name}{did_you_mean(part, words)}",
            allowed=", ".join([*words, *(f"{key}=..." for key in effective if key not in _WORDS)])
            or f"{method.name} alone",
        )
    try:
        parsed = yaml.safe_load(value) if equals else part
    except yaml.YAMLError:
        parsed = None
    if parsed is None:
        raise ConfigError(f"--methods got '{text}': '{part}' has no usable value", fix=f"{key}=VALUE")
    return key, parsed
