"""Rows by position: a stable `row_id` over all sources, rows as the model sees them, originals for the output.

Is handed layouts and knows sources; must not know tasks, tokenizers, models or scores. Nothing here grows with the pool but two
64-bit hashes and one byte a row.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tov.data.cells import BadRow, NotGold
from tov.data.labels import LabelMap, Reading, Spans
from tov.data.rows import Layout, Row, content_hash, layout_of, prompt_hash, renamed
from tov.data.sources import Input, Source, open_sources
from tov.data.tables import Part
from tov.errors import DataError, did_you_mean

READ_ROWS = 1000
"""Rows read at once, where they lie side by side."""
AT_ONCE = 8192
"""Rows read at once, where they lie anywhere: a source is asked once for all of them that it has."""
R = TypeVar("R")


@dataclass(frozen=True)
class Pool:
    """Rows of several sources, numbered in the order given: the first row of the first source is row_id 0.

    Attributes:
        sources: where rows come from.
        layouts: each source's columns; all of one task.
        readings: how each source's labels are read.
        columns: our column names -> the user's.
        known: the layouts that a source could have had.
    """

    sources: tuple[Source, ...]
    layouts: tuple[Layout, ...]
    readings: tuple[Reading, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    known: tuple[Layout, ...] = ()

    @property
    def task(self) -> str:
        """The name of the task of all sources."""
        return self.layouts[0].task

    @property
    def reads_labels_otherwise(self) -> bool:
        """Whether labels may be read otherwise than they stand in the rows: by id, from spans, mapped, repaired."""
        return any(
            reading.names or reading.mapping or reading.repair or layout.converted
            for layout, reading in zip(self.layouts, self.readings, strict=True)
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
        names = np.array([source.name for source in self.sources], dtype=object)
        return list(names[self.source_index(row_ids)])

    def where(self, row_id: int) -> str:
        """`pool.jsonl, row 17` (counted from 1, as lines are): for messages."""
        index = int(self.source_index(np.array([row_id]))[0])
        return self.sources[index].table.where(row_id - int(self.starts[index]))

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
        return list(self.each(row_ids))

    def each(self, row_ids: Sequence[int] | np.ndarray) -> Iterator[Row | BadRow]:
        """Likewise, `AT_ONCE` of them in memory."""
        return self._in_order(row_ids, self._read)

    def originals(self, row_ids: Sequence[int] | np.ndarray) -> Iterator[dict[str, Any]]:
        """Rows with the columns of their own source and no others, in this order."""
        return self._in_order(row_ids, self._cells)

    def _in_order(
        self, row_ids: Sequence[int] | np.ndarray, read: Callable[[int, list[int]], Iterable[R]]
    ) -> Iterator[R]:
        for first in range(0, len(row_ids), AT_ONCE):
            block, starts = np.asarray(row_ids[first : first + AT_ONCE]), self.starts
            indices = self.source_index(block)
            placed: dict[int, R] = {}
            for index in np.unique(indices).tolist():
                places = np.flatnonzero(indices == index)
                placed.update(zip(places.tolist(), read(index, (block[places] - starts[index]).tolist()), strict=True))
            yield from (placed[place] for place in range(len(block)))

    def _read(self, index: int, places: Sequence[int]) -> Iterator[Row | BadRow]:
        """Rows of one source by their places in it."""
        for row in self._cells(index, places):
            yield self._convert(index, row)

    def _cells(self, index: int, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The same rows as they stand."""
        return self.sources[index].table.rows(places)

    def _convert(self, index: int, row: dict[str, Any]) -> Row | BadRow:
        layout = self.layouts[index]
        row = self.sources[index].table.shown(row)
        if self.columns:
            row = {ours: row[theirs] for ours, theirs in renamed(row, self.columns).items()}
        try:
            return layout.convert({**dict.fromkeys(layout.columns), **row}, self.readings[index])
        except BadRow as bad:
            return bad

    def cells(self, column: str | None) -> list[str | None]:
        """(N,) a column's values as text; None where a row (or its source) has none."""
        values: list[str | None] = []
        for source in self.sources:
            if column is None or column not in source.table.columns:
                values += [None] * len(source.table)
                continue
            for row in source.table.rows(range(len(source.table))):
                cell = row.get(column)
                values.append(None if cell is None else str(cell))
        return values

    def original(self, row_id: int) -> dict[str, Any]:
        """One row with the columns of its own source and no others."""
        return next(self.originals([row_id]))

    def unseen(self) -> dict[str, list[str]]:
        """Source -> its columns that the model does not see, of sources that have any."""
        found = {}
        for source, layout in zip(self.sources, self.layouts, strict=True):
            names = renamed(source.table.columns, self.columns)
            read = {theirs for ours, theirs in names.items() if ours in (*layout.columns, *layout.beside)}
            found[source.name] = [name for name in source.table.columns if name not in read]
        return {name: columns for name, columns in found.items() if columns}

    def subset(self, row_ids: np.ndarray) -> Pool:
        """The pool of these rows alone, which must be in order; every source stays, even with no row left."""
        indices, starts = self.source_index(row_ids), self.starts
        sources = tuple(
            replace(source, table=Part(source.table, row_ids[indices == index] - starts[index]))
            for index, source in enumerate(self.sources)
        )
        return replace(self, sources=sources)


@dataclass(frozen=True)
class Index:
    """What one pass over the text of all rows tells.

    Attributes:
        content: (N,) uint64 content hash, 0 for rows that cannot be used.
        prompt: (N,) uint64 prompt hash, 0 likewise.
        bad: row_id -> why it cannot be used.
        labels: each source's labels (entity types, classes); none for instruction tuning.
        repaired: rows whose tags were made BIO2.
        not_gold: row_ids of rows that say themselves that their labels are not right.
        rejected: how many such rows were read, with those that a subset has no more.
        cut_spans: entities that begin or end inside a word.
    """

    content: np.ndarray
    prompt: np.ndarray
    bad: dict[int, str]
    labels: tuple[frozenset[str], ...] = ()
    repaired: int = 0
    not_gold: frozenset[int] = frozenset()
    rejected: int = 0
    cut_spans: int = 0

    @property
    def fingerprint(self) -> str:
        """16 hex digits: the same rows in the same order, the same fingerprint."""
        return hashlib.sha256(self.content.tobytes()).hexdigest()[:16]

    def subset(self, row_ids: np.ndarray) -> Index:
        """The index of these rows alone; `labels` and the counts stay those of all."""
        marked = np.flatnonzero(np.isin(row_ids, [*self.bad, *self.not_gold]))  # few of many rows
        places = {int(row_ids[place]): int(place) for place in marked}
        bad = {places[row_id]: reason for row_id, reason in self.bad.items() if row_id in places}
        not_gold = frozenset(places[row_id] for row_id in self.not_gold if row_id in places)
        return replace(self, content=self.content[row_ids], prompt=self.prompt[row_ids], bad=bad, not_gold=not_gold)


def open_pool(
    inputs: Sequence[Input],
    *,
    layouts: Sequence[Layout],
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    label_map: LabelMap | None = None,
    repair_bio: bool = False,
) -> Pool:
    """Opens inputs as one pool and finds each source's layout.

    Args:
        inputs: what the user names.
        layouts: those of all tasks, tried in this order.
        columns: our column names -> the user's.
        task: the name of one; None: the task of the first source's columns.
        label_map: see `tov.data.labels`.
        repair_bio: whether tags that are not BIO2 are made so.

    Raises:
        DataError: an input cannot be read, or has no layout of the task.
    """
    columns = columns or {}
    sources = open_sources(inputs, columns)
    if not sources:
        raise DataError("No input was named.", fix="Name at least one file, folder or Hub dataset.")
    source_layouts: list[Layout] = []
    for source in sources:
        source_layouts.append(_layout(source, columns, layouts, task))
        task = source_layouts[0].task
    readings = tuple(
        Reading(_names_of(source, layout.labels, columns), (label_map or LabelMap()).of(source.name), repair_bio)
        for source, layout in zip(sources, source_layouts, strict=True)
    )
    return Pool(sources, tuple(source_layouts), readings, dict(columns), tuple(layouts))


def _names_of(source: Source, column: str, columns: Mapping[str, str]) -> tuple[str, ...]:
    """The names that a source gives to the label ids of a column, or none."""
    return source.table.label_names(renamed(source.table.columns, columns).get(column, column))


def check_mapping(columns: Mapping[str, str], *pools: Pool) -> None:
    """A mapping is for the inputs that have its column, in pool or target; none may be without any.

    Raises:
        DataError: no input has the column.
    """
    sources = [source for pool in pools for source in pool.sources]
    names = {name for source in sources for name in source.table.columns}
    numbers = {number for source in sources for number in source.numbered}
    for ours, theirs in columns.items():
        if theirs not in names | numbers:
            raise DataError(
                f"--columns {ours}={theirs}: there is no column '{theirs}'{did_you_mean(theirs, names)} in "
                f"{', '.join(dict.fromkeys(source.location for source in sources))}.",
                allowed=", ".join(sorted(names)),
                fix="Correct the name after '='.",
            )


def _layout(source: Source, columns: Mapping[str, str], layouts: Sequence[Layout], task: str | None) -> Layout:
    names = source.table.columns
    read = renamed(names, columns)
    layout = layout_of([*read], layouts, task)
    if layout is None:
        fitting = [layout for layout in layouts if task in (None, layout.task)]
        wanted = sorted({column for layout in fitting for column in layout.columns})
        unmatched = [f"{ours}={theirs}" for ours, theirs in columns.items() if theirs not in names]
        if unmatched:
            theirs = unmatched[0].partition("=")[2]
            raise DataError(
                f"--columns {unmatched[0]}: there is no column '{theirs}'{did_you_mean(theirs, names)} in {source.location}, "
                "whose columns are no layout without it.",
                allowed=", ".join(names),
                fix="Correct the name after '='.",
            )
        alike = [name for name in read if name not in wanted and did_you_mean(name, wanted)]
        near = f" ('{alike[0]}'{did_you_mean(alike[0], wanted)})" if alike else ""
        foreign = layout_of([*read], layouts)
        is_other = f" (they are one for {foreign.task}: {' + '.join(foreign.columns)})" if foreign else ""
        # The layout that has the most of its columns already lacks the others only; else the commonest.
        nearest = max(fitting, key=lambda layout: len(read.keys() & set(layout.columns)))
        if not read.keys() & set(nearest.columns):
            nearest = next((layout for layout in fitting if len(layout.columns) > 1 and not layout.pairs), fitting[0])
        example = " ".join(f"{column}=YOURS" for column in nearest.columns if column not in read)
        mapped = " (after --columns)" if set(read) != set(names) else ""
        raise DataError(
            f"{source.location}: the columns {', '.join(read)}{mapped} are no layout that tov knows"
            f"{f' for {task}' if task else ''}{near or is_other}.",
            allowed="; ".join(" + ".join(layout.columns) for layout in fitting),
            fix=f"Rename them, or say which is which, e.g. --columns {example}",
        )
    return layout


def index_rows(pool: Pool, *, on_bad_row: str = "error", role: str = "pool") -> Index:
    """One pass over all rows: hashes, labels, and rows that cannot be used.

    Raises:
        DataError: such a row, under `on_bad_row="error"`, with its file and row.
    """
    content, prompt = np.zeros(len(pool), np.uint64), np.zeros(len(pool), np.uint64)
    bad: dict[int, str] = {}
    labels: list[frozenset[str]] = []
    not_gold: set[int] = set()
    repaired = cut_spans = 0
    for start, stop in itertools.pairwise(pool.starts.tolist()):
        source_labels: set[str] = set()
        spans = Spans()
        for row_id, row in enumerate(pool.rows(start, stop), start):
            if isinstance(row, NotGold):
                not_gold.add(row_id)
                continue
            if isinstance(row, BadRow):
                if on_bad_row == "error":
                    raise _unusable(pool, row_id, row, role)
                bad[row_id] = str(row)
                continue
            content[row_id], prompt[row_id] = content_hash(row), prompt_hash(row)
            source_labels |= row.labels
            repaired += row.repaired
            spans.add(row_id, row)
        spans.check(pool.where)
        cut_spans += spans.cut
        labels.append(frozenset(source_labels))
    return Index(content, prompt, bad, tuple(labels), repaired, frozenset(not_gold), len(not_gold), cut_spans)


def _unusable(pool: Pool, row_id: int, row: BadRow, role: str) -> DataError:
    hint = f"{row.fix and ' '}{row.fix}{_of_another_layout(pool, row_id)}"
    if role == "pool":
        fix = f"Correct the row.{hint} --on-bad-row skip counts and skips such rows."
    else:
        fix = f"Correct or delete the row: every row of the {role} must be usable.{hint}"
    return DataError(f"{pool.where(row_id)}: {row}.", fix=fix)


def _of_another_layout(pool: Pool, row_id: int) -> str:
    """What to do with a row that lacks all columns of its source's layout and has those of another."""
    layout = pool.layouts[int(pool.source_index(np.array([row_id]))[0])]
    own = renamed([name for name, value in pool.original(row_id).items() if value is not None], pool.columns)
    other = layout_of([*own], pool.known, layout.task)
    if other is None or own.keys() & set(layout.columns):
        return ""
    return (
        f" It has the columns of {other.name} ({' + '.join(other.columns)}), but its source is read as {layout.name} "
        f"({' + '.join(layout.columns)}), which other rows have: put the one kind of rows into a file of its own."
    )


def files_of(pool: Pool) -> list[Path]:
    """The local files behind a pool."""
    return [path for source in pool.sources for path in source.files]
