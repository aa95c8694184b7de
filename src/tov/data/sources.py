"""Opening what the user names: files, globs, folders, Hub ids, datasets in memory. Loading itself is `datasets`' job.

Each input is one source; a bare glob gives one source a file, and `NAME=INPUT` names a source (then a glob is one).
Must not know what is in the rows.
"""

from __future__ import annotations

import difflib
import errno
import glob
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from tov.data.conll import column_numbers, is_conll
from tov.data.formats import BUILDERS, all_conll, load_files, stem_of, suffix_of
from tov.data.saved import is_saved, load_saved, saved_splits
from tov.data.tables import ArrowTable, ListTable, Table
from tov.errors import DataError, kind_of, of_system
from tov.objects.stores import at_home, fetched, is_url
from tov.system import check_readable, kind_of_file


@dataclass(frozen=True)
class Named:
    """Rows in memory with a name, as `NAME=FILE` is a file with one.

    Attributes:
        name: of the source.
        rows: a `datasets.Dataset`, or a list of rows.
    """

    name: str
    rows: datasets.Dataset | Sequence[Mapping[str, Any]]


Input: TypeAlias = str | Path | datasets.Dataset | Sequence[Mapping[str, Any]] | Named

_SPLITS = {
    "train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}  # fmt: skip
"""Split -> words in file names that mean it, as `datasets` has them."""
_NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files that `datasets`, the Hub and LlamaFactory put beside rows, to describe them."""
_HUB_ID = re.compile(r"^(?P<name>[\w.-]+/[\w.-]+)(@(?P<config>[\w.-]+))?(:(?P<split>[\w.\[\]%:-]+))?$")


@dataclass(frozen=True)
class Source:
    """One input.

    Attributes:
        name: in every table.
        location: where it came from, for messages.
        table: its rows.
        files: that it was read from.
        notes: what the user is told of the reading.
        given: the name that the user gave it, which others may have too; "" without one.
    """

    name: str
    location: str
    table: Table
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    numbered: frozenset[str] = frozenset()
    """Values of `--columns` that the reader of CoNLL files has taken for numbers of columns."""
    given: str = ""


def open_sources(inputs: Sequence[Input], columns: Mapping[str, str] | None = None) -> tuple[Source, ...]:
    """Opens every input, in order, as sources with distinct names; `columns` may name those of CoNLL files by number.

    Raises:
        DataError: nothing there, unknown format, broken content (with file and line), no rows.
    """
    columns = columns or {}
    sources = [source for one in inputs for source in _open(one, columns)]
    named = list[Source]()
    for source in sources:
        if not len(source.table):
            raise DataError(f"{source.location} has no rows.", fix="Name a file with at least one row.")
        taken = {other.name for other in named}
        name, count = source.name, 2
        while name in taken:
            name, count = f"{source.name}-{count}", count + 1
        numbered = {columns[ours] for ours in column_numbers(columns)} if all_conll(source.files, columns) else ()
        named.append(replace(source, name=name, numbered=frozenset(numbered)))
    return tuple(named)


def _open(value: Input, columns: Mapping[str, str]) -> list[Source]:
    if isinstance(value, Named):
        return [replace(one, name=value.name, given=value.name) for one in _open(value.rows, columns)]
    if isinstance(value, datasets.Dataset):
        location = f"<Dataset of {len(value)} rows>"
        return [Source("memory", location, ArrowTable(value, location))]
    if isinstance(value, (datasets.DatasetDict, datasets.IterableDataset)):
        raise DataError(
            f"tov got a {type(value).__name__} as an input.",
            allowed="a datasets.Dataset",
            fix="Pass one split, e.g. ds['train'], or a list of the rows: list(ds).",
        )
    if not isinstance(value, (str, Path)):
        if isinstance(value, Mapping) or hasattr(value, "columns") or not isinstance(value, Iterable):
            raise DataError(
                f"tov got {kind_of(value)} as an input.",
                allowed="a file, a folder, a Hub id, a datasets.Dataset, a list of dicts",
                fix="Make it a data set: datasets.Dataset.from_pandas(it), or from_polars, or from_dict; of an Arrow table "
                "datasets.Dataset(it).",
            )
        rows = list(value)
        location = f"<list of {len(rows)} rows>"
        return [Source("memory", location, ListTable(rows, location))]
    text = str(value)
    if named := name_of(text):
        found = _from_store(*named, columns) if is_url(named[1]) else [_one_source(*named, columns)]
        return [replace(one, given=named[0]) for one in found]
    if is_url(text):
        return _from_store(None, text, columns)
    if glob.has_magic(text) and not at_home(text).exists():
        return [_one_source(stem_of(path), str(path), columns) for path in _matches(text)]
    return [_one_source(None, text, columns)]


def name_of(location: str) -> tuple[str, str] | None:
    """Name and place of `NAME=PLACE`; None of a place alone, such as a file whose name has a `=`."""
    name, _, rest = location.partition("=")
    return (name, rest) if rest and not Path(location).exists() and is_name(name) else None


def is_name(text: str) -> bool:
    """Whether a source, or a target, may be called so: letters, digits and `_.-`."""
    return bool(re.fullmatch(r"[\w.-]+", text))


def _matches(location: str) -> list[Path]:
    pattern = str(at_home(location))
    paths = [Path(match) for match in sorted(glob.glob(pattern, recursive=True)) if Path(match).is_file()]
    base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    if "**" in pattern:
        check_readable(base)
    elif not paths and base.is_dir() and not os.access(base, os.R_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(base))
    if not paths:
        raise DataError(
            f"No file matches '{pattern}'.", fix="Check the pattern, and quote it so that the shell leaves it alone."
        )
    return paths


def _one_source(name: str | None, location: str, columns: Mapping[str, str]) -> Source:
    path = at_home(location)
    _check_file(path)
    if path.is_dir():
        return _from_folder(name, path, columns)
    if path.exists():
        return Source(name or stem_of(path), location, load_files([path], columns), (path,))
    if glob.has_magic(location):
        paths = _matches(location)
        return Source(name or "glob", location, load_files(paths, columns), tuple(paths))
    split_folder, _, split = str(path).rpartition(":")
    if split_folder and Path(split_folder).is_dir():
        return _from_folder(name, Path(split_folder), columns, split)
    if (hub := _HUB_ID.match(location)) and path.suffix not in BUILDERS:
        return _from_hub(name, location, hub)
    raise DataError(f"There is no file, folder or Hub dataset '{location}'{_near(path)}.", fix="Check the path.")


def local_files(inputs: Sequence[Input]) -> list[Path] | None:
    """Every local file that these inputs are read from; None if one is in memory, on the Hub or not there."""
    files: list[Path] = []
    for value in inputs:
        if not isinstance(value, (str, Path)):
            return None
        named = name_of(str(value))
        location = named[1] if named else str(value)
        if is_url(location):
            files += [file for place in fetched(location) for file in _all_files(place)]
            continue
        path = at_home(location)
        folder, _, _ = str(path).rpartition(":")
        if not path.exists() and folder and Path(folder).is_dir():
            path = Path(folder)
        if path.is_dir():
            files += _all_files(path)
        elif path.exists():
            files.append(path)
        elif glob.has_magic(location) and (matches := glob.glob(str(path), recursive=True)):
            files += sorted(Path(match) for match in matches if Path(match).is_file())
        else:
            return None
    return files


def _all_files(place: Path) -> list[Path]:
    return sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]


def _check_file(path: Path) -> None:
    """Raises DataError for what is neither file nor folder, which would be waited for, or read without an end."""
    if kind := kind_of_file(path):
        raise DataError(f"{path} is {kind}.", fix="Name a file or a folder; write what comes by a pipe into a file.")


def _from_store(name: str | None, url: str, columns: Mapping[str, str]) -> list[Source]:
    """What a URL names, by its local copies: a source a file, or under a name one source."""
    places = fetched(url)
    if name is None or places[0].is_dir():
        return [replace(_one_source(name, str(path), columns), location=url) for path in places]
    return [Source(name, url, load_files(places, columns), tuple(places))]


def _near(path: Path) -> str:
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        names = os.listdir(found) if found.is_dir() else []
        if not (near := [part] if (found / part).exists() else difflib.get_close_matches(part, names, n=1)):
            return ""
        found /= near[0]
    return f" (did you mean '{found}'?)"


def _from_folder(name: str | None, path: Path, columns: Mapping[str, str], split: str | None = None) -> Source:
    splits = saved_splits(path)
    if splits is not None:
        if split is None and len(splits) == 1:
            split = splits[0]
        if split is None or split not in splits:
            raise DataError(
                f"{path} is a DatasetDict{f' without a split {split!r}' if split else ', and no split was named'}.",
                allowed=", ".join(f"{path}:{key}" for key in splits),
                fix=f"Write {path}:{splits[0]}" if splits else "Save the data set anew: it has no split.",
            )
        location = f"{path}:{split}"
        return Source(name or path.name, location, load_saved(path / split, location))
    if is_saved(path):
        return Source(name or path.name, str(path), load_saved(path, str(path)))
    check_readable(path)
    for file in path.rglob("*"):
        if suffix_of(file) in BUILDERS and not _hidden(file, path):
            _check_file(file)
    files = sorted(
        file
        for file in path.rglob("*")
        if suffix_of(file) in BUILDERS and file.is_file() and not _hidden(file, path) and file.name not in _NO_ROWS
    )
    # A README.txt beside rows is none of them.
    files = [file for file in files if suffix_of(file) != ".txt" or is_conll(file, columns)] or files
    if not files:
        raise DataError(
            f"The folder {path} holds no data file.",
            allowed=f"a save_to_disk folder, or files {', '.join(BUILDERS)}",
            fix="Name a folder or file that holds rows.",
        )
    files, notes = _of_split(files, path, split)
    location = f"{path}:{split}" if split else str(path)
    return Source(name or path.name, location, load_files(files, columns), tuple(files), tuple(notes))


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _of_split(files: list[Path], folder: Path, split: str | None) -> tuple[list[Path], list[str]]:
    """The files of one split where a folder holds several, and what is said of the others; all files where it does not."""
    found: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", str(file.relative_to(folder)).lower())
        found.setdefault(next((name for name, known in _SPLITS.items() if set(known) & set(words)), ""), []).append(
            file
        )
    splits = [name for name in found if name]
    if split is None and len(splits) < 2:
        return files, []
    wanted = split or "train"
    if wanted not in splits:
        raise DataError(
            f"{folder} holds files of the splits {', '.join(splits) or '(none)'}, but none of {wanted}.",
            allowed=", ".join(f"{folder}:{name}" for name in splits) or str(folder),
            fix="Name one of them, or the files by a glob.",
        )
    others = [f"{len(left)} {name or 'other'}" for name, left in found.items() if name != wanted]
    note = (
        f"{folder}: of the split {wanted} {len(found[wanted])} files are read, and not the others ({', '.join(others)})"
    )
    return found[wanted], [note] if others else []


def _from_hub(name: str | None, location: str, hub: re.Match[str]) -> Source:
    split = hub["split"] or "train"
    try:
        table = datasets.load_dataset(hub["name"], hub["config"], split=split)
    except Exception as error:
        what = f"The Hub dataset '{location}' cannot be opened"
        if refused := of_system(error, what, DataError):
            raise refused from error
        if isinstance(error, ValueError):
            raise DataError(
                f"{what}: {error}",
                allowed="NAME, NAME:SPLIT or NAME@CONFIG:SPLIT",
                fix="Name a configuration and a split that the dataset has.",
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"'{location}' is no file here{_near(Path(location))}, and the Hub did not send it: {reason}",
            fix="Check the path. A Hub dataset needs a connection, or HF_HUB_OFFLINE=1 and a filled cache.",
        ) from None
    return Source(name or hub["name"].rpartition("/")[2], location, ArrowTable(table, location))
