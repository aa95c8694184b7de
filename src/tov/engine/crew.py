"""Pieces handed to several workers: who gets which, and what happens when a worker is lost, slow, or fails.

A piece is a shard or a training. Knows nothing of processes or clusters: `Crew` is what it needs of them. Results come in any
order, and each piece is handed to `done` once. A lost worker costs the pieces that it held, which others get.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol, TypeVar

from tov.engine.base import P, Piece, ShardTask, Task
from tov.engine.bench import Outcome
from tov.errors import RunError
from tov.progress import Progress, tell
from tov.scores.shard import Shard

T = TypeVar("T")
HELD = 2
"""Shards that a worker holds: one in work, and one so that it need not wait."""
TRIES = 3
"""Workers that a piece may fail on before it is set aside."""
LOSSES = 6
"""Workers that may be lost while a piece is in work before it is set aside: machines go for reasons of their own."""
STILLBORN = 8
"""Workers in a row that may end without a result before the walk ends: something is wrong with all of them."""
SLOW, SLOW_SECONDS = 3.0, 5.0
"""How many times the usual time, and at least how long, a shard may take before an idle worker gets it too."""


@dataclass(frozen=True)
class News:
    """What has happened to a worker.

    Attributes:
        worker: its number.
        piece: start of the piece in question; None where it is the worker itself that is ready, or lost.
        outcome: of the piece.
        lost: why the worker is no more.
    """

    worker: int
    piece: int | None = None
    outcome: Outcome | None = None
    lost: str | None = None


class Crew(Protocol):
    """Workers of some kind."""

    size: int
    """How many there may be."""

    def hire(self) -> int:
        """Starts one more worker, and gives its number; it says that it is ready by `News`."""

    def send(self, worker: int, piece: Piece) -> None:
        """Gives a worker a piece; it computes them in the order in which it got them."""

    def news(self, seconds: float) -> list[News]:
        """What has happened; waits so long for something to happen."""

    def dismiss(self, worker: int) -> None:
        """Ends a worker at once; no more is heard of it."""


class ByCrew:
    """The verbs of an engine whose pieces a crew computes; how the crew is made is its `_walk`."""

    def map(
        self, task: ShardTask[T], shards: Iterable[Shard], done: Callable[[Shard, T], None], progress: Progress,
        given_up: Callable[[Shard, str], None] | None = None,
    ) -> None:  # fmt: skip
        """As of `tov.engine.base.Engine.map`."""
        self._walk(task, shards, done, given_up)

    def run(
        self, task: Task[P, T], jobs: Iterable[P], done: Callable[[P, T], None], failed: Callable[[P, str], None]
    ) -> None:
        """As of `tov.engine.base.Engine.run`."""
        self._walk(task, jobs, done, failed, long=True)

    def _walk(
        self, task: Task[P, T], pieces: Iterable[P], done: Callable[[P, T], None], given_up: Callable[[P, str], None] | None,
        *, long: bool = False,
    ) -> None:  # fmt: skip
        raise NotImplementedError


@dataclass
class _InWork:
    piece: Any
    workers: list[int]
    since: float


@dataclass
class _Walk:
    """One walk over the pieces of a task."""

    crew: Crew
    pieces: Iterator[Any]
    done: Callable[[Any, Any], None]
    given_up: Callable[[Any, str], None] | None
    long: bool
    held: dict[int, list[int]] = field(default_factory=dict)
    ready: set[int] = field(default_factory=set)
    work: dict[int, _InWork] = field(default_factory=dict)
    again: deque[Any] = field(default_factory=deque)
    failures: dict[int, list[str]] = field(default_factory=dict)
    losses: dict[int, int] = field(default_factory=dict)
    aside: list[tuple[Any, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    stillborn: int = 0
    over: bool = False

    def run(self) -> None:
        first = self._next()
        if first is None:
            return
        self.again.append(first)
        try:
            for _ in range(self.crew.size):
                self._hire()
            while self.again or self.work or not self.over:
                self._hand_out()
                for news in self.crew.news(0.0 if self._could_give() else 1.0):
                    self._hear(news)
                self._help_the_slow()
        finally:
            for worker in list(self.held):
                self.crew.dismiss(worker)
        self._tell_of_those_aside()

    def _hire(self) -> None:
        self.held[self.crew.hire()] = []

    def _next(self) -> Any:
        """A piece to be computed, None if there is none left; reading one may take long."""
        if self.again:
            return self.again.popleft()
        piece = None if self.over else next(self.pieces, None)
        self.over = self.over or piece is None
        return piece

    def _free(self) -> int | None:
        """The ready worker that holds least, if it may hold more."""
        worker = min(self.ready, key=lambda one: (len(self.held[one]), one), default=None)
        return worker if worker is not None and len(self.held[worker]) < (1 if self.long else HELD) else None

    def _could_give(self) -> bool:
        return self._free() is not None and bool(self.again or not self.over)

    def _hand_out(self) -> None:
        """One piece: between two of them what workers have to say is heard."""
        worker = self._free()
        piece = self._next() if worker is not None else None
        if worker is not None and piece is not None:
            self.work[piece.start] = _InWork(piece, [worker], time.monotonic())
            self.held[worker].append(piece.start)
            self.crew.send(worker, piece)

    def _hear(self, news: News) -> None:
        if news.worker not in self.held:
            return
        if news.lost is not None:
            self._lost(news.worker, news.lost)
        elif news.piece is None:
            self.ready.add(news.worker)
        elif news.outcome is not None:
            self._outcome(news.worker, news.piece, news.outcome)

    def _outcome(self, worker: int, start: int, outcome: Outcome) -> None:
        if start in self.held[worker]:
            self.held[worker].remove(start)
        begun = self.work.get(self.held[worker][0]) if self.held[worker] else None
        if begun is not None:  # else another worker was faster with that one too
            begun.since = time.monotonic()  # it has only now begun
        found = self.work.get(start)
        if found is None:  # another worker was faster
            return
        if outcome.error:
            raise outcome.error.raised()
        if outcome.failed:
            if not self.long:  # there are few, and `TRIES` is bound enough
                self._count_without_result(outcome.failed)
            found.workers.remove(worker)
            self.failures.setdefault(start, []).append(outcome.failed)
            # Whatever it was may have spoilt the process: a GPU is of no use after some errors.
            self._replace(worker)
            self._again_or_aside(start)
            return
        self.stillborn = 0
        self.times.append(outcome.seconds)
        del self.work[start]
        self.done(found.piece, outcome.value)

    def _count_without_result(self, why: str) -> None:
        self.stillborn += 1
        if self.stillborn >= STILLBORN + self.crew.size:
            raise RunError(
                f"{self.stillborn} workers ended one after another without a result; the last one: {why}.",
                fix="See that a worker has the memory and the files that it needs. What was computed before is kept.",
            )

    def _lost(self, worker: int, why: str) -> None:
        self._count_without_result(why)
        tell(f"a worker was lost ({why}); another takes over")
        if self.held[worker]:
            self.losses[self.held[worker][0]] = self.losses.get(self.held[worker][0], 0) + 1
        self._replace(worker)

    def _replace(self, worker: int) -> None:
        """Another one for a worker; what this one held is in nobody's hands."""
        held = self.held.pop(worker)
        self.ready.discard(worker)
        self.crew.dismiss(worker)
        for start in held:
            found = self.work.get(start)
            if found and worker in found.workers:
                found.workers.remove(worker)
                self._again_or_aside(start)
        self._hire()

    def _again_or_aside(self, start: int) -> None:
        found, failures = self.work[start], self.failures.get(start, [])
        if found.workers:
            return
        del self.work[start]
        if len(failures) >= TRIES:
            times = "a worker" if len(failures) == 1 else f"{len(failures)} workers"
            self.aside.append((found.piece, f"failed on {times}: {failures[-1]}"))
        elif self.losses.get(start, 0) >= LOSSES:
            self.aside.append((found.piece, f"{self.losses[start]} workers were lost over it"))
        else:
            self.again.appendleft(found.piece)

    def _help_the_slow(self) -> None:
        """Near the end a piece that takes far longer than others is given to an idle worker too; the first result counts."""
        idle = [worker for worker in self.ready if not self.held[worker]]
        if self.long or not idle or self.again or not self.over or not self.times:
            return
        limit = time.monotonic() - max(SLOW * median(self.times), SLOW_SECONDS)
        slow = [one for one in self.work.values() if len(one.workers) == 1 and one.since < limit]
        for found, worker in zip(sorted(slow, key=lambda one: one.since), idle, strict=False):
            found.workers.append(worker)
            self.held[worker].append(found.piece.start)
            self.crew.send(worker, found.piece)

    def _tell_of_those_aside(self) -> None:
        if not self.aside:
            return
        if self.given_up:
            for piece, why in sorted(self.aside, key=lambda one: one[0].start):
                self.given_up(piece, why)
            return
        shard, why = min(self.aside, key=lambda one: one[0].start)
        more = f" (and {len(self.aside) - 1} shards more)" if len(self.aside) > 1 else ""
        raise RunError(
            f"Pool rows {shard.start:,} to {shard.stop - 1:,}{more} could not be computed: {why}.",
            fix="All other rows are done and kept; the same command tries these again. --on-bad-row quarantine leaves them "
            "out and lists them.",
        )


def walk(
    crew: Crew, pieces: Iterable[P], done: Callable[[P, T], None], given_up: Callable[[P, str], None] | None, *,
    long: bool = False,
) -> None:  # fmt: skip
    """Computes all pieces by a crew.

    Args:
        crew: has the task already; its workers end with the walk.
        pieces: read one by one as workers have room for them.
        done: takes a result.
        given_up: takes a piece that no worker could compute, and why; without it such a piece is an error at the end.
        long: whether a piece takes minutes, so that a worker holds one alone; pieces may then differ in length, so that none
            is taken for slow.

    Raises:
        RunError: a piece failed on `TRIES` workers and nothing takes it, or workers end without a result.
        TovError: as the task says.
    """
    _Walk(crew, iter(pieces), done, given_up, long).run()
