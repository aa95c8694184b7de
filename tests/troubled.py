"""Tasks for workers to which something happens. Apart from the tests, since a worker imports the module of its task, and
those of the tests take it longer than its work."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tov.errors import DataError

if TYPE_CHECKING:
    from tov.comparison.trainings import Training
    from tov.engine.models import Models
    from tov.scores.shard import Shard


@dataclass(frozen=True)
class Troubled:
    """Squares the number of a shard; on some of them something happens, so many times.

    Attributes:
        folder: where it is noted how often it has happened.
        on: shard -> what happens there, and how often.
    """

    folder: Path
    on: dict[int, tuple[str, int]] = field(default_factory=dict)

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], int]]:
        def compute(shard: Shard) -> int:
            what, times = self.on.get(shard.start, ("", 0))
            happened = len(list(self.folder.glob(f"{shard.start}-*"))) if times else 0
            if happened < times:
                (self.folder / f"{shard.start}-{happened}").touch()
                _happen(what)
            return shard.start**2

        yield compute


def _happen(what: str) -> None:
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "fails":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    elif what == "is the user's":
        raise DataError("pool.jsonl, row 3: no answer.", allowed="rows with one", fix="Correct the row.")
    elif what == "dawdles":
        time.sleep(600)


@dataclass(frozen=True)
class Stillborn:
    """Ends its process when it is opened."""

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], int]]:
        os._exit(3)
        yield lambda shard: 0


@dataclass(frozen=True)
class Meeting:
    """Each of two jobs ends when the other one has begun.

    Attributes:
        folder: where that is noted.
    """

    folder: Path

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Training], str]]:
        def compute(job: Training) -> str:
            (self.folder / str(job.start)).touch()
            until = time.monotonic() + 400
            while not (self.folder / str(1 - job.start)).exists():
                assert time.monotonic() < until, "the other job waits for this one to end"
                time.sleep(0.05)
            return "met"

        yield compute


@dataclass(frozen=True)
class Opens:
    """Opens a model.

    Attributes:
        spec: of it.
    """

    spec: Any

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], int]]:
        models.open(self.spec)
        yield lambda shard: shard.start
