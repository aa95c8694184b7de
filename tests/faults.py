"""The death of a run at a chosen moment, as an exception in this process; chaos.py has the real one."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest


class Killed(BaseException):
    """Stands for SIGKILL: nothing that handles errors may take it for one."""


@dataclass(frozen=True)
class Moment:
    """Before the `call`-th call of a function that has `naming` in one of its arguments, written out.

    Every file that a run finishes gets its name by `os.replace`.
    """

    function: str = "os.replace"
    naming: str = ""
    call: int = 1

    @contextmanager
    def struck(self, fault: Callable[[], None]) -> Iterator[None]:
        """Within the block `fault` is called at the moment."""
        place, _, name = self.function.rpartition(".")
        owner = pkgutil.resolve_name(place)  # a module or a class
        made, calls = getattr(owner, name), 0

        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += any(self.naming in str(one) for one in (*args, *options.values()))
            if calls == self.call:
                fault()
            return made(*args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, call)
            yield


@contextmanager
def killed(**moment: Any) -> Iterator[None]:
    """Within the block the run dies at the moment, by an exception; fails where the moment never came."""

    def die() -> None:
        raise Killed

    with pytest.raises(Killed), Moment(**moment).struck(die):
        yield
