"""The training file: the user's rows, untouched, plus columns that say where each came from and why it is here.

Where labels were read otherwise than they stand in the file (ids by name, spans, label map, repaired tags), they are written
as read, too, in columns of the task (`tov_tokens` and `tov_tags`, `tov_label`), so that the file can be trained on as it is.
"""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tov.data.cells import BadRow
from tov.data.pool import Pool
from tov.errors import DataError
from tov.files import atomic
from tov.tasks import TASKS


def our_columns() -> tuple[str, ...]:
    """Names of the columns that a training file may have beside the user's."""
    of_tasks = dict.fromkeys(name for task in TASKS.values() for name in task.columns)
    return ("tov_row_id", "tov_source", "tov_score", "tov_reason", *of_tasks)


def check_columns(pool: Pool) -> None:
    """Our columns must not be in the way of the user's.

    Raises:
        DataError: a source has a column of such a name.
    """
    for source in pool.sources:
        taken = [name for name in our_columns() if name in source.table.column_names]
        if taken:
            raise DataError(
                f"{source.location} already has the column {taken[0]}, which tov writes.",
                fix="Rename or drop the column.",
            )


def selected_dataset(pool: Pool, row_ids: np.ndarray, reasons: np.ndarray, scores: np.ndarray) -> datasets.Dataset:
    """The chosen rows as a dataset: original columns (null where a source has none), then ours."""
    table = pool.take(row_ids).with_format("arrow")[:]
    for name, column in _our_columns(pool, row_ids, reasons, scores).items():
        table = table.append_column(name, column)
    return datasets.Dataset(table.replace_schema_metadata(None))


def _our_columns(pool: Pool, row_ids: np.ndarray, reasons: np.ndarray, scores: np.ndarray) -> dict[str, pa.Array]:
    columns = {
        "tov_row_id": pa.array(row_ids, pa.int64()),
        "tov_source": pa.array(pool.source_names(row_ids), pa.string()),
        "tov_score": pa.array(scores, pa.float32(), mask=~np.isfinite(scores)),
        "tov_reason": pa.array([str(reason) for reason in reasons], pa.string()),
    }
    if pool.reads_labels_otherwise:
        rows = [row for row in pool.at(row_ids) if not isinstance(row, BadRow)]
        read = TASKS[pool.task].columns_as_read(rows)
        columns |= {name: pa.array(values) for name, values in read.items()}
    return columns


def write_selected(folder: Path, pool: Pool, row_ids: np.ndarray, reasons: np.ndarray, scores: np.ndarray) -> None:
    """Writes `selected.parquet` (one schema, nulls where a source lacks a column) and `selected.jsonl` (each row as it was).

    Args:
        folder: the run folder.
        pool: the rows.
        row_ids: (n,) the chosen rows, in output order.
        reasons: (n,) "score" or "random".
        scores: (n,) the score that chose, NaN where a row has none (written as null).
    """
    dataset = selected_dataset(pool, row_ids, reasons, scores)
    with atomic(folder / "selected.parquet") as temporary:
        pq.write_table(dataset.with_format("arrow")[:], temporary, compression="zstd")
    ours = dataset.select_columns([name for name in our_columns() if name in dataset.column_names])
    with atomic(folder / "selected.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row, added in zip(pool.originals(row_ids), ours.with_format("arrow")[:].to_pylist(), strict=True):
            file.write(json.dumps({**row, **added}, ensure_ascii=False, default=str) + "\n")


def read_selected(folder: Path) -> datasets.Dataset:
    """The selected rows of a finished run."""
    return datasets.Dataset(pq.read_table(folder / "selected.parquet"))
