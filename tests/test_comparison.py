"""What a comparison says of its trials: known answers, what must not matter, and what must be told."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random as chance

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from tov.comparison.statistics import data_equivalent, non_increasing, rows_worth, summarize, t_interval
from tov.errors import ConfigError
from tov.reports import figures
from tov.reports.comparison import comparison_markdown
from tov.reports.figures import curve_picture, gain_picture

SIZES = (50, 100, 200, 400)
PICTURES = [gain_picture, curve_picture]


def trial(variant: str, n: int, seed: int, loss: float | None, **more):
    """A line of trials.jsonl."""
    failed = loss is None
    return {
        "experiment": "E", "variant": variant, "method": variant.split("/")[0], "n": n, "seed": seed, "loss": loss,
        "metric": None,
        "status": "failed" if failed else "done", "error": "out of memory" if failed else None,
        "train": {"seconds": 2.0, "tokens": 10 * n, "steps": 4, "diverged": False},
        "scoring": {"seconds": 3.0, "tokens_forward": 50, "tokens_backward": 5, "bytes": 7}, "chosen": {"a": n} if n else {},
    } | more  # fmt: skip


def log_loss(rows: float) -> float:
    """The synthetic curve, a - b log n."""
    return 2.0 - 0.2 * math.log(rows)


def random_trials(seeds: int = 3):
    """Random rows at n/2, n, 2n, 4n for n = 100; a seed shifts all losses."""
    return [trial("random", n, seed, log_loss(n) + 0.01 * seed) for n in SIZES for seed in range(seeds)]


def worth(factor: float, variant: str = "tov", seeds: int = 3, n: int = 100):
    """A variant whose n rows are worth `factor` times as many random ones, for every seed."""
    return [trial(variant, n, seed, log_loss(factor * n) + 0.01 * seed) for seed in range(seeds)]


def many_variants(count: int, seeds: int = 3):
    """A whole comparison: `count` variants at two sizes, zero-shot and full."""
    noise = np.random.default_rng(0)
    names = [f"method{index}" + "/score-only" * (index % 2) for index in range(count)]
    lines = [
        trial(variant, n, seed, log_loss((0.6 + 0.2 * index) * n) + 0.01 * noise.normal(), metric=0.5 + 0.01 * index)
        for index, variant in enumerate(names) for n in (100, 200) for seed in range(seeds)
    ]  # fmt: skip
    lines += [trial("random", n, seed, log_loss(n), metric=0.5) for n in (*SIZES, 800) for seed in range(seeds)]
    return [*lines, trial("zero-shot", 0, 0, 1.6), trial("full", 5000, 0, 0.4)]


def summary(*trials, sizes=(100,), metric=None):
    return summarize(list(itertools.chain(*trials)), sizes=sizes, metric=metric)


def record(results, variant: str = "tov", n: int = 100):
    """The one record of a variant at a size."""
    (found,) = [
        one for size in results["sizes"] if size["n"] == n for one in size["variants"] if one["variant"] == variant
    ]
    return found


def told(results, *words: str) -> list[str]:
    """The notes that hold all the words."""
    return [note for note in results["notes"] if all(word in note for word in words)]


def two_variants(gains):
    """Random at a loss of 2 nats, and a variant that is better by the given % a seed."""
    lines = [
        (trial("random", 100, seed, 2.0), trial("tov", 100, seed, 2 - gain / 50)) for seed, gain in enumerate(gains)
    ]
    return [one for pair in lines for one in pair]


# The gain over random rows


def test_the_gain_and_its_interval_by_hand():
    gain = record(summary(two_variants([8.0, 10.0, 12.0])))["gain"]
    assert gain["per_seed"] == pytest.approx([8, 10, 12]), "100 (loss_random - loss) / loss_random"
    half = 4.302652729911275 * 2 / math.sqrt(3)  # t of 0.975 at 2 degrees of freedom; standard deviation 2
    assert (gain["mean"], gain["low"], gain["high"]) == pytest.approx((10, 10 - half, 10 + half))


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12))
def test_the_interval_is_that_of_a_paired_t_test(values):
    values = np.array(values) + np.arange(len(values))
    assume(np.ptp(values) > 1e-6)  # of values that are all the same scipy warns
    ours, theirs = t_interval(values), ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert ours == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-9)


def test_pairs_take_out_what_a_seed_does_to_both():
    lines = [trial("random", 100, seed, 1.0 + seed) for seed in range(4)]
    lines += [trial("tov", 100, seed, 0.9 * (1.0 + seed)) for seed in range(4)]
    found = record(summary(lines))
    assert found["gain"]["high"] - found["gain"]["low"] == pytest.approx(0, abs=1e-9), "seeds were not paired"
    assert found["loss"]["sd"] == pytest.approx(0.9 * np.std([1, 2, 3, 4], ddof=1)), (
        "the loss's own spread is not paired"
    )


def test_wins_ties_and_losses():
    gain = record(summary(two_variants([5.0, 0.11, 0.09, 0.0, -0.09, -0.11])))["gain"]
    assert [gain[key] for key in ("wins", "ties", "losses")] == [2, 3, 1], "a gain within 0.1 % is a tie"


def test_the_metric_is_paired_too():
    lines = [trial("random", 100, seed, 1.0, metric=0.5 + seed / 10) for seed in range(3)]
    lines += [
        trial("tov", 100, seed, 1.0, metric=0.6 + seed / 10 + step) for seed, step in enumerate((-0.02, 0.0, 0.02))
    ]
    metric = record(summary(lines, metric="f1"))["metric"]
    half = 4.302652729911275 * 0.02 / math.sqrt(3)
    expected = {"mean": 0.7, "difference": 0.1, "low": 0.1 - half, "high": 0.1 + half}
    assert metric == pytest.approx(expected)
    assert record(summary(lines))["metric"] is None, "no metric was asked for"


def test_zero_shot_and_full_are_compared_by_the_mean_at_every_size():
    lines = random_trials(2) + [trial("random", 200, seed, 1.0) for seed in range(2)]
    lines += [trial("zero-shot", 0, 0, 1.5), trial("full", 900, 0, 0.5), trial("full", 902, 1, 0.3)]
    results = summary(lines, sizes=(100, 200))
    for n, seeds_of_random in (
        (100, [log_loss(100), log_loss(100) + 0.01]),
        (200, [log_loss(200), log_loss(200) + 0.01]),
    ):
        zero, full = (record(results, variant, n) for variant in ("zero-shot", "full"))
        yardstick = sum(seeds_of_random) / 2
        assert full["gain"]["mean"] == pytest.approx(100 * (yardstick - 0.4) / yardstick), (
            "full: the pool differs by seed"
        )
        first = seeds_of_random[0]
        assert zero["gain"]["mean"] == pytest.approx(100 * (first - 1.5) / first), "only the seed that both have"
        assert zero["gain"]["low"] is None, "no interval: these are not runs at n rows"
        assert (zero["rows"], full["rows"]) == (0, 902)
    assert told(results, "repeat", "2 lines"), "the second lines of random at 200 rows"


def test_arms_stand_best_first_with_random_at_zero():
    lines = (
        random_trials() + worth(0.6, "bad") + worth(3, "good") + worth(1.5, "fair") + [trial("zero-shot", 0, 0, 1.9)]
    )
    order = [one["variant"] for one in summary(lines)["sizes"][0]["variants"]]
    assert order == ["good", "fair", "random", "bad", "zero-shot"]


# What a variant is worth in random rows


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.0, 2.0, 2.5, 4.0])
def test_rows_worth_two_and_a_half_times_as_many_are_worth_that(factor):
    found = record(summary(random_trials(), worth(factor)))["equivalent"]
    for name in ("point", "low", "high"):  # the seed shifts variant and curve alike, so every draw says the same
        assert found[name] == pytest.approx({"ratio": factor, "at_least": False, "at_most": False}), name


@pytest.mark.parametrize(("factor", "end", "flag"), [(4.1, 4.0, "at_least"), (0.4, 0.5, "at_most")])
def test_off_the_curve_it_is_a_bound(factor, end, flag):
    results = summary(random_trials(), worth(factor))
    other = {"at_least": "at_most", "at_most": "at_least"}[flag]
    for name in ("point", "low", "high"):
        assert record(results)["equivalent"][name] == {"ratio": end, flag: True, other: False}, name
    assert f"{flag.replace('_', ' ')} {end:.{1 if end >= 1 else 2}f}" in comparison_markdown(results, {})


def test_an_interval_may_be_open_at_one_end():
    lines = random_trials(6)
    lines += [trial("tov", 100, seed, log_loss(300 if seed % 2 else 900) + 0.01 * seed) for seed in range(6)]
    found = record(summary(lines))["equivalent"]
    assert found["high"] == {"ratio": 4.0, "at_least": True, "at_most": False}, "the upper end lies beyond the curve"
    assert 2 < found["low"]["ratio"] < 4, "the lower end is on the curve"
    assert not found["low"]["at_least"]


def test_the_interval_of_worth_is_that_of_the_paired_difference():
    """One log-linear curve without noise; a variant's log worth is normal over 30 seeds: the known t interval of a mean."""
    seeds, spread = 30, 0.2
    logs = math.log(2) + spread * np.random.default_rng(5).normal(size=seeds)
    curve = np.repeat([[log_loss(n)] for n in SIZES], seeds, axis=1)
    found = data_equivalent(np.array(SIZES), curve, np.array([log_loss(100 * math.exp(log)) for log in logs]), 100)
    ends = [math.log(found[name]["ratio"]) for name in ("low", "point", "high")]
    low, high = t_interval(logs)
    assert ends == pytest.approx([low, logs.mean(), high])


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_of_worth_holds_the_truth_as_often_as_it_says(seeds):
    """Curve and variant share what the seed draws, and have noise of their own; the variant is worth sqrt(2) times its rows."""
    draw, held = np.random.default_rng(seeds), 0
    curve = 1 - 0.1 * np.log2(np.array(SIZES) / SIZES[0])
    for _ in range(300):
        shared = draw.normal(0, 0.05, seeds)
        random = curve[:, None] + shared + draw.normal(0, 0.03, (len(SIZES), seeds))
        variant = curve[1] - 0.05 + shared + draw.normal(0, 0.03, seeds)
        found = data_equivalent(np.array(SIZES), random, variant, SIZES[1])
        below = found["low"]["at_most"] or found["low"]["ratio"] <= math.sqrt(2)
        held += below and (found["high"]["at_least"] or found["high"]["ratio"] >= math.sqrt(2))
    assert 0.92 < held / 300 < 1.0, f"a 95 % interval held the truth in {held} of 300"


def test_on_a_flat_stretch_the_fewest_rows_count():
    losses = {50: 1.0, 100: 0.8, 200: 0.8, 400: 0.6}
    lines = [trial("random", n, 0, loss) for n, loss in losses.items()]
    found = record(summary(lines, [trial("tov", 100, 0, 0.8)]))["equivalent"]["point"]
    assert found["ratio"] == pytest.approx(1.0), "100 random rows reach the loss already"


def test_between_the_sizes_it_is_linear_in_the_logarithm():
    at = rows_worth(np.log([100.0, 400.0]), np.array([1.0, 0.5]), np.array([0.75]))
    assert math.exp(at[0]) == pytest.approx(200), "half way down is the geometric mean of the sizes"


def min_max(values):
    """Isotonic regression by g_i = min over a <= i of max over b >= i of mean(y_a .. y_b).

    Robertson, Wright and Dykstra 1988, section 1.4, signs turned.
    """
    places = range(len(values))
    return [min(max(np.mean(values[a : b + 1]) for b in places if b >= i) for a in places if a <= i) for i in places]


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=6))
def test_the_fit_is_isotonic_regression(values):
    assert non_increasing(np.array(values)) == pytest.approx(min_max(values), abs=1e-12)


@given(st.lists(st.floats(0.1, 3.0), min_size=4, max_size=4), st.floats(0.1, 3.0), st.floats(0.0, 1.0))
def test_a_lower_loss_is_never_worth_less(curve, loss, drop):
    fitted = non_increasing(np.array(curve))
    worse, better = (rows_worth(np.log(SIZES), fitted, np.array([one]))[0] for one in (loss, loss - drop))
    assert better >= worse, f"{loss - drop} nat is worth less than {loss} nat"


def test_one_size_of_random_rows_gives_no_worth_and_says_so():
    results = summary([trial("random", 100, seed, 1.0) for seed in range(3)], worth(2))
    assert record(results)["equivalent"] is None
    assert told(results, "one size only")


def test_a_size_whose_random_trials_all_diverged_is_no_point_of_the_curve():
    results = summary([trial("random", 25, seed, math.inf) for seed in range(3)], random_trials(), worth(1))
    assert [point["n"] for point in results["random_curve"]] == list(SIZES)


# What must be told


def test_more_random_rows_that_are_worse_are_told():
    bumped = [one | ({"loss": one["loss"] + 0.5} if one["n"] == 200 else {}) for one in random_trials()]
    note = f"200 were worse than 100 ({log_loss(200) + 0.51:.3g} against {log_loss(100) + 0.01:.3g} nat)"
    results = summary(bumped, worth(1))
    assert told(results, note, "not well tuned, distrust gains"), f"no '{note}' in {results['notes']}"
    fitted = [point["fitted"] for point in results["random_curve"]]
    assert fitted[1] == pytest.approx(fitted[2]), "the fit pools the two sizes"
    assert not told(summary(random_trials(), worth(1)), "tuned"), "a falling curve needs no warning"


def test_training_that_is_worse_than_none_is_told():
    lines = random_trials() + worth(3) + [trial("zero-shot", 0, seed, log_loss(150)) for seed in range(3)]
    (note,) = told(summary(lines), "worse than no training")
    assert "random" in note, note
    assert "tov" not in note, "tov is better than no training"


def test_a_failed_trial_is_counted_and_leaves_its_pair():
    lines = [*random_trials(4), *worth(2, seeds=3), trial("tov", 100, 3, None)]
    found, notes = record(summary(lines)), summary(lines)
    assert (found["failed"], found["seeds"]) == ({"count": 1, "first_error": "out of memory"}, [0, 1, 2])
    assert (found["paired"], found["dropped"]) == ([0, 1, 2], [3])
    assert told(notes, "1 of 4 trials failed: out of memory")
    assert told(notes, "left out of the pairs", "seed 3 (tov)")
    assert "3 of 4" in comparison_markdown(notes, {}), "the table must show that a seed is missing"


def test_a_failed_random_trial_leaves_the_pair_out_too():
    lines = [one for one in random_trials(4) if (one["n"], one["seed"]) != (100, 1)] + [trial("random", 100, 1, None)]
    found = record(summary(lines, worth(2, seeds=4)))
    assert (found["paired"], len(found["gain"]["per_seed"])) == ([0, 2, 3], 3)


def test_worth_leaves_out_a_seed_that_is_not_on_the_whole_curve():
    lines = [one for one in random_trials(4) if (one["n"], one["seed"]) != (400, 1)] + worth(2, seeds=4)
    results = summary(lines)
    found = record(results)
    assert (found["paired"], found["equivalent"]["seeds"]) == ([0, 1, 2, 3], [0, 2, 3])
    assert found["equivalent"]["point"]["ratio"] == pytest.approx(2), "a missing seed must not shift the curve"
    assert told(results, "the curve behind worth", "seed 1 (tov)")


def test_a_size_that_most_seeds_lack_leaves_the_curve():
    lines = [one for one in random_trials(4) if one["n"] != 400 or one["seed"] == 0] + worth(5, seeds=4)
    found = record(summary(lines))["equivalent"]
    assert (found["sizes"], found["seeds"]) == ([50, 100, 200], [0, 1, 2, 3])
    assert found["point"] == {"ratio": 2.0, "at_least": True, "at_most": False}


def test_a_loss_that_is_no_number_is_a_failure():
    lines = random_trials() + worth(2, seeds=2) + [trial("tov", 100, 2, math.nan)]
    assert record(summary(lines))["failed"] == {"count": 1, "first_error": "no finite test loss"}


def test_a_trial_that_was_run_again_counts_once():
    again = [trial("tov", 100, 0, None), *worth(2)]
    results = summary(random_trials(), again)
    assert record(results)["failed"]["count"] == 0, "it succeeded in the end"
    assert record(results)["seeds"] == [0, 1, 2]
    assert not told(results, "repeat"), "a second try is nothing to warn of"


def test_a_diverged_training_is_told_and_counted():
    lines = random_trials() + worth(2)
    lines[-1]["train"] = {"seconds": 1.0, "tokens": 1, "steps": 1, "diverged": True}
    results = summary(lines)
    assert told(results, "tov, 100 rows", "diverged in 1 of 3")
    assert record(results)["diverged"] == 1
    assert len(record(results)["gain"]["per_seed"]) == 3, "leaving it out would flatter the variant"


def test_variants_of_one_method_are_told():
    variants = ("tov", "tov/abs", "tov/positive", "less", "less/score-only", "dsir")
    notes = told(summary(random_trials(), *(worth(2, variant) for variant in variants)), "variants")
    assert [note.split(" are")[0] for note in notes] == ["2 variants of less", "3 variants of tov"]


@pytest.mark.parametrize(
    ("seeds", "words"), [(1, ["1 seed: a single draw"]), (3, ["3 seeds: intervals are wide"]), (5, [])]
)
def test_few_seeds_are_told(seeds, words):
    results = summary(random_trials(seeds), worth(2, seeds=seeds))
    notes = told(results, "seed")
    assert len(notes) == len(words), notes
    assert all(note.startswith(word) for note, word in zip(notes, words, strict=True)), notes


def test_a_variant_of_fewer_seeds_is_told_and_takes_none_from_the_others():
    results = summary(random_trials(3), worth(2), worth(3, variant="less", seeds=1))
    assert [note for note in told(results, "seed") if note.startswith("as few as 1 seed:")]
    assert len(record(results)["paired"]) == 3


def test_one_seed_gives_means_without_intervals():
    found = record(summary(random_trials(1), worth(2, seeds=1)))
    ends = [found[key][end] for key in ("gain", "loss", "equivalent") for end in ("low", "high")]
    assert ends == [None] * 6, "an interval from a single seed"
    assert found["gain"]["mean"] == pytest.approx(100 * 0.2 * math.log(2) / log_loss(100))
    assert found["equivalent"]["point"]["ratio"] == pytest.approx(2)


def test_without_random_rows_there_is_no_gain_and_it_is_told():
    results = summary(worth(2), [trial("random", 100, 0, None)])
    found = record(results)
    assert (found["gain"]["mean"], found["gain"]["wins"], found["equivalent"]) == (None, None, None)
    assert found["loss"]["mean"] == pytest.approx(log_loss(200) + 0.01)
    assert told(results, "100 rows: no random trial finished")


# Costs and composition


def test_costs_are_means_and_missing_ones_are_nothing():
    lines = random_trials() + worth(2)
    for seed, seconds in enumerate((1.0, 2.0, 6.0)):
        lines[-3 + seed]["scoring"] = {"seconds": seconds, "tokens_forward": 10, "tokens_backward": None}
    for line in lines[:-3]:
        line["scoring"] = None
    assert record(summary(lines))["cost"] == {
        "scoring_seconds": 3.0, "scoring_tokens_forward": 10.0, "scoring_tokens_backward": None, "scoring_bytes": None,
        "train_seconds": 2.0, "train_tokens": 1000.0,
    }  # fmt: skip
    assert record(summary(lines), "random")["cost"]["scoring_seconds"] is None


def test_shares_by_source_are_means_over_seeds():
    lines = worth(2, seeds=2)
    lines[0]["chosen"], lines[1]["chosen"] = {"a": 100}, {"a": 20, "b": 80}
    assert record(summary(lines))["chosen"] == pytest.approx({"a": 0.6, "b": 0.4}), (
        "a source that a seed lacks counts as 0"
    )


# What must hold for any trials


@st.composite
def any_trials(draw):
    """Trials with losses of any size, failures, repeats, and parts that are not there."""
    losses = st.one_of(st.none(), st.sampled_from([0.0, math.nan, math.inf, 1e308]), st.floats(1e-3, 5.0))
    lines = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["tov", "tov/abs", "random", "zero-shot", "full"]), st.sampled_from([0, 50, 100, 200]),
                st.integers(0, 3), losses, st.sampled_from([None, 0.5, math.nan]),
                st.sampled_from([None, {}, {"seconds": 1.0, "diverged": True}]), st.sampled_from([None, {}, {"a": 3}]),
            ),
            max_size=40,
        )
    )  # fmt: skip
    return [
        trial(variant, n, seed, loss, metric=metric, train=train, scoring=train, chosen=chosen)
        for variant, n, seed, loss, metric, train, chosen in lines
    ]


@given(any_trials(), st.randoms(use_true_random=False))
def test_the_order_of_the_trials_changes_nothing(trials, random):
    shuffled = copy.deepcopy(trials)
    random.shuffle(shuffled)
    one, two = (summarize(lines, sizes=[100, 50], metric="f1") for lines in (trials, shuffled))
    assert json.dumps(one) == json.dumps(two)


@given(any_trials())
def test_whatever_the_trials_the_results_are_json_and_a_report(trials):
    results = summarize(trials, sizes=[100, 200], metric="f1")
    assert json.loads(json.dumps(results, allow_nan=False)) == results, "the results do not survive JSON"
    report = comparison_markdown(results, {})
    assert all(f"| {one['variant']} " in report for size in results["sizes"] for one in size["variants"])


@given(st.lists(st.floats(0.1, 5.0), min_size=4, max_size=8), st.floats(0.01, 100))
def test_gains_do_not_depend_on_the_unit_of_loss(losses, scale):
    def gain(unit: float):
        lines = [trial("random", 100, seed, 1.0 * unit) for seed in range(len(losses))]
        lines += [trial("tov", 100, seed, loss * unit) for seed, loss in enumerate(losses)]
        return record(summary(lines))["gain"]["per_seed"]

    assert gain(scale) == pytest.approx(gain(1.0), abs=1e-9)


# The report and the pictures


def test_the_report_holds_every_variant_its_numbers_and_the_notes():
    results = summarize(many_variants(14), sizes=[100, 200], metric="entity F1")
    about = {"model": "tiny", "pool": "5,000 rows", "seeds": "0 to 2", "made with": "tov 0.1.0"}
    report = comparison_markdown(results, about)
    for size in results["sizes"]:
        section = report.split(f"## {size['n']} rows\n")[1].split("\n## ")[0]
        rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")]
        assert rows == ["variant", *(one["variant"] for one in size["variants"])], (
            "a variant is missing or out of order"
        )
    gain = record(results, "method8")["gain"]
    assert f"{gain['mean']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]" in report
    assert all(note in report for note in results["notes"])
    assert all(
        fact in report for fact in ("entity F1", "- model: tiny", "- pool: 5,000 rows", "- made with: tov 0.1.0")
    )


@pytest.mark.slow
@pytest.mark.parametrize("draw", PICTURES)
def test_pictures_are_the_same_bytes_each_time(draw, tmp_path):
    lines = many_variants(14)
    one = draw(summarize(lines, sizes=[100, 200], metric=None), tmp_path / "one.svg").read_bytes()
    chance.Random(1).shuffle(lines)
    two = draw(summarize(lines, sizes=[100, 200], metric=None), tmp_path / "two.svg").read_bytes()
    assert one == two, "the same numbers gave another file"
    other = draw(summarize(many_variants(13), sizes=[100, 200], metric=None), tmp_path / "other.svg").read_bytes()
    assert one != other, "the numbers do not reach the picture"


@pytest.mark.parametrize("draw", PICTURES)
@pytest.mark.parametrize("name", ["picture.svg", "picture.png"])
@pytest.mark.parametrize(
    "trials", [[], worth(2), many_variants(2, 1), many_variants(3)], ids=["none", "alone", "1 seed", "3 seeds"]
)
def test_pictures_of_anything_can_be_drawn(draw, name, trials, tmp_path):
    path = draw(summarize(trials, sizes=[100, 200], metric=None), tmp_path / name)
    start = path.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if name.endswith("png") else b"<?xml" in start


def test_a_disaster_does_not_squeeze_the_others_together():
    def variant(mean, role="variant"):
        return {"role": role, "gain": {"mean": mean, "low": None if mean < -100 else mean - 5, "high": mean + 5}}

    low, high = figures._gain_limits(
        [variant(12), variant(8), variant(-20), variant(-400), variant(-1000, "reference")]
    )
    assert -60 < low < -25
    assert 17 < high < 60
    low, _ = figures._gain_limits([variant(-300), variant(-400), variant(2)])
    assert low < -400, "where most do harm they are the picture"


@pytest.mark.parametrize("draw", PICTURES)
def test_another_kind_of_picture_is_refused(draw, tmp_path):
    with pytest.raises(ConfigError, match=r"\.svg, \.png"):
        draw(summarize([], sizes=[100], metric=None), tmp_path / "picture.bmp")
