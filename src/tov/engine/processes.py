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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import IO, Any, TypeVar

import torch

from tov.engine.base import ShardTask
from tov.engine.bench import Bench, Sent, described
from tov.engine.crew import News, walk
from tov.engine.models import Models
from tov.errors import ConfigError
from tov.progress import Progress
from tov.scores.shard import Shard

T = TypeVar("T")
PATIENCE = 120.0
"""Seconds in which a new process must have called."""
SAID = 2000
"""Characters of what a worker printed that are looked at when it dies."""


@dataclass(frozen=True)
class ProcessEngine:
    """Computes shards in several processes.

    Attributes:
        devices: one a process: the number of a GPU, or cpu.
        models: of the driver; they are let go while workers have theirs.
    """

    devices: Sequence[str]
    models: Models = field(default_factory=Models)

    def map(
        self, task: ShardTask[T], shards: Iterable[Shard], done: Callable[[Shard, T], None], progress: Progress,
        given_up: Callable[[Shard, str], None] | None = None,
    ) -> None:  # fmt: skip
        """As of `tov.engine.base.Engine.map`."""
        sent = described(task, self.models, torch.get_num_threads())
        self.models.close()
        with tempfile.TemporaryDirectory(prefix="tov-workers-") as folder:
            walk(_Processes(self.devices, sent, Path(folder)), shards, done, given_up)


@dataclass
class _Process:
    popen: subprocess.Popen[bytes]
    device: str
    printed: IO[bytes]
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
        with Listener(None, authkey=self.key) as listener:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            environment["CUDA_VISIBLE_DEVICES"] = _visible(device)
            popen = subprocess.Popen(
                [sys.executable, "-m", "tov.engine.processes"], stdin=subprocess.PIPE, stdout=printed, stderr=printed,
                env=environment, start_new_session=True,  # Ctrl-C is for the driver, which ends its workers
            )  # fmt: skip
            self.processes[number] = _Process(popen, device, printed)
            assert popen.stdin
            with suppress(BrokenPipeError), popen.stdin as told:
                told.write(f"{listener.address}\n{self.key.hex()}\n".encode())
            self.processes[number].connection = self._called(listener, popen)
        return number

    def _called(self, listener: Listener, popen: subprocess.Popen[bytes]) -> Connection | None:
        """The connection of a process that has just been started; None if it ends before it calls."""
        calls: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()

        def accept() -> None:
            try:
                calls.put(listener.accept())
            except (OSError, EOFError):
                calls.put(None)

        threading.Thread(target=accept, daemon=True).start()
        waited = 0.0
        while waited < PATIENCE:
            try:
                connection = calls.get(timeout=0.2)
            except queue.Empty:
                waited += 0.2
                if popen.poll() is not None:
                    return None
            else:
                if connection:
                    with suppress(OSError):  # it may be dead by now, and is found so by `news`
                        connection.send(self.sent)
                return connection
        return None

    def send(self, worker: int, shard: Shard) -> None:
        connection = self.processes[worker].connection
        assert connection
        with suppress(OSError):  # it may have died just now
            connection.send(shard)

    def news(self, seconds: float) -> list[News]:
        by_connection: dict[Any, int] = {
            one.connection: number for number, one in self.processes.items() if one.connection
        }
        heard = [News(number, lost=self._why(one)) for number, one in self.processes.items() if not one.connection]
        ready: list[Any] = wait(list(by_connection), 0.0 if heard else seconds)
        for connection in ready:
            number = by_connection[connection]
            try:
                start, outcome = connection.recv()
            except (EOFError, OSError):
                heard.append(News(number, lost=self._why(self.processes[number])))
            else:
                heard.append(News(number, start, outcome))
        return heard

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
        if process.connection:
            process.connection.close()
        process.printed.close()


def serve() -> None:
    """A worker: takes its task, then shards, until the driver is gone."""
    address, key = sys.stdin.readline().strip(), bytes.fromhex(sys.stdin.readline().strip())
    connection = Client(address, authkey=key)
    bench, inbox = Bench(connection.recv()), queue.SimpleQueue[Any]()

    def receive() -> None:
        """Beside the computing, so that neither side waits for the other with a full pipe."""
        try:
            while True:
                inbox.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the driver is gone, and with it whoever wants the shard in work

    threading.Thread(target=receive, daemon=True).start()
    connection.send((None, None))
    while True:
        shard = inbox.get()
        connection.send((shard.start, bench.compute(shard)))


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
