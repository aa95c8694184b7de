"""Files that are made with a model, as one job of a worker.

The worker needs no disk in common with the driver: it makes them in a folder of its own, and they come back as bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from tov.engine.base import Making
from tov.engine.models import Models
from tov.files import atomic
from tov.progress import Silent

R = TypeVar("R")


@dataclass(frozen=True)
class Only:
    """The one job of its walk."""

    start: int = 0
    stop: int = 1


@dataclass(frozen=True)
class Made(Generic[R]):
    """What a worker made.

    Attributes:
        told: what the making returned.
        files: their paths under the folder, with `/`, and what is in them.
    """

    told: R
    files: dict[str, bytes]

    def write(self, folder: Path) -> R:
        """Writes the files under a folder, each completely or not at all."""
        for name, content in self.files.items():
            with atomic(folder / name) as temporary:
                temporary.write_bytes(content)
        return self.told


@dataclass(frozen=True)
class Elsewhere(Generic[R]):
    """Makes files on a worker.

    Attributes:
        making: of them.
    """

    making: Making[R]

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Only], Made[R]]]:
        """As of `tov.engine.base.Task.open`."""

        def compute(_: Only) -> Made[R]:
            with tempfile.TemporaryDirectory(prefix="tov-made-") as name:
                folder = Path(name)
                told = self.making.make(models, folder, Silent())
                files = (file for file in sorted(folder.rglob("*")) if file.is_file())
                return Made(told, {file.relative_to(folder).as_posix(): file.read_bytes() for file in files})

        yield compute
