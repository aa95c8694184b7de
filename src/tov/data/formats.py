"""Files of one format as one table, the format told by their suffix. Which files are meant is for `tov.data.sources`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tov.data.arrow_files import load_arrow
from tov.data.conll import SUFFIXES as CONLL_SUFFIXES
from tov.data.conll import is_conll, load_conll
from tov.data.csv_rows import load_csv
from tov.data.json_rows import JsonTable
from tov.data.tables import ArrowTable, Table
from tov.data.text_files import COMPRESSED
from tov.errors import DataError, of_system
from tov.system import check_readable

BUILDERS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv",
    ".arrow": "arrow", ".txt": "conll", **dict.fromkeys(CONLL_SUFFIXES, "conll"),
}  # fmt: skip
"""Suffix -> format. A .txt or .tsv file is looked into."""
_ENDS = re.compile(f"({'|'.join(map(re.escape, (*BUILDERS, *COMPRESSED)))})+$", re.IGNORECASE)


def stem_of(path: Path) -> str:
    """The name of a file without what says its format."""
    return _ENDS.sub("", path.name) or path.name


def suffix_of(path: Path) -> str:
    """The suffix that tells the format, in small letters; empty where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def load_files(paths: list[Path], columns: Mapping[str, str]) -> Table:
    """The rows of files of one format; `columns` may name those of CoNLL files by number.

    Raises:
        DataError: several formats or an unknown one, no rows, broken content (with file and line).
    """
    for path in paths:
        check_readable(path)
    kinds = {suffix_of(path) for path in paths}
    builders = {BUILDERS.get(kind) for kind in kinds}
    readable = f"{', '.join(BUILDERS)} (also .gz, .zst), one format a source"
    if None in builders:
        odd = next(path for path in paths if suffix_of(path) not in BUILDERS)
        raise DataError(
            f"{odd} has a format that tov does not read: {suffix_of(odd) or 'no suffix'}.",
            allowed=readable,
            fix="Convert the file, or name other files with a glob.",
        )
    if len(builders) != 1:
        raise DataError(
            f"The {len(paths)} files of one input have several formats: {', '.join(sorted(kinds))}.",
            allowed=readable,
            fix="Name the files of one format with a glob, and the others as another input.",
        )
    empty = next((path for path in paths if path.stat().st_size == 0), None)
    if empty:
        raise DataError(f"{empty} is empty (0 bytes).", fix="Name a file with at least one row.")
    builder = builders.pop()
    assert builder
    try:
        return _load(builder, paths, kinds, columns)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        if refused := of_system(error, f"{paths[0]} cannot be read", DataError):
            raise refused from error
        if "corresponds to no data" in str(error):
            raise DataError(f"{paths[0]} has no rows.", fix="Name a file with at least one row.") from None
        cause = error.__cause__ or error
        raise DataError(
            f"{paths[0]} cannot be read: {cause}", fix="Check that its content is what its suffix says."
        ) from error


def _load(builder: str, paths: list[Path], kinds: set[str], columns: Mapping[str, str]) -> Table:
    if builder == "json":
        return JsonTable(paths)
    location = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    if all_conll(paths, columns):
        return ArrowTable(load_conll(paths, columns), location)
    if builder == "conll":
        raise DataError(
            f"{paths[0]} is a text file, but no CoNLL file with a word and its tag on each line.",
            allowed=", ".join(suffix for suffix in BUILDERS if suffix not in CONLL_SUFFIXES and suffix != ".txt"),
            fix='Write each row of text as a line of JSON: {"text": "the row"}',
        )
    if builder == "csv":
        return ArrowTable(load_csv(paths, ["\t" if suffix_of(path) == ".tsv" else "," for path in paths]), location)
    return ArrowTable(load_arrow(builder, paths), location)


def all_conll(paths: Sequence[Path], columns: Mapping[str, str]) -> bool:
    """Whether files are read as CoNLL files; .txt and .tsv files are looked into."""
    kinds = {suffix_of(path) for path in paths}
    if kinds <= {".txt", ".tsv"}:
        return bool(paths) and all(is_conll(path, columns) for path in paths)
    return kinds <= {*CONLL_SUFFIXES, ".txt"}
