"""What the command prints, and where it cannot: closed, full and narrow streams. Knows no verb."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from tov.errors import StorageError
from tov.sinks import terminal


def settle() -> None:
    """Every standard stream is open, and takes every character: one that its encoding lacks is written as an escape.

    A stream that was closed would be the number of the next file that is opened, and a library's warning would land there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: object, *, end: str = "\n") -> None:
    """Prints a result.

    Raises:
        StorageError: standard output takes nothing (a full disk); the run itself is done.
    """
    try:
        print(terminal(text), end=end)
        sys.stdout.flush()
    except OSError as error:
        _tell(error)


def complain(text: str) -> None:
    """Prints to standard error what can be printed there."""
    try:
        print(terminal(text), file=sys.stderr)
        sys.stderr.flush()
    except (OSError, ValueError):
        _silence(sys.stderr)


def close() -> None:
    """Nothing is left to be written at the interpreter's end, where an error could not be told. Errors as of `say`."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        _silence(sys.stderr)
    try:
        sys.stdout.flush()
    except ValueError:  # closed
        pass
    except OSError as error:
        _tell(error)


def not_printed(error: OSError) -> bool:
    """Whether it is click that could not print its help or its version; then that is said as of `say`."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None or place.tb_frame.f_code.co_name != "echo":
        return False
    _tell(error)
    return True


def _tell(error: OSError) -> None:
    _silence(sys.stdout)
    if not isinstance(error, BrokenPipeError):  # whose reader has read enough
        raise StorageError(
            f"The result could not be printed: {error.strerror} (standard output).",
            fix="Print it to another place: what the command has made is kept, and the same command prints it again.",
        ) from None


def _silence(stream: TextIO) -> None:
    """What is still to be written to a stream is dropped."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
