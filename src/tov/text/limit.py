"""A call that may take so long and no longer, in any thread: a chat template is a program, and may never end.

A thread that watches raises an exception in the one that is overdue. Alarm signals would do so in the main thread alone, and
the thread that renders cannot be ended from outside. One long step of a library is not cut short, only what Python runs.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

R = TypeVar("R")
_LOOK_EVERY = 0.25
"""Seconds."""
_lock = threading.Lock()
_deadlines: dict[int, float] = {}
"""Thread -> when its call is overdue."""
_watching = False


class TooLong(BaseException):
    """The call has not ended in time. No `Exception`, so that nothing on its way takes it for one of its own."""


def limited(call: Callable[[], R], seconds: float) -> R:
    """What the call returns.

    Raises:
        TooLong: it takes more than so many seconds.
    """
    _start_watching()
    thread = threading.get_ident()
    _deadlines[thread] = time.monotonic() + seconds
    try:
        return call()
    finally:
        with _lock:
            overdue = _deadlines.pop(thread, None) is None
        if overdue:  # an exception that has not come yet must not come later
            _raise_in(thread, None)


def _start_watching() -> None:
    global _watching
    if not _watching:
        _watching = True
        threading.Thread(target=_watch, name="tov-limit", daemon=True).start()


def _begin_anew() -> None:
    """In a fork, which has no watching thread, and may have got the lock while it was held."""
    global _lock, _watching
    _lock, _watching = threading.Lock(), False
    _deadlines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _watch() -> None:
    while True:
        time.sleep(_LOOK_EVERY)
        with _lock:
            now = time.monotonic()
            for thread in [thread for thread, deadline in list(_deadlines.items()) if deadline < now]:
                del _deadlines[thread]
                _raise_in(thread, TooLong)


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind) if kind else None)
