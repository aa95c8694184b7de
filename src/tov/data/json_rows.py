"""JSON files as rows: an object a line, or an array of objects. Every value is what Python's parser makes of it, so nothing is
rounded, padded, dropped or taken for a date.

A row is parsed when it is wanted: of a file of lines only the places of the lines are held, of an array its text too.
"""

from __future__ import annotations

import json
import re
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tov.data.known import Places, known_places
from tov.data.tables import Table, check_characters, check_nesting
from tov.data.text_files import decode_line, head, lines_of, open_plain
from tov.errors import DataError, kind_of

BOM = b"\xef\xbb\xbf"
BLANK = " \t\r\n"
"""White space of JSON; a form feed is none."""


class JsonTable(Table):
    """Rows of JSON files, one file after another; as of `tov.data.tables.Table`.

    Args:
        paths: files of lines or arrays, maybe compressed.

    Raises:
        DataError: broken JSON, an entry that is no object, a key that stands twice; with file and line.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [_Array(path) if _is_array(path) else _Lines(path) for path in paths]
        self._starts = np.cumsum([0, *(len(file) for file in self._files)])
        self.columns = tuple(dict.fromkeys(name for file in self._files for name in file.columns))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        """As of `Table`."""
        for place in places:
            file, number = self._find(place)
            yield file.row(number)

    def where(self, place: int) -> str:
        """As of `Table`."""
        file, number = self._find(place)
        return file.where(number)

    def _find(self, place: int) -> tuple[_Lines | _Array, int]:
        index = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._files[index], place - int(self._starts[index])

    def places(self) -> dict[str, Places]:
        """Absolute path -> where its rows stand, of the files of lines."""
        return {str(file.path.absolute()): file.places for file in self._files if isinstance(file, _Lines)}


class _Lines:
    """A file of an object a line; blank lines are no rows."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, open_plain(path)
        weakref.finalize(self, self._file.close)  # also when what follows finds the file broken
        self.places = known_places(path) or self._walked()
        self.columns = self.places.columns

    def _walked(self) -> Places:
        """Every line parsed and checked."""
        starts, numbers, columns = array("q"), array("q"), dict[str, None]()  # lists take five times as much
        at = len(BOM) if self._file.read(len(BOM)) == BOM else 0
        self._file.seek(at)
        for number, line in lines_of(self._file, self.path):
            if line.strip(BLANK.encode()):
                starts.append(at)
                numbers.append(number)
                columns.update(dict.fromkeys(_first_read(line, self.path, number)))
            at += len(line)
        starts.append(at)
        blanks = bool(numbers) and numbers[-1] != len(numbers)
        return Places(np.array(starts, np.int64), np.array(numbers, np.int64) if blanks else None, tuple(columns))

    def __len__(self) -> int:
        return len(self.places.bounds) - 1

    def row(self, number: int) -> dict[str, Any]:
        start, stop = self.places.bounds[number : number + 2].tolist()
        self._file.seek(start)
        try:
            row = json.loads(self._file.read(stop - start).decode("utf-8"))
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{self.path} has changed while it was read.", fix="Give the command again.")
        return row

    def where(self, number: int) -> str:
        numbers = self.places.numbers
        line = "" if numbers is None else f" (line {numbers[number]})"
        return f"{self.path}, row {number + 1}{line}"


def _first_read(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """A line's object, if it is one that can be used."""
    text, place = decode_line(line, path, number), f"{path}:{number}"
    try:
        value = json.loads(text, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        goes_on = text.lstrip()[:1] in ("{", "[") and error.pos >= len(text.rstrip())
        one_line = (
            f" If it goes on in the next line, write each object in one: jq -c . {path.name} > NEW.jsonl" * goes_on
        )
        raise DataError(
            f"{place}: the line is broken JSON ({error.msg} at column {error.colno}): {text.strip(BLANK)[:60]!r}",
            fix=f"Correct or delete the line.{one_line}",
        ) from None
    except (_Twice, RecursionError, ValueError) as error:
        raise DataError(f"{place}: {_said(error)}.", fix="Correct or delete the line.") from None
    return _checked(value, place, "line", rb"\u" in line)


class _Twice(Exception):
    """A key that an object has twice: one of its values would be lost."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen = set[str]()
        raise _Twice(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return made


def _said(error: Exception) -> str:
    if isinstance(error, _Twice):
        return f"the key '{error}' stands twice in one object"
    if isinstance(error, RecursionError):
        return "the value is nested too deeply"
    return f"a number cannot be read ({error})"


def _checked(value: Any, place: str, unit: str, escaped: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: this is {kind_of(value)}, not a JSON object.",
            allowed=f"one JSON object a {unit}",
            fix=f"Correct or delete the {unit}.",
        )
    if escaped:  # only an escape can spell half a character
        check_characters(value, place)
    check_nesting(value, place)
    return value


class _Array:
    """A file that is one array of objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_plain(path) as file:
            self._text = _decoded(file, path)
        bounds, columns = array("q"), dict[str, None]()
        for start, stop, row in _entries(self._text, path):
            bounds.extend((start, stop))
            place = f"{path}, row {len(bounds) // 2}"
            columns.update(dict.fromkeys(_checked(row, place, "row", "\\u" in self._text[start:stop])))
        self._bounds = np.array(bounds, np.int64).reshape(-1, 2)
        self.columns = tuple(columns)

    def __len__(self) -> int:
        return len(self._bounds)

    def row(self, number: int) -> dict[str, Any]:
        start, stop = self._bounds[number].tolist()
        row: dict[str, Any] = json.loads(self._text[start:stop])
        return row

    def where(self, number: int) -> str:
        return f"{self.path}, row {number + 1}"


def _decoded(file: BinaryIO, path: Path) -> str:
    data = file.read().removeprefix(BOM)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        for number, line in enumerate(data.split(b"\n"), 1):
            decode_line(line, path, number)
        raise


def _entries(text: str, path: Path) -> Iterator[tuple[int, int, Any]]:
    """(start, stop, value) of an array's entries."""
    decoder, at = json.JSONDecoder(object_pairs_hook=_distinct), _skip(text, 0) + 1
    at = _skip(text, at)
    if text[at : at + 1] == "]":
        _end(text, at + 1, path)
        return
    while True:
        try:
            value, stop = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _broken(path, error.lineno, f"{error.msg} at column {error.colno}") from None
        except (_Twice, RecursionError, ValueError) as error:
            raise _broken(path, text.count("\n", 0, at) + 1, _said(error)) from None
        yield at, stop, value
        at = _skip(text, stop)
        if text[at : at + 1] == "]":
            _end(text, at + 1, path)
            return
        if text[at : at + 1] != ",":
            column = at - text.rfind("\n", 0, at)
            raise _broken(path, text.count("\n", 0, at) + 1, f"Expecting ',' or ']' at column {column}")
        at = _skip(text, at + 1)


def _end(text: str, at: int, path: Path) -> None:
    rest = _skip(text, at)
    if rest < len(text):
        raise _broken(path, text.count("\n", 0, rest) + 1, "something follows the end of the array")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _broken(path: Path, line: int, what: str) -> DataError:
    return DataError(f"{path}:{line}: the file is broken JSON: {what}", fix="Correct the line.")


def _is_array(path: Path) -> bool:
    """Whether a file is an array: of anything under .json, of objects under .jsonl, whose lines may be lists by mistake."""
    named = ".json" in [suffix.lower() for suffix in path.suffixes]
    begins = head(path, 4096).removeprefix(BOM)
    return bool(re.match(rb"\s*\[" if named else rb"\s*\[\s*[{\]]", begins))
