"""The commonest mistakes are told before a run: each on real questions and answers, and none where there is no mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tov
from tiny import tiny_model_folder
from tov.cli.demo_data import read_topics

Rows = list[dict[str, Any]]
PLAIN: dict[str, Any] = {"max_length": 512, "device": "cpu", "dtype": "fp32", "probe": False, "methods": ["random"]}


@pytest.fixture(scope="module")
def topics() -> dict[str, Rows]:
    """Pairs of the corpus by topic, each prompt once."""
    seen: set[str] = set()
    found: dict[str, Rows] = {}
    for topic, rows in read_topics().items():
        found[topic] = [
            {name: row[name] for name in ("prompt", "completion")}
            for row in rows
            if not (row["prompt"].lower() in seen or seen.add(row["prompt"].lower()))  # type: ignore[func-returns-value]
        ]
    return found


def warned(model: Path, pool: Any, target: Rows, **changed: Any) -> list[str]:
    facts = tov.plan(model=str(model), pool=pool, target=target, **{**PLAIN, **changed}).facts
    return list(facts["warnings"])


def about(warnings: list[str], words: str) -> str:
    found = [one for one in warnings if words in one]
    assert len(found) == 1, f"{words!r} is in {len(found)} of {warnings}"
    return found[0]


def test_sound_data_are_not_warned_of(tiny_folder: Path, topics: dict[str, Rows]) -> None:
    assert warned(tiny_folder, topics["science"], topics["ai"][:40]) == []


def test_rows_without_a_scored_token(tiny_folder: Path, topics: dict[str, Rows]) -> None:
    pool = [{**row, "completion": "" if at % 4 == 0 else row["completion"]} for at, row in enumerate(topics["science"])]
    share = 100 * sum(not row["completion"] for row in pool) / len(pool)
    said = about(warned(tiny_folder, pool, topics["ai"][:40]), "no scored token")
    assert said.startswith(f"{share:.0f} % of the pool's rows")
    assert "--columns" in said
    target = [*topics["ai"][:40], {"prompt": "And now?", "completion": ""}]
    said = about(warned(tiny_folder, topics["science"], target), "no scored token")
    assert said.startswith("1 of 41 target rows")


def test_rows_cut_by_max_length(tiny_folder: Path, topics: dict[str, Rows]) -> None:
    warnings = warned(tiny_folder, topics["science"], topics["ai"][:40], max_length=96)
    said = about(warnings, "are longer than 96 tokens and are cut at the end")
    assert "Raise --max-length (the model takes 2,048)" in said


def test_target_rows_in_the_pool(tiny_folder: Path, topics: dict[str, Rows]) -> None:
    target = topics["ai"][:40]
    pool = [*topics["science"], *target[:10]]
    said = about(warned(tiny_folder, pool, target), "prompt in the pool")
    assert said.startswith("10 of 40 target rows")
    assert "left out" in said
    said = about(warned(tiny_folder, pool, target, decontaminate=False), "prompt in the pool")
    assert "Leave --no-decontaminate out." in said


def test_pool_rows_that_nearly_are_target_rows(tiny_folder: Path, topics: dict[str, Rows]) -> None:
    long = [row for topic in topics.values() for row in topic if len(row["prompt"]) > 60]
    near = [{**row, "prompt": f"{row['prompt']} Ok?"} for row in long[:3]]
    target = [*long[:3], *topics["ai"][:40]]
    said = about(warned(tiny_folder, [*topics["science"], *near], target), "nearly repeat")
    assert said.startswith("3 of the pool's rows")


def test_one_source_dominates(tiny_folder: Path, topics: dict[str, Rows]) -> None:
    pools = [[*topics["trivia"], *topics["science"]], topics["ai"][40:48]]
    target = topics["ai"][:40]
    share = 100 * len(pools[0]) / (len(pools[0]) + len(pools[1]))
    said = about(warned(tiny_folder, pools, target), "usable rows are from the source")
    assert said.startswith(f"{share:.0f} % of the usable rows are from the source memory")
    assert "--source-cap memory" in said
    assert not [one for one in warned(tiny_folder, pools, target, source_cap=0.5) if "from the source" in one]


def test_a_missing_chat_template(tmp_path: Path, topics: dict[str, Rows]) -> None:
    bare = tiny_model_folder(tmp_path, chat_template=None)
    said = about(warned(bare, topics["science"], topics["ai"][:40]), "no chat template")
    assert "### User:" in said
    texts = [[{"text": row["completion"]} for row in topics[topic]] for topic in ("science", "ai")]
    assert not [one for one in warned(bare, *texts, decontaminate=False) if "chat template" in one], "text has no turns"


def test_a_small_target(tiny_folder: Path, topics: dict[str, Rows]) -> None:
    said = about(warned(tiny_folder, topics["science"], topics["ai"][:31]), "The target has 31 usable rows")
    assert "Add examples" in said


def test_each_of_several_targets_is_counted_by_itself(
    tmp_path: Path, tiny_folder: Path, topics: dict[str, Rows]
) -> None:
    """A row without a scored token is of no use, and the large target beside a small one does not make that larger."""
    pool, rows = topics["science"][:60], topics["ai"]
    bare = [{**row, "completion": ""} for row in rows[33:35]]
    given = {"method": "bm25", "max_length": 64, "n": 8, "page": False, "quiet": True}
    cases = {
        "one": ({"a": rows[:32], "b": [rows[32], *bare]}, "The target b has 1 usable row. Under 32"),
        "two": ({"a": rows[:8], "b": rows[8:17], "c": rows[17:49]}, "The targets a (8) and b (9) have few usable rows. Under"),
    }  # fmt: skip
    for name, (target, words) in cases.items():
        said = about(warned(tiny_folder, pool, target, max_length=64), "Under 32")
        assert said.startswith(words)
        run = tov.select(model=str(tiny_folder), pool=pool, target=target, out=tmp_path / name, **given)
        again = tov.reselect(run, n=4, out=tmp_path / f"{name}-again", pool=pool, page=False, quiet=True)
        for one in (run, again):
            assert one.manifest.checks.warnings.count(said) == 1
            assert f"warning: {said}" in str(one)


def test_clusters_of_one_target_are_one_target(tmp_path: Path, tiny_folder: Path, topics: dict[str, Rows]) -> None:
    """A cluster is small by design."""
    given = {"method": "rds", "max_length": 64, "n": 8, "target_clusters": 2, "page": False, "quiet": True}
    for rows, warns in ((36, False), (24, True)):
        run = tov.select(
            model=str(tiny_folder), pool=topics["science"][:60], target=topics["ai"][:rows], out=tmp_path / f"{rows}", **given
        )  # fmt: skip
        assert len(run.manifest.targets) == 2
        found = [one for one in run.manifest.checks.warnings if "Under 32" in one]
        assert [one.partition(". ")[0] for one in found] == [f"The target has {rows} usable rows"] * warns


def test_the_commands_that_score_warn_of_a_small_target_in_the_words_of_the_plan(
    tmp_path: Path, tiny_folder: Path, topics: dict[str, Rows]
) -> None:
    pool, given = topics["science"][:60], {"max_length": 64, "base_size": 8, "epochs": 1, "quiet": True}
    said = about(warned(tiny_folder, pool, topics["ai"][:31]), "31 usable rows")
    made = {
        rows: tov.select(
            model=str(tiny_folder), pool=pool, target=topics["ai"][:rows], n=8, out=tmp_path / f"{rows}", **given
        )
        for rows in (31, 32)
    }
    scored = {rows: tov.score(run, pool, out=tmp_path / f"scored-{rows}", quiet=True) for rows, run in made.items()}
    again = tov.reselect(made[31], n=4, out=tmp_path / "again", pool=pool, quiet=True)
    fitted = tov.fit(str(tiny_folder), topics["ai"][:31], pool=pool, out=tmp_path / "fit", **given)
    for run in (made[31], scored[31], again, fitted):
        assert said in run.summary["notes"]
        assert f"warning: {said}" in str(run)
    for run in (made[32], scored[32]):
        assert not [note for note in run.summary["notes"] if "usable rows. Under" in note]
    drawn = tov.select(
        model=str(tiny_folder), pool=pool, target=topics["ai"][:5], n=8, method="random", out=tmp_path / "random",
        max_length=64, quiet=True,
    )  # fmt: skip
    assert not [note for note in drawn.summary["notes"] if "Under 32" in note], (
        "no target decides what is drawn at random"
    )
