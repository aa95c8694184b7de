"""Target path (TACS, arXiv 2605.09404): rows whose log-loss falls, in proportion, along a short training on the target alone.

No base set and no gradients of pool rows: two states, fitted once, score any pool in two forward passes a row, 8 bytes a row.
The direct successor and rival of ToV. Knows a model under its adapter and rows as tokens; must not know how rows are chosen.

The adapter is the caller's: the authors have LoRA of rank 1, alpha 4, dropout 0.1, rates of 1e-5 to 5e-5 and 2 to 64 epochs.
How they choose the depth without labels is not in the texts that we follow; `depth_for` is a rule of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tov.errors import ConfigError, DataError
from tov.methods.base import Method, PoolStats, Scorer, Stage
from tov.methods.shared.options import ALPHA, RANK, TARGETS, LoraOptions, option
from tov.methods.tov.scan import scan_rows
from tov.model.adapters import State, load, read_state, save
from tov.model.kernels.joined import Refresh, scanning
from tov.objects.mirror import local, named
from tov.progress import Progress
from tov.seeds import derive, generator
from tov.tasks import TASKS
from tov.text.encode import Encoded
from tov.training.loop import make_optimizer, train_epoch

if TYPE_CHECKING:
    from tov.engine.models import Models
    from tov.methods.work import Work
    from tov.scores.shard import Shard
    from tov.scores.table import Columns

LEAST_DEPTH, MOST_DEPTH = 2, 64
"""The authors' range of epochs."""
ROWS_PASSED = 2048
"""Rows of the target passed in a path of our depth: 128 steps of 16."""
LEARNING_RATE = {False: 5e-5, True: 1e-3}
"""Default without and with a new head: the end of the authors' range; a rate of full training where one must be learned."""
SMALLEST_LOSS = 1e-6
"""Nats a token: a log-loss below the rounding of fp32, by which nothing is divided."""


def depth_for(target_rows: int) -> int:
    """Epochs for a target of this size: `ROWS_PASSED` rows in all, within the authors' range; looks at no label, no score.

    Differs: ours. A path of as many steps whatever the size of the target moves the adapter about as far (Adam's steps are of
    the size of the rate). The authors choose by a label-free rule of theirs, which is not in the texts that we follow.

    Args:
        target_rows: M.
    """
    return min(MOST_DEPTH, max(LEAST_DEPTH, round(ROWS_PASSED / max(target_rows, 1))))


def fit_target_path(
    adapted: Any,
    target: Encoded,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int = 16,
    batch_tokens: int = 2048,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[State, State]:
    """(state after the first epoch, endpoint) of AdamW on the target alone, from the state in the model.

    A new head (named entities, classification) has never been trained here, there being no base set. It is trained along the
    path, as part of it: behind a random head that stood still the adapter would learn little of the labels. So l_1 is the loss
    of a head of one epoch, and a part of every drop is that head's learning, which all rows with the target's labels share. A
    checkpoint that was trained on these labels is rid of it.

    Source: arXiv 2605.09404. Differs: the rate is constant (theirs is not in the texts that we follow); adapter and moments are
    fp32.

    Args:
        adapted: a PeftModel; left in the endpoint's state.
        target: M rows; those without a scored token do not count.
        epochs: depth, at least 2; `depth_for` has a rule.
        learning_rate: of every step; `LEARNING_RATE` has defaults.
        batch_size: rows a step.
        batch_tokens: most tokens that pass at once.
        seed: of row order and dropout.
        progress: told of rows and tokens.

    Raises:
        ConfigError: fewer than 2 epochs, or a rate that is not positive.
        DataError: no row of the target has a scored token.
        NumericError: training diverged.
    """
    if epochs < LEAST_DEPTH:
        raise ConfigError(
            f"The target path has {epochs} epochs, but its last is compared with its first.",
            allowed="2 or more",
            fix="Raise epochs.",
        )
    if not learning_rate > 0:
        raise ConfigError(
            f"The target path has the learning rate {learning_rate}.", allowed="above 0", fix="Raise the learning rate."
        )
    rows = np.flatnonzero(target.scored_counts > 0)
    if not len(rows):
        raise DataError("No row of the target has a scored token.", fix="Raise --max-length.")
    optimizer, first = make_optimizer(adapted, "carry"), dict[str, Any]()
    for epoch in range(1, epochs + 1):
        train_epoch(
            adapted, target, order=generator(seed, "target path", "order", epoch).permutation(rows), optimizer=optimizer,
            rate=lambda _: learning_rate, batch_size=batch_size, batch_tokens=batch_tokens,
            seed=derive(seed, "target path", "dropout", epoch), progress=progress,
        )  # fmt: skip
        first = first or read_state(adapted)
    return first, read_state(adapted)


def endpoint_drop(
    model: Any, set_state: Refresh, states: tuple[State, State], rows: Encoded, *, batch_tokens: int
) -> dict[str, np.ndarray]:
    """The normalised endpoint drop of each row, (rows,) float64 each; NaN for rows without a scored token.

    `score_target_path` = (l_1 - l_T) / l_1, at most 1, larger is better; `loss_first` = l_1 and `loss_last` = l_T in nats a
    token. Both states walk one batch plan: equal states give exactly 0.

    Source: arXiv 2605.09404. Differs: l_1 below `SMALLEST_LOSS` counts as that.

    Args:
        model: under its adapter, left in the endpoint's state.
        set_state: from `tov.model.kernels.joined.scanning`.
        states: from `fit_target_path`.
        rows: encoded rows of the pool, any part of it.
        batch_tokens: most tokens in a batch, padding included.

    Raises:
        NumericError: a log-loss is not a finite number.
    """
    scanned = scan_rows(model, set_state, rows, [(1, *states)], batch_tokens=batch_tokens)
    first, last = (scanned.epochs[0][name] for name in ("loss_base", "loss_target"))
    score = (first - last) / np.maximum(first, SMALLEST_LOSS)
    return {"score_target_path": score, "loss_first": first, "loss_last": last}


FIRST, LAST = "first", "last"


class TargetPathOptions(LoraOptions):
    """Options of the target path."""

    lora_r: int = option(RANK, 1, ge=1)
    lora_alpha: float = option(ALPHA, 4.0, gt=0)
    lora_target_modules: tuple[str, ...] = option(TARGETS, ("all-linear",), min_length=1)
    epochs: int | None = option(
        "epochs on the target (the depth); default: 2048 rows in all, from 2 to 64 epochs", None, ge=2
    )
    learning_rate: float | None = option(
        "constant learning rate (AdamW); default: 5e-5, or 1e-3 for a new head (named entities, classification)",
        None,
        gt=0,
    )
    batch_size: int = option("rows in an optimizer step", 16, ge=1)


@dataclass(frozen=True, kw_only=True)
class TargetPathScorer(Scorer):
    """Scans shards with the two states of a target path.

    Attributes:
        folder: of the states.
        batch_tokens: most tokens in a batch.
    """

    folder: str
    batch_tokens: int

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], Columns]]:
        """As of `Scorer.open`: `score_target_path` = (l_1 - l_T) / l_1, and the two log-losses."""
        assert self.model
        opened, folder = models.open(self.model), local(self.folder)
        states, model = (load(folder / FIRST), load(folder / LAST)), opened.adapted.get_base_model()
        with scanning(opened.adapted) as set_state:
            yield lambda shard: endpoint_drop(model, set_state, states, shard.encoded, batch_tokens=self.batch_tokens)


class TargetPath(Method):
    """Two states of a short training on the target alone, kept as PEFT adapters; two forward passes over the pool."""

    name = "target-path"
    summary = "rows whose log-loss falls most, relative to itself, in a short training on the target alone"
    needs = "forward"
    uses: ClassVar[frozenset[str]] = frozenset({"clusters"})
    passes = "2, forward"
    options = TargetPathOptions
    unit = "share of the log-loss"
    source = "target path (TACS), arXiv 2605.09404"
    differs = (
        "the learning rate is constant; the depth follows a rule of ours, for the texts do not give that of the authors"
    )

    def prepare(self, work: Work) -> Scorer:
        """Trains on the target."""
        options, opened = work.options, work.open(work.options)
        batch_tokens = work.batch_tokens(opened)
        target, _ = work.encode_target(opened.encode)
        epochs = options.epochs or depth_for(len(target))
        rate = options.learning_rate or LEARNING_RATE[TASKS[work.settings.task].new_head]

        def make(folder: Path, progress: Progress) -> None:
            states = fit_target_path(
                opened.adapted, target, epochs=epochs, learning_rate=rate, batch_size=options.batch_size,
                batch_tokens=batch_tokens, seed=derive(work.settings.seed, "target path"), progress=progress,
            )  # fmt: skip
            for name, state in zip((FIRST, LAST), states, strict=True):
                save(opened.adapted, state, folder / name)
            tokens = epochs * int(target.lengths.sum())
            work.spend("fit", tokens, tokens)

        resolved = {"epochs": epochs, "learning_rate": rate, "target": work.target.index.fingerprint}
        key = {**options.model_dump(mode="json"), **resolved}
        folder = work.artifact("fit", key, opened, make, rows=epochs * len(target))
        work.note(f"target path: {epochs} epochs at a rate of {rate:g}")
        return TargetPathScorer(
            model=opened.spec, passes=(2, 0), key=key, folder=named(folder), batch_tokens=batch_tokens,
            about=work.about(opened),
        )  # fmt: skip

    def cost(self, stats: PoolStats) -> list[Stage]:
        """A training on the target, then two passes over the pool."""
        tokens = (stats.options.epochs or depth_for(stats.target_rows)) * stats.target_tokens
        stored = 2 * 4 * stats.trained(stats.options)
        return [Stage("fit", tokens, tokens, stored), Stage("scan", 2 * stats.tokens, 0, stats.table(3))]
