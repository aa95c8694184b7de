"""Why a text file cannot be read: its first broken line, in words. Looks only after a library has failed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tov.errors import DataError, kind_of

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def explain_file(path: Path) -> None:
    """Raises DataError with the line of the first thing that is wrong in a JSON, CSV or TSV file, if that can be told."""
    if path.suffix in COMPRESSED or not path.is_file():
        return
    if path.suffix.lower() in (".csv", ".tsv"):
        _explain_encoding(path)
    elif path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        _explain_json(path)


def _explain_encoding(path: Path) -> None:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            decode_line(line, path, number)


def decode_line(line: bytes, path: Path, number: int) -> str:
    """A line of a text file.

    Raises:
        DataError: it is not UTF-8; names the file, the line and the byte.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: byte 0x{line[error.start]:02x} at column {error.start + 1} is not UTF-8.",
            fix=f"Convert the file, e.g. with iconv -f latin1 -t utf-8 {path.name}",
        ) from None


def _explain_json(path: Path) -> None:
    with open(path, "rb") as file:
        if path.suffix == ".json" and file.read(64).lstrip()[:1] in (b"[", b"{"):
            try:
                value = json.loads(path.read_bytes())
            except UnicodeDecodeError:
                _explain_encoding(path)
            except json.JSONDecodeError as error:
                if "Extra data" not in error.msg:
                    raise DataError(
                        f"{path}:{error.lineno}: the file is broken JSON: {error.msg} at column {error.colno}",
                        fix="Correct the line.",
                    ) from None
            else:
                _check_array(value, path)
                return
        file.seek(0)
        kinds: dict[str, tuple[type, int]] = {}
        for number, line in enumerate(file, 1):
            if line.strip():
                _check_line(decode_line(line, path, number), path, number, kinds)


def _check_array(value: Any, path: Path) -> None:
    """The entries of a file that is one JSON array; they are counted, as their lines are not known."""
    kinds: dict[str, tuple[type, int]] = {}
    for number, entry in enumerate(value if isinstance(value, list) else [value], 1):
        _check_entry(entry, f"{path}, row {number}", number, "row", kinds)


def _check_line(line: str, path: Path, number: int, kinds: dict[str, tuple[type, int]]) -> None:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        shown = line.strip()[:60]
        raise DataError(
            f"{path}:{number}: the line is broken JSON ({error.msg} at column {error.colno}): {shown!r}",
            fix="Correct or delete the line.",
        ) from None
    _check_entry(value, f"{path}:{number}", number, "line", kinds)


def _check_entry(value: Any, place: str, number: int, unit: str, kinds: dict[str, tuple[type, int]]) -> None:
    if not isinstance(value, Mapping):
        raise DataError(
            f"{place}: this is {kind_of(value)}, not a JSON object.",
            allowed=f"one JSON object a {unit}",
            fix=f"Correct or delete the {unit}.",
        )
    _check_characters(value, place)
    for key, entry in value.items():
        kind, first = kinds.setdefault(key, (type(entry), number))
        known = entry is not None and kind is not type(None)
        if known and kind is not type(entry) and {kind, type(entry)} != {int, float}:
            raise DataError(
                f"{place}: '{key}' is {kind_of(entry)}, but in {unit} {first} it is {kind_of(kind)}.",
                allowed="one type a column",
                fix="Give the column one type.",
            )
        if kind is type(None):
            kinds[key] = (type(entry), number)


def _check_characters(value: Any, place: str) -> None:
    r"""JSON can spell half a character (`\ud83d` alone), which no text can hold."""
    if not _SURROGATE.search(json.dumps(value)):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise DataError(
            f"{place}: a text holds half a character, the lone surrogate \\u{half:04x}.",
            fix="Correct the line: a text was cut in the middle of a character, or two texts were joined there.",
        ) from None
