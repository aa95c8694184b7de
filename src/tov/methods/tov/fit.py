"""Fitting the path: base epochs and target epochs in the order that a variant says (Algorithm 1, the training half).

Knows rows as tokens and a model with an adapter; must not know files or the pool beyond the base set.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tov.config.presets import LARGEST_BASE, SCORING_BUDGET
from tov.config.records import PathSettings
from tov.methods.tov.variants import START, VARIANTS, Step
from tov.model.adapters import State, read_state, write_state
from tov.progress import Progress
from tov.seeds import derive, generator
from tov.text.encode import Encoded
from tov.training.loop import Rate, make_optimizer, moments_of, train_epoch

MOST_EPOCHS = 2
"""Each is two passes over the pool. Rows chosen by two train no worse than those by four (docs/defaults.md)."""

Keep = Callable[[Step, State], None]


@dataclass(frozen=True)
class Schedule:
    """Sizes and rates of a path, decided before anything is trained.

    Attributes:
        base_size: |U|.
        epochs: L.
        rates: (L,) eta_k, the mean rate of each base epoch.
        notes: what was rounded or capped.
    """

    base_size: int
    epochs: int
    rates: tuple[float, ...]
    notes: tuple[str, ...]


def base_size_for(settings: PathSettings, usable: int) -> int:
    """|U|: as given (at most the pool), else 4096 but at most a quarter of the usable pool rows."""
    return min(settings.base_size or max(1, min(LARGEST_BASE, usable // 4)), usable)


def schedule_for(settings: PathSettings, base_size: int) -> Schedule:
    """L and the rates. Differs from the paper's rule by the cap `MOST_EPOCHS`, which sets below |U| = 8,192 meet."""
    exact, notes = SCORING_BUDGET / base_size, []
    epochs = settings.epochs or min(MOST_EPOCHS, max(1, round(exact)))
    if settings.epochs is None and epochs != exact:
        notes.append(
            f"scoring epochs: {epochs}, each of two passes over the pool; the paper's rule 16*1024/|U| gives {exact:.4g} "
            "(--epochs sets them)"
        )
    steps = math.ceil(base_size / settings.batch_size)
    rates = [
        sum(_rate(settings, k * steps + step, epochs * steps) for step in range(steps)) / steps for k in range(epochs)
    ]
    return Schedule(base_size, epochs, tuple(rates), tuple(notes))


def _rate(settings: PathSettings, step: int, total: int) -> float:
    """The base rate at a step of the whole path: linear decay from the rate to 0, or constant."""
    assert settings.learning_rate is not None
    return settings.learning_rate * (1.0 - step / total if settings.lr_scheduler_type == "linear" else 1.0)


def fit(
    adapted: Any,
    *,
    base: Encoded,
    target: Encoded,
    settings: PathSettings,
    schedule: Schedule,
    keep: Keep,
    progress: Progress | None = None,
    batch_tokens: int = 2048,
    known: Callable[[Step], State | None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Walks the variant's steps and hands each `base-k` and `target-k` state to `keep`.

    The same seed on the same machine gives the same states bit for bit. A target epoch's optimizer is `fresh` AdamW (zero
    moments, discarded after it), `carry` (the base epoch's moments, which then go on), or `sgd`; under `fresh` and `sgd` the
    next base epoch goes on with the moments that the last base epoch of its trajectory left.

    `known` gives the state that a step ends in where another path has it already: the step is not trained again. No later
    step may need the moments that it would have left.

    Differs: the paper gives neither optimizer, rate nor what happens to the moments; see docs/defaults.md for the choice.

    Returns:
        One record a step that was trained: epoch, data, states, mean log-loss, tokens.

    Raises:
        NumericError: training diverged.
    """
    states: dict[str, tuple[State, dict[str, Any] | None]] = {START: (read_state(adapted), None)}
    steps, log = VARIANTS[settings.path_variant](schedule.epochs), []
    for position, step in enumerate(steps):
        found = known(step)
        if found is not None:
            states[step.result] = (found, None)
            keep(step, found)
            continue
        weights, moments = states[step.source]
        write_state(adapted, weights)
        kind = settings.target_optimizer if step.data == "target" else "carry"
        optimizer = make_optimizer(adapted, kind)
        if kind == "carry" and moments is not None:
            optimizer.load_state_dict(copy.deepcopy(moments))  # torch would train on the stored tensors
        rows = base if step.data == "base" else target
        loss = train_epoch(
            adapted, rows, order=_order(settings.seed, step, len(rows)), optimizer=optimizer,
            rate=_rates_of(settings, schedule, step), batch_size=settings.batch_size, batch_tokens=batch_tokens,
            seed=derive(settings.seed, "dropout", step.data, step.epoch), progress=progress,
        )  # fmt: skip
        states[step.result] = (read_state(adapted), moments_of(optimizer) if kind == "carry" else moments)
        log.append({
            "epoch": step.epoch, "data": step.data, "from": step.source, "to": step.result, "log_loss": loss,
            "tokens": int(rows.lengths.sum()),
        })  # fmt: skip
        if not step.result.startswith("mixed"):
            keep(step, states[step.result][0])
        needed = {later.source for later in steps[position + 1 :]}
        states = {name: state for name, state in states.items() if name in needed}
    return log


def _order(seed: int, step: Step, rows: int) -> np.ndarray:
    """Row order of one epoch; the same for both trajectories of `paired`, so that they differ by the target alone."""
    return generator(seed, "order", step.data, step.epoch).permutation(rows)


def _rates_of(settings: PathSettings, schedule: Schedule, step: Step) -> Rate:
    if step.data == "target":
        assert settings.target_learning_rate_ratio is not None
        fixed = (
            settings.target_sgd_learning_rate
            if settings.target_optimizer == "sgd"
            else settings.target_learning_rate_ratio * schedule.rates[step.epoch - 1]
        )
        return lambda _: fixed
    steps = math.ceil(schedule.base_size / settings.batch_size)
    return lambda at: _rate(settings, (step.epoch - 1) * steps + at, schedule.epochs * steps)
