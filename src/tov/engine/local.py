"""The engine of one process: one piece after another, with the models that the caller already holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tov.engine.base import FAILURES, Making, P, ShardTask, Task
from tov.engine.models import Models
from tov.errors import TovError, stop_if_interrupted
from tov.progress import Progress, part
from tov.scores.shard import Shard

T = TypeVar("T")


@dataclass(frozen=True)
class LocalEngine:
    """Computes shards and jobs here, one after another.

    Attributes:
        models: shared with whoever prepares the tasks, so that no model is loaded twice.
    """

    models: Models = field(default_factory=Models)

    def map(
        self, task: ShardTask[T], shards: Iterable[Shard], done: Callable[[Shard, T], None], progress: Progress,
        given_up: Callable[[Shard, str], None] | None = None,
    ) -> None:  # fmt: skip
        """As of `tov.engine.base.Engine.map`; a shard that fails ends the walk."""
        compute: Callable[[Shard], T] | None = None
        with ExitStack() as opened:
            for shard in shards:
                compute = compute or opened.enter_context(task.open(self.models))
                with part(progress, shard.stop - shard.start):
                    result = compute(shard)
                done(shard, result)

    def run(
        self, task: Task[P, T], jobs: Iterable[P], done: Callable[[P, T], None], failed: Callable[[P, str], None]
    ) -> None:
        """As of `tov.engine.base.Engine.run`."""
        compute: Callable[[P], T] | None = None
        with ExitStack() as opened:
            for job in jobs:
                compute = compute or opened.enter_context(task.open(self.models))
                try:
                    result = compute(job)
                except TovError:  # is of the walk; what is of a job alone, its task gives back as a result
                    raise
                except FAILURES as error:
                    stop_if_interrupted(error)
                    failed(job, f"{type(error).__name__}: {error}")
                else:
                    done(job, result)

    def make(self, making: Making[T], folder: Path, progress: Progress) -> T:
        """As of `tov.engine.base.Engine.make`: here."""
        return making.make(self.models, folder, progress)
