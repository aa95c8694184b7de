"""The final training: chosen rows, from the pretrained weights, by the run's LoRA settings, in our loop.

Steps no optimizer itself.

Source: Jain, Montanari and Sasoglu (2025), the training after the selection: 16*1024/n epochs, so that every n costs the same
number of steps; linear decay is their likely schedule. Differs: n above the budget still gets one whole epoch.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from tov.config.records import TrainingSettings
from tov.errors import NumericError
from tov.progress import Progress
from tov.seeds import derive, generator
from tov.text.encode import Encoded
from tov.training.loop import make_optimizer, train_epoch


@dataclass(frozen=True)
class TrainingLog:
    """What a training cost and how its loss went.

    Attributes:
        losses: mean training log-loss of each epoch, nats a token.
        steps: optimizer steps.
        tokens: tokens passed forward and backward, padding not counted.
        seconds: wall time.
    """

    losses: tuple[float, ...]
    steps: int
    tokens: int
    seconds: float

    @property
    def diverged(self) -> bool | None:
        """Whether the last epoch's loss is above the first's: the rate is too high for these rows. None for one epoch."""
        return self.losses[-1] > self.losses[0] if len(self.losses) > 1 else None

    def facts(self) -> dict[str, Any]:
        """For a trial's record."""
        return {**asdict(self), "losses": list(self.losses), "diverged": self.diverged}


def epochs_for(settings: TrainingSettings, rows: int) -> int:
    """Epochs over so many rows: as given, else --train-rows over n, rounded, at least 1."""
    return settings.num_train_epochs or max(1, round(settings.train_rows / rows))


def train(
    adapted: Any,
    rows: Encoded,
    settings: TrainingSettings,
    *,
    seed: int,
    progress: Progress | None = None,
    batch_tokens: int = 2048,
) -> TrainingLog:
    """Trains the adapter (and a new head) from its present state.

    Args:
        adapted: a PeftModel.
        rows: (n rows) encoded; each has a scored token.
        settings: with the learning rate named.
        seed: of the order of rows and of dropout; the same seed and n, the same positions in the same batches.
        progress: told of rows done.
        batch_tokens: tokens of a part of a step.

    Raises:
        NumericError: training diverged to a loss that is no number.
    """
    assert settings.train_learning_rate
    peak, epochs = settings.train_learning_rate, epochs_for(settings, len(rows))
    per_epoch = math.ceil(len(rows) / settings.train_batch_size)
    optimizer, losses, start = make_optimizer(adapted, "fresh"), [], time.monotonic()
    for epoch in range(epochs):
        done = epoch * per_epoch

        def rate(step: int, done: int = done) -> float:
            return peak * (1.0 - (done + step) / (epochs * per_epoch))

        try:
            losses.append(train_epoch(
                adapted, rows, order=generator(seed, "training order", epoch).permutation(len(rows)), optimizer=optimizer,
                rate=rate, batch_size=settings.train_batch_size, batch_tokens=batch_tokens,
                seed=derive(seed, "training dropout", epoch), progress=progress,
            ))  # fmt: skip
        except NumericError as error:
            raise NumericError(error.problem, fix="Lower --train-learning-rate.") from None
    seconds = round(time.monotonic() - start, 3)
    return TrainingLog(tuple(losses), epochs * per_epoch, epochs * int(rows.lengths.sum()), seconds)
