"""`tov compare`: shared seeds, splits that part nothing, trials that survive kills, and a case whose answer is known."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import tov
from chaos import kill_for_real
from faults import killed
from test_classifiers import sentence
from tiny import make_rows, tiny_encoder_folder, tiny_model_folder, write_jsonl
from tov.cli.main import main
from tov.comparison.grid import read_grid
from tov.comparison.split import make_split, read_data
from tov.comparison.variants import plan_trials
from tov.config.records import CompareConfig
from tov.config.settings import build
from tov.errors import ConfigError, DataError, RunError, explain, note_interrupts
from tov.methods.registry import built_in
from tov.methods.spec import parse_variant
from tov.runs.made import alone_in
from tov.scores.store import read_table
from tov.verbs.compare import run_grid

QUICK = {"base_size": 8, "epochs": 1, "max_length": 64, "train_rows": 32, "quiet": True}


def compare(folder: Path, model: Path, **changed: Any) -> Any:
    """A comparison on a tiny pool: 40 rows, target 6, test 5."""
    given = {
        "model": str(model), "pool": make_rows(40, seed=1), "target": make_rows(6, seed=2), "test": make_rows(5, seed=3),
        "methods": ["tov", "random", "zero-shot"], "sizes": [8], "seeds": 2, "out": folder, **QUICK, **changed,
    }  # fmt: skip
    return tov.compare(**given)


def table_of(report: str) -> str:
    """The report without what it cost, which no two runs share, and without its head, which names versions."""
    return re.sub(r"## Cost.*?(?=\n## )", "", report[report.index("\n## ") :], flags=re.DOTALL)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Any:
    methods = ["tov", "tov/abs/score-only", "uncertainty", "highest-loss", "lowest-loss", "full", "zero-shot"]
    return compare(tmp_path_factory.mktemp("compared") / "run", tiny_folder, methods=methods)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The folder of a finished comparison of one seed; tests take a copy."""
    return compare(tmp_path_factory.mktemp("small") / "run", tiny_folder, seeds=1).folder


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "run"))


def trial(compared: Any, variant: str, n: int, seed: int = 0) -> dict[str, Any]:
    found = [one for one in compared.trials if (one["variant"], one["n"], one["seed"]) == (variant, n, seed)]
    assert len(found) == 1, f"{len(found)} trials {variant}, n = {n}, seed {seed}"
    return found[0]


@pytest.mark.slow
def test_every_variant_has_one_trial_a_size_and_seed_and_random_its_curve(compared: Any) -> None:
    keys = {(one["variant"], one["n"], one["seed"]) for one in compared.trials}
    assert len(keys) == len(compared.trials)
    for seed in (0, 1):
        assert {n for variant, n, at in keys if variant == "random" and at == seed} == {4, 8, 16, 32}
        assert {n for variant, n, at in keys if variant == "zero-shot" and at == seed} == {0}
        assert {n for variant, n, at in keys if variant == "full" and at == seed} == {40}
        for variant in ("tov", "tov/abs/score-only", "uncertainty", "highest-loss", "lowest-loss"):
            assert {n for name, n, at in keys if name == variant and at == seed} == {8}
    assert all(one["status"] == "done" for one in compared.trials), [one["error"] for one in compared.trials]


@pytest.mark.slow
def test_equal_sizes_have_equal_steps_and_a_seed_its_own_rows(compared: Any) -> None:
    steps = {one["train"]["steps"] for one in compared.trials if one["n"] == 8}
    assert steps == {4}, "32 rows in batches of at most 16 of 8 rows are 4 steps, for every variant"
    assert trial(compared, "random", 8, 0)["rows_fingerprint"] != trial(compared, "random", 8, 1)["rows_fingerprint"]
    assert trial(compared, "zero-shot", 0, 0)["train"] is None
    assert trial(compared, "random", 8)["loss"] != trial(compared, "zero-shot", 0)["loss"], "training changed nothing"


def test_scores_are_made_once_a_seed_for_all_arms_of_one_path(compared: Any) -> None:
    tables = [path.parent for path in compared.folder.glob("scores/*/*/manifest.json")]
    assert len(tables) == 2, "four variants rank by one table, once a seed"
    cost = {json.dumps(trial(compared, variant, 8)["scoring"]) for variant in ("tov", "uncertainty", "highest-loss")}
    assert len(cost) == 1
    assert trial(compared, "random", 8)["scoring"] is None


def test_highest_and_lowest_loss_choose_the_ends(compared: Any) -> None:
    """By the score table of the same seed: an oracle that sorts."""
    [folder] = compared.folder.glob("scores/seed-0/*/scores")
    scores = read_table(folder)
    table = {name: scores[name].to_numpy() for name in ("loss_base_1", "in_base")}
    highest, lowest = (built_in()[name].rank for name in ("highest-loss", "lowest-loss"))
    config = build(CompareConfig, {"model": "m", "pool": "p", "target": "t", "sizes": 8, "out": "o"})
    np.testing.assert_array_equal(highest(scores, config), table["loss_base_1"].astype(np.float64))
    np.testing.assert_array_equal(lowest(scores, config), -table["loss_base_1"].astype(np.float64))


@pytest.mark.slow
def test_a_finished_comparison_runs_nothing_again_and_more_is_added(
    tmp_path: Path, tiny_folder: Path, small: Path
) -> None:
    run = copy_of(small, tmp_path)
    before = (run / "trials.jsonl").read_bytes()
    compare(run, tiny_folder, seeds=1)
    assert (run / "trials.jsonl").read_bytes() == before, "a finished trial was run again"
    more = compare(run, tiny_folder, methods=["tov", "lowest-loss", "zero-shot"], seeds=2)
    after = (run / "trials.jsonl").read_bytes()
    assert after.startswith(before), "the file is append-only"
    added = [json.loads(line) for line in after[len(before) :].splitlines()]
    assert {one["variant"] for one in added if one["seed"] == 0} == {"lowest-loss"}
    assert {one["variant"] for one in added if one["seed"] == 1} == {"random", "tov", "lowest-loss", "zero-shot"}
    fresh = compare(tmp_path / "fresh", tiny_folder, methods=["tov", "lowest-loss", "zero-shot"], seeds=2)
    assert table_of(more.report) == table_of(fresh.report)


def test_no_two_processes_add_to_a_finished_comparison(tmp_path: Path, tiny_folder: Path, small: Path) -> None:
    run = copy_of(small, tmp_path)
    before = (run / "trials.jsonl").read_bytes()
    with alone_in(run), pytest.raises(RunError, match="Another process is at work"):
        compare(run, tiny_folder, seeds=2)
    assert (run / "trials.jsonl").read_bytes() == before
    with alone_in(run):
        assert compare(run, tiny_folder, seeds=1, report_only=True).results["sizes"]


def test_another_pool_or_rate_is_refused_with_the_difference(tmp_path: Path, tiny_folder: Path, small: Path) -> None:
    run = copy_of(small, tmp_path)
    with pytest.raises(RunError, match=r"train_learning_rate: 0\.0005 -> 0\.01"):
        compare(run, tiny_folder, seeds=1, train_learning_rate=0.01)
    with pytest.raises(RunError, match=r"pool\.fingerprint"):
        compare(run, tiny_folder, seeds=1, pool=make_rows(41, seed=9))


@pytest.mark.slow
def test_a_failed_trial_is_a_line_of_the_table_and_is_tried_again(tmp_path: Path, tiny_folder: Path) -> None:
    methods = ["tov", "tov/learning_rate=1e30", "random"]
    compared = compare(tmp_path / "run", tiny_folder, methods=methods, seeds=1, base_size=32)
    failed = trial(compared, "tov/learning_rate=1e30", 8)
    assert "diverged" in failed["error"], failed
    assert trial(compared, "tov", 8)["status"] == "done", trial(compared, "tov", 8)
    assert any(
        "tov/learning_rate=1e30" in note and "1 of 1 trials failed" in note for note in compared.results["notes"]
    )
    lines = len(compared.trials)
    again = compare(tmp_path / "run", tiny_folder, methods=methods, seeds=1, base_size=32)
    assert len(again.trials) == lines + 1, "the failed trial, and no other, is tried again"


@pytest.mark.slow
def test_report_only_shows_what_is_finished_and_touches_nothing_else(
    tmp_path: Path, tiny_folder: Path, small: Path
) -> None:
    methods = ["tov", "uncertainty", "random", "zero-shot"]
    compare(copy_of(small, tmp_path), tiny_folder, seeds=2, methods=["random", "zero-shot"])
    made = ("report.md", "report.html", "results.json", "gain.svg", "loss.svg")
    with open(tmp_path / "run" / "trials.jsonl", "a") as beside:
        beside.write('{"variant": "tov", "n": 8')  # another process is in the middle of a line
    (tmp_path / "run" / ".report.md.1.tmp").write_text("of another process")

    def state() -> dict[str, bytes]:
        files = (path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name not in made)
        return {str(path): path.read_bytes() for path in files}

    before = state()
    shown = compare(tmp_path / "run", tiny_folder, seeds=2, methods=methods, report_only=True)
    assert state() == before, "a report wrote to the run"
    variants = {one["variant"]: one for one in shown.results["sizes"][0]["variants"]}
    assert set(variants) == {"tov", "random", "zero-shot"}
    assert (variants["tov"]["paired"], variants["random"]["seeds"]) == ([0], [0, 1])
    assert any("3 of 14 trials have not been run: 2 of uncertainty, 1 of tov" in one for one in shown.results["notes"])
    assert "3 of 14 trials" in shown.report
    with pytest.raises(ConfigError, match="--force"):
        compare(tmp_path / "run", tiny_folder, report_only=True, force=True)
    with pytest.raises(RunError, match="holds no run"):
        compare(tmp_path / "none", tiny_folder, report_only=True)
    with pytest.raises(RunError, match="another run"):
        compare(tmp_path / "run", tiny_folder, report_only=True, train_learning_rate=0.01)
    assert not (tmp_path / "none").exists()


def test_what_a_library_makes_of_an_interrupt_is_no_failed_trial(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallows(*_: Any) -> dict[str, Any]:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("could not determine the shape") from None
        raise AssertionError("the signal raised nothing")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    note_interrupts()
    try:
        with monkeypatch.context() as patch:
            patch.setattr("tov.comparison.trainings.trained", swallows)
            with pytest.raises(KeyboardInterrupt) as raised:
                compare(tmp_path / "run", tiny_folder, methods=["random"], seeds=1)
        said, code = explain(ValueError("raised while the interrupt was on its way")) or ("", 0)
    finally:
        note_interrupts()
        signal.signal(signal.SIGINT, before)
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert (code, said.partition(":")[0]) == (130, "interrupted")
    assert explain(ValueError("of our own")) is None, "the interrupt is forgotten when the next command starts"
    assert not (tmp_path / "run" / "trials.jsonl").exists() or not (tmp_path / "run" / "trials.jsonl").read_text()
    done = compare(tmp_path / "run", tiny_folder, methods=["random"], seeds=1)
    assert {one["status"] for one in done.trials} == {"done"}


@pytest.mark.slow
def test_a_point_of_the_curve_beyond_the_pool_is_left_out_and_not_tried_again(
    tmp_path: Path, tiny_folder: Path
) -> None:
    """30 of 40 rows have an answer: a curve to 32 cannot be drawn, sizes that were asked for can, and 32 asked for fails."""
    rows = make_rows(40, seed=1)
    given: dict[str, Any] = {"pool": [*rows[:30], *({**row, "completion": ""} for row in rows[30:])], "seeds": 1,
                             "methods": ["random"]}  # fmt: skip
    compared = compare(tmp_path / "run", tiny_folder, **given)
    assert trial(compared, "random", 32)["status"] == "left out"
    assert any("without its point at n = 32" in note and "30 have" in note for note in compared.results["notes"])
    assert not any("failed" in note for note in compared.results["notes"])
    lines = len(compared.trials)
    again = compare(tmp_path / "run", tiny_folder, **given)
    assert len(again.trials) == lines, "what cannot be is not tried again"
    asked = compare(tmp_path / "run", tiny_folder, **given, sizes=[8, 32])
    assert asked.trials[-1]["status"] == "failed", "a size that was asked for is not passed over in silence"
    assert any("32 rows: 1 of 1 trials failed" in note for note in asked.results["notes"])


def test_seeds_and_arms_that_were_not_asked_for_are_not_summed_up_but_told(
    tmp_path: Path, tiny_folder: Path, compared: Any
) -> None:
    fewer = compare(copy_of(compared.folder, tmp_path), tiny_folder, methods=["uncertainty", "full"], seeds=1)
    assert all(one["seeds"] == [0] for one in fewer.results["sizes"][0]["variants"])
    told = "5 more variants were trained here and are not shown: highest-loss, lowest-loss, tov, tov/abs/score-only, zero-shot"
    assert told in fewer.results["notes"]


def test_another_model_under_the_same_name_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    compare(tmp_path / "run", model, methods=["random"], seeds=1)
    shutil.rmtree(model)
    tiny_model_folder(tmp_path, seed=9, name="model")
    with pytest.raises(RunError, match=r"holds another run(.|\n)*model: .*content of its files"):
        compare(tmp_path / "run", model, methods=["random"], seeds=2)


def test_a_part_of_a_comparison_is_no_run_to_go_out_from(compared: Any) -> None:
    [folder] = compared.folder.glob("scores/seed-0/*")
    for place in (folder, compared.folder):
        with pytest.raises(RunError, match="comparison"):
            tov.reselect(place, n=4, out=compared.folder.parent / "again")


@pytest.mark.slow
def test_a_run_can_be_compared_without_naming_anything_again(tmp_path: Path, tiny_folder: Path) -> None:
    """In bf16 throughout, which no other comparison here is."""
    files = {name: write_jsonl(tmp_path / f"{name}.jsonl", make_rows(rows, seed=seed))
             for name, rows, seed in (("pool", 40, 1), ("target", 6, 2), ("test", 5, 3))}  # fmt: skip
    picked = tov.select(
        model=str(tiny_folder), pool=str(files["pool"]), target=str(files["target"]), n=8, transform="abs", seed=3,
        out=tmp_path / "picked", base_size=8, epochs=1, max_length=64, dtype="bf16", quiet=True,
    )  # fmt: skip
    compared = tov.compare(
        from_run=picked.folder, test=str(files["test"]), sizes=8, seeds=1, methods="tov", train_rows=32, quiet=True,
        out=tmp_path / "compared",
    )  # fmt: skip
    chosen = trial(compared, "tov", 8, seed=3)
    from tov.files import digest

    assert chosen["rows_fingerprint"] == digest(list(picked.dataset["tov_row_id"])), (
        "the run's own choice, by its own settings"
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_killed_three_times_it_ends_with_the_table_of_an_undisturbed_one(tmp_path: Path, tiny_folder: Path) -> None:
    """Killed while the first scores are written, in the first seed's trials (really), and in the second's."""
    given: dict[str, Any] = {
        name: str(write_jsonl(tmp_path / f"{name}.jsonl", make_rows(rows, seed=seed)))
        for name, rows, seed in (("pool", 40, 1), ("target", 6, 2), ("test", 5, 3))
    }
    given |= {
        "model": str(tiny_folder), "methods": "tov,tov/paired,uncertainty", "sizes": "8", "seeds": 2, "base_size": 8,
        "epochs": 1, "max_length": 64, "train_rows": 32, "dtype": "fp32", "device": "cpu",
    }  # fmt: skip
    tov.compare(**given, quiet=True, out=tmp_path / "whole")
    out, counts, trials = tmp_path / "killed", [], "tov.comparison.trainings.trained"
    file = out / "trials.jsonl"
    for moment in ({"naming": "rows-000000000000"}, {"function": trials, "call": 4}, {"function": trials, "call": 7}):
        if len(counts) == 1:
            flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
            kill_for_real(["compare", *flags, "--quiet", "--out", str(out)], **moment)
        else:
            with killed(**moment):
                tov.compare(**given, quiet=True, out=out)
        counts.append(file.read_bytes().count(b"\n") if file.exists() else 0)
        with open(file, "a") as torn:
            torn.write('{"variant": "tov", "n"')  # what a kill in the middle of a write leaves
    assert counts == [0, 3, 9], f"finished trials were lost, or run again: {counts}"
    tov.compare(**given, quiet=True, out=out)
    reports = [(folder / "report.md").read_text() for folder in (tmp_path / "whole", out)]
    assert table_of(reports[0]) == table_of(reports[1])
    keys = [(one["variant"], one["n"], one["seed"]) for one in map(json.loads, file.read_text().splitlines())]
    assert len(keys) == len(set(keys)), "a finished trial was run again"
    for picture in ("gain.svg", "loss.svg"):
        assert (out / picture).read_bytes() == (tmp_path / "whole" / picture).read_bytes()


# Which rows are whose


def rows_with_groups(count: int, groups: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [{**row, "template": f"t{draw.randrange(groups)}"} for row in make_rows(count, seed=seed)]


def test_a_test_file_keeps_its_groups_and_prompts_from_target_and_pool_whatever_the_guard() -> None:
    rows = rows_with_groups(60, 20, seed=5)
    test, rest = rows[:6], rows[6:]
    held = {row["template"] for row in test}
    pool = [{"prompt": test[0]["prompt"].upper(), "completion": "another answer"}, *make_rows(30, seed=6)]
    for guard in (True, False):
        config = config_of(test="x", group_by="template", decontaminate=guard)
        split = make_split(read_data(config, [rest, pool], [rest], [test]), config, 0)
        target = {
            row["template"]
            for source in split.target.pool.sources
            for row in source.table.rows(range(len(source.table)))
        }
        assert not target & held, "the target shares a template with the test"
        places = np.flatnonzero(split.rows.usable)
        chosen = [split.rows.pool.original(int(place)) for place in places]
        assert not {row.get("template") for row in chosen} & held, "the pool shares a template with the test"
        assert all(row["prompt"] != pool[0]["prompt"] for row in chosen), "the pool has a prompt of the test"
        assert any("group" in note for note in split.notes)


def test_rows_without_a_group_are_not_one_group_and_a_prompt_joins_groups() -> None:
    rows = [{**row, "template": None} for row in make_rows(20, seed=5)]
    pair = [{"prompt": "the same", "completion": answer, "template": answer} for answer in ("a", "b")]
    config = config_of(test_rows=4, target_rows=4, group_by="template")
    data = read_data(config, [make_rows(30, seed=6)], [rows + pair], [])
    for seed in range(20):
        split = make_split(data, config, seed)
        prompts = [
            {row["prompt"] for row in read.pool.originals(range(len(read)))} for read in (split.target, split.test)
        ]
        assert not prompts[0] & prompts[1], "one prompt, two groups: still one unit"


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), groups=st.integers(20, 30), test_rows=st.integers(1, 8), target_rows=st.integers(1, 8)
)
def test_a_split_parts_no_group_and_no_prompt(seed: int, groups: int, test_rows: int, target_rows: int) -> None:
    rows = rows_with_groups(60, groups, seed=5)
    config = build(CompareConfig, {
        "model": "m", "pool": "p", "target": "t", "sizes": 8, "out": "o", "test_rows": test_rows, "target_rows": target_rows,
        "group_by": "template", "pool_rows": 20,
    })  # fmt: skip
    data = read_data(config, [rows, make_rows(30, seed=6)], [rows], [])
    split = make_split(data, config, seed)
    held = {name: list(read.pool.originals(range(len(read)))) for name, read in
            (("target", split.target), ("test", split.test), ("pool", split.rows))}  # fmt: skip
    assert (len(held["target"]), len(held["test"])) == (target_rows, test_rows)
    templates = {name: {row["template"] for row in found if row.get("template")} for name, found in held.items()}
    for one, other in (("target", "test"), ("target", "pool"), ("test", "pool")):
        assert not templates[one] & templates[other], f"{one} and {other} share a template"
        prompts = [{row["prompt"] for row in held[name]} for name in (one, other)]
        assert not prompts[0] & prompts[1], f"{one} and {other} share a prompt"
    assert all(len(source.table) <= 20 for source in split.rows.pool.sources)
    assert split.rows.usable.all(), "rows were drawn from those that may be chosen"
    same = make_split(data, config, seed)
    assert same.target.index.fingerprint == split.target.index.fingerprint
    assert same.rows.index.fingerprint == split.rows.index.fingerprint


def test_pool_rows_of_the_test_cannot_be_chosen(tmp_path: Path, tiny_folder: Path) -> None:
    test = make_rows(5, seed=3)
    compared = compare(tmp_path / "run", tiny_folder, pool=make_rows(40, seed=1) + test, methods=["full"], seeds=1)
    assert trial(compared, "full", 40)["train"]["steps"] == 3, "the five rows of the test are not among the usable"


def config_of(**given: Any) -> CompareConfig:
    return build(CompareConfig, {"model": "m", "pool": "p", "target": "t", "sizes": 8, "out": "o", **given})


def test_the_trials_of_a_seed() -> None:
    variants = [parse_variant(name) for name in ("tov", "zero-shot", "random", "full")]

    def planned(**given: Any) -> list[tuple[str, int]]:
        return [(one.variant.name, one.n) for one in plan_trials(variants, config_of(sizes=[10, 20], **given), 0, 50)]

    rest = [("tov", 10), ("tov", 20), ("zero-shot", 0), ("full", 50)]
    assert planned() == [("random", 5), ("random", 10), ("random", 20), ("random", 40), *rest]
    assert planned(train_rows=24) == [("random", 5), ("random", 10), ("random", 20), *rest], (
        "40 rows would be more steps"
    )
    long = config_of(sizes=[10_000], num_train_epochs=1)
    curve = [one.n for one in plan_trials([parse_variant("random")], long, 0, 50_000)]
    assert curve == [5_000, 10_000, 20_000, 40_000], "whole epochs are not cut at --train-rows"


# Bad input


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ("tof", r"no method 'tof' \(did you mean 'tov'\?\)"),
        ("tov/abz", r"'abz' is no option of tov"),
        ("random/abs", r"'abs' is no option of random"),
        ("uncertainty/abs", r"'abs' is no option of uncertainty"),
        ("tov/abs/identity", r"transform is given twice"),
        ("tov/n=4", r"'n=4' is no option of tov"),
        ("tov/target_learning_rate_ratio={", r"'target_learning_rate_ratio=\{' has no usable value"),
        ("tov/target_learning_rate_ratio=", r"'target_learning_rate_ratio=' has no usable value"),
        ("uncertainty/amplify=8", r"'amplify=8' is no option of uncertainty"),
    ],
)
def test_a_variant_that_cannot_be_is_refused_with_what_can(variant: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_variant(variant)


def test_bad_values_and_missing_tests_are_said_before_anything_runs(tmp_path: Path, tiny_folder: Path) -> None:
    for changed, says in (
        ({"methods": ["tov/amplify=-1"]}, r"^--methods got 'tov/amplify=-1': amplify got -1"),
        ({"test": None}, "No test was named"),
        ({"test_rows": 2}, "Two tests"),
        ({"sizes": [1]}, "at least 2"),
        ({"answer_pattern": "("}, "--answer-pattern"),
        ({"group_by": "tempalte"}, "no such column"),
        ({"methods": ["tov", "tov/positive"]}, "'tov/positive' and 'tov' mean the same"),
        ({"methods": ["tov/sgd/target_learning_rate_ratio=1"]}, "target_learning_rate_ratio has no effect"),
        ({"methods": ["tov/target_sgd_learning_rate=1"]}, "target_sgd_learning_rate has no effect"),
    ):
        with pytest.raises(ConfigError, match=says):
            compare(tmp_path / "run", tiny_folder, **changed)
    with pytest.raises(DataError, match=r"The pool has 40 usable rows of 40, but --sizes asks for 400"):
        compare(tmp_path / "other", tiny_folder, sizes=[400])
    assert not (tmp_path / "run").exists()


def test_a_grid_extends_another_and_names_its_unset_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full.yaml").write_text(yaml.safe_dump({
        "model": "m", "sizes": [64], "experiments": {"A": {"target": "${PLACE}/a.jsonl"}, "B": {"target": "b", "seed": 1}},
    }))  # fmt: skip
    (tmp_path / "quick.yaml").write_text("extends: full.yaml\nsizes: [8]\nexperiments: {B: {seed: 2}}\n")
    with pytest.raises(ConfigError, match=r"uses \$\{PLACE\}, but the environment variable PLACE is not set"):
        read_grid(tmp_path / "quick.yaml")
    monkeypatch.setenv("PLACE", "/there")
    grid = read_grid(tmp_path / "quick.yaml")
    assert grid.settings_of("A", {"model": "n"}, "out") == {
        "model": "n", "sizes": [8], "target": "/there/a.jsonl", "out": str(Path("out/A"))
    }  # fmt: skip
    assert grid.experiments["B"] == {"target": "b", "seed": 2}
    assert list(read_grid(tmp_path / "quick.yaml", ("B",)).experiments) == ["B"]
    with pytest.raises(ConfigError, match=r"no such experiment \(did you mean 'B'\?\)|--only b"):
        read_grid(tmp_path / "quick.yaml", ("b",))


@pytest.mark.slow
def test_a_grid_runs_and_joins_its_tables(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rows, seed in (("pool", 40, 1), ("target", 6, 2), ("test", 5, 3)):
        write_jsonl(tmp_path / f"{name}.jsonl", make_rows(rows, seed=seed))
    experiment = {name: str(tmp_path / f"{name}.jsonl") for name in ("pool", "target", "test")}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({
        "model": str(tiny_folder), "sizes": [8], "seeds": 1, "methods": ["tov", "zero-shot"], "base_size": 8, "epochs": 1,
        "max_length": 64, "train_rows": 32, "experiments": {"one": experiment, "two": {**experiment, "seed": 5}},
    }))  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out"), "--quiet"])
    assert not ended.value.code
    report = (tmp_path / "out" / "report.md").read_text()
    [head] = [line for line in report.splitlines() if line.startswith("| variant")]
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["variant", "one", "two"]
    assert all((tmp_path / "out" / name / "report.md").exists() for name in ("one", "two"))
    for name in ("tov", "zero-shot"):
        assert name in report
    grid = read_grid(tmp_path / "grid.yaml")
    (tmp_path / "out" / "two").rename(tmp_path / "aside")
    again, found = run_grid(grid, {"out": str(tmp_path / "out"), "report_only": True, "quiet": True})
    assert list(found) == ["one"]
    assert "two" not in again
    with pytest.raises(RunError, match="no experiment of the grid"):
        run_grid(grid, {"out": str(tmp_path / "none"), "report_only": True, "quiet": True})
    capsys.readouterr()
    for line, printed in (("json: true", True), ("quiet: true", False)):
        (tmp_path / "told.yaml").write_text(f"extends: grid.yaml\n{line}\n")
        with pytest.raises(SystemExit):
            main(["compare", str(tmp_path / "told.yaml"), "--out", str(tmp_path / "out"), "--report-only"])
        out = capsys.readouterr().out
        assert list(json.loads(out)["results"]) == ["one"] if printed else not out


# A case whose answer is known


def planted(draw: random.Random, count: int) -> list[dict[str, Any]]:
    """Distinct sentences with their right tags."""
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        row = sentence(draw, draw.choice(["PER", "LOC"]))
        found[json.dumps(row)] = row
    return list(found.values())


@pytest.mark.slow
def test_rows_with_right_tags_are_found_among_wrong_ones(tmp_path: Path) -> None:
    """A fifth of the pool has its right tags, the rest tags drawn at random, and nothing but the tags tells them apart: right
    ones help, wrong ones harm, and the rows that a model is least sure of are mostly wrong ones."""
    draw, encoder = random.Random(0), tiny_encoder_folder(tmp_path, num_hidden_layers=1)
    rows = planted(draw, 700)
    target, test, right, wrong = rows[:48], rows[48:148], rows[148:298], rows[298:]
    wrong = [{**row, "ner_tags": [draw.choice(["O", "B-PER", "B-LOC"]) for _ in row["tokens"]]} for row in wrong]
    pool = [write_jsonl(tmp_path / f"{name}.jsonl", part) for name, part in (("right", right), ("wrong", wrong))]
    compared = tov.compare(
        model=str(encoder), target=target, test=test, pool=pool, methods=["tov/score-only", "uncertainty/score-only"],
        sizes=96, seeds=4, train_rows=576, train_learning_rate=0.01, learning_rate=0.01, target_learning_rate_ratio=1.0,
        lora_r=4, epochs=1,
        normalize="none", out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    variants = {one["variant"]: one for one in compared.results["sizes"][0]["variants"]}
    tov_gain, least_sure = variants["tov/score-only"]["gain"], variants["uncertainty/score-only"]["gain"]
    assert tov_gain["low"] > 0, f"the interval should exclude 0: {tov_gain}"
    assert least_sure["mean"] < 0, f"rows with wrong tags should do harm: {least_sure}"
    assert variants["tov/score-only"]["chosen"]["right"] > 1.5 * variants["random"]["chosen"]["right"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder_folder(tmp_path_factory.mktemp("encoder"))


def test_a_checkpoint_with_its_own_order_of_labels_is_compared_as_well(encoder: Path, tmp_path: Path) -> None:
    """Labels are told by name: a head that has learned them in another order tests as what it is, not as random."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    names, tags = ["I-LOC", "B-LOC", "O"], ["B-LOC", "O", "O"]
    ids = {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}
    model = AutoModelForTokenClassification.from_pretrained(encoder, num_labels=3, **ids)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([-9.0, -9.0, 9.0]))  # says O of every word
    model.save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "tuned")

    def rows(count: int, seed: int) -> list[dict[str, Any]]:
        draw = random.Random(seed)
        return [{"tokens": [draw.choice("abcdef"), draw.choice("uvwxyz"), f"s{seed}n{at}"], "ner_tags": tags}
                for at in range(count)]  # fmt: skip

    pool = [*rows(39, 1), {"tokens": ["g", "h"], "ner_tags": ["B-LOC", "I-LOC"]}]
    compared = compare(
        tmp_path / "run", tmp_path / "tuned", pool=pool, target=rows(6, 2), test=rows(5, 3), seeds=1, dtype="fp32",
        methods=["random", "rds", "zero-shot"],
    )  # fmt: skip
    assert trial(compared, "zero-shot", 0)["loss"] == pytest.approx(18 / 3, rel=1e-3), "one word of three is no O"
    assert trial(compared, "rds", 8)["loss"] < trial(compared, "zero-shot", 0)["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ner", "classification"])
def test_classifiers_are_compared_with_their_metric(task: str, encoder: Path, tmp_path: Path) -> None:
    def rows(count: int, seed: int) -> list[dict[str, Any]]:
        draw = random.Random(seed)
        if task == "ner":
            return [{"tokens": [draw.choice("abcdef"), draw.choice("uvwxyz"), f"s{seed}n{at}"], "ner_tags": ["B-LOC", "O", "O"]}
                    for at in range(count)]  # fmt: skip
        return [{"text": f"{draw.choice('abcdef')} s{seed}n{at}", "label": "xy"[at % 2]} for at in range(count)]

    compared = compare(
        tmp_path / "run", encoder, pool=rows(40, 1), target=rows(6, 2), test=rows(5, 3), seeds=1, train_rows=160,
        train_learning_rate=0.02,
    )  # fmt: skip
    assert compared.results["metric"] == {"ner": "entity F1", "classification": "accuracy"}[task]
    trained, untrained = trial(compared, "random", 8), trial(compared, "zero-shot", 0)
    assert 0 <= trained["metric"] <= 1
    assert trained["loss"] < untrained["loss"]
