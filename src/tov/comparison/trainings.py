"""What a trial is once its rows are chosen: a training and a test, which any worker can do. Knows no pool, files or scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tov.config.records import CompareConfig
from tov.engine.models import Models, ModelSpec, auto_batch_tokens
from tov.errors import TovError, stop_if_interrupted
from tov.model.consent import Expected
from tov.model.evaluate import Evaluation, evaluate
from tov.model.generate import Asked, answers
from tov.seeds import derive
from tov.text.encode import Encoded
from tov.training.final import train


@dataclass(frozen=True)
class Training:
    """One training of a seed.

    Attributes:
        start: its place among the trainings of its seed.
        rows: trained on, as tokens; None: the pretrained model is tested.
    """

    start: int
    rows: Encoded | None

    @property
    def stop(self) -> int:
        """The next place."""
        return self.start + 1


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes:
        train: what it cost and how its loss went; None where there was nothing to train on.
        result: of the test rows.
        answers: to those that were asked.
        seconds: for all of it.
    """

    train: dict[str, Any] | None
    result: Evaluation
    answers: list[str]
    seconds: float


@dataclass(frozen=True)
class Failed:
    """A training that no other worker could do.

    Attributes:
        why: in words.
        seconds: until then.
    """

    why: str
    seconds: float


@dataclass(frozen=True)
class Trainings:
    """Trains the model of a seed from its initial state, and tests it.

    Attributes:
        config: settings of the training, under the seed.
        spec: the model.
        expected: the model that it must be.
        test: the test rows, as tokens.
        asked: the test rows whose answers are generated.
    """

    config: CompareConfig
    spec: ModelSpec
    expected: Expected | None
    test: Encoded
    asked: Sequence[Asked]

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Training], Trained | Failed]]:
        """As of `tov.engine.base.Task.open`. What is not of the input or the settings is raised: another worker may do it."""
        models.open(self.spec, self.expected)  # a worker that cannot is no trial's fault

        def compute(training: Training) -> Trained | Failed:
            begun = time.monotonic()
            try:
                return trained(self, models, training.rows)
            except TovError as error:
                stop_if_interrupted(error)
                return Failed(in_words(error), time.monotonic() - begun)

        yield compute


def in_words(error: Exception) -> str:
    """An error as the record of a trial has it."""
    return f"{type(error).__name__}: {error}"


def trained(task: Trainings, models: Models, rows: Encoded | None) -> Trained:
    """Trains on rows from the initial state, and tests. Raises NumericError: the training diverged."""
    begun, config = time.monotonic(), task.config
    opened, log = models.open(task.spec, task.expected), None
    if rows is not None:
        log = train(opened.adapted, rows, config, seed=derive(config.seed, "final training")).facts()
    batch_tokens = config.batch_tokens or auto_batch_tokens(opened.loaded.device)
    result = evaluate(opened.adapted, task.test, batch_tokens=batch_tokens)
    replies = answers(opened.adapted, opened.encode, task.asked) if task.asked else []
    return Trained(log, result, replies, time.monotonic() - begun)
