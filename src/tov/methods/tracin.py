"""TracIn: how much a gradient step on a row lowers the target's loss, to first order (Pruthi et al. 2020, arXiv 2002.08484).

score(x) = sum_k eta_k <grad l(theta_k, x), (1/M) sum_z grad l(theta_k, z)> over checkpoints k: its TracInCP with the mean over
the target's rows. In nats a token, larger is better. Plain gradients of the adapter (and a new head), l as in Eq. 7.

Two forms. Exact: against the target's whole mean gradient, layer by layer; holds P numbers a checkpoint and one layer of a
batch, so it is cheaper than the projected one at any adapter's size (2 P FLOPs a row against 2 P d). Projected: for features
that are kept, or shared with LESS. Differs: the paper has the sum over the target's rows, and no adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tov.errors import ConfigError, DataError
from tov.methods.base import Method, PoolStats, Scorer, Stage
from tov.methods.shared.gradients import Checkpoint, projected, summed
from tov.methods.shared.projection import Projection
from tov.methods.shared.warm_up import (
    ProjectedOptions,
    checkpoints_in,
    projection_of,
    target_stage,
    warm_up_cost,
    warmed_up,
)
from tov.model.adapters import write_state
from tov.model.gradients import Run, batches_of, per_example_gradients
from tov.progress import each
from tov.text.batches import Batch
from tov.text.encode import Encoded

if TYPE_CHECKING:
    from tov.engine.models import Models
    from tov.methods.work import Work
    from tov.scores.shard import Shard
    from tov.scores.table import Columns

Gradient = Mapping[str, Tensor]
"""By parameter, of its shape."""


@torch.no_grad()
def tracin_targets(
    adapted: Any, checkpoints: Sequence[Checkpoint], target: Encoded, *, batch_tokens: int
) -> list[Gradient]:
    """For each checkpoint the mean gradient of the target's rows: P numbers.

    Args:
        adapted: a PeftModel; left in the last checkpoint's state.
        checkpoints: states and rates; moments are not used.
        target: M rows; those without a scored token do not count.
        batch_tokens: most tokens in a batch.

    Raises:
        DataError: no row has a scored token.
    """
    batches, means = _batches(target, batch_tokens), list[Gradient]()
    count = sum(len(batch.rows) for batch in batches)
    with per_example_gradients(adapted) as run:
        for k, checkpoint in enumerate(checkpoints):
            write_state(adapted, checkpoint.state)
            mean: dict[str, Tensor] = {}

            def take(name: str, gradients: Tensor, mean: dict[str, Tensor] = mean) -> None:
                mean[name] = mean.get(name, 0.0) + gradients.sum(0) / count

            for batch in each(batches, k, len(checkpoints)):
                run(batch, take)
            means.append(mean)
    return means


@torch.no_grad()
def tracin_scores(
    adapted: Any, checkpoints: Sequence[Checkpoint], targets: Sequence[Gradient], rows: Encoded, *, batch_tokens: int
) -> np.ndarray:
    """(rows,) the exact form; NaN for rows without a scored token.

    Args:
        adapted: a PeftModel; left in the last checkpoint's state.
        checkpoints: states and rates eta_k; moments are not used.
        targets: from `tracin_targets`, of the same checkpoints.
        rows: encoded rows of the pool, any part of it.
        batch_tokens: most tokens in a batch.

    Raises:
        NumericError: a log-loss is not a finite number.
    """
    _check(checkpoints, targets)

    def products(k: int, run: Run, batch: Batch) -> Tensor:
        parts: list[Tensor] = []
        run(
            batch, lambda name, gradients: parts.append(gradients.flatten(1) @ targets[k][name].flatten().to(gradients))
        )
        return checkpoints[k].rate * torch.stack(parts).sum(0)[:, None]

    return summed(adapted, checkpoints, rows, products, batch_tokens=batch_tokens)[:, 0]


@torch.no_grad()
def projected_targets(
    adapted: Any, checkpoints: Sequence[Checkpoint], target: Encoded, *, projection: Projection, batch_tokens: int
) -> list[Tensor]:
    """For each checkpoint (d,) R^T of the target's mean gradient. Arguments and errors as of `tracin_targets`."""
    batches, means = _batches(target, batch_tokens), []
    count = sum(len(batch.rows) for batch in batches)
    with per_example_gradients(adapted) as run:
        for k, checkpoint in enumerate(checkpoints):
            write_state(adapted, checkpoint.state)
            walk = each(batches, k, len(checkpoints))
            sums = [projected(adapted, run, batch, projection).sum(0) for batch in walk]
            means.append(torch.stack(sums).sum(0) / count)
    return means


@torch.no_grad()
def projected_scores(
    adapted: Any,
    checkpoints: Sequence[Checkpoint],
    targets: Sequence[Tensor],
    rows: Encoded,
    *,
    projection: Projection,
    batch_tokens: int,
) -> np.ndarray:
    """(rows,) the projected form: unbiased, off by about |g(x)| |g(z)| / sqrt(d). Else as `tracin_scores`."""
    _check(checkpoints, targets)

    def products(k: int, run: Run, batch: Batch) -> Tensor:
        features = projected(adapted, run, batch, projection)
        return checkpoints[k].rate * (features @ targets[k].to(features))[:, None]

    return summed(adapted, checkpoints, rows, products, batch_tokens=batch_tokens)[:, 0]


def _check(checkpoints: Sequence[Checkpoint], targets: Sequence[Any]) -> None:
    if not checkpoints or len(targets) != len(checkpoints):
        raise ConfigError(
            f"There are {len(checkpoints)} checkpoints, but target gradients of {len(targets)}.",
            allowed="target gradients of every checkpoint",
            fix="Take the target gradients at these checkpoints.",
        )


def _batches(target: Encoded, batch_tokens: int) -> list[Batch]:
    batches = batches_of(target, batch_tokens)
    if not batches:
        raise DataError("No row of the target has a scored token.", fix="Raise --max-length.")
    return batches


class TracinOptions(ProjectedOptions):
    """Options of TracIn."""


@dataclass(frozen=True, kw_only=True)
class TracinScorer(Scorer):
    """Scores shards against the target's mean gradient at the checkpoints of a warm-up.

    Attributes:
        warm_up: the folder of the checkpoints.
        targets: one a checkpoint, from `tracin_targets` or `projected_targets`.
        projection: R; None for the exact form.
        batch_tokens: most tokens in a batch.
    """

    warm_up: str
    targets: tuple[Any, ...] = field(compare=False)
    projection: Projection | None
    batch_tokens: int

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], Columns]]:
        """As of `Scorer.open`; the column is `score_tracin`, nats a token."""
        assert self.model
        opened, checkpoints, how = models.open(self.model), checkpoints_in(Path(self.warm_up)), self.batch_tokens

        def score(shard: Shard) -> Columns:
            arguments: Any = (opened.adapted, checkpoints, self.targets, shard.encoded)
            if self.projection is None:
                return {"score_tracin": tracin_scores(*arguments, batch_tokens=how)}
            return {"score_tracin": projected_scores(*arguments, projection=self.projection, batch_tokens=how)}

        yield score


class Tracin(Method):
    """Of whole gradients, or of projected ones."""

    name = "tracin"
    summary = "rows whose gradient step lowers the target's log-loss, to first order"
    needs = "gradients"
    passes = "1 a checkpoint (4 by default), forward and backward"
    stored = "0 bytes (and once, 12 bytes a trained parameter and checkpoint)"
    options = TracinOptions
    unit = "nats a token"
    source = "Pruthi et al. 2020, arXiv 2002.08484"
    differs = (
        "the score is a mean over the target's rows, not a sum; gradients are of a LoRA adapter; the checkpoints are those of "
        "LESS's warm-up"
    )

    def prepare(self, work: Work) -> Scorer:
        """Warms up, and takes the target's mean gradients."""
        warm = warmed_up(work)
        opened, batch_tokens, projection = warm.opened, work.batch_tokens(warm.opened), projection_of(work)
        target, _ = work.encode_target(opened.encode)
        arguments: Any = (opened.adapted, warm.checkpoints, target)
        with target_stage(work, target, len(warm.checkpoints)):
            targets: Sequence[Any] = (
                tracin_targets(*arguments, batch_tokens=batch_tokens)
                if projection is None
                else projected_targets(*arguments, projection=projection, batch_tokens=batch_tokens)
            )
        loaded = opened.loaded
        return TracinScorer(
            model=opened.spec, passes=(len(warm.checkpoints),) * 2, warm_up=str(warm.folder), targets=tuple(targets),
            projection=projection, batch_tokens=batch_tokens,
            about=f"M = {len(work.target):,} target rows, {loaded.dtype} on {loaded.device}",
        )  # fmt: skip

    def cost(self, stats: PoolStats) -> list[Stage]:
        """The warm-up, then target and pool forward and backward at each checkpoint that has a rate."""
        return warm_up_cost(stats)
