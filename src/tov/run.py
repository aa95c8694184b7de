"""The run folder: what it was made from, how far it is, and whether a command may go on with it.

`manifest.json` has an `identity` (settings and fingerprints on which its files depend); a command may go on with a folder
of the same identity, and is refused one of another, with the differences shown.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tov.errors import RunError, TovError
from tov.files import append_json_line, digest, read_json, sweep_temporaries, write_json, write_text

FAILED = "failed"
"""Status of a run that an error ended; the same command goes on with it."""
BARE = {"manifest.json", "config.yaml", "events.jsonl"}
"""Files of a run that has made nothing yet."""
PACKAGES = ("tov", "torch", "transformers", "peft", "datasets", "pyarrow", "numpy")


@dataclass
class Run:
    """An open run folder.

    Attributes:
        folder: where it is.
        manifest: what `manifest.json` says.
    """

    folder: Path
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether all its files are there."""
        return self.manifest.get("status") == "finished"

    @property
    def scores(self) -> Path:
        """The folder of score shards."""
        return self.folder / "scores"

    @property
    def path(self) -> Path:
        """The folder of the stored path."""
        return self.folder / "path"

    def note(self, **facts: Any) -> None:
        """Puts facts into the manifest and writes it."""
        self.manifest.update(facts)
        write_json(self.folder / "manifest.json", self.manifest)

    def spend(self, stage: str, forward: int, backward: int = 0) -> None:
        """Adds to the tokens that went through the model in a stage, at once, so that a kill forgets none that were told."""
        spent = self.manifest.setdefault("spent", {})
        before = spent.get(stage, (0, 0))
        spent[stage] = [before[0] + forward, before[1] + backward]
        self.note()

    def event(self, name: str, **facts: Any) -> None:
        """Appends to `events.jsonl`."""
        append_json_line(self.folder / "events.jsonl", {"time": _now(), "event": name, **facts})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage; its seconds add up over interruptions in `timings`."""
        self.event(f"{name} started")
        start = time.monotonic()
        try:
            yield
        except BaseException:
            # What went wrong matters more than that its time could not be noted (on a full disk both fail).
            with suppress(OSError):
                self._add_time(name, start)
            raise
        self.event(f"{name} finished", seconds=self._add_time(name, start))

    def _add_time(self, name: str, start: float) -> float:
        seconds = round(time.monotonic() - start, 3)
        timings = self.manifest.setdefault("timings", {})
        timings[name] = round(timings.get(name, 0.0) + seconds, 3)
        self.note()
        return seconds

    def finish(self) -> None:
        """Marks the run as complete."""
        self.note(status="finished", finished=_now())
        self.event("finished")


def run_folder(out: str, identity: Mapping[str, Any]) -> Path:
    """Where a run lies: as asked for, or under `auto` a folder named by what it is made from."""
    return Path("tov-runs") / digest(identity) if out == "auto" else Path(out)


def start_run(
    folder: Path, *, command: str, identity: Mapping[str, Any], settings: Mapping[str, Any], force: bool = False,
    reads: Sequence[Path] = (),
) -> Run:  # fmt: skip
    """A new run, or the one in `folder` if it has the same identity; `reads` is what the command reads.

    A run that failed before it made anything (a wrong option, say) gives way, so that the corrected command may be given.

    Raises:
        RunError: the folder holds another run (with the differences) or files that are no run, or `force` would delete
            what is read.
    """
    identity = {"command": command, **identity}
    if force and folder.exists():
        _check_ours(folder)
        _check_apart(folder, reads)
        with _alone_in(folder):
            shutil.rmtree(folder)
    manifest_file = folder / "manifest.json"
    if manifest_file.exists():
        run = Run(folder, read_json(manifest_file))
        changed = differences(run.manifest.get("identity", {}), identity)
        if changed and run.manifest.get("status") == FAILED and _made_nothing(folder):
            shutil.rmtree(folder)
            return start_run(folder, command=command, identity=identity, settings=settings)
        if changed:
            raise _another_run(folder, changed)
        if not run.finished:
            run.event("resumed")
        return run
    check_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder)
    write_text(folder / "config.yaml", yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
    run.note(
        format=1,
        status="running",
        started=_now(),
        identity=identity,
        versions=versions(),
        hardware=hardware(),
        timings={},
    )
    run.event("started", command=command)
    return run


@contextmanager
def at_work(run: Run) -> Iterator[None]:
    """A block that writes to a run: no other process may meanwhile, and an error of ours leaves the run marked as failed.

    Raises:
        RunError: another process is at work there.
    """
    with _alone_in(run.folder):
        sweep_temporaries(run.folder)
        try:
            yield
        except TovError:
            # What went wrong matters more than that it could not be noted (on a full disk both fail).
            with suppress(OSError):
                run.note(**({} if run.finished else {"status": FAILED}))
            raise


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Locks a folder, where system and disk know locks; a kill frees it."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunError(
            f"another process is at work in {folder}",
            fix="wait for it, or choose another --out; tov compare --report-only shows what is finished",
        ) from None
    except OSError:  # a disk without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def watch_run(folder: Path, *, command: str, identity: Mapping[str, Any]) -> Run:
    """The run in `folder`, which another process may be working on: nothing is written or swept.

    Raises:
        RunError: the folder holds none, or another (with the differences).
    """
    run = _run_in(folder, fix=f"name the --out of an earlier tov {command}")
    changed = differences(run.manifest.get("identity", {}), {"command": command, **identity})
    if changed:
        raise _another_run(folder, changed)
    return run


def _run_in(folder: Path, *, fix: str) -> Run:
    if not (folder / "manifest.json").exists():
        raise RunError(f"{folder} holds no run (no manifest.json)", fix=fix)
    return Run(folder, read_json(folder / "manifest.json"))


def _another_run(folder: Path, changed: Sequence[str]) -> RunError:
    return RunError(
        f"{folder} holds another run; it differs in\n" + "\n".join(f"    {line}" for line in changed),
        fix="choose another --out; --force overwrites; to choose anew from its scores, use select --from",
    )


def open_run(folder: Path | str) -> Run:
    """A run that is there.

    Raises:
        RunError: the folder holds none.
    """
    run = _run_in(Path(folder), fix="name the --out of an earlier select, score or fit")
    if run.manifest.get("identity", {}).get("command") == "compare":
        raise RunError(f"{folder} is (a part of) a comparison", fix="name the --out of a tov select, score or fit")
    return run


def _check_apart(folder: Path, reads: Sequence[Path]) -> None:
    place = folder.resolve()
    for path in reads:
        if place == path.resolve() or place in path.resolve().parents:
            raise RunError(
                f"--force would delete {path}, which this command reads: it is in --out {folder}",
                fix="choose another --out",
            )


def _made_nothing(folder: Path) -> bool:
    return all(file.name in BARE and file.parent == folder for file in folder.rglob("*") if file.is_file())


def check_empty(folder: Path) -> None:
    """Raises RunError if a folder that holds no run is there and not empty."""
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no run", fix="choose another --out")


def _check_ours(folder: Path) -> None:
    if any(folder.iterdir()) and not (folder / "manifest.json").exists():
        raise RunError(
            f"{folder} is not empty and holds no run, so --force does not delete it", fix="choose another --out"
        )


def differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`name: then -> now` for every leaf that differs."""
    lines = []
    for name in [*was, *(name for name in now if name not in was)]:
        old, new = was.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {old} -> {new}")
    return lines


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    commit = _commit()
    if commit:
        found["commit"] = commit
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _commit() -> str | None:
    """What `git describe` says of the checkout that tov runs from, if it does."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    with suppress(OSError):
        said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
        return said.stdout.strip() or None
    return None


def hardware() -> dict[str, Any]:
    """What the numbers were made on."""
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
