"""CSV and TSV files as rows: every cell is the text that it is, and a line that does not fit its header is an error."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow as pa

from tov.data.text_files import decode_line, open_plain
from tov.errors import DataError

BLOCK_ROWS = 10_000
_SEPARATORS = {";": "semicolon", "\t": "tab", ",": "comma"}
"""What programs put between cells."""


def load_csv(paths: Sequence[Path], separators: Sequence[str]) -> datasets.Dataset:
    """The rows of CSV or TSV files, columns of text.

    Args:
        paths: files with the same header.
        separators: of each file, what stands between its cells.

    Raises:
        DataError: a line with more or fewer cells than the header, a quote that is not closed, a column named twice; with file
            and line.
    """
    tables, first = [], None
    for path, separator in zip(paths, separators, strict=True):
        table = _read(path, separator)
        if first is not None and set(table.column_names) != set(first.column_names):
            raise DataError(
                f"{path} has the columns {', '.join(table.column_names)}, but {paths[0]} has "
                f"{', '.join(first.column_names)}.",
                allowed="the same columns in all files of one input",
                fix="Name them as two inputs.",
            )
        first = table if first is None else first
        tables.append(table.select(first.column_names))
    return datasets.Dataset(pa.concat_tables(tables))


def _read(path: Path, separator: str) -> pa.Table:
    """A file's table; text longer than 2 GiB a column takes several chunks."""
    lines = _cells(path, separator)
    names = _header(next(lines, (0, []))[1], path)
    other = next(
        (
            name
            for sign, name in _SEPARATORS.items()
            if sign != separator and [sign in name for name in names] == [True]
        ),
        None,
    )
    if other:
        raise _other_separator(path, names[0], other)
    blocks, block = [], list[list[str]]()
    for number, cells in lines:
        if len(cells) != len(names):
            raise _ragged(path, number, cells, names)
        block.append(cells)
        if len(block) == BLOCK_ROWS:
            blocks.append(_table(names, block))
            block = []
    return pa.concat_tables([*blocks, _table(names, block)])


def _table(names: list[str], block: list[list[str]]) -> pa.Table:
    columns = zip(*block, strict=True) if block else ([] for _ in names)
    return pa.table([pa.array(list(column), pa.string()) for column in columns], names)


def _cells(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(the line that it begins on, its cells) of each row; empty lines are no rows."""
    csv.field_size_limit(sys.maxsize)
    with open_plain(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", newline="")
        reader = csv.reader(text, delimiter=separator, strict=True)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader, None)
            except UnicodeDecodeError:
                _say_encoding(path)
                raise
            except csv.Error as error:
                raise _odd_quote(path, number, str(error)) from None
            if cells is None:
                return
            if separator == "\t" and any("\t" in cell and "\n" in cell for cell in cells):
                raise _odd_quote(path, number, "it holds tabs and ends on another line")
            if cells:
                yield number, cells


def _odd_quote(path: Path, number: int, what: str) -> DataError:
    return DataError(
        f"{path}:{number}: a cell that begins with a quotation mark is not closed as it should be ({what}).",
        fix='Write a quotation mark inside a cell twice and put the cell in quotation marks: "a ""b"" c"; or use JSON Lines.',
    )


def _ragged(path: Path, number: int, cells: list[str], names: list[str]) -> DataError:
    return DataError(
        f"{path}, line {number}: the line has {len(cells)} cells, but the header has {len(names)} ({', '.join(names)}).",
        allowed="as many cells as the header in every line",
        fix="Correct the line: a separator too many or too few, or text with a separator that is not in quotation marks.",
    )


def _header(cells: list[str], path: Path) -> list[str]:
    names = [name or f"Unnamed: {place}" for place, name in enumerate(cells)]  # as pandas calls them
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path} has two columns '{twice[0]}'.", fix="Rename one of them.")
    return names


def _other_separator(path: Path, header: str, sign: str) -> DataError:
    return DataError(
        f"{path}:1: the header is one cell, {header!r}, which holds a {sign}.",
        allowed="commas between the cells of a .csv file, tabs between those of a .tsv file",
        fix="Save the file anew with commas, or with tabs and the suffix .tsv; or as JSON Lines.",
    )


def _say_encoding(path: Path) -> None:
    with open_plain(path) as file:
        for number, line in enumerate(file, 1):
            decode_line(line, path, number)
