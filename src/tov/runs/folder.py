"""A run folder, open: who may work in it, what it takes note of, what may be removed.

`manifest.json` has an `identity` (settings and fingerprints on which its files depend). A command may go on with a folder
of the same identity, and is refused one of another, with the differences shown. Status, lock and removal are decided here
and nowhere else.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import yaml

from tov.errors import RunError, TovError
from tov.files import append_json_line, digest, sweep_temporaries, write_text
from tov.runs.environment import hardware, now, versions
from tov.runs.manifest import FILE, Manifest, read_manifest

LOCK = ".lock"
BARE = {FILE, "config.yaml", "events.jsonl", LOCK}
"""Files of a run that has made nothing yet."""


@dataclass
class Run:
    """An open run folder.

    Attributes:
        folder: where it is.
        manifest: what `manifest.json` says.
    """

    folder: Path
    manifest: Manifest

    @property
    def finished(self) -> bool:
        """Whether all its files are there."""
        return self.manifest.status == "finished"

    @property
    def scores(self) -> Path:
        """The folder of score shards: its own, or that of the run whose scores it has chosen from."""
        return Path(self.manifest.origin.scores or self.folder / "scores")

    @property
    def artifacts(self) -> dict[str, Path]:
        """Name -> folder of what was prepared before scoring, by this run or by the one whose scores it has chosen from."""
        return {name: self.scores.parent / place for name, place in self.manifest.artifacts.items()}

    @property
    def reads(self) -> list[Path]:
        """The folders that a command reads when it goes out from this run."""
        origin = self.manifest.origin
        return [self.folder, *self.artifacts.values(), *(Path(place) for place in (origin.run, origin.scores) if place)]

    def note(self, **facts: Any) -> None:
        """Puts facts into the manifest and writes it."""
        for name, value in facts.items():
            setattr(self.manifest, name, value)
        self.manifest.write(self.folder)

    def note_line(self, text: str) -> None:
        """A line of the report; once, and not if it is empty."""
        if text and text not in self.manifest.notes:
            self.note(notes=[*self.manifest.notes, text])

    def spend(self, stage: str, forward: int, backward: int = 0) -> None:
        """Adds to the tokens that went through the model in a stage, at once, so that a kill forgets none."""
        before = self.manifest.spent.get(stage, (0, 0))
        self.note(spent={**self.manifest.spent, stage: (before[0] + forward, before[1] + backward)})

    def event(self, name: str, **facts: Any) -> None:
        """Appends to `events.jsonl`."""
        append_json_line(self.folder / "events.jsonl", {"time": now(), "event": name, **facts})

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
        seconds, timings = round(time.monotonic() - start, 3), self.manifest.timings
        self.note(timings={**timings, name: round(timings.get(name, 0.0) + seconds, 3)})
        return seconds

    def finish(self) -> None:
        """Marks the run as complete."""
        self.note(status="finished", finished=now())
        self.event("finished")


def run_folder(out: str, identity: Mapping[str, Any]) -> Path:
    """Where a run lies: as asked for, or under `auto` a folder named by what it is made from."""
    return Path("tov-runs") / digest(identity) if out == "auto" else Path(out)


@contextmanager
def work_on(
    folder: Path, *, command: str, identity: Mapping[str, Any], settings: Mapping[str, Any], force: bool = False,
    reads: Sequence[Path] = (),
) -> Iterator[Run]:  # fmt: skip
    """A new run, or the one in `folder` if it has the same identity, for as long as the block; no other process works there.

    A finished run is handed out as it is. A run that failed before it made anything (a wrong option, say) gives way, so that
    the corrected command may be given. An error of ours leaves the run marked as failed.

    Args:
        folder: of the run.
        command: that makes it.
        identity: what its files depend on.
        settings: what `config.yaml` says.
        force: whether another run, or a finished one, is removed first.
        reads: what the command reads, which must not be removed.

    Raises:
        RunError: the folder holds another run (with the differences) or files that are no run, `force` would delete what is
            read, or another process is at work there.
    """
    identity = {"command": command, **identity}
    _check_ours(folder, force=force)
    if force:
        _check_apart(folder, reads)
    elif (folder / FILE).exists():
        run = Run(folder, read_manifest(folder))
        changed = differences(run.manifest.identity, identity)
        if run.finished and not changed:
            yield run
            return
        if changed and not _gives_way(run):
            raise _another_run(folder, changed)
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        run = _own(folder, identity=identity, command=command, settings=settings, force=force)
        sweep_temporaries(folder)
        try:
            yield run
        except TovError:
            # What went wrong matters more than that it could not be noted (on a full disk both fail).
            with suppress(OSError):
                run.note(**({} if run.finished else {"status": "failed"}))
            raise


def _own(folder: Path, *, identity: dict[str, Any], command: str, settings: Mapping[str, Any], force: bool) -> Run:
    """The run that the caller, who has the lock, goes on with, or begins."""
    if (folder / FILE).exists() and not force:
        run = Run(folder, read_manifest(folder))
        changed = differences(run.manifest.identity, identity)
        if not changed:
            if not run.finished:
                run.manifest.status = "running"
                run.event("resumed")
            return run
        if not _gives_way(run):
            raise _another_run(folder, changed)
    _clear(folder)
    run = Run(
        folder,
        Manifest(command=command, started=now(), identity=identity, versions=versions(), hardware=hardware()),
    )
    run.note()
    write_text(folder / "config.yaml", yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
    run.event("started", command=command)
    return run


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _gives_way(run: Run) -> bool:
    """Whether a run failed before it made anything."""
    return run.manifest.status == "failed" and _made_nothing(run.folder)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Locks a folder for the block, where system and disk know locks; a kill frees it.

    Raises:
        RunError: another process is at work there.
    """
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RunError(
            f"Another process is at work in {folder}.",
            fix="Wait for it, or choose another --out. What is finished of a comparison is shown by tov compare --report-only.",
        ) from None
    except NotImplementedError:  # a disk without locks
        pass
    try:
        yield
    finally:
        lock.release()


def watch_run(folder: Path, *, command: str, identity: Mapping[str, Any]) -> Run:
    """The run in `folder`, which another process may be working on: nothing is written or swept.

    Raises:
        RunError: the folder holds none, or another (with the differences).
    """
    run = _run_in(folder, fix=f"Name the --out of an earlier tov {command}.")
    changed = differences(run.manifest.identity, {"command": command, **identity})
    if changed:
        raise _another_run(folder, changed)
    return run


def finished_run(folder: Path, *, command: str) -> Run | None:
    """The finished run of a command in `folder`, if there is one."""
    if not (folder / FILE).exists():
        return None
    run = Run(folder, read_manifest(folder))
    return run if run.finished and run.manifest.command == command else None


def _run_in(folder: Path, *, fix: str) -> Run:
    if not (folder / FILE).exists():
        raise RunError(f"{folder} holds no run (no {FILE}).", fix=fix)
    return Run(folder, read_manifest(folder))


def _another_run(folder: Path, changed: Sequence[str]) -> RunError:
    return RunError(
        f"{folder} holds another run. It differs in:\n" + "\n".join(f"    {line}" for line in changed),
        fix="Choose another --out, or overwrite the run with --force. To choose anew from its scores, use select --from.",
    )


def open_run(folder: Path | str) -> Run:
    """A run that is there.

    Raises:
        RunError: the folder holds none.
    """
    run = _run_in(Path(folder), fix="Name the --out of an earlier select, score or fit.")
    if run.manifest.command == "compare":
        raise RunError(
            f"{folder} is a comparison, or a part of one.", fix="Name the --out of a tov select, score or fit."
        )
    return run


def _check_apart(folder: Path, reads: Sequence[Path]) -> None:
    place = folder.resolve()
    for path in reads:
        if folder.exists() and (place == path.resolve() or place in path.resolve().parents):
            raise RunError(
                f"--force would delete {path}, which this command reads: it is in --out {folder}.",
                fix="Choose another --out.",
            )


def _made_nothing(folder: Path) -> bool:
    return all(file.name in BARE and file.parent == folder for file in folder.rglob("*") if file.is_file())


def check_empty(folder: Path) -> None:
    """Raises RunError if a folder that holds no run is there and not empty."""
    if not (folder / FILE).exists():
        _check_ours(folder, force=False)


def _check_ours(folder: Path, *, force: bool) -> None:
    """A folder without a manifest may hold what a run killed in its first moments leaves, and nothing else."""
    if not folder.exists() or (folder / FILE).exists():
        return
    # The manifest is the first file of a run, so no more than a part of it can be there.
    ours = re.compile(rf"{re.escape(LOCK)}|\.{re.escape(FILE)}\.\d+\.tmp")
    strange = [entry for entry in folder.iterdir() if not ours.fullmatch(entry.name) or entry.is_dir()]
    if strange:
        hint = ", so --force does not delete it" if force else ""
        raise RunError(f"{folder} is not empty and holds no run{hint}.", fix="Choose another --out.")


def differences(was: Mapping[str, Any], is_now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`name: then -> now` for every leaf that differs."""
    lines = []
    for name in [*was, *(name for name in is_now if name not in was)]:
        old, new = was.get(name), is_now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {old} -> {new}")
    return lines
