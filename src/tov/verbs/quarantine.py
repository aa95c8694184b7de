"""`quarantine.jsonl`: the pool rows that could not be used, as they stand, each with its place and the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from tov.data.decontamination import KEPT_APART, REASONS
from tov.data.pool import Pool
from tov.data.written import JsonLines
from tov.errors import DataError
from tov.files import atomic
from tov.scores.table import coded
from tov.sinks import line

FILE = "quarantine.jsonl"
MODE = "quarantine"
"""Of --on-bad-row."""


def write_quarantine(folder: Path, pool: Pool, scores: pa.Table) -> list[str]:
    """Writes the file; an empty one where every row could be used.

    A line has `row_id`, `source`, `place` (file and row, counted from 1), `reason`, and `row` with the columns of its file
    in the forms that `selected.jsonl` has; a row that JSON has no form for, which may be what is wrong with it, is text.

    Args:
        folder: the run folder.
        pool: the rows.
        scores: the score table, at least its column `excluded`.

    Returns:
        What is said of it, in sentences.

    Raises:
        StorageError: the disk is full.
    """
    codes, reasons = coded(scores["excluded"])
    kinds = {REASONS[code] for code in KEPT_APART}
    apart = np.array([reason.partition(":")[0] in kinds for reason in reasons])
    row_ids = np.flatnonzero(apart[codes])
    lines = JsonLines()
    with atomic(folder / FILE) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row_id, source, row in zip(
            row_ids.tolist(), pool.source_names(row_ids), pool.originals(row_ids), strict=True
        ):
            found = {
                "row_id": row_id,
                "source": source,
                "place": line(pool.where(row_id)),  # a file's name may be bytes that are no UTF-8
                "reason": reasons[codes[row_id]],
            }
            try:
                file.write(lines.line({**found, "row": row}))
            except DataError:
                file.write(lines.line({**found, "row": repr(row)}))
    return (
        [f"{len(row_ids):,} rows that could not be used are in {FILE}, with place and reason"] if len(row_ids) else []
    )
