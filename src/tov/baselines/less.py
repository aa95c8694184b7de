"""LESS: rows whose Adam step points the way of the target's gradient (Xia et al. 2024, arXiv 2402.04333).

`tov.baselines.features` has the gradients, this file the method: warm up, features of the target, scores of the pool.

Two forms. Projected: the authors'; what is compared is R^T u, which a store (`tov.baselines.store`) can keep for later targets.
Exact (no projection): the cosines of the whole gradients, which the projected ones estimate to about 1/sqrt(d). A row's product
with the mean of a sub-task is all that its score needs: 2 P S FLOPs a row in place of 2 P d, nothing stored, and S P numbers
held a checkpoint. It is the cheaper one for a target that is known and has fewer sub-tasks than d.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tov.baselines.features import Checkpoint, Moments, cosines, moments_by_name, projected, summed
from tov.baselines.projection import Projection
from tov.errors import ConfigError, DataError, ModelError
from tov.model.adapters import parameters, read_state, write_state
from tov.model.gradients import Run, batches_of, flat_gradients, row_gradients
from tov.model.train import make_optimizer, moments_of, train_epoch
from tov.progress import Progress, each
from tov.seeds import derive, generator
from tov.text.batches import Batch, collate
from tov.text.encode import Encoded

Form = Literal["adam", "sgd"]
TARGET_NUMBERS = 1 << 30
"""Numbers of sub-tasks' mean whole gradients that are held at most, over all checkpoints: 4 GiB in fp32."""
HELD_NUMBERS = 1 << 27
"""Numbers of target rows' whole gradients that are held at once in the exact form: 512 MiB in fp32."""


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
    optimizer, found = make_optimizer(adapted, "carry"), []
    for k in range(epochs):
        train_epoch(
            adapted, rows, order=generator(seed, "less", "order", k).permutation(len(rows)), optimizer=optimizer,
            rate=rates[k].__getitem__, batch_size=batch_size, batch_tokens=batch_tokens,
            seed=derive(seed, "less", "dropout", k), progress=progress,
        )  # fmt: skip
        found.append(
            Checkpoint(read_state(adapted), float(rates[k].mean()), moments_by_name(adapted, moments_of(optimizer)))
        )
    return found


@torch.no_grad()
def less_targets(
    adapted: Any,
    checkpoints: Sequence[Checkpoint],
    target: Encoded,
    *,
    subtasks: Sequence[int] | np.ndarray | None = None,
    projection: Projection | None,
    batch_tokens: int,
) -> list[Tensor]:
    """For each checkpoint (S, d): the mean over a sub-task's rows of R^T g / |R^T g|, g the plain gradient (the SGD form).

    The cosine with a mean of unit vectors is the mean of the cosines, so a row of the target need not be kept: S d numbers a
    checkpoint instead of M d. Without a projection (S, P), the means of g / |g|. The model is left in the last checkpoint's
    state.

    Args:
        adapted: a PeftModel.
        checkpoints: from `warm_up`.
        target: M rows; those without a scored token do not count.
        subtasks: (M,) the sub-task of each row, 0 to S - 1; None for one.
        projection: R, the same as for the pool; None for the exact form.
        batch_tokens: most tokens in a batch.

    Raises:
        DataError: a sub-task has no row with a scored token, or not every row has a sub-task.
        ConfigError: whole gradients of so many sub-tasks are more than `TARGET_NUMBERS`.
    """
    of_row = np.zeros(len(target), np.int64) if subtasks is None else np.asarray(subtasks)
    if len(of_row) != len(target):
        raise DataError(f"sub-tasks are given for {len(of_row)} rows, but the target has {len(target)}")
    counts = np.bincount(of_row[target.scored_counts > 0], minlength=int(of_row.max(initial=0)) + 1)
    if not counts.all():
        raise DataError(
            f"sub-task {int(np.argmin(counts))} of the target has no row with a scored token",
            fix="number sub-tasks from 0 without gaps, or raise --max-length",
        )
    batches, found = batches_of(target, batch_tokens), []
    if projection is None:
        size = sum(one.numel() for one in parameters(adapted).values())
        if len(counts) * size * len(checkpoints) > TARGET_NUMBERS:
            raise ConfigError(
                f"whole gradients of {len(counts):,} sub-tasks, {size:,} numbers each at {len(checkpoints)} checkpoints, are "
                f"{len(counts) * size * len(checkpoints) * 4 / 2**30:.1f} GiB",
                allowed=f"{TARGET_NUMBERS * 4 >> 30} GiB",
                fix="project them (less/dimension=8192), lower less/lora_rank, or name a coarser less/subtask_column",
            )
        most = max(1, HELD_NUMBERS // size)
        batches = [collate(target, one.rows[at : at + most]) for one in batches for at in range(0, len(one.rows), most)]
    with row_gradients(adapted) as run:
        for k, checkpoint in enumerate(checkpoints):
            write_state(adapted, checkpoint.state)
            walk = each(batches, k, len(checkpoints))
            found.append(_subtask_means(adapted, run, walk, of_row, counts, projection))
    return found


def _subtask_means(
    adapted: Any,
    run: Run,
    batches: Iterable[Batch],
    of_row: np.ndarray,
    counts: np.ndarray,
    projection: Projection | None,
) -> Tensor:
    total: Any = 0
    for batch in batches:
        whole = (
            flat_gradients(adapted, run, batch) if projection is None else projected(adapted, run, batch, projection)
        )
        features = functional.normalize(whole)
        member = torch.from_numpy(of_row[batch.rows][None] == np.arange(len(counts))[:, None]).to(features)  # (S, B)
        total = total + member @ features
    return total / torch.from_numpy(counts).to(total)[:, None]


@torch.no_grad()
def less_scores(
    adapted: Any,
    checkpoints: Sequence[Checkpoint],
    targets: Sequence[Tensor],
    rows: Encoded,
    *,
    projection: Projection | None,
    batch_tokens: int,
    form: Form = "adam",
) -> np.ndarray:
    """(rows,) the largest of `subtask_scores`; NaN for rows without a scored token. Arguments and errors as of that."""
    return subtask_scores(
        adapted, checkpoints, targets, rows, projection=projection, batch_tokens=batch_tokens, form=form
    ).max(1)


@torch.no_grad()
def subtask_scores(
    adapted: Any,
    checkpoints: Sequence[Checkpoint],
    targets: Sequence[Tensor],
    rows: Encoded,
    *,
    projection: Projection | None,
    batch_tokens: int,
    form: Form = "adam",
) -> np.ndarray:
    """(rows, S) sum_k w_k mean_z cos(R^T u_k(x), R^T g_k(z)) over rows z of each sub-task; from -1 to 1, larger is better.

    u is the row's Adam direction (`tov.baselines.features.adam_direction`) at checkpoint k, or the row's plain gradient (form
    `sgd`); w_k = eta_k / sum of all eta. Without a projection the cosines are those of the whole u and g. NaN for rows without
    a scored token. A row is forgotten as soon as its cosines are taken: nothing of N x M or N x d is held.

    Source: LESS (Xia et al. 2024, arXiv 2402.04333), Eq. 3 and Section 3.2. Differs: rows go in batches; the projection is the
    same for any block size and device, and may be left out; each target row is normalised before the mean over a sub-task's
    rows.

    Args:
        adapted: a PeftModel; left in the last checkpoint's state.
        checkpoints: from `warm_up`, with moments.
        targets: from `less_targets`, of the same checkpoints and projection.
        rows: encoded rows of the pool, any part of it.
        projection: R; None for the exact form.
        batch_tokens: most tokens in a batch.
        form: how a pool row's gradient is taken.

    Raises:
        ModelError: a checkpoint has no moments, in the Adam form.
        NumericError: a log-loss is not a finite number.
    """
    weights, moments = epoch_weights(checkpoints), _moments(checkpoints, form)
    if len(targets) != len(checkpoints):
        raise ConfigError(f"{len(checkpoints)} checkpoints, but target features of {len(targets)}")

    def weighed(k: int, run: Run, batch: Batch) -> Tensor:
        if projection is None:
            return weights[k] * cosines(adapted, run, batch, targets[k], moments[k])
        features = functional.normalize(projected(adapted, run, batch, projection, moments[k]))
        return weights[k] * features @ targets[k].to(features).T

    return summed(adapted, checkpoints, rows, weighed, batch_tokens=batch_tokens)


def _moments(checkpoints: Sequence[Checkpoint], form: Form) -> list[Moments | None]:
    moments = [checkpoint.moments if form == "adam" else None for checkpoint in checkpoints]
    if form == "adam" and None in moments:
        raise ModelError("LESS needs the optimizer's moments at every checkpoint", fix="take checkpoints from warm_up")
    return moments


@torch.no_grad()
def less_features(
    adapted: Any,
    checkpoint: Checkpoint,
    rows: Encoded,
    *,
    projection: Projection,
    batch_tokens: int,
    form: Form = "adam",
) -> np.ndarray:
    """(rows, d) fp32 R^T u / |R^T u| of each row at one checkpoint, for a store; NaN for rows without a scored token.

    Arguments and errors as of `subtask_scores`.
    """
    [moments], batches = _moments([checkpoint], form), batches_of(rows, batch_tokens)
    found = np.full((len(rows), projection.size), np.nan, np.float32)
    write_state(adapted, checkpoint.state)
    with row_gradients(adapted) as run:
        for batch in each(batches):
            found[batch.rows] = functional.normalize(projected(adapted, run, batch, projection, moments)).cpu().numpy()
    return found


def stored_scores(
    checkpoints: Sequence[Checkpoint], targets: Sequence[Tensor], features: Sequence[Tensor]
) -> np.ndarray:
    """(rows, S) as `subtask_scores`, from features that `less_features` has made at the same checkpoints.

    Args:
        checkpoints: for their rates.
        targets: (S, d) a checkpoint, from `less_targets`.
        features: (rows, d) a checkpoint. In fp16 a cosine is off by about 1e-4.
    """
    terms = zip(epoch_weights(checkpoints), targets, features, strict=True)
    scores = torch.stack([weight * (rows.to(target) @ target.T) for weight, target, rows in terms]).sum(0)
    return scores.cpu().double().numpy()


def epoch_weights(checkpoints: Sequence[Checkpoint]) -> list[float]:
    """w_k = eta_k / sum of all eta.

    Raises:
        ConfigError: no checkpoint, or no rate above 0.
    """
    total = sum(checkpoint.rate for checkpoint in checkpoints)
    if not total > 0:
        raise ConfigError(f"{len(checkpoints)} checkpoints with learning rates that sum to {total}")
    return [checkpoint.rate / total for checkpoint in checkpoints]
