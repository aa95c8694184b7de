"""A task is one file: the registry's own keep the contract, and a fourth, built here from the contract alone, is chosen for."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tov
from tiny import tiny_encoder_folder, write_jsonl
from tov.data.cells import as_text
from tov.data.labels import LabelMap, Reading, agreed_labels, label_text
from tov.data.rows import Layout, layout_of
from tov.errors import ConfigError
from tov.tasks import TASKS, all_layouts, register, titles
from tov.tasks.base import Defaults, Task
from tov.text.encode import IGNORED, Encoded, Encoder, pack

# The whole of a fourth task: whether a hypothesis follows from a premise.


@dataclass(frozen=True)
class Pair:
    premise: str
    hypothesis: str
    label: str
    repaired: bool = False

    @property
    def text(self) -> str:
        return f"{self.premise}\n{self.hypothesis}"

    @property
    def content(self) -> list[str]:
        return [self.premise, self.hypothesis, self.label]

    @property
    def question(self) -> list[str]:
        return [self.premise, self.hypothesis]

    @property
    def labels(self) -> set[str]:
        return {self.label}


def from_pair(row: Mapping[str, Any], reading: Reading) -> Pair:
    label = label_text(row["label"], "label", reading)
    texts = (as_text(row[name], name) for name in ("premise", "hypothesis"))
    return Pair(*texts, reading.mapping.get(label, label))


class Pairs(Task[Pair]):
    name = "pairs"
    title = "classification of pairs"
    hint = "premise + hypothesis + label"
    layouts = (Layout("pairs", name, ("premise", "hypothesis", "label"), from_pair, "label"),)
    auto_model = "AutoModelForSequenceClassification"
    peft_type = "SEQ_CLS"
    new_head = True
    metric = "share right"
    unit = "pair"
    length = "tokens of both texts"
    defaults = Defaults(
        lora_r=2,
        learning_rate=1e-2,
        target_learning_rate_ratio=1.0,
        amplify=1.0,
        normalize="none",
        train_learning_rate=1e-2,
        pilot_train_rows=1024,
    )
    columns = ("tov_relation",)

    def encode(self, tokenizer: Any, rows: Sequence[Pair], /, *, max_length: int, labels: tuple[str, ...]) -> Encoded:
        packed = []
        for row in rows:
            ids = np.array(tokenizer(f"{row.premise} [SEP] {row.hypothesis}")["input_ids"][:max_length])
            packed.append((ids, np.where(np.arange(len(ids)) == 0, labels.index(row.label), IGNORED)))
        return pack(packed, np.array([len(ids) for ids, _ in packed]), np.zeros(len(rows), np.int64))

    def head_labels(
        self,
        target: Sequence[frozenset[str]],
        pool: Sequence[frozenset[str]],
        names: Sequence[str],
        label_map: LabelMap,
    ) -> tuple[str, ...]:
        return agreed_labels(target, pool, names, label_map)

    def label_metric(
        self, labels: Sequence[str], gold: np.ndarray, predicted: np.ndarray, offsets: np.ndarray
    ) -> float | None:
        return float(np.mean(gold == predicted))

    def columns_as_read(self, rows: Sequence[Pair]) -> Mapping[str, Sequence[Any]]:
        return {"tov_relation": [row.label for row in rows]}


# End of the task.


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    task = Pairs()
    register(task)
    yield task
    del TASKS[task.name]


SMALL: dict[str, Any] = {
    "max_length": 96, "base_size": 8, "epochs": 1, "dtype": "fp32", "device": "cpu", "quiet": True,
}  # fmt: skip


def pair_rows(count: int, seed: int) -> list[dict[str, Any]]:
    draw, words = random.Random(seed), ["ada", "bo", "went", "home", "saw", "rome", "quickly", "house"]
    texts = (" ".join(draw.choices(words, k=draw.randint(2, 5))) for _ in range(2 * count))
    return [
        {"premise": next(texts), "hypothesis": next(texts), "label": ("yes", "no")[number % 2]}
        for number in range(count)
    ]


def test_a_fourth_task_is_chosen_for_and_trained_on(pairs: Pairs, tmp_path: Path) -> None:
    """No file of the package is told of it."""
    rows, model = pair_rows(24, 1), str(tiny_encoder_folder(tmp_path))
    pool = str(write_jsonl(tmp_path / "pool.jsonl", rows))
    target = str(write_jsonl(tmp_path / "target.jsonl", pair_rows(8, 2)))
    given: dict[str, Any] = {"model": model, "pool": pool, "target": target, **SMALL}
    ours = {"yes": "entailed", "no": "neutral"}

    picked = tov.select(n=6, out=tmp_path / "run", label_map=ours, decontaminate=False, **given)
    assert picked.manifest.model.task == "pairs"
    facts = json.loads((tmp_path / "run" / "path" / "manifest.json").read_text())
    assert facts["labels"] == ["entailed", "neutral"]
    assert facts["settings"]["lora_r"] == 2, "the task's default"
    written = picked.dataset.to_list()
    assert len(written) == 6
    assert all(row["tov_relation"] == ours[row["label"]] for row in written), "the label as it was read"
    assert np.isfinite(picked.scores["score_identity"].to_numpy()).all()
    lengths = [len(f"{row['premise']}{row['hypothesis']}".replace(" ", "")) + 3 for row in rows]  # a token a letter
    assert picked.scores["tokens"].to_pylist() == lengths
    report = (tmp_path / "run" / "summary.md").read_text()
    assert "nats a pair" in report
    assert "tokens of both texts" in report

    again = tov.reselect(picked, n=4, out=tmp_path / "again", quiet=True)
    assert len(again.dataset) == 4
    trained = tov.train(picked, out=tmp_path / "trained", test=target, num_train_epochs=1, device="cpu", quiet=True)
    test = trained.summary["test"]
    assert test["metric"] == "share right"
    assert 0 <= test["metric_after"] <= 1
    assert "AutoModelForSequenceClassification" in (trained.folder / "summary.md").read_text()
    scored = tov.score(picked, pool, out=tmp_path / "scored", device="cpu", quiet=True)
    np.testing.assert_allclose(
        scored.scores["score_identity"].to_numpy(), picked.scores["score_identity"].to_numpy(), atol=1e-5
    )


@pytest.mark.slow
def test_methods_are_compared_on_a_fourth_task(pairs: Pairs, tmp_path: Path) -> None:
    pool, target = (str(write_jsonl(tmp_path / f"{seed}.jsonl", pair_rows(24 // seed, seed))) for seed in (1, 2))
    compared = tov.compare(
        model=str(tiny_encoder_folder(tmp_path)), pool=pool, target=target, test_rows=4, sizes=[4], seeds=1,
        methods=["tov", "dsir", "random"], out=tmp_path / "compared", num_train_epochs=1, **SMALL,
    )  # fmt: skip
    trials = [json.loads(line) for line in (compared.folder / "trials.jsonl").read_text().splitlines()]
    assert {trial["variant"] for trial in trials} == {"tov", "dsir", "random"}
    assert all(trial["status"] == "done" and trial["metric"] is not None for trial in trials)


@pytest.mark.parametrize("method", ["less/epochs=1/lora_r=2/dim=16", "target-path/epochs=2/lora_r=2", "rds"])
def test_methods_with_defaults_of_their_own_take_a_fourth_task(pairs: Pairs, method: str, tmp_path: Path) -> None:
    pool, target = (str(write_jsonl(tmp_path / f"{seed}.jsonl", pair_rows(16 // seed, seed))) for seed in (1, 2))
    model = str(tiny_encoder_folder(tmp_path))
    picked = tov.select(
        model=model, pool=pool, target=target, n=4, out=tmp_path / "run", method=method, decontaminate=False, max_length=48,
        dtype="fp32", device="cpu", quiet=True,
    )  # fmt: skip
    assert len(picked.dataset) == 4


def test_a_fourth_task_can_be_named_and_is_listed(pairs: Pairs, tmp_path: Path) -> None:
    pool = str(write_jsonl(tmp_path / "pool.jsonl", pair_rows(12, 1)))
    given: dict[str, Any] = {"model": "nowhere", "target": pool, "pool": pool, "n": 2, "out": tmp_path / "run"}
    with pytest.raises(ConfigError, match="must be 'instruction', 'ner', 'classification' or 'pairs'"):
        tov.select(task="vision", **given)
    with pytest.raises(tov.DataError, match=r"for pairs(.|\n)*premise \+ hypothesis \+ label"):
        tov.select(task="pairs", **{**given, "target": [{"text": "a"}]})
    layout = layout_of(["label", "premise", "hypothesis", "id"], all_layouts())
    assert layout
    assert layout.task == pairs.name
    with pytest.raises(ConfigError, match="Two tasks are called 'pairs'"):
        register(Pairs())


# The contract


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_all_that_the_contract_asks(name: str) -> None:
    import transformers
    from peft import TaskType

    task = TASKS[name]
    assert task.name == name
    assert all(layout.task == name for layout in task.layouts)
    assert hasattr(transformers, task.auto_model)
    assert task.peft_type in TaskType.__members__
    assert task.generates or task.new_head, "else it has no metric"
    assert all(column.startswith("tov_") for column in task.columns)


class Lacking(Pairs):
    name = "lacking"


def test_a_task_that_says_too_little_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Pairs, "unit")
    monkeypatch.delattr(Pairs, "metric")
    with pytest.raises(ConfigError, match="Lacking does not say its metric, unit"):
        register(Lacking())
    assert "lacking" not in TASKS


ROWS: dict[str, dict[str, Any]] = {
    "instruction": {"prompt": "Why?", "completion": "Because."},
    "ner": {"tokens": ["Ada", "saw", "Rome"], "ner_tags": ["B-PER", "O", "B-LOC"]},
    "classification": {"text": "Ada saw Rome", "label": "yes"},
}


@pytest.mark.parametrize("name", ROWS)
def test_a_task_s_rows_are_what_other_rooms_ask_of_them(name: str, tokenizer: Any, tmp_path: Path) -> None:
    from tov.model.load import load_tokenizer

    task, row = TASKS[name], ROWS[name]
    layout = layout_of(list(row), all_layouts())
    assert layout is not None
    assert layout.task == name
    made = layout.convert(row, Reading())
    head = task.head_labels([frozenset({*made.labels, "no"})], [frozenset({*made.labels, "no"})], ["pool"], LabelMap())
    assert bool(head) == task.new_head
    assert not task.new_head or made.labels <= task.row_labels(head)
    used = load_tokenizer(str(tiny_encoder_folder(tmp_path)), task=task) if task.new_head else tokenizer
    encoded = Encoder(task.encode, used, 32, head)([made, made])
    assert len(encoded) == 2
    assert encoded.scored_counts.min() > 0
    assert encoded.row(0)[0].tolist() == encoded.row(1)[0].tolist()
    assert set(task.columns_as_read([made])) == set(task.columns)
    assert made.text
    assert made.question
    assert len(Encoder(task.encode, used, 32, head)([])) == 0


@pytest.mark.parametrize(
    ("columns", "task"),
    [
        ("text", "instruction"), ("text label", "classification"), ("text entities", "ner"),
        ("messages text label", "instruction"),
        ("text tokens ner_tags", "ner"), ("text entities label", "ner"), ("a b", None),
    ],
)  # fmt: skip
def test_bare_text_is_what_no_other_task_reads(columns: str, task: str | None) -> None:
    found = layout_of(columns.split(), all_layouts())
    assert (found.task if found else None) == task


def test_messages_list_the_tasks_of_which_something_is_true() -> None:
    assert titles(lambda task: task.by_trl) == "instruction tuning"
    assert titles(lambda task: task.new_head) == "named entities, text classification"
