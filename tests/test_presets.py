"""`--preset`: which settings it names, what beats it, what a run records; and the grids of the paper, without the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import tov
from test_methods import PLAIN, inputs, select
from tiny import make_rows, write_jsonl
from tov.cli.main import main
from tov.comparison.grid import read_grid
from tov.comparison.variants import check_settings, plan_trials, variants_of
from tov.config.presets import PRESETS, derived_by
from tov.config.records import CompareConfig, FitConfig, PathSettings, PlanConfig, SelectConfig
from tov.config.settings import build
from tov.data.sources import _HUB_ID
from tov.errors import ConfigError, DataError
from tov.methods.spec import parse_variant, settings_for
from tov.methods.tov.fit import base_size_for, schedule_for
from tov.verbs.compare import compare_config

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
GIVEN: dict[str, Any] = {"model": "m", "pool": "p", "target": "t", "out": "o"}
PAPER = {
    "lora_alpha": 32.0, "lora_dropout": 0.2, "target_learning_rate_ratio": 0.1, "amplify": 1.0, "normalize": "none",
    "transform": "positive", "base_size": 4096, "epochs": 4, "path_variant": "interleaved", "batch_size": 16,
}  # fmt: skip
"""What the paper says for every task."""


def settings(record: type[PathSettings] = SelectConfig, task: str = "instruction", **given: Any) -> dict[str, Any]:
    """The settings of a verb with the preset, and with others."""
    more = {"n": 5} if record is SelectConfig else {"sizes": [5]} if record is CompareConfig else {}
    return build(record, {**GIVEN, **more, "preset": "paper", **given}).for_task(task).model_dump()


# What it names


@pytest.mark.parametrize("record", [SelectConfig, PlanConfig, FitConfig, CompareConfig])
@pytest.mark.parametrize(("task", "rank"), [("instruction", 256), ("ner", 1), ("classification", 8)])
def test_the_paper_s_settings_are_those_of_every_verb(record: type[PathSettings], task: str, rank: int) -> None:
    found = settings(record, task)
    wanted = {name: value for name, value in {**PAPER, "lora_r": rank}.items() if name in record.model_fields}
    assert {name: found[name] for name in wanted} == wanted
    plain = settings(record, task, preset=None)
    changed = {name for name, value in found.items() if plain[name] != value}
    assert changed <= {*wanted, "preset"}, "where the paper is silent tov's default stands"
    assert plain["learning_rate"] == found["learning_rate"]


@pytest.mark.parametrize(
    "given",
    [{"lora_dropout": 0.0}, {"lora_alpha": 32.0, "lora_r": 16}, {"amplify": 4.0, "normalize": "initial-loss"}, {"epochs": 2},
     {"transform": "abs"}],
)  # fmt: skip
def test_what_is_given_beats_it_also_where_it_is_the_default(given: dict[str, Any]) -> None:
    found = settings(**given)
    assert {name: found[name] for name in given} == given
    others = {name: value for name, value in PAPER.items() if name not in given}
    assert {name: found[name] for name in others} == others


def test_a_null_is_not_given() -> None:
    assert settings(lora_r=None, amplify=None)["lora_r"] == 256


@pytest.mark.parametrize(("base_size", "epochs"), [(1024, 16), (4096, 4), (5000, 3), (40_000, 1)])
def test_l_follows_from_the_base_set_without_a_cap(base_size: int, epochs: int) -> None:
    config = build(SelectConfig, {**GIVEN, "n": 5, "preset": "paper", "base_size": base_size}).for_task("ner")
    assert schedule_for(config, base_size_for(config, 10**6)).epochs == epochs
    capped = build(SelectConfig, {**GIVEN, "n": 5, "base_size": base_size}).for_task("ner")
    assert schedule_for(capped, base_size).epochs == min(epochs, 2)


def test_a_variant_has_what_follows_from_its_own_settings() -> None:
    """Its rank, its |U| and so its L; and the preset itself may be a variant's."""
    config = build(CompareConfig, {**GIVEN, "sizes": [5], "preset": "paper"}).for_task("instruction")
    small = settings_for(config, parse_variant("tov/base_size=1024/lora_r=4"))
    assert (small.base_size, small.epochs, small.lora_r, small.lora_dropout) == (1024, 16, 4, 0.2)
    plain = build(CompareConfig, {**GIVEN, "sizes": [5]}).for_task("instruction")
    paper = settings_for(plain, parse_variant("tov/preset=paper"))
    assert (paper.lora_r, paper.amplify, paper.epochs) == (256, 1.0, 4)
    assert (plain.lora_r, plain.amplify) == (16, 4.0)


def test_an_unknown_one_is_answered_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    says = r"There is no preset 'papr' \(did you mean 'paper'\?\)"
    with pytest.raises(ConfigError, match=says):
        tov.select(model="m", pool="p", target="t", n=1, preset="papr")
    with pytest.raises(ConfigError, match=says):
        settings_for(build(CompareConfig, {**GIVEN, "sizes": [5]}), parse_variant("tov/preset=papr"))
    (tmp_path / "c.yaml").write_text("preset: papr\nmodel: m\npool: p\ntarget: t\nout: o\n")
    for verb in ("select", "plan", "fit"):
        with pytest.raises(SystemExit):
            main([verb, str(tmp_path / "c.yaml"), *(["--n", "3"] if verb == "select" else [])])
        assert "did you mean 'paper'?" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="'preset=paper' is no option of dsir"):
        parse_variant("dsir/preset=paper")


# Runs

SMALL: dict[str, Any] = {"preset": "paper", "base_size": 8, "epochs": 2, "lora_r": 2}


@pytest.mark.slow
def test_a_run_says_what_it_was_and_is_repeated_from_its_record(tiny_folder: Path, tmp_path: Path) -> None:
    files = {role: str(write_jsonl(tmp_path / f"{role}.jsonl", rows)) for role, rows in inputs().items()}
    made = select(tmp_path / "run", tiny_folder, "tov", **files, **SMALL)
    said = made.manifest.identity["settings"]
    assert (said["preset"], said["lora_dropout"], said["amplify"], said["lora_r"]) == ("paper", 0.2, 1.0, 2)
    assert "- preset: `paper`" in (made.folder / "summary.md").read_text(encoding="utf-8")
    kept = yaml.safe_load((made.folder / "config.yaml").read_text(encoding="utf-8"))
    assert (kept["preset"], kept["lora_dropout"], kept["amplify"]) == ("paper", 0.2, 1.0)
    times = {file: file.stat().st_mtime_ns for file in made.folder.rglob("*")}
    with pytest.raises(SystemExit) as ended:
        main(["select", str(made.folder / "config.yaml"), "--quiet"])
    assert not ended.value.code
    assert times == {file: file.stat().st_mtime_ns for file in made.folder.rglob("*")}, "another run"
    written = {**PAPER, **SMALL, "preset": None}
    by_hand = select(tmp_path / "by hand", tiny_folder, "tov", **files, **written)
    assert np.array_equal(by_hand.scores["score_positive"], made.scores["score_positive"], equal_nan=True)
    assert list(by_hand.dataset["tov_row_id"]) == list(made.dataset["tov_row_id"])


@pytest.mark.slow
def test_a_comparison_of_a_run_has_its_preset_or_another_in_its_place(tiny_folder: Path, tmp_path: Path) -> None:
    files = {role: str(write_jsonl(tmp_path / f"{role}.jsonl", rows)) for role, rows in inputs().items()}
    with_preset = select(tmp_path / "paper", tiny_folder, "tov", **files, **SMALL)
    taken = compare_config({"from_run": str(with_preset.folder), "sizes": [4], "test_rows": 2, "out": "o"})
    assert (taken.preset, taken.lora_dropout, taken.lora_r, taken.amplify) == ("paper", 0.2, 2, 1.0)
    without = select(tmp_path / "plain", tiny_folder, "random", **files)
    arguments = {"from_run": str(without.folder), "sizes": [4], "test_rows": 2, "out": "o"}
    assert compare_config(arguments).for_task("instruction").lora_dropout == 0.0
    put = compare_config({**arguments, "preset": "paper", "lora_r": 3}).for_task("instruction")
    assert (put.lora_dropout, put.lora_r, put.base_size, put.epochs) == (0.2, 3, 4096, 4)


def test_a_plan_and_methods_off_the_path_take_it(tiny_folder: Path, tmp_path: Path) -> None:
    """For those the final training's adapter alone has an effect."""
    planned = tov.plan(model=str(tiny_folder), methods=["tov", "dsir"], probe=False, **inputs(), **PLAIN, **SMALL)
    assert {one["method"] for one in planned.facts["methods"]} == {"tov", "dsir"}
    made = select(tmp_path / "run", tiny_folder, "dsir", preset="paper")
    said = made.manifest.identity["settings"]
    assert (said["preset"], said["lora_r"], said["lora_dropout"]) == ("paper", 256, 0.2)
    assert not {"base_size", "epochs", "amplify", "normalize"} & set(said)


# The grids of the paper


@pytest.mark.parametrize(
    ("name", "task", "model", "experiments"),
    [
        ("paper-instruction", "instruction", "meta-llama/Meta-Llama-3-8B", [f"IT-E{k}" for k in range(1, 6)]),
        ("paper-ner", "ner", "FacebookAI/xlm-roberta-base", [f"NER-E{k}" for k in range(1, 7)]),
    ],
)
def test_the_paper_s_grids_are_comparisons(
    name: str, task: str, model: str, experiments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that can be told without the Hub: settings, variants, trials, names of data sets."""
    monkeypatch.setenv("PAPER", str(tmp_path))
    grid = read_grid(EXPERIMENTS / f"{name}.yaml")
    assert list(grid.experiments) == experiments
    for experiment in experiments:
        config = compare_config(grid.settings_of(experiment, {}, str(tmp_path))).for_task(task)
        check_settings(config)
        assert (config.model, config.preset, config.seeds, config.sizes) == (model, "paper", 10, (8192,))
        assert (config.lora_r, config.epochs, config.lora_dropout) == (PRESETS["paper"](task, None)["lora_r"], 4, 0.2)
        variants = variants_of(config)
        assert [one.name for one in variants] == ["tov/abs", "tov", "tov/identity", "uncertainty", "less", "random"]
        trials = list(plan_trials(variants, config, 0, 60_000))
        assert {(one.variant.name, one.n) for one in trials} >= {(one.name, 8192) for one in variants}
        for source in (*config.pool, *config.target):
            assert _HUB_ID.match(source) or source.startswith(str(tmp_path)), source
        assert (config.target[0] in config.pool) == (experiment[-1] not in ("2", "5")), (
            "the target's own rows in the pool"
        )


@pytest.mark.model
def test_rows_of_the_paper_s_sets_are_read_by_its_grids(tiny_folder: Path, tmp_path: Path, minilm: str) -> None:
    """Rows with the columns that the Hub's have, under the names that sources of the Hub get."""
    turns = [{"from": "system", "value": "s", "weight": None}, {"from": "human", "value": "q", "weight": 0.0}]
    orca = [{"conversations": [*turns, {"from": "gpt", "value": f"answer {k}", "weight": 1.0}]} for k in range(9)]
    alpaca = [
        {"instruction": row["prompt"], "input": "", "output": row["completion"], "text": "Below is an instruction"}
        for row in make_rows(20)
    ]
    given = {"model": str(tiny_folder), "probe": False, **PLAIN}
    planned = tov.plan(pool=[*alpaca], target=orca, preset="paper", base_size=4, **given)
    assert planned.facts["examples"]["target"]["scored_text"].startswith("answer 0")
    shown = tov.plan(pool=orca, target=alpaca, decontaminate=False, **given).facts["examples"]["target"]
    assert alpaca[0]["output"] in shown["scored_text"]
    assert "Below" not in shown["text"]
    grid, text = yaml.safe_load((EXPERIMENTS / "paper-ner.yaml").read_text()), "Bob of Acme, 5, lives in Oslo"
    spans = [
        {"value": word, "label": label, "start": text.index(word), "end": text.index(word) + len(word)}
        for word, label in (("Bob", "FIRSTNAME"), ("Acme", "COMPANYNAME"), ("5", "AGE"), ("Oslo", "CITY"))
    ]
    nerd = [{"tokens": ["Ann", "of", "Acme", "saw", "Rome", str(k)], "ner_tags": [1, 0, 3, 0, 5, 27]} for k in range(9)]
    pii = [{"source_text": f"{text} {k}", "target_text": "", "privacy_mask": spans} for k in range(9)]
    files = {"multinerd": nerd, "pii-masking-200k": pii}
    pool = [str(write_jsonl(tmp_path / f"{name}.jsonl", rows)) for name, rows in files.items()]
    for target, labels in zip(pool, ("B-PER O B-ORG O B-LOC O", "B-PER O B-ORG O O O O O B-LOC O"), strict=True):
        planned = tov.plan(
            model=minilm, pool=pool, target=target, methods=["random"], decontaminate=False, device="cpu", probe=False,
            **{name: grid[name] for name in ("task", "label_map", "columns", "preset")},
        )  # fmt: skip
        assert planned.facts["examples"]["target"]["scored_text"] == labels


def test_the_files_that_are_not_public_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variable is asked for by the experiments that use it."""
    grid, open_ones = EXPERIMENTS / "paper-ner.yaml", ("NER-E3", "NER-E6")
    monkeypatch.delenv("PAPER", raising=False)
    for only in ((), ("NER-E1",), ("NER-E1", "NER-E3")):
        with pytest.raises(ConfigError, match="environment variable PAPER is not set"):
            read_grid(grid, only)
    assert list(read_grid(grid, open_ones).experiments) == list(open_ones)
    monkeypatch.setenv("PAPER", str(tmp_path))
    assert {name: str(tmp_path) in str(one) for name, one in read_grid(grid).experiments.items()} == {
        f"NER-E{k}": f"NER-E{k}" not in open_ones for k in range(1, 7)
    }


def test_l_of_a_run_is_derived_anew_for_another_base_set() -> None:
    of_run = {"task": "ner", "preset": "paper", "base_size": 2048, "epochs": 8}
    assert derived_by(of_run) == {"epochs"}
    assert derived_by({**of_run, "epochs": 3}) == set(), "given by its user"
    assert derived_by({**of_run, "preset": None}) == set()


def test_a_base_set_that_is_the_whole_pool_is_refused_before_anything_is_fitted(
    tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="none is left to be chosen by score"):
        select(tmp_path / "run", tiny_folder, "tov", **inputs(), preset="paper")
    assert not (tmp_path / "run" / "path").exists()


def test_a_path_of_the_paper_is_scanned_as_the_paper_says(tiny_folder: Path, tmp_path: Path) -> None:
    """Also where the path was fitted by itself: its step is not amplified."""
    pool, target = make_rows(20, seed=1), make_rows(4, seed=2)
    given = {"base_size": 8, "epochs": 1, "lora_r": 2, "max_length": 64, "dtype": "fp32", "quiet": True}
    fitted = tov.fit(str(tiny_folder), target, pool=pool, preset="paper", out=tmp_path / "fit", **given)
    scored = tov.score(fitted, pool, out=tmp_path / "scores", quiet=True)
    assert scored.manifest.scoring.settings["amplify"] == 1.0
    chosen = tov.select(
        model=str(tiny_folder), pool=pool, target=target, n=4, preset="paper", out=tmp_path / "run", page=False, **given
    )
    np.testing.assert_array_equal(scored.scores["score_positive"], chosen.scores["score_positive"])
    other = tov.score(fitted, pool, out=tmp_path / "louder", amplify=4.0, quiet=True)
    assert other.manifest.scoring.settings["amplify"] == 4.0
