"""The warm-up whose checkpoints LESS and TracIn take gradients at, and the options that both have."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import model_validator
from torch import Tensor

from tov.engine.models import Models, ModelSpec, Opened
from tov.errors import ConfigError
from tov.inputs.draw import draw_rows
from tov.methods.base import PoolStats, Stage
from tov.methods.shared.checkpoints import load_checkpoints, save_checkpoints
from tov.methods.shared.gradients import Checkpoint, moments_by_name
from tov.methods.shared.influence import target_means
from tov.methods.shared.options import LoraOptions, option
from tov.methods.shared.projection import Projection
from tov.model.adapters import read_state
from tov.progress import Progress, part, track
from tov.scores.shard import tokens_of
from tov.scores.table import DEFAULT_TARGET
from tov.seeds import derive, generator
from tov.tasks import TASKS
from tov.text.encode import Encoded
from tov.training.loop import make_optimizer, moments_of, train_epoch

if TYPE_CHECKING:
    from tov.methods.work import Work

WARM_UP = "warm-up"
"""The artifact, and the stage."""
STORED = "gradients"
"""Likewise of the pool's gradients that are kept."""
BY_HEAD: dict[bool, dict[str, Any]] = {
    False: {"learning_rate": 2e-5, "batch_size": 128},
    True: {"learning_rate": 2e-3, "batch_size": 16},
}
"""Of the warm-up, where none is given: the authors'; and where a new head must be learned, of which they do not write, ours."""


class WarmUpOptions(LoraOptions):
    """The warm-up whose checkpoints gradients are taken at."""

    warm_up_share: float = option(
        "share of the usable pool rows that the warm-up trains on, drawn uniformly, at least one batch",
        0.05,
        gt=0,
        le=1,
    )
    epochs: int = option("epochs of the warm-up; each ends with a checkpoint", 4, ge=1)
    learning_rate: float | None = option(
        "peak learning rate of the warm-up (AdamW, 3 % warm-up steps, linear decay to 0); default: 2e-5, or 2e-3 for a new "
        "head (named entities, classification)", None, gt=0,
    )  # fmt: skip
    batch_size: int | None = option(
        "rows in an optimizer step of the warm-up; default: 128, or 16 for a new head", None, ge=1
    )


class ProjectedOptions(WarmUpOptions):
    """A random projection of gradients, or none."""

    dim: int | None = option(
        "dimension that per-example gradients are projected to; default: no projection, or 8192 where projection, nonzeros or "
        "store is set",
        None, ge=1,
    )  # fmt: skip
    projection: Literal["sjlt", "rademacher"] = option(
        "random projection: sparse (sjlt, NONZEROS entries a parameter) or dense (rademacher, DIM entries a parameter)",
        "sjlt",
    )
    nonzeros: int = option("nonzero entries a parameter in the sparse projection; it must divide DIM", 1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, options: Any) -> Any:
        named = (
            isinstance(options, dict) and "dim" not in options and {"projection", "nonzeros", "store"} & set(options)
        )
        return {**options, "dim": 8192} if named else options

    @model_validator(mode="after")
    def _divides(self) -> ProjectedOptions:
        if self.dim and self.projection == "sjlt" and self.dim % self.nonzeros:
            raise ConfigError(f"nonzeros={self.nonzeros} is no divisor of dim={self.dim}.", fix="Name a divisor of it.")
        if self.projection == "rademacher" and self.nonzeros > 1:
            raise ConfigError(
                f"nonzeros={self.nonzeros} is for projection=sjlt: a rademacher matrix has no zeros.",
                fix="Leave nonzeros out, or write projection=sjlt.",
            )
        return self


def linear_rates(learning_rate: float, *, epochs: int, steps: int, warmup: float = 0.03) -> np.ndarray:
    """(epochs, steps) learning rates: up from 0 over the first `warmup` of all steps, then down to 0 (transformers' `linear`).

    Args:
        learning_rate: the peak.
        epochs: of the training.
        steps: in an epoch.
        warmup: share of all steps, rounded up.
    """
    total, at = epochs * steps, np.arange(epochs * steps)
    warm = min(math.ceil(warmup * total), total - 1)  # a training of one step has no rise: its rate would be 0
    rates = np.where(at < warm, at / max(warm, 1), (total - at) / max(total - warm, 1))
    return (learning_rate * rates).reshape(epochs, steps)


def warm_up(
    adapted: Any,
    rows: Encoded,
    *,
    epochs: int = 4,
    learning_rate: float = 2e-5,
    warmup: float = 0.03,
    batch_size: int = 128,
    batch_tokens: int = 2048,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Checkpoint]:
    """The checkpoint after each epoch of AdamW from the state in the model, with its moments and mean rate.

    Source: LESS, Section 3.2: the authors take 5 % of the pool, r 128, alpha 512, dropout 0.1 on q, k, v, o, and the defaults
    here. Differs: adapter and moments are fp32 also on a bf16 model. A checkpoint takes 12 bytes a trained parameter.

    Args:
        adapted: a PeftModel; its state moves.
        rows: the warm-up set.
        epochs: K.
        learning_rate: the peak, under linear decay.
        warmup: share of the steps in which the rate rises.
        batch_size: rows a step.
        batch_tokens: most tokens that pass at once.
        seed: of row order and dropout.
        progress: told of rows and tokens.

    Raises:
        NumericError: training diverged.
    """
    rates = linear_rates(learning_rate, epochs=epochs, steps=math.ceil(len(rows) / batch_size), warmup=warmup)
    optimizer, checkpoints = make_optimizer(adapted, "carry"), []
    for k in range(epochs):
        train_epoch(
            adapted, rows, order=generator(seed, "less", "order", k).permutation(len(rows)), optimizer=optimizer,
            rate=rates[k].__getitem__, batch_size=batch_size, batch_tokens=batch_tokens,
            seed=derive(seed, "less", "dropout", k), progress=progress,
        )  # fmt: skip
        checkpoints.append(
            Checkpoint(read_state(adapted), float(rates[k].mean()), moments_by_name(adapted, moments_of(optimizer)))
        )
    return checkpoints


@dataclass(frozen=True)
class WarmingUp:
    """The files of a warm-up, to be made where the engine makes them (`tov.engine.base.Making`).

    Attributes:
        model: in whose initial state it begins.
        rows: the warm-up set.
        options: with all rates and sizes named.
        batch_tokens: most tokens that pass at once.
        seed: of row order and dropout.
    """

    model: ModelSpec
    rows: Encoded
    options: WarmUpOptions
    batch_tokens: int
    seed: int

    def make(self, models: Models, folder: Path, progress: Progress) -> None:
        """Trains, and writes the checkpoints."""
        options = self.options
        assert options.learning_rate
        assert options.batch_size
        checkpoints = warm_up(
            models.open(self.model).adapted, self.rows, epochs=options.epochs, learning_rate=options.learning_rate,
            batch_size=options.batch_size, batch_tokens=self.batch_tokens, seed=self.seed, progress=progress,
        )  # fmt: skip
        save_checkpoints(folder, checkpoints)


@dataclass(frozen=True)
class WarmedUp:
    """A model, the folder of its warm-up, and the checkpoints in it that have a rate."""

    opened: Opened
    folder: Path
    checkpoints: list[Checkpoint]


def warmed_up(work: Work) -> WarmedUp:
    """The warm-up on rows drawn from the pool, made or found; it is one for all targets of a run."""
    work = replace(work, name=DEFAULT_TARGET)
    usable = int(work.rows.usable.sum())
    options, size = _resolved(work.settings.task, work.options, usable)
    opened = work.open(options)

    def make(folder: Path, progress: Progress) -> None:
        _, rows = draw_rows(work.rows, size, generator(work.settings.seed, "warm-up"), opened.encode)
        seed = derive(work.settings.seed, "warm-up")
        work.engine.make(
            WarmingUp(work.spec(options), rows, options, work.batch_tokens(opened), seed), folder, progress
        )
        tokens = options.epochs * int(rows.lengths.sum())
        work.spend(WARM_UP, tokens, tokens)

    key = {name: getattr(options, name) for name in WarmUpOptions.model_fields}
    folder = work.artifact(WARM_UP, key, opened, make, rows=size * options.epochs)
    work.note(
        f"warm-up: {options.epochs} epochs in batches of {options.batch_size:,} at a peak rate of {options.learning_rate:g}"
    )
    if size > options.warm_up_share * usable + 1:
        work.note(f"the warm-up set is one batch, {size:,} rows: {options.warm_up_share:g} of the pool are fewer")
    epochs, checkpoints = options.epochs, checkpoints_in(folder)
    if len(checkpoints) < epochs:
        work.note(
            f"{epochs - len(checkpoints)} of {epochs} checkpoints have rate 0 and were left out: they add nothing"
        )
    return WarmedUp(opened, folder, checkpoints)


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a warm-up that have a rate. The first step of a linear rise has rate 0: with one batch an epoch so has
    the first checkpoint, which adds nothing to a score.
    """
    return [checkpoint for checkpoint in load_checkpoints(folder) if checkpoint.rate > 0]


def projection_of(work: Work) -> Projection | None:
    """R of the options; None where whole gradients are compared."""
    options = work.options
    if options.dim is None:
        return None
    return Projection(options.dim, derive(work.settings.seed, "projection"), options.projection, options.nonzeros)


def target_measured(
    work: Work, warm: WarmedUp, target: Encoded, *, unit: bool, subtasks: np.ndarray | None = None
) -> tuple[Tensor, ...]:
    """The target's mean gradients at every checkpoint, as of `target_means`: timed, shown, counted."""
    rows, tokens = len(target), len(warm.checkpoints) * tokens_of(target)
    with work.run.stage("target"), track("target", rows, quiet=work.quiet) as progress, part(progress, rows):
        means = target_means(
            warm.opened.adapted, warm.checkpoints, target, subtasks=subtasks, unit=unit, projection=projection_of(work),
            batch_tokens=work.batch_tokens(warm.opened),
        )  # fmt: skip
    work.spend("target", tokens, tokens)
    return tuple(means)


def _resolved(task: str, options: Any, usable: int) -> tuple[Any, int]:
    """The options with the task's own where none were given, and the rows of the warm-up set."""
    auto = {name: value for name, value in BY_HEAD[TASKS[task].new_head].items() if getattr(options, name) is None}
    options = options.model_copy(update=auto)
    return options, min(usable, max(options.batch_size, math.ceil(options.warm_up_share * usable)))


def spared(stats: PoolStats) -> list[Stage]:
    """What of `warm_up_cost` each further target of a run is spared: the warm-up, and the pool's gradients that are stored."""
    return [stage for stage in warm_up_cost(stats) if stage.name in (WARM_UP, STORED)]


def warm_up_cost(stats: PoolStats) -> list[Stage]:
    """The warm-up, then target and pool forward and backward at each checkpoint that has a rate."""
    options, size = _resolved(stats.settings.task, stats.options, stats.usable)
    rates = linear_rates(options.learning_rate, epochs=options.epochs, steps=math.ceil(size / options.batch_size))
    checkpoints, warm = int((rates.mean(1) > 0).sum()), options.epochs * stats.drawn(size)
    target, pool = checkpoints * stats.target_tokens, checkpoints * stats.tokens
    before = [
        Stage(WARM_UP, warm, warm, options.epochs * 12 * stats.trained(options)),
        Stage("target", target, target, by_row=True),
    ]
    if getattr(options, "store", None):
        stored = 2 * options.dim * stats.rows * checkpoints
        return [*before, Stage(STORED, pool, pool, stored, by_row=True), Stage("scan", kept=stats.table(1))]
    return [*before, Stage("scan", pool, pool, stats.table(1), by_row=True)]
