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
from tov.data.written import Columns, JsonLines, columns_of, joined
from tov.errors import DataError, RunError
from tov.files import atomic
from tov.runs.folder import Run, open_run
from tov.tasks import TASKS

FILE, LINES = "selected.parquet", "selected.jsonl"


def our_columns() -> tuple[str, ...]:
    """Names of the columns that a training file may have beside the user's."""
    of_tasks = dict.fromkeys(name for task in TASKS.values() for name in task.columns)
    return ("tov_row_id", "tov_source", "tov_score", "tov_reason", "tov_target", *of_tasks)


def check_writable(pool: Pool, most: int = 64) -> None:
    """Our columns must not be in the way of the user's, and rows from all over the pool must have a form in the files.

    They are written into memory, so that what would fail at the end fails before anything is scored.

    Raises:
        DataError: a source has a column of such a name, or a row cannot be written.
    """
    for source in pool.sources:
        taken = [name for name in our_columns() if name in source.table.columns]
        if taken:
            raise DataError(
                f"{source.location} already has the column {taken[0]}, which tov writes.",
                fix="Rename or drop the column.",
            )
    row_ids = np.unique(np.linspace(0, len(pool) - 1, most).astype(np.int64))
    table, _ = _table(pool, row_ids, {})
    pq.write_table(table, pa.BufferOutputStream())
    lines = JsonLines()
    for row in pool.originals(row_ids):
        lines.line(row)


def bytes_a_row(pool: Pool, most: int = 256) -> float:
    """About how many bytes a row takes in both files, by rows from all over the pool."""
    row_ids = np.unique(np.linspace(0, len(pool) - 1, most).astype(np.int64))
    ours = _our_columns(pool, row_ids, np.full(len(row_ids), "score"), np.linspace(0, 1, len(row_ids)))
    table, _ = _table(pool, row_ids, ours if len(next(iter(ours.values()))) == len(row_ids) else {})
    written, lines = pa.BufferOutputStream(), JsonLines()
    pq.write_table(table, written, compression="zstd")
    added = pa.table({name: column for name, column in ours.items() if name.startswith("tov_")}).to_pylist()
    text = sum(len(lines.line({**row, **more})) for row, more in zip(pool.originals(row_ids), added, strict=False))
    return (written.getvalue().size + text) / len(row_ids)


def _our_columns(
    pool: Pool, row_ids: np.ndarray, reasons: np.ndarray, scores: np.ndarray, targets: np.ndarray | None = None
) -> dict[str, pa.Array]:
    columns = {
        "tov_row_id": pa.array(row_ids, pa.int64()),
        "tov_source": pa.array(pool.source_names(row_ids), pa.string()),
        "tov_score": pa.array(scores, pa.float32(), mask=~np.isfinite(scores)),
        "tov_reason": pa.array([str(reason) for reason in reasons], pa.string()),
    }
    if targets is not None:
        columns["tov_target"] = pa.array(targets.tolist(), pa.string())
    if pool.reads_labels_otherwise:
        rows = [row for row in pool.at(row_ids) if not isinstance(row, BadRow)]
        read = TASKS[pool.task].columns_as_read(rows)
        columns |= {name: pa.array(values) for name, values in read.items()}
    return columns


def write_selected(
    folder: Path, pool: Pool, row_ids: np.ndarray, reasons: np.ndarray, scores: np.ndarray,
    targets: np.ndarray | None = None,
) -> list[str]:  # fmt: skip
    """Writes `selected.parquet` (one schema, nulls where a row lacks a column) and `selected.jsonl` (each row as it was).

    Args:
        folder: the run folder.
        pool: the rows.
        row_ids: (n,) the chosen rows, in output order.
        reasons: (n,) "score" or "random".
        scores: (n,) what they were ranked by, NaN where a row has none (written as null).
        targets: (n,) the target that each was chosen for, where there are several.

    Returns:
        What was written otherwise than it was read, in sentences.
    """
    ours = _our_columns(pool, row_ids, reasons, scores, targets)
    with atomic(folder / FILE) as temporary:
        table, notes = _table(pool, row_ids, ours)
        pq.write_table(table, temporary, compression="zstd")
    lines = JsonLines()
    with atomic(folder / LINES) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row, added in zip(pool.originals(row_ids), pa.table(ours).to_pylist(), strict=True):
            file.write(lines.line({**row, **added}))
    return [*notes, *lines.notes]


def write_again(folder: Path, pool: Pool) -> list[str] | None:
    """Writes a finished run's files anew if a chosen row has changed in what the model does not see; its place stays its own.

    Returns:
        As of `write_selected`; None where the files are those of today's rows.
    """
    names = pq.read_schema(folder / FILE).names
    chosen = pq.read_table(folder / FILE, columns=[name for name in our_columns() if name in names])
    row_ids = chosen["tov_row_id"].to_numpy()
    ours, lines = our_columns(), JsonLines()
    with open(folder / LINES, encoding="utf-8") as file:
        for line, row in zip(file, pool.originals(row_ids), strict=True):
            written = {name: value for name, value in json.loads(line).items() if name not in ours}
            if json.loads(lines.line(row)) != written:
                break
        else:
            return None
    reasons = np.array(chosen["tov_reason"].to_pylist())
    scores = np.array(chosen["tov_score"].to_numpy(zero_copy_only=False), float)
    targets = np.array(chosen["tov_target"].to_pylist(), object) if "tov_target" in names else None
    return write_selected(folder, pool, row_ids, reasons, scores, targets)


def _table(pool: Pool, row_ids: np.ndarray, ours: dict[str, pa.Array]) -> tuple[pa.Table, list[str]]:
    """The chosen rows in one schema, the columns of ours last; and which columns no schema holds."""
    indices, starts = pool.source_index(row_ids), pool.starts
    parts, order = list[Columns](), []
    for index in np.unique(indices).tolist():
        places = np.flatnonzero(indices == index)
        source = pool.sources[index]
        parts.append(columns_of(source.table, (row_ids[places] - starts[index]).tolist()))
        order.append(places)
    back = pa.array(np.argsort(np.concatenate(order), kind="stable"))
    columns, as_text = joined(parts)
    columns = {name: column.take(back) for name, column in columns.items()}
    notes = [
        f"selected.parquet: {', '.join(as_text)} as JSON text, because no one type holds all of its values"
    ] * bool(as_text)
    return pa.table({**columns, **ours}), notes


def open_choice(folder: str) -> Run:
    """A finished run that has chosen rows, which are those that were written.

    Raises:
        RunError: there is none, it is not finished or has chosen none, or its files are not those that were made.
    """
    run = open_run(folder)
    if not run.finished:
        raise RunError(
            f"{folder} holds no chosen rows yet: its run is not finished.",
            fix="Finish it first: give its command again.",
        )
    if not (run.folder / FILE).exists():
        scored = run.manifest.scoring is not None
        fix = f"Choose: tov select --from {folder} --n N --out DIR" if scored else "Name the --out of a tov select."
        raise RunError(f"{folder} holds no chosen rows (no selected.parquet).", fix=fix)
    check_selected(run)
    return run


def check_selected(run: Run) -> None:
    """Raises RunError if the chosen rows of a finished run are not those that were written: edited, cut or decayed."""
    for name in (FILE, LINES):
        run.check_file(name)


def read_selected(folder: Path) -> datasets.Dataset:
    """The selected rows of a finished run."""
    return datasets.Dataset(pq.read_table(folder / FILE))
