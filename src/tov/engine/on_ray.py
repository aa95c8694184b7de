"""The engine of a Ray cluster: an actor a worker, started where Ray has room. The only file that imports Ray."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from tov.engine.base import Making, P, Piece, Task
from tov.engine.bench import Bench, Outcome, Sent, described
from tov.engine.crew import ByCrew, News, walk
from tov.engine.making import Elsewhere, Made, Only
from tov.engine.models import Models
from tov.errors import ConfigError, RunError
from tov.progress import Progress, tell

T = TypeVar("T")
PATIENCE = 30.0
"""Seconds without room for a worker after which that is said."""


@dataclass(frozen=True)
class RayEngine(ByCrew):
    """Computes shards and jobs by actors of a Ray cluster.

    Attributes:
        address: of the cluster; None: the one that this process belongs to, else one on this machine alone.
        least: workers that must have room.
        most: workers that may be; those for which there is no room wait for it.
        gpus: of each worker, or a part of one.
        models: of the driver; they are let go while workers have theirs.
    """

    address: str | None = None
    least: int = 1
    most: int = 1
    gpus: float = 0.0
    models: Models = field(default_factory=Models)

    def make(self, making: Making[T], folder: Path, progress: Progress) -> T:
        """As of `tov.engine.base.Engine.make`: by one actor, which need not have the folder."""
        made = list[Made[T]]()

        def failed(_: Only, why: str) -> None:
            raise RunError(
                f"What comes before scoring could not be made by workers: {why}.",
                fix="See that a worker has the memory and the files that it needs, then give the same command again.",
            )

        task: Task[Only, Made[T]] = Elsewhere(making)
        replace(self, least=1, most=1).run(task, [Only()], lambda _, one: made.append(one), failed)
        return made[0].write(folder)

    def _walk(
        self, task: Task[P, T], pieces: Iterable[P], done: Callable[[P, T], None], given_up: Callable[[P, str], None] | None,
        *, long: bool = False,
    ) -> None:  # fmt: skip
        ray = connected(self.address)
        if self.gpus and not torch.cuda.is_available():
            raise ConfigError(
                "--gpus-per-worker asks for GPUs, but this process, which opens the model and decides, has none.",
                fix="Start it where a GPU is, e.g. ray job submit --entrypoint-num-gpus 1, or leave --gpus-per-worker out.",
            )
        sent = described(task, self.models, torch.get_num_threads())
        self.models.close()
        self._check_room(ray)
        with redirect_stdout(sys.stderr):  # Ray tells there of workers that die; ours has results alone
            walk(_Actors(ray, ray.put(sent), self.most, self.gpus), pieces, done, given_up, long=long)

    def _check_room(self, ray: Any) -> None:
        """Whether the cluster as it is, or as it may grow, has room for the least number of workers."""
        there = ray.cluster_resources()
        room = int(there.get("GPU", 0) / self.gpus) if self.gpus else int(there.get("CPU", 0))
        if room < self.least:
            what = f"{self.gpus:g} GPUs" if self.gpus else "1 CPU"
            tell(
                f"the cluster has room for {room} workers of {what} now, {self.least} are asked for: those that have none "
                "wait until machines join"
            )


def connected(address: str | None) -> Any:
    """The package, connected to a cluster.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "--engine ray needs the package ray, which is not installed.", fix="Install it: pip install 'tov[ray]'"
        ) from None
    _check_answers(address)
    if not ray.is_initialized():
        quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        alone = {} if address else {"include_dashboard": False}
        try:
            ray.init(address=address, **quietly, **alone)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"There is no Ray cluster to be had{f' at {address}' if address else ''}: {str(error).splitlines()[0]}",
                fix="Start one (ray start --head), name it by --ray-address, or leave that out for one on this machine.",
            ) from None
    here = ray.get_runtime_context().gcs_address
    if address and ":" in address and not _same(address, here):
        raise ConfigError(
            f"This process is connected to the Ray cluster at {here}, not to that at {address}.",
            fix="Leave --ray-address out, or start anew.",
        )
    return ray


def _same(one: str, other: str) -> bool:
    """Whether two addresses are of one port of one machine, as far as names tell."""
    hosts, ports = zip(*(text.rpartition("/")[2].rpartition(":")[::2] for text in (one, other)), strict=True)
    return len({*ports}) == 1 and len({_resolved(host) for host in hosts}) == 1


def _resolved(host: str) -> str:
    with suppress(OSError):
        return socket.gethostbyname(host)
    return host


def _check_answers(address: str | None) -> None:
    """Whether anybody listens at HOST:PORT: Ray itself waits for minutes, and then ends the process."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.rpartition("/")[2].strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(
            f"There is no Ray cluster to be had at {address}: {error.strerror or error}.",
            fix="Start one (ray start --head), or correct --ray-address; it is HOST:PORT, or auto.",
        ) from None


class _Worker:
    """An actor's class: it says that it is ready, and computes pieces in order."""

    def __init__(self, sent: Sent, path: list[str]) -> None:
        sys.path[:] = [*sys.path, *(one for one in path if one not in sys.path)]
        self.bench = Bench(sent)

    def ready(self) -> None:
        """Returns when the actor has been started."""

    def compute(self, piece: Piece) -> Outcome:
        """A piece's outcome."""
        return self.bench.compute(piece)


class _Actors:
    """As of `tov.engine.crew.Crew`."""

    def __init__(self, ray: Any, sent: Any, size: int, gpus: float) -> None:
        self.ray, self.sent, self.size = ray, sent, size
        # One CPU is the driver's, which reads the pool.
        self.kind = ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Worker)
        self.actors: dict[int, Any] = {}
        self.asked: dict[Any, tuple[int, int | None]] = {}
        self.hired, self.since, self.told = 0, time.monotonic(), False

    def hire(self) -> int:
        number, self.hired = self.hired, self.hired + 1
        self.actors[number] = self.kind.remote(self.sent, sys.path)
        self.asked[self.actors[number].ready.remote()] = number, None
        return number

    def send(self, worker: int, piece: Piece) -> None:
        self.asked[self.actors[worker].compute.remote(piece)] = worker, piece.start

    def news(self, seconds: float) -> list[News]:
        finished, _ = self.ray.wait(list(self.asked), num_returns=1, timeout=seconds)
        if seconds and not finished and not self.told and self._nobody_yet():
            self.told = True
            tell("the cluster has no room for a worker yet: waiting")
        heard = []
        for reference in finished:
            worker, start = self.asked.pop(reference)
            try:
                outcome = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                heard.append(News(worker, lost=type(error).__name__))
            else:
                heard.append(News(worker, start, outcome))
        return heard

    def _nobody_yet(self) -> bool:
        waiting = all(start is None for _, start in self.asked.values())
        return waiting and time.monotonic() - self.since > PATIENCE

    def dismiss(self, worker: int) -> None:
        self.asked = {reference: what for reference, what in self.asked.items() if what[0] != worker}
        self.ray.kill(self.actors.pop(worker), no_restart=True)
