"""What a change of a setting does, setting by setting, where a finished run lies in --out: today's answers, all of them.

The tables are the specification. A row is a setting, another value of it, and what the same command then does. Every setting
of every record has a row: one without fails `test_every_setting_is_in_its_table`. Names of settings stand in the tables and
the dictionaries above them alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import runpy
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml

import tov
from tiny import make_rows, tiny_model_folder, write_jsonl
from tov.comparison.variants import DECIDED_BY
from tov.config import records

REFUSED = "refused"
"""The folder holds another run, and is not touched; the differences shown are those of the row, by default the setting."""
SAME = "same run"
"""The finished run is returned, and no file of it is touched."""
NO_EFFECT = "no effect"
"""The setting cannot take effect beside the others, and the error says so."""
UNUSABLE = "unusable"
"""An error of what the value asks for, told before the folder is looked at."""
ANEW = "anew"
"""All that was there is deleted and made again."""
ELSEWHERE = "elsewhere"
"""Another folder; the first is not touched."""
ADDED = "added"
"""Trials are added; those that are there stay as they are."""


@dataclass(frozen=True)
class Row:
    """What another value of a setting does.

    Attributes:
        setting: its name.
        value: another value; a function is given the inputs and gives the value.
        effect: one of the words above.
        differs: what the refusal names as different; by default the setting.
        says: what an error says (a regular expression).
        more: other settings that change with it; `...` leaves one out.
    """

    setting: str
    value: Any
    effect: str = REFUSED
    differs: tuple[str, ...] = ()
    says: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


def but(rows: Sequence[Row], *others: Row) -> list[Row]:
    """The rows, with others in place of those of the same settings."""
    replaced = {row.setting for row in others}
    return [*(row for row in rows if row.setting not in replaced), *others]


# What the finished runs are made with

ALWAYS: dict[str, Any] = {"dtype": "fp32", "device": "cpu", "max_length": 64, "lora_r": 2, "quiet": True}
FITTED: dict[str, Any] = {"base_size": 6, "epochs": 1}
LESS = "less/lora_r=2/lora_alpha=8/batch_size=8/epochs=1"
MADE_WITH: dict[str, dict[str, Any]] = {
    "select": {**ALWAYS, **FITTED, "n": 6},
    "select by less": {**ALWAYS, "n": 6, "method": LESS},
    "select by dsir": {**ALWAYS, "n": 6, "method": "dsir"},
    "select by rds": {**ALWAYS, "n": 6, "method": "rds"},
    "select by auto": {
        **ALWAYS,
        **FITTED,
        "n": 6,
        "method": "auto",
        "candidates": ["dsir", "rds"],
        "pilot_rows": 16,
        "pilot_train_rows": 16,
        "pilot_folds": 2,
    },
    "select by bm25": {**ALWAYS, "n": 6, "method": "bm25"},
    "fit": {**ALWAYS, **FITTED},
    "reselect": {"n": 6, "quiet": True},
    "score": {"quiet": True},
    "train": {"num_train_epochs": 1, "device": "cpu", "quiet": True},
    "compare": {**ALWAYS, **FITTED, "methods": ["tov", "random"], "sizes": [4], "seeds": 1, "train_rows": 8},
    "export": {"to": "trl", "quiet": True},
}

# The tables

PLACE = [
    Row("out", "copy", ELSEWHERE),
    Row("force", True, ANEW),
    Row("json_output", True, SAME),
    Row("quiet", False, SAME),
]
OF_PRESET = Row("preset", "paper", differs=("preset", "lora_dropout", "amplify"))
"""Of its settings rank, |U| and L are given here, and the others are the defaults of instruction tuning."""
LARGE = {"device_map": "auto", "load_in_4bit": True, "load_in_8bit": True}
"""How a model is opened on GPUs."""
FIT_PRESET = Row("preset", "paper", differs=("preset", "lora_dropout"))
PATH = [
    OF_PRESET,
    Row("task", "ner", UNUSABLE, says="no layout that tov knows for ner"),
    Row("max_length", 63),
    Row("label_map", {"A": "B"}),
    Row("repair_bio", True),
    Row("columns", {"prompt": "topic"}, differs=("columns", "pool", "targets")),
    Row("on_bad_row", "skip"),
    Row("model", lambda given: given.other_model),
    Row("target", lambda given: rows(5, seed=2), differs=("targets",)),
    Row("target_clusters", 2, UNUSABLE, says="needs 16 target rows"),
    Row("pool", lambda given: rows(25, seed=1)),
    Row("revision", "main"),
    Row("trust_remote_code", True, SAME),
    Row("dtype", "auto"),
    Row("device", "auto"),
    *(Row(name, value, UNUSABLE, says="needs a CUDA GPU, but the device is cpu") for name, value in LARGE.items()),
    Row("seed", 1),
    Row("decontaminate", False),
    Row("base_size", 7),
    Row("epochs", 2),
    Row("path_variant", "paired"),
    Row("learning_rate", 1e-3),
    Row("lr_scheduler_type", "constant"),
    Row("target_learning_rate_ratio", 1.0),
    Row("target_optimizer", "carry"),
    Row("target_sgd_learning_rate", 0.1),
    Row("batch_size", 4),
    Row("lora_r", 3),
    Row("lora_alpha", 16.0),
    Row("lora_dropout", 0.1),
    Row("lora_target_modules", ("q_proj",)),
]
PAGE = Row("page", False, SAME)
ENGINE = [
    Row("engine", "ray", SAME),
    Row("devices", "cpu,cpu", SAME),
    Row("ray_address", "auto", NO_EFFECT, says="no effect without --engine ray"),
    Row("workers", "1:4", NO_EFFECT, says="no effect without --engine ray"),
    Row("gpus_per_worker", 0.5, NO_EFFECT, says="no effect without --engine ray"),
]
ONE_ANSWER = Row("score", "margin", UNUSABLE, says="preference pairs")
SCAN = [Row("batch_tokens", 100), Row("amplify", 1.0), Row("shard_rows", 8), ONE_ANSWER]
RULE = [
    Row("transform", "abs"),
    Row("normalize", "initial-loss"),
    Row("nearness", 0.5),
    Row("uncertainty", 0.5),
    Row("rule", "score-only"),
    Row("bins", 2),
    Row("source_cap", {"memory": 1.0}),
]
AMOUNT = [
    Row("n", 7),
    Row("tokens", 150, differs=("n", "tokens"), more={"n": ...}),
    Row("share", {"memory": 1.0}),
]
TRAINING = [
    Row("train_rows", 9),
    Row("train_learning_rate", 1e-3),
    Row("train_batch_size", 3),
]
GATE = [
    Row("candidates", ["dsir"]),
    Row("pilot_rows", 17),
    Row("pilot_train_rows", 8),
    Row("pilot_folds", 4),
    Row("judge", "metric"),
    Row("answer_pattern", "x", NO_EFFECT),  # answers are not generated there
    Row("metric", "statistics:correlation"),
    Row("group_by", "topic"),
]
SELECT = [
    *PATH,
    *SCAN,
    *RULE,
    *PLACE,
    PAGE,
    Row("explain_rows", 3, SAME),
    Row("proxy_model", lambda given: given.other_model, differs=("proxy",)),
    Row("proxy_sample", 8, NO_EFFECT),
    *ENGINE,
    *(Row(row.setting, row.value, NO_EFFECT) for row in GATE),
    *AMOUNT,
    Row("method", "uncertainty", differs=("method", "transform", "normalize")),
]
INERT = (
    "base_size", "epochs", "path_variant", "learning_rate", "lr_scheduler_type", "target_learning_rate_ratio",
    "target_optimizer", "target_sgd_learning_rate", "batch_size", "amplify", "score", "transform", "normalize",
    "nearness", "uncertainty",
)  # fmt: skip
"""Settings that no method off the path has a use for. LoRA settings are none of them: they are the final training's too."""
OFF_PATH = but(SELECT, FIT_PRESET, *(Row(row.setting, row.value, NO_EFFECT) for row in SELECT if row.setting in INERT))
NO_CLUSTERS = Row("target_clusters", 2, NO_EFFECT)
"""Of a method that reads text."""
NO_PROXY = Row("proxy_model", "any", NO_EFFECT)
TRL = importlib.util.find_spec("trl") is not None
TABLES: dict[str, list[Row]] = {
    "select": SELECT,
    "select by less": but(
        OFF_PATH, Row("rule", "sample"), Row("method", LESS.replace("epochs=1", "epochs=2"), differs=("options",))
    ),
    "select by dsir": but(OFF_PATH, NO_CLUSTERS, NO_PROXY, Row("method", "dsir/mean", differs=("options",))),
    "select by rds": but(
        OFF_PATH,
        Row("bins", 2, NO_EFFECT),
        Row("method", "rds/score-only", differs=("rule",)),
    ),
    "select by auto": but(
        SELECT,
        *GATE,
        NO_PROXY,
        Row("rule", "score-only", NO_EFFECT),
        Row("bins", 2, NO_EFFECT),
        Row("method", "auto/loss", differs=("judge",)),
    ),
    "select by bm25": but(
        OFF_PATH, NO_CLUSTERS, NO_PROXY, Row("bins", 2, NO_EFFECT), Row("method", "bm25/b=0.5", differs=("options",))
    ),
    "fit": [*but(PATH, FIT_PRESET), *PLACE],
    "reselect": [
        *RULE,
        *PLACE,
        PAGE,
        Row("from_run", lambda given: given.second, differs=("seed", "scores")),
        *AMOUNT,
        Row("method", "uncertainty", differs=("method", "transform", "normalize")),
        Row("seed", 1),
    ],
    "score": [
        *PLACE,
        *ENGINE,
        Row("from_run", lambda given: given.second, differs=("path",)),
        Row("pool", lambda given: rows(13, seed=7)),
        Row("trust_remote_code", True, SAME),
        Row("label_map", {"A": "B"}, SAME),
        Row("repair_bio", True, SAME),
        Row("device", "cpu", SAME),
        Row("batch_tokens", 100),
        Row("shard_rows", 8),
        Row("amplify", 1.0),
        ONE_ANSWER,
    ],
    "train": [
        *but(TRAINING, Row("train_rows", 9, UNUSABLE, says="both say how long to train")),
        *PLACE,
        Row("num_train_epochs", 2),
        Row("from_run", lambda given: given.second, differs=("seed", "scores", "chosen")),
        Row("test", lambda given: rows(5, seed=3)),
        Row("trust_remote_code", True, SAME),
        Row("trainer", "trl") if TRL else Row("trainer", "trl", UNUSABLE, says="TRL is not installed"),
        Row("seed", 4),
        Row("device", "auto"),
    ],
    "compare": [
        *but(
            PATH,
            Row("columns", {"prompt": "topic"}, differs=("columns", "pool", "target", "test")),
            Row("target", lambda given: rows(5, seed=2)),
            Row("target_clusters", 2),
        ),
        *but(SCAN, Row("score", "margin")),
        *RULE,
        *TRAINING,
        *PLACE,
        PAGE,
        *ENGINE,
        Row("num_train_epochs", 2, differs=("num_train_epochs", "train_rows"), more={"train_rows": ...}),
        Row("from_run", lambda given: given.folder / "select", SAME),
        Row("test", lambda given: rows(5, seed=3)),
        Row("test_rows", 2, differs=("test_rows", "test"), more={"test": None}),
        Row("target_rows", 2),
        Row("pool_rows", 20),
        Row("group_by", "topic"),
        Row("near_duplicates", "keep"),
        Row("exact_match", 2),
        Row("answer_pattern", "x", NO_EFFECT),
        Row("metric", "statistics:correlation", NO_EFFECT),
        *(Row(row.setting, row.value, SAME) for row in GATE if row.setting in DECIDED_BY),
        Row("report_only", True, SAME),
        Row("methods", ["tov", "tov/abs", "random"], ADDED),
        Row("sizes", [4, 6], ADDED),
        Row("seeds", 2, ADDED),
    ],
    "export": [
        *PLACE,
        Row("from_run", lambda given: given.second, differs=("chosen", "scores", "seed")),
        Row("to", "axolotl"),
        Row("kind", "conversations"),
    ],
}
RECORDS = {
    **{name: records.SelectConfig for name in TABLES if name.startswith("select")},
    "fit": records.FitConfig, "reselect": records.ReselectConfig, "score": records.ScoreConfig, "train": records.TrainConfig,
    "compare": records.CompareConfig, "export": records.ExportConfig,
}  # fmt: skip
NAMED_OTHERWISE = {("score", "from_run"): "path"}
"""Settings that are another argument in Python."""
SAID: dict[str, dict[str, Any]] = {
    "select": {
        "task": "instruction", "learning_rate": 5e-4, "lr_scheduler_type": "linear",
        "target_learning_rate_ratio": 0.1, "amplify": 4.0, "normalize": "none",
        "rule": "score+random", "bins": 10, "transform": "positive", "method": "tov/epochs=1/base_size=6", "columns": {},
        "source_cap": {}, "lora_target_modules": "all-linear", "base_size": 6,
    },
    "select by less": {"rule": "score-only", "bins": 1, "transform": "positive", "lr_scheduler_type": "linear", "epochs": None},
    "select by dsir": {"method": "dsir/sum/sample", "rule": "sample", "normalize": None},
    "select by rds": {"method": "rds/round-robin", "bins": 1, "amplify": None},
    "select by auto": {"candidates": "dsir,rds", "judge": None, "pilot_rows": 16},
    "select by bm25": {"method": "bm25/k1=1.5", "rule": "round-robin", "normalize": None},
    "reselect": {"method": "tov/positive", "rule": "score+random", "bins": 10, "seed": 0, "tokens": None, "share": {}},
    "score": {"amplify": 4.0, "shard_rows": 2048},
    "train": {"train_learning_rate": 5e-4, "train_rows": 16 * 1024, "seed": 0},
    "compare": {"rule": "score+random", "bins": 10, "train_learning_rate": 5e-4, "methods": "random,tov"},
    "export": {},
}  # fmt: skip
"""Defaults and given values, said otherwise: the same run."""
FROM_TAKES = (
    "n", "tokens", "share", "transform", "normalize", "nearness", "uncertainty", "rule", "bins", "source_cap", "method",
    "seed", "out", "force", "json_output", "quiet", "page",
)  # fmt: skip
"""Settings of `tov select` that `tov select --from` takes too; it refuses all others."""
IN_MEMORY = ("pool",)
"""From Python `tov.reselect` takes it too: the same pool again, where that was in memory."""
GROWTH: dict[str, tuple[dict[str, Any], int, int]] = {
    "fewer": ({"methods": ["random"]}, 0, 0),
    "other choices from one scan": (
        {"methods": ["tov", "tov/abs", "tov/score-only", "uncertainty", "zero-shot"]},
        4,
        0,
    ),
    "another path, another scan": ({"methods": ["tov", "tov/target_learning_rate_ratio=1", "tov/amplify=1"]}, 2, 2),
    "off the path, one by two rules": (
        {"methods": ["tov", "rds", "dsir", "dsir/score-only", "bm25", "bm25/k1=1"]},
        5,
        4,
    ),
    "a size": ({"sizes": [4, 6]}, 3, 0),
    "a seed": ({"seeds": 2}, 4, 1),
}
"""Of a comparison of tov and random at 4 rows, one seed: what changes, trials added, score tables filled anew."""


# The runs


@cache
def rows(count: int, *, seed: int) -> datasets.Dataset:
    """Rows in memory, made once."""
    made = enumerate(make_rows(count, seed=seed))
    return datasets.Dataset.from_list([{**row, "topic": f"{seed}.{number}"} for number, row in made])


@dataclass
class Given:
    """Inputs, and the folder of the finished runs, each by the name of its table; `second` is a selection of another seed."""

    folder: Path
    model: str
    other_model: str
    second: Path

    def inputs(self, name: str) -> dict[str, Any]:
        pool, target, test = rows(24, seed=1), rows(4, seed=2), rows(4, seed=3)
        chosen = {"from_run": self.folder / "select", "pool": pool}
        return {
            "reselect": chosen, "score": {**chosen, "pool": rows(12, seed=7)}, "train": {**chosen, "test": test},
            "compare": {"model": self.model, "pool": pool, "target": target, "test": test},
            "export": {"from_run": self.folder / "select"},
        }.get(name, {"model": self.model, "pool": pool, "target": target})  # fmt: skip

    def run(self, name: str, **changed: Any) -> Any:
        """The command of a table, with settings changed."""
        whole = {**self.inputs(name), **MADE_WITH[name], "out": self.folder / name, **changed}
        if name != "compare":
            whole = {key: value for key, value in whole.items() if value is not None}
        verb = name.partition(" ")[0]
        named = {NAMED_OTHERWISE.get((name, key), key): value for key, value in whole.items() if value is not ...}
        return getattr(tov, verb)(**named)

    def change(self, name: str, row: Row, **changed: Any) -> Any:
        """The command of a table, as a row has it."""
        value = row.value(self) if callable(row.value) else row.value
        return self.run(name, **{row.setting: value, **row.more, **changed})


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    """One finished run a table, in one thread, as tiny matrices on busy cores need."""
    folder, threads = tmp_path_factory.mktemp("runs"), torch.get_num_threads()
    models = [str(tiny_model_folder(folder, name=name, seed=seed)) for seed, name in enumerate(("model", "other"))]
    found = Given(folder, *models, folder / "second")
    torch.set_num_threads(1)
    for name in TABLES:
        found.run(name)
    found.run("select", seed=1, out=found.second)
    yield found
    torch.set_num_threads(threads)


OF_REPORT = ("manifest.json", "events.jsonl", "results.json", "report.md", "report.html", "gain.svg", "loss.svg")
"""Files that a comparison writes at each call; they say no more than the trials do."""


def files(folder: Path, *, spare: Sequence[str] = ()) -> dict[str, tuple[int, str]]:
    """Path -> time of the last change and digest of the bytes."""
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in folder.rglob("*")
        if file.is_file() and str(file.relative_to(folder)) not in spare
    }


def tables_of(folder: Path) -> set[Path]:
    """The folders of score tables below a comparison's."""
    return {file.parent for file in folder.rglob("*.parquet") if file.parent.name == "scores"}


def named_differences(error: Exception) -> set[str]:
    """The settings, or parts of the inputs, that a refusal shows as different."""
    lines = re.findall(r"^    (\S+): .* -> .*$", str(error), flags=re.MULTILINE)
    return {line.removeprefix("settings.").partition(".")[0] for line in lines}


# The tests


@pytest.mark.parametrize("name", TABLES)
def test_every_setting_is_in_its_table(name: str) -> None:
    settings, told = set(RECORDS[name].model_fields), [row.setting for row in TABLES[name]]
    assert len(told) == len(set(told)), "a setting has two rows"
    missing = settings - set(told)
    assert not missing, f"add a row for {sorted(missing)} to the table '{name}': what does another value of it do?"
    assert not set(told) - settings, f"no such settings: {sorted(set(told) - settings)}"


CASES = [pytest.param(name, row, id=f"{name}-{row.setting}") for name, table in TABLES.items() for row in table]
QUIET = {REFUSED, SAME, NO_EFFECT, UNUSABLE}


@pytest.mark.parametrize(("name", "row"), [case for case in CASES if case.values[1].effect in QUIET])  # type: ignore[union-attr]
def test_another_value_leaves_the_finished_run_alone(name: str, row: Row, given: Given) -> None:
    folder, spare = given.folder / name, OF_REPORT if name == "compare" and row.effect == SAME else ()
    before = files(folder, spare=spare)
    if row.effect == SAME:
        assert given.change(name, row).folder == folder
    else:
        with pytest.raises(tov.RunError if row.effect == REFUSED else tov.TovError) as caught:
            given.change(name, row)
        if row.effect == REFUSED:
            assert named_differences(caught.value) == set(row.differs or (row.setting,))
        elif row.effect == NO_EFFECT:
            assert isinstance(caught.value, tov.ConfigError)
            assert re.search(f"{row.setting.replace('_', '-')} (has|have) no effect", str(caught.value))
        else:
            assert re.search(row.says, str(caught.value))
    assert files(folder, spare=spare) == before


@pytest.mark.parametrize("name", SAID)
def test_the_same_said_otherwise_is_the_same_run(name: str, given: Given) -> None:
    folder, spare = given.folder / name, OF_REPORT if name == "compare" else ()
    before = files(folder, spare=spare)
    assert given.run(name, **SAID[name]).folder == folder
    assert files(folder, spare=spare) == before


@pytest.mark.parametrize("name", TABLES)
def test_force_makes_all_anew_and_another_folder_leaves_the_first(name: str, given: Given, tmp_path: Path) -> None:
    """The row of `force`; that of `out` with it. What is not tov's stays where it is."""
    [force], [out] = ([row for row in TABLES[name] if row.effect == effect] for effect in (ANEW, ELSEWHERE))
    before = files(given.folder / name)
    copy = Path(shutil.copytree(given.folder / name, tmp_path / out.value))
    (copy / "mark").touch()
    again = given.change(name, force, **{out.setting: copy})
    assert again.folder == copy
    (copy / "mark").unlink()
    assert files(given.folder / name) == before
    assert files(copy).keys() == before.keys()
    started = [json.loads((folder / "manifest.json").read_text())["started"] for folder in (given.folder / name, copy)]
    assert started[0] < started[1], "the old run is still there"


@pytest.mark.parametrize("what", GROWTH)
def test_what_a_comparison_adds_and_which_score_tables_it_fills(what: str, given: Given, tmp_path: Path) -> None:
    changed, trials, tables = GROWTH[what]
    copy = Path(shutil.copytree(given.folder / "compare", tmp_path / "copy"))
    before, kept, old = files(copy, spare=OF_REPORT), (copy / "trials.jsonl").read_bytes(), tables_of(copy)
    given.run("compare", out=copy, **changed)
    now = (copy / "trials.jsonl").read_bytes()
    assert now.startswith(kept), "trials that were there are as they were"
    assert now[len(kept) :].count(b"\n") == trials
    assert len(tables_of(copy) - old) == tables
    after = files(copy, spare=OF_REPORT)
    assert all(after[name] == was for name, was in before.items() if name.endswith(".parquet"))


def test_rows_that_add_trials_are_those_that_growth_tells_of() -> None:
    grown = {setting for changed, _, _ in GROWTH.values() for setting in changed}
    assert grown == {row.setting for row in TABLES["compare"] if row.effect == ADDED}


def test_trials_of_a_method_under_another_rule_are_refused(given: Given, tmp_path: Path) -> None:
    """The rule of tov stands among the settings; that of another method is its own, unless one is given for all."""
    copy = Path(shutil.copytree(given.folder / "compare", tmp_path / "copy"))
    given.run("compare", out=copy, methods=["tov", "dsir"])
    with pytest.raises(tov.RunError, match="trials of other rules: dsir"):
        given.run("compare", out=copy, methods=["tov", "dsir"], rule="score+random")


# select --from, score


def tov_command(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the `tov` command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["tov", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("tov", run_name="__main__")
    return int(ended.value.code or 0)


@pytest.mark.parametrize("setting", [name for name in RECORDS["select"].model_fields if name not in FROM_TAKES])
def test_what_a_scan_depends_on_is_refused_with_from(
    setting: str, given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"from_run": str(given.folder / "select"), "n": 5, "out": str(tmp_path / "again"), setting: "any"}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(asked))
    assert tov_command("select", str(tmp_path / "again.yaml"), monkeypatch=monkeypatch) == 2
    said = f"--{setting.replace('_', '-')} cannot take effect with --from"
    if setting == "trust_remote_code":
        said = "no file can allow a model's code for you"
    if setting == "metric":
        said = "no file can allow a metric's code for you"
    assert said in capsys.readouterr().err
    if setting not in IN_MEMORY:
        with pytest.raises(tov.ConfigError, match=f"There is no setting '{setting}'"):
            tov.reselect(given.folder / "select", n=5, out=tmp_path / "again", **{setting: "any"})
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_from_takes_the_settings_of_the_choice_and_rescans_nothing(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them changed alone, then all by flags; files of scores and path keep bytes and times."""
    assert set(FROM_TAKES) == set(RECORDS["reselect"].model_fields) - {"from_run"}
    pool = write_jsonl(tmp_path / "memory.jsonl", rows(24, seed=1))
    first = given.run("select", pool=str(pool), out=tmp_path / "first")
    before = files(first.folder)
    changes = [row for row in TABLES["reselect"] if row.effect == REFUSED and row.setting != "from_run"]
    for row in changes:
        whole = {"n": 6, "out": tmp_path / row.setting, "quiet": True, row.setting: row.value, **row.more}
        picked = tov.reselect(first, **{name: value for name, value in whole.items() if value is not ...})
        assert [file.name for file in picked.folder.rglob("*.parquet")] == ["selected.parquet"], row.setting
    words = [
        "--n", "7", "--transform", "abs", "--normalize", "initial-loss", "--nearness", "0.5", "--rule", "score-only",
        "--uncertainty", "0.25", "--bins", "2", "--source-cap", "memory=1", "--share", "memory=1", "--method", "tov",
        "--seed", "1", "--force", "--quiet",
    ]  # fmt: skip
    out = ["--from", str(first.folder), "--out", str(tmp_path / "flags")]
    assert tov_command("select", *out, *words, monkeypatch=monkeypatch) == 0
    assert (tmp_path / "flags" / "selected.jsonl").read_text().count("\n") == 7
    assert files(first.folder) == before


def test_where_files_lie_does_not_matter_but_the_name_of_a_source_does(given: Given, tmp_path: Path) -> None:
    lain = {name: write_jsonl(tmp_path / f"{name}.jsonl", rows(24, seed=1)) for name in ("memory", "web")}
    before = files(given.folder / "select")
    assert given.run("select", pool=str(lain["memory"])).folder == given.folder / "select"
    assert given.run("select", pool=f"memory={lain['web']}").folder == given.folder / "select"
    with pytest.raises(tov.RunError) as caught:
        given.run("select", pool=str(lain["web"]))
    assert named_differences(caught.value) == {"pool"}
    assert files(given.folder / "select") == before


def test_a_new_pool_is_scanned_and_nothing_is_fitted(given: Given, tmp_path: Path) -> None:
    before = files(given.folder / "select")
    scored = given.run("score", out=tmp_path / "scored", pool=rows(9, seed=8))
    assert len(scored.scores) == 9
    assert not list(scored.folder.rglob("*.safetensors"))
    assert files(given.folder / "select") == before
