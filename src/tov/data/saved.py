"""Folders of `Dataset.save_to_disk`, looked through before they are used. Must not know what is in the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

from tov.data.arrow_check import check_file
from tov.data.tables import ArrowTable
from tov.errors import DataError


def is_saved(folder: Path) -> bool:
    """Whether a folder is of `Dataset.save_to_disk`."""
    return (folder / "dataset_info.json").exists() and (folder / "state.json").exists()


def saved_splits(folder: Path) -> list[str] | None:
    """The splits of a folder of `DatasetDict.save_to_disk`; None of any other.

    Raises:
        DataError: its list of splits is broken.
    """
    file = folder / "dataset_dict.json"
    if not file.exists():
        return None
    splits = _json(file).get("splits")
    if not isinstance(splits, list) or not all(isinstance(split, str) and split.isprintable() for split in splits):
        raise _broken(file, "it lists no splits")
    return splits


def load_saved(folder: Path, location: str) -> ArrowTable:
    """The rows of a folder.

    Args:
        folder: of `Dataset.save_to_disk`.
        location: what messages call it.

    Raises:
        DataError: a file of it is broken, missing or cut.
    """
    for name in _data_files(folder):
        check_file(folder / name)
    try:
        return ArrowTable(datasets.load_from_disk(str(folder)), location)
    except PermissionError:
        raise
    except Exception as error:  # what `datasets` makes of broken descriptions has no end
        raise _broken(folder, f"{type(error).__name__}: {error}") from error


def _data_files(folder: Path) -> list[str]:
    files = _json(folder / "state.json").get("_data_files")
    names = (
        [file.get("filename") if isinstance(file, dict) else None for file in files] if isinstance(files, list) else []
    )
    odd = next(
        (name for name in names if not isinstance(name, str) or not _is_there(folder / name)), None if names else "any"
    )
    if odd is not None or None in names:
        raise _broken(folder, f"there is no file {str(odd)[:100]!r} of rows in it")
    return [str(name) for name in names]


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # a name of more characters than a name may have, or with a zero character
        return False


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"it is no JSON: {error}") from None
    except FileNotFoundError:
        raise _broken(file, "it is not there") from None
    if not isinstance(value, dict):
        raise _broken(file, "it is no JSON object")
    return value


def _broken(path: Path, why: str) -> DataError:
    return DataError(
        f"The save_to_disk folder cannot be read: {path}: {why}",
        fix="Copy the whole folder again, or save it anew: a file of it is missing, changed or cut.",
    )
