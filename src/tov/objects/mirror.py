"""Run folders at URLs. Each has a local folder, its *mirror*, in the cache, in which commands work as in any run folder.

A command that works in it holds a lease, takes what the store has, and puts each file there as soon as it is whole: an object
is there or not, as a file is after a rename. A driver that is lost costs what was not finished. A command that reads a run
takes what the store has.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import filelock

from tov.errors import ConfigError, TovError
from tov.files import TEMPORARY, atomic, copying, write_json
from tov.objects.lease import LEASES, Lease, at_work
from tov.objects.stores import cache_folder, is_url, listed, mark, opened, short, tried

READ_ONLY = ("hf", "http", "https")
"""Schemes that no run folder can be at: each file would be a commit, or cannot be written."""
LOCAL = re.compile(rf"\.lock|\.index\.(npz|json)|{LEASES.pattern}|{TEMPORARY.pattern}")
"""Names that are no part of a run: locks, what a kill has left, and what is known of files of this machine."""
NEXT = ".tov-new/manifest.json"
"""Of a run under --force, until it takes the other's place (`tov.runs.made`)."""
FRESH = 10.0
"""Seconds for which a reader takes a mirror as it is."""
_MIRRORS: dict[Path, str] = {}
"""Mirror -> URL, of this process."""
_PULLED: dict[Path, float] = {}
"""Mirror -> when this process has last made it what the store has."""


def joined(place: str, name: str) -> str:
    """A place below another one."""
    return f"{place.rstrip('/')}/{name}" if is_url(place) else str(Path(place) / name)


def named(path: Path) -> str:
    """What a user calls a path: that of a mirror, or below one, is a URL."""
    for mirror, url in _MIRRORS.items():
        if path == mirror or mirror in path.parents:
            return joined(url, str(path.relative_to(mirror))) if path != mirror else url
    return str(path)


def local(place: str | os.PathLike[str], *, whole: bool = False) -> Path:
    """The local folder of a run, or of a part of one: of one at a URL its mirror, with what the store has now.

    Args:
        place: a folder, or a URL.
        whole: whether it is a run of its own, also where it lies below the URL of another one.

    Raises:
        StorageError: the store cannot be read.
        ConfigError: nothing here opens such URLs.
    """
    text = os.fspath(place)
    if not is_url(text):
        return Path(text)
    url = text.rstrip("/")
    mirror = (cache_folder() / "runs" / short(url) / "run").absolute()
    if mirror not in _MIRRORS and not whole:  # a part of a run that this process has
        for other, known in _MIRRORS.items():
            if url.startswith(f"{known}/") and cache_folder().absolute() in other.parents:
                return other / url.removeprefix(f"{known}/")
    _MIRRORS[mirror] = url
    mirror.parent.mkdir(parents=True, exist_ok=True)
    if not mirror.exists() or time.monotonic() - _PULLED.get(mirror, -FRESH) >= FRESH:
        with suppress(filelock.Timeout), _alone(mirror):  # who has it on this machine has what is newest
            _Mirror(mirror, url).pull()
    return mirror


def relative(path: Path, start: Path) -> str:
    """How a run in `start` tells of a path: relative, but by its URL or whole where the two are not in one store."""
    there, here = named(path.absolute()), named(start.absolute())
    apart = (is_url(there) or is_url(here)) and not there.startswith(f"{here}/")
    return there if apart else os.path.relpath(path, start)


def check_writable(url: str) -> None:
    """Raises ConfigError if no run folder can be at a URL; a local folder is none."""
    scheme = url.partition("://")[0]
    if is_url(url) and scheme in READ_ONLY:
        raise ConfigError(
            f"--out {url}: a run folder cannot be at {scheme}://.",
            allowed="a local folder, s3://BUCKET/RUN or gs://BUCKET/RUN",
            fix="Choose another --out. tov export RUN --to hub makes what the Hub takes.",
        )


def held(folder: Path) -> AbstractContextManager[None]:
    """A block in which this process alone works in a run folder at a URL; of a local folder nothing is to be done.

    Raises:
        RunError: another process is at work there.
        StorageError: the store cannot be read or written.
    """
    url = _MIRRORS.get(folder.absolute())
    return nullcontext() if url is None else _held(folder.absolute(), url)


@contextmanager
def _held(folder: Path, url: str) -> Iterator[None]:
    check_writable(url)
    try:
        with _alone(folder):
            mirror = _Mirror(folder, url)
            with mirror.lease.hold():
                mirror.pull()
                try:
                    with copying(folder, mirror.put):
                        yield
                except TovError:
                    # The command was refused before it made anything, and has removed its run.
                    if not mirror.has_files():
                        with suppress(TovError):  # the refusal matters more
                            mirror.push()
                    raise
                mirror.push()
    except filelock.Timeout:
        raise at_work(url, "on this machine") from None
    except TovError as error:
        raise _in_its_words(error, folder, url) from error.__cause__


def _in_its_words(error: TovError, folder: Path, url: str) -> TovError:
    """An error of a mirror with the URL that the user knows."""
    problem, allowed, fix = (text.replace(str(folder), url) for text in (error.problem, error.allowed, error.fix))
    return type(error)(problem, allowed=allowed, fix=fix)


def _alone(mirror: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(mirror.with_suffix(".lock"), timeout=0)


@dataclass
class _Mirror:
    """A run folder in a store, and the local one that is like it.

    Attributes:
        folder: the local one.
        url: the other.
        known: name -> what the store has, and the local file's size and time that it is.
    """

    folder: Path
    url: str
    known: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fs, root = opened(self.url)
        self.root = root.rstrip("/")
        self.lease = Lease(self.fs, self.root, self.url)
        self.list = self.folder.with_suffix(".json")
        if self.list.exists():
            with suppress(ValueError):
                self.known = json.loads(self.list.read_text("utf-8"))

    def pull(self) -> None:
        """Makes the local folder what the store has."""
        there = self._there()
        for name, content in there.items():
            file = self.folder / name
            if self.known.get(name) != [content, *_state(file)]:
                with atomic(file) as temporary:
                    tried("read", self.url, partial(self.fs.get_file, f"{self.root}/{name}", str(temporary)))
                self.known[name] = [content, *_state(file)]
        for file in self._files():
            if str(file.relative_to(self.folder)) not in there:
                file.unlink()
        self.known = {name: self.known[name] for name in there}
        self._remember()
        _PULLED[self.folder] = time.monotonic()

    def _there(self) -> dict[str, str]:
        """Name -> mark of every object of the run."""
        found: dict[str, Any] = listed(self.fs, self.url, lambda: self.fs.find(self.root, detail=True), {})
        names = {path[len(self.root) :].lstrip("/"): mark(info) for path, info in found.items()}
        return {name: mark for name, mark in names.items() if name and not LOCAL.fullmatch(name.rpartition("/")[2])}

    def _files(self) -> list[Path]:
        return [one for one in self.folder.rglob("*") if one.is_file() and not LOCAL.fullmatch(one.name)]

    def has_files(self) -> bool:
        """Whether a file of a run is in the local folder."""
        return bool(self._files())

    def put(self, file: Path) -> None:
        """Puts a file into the store.

        Raises:
            RunError: another process has taken the lease.
            StorageError: it cannot be written.
        """
        self.lease.check()
        if not LOCAL.fullmatch(file.name):
            self._put(file)

    def _put(self, file: Path) -> None:
        name, state = str(file.relative_to(self.folder)), _state(file)
        if self.known.get(name, [None])[1:] == state:
            return
        place = f"{self.root}/{name}"
        tried("written", self.url, partial(self.fs.put_file, str(file), place))
        self.known[name] = [mark(tried("read", self.url, partial(self.fs.info, place))), *state]

    def push(self) -> None:
        """Makes the store what the local folder is: files that came by a move, and those that are gone; the manifest last."""
        files = {str(file.relative_to(self.folder)): file for file in self._files()}
        for name in sorted(files, key=lambda name: (name.endswith("manifest.json"), name)):
            self.lease.check()
            self._put(files[name])
        for name in sorted(self.known.keys() - files.keys(), key=_order_of_removal):
            self.lease.check()
            with suppress(FileNotFoundError):
                tried("written", self.url, partial(self.fs.rm_file, f"{self.root}/{name}"))
            del self.known[name]
        self._remember()

    def _remember(self) -> None:
        write_json(self.list, self.known)


def _order_of_removal(name: str) -> tuple[bool, bool, str]:
    """Manifests last, but that of a run that was to take another's place first: what is left of that one is then no run."""
    return name != NEXT, name.endswith("manifest.json"), name


def _state(file: Path) -> list[int]:
    """Size and time of a local file."""
    with suppress(OSError):
        found = file.stat()
        return [found.st_size, found.st_mtime_ns]
    return []
