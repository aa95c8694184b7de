"""The chosen rows of a finished run, read from its own `selected.jsonl`: the pool need not be there any more."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tov.data.cells import BadRow
from tov.data.pool import Pool, open_pool
from tov.data.rows import Row, content_hash
from tov.data.tables import ListTable, without_padding
from tov.errors import RunError
from tov.runs.folder import Run
from tov.scores.store import read_hashes
from tov.tasks import Task, all_layouts
from tov.trainers.base import Chosen

Cells = dict[str, Any]
MOST_FORMS = 256
"""In which a row is tried, of those with and without the nulls of its columns."""


def read_chosen(
    run: Run, file: Path, ours: Sequence[str], task: Task[Any]
) -> tuple[list[Chosen], dict[str, list[str]]]:
    """The rows in their order, as the model saw them; and source -> the columns that it did not see.

    Each has the content hash that the score table has of it. A row of a Parquet or Arrow file is tried without the nulls of its
    structs too, in every column or in some, which `selected.jsonl` has back and the model did not see.

    Args:
        run: finished, with chosen rows.
        file: its `selected.jsonl`.
        ours: names of the columns that tov has added.
        task: of the rows.

    Raises:
        RunError: a row is not the one that was scored.
    """
    with open(file, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    wanted = _hashes(run, [row["tov_row_id"] for row in rows])
    columns = run.manifest.inputs.reading.get("columns", {})
    found: dict[int, Row] = {}
    unseen: dict[str, list[str]] = {}
    read = {name for layout in task.layouts for name in layout.columns if layout.converted}
    for source, places in _by_source(rows).items():
        cells = [_cells(rows[place], ours, task) for place in places]
        stand = {name for name, column in task.read_from.items() if any(column in rows[place] for place in places)}
        mapping = {mine: yours for mine, yours in columns.items() if mine not in stand}
        pool = _pool(cells, mapping, task)
        left = [name for names in pool.unseen().values() for name in names if name not in read]
        unseen |= {source: left} if left else {}
        for place, row in zip(places, _scored(pool, cells, mapping, task, [wanted[at] for at in places]), strict=True):
            if row is None:
                raise RunError(
                    f"{file}, row {place + 1} is not the row that was scored.",
                    fix="Select again: the file or the scores are another run's.",
                )
            found[place] = row
    return [Chosen(row["tov_row_id"], row["tov_source"], found[at]) for at, row in enumerate(rows)], unseen


def _hashes(run: Run, row_ids: Sequence[int]) -> list[int]:
    import numpy as np

    return [int(one, 16) for one in read_hashes(run.scores, np.array(row_ids, np.int64), run.stamp)]


def _by_source(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row["tov_source"], []).append(place)
    return places


def _cells(row: Cells, ours: Sequence[str], task: Task[Any]) -> Cells:
    """The user's own columns, with labels as they were read where they were read otherwise than they stand there."""
    own = {name: value for name, value in row.items() if name not in ours}
    return {**own, **{name: row[read] for name, read in task.read_from.items() if read in row}}


def _pool(cells: Sequence[Cells], columns: Mapping[str, str], task: Task[Any]) -> Pool:
    names = {name for row in cells for name in row}
    mapping = {mine: yours for mine, yours in columns.items() if yours in names}
    return open_pool([list(cells)], layouts=all_layouts(), columns=mapping, task=task.name)


def _scored(
    pool: Pool, cells: Sequence[Cells], columns: Mapping[str, str], task: Task[Any], wanted: Sequence[int]
) -> Iterator[Row | None]:
    """Each row as it was scored, or None."""
    bare = _pool([without_padding(row) for row in cells], columns, task)
    unseen = {name for names in pool.unseen().values() for name in names}
    for place, (row, hashed) in enumerate(zip(pool.rows(0, len(cells)), wanted, strict=True)):
        tried = itertools.chain([row], bare.each([place]), _less_padded(pool, cells[place], unseen))
        yield next((one for one in tried if not isinstance(one, BadRow) and content_hash(one) == hashed), None)


def _less_padded(pool: Pool, row: Cells, unseen: Collection[str]) -> Iterator[Row | BadRow]:
    """A row with each form of each of its columns: one may be of structs, with padding, and another of JSON text, without."""
    forms = {name: [value] if name in unseen else _forms(value) for name, value in row.items()}
    every = itertools.islice(itertools.product(*forms.values()), MOST_FORMS)
    table = ListTable([dict(zip(forms, values, strict=True)) for values in every], "selected.jsonl")
    yield from replace(pool, sources=(replace(pool.sources[0], table=table),)).each(range(len(table)))


def _forms(value: Any) -> list[Any]:
    """A value without the nulls of its outer levels, for each number of levels: what is below may be JSON text of its own."""
    forms, levels, bare = [value], 0, without_padding(value)
    while forms[-1] != bare:
        levels += 1
        form = _without_outer(value, levels)
        forms += [form] if form != forms[-1] else []
    return forms


def _without_outer(value: Any, levels: int) -> Any:
    if isinstance(value, Mapping) and levels:
        return {name: _without_outer(one, levels - 1) for name, one in value.items() if one is not None}
    return [_without_outer(one, levels) for one in value] if isinstance(value, list) else value
