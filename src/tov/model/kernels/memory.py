"""How the process asks the system for memory. Speaks bytes.

A forward pass on a CPU makes and drops arrays of ten megabytes by the thousand. By default glibc gets each from the kernel and
hands it back, so that every page is zeroed and mapped anew each time, which slows large batches (docs/speed.md).
"""

from __future__ import annotations

import ctypes
import functools
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK = 32 << 20
"""Blocks up to this size come from the heap (glibc allows no more)."""
KEPT = 1 << 30
"""Free memory at the top of the heap that stays with the process."""


@functools.cache
def keep_freed_memory() -> None:
    """Lets the process keep up to `KEPT` bytes of freed memory for its next arrays. Does nothing where glibc is not."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, LARGEST_BLOCK)
    mallopt(_M_TRIM_THRESHOLD, KEPT)
