"""The shard store: one Parquet file a shard of pool rows, whole or absent, stamped with what it was made from.

Score tables and stored features are both kept in it. A walk over the pool that was killed goes on with the shards that
are missing and ends with the same files. Must not know what the columns mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tov.errors import NumericError, RunError
from tov.files import atomic

_STAMP, _PLACE, _SEAL = b"tov_fingerprint", b"tov_first_row", b"tov_checksum"
_UNSEALED = b"-the-place-of-its-own-checksum--"
"""What the checksum of a file is taken over in its own place."""
_ANEW = "Put the file back from a copy, or delete it and give the command that made it again."
CODED = ("source", "excluded")
"""Columns of few different texts: in memory a code a row and a dictionary of the texts."""
READERS = 4
"""Shards that are read at once."""
JOINED = 64
"""Shards whose columns become one piece of memory each: thousands of small pieces take half as much again."""
FEATURES = "features"
"""The one column of a shard of features."""


@dataclass(frozen=True)
class ShardStore:
    """A folder of shards.

    Attributes:
        folder: where they are.
        fingerprint: of everything that their numbers depend on.
    """

    folder: Path
    fingerprint: str

    def file(self, start: int) -> Path:
        """The file of the shard whose first row is `start`."""
        return self.folder / f"rows-{start:012d}.parquet"

    def has(self, start: int) -> bool:
        """Whether a shard is there and was made from the same things.

        Raises:
            RunError: it was made from others, or is broken.
        """
        file = self.file(start)
        if not file.exists():
            return False
        with _open_shard(file) as shard:
            self._check(file, _stamp_of(shard))
        return True

    def write(self, start: int, table: pa.Table) -> None:
        """Writes one shard atomically.

        Raises:
            StorageError: the disk is full.
        """
        stamped = table.replace_schema_metadata(
            {_STAMP: self.fingerprint.encode(), _PLACE: str(start).encode(), _SEAL: _UNSEALED}
        )
        coded = [name for name in table.column_names if name in CODED]
        with atomic(self.file(start)) as temporary:
            pq.write_table(
                stamped, temporary, compression="zstd", use_dictionary=coded, use_byte_stream_split=_numbers_of(table)
            )
            _seal(temporary)

    def read(self, start: int) -> pa.Table:
        """One shard.

        Raises:
            RunError: it is missing, broken, or was made from something else.
        """
        file = self.file(start)
        if not file.exists():
            raise RunError(
                f"{self.folder} lacks the shard of row {start}.", fix="Give the command that makes it again."
            )
        with _open_shard(file) as shard:
            self._check(file, _stamp_of(shard))
            return _rows_of(shard)

    def _check(self, file: Path, stamp: str) -> None:
        if stamp != self.fingerprint:
            raise RunError(f"{file} belongs to another run.", fix="Choose another --out, or start over with --force.")


def _numbers_of(table: pa.Table) -> list[str]:
    """Columns of numbers no two of which are equal: their first bytes together are smaller than a dictionary of all."""
    return [field.name for field in table.schema if pa.types.is_floating(field.type)]


def _seal(file: Path) -> None:
    """Puts the checksum of a whole file, taken with a placeholder where the checksum is to stand, in that place."""
    content = file.read_bytes()
    with open(file, "r+b") as opened:
        opened.seek(content.rindex(_UNSEALED))  # the footer's: it stands last
        opened.write(xxhash.xxh3_128_hexdigest(content).encode())


def _is_whole(content: bytes, seal: bytes) -> bool:
    """Whether a file's content has the checksum that stands in it."""
    at = content.rfind(seal)
    state = xxhash.xxh3_128(memoryview(content)[:at])
    state.update(_UNSEALED)
    state.update(memoryview(content)[at + len(seal) :])
    return bool(state.hexdigest().encode() == seal)


@contextmanager
def _open_shard(file: Path, *, coded: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """A shard whose every byte is the one that was written; older ones have a checksum a page, or none (0.1.0)."""
    with _broken_said(file):
        content = file.read_bytes()
        with pq.ParquetFile(pa.BufferReader(content), read_dictionary=coded, page_checksum_verification=True) as shard:
            said = shard.metadata.metadata or {}
            if _SEAL in said and not _is_whole(content, said[_SEAL]):
                raise pa.ArrowInvalid("its content and its checksum differ")
            if _PLACE in said and int(said[_PLACE]) != _first_row(file):
                raise pa.ArrowInvalid(f"it is the shard of row_id {int(said[_PLACE])}")
            yield shard


def _rows_of(shard: pq.ParquetFile, columns: Sequence[str] | None = None, *, use_threads: bool = True) -> pa.Table:
    table = shard.read(columns, use_threads=use_threads)
    if _SEAL not in (shard.metadata.metadata or {}):  # nothing else tells whether it is what was written
        list(table.column_names)
        table.validate(full=True)
    return table


def _first_row(file: Path) -> int:
    return int(file.stem.partition("-")[2])


def _stamp_of(shard: pq.ParquetFile) -> str:
    return str((shard.metadata.metadata or {}).get(_STAMP, b"").decode())


def features_table(features: np.ndarray) -> pa.Table:
    """A shard of features, (rows, d) fp16 or fp32, as a table.

    fp16 keeps 11 bits of a number between 6e-5 and 65504: enough for features of unit length (a cosine is off by under
    1e-3), not for raw gradients, which want fp32.

    Raises:
        NumericError: a feature is infinite or too large for its dtype.
    """
    if np.isinf(features).any():
        raise NumericError(
            f"A feature is not a finite number in {features.dtype}.", fix="Keep features in fp32, or normalise them."
        )
    values = pa.array(np.ascontiguousarray(features).reshape(-1))
    return pa.table({FEATURES: pa.FixedSizeListArray.from_arrays(values, features.shape[1])})


def features_of(table: pa.Table) -> np.ndarray:
    """(rows, d) of a table of `features_table`."""
    column = table[FEATURES].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)


def read_table(
    folder: Path, rows: int = 0, columns: Sequence[str] | None = None, fingerprint: str | None = None
) -> pa.Table:
    """All shards of a folder as one table, in row order; columns of `CODED` are dictionary arrays, of one dictionary each.

    Args:
        folder: of the shards.
        rows: that it must have; 0 where that is not known.
        columns: those to read, in this order; one that is not there is left out. None: all.
        fingerprint: that every shard must have; None: the first one's.

    Raises:
        RunError: the folder holds none, a shard is broken or of another table, or one is missing.
    """
    parts, block, done = list[pa.Table](), list[pa.Table](), 0
    for file, shard in _read_shards(_files(folder), columns, fingerprint):
        _check_gap(folder, done, _first_row(file))
        done += len(shard)
        block.append(shard)
        if len(block) == JOINED:
            parts.append(_joined(block).combine_chunks())
            block = []
    _check_gap(folder, done, rows or done)
    return _joined([*parts, *block])


def read_hashes(folder: Path, row_ids: np.ndarray, fingerprint: str | None = None) -> list[str]:
    """(n,) content hashes of these rows, as the score table has them. Errors as of `read_table`."""
    return list(read_rows(folder, row_ids, ["hash"], fingerprint)["hash"].to_pylist()) if len(row_ids) else []


def read_rows(
    folder: Path, row_ids: np.ndarray, columns: Sequence[str] | None = None, fingerprint: str | None = None
) -> pa.Table:
    """(n,) rows of the table, in this order, no column of all rows in memory. Arguments and errors as of `read_table`."""
    files = _files(folder)
    starts = np.array([_first_row(file) for file in files])
    if len(row_ids) and row_ids.min() < starts[0]:
        _check_gap(folder, 0, int(starts[0]))
    shard_of = np.searchsorted(starts, row_ids, side="right") - 1
    order = np.argsort(shard_of, kind="stable")
    touched, first = np.unique(shard_of[order], return_index=True)
    groups = [order[start:stop] for start, stop in itertools.pairwise([*first, len(order)])]
    parts = []
    for group, (file, shard) in zip(
        groups, _read_shards([files[at] for at in touched], columns, fingerprint), strict=True
    ):
        start = _first_row(file)
        _check_gap(folder, start + len(shard), int(row_ids[group].max()) + 1)
        parts.append(shard.take(pa.array(row_ids[group] - start)))
    return _joined(parts).take(pa.array(np.argsort(order, kind="stable")))


def _read_shards(
    files: Sequence[Path], columns: Sequence[str] | None, fingerprint: str | None
) -> Iterator[tuple[Path, pa.Table]]:
    """Each file with its rows, in order; `READERS` are read at once. All have one fingerprint."""
    with ThreadPoolExecutor(READERS) as readers:
        for file, (stamp, shard) in zip(files, readers.map(partial(_read_shard, columns=columns), files), strict=True):
            fingerprint = stamp if fingerprint is None else fingerprint
            if stamp != fingerprint:
                raise RunError(f"{file} belongs to another run.", fix=_ANEW)
            yield file, shard


def _read_shard(file: Path, columns: Sequence[str] | None) -> tuple[str, pa.Table]:
    with _open_shard(file, coded=CODED) as shard:
        return _stamp_of(shard), _rows_of(shard, columns, use_threads=False)


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries()


def columns_in(folder: Path) -> list[str]:
    """The columns of a folder's shards.

    Raises:
        RunError: the folder holds none, or its first shard is broken.
    """
    first = _files(folder)[0]
    with _broken_said(first):
        return list(pq.read_schema(first).names)


def rows_in(folder: Path) -> int:
    """Rows of a folder's shards together, by their headers. Errors as of `columns_in`."""
    rows = 0
    for file in _files(folder):
        with _broken_said(file):
            rows += pq.read_metadata(file).num_rows
    return rows


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("rows-*.parquet"))
    if not files:
        raise RunError(f"{folder} holds no scores.", fix="Give the command that scores it again.")
    return files


@contextmanager
def _broken_said(file: Path) -> Iterator[None]:
    try:
        yield
    except RunError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:  # a footer may name other columns
        if isinstance(error, OSError) and error.errno:  # of the disk, not of the file's content
            raise
        raise RunError(f"{file} is broken: {error}", fix=_ANEW) from None


def _check_gap(folder: Path, start: int, stop: int) -> None:
    if stop > start:
        raise RunError(f"{folder} lacks the scores of row_id {start} to {stop - 1}.", fix=_ANEW)
