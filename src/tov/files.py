"""Files that are either whole or absent: atomic writes, JSON, digests. Knows nothing of what the files mean."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import xxhash

from tov.errors import RunError, StorageError
from tov.sinks import json_text

TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
"""Names of what is half-written: `.NAME.PROCESS.tmp`."""
CHECKSUM = "checksum"
"""The last key of a sealed JSON document."""
RACY = 2_000_000_000
"""Nanoseconds within which two changes of a file may bear the same time: FAT counts in twos of seconds, others finer."""
_LISTS: list[tuple[Path, Callable[[Path], None]]] = []
"""Folders whose new files are listed, the innermost last."""
_COPIES: list[tuple[Path, Callable[[Path], None]]] = []
"""Folders whose files are copied elsewhere."""


def listing(folder: Path, write_down: Callable[[Path], None]) -> AbstractContextManager[None]:
    """For the block, every file that is about to be put below a folder by a function of this module is told of first."""
    return _entered(_LISTS, folder, write_down)


def copying(folder: Path, copy: Callable[[Path], None]) -> AbstractContextManager[None]:
    """For the block, every file that a function of this module has put below a folder is told of after it is there."""
    return _entered(_COPIES, folder, copy)


@contextmanager
def _entered(
    entries: list[tuple[Path, Callable[[Path], None]]], folder: Path, tell: Callable[[Path], None]
) -> Iterator[None]:
    entry = folder.absolute(), tell
    entries.append(entry)
    try:
        yield
    finally:
        entries.remove(entry)  # another thread may have entered since


def _is_there(path: Path) -> None:
    place = path.absolute()
    for folder, copy in _COPIES:
        if folder in place.parents:
            copy(place)


def _write_down(path: Path) -> None:
    place = path.absolute()
    for folder, write_down in reversed(_LISTS):
        if folder in place.parents:
            write_down(place.relative_to(folder))
            return


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and takes the name `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _full_disk_said(path):
            yield temporary
            _open_by_umask(temporary)
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
            _write_down(path)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _is_there(path)


def _open_by_umask(path: Path) -> None:
    """Gives a file or folder the permissions that the user's umask asks for; safetensors writes for its owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


@contextmanager
def _full_disk_said(path: Path) -> Iterator[None]:
    """A full disk, however a library words it, as a StorageError that names the file."""
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        if number == errno.EFBIG or "File too large" in str(error):
            raise StorageError(
                f"No file may become as large here: {path} could not be written.",
                fix="Raise the limit (ulimit -f), or choose another disk.",
            ) from error
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if not full:
            raise
        raise StorageError(
            f"The disk is full: {path} could not be written.",
            fix="Free some space, then give the same command again: it goes on from the last finished shard.",
        ) from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like `atomic`, for a folder: `path` appears whole or not at all; in one that is there, each file is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with _full_disk_said(path):
            yield temporary
            for file in sorted(temporary.rglob("*")):
                _open_by_umask(file)
                if file.is_file():
                    _write_down(path / file.relative_to(temporary))
        made = [path / one.relative_to(temporary) for one in sorted(temporary.rglob("*")) if one.is_file()]
        if path.is_dir():  # it may hold what is not ours, so it is not taken down
            for file in [one for one in temporary.rglob("*") if one.is_file()]:
                place = path / file.relative_to(temporary)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, place)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for file in made:
        _is_there(file)


def sweep_temporaries(folder: Path, *, older_than: float = 0.0) -> None:
    """Removes what a killed process left half-written below `folder`, if it has not been touched for so many seconds."""
    for leftover in folder.rglob(".*.tmp"):
        if not TEMPORARY.fullmatch(leftover.name):
            continue
        if older_than and leftover.stat().st_mtime > time.time() - older_than:
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically; key order is kept."""
    write_text(path, _as_text(value))


def _as_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"


def read_json(path: Path) -> Any:
    """Reads one JSON document that tov wrote.

    Raises:
        RunError: it is broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # broken JSON, bytes that are no text, nested beyond all use
        raise RunError(
            f"{path} is broken: {error}",
            fix="Put it back from a copy, or make the run anew: its own command with --force.",
        ) from None


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object atomically, with a checksum of the rest as its last key."""
    plain = json.loads(json_text(value))
    write_json(path, {**plain, CHECKSUM: _checksum(plain)})


def _checksum(value: dict[str, Any]) -> str:
    """Of all but `status`, whose words are checked by who reads it."""
    return digest({name: inside for name, inside in value.items() if name not in (CHECKSUM, "status")})


def read_sealed(path: Path) -> Any:
    """Reads what `write_sealed` wrote, without the checksum.

    A document that has none, or that another program has written anew in a layout of its own, is taken as it is: the checksum
    tells what has decayed on a disk or on the way, and is in nobody's way who edits the file on purpose.

    Raises:
        RunError: it is broken, or not what was written.
    """
    value = read_json(path)
    if not isinstance(value, dict) or CHECKSUM not in value:
        return value
    as_written = path.read_text(encoding="utf-8") == _as_text(value)
    if as_written and value[CHECKSUM] != _checksum(value):
        raise RunError(
            f"{path} is broken: its content and its checksum differ.",
            fix=f"Put it back from a copy. If you changed it on purpose, remove its last entry too, '{CHECKSUM}'.",
        )
    del value[CHECKSUM]
    return value


def append_json_line(path: Path, value: Any) -> None:
    """Appends one JSON line to a log; a line that a kill has cut short is taken away first."""
    if path.exists():
        drop_torn_line(path)
    else:
        _write_down(path)
    append_line(path, json_text(value))


def append_line(path: Path, text: str) -> None:
    """Appends a line to a file."""
    with _full_disk_said(path), open(path, "a", encoding="utf-8") as log:
        log.write(f"{text}\n")
    _is_there(path)


def drop_torn_line(path: Path) -> None:
    """Takes away what stands behind the last line break."""
    with open(path, "rb+") as log:
        end = log.seek(0, os.SEEK_END)
        if end:
            log.seek(end - 1)
            if log.read(1) != b"\n":
                log.seek(0)
                log.truncate(log.read().rfind(b"\n") + 1)


def digest(value: Any) -> str:
    """16 hex digits of the SHA-256 of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def content_digest(path: Path) -> str:
    """SHA-256 of a whole file, as hex."""
    return _hashed(path, hashlib.sha256())


def stamp_of(path: Path) -> list[int]:
    """What changes whenever a program writes to a file or puts another in its place: size, times, inode, device.

    Empty where it would prove nothing: the file has changed so lately that another change could bear the same time (git's rule
    for its index), or the system keeps no time of the last change, which no program can set.
    """
    found = path.stat()
    if os.name != "posix" or time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < RACY:
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def file_digest(path: Path) -> str:
    """16 hex digits of a whole file: its size and every byte."""
    return _hashed(path, hashlib.sha256(str(path.stat().st_size).encode()))[:16]


def checksum(path: Path) -> str:
    """XXH3 of a whole file, 32 hex digits: finds what has decayed, at the speed of the disk; no guard against forgery."""
    return _hashed(path, xxhash.xxh3_128())


def _hashed(path: Path, state: Any) -> str:
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return str(state.hexdigest())
