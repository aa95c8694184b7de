"""Rows by position: a stable `row_id` over all sources, conversations for the model, originals for the output.

Knows layouts and sources; must not know tokenizers, models or scores. Nothing here grows with the pool but two
64-bit hashes and one byte a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from tov.data.diagnose import explain_file
from tov.data.rows import LAYOUTS as ALL_LAYOUTS
from tov.data.rows import BadRow, Conversation, Layout, content_hash, layout_of, prompt_hash
from tov.data.sources import Input, Source, open_sources
from tov.errors import DataError, did_you_mean

READ_ROWS = 1000
"""Rows read from Arrow at once."""


@dataclass(frozen=True)
class Pool:
    """Rows of several sources, numbered in the order given: the first row of the first source is row_id 0."""

    sources: tuple[Source, ...]
    layouts: tuple[Layout, ...]
    columns: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def starts(self) -> np.ndarray:
        """(sources + 1,) the row_id at which each source starts, and the total."""
        return np.cumsum([0, *(len(source.table) for source in self.sources)])

    def source_index(self, row_ids: np.ndarray) -> np.ndarray:
        """(n,) the position of each row's source."""
        return np.searchsorted(self.starts, row_ids, side="right") - 1

    def source_names(self, row_ids: np.ndarray) -> list[str]:
        """The name of each row's source."""
        return [self.sources[index].name for index in self.source_index(row_ids)]

    def where(self, row_id: int) -> str:
        """`pool.jsonl, row 17` (counted from 1, as lines are): for messages."""
        index = int(self.source_index(np.array([row_id]))[0])
        return f"{self.sources[index].location}, row {row_id - int(self.starts[index]) + 1}"

    def conversations(self, start: int, stop: int) -> Iterator[Conversation | BadRow]:
        """The rows from `start` up to `stop` in order; a row that is no conversation comes as its `BadRow`."""
        starts = self.starts
        for index in range(len(self.sources)):
            first, last = max(start, int(starts[index])), min(stop, int(starts[index + 1]))
            for at in range(first, last, READ_ROWS):
                offset = int(starts[index])
                yield from self._read(index, range(at - offset, min(at + READ_ROWS, last) - offset))

    def at(self, row_ids: Sequence[int] | np.ndarray) -> list[Conversation | BadRow]:
        """The rows with these ids, in this order."""
        row_ids = np.asarray(row_ids)
        indices, starts = self.source_index(row_ids), self.starts
        found: dict[int, Conversation | BadRow] = {}
        for index in np.unique(indices):
            wanted = row_ids[indices == index]
            found.update(zip(wanted.tolist(), self._read(int(index), (wanted - starts[index]).tolist()), strict=True))
        return [found[row_id] for row_id in row_ids.tolist()]

    def _read(self, index: int, places: Sequence[int]) -> Iterator[Conversation | BadRow]:
        """Rows of one source by their places in it."""
        source = self.sources[index]
        try:
            block = source.table[places]
        except UnicodeDecodeError as error:  # Arrow's JSON reader lets any bytes pass
            for path in source.files:
                explain_file(path)
            raise DataError(
                f"{source.location}, rows {places[0] + 1} to {places[-1] + 1}: a text is not UTF-8 ({error.reason})",
                fix="convert the file to UTF-8",
            ) from None
        names = list(block)
        for values in zip(*block.values(), strict=True):
            yield self._convert(self.layouts[index], dict(zip(names, values, strict=True)))

    def _convert(self, layout: Layout, row: dict[str, Any]) -> Conversation | BadRow:
        for ours, theirs in self.columns.items():
            if theirs in row:
                row[ours] = row[theirs]
        try:
            return layout.convert(row)
        except BadRow as bad:
            return bad

    def original(self, row_id: int) -> dict[str, Any]:
        """One row with the columns of its own source and no others."""
        index = int(self.source_index(np.array([row_id]))[0])
        return dict(self.sources[index].table[row_id - int(self.starts[index])])

    def take(self, row_ids: np.ndarray) -> datasets.Dataset:
        """The original rows with these ids, in this order, all columns as they are (absent ones null)."""
        indices, starts = self.source_index(row_ids), self.starts
        parts, order = [], []
        for index, source in enumerate(self.sources):
            places = np.flatnonzero(indices == index)
            if len(places):
                part = source.table.select(row_ids[places] - starts[index])
                parts.append(part.with_format("arrow")[:])
                order.append(places)
        table = pa.concat_tables(parts, promote_options="permissive")
        back = np.argsort(np.concatenate(order), kind="stable")
        return datasets.Dataset(table.take(pa.array(back)))


@dataclass(frozen=True)
class Index:
    """What one pass over the text of all rows tells.

    Attributes:
        content: (N,) uint64 content hash, 0 for rows that are no conversation.
        prompt: (N,) uint64 prompt hash, 0 likewise.
        bad: row_id -> why it is no conversation.
    """

    content: np.ndarray
    prompt: np.ndarray
    bad: dict[int, str]

    @property
    def fingerprint(self) -> str:
        """16 hex digits: the same rows in the same order, the same fingerprint."""
        return hashlib.sha256(self.content.tobytes()).hexdigest()[:16]


def open_pool(inputs: Sequence[Input], *, columns: Mapping[str, str] | None = None) -> Pool:
    """Opens inputs as one pool and finds each source's layout.

    Raises:
        DataError: an input cannot be read, has no known layout, or two sources' columns cannot be put in one table.
    """
    columns = columns or {}
    sources = open_sources(inputs)
    if not sources:
        raise DataError("no input was named", fix="name at least one file")
    layouts = tuple(_layout(source, columns) for source in sources)
    _one_schema(sources)
    return Pool(sources, layouts, dict(columns))


def check_mapping(columns: Mapping[str, str], *pools: Pool) -> None:
    """A mapping is for the inputs that have its column, in pool or target; none may be without any.

    Raises:
        DataError: no input has the column.
    """
    sources = [source for pool in pools for source in pool.sources]
    names = {name for source in sources for name in source.table.column_names}
    for ours, theirs in columns.items():
        if theirs not in names:
            raise DataError(
                f"--columns {ours}={theirs}: no column '{theirs}'{did_you_mean(theirs, names)} in "
                + ", ".join(dict.fromkeys(source.location for source in sources)),
                allowed=", ".join(sorted(names)),
                fix="correct the name after '='",
            )


def _layout(source: Source, columns: Mapping[str, str]) -> Layout:
    names = source.table.column_names
    renamed = [ours for ours, theirs in columns.items() if theirs in names]
    layout = layout_of([*names, *renamed])
    if layout is None:
        wanted = sorted({column for layout in ALL_LAYOUTS for column in layout.columns})
        unmatched = [f"{ours}={theirs}" for ours, theirs in columns.items() if theirs not in names]
        if unmatched:
            theirs = unmatched[0].partition("=")[2]
            raise DataError(
                f"--columns {unmatched[0]}: no column '{theirs}'{did_you_mean(theirs, names)} in {source.location}, "
                "whose columns are no layout without it",
                allowed=", ".join(names),
                fix="correct the name after '='",
            )
        near = next((f" ('{name}'{did_you_mean(name, wanted)})" for name in names if did_you_mean(name, wanted)), "")
        raise DataError(
            f"{source.location}: columns {', '.join(names)} are no layout that tov knows{near}",
            allowed="; ".join(" + ".join(layout.columns) for layout in ALL_LAYOUTS),
            fix="rename them, or say which is which: --columns prompt=YOURS completion=YOURS",
        )
    return layout


def _one_schema(sources: tuple[Source, ...]) -> None:
    """Checks before any work that the chosen rows of all sources will fit one output table."""
    schema = sources[0].table.features.arrow_schema
    for position, other in enumerate(sources[1:], 1):
        try:
            schema = pa.unify_schemas([schema, other.table.features.arrow_schema], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            clash = next((one for one in sources[:position] if not _fit(one, other)), sources[0])
            raise DataError(
                f"{clash.location} and {other.location} have a column of different types: {error}",
                fix="give the column one type, rename it in one of them, or leave it out",
            ) from None


def _fit(one: Source, other: Source) -> bool:
    try:
        pa.unify_schemas(
            [one.table.features.arrow_schema, other.table.features.arrow_schema], promote_options="permissive"
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True


def index_rows(pool: Pool, *, bad_rows: str = "error", role: str = "pool") -> Index:
    """One pass over all rows: hashes, and rows that are no conversation.

    Raises:
        DataError: such a row, under `bad_rows="error"`, with its file and row.
    """
    content, prompt = np.zeros(len(pool), np.uint64), np.zeros(len(pool), np.uint64)
    bad: dict[int, str] = {}
    for row_id, row in enumerate(pool.conversations(0, len(pool))):
        if isinstance(row, Conversation):
            content[row_id], prompt[row_id] = content_hash(row), prompt_hash(row)
        elif bad_rows == "error":
            raise DataError(
                f"{pool.where(row_id)}: {row}",
                fix="correct the row, or give --bad-rows skip to count and skip such rows"
                if role == "pool"
                else f"correct or delete the row: every row of the {role} must be a conversation",
            )
        else:
            bad[row_id] = str(row)
    return Index(content, prompt, bad)


def files_of(pool: Pool) -> list[Path]:
    """The local files behind a pool."""
    return [path for source in pool.sources for path in source.files]
