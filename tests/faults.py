"""The death of a run at a chosen moment: as an exception in this process, or really, in a process of its own."""

from __future__ import annotations

import os
import pkgutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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


def kill_for_real(arguments: list[str], **moment: Any) -> None:
    """Runs `tov` with these arguments in a process that sends itself SIGKILL at the moment; fails where it never came."""
    script = f"from faults import really; really({asdict(Moment(**moment))!r})"
    path = os.pathsep.join(sys.path)
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, (
        f"it was not killed: the test tests nothing\n{ended.stdout}{ended.stderr}"
    )


def really(moment: dict[str, Any]) -> None:
    """What the other process does."""
    from tov.cli.main import main

    with Moment(**moment).struck(lambda: os.kill(os.getpid(), signal.SIGKILL)):
        main(sys.argv[1:])
