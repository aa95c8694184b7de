"""The numbers of `experiments/fewer_passes.py` and `changes.py`: which rows go on, what a regression says, what gives way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from changes import spread
from fewer_passes import (
    HALVING,
    Table,
    Way,
    best_in_bins,
    by_dropping,
    by_landmarks,
    choice_of,
    dropped,
    foretell,
    lost_share,
    ridge,
)

BINS = 4


def make_table(seed: int = 0, noise: float = 1.0, rows: int = 400) -> Table:
    """Epochs are one true score with noise; a quarter of the rows is the base set."""
    random = np.random.default_rng(seed)
    epochs = random.normal(size=rows) + noise * random.normal(size=(4, rows))
    lengths = random.integers(1, 40, rows)
    in_base = np.arange(rows) % 4 == 0
    loss = random.random(rows)
    return Table(Path("none"), epochs.mean(0), epochs, loss, lengths, lengths, in_base, np.ones(rows, bool))


def test_the_best_of_each_bin_are_taken() -> None:
    tokens, scores = np.array([1, 1, 1, 9, 9, 9, 5]), np.array([0.0, 2.0, 1.0, 9.0, 8.0, 7.0, 99.0])
    row_ids = np.arange(6)  # the last row is not in the race
    assert best_in_bins(scores, tokens, row_ids, 4, 2).tolist() == [1, 2, 3, 4]


def test_half_of_the_rows_go_on_by_the_mean_of_the_epochs_so_far() -> None:
    #                    bad start  dropped second    wins
    epochs = np.array([[-9.0, 1.0, 2.0, 3.0], [99.0, 9.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    scanned = dropped(epochs, np.ones(4, int), np.arange(4), (0.75, 1 / 3), bins=1)
    assert [row_ids.tolist() for row_ids in scanned] == [[0, 1, 2, 3], [1, 2, 3], [1]]


def test_every_length_bin_keeps_the_same_share() -> None:
    table = make_table()
    scanned = dropped(table.epochs, table.tokens, table.free, HALVING, BINS)
    assert [len(row_ids) for row_ids in scanned] == [300, 150, 75, 38]
    order = np.lexsort((table.free, table.tokens[table.free]))
    for part in np.array_split(table.free[order], BINS):
        assert [np.isin(part, row_ids).sum() for row_ids in scanned[:2]] == [75, pytest.approx(37.5, abs=0.5)]
        assert np.isin(part, scanned[3]).sum() == pytest.approx(9.5, abs=0.5)


def test_what_went_on_to_the_end_is_chosen_as_from_the_full_table() -> None:
    table = make_table(noise=0.0)
    way = by_dropping(table, "halving", HALVING, BINS)
    full, own = (choice_of(table, scores, 40, "score+random", BINS, seed=3) for scores in (table.score, way.scores))
    assert full.row_ids.tolist() == own.row_ids.tolist(), "epochs that agree give up nothing that would be chosen"
    assert way.tokens == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 8) / 4, rel=0.1)
    assert foretell(table, way, 20 / 300, BINS, seed=3)[0] == pytest.approx(0.0, abs=0.1)


def test_a_sample_foretells_what_is_lost() -> None:
    table = make_table(noise=3.0, rows=4000)
    way = by_dropping(table, "quarter", (0.25, 1.0, 1.0), BINS)
    assert way.rule
    assert way.tokens == pytest.approx((1 + 3 / 4) / 4, rel=0.05)
    best = best_in_bins(table.score, table.tokens, table.free, 300, BINS)
    lost = lost_share(best, way.rule(table.free))
    mean, spread = foretell(table, way, 300 / 3000, BINS, seed=1)
    assert 0.1 < lost < 0.9
    assert abs(mean - lost) < spread


def test_ridge_finds_a_line_and_keeps_what_is_known() -> None:
    random = np.random.default_rng(0)
    features = np.column_stack([random.normal(size=(300, 5)), np.full(300, 7.0)])
    values = features[:, :5] @ [3.0, -2.0, 0.0, 1.0, 0.5] + 4
    known = np.arange(300) < 100
    seen = np.where(known, values, np.nan)
    assert ridge(features, seen, known) == pytest.approx(values, abs=0.05)


def test_ridge_says_the_mean_where_features_say_nothing() -> None:
    random = np.random.default_rng(0)
    features, values, known = random.normal(size=(400, 80)), random.normal(5, 1, 400), np.arange(400) < 100
    foretold = ridge(features, values, known)[~known]
    assert abs(foretold - values[known].mean()).max() < 0.5, "features as many as rows are not believed"


def test_landmarks_know_a_score_that_is_a_line_in_the_embedding() -> None:
    table = make_table(noise=0.0)
    embedded = np.column_stack([table.score[table.free], np.random.default_rng(1).normal(size=(300, 3))])
    way = by_landmarks(table, embedded, seed=0, first_epoch=False)
    assert way.scores[table.free] == pytest.approx(table.score[table.free], abs=0.05)
    assert np.isnan(way.scores[table.in_base]).all()
    assert way.tokens == pytest.approx((1 + 7 / 4) / 8, rel=0.1)


def test_a_way_without_dropping_gives_nothing_up() -> None:
    assert Way("tov", np.zeros(3), 1.0).rule is None


def test_a_row_like_one_that_was_taken_gives_way() -> None:
    """The two best rows are alike: after the first another one is worth more; without likeness the order is the score's."""
    score = np.array([4.0, 3.9, 3.0, 1.0])
    table = Table(Path("none"), score, score[None], score, np.ones(4), np.ones(4), np.zeros(4, bool), np.ones(4, bool))
    alike = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.2], [-1.0, -0.2]])
    assert spread(table, alike, 2).tolist() == [0, 2]
    assert spread(table, np.eye(4), 4).tolist() == [0, 1, 2, 3]
