"""The rule of `auto`: a candidate is taken only if its pilots say that it is better than random rows."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tov.comparison.decision import CAUTION, best_of, gains_of, halved, safest_of
from tov.methods.auto import LEAST, alive_in

ROOT = Path(__file__).parents[1]
TULU = ROOT.parent / "shared" / "data" / "gate" / "tulu.parquet"
APART = [sys.executable, str(ROOT / "experiments" / "pilots_apart.py")]
REPLAY = [sys.executable, str(ROOT / "experiments" / "replay_gate.py")]
SCHEMA = pa.schema([
    *((name, pa.string()) for name in ("pool", "model", "task", "method")), ("n", pa.int64()), ("seed", pa.int64()),
    ("metric", pa.float64()),
])  # fmt: skip


def test_the_error_is_that_of_a_mean_and_at_least_the_usual_one() -> None:
    gains = gains_of({"calm": [2.0, 2.0, 2.0], "usual": [1.0, 2.0, 3.0], "wild": [-6.0, 0.0, 6.0]})
    assert gains["usual"].error == pytest.approx(1 / math.sqrt(3)), "variance 1 over 3 pilots"
    assert gains["calm"].error == gains["usual"].error, "three equal pilots are luck: the median variance stands in"
    assert gains["wild"].error == pytest.approx(6 / math.sqrt(3)), "its own variance, which is larger"
    assert gains["usual"].low == pytest.approx(2 - CAUTION / math.sqrt(3))


def test_the_largest_gain_is_taken_if_it_is_sure() -> None:
    assert best_of(gains_of({"a": [3.0, 4.0, 5.0], "b": [1.0, 2.0, 3.0]})) == "a"


def test_a_large_gain_that_may_be_none_gives_way_to_a_smaller_sure_one() -> None:
    assert best_of(gains_of({"wild": [-20.0, 10.0, 40.0], "sure": [4.0, 5.0, 6.0], "calm": [0.0, 1.0, 0.5]})) == "sure"


def test_random_rows_are_taken_where_nothing_is_sure() -> None:
    assert best_of(gains_of({"a": [-1.0, 2.0, 0.5], "b": [-3.0, -2.0, -1.0]})) is None
    assert best_of({}) is None
    assert best_of(gains_of({"a": [5.0], "b": [1.0]})) is None, "one pilot tells nothing of its error"


def test_the_safest_is_taken_where_nothing_is_sure_unless_it_is_surely_worse() -> None:
    gains = gains_of({"tov": [-1.0, 2.0, 0.5], "tov/abs": [0.2, 0.1, 0.1], "rds": [3.0, -2.0, 4.0]})
    assert best_of({"tov": gains["tov"], "rds": gains["rds"]}) is None
    assert safest_of({name: gains[name] for name in ("tov", "tov/abs")}) == "tov", "the larger mean"
    assert safest_of(gains_of({"tov": [-5.0]})) == "tov", "one pilot tells nothing of its error"
    assert safest_of(gains_of({"tov": [-5.0, 4.0]})) == "tov", "it may be better as well as worse"
    assert safest_of(gains_of({"tov": [-5.0, -4.0]})) is None
    assert safest_of({}) is None


def test_the_better_half_goes_on_and_never_fewer_than_two() -> None:
    gains = gains_of({name: [value, value + 1] for name, value in zip("abcde", (1.0, 5.0, 3.0, 4.0, 2.0), strict=True)})
    assert halved(gains, 2) == ["b", "c", "d"], "three of five, in their order"
    assert halved({name: gains[name] for name in "ab"}, 2) == ["a", "b"]
    assert halved(gains, 2, stay={"a"}) == ["a", "b", "d"], "the worst stays, and the better half of the others goes on"
    assert halved({name: gains[name] for name in "abe"}, 2, stay={"a"}) == ["a", "b"]


@given(st.integers(1, 9), st.integers(0, 3), st.integers(1, 4))
def test_as_many_go_on_as_the_plan_foretells(candidates: int, staying: int, pilots: int) -> None:
    gains = gains_of({f"m{place}": [float(place), 1.0] for place in range(candidates)})
    stay, alive, counts = {f"m{place}" for place in range(min(staying, candidates))}, dict(gains), list[int]()
    for _ in range(pilots):
        counts.append(len(alive))
        alive = {name: gains[name] for name in halved(alive, LEAST, stay)}
    assert counts == alive_in(candidates, pilots, len(stay))


@given(st.lists(st.lists(st.floats(-50, 50), min_size=2, max_size=4), min_size=1, max_size=6), st.randoms())
def test_whoever_is_taken_is_above_random_rows_whatever_the_order(pilots: list[list[float]], random) -> None:
    names = [f"m{place}" for place in range(len(pilots))]
    gains = gains_of(dict(zip(names, pilots, strict=True)))
    taken = best_of(gains)
    if taken is None:
        assert all(gain.low <= 0 for gain in gains.values())
    else:
        assert gains[taken].low > 0
    shuffled = names[:]
    random.shuffle(shuffled)
    other = best_of({name: gains[name] for name in shuffled})
    assert (other is None) == (taken is None)
    if taken is not None and other is not None:
        assert (gains[other].mean, gains[other].low) == (gains[taken].mean, gains[taken].low)


def trainings(cells: int = 2) -> list[dict[str, Any]]:
    """Finished trainings whose answer is known: `good` is 5 points better than random rows, `bad` 5 worse."""
    noise = np.random.default_rng(0)
    return [
        {"pool": "p", "model": f"m{cell}", "task": "t", "method": method, "n": n, "seed": seed,
         "metric": 40 + shift + float(noise.normal(0, 0.3))}
        for cell in range(cells) for n in (500, 1000, 2500, 5000) for seed in range(3)
        for method, shift in (("Random", 0), ("good", 5), ("bad", -5))
    ]  # fmt: skip


def table(path: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """A table of these trainings."""
    pq.write_table(pa.Table.from_pylist(trainings() if rows is None else rows, SCHEMA), path)
    return path


def replayed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*REPLAY, *arguments], capture_output=True, text=True, check=False)


def test_the_replay_says_what_the_rule_every_method_and_the_best_of_each_cell_gain(tmp_path: Path) -> None:
    done = replayed(str(table(tmp_path / "t.parquet")), "--json")
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)
    assert set(lines) == {"rule", "always good", "always bad", "oracle"}
    assert all(set(line) == {"mean", "worse", "cells"} and line["cells"] == 4 for line in lines.values())
    assert lines["rule"] == lines["always good"] == lines["oracle"]
    assert lines["rule"]["mean"] == pytest.approx(5, abs=0.5)
    assert (lines["rule"]["worse"], lines["always bad"]["worse"]) == (0, 4)
    assert "rule" in replayed(str(tmp_path / "t.parquet"), "--pilot-n", "500").stdout


def test_the_replay_says_what_a_table_lacks(tmp_path: Path) -> None:
    pq.write_table(pa.table({"model": ["m"]}), tmp_path / "t.parquet")
    done = replayed(str(tmp_path / "t.parquet"))
    assert done.returncode == 1
    assert "has no column task" in done.stderr
    assert "is not there" in replayed(str(tmp_path / "none.parquet")).stderr


def but(where: Callable[[dict[str, Any]], bool], **values: Any) -> list[dict[str, Any]]:
    """The trainings, with other values where it is so; left out without any."""
    return [{**one, **values} if where(one) else one for one in trainings() if values or not where(one)]


@pytest.mark.parametrize(
    ("rows", "cells", "says"),
    [
        (but(lambda one: (one["n"], one["seed"]) == (1000, 2), metric=math.nan), 4, "6 trainings without a metric"),
        (but(lambda one: (one["model"], one["method"]) == ("m1", "Random")), 2, "1 cell left out: no trainings of"),
        (but(lambda one: one["model"] == "m1" and one["n"] < 2500), 2, "1 cell left out: no pilots of n <= 1,000"),
        (but(lambda one: one["model"] == "m1" and one["n"] > 1000), 2, "1 cell left out: no trainings of Random at n >= 2,500"),
        (but(lambda one: one["method"] != "Random" and one["n"] == 1000), 4, ""),  # 500 is the largest that both have
    ],
)  # fmt: skip
def test_the_replay_tells_what_it_leaves_out(tmp_path: Path, rows: list[dict[str, Any]], cells: int, says: str) -> None:
    done = replayed(str(table(tmp_path / "t.parquet", rows)), "--json")
    assert done.returncode == 0, done.stderr
    assert says in done.stderr
    assert (done.stderr == "") == (says == "")
    lines = json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert {line["cells"] for line in lines.values()} == {cells}
    assert lines["rule"] == lines["always good"], "the pilots are seen"


def test_a_line_whose_method_lacks_sizes_tells_how_many(tmp_path: Path) -> None:
    rows = but(lambda one: (one["method"], one["model"], one["n"]) == ("good", "m0", 5000))
    done = replayed(str(table(tmp_path / "t.parquet", rows)), "--json")
    assert {name: line["cells"] for name, line in json.loads(done.stdout).items()} == {
        "rule": 3, "always bad": 4, "always good": 3, "oracle": 4,
    }  # fmt: skip
    for name in ("rule", "always good"):
        assert f"{name}: 1 of 4 sizes of cells have no training of it" in done.stderr
    done = replayed(str(table(tmp_path / "t.parquet", but(lambda one: one["method"] == "good" and one["n"] > 1000))))
    assert done.returncode == 1
    assert "No method that the line 'rule' takes was trained at n >= 2,500" in done.stderr


@pytest.mark.parametrize(
    ("rows", "flags", "says"),
    [
        (trainings(), ["--pilot-n", "700"], ["no pilots of n = 700", "Sizes that can be pilots: 500, 1,000, 2,500, 5,000."]),
        (but(lambda one: one["seed"] > 0), [], ["two seeds that a method shares with Random", "can be pilots: none"]),
        ([{**one, "seed": one["seed"] + 9 * (one["method"] == "Random")} for one in trainings()], [],
         ["two seeds that a method shares with Random"]),
        (but(lambda one: one["n"] >= 2500), [], ["2 cells left out: no trainings of Random at n >= 2,500"]),
        ([], [], ["It has no trainings."]),
        (but(lambda one: one["n"] == 500, seed=None), [], ["Row 1 of", "has None as its seed, which must be a whole number"]),
        (but(lambda one: one["n"] == 500, model=None), [], ["has None as its model, which must be text"]),
        ([*trainings(), trainings()[0]], [], ["Row 73 of", "is a training that another row is too"]),
    ],
)  # fmt: skip
def test_the_replay_refuses_with_a_sentence_what_it_cannot_replay(
    tmp_path: Path, rows: list[dict[str, Any]], flags: list[str], says: list[str]
) -> None:
    done = replayed(str(table(tmp_path / "t.parquet", rows)), *flags)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    for words in says:
        assert words in done.stderr


def test_a_file_that_is_no_parquet_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("model,task\n")
    done = replayed(str(tmp_path / "t.parquet"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "cannot be read as Parquet" in done.stderr
    assert "Name a Parquet table of finished trainings." in done.stderr


@pytest.mark.skipif(not TULU.exists(), reason=f"the public study is not at {TULU}")
def test_on_the_public_study_the_rule_is_above_every_method_and_seldom_below_random() -> None:
    lines = json.loads(replayed(str(TULU), "--json").stdout)
    always = [line for name, line in lines.items() if name.startswith("always")]
    assert lines["rule"]["cells"] == 75
    assert lines["rule"]["mean"] > max(line["mean"] for line in always)
    assert lines["rule"]["worse"] < min(line["worse"] for line in always) / 2
    assert lines["rule"]["mean"] < lines["oracle"]["mean"]


def test_the_rule_is_read_in_a_pilot_that_it_has_not_seen(tmp_path: Path) -> None:
    """By the first two pilots `rds` is surely better; the third says otherwise, and counts alone."""
    losses = {
        1: {"random": 1.0, "tov": 0.99, "rds": 0.90, "bm25": 0.5},
        2: {"random": 1.0, "tov": 1.01, "rds": 0.91},
        3: {"random": 1.0, "tov": 0.80, "rds": 1.10},
    }
    lines = [
        {"experiment": "E", "seed": 0, "pilot": pilot, "variant": name, "loss": loss, "status": "done"}
        for pilot, found in losses.items()
        for name, loss in found.items()
    ]
    file = tmp_path / "pilots.jsonl"
    other = [{**line, "seed": 1, "loss": 1.0 if line["variant"] == "rds" else line["loss"]} for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *other]))
    said = subprocess.run([*APART, str(file)], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0] == "E seed 0: rds -10.0 %"
    assert said[1] == "E seed 1: tov +20.0 %", "nothing is sure, so it falls back"
    assert said[4].startswith("the rule: +5.00 +-")
    assert said[4].endswith("below 0 in 1 of 2")
    assert any(line.startswith("bm25: +50.00 +- 0.00 %") for line in said), "dropped later, but it had the first pilot"
