"""The pool shard by shard: rows in, columns of the score table out, for any method that looks at one row at a time.

Knows rows, tokens and files; must not know what is measured. A shard is whole on disk or absent, so a walk that was killed goes
on with the first that is missing and ends with the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tov.data.cells import BadRow
from tov.data.guard import NO_TOKENS, REASONS, UNREADABLE, USABLE
from tov.data.pool import Index, Pool
from tov.data.rows import Row
from tov.progress import Progress, Silent, part
from tov.scan.shards import is_done, shard_file, write_shard
from tov.text.encode import Encoded, Encoder


@dataclass(frozen=True)
class Stream:
    """A pool and what its score table is made of.

    Attributes:
        pool: the rows.
        index: their hashes.
        excluded: (N,) codes of `tov.data.guard`; excluded rows are listed but not scored.
        in_base: (N,) bool.
        encode: rows of the task to tokens.
        shard_rows: rows a shard.
        fingerprint: of everything that the scores depend on.
    """

    pool: Pool
    index: Index
    excluded: np.ndarray
    in_base: np.ndarray
    encode: Encoder
    shard_rows: int
    fingerprint: str


@dataclass(frozen=True)
class Shard:
    """The rows of a shard that may be scored.

    Attributes:
        start: the shard's first row_id.
        stop: the row_id behind its last.
        rows: those that are readable and not excluded.
        places: (rows,) where they stand in the shard.
        encoded: the same rows as tokens; some may have no scored token.
    """

    start: int
    stop: int
    rows: list[Row]
    places: np.ndarray
    encoded: Encoded

    @property
    def row_ids(self) -> np.ndarray:
        """(rows,) their row_ids."""
        return self.start + self.places

    def spread(self, values: np.ndarray) -> np.ndarray:
        """(stop - start, ...) values of the rows at their places in the shard; NaN elsewhere."""
        spread = np.full((self.stop - self.start, *values.shape[1:]), np.nan, np.result_type(values, np.float32))
        spread[self.places] = values
        return spread


Score = Callable[[Shard], tuple[Mapping[str, np.ndarray], int]]
"""A shard's rows -> (rows,) numbers a column, NaN for none; and the tokens that went through the model for them."""


def shards(job: Stream) -> Iterator[tuple[int, int]]:
    """First row_id of every shard, and the one behind its last."""
    for start in range(0, len(job.pool), job.shard_rows):
        yield start, min(start + job.shard_rows, len(job.pool))


def read_rows(job: Stream, start: int, stop: int) -> dict[int, Row]:
    """Place in the shard -> row, for the rows from `start` up to `stop` that are readable and not excluded."""
    return {
        place: row
        for place, row in enumerate(job.pool.rows(start, stop))
        if not isinstance(row, BadRow) and job.excluded[start + place] == USABLE
    }


def read_shard(job: Stream, start: int, stop: int) -> Shard:
    """The same rows, as tokens too."""
    found = read_rows(job, start, stop)
    rows = list(found.values())
    return Shard(start, stop, rows, np.array(list(found), np.int64), job.encode(rows))


def fill(job: Stream, folder: Path, score: Score, progress: Progress | None = None) -> int:
    """Makes every shard of the score table that is not there yet; returns the tokens that went through the model.

    Args:
        job: the pool.
        folder: of the shards.
        score: called once a missing shard, in row order.
        progress: told of rows and tokens.

    Raises:
        RunError: a shard was made from something else, or is broken.
        StorageError: the disk is full.
    """
    progress, passed = progress or Silent(), 0
    for start, stop in shards(job):
        file = shard_file(folder, start)
        if is_done(file, job.fingerprint):
            progress.advance(stop - start, found=True)
            continue
        with part(progress, stop - start):
            done = _fill_shard(job, read_shard(job, start, stop), file, score)
        passed += done
        progress.advance(stop - start, done)
    return passed


def _fill_shard(job: Stream, shard: Shard, file: Path, score: Score) -> int:
    columns, passed = score(shard)
    part = slice(shard.start, shard.stop)
    tokens, lost = np.zeros((2, shard.stop - shard.start), np.int32)
    tokens[shard.places], lost[shard.places] = shard.encoded.sizes, shard.encoded.lost
    codes = job.excluded[part].copy()
    scored = shard.encoded.sizes > 0
    codes[shard.places[~scored]] = NO_TOKENS
    row_ids = np.arange(shard.start, shard.stop)
    reasons = [_reason(job, int(row), int(code)) for row, code in zip(row_ids, codes, strict=True)]
    write_shard(
        file, row_ids=row_ids, sources=job.pool.source_names(row_ids), hashes=job.index.content[part], tokens=tokens,
        lost=lost, in_base=job.in_base[part], excluded=reasons,
        columns={name: shard.spread(np.where(scored, values, np.nan)) for name, values in columns.items()},
        fingerprint=job.fingerprint,
    )  # fmt: skip
    return passed


def _reason(job: Stream, row_id: int, code: int) -> str:
    return f"{REASONS[code]}: {job.index.bad[row_id]}" if code == UNREADABLE else REASONS[code]
