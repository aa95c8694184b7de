"""What can go wrong, in words: six error classes and the one place where an exception becomes a sentence.

Knows nothing of models or data. Every error says what was got, what is allowed and what to do next.
"""

from __future__ import annotations

import difflib
import errno
import signal
import threading
from collections.abc import Iterable
from typing import Any

from tov.sinks import terminal
from tov.system import FAILED as FAILED
from tov.system import USER_ERROR as USER_ERROR
from tov.system import fault_of, in_words

NEAREST = 5
"""Words that are named of a long list."""
DONE, INTERRUPTED = 0, 130
"""Exit codes of every command."""


class TovError(Exception):
    """Base of all errors that tov raises on purpose.

    Args:
        problem: what was got, in one sentence.
        allowed: what would have been right, if there is such a list.
        fix: what to do next.
    """

    exit_code = USER_ERROR

    def __init__(self, problem: str, *, allowed: str = "", fix: str = "") -> None:
        self.problem, self.allowed, self.fix = problem, allowed, fix
        lines = [_indented(problem)]
        if allowed:
            lines.append(f"  allowed: {_indented(allowed)}")
        if fix:
            lines.append(f"  do: {_indented(fix)}")
        super().__init__(terminal("\n".join(lines)))


def _indented(text: str) -> str:
    """Its further lines further in, so that a name with a line break in it does not pass for a line of ours."""
    first, *rest = text.split("\n")
    return "\n".join([first, *(one if one.startswith("    ") else f"    {one}" for one in rest)])


class ConfigError(TovError, ValueError):
    """A setting is unknown, of the wrong kind, or contradicts another."""


class DataError(TovError, ValueError):
    """A pool or target cannot be read, or holds rows that cannot be used."""


class ModelError(TovError, ValueError):
    """A model or tokenizer cannot be loaded or cannot be scored."""


class RunError(TovError, FileExistsError):
    """A run folder holds something else than this command expects."""


class StorageError(TovError, OSError):
    """Writing failed (disk full, no permission); nothing that was finished is lost."""

    exit_code = FAILED


class NumericError(TovError, ArithmeticError):
    """Training or scoring left the range of numbers (NaN, infinity)."""

    exit_code = FAILED


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """The few known words that are most like a word, the nearest first; at least one, if any is known."""
    return difflib.get_close_matches(word, list(known), n=NEAREST, cutoff=0.0)


def kind_of(value: Any) -> str:
    """`a str`, `an int`, `null`: the type of a value (or a type), with its article."""
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    return {"int": "an int", "NoneType": "null"}.get(name, f"a {name}")


_interrupted = threading.Event()


def note_interrupts() -> None:
    """From now on Ctrl-C is remembered as well as raised.

    A library may turn the KeyboardInterrupt that rises in the middle of it into an error of its own (safetensors does);
    what follows an interrupt is then still known for one. A handler that somebody else has set is left alone.
    """
    _interrupted.clear()
    ours = (signal.default_int_handler, _interrupt)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) in ours:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(*_: Any) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


def interrupted(error: BaseException) -> bool:
    """Whether an exception is an interrupt, or what a library made of one (`note_interrupts`)."""
    return isinstance(error, KeyboardInterrupt) or _interrupted.is_set()


def stop_if_interrupted(error: BaseException) -> None:
    """Raises KeyboardInterrupt if an error is an interrupt: what it ended has not failed, and is to be run again."""
    if interrupted(error):
        raise KeyboardInterrupt from error


def explain(error: BaseException) -> tuple[str, int] | None:
    """The sentence and the exit code for an exception; None for a fault of ours, which keeps its traceback."""
    if interrupted(error):
        return "interrupted: what is finished is kept. Give the same command again to go on.", INTERRUPTED
    if isinstance(error, TovError):
        return f"error: {error}", error.exit_code
    if isinstance(error, UnicodeEncodeError):
        return _not_writable_text(error), USER_ERROR
    refused = fault_of(error)
    if refused is None:
        return None
    fault = in_words(refused)
    return terminal(f"error: {_indented(fault.problem)}\n  do: {_indented(fault.fix)}"), fault.code


def of_system(error: BaseException, what: str, kind: type[TovError] = StorageError) -> Exception | None:
    """What to raise in place of an error behind which the system is; None if it is not, or if a file is just not there.

    Args:
        error: of a library.
        what: could not be done, in words.
        kind: of error where the user's input is at fault; a full disk is a StorageError, and full memory a MemoryError.
    """
    refused = fault_of(error)
    if refused is None or isinstance(refused, MemoryError):
        return refused
    if refused.errno == errno.ENOENT:
        return None
    fault = in_words(refused)
    return (kind if fault.code == USER_ERROR else StorageError)(f"{what}: {fault.problem}", fix=fault.fix)


def _not_writable_text(error: UnicodeEncodeError) -> str:
    """A name, or a text, with half characters: bytes that are no UTF-8."""
    start = max(0, error.start - 40)
    shown = terminal(error.object[start : error.end + 40])
    return f"error: '{_indented(shown)}' is not UTF-8, so it cannot be written.\n  do: Rename the file, or correct the text."
