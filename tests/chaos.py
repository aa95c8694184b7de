"""Commands of tov that die at a chosen file operation: a server forks a process a command, which is killed for real.

The server (`python chaos.py`) imports torch and all else once and starts no thread, so that a command costs a fork and its
own work. It reads a JSON object a line and answers with one: see `Server.run`. A command's own process counts, by an audit
hook, the operations that change the disk below a folder, and at the one that is asked for

- `kill`: sends itself SIGKILL, just before the operation;
- `tear`: lets no file grow further than by a few bytes, so that the kernel kills it in the middle of a write (SIGXFSZ), which
  reaches writers in C++ and Rust as well;
- `fill`: from then on nothing can be created: the disk is full (ENOSPC).
"""

from __future__ import annotations

import atexit
import errno
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from faults import Moment

TORN = 10
"""Bytes of a file that are written before the kernel kills its writer."""
LONGEST = 120.0
"""Seconds after which a command is taken for hung."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CREATING = ("open", "os.mkdir", "os.link", "os.symlink")
CHANGING = (*CREATING, "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.move")

IMPORTED = (
    "torch", "pyarrow.parquet", "datasets", "peft", "matplotlib.figure", "transformers.models.llama.modeling_llama",
    "tov.cli.main", "tov.verbs.select", "tov.verbs.score", "tov.verbs.train", "tov.verbs.compare", "tov.reports.figures",
)  # fmt: skip
"""What takes long; what a first command imports beside it, the server then imports too."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code, or the negative number of the signal that killed it.
        said: what it printed.
        operations: that it began on the disk, in order; none where it was killed.
        at: the operation that the fault struck, "" if it was never reached.
        seconds: it took.
    """

    code: int
    said: str
    operations: list[str]
    at: str
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether the kernel ended it."""
        return self.code in (-signal.SIGKILL, -signal.SIGXFSZ)

    @property
    def explained(self) -> bool:
        """Whether it ended with a sentence, not with a traceback."""
        return "Traceback" not in self.said and (self.code == 0 or "error: " in self.said)


class Server:
    """Runs commands of tov, each in a process forked from one that has imported everything."""

    def __init__(self) -> None:
        settings = {
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1",
            "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "MPLBACKEND": "agg",
        }  # fmt: skip
        path = os.pathsep.join(one for one in sys.path if one)
        self._process = subprocess.Popen(
            [sys.executable, __file__], env={**os.environ, **settings, "PYTHONPATH": path}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(
        self, *argv: Any, below: Path, kind: str = "", at: int = 0, seconds: float = LONGEST, imports: bool = False,
        moment: Moment | None = None,
    ) -> Ended:  # fmt: skip
        """One command.

        Args:
            argv: of `tov`.
            below: the folder whose operations are counted.
            kind: of the fault; "" for none.
            at: the operation that it strikes, from 1.
            seconds: after which SIGKILL is sent from outside.
            imports: whether the server then imports what the command has imported.
            moment: at which it sends itself SIGKILL.
        """
        asked = {"argv": [str(one) for one in argv], "below": str(below), "kind": kind, "at": at, "seconds": seconds,
                 "imports": imports, "moment": asdict(moment) if moment else None}  # fmt: skip
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server has died"
        return Ended(**json.loads(answer))

    def close(self) -> None:
        """Ends the server."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


@cache
def server() -> Server:
    """One for all tests of this process."""
    made = Server()
    atexit.register(made.close)
    return made


def kill_for_real(arguments: Sequence[str], **moment: Any) -> None:
    """Runs `tov` in a process that sends itself SIGKILL at the moment (`faults.Moment`); fails where it never came."""
    ended = server().run(*arguments, below=Path("/nowhere"), moment=Moment(**moment))
    assert ended.code == -signal.SIGKILL, f"it was not killed: the test tests nothing\n{ended.said}"


# In the server


def serve() -> None:
    """Answers commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        modules = asked.pop("imports")
        answer, imported = _in_a_fork(**asked)
        for name in imported if modules else ():
            try:
                importlib.import_module(name)
            except Exception as error:  # one that cannot be imported by its name alone
                print(f"not imported before: {name}: {error}", file=sys.stderr)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _in_a_fork(
    argv: Sequence[str], below: str, kind: str, at: int, seconds: float, moment: dict[str, Any] | None
) -> tuple[dict[str, Any], Sequence[str]]:
    others = set(_threads()) - {"jemalloc_bg_thd"}  # pyarrow's allocator, which knows forks
    if others:
        raise RuntimeError(f"threads were started before the fork, and may hold locks for ever: {others}")
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as told:
        start = time.monotonic()
        child = os.fork()
        if not child:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            _command(argv, _Watch(below, kind, at, told.fileno()), moment)
        code, end = _wait(child, start + seconds), time.monotonic()
        said, facts = (_whole(file).splitlines(keepends=True) for file in (printed, told))
    whole = {name: value for fact in facts for name, value in json.loads(fact).items()}
    imported = whole.pop("modules", ())
    answer = {"code": code, "said": "".join(said), "operations": [], "at": "", **whole, "seconds": end - start}
    return answer, imported


def _threads() -> list[str]:
    """The names of the threads beside this one, where the system tells."""
    tasks = Path("/proc/self/task")
    numbers = [one.name for one in tasks.iterdir()] if tasks.is_dir() else []
    return [(tasks / one / "comm").read_text().strip() for one in numbers if int(one) != os.getpid()]


def _whole(file: Any) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _wait(child: int, until: float) -> int:
    """The exit code of a child, which is killed when the time is over."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.002)


def _command(argv: Sequence[str], watch: _Watch, moment: dict[str, Any] | None) -> None:
    """What the forked process does; it never returns."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = 70
    try:
        from tov.cli.main import main

        sys.addaudithook(watch)
        struck = Moment(**moment).struck(lambda: watch.die("")) if moment else nullcontext()
        try:
            with struck:
                main(list(argv))
        except SystemExit as ended:
            code = int(ended.code or 0)
        watch.tell(operations=watch.operations, modules=list(sys.modules))
    except BaseException:
        traceback.print_exc()
        watch.tell(operations=watch.operations)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Watch:
    """An audit hook: counts the operations that change the disk below a folder, and strikes at one."""

    def __init__(self, below: str, kind: str, at: int, told: int) -> None:
        self.below, self.kind, self.at, self.told = os.path.abspath(below), kind, at, told
        self.operations: list[str] = []
        self.full = False

    def tell(self, **facts: Any) -> None:
        """A line to the server, whatever limit there is on files."""
        limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        os.write(self.told, (json.dumps(facts) + "\n").encode())
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in CHANGING or (event == "open" and not _writes(*args[1:])):
            return
        path = _path(event, args)
        if path is None or not path.startswith(self.below):
            return
        self.operations.append(f"{event} {path.removeprefix(self.below)}")
        if len(self.operations) == self.at and self.kind:
            self.tell(at=self.operations[-1])
            _STRIKES[self.kind](self, path)
        if self.full and event in CREATING and not (event == "open" and os.path.exists(path)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def die(self, path: str) -> None:
        """Now."""
        os.kill(os.getpid(), signal.SIGKILL)

    def tear(self, path: str) -> None:
        """At the next write but for a few bytes."""
        size = os.path.getsize(path) if os.path.isfile(path) else 0
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + TORN, resource.RLIM_INFINITY))

    def fill(self, path: str) -> None:
        """From now on."""
        self.full = True


_STRIKES: dict[str, Callable[[_Watch, str], None]] = {"kill": _Watch.die, "tear": _Watch.tear, "fill": _Watch.fill}


def _writes(mode: str | None, flags: int) -> bool:
    return bool(set(mode or "") & set("wax+")) or bool(flags & WRITING)


def _path(event: str, args: tuple[Any, ...]) -> str | None:
    """The absolute path that an operation changes; None for one by a number of an open file."""
    path = args[1] if event == "os.rename" else args[0]
    folder = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.rename": 3}.get(event)
    if isinstance(path, int):
        return None
    path = os.fsdecode(path)
    if not os.path.isabs(path) and folder is not None and len(args) > folder and args[folder] not in (-1, None):
        path = os.path.join(os.readlink(f"/proc/self/fd/{args[folder]}"), path)
    return os.path.abspath(path)


if __name__ == "__main__":
    serve()
