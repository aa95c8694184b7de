"""Which files of a run folder tov has made, and how a new run takes an older one's place. Nothing else is ever removed.

A file is tov's if the manifest lists it or, before the run is finished, `.files` does, or if it is a shard or a leftover of a
kill by its name. Manifests of 0.1.0 list nothing: there the names of that version count.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from tov.errors import RunError, of_system
from tov.files import TEMPORARY, append_line, drop_torn_line, read_json, write_json
from tov.objects.mirror import held
from tov.runs.manifest import FILE, read_manifest

LOCK = ".lock"
LIST = ".files"
"""Files that an unfinished run has made, or was about to make, a line each."""
INDEX, INDEXED = ".index.npz", ".index.json"
"""Of an unfinished run: what indexing its pool has told, and what that was made from (`tov.inputs.kept`)."""
NEW, MOVES = ".tov-new", "moves.json"
"""Below a run's folder, the run that is to take its place; and in it, the files that are moved for that."""
CONFIG = "config.yaml"
"""The settings of a run."""
BARE = {FILE, CONFIG, "events.jsonl", LOCK, LIST, INDEX, INDEXED}
"""Files of a run that has made nothing yet."""
UNLISTED = re.compile(rf"rows-\d{{12}}\.parquet|{TEMPORARY.pattern}")
"""Names of files that tov has made in the folders that it has made: shards, and what a kill has left half-written."""
TABLES, PILOTS, SAMPLED = "scores", "gate", "proxy-sample"
"""Below a run's folder: its shards, or in a comparison the runs that fill score tables; the pilots of a selection; and the run
in which a model scores a sample of what its proxy scores."""
INSIDE = (TABLES, PILOTS, SAMPLED)
OLDER = re.compile(
    r"selected\.(parquet|jsonl)|summary\.md|trials\.jsonl|results\.json|report\.md|(gain|loss)\.svg|path/manifest\.json"
    r"|(path/epoch-\d+/(base|target)|adapter)/(adapter_config\.json|adapter_model\.safetensors|README\.md)"
)
"""Files of runs by 0.1.0, whose manifests list none."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Locks a folder for the block, where system and disk know locks; a kill frees it. One at a URL is locked by a lease.

    Raises:
        RunError: another process is at work there, or the folder cannot be written.
        StorageError: the disk is full.
    """
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        with made_said(folder):
            lock.acquire()
    except filelock.Timeout:
        raise RunError(
            f"Another process is at work in {folder}.",
            fix="Wait for it, or choose another --out. What is finished of a comparison is shown by tov compare --report-only.",
        ) from None
    except NotImplementedError:  # a disk without locks
        pass
    try:
        with held(folder):
            yield
    finally:
        lock.release()


@contextmanager
def made_said(folder: Path) -> Iterator[None]:
    """What stands in the way of a folder, in words."""
    try:
        yield
    except filelock.Timeout:
        raise
    except OSError as error:
        raise of_system(error, f"--out {folder} cannot be written", RunError) or error from None


def is_finished(folder: Path) -> bool:
    """Whether a finished run is there."""
    return not folder.is_symlink() and (folder / FILE).exists() and read_manifest(folder).status == "finished"


def settle(folder: Path) -> None:
    """Goes on with what a kill has interrupted: a finished run that was taking another's place.

    Raises:
        RunError: another process is at work there, or what is to take the place is broken.
    """
    if is_finished(folder / NEW):
        with alone_in(folder):
            if is_finished(folder / NEW):
                take_place(folder)


def take_place(folder: Path) -> None:
    """Moves the finished run that was made beside the one in `folder` to its place; may be begun again at any point.

    A file of another's that has the name of a new one is kept as `NAME.kept`.
    """
    new, moves = folder / NEW, folder / NEW / MOVES
    manifest, old = read_manifest(new), made_by(folder)
    if not moves.exists():
        lacks = next((name for name in manifest.files if not (new / name).is_file()), None)
        if lacks is not None:
            raise RunError(f"{new / lacks} is not there.", fix=f"Delete {new}, which was to replace {folder}.")
        files = [file.relative_to(new) for file in sorted(new.rglob("*")) if file.is_file()]
        write_json(moves, [str(file) for file in files if str(file) not in (FILE, LOCK)])
    names = read_json(moves)
    if not isinstance(names, list) or not all(isinstance(name, str) and _is_inside(folder, name) for name in names):
        raise RunError(f"{moves} is no list of files in it.", fix=f"Delete {new}, which was to replace {folder}.")
    for name in names:
        if (new / name).exists():
            _make_room(folder, name, old)
            os.replace(new / name, folder / name)
    remove(folder, old - {*names, FILE, LOCK})
    if manifest.origin.scores is None:
        outside = {name: path for name, path in manifest.artifacts.items() if path.startswith("..")}
        manifest.artifacts |= {name: os.path.relpath(new / path, folder) for name, path in outside.items()}
    manifest.folder = os.path.abspath(folder)
    manifest.write(folder)
    gone = folder / f".{NEW}.{os.getpid()}.tmp"
    os.replace(new, gone)  # at once: half of it must not be taken for a run
    shutil.rmtree(gone)


def _make_room(folder: Path, name: str, made: set[str]) -> None:
    """Nothing of another's stands where a file is to be, or a folder on its way: it is kept under another name."""
    on_the_way = [folder / parent for parent in reversed(Path(name).parents[:-1])]
    blocks = [place for place in on_the_way if place.exists() and not place.is_dir()]
    if (folder / name).exists() and name not in made:
        blocks.append(folder / name)
    for place in blocks:
        os.replace(place, place.with_name(f"{place.name}.kept"))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)


def made_by(folder: Path) -> set[str]:
    """The files below a run's folder that tov has made: of this run, and of those that fill tables or are its pilots."""
    found = _made_in(folder)
    for file in (file for name in INSIDE for file in (folder / name).rglob(FILE)):
        inside = file.parent.relative_to(folder)
        with suppress(RunError):  # a file of that name which is not a run's
            found |= {str(inside / name) for name in _made_in(file.parent)}
    return {name for name in found if _is_inside(folder, name)}


def _made_in(folder: Path) -> set[str]:
    """Of one run, without those inside it."""
    listed = {*read_manifest(folder).files, *listed_in(folder)}
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir()]
    if not listed:
        listed = {name for name in names if OLDER.fullmatch(name)}
    ours = {*INSIDE, "artifacts", *(name.partition("/")[0] for name in listed if "/" in name)}
    unlisted = {
        name for name in names if name.partition("/")[0] in ours and UNLISTED.fullmatch(name.rpartition("/")[2])
    }
    return {*listed, *unlisted, *BARE}


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a name from a manifest is that of a file in the folder, also where a folder on the way is a link."""
    if os.path.isabs(name) or ".." in Path(name).parts or "\0" in name:
        return False
    place, parent = folder.resolve(), (folder / name).parent.resolve()
    return parent == place or place in parent.parents


def listed_in(folder: Path) -> list[str]:
    file = folder / LIST
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def writer_of(folder: Path) -> Callable[[Path], None]:
    """Appends to the folder's list what it does not have yet."""
    if (folder / LIST).exists():
        drop_torn_line(folder / LIST)
    known = {*listed_in(folder), *BARE}

    def write_down(path: Path) -> None:
        name = str(path)
        if name not in known and not UNLISTED.fullmatch(path.name):
            known.add(name)
            append_line(folder / LIST, name)

    return write_down


def remove(folder: Path, names: Iterable[str]) -> None:
    """Removes files below a folder, and the folders that are empty then."""
    for name in names:
        file = folder / name
        file.unlink(missing_ok=True)
        for parent in file.parents:
            if parent == folder or not parent.is_dir() or any(parent.iterdir()):
                break
            parent.rmdir()


def remove_new(folder: Path) -> None:
    """Removes the unfinished run beside the one in `folder`, if there is one."""
    new = folder / NEW
    if new.is_dir() and not new.is_symlink():
        shutil.rmtree(new)


def made_nothing(folder: Path) -> bool:
    places = (folder, folder / PILOTS, folder / SAMPLED)
    return all(file.name in BARE and file.parent in places for file in folder.rglob("*") if file.is_file())


def make(folder: Path) -> list[Path]:
    """Makes a run's folder and those above it.

    Returns:
        Those that were not there, itself first.

    Raises:
        RunError: it cannot be written.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    with made_said(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return made


def unmake(folder: Path, made: Iterable[Path]) -> None:
    """Removes what a run that has made nothing has written, then what is empty of the folders that were made for it."""
    with suppress(OSError):
        bare = [file for file in folder.rglob("*") if file.name in BARE]
        # The manifest late: what a kill leaves without one is no run, and not empty. The lock last: nobody begins before that.
        bare.sort(key=lambda file: (file.name == LOCK, file.name == FILE))
        remove(folder, [str(file.relative_to(folder)) for file in bare])
        below = sorted((place for place in folder.rglob("*") if place.is_dir()), reverse=True)
        for place in (*below, *made):
            place.rmdir()  # ends at one that is not empty


def check_place(folder: Path, *, force: bool = False) -> None:
    """Raises RunError unless a run may be made here, or is here: not among files that are no run's.

    A folder without a manifest may hold what a run killed in its first moments leaves, and nothing else.
    """
    if (folder / FILE).exists():
        read_manifest(folder)
        return
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            what = "a link to nothing" if folder.is_symlink() else "a file"
            raise RunError(f"--out {folder} is {what}, but must be a folder.", fix="Choose another --out.")
        return
    # The manifest is the first file of a run, so no more than a part of it can be there.
    ours = re.compile(rf"{re.escape(LOCK)}|\.{re.escape(FILE)}\.\d+\.tmp")
    strange = [entry for entry in folder.iterdir() if not ours.fullmatch(entry.name) or entry.is_dir()]
    if strange:
        raise RunError(
            f"{folder} is not empty and holds no run (it has {strange[0].name})"
            + (", so --force does not delete it." if force else "."),
            fix="Choose another --out.",
        )
