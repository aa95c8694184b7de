"""Several commands in one other process, whose environment is its own: importing torch takes longer than most of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; None for a traceback.
        out: what it printed.
        err: what it printed to standard error; of a traceback its text.
        there: whether the file was there after it that was to be watched.
    """

    code: int | None
    out: str
    err: str
    there: bool = False


def run_commands(commands: Sequence[Sequence[str | Path]], watch: Path | str = "", **environment: str) -> list[Ended]:
    """Runs `tov` with each of the argument lists, one after another, in a fresh process."""
    asked = json.dumps([str(watch), [[str(word) for word in words] for words in commands]])
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", "from commands import really; really()"], input=asked, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, **environment}, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return [Ended(**one) for one in json.loads(ended.stdout.splitlines()[-1])]


def really() -> None:
    """What the other process does."""
    watch, commands = json.load(sys.stdin)
    print(json.dumps([{**_one(words), "there": os.path.isfile(watch)} for words in commands]))


def _one(words: list[str]) -> dict[str, Any]:
    from tov.cli.main import main

    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException as error:
            err.write(f"Traceback: {type(error).__name__}: {error}")
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}
