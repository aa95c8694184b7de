"""Log-loss of rows under one state of the adapter, and what a classifier predicts for them. Forward passes only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tov.errors import NumericError
from tov.losses import log_loss
from tov.model.fitting import passes
from tov.model.kernels.joined import scanning
from tov.model.logloss import classifier_logits, is_causal, label_logprobs, row_logprobs
from tov.text.batches import Batch, batches_of
from tov.text.encode import IGNORED, Encoded


@dataclass(frozen=True)
class Evaluation:
    """How a model does on rows.

    Attributes:
        losses: (rows,) token-mean log-loss in nats (Eq. 7); NaN for rows without a scored token.
        predicted: (S,) the most likely class of every scored word or text, rows one after another; empty for causal models.
        labels: (S,) their labels.
        offsets: (rows + 1,) where each row starts in the two.
    """

    losses: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray

    @property
    def loss(self) -> float:
        """The mean over rows of their token-mean log-loss, in nats."""
        return float(np.nanmean(self.losses))


def evaluate(adapted: Any, rows: Encoded, *, batch_tokens: int) -> Evaluation:
    """Evaluates the adapter's present state.

    Args:
        adapted: a PeftModel.
        rows: encoded rows.
        batch_tokens: most tokens in a batch.

    Raises:
        NumericError: a log-loss is not a finite number.
    """
    batches = batches_of(rows, batch_tokens)
    order = np.concatenate([batch.rows for batch in batches])
    with scanning(adapted):
        parts = [part for _, part in passes(batches, lambda batch: _one(adapted.get_base_model(), batch))]
    logp, predicted = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    if not np.isfinite(logp).all():
        raise NumericError("The log-loss of a test row is not a finite number.", fix="Lower --train-learning-rate.")
    losses = np.full(len(rows), np.nan)
    losses[order] = log_loss(logp, np.concatenate([[0], np.cumsum(rows.scored_counts[order])]))
    return Evaluation(losses, *_in_row_order(rows, order, predicted))


def _one(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(S,) log p of the labels, and (S,) the most likely classes (none for causal models), row by row."""
    if is_causal(model):
        return row_logprobs(model, batch), torch.empty(0, dtype=torch.long)
    logits, labels = classifier_logits(model, batch)
    return label_logprobs(logits, labels), logits[labels != IGNORED].argmax(-1)


def _in_row_order(rows: Encoded, order: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, counts = rows.labels[rows.labels != IGNORED], rows.scored_counts
    offsets = np.concatenate([[0], np.cumsum(counts)])
    placed = np.empty(len(predicted), np.int64)
    if len(predicted):
        taken = np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in order])
        placed[taken] = predicted
    return placed, labels, offsets
