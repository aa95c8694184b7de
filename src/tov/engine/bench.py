"""What a worker is, wherever it runs: it gets a task once, opens it, and computes the pieces that it is sent.

Everything that goes to a worker or comes back is one of the records here, and picklable.
"""

from __future__ import annotations

import pickle
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from tov import errors
from tov.engine.base import Piece
from tov.engine.models import Models, ModelSpec
from tov.errors import RunError, TovError
from tov.runs.environment import versions

ALIKE = ("tov", "torch", "transformers", "peft", "numpy")
"""Packages whose versions decide about the last bits of a score."""


@dataclass(frozen=True)
class Sent:
    """What a worker is told at its start.

    Attributes:
        task: pickled.
        threads: of torch on a CPU; the number of them decides about the last bits of a sum.
        versions: of `ALIKE`, at the driver.
        models: description -> fingerprint, of the models that the driver has opened.
    """

    task: bytes
    threads: int
    versions: dict[str, str]
    models: dict[ModelSpec, list[Any]]


@dataclass(frozen=True)
class Outcome:
    """What came of a piece; at most one of `error` and `failed` is set.

    Attributes:
        value: what was computed.
        error: of the input or the settings: no other worker would fare better.
        failed: what went wrong otherwise, in a few lines.
        seconds: that it took.
    """

    value: Any = None
    error: Refusal | None = None
    failed: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Refusal:
    """A TovError that can be sent: its class by name, and its texts."""

    kind: str
    problem: str
    allowed: str = ""
    fix: str = ""

    @staticmethod
    def of(error: TovError) -> Refusal:
        """Of an error that was raised."""
        kind = next(one.__name__ for one in type(error).__mro__ if TovError in one.__bases__ or one is TovError)
        return Refusal(kind, error.problem, error.allowed, error.fix)

    def raised(self) -> TovError:
        """The error again."""
        return getattr(errors, self.kind)(self.problem, allowed=self.allowed, fix=self.fix)


def described(task: Any, models: Models, threads: int) -> Sent:
    """What workers are told of a task. Raises TypeError or PicklingError if it cannot be sent."""
    here = versions()
    return Sent(pickle.dumps(task), threads, {name: here[name] for name in ALIKE}, dict(models.fingerprints))


@dataclass
class Bench:
    """A worker at work.

    Attributes:
        sent: its task.
        models: of its process.
    """

    sent: Sent
    models: Models = field(default_factory=Models)
    _compute: Callable[[Any], Any] | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def compute(self, piece: Piece) -> Outcome:
        """A piece's outcome; raises nothing."""
        begun = time.perf_counter()
        try:
            compute = self._opened()
            self._check_models()  # most tasks open theirs at once
            value = compute(piece)
            self._check_models()
        except TovError as error:
            return Outcome(error=Refusal.of(error))
        except Exception as error:
            return Outcome(failed="".join(traceback.format_exception_only(error)).strip())
        return Outcome(value, seconds=time.perf_counter() - begun)

    def _opened(self) -> Callable[[Any], Any]:
        if self._compute is None:
            self._check_versions()
            torch.set_num_threads(self.sent.threads)
            self._compute = self._stack.enter_context(pickle.loads(self.sent.task).open(self.models))
        return self._compute

    def _check_versions(self) -> None:
        here = versions()
        for name, version in self.sent.versions.items():
            if here[name] != version:
                raise RunError(
                    f"A worker has {name} {here[name]}, but the driver has {version}: their scores would not be comparable.",
                    fix="Install the same packages on every machine.",
                )

    def _check_models(self) -> None:
        """A model that the driver has opened must be the same here: weights, tokens, dtype, kind of device, length."""
        for spec, expected in self.sent.models.items():
            found = self.models.fingerprints.get(spec)
            if found and found != expected:
                names = ("weights", "tokenizer", "dtype", "device", "maximum length")
                parts = [
                    f"{name} {_short(one)} there, {_short(other)} here"
                    for name, one, other in zip(names, found, expected, strict=True)
                    if one != other
                ]
                raise RunError(
                    f"A worker opens another model {spec.name} than the driver: {'; '.join(parts)}.",
                    fix="Run the driver on a machine of the workers' kind, with the same files; or name --dtype and --device.",
                )


def _short(value: Any) -> str:
    return str(value)[:16]
