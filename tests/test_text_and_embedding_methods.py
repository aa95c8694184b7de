"""DSIR, TSDS, RDS+ and the rules they need: against loops, against the authors, and what must not matter."""

from __future__ import annotations

import itertools
import json
import math
import operator
import re
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import chi2

from oracle import dsir as dsir_oracle
from oracle import round_robin as round_robin_oracle
from oracle import tsds as tsds_oracle
from tov.errors import ConfigError, DataError
from tov.methods.dsir import BLOCK_ROWS, Ngrams, log_ratio, ngram_counts, row_weights, wordpunct
from tov.methods.shared.neighbours import best_cosine, distance_of, nearest, normalised
from tov.methods.tsds import calibrated_sigma, density, level_of_support, transport, tsds
from tov.seeds import generator
from tov.selection.choose import choose
from tov.selection.round_robin import round_robin_of, top_candidates

WORDS_AND_MARKS, AUTHORS = Ngrams(), Ngrams(hashing="sha256")
WORDS = [
    "the",
    "The",
    "cat",
    "sat",
    "don't",
    "3.14",
    "--",
    "Ünïcode",
    "数据",
    "a_b",
    "!?",
    "x=1;",
    "\n",
    "\t",
    "e-mail",
]
texts = st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=1, max_size=12)


def some_texts(rows: int, seed: int, words: int = 60, length: int = 30) -> list[str]:
    """Rows of 1 to `length` words, some rarer than others."""
    random = np.random.default_rng(seed)
    return [
        " ".join(f"w{word}" for word in (words * random.random(random.integers(1, length + 1)) ** 2).astype(int))
        for _ in range(rows)
    ]


def some_rows(rows: int, seed: int, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width))


# DSIR


def dsir(pool, target, *, ngrams=WORDS_AND_MARKS, block_rows=BLOCK_ROWS, **options) -> np.ndarray:
    """What `tov.tables.text` does: counts of target and pool, their log ratio, the weights of the pool's rows."""
    ratio = log_ratio(*(ngram_counts(texts, ngrams=ngrams, block_rows=block_rows) for texts in (target, pool)))
    return row_weights(pool, ratio, ngrams=ngrams, block_rows=block_rows, **options)


@pytest.mark.slow
@given(texts, texts, st.sampled_from([1, 7, 10_000]))
def test_dsir_weights_are_those_of_a_loop_over_every_ngram(pool, target, buckets):
    assume(any(wordpunct(text) for text in pool) and any(wordpunct(text) for text in target))
    weights = dsir(pool, target, ngrams=Ngrams(buckets=buckets, hashing="sha256"), block_rows=5)
    expected = dsir_oracle.log_weights(pool, target, buckets)
    np.testing.assert_allclose(weights, expected, rtol=1e-9, atol=1e-9, err_msg="counts, shares or sums")


def test_dsir_weights_are_those_of_the_authors_package(tmp_path):
    """Equal at: their hash (sha256), the whole pool for q ("all" tokens), sums, 10,000 buckets; one process."""
    authors = pytest.importorskip("data_selection", reason="pip install data-selection")
    pool = [*some_texts(60, 1, words=4000, length=200), "Don't stop: 3.14 (π) -- e-mail, OK?!", "one"]
    target = some_texts(15, 2, words=1500, length=80)
    for name, rows in (("pool", pool), ("target", target)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    theirs = authors.HashedNgramDSIR(
        [str(tmp_path / "pool.jsonl")], [str(tmp_path / "target.jsonl")], str(tmp_path / "cache"), num_proc=1
    )
    theirs.fit_importance_estimator(num_tokens_to_fit="all")
    theirs.compute_importance_weights()
    ours = dsir(pool, target, ngrams=AUTHORS)
    np.testing.assert_allclose(ours, np.load(tmp_path / "cache/log_importance_weights/0.npy"), atol=1e-6)
    lengths = np.load(tmp_path / "cache/perexample_metadata/0.npy")
    assert [len(wordpunct(row)) for row in pool] == lengths.tolist(), "a row's length is its number of tokens"
    kept = ~np.isnan(dsir(pool, target, ngrams=AUTHORS, min_tokens=100))
    assert kept.tolist() == theirs.perexample_metadata_filter(lengths).tolist(), "min_tokens=100 is the authors' filter"
    assert 0 < kept.sum() < len(pool), "the test needs rows on both sides of 100 tokens"


def test_hashing_matters_only_where_ngrams_share_a_bucket():
    """In a million buckets no two n-grams of these rows meet, in either hash; then the weights are the same."""
    pool, target = some_texts(40, 3, words=12), some_texts(10, 4, words=12)
    rows = [wordpunct(text) for text in pool + target]
    distinct = {word for row in rows for word in row} | {pair for row in rows for pair in itertools.pairwise(row)}
    both = []
    for hashing in ("mixed", "sha256"):
        ngrams = Ngrams(buckets=1_000_003, hashing=hashing)
        used = np.count_nonzero(ngram_counts(pool + target, ngrams=ngrams))
        assert used == len(distinct), f"{hashing}: {len(distinct)} n-grams are in {used} buckets"
        both.append(dsir(pool, target, ngrams=ngrams))
    np.testing.assert_allclose(both[0], both[1], rtol=1e-12, err_msg="the fast hash of pairs loses or moves n-grams")


@pytest.mark.slow
def test_the_mixed_hash_spreads_bigrams_evenly():
    unigrams, counts = ngram_counts(["a"], ngrams=Ngrams(buckets=50)), np.zeros(50)
    for one in range(0, 4000, 40):
        row = " ".join(f"t{one + step // 2 if step % 2 else 9999 + one + step}" for step in range(80))
        pairs = ngram_counts([row], ngrams=Ngrams(buckets=50))
        counts += pairs - sum(ngram_counts([word], ngrams=Ngrams(buckets=50)) for word in wordpunct(row))
    assert unigrams.sum() == 1, "a row of one token has one n-gram"
    assert counts.sum() == 79 * 100, "a row of T tokens has T - 1 bigrams"
    statistic = (np.square(counts - counts.mean()) / counts.mean()).sum()
    assert statistic < chi2.ppf(0.999, 49), f"bigrams crowd in some buckets: chi-square {statistic:.0f} of 49"


@pytest.mark.parametrize("hashing", ["mixed", "sha256"])
def test_a_bigram_has_an_order_and_ends_with_its_row(hashing):
    ngrams = Ngrams(hashing=hashing)
    one, two = (ngram_counts([text], ngrams=ngrams) for text in ("left right", "right left"))
    assert (one != two).sum() == 2, "a pair and its reverse must be two features"
    apart = ngram_counts(["left", "right"], ngrams=ngrams)
    assert apart.sum() == 2, "two rows of one token make a bigram across their border"


@pytest.mark.slow
@given(texts, texts, st.integers(1, 15), st.sampled_from(["mixed", "sha256"]), st.sampled_from(["sum", "mean"]))
def test_neither_block_size_nor_pool_order_changes_a_weight(pool, target, block_rows, hashing, over):
    assume(any(wordpunct(text) for text in pool) and any(wordpunct(text) for text in target))
    options = {"ngrams": Ngrams(hashing=hashing), "over": over}
    whole = dsir(pool, target, **options)
    parts = dsir(pool, target, block_rows=block_rows, **options)
    assert np.array_equal(whole, parts, equal_nan=True), f"blocks of {block_rows} rows"
    order = np.random.default_rng(block_rows).permutation(len(pool))
    shuffled = dsir([pool[place] for place in order], target, block_rows=block_rows, **options)
    assert np.array_equal(whole[order], shuffled, equal_nan=True), "another order of the pool"


def test_short_rows_keep_their_place_and_are_never_drawn():
    pool = ["", "one", " \n", "one two three", "two three four five"]
    weights = dsir(pool, ["one two"], min_tokens=3)
    assert np.isnan(weights).tolist() == [True, True, True, False, False], "rows of 0, 1, 0, 3, 4 tokens"
    assert np.isnan(dsir(pool, ["one two"])).tolist() == [True, False, True, False, False], "the default is 1"
    assert sorted(drawn_rows(weights, 2, 0)) == [3, 4], "a row without a weight was drawn"


def test_the_mean_is_the_sum_over_the_number_of_ngrams():
    pool, target = some_texts(20, 5), some_texts(5, 6)
    total, mean = (dsir(pool, target, over=over) for over in ("sum", "mean"))
    ngrams = [2 * len(wordpunct(text)) - 1 for text in pool]
    np.testing.assert_allclose(mean * ngrams, total, rtol=1e-12)
    twice = row_weights(["a b a b a"], log_ratio(*(ngram_counts([t]) for t in ("a b a", "b a c"))), over="mean")
    once = row_weights(["a b a b a b a b a"], log_ratio(*(ngram_counts([t]) for t in ("a b a", "b a c"))), over="mean")
    assert abs(twice[0] - once[0]) < abs(once[0]) / 5, "the mean grows with length"


def test_rows_like_the_target_weigh_more():
    weights = dsir(["red green", "red blue", "seven eight"], ["red green blue"])
    assert weights[0] > 0 > weights[1] > weights[2], f"the sign: {weights}"


def test_a_tokenizer_of_ones_own_sees_the_text_as_it_is():
    seen = []

    def characters(text: str) -> list[str]:
        seen.append(text)
        return list(text)

    counts = ngram_counts(["Ab c", "\ud800"], ngrams=Ngrams(tokenize=characters))
    assert seen == ["Ab c", "\ud800"], "the text was changed before the tokenizer"
    assert counts.sum() == 7 + 1, "4 characters are 4 unigrams and 3 bigrams; a lone surrogate is a token"


def test_memory_does_not_grow_with_the_pool():
    class Pool:
        def __init__(self, rows: int) -> None:
            self.rows = rows

        def __iter__(self):
            return (f"row {row} of {row % 7} " * 10 for row in range(self.rows))

    peaks = []
    for rows in (400, 400, 3200):  # the first call fills caches
        tracemalloc.start()
        dsir(Pool(rows), ["row of seven"], block_rows=100)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1] + 32 * 2800, (
        f"eight times the rows took {peaks[2] / peaks[1]:.1f} times the memory"
    )


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: dsir(["a"], []), DataError, "target holds no token"),
        (lambda: dsir([" "], ["a"]), DataError, "pool holds no token"),
        (lambda: dsir(["a"], ["a"], over="max"), ConfigError, "sum, mean"),
        (lambda: dsir(["a"], ["a"], min_tokens=0), ConfigError, "1 or more"),
        (lambda: row_weights(["a"], np.zeros(3)), ConfigError, "10,000 buckets"),
        (lambda: Ngrams(buckets=0), ConfigError, "1 or more"),
        (lambda: Ngrams(hashing="md5"), ConfigError, "mixed, sha256"),
    ],
)
def test_dsir_says_what_is_wrong(call, error, says):
    with pytest.raises(error, match=re.escape(says)):
        call()


# Draws


def drawn_rows(weights: np.ndarray, n: int, seed: int, *, usable: np.ndarray | None = None) -> list[int]:
    """The rule `sample`, not binned: n rows by log-weight, in the order of drawing."""
    rows = len(weights)
    usable = np.ones(rows, bool) if usable is None else usable
    choice = choose(
        scores=weights, tokens=np.ones(rows, np.int64), in_base=np.zeros(rows, bool), usable=usable, n=n, rule="sample",
        bins=1, seed=seed,
    )  # fmt: skip
    return choice.row_ids.tolist()


@given(st.lists(st.sampled_from([0.0, 1.0, -3.0, 2.5, np.nan, -np.inf]), min_size=1, max_size=30), st.data())
def test_a_draw_is_the_largest_of_log_weight_and_noise(weights, data):
    weights, seed = np.array(weights), data.draw(st.integers(0, 1000))
    most = int((weights > -np.inf).sum())
    n = data.draw(st.integers(0, most))
    drawn = drawn_rows(weights, n, seed)
    noise = generator(seed, "gumbel top-k").gumbel(size=len(weights))
    keys = {row: weights[row] + noise[row] for row in range(len(weights)) if weights[row] > -np.inf}
    assert drawn == sorted(keys, key=lambda row: -keys[row])[:n]
    assert len(set(drawn)) == n, "a row was drawn twice, or too few were"
    assert drawn == drawn_rows(weights, n, seed), "equal seeds must draw equal rows"
    assert drawn == drawn_rows(weights, most, seed)[:n], "a larger draw must begin with the smaller"
    left_out = np.array(data.draw(st.lists(st.booleans(), min_size=len(weights), max_size=len(weights))))
    others = int((~left_out & (weights > -np.inf)).sum())
    assert drawn_rows(weights, others, seed, usable=~left_out) == [
        row for row in drawn_rows(weights, most, seed) if not left_out[row]
    ], "a row's noise depends on which others may be drawn"
    with pytest.raises(DataError, match=f"--n asks for {most + 1}"):
        drawn_rows(weights, most + 1, seed)


@pytest.mark.slow
def test_draws_have_the_probabilities_of_drawing_without_replacement():
    """P(i, j) = w_i w_j / (1 - w_i) for ordered pairs of four rows; chi-square with 11 degrees of freedom."""
    w = np.array([0.1, 0.2, 0.3, 0.4])
    counts = np.zeros((4, 4))
    for seed in range(5000):
        counts[tuple(drawn_rows(np.log(w) + 700.0, 2, seed))] += 1
    expected = 5000 * w[:, None] * w / (1 - w[:, None])
    off = ~np.eye(4, dtype=bool)
    statistic = (np.square(counts - expected)[off] / expected[off]).sum()
    assert counts.trace() == 0, "a row was drawn twice"
    assert statistic < chi2.ppf(0.999, 11), f"chi-square {statistic:.1f} of 11: {counts / 5000}"


# Nearest rows


@st.composite
def grids(draw):
    """Queries and pool along axes and diagonals of four dimensions: cosines are quarters, exact, and many are equal."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))

    def rows(count):
        axes = np.eye(4)[random.integers(0, 4, count)] * random.choice([-3.0, 0.5, 1.0], (count, 1))
        diagonals = random.choice([-1.0, 1.0], (count, 4)) * random.choice([0.25, 7.0], (count, 1))
        return np.where(random.random((count, 1)) < 0.5, axes, diagonals)

    pool = rows(draw(st.integers(1, 40)))
    pool[random.random(len(pool)) < 0.1, 1] = random.choice([np.nan, np.inf, -np.inf])
    pool[random.random(len(pool)) < 0.1] = 0.0
    usable = random.random(len(pool)) < 0.8
    assume((usable & np.isfinite(pool).all(1) & pool.any(1)).any())
    return rows(draw(st.integers(1, 6))), pool, usable


@given(grids(), st.data())
def test_nearest_rows_are_those_of_a_sorted_list(grid, data):
    queries, pool, usable = grid
    rows = np.flatnonzero(usable & np.isfinite(pool).all(1) & pool.any(1))
    k = data.draw(st.integers(1, len(rows)))
    blocks = {"block_rows": data.draw(st.integers(1, 41)), "block_queries": data.draw(st.integers(1, 7))}
    found = nearest(queries, pool, k, usable=usable, **blocks)

    def cosine(one, two):
        return sum(map(operator.mul, one / math.hypot(*one), two / math.hypot(*two)))

    for query, row_ids, values in zip(queries, found.row_ids, found.values, strict=True):
        exact = sorted((-cosine(query, pool[row]), int(row)) for row in rows)[:k]
        assert row_ids.tolist() == [row for _, row in exact], "not the nearest, or ties not by row_id"
        assert values.tolist() == [-value for value, _ in exact]
    with pytest.raises(DataError, match="nearest rows are wanted"):
        nearest(queries, pool, len(rows) + 1, usable=usable)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
def test_cosines_do_not_depend_on_length(kind):
    pool, queries = some_rows(300, 1).astype(kind), some_rows(7, 2).astype(kind)
    scales = np.exp2(np.random.default_rng(3).integers(-3, 4, (300, 1))).astype(kind)
    found = nearest(queries, pool * scales, 20, block_rows=64, block_queries=2)
    one, two = (rows.astype(float) for rows in (queries, pool))
    cosines = one @ two.T / np.linalg.norm(one, axis=1)[:, None] / np.linalg.norm(two, axis=1)
    expected = -np.sort(-cosines, axis=1)[:, :20]
    tolerance = 1e-12 if kind == np.float64 else 1e-6
    np.testing.assert_allclose(found.values, expected, atol=tolerance)
    np.testing.assert_allclose(np.take_along_axis(cosines, found.row_ids, 1), expected, atol=tolerance)
    np.testing.assert_allclose(
        best_cosine(pool, queries, block_rows=64, block_queries=2), cosines.max(0), atol=tolerance
    )


def test_rows_without_a_direction_are_nobodys_neighbours():
    pool = some_rows(10, 1)
    pool[2], pool[5, 1], pool[7] = 0.0, np.nan, np.inf
    lost = [2, 5, 7]
    assert np.isnan(normalised(pool)).all(1).nonzero()[0].tolist() == lost
    assert set(nearest(pool[:2], pool, 7).row_ids.ravel().tolist()) == set(range(10)) - set(lost)
    assert np.isnan(best_cosine(pool, pool[:2])).nonzero()[0].tolist() == lost, (
        "no score, and no number that looks like one"
    )
    with pytest.raises(DataError, match="first of row 2"):
        nearest(pool, pool, 1)
    with pytest.raises(DataError, match="zero or not finite"):
        best_cosine(pool, pool)


def test_lengths_beyond_the_square_root_of_the_largest_number_have_a_direction():
    rows = np.array([[3e30, 4e30], [3e-30, 4e-30]], np.float32)
    np.testing.assert_allclose(normalised(rows), [[0.6, 0.8]] * 2, rtol=1e-6)


def test_no_matrix_of_pool_by_target_is_held():
    pool, target = some_rows(20_000, 1, 4), some_rows(200, 2, 4)
    tracemalloc.start()
    nearest(target, pool, 5, block_rows=500, block_queries=50)
    best_cosine(pool, target, block_rows=500, block_queries=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 * 200 * 8 / 8, f"{peak / 1e6:.0f} MB for a matrix of 32 MB"


def test_faiss_finds_the_same_rows():
    pytest.importorskip("faiss", reason="pip install faiss-cpu")
    pool, queries = some_rows(500, 1), some_rows(20, 2)
    pool[3], usable = np.nan, np.arange(500) % 5 > 0
    ours, theirs = (nearest(queries, pool, 9, usable=usable, backend=name) for name in ("numpy", "faiss"))
    assert ours.row_ids.tolist() == theirs.row_ids.tolist()
    np.testing.assert_allclose(ours.values, theirs.values, atol=1e-5)
    with pytest.raises(DataError, match="nearest rows are wanted"):
        nearest(queries, pool, 400, usable=usable, backend="faiss")


def test_without_faiss_the_error_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="pip install faiss-cpu"):
        nearest(some_rows(2, 1), some_rows(3, 2), 1, backend="faiss")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"backend": "scann"}, ConfigError, "numpy, faiss"),
        ({"k": 0}, DataError, "0 nearest"),
        ({"k": 4}, DataError, "4 nearest rows are wanted, but the pool has 3"),
        ({"pool": some_rows(3, 1, 4)}, DataError, "have 5 numbers, but those of the pool have 4"),
    ],
)
def test_a_search_says_what_is_wrong(options, error, says):
    with pytest.raises(error, match=says):
        nearest(**{"queries": some_rows(2, 1), "pool": some_rows(3, 2), "k": 1} | options)


# Round robin and RDS+


@st.composite
def columns(draw):
    """Scores of few values, so that ties and conflicts are common; NaN among them; some rows may not be taken."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 25)), draw(st.integers(1, 6))
    scores = random.choice([0.0, 1.0, 2.0, 3.5, np.nan], shape)
    usable = random.random(shape[0]) < draw(st.sampled_from([0.6, 1.0]))
    return scores, usable, random.permutation(shape[0])


def round_robin(scores: np.ndarray, n: int, **which) -> np.ndarray:
    """Round robin on each column's n best rows, as the rule takes them."""
    return round_robin_of(top_candidates(scores, n, **which), n)


def rds_round_robin(pool: np.ndarray, target: np.ndarray, n: int, usable: np.ndarray) -> np.ndarray:
    """RDS+: round robin on each target row's n nearest rows."""
    return round_robin_of(nearest(target, pool, n, usable=usable).row_ids, n)


@given(columns(), st.data())
def test_round_robin_takes_what_a_loop_takes(table, data):
    scores, usable, row_ids = table
    most = int((usable & np.isfinite(scores).any(1)).sum())
    n = data.draw(st.integers(0, most))
    taken = round_robin(scores, n, usable=usable, row_ids=row_ids).tolist()
    assert taken == round_robin_oracle.round_robin(scores.tolist(), n, usable.tolist(), row_ids.tolist())
    assert len(set(taken)) == n, "a row was taken twice, or too few were"
    order = np.argsort(row_ids)
    again = round_robin(scores[order], n, usable=usable[order])
    assert row_ids[taken].tolist() == again.tolist(), "the order of the pool changes the selection"
    with pytest.raises(DataError, match=f"--n asks for {most + 1}"):
        round_robin(scores, most + 1, usable=usable)


def test_targets_take_turns_however_their_scores_compare():
    scores = np.column_stack([np.arange(40.0), -1000 - np.arange(40.0), 1e6 * np.arange(40.0)])
    assert round_robin(scores, 7).tolist() == [39, 0, 38, 37, 1, 36, 35]


def test_candidates_are_no_more_than_can_be_taken():
    lists = top_candidates(np.random.default_rng(0).integers(0, 3, (500, 4)).astype(float), 6)
    assert [len(rows) for rows in lists] == [6] * 4, "memory must be O(M n)"
    assert round_robin_of(np.array([[4, 2, 9], [4, 2, 9]]), 3).tolist() == [4, 2, 9], (
        "both lists go on where they stood"
    )
    lists = [np.arange(1000), *([row] for row in range(1, 700))]
    assert round_robin_of(lists, 705).tolist() == list(range(705)), "the first list goes on behind 699 taken rows"
    with pytest.raises(DataError, match="candidates are 3 rows, but --n asks for 4"):
        round_robin_of(np.array([[4, 2, 9], [4, 2, 9]]), 4)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 1000), st.data())
def test_rds_is_round_robin_on_all_cosines(rows, targets, seed, data):
    pool, target, usable = some_rows(rows, seed), some_rows(targets, seed + 1), np.arange(rows) % 4 > 0
    cosines = np.where(usable[:, None], normalised(pool) @ normalised(target).T, np.nan)
    assume(usable.any())
    n = data.draw(st.integers(1, int(usable.sum())))
    taken = rds_round_robin(pool, target, n, usable)
    assert taken.tolist() == round_robin(cosines, n).tolist()
    order = np.random.default_rng(seed).permutation(rows)
    again = order[rds_round_robin(pool[order], target, n, usable[order])]
    assert taken.tolist() == again.tolist(), "the order of the pool changes the selection"
    np.testing.assert_allclose(best_cosine(pool, target)[usable], cosines[usable].max(1), atol=1e-12)


# TSDS


@given(
    st.integers(0, 2**20), st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.75, 1.5]),
    st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.sampled_from([0.2, 1.0, 5.0]), st.integers(1, 14),
)  # fmt: skip
@settings(max_examples=60)
def test_tsds_is_what_a_loop_over_all_levels_gives(seed, targets, sigma, alpha, c, k):
    pool, target = some_rows(14, seed, 3), some_rows(targets, seed + 1, 3)
    pool[5:9] = pool[4] * 3.0 + np.random.default_rng(seed).normal(size=(4, 3)) / 50  # near copies: dense
    kde_k = 1 + seed % 14
    p = tsds(pool, target, alpha=alpha, c=c, sigma=sigma, k=k, kde_k=kde_k).p
    expected = tsds_oracle.probabilities(pool.tolist(), target.tolist(), alpha, c, sigma, k, kde_k)
    np.testing.assert_allclose(p, expected, atol=1e-6)
    assert p.sum() == pytest.approx(1.0), "each target row's mass must be placed"


@pytest.mark.parametrize(("alpha", "c"), [(0.2, 0.3), (0.5, 1.0), (0.8, 1.0), (0.95, 5.0)])
def test_the_plan_is_the_optimum_of_its_linear_programme(alpha, c):
    """min (alpha/C) sum gamma d + (1 - alpha) t, sum_j gamma_ij = 1/M, M rho_j gamma_ij <= t: scipy knows no levels."""
    random = np.random.default_rng(0)
    distances, rho = np.sort(random.random((3, 12)), axis=1), 1 + 3 * random.random((3, 12))
    plan = transport(distances, rho, alpha=alpha, c=c)
    size = distances.size
    result = linprog(
        np.append(alpha / c * distances.ravel(), 1 - alpha),
        A_ub=np.column_stack([np.diag(3 * rho.ravel()), -np.ones(size)]), b_ub=np.zeros(size),
        A_eq=np.column_stack([np.kron(np.eye(3), np.ones(12)), np.zeros(3)]), b_eq=np.full(3, 1 / 3),
    )  # fmt: skip
    value = alpha / c * (plan.mass * distances).sum() + (1 - alpha) * (3 * plan.mass * rho).max()
    assert value == pytest.approx(result.fun, rel=1e-9), f"level {plan.level:.3f}, optimum {1 / result.x[-1]:.3f}"
    np.testing.assert_allclose(plan.mass.ravel(), result.x[:-1], atol=1e-9)
    assert not plan.exhausted.any(), "the test needs a level inside the lists"


def test_copies_of_a_row_hold_together_what_one_would():
    pool, target = some_rows(30, 1), some_rows(4, 2)
    copied = np.vstack([pool, np.repeat(pool[[3]], 5, axis=0)])
    row = nearest(target, pool, 1).row_ids[0, 0]
    copied[30:] = pool[row]
    options = {"sigma": 0.01, "alpha": 0.5, "c": 0.05}
    one = tsds(pool, target, k=30, kde_k=30, **options).p
    six = tsds(copied, target, k=35, kde_k=35, **options).p
    assert 0 < one[row] < 1, "the test needs a row that shares its target's mass"
    assert six[30:].sum() + six[row] == pytest.approx(one[row], abs=1e-6), "copies crowd in"
    np.testing.assert_allclose(np.delete(six[:30], row), np.delete(one, row), atol=1e-6)
    np.testing.assert_allclose(density(np.array([row, 30]), copied, kde_k=35, sigma=0.01), 6.0, atol=1e-6)
    assert density(np.array([row]), copied, kde_k=35, sigma=0.0).tolist() == [1.0], "sigma 0 turns the density off"


def test_alpha_1_is_the_nearest_row_and_alpha_0_is_all_neighbours_alike():
    pool, target = some_rows(50, 1), some_rows(3, 2)
    near = nearest(target, pool, 10).row_ids
    assert set(tsds(pool, target, alpha=1.0, k=10).p.nonzero()[0]) == set(near[:, 0].tolist())
    wide = tsds(pool, target, alpha=0.0, k=10, sigma=0.0)
    np.testing.assert_allclose(wide.p, np.bincount(near.ravel(), minlength=50) / 30, atol=1e-12)
    assert wide.exhausted == 3, "the caller must learn that K bounds the plan"


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("least_rows", [0, 25])
def test_looking_at_few_neighbours_first_changes_nothing(monkeypatch, alpha, least_rows):
    pool, target = some_rows(80, 1), some_rows(5, 2)
    results = []
    for width in (1, 3, 1000):
        monkeypatch.setattr("tov.methods.tsds._FIRST_NEIGHBOURS", width)
        results.append(tsds(pool, target, alpha=alpha, c=1.0, k=40, kde_k=9, least_rows=least_rows))
    for result in results[:2]:
        np.testing.assert_allclose(result.p, results[2].p, atol=1e-12)
        assert result.exhausted == results[2].exhausted


def test_densities_in_parts_are_those_at_once(monkeypatch):
    pool, rows = some_rows(40, 1), np.array([3, 17, 4, 39, 0])
    whole = density(rows, pool, kde_k=12)
    monkeypatch.setattr("tov.methods.tsds._ROWS_AT_ONCE", 2)
    np.testing.assert_allclose(density(rows, pool, kde_k=12), whole, atol=1e-9)
    assert len(set(whole.round(6))) > 1, "the test needs different densities"


def holding(row_ids: np.ndarray, rho: np.ndarray, level: float) -> int:
    """Rows that hold mass at a level: those before which a target row's neighbours leave some of it."""
    held = set()
    for rows, densities in zip(row_ids.tolist(), rho.tolist(), strict=True):
        held |= {row for place, row in enumerate(rows) if np.cumsum([0.0, *(1 / np.array(densities))])[place] < level}
    return len(held)


@given(st.integers(0, 2**20), st.integers(1, 20))
def test_the_level_rises_until_enough_rows_hold_mass_and_no_further(seed, n):
    pool, target = some_rows(60, seed), some_rows(4, seed + 1)
    selection = tsds(pool, target, alpha=0.999, k=20, kde_k=5, least_rows=n)
    free = tsds(pool, target, alpha=0.999, k=20, kde_k=5)
    held, before = int((selection.p > 0).sum()), int((free.p > 0).sum())
    assert held >= max(n, before), f"{held} rows hold mass, {n} are to be drawn"
    near = nearest(target, pool, 20)
    rho = density(near.row_ids.ravel(), pool, kde_k=5).reshape(4, 20)
    steps, level = np.cumsum(1 / rho, 1), level_of_support(near.row_ids, rho, n)
    assert holding(near.row_ids, rho, level) >= n, f"at level {level} fewer than {n} rows hold mass"
    lower = steps[steps < level].max(initial=0.0)
    assert holding(near.row_ids, rho, lower) < n, f"the step at {lower} is enough, {level} was taken"
    assert level_of_support(near.row_ids, rho, 61) == np.inf, "no level is enough for more rows than there are"


def test_more_rows_than_the_neighbours_are_widen_the_lists_unless_they_were_asked_for():
    pool = some_rows(60, 1)
    target = some_rows(1, 2) + 1e-3 * some_rows(4, 3)  # all near one place: the lists are much the same
    assert tsds(pool, target, least_rows=6).neighbours == 6, "N/10 are enough"
    for n in (30, 60):
        wide = tsds(pool, target, least_rows=n)
        assert wide.neighbours == n
        assert (wide.p > 0).sum() >= n
        assert wide.p.sum() == pytest.approx(1)
    with pytest.raises(DataError, match=r"30 rows are wanted, .* are 6 rows\.\n.*tsds/max_k"):
        tsds(pool, np.repeat(target[:1], 4, axis=0), k=6, least_rows=30)


def test_a_kernel_narrower_than_rounding_still_counts_the_row_itself():
    """In fp16 a row is not quite at distance 0 from itself; rho below 1 would let it hold more than a row may."""
    pool, target = some_rows(60, 1, 300).astype(np.float16), some_rows(3, 2, 300).astype(np.float32)
    rho = density(np.arange(60), pool, kde_k=6, sigma=2e-4)
    assert rho.tolist() == [1.0] * 60, "isolated rows"
    p = tsds(pool, target, k=20, sigma=2e-4, least_rows=30).p
    assert p.sum() == pytest.approx(1)
    assert (p > 0).sum() >= 30


def test_the_order_of_the_pool_changes_no_probability_and_excluded_rows_have_none():
    pool, target = some_rows(90, 1), some_rows(6, 2)
    pool[4], pool[9] = 0.0, np.nan
    usable = np.arange(90) % 3 > 0
    one = tsds(pool, target, usable=usable)
    assert one.neighbours == 6, "K = N/10 of the usable rows"
    assert not one.p[~usable].any(), "an excluded row got mass"
    assert not one.p[[4, 9]].any(), "a row without a direction got mass"
    order = np.random.default_rng(0).permutation(90)
    np.testing.assert_allclose(tsds(pool[order], target, usable=usable[order]).p, one.p[order], atol=1e-9)
    kept = np.flatnonzero(usable)
    np.testing.assert_allclose(tsds(pool[kept], target).p, one.p[kept], atol=1e-9, err_msg="excluded rows count")


def test_the_calibrated_width_is_the_usual_distance_to_the_nearest_other_row():
    pool = some_rows(200, 1) + 30.0  # all cosines near 1, as hidden states are
    pool[7] = 0.0
    sigma = calibrated_sigma(pool)
    rows = normalised(np.delete(pool, 7, axis=0))
    distances = np.linalg.norm(rows[:, None] - rows, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert sigma == pytest.approx(np.median(distances.min(1)), rel=1e-6)
    rho = density(np.arange(7), pool, kde_k=20, sigma=sigma), density(np.arange(7), pool, kde_k=20)
    assert rho[0].mean() < 3 < 19 < rho[1].min(), f"0.75 tells these rows apart, the calibrated width does not: {rho}"
    assert calibrated_sigma(pool, sample=50, seed=1) != calibrated_sigma(pool, sample=50, seed=2), (
        "the seed does nothing"
    )
    with pytest.raises(DataError, match="copies"):
        calibrated_sigma(np.repeat(some_rows(3, 1), 4, axis=0))
    with pytest.raises(DataError, match="too few"):
        calibrated_sigma(pool, usable=np.arange(200) == 3)


@pytest.mark.parametrize(("option", "value"), [("alpha", 1.5), ("c", 0.0), ("sigma", -1.0)])
def test_tsds_says_which_setting_is_wrong(option, value):
    with pytest.raises(ConfigError, match=re.escape(f"TSDS got {'C' if option == 'c' else option} = {value}")):
        tsds(some_rows(20, 1), some_rows(2, 2), **{option: value})
    with pytest.raises(DataError, match="0 nearest"):
        tsds(some_rows(20, 1), some_rows(2, 2), k=0)


def test_distances_of_directions():
    rows = normalised(some_rows(6, 1))
    np.testing.assert_allclose(distance_of(rows @ rows.T), np.linalg.norm(rows[:, None] - rows, axis=2), atol=1e-7)
    assert distance_of(np.array([1.0 + 1e-7, -1.0])).tolist() == [0.0, 2.0], "rounding above 1 is no distance"
