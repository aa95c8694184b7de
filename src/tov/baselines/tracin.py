"""TracIn: how much a gradient step on a row lowers the target's loss, to first order (Pruthi et al. 2020, arXiv 2002.08484).

score(x) = sum_k eta_k <grad l(theta_k, x), (1/M) sum_z grad l(theta_k, z)> over checkpoints k: its TracInCP with the mean over
the target's rows. In nats a token, larger is better. Plain gradients of the adapter (and a new head), l as in Eq. 7.

Two forms. Exact: against the target's whole mean gradient, layer by layer; holds P numbers a checkpoint and one layer of a
batch, so it is cheaper than the projected one at any adapter's size (2 P FLOPs a row against 2 P d). Projected: for features
that are kept, or shared with LESS. Differs: the paper has the sum over the target's rows, and no adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tov.baselines.features import Checkpoint, projected, summed
from tov.baselines.projection import Projection
from tov.errors import ConfigError, DataError
from tov.model.adapters import write_state
from tov.model.gradients import Run, batches_of, row_gradients
from tov.progress import each
from tov.text.batches import Batch
from tov.text.encode import Encoded

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
    batches, found = _batches(target, batch_tokens), list[Gradient]()
    count = sum(len(batch.rows) for batch in batches)
    with row_gradients(adapted) as run:
        for k, checkpoint in enumerate(checkpoints):
            write_state(adapted, checkpoint.state)
            mean: dict[str, Tensor] = {}

            def take(name: str, gradients: Tensor, mean: dict[str, Tensor] = mean) -> None:
                mean[name] = mean.get(name, 0.0) + gradients.sum(0) / count

            for batch in each(batches, k, len(checkpoints)):
                run(batch, take)
            found.append(mean)
    return found


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
    batches, found = _batches(target, batch_tokens), []
    count = sum(len(batch.rows) for batch in batches)
    with row_gradients(adapted) as run:
        for k, checkpoint in enumerate(checkpoints):
            write_state(adapted, checkpoint.state)
            walk = each(batches, k, len(checkpoints))
            sums = [projected(adapted, run, batch, projection).sum(0) for batch in walk]
            found.append(torch.stack(sums).sum(0) / count)
    return found


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
        raise ConfigError(f"{len(checkpoints)} checkpoints, but target gradients of {len(targets)}")


def _batches(target: Encoded, batch_tokens: int) -> list[Batch]:
    batches = batches_of(target, batch_tokens)
    if not batches:
        raise DataError("no row of the target has a scored token", fix="raise --max-length")
    return batches
