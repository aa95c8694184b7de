"""Target path (TACS, arXiv 2605.09404): rows whose log-loss falls, in proportion, along a short training on the target alone.

No base set and no gradients of pool rows: two states, fitted once, score any pool in two forward passes a row, 8 bytes a row.
The direct successor and rival of ToV. Knows a model under its adapter and rows as tokens; must not know how rows are chosen.

The adapter is the caller's: the authors have LoRA of rank 1, alpha 4, dropout 0.1, rates of 1e-5 to 5e-5 and 2 to 64 epochs.
How they choose the depth without labels is not in the texts that we follow; `depth_for` is a rule of our own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tov.errors import ConfigError, DataError
from tov.model.adapters import State, read_state
from tov.model.joined import scanning
from tov.model.train import make_optimizer, train_epoch
from tov.progress import Progress
from tov.scan.scan import scan_rows
from tov.seeds import derive, generator
from tov.text.encode import Encoded

LEAST_DEPTH, MOST_DEPTH = 2, 64
"""The authors' range of epochs."""
ROWS_PASSED = 2048
"""Rows of the target passed in a path of our depth: 128 steps of 16."""
LEARNING_RATE = {"instruction": 5e-5, "ner": 1e-3, "classification": 1e-3}
"""Defaults by task: the end of the authors' range; a rate of full training where a new head must be learned too."""
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
        raise ConfigError(f"a target path of {epochs} epochs", allowed="2 or more: it compares the last with the first")
    if not learning_rate > 0:
        raise ConfigError(f"learning rate {learning_rate} of the target path", allowed="above 0")
    rows = np.flatnonzero(target.scored_counts > 0)
    if not len(rows):
        raise DataError("no row of the target has a scored token", fix="raise --max-length")
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
    adapted: Any, states: tuple[State, State], rows: Encoded, *, batch_tokens: int
) -> dict[str, np.ndarray]:
    """The normalised endpoint drop of each row, (rows,) float64 each; NaN for rows without a scored token.

    `score_target_path` = (l_1 - l_T) / l_1, at most 1, larger is better; `loss_first` = l_1 and `loss_last` = l_T in nats a
    token. Both states walk one batch plan: equal states give exactly 0.

    Source: arXiv 2605.09404. Differs: l_1 below `SMALLEST_LOSS` counts as that.

    Args:
        adapted: a PeftModel; left in the endpoint's state.
        states: from `fit_target_path`.
        rows: encoded rows of the pool, any part of it.
        batch_tokens: most tokens in a batch, padding included.

    Raises:
        NumericError: a log-loss is not a finite number.
    """
    with scanning(adapted) as set_state:
        scanned = scan_rows(adapted.get_base_model(), set_state, rows, [(1, *states)], batch_tokens=batch_tokens)
    first, last = (scanned.epochs[0][name] for name in ("loss_base", "loss_target"))
    score = (first - last) / np.maximum(first, SMALLEST_LOSS)
    return {"score_target_path": score, "loss_first": first, "loss_last": last}
