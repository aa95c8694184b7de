"""What no row may hold, whatever file it came in, nor JSON text in its cells: too many levels, and half a character.

Imports no library that reads files, so that tasks may ask too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_NESTED = 100
"""Levels of lists and mappings in a row: libraries that write nested values recurse, and end the process where they cannot."""


def nested_too_deeply(value: Any) -> bool:
    """Whether a value has more than `MOST_NESTED` levels."""
    level, depth = [value] if isinstance(value, (Mapping, list, tuple)) else [], 0
    while level:
        depth += 1
        if depth > MOST_NESTED:
            return True
        inner = [one.values() if isinstance(one, Mapping) else one for one in level]
        level = [one for values in inner for one in values if isinstance(one, (Mapping, list, tuple))]
    return False


def half_character(value: Any) -> int | None:
    """The first lone surrogate in a value's texts, which JSON and Python can spell and no text file can hold; None without."""
    try:
        _check_texts(value)
    except UnicodeEncodeError as error:
        return ord(error.object[error.start])
    return None


def _check_texts(value: Any) -> None:
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, Mapping):
        for name, one in value.items():
            _check_texts(name)
            _check_texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            _check_texts(one)
