"""Rows through both states of every epoch. Forward passes only; keeps nothing but per-row means.

Knows a model with an adapter, states and encoded rows; must not know how rows are chosen. A shard's batch plan is
frozen, and every state of the path walks that plan, so identical states give a score of exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tov.errors import NumericError
from tov.losses import log_loss
from tov.methods.base import TokenGains
from tov.methods.shared.embeddings import cosines_in_passing
from tov.methods.tov.scoring import TRANSFORM_FUNCTIONS, row_scores, uncertainty
from tov.model.adapters import State
from tov.model.fitting import passes
from tov.model.kernels.joined import Refresh
from tov.model.logloss import row_logprobs
from tov.text.batches import Batch, collate, plan
from tov.text.encode import Encoded

MEASURES = (*(f"score_{name}" for name in TRANSFORM_FUNCTIONS), "loss_base", "loss_target", "uncertainty")
"""What a scan measures, nats a token: means over epochs under these names, one epoch k under `NAME_k`."""
NEARNESS = "nearness"
"""A row's largest cosine to any target row under the first base state; no measure of an epoch."""
NEAREST = 3
"""Target rows that are named as nearest to a row."""
Pairs = Iterable[tuple[int, State, State]]


@dataclass(frozen=True)
class Scanned:
    """What a scan of some rows gives.

    Attributes:
        tokens: (rows,) the length that bins go by (`Encoded.sizes`).
        epochs: for each epoch, (rows,) a measure of `MEASURES`, NaN for rows without a score.
        passed: tokens that went through the model, padding not counted, all passes together.
        nearness: (rows,) the largest cosine to any target row, NaN for rows without a score; None where no target was given.
    """

    tokens: np.ndarray
    epochs: list[dict[str, np.ndarray]]
    passed: int
    nearness: np.ndarray | None = None

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """As `columns_of` has them, and the nearness."""
        return columns_of(self.epochs) | ({} if self.nearness is None else {NEARNESS: self.nearness})


def token_losses(
    model: Any, batches: list[Batch], walk: int = 0, walks: int = 1, *, then: Callable[[Batch], None] | None = None
) -> np.ndarray:
    """(sum of scored tokens,) log p of every scored token under the state now in the model, batch by batch, row by row.

    Batches that do not fit in memory are halved (`tov.model.fitting`). `walk` of `walks` is for the progress; `then` is told of
    each batch that has just passed.
    """
    parts = []
    for batch, logp in passes(batches, lambda batch: row_logprobs(model, batch), walk, walks):
        parts.append(logp)
        if then:
            then(batch)
    return _on_cpu(parts)


def _on_cpu(parts: list[Tensor]) -> np.ndarray:
    return torch.cat(parts).cpu().double().numpy() if parts else np.empty(0)


def scan_rows(
    model: Any, set_state: Refresh, rows: Encoded, pairs: Pairs, *, batch_tokens: int, count: int = 1,
    embedded: np.ndarray | None = None,
) -> Scanned:  # fmt: skip
    """Every measure of every row, for each (k, base state, target state).

    Args:
        model: the model under the adapter.
        set_state: from `tov.model.kernels.joined.scanning`.
        rows: encoded rows; those without scored tokens are not passed through the model.
        pairs: the states to compare.
        batch_tokens: most tokens in a batch.
        count: of the pairs, for the progress.
        embedded: (M, D) the target's rows under the first base state, for the nearness to them.

    Raises:
        NumericError: a log-loss is not a finite number.
    """
    counts = rows.scored_counts
    batches = [collate(rows, group) for group in plan(rows.lengths, counts > 0, batch_tokens)]
    order = np.concatenate([batch.rows for batch in batches]) if batches else np.empty(0, np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts[order])])
    epochs, done, near = [], 0, list[Tensor]()
    for _, base_state, target_state in pairs:
        layout = -1
        while layout != len(batches):  # both states walk one layout: again, if memory made it another one in between
            set_state(base_state)
            with nullcontext() if embedded is None or done else cosines_in_passing(model, embedded) as of_batch:
                if of_batch:
                    near.clear()
                then = (lambda batch: near.append(of_batch(batch).amax(1))) if of_batch else None
                base = token_losses(model, batches, done, 2 * count, then=then)
            layout = len(batches)
            set_state(target_state)
            target = token_losses(model, batches, done + 1, 2 * count)
        if not (np.isfinite(base).all() and np.isfinite(target).all()):
            raise NumericError(
                "The log-loss of a token is not a finite number.", fix="Try --dtype fp32, or a lower --learning-rate."
            )
        measures = {f"score_{name}": score for name, score in row_scores(base, target, offsets).items()}
        measures["loss_base"], measures["loss_target"] = log_loss(base, offsets), log_loss(target, offsets)
        measures["uncertainty"] = uncertainty(base, offsets)
        epochs.append({name: _in_place(measures[name], order, len(rows)) for name in MEASURES})
        done += 2
    cosines = _on_cpu(near)
    if not np.isfinite(cosines).all():
        raise NumericError("The embedding of a row is zero or not a finite number.", fix="Try --dtype fp32.")
    nearness = None if embedded is None else _in_place(cosines, order, len(rows))
    return Scanned(rows.sizes, epochs, done * int(rows.lengths[order].sum()), nearness)


def explain_rows(
    model: Any,
    set_state: Refresh,
    rows: Encoded,
    pairs: Pairs,
    *,
    batch_tokens: int,
    embedded: np.ndarray | None = None,
) -> TokenGains:
    """The log-loss and the gain of every scored token, means over the epochs; arguments as of `scan_rows`."""
    batches = [collate(rows, group) for group in plan(rows.lengths, rows.scored_counts > 0, batch_tokens)]
    order = np.concatenate([batch.rows for batch in batches])
    losses, gains, near = [], [], list[Tensor]()
    for number, (_, base_state, target_state) in enumerate(pairs):
        set_state(base_state)
        with nullcontext() if embedded is None or number else cosines_in_passing(model, embedded) as of_batch:
            base = token_losses(model, batches, then=(lambda batch: near.append(of_batch(batch))) if of_batch else None)
        set_state(target_state)
        losses.append(-base)
        gains.append(token_losses(model, batches) - base)
    counts = rows.scored_counts
    starts = np.concatenate([[0], np.cumsum(counts)])
    # Where each token stands when rows follow one another as they were given.
    places = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in order])
    loss, gain = (_in_place(np.mean(values, axis=0), places, int(counts.sum())) for values in (losses, gains))
    if embedded is None:
        return TokenGains(loss, gain)
    cosines = np.empty((len(rows), len(embedded)))
    cosines[order] = torch.cat(near).cpu().double().numpy()
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]
    return TokenGains(loss, gain, nearest, np.take_along_axis(cosines, nearest, axis=1))


def _in_place(values: np.ndarray, order: np.ndarray, rows: int) -> np.ndarray:
    placed = np.full(rows, np.nan)
    placed[order] = values
    return placed


def columns_of(epochs: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The measures' means over epochs under their names, then those of epoch k under `NAME_k`."""
    means = {name: np.mean([epoch[name] for epoch in epochs], axis=0) for name in MEASURES}
    return means | {f"{name}_{number}": epoch[name] for number, epoch in enumerate(epochs, 1) for name in MEASURES}


def noise_floor(model: Any, set_state: Refresh, rows: Encoded, state: State, *, batch_tokens: int) -> dict[str, float]:
    """What rounding alone does to log-loss: the same weights in two batch layouts (planned batches; each row alone).

    Returns:
        `token_rms`, `row_rms`: root mean square difference of a token's and of a row's log-loss, in nats a token. A score
        of this size means nothing; both scans of a real run share one layout, so its own noise is smaller.
    """
    counts = rows.scored_counts
    together = plan(rows.lengths, counts > 0, batch_tokens)
    alone = [np.array([row]) for group in together for row in group]
    set_state(state)
    joint, single = (token_losses(model, [collate(rows, group) for group in groups]) for groups in (together, alone))
    offsets = np.concatenate([[0], np.cumsum(counts[np.concatenate(together)])]) if together else np.zeros(1, int)
    by_row = log_loss(joint - single, offsets)
    return {"token_rms": float(np.sqrt(np.mean((joint - single) ** 2))), "row_rms": float(np.sqrt(np.mean(by_row**2)))}
