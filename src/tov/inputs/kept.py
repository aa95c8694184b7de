"""The index of a pool, kept in the folder of an unfinished run: the run goes on without reading the pool's files for it.

It is two files, hidden and removed when the run is finished: the arrays, and a sealed record of what they were made from with
their checksum, which is written last. It is taken over only where every file of the pool has the stamp that it had before the
pool was read (`tov.files.stamp_of`), and settings and versions are the same. In any other case, and where it is broken, the
pool is indexed again, as if nothing had been kept.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tov.config.records import DataSettings
from tov.data.json_rows import JsonTable
from tov.data.known import Known, Places, knowing
from tov.data.pool import Index, Pool
from tov.data.sources import Input, local_files
from tov.errors import RunError
from tov.files import atomic, checksum, digest, read_sealed, stamp_of, write_sealed
from tov.objects.mirror import local
from tov.runs.environment import versions
from tov.runs.made import INDEX, INDEXED, NEW
from tov.runs.manifest import InputsRecord

BROKEN = (OSError, RunError, ValueError, LookupError, TypeError, zipfile.BadZipFile)
"""What reading a kept index may end with that is not there, or is not what was written: it is as if there were none."""


@dataclass(frozen=True)
class _Kept:
    """What a folder has.

    Attributes:
        index: of the pool.
        known: of its files.
        layouts: name of each source's layout.
    """

    index: Index
    known: Known
    layouts: list[str]


def key(inputs: Sequence[Input], settings: DataSettings) -> str | None:
    """16 hex digits of all that an index depends on; to be taken before the pool is read, as it is kept under it.

    None where a change would not be seen: of rows in memory or on the Hub, and of files that have changed too lately.
    """
    stamps = None
    with suppress(OSError):  # of a place that cannot be read; whoever opens it says so in better words
        files = local_files(inputs)
        stamps = [(os.path.abspath(file), stamp_of(file)) for file in files] if files else None
    if not stamps or not all(stamp for _, stamp in stamps):
        return None
    reading = {name: getattr(settings, name) for name in DataSettings.model_fields}
    return digest([[str(one) for one in inputs], stamps, reading, versions()])


def keep(folder: Path, pool: Pool, index: Index, made_from: str | None, record: InputsRecord) -> None:
    """Keeps an index in a run's folder, whole or not at all.

    Args:
        folder: of the run, which the caller has locked.
        pool: the pool.
        index: of it.
        made_from: as of `key`; None: it is not kept.
        record: of the run's inputs, whose digests are kept too.
    """
    if made_from is None or not all(source.files for source in pool.sources):
        return  # a save_to_disk folder may say that its rows lie elsewhere
    if not all(_of_tov(layout.convert) for layout in pool.layouts):
        return  # what a task of another package makes of a row, no version here tells
    if _said(folder, made_from):
        return
    places = {
        path: one for source in pool.sources if isinstance(source.table, JsonTable)
        for path, one in source.table.places().items()
    }  # fmt: skip
    with atomic(folder / INDEX) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **_arrays(index, list(places.values())))
    write_sealed(folder / INDEXED, {
        "made_from": made_from, "files": checksum(folder / INDEX),
        "bad": list(index.bad.values()), "labels": [sorted(labels) for labels in index.labels],
        "repaired": index.repaired, "rejected": index.rejected, "cut_spans": index.cut_spans,
        "layouts": [layout.name for layout in pool.layouts],
        "lines": {path: one.columns for path, one in places.items()},
        "digests": {file: content for file, content in record.files.items() if file in record.stamps},
        "stamps": record.stamps,
    })  # fmt: skip


def _of_tov(convert: Callable[..., Any]) -> bool:
    return getattr(convert, "__module__", "").partition(".")[0] == "tov"


def _arrays(index: Index, places: Sequence[Places]) -> dict[str, np.ndarray]:
    arrays = {
        "content": index.content, "prompt": index.prompt, "bad": np.array(list(index.bad), np.int64),
        "not_gold": np.array(sorted(index.not_gold), np.int64),
    }  # fmt: skip
    for number, one in enumerate(places):
        arrays[f"bounds-{number}"] = one.bounds
        if one.numbers is not None:
            arrays[f"numbers-{number}"] = one.numbers
    return arrays


def take_over(out: str, made_from: str | None, opened: Callable[[], Pool]) -> tuple[Pool, Index] | None:
    """The pool with the index that a run has kept of it; None where there is none, or not of these very files.

    Args:
        out: the run folder, as the user named it.
        made_from: as of `key`, of now; the caller compares it again with that of after.
        opened: opens the pool.
    """
    if made_from is None:
        return None
    place = local(out, whole=True)
    for folder in (place / NEW, place):
        found = _read(folder, made_from)
        if found is None:
            continue
        with knowing(found.known):
            pool = opened()
        if len(pool) == len(found.index.content) and found.layouts == [layout.name for layout in pool.layouts]:
            return pool, found.index
    return None


def _read(folder: Path, made_from: str | None) -> _Kept | None:
    said = _said(folder, made_from)
    if said is None:
        return None
    with suppress(*BROKEN), np.load(folder / INDEX, allow_pickle=False) as arrays:
        return _Kept(_index(arrays, said), Known(_digests(said), _places(arrays, said)), said["layouts"])
    return None


def _said(folder: Path, made_from: str | None) -> dict[str, Any] | None:
    """The record of an index that is whole and was made from the same."""
    with suppress(*BROKEN):
        said: dict[str, Any] = read_sealed(folder / INDEXED)
        if said["made_from"] == made_from and said["files"] == checksum(folder / INDEX):
            return said
    return None


def _index(arrays: Any, said: dict[str, Any]) -> Index:
    return Index(
        arrays["content"], arrays["prompt"], dict(zip(arrays["bad"].tolist(), said["bad"], strict=True)),
        tuple(frozenset(labels) for labels in said["labels"]), said["repaired"],
        frozenset(arrays["not_gold"].tolist()), said["rejected"], said["cut_spans"],
    )  # fmt: skip


def _digests(said: dict[str, Any]) -> dict[str, str]:
    """Of the files that have not changed since they were digested, which was after they were read."""
    return {file: content for file, content in said["digests"].items() if stamp_of(Path(file)) == said["stamps"][file]}


def _places(arrays: Any, said: dict[str, Any]) -> dict[str, Places]:
    return {
        path: Places(
            arrays[f"bounds-{number}"],
            arrays.get(f"numbers-{number}"),
            tuple(columns),
        )
        for number, (path, columns) in enumerate(said["lines"].items())
    }
