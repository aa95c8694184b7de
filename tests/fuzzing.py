"""Spoiled files read in children that may die: what became of each, and how files are spoiled.

A child reads one case after another. When it dies, or says nothing for a while, its case is told so and another child goes on
with the next; a parent that has imported everything makes children cheap. POSIX only.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tov.errors import TovError

READ, REFUSED, RAISED, DIED, HUNG = "read", "refused", "raised", "died", "hung"
SECONDS, MEMORY = 30.0, 4 << 30
"""What a case may take: without a word, and beyond what the parent has."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        kind: `READ`, `REFUSED` (a TovError), `RAISED` (anything else), `DIED`, `HUNG`.
        what: what was read, in the reader's words; or the error.
    """

    kind: str
    what: str

    @property
    def good(self) -> bool:
        return self.kind in (READ, REFUSED)


def outcomes(read: Callable[[Any], str], cases: Sequence[Any], *, seconds: float = SECONDS) -> list[Outcome]:
    """What `read` makes of each case, in a child process."""
    found: list[Outcome] = []
    while len(found) < len(cases):
        found += _some(read, cases[len(found) :], seconds)
    return found


def _some(read: Callable[[Any], str], cases: Sequence[Any], seconds: float) -> list[Outcome]:
    """Outcomes up to the first case that ends its child."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.close(out)
            _be_child(read, cases, into)
        os._exit(0)
    os.close(into)
    found, text, hung = list[Outcome](), b"", False
    try:
        while True:
            if not select.select([out], [], [], seconds)[0]:
                os.kill(child, signal.SIGKILL)
                hung = True
                break
            block = os.read(out, 1 << 16)
            text += block
            if not block:
                break
            *lines, text = text.split(b"\n")
            for line in lines:
                kind, _, what = line.decode("utf-8", "replace").partition(" ")
                found.append(Outcome(kind, what))
    finally:
        os.close(out)
        _, status = os.waitpid(child, 0)
    if len(found) < len(cases):
        found.append(Outcome(HUNG, f"{seconds:g} s") if hung else Outcome(DIED, _how(status)))
    return found


def _how(status: int) -> str:
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def _be_child(read: Callable[[Any], str], cases: Sequence[Any], into: int) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for case in cases:
        try:
            kind, what = READ, read(case)
        except TovError as error:
            kind, what = REFUSED, str(error)
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind, what = RAISED, f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        os.write(into, f"{kind} {' '.join(what.split())[:500]}\n".encode("utf-8", "replace"))


# How bytes are spoiled


def one_byte(data: bytes, draw: random.Random) -> bytes:
    """One byte is another."""
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :]
