"""The seam between what is computed on a shard and where: a task is described, sent, opened once a process, and given shards.

Knows nothing of methods or files. A second engine implements `Engine.map` and touches no method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from tov.engine.models import Models
from tov.progress import Progress
from tov.scores.shard import Shard

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class ShardTask(Protocol[T_co]):
    """Something to compute on every shard, described by settings, numbers and the folders of finished artifacts.

    It must be picklable and must say the same thing wherever it is opened, because shards may be computed by any
    process, in any order, and again after a kill.
    """

    def open(self, models: Models) -> AbstractContextManager[Callable[[Shard], T_co]]:
        """A block in which shards are computed: what the task needs (its model by `models`, states, features) is read once.

        Args:
            models: of this process.
        """


class Engine(Protocol):
    """Computes a task on shards."""

    def map(
        self, task: ShardTask[T], shards: Iterable[Shard], done: Callable[[Shard, T], None], progress: Progress,
        given_up: Callable[[Shard, str], None] | None = None,
    ) -> None:  # fmt: skip
        """Hands every shard's result to `done`, in the calling process, in any order.

        Args:
            task: what to compute.
            shards: read one by one as they are wanted.
            done: writes a result; what it has taken is never computed again.
            progress: hears how far a shard is while it is computed; `done` tells that it is finished.
            given_up: takes a shard that failed on several workers, and why. An engine of one process never calls it: there
                a failure ends the walk.

        Raises:
            TovError: as the task says; what is done stays done.
            RunError: workers fail, and `given_up` is not there to take what they failed on.
        """
