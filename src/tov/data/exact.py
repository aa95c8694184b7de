"""JSON files in which Arrow's reader would change values, read with Python's own parser instead.

Arrow takes text that looks like a date for a timestamp, and a JSON array goes through pandas, which rounds numbers.
Python's parser is slower, so it reads only files of these two kinds.
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator, Sequence
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pyarrow as pa

from tov.files import content_digest

_DATE = re.compile(rb'"\d{4}-\d\d-\d\d')
_BLOCK_BYTES, _BLOCK_ROWS = 1 << 24, 10_000


def needs_exact(paths: Sequence[Path]) -> bool:
    """Whether any of these JSON files is an array or holds a text that begins like a date."""
    return any(_is_array(path) or _holds_date(path) for path in paths)


def load_exact(paths: Sequence[Path]) -> datasets.Dataset:
    """The rows of JSON files, every value as the file holds it.

    Raises:
        ValueError, pa.ArrowException: broken JSON, or a column of several types.
    """
    if any(_is_array(path) for path in paths):
        return _in_memory(_rows([str(path) for path in paths]))
    names = tuple(str(path) for path in paths)  # tuples: `datasets` would share a list out to several processes
    stamps = tuple(map(content_digest, paths))
    try:
        features = _features(_rows(names))
    except (
        pa.ArrowInvalid,
        pa.ArrowTypeError,
    ):  # values of several types: `datasets` keeps those as JSON, in memory only
        return _in_memory(_rows(names))
    dataset: datasets.Dataset = datasets.Dataset.from_generator(
        _filled, features=features, gen_kwargs={"paths": names, "columns": tuple(features), "stamps": stamps}
    )
    return dataset


def _in_memory(rows: Iterator[dict[str, Any]]) -> datasets.Dataset:
    make = datasets.Dataset.from_list
    mixed = {"on_mixed_types": "use_json"} if "on_mixed_types" in signature(make).parameters else {}
    dataset: datasets.Dataset = make(list(rows), **mixed)
    return dataset


def open_bytes(path: Path) -> BinaryIO:
    """A file for reading, decompressed as its suffix says."""
    opened: Any = lzma.open(path) if path.suffix == ".xz" else pa.input_stream(str(path), compression="detect")  # noqa: SIM115
    return opened


def _is_array(path: Path) -> bool:
    if ".json" not in path.suffixes:
        return False
    with open_bytes(path) as file:
        return file.read(64).lstrip()[:1] == b"["


def _holds_date(path: Path) -> bool:
    with open_bytes(path) as file:
        tail = b""
        while block := file.read(_BLOCK_BYTES):
            if _DATE.search(tail + block):
                return True
            tail = block[-16:]
    return False


def _rows(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    for path in map(Path, paths):
        if _is_array(path):
            with open_bytes(path) as file:
                rows = json.loads(file.read())
        else:
            rows = _lines(path)
        for row in rows:
            if not isinstance(row, dict):
                raise ValueError(f"a row is {row!r:.60}, should be an object")
            yield row


def _lines(path: Path) -> Iterator[Any]:
    with open_bytes(path) as file:
        rest = b""
        while block := file.read(_BLOCK_BYTES):
            *whole, rest = (rest + block).split(b"\n")
            yield from (json.loads(line) for line in whole if line.strip())
        if rest.strip():
            yield json.loads(rest)


def _features(rows: Iterator[dict[str, Any]]) -> datasets.Features:
    """The columns of all rows in order of appearance, with types that hold every value."""
    schema, order = pa.schema([]), dict[str, None]()
    while block := list(islice(rows, _BLOCK_ROWS)):
        for row in block:
            order.update(dict.fromkeys(row))
        schema = pa.unify_schemas([schema, pa.schema(list(pa.array(block).type))], promote_options="permissive")
    return datasets.Features.from_arrow_schema(pa.schema([schema.field(name) for name in order]))


def _filled(paths: Sequence[str], columns: Sequence[str], stamps: Any) -> Iterator[dict[str, Any]]:
    """Every row with every column; `stamps` only tells `datasets` that a file has changed."""
    for row in _rows(paths):
        yield {name: row.get(name) for name in columns}
