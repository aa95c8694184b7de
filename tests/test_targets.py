"""Several targets in one run: base passes are shared, each target has its share of the rows, every verb knows whose is what."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tov
from test_invalidation import tov_command as command
from tiny import make_rows, tiny_model_folder, write_jsonl
from tov.config.records import SelectConfig
from tov.config.settings import build
from tov.errors import ConfigError, DataError, RunError, TovError
from tov.inputs.named import list_inputs, read_inputs
from tov.methods.tov.path import base_groups, open_path
from tov.methods.tov.variants import VARIANTS, same_for_all, shared_base
from tov.runs.folder import any_run, open_run
from tov.scores.store import read_table
from tov.selection.targets import OfTarget, choose_by_target, split_shares, target_numbers
from tov.verbs import shown as shown_rows
from tov.verbs.result import fitted_paths

RULES = ("score+random", "score-only", "sample", "round-robin")
NAMES = ("sums", "law", "verse")
PLAIN: dict[str, Any] = {
    "base_size": 8, "epochs": 2, "max_length": 64, "shard_rows": 16, "quiet": True, "explain_rows": 4, "page": False,
}  # fmt: skip


def rows_of(name: str, count: int) -> list[dict[str, str]]:
    seed, words = {"sums": (11, "add"), "law": (22, "court"), "verse": (33, "rhyme")}[name]
    return [
        {"prompt": f"{words} {row['prompt']}", "completion": row["completion"]} for row in make_rows(count, seed=seed)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a pool of two sources and three targets."""
    folder = tmp_path_factory.mktemp("targets")
    tiny_model_folder(folder)
    for number, source in enumerate(("web", "books")):
        write_jsonl(folder / f"{source}.jsonl", make_rows(40, seed=number))
    for name in NAMES:
        write_jsonl(folder / f"{name}.jsonl", rows_of(name, 6))
    return folder


def given_to(files: Path, *names: str, **more: Any) -> dict[str, Any]:
    targets = tuple(f"{name}={files / name}.jsonl" for name in names)
    pool = (str(files / "web.jsonl"), str(files / "books.jsonl"))
    return {"model": str(files / "tiny-model"), "pool": pool, "target": targets, **PLAIN, **more}


@pytest.fixture(scope="module")
def parallel(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run for three targets whose base passes are shared."""
    out = tmp_path_factory.mktemp("parallel") / "run"
    return tov.select(**given_to(files, *NAMES, path_variant="parallel", n=12), out=out)


# What is scored


@pytest.mark.slow
def test_several_targets_are_scored_as_each_alone(parallel: Any, files: Path, tmp_path: Path) -> None:
    """To the last bit: the base states are the same, and so are the passes."""
    together = parallel.scores
    for name in NAMES:
        alone = tov.select(**given_to(files, name, path_variant="parallel", n=12), out=tmp_path / name).scores
        for column in alone.column_names:
            if column.startswith(("score_", "loss_", "uncertainty", "nearness")):
                np.testing.assert_array_equal(together[f"{column}@{name}"].to_numpy(), alone[column].to_numpy(), column)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("optimizer", ["fresh", "carry"])
def test_targets_share_what_no_target_has_a_part_in(variant: str, optimizer: str, files: Path, tmp_path: Path) -> None:
    """Passes and trained tokens are what the states that are the same leave; the paths are those of each alone."""
    settings = given_to(files, "sums", "law", path_variant=variant, target_optimizer=optimizer, n=8)
    run = tov.select(**settings, out=tmp_path / "two")
    paths = {name: open_path(folder) for name, folder in fitted_paths(open_run(run.folder)).items()}
    alone = tov.select(**{**settings, "target": settings["target"][1:]}, out=tmp_path / "one")
    assert paths["law"].fingerprint == alone.path.fingerprint
    base = {"parallel": 2, "interleaved": 1, "paired": 2}[variant]
    assert [len(groups) for groups in base_groups(paths)] == [1] * base + [2] * (2 - base)
    spent, of_one = run.manifest.spent, alone.manifest.spent
    assert spent["scan"][0] * 4 == of_one["scan"][0] * (2 * 4 - base)
    shared = shared_base(VARIANTS[variant](2), carry=optimizer == "carry")
    again = sum(entry["tokens"] for entry in paths["law"].manifest["log"])
    trained = sum(entry["tokens"] for entry in alone.path.manifest["log"])
    of_base = sum(entry["tokens"] for entry in alone.path.manifest["log"] if entry["to"] in shared)
    assert bool(shared) == (variant == "paired" or (variant == "parallel" and optimizer == "fresh"))
    assert again == trained - of_base


def test_paths_of_other_numbers_of_epochs_are_not_walked_together(parallel: Any) -> None:
    paths = {name: open_path(folder) for name, folder in fitted_paths(open_run(parallel.folder)).items()}
    longer = paths["law"].epochs + 1
    paths["law"] = replace(paths["law"], manifest={**paths["law"].manifest, "epochs": longer})
    with pytest.raises(RunError, match=f"law {longer}"):
        base_groups(paths)


@pytest.mark.slow
def test_a_plan_tells_what_several_targets_take(parallel: Any, files: Path, tmp_path: Path) -> None:
    settings = {name: value for name, value in given_to(files, *NAMES).items() if name not in ("explain_rows", "page")}
    for variant in VARIANTS:
        run = parallel
        if variant != "parallel":
            run = tov.select(**given_to(files, *NAMES, path_variant=variant, n=12), out=tmp_path / variant)
        plan = tov.plan(**settings, n=12, path_variant=variant, probe=False)
        assert "target  18 of 18 rows (sums 6, law 6, verse 6) have a scored token" in str(plan)
        [planned] = plan.facts["methods"]
        spent = run.manifest.spent
        fits = sum(tokens[0] for stage, tokens in spent.items() if stage.startswith("fit"))
        assert planned["stages"]["scan"]["forward"] == pytest.approx(spent["scan"][0], rel=0.02)
        assert planned["stages"]["fit"]["forward"] == pytest.approx(fits, rel=0.1)
        assert planned["bytes"] == pytest.approx(run.manifest.cost["bytes"], rel=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["less/dim=64", "less/dim=64/store=STORE", "tracin"])
def test_targets_share_the_warm_up_and_the_gradients_that_are_stored(method: str, files: Path, tmp_path: Path) -> None:
    given = {
        name: value for name, value in given_to(files, *NAMES).items()
        if name in ("model", "pool", "target", "max_length", "dtype", "seed")
    }  # fmt: skip
    method = method.replace("STORE", str(tmp_path / "store"))
    run = tov.select(**given, method=method, n=12, page=False, quiet=True, out=tmp_path / "run")
    spent = run.manifest.spent
    made = {"warm-up", "gradients"} if "store" in method else {"warm-up"}
    assert {stage for stage in spent if stage.partition("@")[0] in ("warm-up", "gradients")} == made, (
        "one for all targets"
    )
    [planned] = tov.plan(**given, method=method, n=12, probe=False).facts["methods"]
    for stage in made:
        assert planned["stages"][stage]["forward"] == pytest.approx(spent[stage][0], rel=0.1)
    if "store" in method:
        given["target"] = given["target"][:1]
        again = tov.select(**given, method=method, n=4, page=False, quiet=True, out=tmp_path / "one")
        assert again.run.artifacts["gradients"].name == run.run.artifacts["gradients"].name, "found by one target's run"
        together, alone = run.scores["score_less@sums"].to_numpy(), again.scores["score_less"].to_numpy()
        np.testing.assert_array_equal(together[np.isfinite(together)], alone[np.isfinite(together)])
        assert len(list((tmp_path / "store").glob("gradients*"))) == 1


@pytest.mark.parametrize("method", ["rds", "tsds"])
def test_a_pool_is_embedded_once_for_all_targets(method: str, files: Path, tmp_path: Path) -> None:
    given = {
        name: value for name, value in given_to(files, *NAMES).items()
        if name in ("model", "pool", "target", "max_length", "dtype", "seed")
    }  # fmt: skip
    run = tov.select(**given, method=method, n=12, page=False, quiet=True, out=tmp_path / method)
    spent = {stage: tokens[0] for stage, tokens in run.manifest.spent.items() if stage.startswith("embed")}
    assert len(spent) == len(NAMES)
    first, *others = spent.values()
    assert all(0 < other < first / 2 for other in others), "the targets' own rows alone"
    kept = [*run.folder.glob("artifacts/embed*/pool.npy")]
    assert len({file.stat().st_ino for file in kept}) == 1 < len(kept), "one file under three names"
    [planned] = tov.plan(**given, methods=[method], n=12, probe=False).facts["methods"]
    assert planned["stages"]["embed"]["forward"] == pytest.approx(sum(spent.values()), rel=0.02)
    assert planned["bytes"] == pytest.approx(run.manifest.cost["bytes"], rel=0.5)


@pytest.mark.slow
def test_a_broken_or_lost_embedding_is_no_source_of_another_targets(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both targets have one file of the pool. What breaks it breaks both, and what is made anew must not come from it."""
    given = {
        name: value for name, value in given_to(files, *NAMES[:2]).items()
        if name in ("model", "pool", "target", "max_length", "dtype", "seed")
    } | {"method": "rds", "n": 8, "page": False, "quiet": True}  # fmt: skip
    whole, out = tov.select(**given, out=tmp_path / "whole").scores, tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("tov.methods.score_pool.fill_table", _no_memory)
        with pytest.raises(MemoryError):
            tov.select(**given, out=out)
    first, second = sorted(out.glob("artifacts/embed*"))
    content = bytearray((first / "pool.npy").read_bytes())
    content[-1] ^= 1
    (first / "pool.npy").write_bytes(content)
    for folder in sorted((first, second), key=lambda one: NAMES.index(one.name.partition("@")[2].partition("-")[0])):
        with pytest.raises(RunError, match="not the file that was made"):
            tov.select(**given, out=out)
        shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr("tov.methods.score_pool.fill_table", _no_memory)
        with pytest.raises(MemoryError):
            tov.select(**given, out=out)
    shutil.rmtree(out / "artifacts")
    assert tov.select(**given, out=out).scores.equals(whole)


def _no_memory(*_: Any, **__: Any) -> None:
    raise MemoryError


# What is chosen


def test_each_target_has_its_share_and_the_file_says_whose_a_row_is(parallel: Any) -> None:
    data = parallel.dataset
    counts = {name: sum(one == name for one in data["tov_target"]) for name in NAMES}
    assert counts == dict.fromkeys(NAMES, 4)
    assert len(set(data["tov_row_id"])) == 12
    lines = [json.loads(line) for line in (parallel.folder / "selected.jsonl").read_text().splitlines()]
    assert [line["tov_target"] for line in lines] == data["tov_target"]
    assert all(0 < score <= 1 for score in data["tov_score"] if score is not None), "percentiles"
    told = parallel.summary["choice"]["targets"]
    assert {one["target"]: one["chosen"] for one in told} == counts
    for text in (str(parallel), (parallel.folder / "summary.md").read_text()):
        assert all(name in text for name in NAMES)


def test_shares_of_targets_and_of_sources_hold_together(parallel: Any, tmp_path: Path) -> None:
    shares = {"sums": 0.5, "web": 0.25}
    for rule in RULES[:3]:
        again = tov.reselect(parallel, n=16, out=tmp_path / rule, rule=rule, share=shares, page=False)
        targets, sources = again.dataset["tov_target"], again.dataset["tov_source"]
        assert [targets.count(name) for name in NAMES] == [8, 4, 4]
        for name, web in (("sums", 2), ("law", 1), ("verse", 1)):
            assert sum(of == (name, "web") for of in zip(targets, sources, strict=True)) == web
        reached = again.summary["choice"]["shares"]
        assert reached == {"sums": {"asked": 0.5, "reached": 0.5}, "web": {"asked": 0.25, "reached": 0.25}}
        for text in (str(again), (again.folder / "summary.md").read_text()):
            assert "the target sums takes 50.00 % of the rows; 50 % were asked for" in text
            assert "web gives 25.00 % of the rows; 25 % were asked for" in text


def test_a_target_that_the_shares_leave_nothing_has_the_reason(parallel: Any, tmp_path: Path) -> None:
    """More rows would help a target that has too small a part, and not one that has none."""
    none = "the shares of the other targets are 1 together, so nothing is left for law, verse"
    alone = tov.reselect(parallel, n=3, out=tmp_path / "alone", share={"sums": 1}, page=False)
    assert [note for note in alone.summary["notes"] if "nothing is left" in note] == [none]
    both = tov.reselect(parallel, n=3, out=tmp_path / "both", share={"sums": 0.95, "law": 0.05}, page=False)
    assert [note for note in both.summary["notes"] if "nothing is left" in note] == [
        "the shares of the other targets are 1 together, so nothing is left for verse",
        "so few are asked for that nothing is left for law",
    ]
    few = tov.reselect(parallel, n=2, out=tmp_path / "few", page=False)
    assert "so few are asked for that nothing is left for verse" in few.summary["notes"]


def test_an_error_of_one_target_tells_its_part_and_what_was_asked_for(parallel: Any, tmp_path: Path) -> None:
    few = "The target sums, whose part is 2 of --tokens 6: --tokens is too small: .* a budget of 2"
    with pytest.raises(DataError, match=few):
        tov.reselect(parallel, tokens=6, out=tmp_path / "tokens", page=False)
    with pytest.raises(DataError, match=r"The target law, whose part is 73 of --n 76: .* but --n asks for 73 by score"):
        tov.reselect(parallel, n=76, out=tmp_path / "rows", share={"law": 0.96}, rule="score-only", page=False)


def test_a_budget_of_tokens_is_shared_too(parallel: Any, tmp_path: Path) -> None:
    again = tov.reselect(parallel, tokens=600, out=tmp_path / "run", share={"law": 0.5}, rule="score-only", page=False)
    lengths = parallel.scores["length"].to_numpy()
    chosen = list(zip(again.dataset["tov_row_id"], again.dataset["tov_target"], strict=True))
    spent = {
        name: sum(int(lengths[row]) for row, of in chosen if of == name) for name in NAMES
    }  # fmt: skip
    longest = lengths.max()
    for name, wanted in (("sums", 150), ("law", 300), ("verse", 150)):
        assert abs(spent[name] - wanted) <= longest
    assert sum(spent.values()) <= 600


def test_round_robin_lets_targets_take_turns(parallel: Any, tmp_path: Path) -> None:
    """Also by a method that has one score a row; a target alone has nobody to take turns with."""
    again = tov.reselect(parallel, n=9, out=tmp_path / "run", rule="round-robin", page=False)
    scores = parallel.scores.to_pylist()
    free = {row["row_id"] for row in scores if not row["excluded"] and not row["in_base"]}
    wanted = []
    for turn in range(9):
        name = NAMES[turn % 3]
        best = max(free, key=lambda row: (scores[row][f"score_positive@{name}"] / max(scores[row][f"loss_base@{name}"], 0.1)
                                          if parallel.manifest.identity["settings"]["normalize"] == "initial-loss"
                                          else scores[row][f"score_positive@{name}"], -row))  # fmt: skip
        free.discard(best)
        wanted.append((best, name))
    found = list(zip(again.dataset["tov_row_id"], again.dataset["tov_target"], strict=True))
    assert found == wanted


@st.composite
def tables(draw: Any) -> dict[str, Any]:
    size = draw(st.integers(3, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scores = random.normal(size=(size, 3)).round(draw(st.sampled_from([0, 6])))
    scores[random.random((size, 3)) < 0.1] = np.nan
    return {
        "scores": scores, "tokens": random.integers(1, 8, size), "lengths": random.integers(1, 9, size),
        "in_base": random.random(size) < 0.2, "usable": random.random(size) < 0.9, "codes": random.integers(0, 2, size),
    }  # fmt: skip


@given(table=tables(), rule=st.sampled_from(RULES), n=st.integers(1, 20), seed=st.integers(0, 9), shared=st.booleans())
def test_a_choice_for_targets_is_exact_or_refused(
    table: dict[str, Any], rule: str, n: int, seed: int, shared: bool
) -> None:
    targets = [OfTarget(name, column) for name, column in zip(NAMES, table["scores"].T, strict=True)]
    shares = {"law": 0.6} if shared else {}
    plain = {name: table[name] for name in ("tokens", "in_base", "usable", "codes")}
    try:
        choice = choose_by_target(
            targets, shares=shares, source_shares={}, caps={}, names=["a", "b"], n=n, rule=rule, bins=2, seed=seed, **plain
        )  # fmt: skip
    except DataError:
        assert n > (table["usable"] & ~table["in_base"] & np.isfinite(table["scores"]).all(1)).sum() - 3 or n > 10
        return
    assert len(choice.row_ids) == len(set(choice.row_ids.tolist())) == n
    assert table["usable"][choice.row_ids].all()
    by_score = choice.reasons == "score"
    assert not table["in_base"][choice.row_ids[by_score]].any()
    assert choice.targets is not None
    if n < 3 and (rule != "round-robin" or shared):
        assert any("nothing is left for" in note for note in choice.notes)
    if rule != "round-robin" or shared:
        counts = [int((choice.targets == name).sum()) for name in NAMES]
        assert counts == target_numbers(shares, dict.fromkeys(NAMES, 1), n)
    for name, column in zip(NAMES, table["scores"].T, strict=True):
        assert np.isfinite(column[choice.row_ids[by_score & (choice.targets == name)]]).all()


@given(n=st.integers(0, 10**6), law=st.integers(0, 100), verse=st.integers(0, 100))
def test_numbers_of_targets_are_whole_and_within_one_of_the_shares(n: int, law: int, verse: int) -> None:
    shares = {"law": law / 200, "verse": verse / 200}
    numbers = target_numbers(shares, dict.fromkeys(NAMES, 1), n)
    assert sum(numbers) == n
    assert all(
        abs(number - shares.get(name, 1 - sum(shares.values())) * n) < 1.001
        for name, number in zip(NAMES, numbers, strict=True)
    )


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"poems": 0.5}, "no source and no target is called 'poems'"),
        ({"web": 0.5}, "name of a source and of a target"),
        ({"law": 0.7, "verse": 0.7}, "1.4 together"),
        ({"books": 0.7, "web2": 0.7}, "1.4 together"),
        ({"law": 0.2, "verse": 0.2, "web": 0.2}, "name of a source and of a target"),
    ],
)
def test_shares_that_cannot_be_are_refused(shares: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        split_shares(shares, ["web", "web2", "books"], ["law", "verse", "web"])


def test_shares_of_all_targets_must_be_the_whole() -> None:
    with pytest.raises(ConfigError, match="names every target"):
        split_shares({"law": 0.2, "verse": 0.2}, ["web"], ["law", "verse"])


# What a user names


@pytest.mark.slow
def test_files_without_a_name_are_one_target_and_so_are_those_of_one_name(files: Path, tmp_path: Path) -> None:
    settings = given_to(files, *NAMES, n=8, epochs=1)
    plain = tuple(str(files / f"{name}.jsonl") for name in NAMES)
    one = tov.select(**{**settings, "target": plain}, out=tmp_path / "plain")
    same = tov.select(**{**settings, "target": tuple(f"mine={file}" for file in plain)}, out=tmp_path / "named")
    mixed = tov.select(**{**settings, "target": (plain[0], *settings["target"][1:2], plain[2])}, out=tmp_path / "mixed")
    assert list(one.manifest.targets) == list(same.manifest.targets) == ["target"]
    assert (one.folder / "selected.jsonl").read_bytes() == (same.folder / "selected.jsonl").read_bytes()
    assert {name: record.rows for name, record in mixed.manifest.targets.items()} == {"target": 12, "law": 6}


@pytest.mark.parametrize("verb", [tov.select, tov.fit])
def test_the_order_of_the_targets_is_a_runs_own(verb: Any, files: Path, tmp_path: Path) -> None:
    """They choose in the order given: another order is another choice, not the finished run."""
    amount: dict[str, Any] = {"n": 8} if verb is tov.select else {}
    settings = given_to(files, "sums", "law", epochs=1, **amount)
    if verb is tov.fit:
        settings = {
            name: value for name, value in settings.items() if name not in ("shard_rows", "explain_rows", "page")
        }
    verb(**settings, out=tmp_path / "run")
    with pytest.raises(RunError, match=r"targets\.sums\.place: 1 -> 2"):
        verb(**{**settings, "target": settings["target"][::-1]}, out=tmp_path / "run")


@pytest.mark.slow
def test_targets_of_one_sub_task_each_take_turns(files: Path, tmp_path: Path) -> None:
    """LESS has lists of its own for sub-tasks only; several targets take turns, as under every other method."""
    settings = {
        name: value for name, value in given_to(files, "sums", "law").items() if name not in ("base_size", "epochs")
    }
    done = tov.select(**settings, n=8, method="less/epochs=1/dim=16/round-robin", out=tmp_path / "run")
    rows = [json.loads(line) for line in (done.folder / "selected.jsonl").read_text().splitlines()]
    assert [row["tov_target"] for row in rows] == ["sums", "law"] * 4
    scores = read_table(done.folder / "scores").to_pydict()
    free = [place for place, why in enumerate(scores["excluded"]) if not why]
    best = max(free, key=lambda place: (scores["score_less@sums"][place], -place))
    second = max({*free} - {best}, key=lambda place: (scores["score_less@law"][place], -place))
    assert [row["tov_row_id"] for row in rows[:2]] == [best, second]
    alone = {**settings, "target": settings["target"][:1]}
    with pytest.raises(ConfigError, match="needs several sub-tasks"):
        tov.select(**alone, n=8, method="less/epochs=1/dim=16/round-robin", out=tmp_path / "alone")
    one = tov.select(**alone, n=8, method="less/epochs=1/dim=16", out=tmp_path / "one")
    with pytest.raises(ConfigError, match="needs several sub-tasks"):
        tov.reselect(one, n=8, rule="round-robin", out=tmp_path / "again")


@pytest.mark.slow
def test_targets_in_memory_have_names_by_a_mapping(parallel: Any, files: Path, tmp_path: Path) -> None:
    settings = given_to(files, *NAMES, path_variant="parallel", n=12)
    settings["target"] = {"sums": rows_of("sums", 6), "law": files / "law.jsonl", "verse": [str(files / "verse.jsonl")]}
    run = tov.select(**settings, out=tmp_path / "run")
    assert run.manifest.targets == parallel.manifest.targets
    assert run.dataset["tov_row_id"] == parallel.dataset["tov_row_id"]
    with pytest.raises(ConfigError, match="name 'two words'"):
        tov.select(**{**settings, "target": {"two words": rows_of("sums", 6)}}, out=tmp_path / "no")


@pytest.mark.slow
def test_a_target_is_kept_out_of_the_pool_whosever_it_is(files: Path, tmp_path: Path) -> None:
    settings = given_to(files, "sums", "law", n=8, epochs=1, path_variant="parallel")
    leaked = [*make_rows(40, seed=0), *rows_of("sums", 2), *rows_of("law", 2)]
    run = tov.select(**{**settings, "pool": leaked}, out=tmp_path / "run")
    assert [bool(reason) for reason in run.scores["excluded"].to_pylist()] == [False] * 40 + [True] * 4


# What comes after


@pytest.mark.slow
def test_another_pool_is_scored_for_all_targets(parallel: Any, files: Path, tmp_path: Path) -> None:
    again = tov.score(parallel, pool=str(files / "web.jsonl"), out=tmp_path / "scored", quiet=True)
    wanted = parallel.scores.slice(0, 40)
    for column in wanted.column_names:
        if "@" in column:
            np.testing.assert_allclose(again.scores[column].to_numpy(), wanted[column].to_numpy(), rtol=1e-4, atol=1e-6)
    chosen = tov.reselect(again, n=6, out=tmp_path / "chosen", page=False)
    assert sorted(chosen.dataset["tov_target"]) == sorted(["sums", "law", "verse"] * 2)


@pytest.mark.slow
def test_a_fit_for_targets_scores_a_pool_as_the_selection_does(parallel: Any, files: Path, tmp_path: Path) -> None:
    settings = given_to(files, *NAMES, path_variant="parallel")
    plain = {name: settings[name] for name in settings if name not in ("explain_rows", "page", "shard_rows")}
    fit = tov.fit(**plain, out=tmp_path / "fit")
    told = [line.removeprefix("path of 2 epochs in ") for line in str(fit).splitlines() if line.startswith("path of")]
    assert [Path(folder).name for folder in told] == [f"path@{name}" for name in NAMES]
    assert all(Path(folder).is_dir() for folder in told)
    scored = tov.score(fit, pool=settings["pool"], shard_rows=16, out=tmp_path / "scored", quiet=True)
    for column in parallel.scores.column_names:
        if "@" in column:
            np.testing.assert_array_equal(scored.scores[column].to_numpy(), parallel.scores[column].to_numpy())


def test_page_and_inspect_say_for_which_target_a_row_was_chosen(parallel: Any, tmp_path: Path) -> None:
    shown = shown_rows.read(open_run(parallel.folder))
    assert shown
    assert shown["targets"] == list(NAMES)
    whose = dict(zip(shown["rows"]["id"], shown["rows"]["target"], strict=True))
    for row, target in zip(parallel.dataset["tov_row_id"], parallel.dataset["tov_target"], strict=True):
        assert NAMES[whose[row]] == target
    assert len(shown["explained"]) == 4
    for row, one in shown["explained"].items():
        name = NAMES[max(whose[int(row)], 0)]
        assert one["for"] == name
        assert all(str(key).startswith(f"{name} ") and key in shown["target"] for key, _ in one["near"])
        tokens = [gain for _, loss, gain, _ in one["tokens"] if loss is not None]
        assert np.mean(tokens) == pytest.approx(parallel.scores[f"score_identity@{name}"][int(row)].as_py(), abs=2e-4)
    row = int(next(iter(shown["explained"])))
    told = str(tov.inspect(parallel, [row]))
    assert f"the target {NAMES[max(whose[row], 0)]}'s step" in told
    for name in NAMES:
        assert f"score_positive@{name}" in told
    page = tov.report(parallel, out=tmp_path / "page.html")
    text = Path(page.file).read_text() if hasattr(page, "file") else (tmp_path / "page.html").read_text()
    assert "Rows by target" in text
    assert "12 rows for sums, law, verse" in text


@pytest.mark.slow
def test_a_comparison_chooses_for_all_targets(files: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [row for name in NAMES for row in rows_of(name, 9)[6:]])
    settings = given_to(files, *NAMES, path_variant="parallel")
    plain = {name: settings[name] for name in settings if name not in ("explain_rows",)}
    found = tov.compare(
        **plain, test=str(tmp_path / "test.jsonl"), methods=["random", "tov", "bm25"], sizes=[9], seeds=1, train_rows=32,
        out=tmp_path / "run",
    )  # fmt: skip
    assert {one["variant"]: one["status"] for one in found.trials if one["n"] == 9} == dict.fromkeys(
        ("random", "tov", "bm25"), "done"
    )
    [table] = [
        folder for folder in (tmp_path / "run" / "scores" / "seed-0").iterdir()
        if (folder / "manifest.json").exists() and any_run(folder).manifest.scoring.method == "tov"
    ]  # fmt: skip
    names = read_table(any_run(table).scores).column_names
    assert all(f"score_positive@{name}" in names for name in NAMES)


@pytest.mark.slow
def test_auto_decides_for_all_targets_together(files: Path, tmp_path: Path) -> None:
    """One target is so small that a fold may hold all of its rows: the others decide in that pilot."""
    settings = given_to(files, "sums", "law", n=8, method="auto", candidates=("tov", "bm25"), pilot_folds=2)
    settings["target"] = {"sums": files / "sums.jsonl", "law": files / "law.jsonl", "tiny": rows_of("verse", 1)}
    settings |= {"pilot_train_rows": 16, "epochs": 1}
    run = tov.select(**settings, out=tmp_path / "run")
    assert run.manifest.gate["judged"] == 13
    assert list(run.manifest.targets) == ["sums", "law", "tiny"]
    assert [run.dataset["tov_target"].count(name) for name in ("sums", "law", "tiny")] == [3, 3, 2]


def test_a_plan_of_auto_counts_every_target(files: Path) -> None:
    settings = {
        name: value for name, value in given_to(files, *NAMES, n=8).items() if name not in ("explain_rows", "page")
    }
    given = {**settings, "methods": ["auto"], "candidates": ("tov",), "pilot_folds": 2, "probe": False}
    [three] = tov.plan(**{**given, "path_variant": "parallel"}).facts["methods"]
    [one] = tov.plan(**{**given, "path_variant": "parallel", "target": settings["target"][:1]}).facts["methods"]
    assert three["stages"]["scan"]["forward"] == pytest.approx(2 * one["stages"]["scan"]["forward"], rel=0.02), (
        "4 of 2 passes"
    )
    assert three["stages"]["pilots"]["forward"] > one["stages"]["pilots"]["forward"]


def test_a_target_whose_rows_are_all_rejected_is_told() -> None:
    rows = [{"text": f"words {number}", "label": "good" if number % 2 else "bad"} for number in range(4)]
    target = {"sums": rows, "law": [{**row, "answer": "reject"} for row in rows]}
    settings = build(SelectConfig, {"model": "minilm", "pool": "p", "target": "t", "n": 1, "out": "o"})
    with pytest.raises(DataError, match="All rows of the target law"):
        read_inputs(settings, [rows], list_inputs(target))


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_targets_that_are_fitted(
    files: Path, tmp_path: Path, parallel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third path is not fitted when memory ends; the second run fits it alone, and has the same rows."""
    from tov.methods.tov import method

    begun, real = [], method.fit

    def third_fails(*args: Any, **given: Any) -> Any:
        begun.append(1)
        if len(begun) == 3:
            raise MemoryError
        return real(*args, **given)

    settings = given_to(files, *NAMES, path_variant="parallel", n=12)
    monkeypatch.setattr(method, "fit", third_fails)
    with pytest.raises((MemoryError, TovError)):
        tov.select(**settings, out=tmp_path / "run")
    run = tov.select(**settings, out=tmp_path / "run")
    assert len(begun) == 4
    assert (run.folder / "selected.jsonl").read_bytes() == (parallel.folder / "selected.jsonl").read_bytes()


@pytest.mark.slow
def test_the_command_line_takes_targets_with_names(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    targets = [f"--target={name}={files / name}.jsonl" for name in NAMES[:2]]
    words = ["select", "--model", str(files / "tiny-model"), "--pool", str(files / "web.jsonl"), *targets, "--n", "8"]
    words += [
        "--share",
        "law=75%",
        "--base-size",
        "8",
        "--epochs",
        "1",
        "--max-length",
        "64",
        "--path-variant",
        "parallel",
    ]
    assert command(*words, "--out", out, monkeypatch=monkeypatch) == 0
    assert "the target law takes 75.00 % of the rows; 75 % were asked for" in capsys.readouterr().out
    again = ["select", "--from", out, "--n", "8", "--share", "lay=75%", "--out", str(tmp_path / "no")]
    assert command(*again, monkeypatch=monkeypatch) == 2
    assert "no source and no target is called 'lay' (did you mean 'law'?)" in capsys.readouterr().err


def test_which_states_of_a_path_are_the_same_for_all_targets() -> None:
    assert (
        same_for_all(VARIANTS["parallel"](3)) == {"base-1", "base-2", "base-3"} == same_for_all(VARIANTS["paired"](3))
    )
    assert same_for_all(VARIANTS["interleaved"](3)) == {"base-1"}
