"""The training file: the user's rows, untouched, plus columns that say where each came from and why it is here.

Where labels were read otherwise than they stand in the file (ids by name, spans, label map, repaired tags), they are written
as read, too, so that the file can be trained on as it is: `tov_tokens` and `tov_tags`, or `tov_label`.
"""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tov.data.labelled import Labelled, Tagged
from tov.data.pool import Pool
from tov.errors import DataError
from tov.files import atomic

OUR_COLUMNS = ("tov_row_id", "tov_source", "tov_score", "tov_reason", "tov_tokens", "tov_tags", "tov_label")


def check_columns(pool: Pool) -> None:
    """Our columns must not be in the way of the user's.

    Raises:
        DataError: a source has a column of such a name.
    """
    for source in pool.sources:
        taken = [name for name in OUR_COLUMNS if name in source.table.column_names]
        if taken:
            raise DataError(f"{source.location} already has the column {taken[0]}", fix="rename or drop it")


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
        rows = pool.at(row_ids)
        if pool.task == "ner":
            columns["tov_tokens"] = pa.array([row.words for row in rows if isinstance(row, Tagged)])
            columns["tov_tags"] = pa.array([row.tags for row in rows if isinstance(row, Tagged)])
        else:
            columns["tov_label"] = pa.array([row.label for row in rows if isinstance(row, Labelled)])
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
    ours = dataset.select_columns([name for name in OUR_COLUMNS if name in dataset.column_names])
    with atomic(folder / "selected.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row_id, added in zip(row_ids, ours, strict=True):
            file.write(json.dumps({**pool.original(int(row_id)), **added}, ensure_ascii=False, default=str) + "\n")


def read_selected(folder: Path) -> datasets.Dataset:
    """The selected rows of a finished run."""
    return datasets.Dataset(pq.read_table(folder / "selected.parquet"))
