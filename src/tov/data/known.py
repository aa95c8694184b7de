"""What an earlier look at files has told of them, so that they are opened without being walked again.

Whoever has it must know that the files are the same still (`tov.inputs.kept`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tov.files import content_digest


@dataclass(frozen=True)
class Places:
    """Where the rows of a file of lines stand: all that walking it tells.

    Attributes:
        bounds: (rows + 1,) int64 first byte of each row's line in the unpacked file, and the end of the file.
        numbers: (rows,) int64 the number of each row's line, from 1; None where no line is blank.
        columns: every key that a row has, in order of appearance.
    """

    bounds: np.ndarray
    numbers: np.ndarray | None
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """What is known of files.

    Attributes:
        digests: absolute path -> SHA-256 of the file.
        places: absolute path -> places of its rows.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, Places] = field(default_factory=dict)


_KNOWN: ContextVar[Known] = ContextVar("known", default=Known())  # noqa: B039 (frozen)


@contextmanager
def knowing(known: Known) -> Iterator[None]:
    """For the block, files are opened by what is known of them."""
    token = _KNOWN.set(known)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def known_places(path: Path) -> Places | None:
    """The places of a file's rows, if they are known."""
    return _KNOWN.get().places.get(str(path.absolute()))


def known_digest(path: Path) -> str:
    """SHA-256 of a whole file, as hex; read if it is not known."""
    return _KNOWN.get().digests.get(str(path.absolute())) or content_digest(path)
