"""Every method of the box through select and compare: one score table, one resume, one set of rules for all."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import tov
from faults import killed
from tiny import make_rows, tiny_encoder_folder, write_jsonl
from tov.cli.main import main
from tov.config.choice import RuleSettings
from tov.config.records import SelectConfig
from tov.config.settings import build
from tov.engine.models import Models, ModelSpec
from tov.errors import ConfigError, DataError, ModelError, NumericError, RunError
from tov.files import digest
from tov.inputs.named import list_inputs, read_inputs
from tov.methods import Method, page
from tov.methods.choice import choose_rows, columns_for
from tov.methods.dsir import Dsir
from tov.methods.registry import built_in, find_method, load_plug_in, plug_ins
from tov.methods.score_pool import Prepared, fill_table, score_pool
from tov.methods.shared import warm_up
from tov.methods.spec import parse_variant, select_settings
from tov.runs.folder import Run, work_on
from tov.scores.shard import Shard, ShardReader
from tov.scores.store import columns_in, read_table
from tov.scores.table import DEFAULT_TARGET, FIXED, measures_of, of_target

DOCS = Path(__file__).parents[1] / "docs"
SMALL_LORA = "lora_r=2/lora_alpha=8/batch_size=8/epochs=2"
VARIANTS = {
    "less": f"less/{SMALL_LORA}/dim=64", "tracin": f"tracin/{SMALL_LORA}", "dsir": "dsir", "bm25": "bm25",
    "tsds": "tsds", "rds": "rds", "target-path": "target-path/epochs=2",
}  # fmt: skip
RIVALS = list(VARIANTS)
ALL = {**VARIANTS, "tov": "tov/epochs=1/base_size=8"}
PLAIN: dict[str, Any] = {"max_length": 64, "device": "cpu", "dtype": "fp32"}


def inputs(task: str = "instruction") -> dict[str, Any]:
    """40 pool rows: a repeat, a prompt of the target, a row without an answer among them; 6 target rows."""
    if task == "instruction":
        pool, target = make_rows(40, seed=1), make_rows(6, seed=2)
        pool[5], pool[6], pool[7] = pool[4], target[0], {**pool[7], "completion": ""}
        return {"pool": pool, "target": target}
    draw = random.Random(3)
    rows = [{"tokens": [draw.choice("abcdef"), draw.choice("uvwxyz"), f"n{at}"], "ner_tags": ["B-LOC", "O", "O"]}
            for at in range(51)]  # fmt: skip
    return {"pool": rows[:40], "target": rows[40:46]}


def select(folder: Path, model: Path, method: str, task: str = "instruction", **changed: Any) -> Any:
    given = {**inputs(task), **PLAIN, "n": 8, "shard_rows": 16, "quiet": True}
    return tov.select(model=str(model), method=method, out=folder, **{**given, **changed})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder_folder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def picked(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, Any]:
    """One selection a method, tov among them."""
    folder = tmp_path_factory.mktemp("picked")
    return {name: select(folder / name, tiny_folder, variant) for name, variant in ALL.items()}


# The registry


def test_every_method_says_all_that_it_should() -> None:
    for method in built_in().values():
        assert type(parse_variant(method.name).method) is type(method)
        prepares = type(method).prepare is not Method.prepare
        assert method.ranks == (prepares or method.takes == "pilots"), method.name
        if method.ranks:
            assert method.needs, method.name
            assert method.passes, method.name
            assert method.unit, method.name
        if method.takes == "best":
            assert method.round_robin == (type(method).by_target is not Method.by_target), method.name
            assert "path" in method.uses or method.options, f"{method.name} has no record of options"
    for name in RIVALS:
        assert find_method(name).source, f"{name} cites nothing"
        assert find_method(name).differs, f"{name} does not say where we leave its source"


def test_every_option_has_help() -> None:
    for method in built_in().values():
        for name, field in (method.options.model_fields if method.options else {}).items():
            assert field.description, f"{method.name}/{name}"


def test_the_page_of_methods_is_current() -> None:
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == page.whole_page(), "make docs"


def test_the_verb_lists_tells_and_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    def told(*args: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["methods", *args])
        assert not ended.value.code
        return capsys.readouterr().out

    listed = told()
    assert all(f"\n{name} " in f"\n{listed}" for name in built_in())
    in_one_line = " ".join(listed.split())
    for one in built_in().values():
        assert all(fact in in_one_line for fact in (one.needs or "", one.passes, one.stored, one.source)), one.name
    assert "lora_r [128]" in told("less")
    rows = json.loads(told("--json"))
    assert [row["name"] for row in rows] == list(built_in())
    assert next(row for row in rows if row["name"] == "less")["options"]["lora_r"]["default"] == 128


# Select


@pytest.mark.slow
def test_all_methods_fill_one_kind_of_table(picked: dict[str, Any]) -> None:
    common = ["row_id", "source", "hash", "tokens", "length", "lost", "in_base", "excluded"]
    wanted = picked["tov"].scores
    for name in RIVALS:
        scores = picked[name].scores
        assert scores.column_names[: len(common)] == common
        assert find_method(name).column in scores.column_names
        for column in ("row_id", "source", "hash", "tokens", "length", "lost", "excluded"):
            assert scores[column].to_pylist() == wanted[column].to_pylist(), f"{name}: {column} is not tov's"
        assert not any(scores["in_base"].to_pylist()), f"{name} has no base set"
        excluded = np.array([bool(reason) for reason in scores["excluded"].to_pylist()])
        values = scores[find_method(name).column].to_numpy()
        assert np.isnan(values[excluded]).all(), f"{name}: an excluded row has a score"
        assert not np.isnan(values[~excluded]).any(), f"{name}: a usable row has no score"
    assert Counter(wanted["excluded"].to_pylist())["no scored tokens"] == 1


@pytest.mark.slow
def test_each_is_chosen_by_its_authors_rule_and_told_alike(picked: dict[str, Any]) -> None:
    for name, one in picked.items():
        settings = one.manifest.identity["settings"]
        assert (settings["rule"], settings["bins"]) == (find_method(name).rule, find_method(name).bins)
        assert len(set(one.dataset["tov_row_id"])) == 8
        cost = one.manifest.cost
        assert cost["seconds"] > 0
        assert cost["bytes"] > 0
        summary = (one.folder / "summary.md").read_text(encoding="utf-8")
        assert "nan" not in summary.lower().split()
        assert all(part in summary for part in ("## Scores", "## Left out", "## Time", "tokens forward"))
        assert one.manifest.scoring.fingerprint
    by = {name: one.manifest.cost for name, one in picked.items()}
    assert by["dsir"]["tokens_forward"] == 0, "DSIR needs no model"
    assert by["rds"]["tokens_backward"] == 0
    assert by["less"]["tokens_backward"] > 0
    tokens = by["rds"]["tokens_forward"]
    assert by["target-path"]["tokens_forward"] > 2 * tokens * 0.9


def test_the_rows_are_those_that_the_score_ranks_first(picked: dict[str, Any]) -> None:
    for name in ("less", "tracin", "target-path"):
        values = picked[name].scores[find_method(name).column].to_numpy().astype(np.float64)
        best = np.lexsort((np.arange(len(values)), -np.nan_to_num(values, nan=-np.inf)))[:8]
        assert list(picked[name].dataset["tov_row_id"]) == best.tolist(), name


@pytest.mark.parametrize("name", RIVALS)
def test_again_is_the_same_and_another_option_another_run(name: str, picked: dict[str, Any], tmp_path: Path) -> None:
    one = picked[name]
    files = {path: path.stat().st_mtime_ns for path in one.folder.rglob("*") if path.is_file()}
    config = one.manifest.model.name
    select(one.folder, Path(config), VARIANTS[name])
    assert files == {path: path.stat().st_mtime_ns for path in one.folder.rglob("*") if path.is_file()}
    other = {"less": "less", "tracin": "tracin", "dsir": "dsir/mean", "tsds": "tsds/alpha=0.1", "rds": "less"}
    with pytest.raises(RunError, match="holds another run"):
        select(one.folder, Path(config), other.get(name, "target-path"))
    assert json.loads((one.folder / "manifest.json").read_text())["status"] == "finished"


def test_equal_seeds_choose_equal_rows_and_others_others(
    picked: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    again = select(tmp_path / "again", tiny_folder, "dsir")
    other = select(tmp_path / "other", tiny_folder, "dsir", seed=1)
    assert list(again.dataset["tov_row_id"]) == list(picked["dsir"].dataset["tov_row_id"])
    assert list(other.dataset["tov_row_id"]) != list(again.dataset["tov_row_id"]), "sample is seeded"


def test_a_run_is_chosen_from_again_by_another_rule(picked: dict[str, Any], tmp_path: Path) -> None:
    scored = picked["dsir"].scores["score_dsir"].to_numpy().astype(np.float64)
    best = tov.reselect(picked["dsir"].folder, n=5, rule="score-only", out=tmp_path / "best", pool=inputs()["pool"])
    assert (
        list(best.dataset["tov_row_id"]) == np.argsort(-np.nan_to_num(scored, nan=-np.inf), kind="stable")[:5].tolist()
    )
    turns = tov.reselect(picked["rds"].folder, n=8, out=tmp_path / "turns", pool=inputs()["pool"])
    assert list(turns.dataset["tov_row_id"]) == list(picked["rds"].dataset["tov_row_id"]), "its own rule, again"
    once_more = tov.reselect(turns.folder, n=4, out=tmp_path / "once more", pool=inputs()["pool"])
    assert list(once_more.dataset["tov_row_id"]) == list(picked["rds"].dataset["tov_row_id"])[:4]
    ranked = tov.reselect(picked["tov"].folder, n=4, method="uncertainty", out=tmp_path / "u", pool=inputs()["pool"])
    assert list(ranked.dataset["tov_row_id"]) != list(picked["tov"].dataset["tov_row_id"])[:4]
    with pytest.raises(ConfigError, match="dsir cannot rank by the scores of tov"):
        tov.reselect(picked["tov"].folder, n=4, method="dsir", out=tmp_path / "no")


def test_rds_takes_in_turn_what_a_loop_takes(picked: dict[str, Any]) -> None:
    """From the stored embeddings, one cosine at a time."""
    part = picked["rds"].folder / picked["rds"].manifest.artifacts["embed"]
    pool, target = (np.load(part / f"{name}.npy").astype(np.float64) for name in ("pool", "target"))
    pool, target = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (pool, target))
    taken: list[int] = []
    while len(taken) < 8:
        for row in target:
            free = [at for at in range(len(pool)) if at not in taken and not np.isnan(pool[at, 0])]
            if len(taken) < 8:
                taken.append(max(free, key=lambda at: float(row @ pool[at])))
    assert list(picked["rds"].dataset["tov_row_id"]) == taken


@pytest.mark.slow
def test_a_sentence_encoder_embeds_instead_of_the_model(tiny_folder: Path, encoder: Path, tmp_path: Path) -> None:
    """The mean of its last hidden states, one text at a time; RDS+ and TSDS share it; the model being tuned is not run."""
    pytest.importorskip("sentence_transformers", reason="pip install 'tov[encoder]'")
    picked = select(tmp_path / "rds", tiny_folder, f"rds/encoder={encoder}")
    part = picked.folder / picked.manifest.artifacts["embed"]
    model, tokenizer = AutoModel.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)
    for file, rows in (("target.npy", inputs()["target"]), ("pool.npy", inputs()["pool"])):
        found = np.load(part / file)
        for row, embedding in zip(rows, found, strict=True):
            if np.isnan(embedding).any():
                continue
            with torch.no_grad():
                text = tokenizer(f"{row['prompt']}\n{row['completion']}", return_tensors="pt")
                mean = model(**text).last_hidden_state[0].mean(0).numpy()
            np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), atol=2e-3)
    assert np.isfinite(np.load(part / "target.npy")).all()
    scores, own = read_table(picked.folder / "scores"), np.load(part / "pool.npy").astype(np.float64)
    best = (own @ np.load(part / "target.npy").astype(np.float64).T).max(1)
    given = scores.column("score_rds").to_numpy()
    assert np.isfinite(given).sum() == 37, "all but a repeat, a prompt of the target and a row without an answer"
    np.testing.assert_allclose(given[np.isfinite(given)], best[np.isfinite(given)], atol=2e-3)
    assert (picked.manifest.cost["tokens_forward"], picked.manifest.model.dtype) == (0, None)
    assert list(picked.dataset["tov_row_id"]) != list(
        select(tmp_path / "own", tiny_folder, "rds").dataset["tov_row_id"]
    )


def test_an_encoder_may_have_a_name_with_slashes_and_is_looked_for(tiny_folder: Path, tmp_path: Path) -> None:
    variant = parse_variant("tsds/alpha=0.1/encoder=folder/of/model")
    assert (variant.dumped["encoder"], variant.dumped["alpha"]) == ("folder/of/model", 0.1)
    pytest.importorskip("sentence_transformers", reason="pip install 'tov[encoder]'")
    with pytest.raises(ModelError, match=r"no folder .*nowhere"):
        select(tmp_path / "run", tiny_folder, f"rds/encoder={tmp_path}/nowhere")


def test_a_folder_may_lie_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shells expand a ~ at the beginning of a word only, so not in less/store=~/x and --out=~/x."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_variant("less/store=~/gradients").dumped["store"] == str(tmp_path / "gradients")
    given = {"model": "smollm2", "pool": "p", "target": "t", "n": 1}
    assert build(SelectConfig, {**given, "out": "~/run"}).out == str(tmp_path / "run")


def test_without_sentence_transformers_the_error_names_the_package(
    tiny_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'tov\[encoder\]'"):
        select(tmp_path / "run", tiny_folder, "rds/encoder=minilm")


@pytest.mark.parametrize("name", RIVALS)
def test_named_entities_too(name: str, encoder: Path, tmp_path: Path) -> None:
    one = select(tmp_path / "run", encoder, VARIANTS[name], "ner", decontaminate=False)
    assert len(set(one.dataset["tov_row_id"])) == 8
    assert np.isfinite(one.scores[find_method(name).column].to_numpy()).sum() >= 8


def test_sub_tasks_of_less(tiny_folder: Path, tmp_path: Path) -> None:
    names = ("x", "5 %", "z@home")
    target = [{**row, "subject": names[at % 3]} for at, row in enumerate(make_rows(6, seed=2))]
    one = select(
        tmp_path / "run", tiny_folder, f"{VARIANTS['less']}/subtask_column=subject/round-robin", target=target, n=9,
        pool=make_rows(40, seed=1),
    )  # fmt: skip
    columns = np.stack([one.scores[f"score_less:{name}"].to_numpy() for name in ("x", "5 %25", "z%40home")], 1)
    np.testing.assert_array_equal(one.scores["score_less"].to_numpy(), columns.max(1))
    taken: list[int] = []
    for turn in range(9):
        order = np.argsort(-columns[:, turn % 3], kind="stable")
        taken.append(next(int(row) for row in order if row not in taken))
    assert list(one.dataset["tov_row_id"]) == taken


@pytest.mark.slow
def test_a_checkpoint_of_rate_0_costs_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    """One batch an epoch, and a linear rise from 0: the first checkpoint is the initial state with weight 0."""
    one = select(tmp_path / "run", tiny_folder, "less/lora_r=2/batch_size=64/epochs=3")
    assert "1 of 3 checkpoints have rate 0 and were left out: they add nothing" in one.manifest.notes
    once = select(tmp_path / "rds", tiny_folder, "rds").manifest.spent["embed"][0]
    target = one.manifest.spent["target"][0] // 2
    assert one.manifest.spent["scan"] == (2 * (once - target),) * 2, "two passes over the pool, there and back"


def test_rows_chosen_without_a_path_are_trained_on(picked: dict[str, Any], tmp_path: Path) -> None:
    for name in ("less", "dsir"):
        trained = tov.train(
            picked[name].folder, out=tmp_path / name, pool=inputs()["pool"], train_rows=16, quiet=True, device="cpu"
        )
        assert trained.summary["chosen"] == 8
        assert (trained.adapter / "adapter_model.safetensors").exists()


def test_sub_tasks_that_lose_their_rows_are_no_sub_tasks(tiny_folder: Path, tmp_path: Path) -> None:
    """Two by their column, one by what has a scored token: round robin has nobody to take turns."""
    target = [{**row, "subject": "x"} for row in make_rows(4, seed=2)]
    target.append({"prompt": "word " * 80, "completion": "cut off", "subject": "y"})
    with pytest.raises(ConfigError, match="round-robin needs several sub-tasks"):
        select(tmp_path / "run", tiny_folder, f"{VARIANTS['less']}/subtask_column=subject/round-robin", target=target)
    assert not list((tmp_path / "run").rglob("rows-*")), "it was found after the pool's gradients"


def test_whole_gradients_of_too_many_sub_tasks_are_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tov.methods.shared.influence.TARGET_NUMBERS", 100)
    with pytest.raises(ConfigError, match=r"1 whole gradients, [a-z -]+ of [\d,]+ numbers each(.|\n)*dim=8192"):
        select(tmp_path / "run", tiny_folder, f"less/{SMALL_LORA}")
    select(tmp_path / "projected", tiny_folder, VARIANTS["less"])


@pytest.mark.parametrize("name", ["less", "target-path"])
def test_advice_on_a_diverged_training_names_the_methods_own_options(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(NumericError, match=rf"do: Lower {name}/learning_rate or {name}/lora_alpha"):
        select(tmp_path / "run", tiny_folder, f"{name}/lora_alpha=1e30/learning_rate=1e20/epochs=4/batch_size=2")


def test_rows_that_cannot_be_chosen_have_no_embedding(tiny_folder: Path, encoder: Path, tmp_path: Path) -> None:
    """A sentence encoder can embed a row without a scored token; were it kept, it would take the mass of others."""
    pytest.importorskip("sentence_transformers", reason="pip install 'tov[encoder]'")
    one = select(tmp_path / "run", tiny_folder, f"tsds/encoder={encoder}")
    lost = [row for row, why in enumerate(one.scores["excluded"].to_pylist()) if why == "no scored tokens"]
    assert len(lost) == 1
    pool = np.load(one.folder / one.manifest.artifacts["embed"] / "pool.npy")
    assert np.isnan(pool[lost]).all()
    p = np.exp(one.scores["score_tsds"].to_numpy().astype(np.float64))
    assert np.nansum(p) == pytest.approx(1, abs=1e-6), "mass lies where no row can be taken"


# Scorers and targets


SCORED = {
    **ALL, "less of a store": f"{VARIANTS['less']}/nonzeros=2/store=STORE", "dsir of tokens": "dsir/tokenizer=model",
}  # fmt: skip
TARGETS = {"maths": make_rows(6, seed=2), "law": make_rows(4, seed=9)}


@dataclass(frozen=True)
class Scored:
    """A pool scored for some targets.

    Attributes:
        run: whose scores.
        prepared: what scored it.
        chosen: target's name -> rows chosen by the method's own rule.
    """

    run: Run
    prepared: Prepared
    chosen: dict[str, list[int]]

    @property
    def first_shard(self) -> Shard:
        """The first 16 rows of the pool."""
        rows, settings = self.prepared.rows, self.prepared.settings
        encode = ModelSpec.of(settings, self.prepared.labels).encoder()
        return ShardReader(rows.pool, rows.index, rows.excluded, encode, settings.shard_rows).read(0, 16)


def score_targets(folder: Path, model: Path, method: str, names: list[str], models: Models) -> Scored:
    """A pool of 40 rows, scored for targets of these names."""
    kept, pool = list[Prepared](), list_inputs(make_rows(40, seed=1))
    given = {
        "model": str(model),
        "pool": "memory",
        "target": "memory",
        "n": 8,
        "shard_rows": 16,
        "decontaminate": False,
    }
    config, variant = select_settings(build(SelectConfig, {**given, **PLAIN, "method": method, "out": str(folder)}))
    config, target, rows, labels = read_inputs(config, pool, list_inputs({name: TARGETS[name] for name in names}))
    called = {name: name if len(names) > 1 else DEFAULT_TARGET for name in names}

    def noted(prepared: Prepared, *args: Any, **options: Any) -> None:
        kept.append(prepared)
        fill_table(prepared, *args, **options)

    with (
        pytest.MonkeyPatch.context() as patch,
        work_on(folder, command="score", identity={"targets": names}, settings={}) as run,
    ):
        patch.setattr("tov.methods.score_pool.fill_table", noted)
        score_pool(run, rows, target, config, variant, n=8, labels=labels, models=models, quiet=True)
    chosen = {}
    for name in names:
        table = read_table(run.scores, 40, columns_for(variant.method, config, run.scores, targets=[called[name]]))
        choice, _ = choose_rows(variant.method, config, table, run, n=8, seed=0, targets=[called[name]])
        chosen[name] = choice.row_ids.tolist()
    return Scored(run, kept[0], chosen)


@pytest.fixture(scope="module")
def of_two_targets(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, Scored]:
    """Each method's scores for two targets in one run."""
    folder, models = tmp_path_factory.mktemp("two"), Models()
    methods = {name: variant.replace("STORE", str(folder / "store")) for name, variant in SCORED.items()}
    return {
        name: score_targets(folder / name, tiny_folder, one, list(TARGETS), models) for name, one in methods.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORED)
def test_two_targets_in_one_run_are_scored_as_each_in_its_own(
    name: str, of_two_targets: dict[str, Scored], tiny_folder: Path, tmp_path: Path
) -> None:
    two, variant = of_two_targets[name], SCORED[name].replace("STORE", str(tmp_path / "store"))
    both, columns = read_table(two.run.scores), columns_in(two.run.scores)
    for target in TARGETS:
        alone = score_targets(tmp_path / target, tiny_folder, variant, [target], Models())
        wanted, measures = read_table(alone.run.scores), measures_of(columns, target)
        assert set(wanted.column_names) == {*FIXED, *measures}, "a target alone is called `target`"
        assert alone.prepared.method.column in measures or name == "tov"
        for measure in measures:
            values = wanted[measure].to_numpy()
            assert len(set(wanted[measure].drop_null().to_pylist())) > 2, f"{measure}: all rows score alike"
            ours = both[f"{measure}@{target}"].to_numpy()
            np.testing.assert_allclose(ours, values, rtol=1e-4, atol=1e-6, err_msg=measure)
        assert set(of_target(both, target).column_names) == {*FIXED, *measures}
        assert two.chosen[target] == alone.chosen[target]
        assert two.run.manifest.targets[target] == alone.run.manifest.targets[DEFAULT_TARGET]
    assert two.chosen["maths"] != two.chosen["law"], "the targets are too much alike to tell"


ELSEWHERE = """
import pickle, sys
from tov.engine.models import Models
with open(sys.argv[1], "rb") as file:
    sent = pickle.load(file)
found = {}
for name, (scorer, shard) in sent.items():
    with scorer.open(Models()) as score:
        found[name] = score(shard)
with open(sys.argv[2], "wb") as file:
    pickle.dump(found, file)
"""


@pytest.mark.slow
def test_a_scorer_is_sent_to_another_process_and_scores_there_alike(
    of_two_targets: dict[str, Scored], tmp_path: Path
) -> None:
    ways = {type(find_method(name)).prepare for name in ALL}
    assert ways == {type(one).prepare for one in built_in().values() if one.takes == "best"}, "a method is missing here"
    sent = {
        f"{name} for {target}": (scorer, one.first_shard)
        for name, one in of_two_targets.items()
        for target, scorer in one.prepared.scorers.items()
    }
    (tmp_path / "sent").write_bytes(pickle.dumps(sent))
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "sent"), str(tmp_path / "found")]
    subprocess.run(command, check=True, timeout=300)
    found = pickle.loads((tmp_path / "found").read_bytes())
    models = Models()
    for name, (scorer, shard) in sent.items():
        with scorer.open(models) as score:
            wanted = score(shard)
        assert found[name].keys() == wanted.keys()
        assert any((~np.isnan(values)).sum() > 8 for values in wanted.values()), name
        for column, values in wanted.items():
            np.testing.assert_allclose(found[name][column], values, rtol=1e-4, atol=1e-6, err_msg=f"{name}: {column}")


# A store of gradients


STORED = VARIANTS["less"].replace("epochs=2", "epochs=3")  # two checkpoints with a rate


SUFFIXES = (".safetensors", ".parquet")
"""Of checkpoints and of stored gradients."""


def store_files(folder: Path) -> dict[Path, bytes]:
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.*") if file.suffix in SUFFIXES}


@pytest.mark.slow
def test_a_store_of_gradients_serves_every_target(tiny_folder: Path, tmp_path: Path) -> None:
    store, other = tmp_path / "store", {"target": make_rows(6, seed=9)}
    first = select(tmp_path / "first", tiny_folder, f"{STORED}/store={store}")
    made = {file: file.stat().st_mtime_ns for file in store.rglob("*") if file.is_file()}
    second = select(tmp_path / "second", tiny_folder, f"{STORED}/store={store}", **other)
    assert made == {file: file.stat().st_mtime_ns for file in store.rglob("*") if file.is_file()}, "made once more"
    streamed = select(tmp_path / "streamed", tiny_folder, STORED, **other)
    given, wanted = (one.scores["score_less"].to_numpy() for one in (second, streamed))
    assert np.nanstd(wanted) > 0.01
    np.testing.assert_allclose(given, wanted, atol=1e-3)  # fp16; NaN where NaN
    assert second.manifest.spent["scan"] == (0, 0)
    assert second.manifest.spent["gradients"] == streamed.manifest.spent["scan"], "its cost is part of this table's"
    features = sum(file.stat().st_size for file in store.glob("gradients-*/*/*"))
    assert 0 < features - 2 * 40 * 64 * 2 < 6 * 800, "fp16: 2 bytes x 40 rows x 64 numbers x 2 checkpoints, and headers"
    note = "1 rows that the target excludes are in the store"
    assert [any(note in one for one in run.manifest.notes) for run in (first, second)] == [True, False]
    assert np.isnan(first.scores["score_less"].to_numpy()[6])
    select(tmp_path / "seed", tiny_folder, f"{STORED}/store={store}", seed=1)
    assert len(list(store.iterdir())) == 4, "another seed has a warm-up and a projection of its own"


@pytest.mark.slow
def test_a_store_that_was_killed_goes_on_from_its_last_shard(tiny_folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"

    def run(out: str) -> Any:
        return select(tmp_path / out, tiny_folder, f"{STORED}/store={store}")

    with killed(function="tov.scores.store.ShardStore.write", call=5):
        run("killed")
    left = {path: path.stat().st_mtime_ns for path in store.rglob("rows-*")}
    assert len(left) == 4, "three shards of one checkpoint, one of the next"
    part = next(store.glob("gradients-*"))
    old, new = part / ".rows-9.parquet.1.tmp", part / ".rows-9.parquet.2.tmp"
    for leftover in (old, new):
        leftover.write_bytes(b"half")
    os.utime(old, (0, 0))
    made = files_of(run("killed"))
    stored = store_files(store)
    assert all(path.stat().st_mtime_ns == time for path, time in left.items()), "a finished shard was made again"
    assert [file.exists() for file in (old, new)] == [False, True], "the newer may be another run's"
    store.rename(tmp_path / "aside")
    assert files_of(run("whole")) == made
    assert store_files(store) == stored


# Killed


def files_of(made: Any) -> dict[str, bytes]:
    """The score table and the choice."""
    paths = [*(made.folder / "scores").iterdir(), made.folder / "selected.jsonl"]
    return {path.name: path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("name", "function", "call", "left_shards"),
    [
        ("less", "scores.store.ShardStore.write", 2, 1), ("less", "methods.shared.warm_up.save_checkpoints", 1, 0),
        ("rds", "scores.store.ShardStore.write", 2, 1), ("tsds", "scores.store.ShardStore.write", 4, 0),
        ("dsir", "scores.store.ShardStore.write", 2, 1), ("bm25", "scores.store.ShardStore.write", 2, 1),
        ("bm25", "scores.store.ShardStore.write", 5, 4), ("target-path", "scores.store.ShardStore.write", 2, 1),
    ],
)  # fmt: skip
def test_killed_it_goes_on_and_ends_with_the_same_files(
    name: str, function: str, call: int, left_shards: int, picked: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    """TSDS: its fourth shard is the first of the scores; the three of embeddings have become one file by then."""
    with killed(function=f"tov.{function}", call=call):
        select(tmp_path / "run", tiny_folder, VARIANTS[name])
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("rows-*")}
    assert len(left) == left_shards, f"shards before the kill: {left}"
    found, wanted = files_of(select(tmp_path / "run", tiny_folder, VARIANTS[name])), files_of(picked[name])
    kept = [path for path in left if path.exists()]
    assert all(path.stat().st_mtime_ns == left[path] for path in kept), "a finished shard was made again"
    assert found.keys() == wanted.keys()
    for file in wanted:
        assert found[file] == wanted[file], f"{file} differs from the undisturbed run's"
    assert not list((tmp_path / "run").rglob("*.tmp"))


# Compare


@pytest.mark.slow
def test_every_method_is_compared_and_chooses_as_select_does(
    picked: dict[str, Any], tiny_folder: Path, tmp_path: Path
) -> None:
    variants = [*VARIANTS.values(), "rds/score-only", "dsir/mean", "uncertainty", "random"]
    given = {
        **inputs(), "test": make_rows(5, seed=3), "model": str(tiny_folder), "methods": variants, "sizes": [8], "seeds": 1,
        "base_size": 8, "epochs": 1, "max_length": 64, "shard_rows": 16, "train_rows": 16, "device": "cpu", "dtype": "fp32",
        "quiet": True, "out": tmp_path / "run",
    }  # fmt: skip
    compared = tov.compare(**given)
    trials = {one["variant"]: one for one in compared.trials if one["n"] == 8}
    assert all(one["status"] == "done" for one in trials.values()), [one["error"] for one in trials.values()]
    for name in RIVALS:
        rows = [int(row) for row in picked[name].dataset["tov_row_id"]]
        assert trials[VARIANTS[name]]["rows_fingerprint"] == digest(rows), f"{name} chooses otherwise than tov select"
        assert trials[VARIANTS[name]]["scoring"]["seconds"] > 0
        assert VARIANTS[name] in compared.report
    tables = [path.parent for path in compared.folder.glob("scores/*/*/scores")]
    assert len(tables) == 9, "seven methods, another option of DSIR, and the path: a table each; a rule is no table"
    assert len(list(compared.folder.glob("scores/*/artifacts/embed-*"))) == 1, "RDS+ and TSDS embed the pool once"
    before = (compared.folder / "trials.jsonl").read_bytes()
    assert (tov.compare(**given).folder / "trials.jsonl").read_bytes() == before, "a finished trial was run again"
    with pytest.raises(RunError, match=r"trials of other rules: dsir: sample"):
        tov.compare(**{**given, "methods": ["dsir"], "rule": "score+random"})


@pytest.mark.slow
def test_a_size_of_a_comparison_chooses_as_select_does_whatever_the_other_sizes(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """TSDS spreads its mass on as many rows as are to be chosen: a table a size. One that cannot be had fails alone."""
    given = {
        **inputs(), "test": make_rows(5, seed=3), "model": str(tiny_folder), "methods": ["tsds/max_k=3"], "seeds": 1,
        "base_size": 8, "epochs": 1, "max_length": 64, "shard_rows": 16, "train_rows": 16, "device": "cpu", "dtype": "fp32",
        "quiet": True, "out": tmp_path / "run", "sizes": [4, 8, 30],
    }  # fmt: skip
    compared = tov.compare(**given)
    trials = {one["n"]: one for one in compared.trials if one["method"] == "tsds"}
    for n in (4, 8):
        rows = select(tmp_path / str(n), tiny_folder, "tsds/max_k=3", n=n).dataset["tov_row_id"]
        assert trials[n]["rows_fingerprint"] == digest([int(row) for row in rows]), f"n = {n}"
    assert [trials[n]["status"] for n in (4, 8, 30)] == ["done", "done", "failed"]
    assert "raise tsds/max_k" in trials[30]["error"]
    assert len(list(compared.folder.glob("scores/*/artifacts/embed-*"))) == 1


def test_the_test_of_a_comparison_is_in_no_warm_up_of_a_store(tiny_folder: Path, tmp_path: Path) -> None:
    pool, target, test = make_rows(40, seed=1), make_rows(6, seed=2), make_rows(5, seed=3)
    pool[11], pool[12], seen = test[0], target[0], []
    drawn = warm_up.draw_rows

    def noted(rows: Any, *args: Any) -> Any:
        seen.append(np.flatnonzero(~rows.usable).tolist())
        return drawn(rows, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm_up, "draw_rows", noted)
        compared = tov.compare(
            model=str(tiny_folder), pool=pool, target=target, test=test, methods=[f"{STORED}/store={tmp_path / 'store'}"],
            sizes=[8], seeds=1, base_size=8, epochs=1, max_length=64, train_rows=16, device="cpu", dtype="fp32", quiet=True,
            out=tmp_path / "run",
        )  # fmt: skip
    assert seen == [[11]], "the test's prompt, and nothing but it, is out of the store"
    assert any("1 rows that the target excludes are in the store" in one for one in compared.trials[-1]["notes"])


@pytest.mark.slow
@pytest.mark.parametrize("task", ["instruction", "ner"])
def test_random_rows_of_a_selection_are_a_comparison_s(
    task: str, tiny_folder: Path, encoder: Path, tmp_path: Path
) -> None:
    """The very rows, for each seed and size, among them more than one shard and a row without a scored token."""
    model, given = {"instruction": tiny_folder, "ner": encoder}[task], inputs(task)
    test = given["target"][-2:] if task == "ner" else make_rows(5, seed=3)
    given = {**given, "target": given["target"][:4], "decontaminate": False}
    sizes = [4, 30]
    compared = tov.compare(
        **given, **PLAIN, test=test, model=str(model), methods=["random"], sizes=sizes, seeds=2, train_rows=30,
        quiet=True, out=tmp_path / "compared",
    )  # fmt: skip
    for seed in (0, 1):
        made = select(tmp_path / str(seed), model, "random", task, **given, seed=seed, n=30)
        rows = [int(row) for row in made.dataset["tov_row_id"]]
        for n in sizes:
            [trial] = [one for one in compared.trials if (one["n"], one["seed"]) == (n, seed)]
            assert trial["rows_fingerprint"] == digest(rows[:n]), f"seed {seed}, n = {n}"
        again = tov.reselect(made.folder, n=4, out=tmp_path / f"{seed}-again", pool=given["pool"])
        assert list(again.dataset["tov_row_id"]) == rows[:4]
    assert made.scores["score_random"].to_numpy()[rows[0]] == -1
    assert task == "ner" or 7 not in rows, "a row without a scored token"


@pytest.mark.slow
def test_random_rows_are_a_run_like_any_other(tiny_folder: Path, tmp_path: Path, picked: dict[str, Any]) -> None:
    made = select(tmp_path / "run", tiny_folder, "random")
    summary = (made.folder / "summary.md").read_text(encoding="utf-8")
    assert "scored by random: drawn uniformly from 38 rows" in summary
    assert (made.manifest.cost["tokens_forward"], made.manifest.artifacts) == (0, {})
    assert set(made.dataset["tov_reason"]) == {"score"}
    with pytest.raises(ConfigError, match=r"(?s)random cannot rank by the scores of tov.*tov select --method random"):
        tov.reselect(picked["tov"].folder, n=4, method="random", out=tmp_path / "no", pool=inputs()["pool"])
    capped = select(tmp_path / "capped", tiny_folder, "random", source_cap=1.0, bins=2)
    assert len(set(capped.dataset["tov_row_id"])) == 8
    files = {role: str(write_jsonl(tmp_path / f"{role}.jsonl", rows)) for role, rows in inputs().items()}
    by_chance = select(tmp_path / "half", tiny_folder, "random", **files, rule="score+random")
    compared = tov.compare(
        from_run=str(by_chance.folder), test=make_rows(5, seed=3), methods=["random"], sizes=[4], seeds=1, train_rows=4,
        quiet=True, out=tmp_path / "compared",
    )  # fmt: skip
    assert {trial["variant"] for trial in compared.trials} == {"random"}


@pytest.mark.slow
def test_a_cap_and_a_rule_are_options_of_any_variant(tiny_folder: Path, tmp_path: Path) -> None:
    pool = [write_jsonl(tmp_path / f"{name}.jsonl", make_rows(20, seed=at)) for at, name in enumerate(("a", "b"))]
    given = {"pool": [str(one) for one in pool], "target": make_rows(6, seed=2), "n": 10}
    for variant in (
        "dsir/source_cap=0.5",
        f"{VARIANTS['less']}/score+random/bins=2",
        "rds/source_cap=0.5",
        "dsir/score-only",
    ):
        one = select(tmp_path / digest(variant), tiny_folder, variant, **given)
        assert len(set(one.dataset["tov_row_id"])) == 10
        if "cap" in variant:
            assert Counter(one.dataset["tov_source"]) == {"a": 5, "b": 5}
    lone = select(tmp_path / "lone", tiny_folder, "dsir/score-only", source_cap={"a": 0.2}, **given)
    assert Counter(lone.dataset["tov_source"]) == {"a": 2, "b": 8}
    assert Counter(lone.dataset["tov_reason"]) == {"score": 10}
    with pytest.raises(DataError, match=r"--source-cap allows 4 rows \(a 2 of 20, b 2 of 20\)"):
        select(tmp_path / "few", tiny_folder, "dsir/source_cap=0.2", **given)
    with pytest.raises(ConfigError, match=r"no source 'c'.*\n.*a, b"):
        select(tmp_path / "c", tiny_folder, "dsir", source_cap={"c": 0.2}, **given)


# What cannot be


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "les"}, r"--method got 'les': there is no method 'les' \(did you mean 'less'\?\)"),
        ({"method": "less/dimensions=4"}, "'dimensions=4' is no option of less"),
        ({"method": "less/store="}, "'store=' has no usable value"),
        ({"method": "tracin/store=x"}, "'store=x' is no option of tracin"),
        ({"method": "less/dim=0"}, "dim got 0, but must be greater than or equal to 1"),
        ({"method": "less/dim=100/nonzeros=8"}, "nonzeros=8 is no divisor of dim=100"),
        ({"method": "less/abs"}, "'abs' is no option of less"),
        ({"method": "less/"}, "'' is no option of less"),
        ({"method": "less/projection=rademacher/nonzeros=2"}, "nonzeros=2 is for projection=sjlt"),
        ({"method": "tsds/sigma=0/kde_k=3"}, "kde_k=3 has no effect without a density"),
        ({"method": "dsir/over=median"}, "over got 'median', but must be 'sum' or 'mean'"),
        ({"method": "full"}, "--method full scores nothing"),
        ({"method": "random", "rule": "round-robin"}, "random has only one score a row"),
        ({"method": "random", "base_size": 8}, "--base-size has no effect with --method random"),
        ({"method": "random/bins=2"}, "'bins=2' is no option of random"),
        ({"method": "less", "target_learning_rate_ratio": 0.5},
         "--target-learning-rate-ratio has no effect with --method less"),
        ({"method": "less", "epochs": 2}, r"(?s)--epochs has no effect with --method less.*--method less/epochs="),
        ({"method": "dsir", "transform": "abs"}, "--transform has no effect with --method dsir"),
        ({"method": "uncertainty", "transform": "abs"}, "--transform has no effect with --method uncertainty"),
        ({"method": "tov/target_learning_rate_ratio=1", "target_learning_rate_ratio": 0.5}, "Say it once"),
        ({"method": "tov/round-robin"}, r"(?s)has only one score a row.*round-robin with less, bm25, tsds, rds"),
        ({"method": "tov/nearness=0.5/sample"}, "sample draws by exp.*--nearness, which ranks by percentiles"),
        ({"method": "random", "rule": "sample"}, "whose rows are drawn already"),
        ({"method": "rds", "bins": 4}, "4 bins have no effect with rule round-robin"),
        ({"method": f"{VARIANTS['less']}/round-robin"}, "target has only one"),
        ({"method": f"{VARIANTS['less']}/subtask_column=subject"}, "the target has no such column"),
        ({"method": "less/lora_target_modules=w_pack"}, "--lora-target-modules w_pack"),
        ({"method": "dsir", "source_cap": 2}, "source-cap"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_what_can(
    given: dict[str, Any], says: str, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        select(tmp_path / "run", tiny_folder, **given)


def test_a_run_that_made_nothing_gives_way_to_the_corrected_command(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such column"):
        select(tmp_path / "run", tiny_folder, f"less/{SMALL_LORA}/subtask_column=nope")
    select(tmp_path / "run", tiny_folder, "dsir")
    with pytest.raises(RunError, match="holds another run"):
        select(tmp_path / "run", tiny_folder, "dsir/mean")


def test_rows_without_a_score_and_options_are_told(tiny_folder: Path, tmp_path: Path) -> None:
    made = select(tmp_path / "run", tiny_folder, "dsir/min_example_length=6/score+random/bins=2")
    unscored = made.summary["choice"]["without_score"]
    assert 0 < unscored < made.summary["scores"]["usable"]
    text = (made.folder / "summary.md").read_text(encoding="utf-8")
    assert f"- {unscored:,} rows that could be chosen have no score by the method" in text
    assert "- options: `over=sum, tokenizer=wordpunct" in text
    assert "- bins: `2`" in text


def test_a_run_without_a_path_scores_no_other_pool(picked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"(?s)scored by less, which leaves no path.*tov select --method less"):
        tov.score(picked["less"].folder, make_rows(5), out=tmp_path / "scored")


def test_stages_name_the_shard_that_is_another_s(picked: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(picked["target-path"].folder, tmp_path / "run"))
    facts = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**facts, "status": "running"}))
    shard = next(iter((picked["less"].folder / "scores").iterdir()))
    shutil.copy(shard, folder / "scores" / shard.name)
    with pytest.raises(RunError, match="belongs to another run"):
        select(folder, tiny_folder, VARIANTS["target-path"])


# Methods of other packages

PLUG_IN = """
from contextlib import contextmanager
from dataclasses import dataclass
from tov.config.settings import Settings
from tov.methods import Method, Scorer

class Options(Settings):
    sign: int = 1

@dataclass(frozen=True, kw_only=True)
class Lengths(Scorer):
    sign: int

    @contextmanager
    def open(self, models):
        yield lambda shard: {"score_longest": self.sign * shard.encoded.sizes.astype(float)}

class Longest(Method):
    name, summary, needs, options = "longest", "the longest rows", "text", Options

    def prepare(self, work):
        return Lengths(sign=work.options.sign)

NOT_ONE = 3

class Less(Longest):
    name = "less"

class Empty(Method):
    name, summary = "empty", "no function"

class Misnamed(Longest):
    name = "another"

class Silent(Longest):
    name, summary = "silent", ""
"""


@pytest.fixture
def plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a package with these entry points: what pip leaves of one."""

    def install(module: str = "tov_longest", source: str = PLUG_IN, **methods: str) -> None:
        place = tmp_path / "site"
        info = place / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (place / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n")
        lines = [f"{name.replace('_', '-')} = {value}" for name, value in methods.items()]
        (info / "entry_points.txt").write_text("\n".join(["[tov.methods]", *lines, ""]))
        monkeypatch.syspath_prepend(str(place))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


@pytest.mark.slow
def test_another_package_s_method_is_a_method_like_any_other(plugged: Any, tiny_folder: Path, tmp_path: Path) -> None:
    plugged(longest="tov_longest:Longest")
    one = select(tmp_path / "run", tiny_folder, "longest")
    tokens = one.scores["tokens"].to_numpy()
    usable = np.array([not reason for reason in one.scores["excluded"].to_pylist()])
    assert sorted(tokens[list(one.dataset["tov_row_id"])]) == sorted(tokens[usable])[-8:]
    shortest = select(tmp_path / "shortest", tiny_folder, "longest/sign=-1")
    assert sorted(tokens[list(shortest.dataset["tov_row_id"])]) == sorted(tokens[usable])[:8]
    compared = tov.compare(
        **inputs(), model=str(tiny_folder), test=make_rows(5, seed=3), methods=["longest", "random"], sizes=[8], seeds=1,
        max_length=64, train_rows=16, quiet=True, out=tmp_path / "compared",
    )  # fmt: skip
    assert {trial["variant"]: trial["status"] for trial in compared.trials}["longest"] == "done"
    assert "longest  " in page.overview()
    assert "### longest" not in page.whole_page(), "the documents are of what is in the box"


@pytest.mark.slow
def test_the_method_of_the_page_is_one_file_that_works(
    plugged: Any, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (DOCS / "own-method.md").read_text(encoding="utf-8")
    [source] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(source.splitlines()) <= 40
    [(name, module, kind)] = re.findall(r'\[project\.entry-points\."tov\.methods"\]\n(\w+) = "(\w+):(\w+)"\n```', text)
    assert f"`{module}.py`" in text
    plugged(module, source, **{name: f"{module}:{kind}"})

    given = {**inputs(), "test": make_rows(5, seed=3)}
    files = {role: str(write_jsonl(tmp_path / f"{role}.jsonl", rows)) for role, rows in given.items()}
    common = ["--model", str(tiny_folder), "--pool", files["pool"], "--target", files["target"], "--max-length", "64"]
    common += ["--device", "cpu", "--dtype", "fp32"]

    def told(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, err = capsys.readouterr()
        assert not ended.value.code, err
        return out

    def selected(out: str) -> None:
        asked = ["--n", "8", "--method", f"{name}/quantile=0.9", "--shard-rows", "16", "--out", str(tmp_path / out)]
        told("select", *common, *asked, "--quiet")

    assert "quantile [0.5]" in told("methods", name)
    assert f"| {name} | 0 | 0 | 0.0 |" in " ".join(told("plan", *common, "--methods", name, "--no-probe").split())
    selected("whole")
    table = read_table(tmp_path / "whole" / "scores")
    usable = np.array([not reason for reason in table["excluded"].to_pylist()])
    wanted = np.quantile([len(row["completion"]) + 1 for row in given["target"]], 0.9)
    found = table[f"score_{name}"].to_numpy()
    np.testing.assert_allclose(found[usable], -np.abs(table["tokens"].to_numpy()[usable] - wanted), rtol=1e-6)
    with killed(function="tov.scores.store.ShardStore.write", call=2):
        selected("killed")
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("rows-*")}
    assert len(left) == 1
    selected("killed")
    assert all(path.stat().st_mtime_ns == time for path, time in left.items()), "a finished shard was made again"
    for path in [*(tmp_path / "whole" / "scores").iterdir(), tmp_path / "whole" / "selected.jsonl"]:
        assert (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    asked = ["--test", files["test"], "--methods", name, "random", "--sizes", "8", "--seeds", "1", "--train-rows", "16"]
    told("compare", *common, *asked, "--quiet", "--out", str(tmp_path / "compared"))
    assert f"| {name} " in (tmp_path / "compared" / "report.md").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="quantile got 2"):
        parse_variant(f"{name}/quantile=2")


def test_a_broken_plug_in_is_named_when_it_is_asked_for_and_harms_no_other(plugged: Any) -> None:
    plugged(
        gone="tov_gone:M", number="tov_longest:NOT_ONE", less="tov_longest:Less", empty="tov_longest:Empty",
        misnamed="tov_longest:Misnamed", silent="tov_longest:Silent",
    )  # fmt: skip
    for name, says in (
        ("gone", "The method 'gone' of the package tov-longest cannot be imported: ModuleNotFoundError"),
        ("number", "is a int.(.|\\n)*a subclass of tov.methods.Method"),
        ("less", "has the name of a method that tov has"),
        ("empty", "does not implement prepare"),
        ("misnamed", "is called 'another'"),
        ("silent", "has no summary"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_plug_in(plug_ins()[name])
        assert f"{name}  " in page.overview()
        if name != "less":
            with pytest.raises(ConfigError, match=says):
                find_method(name)
    assert page.overview().count("broken:") == 6
    assert type(find_method("dsir")) is Dsir
    assert len(plug_ins()) == 6


def test_a_column_that_is_not_there_is_told() -> None:
    class Odd(Method):
        name, summary = "odd", "none"

    with pytest.raises(RunError, match="no column score_odd"):
        Odd().rank(pa.table({"row_id": [0]}), RuleSettings())


# Planted pools


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        "less/lora_r=4/lora_alpha=16/batch_size=16/learning_rate=0.001/warm_up_share=0.2/epochs=2/dim=256",
        "tracin/lora_r=4/lora_alpha=16/batch_size=16/learning_rate=0.001/warm_up_share=0.2/epochs=2", "dsir/score-only",
        "bm25", "tsds", "rds", "target-path/epochs=10/learning_rate=0.005/lora_alpha=16",
    ],
)  # fmt: skip
def test_rows_of_the_target_s_style_are_found(variant: str, minilm: str, tmp_path: Path) -> None:
    """Sentences of six styles, 24 of one as the target: each method finds more of that style than chance does."""
    pytest.importorskip("faker")
    from tov.cli.demo_data import TARGET_STYLE, read_styles

    parts = read_styles(56)
    target, parts[TARGET_STYLE] = parts[TARGET_STYLE][:24], parts[TARGET_STYLE][24:]
    pool = [write_jsonl(tmp_path / f"{name}.jsonl", rows[:32]) for name, rows in parts.items()]
    one = tov.select(
        model=minilm, pool=[str(file) for file in pool], target=target, n=24, method=variant, out=tmp_path / "run", quiet=True,
        dtype="fp32",
    )  # fmt: skip
    share = Counter(one.dataset["tov_source"])[TARGET_STYLE] / 24
    assert share > 2 / len(parts), (
        f"{variant}: {share:.0%} of the rows are of the target's style, chance has {1 / len(parts):.0%}"
    )


@pytest.mark.model
@pytest.mark.slow
def test_a_language_model_embeds_and_trains_a_target_path(smollm2: str, corpus: None, tmp_path: Path) -> None:
    from tov.cli.demo_data import TARGET_TOPIC, read_topics

    parts = read_topics()
    others = [name for name in parts if name != TARGET_TOPIC][:7]
    pool = [write_jsonl(tmp_path / f"{name}.jsonl", parts[name][16:20]) for name in (TARGET_TOPIC, *others)]
    chance = 4 / sum(len(file.read_text().splitlines()) for file in pool)
    for variant, shots in (("rds", 16), ("target-path/epochs=2", 4)):
        one = tov.select(
            model=smollm2, pool=[str(file) for file in pool], target=parts[TARGET_TOPIC][:shots], n=8, method=variant,
            out=tmp_path / variant[:3], max_length=64, quiet=True,
        )  # fmt: skip
        scores = read_table(one.folder / "scores")[find_method(variant.partition("/")[0]).column].to_numpy()
        assert np.isfinite(scores).sum() >= 8
        share = Counter(one.dataset["tov_source"])[TARGET_TOPIC] / 8
        assert variant != "rds" or share > chance, (
            f"{share:.0%} of the rows are of the target's topic, chance has {chance:.0%}"
        )


def test_gradients_are_whole_unless_a_projection_is_asked_for() -> None:
    """A projection that is named has a dimension; a dimension alone is a sparse projection; nothing named is none."""
    wanted = {
        "less": (None, "sjlt"), "tracin/dim=64": (64, "sjlt"), "less/projection=rademacher": (8192, "rademacher"),
        "less/nonzeros=4": (8192, "sjlt"),
    }  # fmt: skip
    for variant, (dim, kind) in wanted.items():
        own = parse_variant(variant).options
        assert own is not None
        assert (own.dim, own.projection) == (dim, kind), variant
        assert type(own).model_validate(own.model_dump()) == own, (
            "a stored record means something else when it is read again"
        )


def test_no_package_replaces_a_method_of_tov_or_of_another_package(
    plugged: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clash is told with the package's name, and the module that asks for it is not even imported."""
    plugged("evil_tov", f"open({str(tmp_path / 'mark')!r}, 'w')\n", tov="evil_tov:M", shared="evil_tov:M")
    plugged("other_one", PLUG_IN, shared="other_one:Longest")
    assert type(find_method("tov")).__module__ == "tov.methods.tov.method"
    with pytest.raises(ConfigError, match="has the name of one of the package"):
        find_method("shared")
    with pytest.raises(SystemExit) as ended:
        main(["methods"])
    told = " ".join(capsys.readouterr().out.split())
    assert not ended.value.code
    assert "broken: The method 'tov' of the package evil-tov has the name of a method that tov has" in told
    assert "tov rows whose log-loss falls" in told
    assert not (tmp_path / "mark").exists(), "it was imported"
