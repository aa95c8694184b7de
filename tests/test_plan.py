"""`tov plan`: what it foretells is what a run then spends; it finds the same faults, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tov
from test_methods import PLAIN, VARIANTS, inputs, select
from tiny import make_rows, tiny_encoder_folder
from tov.cli.main import main
from tov.errors import ConfigError, DataError, ModelError, RunError
from tov.inputs import draw
from tov.methods import Method, registry
from tov.text.example import Part, marked

PATHS = {
    "tov": "tov/epochs=2/base_size=8", "paired": "tov/paired/epochs=2/base_size=8", "uncertainty": "uncertainty/epochs=1",
    "rank": "tov/lora_r=3/epochs=1/base_size=8", "sgd": "less/lora_r=2/sgd/batch_size=40/epochs=3",
    "store": f"{VARIANTS['less']}/store=store", "random": "random",
}  # fmt: skip
NEAR = ("fit", "warm-up", "gradients")
"""Stages of rows drawn from the pool, foretold from the mean row; and of rows that this target alone excludes, stored too."""


def plan(model: Path, methods: list[str], task: str = "instruction", **changed: Any) -> Any:
    return tov.plan(model=str(model), methods=methods, **{**inputs(task), **PLAIN, "probe": False, **changed})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder_folder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("name", [*VARIANTS, *PATHS])
def test_a_plan_is_what_the_run_spends(
    name: str, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    variant = {**VARIANTS, **PATHS}[name]
    [planned] = plan(tiny_folder, [variant], n=8).facts["methods"]
    run = select(tmp_path / "run", tiny_folder, variant)
    assert set(planned["stages"]) == set(run.manifest.spent)
    for stage, (forward, backward) in run.manifest.spent.items():
        foretold = planned["stages"][stage]["forward"], planned["stages"][stage]["backward"]
        near = pytest.approx((forward, backward), rel=0.15) if stage in NEAR else (forward, backward)
        assert foretold == near, stage
    # Parquet's own head, which no row pays for, is most of so small a table.
    tables = sum(file.stat().st_size for file in (run.folder / "scores").iterdir())
    small = run.manifest.cost["bytes"] - tables
    assert planned["bytes"] == pytest.approx(small, rel=0.25, abs=20_000), "adapters, checkpoints and embeddings"


@pytest.mark.slow
def test_a_plan_of_sentences_is_what_the_run_spends(tmp_path: Path, encoder: Path) -> None:
    variants = {"tov": "tov/epochs=2/base_size=8", "tracin": VARIANTS["tracin"], "rds": "rds"}
    found = {one["method"]: one for one in plan(encoder, list(variants.values()), "ner").facts["methods"]}
    for name, variant in variants.items():
        spent = select(tmp_path / name, encoder, variant, "ner").manifest.cost
        assert found[variant]["forward"] == pytest.approx(spent["tokens_forward"], rel=0.02), name
        assert found[variant]["backward"] == pytest.approx(spent["tokens_backward"], rel=0.1), name


def test_each_variant_has_adapters_of_its_own_rank(tiny_folder: Path) -> None:
    small, large = plan(tiny_folder, ["tov/lora_r=1/epochs=1", "tov/lora_r=8/epochs=1"]).facts["methods"]
    assert large["bytes"] > 3 * small["bytes"]


def test_one_method_is_named_as_select_names_it(tiny_folder: Path) -> None:
    given = {"model": str(tiny_folder), **inputs("instruction"), **PLAIN, "probe": False}
    [one] = tov.plan(**given, method="dsir").facts["methods"]
    assert one["method"] == plan(tiny_folder, ["dsir"]).facts["methods"][0]["method"]
    assert [one["method"] for one in tov.plan(**given).facts["methods"]] == ["tov"]
    with pytest.raises(ConfigError, match="--method dsir stands beside --methods rds"):
        tov.plan(**given, method="dsir", methods=["rds"])


def test_it_tells_what_the_data_are(tiny_folder: Path) -> None:
    planned = plan(tiny_folder, ["dsir", "tov"], n=5)
    pool, target, example = (planned.facts["pool"], planned.facts["target"], planned.facts["examples"]["target"])
    assert (pool["rows"], pool["usable"], pool["without_scored_token"]) == (40, 38, 1)
    assert "1 prompt in target" in pool["left_out"]
    assert (target["rows"], target["usable"]) == (6, 6)
    answer = inputs()["target"][0]["completion"]
    assert answer in example["scored_text"]
    assert "q2." not in example["scored_text"], "the prompt is not scored"
    assert f"[[{answer}" in example["text"], "what is scored is marked"
    assert "q2." in example["text"].partition("[[")[0], "the prompt is shown, outside of the marks"
    assert planned.facts["model"]["trained"] > 0
    shown = str(planned)
    for words in (
        "40 rows (memory 40), 38 may be chosen",
        "6 of 6 rows",
        "| dsir ",
        "| tov ",
        "Nothing was run",
        answer,
    ):
        assert words in shown, f"{words} is not in\n{shown}"
    places = [shown.index(words) for words in ("| dsir ", "Nothing was run", "warning: ", "row as the model sees it")]
    assert places == sorted(places), "costs and warnings are not looked for below long rows"


@pytest.mark.parametrize("method", ["bm25", "dsir", "random"])
def test_no_model_is_opened_for_methods_that_read_text_alone(
    method: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = plan(tiny_folder, [method, "rds"], n=8).facts
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no weights")
    planned = plan(folder, [method], n=8, probe=True, quiet=False)
    assert planned.facts["probe"] is None
    assert "timing" not in capsys.readouterr().err
    assert planned.facts["methods"] == opened["methods"][:1], "the same cost"
    assert {name: planned.facts[name] for name in ("pool", "target", "examples")} == {
        name: opened[name] for name in ("pool", "target", "examples")
    }
    assert planned.facts["model"].keys() == opened["model"].keys()
    assert "no row passes it, so it was not loaded" in str(planned)
    with pytest.raises(ModelError):
        plan(folder, [method, "rds"], n=8)


def test_pilots_that_cost_more_than_the_scoring_are_warned_of(tiny_folder: Path) -> None:
    planned = plan(tiny_folder, ["auto"], n=8).facts
    [warning] = [one for one in planned["warnings"] if "pilots" in one]
    stages = planned["methods"][0]["stages"]
    cost = {name: one["forward"] + 2 * one["backward"] for name, one in stages.items()}
    times = cost["pilots"] / (sum(cost.values()) - cost["pilots"])
    assert f"cost {times:,.0f} times" in warning
    assert "--method" in warning
    assert not [one for one in plan(tiny_folder, ["tov"], n=8).facts["warnings"] if "pilots" in one]


def test_settings_of_the_path_do_not_hinder_methods_beside_it(tiny_folder: Path) -> None:
    both = plan(tiny_folder, ["tov", "dsir"], base_size=8, epochs=1).facts["methods"]
    assert both[0] == plan(tiny_folder, ["tov"], base_size=8, epochs=1).facts["methods"][0]
    with pytest.raises(ConfigError, match="base-size has no effect"):
        plan(tiny_folder, ["dsir"], base_size=8)


def test_a_large_pool_is_sampled(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"pool": make_rows(400, seed=7), "target": make_rows(6, seed=2)}
    whole = plan(tiny_folder, ["rds"], **rows).facts
    monkeypatch.setattr(draw, "SAMPLE", 100)
    part = plan(tiny_folder, ["rds"], **rows).facts
    assert (whole["pool"]["sampled"], part["pool"]["sampled"]) == (None, 100)
    assert part["pool"]["tokens"] != whole["pool"]["tokens"]
    assert part["pool"]["tokens"] == pytest.approx(whole["pool"]["tokens"], rel=0.05)
    assert part["methods"][0]["passes"] == pytest.approx(whole["methods"][0]["passes"], rel=0.01)


def test_a_method_that_does_not_tell_is_said_to(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Method):
        name, summary = "mine", "mine"

    boxed = registry.built_in()
    monkeypatch.setattr(registry, "built_in", lambda: {**boxed, "mine": Mine()})
    planned = plan(tiny_folder, ["mine", "dsir"])
    assert planned.facts["methods"][0]["forward"] is None
    [line] = [line for line in str(planned).splitlines() if line.startswith("| mine")]
    assert line.count("?") == 6


@pytest.mark.slow
def test_what_a_run_would_refuse_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(DataError, match="--n asks for 39"):
        plan(tiny_folder, ["tov"], n=39)
    with pytest.raises(DataError, match="0 usable rows"):
        plan(tiny_folder, ["tov"], pool=inputs()["target"])
    with pytest.raises(DataError, match="cap"):
        plan(tiny_folder, ["tov"], n=20, source_cap={"memory": 0.1})
    assert plan(tiny_folder, ["tov"], source_cap={"memory": 0.1}).facts["methods"]
    with pytest.raises(ConfigError, match="scores nothing"):
        plan(tiny_folder, ["zero-shot"])
    with pytest.raises(ConfigError, match="lora-target-modules"):
        plan(tiny_folder, ["less/lora_target_modules=nothing"])
    with pytest.raises(ModelError, match="no folder"):
        plan(tmp_path / "none", ["tov"])
    run = select(tmp_path / "run", tiny_folder, "dsir")
    before = sorted(path.stat().st_mtime_ns for path in run.folder.rglob("*"))
    plan(tiny_folder, ["dsir"], n=8, shard_rows=16, out=str(run.folder))
    with pytest.raises(RunError, match="another run"):
        plan(tiny_folder, ["rds"], n=8, shard_rows=16, out=str(run.folder))
    plan(tiny_folder, ["rds"], n=8, shard_rows=16, out=str(run.folder), force=True)
    plan(tiny_folder, ["rds", "dsir"], n=8, shard_rows=16, out=str(run.folder))
    assert sorted(path.stat().st_mtime_ns for path in run.folder.rglob("*")) == before, "a plan wrote to the run"


def test_the_verb_prints_it_and_leaves_nothing(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pool", "target"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in inputs()[name]))
    args = ["plan", "--model", str(tiny_folder), "--pool", "pool.jsonl", "--target", "target.jsonl", "--out", "run"]
    args += ["--no-probe"]
    for more, shown in ((["--methods", "tov", "dsir"], "| dsir"), (["--json"], '"passes"')):
        with pytest.raises(SystemExit) as ended:
            main([*args, *more])
        assert ended.value.code == 0
        assert shown in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool.jsonl", "target.jsonl"]


def test_columns_that_the_model_does_not_see_are_named(tiny_folder: Path) -> None:
    """Dolly's context is lost where only its answer is mapped, and read where it is mapped too."""
    rows = [
        {"instruction": row["prompt"], "context": "c", "response": row["completion"], "category": "qa"}
        for row in make_rows(20)
    ]
    given = {"pool": rows, "target": rows[:4]}
    notes = plan(tiny_folder, ["dsir"], columns={"output": "response"}, decontaminate=False, **given).facts["notes"]
    assert (
        "pool memory: the model does not see the columns context, category; --columns says which columns it sees"
        in notes
    )
    mapped = {"output": "response", "input": "context"}
    notes = plan(tiny_folder, ["dsir"], columns=mapped, decontaminate=False, **given).facts["notes"]
    assert "pool memory: the model does not see the columns category; --columns says which columns it sees" in notes


def test_brackets_of_a_token_are_told_from_those_around_what_is_scored() -> None:
    assert marked([Part("[CLS]", True, "pos"), Part("a b [SEP]", False)]) == "[[ [CLS] ]]/pos a b [SEP]"
    assert marked([Part("Q ", False), Part("a [b] c", True)]) == "Q [[a [b] c]]"
