"""Rows by position: a stable `row_id` over all sources, rows as the model sees them, originals for the output.

Knows layouts and sources; must not know tokenizers, models or scores. Nothing here grows with the pool but two
64-bit hashes and one byte a row.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from tov.data.cells import BadRow
from tov.data.diagnose import explain_file
from tov.data.labelled import Reading, Tagged
from tov.data.labels import LabelMap, names_of
from tov.data.rows import LAYOUTS as ALL_LAYOUTS
from tov.data.rows import Layout, Row, content_hash, layout_of, prompt_hash
from tov.data.sources import Input, Source, open_sources
from tov.errors import DataError, did_you_mean

READ_ROWS = 1000
"""Rows read from Arrow at once."""


@dataclass(frozen=True)
class Pool:
    """Rows of several sources, numbered in the order given: the first row of the first source is row_id 0.

    Attributes:
        sources: where rows come from.
        layouts: each source's columns; all of one task.
        readings: how each source's labels are read.
        columns: our column names -> the user's.
    """

    sources: tuple[Source, ...]
    layouts: tuple[Layout, ...]
    readings: tuple[Reading, ...]
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """The task of all sources."""
        return self.layouts[0].task

    @property
    def reads_labels_otherwise(self) -> bool:
        """Whether labels may be read otherwise than they stand in the rows: by id, from spans, mapped, repaired."""
        return any(
            reading.names or reading.mapping or reading.repair or layout.name == "spans"
            for layout, reading in zip(self.layouts, self.readings, strict=True)
            if layout.task != "instruction"
        )

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

    def rows(self, start: int, stop: int) -> Iterator[Row | BadRow]:
        """The rows from `start` up to `stop` in order; one that cannot be used comes as its `BadRow`."""
        starts = self.starts
        for index in range(len(self.sources)):
            first, last = max(start, int(starts[index])), min(stop, int(starts[index + 1]))
            for at in range(first, last, READ_ROWS):
                offset = int(starts[index])
                yield from self._read(index, range(at - offset, min(at + READ_ROWS, last) - offset))

    def at(self, row_ids: Sequence[int] | np.ndarray) -> list[Row | BadRow]:
        """The rows with these ids, in this order."""
        row_ids = np.asarray(row_ids)
        indices, starts = self.source_index(row_ids), self.starts
        found: dict[int, Row | BadRow] = {}
        for index in np.unique(indices):
            wanted = row_ids[indices == index]
            found.update(zip(wanted.tolist(), self._read(int(index), (wanted - starts[index]).tolist()), strict=True))
        return [found[row_id] for row_id in row_ids.tolist()]

    def _read(self, index: int, places: Sequence[int]) -> Iterator[Row | BadRow]:
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
            yield self._convert(index, dict(zip(names, values, strict=True)))

    def _convert(self, index: int, row: dict[str, Any]) -> Row | BadRow:
        for ours, theirs in self.columns.items():
            if theirs in row:
                row[ours] = row[theirs]
        try:
            return self.layouts[index].convert(row, self.readings[index])
        except BadRow as bad:
            return bad

    def cells(self, column: str | None) -> list[str | None]:
        """(N,) a column's values as text; None where a row (or its source) has none."""
        values: list[str | None] = []
        for source in self.sources:
            has = column is not None and column in source.table.column_names
            cells = source.table[column] if has else [None] * len(source.table)
            values += [None if cell is None else str(cell) for cell in cells]
        return values

    def original(self, row_id: int) -> dict[str, Any]:
        """One row with the columns of its own source and no others."""
        index = int(self.source_index(np.array([row_id]))[0])
        return dict(self.sources[index].table[row_id - int(self.starts[index])])

    def subset(self, row_ids: np.ndarray) -> Pool:
        """The pool of these rows alone, which must be in order; every source stays, even with no row left."""
        indices, starts = self.source_index(row_ids), self.starts
        sources = tuple(
            replace(source, table=source.table.select(row_ids[indices == index] - starts[index]))
            for index, source in enumerate(self.sources)
        )
        return replace(self, sources=sources)

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
        content: (N,) uint64 content hash, 0 for rows that cannot be used.
        prompt: (N,) uint64 prompt hash, 0 likewise.
        bad: row_id -> why it cannot be used.
        labels: each source's labels (entity types, classes); none for instruction tuning.
        repaired: rows whose tags were made BIO2.
    """

    content: np.ndarray
    prompt: np.ndarray
    bad: dict[int, str]
    labels: tuple[frozenset[str], ...] = ()
    repaired: int = 0

    @property
    def fingerprint(self) -> str:
        """16 hex digits: the same rows in the same order, the same fingerprint."""
        return hashlib.sha256(self.content.tobytes()).hexdigest()[:16]

    def subset(self, row_ids: np.ndarray) -> Index:
        """The index of these rows alone; `labels` and `repaired` stay those of all."""
        places = {int(row_id): place for place, row_id in enumerate(row_ids)}
        bad = {places[row_id]: reason for row_id, reason in self.bad.items() if row_id in places}
        return replace(self, content=self.content[row_ids], prompt=self.prompt[row_ids], bad=bad)


def open_pool(
    inputs: Sequence[Input],
    *,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    label_map: LabelMap | None = None,
    repair_bio: bool = False,
) -> Pool:
    """Opens inputs as one pool and finds each source's layout.

    Args:
        inputs: what the user names.
        columns: our column names -> the user's.
        task: of `tov.config.Task`; None: the task of the first source's columns.
        label_map: see `tov.data.labels`.
        repair_bio: whether tags that are not BIO2 are made so.

    Raises:
        DataError: an input cannot be read, has no layout of the task, or two sources' columns cannot be put in one table.
    """
    columns = columns or {}
    sources = open_sources(inputs)
    if not sources:
        raise DataError("no input was named", fix="name at least one file")
    layouts: list[Layout] = []
    for source in sources:
        layouts.append(_layout(source, columns, task))
        task = layouts[0].task
    readings = tuple(
        Reading(names_of(source.table, layout.labels, columns), (label_map or LabelMap()).of(source.name), repair_bio)
        for source, layout in zip(sources, layouts, strict=True)
    )
    _one_schema(sources)
    return Pool(sources, tuple(layouts), readings, dict(columns))


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


def _layout(source: Source, columns: Mapping[str, str], task: str | None) -> Layout:
    names = source.table.column_names
    renamed = [ours for ours, theirs in columns.items() if theirs in names]
    layout = layout_of([*names, *renamed], task)
    if layout is None:
        fitting = [layout for layout in ALL_LAYOUTS if task in (None, layout.task)]
        wanted = sorted({column for layout in fitting for column in layout.columns})
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
        other = layout_of([*names, *renamed])
        is_other = f" (they are one for {other.task}: {' + '.join(other.columns)})" if other else ""
        example = " ".join(f"{column}=YOURS" for column in fitting[2 % len(fitting)].columns)
        raise DataError(
            f"{source.location}: columns {', '.join(names)} are no layout that tov knows"
            f"{f' for {task}' if task else ''}{near or is_other}",
            allowed="; ".join(" + ".join(layout.columns) for layout in fitting),
            fix=f"rename them, or say which is which: --columns {example}",
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
    """One pass over all rows: hashes, labels, and rows that cannot be used.

    Raises:
        DataError: such a row, under `bad_rows="error"`, with its file and row.
    """
    content, prompt = np.zeros(len(pool), np.uint64), np.zeros(len(pool), np.uint64)
    bad: dict[int, str] = {}
    labels: list[frozenset[str]] = []
    repaired = 0
    for start, stop in itertools.pairwise(pool.starts.tolist()):
        found: set[str] = set()
        for row_id, row in enumerate(pool.rows(start, stop), start):
            if isinstance(row, BadRow):
                if bad_rows == "error":
                    raise _unusable(pool.where(row_id), row, role)
                bad[row_id] = str(row)
                continue
            content[row_id], prompt[row_id] = content_hash(row), prompt_hash(row)
            found |= row.labels
            repaired += isinstance(row, Tagged) and row.repaired
        labels.append(frozenset(found))
    return Index(content, prompt, bad, tuple(labels), repaired)


def _unusable(place: str, row: BadRow, role: str) -> DataError:
    fixes = [
        "correct the row" if role == "pool" else f"correct or delete the row: every row of the {role} must be usable"
    ]
    fixes += [row.fix] * bool(row.fix) + ["--bad-rows skip counts and skips such rows"] * (role == "pool")
    return DataError(f"{place}: {row}", fix="; ".join(fixes))


def files_of(pool: Pool) -> list[Path]:
    """The local files behind a pool."""
    return [path for source in pool.sources for path in source.files]
