"""What every row tells whatever its task, what makes two rows the same, and column layouts: which columns make which row.

Knows no layout by name: the tasks have them (`tov.tasks`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from tov.data.labels import Reading
from tov.data.plain import plain
from tov.errors import DataError


class Row(Protocol):
    """A row as the model sees it, whatever file format it came in."""

    @property
    def text(self) -> str:
        """What a method that reads text is given."""

    @property
    def content(self) -> Sequence[Any]:
        """All that the model sees and must predict, as JSON has it: rows of the same content are repeats."""

    @property
    def question(self) -> Sequence[str]:
        """What the model is given, in texts: a row whose question is the target's is not to be chosen."""

    @property
    def labels(self) -> set[str]:
        """What target and pool must agree on (entity types, a label); empty where text is predicted."""

    @property
    def repaired(self) -> bool:
        """Whether its labels were corrected on reading."""


Convert: TypeAlias = Callable[[Mapping[str, Any], Reading], Row]


@dataclass(frozen=True)
class Layout:
    """A column layout.

    Attributes:
        name: as messages call it.
        task: whose rows these are, by name.
        columns: the columns that a source of this layout has.
        convert: from a row to what the model sees; raises BadRow.
        labels: the column that holds label ids or names, if any.
        converted: whether labels are made of something else, so that no column holds them.
        last: whether it is tried only where no other fits, of any task.
        pairs: whether a row has a chosen and a rejected answer (its `rejected` is the row with that).
        beside: columns that are read too, where a source has them.
    """

    name: str
    task: str
    columns: tuple[str, ...]
    convert: Convert
    labels: str = ""
    converted: bool = False
    last: bool = False
    pairs: bool = False
    beside: tuple[str, ...] = ()


def layout_of(columns: Sequence[str], layouts: Sequence[Layout], task: str | None = None) -> Layout | None:
    """The first layout whose columns are all among these, for a task where one is named, or None."""
    fitting = (layout for layout in layouts if set(layout.columns) <= set(columns))
    return next((layout for layout in fitting if task in (None, layout.task)), None)


def renamed(names: Collection[str], columns: Mapping[str, str]) -> dict[str, str]:
    """The name that a layout reads -> the user's, of each column: one that stands for another no longer stands for itself.

    Args:
        names: the user's columns.
        columns: our names -> the user's; of those that are there.
    """
    mapped = {ours: theirs for ours, theirs in columns.items() if theirs in names}
    taken = set(mapped.values())
    return {name: name for name in names if name not in taken} | mapped


def settled(value: Any) -> Any:
    """A value as JSON has it, with keys in one order: file formats differ in that, and in nothing that a model sees."""
    if isinstance(value, Mapping):
        return {str(key): settled(value[key]) for key in sorted(value, key=str)}
    return [settled(entry) for entry in value] if isinstance(value, list | tuple) else value


def _hash(value: Any) -> int:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_as_written)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _as_written(value: Any) -> Any:
    """In the form of `selected.jsonl`, so that a row that is read back has the same hash."""
    try:
        return plain(value)
    except DataError:  # no such row can be written
        return str(value)


def content_hash(row: Row) -> int:
    """64-bit hash of all that the model sees and must predict: equal for equal rows, whatever file format they came in."""
    return _hash(row.content)


def prompt_hash(row: Row) -> int:
    """64-bit hash of what the model is given (turns, words or text), ignoring case and white space."""
    return _hash([" ".join(text.lower().split()) for text in row.question])


def hexes(hashes: np.ndarray) -> list[str]:
    """Hashes as score tables and manifests have them: 16 hex digits each."""
    return [f"{int(value):016x}" for value in hashes]
