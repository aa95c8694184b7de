"""The engine of one process: shards in order, with the models that the caller already holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from tov.engine.base import ShardTask
from tov.engine.models import Models
from tov.progress import Progress, part
from tov.scores.shard import Shard

T = TypeVar("T")


@dataclass(frozen=True)
class LocalEngine:
    """Computes shards here, one after another.

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
