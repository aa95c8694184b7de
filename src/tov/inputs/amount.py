"""How much is to be chosen, before anything is scored: a number of rows, or what a budget of tokens stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tov.config.choice import SelectionSettings
from tov.errors import DataError
from tov.inputs.draw import sample_rows
from tov.inputs.read import PoolRows
from tov.text.encode import Encoded, Encoder

CERTAIN = 4
"""Standard errors of an estimate beyond which a pool is refused as too small before it is scored."""
SHORTER = 1.25
"""A method is prepared for so many times the rows of mean length: the chosen ones may be shorter."""
OF_A_SOURCE = 1024
"""Rows of a source with a share that are made tokens of."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the usable rows of a pool, or of a part of one, by a sample.

    Attributes:
        rows: usable rows that the sample stands for.
        mean: tokens of a row with a scored token; 0 where there is none.
        scored: share of the rows that have one.
        error: standard error of `mean * scored`; 0 where every row was looked at.
    """

    rows: int
    mean: float
    scored: float
    error: float

    @staticmethod
    def of(encoded: Encoded, rows: int) -> Lengths:
        """From rows as tokens that stand for so many."""
        scored = encoded.scored_counts > 0
        lengths = np.where(scored, encoded.lengths, 0)
        mean = float(lengths.sum() / max(1, scored.sum()))
        error = float(lengths.std() / math.sqrt(len(lengths))) if rows > len(lengths) > 0 else 0.0
        return Lengths(rows, mean, float(scored.mean()) if len(scored) else 0.0, error)

    @property
    def most(self) -> int:
        """Tokens of all rows together, at most."""
        return math.floor(self.rows * (self.mean * self.scored + CERTAIN * self.error) + 1e-6)


@dataclass(frozen=True)
class Amount:
    """How much is to be chosen.

    Attributes:
        rows: how many; for a budget of tokens those of mean length that it is enough for.
        least: rows that these are at least.
        tokens: the budget; None for a number of rows.
        lengths: of the pool, where there is a budget.
    """

    rows: int
    least: int
    tokens: int | None = None
    lengths: Lengths | None = None

    @property
    def flag(self) -> str:
        """By which it was asked for."""
        return "--n" if self.tokens is None else "--tokens"

    @property
    def prepared(self) -> int:
        """Rows that a method is to be prepared for."""
        if self.lengths is None:
            return self.rows
        return max(1, min(self.lengths.rows, math.ceil(SHORTER * self.rows)))


def amount_of(settings: SelectionSettings, rows: PoolRows, lengths: Lengths | None) -> Amount:
    """What is asked for.

    Args:
        settings: with `n` or `tokens`.
        rows: the pool.
        lengths: of its usable rows, for a budget of tokens.

    Raises:
        DataError: the pool has fewer tokens, as far as that is certain.
    """
    if settings.tokens is None:
        assert settings.n
        return Amount(settings.n, settings.n)
    assert lengths
    if lengths.most < settings.tokens:
        about = "about " * bool(lengths.error)
        raise DataError(
            f"The {lengths.rows:,} usable rows of the pool have {about}{round(lengths.rows * lengths.mean * lengths.scored):,} "
            f"tokens, but --tokens asks for {settings.tokens:,}.",
            fix="Lower --tokens, or add rows to the pool.",
        )
    estimate = min(lengths.rows, round(settings.tokens / lengths.mean))
    least = math.floor(settings.tokens / (lengths.mean + CERTAIN * lengths.error / lengths.scored))
    return Amount(max(1, estimate), min(least, estimate), settings.tokens, lengths)


def lengths_of(rows: PoolRows, encode: Encoder, seed: int) -> Lengths:
    """Of the usable rows, by a sample."""
    return Lengths.of(sample_rows(rows, encode, seed)[1], int(rows.usable.sum()))


def most_of_source(rows: PoolRows, encode: Encoder, seed: int, among: np.ndarray) -> int:
    """Tokens that the usable rows among these have at most, by a sample."""
    _, encoded = sample_rows(rows, encode, seed, among, OF_A_SOURCE)
    return Lengths.of(encoded, int((rows.usable & among).sum())).most
