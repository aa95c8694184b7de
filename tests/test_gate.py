"""`auto`: which method scores the pool is decided by pilots on folds of the target that no score has seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tov
from faults import killed
from test_classifiers import make
from tiny import make_rows, tiny_encoder_folder, write_jsonl
from tov.cli.main import main
from tov.comparison import gate
from tov.comparison.bench import Bench
from tov.comparison.pilots import in_pilot
from tov.comparison.records import read_trials
from tov.comparison.split import folds_of, like_test
from tov.config.records import CompareConfig, SelectConfig
from tov.config.settings import build
from tov.data.pool import index_rows
from tov.errors import ConfigError, DataError, RunError
from tov.inputs.read import Indexed, open_rows, read_target
from tov.methods.auto import PilotSizes, alive_in, pilot_sizes
from tov.methods.base import PoolStats
from tov.methods.registry import built_in
from tov.methods.spec import parse_variant, settings_for
from tov.metrics import own_metric
from tov.runs.manifest import read_manifest
from tov.verbs.report import report

QUICK: dict[str, Any] = {
    "base_size": 8, "epochs": 1, "max_length": 64, "quiet": True, "dtype": "fp32", "pilot_rows": 16, "pilot_train_rows": 16,
    "pilot_folds": 2,
    "candidates": ["tov", "tov/score-only", "dsir", "rds"], "n": 8,
}  # fmt: skip


def select(out: Path, model: Path, **changed: Any) -> Any:
    """A selection by auto from a tiny pool: 40 rows, target 9."""
    given = {
        "model": str(model), "pool": make_rows(40, seed=1), "target": make_rows(9, seed=2), "method": "auto", "out": out,
        **QUICK, **changed,
    }  # fmt: skip
    return tov.select(**given)


@pytest.fixture(scope="module")
def picked(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Any:
    """A finished selection by auto; tests must not change it."""
    return select(tmp_path_factory.mktemp("auto") / "run", tiny_folder)


@pytest.mark.slow
def test_the_pilots_have_a_page_and_stand_on_that_of_the_selection(picked: Any, tmp_path: Path) -> None:
    alone = report(picked.folder / "gate", out=tmp_path / "gate.html")
    for text in (alone.file.read_text("utf-8"), (picked.folder / "report.html").read_text("utf-8")):
        assert "How the method was chosen" in text
        for name in QUICK["candidates"]:
            assert f'<th scope="row" dir="auto">{name}</th>' in text


def pilots_of(folder: Path) -> list[dict[str, Any]]:
    return read_trials(folder / "gate" / "trials.jsonl")


def test_every_candidate_and_random_rows_are_trained_on_in_the_first_pilot_and_the_better_half_and_tov_go_on(
    picked: Any,
) -> None:
    first, second = (
        [one for one in pilots_of(picked.folder) if one["seed"] == seed] for seed in (1_000_000, 2_000_000)
    )
    assert [one["variant"] for one in first] == ["random", *QUICK["candidates"]]
    gains = {one["variant"]: first[0]["loss"] - one["loss"] for one in first[1:]}
    best = sorted(gains.keys() - {"tov"}, key=lambda name: -gains[name])[:2]
    on = ["tov", *best]  # half of the rows of tov are random: the rule falls back on it, so it has every pilot
    assert [one["variant"] for one in second] == ["random", *(name for name in gains if name in on)]
    assert {one["n"] for one in first + second} == {8}
    assert len({one["train"]["steps"] for one in first + second}) == 1, "equal steps for all"


def test_each_target_row_is_judged_once_and_never_by_a_score_that_has_seen_it(tiny_folder: Path) -> None:
    target = read_target(
        [make_rows(9, seed=2)], build(SelectConfig, {"model": "m", "pool": "p", "target": "t", "n": 1, "out": "o"})
    )
    folds = folds_of(target, None, 3, seed=0)
    assert sorted(np.concatenate(folds).tolist()) == list(range(9))
    assert {len(fold) for fold in folds} == {3}
    assert [fold.tolist() for fold in folds_of(target, None, 3, seed=0)] == [fold.tolist() for fold in folds]
    assert [fold.tolist() for fold in folds_of(target, None, 3, seed=1)] != [fold.tolist() for fold in folds]


def test_the_pilots_hold_out_a_fold_from_target_and_pool(picked: Any, tiny_folder: Path, monkeypatch: Any) -> None:
    seen: list[Bench] = []

    def watch(run: Any, bench: Bench, *_: Any) -> Any:
        seen.append(bench)
        raise DataError("seen", fix="none")

    monkeypatch.setattr(gate, "seed_trials", watch)
    rows = make_rows(9, seed=2)
    with pytest.raises(DataError, match="seen"):
        select(
            Path(picked.folder).parent / "watched",
            tiny_folder,
            pool=[*make_rows(40, seed=1), *rows],
            decontaminate=False,
        )
    split = seen[0].split
    prompts = set(split.test.index.prompt.tolist())
    assert len(split.test) + len(split.target) == 9
    assert not prompts & set(split.target.index.prompt.tolist())
    assert not prompts & set(split.rows.index.prompt[split.rows.usable].tolist()), "a row judged on may be trained on"
    assert set(split.target.index.prompt.tolist()) & set(split.rows.index.prompt[split.rows.usable].tolist())


def test_the_decision_is_the_rule_on_the_pilots_and_is_told_everywhere(picked: Any) -> None:
    record, manifest = picked.manifest.gate, read_manifest(picked.folder)
    assert [one["variant"] for one in record["candidates"]] == QUICK["candidates"]
    assert sum(one["outcome"].startswith("taken") for one in record["candidates"]) == (record["chosen"] != "random")
    assert manifest.gate == record
    assert record["verdict"] in picked.summary["notes"]
    assert picked.record["gate"] == record
    summary = (picked.folder / "summary.md").read_text()
    assert "## What auto decided" in summary
    for one in record["candidates"]:
        assert one["variant"] in str(picked)
        assert one["outcome"]
    assert manifest.timings["pilots"] > 0
    assert manifest.spent["pilots"][0] > 0


@pytest.mark.slow
def test_the_rows_are_those_of_the_method_taken(tmp_path: Path, tiny_folder: Path, monkeypatch: Any) -> None:
    """Whatever the pilots say: here they are made to say dsir, and the rows are those of dsir alone."""
    monkeypatch.setattr(gate, "best_of", lambda gains: "dsir" if "dsir" in gains else None)
    monkeypatch.setattr(gate, "halved", lambda gains, least=2, stay=(): list(gains))
    by_auto = select(tmp_path / "auto", tiny_folder)
    alone = tov.select(
        model=str(tiny_folder), pool=make_rows(40, seed=1), target=make_rows(9, seed=2), n=8, method="dsir", max_length=64,
        dtype="fp32", quiet=True, out=tmp_path / "dsir",
    )  # fmt: skip
    assert by_auto.manifest.gate["chosen"] == "dsir"
    assert by_auto.dataset["tov_row_id"] == alone.dataset["tov_row_id"]
    assert by_auto.manifest.scoring.method == "dsir"


@pytest.mark.slow
def test_where_nothing_is_sure_the_candidate_that_is_half_random_is_taken(
    tmp_path: Path, tiny_folder: Path, monkeypatch: Any
) -> None:
    """Of the candidates only `tov` takes half of its rows at random; a gain surely below 0 leaves random rows."""
    monkeypatch.setattr(gate, "best_of", lambda gains: None)
    asked: list[set[str]] = []

    def first(hedged: Any) -> str | None:
        asked.append(set(hedged))
        return "tov"

    monkeypatch.setattr(gate, "safest_of", first)
    run = select(tmp_path / "half", tiny_folder)
    assert asked == [{"tov"}]
    assert "auto took tov, half of whose rows are random" in run.manifest.gate["verdict"]
    assert run.manifest.gate["candidates"][0]["outcome"] == "taken as the safest: half of its rows are random"
    assert set(run.dataset["tov_reason"]) == {"score", "random"}
    monkeypatch.setattr(gate, "safest_of", lambda hedged: None)
    chance = select(tmp_path / "chance", tiny_folder)
    assert chance.manifest.gate["chosen"] == "random"
    assert chance.manifest.gate["verdict"].startswith("auto took random rows: none of 4 candidates was reliably better")


def test_a_finished_run_is_returned_and_other_candidates_are_another_run(picked: Any, tiny_folder: Path) -> None:
    before = {path: path.read_bytes() for path in picked.folder.rglob("*") if path.is_file()}
    assert select(picked.folder, tiny_folder).manifest.gate == picked.manifest.gate
    assert {path: path.read_bytes() for path in picked.folder.rglob("*") if path.is_file()} == before
    with pytest.raises(RunError, match="candidates"):
        select(picked.folder, tiny_folder, candidates=["dsir", "rds"])


@pytest.mark.slow
def test_killed_in_any_pilot_it_goes_on_and_decides_alike(tmp_path: Path, tiny_folder: Path, picked: Any) -> None:
    out = tmp_path / "killed"
    for call in (3, 4):
        with killed(function="tov.comparison.trainings.trained", call=call):
            select(out, tiny_folder)
    done = select(out, tiny_folder)
    trials = [(one["variant"], one["seed"]) for one in pilots_of(out)]
    assert len(trials) == len(set(trials)), "a finished pilot was run again"
    assert done.dataset["tov_row_id"] == picked.dataset["tov_row_id"]

    def same(record: dict[str, Any]) -> str:
        timeless = {name: value for name, value in record.items() if name != "cost"}
        timeless["candidates"] = [{**one, "seconds": None} for one in record["candidates"]]
        return json.dumps(timeless)

    assert same(done.manifest.gate) == same(picked.manifest.gate)


def test_a_candidate_that_fails_is_dropped_and_told(tmp_path: Path, tiny_folder: Path) -> None:
    done = select(tmp_path / "run", tiny_folder, candidates=["tov/learning_rate=1e30", "dsir", "rds"], base_size=16)
    broken = done.manifest.gate["candidates"][0]
    assert "failed" in broken["outcome"]
    assert "diverged" in broken["outcome"]
    assert done.manifest.gate["chosen"] != "tov/learning_rate=1e30"


def test_what_cannot_be_is_told_before_anything_is_scored(tmp_path: Path, tiny_folder: Path) -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"candidates": ["tov", "zero-shot"]}, ConfigError, "zero-shot"),
        ({"candidates": ["tov", "auto"]}, ConfigError, "auto"),
        ({"candidates": ["random"]}, ConfigError, "random rows alone"),
        ({"candidates": ["tovv"]}, ConfigError, "tov"),
        ({"candidates": ["tov", "tov/positive"]}, ConfigError, "mean the same"),
        ({"rule": "score-only"}, ConfigError, "--rule has no effect with --method auto"),
        ({"method": "auto/abs"}, ConfigError, "no option of auto"),
        ({"answer_pattern": "("}, ConfigError, "not a regular expression"),
        ({"answer_pattern": "[0-9]+"}, ConfigError, "--answer-pattern has no effect where no answer is generated"),
        ({"answer_pattern": "[0-9]+", "metric": "operator:eq"}, ConfigError, "no effect with --metric"),
        ({"metric": "operator:eq", "judge": "loss"}, ConfigError, "--metric has no effect with --judge loss"),
        ({"group_by": "colour"}, ConfigError, "no such column"),
        ({"n": 36}, DataError, "tov/score-only cannot choose"),
        ({"target": make_rows(1, seed=2)}, DataError, "held out"),
        ({"method": "dsir"}, ConfigError, "no effect"),
    ]
    for changed, kind, says in wrong:
        with pytest.raises(kind, match=says):
            select(tmp_path / "wrong", tiny_folder, **changed)
    assert not (tmp_path / "wrong" / "gate").exists()


@pytest.mark.slow
def test_choosing_again_keeps_the_method_and_rule_that_were_taken(
    tmp_path: Path, tiny_folder: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(gate, "best_of", lambda gains: "tov/score-only" if "tov/score-only" in gains else None)
    monkeypatch.setattr(gate, "halved", lambda gains, least=2, stay=(): list(gains))
    first = select(tmp_path / "auto", tiny_folder)
    again = tov.select(from_run=first, pool=make_rows(40, seed=1), n=8, out=tmp_path / "again", quiet=True)
    assert set(again.dataset["tov_reason"]) == {"score"}, "the rule of tov alone is half at random"
    assert list(again.dataset["tov_row_id"]) == list(first.dataset["tov_row_id"])
    assert again.manifest.gate == first.manifest.gate
    assert again.manifest.notes == first.manifest.notes
    said = "that was decided when the scores were made, but this choice from them is by"
    for changed, by in (
        ({"method": "uncertainty"}, "uncertainty"), ({"rule": "sample"}, "tov with rule sample"),
        ({"transform": "abs"}, "tov with transform abs"),
    ):  # fmt: skip
        other = tov.select(from_run=first, pool=make_rows(40, seed=1), n=8, out=tmp_path / by, quiet=True, **changed)
        told = f"{first.manifest.gate['verdict']}; {said} {by}"
        assert other.manifest.gate == {**first.manifest.gate, "here": f"{said} {by}"}
        assert told in other.summary["notes"]
        assert first.manifest.gate["verdict"] not in other.summary["notes"], "by itself it would be of this choice"
        for text in ((other.folder / "summary.md").read_text(), str(other), other._repr_html_()):
            assert f"{said} {by}" in text
    back = tov.select(
        from_run=tmp_path / "uncertainty", pool=make_rows(40, seed=1), n=8, method="tov", rule="score-only",
        out=tmp_path / "back", quiet=True,
    )  # fmt: skip
    assert (back.manifest.gate, back.manifest.notes) == (first.manifest.gate, first.manifest.notes)


@pytest.mark.slow
def test_a_comparison_has_auto_beside_the_others_and_it_trains_on_what_it_took(
    tmp_path: Path, tiny_folder: Path
) -> None:
    done = tov.compare(
        model=str(tiny_folder), pool=make_rows(40, seed=1), target=make_rows(9, seed=2), test=make_rows(5, seed=3),
        methods=["auto", "dsir", "rds", "random"], candidates=["dsir", "rds"], sizes=[8], seeds=1, train_rows=32,
        max_length=64, pilot_folds=2, pilot_rows=16, pilot_train_rows=16, dtype="fp32", quiet=True, out=tmp_path / "run",
    )  # fmt: skip
    by = {one["variant"]: one for one in done.trials if one["n"] == 8}
    took = by["auto"]["gate"]["chosen"]
    assert by["auto"]["status"] == "done", by["auto"]["error"]
    assert by["auto"]["loss"] == by[took]["loss"]
    assert by["auto"]["rows_fingerprint"] == by[took]["rows_fingerprint"]
    assert by["auto"]["scoring"]["seconds"] > ((by[took]["scoring"] or {}).get("seconds") or 0)
    assert by["auto"]["gate"]["verdict"] in by["auto"]["notes"]
    assert "auto" in done.report


@pytest.mark.slow
def test_sizes_and_variants_of_auto_in_one_comparison_have_pilots_of_their_own(
    tmp_path: Path, tiny_folder: Path
) -> None:
    given = {
        "model": str(tiny_folder), "pool": make_rows(60, seed=1), "target": make_rows(9, seed=2), "test": make_rows(5, seed=3),
        "candidates": ["dsir", "bm25"], "sizes": [8, 12], "train_rows": 24, "max_length": 64, "pilot_folds": 2,
        "pilot_rows": 16, "pilot_train_rows": 16, "dtype": "fp32", "quiet": True, "out": tmp_path / "run",
    }  # fmt: skip
    done = tov.compare(**given, methods=["auto", "auto/pilot_rows=17", "dsir"], seeds=1)
    autos = [one for one in done.trials if one["variant"].startswith("auto")]
    assert [one["error"] for one in autos] == [None] * 4
    assert {(one["variant"], one["n"], one["gate"]["rows"]) for one in autos} == {
        ("auto", 8, 8), ("auto", 12, 12), ("auto/pilot_rows=17", 8, 8), ("auto/pilot_rows=17", 12, 12),
    }  # fmt: skip
    with pytest.raises(RunError, match="other rules"):
        tov.compare(**{**given, "candidates": ["dsir", "rds"]}, methods=["auto", "dsir"], seeds=1)
    assert len(tov.compare(**{**given, "candidates": ["dsir", "rds"]}, methods=["dsir"], seeds=1).trials) == len(
        done.trials
    )


def test_no_row_like_the_fold_reaches_a_pilots_pool_or_target(
    tiny_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Equal prompts, equal values of --group-by, and near duplicates."""
    splits: list[Any] = []

    def watch(run: Any, bench: Bench, *_: Any) -> Any:
        splits.append(bench.split)
        raise DataError("seen", fix="none")

    def row(topic: str, text: str, answer: str) -> dict[str, str]:
        return {"topic": topic, "prompt": text, "completion": answer}

    long = "please tell me in a few words what the colour of the old house is when it rains on a monday in {}"
    target = [row(f"t{at}", long.format(month), "red") for at, month in enumerate(("may", "june", "july", "march"))]
    target += [row(f"u{at}", f"{at} and {at * 7} are how many, if none is lost", "many") for at in range(6)]
    pool = [row(f"p{at}", f"a question about number {at * 13} and nothing else at all", "yes") for at in range(40)]
    pool += [row(one["topic"], f"another question of topic {one['topic']} which is no repeat", "no") for one in target]
    pool += [row("near", long.format("april"), "blue")]
    monkeypatch.setattr(gate, "seed_trials", watch)
    with pytest.raises(DataError, match="seen"):
        select(tmp_path / "run", tiny_folder, pool=pool, target=target, group_by="topic", max_length=256)
    [split] = splits
    held, scored = ([target[at] for at in range(10) if hash_of(target[at]) in set(read.index.prompt.tolist())]
                    for read in (split.test, split.target))  # fmt: skip
    topics = {one["topic"] for one in split.rows.pool.originals(range(len(split.rows.pool)))}
    assert any(one["topic"].startswith("t") for one in held), "the seed holds out none of the near ones: choose another"
    assert not {one["topic"] for one in held} & topics, "a row of a group that is held out may be trained on"
    assert {f"p{at}" for at in range(40)} <= topics
    assert "near" not in topics, "a near duplicate of a held-out row may be trained on"
    assert not any(one["topic"].startswith("t") for one in scored), "a score sees near duplicates of a held-out row"


def hash_of(row: dict[str, str]) -> int:
    """The prompt's hash, as the index has it."""
    read = read_target([[row]], build(SelectConfig, {"model": "m", "pool": "p", "target": "t", "n": 1, "out": "o"}))
    return int(read.index.prompt[0])


def test_rows_like_the_fold_are_told_in_whatever_order_they_are_asked_for() -> None:
    """Rows of two sources, by turns: each answer is that of its own row."""
    rows = [{**row, "topic": f"t{at}"} for at, row in enumerate(make_rows(30, seed=1))]
    config = build(CompareConfig, {
        "model": "m", "pool": "p", "target": "t", "sizes": 4, "out": "o", "group_by": "topic", "near_duplicates": "keep",
    })  # fmt: skip
    pool = open_rows([rows[:15], rows[15:]], config)
    read = Indexed(pool, index_rows(pool))
    test = read_target([[{**row, "prompt": f"other {at}"} for at, row in enumerate(rows[3:20:4])]], config)
    asked = np.random.default_rng(0).permutation(30)
    assert np.flatnonzero(like_test(read, test, config)(np.arange(30))).tolist() == list(range(3, 20, 4))
    assert sorted(asked[like_test(read, test, config)(asked)].tolist()) == list(range(3, 20, 4))


@pytest.mark.slow
def test_a_base_set_as_large_as_the_pilots_pool_leaves_rows_to_choose(tmp_path: Path, tiny_folder: Path) -> None:
    rows = make_rows(400, seed=1)
    done = select(tmp_path / "run", tiny_folder, pool=rows, base_size=190, n=16, candidates=["tov", "dsir"])
    mine = [one for one in pilots_of(done.folder) if one["variant"] == "tov"]
    assert done.manifest.gate["pool"] < 190, "else the base set leaves rows anyway"
    assert mine
    assert all(one["by_score"] > 0 for one in mine), [one["by_score"] for one in mine]


@pytest.mark.parametrize("caps", [{"small": 0.5}, {"small": 0.5, "*": 0.9}], ids=["of the small one", "of all"])
def test_caps_that_a_pilots_part_of_the_pool_cannot_keep(
    caps: dict[str, float], tmp_path: Path, tiny_folder: Path
) -> None:
    """A small source may have no row there, and the others then too few within their caps."""
    rows = make_rows(401, seed=1)
    pool = [
        f"small={write_jsonl(tmp_path / 'a.jsonl', rows[:1])}",
        f"large={write_jsonl(tmp_path / 'b.jsonl', rows[1:])}",
    ]
    done = select(tmp_path / "run", tiny_folder, pool=pool, candidates=["dsir"], source_cap=caps)
    assert [one["status"] for one in pilots_of(done.folder)] == ["done"] * 4


def test_where_all_candidates_fail_the_first_fault_is_told(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(DataError, match=r"all candidates failed.*diverged"):
        select(tmp_path / "run", tiny_folder, candidates=["tov/learning_rate=1e30"], base_size=16)
    with pytest.raises(DataError, match=r"all candidates failed.*diverged"):
        select(tmp_path / "run", tiny_folder, candidates=["tov/learning_rate=1e30"], base_size=16)
    tried = [(one["variant"], one["status"]) for one in pilots_of(tmp_path / "run")]
    failed = ("tov/learning_rate=1e30", "failed")
    assert tried == [("random", "done"), failed, failed], "what failed is tried again, and nothing else"
    again = select(tmp_path / "other", tiny_folder, candidates=["tov/learning_rate=1e30", "dsir"], base_size=16)
    assert again.manifest.gate["candidates"][0]["gain"] == {}


def test_a_metric_that_never_differs_from_random_rows_gives_way_to_log_loss() -> None:
    def record(variant: str, seed: int, loss: float, metric: float) -> dict[str, Any]:
        return {"variant": variant, "seed": seed, "loss": loss, "metric": metric, "status": "done", "by_score": 4}

    def config(judge: str | None) -> Any:
        return build(SelectConfig, {
            "model": "m", "pool": "p", "target": "t", "n": 1, "out": "o", "task": "ner", "judge": judge,
        })  # fmt: skip

    still = [record(name, seed, 1.0, 0.1 * seed) for seed in (1, 2) for name in ("random", "rds")]
    assert gate._judged_by(still, config(None)) == "loss", "equal within each pilot, although pilots differ"
    later = [*still[:-1], record("rds", 2, 1.0, 0.3)]
    assert gate._judged_by(later, config(None)) == "loss", (
        "candidates were dropped by log-loss then, after the first pilot"
    )
    moved = [still[0], record("rds", 1, 1.0, 0.3), *still[2:]]
    assert gate._judged_by(moved, config(None)) == "metric"
    assert gate._judged_by(moved, config("loss")) == "loss"


def test_a_pilots_candidate_has_a_base_set_of_the_parts_size_and_no_store() -> None:
    given = {"model": "m", "pool": ["p"], "target": ["t"], "task": "instruction", "sizes": [8], "out": "o"}
    config, sizes = build(CompareConfig, given).for_task("instruction"), PilotSizes(n=16, pool=128, passes=16)
    for text, size in {"tov/base_size=280": 32, "tov/base_size=20": 20, "tov": None}.items():
        held = in_pilot(parse_variant(text), config, sizes)
        assert (held.name, settings_for(config, held).base_size) == (text, size)
    kept = in_pilot(parse_variant("less/store=place"), config, sizes)
    assert kept.options.store is None
    assert kept.name == "less/store=place"


def test_rows_without_a_scored_token_take_no_place_in_a_pilot(tmp_path: Path, tiny_folder: Path) -> None:
    """Of 220 pool rows 20 can be learnt from, and 8 of 9 target rows can be judged by."""
    long = [{"prompt": f"{number} " + "word " * 80, "completion": "cut off"} for number in range(200)]
    pool, target = [*make_rows(20, seed=1), *long], [*make_rows(8, seed=2), {**long[0], "prompt": "other " * 80}]
    done = select(tmp_path / "run", tiny_folder, pool=pool, target=target, candidates=["dsir"], n=16)
    records = pilots_of(done.folder)
    assert [one["status"] for one in records] == ["done"] * 4
    judged = sum(one["test_rows"] for one in records if one["variant"] == "random")
    assert done.manifest.gate["judged"] == judged == 8
    assert " on 8 held-out target rows" in done.manifest.gate["verdict"]
    assert 16 <= done.manifest.gate["pool"] <= 20


def test_the_decision_can_be_computed_again_from_the_pilots(picked: Any) -> None:
    """By hand: % of the random rows' loss in the same pilot, the mean, and who is left."""
    records = pilots_of(picked.folder)
    random = {one["seed"]: one["loss"] for one in records if one["variant"] == "random"}
    for told in picked.manifest.gate["candidates"]:
        gains = [
            100 * (random[one["seed"]] - one["loss"]) / random[one["seed"]]
            for one in records
            if one["variant"] == told["variant"]
        ]
        assert told["gain"]["mean"] == pytest.approx(np.mean(gains))
        assert told["gain"]["pilots"] == len(gains)


@pytest.mark.slow
def test_a_choice_from_a_choice_of_auto_keeps_its_own_rule(tmp_path: Path, tiny_folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(gate, "best_of", lambda gains: "tov/score-only" if "tov/score-only" in gains else None)
    monkeypatch.setattr(gate, "halved", lambda gains, least=2, stay=(): list(gains))
    first = select(tmp_path / "a", tiny_folder)
    pool = make_rows(40, seed=1)
    second = tov.select(from_run=first, pool=pool, n=8, rule="score+random", out=tmp_path / "b", quiet=True)
    third = tov.select(from_run=second, pool=pool, n=8, out=tmp_path / "c", quiet=True)
    assert set(second.dataset["tov_reason"]) == set(third.dataset["tov_reason"]) == {"score", "random"}


def test_a_run_that_failed_before_its_first_pilot_gives_way(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="nope"):
        select(tmp_path / "run", tiny_folder, lora_target_modules=["nope"])
    assert select(tmp_path / "run", tiny_folder, candidates=["dsir"]).manifest.gate["chosen"] in ("dsir", "random")


@pytest.mark.slow
def test_classifiers_are_judged_by_their_metric(tmp_path: Path) -> None:
    rows = make("ner", 60, 3)
    done = tov.select(
        model=str(tiny_encoder_folder(tmp_path)), pool=rows[:40], target=rows[40:], method="auto", out=tmp_path / "run",
        **{**QUICK, "candidates": ["dsir", "uncertainty"], "lora_r": 2, "pilot_train_rows": 1024},
    )  # fmt: skip
    found = [one["metric"] for one in pilots_of(done.folder) if one["seed"] == 1_000_000]
    assert len({*found}) > 1, "with so many steps tags are learnt, better by some rows than by others"
    assert done.manifest.gate["judge"] == "metric"
    assert done.manifest.gate["unit"] == "points"


def test_sizes_of_pilots() -> None:
    settings = build(SelectConfig, {"model": "m", "pool": "p", "target": "t", "n": 8192, "out": "o"})
    large = pilot_sizes(settings, 100_000, 8192)
    assert (large.n, large.pool, large.passes) == (512, 4166, 1024)
    assert pilot_sizes(settings.for_task("ner"), 100_000, 8192).passes == 2048, "a new head needs steps, not epochs"
    assert pilot_sizes(settings, 1000, 200).pool == 1000, "never more than there are"
    assert pilot_sizes(settings, 1000, 100).n == 100
    assert alive_in(8, 3) == [8, 4, 2]
    assert alive_in(5, 4) == [5, 3, 2, 2]
    assert alive_in(1, 3) == [1, 1, 1]
    assert alive_in(8, 3, staying=1) == [8, 5, 3], "one that stays, and half of the others"


@pytest.mark.parametrize(
    ("task", "usable", "least", "most"),
    [
        ("instruction", 20_000, 1, 2), ("instruction", 120_000, 0, 1 / 3), ("instruction", 1_000_000, 0, 1 / 4),
        ("ner", 20_000, 1, 2), ("ner", 100_000, 1 / 3, 1 / 2), ("ner", 250_000, 0, 1 / 3), ("ner", 1_000_000, 0, 1 / 4),
    ],
)  # fmt: skip
def test_what_pilots_cost_beside_scoring_the_whole_pool(task: str, usable: int, least: float, most: float) -> None:
    """Figures of docs/auto.md: tokens, a backward pass counted as two, for rows of equal length."""
    settings = build(SelectConfig, {"model": "m", "pool": "p", "target": "t", "n": 8192, "out": "o", "method": "auto"})
    stats = PoolStats(
        settings=settings.for_task(task), options=None, rows=usable, usable=usable, scored=usable, tokens=150.0 * usable,
        target_rows=256, target_tokens=256 * 150, width=576, trained=lambda _: 5_000_000,
    )  # fmt: skip
    pilots, *scoring = built_in()["auto"].cost(stats) or []
    whole = sum(stage.forward + 2 * stage.backward for stage in scoring)
    assert least < (pilots.forward + 2 * pilots.backward) / whole < most


@pytest.mark.slow
def test_the_plan_foretells_the_pilots(tmp_path: Path, tiny_folder: Path) -> None:
    given = {
        "model": str(tiny_folder), "pool": make_rows(40, seed=1), "target": make_rows(9, seed=2), "methods": ["auto"],
        **{name: value for name, value in QUICK.items() if name != "quiet"},
    }  # fmt: skip
    planned = tov.plan(**given, probe=False).facts["methods"][0]
    done = select(tmp_path / "run", tiny_folder)
    stage, spent = planned["stages"]["pilots"], done.manifest.spent["pilots"]
    assert spent[0] <= 1.3 * stage["forward"]
    assert stage["forward"] <= 2 * spent[0]


def test_the_plan_counts_as_many_pilots_as_the_target_has_rows_to_part(tiny_folder: Path) -> None:
    """Two rows are two folds, whatever was asked for; and so are two groups."""

    def pilots(**given: Any) -> dict[str, int]:
        planned = tov.plan(
            model=str(tiny_folder), pool=make_rows(40, seed=1), methods=["auto"], n=8, base_size=8, dtype="fp32",
            candidates=["tov", "dsir"], pilot_rows=16, probe=False, **given,
        )  # fmt: skip
        return planned.facts["methods"][0]["stages"]["pilots"]

    two, grouped = make_rows(2, seed=2), [{**row, "topic": f"t{at % 2}"} for at, row in enumerate(make_rows(6, seed=2))]
    assert pilots(target=two, pilot_folds=5) == pilots(target=two, pilot_folds=2)
    assert pilots(target=grouped, group_by="topic") == pilots(target=grouped, group_by="topic", pilot_folds=2)
    assert pilots(target=grouped) != pilots(target=grouped, pilot_folds=2), "rows that may be parted are three folds"


def test_one_row_is_no_rows(tmp_path: Path, tiny_folder: Path) -> None:
    """In the plan of auto, in why a candidate cannot choose, and in what a choice of one row prints."""
    given = {"pool": make_rows(3, seed=1), "base_size": 3, "candidates": ["tov/score-only", "dsir"]}
    with pytest.raises(DataError, match=r"tov/score-only cannot choose: --n asks for 1 row by score"):
        select(tmp_path / "run", tiny_folder, **{**given, "n": 1})
    with pytest.raises(DataError, match="The pool has 1 usable row of 1, but --n asks for 8"):
        select(tmp_path / "run", tiny_folder, **{**given, "pool": make_rows(1, seed=1)})
    plan = tov.plan(
        model=str(tiny_folder), pool=make_rows(3, seed=1), target=make_rows(2, seed=2), methods=["auto"], n=1, base_size=1,
        candidates=["dsir"], probe=False,
    )  # fmt: skip
    assert "choice  1 row of about" in str(plan)
    one = tov.select(
        model=str(tiny_folder), pool=make_rows(3, seed=1), target=make_rows(1, seed=2), n=1, method="bm25", quiet=True,
        out=tmp_path / "one",
    )  # fmt: skip
    assert "\n1 row in " in str(one)
    assert one.manifest.scoring.about.startswith("M = 1 target row")
    assert "M = 1 target rows" not in str(one.manifest)


# A metric of the user's own

METRICS = '''
def shortest(references, predictions):
    """Larger is better: minus the mean number of words of what was predicted."""
    assert len(references) == len(predictions)
    return -sum(len(str(one).split()) for one in predictions) / len(predictions)

def broken(references, predictions):
    raise KeyError("no such thing")

def nothing(references, predictions):
    return float("nan")

number = 3
'''


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module's name; it lies in the working directory."""
    name = f"metrics_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(METRICS)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.slow
def test_pilots_are_judged_by_the_users_own_metric_of_generated_answers(
    tmp_path: Path, tiny_folder: Path, metrics: str
) -> None:
    done = select(tmp_path / "run", tiny_folder, candidates=["dsir"], metric=f"{metrics}:shortest", max_length=48)
    assert all(one["metric"] is not None and one["metric"] <= 0 for one in pilots_of(done.folder))
    moved = len({one["metric"] for one in pilots_of(done.folder) if one["seed"] == 1_000_000}) > 1
    assert done.manifest.gate["judge"] == ("metric" if moved else "loss")
    kept = (done.folder / "config.yaml").read_text()
    assert metrics not in kept, "no file may name code that is run"


def test_a_comparison_reports_the_users_own_metric(tmp_path: Path, metrics: str) -> None:
    rows = make("ner", 60, 3)
    done = tov.compare(
        model=str(tiny_encoder_folder(tmp_path)), pool=rows[:40], target=rows[40:50], test=rows[50:], methods=["random"],
        sizes=[8], seeds=1, train_rows=16, metric=f"{metrics}:shortest", quiet=True, out=tmp_path / "run",
    )  # fmt: skip
    assert all(one["metric"] < 0 for one in done.trials)
    assert f"{metrics}:shortest" in done.report.replace("\\", "")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("broken", "KeyError"), ("nothing", "gave nan"), ("number", "is no function"), ("missing", "cannot be had"),
        ("", "got"),
    ],
)  # fmt: skip
def test_a_metric_that_cannot_be_used_is_told_with_what_to_do(function: str, says: str, metrics: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        own_metric(f"{metrics}:{function}")(["a"], ["b"])
    assert "--metric" in str(caught.value)


def test_a_settings_file_cannot_name_a_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "select.yaml").write_text("metric: os:system\nn: 8\n")
    with pytest.raises(SystemExit):
        main(["select", str(tmp_path / "select.yaml"), "--out", str(tmp_path / "run")])
    assert "no file can allow a metric's code" in capsys.readouterr().err


def test_clusters_that_no_candidate_can_have_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="--target-clusters 2 has no effect with --candidates dsir,bm25"):
        select(
            tmp_path / "run", tiny_folder, candidates=["dsir", "bm25"], target=make_rows(16, seed=2), target_clusters=2
        )
