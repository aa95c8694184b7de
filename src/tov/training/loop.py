"""One epoch of adapter training. The only place where an optimizer is stepped. Speaks rows, steps and nats."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tov.errors import NumericError
from tov.model.adapters import parameters
from tov.model.kernels.lowrank import training
from tov.model.kernels.norms import trained_norms
from tov.model.kernels.packed import options_for, pack, packable
from tov.model.logloss import row_logprobs
from tov.progress import Progress, Silent
from tov.text.batches import collate, plan
from tov.text.encode import Encoded

Rate = Callable[[int], float]
"""Learning rate of a step, counted from 0 within the epoch."""
CPU_WIDTHS = 8
"""On a CPU rows are padded to a multiple of this: the first product of a shape costs milliseconds, and a step has dozens."""


def make_optimizer(adapted: Any, kind: str) -> torch.optim.Optimizer:
    """AdamW (b = .9, .999; eps 1e-8; no weight decay) or plain SGD over the adapter's parameters (and a new head's)."""
    wanted = list(parameters(adapted).values())
    if kind == "sgd":
        return torch.optim.SGD(wanted, lr=0.0)
    fused = {parameter.device.type for parameter in wanted} <= {"cpu", "cuda"}
    return torch.optim.AdamW(wanted, lr=0.0, weight_decay=0.0, fused=fused)


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A copy of the optimizer's state (moments, step counts)."""
    return copy.deepcopy(optimizer.state_dict())


def train_epoch(
    adapted: Any,
    rows: Encoded,
    *,
    order: Sequence[int] | np.ndarray,
    optimizer: torch.optim.Optimizer,
    rate: Rate,
    batch_size: int,
    batch_tokens: int,
    seed: int,
    progress: Progress | None = None,
) -> float:
    """One pass over `rows` in `order`; the loss of a step is the row mean of token-mean log-losses (Eq. 7).

    A step's rows are split by length into parts of at most `batch_tokens` tokens whose gradients add up, which changes
    memory and speed but not the step.

    Returns:
        The epoch's mean training log-loss in nats a token.

    Raises:
        NumericError: the loss is no longer a finite number.
    """
    device, trained = next(adapted.parameters()).device, list(parameters(adapted).values())
    total, progress = 0.0, progress or Silent()
    packed, counts = packable(adapted.get_base_model()), torch.from_numpy(rows.scored_counts).to(device)
    optimizer.zero_grad()  # a training that diverged leaves its gradients behind
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        training(adapted),
        trained_norms(adapted.get_base_model()),
    ):
        torch.manual_seed(seed)  # dropout
        for step in range(math.ceil(len(order) / batch_size)):
            batch = np.asarray(order[step * batch_size : (step + 1) * batch_size])
            loss = _accumulate(adapted, rows, batch, counts, batch_tokens, packed=packed)
            if not math.isfinite(loss):
                raise NumericError(
                    f"Training diverged: the log-loss is {loss} at step {step + 1}.",
                    fix="Lower --learning-rate or --lora-alpha.",
                )
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            optimizer.step()
            for parameter in trained:
                parameter.grad = None
            total += loss * len(batch)
            progress.advance(len(batch), int(rows.lengths[batch].sum()))
    return total / len(order)


def _accumulate(
    adapted: Any, rows: Encoded, batch: np.ndarray, counts: torch.Tensor, batch_tokens: int, *, packed: bool
) -> float:
    """Adds one step's gradients, given (rows,) scored tokens of all rows; returns its loss."""
    model, total = adapted.get_base_model(), 0.0
    for part in plan(rows.lengths[batch], np.ones(len(batch), bool), batch_tokens):
        chosen = batch[part]
        if packed:
            joined = pack(rows, chosen)
            logp = row_logprobs(model, joined, **options_for(model, joined.lengths))
        else:
            logp = row_logprobs(model, collate(rows, chosen, _width(rows, rows.lengths[chosen], model.device)))
        weights = (1.0 / (len(batch) * counts[chosen])).repeat_interleave(counts[chosen])
        loss = -(logp * weights).sum()
        loss.backward()
        total += loss.item()
    return total


def _width(rows: Encoded, lengths: np.ndarray, device: torch.device) -> int:
    """Columns of a batch: few different ones on a CPU, but never more than the longest of all rows, which the model takes."""
    multiple = CPU_WIDTHS if device.type == "cpu" else 1
    return min(-(-int(lengths.max()) // multiple) * multiple, int(rows.lengths.max()))
