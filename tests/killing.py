"""Processes of a run found by what they were started with, and killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

MARK = "TOV_TEST_CLUSTER"
"""The variable whose value tells processes of one test from those of another."""
AT_WORK = "ray::_Worker.compute"
"""The title of an actor of Ray that computes a shard."""


def processes(words: str, mark: str) -> Iterator[int]:
    """Those with these words in their command line or title, and the mark in the environment."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                if words.encode() not in (folder / "cmdline").read_bytes().replace(b"\0", b" "):
                    continue
                if mark.encode() in (folder / "environ").read_bytes():
                    yield int(folder.name)


def gone(words: str, mark: str, seconds: float = 60.0) -> bool:
    """Whether no such process is left; waits so long for it."""
    until = time.monotonic() + seconds
    while list(processes(words, mark)):
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


class Killer:
    """Kills workers of a run at random moments: of their opening, or after some more shards.

    Attributes:
        chance: draws the moments.
        shards: the folder where shards of scores appear.
        words: in the command line or title of a worker.
        mark: in its environment.
        most: kills.
        tell: is told of each, with the number of shards that were there.
        killed: so far.
    """

    def __init__(
        self, chance: random.Random, shards: Path, words: str, mark: str, most: int, tell: Callable[[int], None] = id
    ) -> None:
        self.chance, self.shards, self.words, self.mark, self.most, self.tell = chance, shards, words, mark, most, tell
        self.killed, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> Killer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _there(self) -> int:
        return len(list(self.shards.glob("rows-*")))

    def _run(self) -> None:
        until = 0
        while self.killed < self.most and not self.over.wait(self.chance.uniform(0, 0.1)):
            if self._there() < until:
                continue
            found = list(processes(self.words, self.mark))
            if not found:
                continue
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(found), signal.SIGKILL)
                self.killed += 1
                self.tell(self._there())
            until = self._there() + self.chance.randrange(8)
