"""Scores from log-probabilities, against plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracle import scores as oracle
from tov.losses import log_loss, row_means
from tov.methods.tov.scoring import TRANSFORM_FUNCTIONS, normalized, row_scores, uncertainty

LOG_P = st.floats(-30.0, -1e-6)
ROWS = st.lists(st.lists(st.tuples(LOG_P, LOG_P), max_size=5), min_size=1, max_size=8)


def ragged(rows):
    """(base, target, offsets) of rows of (base, target) pairs."""
    flat = np.array([pair for row in rows for pair in row], float).reshape(-1, 2)
    return flat[:, 0], flat[:, 1], np.cumsum([0, *map(len, rows)])


@given(ROWS)
def test_scores_equal_the_plain_twin(rows):
    base, target, offsets = ragged(rows)
    scores = row_scores(base, target, offsets)
    for place, row in enumerate(rows):
        expected = (
            oracle.row_scores([b for b, _ in row], [t for _, t in row]) if row else dict.fromkeys(scores, math.nan)
        )
        for name, values in scores.items():
            assert values[place] == pytest.approx(expected[name], nan_ok=True), (
                f"{name} of row {place}: F before the mean, or a row's edge in the offsets"
            )


@given(ROWS)
def test_abs_is_twice_positive_minus_identity(rows):
    scores = row_scores(*ragged(rows))
    gap = scores["abs"] - (2 * scores["positive"] - scores["identity"])
    assert np.nanmax(np.abs(gap), initial=0.0) < 1e-12, "F was taken of the mean, not of each token"


@given(ROWS)
def test_uncertainty_equals_the_plain_twin(rows):
    base, _, offsets = ragged(rows)
    for place, (value, row) in enumerate(zip(uncertainty(base, offsets), rows, strict=True)):
        expected = oracle.uncertainty([b for b, _ in row]) if row else math.nan
        assert value == pytest.approx(expected, rel=1e-6, nan_ok=True), f"row {place}: log[p (1 - p)]"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[], [1.0, 3.0]], [math.nan, 2.0]),
        ([[1.0, 3.0], []], [2.0, math.nan]),
        ([[1.0], [], [], [5.0, 7.0], []], [1.0, math.nan, math.nan, 6.0, math.nan]),
        ([[]], [math.nan]),
    ],
    ids=["first", "last", "between", "only"],
)
def test_a_row_without_tokens_has_no_mean_and_takes_none_from_its_neighbours(rows, expected):
    values = np.array([value for row in rows for value in row], np.float32)
    means = row_means(values, np.cumsum([0, *map(len, rows)]))
    assert np.array_equal(means, expected, equal_nan=True), f"{rows} gave {means}"


def test_no_rows_have_no_means():
    assert len(row_means(np.empty(0), np.zeros(1, int))) == 0, "an empty shard must give an empty answer"


def test_sums_are_taken_in_float64():
    """A long row in fp32 would lose the digits that a score consists of."""
    values = np.full(100_000, 0.1, np.float32)
    assert row_means(values, np.array([0, 100_000]))[0] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@pytest.mark.parametrize("logp", [0.0, -1e-30, 2e-7, -1e-9], ids=["p=1", "just below", "rounded above", "near"])
def test_uncertainty_is_finite_for_a_certain_token(logp):
    value = uncertainty(np.array([logp], np.float32), np.array([0, 1]))[0]
    assert math.isfinite(value), f"log(1 - p) at log p = {logp} is {value}"
    assert value < -10, "a certain token must count as the least uncertain"


def test_uncertainty_is_largest_at_one_half():
    p = np.array([0.01, 0.3, 0.5, 0.7, 0.99])
    values = uncertainty(np.log(p), np.arange(6))
    assert p[values.argmax()] == 0.5, f"log[p (1 - p)] peaks at p = {p[values.argmax()]}"


def test_transforms_are_those_of_algorithm_1():
    gain = np.array([-2.0, 0.0, 3.0])
    found = {name: transform(gain).tolist() for name, transform in TRANSFORM_FUNCTIONS.items()}
    assert found == {"identity": [-2, 0, 3], "abs": [2, 0, 3], "positive": [0, 0, 3]}, f"F is {found}"


def test_log_loss_is_minus_the_mean_log_p():
    assert log_loss(np.log([0.5, 0.25]), np.array([0, 2]))[0] == pytest.approx(1.5 * math.log(2)), "Eq. 7: its sign"


def test_a_score_relative_to_the_loss_is_a_share_of_it():
    found = normalized(np.array([0.2, -0.1, np.nan]), np.array([2.0, 0.5, 1.0]))
    assert np.allclose(found, [0.1, -0.2, np.nan], equal_nan=True), f"score / loss is {found}"


@pytest.mark.parametrize("loss", [0.0, math.nan], ids=["no loss", "no score"])
def test_a_score_relative_to_no_loss_is_no_infinity(loss):
    """A row that is certain already would otherwise outrank every other."""
    value = normalized(np.array([1e-6]), np.array([loss]))[0]
    assert not math.isinf(value), f"score / {loss} is {value}"
