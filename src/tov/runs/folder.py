"""A run folder, open: who may work in it, what it takes note of, what may be removed.

`manifest.json` has an `identity` (settings and fingerprints on which its files depend). A command may go on with a folder
of the same identity, and is refused one of another, with the differences shown. Status, lock and removal are decided here
and nowhere else.

Under --force the new run is made beside the old one, in a folder below its own, and takes its place when it is finished: each
file by its name, the manifest last. A kill between loses nothing, because whoever opens the folder next goes on with that. Only
files that tov has made are removed: those that the manifest or, before it is finished, `.files` lists, and shards.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tov.errors import USER_ERROR, RunError, StorageError, TovError
from tov.files import append_json_line, checksum, digest, listing, sweep_temporaries, write_text
from tov.objects.mirror import local, named
from tov.objects.stores import at_home, is_url
from tov.runs.changed import another_run
from tov.runs.environment import hardware, now, versions
from tov.runs.found import say_found
from tov.runs.made import (
    BARE,
    CONFIG,
    INDEX,
    INDEXED,
    LIST,
    LOCK,
    NEW,
    alone_in,
    check_place,
    listed_in,
    made_by,
    made_nothing,
    make,
    remove,
    remove_new,
    settle,
    take_place,
    unmake,
    writer_of,
)
from tov.runs.manifest import FILE, Manifest, differences, read_manifest

Found = Literal["nothing", "unfinished", "finished"]


@dataclass
class Run:
    """An open run folder.

    Attributes:
        folder: where its files are.
        manifest: what `manifest.json` says.
        replaces: the folder whose place it takes when it is finished, if it is made beside an older run.
        found: what was in the folder of it: nothing, a part (which is gone on with), or the finished run.
    """

    folder: Path
    manifest: Manifest
    replaces: Path | None = None
    found: Found = "nothing"

    @property
    def place(self) -> Path:
        """The folder that its user named."""
        return self.replaces or self.folder

    @property
    def finished(self) -> bool:
        """Whether all its files are there."""
        return self.manifest.status == "finished"

    @property
    def scores(self) -> Path:
        """The folder of score shards: its own, or that of the run whose scores it has chosen from."""
        run, _, name = (self.manifest.origin.scores or "").rpartition("/")
        return local(run) / name if is_url(run) else Path(self.manifest.origin.scores or self.folder / "scores")

    @property
    def stamp(self) -> str | None:
        """The fingerprint that every shard of its scores has."""
        return self.manifest.scoring.fingerprint if self.manifest.scoring else None

    @property
    def artifacts(self) -> dict[str, Path]:
        """Name -> folder of what was prepared before scoring, by this run or by the one whose scores it has chosen from."""
        places = self.manifest.artifacts.items()
        return {name: local(place) if is_url(place) else self.scores.parent / place for name, place in places}

    @property
    def reads(self) -> list[Path]:
        """The folders that a command reads when it goes out from this run."""
        origin = self.manifest.origin
        others = (Path(place) for place in (origin.run, origin.scores) if place and not is_url(place))
        return [self.folder, *self.artifacts.values(), *others]

    def changed(self, identity: Mapping[str, Any]) -> list[str]:
        """What differs in another identity; runs of 0.1.0 name their model there, instead of telling its content."""
        was, settings = self.manifest.identity, self.manifest.identity.get("settings")
        if isinstance(settings, Mapping) and "model" in settings and "model" in identity:
            was = {**was, "settings": {name: value for name, value in settings.items() if name != "model"}}
            identity = {name: value for name, value in identity.items() if name != "model"}
        lines = differences(was, identity)
        return [f"{line} (content of its files)" if line.startswith("model: ") else line for line in lines]

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

    def list_files(self) -> None:
        """Puts the checksums of the files made so far, as they are now, into the manifest."""
        listed = {*self.manifest.files, *listed_in(self.folder)}
        kept = sorted(name for name in listed if (self.folder / name).is_file())
        self.note(files={name: checksum(self.folder / name) for name in kept})
        for name in (LIST, INDEXED, INDEX):
            (self.folder / name).unlink(missing_ok=True)

    def check_file(self, name: str) -> Path:
        """A file of the finished run, as it was made.

        Raises:
            RunError: it is not there, or another.
        """
        file, listed = self.folder / name, self.manifest.files.get(name)
        if not file.exists() or (listed and checksum(file) != listed):
            what = "not the file that was made" if file.exists() else "not there"
            raise RunError(f"{file} is {what}.", fix="Put it back from a copy, or make the run anew with --force.")
        return file

    def is_whole(self) -> bool:
        """Whether every file of the finished run is there; one that was deleted is made again."""
        scoring, wanted = self.manifest.scoring, [self.folder / name for name in self.manifest.files]
        if scoring and scoring.complete and self.manifest.origin.scores is None and "shard_rows" in scoring.settings:
            starts = range(0, scoring.rows, scoring.settings["shard_rows"])
            wanted += [self.scores / f"rows-{start:012d}.parquet" for start in starts]
        return all(file.exists() for file in wanted)

    def finish(self) -> None:
        """Marks the run as complete; one that was made beside another takes its place."""
        self.list_files()
        self.event("finished")
        self.note(status="finished", finished=now())
        if self.replaces:
            take_place(self.replaces)
            self.folder, self.replaces = self.replaces, None
            self.manifest = read_manifest(self.folder)


def run_folder(out: str, identity: Mapping[str, Any]) -> Path:
    """Where a run lies: as asked for, or under `auto` a folder named by what it is made from."""
    return Path("tov-runs") / digest(identity) if out == "auto" else local(out, whole=True)


@contextmanager
def work_on(
    folder: Path, *, command: str, identity: Mapping[str, Any], settings: Mapping[str, Any], force: bool = False,
    reads: Sequence[Path] = (), tells: bool = False, adds: bool = False,
) -> Iterator[Run]:  # fmt: skip
    """A new run, or the one in `folder` if it has the same identity, for as long as the block; no other process works there.

    A finished run is handed out as it is. A run of the same command that failed before it made anything gives way, so that the
    corrected one may be given. An error of ours leaves the run marked as failed; where it is the user's (a wrong option, say)
    and this call has begun the run and made nothing, it leaves no folder.

    Args:
        folder: of the run.
        command: that makes it.
        identity: what its files depend on.
        settings: what `config.yaml` says.
        force: whether another run, or a finished one, is replaced, once this one is finished.
        reads: what the command reads, which must not be removed.
        tells: whether a run that is found there is told of on standard error.
        adds: whether the block may add to a finished run, so that no other process may work there then either.

    Raises:
        RunError: the folder holds another run (with the differences) or files that are no run, `force` would delete what is
            read, or another process is at work there.
        StorageError: the disk is full.
    """
    identity, model = {"command": command, **identity}, str(settings.get("model") or "")
    check_place(folder, force=force)
    settle(folder)
    there = (folder / FILE).exists()
    if force and there:
        _check_apart(folder, reads)
    elif there:
        run = Run(folder, read_manifest(folder))
        changed = run.changed(identity)
        if run.finished and not changed and run.is_whole():
            if tells:
                say_found(folder, run.manifest)
            with alone_in(folder) if adds else nullcontext():
                yield Run(folder, read_manifest(folder), found="finished")
            return
        if changed and not _gives_way(run, command):
            raise another_run(folder, run.manifest, changed, command, reads, model)
    made = make(folder)
    with alone_in(folder):
        with listing(folder, lambda _: None):  # what every run has is listed nowhere, also of one inside another
            run = _own(folder, identity=identity, command=command, settings=settings, force=force)
        sweep_temporaries(run.folder)
        if tells and run.found == "unfinished":
            say_found(run.folder, run.manifest)
        try:
            with listing(run.folder, writer_of(run.folder)):
                yield run
        except TovError as error:
            if error.exit_code == USER_ERROR and not there and (folder / FILE).exists() and made_nothing(folder):
                unmake(folder, made)
                raise
            # What went wrong matters more than that it could not be noted (on a full disk both fail).
            with suppress(OSError, StorageError):
                run.note(**({} if run.finished else {"status": "failed"}))
            raise
        finally:
            if run.replaces and made_nothing(run.folder):
                remove_new(run.replaces)


def _own(folder: Path, *, identity: dict[str, Any], command: str, settings: Mapping[str, Any], force: bool) -> Run:
    """The run that the caller, who has the lock, goes on with, or begins."""
    replaces = folder if force and (folder / FILE).exists() else None
    place = folder / NEW if replaces else folder
    if (place / FILE).exists():
        run = Run(place, read_manifest(place), replaces)
        changed = run.changed(identity)
        if not changed:
            if not run.finished or not run.is_whole():
                if not (place / CONFIG).exists():  # a kill may have come before
                    _write_settings(place, settings)
                run.manifest.status, run.found = "running", "unfinished"
                run.event("resumed")
            return run
        if not replaces and not _gives_way(run, command):
            raise another_run(folder, run.manifest, changed, command)
    if replaces:
        remove_new(folder)
        place.mkdir()
    else:
        remove(folder, [name for name in BARE - {LOCK} if (folder / name).exists()])
    run = Run(
        place,
        Manifest(
            command=command, folder=os.path.abspath(place), started=now(), identity=identity, versions=versions(),
            hardware=hardware(),
        ),
        replaces,
    )  # fmt: skip
    run.note()
    _write_settings(place, settings)
    run.event("started", command=command)
    return run


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    write_text(folder / CONFIG, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))


def _gives_way(run: Run, command: str) -> bool:
    """Whether a run of the same command failed before it made anything."""
    return run.manifest.status == "failed" and run.manifest.command == command and made_nothing(run.folder)


def watch_run(folder: Path, *, command: str, identity: Mapping[str, Any]) -> Run:
    """The run in `folder`, which another process may be working on: nothing of it is written or swept.

    A replacement that a kill has interrupted is finished first (`settle`), as whenever a run is opened.

    Raises:
        RunError: the folder holds none, or another (with the differences).
    """
    settle(folder)
    run = _run_in(folder, fix=f"Name the --out of an earlier tov {command}.")
    changed = run.changed({"command": command, **identity})
    if changed:
        raise another_run(folder, run.manifest, changed, command)
    return run


def finished_run(folder: Path, *, command: str) -> Run | None:
    """The finished run of a command in `folder`, if there is one."""
    if not (folder / FILE).exists():
        return None
    settle(folder)
    run = Run(folder, read_manifest(folder), found="finished")
    return run if run.finished and run.manifest.command == command and run.is_whole() else None


def _run_in(folder: Path, *, fix: str) -> Run:
    if not (folder / FILE).exists():
        raise RunError(f"{named(folder)} holds no run (no {FILE}).", fix=fix)
    return Run(folder, read_manifest(folder))


def any_run(folder: Path | str, *, with_page: bool = False) -> Run:
    """Whatever run is there, also a comparison.

    Args:
        folder: of it.
        with_page: whether the error asks for a run that has one.

    Raises:
        RunError: the folder holds none.
    """
    place = local(folder) if is_url(folder) else at_home(folder)
    settle(place)
    what = "a selection, a comparison or a grid" if with_page else "an earlier select, score or fit"
    return _run_in(place, fix=f"Name the --out of {what}.")


def open_run(folder: Path | str) -> Run:
    """A run that is there.

    Raises:
        RunError: the folder holds none.
    """
    run = any_run(folder)
    if run.manifest.command in ("compare", "gate", "proxy-sample"):
        raise RunError(
            f"{folder} is a comparison, or a part of another run.", fix="Name the --out of a tov select, score or fit."
        )
    return run


def _check_apart(folder: Path, reads: Sequence[Path]) -> None:
    """Raises RunError if a command reads what --force replaces: this run, or a file that it has made."""
    place = folder.resolve()
    made = {place / name for name in made_by(folder)}
    for path in reads:
        read = path.resolve()
        if read in (place, *made) or any(read in file.parents for file in made):
            raise RunError(
                f"--force would delete {path}, which this command reads: it is in --out {folder}.",
                fix="Choose another --out.",
            )
