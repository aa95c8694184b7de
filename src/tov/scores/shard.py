"""The pool shard by shard: which rows a shard has, and the same rows as tokens. Knows rows and tokens; not what is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tov.data.cells import BadRow
from tov.data.decontamination import USABLE
from tov.data.pool import Index, Pool
from tov.data.rows import Row
from tov.errors import DataError
from tov.text.encode import IGNORED, Encoded, Encoder, encode_placed


@dataclass(frozen=True)
class Shard:
    """The rows of a shard that may be scored.

    Attributes:
        start: the shard's first row_id.
        stop: the row_id behind its last.
        rows: those that are readable and not excluded.
        places: (rows,) where they stand in the shard.
        encoded: the same rows as tokens; some may have no scored token.
        rejected: of preference pairs, the rows with their rejected answers, where these are scored too.
    """

    start: int
    stop: int
    rows: list[Row]
    places: np.ndarray
    encoded: Encoded
    rejected: Shard | None = None

    @property
    def row_ids(self) -> np.ndarray:
        """(rows,) their row_ids."""
        return self.start + self.places

    @property
    def tokens(self) -> int:
        """Tokens that go through a model in one pass: those of rows with a scored token."""
        return tokens_of(self.encoded) + (self.rejected.tokens if self.rejected else 0)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """(stop - start, ...) values of the rows at their places in the shard; NaN elsewhere."""
        spread = np.full((self.stop - self.start, *values.shape[1:]), np.nan, np.result_type(values, np.float32))
        spread[self.places] = values
        return spread


@dataclass(frozen=True)
class ShardReader:
    """Reads a pool shard by shard.

    Attributes:
        pool: the rows.
        index: their hashes.
        excluded: (N,) codes of `tov.data.decontamination`; excluded rows are listed but not read.
        encode: rows of the task to tokens.
        shard_rows: rows a shard.
        skip: whether a row that cannot be encoded (its chat template refuses it) has no token, rather than being an error.
        pairs: whether the rejected answers of preference pairs are read too.
    """

    pool: Pool
    index: Index
    excluded: np.ndarray
    encode: Encoder
    shard_rows: int
    skip: bool = False
    pairs: bool = False

    def bounds(self) -> Iterator[tuple[int, int]]:
        """First row_id of every shard, and the one behind its last."""
        for start in range(0, len(self.pool), self.shard_rows):
            yield start, min(start + self.shard_rows, len(self.pool))

    def rows(self, start: int, stop: int) -> dict[int, Row]:
        """Place in the shard -> row, for the rows from `start` up to `stop` that are readable and not excluded."""
        return {
            place: row
            for place, row in enumerate(self.pool.rows(start, stop))
            if not isinstance(row, BadRow) and self.excluded[start + place] == USABLE
        }

    def read(self, start: int, stop: int) -> Shard:
        """The same rows, as tokens too.

        Raises:
            DataError: one cannot be encoded, with its place, unless such rows are skipped.
        """
        by_id = self.rows(start, stop)
        rows, places = list(by_id.values()), np.array(list(by_id), np.int64)
        encoded = self.encoded(rows, start + places)
        if not self.pairs:
            return Shard(start, stop, rows, places, encoded)
        others = [row.rejected for row in rows]  # type: ignore[attr-defined]
        rejected = Shard(start, stop, others, places, self.encoded(others, start + places))
        return Shard(start, stop, rows, places, _without(encoded, rejected.encoded.scored_counts == 0), rejected)

    def refusal(self, row_id: int) -> str:
        """Why a row cannot be encoded; "" if it can."""
        [row] = self.pool.at([row_id])
        try:
            if not isinstance(row, BadRow):
                self.encode([row])
        except DataError as error:
            # What the template makes of the row stands on further lines: too much for a column.
            return error.problem.splitlines()[0].removesuffix(" It makes this of the row:").rstrip(".")
        return ""

    def encoded(self, rows: list[Row], row_ids: np.ndarray) -> Encoded:
        """Rows with these row_ids as tokens. Errors as of `read`."""
        return encode_placed(self.encode, rows, lambda number: self.pool.where(int(row_ids[number])), skip=self.skip)


def _without(rows: Encoded, unscored: np.ndarray) -> Encoded:
    """The rows, of which these have no scored token: a pair of which one answer is lost has no score."""
    labels = np.where(np.repeat(unscored, rows.lengths), IGNORED, rows.labels).astype(rows.labels.dtype)
    return replace(rows, labels=labels, sizes=np.where(unscored, 0, rows.sizes))


def tokens_of(rows: Encoded) -> int:
    """Tokens of the rows that go through a model: those of rows with a scored token."""
    return int(rows.lengths[rows.scored_counts > 0].sum())
