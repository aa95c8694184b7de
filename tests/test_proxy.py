"""A proxy scores, the model is trained: whose numbers stand in the table, what is said of both, and how far they agree."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import tov
from test_methods import ALL, PLAIN, inputs
from test_plan import NEAR
from tiny import tiny_model_folder, write_jsonl
from tov.comparison.agreement import agreement
from tov.errors import ConfigError, ModelError
from tov.methods import score_pool
from tov.reports.html.selection import selection_page
from tov.reports.proxy import proxy_warnings
from tov.runs.manifest import read_manifest

TOV = "tov/epochs=2/base_size=8"
SAMPLED = "proxy-sample"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half as wide as the model, with other weights."""
    return tiny_model_folder(tmp_path_factory.mktemp("small"), seed=5, name="small", hidden_size=16)


def select(folder: Path, model: Path, proxy: Path | None, method: str = TOV, **changed: Any) -> Any:
    given = {**inputs(), **PLAIN, "n": 8, "shard_rows": 16, "quiet": True, "method": method, "proxy_sample": 20}
    of_proxy = {"proxy_model": str(proxy)} if proxy else {}
    whole = {**given, **of_proxy, **changed}
    return tov.select(model=str(model), out=folder, **{key: value for key, value in whole.items() if value is not ...})


@pytest.fixture(scope="module")
def picked(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, small: Path) -> Any:
    return select(tmp_path_factory.mktemp("picked") / "run", tiny_folder, small)


@pytest.mark.parametrize("name", ALL)
def test_the_scores_are_those_of_a_run_with_the_proxy_as_its_model(
    name: str, tmp_path: Path, tiny_folder: Path, small: Path
) -> None:
    if name in ("dsir", "bm25"):
        with pytest.raises(ConfigError, match=f"proxy-model has no effect with --method {name}"):
            select(tmp_path / "none", tiny_folder, small, ALL[name], proxy_sample=...)
        return
    sample = ... if name == "tsds" else 20
    mine = select(tmp_path / "mine", tiny_folder, small, ALL[name], proxy_sample=sample)
    plain = select(tmp_path / "plain", small, None, ALL[name], proxy_sample=...)
    assert mine.scores.to_pandas().equals(plain.scores.to_pandas())
    assert mine.dataset["tov_row_id"] == plain.dataset["tov_row_id"]
    assert mine.manifest.model == plain.manifest.model
    assert mine.manifest.chosen_for.name == str(tiny_folder)
    assert bool(mine.summary["proxy"]["agreement"]) == (name != "tsds")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tov", "less", "rds", "target-path"])
def test_the_sample_has_the_scores_that_the_model_gives_it_in_the_whole_pool(
    name: str, tmp_path: Path, tiny_folder: Path, small: Path
) -> None:
    """What is trained before is trained on rows of the whole pool; batches of other rows alone make numbers differ."""
    mine = select(tmp_path / "mine", tiny_folder, small, ALL[name])
    whole = select(tmp_path / "whole", tiny_folder, None, ALL[name], proxy_sample=...)
    inner = tov.verbs.result.Result(tov.runs.folder.Run(mine.folder / SAMPLED, read_manifest(mine.folder / SAMPLED)))
    row_ids = inner.summary["row_ids"]
    assert len(row_ids) == 20
    assert inner.scores["hash"].to_pylist() == whole.scores["hash"].take(row_ids).to_pylist()
    for column in (one for one in whole.scores.column_names if one.startswith("score_")):
        wanted = whole.scores[column].to_numpy()[row_ids]
        np.testing.assert_allclose(inner.scores[column].to_numpy(), wanted, atol=2e-4, rtol=2e-3)
    assert inner.manifest.model == whole.manifest.model == mine.manifest.chosen_for


@pytest.mark.slow
def test_agreement_is_of_the_ranked_column_and_chosen_again_with_it(
    tmp_path: Path, tiny_folder: Path, small: Path
) -> None:
    mine = select(tmp_path / "mine", tiny_folder, small)
    whole = select(tmp_path / "whole", tiny_folder, None, proxy_sample=...)
    row_ids = np.array(read_manifest(mine.folder / SAMPLED).summary["row_ids"])
    free = row_ids[
        ~whole.scores["in_base"].to_numpy()[row_ids] & np.isfinite(whole.scores["loss_base"].to_numpy()[row_ids])
    ]

    def expected(column: str) -> float:
        return float(stats.spearmanr(*(one.scores[column].to_numpy()[free] for one in (mine, whole))).statistic)

    again = tov.reselect(mine, n=5, out=tmp_path / "again", pool=inputs()["pool"], transform="identity", quiet=True)
    for run, column in ((mine, "score_positive"), (again, "score_identity")):
        [found] = run.summary["proxy"]["agreement"].values()
        assert found["rows"] == len(free)
        assert found["correlation"] == pytest.approx(expected(column), abs=0.02), column
    assert again.manifest.chosen_for == mine.manifest.chosen_for
    shutil.rmtree(mine.folder / SAMPLED)
    last = tov.reselect(mine, n=5, out=tmp_path / "last", pool=inputs()["pool"], quiet=True)
    assert "was not measured" in str(last)


@pytest.mark.slow
def test_summary_page_and_json_say_that_a_proxy_scored(picked: Any, tiny_folder: Path, small: Path) -> None:
    texts = {
        "terminal": str(picked),
        "summary": (picked.folder / "summary.md").read_text(),
        "page": (picked.folder / "report.html").read_text(),
    }
    for name, text in texts.items():
        assert "rank correlation" in text, name
        assert "tokens of the proxy" in text, name
    facts = dict(selection_page(picked.manifest, None, "run").facts)
    assert (facts["model"], facts["scored by the proxy"]) == (str(tiny_folder), str(small))
    told = json.loads(json.dumps(picked.record))["summary"]["proxy"]
    assert (told["proxy"], told["model"]) == (str(small), str(tiny_folder))


def test_a_doubtful_agreement_is_warned_of(picked: Any) -> None:
    [found] = picked.summary["proxy"]["agreement"].values()
    assert found["low"] < 0 < found["high"], "two random models do not agree"
    warning = f"{found['low']:+.2f} to {found['high']:+.2f}, includes 0"
    assert any(warning in one for one in picked.manifest.checks.warnings)


@pytest.mark.slow
def test_the_model_is_trained_and_exported_and_compared(picked: Any, tmp_path: Path, tiny_folder: Path) -> None:
    pool = inputs()["pool"]
    trained = tov.train(picked, out=tmp_path / "trained", pool=pool, num_train_epochs=1, device="cpu", quiet=True)
    assert trained.manifest.trained["model"] == str(tiny_folder)
    exported = tov.export(picked, to="trl", out=tmp_path / "exported", quiet=True)
    assert any(str(tiny_folder) in file.read_text() for file in exported.folder.rglob("*.py"))
    card = next(exported.folder.rglob("README.md")).read_text()
    assert "is a proxy" in card
    compared = tov.compare(
        from_run=picked, pool=pool, target=inputs()["target"], test=inputs("instruction")["target"][:3], methods=["random"],
        sizes=[4], seeds=1, train_rows=8, out=tmp_path / "compared", decontaminate=False, quiet=True, near_duplicates="keep",
    )  # fmt: skip
    assert compared.manifest.model.name == str(tiny_folder)


@pytest.mark.slow
def test_a_model_that_has_changed_since_is_not_trained(tmp_path: Path, small: Path) -> None:
    folder = tiny_model_folder(tmp_path, name="model")
    picked = select(tmp_path / "run", folder, small)
    shutil.rmtree(folder)
    tiny_model_folder(tmp_path, name="model", seed=9)
    with pytest.raises(ModelError, match="no longer the one that the rows were chosen with"):
        tov.train(picked, out=tmp_path / "trained", pool=inputs()["pool"], num_train_epochs=1, device="cpu", quiet=True)


@pytest.mark.slow
def test_without_a_sample_the_model_is_not_opened(tmp_path: Path, small: Path) -> None:
    """Its tokenizer and configuration are enough: the weights are not there."""
    folder = tiny_model_folder(tmp_path, name="model")
    (folder / "model.safetensors").unlink()
    picked = select(tmp_path / "run", folder, small, proxy_sample=0)
    assert picked.summary["proxy"]["agreement"] == {}
    assert not (picked.folder / SAMPLED).exists()
    assert "was not measured" in str(picked)
    assert SAMPLED not in picked.manifest.spent
    assert (picked.manifest.chosen_for.max_length, picked.manifest.chosen_for.fingerprint) == (64, None)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_with_the_sample_that_is_there(
    picked: Any, tmp_path: Path, tiny_folder: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill, calls = score_pool.fill_table, []

    def second_fails(*given: Any, **named: Any) -> None:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        fill(*given, **named)

    monkeypatch.setattr(score_pool, "fill_table", second_fails)
    with pytest.raises(KeyboardInterrupt):
        select(tmp_path / "run", tiny_folder, small)
    assert read_manifest(tmp_path / "run" / SAMPLED).status == "finished"
    again = select(tmp_path / "run", tiny_folder, small)
    assert len(calls) == 3, "the sample was not scored again"
    assert again.summary["proxy"] == picked.summary["proxy"]
    assert again.manifest.spent == picked.manifest.spent
    assert again.scores.to_pandas().equals(picked.scores.to_pandas())


def test_another_proxy_or_sample_is_another_run(picked: Any, tiny_folder: Path, small: Path) -> None:
    again = select(picked.folder, tiny_folder, small)
    assert again.manifest.started == picked.manifest.started
    with pytest.raises(tov.RunError, match="proxy_sample: 20 -> 21"):
        select(picked.folder, tiny_folder, small, proxy_sample=21)
    with pytest.raises(tov.RunError, match=r"proxy: \w+ -> None"):
        select(picked.folder, tiny_folder, None, proxy_sample=...)


@pytest.mark.slow
def test_a_finished_run_is_returned_when_both_models_are_gone(tmp_path: Path, tiny_folder: Path, small: Path) -> None:
    model, proxy = (shutil.copytree(one, tmp_path / name) for one, name in ((tiny_folder, "m"), (small, "p")))
    files = {name: write_jsonl(tmp_path / f"{name}.jsonl", inputs()[name]) for name in ("pool", "target")}
    done = select(tmp_path / "run", model, proxy, **files)
    shutil.rmtree(model)
    shutil.rmtree(proxy)
    assert select(tmp_path / "run", model, proxy, **files).manifest.started == done.manifest.started
    with pytest.raises(tov.ModelError):
        select(tmp_path / "run", model, tmp_path / "other", **files)


def test_the_warning_says_why_nothing_is_shown() -> None:
    ranked, facts = np.arange(9.0), {"proxy": "small", "model": "large"}
    cases = {
        "one of them gives all sampled rows one score": np.zeros(9), "lies below 0; take another proxy": -ranked,
    }  # fmt: skip
    for says, other in cases.items():
        [warning] = proxy_warnings({**facts, "agreement": {"target": asdict(agreement(ranked, other))}})
        assert warning.endswith(says)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"proxy_model": ...}, "proxy-sample has no effect without --proxy-model"),
        ({"method": "tsds"}, "proxy-sample has no effect with --method tsds"),
        ({"method": "auto", "proxy_sample": ...}, "proxy-model has no effect with --method auto"),
        ({"method": "rds/encoder=x", "proxy_sample": ...}, "embeds by an encoder of its own"),
        ({"target_clusters": 2}, "so their agreement cannot be measured"),
        ({"method": "tov/proxy_model=x"}, "'proxy_model=x' is no option of tov"),
    ],
)
def test_what_cannot_take_effect_is_refused(
    changed: dict[str, Any], says: str, tmp_path: Path, tiny_folder: Path, small: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        select(tmp_path / "run", tiny_folder, small, **changed)
    assert not (tmp_path / "run").exists()


def test_the_model_is_no_proxy_of_itself(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="the same model as --model"):
        select(tmp_path / "run", tiny_folder, tiny_folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tov", "less", "rds", "target-path"])
def test_a_plan_foretells_the_stages_of_both_models(name: str, tmp_path: Path, tiny_folder: Path, small: Path) -> None:
    whole = {**inputs(), **PLAIN, "n": 8, "probe": False, "proxy_model": str(small)}
    planned = tov.plan(model=str(tiny_folder), methods=["dsir", ALL[name], "tsds"], proxy_sample=20, **whole)
    dsir, mine, tsds = planned.facts["methods"]
    assert SAMPLED not in {**dsir["stages"], **tsds["stages"]}
    assert (planned.facts["model"]["name"], str(small) in planned.facts["notes"][0]) == (str(small), True)
    spent = select(tmp_path / "run", tiny_folder, small, ALL[name]).manifest.spent
    assert set(mine["stages"]) == set(spent)
    for stage, (forward, backward) in spent.items():
        foretold = mine["stages"][stage]["forward"], mine["stages"][stage]["backward"]
        loose = stage == SAMPLED or stage in NEAR
        assert foretold == (pytest.approx((forward, backward), rel=0.15) if loose else (forward, backward)), stage


def test_a_plan_times_both_models(tiny_folder: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tov.checks.probe.SECONDS", 0.05)
    whole = {**inputs(), **PLAIN, "n": 8, "quiet": True, "methods": [TOV]}
    [both] = tov.plan(model=str(tiny_folder), proxy_model=str(small), **whole).facts["methods"]
    [alone] = tov.plan(model=str(small), **whole).facts["methods"]
    assert set(both["stage_seconds"]) - set(alone["stage_seconds"]) == {SAMPLED}
    assert both["stage_seconds"][SAMPLED] > 0
    with pytest.raises(ConfigError, match="proxy-model has no effect with"):
        tov.plan(model=str(tiny_folder), proxy_model=str(small), **{**whole, "methods": [TOV, "auto"]})


def test_agreement_is_spearmans_and_holds_as_often_as_it_says() -> None:
    draw, within = np.random.default_rng(0), 0
    for _ in range(400):
        one = draw.normal(size=60)
        two = 0.6 * one + 0.8 * draw.normal(size=60)
        found = agreement(one, two)
        assert found.correlation == pytest.approx(np.corrcoef(one.argsort().argsort(), two.argsort().argsort())[0, 1])
        assert found.low is not None
        assert found.high is not None
        within += found.low <= 6 / np.pi * np.arcsin(0.3) <= found.high  # of a normal pair with correlation 0.6
    assert 0.92 <= within / 400 <= 0.98


def test_agreement_of_ties_of_rows_without_a_score_and_of_few() -> None:
    ties = agreement(np.array([1.0, 1, 2, 3, np.nan, 0]), np.array([2.0, 3, 3, 9, 1, -np.inf]))
    assert (ties.rows, ties.top, ties.overlap) == (5, 2, 0.5), "of the two rows with 3 the first is the better"
    assert ties.correlation == pytest.approx(np.corrcoef([2.5, 2.5, 4, 5, 1], [2, 3.5, 3.5, 5, 1])[0, 1])
    same = agreement(np.arange(5.0), np.arange(5.0) ** 3)
    assert (same.correlation, same.low, same.high, same.overlap) == (1.0, 1.0, 1.0, 1.0)
    turned = agreement(np.arange(6.0), -np.arange(6.0))
    assert (turned.correlation, turned.overlap) == (-1.0, 0.0)
    flat = agreement(np.zeros(9), np.arange(9.0))
    assert (flat.correlation, flat.low) == (None, None)
    few = agreement(np.arange(3.0), np.arange(3.0))
    assert (few.correlation, few.low) == (1.0, None)
    none = agreement(np.empty(0), np.empty(0))
    assert (none.rows, none.correlation, none.overlap) == (0, None, None)
