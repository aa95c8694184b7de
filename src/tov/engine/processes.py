"""The engine of several processes on one machine, one a device: `--devices 0,1,2,3`.

A worker is a fresh interpreter, not a fork: CUDA cannot be forked, and a script without a main guard need not be read again.
It ends by itself when the driver is gone.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import IO, Any, TypeVar

import torch

from tov.engine.base import Making, P, Piece, Task
from tov.engine.bench import Bench, Sent, described
from tov.engine.crew import ByCrew, News, walk
from tov.engine.models import Models
from tov.errors import ConfigError
from tov.progress import Progress

T = TypeVar("T")
PATIENCE = 120.0
"""Seconds in which a new process must have called."""
SAID = 2000
"""Characters of what a worker printed that are looked at when it dies."""


@dataclass(frozen=True)
class ProcessEngine(ByCrew):
    """Computes shards and jobs in several processes.

    Attributes:
        devices: one a process: the number of a GPU, or cpu.
        models: of the driver; they are let go while workers have theirs.
    """

    devices: Sequence[str]
    models: Models = field(default_factory=Models)

    def make(self, making: Making[T], folder: Path, progress: Progress) -> T:
        """As of `tov.engine.base.Engine.make`: here, on the device that the driver has."""
        return making.make(self.models, folder, progress)

    def _walk(
        self, task: Task[P, T], pieces: Iterable[P], done: Callable[[P, T], None], given_up: Callable[[P, str], None] | None,
        *, long: bool = False,
    ) -> None:  # fmt: skip
        sent = described(task, self.models, torch.get_num_threads())
        self.models.close()
        with tempfile.TemporaryDirectory(prefix="tov-workers-") as folder:
            walk(_Processes(self.devices, sent, Path(folder)), pieces, done, given_up, long=long)


@dataclass
class _Process:
    popen: subprocess.Popen[bytes]
    device: str
    printed: IO[bytes]
    listener: Listener
    calls: queue.SimpleQueue[Connection]
    begun: float
    connection: Connection | None = None


class _Processes:
    """As of `tov.engine.crew.Crew`."""

    def __init__(self, devices: Sequence[str], sent: Sent, folder: Path) -> None:
        self.size, self.free, self.sent, self.folder = len(devices), list(devices), sent, folder
        self.processes: dict[int, _Process] = {}
        self.hired = 0
        self.key = os.urandom(32)

    def hire(self) -> int:
        number, device = self.hired, self.free.pop(0)
        self.hired += 1
        printed = open(self.folder / f"{number}.txt", "w+b")  # noqa: SIM115 (until the worker ends)
        listener = Listener(None, authkey=self.key)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment["CUDA_VISIBLE_DEVICES"] = _visible(device)
        popen = subprocess.Popen(
            [sys.executable, "-m", "tov.engine.processes"], stdin=subprocess.PIPE, stdout=printed, stderr=printed,
            env=environment, start_new_session=True,  # Ctrl-C is for the driver, which ends its workers
        )  # fmt: skip
        assert popen.stdin
        with suppress(BrokenPipeError), popen.stdin as told:
            told.write(f"{listener.address}\n{self.key.hex()}\n".encode())
        calls: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        threading.Thread(target=_answer, args=(listener, calls), daemon=True).start()
        self.processes[number] = _Process(popen, device, printed, listener, calls, time.monotonic())
        return number

    def send(self, worker: int, piece: Piece) -> None:
        connection = self.processes[worker].connection
        assert connection
        with suppress(OSError):  # it may have died just now
            connection.send(piece)

    def news(self, seconds: float) -> list[News]:
        until = time.monotonic() + seconds
        while True:
            heard = [
                news for number, one in self.processes.items() if not one.connection for news in self._met(number, one)
            ]
            by_connection: dict[Any, int] = {
                one.connection: number for number, one in self.processes.items() if one.connection
            }
            left, unmet = max(0.0, until - time.monotonic()), len(by_connection) < len(self.processes)
            pause = 0.0 if heard else min(left, 0.1) if unmet else left
            ready: list[Any] = wait(list(by_connection), pause) if by_connection else []
            if not by_connection:
                time.sleep(pause)
            heard += [self._received(by_connection[one], one) for one in ready]
            if heard or not left:
                return heard

    def _met(self, number: int, process: _Process) -> Iterator[News]:
        """Takes the call of a process that has just been started; tells of one that ends before it calls."""
        with suppress(queue.Empty):
            process.connection = process.calls.get_nowait()
            with suppress(OSError):  # it may be dead by now, and is found so below
                process.connection.send(self.sent)
            return
        if process.popen.poll() is not None or time.monotonic() - process.begun > PATIENCE:
            yield News(number, lost=self._why(process))

    def _received(self, number: int, connection: Any) -> News:
        try:
            start, outcome = connection.recv()
        except (EOFError, OSError):
            return News(number, lost=self._why(self.processes[number]))
        return News(number, start, outcome)

    def _why(self, process: _Process) -> str:
        """How a process ended, with the last of what it printed."""
        with suppress(subprocess.TimeoutExpired):
            process.popen.wait(5)
        code = process.popen.returncode
        process.printed.flush()
        process.printed.seek(0, os.SEEK_END)
        process.printed.seek(max(0, process.printed.tell() - SAID))
        lines = process.printed.read().decode("utf-8", "replace").strip().splitlines()
        how = "it did not answer" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{process.device}: {how}" + (f", {lines[-1]}" if lines and code and code > 0 else "")

    def dismiss(self, worker: int) -> None:
        process = self.processes.pop(worker)
        self.free.append(process.device)
        process.popen.kill()
        process.popen.wait()
        process.listener.close()
        if process.connection:
            process.connection.close()
        process.printed.close()


def _answer(listener: Listener, calls: queue.SimpleQueue[Connection]) -> None:
    """Hands on the one call that a listener is for; ends without one when that is closed."""
    with suppress(OSError, EOFError):
        calls.put(listener.accept())


def serve() -> None:
    """A worker: takes its task, then pieces, until the driver is gone."""
    address, key = sys.stdin.readline().strip(), bytes.fromhex(sys.stdin.readline().strip())
    connection = Client(address, authkey=key)
    bench, inbox = Bench(connection.recv()), queue.SimpleQueue[Any]()

    def receive() -> None:
        """Beside the computing, so that neither side waits for the other with a full pipe."""
        try:
            while True:
                inbox.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the driver is gone, and with it whoever wants the piece in work

    threading.Thread(target=receive, daemon=True).start()
    connection.send((None, None))
    while True:
        piece = inbox.get()
        connection.send((piece.start, bench.compute(piece)))


def _visible(device: str) -> str:
    """What CUDA calls the GPU of this number among those that this process sees; nothing for cpu."""
    if device == "cpu":
        return ""
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return seen[int(device)] if seen else device


def check_devices(names: Sequence[str]) -> None:
    """Raises ConfigError if a GPU that is named is not here."""
    count = torch.cuda.device_count() if any(name != "cpu" for name in names) else 0
    gone = [name for name in names if name != "cpu" and int(name) >= count]
    if gone:
        raise ConfigError(
            f"--devices {','.join(names)}: this machine has no GPU {gone[0]}.",
            allowed="cpu" + (f", 0 to {count - 1}" if count else ""),
            fix="Name devices that are here.",
        )


if __name__ == "__main__":
    serve()
