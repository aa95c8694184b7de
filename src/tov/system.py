"""What the operating system refuses, in words: permissions, disks, memory, open files. Knows paths, not what they hold."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FAILED, USER_ERROR = 1, 2
LITTLE = 4 << 20
"""Bytes: a disk with fewer free is full."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_MEMORY = re.compile(
    r"(?i)can.?t allocate memory|cannot allocate memory|not enough memory|out of memory|bad_alloc|unable to allocate"
    r"|failed to map segment|can.?t start new thread|memory allocation of"
)
_WORDS = {
    errno.ENOSPC: "No space left", errno.EACCES: "Permission denied", errno.EROFS: "Read-only file system",
    errno.EMFILE: "Too many open files", errno.EFBIG: "File too large",
}  # fmt: skip
"""What libraries that are not Python's put into their own errors."""
_BEHIND = (*_WORDS, errno.EDQUOT, errno.EPERM, errno.ENFILE, errno.ENOMEM, errno.EIO)
"""What is told although another error came of it: nobody handles these."""
_CACHES = ("TOV_CACHE", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "TMPDIR")
"""Environment variables that name where libraries and tov keep what can be made or fetched again; the narrower first."""


class Fault(NamedTuple):
    """What a user reads of it, and the exit code."""

    problem: str
    fix: str
    code: int


def fault_of(error: BaseException) -> OSError | MemoryError | None:
    """What the system has refused, where that is behind an error, however deep a library has wrapped it."""
    for one in _chain(error):
        if isinstance(one, MemoryError):
            return one
        if isinstance(one, OSError) and one.errno and (one is error or one.errno in _BEHIND):
            return one
        text = str(one)
        if type(one).__name__ == "OutOfMemoryError" or _MEMORY.search(text):
            return MemoryError(text)
        own = type(one).__module__ == "builtins" and isinstance(one, (LookupError, ValueError, TypeError))
        for number, words in _WORDS.items() if not own else ():  # Python's own may quote a row or a label
            if words in text:
                return OSError(number, os.strerror(number), _path_in(text))
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _path_in(text: str) -> str | None:
    """The path that a library has put into its words."""
    found = re.search(r"['\"](/[^'\"]+)['\"]|(?<!\S)(/\S+)", text)
    return (found[1] or found[2]).rstrip(".:,") if found else None


def in_words(fault: OSError | MemoryError) -> Fault:
    """What it is, at which file, and what to do."""
    if isinstance(fault, MemoryError) or fault.errno == errno.ENOMEM:
        return Fault(
            "The memory is full.",
            "Lower --max-length, or --batch-tokens (the tokens that a scan holds at once), or take a smaller model.",
            FAILED,
        )
    path = fault.filename if fault.filename is not None else _path_in(str(fault))
    path = os.fsdecode(path) if isinstance(path, (str, bytes)) else None
    said = os.strerror(fault.errno) if fault.errno else str(fault)
    problem = f"{said}: {path}" if path else f"{said}."
    if fault.errno in _FULL:
        return Fault(problem if path else _full_places(said), _of_full(path), FAILED)
    if fault.errno == errno.EFBIG:
        return Fault(
            problem, "No file may become as large here: raise the limit (ulimit -f), or choose another disk.", FAILED
        )
    if fault.errno in (errno.EMFILE, errno.ENFILE):
        return Fault(problem, "Allow more open files (ulimit -n 1024), then give the same command again.", FAILED)
    if fault.errno == errno.ENAMETOOLONG:
        short = problem if len(problem) < 200 else f"{problem[:100]} ... {problem[-60:]}"
        return Fault(short, "Give a shorter name.", USER_ERROR)
    if fault.errno == errno.ELOOP:
        return Fault(problem, "These links lead in a circle: name the file itself.", USER_ERROR)
    if fault.errno in _REFUSED:
        return Fault(problem, _of_refused(Path(path)) if path else "Change its permissions.", USER_ERROR)
    if fault.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENXIO):
        return Fault(problem, _of_kind(fault.errno), USER_ERROR)
    if fault.errno == errno.ENOENT:
        return Fault(problem, "Check the path, and that nothing removes files there meanwhile.", FAILED)
    return Fault(problem, "Check the disk that holds it, then give the same command again.", FAILED)


def _of_kind(number: int | None) -> str:
    if number == errno.EISDIR:
        return "It is a folder where a file is wanted: name a file, or choose another --out."
    if number == errno.ENOTDIR:
        return "A part of its path is a file, and no folder: correct the path, or choose another --out."
    return "Something else is there: choose another --out."


def caches() -> dict[str, Path]:
    """Where caches are: variable -> folder, of those that are set, and of those that libraries take otherwise."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    named = {name: Path(value).expanduser() for name in _CACHES if (value := os.environ.get(name))}
    return {**named, **{"HF_HOME": home / "huggingface", "TOV_CACHE": home / "tov"}, **named}


def _cache_with(path: Path) -> str | None:
    """The variable of the cache that a path is in."""
    place = Path(os.path.abspath(path))
    held = [
        (len(folder.parts), name) for name, folder in caches().items() if folder == place or folder in place.parents
    ]
    if held:
        return max(held)[1]
    # A folder on the way to it that cannot even be made, as where there is no home.
    return next((name for name, folder in caches().items() if place in folder.parents and not place.exists()), None)


def _of_refused(path: Path) -> str:
    """Who refused: a cache, a folder on the way, a file that may not be read, or a place that may not be written."""
    cache = _cache_with(path)
    if cache:
        return f"It is in a cache: set {cache} to a folder that you may read and write, or change its permissions."
    for parent in reversed(path.absolute().parents):
        if parent.is_dir() and not os.access(parent, os.X_OK):
            return f"The folder {parent} lets nobody in (chmod u+x): change its permissions, or name another place."
    if path.exists() and not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        what = "folder" if path.is_dir() else "file"
        return f"You may not read this {what} (chmod u+r): change its permissions, or name another."
    return "You may not write there: choose another --out, or change its permissions."


def _full_places(said: str) -> str:
    """A full disk of which the library did not say where it is."""
    named = {"the present folder": Path(), **caches()}
    full = [f"{name} ({folder})" for name, folder in named.items() if _free(folder) < LITTLE]
    return f"{said}: {', '.join(full)}" if full else f"{said}."


def _free(folder: Path) -> float:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return float("inf")


def _of_full(path: str | None) -> str:
    cache = _cache_with(Path(path)) if path else None
    if cache:
        return f"It is in a cache: free some space, or set {cache} to a folder on another disk."
    return "Free some space there, then give the same command again: it goes on from what is finished."


def kind_of_file(path: Path) -> str:
    """What a path is that is neither file nor folder, in words; "" for those two, and where nothing is."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "a link that leads nowhere" if path.is_symlink() else ""
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return "a link that leads in a circle"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else ""


def check_readable(path: Path) -> None:
    """Raises PermissionError if a file or folder, or a folder anywhere below it, may not be read: libraries pass over those."""

    def refuse(error: OSError) -> None:
        raise error

    if not os.access(path, os.R_OK) and path.exists():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    for _ in os.walk(path, onerror=refuse) if path.is_dir() else ():
        pass
