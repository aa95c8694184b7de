"""One target as clusters of its rows: they are the kinds that are there, and each is a target like one that is named."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tov
from test_invalidation import tov_command as command
from tiny import make_rows, tiny_model_folder, write_jsonl
from tov.errors import ConfigError, DataError, TovError
from tov.runs.folder import any_run, open_run
from tov.scores.store import read_table
from tov.selection.clusters import cluster_rows
from tov.selection.targets import target_numbers
from tov.verbs.result import fitted_paths

NAMES = ("cluster-1", "cluster-2")
SUMS, VERSES = 18, 12
PLAIN: dict[str, Any] = {
    "base_size": 8, "epochs": 2, "max_length": 64, "shard_rows": 16, "quiet": True, "explain_rows": 4, "page": False,
    "path_variant": "parallel",
}  # fmt: skip
LESS = "less/lora_r=2/lora_alpha=8/batch_size=8/epochs=1"


def sums() -> list[dict[str, str]]:
    draw = random.Random(1)
    pairs = [(draw.randint(100, 999), draw.randint(100, 999)) for _ in range(SUMS)]
    return [{"prompt": f"{one}+{two}=", "completion": str(one + two)} for one, two in pairs]


def verses() -> list[dict[str, str]]:
    return [{**row, "prompt": f"rhyme with {row['prompt']}"} for row in make_rows(VERSES, seed=2, shortest=10)]


def mixed() -> list[dict[str, str]]:
    return random.Random(0).sample([*sums(), *verses()], SUMS + VERSES)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a pool of two sources, and a target of two kinds of rows."""
    folder = tmp_path_factory.mktemp("clusters")
    tiny_model_folder(folder)
    for number, source in enumerate(("web", "books")):
        write_jsonl(folder / f"{source}.jsonl", make_rows(40, seed=10 + number))
    write_jsonl(folder / "target.jsonl", mixed())
    return folder


def given_to(files: Path, **more: Any) -> dict[str, Any]:
    pool = (str(files / "web.jsonl"), str(files / "books.jsonl"))
    target = str(files / "target.jsonl")
    return {
        "model": str(files / "tiny-model"),
        "pool": pool,
        "target": target,
        "n": 10,
        "target_clusters": 2,
        **PLAIN,
        **more,
    }


@pytest.fixture(scope="module")
def clustered(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with two clusters, and the run whose two named targets have their rows."""
    out = tmp_path_factory.mktemp("clustered") / "run"
    return tov.select(**given_to(files, page=True), out=out)


def named(**more: Any) -> dict[str, Any]:
    """In place of the target and its clusters: the two kinds as named targets, in the order of the mixed rows."""
    rows = mixed()
    kinds = {
        "sums": [row for row in rows if "+" in row["prompt"]],
        "verses": [row for row in rows if "+" not in row["prompt"]],
    }
    return {"target": kinds, "target_clusters": None, **more}


def split_of(run: Any) -> dict[str, list[int]]:
    [file] = [folder / "clusters.json" for name, folder in open_run(run.folder).artifacts.items() if name == "clusters"]
    return {one["name"]: one["rows"] for one in json.loads(file.read_text())["clusters"]}


# What the clusters are


@pytest.mark.slow
def test_clusters_of_a_target_of_two_kinds_are_the_kinds(clustered: Any) -> None:
    rows, split = mixed(), split_of(clustered)
    assert ["+" in rows[row]["prompt"] for row in split["cluster-1"]] == [True] * SUMS
    assert ["+" in rows[row]["prompt"] for row in split["cluster-2"]] == [False] * VERSES
    assert {name: (one.rows, one.weight) for name, one in clustered.manifest.targets.items()} == {
        "cluster-1": (SUMS, SUMS), "cluster-2": (VERSES, VERSES),
    }  # fmt: skip


def words_of(text: str) -> list[str]:
    return text.split()


@pytest.mark.slow
def test_of_a_real_encoder_too(minilm: str, tmp_path: Path) -> None:
    """Named entities: reports of matches and of courts."""
    draw = random.Random(3)
    names, places = ["Anna", "Bruno", "Carla", "David", "Elena"], ["Paris", "Rome", "Oslo", "Lima", "Cairo"]
    matches = words_of("{} scored two goals in the football match at the stadium of {} on match day")
    courts = words_of("the judge found that {} had broken the contract and the court of {} dismissed the appeal")

    def rows(words: list[str], count: int) -> list[dict[str, Any]]:
        found = []
        for number in range(count):
            fill = iter((draw.choice(names), draw.choice(places)))
            tokens = [next(fill) if word == "{}" else word for word in [*words, str(number)]]
            tags = ["B-PER" if one in names else "B-LOC" if one in places else "O" for one in tokens]
            found.append({"tokens": tokens, "ner_tags": tags})
        return found

    target = [row for pair in zip(rows(matches, 10), rows(courts, 10), strict=True) for row in pair] + rows(matches, 3)
    run = tov.select(
        model=minilm, pool=rows(matches, 20) + rows(courts, 20), target=target, n=6, target_clusters=2, out=tmp_path / "run",
        **{**PLAIN, "epochs": 1}, decontaminate=False,
    )  # fmt: skip
    assert split_of(run) == {"cluster-1": [*range(0, 20, 2), 20, 21, 22], "cluster-2": list(range(1, 20, 2))}


@pytest.mark.slow
@given(sizes=st.lists(st.integers(1, 30), min_size=2, max_size=5), k=st.integers(2, 6), seed=st.integers(0, 9))
def test_every_row_is_in_one_cluster_and_none_is_too_small(sizes: list[int], k: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(sum(sizes), 8)) / 20
    vectors[:, 0] += np.repeat(np.arange(len(sizes)), sizes)
    k = min(k, len(vectors))
    found, again = (cluster_rows(vectors, k, least=8, seed=seed) for _ in range(2))
    assert sorted(np.concatenate(found.rows).tolist()) == list(range(len(vectors)))
    assert all(len(rows) >= 8 for rows in found.rows) or len(found.rows) == 1
    lengths = [len(rows) for rows in found.rows]
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) <= k
    for one, other in ((found.rows, again.rows), (found.central, again.central)):
        assert [part.tolist() for part in one] == [part.tolist() for part in other]
    assert all(sorted(central) == sorted(rows) for central, rows in zip(found.central, found.rows, strict=True))


def test_a_small_cluster_goes_to_its_nearest_one() -> None:
    places = [0.0] * 20 + [1.0] * 3 + [5.0] * 12
    vectors = np.array(places)[:, None] + np.random.default_rng(0).normal(size=(35, 2)) / 100
    found = cluster_rows(vectors, 3, least=8, seed=0)
    assert [rows.tolist() for rows in found.rows] == [list(range(23)), list(range(23, 35))]
    assert found.merged == (3,)


def test_rows_that_are_all_alike_are_one_cluster() -> None:
    found = cluster_rows(np.ones((20, 3)), 4, least=8, seed=0)
    assert [len(rows) for rows in found.rows] == [20]


@pytest.mark.slow
def test_what_is_merged_and_what_has_no_token_is_told_and_kept(files: Path, tmp_path: Path) -> None:
    """Of three kinds one has three rows; of two rows the answer lies beyond --max-length."""
    few = [{"prompt": "!?" * 15 + "!" * number, "completion": "?!" * 5} for number in range(3)]
    lost = [{"prompt": "long " * 40 + str(number), "completion": "x"} for number in range(2)]
    run = tov.select(
        **given_to(files, target=[*mixed(), *few, *lost], target_clusters=3, rule="score-only"), out=tmp_path / "run"
    )
    notes = run.summary["notes"]
    assert "a cluster of 3 target rows was joined to its nearest one: each has at least 8 rows" in notes
    assert (
        "the target has 2 clusters, where --target-clusters asks for 3: its rows are of so few kinds, or too few"
        in notes
    )
    assert [one for one in notes if "no scored token within --max-length" in one and "target" in one] == [
        "2 target rows have no scored token within --max-length and were left out"
    ]
    targets = run.manifest.targets
    assert sum(one.rows for one in targets.values()) == SUMS + VERSES + 5
    assert sum(one.weight or 0 for one in targets.values()) == SUMS + VERSES + 3
    assert {SUMS + VERSES + 3, SUMS + VERSES + 4} <= set(split_of(run)["cluster-1"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tov", LESS])
def test_a_target_of_one_kind_is_not_split(method: str, files: Path, tmp_path: Path) -> None:
    same = [{"prompt": "say it", "completion": "it"}] * 20
    given = given_to(files, target=same, rule="round-robin", method=method)
    given = (
        given
        if method == "tov"
        else {name: value for name, value in given.items() if name not in ("base_size", "epochs", "path_variant")}
    )
    run = tov.select(**given, out=tmp_path / "run")
    assert list(run.manifest.targets) == ["target"]
    assert any("the target is not split" in note for note in run.summary["notes"])
    assert "tov_target" not in run.dataset.column_names
    assert len(run.dataset) == 10


# What is scored


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tov", "rds", LESS])
def test_a_cluster_is_scored_as_a_target_with_its_rows(method: str, files: Path, tmp_path: Path) -> None:
    """To the last bit, and the parts of the choice are in proportion to the rows."""
    plain = {name: value for name, value in given_to(files).items() if method == "tov" or name not in (
        "base_size", "epochs", "path_variant")}  # fmt: skip
    run = tov.select(**plain, method=method, rule="score-only", out=tmp_path / "clusters")
    other = tov.select(**{**plain, **named()}, method=method, rule="score-only", out=tmp_path / "named")
    columns = [name for name in run.scores.column_names if "@" in name]
    assert columns
    for column in columns:
        whose = {"cluster-1": "sums", "cluster-2": "verses"}[column.partition("@")[2]]
        same = f"{column.partition('@')[0]}@{whose}"
        np.testing.assert_array_equal(run.scores[column].to_numpy(), other.scores[same].to_numpy(), column)
    found = run.dataset["tov_target"]
    assert [found.count(name) for name in NAMES] == [6, 4]


def test_base_passes_are_shared_and_a_plan_tells_the_cost(clustered: Any, files: Path) -> None:
    settings = {name: value for name, value in given_to(files).items() if name not in ("explain_rows", "page")}
    plan = tov.plan(**settings, probe=False)
    [planned] = plan.facts["methods"]
    spent = clustered.manifest.spent
    fits = sum(tokens[0] for stage, tokens in spent.items() if stage.startswith("fit"))
    assert planned["stages"]["clusters"] == {"forward": spent["clusters"][0], "backward": 0}
    assert planned["stages"]["scan"]["forward"] == pytest.approx(spent["scan"][0], rel=0.02)
    assert planned["stages"]["fit"]["forward"] == pytest.approx(fits, rel=0.1)
    alone = tov.plan(**{**settings, "target_clusters": None}, probe=False).facts["methods"][0]
    assert planned["stages"]["scan"]["forward"] == alone["stages"]["scan"]["forward"] * 3 / 2
    assert any("splits the target into 2 clusters" in note for note in plan.facts["notes"])


# What is chosen


def test_parts_are_in_proportion_or_by_share_or_by_turns(clustered: Any, tmp_path: Path) -> None:
    assert [clustered.dataset["tov_target"].count(name) for name in NAMES] == [6, 4]
    wanted = {"rule": ({"rule": "round-robin"}, [5, 5]), "share": ({"share": {"cluster-2": 0.7}}, [3, 7])}
    for name, (change, counts) in wanted.items():
        again = tov.reselect(clustered, n=10, out=tmp_path / name, page=False, **change)
        assert [again.dataset["tov_target"].count(one) for one in NAMES] == counts
        assert again.summary["clusters"] == clustered.summary["clusters"]


@given(
    n=st.integers(0, 10**4), weights=st.lists(st.integers(1, 500), min_size=2, max_size=5), first=st.integers(0, 100)
)
def test_parts_by_weight_are_whole_and_within_one(n: int, weights: list[int], first: int) -> None:
    of, shares = {str(place): weight for place, weight in enumerate(weights)}, {"0": first / 100}
    for asked in ({}, shares):
        numbers = target_numbers(asked, of, n)
        rest = sum(weight for name, weight in of.items() if name not in asked)
        wanted = [n * asked.get(name, (1 - sum(asked.values())) * weight / rest) for name, weight in of.items()]
        assert sum(numbers) == n
        assert all(abs(one - part) < 1.001 for one, part in zip(numbers, wanted, strict=True))


# What is told


def test_the_report_says_what_the_kinds_are(clustered: Any) -> None:
    told = clustered.summary["clusters"]
    assert [(one["cluster"], one["rows"]) for one in told] == [("cluster-1", SUMS), ("cluster-2", VERSES)]
    assert all("+" in text for text in told[0]["central"])
    assert all(text.startswith("rhyme with") for text in told[1]["central"])
    assert clustered.record["summary"]["clusters"] == told
    for text in (
        str(clustered),
        (clustered.folder / "summary.md").read_text(),
        (clustered.folder / "report.html").read_text(),
    ):
        assert "cluster-2: 12 target rows, such as rhyme with" in text
    assert "- target_clusters: `2`" in (clustered.folder / "summary.md").read_text()


# What comes after


def test_inspect_finds_the_rows_of_a_cluster(clustered: Any) -> None:
    first = clustered.dataset["tov_row_id"][0]
    fresh = next(row for row in range(80) if row not in clustered.dataset["tov_row_id"])
    for row in (first, fresh):
        [one] = tov.inspect(clustered, [row]).rows
        assert one["near"], "the split is found again, and with it the target's rows"
    assert not tov.inspect(clustered, [fresh]).far


def test_another_pool_is_scored_for_the_clusters(clustered: Any, files: Path, tmp_path: Path) -> None:
    again = tov.score(clustered, pool=str(files / "web.jsonl"), out=tmp_path / "scored", quiet=True)
    chosen = tov.reselect(again, n=5, out=tmp_path / "chosen", page=False)
    assert [chosen.dataset["tov_target"].count(name) for name in NAMES] == [3, 2]
    assert chosen.summary["clusters"] == clustered.summary["clusters"]


@pytest.mark.slow
def test_a_fit_has_a_path_for_each_cluster(clustered: Any, files: Path, tmp_path: Path) -> None:
    settings = {
        name: value
        for name, value in given_to(files).items()
        if name not in ("explain_rows", "page", "shard_rows", "n")
    }
    fit = tov.fit(**settings, out=tmp_path / "fit")
    assert split_of(fit) == split_of(clustered)
    assert list(fitted_paths(open_run(fit.folder))) == list(NAMES)
    scored = tov.score(fit, pool=given_to(files)["pool"], shard_rows=16, out=tmp_path / "scored", quiet=True)
    for name in (f"score_positive@{name}" for name in NAMES):
        np.testing.assert_array_equal(scored.scores[name].to_numpy(), clustered.scores[name].to_numpy())


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_split(
    files: Path, tmp_path: Path, clustered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second path is not fitted when memory ends; the second call splits nothing and has the same rows."""
    from tov.methods import clusters
    from tov.methods.tov import method

    begun, splits, real, split = [], [], method.fit, clusters.cluster_rows

    def second_fails(*args: Any, **given: Any) -> Any:
        begun.append(1)
        if len(begun) == 2:
            raise MemoryError
        return real(*args, **given)

    def counted(*args: Any, **given: Any) -> Any:
        splits.append(1)
        return split(*args, **given)

    monkeypatch.setattr(method, "fit", second_fails)
    monkeypatch.setattr(clusters, "cluster_rows", counted)
    with pytest.raises((MemoryError, TovError)):
        tov.select(**given_to(files), out=tmp_path / "run")
    run = tov.select(**given_to(files), out=tmp_path / "run")
    assert (len(begun), len(splits)) == (3, 1)
    assert (run.folder / "selected.jsonl").read_bytes() == (clustered.folder / "selected.jsonl").read_bytes()


@pytest.mark.slow
def test_a_comparison_has_variants_with_clusters(files: Path, tmp_path: Path) -> None:
    settings = {
        name: value
        for name, value in given_to(files, target_clusters=None).items()
        if name not in ("explain_rows", "n")
    }
    test = write_jsonl(tmp_path / "test.jsonl", make_rows(6, seed=44))
    variants = ["random", "tov", "tov/target_clusters=2", "bm25"]
    found = tov.compare(
        **settings, test=str(test), methods=variants, sizes=[6], seeds=1, train_rows=16, out=tmp_path / "run"
    )
    assert {one["variant"]: one["status"] for one in found.trials if one["n"] == 6} == dict.fromkeys(variants, "done")
    folders = [one for one in (tmp_path / "run" / "scores" / "seed-0").iterdir() if (one / "manifest.json").exists()]
    tables = [any_run(one) for one in folders]
    columns = [read_table(one.scores).column_names for one in tables if one.manifest.scoring.method == "tov"]
    assert sorted("score_positive@cluster-2" in one for one in columns) == [False, True]


@pytest.mark.slow
def test_auto_decides_with_clusters(files: Path, tmp_path: Path) -> None:
    settings = given_to(files, method="auto", candidates=("tov", "bm25"), pilot_folds=2, pilot_train_rows=16, epochs=1)
    run = tov.select(**settings, out=tmp_path / "run")
    of_tov = run.manifest.scoring.method == "tov"
    assert list(run.manifest.targets) == (list(NAMES) if of_tov else ["target"])


# What is refused


def test_what_cannot_be_split_is_refused(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="splits one target, but there are 2: sums, verses"):
        tov.select(**given_to(files, **named(target_clusters=2)), out=out)
    with pytest.raises(DataError, match="--target-clusters 4 needs 32 target rows, 8 for each, but there are 30"):
        tov.select(**given_to(files, target_clusters=4), out=out)
    fit = {
        name: value
        for name, value in given_to(files).items()
        if name not in ("explain_rows", "page", "shard_rows", "n")
    }
    with pytest.raises(DataError, match="needs 32 target rows"):
        tov.fit(**{**fit, "target_clusters": 4}, out=out)
    with pytest.raises(ConfigError, match=r"--share cluster-1=0\.5: what the clusters are is known only"):
        tov.select(**given_to(files, share={"cluster-1": 0.5}), out=out)
    plain = {
        "model": str(files / "tiny-model"),
        "pool": given_to(files)["pool"],
        "target": given_to(files)["target"],
        "n": 4,
    }
    for method in ("dsir", "bm25"):
        with pytest.raises(ConfigError, match=f"--target-clusters has no effect with --method {method}"):
            tov.select(**plain, method=method, target_clusters=2, out=out)
    with pytest.raises(ConfigError, match="--target-clusters got 1"):
        tov.select(**given_to(files, target_clusters=1), out=out)
    assert not out.exists()


def test_files_that_have_changed_are_no_target_of_the_clusters(files: Path, tmp_path: Path) -> None:
    target = write_jsonl(tmp_path / "target.jsonl", mixed())
    run = tov.select(**given_to(files, target=str(target), epochs=1, explain_rows=0), out=tmp_path / "run")
    write_jsonl(target, mixed()[:-1])
    assert tov.inspect(run, [3]).far == "the files of the run's target are gone, or have changed"


def test_the_command_line_takes_it(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--model",
        str(files / "tiny-model"),
        "--pool",
        str(files / "web.jsonl"),
        "--target",
        str(files / "target.jsonl"),
    ]
    words += ["--n", "8", "--base-size", "8", "--epochs", "1", "--max-length", "64", "--target-clusters", "2"]
    out = str(tmp_path / "run")
    assert command("select", *words, "--out", out, monkeypatch=monkeypatch) == 0
    assert "cluster-1: 18 target rows, such as" in capsys.readouterr().out
    again = ["select", "--from", out, "--n", "8", "--rule", "round-robin", "--out", str(tmp_path / "turns")]
    assert command(*again, monkeypatch=monkeypatch) == 0
