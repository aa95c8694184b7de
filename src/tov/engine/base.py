"""The seam between what is computed and where: a task is described, sent, opened once a process, and given pieces.

A piece is a shard of the pool, or a training. Knows nothing of methods or files. A second engine implements `Engine` and
touches no method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from tov.engine.models import Models
from tov.errors import TovError
from tov.progress import Progress
from tov.scores.shard import Shard

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
FAILURES = (TovError, RuntimeError, LookupError, ValueError, TypeError, MemoryError)
"""What may end one training and not those beside it: torch tells of memory and shapes by its own, and another's method as it
will."""


class Piece(Protocol):
    """Something that is computed by itself, on any worker."""

    @property
    def start(self) -> int:
        """What tells it from all others of its walk."""

    @property
    def stop(self) -> int:
        """What the next one may start at."""


P = TypeVar("P", bound=Piece)
P_contra = TypeVar("P_contra", bound=Piece, contravariant=True)


class Task(Protocol[P_contra, T_co]):
    """Something to compute on every piece, described by settings, numbers and the folders of finished artifacts.

    It must be picklable and must say the same thing wherever it is opened, because pieces may be computed by any
    process, in any order, and again after a kill.
    """

    def open(self, models: Models) -> AbstractContextManager[Callable[[P_contra], T_co]]:
        """A block in which pieces are computed: what the task needs (its model by `models`, states, features) is read once.

        Args:
            models: of this process.
        """


ShardTask: TypeAlias = Task[Shard, T]


class Making(Protocol[T_co]):
    """Files to be made with a model before any shard is computed: a path, a warm-up. Picklable."""

    def make(self, models: Models, folder: Path, progress: Progress) -> T_co:
        """Fills a folder, and returns what else is to be known. Names of files do not depend on where they are made.

        Args:
            models: opens the model.
            folder: empty, or with what an earlier call has left there.
            progress: told of rows.
        """


class Engine(Protocol):
    """Computes a task on shards, or on jobs that take minutes each."""

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

    def run(
        self, task: Task[P, T], jobs: Iterable[P], done: Callable[[P, T], None], failed: Callable[[P, str], None]
    ) -> None:
        """Hands every job's result to `done`, in the calling process, in any order. A job has a worker to itself.

        Args:
            task: what to compute.
            jobs: read one by one as workers are free.
            done: writes a result; what it has taken is never computed again.
            failed: takes a job that ended by another error than a TovError, and what it was. Of several workers: that failed
                on so many of them, or over which so many were lost, that there is no sense in trying it again.

        Raises:
            TovError: as the task says, a worker is not of the driver's kind, or workers end without a result; what is done
                stays done.
        """

    def make(self, making: Making[T], folder: Path, progress: Progress) -> T:
        """Makes files in a folder, here or on a worker.

        Args:
            making: of the files.
            folder: of this process.
            progress: told of rows, where they are made here.

        Raises:
            TovError: as the making says, or no worker could do it.
        """
