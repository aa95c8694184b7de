"""Which rows are taken: what must hold for any scores, lengths and sizes."""

from __future__ import annotations

import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from oracle import selection as oracle
from tov.errors import ConfigError, DataError
from tov.seeds import generator
from tov.selection.choose import Quotas, choose, length_bins, quotas_for, top_by_bin
from tov.selection.round_robin import top_candidates
from tov.selection.shares import choose_by_source

RULES = ("score+random", "score-only")


@st.composite
def tables(draw):
    """A score table: few different scores and lengths, so that ties are common; NaN among the scores."""
    size = draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scores = random.choice([-1.0, 0.0, 0.5, 2.0, np.nan], size)
    return {
        "scores": np.where(random.random(size) < 0.5, scores, random.normal(size=size)),
        "tokens": random.integers(1, 8, size), "in_base": random.random(size) < draw(st.sampled_from([0.0, 0.2, 0.6])),
        "usable": random.random(size) < draw(st.sampled_from([0.7, 1.0])),
    }  # fmt: skip


def a_table(size: int = 100, *, base: int = 30, seed: int = 0):
    random = np.random.default_rng(seed)
    return {
        "scores": random.normal(size=size), "tokens": random.integers(1, 50, size), "usable": np.ones(size, bool),
        "in_base": np.isin(np.arange(size), random.permutation(size)[:base]),
    }  # fmt: skip


def pick(table, n: int, *, rule: str = "score+random", bins: int = 10, seed: int = 0):
    return choose(**table, n=n, rule=rule, bins=bins, seed=seed)


def eligible(table) -> np.ndarray:
    return table["usable"] & ~table["in_base"] & np.isfinite(table["scores"])


@given(tables(), st.data(), st.sampled_from(RULES), st.integers(1, 12))
def test_exactly_n_distinct_rows_that_may_be_taken(table, data, rule, bins):
    most = int((table["usable"] if rule == "score+random" else eligible(table)).sum())
    assume(most)
    n = data.draw(st.integers(1, most))
    choice = pick(table, n, rule=rule, bins=bins)
    assert len(choice.row_ids) == len(choice.reasons) == n, f"{len(choice.row_ids)} rows for n = {n}"
    assert len(set(choice.row_ids.tolist())) == n, "a row was taken twice"
    assert table["usable"][choice.row_ids].all(), "an excluded row was taken"
    by_score = choice.row_ids[choice.reasons == "score"]
    assert eligible(table)[by_score].all(), "by score: a base row, or a row without a score"
    wanted = n if rule == "score-only" else min(n - n // 2, int(eligible(table).sum()))
    assert len(by_score) == wanted, f"{len(by_score)} rows by score, should be {wanted} of {n}"


@given(tables(), st.data(), st.integers(1, 12))
def test_rows_by_score_are_the_best_of_each_length_bin(table, data, bins):
    """Against sorted lists; bins' shares differ by at most one, and ties go to the smaller row_id."""
    rows = [
        (place, int(table["tokens"][place]), float(table["scores"][place])) for place in np.flatnonzero(eligible(table))
    ]
    assume(rows)
    n = data.draw(st.integers(1, len(rows)))
    taken = set(pick(table, n, rule="score-only", bins=bins).row_ids.tolist())
    assert taken == oracle.top_by_bin(rows, n, bins), "a bin's edge, a bin's share or the order of ties"


@given(st.lists(st.integers(1, 6), min_size=1, max_size=80), st.integers(1, 12), st.data())
def test_bins_and_their_shares_differ_by_at_most_one(lengths, bins, data):
    tokens, row_ids = np.array(lengths), np.arange(len(lengths))
    n = data.draw(st.integers(1, len(lengths)))
    parts = length_bins(tokens, row_ids, min(bins, n))
    sizes = [len(part) for part in parts]
    assert sum(sizes) == len(lengths), "a row is in no bin or in two"
    assert max(sizes) - min(sizes) <= 1, f"bins of {sizes} rows"
    assert all(tokens[one].max() <= tokens[two].min() for one, two in itertools.pairwise(parts)), "bins overlap"
    taken = top_by_bin(parts, np.zeros(len(lengths)), row_ids, n)
    shares = [int(np.isin(part, taken).sum()) for part in parts]
    assert sum(shares) == n, f"{sum(shares)} rows for n = {n}"
    assert max(shares) - min(shares) <= 1, f"bins gave {shares} rows"


@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(table, random):
    """Row ids travel with the rows, so the same rows are taken from a shuffled table."""
    places = np.flatnonzero(eligible(table))
    assume(len(places) > 1)
    shuffled = places.copy()
    random.shuffle(shuffled)
    n = (len(places) + 1) // 2
    one, two = (
        order[top_by_bin(length_bins(table["tokens"][order], order, min(4, n)), table["scores"][order], order, n)]
        for order in (places, shuffled)
    )
    assert one.tolist() == two.tolist(), "ties are broken by place and not by row_id"


def test_ties_go_to_the_smaller_row_id():
    table = a_table(20, base=0) | {"scores": np.zeros(20), "tokens": np.full(20, 7)}
    taken = pick(table, 4, rule="score-only", bins=1).row_ids.tolist()
    assert taken == [0, 1, 2, 3], f"among equal rows {taken} were taken"


def test_best_rows_come_first():
    choice = pick(a_table(), 40)
    scores = a_table()["scores"][choice.row_ids]
    by_score = scores[choice.reasons == "score"]
    assert (np.diff(by_score) <= 0).all(), "the rows by score are not sorted best first"
    assert (choice.reasons == ["score"] * 20 + ["random"] * 20).all(), "rows by score must stand before those by chance"


def test_larger_scores_are_better():
    table = a_table(100, base=0)
    mean = table["scores"][pick(table, 20, rule="score-only", bins=1).row_ids].mean()
    assert mean == pytest.approx(np.sort(table["scores"])[-20:].mean()), "the worst rows were taken: the sign"


def test_the_random_half_is_uniform_over_the_base_set():
    table, counts = a_table(60, base=20), np.zeros(60)
    for seed in range(400):
        choice = pick(table, 10, seed=seed)
        counts[choice.row_ids[choice.reasons == "random"]] += 1
    assert counts[~table["in_base"]].sum() == 0, "the random half left the base set, which is large enough"
    frequency = counts[table["in_base"]] / 400  # expected 5 / 20, standard deviation 0.022
    assert abs(frequency - 0.25).max() < 0.09, f"rows of the base set are not drawn alike: {frequency}"


def test_the_random_half_depends_on_the_seed_and_on_nothing_else():
    table = a_table()
    one, same, other = (pick(table, 20, seed=seed) for seed in (1, 1, 2))
    assert one.row_ids.tolist() == same.row_ids.tolist(), "the same seed gave another selection"
    assert one.row_ids.tolist() != other.row_ids.tolist(), "the seed does not reach the random half"
    assert one.row_ids[:10].tolist() == other.row_ids[:10].tolist(), "the seed changes the rows by score"


@pytest.mark.parametrize(("n", "by_score"), [(1, 1), (2, 1), (7, 4), (100, 50)])
def test_the_odd_row_goes_to_the_score(n, by_score):
    reasons = pick(a_table(200, base=60), n).reasons.tolist()
    assert reasons.count("score") == by_score, f"of {n} rows {reasons.count('score')} by score"


def test_fewer_rows_than_bins_use_fewer_bins_and_say_so():
    choice = pick(a_table(), 3, rule="score-only")
    assert len(choice.bin_edges) == 3, f"{len(choice.bin_edges)} bins for 3 rows"
    assert any("3 bins are used" in note for note in choice.notes), f"the reader is not told: {choice.notes}"


def test_bin_edges_are_the_lengths_in_each_bin():
    table = a_table(40, base=0) | {"tokens": np.arange(40)}
    edges = pick(table, 8, rule="score-only", bins=4).bin_edges
    assert edges == ((0, 9), (10, 19), (20, 29), (30, 39)), f"bins {edges}"


def test_a_small_base_set_is_filled_up_from_the_pool_and_said():
    table = a_table(100, base=3)
    choice = pick(table, 20)
    lucky = choice.row_ids[choice.reasons == "random"]
    assert table["in_base"][lucky].sum() == 3, "the rows of the base set come first"
    assert any("the base set gave 3" in note for note in choice.notes), f"the reader is not told: {choice.notes}"
    table["usable"] = ~table["in_base"]
    none = pick(table, 20)
    assert any("the base set gave 0" in note for note in none.notes), f"the reader is not told: {none.notes}"


def test_too_few_scores_make_the_random_part_larger_and_say_so():
    table = a_table(20, base=5)
    table["scores"][:] = np.nan
    table["scores"][np.flatnonzero(~table["in_base"])[:2]] = 1.0
    choice = pick(table, 20)
    assert (choice.reasons == "score").sum() == 2, "rows without a score were taken by score"
    assert any("only 2 rows" in note for note in choice.notes), f"the reader is not told: {choice.notes}"


def test_all_usable_rows_may_be_taken():
    assert sorted(pick(a_table(), 100).row_ids.tolist()) == list(range(100)), "n equal to the pool is allowed"


@pytest.mark.parametrize("rule", RULES)
def test_more_rows_than_there_are_is_an_error(rule):
    table = a_table(10, base=2)
    table["usable"][0] = False
    with pytest.raises(DataError, match="9 usable rows of 10"):
        pick(table, 10, rule=rule)


def test_one_row_is_no_rows():
    table = a_table(10, base=9)
    with pytest.raises(DataError, match="1 usable row outside the base set has a score, but --n asks for 2"):
        pick(table, 2, rule="score-only")
    notes = pick(table, 4, rule="score+random").notes
    assert "only 1 row outside the base set has a score; the random part is larger" in notes
    table["usable"][1:] = False
    with pytest.raises(DataError, match="The pool has 1 usable row of 10"):
        pick(table, 2)


def test_score_only_refuses_what_has_no_score():
    with pytest.raises(DataError, match="70 usable rows outside the base set"):
        pick(a_table(), 71, rule="score-only")


def test_an_unknown_rule_is_an_error_that_names_the_rules():
    with pytest.raises(ConfigError, match="score-only"):
        pick(a_table(), 5, rule="best")


# Rules beside the paper's, and caps


def quotas_of(sources, caps, n: int) -> Quotas | None:
    """Quotas for rows of these sources, their names in the order in which rows have them first."""
    names = list(dict.fromkeys(map(str, sources)))
    return quotas_for(np.array([names.index(source) for source in sources]), names, caps, n)


def by_rule(table, n: int, rule: str, *, bins: int = 1, seed: int = 0, quotas: Quotas | None = None, columns=None):
    def best(k: int, usable: np.ndarray):
        rows = top_candidates(columns, k, usable=usable)
        return rows, [columns[part, place] for place, part in enumerate(rows)]

    return choose(
        **table, n=n, rule=rule, bins=bins, seed=seed, quotas=quotas, best=best if columns is not None else None
    )


def with_columns(table, targets: int, seed: int = 0):
    """The table, its score the largest of a score for each of some targets."""
    columns = np.random.default_rng(seed).normal(size=(len(table["scores"]), targets))
    columns[np.isnan(table["scores"])] = np.nan
    return {**table, "scores": columns.max(1)}, columns


def test_sample_is_the_gumbel_draw_by_weight():
    table = a_table(200, base=0)
    table["scores"][::7] = -np.inf
    chosen = by_rule(table, 20, "sample", seed=3).row_ids
    keys = table["scores"] + generator(3, "gumbel top-k").gumbel(size=200)
    drawn = [row for row in np.argsort(-keys).tolist() if eligible(table)[row] and np.isfinite(keys[row])][:20]
    assert chosen.tolist() == drawn, "bins=1: the draw itself, in its order"
    assert np.isfinite(table["scores"][chosen]).all(), "a row of weight 0 was drawn"
    assert chosen.tolist() != by_rule(table, 20, "sample", seed=4).row_ids.tolist()


def test_sample_takes_a_row_as_often_as_its_weight_says():
    table = a_table(4, base=0)
    table["scores"] = np.log([1.0, 2.0, 3.0, 4.0])
    counts = np.bincount([by_rule(table, 1, "sample", seed=seed).row_ids[0] for seed in range(2000)], minlength=4)
    np.testing.assert_allclose(counts / 2000, [0.1, 0.2, 0.3, 0.4], atol=0.04)


@given(tables(), st.data(), st.sampled_from(["score+random", "score-only", "sample", "round-robin"]), st.integers(1, 4))
def test_no_rule_takes_more_of_a_source_than_its_cap(table, data, rule, bins):
    sources = np.array(["abc"[row % 3] for row in range(len(table["scores"]))])
    table, columns = with_columns(table, 3) if rule == "round-robin" else (table, None)
    n = data.draw(st.integers(1, len(sources)))
    caps = data.draw(
        st.dictionaries(st.sampled_from(["a", "b", "*"]), st.sampled_from([0.2, 0.34, 0.5, 1.0]), min_size=1)
    )
    caps = {name: cap for name, cap in caps.items() if name == "*" or name in sources}
    assume(caps)
    quotas = quotas_of(sources, caps, n)
    assert quotas
    may = table["usable"] if rule == "score+random" else eligible(table)
    able = n <= quotas.of(np.flatnonzero(may))
    try:
        choice = by_rule(table, n, rule, bins=1 if rule == "round-robin" else bins, quotas=quotas, columns=columns)
    except DataError:
        assert not able, "rows enough within the caps, but refused"
        return
    assert able, "more rows than the caps allow"
    assert len(set(choice.row_ids.tolist())) == len(choice.row_ids) == n
    for name, left in zip(quotas.names, quotas.left, strict=True):
        assert (sources[choice.row_ids] == name).sum() <= left, f"{name} is over its cap"


@given(tables(), st.integers(1, 12), st.sampled_from(["score+random", "score-only", "sample"]))
def test_a_cap_that_does_not_bind_changes_no_row_by_score(table, bins, rule):
    n = int(eligible(table).sum())
    assume(n)
    quotas = quotas_of(["a"] * len(table["scores"]), {"*": 1.0}, n)
    wanted = by_rule(table, n, rule, bins=bins)
    found = by_rule(table, n, rule, bins=bins, quotas=quotas)
    by_score = [one.row_ids[one.reasons == "score"].tolist() for one in (wanted, found)]
    assert by_score[0] == by_score[1]


@given(tables(), st.data(), st.integers(1, 6), st.integers(1, 20))
def test_capped_rows_by_score_are_those_met_in_turn(table, data, bins, block):
    """Against a loop over sorted lists; blocks of few rows, so that sources and bins become full within and between them."""
    sources = ["abc"[row % 3] for row in range(len(table["scores"]))]
    caps = data.draw(st.dictionaries(st.sampled_from("abc*"), st.sampled_from([0.1, 0.34, 0.5]), min_size=1))
    assume(all(name == "*" or name in sources for name in caps))
    rows = [
        (row, int(table["tokens"][row]), float(table["scores"][row]), sources[row])
        for row in np.flatnonzero(eligible(table)).tolist()
    ]
    assume(rows)
    n = data.draw(st.integers(1, len(rows)))
    quotas = quotas_of(sources, caps, n)
    assume(quotas.of(np.flatnonzero(eligible(table))) >= n)
    left = dict(zip(quotas.names, quotas.left.tolist(), strict=True))
    with mock.patch("tov.selection.choose.BLOCK_ROWS", block):
        taken = by_rule(table, n, "score-only", bins=bins, quotas=quotas).row_ids.tolist()
    assert taken == oracle.top_with_caps(rows, n, bins, left)


@pytest.mark.parametrize("caps", [{}, {"a": 0.25}, {"*": 0.4}])
def test_round_robin_is_what_a_loop_takes(caps):
    table, columns = with_columns(a_table(60, base=10), 4, seed=2)
    sources = ["abc"[row % 3] for row in range(60)]
    quotas = quotas_of(sources, caps, 20)
    left = dict(zip(quotas.names, quotas.left.tolist(), strict=True)) if quotas else dict.fromkeys("abc", 99)
    taken: list[int] = []
    for turn in range(20):
        order = np.argsort(-columns[:, turn % 4], kind="stable").tolist()
        row = next(row for row in order if eligible(table)[row] and row not in taken and left[sources[row]])
        left[sources[row]] -= 1
        taken.append(row)
    assert by_rule(table, 20, "round-robin", quotas=quotas, columns=columns).row_ids.tolist() == taken


def test_what_a_full_source_would_have_given_goes_to_the_next_best():
    table = a_table(90, base=0)
    sources = np.array(["ab"[row >= 30] for row in range(90)])
    table["scores"][:30] += 10
    quotas = quotas_of(sources, {"a": 0.2}, 20)
    chosen = by_rule(table, 20, "score-only", quotas=quotas).row_ids
    best = [rows[np.argsort(-table["scores"][rows])] for rows in (np.arange(30), np.arange(30, 90))]
    assert set(chosen.tolist()) == {*best[0][:4].tolist(), *best[1][:16].tolist()}
    binned = by_rule(table, 20, "score-only", bins=10, quotas=quotas)
    assert (sources[binned.row_ids] == "a").sum() <= 4
    assert len(binned.row_ids) == 20


def test_caps_that_leave_too_few_rows_are_told_by_source():
    table = a_table(30, base=0)
    quotas = quotas_of(["a"] * 20 + ["b"] * 10, {"a": 0.5}, 25)
    with pytest.raises(DataError, match=r"--source-cap allows 22 rows \(a 12 of 20, b 10 of 10\), but --n asks for 25"):
        by_rule(table, 25, "score-only", quotas=quotas)
    with pytest.raises(ConfigError, match=r"no source 'c'"):
        quotas_of(["a", "b"], {"c": 0.5}, 2)


def test_a_share_that_its_source_cannot_give_is_told_in_its_own_words() -> None:
    count = 30
    given = {
        "scores": np.arange(count, dtype=float), "tokens": np.ones(count, np.int32), "usable": np.ones(count, bool),
        "in_base": np.zeros(count, bool), "rule": "score-only", "bins": 1, "seed": 0,
    }  # fmt: skip
    codes = np.repeat([0, 1], [5, 25])
    with pytest.raises(DataError) as told:
        choose_by_source(shares={"forms": 0.5}, caps={}, codes=codes, names=["forms", "web"], n=20, **given)
    assert told.value.problem == "--share forms=0.5 is 10 of 20 rows, but at most 5 can be had there."
