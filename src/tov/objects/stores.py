"""Object stores: what opens a URL, what is tried again, and inputs, which are fetched into the cache."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tov.errors import ConfigError, DataError, StorageError, TovError
from tov.files import atomic

URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+)://.+", re.DOTALL)
WAITS = (0.5, 2.0, 8.0)
"""Seconds before each further try."""
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""Scheme -> the package that opens it for fsspec."""
T = TypeVar("T")


def is_url(place: object) -> bool:
    """Whether a place is in an object store."""
    return isinstance(place, str) and URL.fullmatch(place) is not None and not place.startswith("file://")


def at_home(place: str | os.PathLike[str]) -> Path:
    """A local path that a user has named: shells leave the ~ of --out=~/x, and of what stands in quotes, alone.

    Raises:
        ConfigError: nobody of that name has a home folder here.
    """
    try:
        return Path(place).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{os.fspath(place)}: '{Path(place).parts[0]}' is no user's home folder here.",
            allowed="a path; ~ is your home folder, and ~NAME that of the user NAME",
            fix="Correct the name behind ~, or write the whole path.",
        ) from None


def cache_home() -> Path:
    """Where tov keeps what it can make or fetch again: $TOV_CACHE, else the user's cache folder."""
    return Path(os.environ.get("TOV_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tov")


def cache_folder() -> Path:
    """Where fetched objects and mirrors are."""
    return cache_home() / "objects"


def opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        ConfigError: nothing here opens such URLs.
    """
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    try:
        return url_to_fs(url, **({"use_listings_cache": False} if scheme in PACKAGES else {}))
    except (ImportError, ValueError) as error:
        package = PACKAGES.get(scheme)
        raise ConfigError(
            f"{url} cannot be opened: {error}",
            allowed="s3://, gs://, hf://, and other schemes that fsspec knows",
            fix=f"Install what opens it: pip install {package}"
            if package
            else "Correct the URL, or install what opens it for fsspec.",
        ) from None


def tried(what: str, url: str, action: Callable[[], T]) -> T:
    """What an action gives, tried again after each of `WAITS`; what is not there, or not allowed, is not tried again.

    Raises:
        StorageError: it failed each time.
        FileNotFoundError, FileExistsError: as the store says.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except (FileNotFoundError, FileExistsError, TovError):
            raise
        except PermissionError as error:
            raise failed(what, url, error) from error
        except Exception as error:  # each store has errors of its own
            if wait is None:
                raise failed(what, url, error) from error
            time.sleep(wait)
    raise AssertionError


def failed(what: str, url: str, error: Exception) -> StorageError:
    said = " ".join(str(error).split()) or type(error).__name__
    return StorageError(
        f"{url} could not be {what}: {said[:300]}.",
        fix="Check network, credentials and the name of the bucket, then give the same command again: it goes on where it was.",
    )


def listed(fs: Any, url: str, ask: Callable[[], T], nothing: T) -> T:
    """What a store lists now; `nothing` where there is no such folder."""
    fs.invalidate_cache()
    try:
        return tried("read", url, ask)
    except FileNotFoundError:
        return nothing


# Inputs


def fetched(url: str) -> list[Path]:
    """The local copies of what a URL names, in order: a file, the files of a pattern, or a folder as one folder.

    Copies lie in the cache by the store's own mark of their content (ETag, hash); what has not changed is not fetched again.

    Raises:
        DataError: nothing is there.
        StorageError: the store cannot be read.
        ConfigError: nothing here opens such URLs.
    """
    fs, path = opened(url)
    place = cache_folder() / "inputs" / short(url)
    try:
        if any(sign in path for sign in "*?["):
            found = tried("read", url, lambda: fs.glob(path, detail=True))
            files = sorted(one for one, facts in found.items() if facts["type"] == "file" and not one.endswith("/"))
            if not files:
                raise DataError(f"No object matches '{url}'.", fix="Check the pattern, and quote it.")
            return [_fetch(fs, one, url, place) for one in files]
        if tried("read", url, lambda: fs.isdir(path)):
            files = tried("read", url, lambda: fs.find(path))
            folder = place / path.rstrip("/").rpartition("/")[2]
            return [_folder(fs, path.rstrip("/"), files, url, folder)]
        return [_fetch(fs, path, url, place)]
    except FileNotFoundError:
        raise DataError(f"There is no object '{url}'.", fix="Check the bucket and the path.") from None


def _folder(fs: Any, root: str, files: list[str], url: str, folder: Path) -> Path:
    wanted = {folder / file[len(root) :].lstrip("/"): file for file in files}
    for place, file in wanted.items():
        copied = _fetch(fs, file, url, folder.parent / "of-folder")
        if not place.exists() or not os.path.samefile(place, copied):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            os.link(copied, place)
    for place in [one for one in folder.rglob("*") if one.is_file() and one not in wanted]:
        place.unlink()
    return folder


def _fetch(fs: Any, path: str, url: str, place: Path) -> Path:
    """The copy of one object, under a folder that is named by its content."""
    content = mark(tried("read", url, lambda: fs.info(path)))
    copy = place / f"{short(path)}-{content}" / path.rpartition("/")[2]
    if not copy.exists():
        with atomic(copy) as temporary:
            tried("read", url, lambda: fs.get_file(path, str(temporary)))
    return copy


def short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def mark(info: dict[str, Any]) -> str:
    """What the store says of an object's content; where it says nothing, its size and time."""
    known = next((info[name] for name in ("ETag", "etag", "md5Hash", "blob_id", "sha256") if info.get(name)), None)
    return short(str(known or [info.get(name) for name in ("size", "LastModified", "mtime", "created")]))
