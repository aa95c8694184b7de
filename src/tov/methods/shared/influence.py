"""What LESS and TracIn both sum: over checkpoints, a weighted product of a row's gradient with a mean of the target's.

Their difference is one flag and the weights. LESS takes gradients at length 1, so that products are cosines, and of a pool
row its Adam direction; TracIn takes them as they are. Two forms. Projected: what is compared is R^T g, d numbers, which can
be kept. Exact (no projection): the products of the whole gradients, which the projected ones estimate to about 1/sqrt(d). A
row's product with the mean of a sub-task is all that its score needs: 2 P S FLOPs a row in place of 2 P d, nothing stored,
and S P numbers held a checkpoint. It is the cheaper one for a target that is known and has fewer sub-tasks than d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tov.errors import ConfigError, DataError
from tov.methods.shared.gradients import Checkpoint, products, projected
from tov.methods.shared.projection import Projection
from tov.model.adapters import parameters, write_state
from tov.model.fitting import passes
from tov.model.gradients import flat_gradients, per_example_gradients
from tov.progress import each
from tov.text.batches import Batch, batches_of, collate
from tov.text.encode import Encoded

TARGET_NUMBERS = 1 << 30
"""Numbers of sub-tasks' mean whole gradients that are held at most, over all checkpoints: 4 GiB in fp32."""
HELD_NUMBERS = 1 << 27
"""Numbers of target rows' whole gradients that are held at once in the exact form: 512 MiB in fp32."""


@torch.no_grad()
def target_means(
    adapted: Any,
    checkpoints: Sequence[Checkpoint],
    target: Encoded,
    *,
    subtasks: Sequence[int] | np.ndarray | None = None,
    unit: bool,
    projection: Projection | None,
    batch_tokens: int,
) -> list[Tensor]:
    """For each checkpoint (S, d): the mean over a sub-task's rows of R^T g, g the plain gradient; (S, P) of g without R.

    With `unit` each is divided by its length first. The cosine with a mean of unit vectors is the mean of the cosines, so a row
    of the target need not be kept: S d numbers a checkpoint instead of M d. The model is left in the last checkpoint's state.

    Args:
        adapted: a PeftModel.
        checkpoints: states; moments and rates are not used.
        target: M rows; those without a scored token do not count.
        subtasks: (M,) the sub-task of each row, 0 to S - 1; None for one.
        unit: whether a row counts by its direction alone.
        projection: R, the same as for the pool; None for the exact form.
        batch_tokens: most tokens in a batch.

    Raises:
        DataError: a sub-task has no row with a scored token, or not every row has a sub-task.
        ConfigError: whole gradients of so many sub-tasks are more than `TARGET_NUMBERS`.
    """
    of_row = np.zeros(len(target), np.int64) if subtasks is None else np.asarray(subtasks)
    counts = _rows_of(of_row, target)
    batches = batches_of(target, batch_tokens)
    if projection is None:
        most = max(1, HELD_NUMBERS // _fitting_size(adapted, len(counts) * len(checkpoints)))
        batches = [collate(target, one.rows[at : at + most]) for one in batches for at in range(0, len(one.rows), most)]
    means = []
    with per_example_gradients(adapted) as run:
        for k, checkpoint in enumerate(checkpoints):
            write_state(adapted, checkpoint.state)
            total: Any = 0
            for batch in each(batches, k, len(checkpoints)):
                rows = projected(adapted, run, batch, projection) if projection else flat_gradients(adapted, run, batch)
                rows = functional.normalize(rows) if unit else rows
                member = torch.from_numpy(of_row[batch.rows][None] == np.arange(len(counts))[:, None]).to(
                    rows
                )  # (S, B)
                total = total + member @ rows
            means.append(total / torch.from_numpy(counts).to(total)[:, None])
    return means


def _rows_of(of_row: np.ndarray, target: Encoded) -> np.ndarray:
    """(S,) rows of each sub-task that count."""
    if len(of_row) != len(target):
        raise DataError(
            f"Sub-tasks are given for {len(of_row)} rows, but the target has {len(target)}.",
            fix="Give each target row a sub-task.",
        )
    counts = np.bincount(of_row[target.scored_counts > 0], minlength=int(of_row.max(initial=0)) + 1)
    if not counts.any():
        raise DataError("No row of the target has a scored token.", fix="Raise --max-length.")
    if not counts.all():
        raise DataError(
            f"The sub-task {int(np.argmin(counts))} of the target has no row with a scored token.",
            fix="Number sub-tasks from 0 without gaps, or raise --max-length.",
        )
    return counts


def _fitting_size(adapted: Any, gradients: int) -> int:
    """P, if so many whole gradients can be held."""
    size = sum(parameter.numel() for parameter in parameters(adapted).values())
    if gradients * size > TARGET_NUMBERS:
        raise ConfigError(
            f"{gradients:,} whole gradients, one a sub-task and checkpoint of {size:,} numbers each, "
            f"are {gradients * size * 4 / 2**30:.1f} GiB.",
            allowed=f"{TARGET_NUMBERS * 4 >> 30} GiB",
            fix="Project them (dim=8192), lower lora_r, or name a coarser subtask_column.",
        )
    return size


@torch.no_grad()
def influence(
    adapted: Any,
    checkpoints: Sequence[Checkpoint],
    weights: Sequence[float],
    targets: Sequence[Tensor],
    rows: Encoded,
    *,
    unit: bool,
    projection: Projection | None,
    batch_tokens: int,
) -> np.ndarray:
    """(rows, S) float64 sum_k w_k <R^T u_k(x), t_k> over checkpoints k; without a projection of the whole u.

    u is the row's Adam direction at a checkpoint that has moments, else its plain gradient; with `unit`, of length 1. NaN for
    rows without a scored token. A row is forgotten as soon as its products are taken: nothing of N x M or N x d is held. The
    model is left in the last checkpoint's state.

    Differs from the authors of both methods: rows go in batches; the projection is the same for any block size and device, and
    may be left out.

    Args:
        adapted: a PeftModel.
        checkpoints: from `warm_up`; without moments for plain gradients.
        weights: w_k.
        targets: t_k, (S, d), from `target_means` of the same checkpoints and projection.
        rows: encoded rows of the pool, any part of it.
        unit: whether a row counts by its direction alone.
        projection: R; None for the exact form.
        batch_tokens: most tokens in a batch.

    Raises:
        ConfigError: not a target for every checkpoint.
        ModelError: a checkpoint's moments are those of another model.
        NumericError: a log-loss is not a finite number.
    """
    if not checkpoints or len(targets) != len(checkpoints):
        raise ConfigError(
            f"There are {len(checkpoints)} checkpoints, but target gradients of {len(targets)}.",
            allowed="target gradients of every checkpoint",
            fix="Take the target gradients at these checkpoints.",
        )
    batches, sums = batches_of(rows, batch_tokens), np.zeros((len(rows), targets[0].shape[0]))
    with per_example_gradients(adapted) as run:
        for k, checkpoint in enumerate(checkpoints):
            write_state(adapted, checkpoint.state)

            def compared(batch: Batch, k: int = k, checkpoint: Checkpoint = checkpoint) -> Tensor:
                if projection is None:
                    return weights[k] * products(adapted, run, batch, targets[k], checkpoint.moments, unit=unit)
                features = row_features(adapted, run, batch, projection, checkpoint, unit=unit)
                return weights[k] * features @ targets[k].to(features).T

            for batch, found in passes(batches, compared, k, len(checkpoints)):
                sums[batch.rows] += found.cpu().double().numpy()
    sums[rows.scored_counts == 0] = np.nan
    return sums


def row_features(
    adapted: Any, run: Any, batch: Batch, projection: Projection, checkpoint: Checkpoint, *, unit: bool
) -> Tensor:
    """(B, d) what `influence` compares of a batch's rows at the checkpoint that is in the model."""
    features = projected(adapted, run, batch, projection, checkpoint.moments)
    return functional.normalize(features) if unit else features
