"""The score table on disk: one Parquet file a shard of pool rows, whole or absent, stamped with what it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tov.errors import RunError
from tov.files import atomic
from tov.scoring import TRANSFORM_FUNCTIONS

MEASURES = (*(f"score_{name}" for name in TRANSFORM_FUNCTIONS), "loss_base", "loss_target", "uncertainty")
"""ToV's measures, nats a token: means over epochs under these names, one epoch k under `NAME_k`."""
_STAMP = b"tov_fingerprint"
_ANEW = "put the file back from a copy, or make the run anew: its own command with --force"


def shard_file(folder: Path, start: int) -> Path:
    """The file of the shard whose first row is `start`."""
    return folder / f"rows-{start:012d}.parquet"


def is_done(file: Path, fingerprint: str) -> bool:
    """Whether a shard is there and was made from the same path, pool and settings.

    Raises:
        RunError: it was made from others, or is broken.
    """
    if not file.exists():
        return False
    with _broken_said(file, fix="delete it, then give the same command again: it makes what is missing"):
        stamp = (pq.read_schema(file).metadata or {}).get(_STAMP, b"").decode()
    if stamp != fingerprint:
        raise RunError(f"{file} belongs to another run", fix="choose another --out, or --force to start over")
    return True


def write_shard(
    file: Path,
    *,
    row_ids: np.ndarray,
    sources: list[str],
    hashes: np.ndarray,
    tokens: np.ndarray,
    lost: np.ndarray,
    in_base: np.ndarray,
    excluded: list[str],
    columns: Mapping[str, np.ndarray],
    fingerprint: str,
) -> None:
    """Writes one shard atomically.

    Args:
        file: from `shard_file`.
        row_ids: (rows,) positions in the pool.
        sources: (rows,) source names.
        hashes: (rows,) uint64 content hashes, written as 16 hex digits.
        tokens: (rows,) the length that bins go by: scored tokens, words, or the tokens of a labelled text.
        lost: (rows,) scored tokens or words that were cut off.
        in_base: (rows,) bool.
        excluded: (rows,) why the row may not be chosen, or "".
        columns: (rows,) numbers a measure, NaN where a row has no score; written in fp32.
        fingerprint: of everything that they depend on.
    """
    arrays: dict[str, pa.Array] = {
        "row_id": pa.array(row_ids, pa.int64()),
        "source": pa.array(sources, pa.string()),
        "hash": pa.array([f"{int(value):016x}" for value in hashes], pa.string()),
        "tokens": pa.array(tokens, pa.int32()),
        "lost": pa.array(lost, pa.int32()),
        "in_base": pa.array(in_base, pa.bool_()),
        "excluded": pa.array(excluded, pa.string()),
    }
    arrays |= {name: pa.array(values, pa.float32()) for name, values in columns.items()}
    table = pa.table(arrays).replace_schema_metadata({_STAMP: fingerprint.encode()})
    with atomic(file) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_scores(folder: Path, rows: int = 0) -> pa.Table:
    """The whole score table, in row order; of so many rows, where that is known.

    Raises:
        RunError: the folder holds none, a shard is broken, or one is missing.
    """
    files = sorted(folder.glob("rows-*.parquet"))
    if not files:
        raise RunError(f"{folder} holds no scores", fix="give the command that scores it again")
    tables, done = [], 0
    for file in files:
        with _broken_said(file, fix=_ANEW):
            table = pq.read_table(file)
        _check_gap(folder, done, int(file.stem.partition("-")[2]))
        done += len(table)
        tables.append(table)
    _check_gap(folder, done, rows or done)
    return pa.concat_tables(tables)


@contextmanager
def _broken_said(file: Path, *, fix: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise RunError(f"{file} is broken: {error}", fix=fix) from None


def _check_gap(folder: Path, start: int, found: int) -> None:
    if found > start:
        raise RunError(f"{folder} lacks the scores of row_id {start} to {found - 1}", fix=_ANEW)
