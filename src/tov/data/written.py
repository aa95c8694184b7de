"""The user's rows on their way out: as a line of JSON with every value exact, and as Arrow columns of one type each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from tov.data.plain import plain
from tov.data.tables import Table, without_padding
from tov.errors import DataError


@dataclass(frozen=True)
class Values:
    """A column without a type: the values of the rows that have one.

    Attributes:
        values: none of them None.
        places: of their rows.
        size: of all rows.
    """

    values: list[Any]
    places: list[int]
    size: int

    def __len__(self) -> int:
        return self.size

    def array(self) -> pa.Array | None:
        """With the type from which the very values come back, or None where there is no such type."""
        array = _exact(self.values)
        if array is None or len(array) == self.size:
            return array
        at = np.full(self.size, -1)
        at[self.places] = np.arange(len(self.places))
        return array.take(pa.array(at, mask=at < 0))

    def all(self) -> list[Any]:
        """The value of each row, or None."""
        found = dict(zip(self.places, self.values, strict=True))
        return [found.get(place) for place in range(self.size)]


Columns: TypeAlias = dict[str, "pa.Array | Values"]
"""A source's columns over some of its rows: with its types, or as values where it gives none."""
MOST_LEVELS = 16
"""Levels of a nested column beyond which readers of Parquet differ in whether they take it."""
MOST_FIELDS = 256
"""Keys of a nested column beyond which it is a mapping of names to values and no struct: every row would be padded with all."""


class JsonLines:
    """Rows as lines of JSON, and what JSON could not hold of them."""

    def __init__(self) -> None:
        self._not_finite = 0

    def line(self, row: Mapping[str, Any]) -> str:
        """A row as a line. Bytes become base64, dates ISO 8601, decimals text, numbers that are not finite null (counted).

        Raises:
            DataError: a value has no form in JSON.
        """
        try:
            text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=plain)
        except ValueError:
            self._not_finite += 1
            text = json.dumps(_finite(row), ensure_ascii=False, allow_nan=False, default=plain)
        except TypeError as error:
            raise DataError(
                f"A row holds a mapping that has no form in JSON: {error}.",
                allowed="keys that are text",
                fix="Convert the keys to text, or leave the column out.",
            ) from None
        return text + "\n"

    @property
    def notes(self) -> list[str]:
        """What was written otherwise than it was read."""
        if not self._not_finite:
            return []
        return [f"selected.jsonl: {self._not_finite:,} rows hold NaN or Infinity, which JSON lacks: written as null"]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value


def columns_of(table: Table, places: Sequence[int]) -> Columns:
    """The columns of some rows of a table."""
    typed = table.arrow(places)
    known = {name: typed[name].combine_chunks() for name in typed.column_names} if typed is not None else {}
    if len(known) == len(table.columns):
        return {name: known[name] for name in table.columns}
    values = {name: Values([], [], len(places)) for name in table.columns if name not in known}
    for number, row in enumerate(table.rows(places)):  # not rows times columns: each row may have columns of its own
        for name, value in row.items():
            if value is not None and name in values:
                values[name].values.append(value)
                values[name].places.append(number)
    return {name: known[name] if name in known else values[name] for name in table.columns}


def joined(parts: Sequence[Columns]) -> tuple[dict[str, pa.ChunkedArray], list[str]]:
    """Parts one below another, null where a part lacks a column; and the names of the columns that had to become JSON text.

    A column that one type holds exactly has that type, nested or not. The others (text here and a number there, integers beyond
    64 bits, more than `MOST_FIELDS` keys) hold each value as JSON.

    Args:
        parts: at least one; columns of one part have equal lengths.
    """
    sizes = [len(next(iter(part.values()))) for part in parts]
    columns, as_text = dict[str, pa.ChunkedArray](), list[str]()
    for name in dict.fromkeys(name for part in parts for name in part):
        column = [part.get(name, pa.nulls(size)) for part, size in zip(parts, sizes, strict=True)]
        whole = _of_one_type(column)
        if whole is None:
            as_text.append(name)
            whole = pa.chunked_array([pa.array(_as_json(one), pa.string()) for one in column])
        columns[name] = whole
    return columns, as_text


def _of_one_type(parts: Sequence[pa.Array | Values]) -> pa.ChunkedArray | None:
    arrays = []
    for part in parts:
        array = part.array() if isinstance(part, Values) else part
        if array is None:
            return None
        arrays.append(array)
    if any({here, there} <= {_family(array.type) for array in arrays} for here, there in _APART):
        return None
    try:
        schemas = [pa.schema([("column", array.type)]) for array in arrays]
        kind = _readable(pa.unify_schemas(schemas, promote_options="permissive").field(0).type)
        return pa.chunked_array([array.cast(kind) for array in arrays], kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, _NoType):
        return None


_APART = (("text", "bytes"), ("decimal", "float"))
"""Kinds that Arrow would make one type of, in which the one is no longer what it was."""


def _family(kind: pa.DataType) -> str:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "bytes"
    return "decimal" if pa.types.is_decimal(kind) else "float" if pa.types.is_floating(kind) else ""


def _exact(values: list[Any]) -> pa.Array | None:
    """An array from which the very values come back, but for nulls of keys that they lack; None where no type does."""
    if len(_fields(values)) > MOST_FIELDS:
        return None
    for kind in (None, pa.uint64()):
        try:
            array = pa.array(values, kind)
        except (pa.ArrowException, OverflowError, ValueError, TypeError, AttributeError):
            continue
        if _same(without_padding(array.to_pylist()), without_padding(values)):
            return array
    return None


def _fields(value: Any, prefix: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The paths of all keys of all mappings in it."""
    found = set[tuple[str, ...]]()
    if isinstance(value, Mapping):
        for name, one in value.items():
            path = (*prefix, str(name))
            found |= {path, *_fields(one, path)}
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, (Mapping, list)):
                found |= _fields(one, prefix)
    return found


def _same(one: Any, two: Any) -> bool:
    """Equal, and of the same kinds: 1 is neither True nor "1"; NaN equals NaN; a tuple is a list, and so is an array."""
    one, two = (value.tolist() if isinstance(value, np.ndarray) else value for value in (one, two))
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_same(one[name], two[name]) for name in one)
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(map(_same, one, two))
    if isinstance(one, (bool, np.bool_)) != isinstance(two, (bool, np.bool_)):
        return False
    return bool(one == two) or (isinstance(one, float) and isinstance(two, float) and one != one and two != two)


class _NoType(Exception):
    """A type that Parquet, or its readers, lack."""


def _readable(kind: pa.DataType, level: int = 1) -> pa.DataType:
    """A type that all readers of Parquet know: no null types, views and extensions, nested at most `MOST_LEVELS` deep."""
    if level > MOST_LEVELS:
        raise _NoType
    if pa.types.is_null(kind):
        return pa.string()
    if isinstance(kind, pa.UuidType):
        raise _NoType
    if isinstance(kind, pa.BaseExtensionType):
        return _readable(kind.storage_type, level)
    if pa.types.is_struct(kind):
        if not kind.num_fields:
            raise _NoType
        return pa.struct([field.with_type(_readable(field.type, level + 1)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(_readable(kind.value_type, level + 1))
    if pa.types.is_large_list(kind):
        return pa.large_list(_readable(kind.value_type, level + 1))
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    return kind


def _as_json(column: pa.Array | Values) -> list[str | None]:
    values = column.all() if isinstance(column, Values) else column.to_pylist()
    lines = JsonLines()
    return [None if value is None else lines.line({"value": value})[len('{"value": ') : -2] for value in values]
