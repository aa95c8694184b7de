"""The chosen rows of a finished run, read from its own `selected.jsonl`: the pool need not be there any more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tov.data.cells import BadRow
from tov.data.pool import Pool, open_pool
from tov.data.rows import Row, content_hash
from tov.data.tables import without_padding
from tov.errors import RunError
from tov.runs.folder import Run
from tov.scores.store import read_hashes
from tov.tasks import Task, all_layouts
from tov.trainers.base import Chosen

Cells = dict[str, Any]


def read_chosen(
    run: Run, file: Path, ours: Sequence[str], task: Task[Any]
) -> tuple[list[Chosen], dict[str, list[str]]]:
    """The rows in their order, as the model saw them; and source -> the columns that it did not see.

    Each has the content hash that the score table has of it. A row of a Parquet or Arrow file is tried without the nulls of its
    structs too, which `selected.jsonl` has back and the model did not see.

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
        pool = _pool(cells, columns, task)
        left = [name for names in pool.unseen().values() for name in names if name not in read]
        unseen |= {source: left} if left else {}
        for place, row in zip(places, _scored(pool, cells, columns, task, [wanted[at] for at in places]), strict=True):
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
    read = {name for name in task.read_from if name in names}
    mapping = {mine: yours for mine, yours in columns.items() if yours in names and mine not in read}
    return open_pool([list(cells)], layouts=all_layouts(), columns=mapping, task=task.name)


def _scored(
    pool: Pool, cells: Sequence[Cells], columns: Mapping[str, str], task: Task[Any], wanted: Sequence[int]
) -> Iterator[Row | None]:
    """Each row as it was scored, or None."""
    bare = _pool([without_padding(row) for row in cells], columns, task)
    for place, (row, hashed) in enumerate(zip(pool.rows(0, len(cells)), wanted, strict=True)):
        if not isinstance(row, BadRow) and content_hash(row) == hashed:
            yield row
            continue
        (other,) = bare.at([place])
        yield other if not isinstance(other, BadRow) and content_hash(other) == hashed else None
