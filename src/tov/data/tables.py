"""Rows of one source by position, each as the user has it: keys in their order, absent keys absent, numbers exact.

What a row means is for layouts (`tov.data.rows`); where it came from for `tov.data.sources`.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from tov.data.nesting import MOST_NESTED, half_character, nested_too_deeply
from tov.errors import DataError, kind_of

_JSON: Any = getattr(datasets, "Json", ())
"""The feature of columns with values of several types; older versions have none."""


class Table(ABC):
    """Rows by position, from 0. What is not abstract is that of a source that says nothing of its columns but their names."""

    columns: tuple[str, ...]
    """Every key that a row has, in order of appearance."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The rows at these places, in this order, for the caller to change."""

    def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """Such a row without padding: Arrow gives every struct of a column the same keys, with nulls that nobody wrote."""
        return row

    @abstractmethod
    def where(self, place: int) -> str:
        """Where a row stands, for messages."""

    def label_names(self, column: str) -> tuple[str, ...]:
        """The names that the data set gives to the label ids of a column, or none."""
        return ()

    def arrow(self, places: Sequence[int]) -> pa.Table | None:
        """Columns with the types that the source gives them; None where it gives none, without those that are JSON text."""
        return None


class ListTable(Table):
    """Rows in memory."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], location: str) -> None:
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                raise DataError(
                    f"{location}, row {number}: this is {kind_of(row)}, not a mapping of columns to values.",
                    allowed="a dict a row",
                    fix="Correct or delete the row.",
                )
            odd = next((name for name in row if not isinstance(name, str)), "")
            if not isinstance(odd, str):
                raise DataError(
                    f"{location}, row {number}: the column {odd!r} is named by {kind_of(odd)}.",
                    allowed="names that are text",
                    fix="Name the column by a text, or leave it out.",
                )
            check_nesting(row, f"{location}, row {number}")
            check_characters(row, f"{location}, row {number}")
        self._rows, self._location = rows, location
        self.columns = tuple(dict.fromkeys(itertools.chain.from_iterable(rows)))

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        """As of `Table`."""
        return (dict(self._rows[place]) for place in places)

    def where(self, place: int) -> str:
        """As of `Table`."""
        return f"{self._location}, row {place + 1}"


class ArrowTable(Table):
    """Rows of a `datasets.Dataset`: of the Hub, of Parquet and Arrow files, in memory."""

    def __init__(self, dataset: datasets.Dataset, location: str) -> None:
        self._dataset = dataset.with_format(None)
        self._location = location
        self.columns: tuple[str, ...] = tuple(dataset.column_names)
        raw = {name: _undecoded(feature) for name, feature in dataset.features.items()}
        self._raw = self._dataset
        if raw != dict(dataset.features):  # an image is what the file has of it, not what a library makes of that
            self._raw = self._dataset.cast(datasets.Features(raw))
        self._features = dict(self._raw.features)  # `datasets` copies them each time that it is asked

    def __len__(self) -> int:
        return len(self._dataset)

    def rows(self, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        """As of `Table`."""
        try:
            block = self._raw[list(places)]
        except UnicodeDecodeError as error:  # Arrow lets any bytes pass
            raise DataError(
                f"{self._location}: a text in rows {places[0] + 1} to {places[-1] + 1} is not UTF-8 ({error.reason}).",
                fix="Write the file anew with UTF-8 text.",
            ) from None
        except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, pa.ArrowException) as error:
            raise DataError(  # a date beyond the year 9999, JSON text that is none
                f"{self._location}: a value in rows {places[0] + 1} to {places[-1] + 1} cannot be read: {error}",
                fix="Correct the value, or write the file anew without its column.",
            ) from error
        names = list(block)
        for values in zip(*block.values(), strict=True):
            yield dict(zip(names, values, strict=True))

    def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """As of `Table`."""
        return {name: without_padding(value, self._features.get(name)) for name, value in row.items()}

    def where(self, place: int) -> str:
        """As of `Table`."""
        return f"{self._location}, row {place + 1}"

    def label_names(self, column: str) -> tuple[str, ...]:
        """Of a `ClassLabel`, or a list of them."""
        feature: Any = self._features.get(column)
        feature = getattr(feature, "feature", feature)
        return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()

    def arrow(self, places: Sequence[int]) -> pa.Table | None:
        """As of `Table`."""
        typed = [name for name, feature in self._features.items() if not _holds_json(feature)]
        if not typed:  # a data set without columns has no rows to take
            return None
        return self._dataset.select_columns(typed).with_format("arrow")[list(places)].combine_chunks()


def _undecoded(feature: Any) -> Any:
    """A feature whose values stay encoded: `{"bytes", "path"}` in place of a decoded image, sound or video."""
    if isinstance(feature, dict):
        return {name: _undecoded(one) for name, one in feature.items()}
    if hasattr(feature, "feature") and not isinstance(feature, datasets.ClassLabel):
        inner = _undecoded(feature.feature)
        return feature if inner == feature.feature else datasets.List(inner)
    if getattr(feature, "decode", None) is True and not isinstance(feature, _JSON):
        return type(feature)(decode=False)
    return feature


def _holds_json(feature: Any) -> bool:
    """Whether a feature is JSON text for any values, or has such a part."""
    if isinstance(feature, dict):
        return any(map(_holds_json, feature.values()))
    return isinstance(feature, _JSON) or (hasattr(feature, "feature") and _holds_json(feature.feature))


class Part(Table):
    """Some rows of another table."""

    def __init__(self, table: Table, places: np.ndarray) -> None:
        self._table, self._places = table, places
        self.columns = table.columns

    def __len__(self) -> int:
        return len(self._places)

    def _of(self, places: Sequence[int]) -> list[int]:
        return [int(self._places[place]) for place in places]

    def rows(self, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        """As of `Table`."""
        return self._table.rows(self._of(places))

    def shown(self, row: dict[str, Any]) -> dict[str, Any]:
        """As of `Table`."""
        return self._table.shown(row)

    def where(self, place: int) -> str:
        """As of `Table`."""
        return self._table.where(int(self._places[place]))

    def label_names(self, column: str) -> tuple[str, ...]:
        """As of `Table`."""
        return self._table.label_names(column)

    def arrow(self, places: Sequence[int]) -> pa.Table | None:
        """As of `Table`."""
        return self._table.arrow(self._of(places))


def without_padding(value: Any, feature: Any = None) -> Any:
    """A value of Arrow without the nulls in its structs, which nobody may have written; those in JSON text somebody has.

    Args:
        value: of a cell.
        feature: what `datasets` says of it, if anything.
    """
    if isinstance(feature, _JSON):
        return value
    if isinstance(value, Mapping):
        parts = feature if isinstance(feature, dict) else {}
        return {name: without_padding(one, parts.get(name)) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [without_padding(one, getattr(feature, "feature", None)) for one in value]
    return value


def check_nesting(row: Any, place: str) -> None:
    """Raises DataError if a row has more than `MOST_NESTED` levels."""
    if nested_too_deeply(row):
        raise DataError(
            f"{place}: the value is nested too deeply.",
            allowed=f"at most {MOST_NESTED} levels of lists and objects",
            fix="Flatten the value, write it as JSON text, or delete the row.",
        )


def check_characters(row: Any, place: str) -> None:
    """Raises DataError if a text holds half a character."""
    if (half := half_character(row)) is not None:
        raise DataError(
            f"{place}: a text holds half a character, the lone surrogate \\u{half:04x}.",
            fix="Correct the line: a text was cut in the middle of a character, or two texts were joined there.",
        )
