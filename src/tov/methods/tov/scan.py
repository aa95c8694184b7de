"""Rows through both states of every epoch. Forward passes only; keeps nothing but per-row means.

Knows a model with an adapter, states and encoded rows; must not know how rows are chosen. A shard's batch plan is
frozen, and every state of the path walks that plan, so identical states give a score of exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
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
from tov.model.kernels.attention import walks_rows
from tov.model.kernels.joined import Refresh
from tov.model.kernels.packed import UNIT, pack, packable, told_of
from tov.model.logloss import row_logprobs
from tov.text.batches import Batch, batches_of, collate, fill
from tov.text.encode import Encoded

MEASURES = (*(f"score_{name}" for name in TRANSFORM_FUNCTIONS), "loss_base", "loss_target", "uncertainty")
"""What a scan measures, nats a token: means over epochs under these names, one epoch k under `NAME_k`."""
NEARNESS = "nearness"
"""A row's largest cosine to any target row under the first base state; no measure of an epoch."""
NEAREST = 3
"""Target rows that are named as nearest to a row."""
Pairs = Iterable[tuple[int, State, State]]
Epoch = Sequence[tuple[State, Mapping[str, State]]]
"""An epoch of several paths: each base state that some of them share, and by name the target states compared with it."""


@dataclass(frozen=True)
class Scanned:
    """What a scan of some rows gives.

    Attributes:
        epochs: for each epoch, (rows,) a measure of `MEASURES`, NaN for rows without a score.
        passed: tokens that went through the model, padding not counted, all passes of all targets together.
        nearness: (rows,) the largest cosine to any target row, NaN for rows without a score; None where no target was given.
    """

    epochs: list[dict[str, np.ndarray]]
    passed: int
    nearness: np.ndarray | None = None

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """As `columns_of` has them, and the nearness."""
        return columns_of(self.epochs) | ({} if self.nearness is None else {NEARNESS: self.nearness})


def layout(model: Any, rows: Encoded, batch_tokens: int) -> list[Batch]:
    """The batches of a scan: rows end to end where the model can be fed so (half precision on a GPU), else padded."""
    if walks_rows(model) and packable(model):  # asked alone, the latter speaks of training
        return [pack(rows, group) for group in fill(rows.lengths, rows.scored_counts > 0, batch_tokens // UNIT * UNIT)]
    return batches_of(rows, batch_tokens)


def token_losses(
    model: Any, batches: list[Batch], walk: int = 0, walks: int = 1, *, then: Callable[[Batch], None] | None = None
) -> np.ndarray:
    """(sum of scored tokens,) log p of every scored token under the state now in the model, batch by batch, row by row.

    Batches that do not fit in memory are halved (`tov.model.fitting`). `walk` of `walks` is for the progress; `then` is told of
    each batch that has just passed.
    """
    parts = []
    for batch, logp in passes(batches, lambda batch: row_logprobs(model, batch, **told_of(model, batch)), walk, walks):
        parts.append(logp)
        if then:
            then(batch)
    return _on_cpu(parts)


def _on_cpu(parts: list[Tensor]) -> np.ndarray:
    return torch.cat(parts).cpu().double().numpy() if parts else np.empty(0)


def scan_rows(
    model: Any, set_state: Refresh, rows: Encoded, pairs: Pairs, *, batch_tokens: int, embedded: np.ndarray | None = None
) -> Scanned:  # fmt: skip
    """As `scan_targets`, for one target.

    Args:
        model, set_state, rows, batch_tokens: as there.
        pairs: the states to compare.
        embedded: (M, D) the target's rows under the first base state, for the nearness to them.
    """
    epochs = ([(base, {"": target})] for _, base, target in pairs)
    near = {} if embedded is None else {"": embedded}
    return scan_targets(model, set_state, rows, epochs, names=[""], batch_tokens=batch_tokens, embedded=near)[""]


def scan_targets(
    model: Any, set_state: Refresh, rows: Encoded, epochs: Iterable[Epoch], *, names: Sequence[str], batch_tokens: int,
    embedded: Mapping[str, np.ndarray], walks: int = 2,
) -> dict[str, Scanned]:  # fmt: skip
    """Every measure of every row for each target, epoch by epoch; a base state that targets share is passed once.

    Args:
        model: the model under the adapter.
        set_state: from `tov.model.kernels.joined.scanning`.
        rows: encoded rows; those without scored tokens are not passed through the model.
        epochs: the states to compare.
        names: of the targets.
        batch_tokens: most tokens in a batch.
        embedded: by name, (M, D) a target's rows under its first base state, for the nearness to them.
        walks: passes in all, for the progress.

    Raises:
        NumericError: a log-loss is not a finite number.
    """
    counts = rows.scored_counts
    batches = layout(model, rows, batch_tokens)
    order = np.concatenate([batch.rows for batch in batches]) if batches else np.empty(0, np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts[order])])
    measured: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in names}
    done, near = 0, dict[str, np.ndarray]()
    for number, epoch in enumerate(epochs):
        for base_state, states in epoch:
            wanted = {} if number else {name: embedded[name] for name in states if name in embedded}
            base, ends, cosines = _walk(
                model,
                set_state,
                batches,
                base_state,
                states,
                wanted,
                done=done,
                walks=max(walks, done + 1 + len(states)),
            )
            near |= cosines
            for name, end in ends.items():
                if not (np.isfinite(base).all() and np.isfinite(end).all()):
                    raise NumericError(
                        "The log-loss of a token is not a finite number.",
                        fix="Try --dtype fp32, or a lower --learning-rate.",
                    )
                measured[name].append(_measures(base, end, offsets, order, len(rows)))
            done += 1 + len(states)
    if not all(np.isfinite(cosines).all() for cosines in near.values()):
        raise NumericError("The embedding of a row is zero or not a finite number.", fix="Try --dtype fp32.")
    passed = done * int(rows.lengths[order].sum())
    return {
        name: Scanned(measured[name], passed, _in_place(near[name], order, len(rows)) if name in embedded else None)
        for name in names
    }


def _walk(
    model: Any, set_state: Refresh, batches: list[Batch], base_state: State, states: Mapping[str, State],
    embedded: Mapping[str, np.ndarray], *, done: int, walks: int,
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:  # fmt: skip
    """log p of every scored token under a base state and under each target state, and the rows' largest cosines by target."""
    layout = -1
    while layout != len(batches):  # all states walk one layout: again, if memory made it another one in between
        near: dict[str, list[Tensor]] = {name: [] for name in embedded}
        set_state(base_state)
        with cosines_in_passing(model, embedded) if embedded else nullcontext() as of_batch:
            then = partial(_keep_largest, near, of_batch) if of_batch else None
            base = token_losses(model, batches, done, walks, then=then)
        layout, ends = len(batches), dict[str, np.ndarray]()
        for number, (name, state) in enumerate(states.items(), done + 1):
            set_state(state)
            ends[name] = token_losses(model, batches, number, walks)
    return base, ends, {name: _on_cpu(parts) for name, parts in near.items()}


def _keep_largest(
    near: Mapping[str, list[Tensor]], of_batch: Callable[[Batch], Mapping[str, Tensor]], batch: Batch
) -> None:
    for name, cosines in of_batch(batch).items():
        near[name].append(cosines.amax(1))


def _measures(
    base: np.ndarray, target: np.ndarray, offsets: np.ndarray, order: np.ndarray, rows: int
) -> dict[str, np.ndarray]:
    measures = {f"score_{name}": score for name, score in row_scores(base, target, offsets).items()}
    measures["loss_base"], measures["loss_target"] = log_loss(base, offsets), log_loss(target, offsets)
    measures["uncertainty"] = uncertainty(base, offsets)
    return {name: _in_place(measures[name], order, rows) for name in MEASURES}


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
    batches = layout(model, rows, batch_tokens)
    order = np.concatenate([batch.rows for batch in batches])
    losses, gains, near = [], [], list[Tensor]()
    for number, (_, base_state, target_state) in enumerate(pairs):
        set_state(base_state)
        with nullcontext() if embedded is None or number else cosines_in_passing(model, {"": embedded}) as of_batch:
            then = (lambda batch: near.append(of_batch(batch)[""])) if of_batch else None
            base = token_losses(model, batches, then=then)
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
    together = layout(model, rows, batch_tokens)
    order = np.concatenate([batch.rows for batch in together]) if together else np.empty(0, np.int64)
    alone = [collate(rows, order[place : place + 1]) for place in range(len(order))]
    set_state(state)
    joint, single = (token_losses(model, batches) for batches in (together, alone))
    offsets = np.concatenate([[0], np.cumsum(rows.scored_counts[order])])
    by_row = log_loss(joint - single, offsets)
    return {"token_rms": float(np.sqrt(np.mean((joint - single) ** 2))), "row_rms": float(np.sqrt(np.mean(by_row**2)))}
