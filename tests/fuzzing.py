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
AT_ONCE = 500
"""Cases a child, which may keep some of the memory of each."""


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
        found += _some(read, cases[len(found) : len(found) + AT_ONCE], seconds)
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


_PIECES = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n", b"\t", b'"', b"'", b"\\", b"\\ud800", b"{", b"}", b"[",
    b"]", b"[" * 200, b'{"a":' * 200,
    b",", b":", b": ", b"- ", b"? ", b"&a ", b"*a", b"<<: ", b"!!set ", b"!!binary ", b"%", b"#",
    b"|", b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"0x" + b"f" * 50, b"2024-01-31", b"-DOCSTART-",
    b"\xe2\x80\xa8",
)  # fmt: skip


def some_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to four changes: bytes other, gone, twice, moved or put in; or an end cut off."""
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        stop = min(len(data), at + draw.choice([1, 1, 2, 8, 50]))
        match draw.randrange(7):
            case 0 | 1:
                data = one_byte(data, draw) if data else data
            case 2:
                data = data[:at] + data[stop:]
            case 3:
                data = data[:stop] + data[at:]
            case 4 | 5:
                data = data[:at] + draw.choice(_PIECES) + data[at:]
            case 6:
                data = data[:at] if draw.random() < 0.3 else data[stop:at] + data[at:stop] + data[stop:]
    return data


ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**63, -(2**70), 10**4000, 0.5, 1e308, float("nan"), float("inf"), "", " ", "x", "\0", "\ud800",
    "../../x", "~root", "x" * 5000, [], [None], [[]], {}, {"": None}, {"a": {"a": {}}}, "2024-01-31", b"x".decode(), "\u202e",
)  # fmt: skip


def deep(levels: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def another_value(value: Any, draw: random.Random) -> Any:
    """The value with one to three of its parts replaced by an odd one, gone, twice, under another key."""
    for _ in range(draw.randint(1, 3)):
        value = _changed(value, draw)
    return value


def _changed(value: Any, draw: random.Random) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        rest = {name: one for name, one in value.items() if name != key}
        match draw.randrange(5):
            case 0:
                return rest
            case 1:
                return {
                    **value,
                    draw.choice(["", "a.b", "tov_row_id", key + " ", key.upper(), "\0", "status"]): value[key],
                }
            case 2:
                return {draw.choice(["x", "", "text", "messages"]): value[key], **rest}
        return {**value, key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        match draw.randrange(4):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value, value[at]]
        return [*value[:at], _changed(value[at], draw), *value[at + 1 :]]
    return deep(draw.choice([3, 60, 150, 900])) if draw.random() < 0.1 else draw.choice(ODD)
