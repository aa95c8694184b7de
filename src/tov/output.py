"""The training file: the user's rows, untouched, plus four columns that say where each came from and why it is here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tov.data.pool import Pool
from tov.errors import DataError
from tov.files import atomic

OUR_COLUMNS = ("tov_row_id", "tov_source", "tov_score", "tov_reason")


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
    """The chosen rows as a dataset: original columns (null where a source has none), then `OUR_COLUMNS`."""
    dataset = pool.take(row_ids)
    columns: dict[str, Any] = {
        "tov_row_id": pa.array(row_ids, pa.int64()),
        "tov_source": pa.array(pool.source_names(row_ids), pa.string()),
        "tov_score": pa.array(scores, pa.float32(), mask=~np.isfinite(scores)),
        "tov_reason": pa.array([str(reason) for reason in reasons], pa.string()),
    }
    table = dataset.with_format("arrow")[:]
    for name, column in columns.items():
        table = table.append_column(name, column)
    return datasets.Dataset(table.replace_schema_metadata(None))


def write_selected(folder: Path, pool: Pool, row_ids: np.ndarray, reasons: np.ndarray, scores: np.ndarray) -> None:
    """Writes `selected.parquet` (one schema, nulls where a source lacks a column) and `selected.jsonl` (each row as it was).

    Args:
        folder: the run folder.
        pool: the rows.
        row_ids: (n,) the chosen rows, in output order.
        reasons: (n,) "score" or "random".
        scores: (n,) the score that chose, NaN where a row has none (written as null).
    """
    with atomic(folder / "selected.parquet") as temporary:
        pq.write_table(
            selected_dataset(pool, row_ids, reasons, scores).with_format("arrow")[:], temporary, compression="zstd"
        )
    with atomic(folder / "selected.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row_id, name, reason, score in zip(row_ids, pool.source_names(row_ids), reasons, scores, strict=True):
            ours = {
                "tov_row_id": int(row_id), "tov_source": name, "tov_score": float(score) if np.isfinite(score) else None,
                "tov_reason": str(reason),
            }  # fmt: skip
            file.write(json.dumps({**pool.original(int(row_id)), **ours}, ensure_ascii=False, default=str) + "\n")


def read_selected(folder: Path) -> datasets.Dataset:
    """The selected rows of a finished run."""
    return datasets.Dataset(pq.read_table(folder / "selected.parquet"))
