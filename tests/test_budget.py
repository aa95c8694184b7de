"""Budgets of tokens and shares of sources: what must hold for any scores and lengths, and what a user is told."""

from __future__ import annotations

import json
import math
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

import tov
from golden.records import HERE
from golden.runs import ROOT, move
from oracle import budget as oracle
from test_invalidation import tov_command as command
from tiny import make_rows, tiny_model_folder, tiny_tokenizer, write_jsonl
from tov.config.choice import tokens_of
from tov.config.records import ReselectConfig
from tov.config.settings import build
from tov.errors import ConfigError, DataError, RunError
from tov.inputs import draw
from tov.seeds import generator
from tov.selection.budget import choose_tokens
from tov.selection.choose import Choice, choose, gumbel_noise, quotas_for
from tov.selection.round_robin import top_candidates
from tov.selection.shares import choose_by_source, parts_of
from tov.selection.targets import OfTarget, choose_by_target

RULES = ("score+random", "score-only", "sample", "round-robin")
NAMES = ("a", "b", "c")


@st.composite
def tables(draw: Any) -> dict[str, Any]:
    """A score table with few different scores and lengths, so that ties are common; NaN among the scores; three sources."""
    size = draw(st.integers(1, 50))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    columns = random.normal(size=(size, 3)).round(draw(st.sampled_from([0, 6])))
    columns[random.random(size) < 0.1] = np.nan
    return {
        "columns": columns, "scores": columns.max(1), "tokens": random.integers(1, 8, size),
        "lengths": random.integers(1, draw(st.sampled_from([2, 30])) + 1, size),
        "in_base": random.random(size) < draw(st.sampled_from([0.0, 0.3])),
        "usable": random.random(size) < draw(st.sampled_from([0.7, 1.0])), "codes": random.integers(0, 3, size),
    }  # fmt: skip


def eligible(table: dict[str, Any]) -> np.ndarray:
    return table["usable"] & ~table["in_base"] & np.isfinite(table["scores"])


def given_to(table: dict[str, Any], rule: str, bins: int, **more: Any) -> dict[str, Any]:
    """What `choose` takes, but for quotas, n and lengths."""

    def best(k: int, usable: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        rows = top_candidates(table["columns"], k, usable=usable)
        return rows, [table["columns"][part, place] for place, part in enumerate(rows)]

    named = {name: table[name] for name in ("scores", "tokens", "in_base", "usable")}
    bins = 1 if rule == "round-robin" else bins
    return {**named, "rule": rule, "bins": bins, "seed": 3, "best": best if rule == "round-robin" else None, **more}


def by_tokens(table: dict[str, Any], n: int, rule: str, bins: int, caps: dict[str, float]) -> Choice:
    quotas = quotas_for(table["codes"], NAMES, caps, n)
    return choose_tokens(**given_to(table, rule, bins), lengths=table["lengths"], n=n, quotas=quotas)


def twin(table: dict[str, Any], n: int, rule: str, bins: int, caps: dict[str, float]) -> tuple[list[int], list[int]]:
    """Rows by score in the order of taking, and rows by chance."""
    lengths, sources = table["lengths"].tolist(), [NAMES[code] for code in table["codes"]]
    limit = {name: math.floor(caps.get(name, caps.get("*", 1)) * n + 1e-9) for name in NAMES}
    left, may = oracle.Left(n, limit), np.flatnonzero(eligible(table)).tolist()
    able = sum(min(limit[name], sum(lengths[row] for row in may if sources[row] == name)) for name in NAMES)
    wanted = min(-(-n // 2) if rule == "score+random" else n, able)
    if rule == "round-robin":
        columns = table["columns"]
        lists = [sorted(may, key=lambda row: (-columns[row, target], row)) for target in range(3)]
    else:
        keys = table["scores"] + (gumbel_noise(len(lengths), 3) if rule == "sample" else 0)
        rows = [(row, int(table["tokens"][row]), float(keys[row])) for row in may]
        fit = math.ceil(Fraction(wanted * len(may), sum(lengths[row] for row in may))) if may else 1
        lists = oracle.bins_best_first(rows, min(bins, max(1, fit), max(1, len(may))))
    chosen = oracle.by_turns(lists, lengths, sources, left, until=n - wanted)
    if rule != "score+random":
        return chosen, []
    free = [row for row in np.flatnonzero(table["usable"]).tolist() if row not in chosen]
    random = generator(3, "random half")
    base = random.permutation([row for row in free if table["in_base"][row]]).astype(int).tolist()
    others = random.permutation([row for row in free if not table["in_base"][row]]).astype(int).tolist()
    return chosen, oracle.by_turns([base + others], lengths, sources, left)


CAPS = st.dictionaries(st.sampled_from([*NAMES, "*"]), st.sampled_from([0.2, 0.5, 1.0]), max_size=2)


@given(tables(), st.data(), st.sampled_from(RULES), st.integers(1, 6), CAPS)
def test_what_a_budget_takes_is_what_a_loop_takes(table, data, rule, bins, caps):
    """Never over the budget nor a source's part of it, never a row twice; refused exactly where the tokens are not there."""
    lengths, codes = table["lengths"], table["codes"]
    n = data.draw(st.integers(1, max(1, int(lengths.sum()))))
    may = table["usable"] if rule == "score+random" else eligible(table)
    limits = [math.floor(caps.get(name, caps.get("*", 1)) * n + 1e-9) for name in NAMES]
    able = sum(min(limit, int(lengths[may & (codes == code)].sum())) for code, limit in enumerate(limits))
    try:
        choice = by_tokens(table, n, rule, bins, caps)
    except DataError:
        assert able < n, "tokens enough, but refused"
        return
    assert able >= n, "more tokens than there are"
    chosen = choice.row_ids.tolist()
    assert lengths[chosen].sum() <= n, "over the budget"
    assert len(set(chosen)) == len(chosen), "a row was taken twice"
    assert table["usable"][chosen].all(), "an excluded row was taken"
    for code, limit in enumerate(limits):
        assert lengths[chosen][codes[chosen] == code].sum() <= limit, f"{NAMES[code]} is over its cap"
    by_score, by_chance = twin(table, n, rule, bins, caps)
    found = choice.row_ids[choice.reasons == "score"].tolist()
    assert (found if rule == "round-robin" else sorted(found)) == (
        by_score if rule == "round-robin" else sorted(by_score)
    )
    assert choice.row_ids[choice.reasons == "random"].tolist() == sorted(by_chance)
    if rule in ("score+random", "score-only"):
        assert (np.diff(table["scores"][found]) <= 0).all(), "the rows by score are not sorted best first"


def test_a_source_is_full_from_its_first_row_on_that_does_not_fit():
    """Row 1 does not fit into the 11 tokens of source a; row 3, in the random half, would fit, and is not taken either."""
    table = {
        "scores": np.array([9.0, 8, 7, 0, 0, 0]), "tokens": np.ones(6, int), "lengths": np.array([6, 6, 4, 2, 5, 5]),
        "in_base": np.array([False] * 3 + [True] * 3), "usable": np.ones(6, bool), "codes": np.array([0, 0, 1, 0, 1, 1]),
    }  # fmt: skip
    assert by_tokens(table, 22, "score+random", 1, {"a": 0.5}).row_ids.tolist() == [0, 2, 4, 5]


@pytest.mark.parametrize("caps", [{}, {"a": 0.5}])
def test_round_robin_looks_as_far_as_short_rows_lead(caps):
    """The best rows are far shorter than the mean, so many more are taken than the budget has mean rows."""
    columns = np.random.default_rng(0).normal(size=(200, 3)) + np.repeat([9, 0], 100)[:, None]
    table = {
        "columns": columns, "scores": columns.max(1), "tokens": np.ones(200, int), "lengths": np.repeat([1, 100], 100),
        "in_base": np.zeros(200, bool), "usable": np.ones(200, bool), "codes": np.arange(200) % 3,
    }  # fmt: skip
    found = by_tokens(table, 80, "round-robin", 1, caps).row_ids.tolist()
    assert found == twin(table, 80, "round-robin", 1, caps)[0]
    assert len(found) == 80


@given(tables(), st.data(), st.sampled_from(RULES), st.integers(1, 12), st.integers(1, 9))
def test_rows_of_one_length_are_those_of_so_many_rows(table, data, rule, bins, length):
    """The same rows in the same order as by --n; the random half, where n draws by its quotas, too."""
    table["lengths"] = np.full(len(table["scores"]), length)
    may = table["usable"] if rule == "score+random" else eligible(table)
    assume(may.any())
    n = data.draw(st.integers(1, int(may.sum())))
    caps = data.draw(st.sampled_from([{}, {"a": 0.5}, {"*": 0.4}])) if bins == 1 else {}
    quotas = quotas_for(table["codes"], NAMES, caps or {"*": 1.0}, n)
    assert quotas
    assume(quotas.of(np.flatnonzero(may)) >= n)
    plain = rule != "score+random" and not caps and bins % 2
    wanted = choose(**given_to(table, rule, bins), n=n, quotas=None if plain else quotas)
    found = by_tokens(table, n * length, rule, bins, caps)
    if not (plain or caps or bins == 1):  # caps of 1 lead another way to the same rows
        assert sorted(found.row_ids.tolist()) == sorted(wanted.row_ids.tolist())
    else:
        assert found.row_ids.tolist() == wanted.row_ids.tolist()
    assert found.reasons.tolist() == wanted.reasons.tolist()
    assert found.bin_edges == wanted.bin_edges


@given(tables(), st.randoms(use_true_random=False), st.integers(1, 4), st.data())
def test_the_order_of_rows_changes_nothing(table, random, bins, data):
    """Of rows that tie neither in score nor in length."""
    size = len(table["scores"])
    table["scores"], table["tokens"] = np.random.default_rng(1).normal(size=size), np.arange(size)
    assume(eligible(table).any())
    n = data.draw(st.integers(1, int(table["lengths"][eligible(table)].sum())))
    order = list(range(size))
    random.shuffle(order)
    shuffled = {name: values[order] for name, values in table.items()}
    one, two = (by_tokens(each, n, "score-only", bins, {"a": 1.0}).row_ids for each in (table, shuffled))
    assert one.tolist() == np.array(order)[two].tolist()


@given(tables(), st.data())
def test_a_larger_budget_keeps_the_rows_of_a_smaller_one(table, data):
    assume(eligible(table).any())
    most = int(table["lengths"][eligible(table)].sum())
    small = data.draw(st.integers(1, most))
    large = data.draw(st.integers(small, most))
    one, two = (by_tokens(table, n, "score-only", 1, {}).row_ids.tolist() for n in (small, large))
    assert two[: len(one)] == one


SHARES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.0, 0.1, 0.25, 0.3]), min_size=1, max_size=2)


@given(tables(), st.data(), st.sampled_from(RULES), st.integers(1, 4), SHARES, st.booleans())
def test_each_source_with_a_share_is_chosen_from_by_itself(table, data, rule, bins, shares, of_tokens):
    """Its rows are those of a choice from it alone; its share is met to within a row; the rest is the others'."""
    codes, lengths = table["codes"], table["lengths"] if of_tokens else np.ones(len(table["codes"]), np.int64)
    assume(set(codes.tolist()) == {0, 1, 2})
    n = data.draw(st.integers(1, max(1, int(lengths.sum()) // 2)))
    common = {"lengths": lengths} if of_tokens else {}
    given = given_to(table, rule, bins)
    try:
        choice = choose_by_source(shares=shares, caps={}, codes=codes, names=NAMES, n=n, **given, **common)
    except DataError:
        assume(False)
    chosen = choice.row_ids
    assert len(set(chosen.tolist())) == len(chosen)
    assert lengths[chosen].sum() <= n
    longest = lengths.max()
    for name, share in shares.items():
        mine = lengths[chosen][codes[chosen] == NAMES.index(name)].sum()
        assert abs(mine - Fraction(str(share)) * n) <= longest, f"{name} has {mine} of {n}, {share} was asked for"
    first, *_ = sorted(shares)
    alone = {**given, **common, "usable": table["usable"] & (codes == NAMES.index(first))}
    wanted, *_ = oracle.parts({name: str(share) for name, share in shares.items()}, n)
    rows = (choose_tokens if of_tokens else choose)(**alone, n=wanted).row_ids.tolist() if wanted else []
    assert sorted(chosen[codes[chosen] == NAMES.index(first)].tolist()) == sorted(rows)
    if not of_tokens:
        assert len(chosen) == n
        counts = np.bincount(codes[chosen], minlength=3)
        of_named = oracle.parts({name: str(share) for name, share in shares.items()}, n)[:-1]
        assert [counts[NAMES.index(name)] for name in sorted(shares)] == of_named
    by_score = choice.reasons == "score"
    assert (np.diff(by_score.astype(int)) <= 0).all(), "rows by score stand before those by chance"
    if rule in ("score+random", "score-only"):
        assert (np.diff(table["scores"][chosen[by_score]]) <= 0).all()


def test_what_one_part_leaves_over_is_not_asked_of_a_part_that_has_no_more():
    """Here `a` spends 480 of 500 tokens, and `b` has just the 500 that are its own."""
    lengths = np.array([40] * 20 + [50] * 10)
    given = {
        "scores": np.linspace(1, 0, 30), "tokens": lengths, "in_base": np.zeros(30, bool), "usable": np.ones(30, bool),
        "rule": "score-only", "bins": 1, "seed": 0,
    }  # fmt: skip
    codes = np.array([0] * 20 + [1] * 10)
    choice = choose_by_source(
        shares={"a": 0.5}, caps={}, codes=codes, names=["a", "b"], n=1000, lengths=lengths, best=None, **given
    )
    assert np.bincount(codes[choice.row_ids], lengths[choice.row_ids]).tolist() == [480, 500]
    assert any("20 tokens that were left over elsewhere" in note for note in choice.notes)
    with pytest.raises(DataError, match=r"asks for 520|at most 500 can be had"):
        choose_by_source(
            shares={"a": 0.5}, caps={}, codes=codes, names=["a", "b"], n=1040, lengths=lengths, best=None, **given
        )


def test_what_one_target_leaves_over_is_not_asked_of_one_that_has_no_more():
    lengths = np.array([40] * 9 + [50] * 10)
    of = np.array([0] * 9 + [1] * 10)
    scores = [np.where(of == target, 1.0, np.nan) for target in (0, 1)]
    targets = [OfTarget(name, values, None) for name, values in zip("ab", scores, strict=True)]
    choice = choose_by_target(
        targets, shares={"a": 0.35}, source_shares={}, caps={}, codes=np.zeros(19, int), names=["all"], n=760,
        lengths=lengths, tokens=lengths, in_base=np.zeros(19, bool), usable=np.ones(19, bool), rule="score-only", bins=1,
        seed=0,
    )  # fmt: skip
    assert np.bincount(of[choice.row_ids], lengths[choice.row_ids]).tolist() == [240, 450]


@pytest.mark.parametrize(
    ("shares", "n", "until"),
    [({"a": 0.3}, 10, [3, 10]), ({"b": 0.15, "a": 0.15}, 10, [2, 3, 10]), ({"a": 0.1, "b": 0.2, "c": 0.7}, 5, [1, 2, 5]),
     ({"a": 0.0}, 7, [0, 7]), ({"a": 0.29}, 100, [29, 100]), ({"a": 0.34, "b": 0.33, "c": 0.33}, 10, [4, 7, 10]),
     ({"a": 0.999}, 40, [40, 40]), ({"b": 0.25}, 2, [1, 2]), ({"a": 0.1}, 1, [0, 1]), ({"a": 0.33, "c": 0.33}, 3, [1, 2, 3])],
)  # fmt: skip
def test_parts_add_up_to_the_whole(shares, n, until):
    assert [part.until for part in parts_of(shares, NAMES, {}, n)] == until


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 333), min_size=1), st.integers(1, 10**6))
def test_parts_are_those_of_the_largest_remainders(thousandths, n):
    """All together are n, none is a whole row (or token) from its share, and no rest is left without one."""
    assume(sum(thousandths.values()) < 1000)
    assume(len(thousandths) < len(NAMES))
    until = [part.until for part in parts_of({name: of / 1000 for name, of in thousandths.items()}, NAMES, {}, n)]
    got = np.diff([0, *until]).tolist()
    assert got == oracle.parts({name: f"0.{of:03}" for name, of in thousandths.items()}, n)
    assert sum(got) == n
    assert all(
        abs(1000 * has - thousandths[name] * n) < 1000 for name, has in zip(sorted(thousandths), got, strict=False)
    )


@pytest.mark.parametrize(
    ("shares", "caps", "said"),
    [({"d": 0.3}, {}, "no source 'd'"), ({"a": 0.3}, {"a": 0.2}, "above --source-cap"),
     ({"a": 0.3}, {"*": 0.2}, "which allows 0.2"), ({"a": 0.3, "b": 0.3, "c": 0.3}, {}, "names every source")],
)  # fmt: skip
def test_shares_that_cannot_be(shares, caps, said):
    with pytest.raises(ConfigError, match=said):
        parts_of(shares, NAMES, caps, 10)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [(7, 7), ("7", 7), ("2_000_000", 2_000_000), ("2e6", 2_000_000), (2e6, 2_000_000), ("500k", 500_000), ("2M", 2_000_000),
     ("1.5G", 1_500_000_000), (" 2m ", 2_000_000)],
)  # fmt: skip
def test_ways_to_write_a_number_of_tokens(text, tokens):
    assert tokens_of(text) == tokens


@pytest.mark.parametrize(
    "text",
    ["", "M", "two", "2T", "1.5", "0", -3, "2e", "nan", "inf", "1e99999999", "1e99999999G", True, "0.0001k", [1]],
)
def test_what_is_no_number_of_tokens(text):
    with pytest.raises(ConfigError, match="2_000_000, 2e6, 500k, 2M"):
        build(ReselectConfig, {"from_run": "r", "out": "o", "tokens": text})


@pytest.mark.parametrize(
    ("settings", "said"),
    [({}, "Neither --n nor --tokens"), ({"n": 1, "tokens": 1}, "both say how much"),
     ({"n": 1, "share": ("0.3",)}, "pairs SOURCE=SHARE"),
     ({"n": 1, "share": ("a=0.3", "a=0.2")}, "twice"), ({"n": 1, "share": 0.3}, "pairs"),
     ({"n": 1, "share": {"a": True}}, "a=True is no share"), ({"n": 1, "share": ("a=",)}, "a= is no share")],
)  # fmt: skip
def test_amounts_that_cannot_be(settings, said):
    with pytest.raises(ConfigError, match=said):
        build(ReselectConfig, {"from_run": "r", "out": "o", **settings})


@pytest.mark.parametrize(
    "share",
    ["x", "nan", "inf", "-inf", "-0.1", "1.1", 1.1, "101%", "%", "5 0%", "1e999999999", None, [1], float("nan")],
)
def test_what_is_no_share_is_told_with_its_source(share):
    with pytest.raises(ConfigError, match=r"^--share: forms=.* is no share") as caught:
        build(ReselectConfig, {"from_run": "r", "out": "o", "n": 1, "share": {"forms": share}})
    assert "above 0 and at most 1, e.g. 0.5 or 50%" in str(caught.value)


@pytest.mark.parametrize(
    ("share", "number"),
    [("50%", 0.5), ("29 %", 0.29), ("0.29", 0.29), (1, 1.0), ("0", 0.0), ("100%", 1.0), ("2.9%", 0.029)],
)
def test_ways_to_write_a_share(share, number):
    assert build(ReselectConfig, {"from_run": "r", "out": "o", "n": 1, "share": {"a": share}}).share == {"a": number}


# Commands


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of two sources, a target and a tiny model of one token a byte."""
    folder = tmp_path_factory.mktemp("budget")
    write_jsonl(folder / "web.jsonl", make_rows(40, seed=1))
    write_jsonl(folder / "books.jsonl", make_rows(20, seed=2, shortest=20, longest=60))
    write_jsonl(folder / "target.jsonl", make_rows(6, seed=3))
    tiny_model_folder(folder, name="model")
    return folder


def settings(place: Path, **more: Any) -> dict[str, Any]:
    pool = [str(place / "web.jsonl"), str(place / "books.jsonl")]
    common = {"dtype": "fp32", "device": "cpu", "max_length": 64, "quiet": True, "method": "random"}
    return {"model": str(place / "model"), "pool": pool, "target": str(place / "target.jsonl"), **common, **more}


def lengths_by_template(rows: Any) -> list[int]:
    """Tokens of rows in the model's chat template, within 64, by its tokenizer alone."""
    tokenizer, found = tiny_tokenizer(), []
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        found.append(min(64, len(tokenizer(text, add_special_tokens=False)["input_ids"])))
    return found


@pytest.mark.parametrize("method", ["random", "tov/epochs=1/base_size=8", "rds", "dsir", "bm25"])
def test_a_budget_is_spent_on_tokens_as_the_template_shows_them(method: str, place: Path, tmp_path: Path) -> None:
    picked = tov.select(**settings(place, method=method), tokens="1_000", out=tmp_path / "run")
    spent = sum(lengths_by_template(picked.dataset))
    assert spent <= 1000
    assert picked.summary["choice"]["budget"] == {"tokens": 1000, "spent": spent}
    assert json.loads(json.dumps(picked.record))["summary"]["choice"]["budget"]["spent"] == spent
    said = f"{spent:,} of 1,000 tokens are spent, on {len(picked.dataset):,} rows"
    assert said in str(picked)
    assert said in (picked.folder / "summary.md").read_text()
    assert spent > 1000 - 64, "less is left over than the longest row has"
    again = tov.select(**settings(place, method=method), tokens=1000, out=tmp_path / "run")
    assert again.manifest.started == picked.manifest.started, "the same budget is the same run"


def test_a_plan_foretells_rows_and_tokens(place: Path) -> None:
    given = {name: value for name, value in settings(place).items() if name != "method"}
    by_tokens, by_rows = tov.plan(**given, tokens="1k"), tov.plan(**given, n=20)
    rows = [
        json.loads(line) for name in ("web", "books") for line in (place / f"{name}.jsonl").read_text().splitlines()
    ]
    mean = float(np.mean(lengths_by_template(rows)))
    assert by_tokens.facts["choice"] == {"rows": round(1000 / mean), "tokens": 1000, "estimated": "rows"}
    assert by_rows.facts["choice"] == {"rows": 20, "tokens": round(20 * mean), "estimated": "tokens"}
    assert f"about {round(1000 / mean)} rows of 1,000 tokens" in str(by_tokens)
    assert tov.plan(**given).facts["choice"] is None
    pilots = [tov.plan(**given, method="auto", methods=(), candidates=["rds", "dsir"], probe=False, **amount) for amount in
              ({"tokens": 1000}, {"n": round(1000 / mean)})]  # fmt: skip
    assert pilots[0].facts["methods"] == pilots[1].facts["methods"]


def test_shares_and_budgets_from_a_file_from_flags_and_from_scores(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The YAML mapping, the flags and the Python names are one thing; nothing of it is scored again."""
    file = tmp_path / "run.yaml"
    plain = {name: value for name, value in settings(place).items() if name != "quiet"}
    file.write_text(yaml.safe_dump({**plain, "n": 20, "share": {"books": 0.25}, "out": str(tmp_path / "yaml")}))
    assert command("select", str(file), "--json", monkeypatch=monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)["summary"]["choice"]
    assert told["shares"] == {"books": {"asked": 0.25, "reached": 0.25}}
    assert "budget" not in told
    out = ["--from", str(tmp_path / "yaml"), "--out", str(tmp_path / "flags"), "--tokens", "1k", "--json"]
    assert command("select", *out, "--share", "books=0.6", "--share", "web=0.4", monkeypatch=monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)["summary"]["choice"]
    again = tov.reselect(
        tmp_path / "yaml", tokens=1000, share={"books": 0.6, "web": 0.4}, out=tmp_path / "flags", quiet=True
    )
    lengths, sources = lengths_by_template(again.dataset), again.dataset["tov_source"]
    of_books = sum(length for length, source in zip(lengths, sources, strict=True) if source == "books")
    assert told["budget"]["spent"] == sum(lengths)
    assert told["shares"]["books"] == {"asked": 0.6, "reached": of_books / sum(lengths)}
    assert abs(of_books - 600) <= 64
    assert f"books gives {100 * of_books / sum(lengths):.2f} % of the tokens; 60 % were asked for" in str(again)


@pytest.mark.parametrize(
    ("more", "said"),
    [({"tokens": "1M"}, "60 usable rows of the pool have"), ({"tokens": 900, "share": {"boks": 0.5}}, "did you mean 'books'"),
     ({"n": 40, "share": {"books": 0.6}}, r"--share books=0.6 is 24 of 40 rows, but at most 20"),
     ({"tokens": "2k", "share": {"books": 0.9}}, r"--share books=0.9 is 1,800 of 2,000 tokens, but at most"),
     ({"n": 50, "share": {"books": 0.1}}, r"What --share leaves to the others is 45 of 50 rows, but at most 40"),
     ({"n": 10, "share": {"books": 0.6, "web": 0.41}}, "1.01 together"),
     ({"n": 10, "share": {"books": 0.4}, "source_cap": {"*": 0.3}}, "above --source-cap"),
     ({"n": 10, "share": {"books": 0.2}, "source_cap": {"web": 0.3}}, "--source-cap allows 3 rows")],
)  # fmt: skip
def test_what_cannot_be_chosen_is_told_before_anything_is_scored(
    more: dict[str, Any], said: str, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(tov.TovError, match=said):
        tov.select(**settings(place), **more, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    planned = {name: value for name, value in settings(place).items() if name != "quiet"}
    with pytest.raises(tov.TovError, match=said):
        tov.plan(**{**planned, "methods": ("random",), "method": "tov"}, **more)


def test_of_a_large_pool_tokens_are_estimated_and_refused_only_where_that_is_certain(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "SAMPLE", 20)
    rows = [
        json.loads(line) for name in ("web", "books") for line in (place / f"{name}.jsonl").read_text().splitlines()
    ]
    total = sum(lengths_by_template(rows))
    with pytest.raises(DataError, match=r"60 usable rows of the pool have about [\d,]+ tokens"):
        tov.select(**settings(place), tokens=2 * total, out=tmp_path / "run")
    picked = tov.select(**settings(place), tokens=total - 1, out=tmp_path / "run")
    assert picked.summary["choice"]["budget"]["spent"] > total - 65, "an estimate has cut the budget"
    with pytest.raises(
        DataError, match=f"The usable rows that have a score have {total:,} tokens, but --tokens asks for {total + 1:,}"
    ):
        tov.select(**settings(place), tokens=total + 1, out=tmp_path / "more")


def test_scores_of_an_earlier_version_have_no_lengths_and_say_so(tmp_path: Path) -> None:
    shutil.copytree(HERE / "run-0.1.0", tmp_path / "kept")
    move(tmp_path / "kept", ROOT, tmp_path / "kept")
    with pytest.raises(RunError, match="did not keep how many tokens a row has"):
        tov.reselect(tmp_path / "kept" / "select-less", tokens=500, out=tmp_path / "again", quiet=True)
    assert not (tmp_path / "again").exists()
    shared = tov.reselect(
        tmp_path / "kept" / "select-less", n=10, share={"web": 0.3}, out=tmp_path / "again", quiet=True
    )
    assert list(shared.dataset["tov_source"]).count("web") == 3


def test_a_first_row_beyond_the_budget_is_an_error(place: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--tokens is too small: not even the first row fits into a budget of 2"):
        tov.select(**settings(place), tokens=2, out=tmp_path / "run")
