"""Named entities and text classification, end to end: the same commands, files and guarantees as for instruction tuning."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaModel,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormModel,
)

import tov
from oracle import scores as oracle
from oracle.classifier import label_logprob, tag_logprobs
from tiny import tiny_encoder_folder, tiny_model_folder, write_jsonl
from tov.errors import DataError, ModelError
from tov.methods.tov.scan import scan_rows
from tov.model.adapters import attach, read_state
from tov.model.builtin import packaged_model
from tov.model.evaluate import evaluate
from tov.model.kernels.joined import scanning
from tov.model.load import load_model, load_tokenizer
from tov.tasks import TASKS
from tov.tasks.classification import Labelled
from tov.tasks.ner import Tagged
from tov.text.encode import IGNORED, Encoder, pack

NER, TEXTS = TASKS["ner"], TASKS["classification"]
MOST = 1e-4
"""Nats a word."""
TYPES = ("PER", "LOC")
TAGS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
NAMES = {"PER": ["Ada", "Bo", "Cy Young"], "LOC": ["Rome", "Ulm", "New York"]}
FILLERS = ["saw", "and", "went", "to", "the", "house", "of", "quickly", "unbelievable", "."]


def sentence(draw: random.Random, kind: str) -> dict[str, list[str]]:
    """A sentence with one entity of a type, of 4 to 9 words, now and then another."""
    words: list[str] = []
    tags: list[str] = []
    for part in (kind, draw.choice(["", *TYPES]), *[""] * draw.randint(2, 4)):
        chosen = (draw.choice(NAMES[part]) if part else draw.choice(FILLERS)).split()
        words += chosen
        tags += [f"{'I' if at else 'B'}-{part}" if part else "O" for at in range(len(chosen))]
    return {"tokens": words, "ner_tags": tags}


def text(draw: random.Random, kind: str) -> dict[str, str]:
    return {"text": " ".join(draw.choice([*NAMES[kind], *FILLERS]) for _ in range(draw.randint(2, 9))), "label": kind}


MAKE: dict[str, Callable[[random.Random, str], dict[str, Any]]] = {"ner": sentence, "classification": text}


def make(task: str, count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = [MAKE[task](draw, TYPES[number % 2]) for number in range(count)]
    assert len({json.dumps(row) for row in rows}) == count, "rows of this test must be distinct"
    return rows


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder_folder(tmp_path_factory.mktemp("encoder"))


def select(task: str, folder: Path, model: str, rows: int = 40, **settings: Any) -> tov.Picked:
    pool = write_jsonl(folder / "pool.jsonl", make(task, rows, 1))
    target = write_jsonl(folder / "target.jsonl", make(task, 8, 2))
    given = {
        "n": 8, "out": folder / "run", "dtype": "fp32", "device": "cpu", "base_size": 12, "epochs": 1, "learning_rate": 1e-2,
        "decontaminate": False, "quiet": True, **settings,
    }  # fmt: skip
    return tov.select(model=model, pool=str(pool), target=str(target), **given)


def log_p_again(
    task: str, path: Path, source: str, rows: list[dict[str, Any]], amplify: float
) -> dict[str, list[list[float]]]:
    """Log p of each row's labels under the stored states, with transformers and peft alone."""
    facts = json.loads((path / "manifest.json").read_text())
    labels = {label: place for place, label in enumerate(facts["labels"])}
    auto: Any = {"ner": AutoModelForTokenClassification, "classification": AutoModelForSequenceClassification}[task]
    tokenizer, states = AutoTokenizer.from_pretrained(source), {}
    for which in ("base", "target"):
        model = auto.from_pretrained(source, num_labels=len(labels), label2id=labels, dtype=torch.float32)
        states[which] = PeftModel.from_pretrained(model, path / "epoch-1" / which).eval()
    start = dict(states["base"].named_parameters())
    for name, parameter in states["target"].named_parameters():
        parameter.data = start[name].data + amplify * (parameter.data - start[name].data)
    if task == "ner":
        return {
            which: [tag_logprobs(state, tokenizer, *row.values()) for row in rows] for which, state in states.items()
        }
    return {which: [label_logprob(state, tokenizer, *row.values()) for row in rows] for which, state in states.items()}


def assert_scores_again(
    task: str, picked: tov.Picked, source: str, rows: list[dict[str, Any]], amplify: float
) -> float:
    states = log_p_again(task, picked.folder / "path", source, rows, amplify)
    table, largest = picked.scores.to_pylist(), 0.0
    assert max(abs(row["score_identity"]) for row in table) > 10 * MOST, "the scores are too small to be compared"
    for row, before, after in zip(table, states["base"], states["target"], strict=True):
        expected = {f"score_{name}": value for name, value in oracle.row_scores(before, after).items()}
        expected["loss_base"] = -sum(before) / len(before)
        for measure, value in expected.items():
            gap = abs(row[measure] - value)
            largest = max(largest, gap)
            assert gap < MOST, f"row {row['row_id']}: {measure} is {row[measure]:.6f}, by peft alone {value:.6f}"
        assert row["score_identity"] == pytest.approx(row["loss_base"] - row["loss_target"], abs=1e-6), "Eq. 6"
    return largest


@pytest.mark.parametrize("amplify", [1.0, 4.0])
@pytest.mark.parametrize("task", MAKE)
def test_scores_equal_those_of_peft_one_row_at_a_time(task: str, amplify: float, encoder: Path, tmp_path: Path) -> None:
    picked = select(task, tmp_path, str(encoder), amplify=amplify)
    assert_scores_again(task, picked, str(encoder), make(task, 40, 1), amplify)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("task", MAKE)
def test_scores_of_a_real_encoder_equal_those_of_peft(task: str, minilm: str, tmp_path: Path) -> None:
    rows = int(os.environ.get("TOV_ORACLE_ROWS", "20"))
    picked = select(task, tmp_path, minilm, rows=rows, n=4, amplify=4.0)
    largest = assert_scores_again(task, picked, str(packaged_model(minilm)), make(task, rows, 1), 4.0)
    print(f"{task}, {rows} rows: largest difference {largest:.2g} nat")


@pytest.mark.parametrize("task", MAKE)
def test_a_run_makes_the_same_files_as_any_other(task: str, encoder: Path, tmp_path: Path) -> None:
    picked = select(task, tmp_path, str(encoder), path_variant="paired", epochs=2, rule="score-only")
    assert len(picked.dataset) == 8
    assert len(set(picked.dataset["tov_row_id"])) == 8
    rows = make(task, 40, 1)
    for row in map(json.loads, (tmp_path / "run" / "selected.jsonl").read_text().splitlines()):
        ours = {key: row.pop(key) for key in list(row) if key.startswith("tov_")}
        assert set(ours) == {"tov_row_id", "tov_source", "tov_score", "tov_reason"}
        assert row == rows[ours["tov_row_id"]], "the user's columns are not as they were"
    again = tov.reselect(tmp_path / "run", n=12, out=tmp_path / "again", transform="abs", quiet=True)
    assert len(again.dataset) == 12
    new = write_jsonl(tmp_path / "new.jsonl", rows)
    scored = tov.score(picked, str(new), out=tmp_path / "score", quiet=True)
    for name in ("score_positive", "loss_base", "tokens"):
        assert scored.scores[name].to_pylist() == picked.scores[name].to_pylist(), (
            "the path is not the one that was scanned"
        )
    unit = {"ner": "nats a word", "classification": "nats a text"}[task]
    assert unit in (tmp_path / "run" / "summary.md").read_text()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_head_and_path(encoder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = select("ner", tmp_path / "one", str(encoder))
    torch.manual_seed(2)
    two = select("ner", tmp_path / "two", str(encoder))
    other = select("ner", tmp_path / "other", str(encoder), seed=1)
    heads = [picked.path.state(1, "base")["base_model.model.classifier.weight"] for picked in (one, two, other)]
    assert torch.equal(heads[0], heads[1]), "the head's first weights do not come from --seed"
    assert not torch.equal(heads[0], heads[2])
    assert one.path.fingerprint == two.path.fingerprint


def test_what_is_trained_and_stored_is_the_adapter_and_the_head(encoder: Path, tmp_path: Path) -> None:
    picked = select("ner", tmp_path, str(encoder), dtype="bf16")
    base, target = (picked.path.state(1, which) for which in ("base", "target"))
    kinds = {name.split(".")[2] if "classifier" in name else "lora" for name in base}
    assert kinds == {"classifier", "lora"}
    assert {value.dtype for value in base.values()} == {torch.float32}
    assert all(not torch.equal(base[name], target[name]) for name in base if "classifier" in name), (
        "the head stood still"
    )
    assert json.loads((picked.folder / "path" / "manifest.json").read_text())["labels"] == list(TAGS)


def sentences(count: int) -> list[Tagged]:
    return [Tagged(tuple(row["tokens"]), tuple(row["ner_tags"])) for row in make("ner", count, 3)]


def test_a_words_first_sub_token_carries_its_tag(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), task=NER)
    rows = [Tagged(("Ada", "saw", "New", "York"), ("B-PER", "O", "B-LOC", "I-LOC"))]
    ids, labels = Encoder(NER.encode, tokenizer, 64, TAGS)(rows).row(0)
    pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
    carriers = [(piece, TAGS[tag]) for piece, tag in zip(pieces, labels, strict=True) if tag != IGNORED]
    assert carriers == [("a", "B-PER"), ("s", "O"), ("n", "B-LOC"), ("y", "I-LOC")], "letters: each word has several"
    assert labels[0] == labels[-1] == IGNORED, "[CLS] and [SEP] have no tag"


def test_words_lost_to_truncation_are_counted(encoder: Path, tmp_path: Path) -> None:
    encoded = Encoder(NER.encode, load_tokenizer(str(encoder), task=NER), 8, TAGS)(
        [Tagged(("abc", "de", "fgh", "i"), ("O",) * 4)]
    )
    assert encoded.sizes.tolist() == [3], "[CLS] a b c d e f [SEP]"
    assert encoded.lost.tolist() == [1]
    vanished = Encoder(NER.encode, load_tokenizer(str(encoder), task=NER), 64, TAGS)(
        [Tagged(("a", "\u0000", "b"), ("O",) * 3)]
    )
    assert (vanished.sizes.tolist(), vanished.lost.tolist()) == ([2], [0]), "a word without a token is not cut"
    both = Encoder(NER.encode, load_tokenizer(str(encoder), task=NER), 5, TAGS)(
        [Tagged(("a", "\u202e\u0000\x07", "bc", "\u0000", "de", "f"), ("O",) * 6)]
    )
    assert (both.sizes.tolist(), both.lost.tolist()) == ([2], [2]), "[CLS] a b c [SEP]: de and f are beyond"
    picked = select("ner", tmp_path, str(encoder), max_length=16)
    lost = int(np.sum(picked.scores["lost"].to_numpy()))
    assert lost > 0
    assert f"{lost} words of" in (tmp_path / "run" / "summary.md").read_text()


def test_rows_whose_words_give_no_token_are_not_said_to_be_cut(encoder: Path, tmp_path: Path) -> None:
    rows = make("ner", 30, 1)
    rows[3] = {"tokens": ["\u202e\u0000\x07"] * 4, "ner_tags": ["O"] * 4}
    write_jsonl(tmp_path / "pool.jsonl", rows)
    write_jsonl(tmp_path / "target.jsonl", make("ner", 6, 2))
    picked = tov.select(
        model=str(encoder), pool=str(tmp_path / "pool.jsonl"), target=str(tmp_path / "target.jsonl"), n=4, method="random",
        out=tmp_path / "run", max_length=128, dtype="fp32", device="cpu", decontaminate=False, quiet=True,
    )  # fmt: skip
    assert picked.scores["lost"].to_pylist() == [0] * 30
    assert picked.summary["scores"]["left_out"] == {"no scored tokens": 1}
    for name in ("summary.md", "report.html"):
        text = (tmp_path / "run" / name).read_text()
        assert "beyond --max-length" not in text
        assert "1 row: no scored tokens" in text


@pytest.mark.parametrize(("task", "unit"), [("ner", "nats a word"), ("classification", "nats a text")])
def test_the_page_names_the_unit_of_the_summary(task: str, unit: str, encoder: Path, tmp_path: Path) -> None:
    select(task, tmp_path, str(encoder))
    assert f"| {unit} " in (tmp_path / "run" / "summary.md").read_text()
    page = (tmp_path / "run" / "report.html").read_text()
    assert f'<th scope="col">{unit}</th>' in page
    assert "nats a token" not in page


@pytest.mark.parametrize(("task", "unit"), [("ner", "words"), ("classification", "tokens")])
def test_a_plan_and_a_run_say_what_is_cut(task: str, unit: str, encoder: Path, tmp_path: Path) -> None:
    picked = select(task, tmp_path, str(encoder), max_length=12)
    lost = picked.scores["lost"].to_numpy()
    cut = int((lost > 0).sum())
    assert 0 < cut < len(lost)
    said = f"{lost.sum()} {unit} of {cut} rows lie beyond --max-length: not seen, not scored."
    assert f"\n{said}\n" in (tmp_path / "run" / "summary.md").read_text()
    assert f"<p>{said}</p>" in (tmp_path / "run" / "report.html").read_text(), (
        "the page says the same, in no list of rows"
    )
    files = {role: str(tmp_path / f"{role}.jsonl") for role in ("pool", "target")}
    planned = tov.plan(
        model=str(encoder), **files, max_length=12, dtype="fp32", device="cpu", decontaminate=False, quiet=True,
        probe=False,
    )  # fmt: skip
    assert f"cut at 12 tokens: {cut} rows, which lose {lost.sum()} {unit}" in str(planned)


@pytest.fixture(scope="module")
def subject(encoder: Path) -> Any:
    loaded = load_model(str(encoder), task=NER, labels=TAGS, dtype="fp32", device="cpu")
    adapted = attach(
        loaded.model,
        rank=2,
        alpha=4.0,
        dropout=0.0,
        targets=("all-linear",),
        seed=0,
        task_type=NER.peft_type,
        trained=loaded.head,
    )
    base = read_state(adapted)
    torch.manual_seed(0)
    return (
        adapted,
        loaded.tokenizer,
        base,
        {name: value + 0.05 * torch.randn_like(value) for name, value in base.items()},
    )


def scan(subject: Any, rows: list[Tagged], batch_tokens: int, same: bool = False) -> Any:
    adapted, tokenizer, base, target = subject
    encoded = Encoder(NER.encode, tokenizer, 64, TAGS)(rows)
    with scanning(adapted) as set_state:
        return scan_rows(
            adapted.get_base_model(), set_state, encoded, [(1, base, base if same else target)],
            batch_tokens=batch_tokens,
        )  # fmt: skip


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 10_000])
def test_padding_and_company_change_nothing(subject: Any, batch_tokens: int) -> None:
    """Encoders look both ways, so padding that is not masked would be seen."""
    rows = sentences(24)
    alone = [scan(subject, [row], 1).epochs[0]["score_positive"][0] for row in rows]
    order = np.random.default_rng(0).permutation(len(rows))
    together = scan(subject, [rows[place] for place in order], batch_tokens).epochs[0]["score_positive"]
    np.testing.assert_allclose(together, np.array(alone)[order], atol=2e-6)


def test_identical_states_give_exactly_zero(subject: Any) -> None:
    measures = scan(subject, sentences(24), 100, same=True).epochs[0]
    assert not measures["score_abs"].any()


def test_classification_bins_go_by_the_texts_length(encoder: Path) -> None:
    rows = [Labelled("ab c", "x"), Labelled("a", "y"), Labelled("abcdefgh", "x")]
    encoded = Encoder(TEXTS.encode, load_tokenizer(str(encoder), task=TEXTS), 7, ("x", "y"))(rows)
    assert encoded.sizes.tolist() == [3, 1, 5]
    assert encoded.scored_counts.tolist() == [1, 1, 1], "one label a text"


def test_a_checkpoint_of_the_same_labels_keeps_its_head(encoder: Path, tmp_path: Path) -> None:
    names = ["O", "I-PER", "B-PER", "B-LOC", "I-LOC"]
    ids = {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}
    model = AutoModelForTokenClassification.from_pretrained(encoder, num_labels=5, **ids)
    model.save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "tuned")
    loaded = load_model(str(tmp_path / "tuned"), task=NER, labels=TAGS, dtype="fp32")
    assert loaded.labels == tuple(names), "the head's own order of labels"
    assert torch.equal(loaded.model.classifier.weight, model.classifier.weight)
    other = load_model(str(tmp_path / "tuned"), task=NER, labels=("O", "B-X", "I-X", "B-Y", "I-Y"), dtype="fp32")
    assert not torch.equal(other.model.classifier.weight, model.classifier.weight), (
        "a head of other labels is no head of ours"
    )


def test_heads_of_several_modules_are_trained_whole(encoder: Path, tmp_path: Path) -> None:
    """BERT's sequence head stands on a pooler that a bare encoder lacks; DistilBERT's has two layers of its own."""
    bare = load_model(str(encoder), task=TEXTS, labels=("x", "y"), dtype="fp32")
    assert bare.head in (("classifier",), ("bert.pooler.dense", "classifier"))
    small = {
        "vocab_size": 192,
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": 1,
        "n_heads": 4,
        "max_position_embeddings": 128,
    }
    DistilBertForSequenceClassification(DistilBertConfig(**small)).save_pretrained(tmp_path / "distil")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "distil")
    distil = load_model(str(tmp_path / "distil"), task=TEXTS, labels=("x", "y"))
    assert distil.head == ("classifier", "pre_classifier")
    picked = select("classification", tmp_path, str(tmp_path / "distil"), amplify=4.0)
    assert_scores_again("classification", picked, str(tmp_path / "distil"), make("classification", 40, 1), 4.0)


@pytest.mark.parametrize(
    ("configured", "made"), [(RobertaConfig, RobertaModel), (RobertaPreLayerNormConfig, RobertaPreLayerNormModel)]
)
def test_roberta_counts_positions_from_the_padding_id_on(
    configured: Any, made: Any, encoder: Path, tmp_path: Path
) -> None:
    config = configured(
        vocab_size=192, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    made(config).save_pretrained(tmp_path / "roberta")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "roberta")
    picked = select("ner", tmp_path, str(tmp_path / "roberta"))
    assert json.loads((picked.folder / "path" / "manifest.json").read_text())["max_length"] == 32
    with pytest.raises(ModelError, match="at most 32"):
        select("ner", tmp_path, str(tmp_path / "roberta"), max_length=33, out=tmp_path / "no")


@pytest.mark.parametrize("pad", [0, 2, 290, None], ids=["first", "end", "last", "none"])
def test_a_decoder_with_a_sequence_head_finds_the_last_token_of_a_padded_row(pad: int | None, tmp_path: Path) -> None:
    """Its transformers class looks for it by the padding id, whatever that is; without one, the end token stands for it."""
    folder = tiny_model_folder(tmp_path, pad_token_id=pad)
    if pad is None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = None
        tokenizer.save_pretrained(folder)
    loaded = load_model(str(folder), task=TEXTS, labels=("x", "y", "z"), dtype="fp32")
    draw, rows = np.random.default_rng(0), []
    for length in (5, 9, 12, 20):
        labels = np.full(length, IGNORED)
        labels[0] = length % 3
        rows.append((draw.integers(3, 250, length), labels))
    nothing = np.zeros(len(rows), np.int64)
    encoded = pack(rows, nothing, nothing)
    adapted = attach(
        loaded.model, rank=2, alpha=4.0, dropout=0.0, targets=("all-linear",), seed=0, task_type=TEXTS.peft_type,
        trained=loaded.head,
    )  # fmt: skip
    together, alone = (evaluate(adapted, encoded, batch_tokens=tokens).losses for tokens in (1000, 1))
    with torch.inference_mode():
        logits = [loaded.model(torch.from_numpy(ids)[None]).logits[0] for ids, _ in rows]
    plain = [-one.log_softmax(-1)[labels[0]].item() for one, (_, labels) in zip(logits, rows, strict=True)]
    np.testing.assert_allclose(together, plain, atol=1e-5)
    np.testing.assert_allclose(alone, plain, atol=1e-5)


def test_repaired_rows_are_counted_in_the_summary(encoder: Path, tmp_path: Path) -> None:
    rows = make("ner", 40, 1)
    for row in rows[:5]:
        row["ner_tags"] = [tag.replace("B-", "I-") for tag in row["ner_tags"]]
    pool, target = write_jsonl(tmp_path / "pool.jsonl", rows), write_jsonl(tmp_path / "target.jsonl", make("ner", 8, 2))
    picked = tov.select(
        model=str(encoder), pool=str(pool), target=str(target), n=8, out=tmp_path / "run", base_size=12, epochs=1,
        repair_bio=True, device="cpu", quiet=True,
    )  # fmt: skip
    said = "--repair-bio made the tags of 5 pool rows BIO2"
    assert said in (tmp_path / "run" / "summary.md").read_text()
    scored = tov.score(picked, str(pool), out=tmp_path / "score", quiet=True)
    assert said in scored.summary["notes"], "a new pool is read as the run's pool was"


def test_labels_read_otherwise_are_written_as_read(encoder: Path, tmp_path: Path) -> None:
    rows = make("ner", 40, 1)
    for row in rows:
        row["ner_tags"] = [tag.replace("PER", "person") for tag in row["ner_tags"]]
    pool = write_jsonl(tmp_path / "other.jsonl", rows)
    (tmp_path / "map.yaml").write_text("person: PER\n")
    target = write_jsonl(tmp_path / "target.jsonl", make("ner", 8, 2))
    settings = {"base_size": 12, "epochs": 1, "device": "cpu", "quiet": True, "n": 8}
    picked = tov.select(
        model=str(encoder), pool=str(pool), target=str(target), label_map=str(tmp_path / "map.yaml"), out=tmp_path / "mapped",
        **settings,
    )  # fmt: skip
    for row in picked.dataset:
        assert row["ner_tags"] == rows[row["tov_row_id"]]["ner_tags"], "the user's column is not as it was"
        assert row["tov_tags"] == [tag.replace("person", "PER") for tag in row["ner_tags"]]
        assert row["tov_tokens"] == row["tokens"]
    assert len(pq.read_table(tmp_path / "mapped" / "selected.parquet")) == 8
    again = tov.reselect(tmp_path / "mapped", n=4, out=tmp_path / "again", quiet=True)
    assert len(again.dataset) == 4, "the label map must be remembered"
    with pytest.raises(DataError, match="only in the target: PER; only in the pool: person"):
        tov.select(model=str(encoder), pool=str(pool), target=str(target), out=tmp_path / "no", **settings)
    amiss = {"othr": {"person": "PER"}}
    with pytest.raises(
        DataError,
        match=r"only in the pool: person(.|\n)*has a part for othr, but the sources are target, other",
    ):
        tov.select(
            model=str(encoder), pool=str(pool), target=str(target), label_map=amiss, out=tmp_path / "no", **settings
        )
    vain = {**amiss, "person": "PER"}
    drawn = tov.select(
        model=str(encoder), pool=str(pool), target=str(target), label_map=vain, out=tmp_path / "vain", method="random",
        device="cpu", quiet=True, n=8,
    )  # fmt: skip
    assert "--label-map has a part for othr, but the sources are target, other" in drawn.summary["notes"]
    new = write_jsonl(tmp_path / "new.jsonl", [{"tokens": ["a"], "ner_tags": ["B-thing"]}])
    with pytest.raises(DataError, match="labels that the path was not fitted with: thing"):
        tov.score(picked, str(new), out=tmp_path / "s", quiet=True)
    mapped = tov.score(picked, str(new), out=tmp_path / "s2", label_map={"thing": "O"}, quiet=True)
    assert len(mapped.scores) == 1
