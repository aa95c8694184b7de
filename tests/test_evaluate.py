"""What a model does on a test: log-loss and predictions against transformers alone, metrics by hand, answers one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny import make_rows, tiny_encoder_folder, tiny_llama
from tov.config.records import TrainingSettings
from tov.errors import NumericError
from tov.metrics import accuracy, entity_f1, exact_match
from tov.model import generate
from tov.model.adapters import attach
from tov.model.evaluate import evaluate
from tov.model.generate import answers
from tov.model.load import load_model
from tov.tasks import TASKS
from tov.tasks.classification import Labelled
from tov.tasks.instruction import Conversation, from_prompt_completion
from tov.tasks.ner import Tagged
from tov.text.encode import IGNORED, Encoded, Encoder
from tov.training.final import train

INSTRUCTION, NER, CLASSIFICATION = TASKS["instruction"], TASKS["ner"], TASKS["classification"]
TAGS = ("O", "B-PER", "I-PER")
SENTENCES = [
    Tagged(("ada", "went"), ("B-PER", "O")),
    Tagged(("the", "unbelievable", "bo", "young", "saw", "it"), ("O", "O", "B-PER", "I-PER", "O", "O")),
    Tagged(("house",), ("O",)),
    Tagged(("cy", "and", "ada", "quickly"), ("B-PER", "O", "B-PER", "O")),
]
TEXTS = [Labelled("ada went home", "one"), Labelled("no", "two"), Labelled("a much longer text than the others", "two")]


def adapted(model: Any, task: str = "instruction", head: tuple[str, ...] = ()) -> Any:
    """The model under an adapter that does something."""
    made = attach(
        model,
        rank=4,
        alpha=16.0,
        dropout=0.0,
        targets=("all-linear",),
        seed=1,
        task_type=TASKS[task].peft_type,
        trained=head,
    )
    draw = torch.Generator().manual_seed(2)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    return made.eval()


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder_folder(tmp_path_factory.mktemp("encoder"))


def classifier(folder: Path, task: str, labels: tuple[str, ...]) -> tuple[Any, Any]:
    """A model whose predictions differ, and its tokenizer."""
    loaded = load_model(str(folder), task=TASKS[task], labels=labels, device="cpu", dtype="fp32")
    torch.nn.init.normal_(loaded.model.classifier.weight, generator=torch.Generator().manual_seed(3))
    made = adapted(loaded.model, task, loaded.head)
    some = torch.arange(5, 45).reshape(4, 10)
    with torch.no_grad():  # so that no class is the likeliest of all
        logits = made(input_ids=some).logits
        made.get_base_model().classifier.modules_to_save["default"].bias -= logits.flatten(0, -2).mean(0)
    return made, loaded.tokenizer


def alone(model: Any, rows: Encoded, *, texts: bool = False) -> tuple[list[float], list[int]]:
    """Each row's mean log-loss and the predicted classes of its labels, one row at a time, by plain transformers and peft."""
    losses, predicted = [], []
    for index in range(len(rows)):
        ids, labels = (torch.from_numpy(part).long() for part in rows.row(index))
        if not (labels != IGNORED).any():
            losses.append(float("nan"))
            continue
        with torch.no_grad():
            wanted = labels[:1] if texts else labels[None]
            out = model(input_ids=ids[None], labels=wanted)
        losses.append(float(out.loss))
        logits = out.logits if texts else out.logits[0][labels != IGNORED]
        predicted += logits.argmax(-1).tolist()
    return losses, predicted


# evaluate


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_a_causal_model_s_losses(tokenizer: Any, batch_tokens: int) -> None:
    model, rows = adapted(tiny_llama()), [from_prompt_completion(row) for row in make_rows(7, longest=30)]
    encoded = Encoder(INSTRUCTION.encode, tokenizer, 64)(rows)
    silent = Encoder(INSTRUCTION.encode, tokenizer, 4)(rows[:1])
    mixed = Encoded.concatenate([encoded.take([0, 1, 2]), silent, encoded.take([3, 4, 5, 6])])
    found = evaluate(model, mixed, batch_tokens=batch_tokens)
    losses, _ = alone(model, mixed)
    np.testing.assert_allclose(found.losses, losses, atol=2e-5, err_msg="log-loss of a row, or the order of rows")
    assert np.isnan(found.losses[3]), "a row without a scored token has no loss"
    assert found.loss == pytest.approx(np.nanmean(losses), abs=2e-5)
    assert len(found.predicted) == 0


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_a_tagger_s_losses_and_tags(encoder_folder: Path, batch_tokens: int) -> None:
    model, tokenizer = classifier(encoder_folder, "ner", TAGS)
    encoded = Encoder(NER.encode, tokenizer, 64, TAGS)(SENTENCES)
    found, (losses, predicted) = evaluate(model, encoded, batch_tokens=batch_tokens), alone(model, encoded)
    np.testing.assert_allclose(found.losses, losses, atol=2e-5)
    assert found.predicted.tolist() == predicted, "tags must come back in the order of the rows"
    assert [TAGS[label] for label in found.labels] == [tag for row in SENTENCES for tag in row.tags]
    assert found.offsets.tolist() == [0, 2, 8, 9, 13]
    assert len(set(predicted)) > 1, "a test of one tag would not see a wrong order"


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_a_text_classifier_s_losses_and_labels(encoder_folder: Path, batch_tokens: int) -> None:
    model, tokenizer = classifier(encoder_folder, "classification", ("one", "two"))
    encoded = Encoder(CLASSIFICATION.encode, tokenizer, 64, ("one", "two"))(TEXTS)
    found = evaluate(model, encoded, batch_tokens=batch_tokens)
    losses, predicted = alone(model, encoded, texts=True)
    np.testing.assert_allclose(found.losses, losses, atol=2e-5)
    assert found.predicted.tolist() == predicted
    assert found.labels.tolist() == [0, 1, 1]


def test_a_broken_model_is_said(tokenizer: Any) -> None:
    model, encoded = (
        adapted(tiny_llama()),
        Encoder(INSTRUCTION.encode, tokenizer, 64)([from_prompt_completion(row) for row in make_rows(3)]),
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.fill_(float("nan"))
    with pytest.raises(NumericError, match="not a finite number"):
        evaluate(model, encoded, batch_tokens=64)


def test_the_model_is_left_as_it_was(tokenizer: Any) -> None:
    model, encoded = (
        adapted(tiny_llama()),
        Encoder(INSTRUCTION.encode, tokenizer, 64)([from_prompt_completion(row) for row in make_rows(3)]),
    )
    before, _ = alone(model, encoded)
    evaluate(model, encoded, batch_tokens=64)
    assert alone(model, encoded)[0] == before


# Metrics


@pytest.mark.parametrize(
    ("gold", "predicted", "score"),
    [
        ([["B-PER", "I-PER", "O"]], [["B-PER", "I-PER", "O"]], 1.0),
        ([["B-PER", "I-PER", "O"]], [["B-PER", "O", "O"]], 0.0),  # an end is wrong
        ([["B-PER", "O"]], [["B-LOC", "O"]], 0.0),  # the type is wrong
        ([["B-PER", "O", "B-LOC"]], [["B-PER", "O", "O"]], 2 / 3),  # precision 1, recall 1/2
        ([["B-PER", "O"], ["O", "B-LOC"]], [["B-PER", "B-PER"], ["O", "B-LOC"]], 0.8),  # precision 2/3, recall 1
        ([["O", "B-PER"]], [["O", "I-PER"]], 1.0),  # an I- without its B- begins an entity
        ([["B-PER", "B-PER"]], [["B-PER", "I-PER"]], 0.0),  # two entities are not one
        ([["B-PER"], ["B-PER"]], [["B-PER"], ["I-PER"]], 1.0),  # entities end with the sentence
        ([["O"]], [["O"]], 0.0),  # none to find
    ],
)
def test_entity_f1(gold: list[list[str]], predicted: list[list[str]], score: float) -> None:
    assert entity_f1(gold, predicted) == pytest.approx(score)


def test_accuracy() -> None:
    assert accuracy(np.array([0, 1, 2, 1]), np.array([0, 1, 1, 1])) == 0.75


def test_a_classifier_s_metric_by_its_task() -> None:
    gold, predicted, offsets = np.array([1, 2, 0, 1]), np.array([1, 2, 0, 2]), np.array([0, 3, 4])
    assert NER.label_metric(TAGS, gold, predicted, offsets) == 1.0, "the second sentence's I- begins an entity"
    both = np.array([1, 2]), np.array([1, 1])
    assert NER.label_metric(TAGS, *both, np.array([0, 1, 2])) == 1.0, "entities end with the sentence"
    assert NER.label_metric(TAGS, *both, np.array([0, 2])) == 0.0
    assert NER.label_metric(TAGS, gold[:2], np.array([1, 0]), np.array([0, 2])) == 0.0
    assert CLASSIFICATION.label_metric(TAGS, gold, predicted, offsets) == 0.75
    assert INSTRUCTION.label_metric((), gold, predicted, offsets) is None


@pytest.mark.parametrize(
    ("reference", "answer", "pattern", "right"),
    [
        ("a  b\n", "a b", r"(?s)^.*$", True),
        ("a b", "a c", r"(?s)^.*$", False),
        ("so #### 42", "first 3, then 4\n#### 42", r"#### (\d+)", True),
        ("so #### 42", "#### 42 no, #### 43", r"#### (\d+)", False),  # the last match counts
        ("42", "it is #### 42", r"#### (\d+)", True),  # a reference without a match is compared whole
        ("42", "42", r"#### (\d+)", False),  # an answer without a match is wrong
        ("x=1;", "x=1;", r"(x)=(\d);", True),
        ("", "", r"(?s)^.*$", True),
    ],
)
def test_exact_match(reference: str, answer: str, pattern: str, right: bool) -> None:
    assert exact_match([reference], [answer], pattern) == float(right)


def test_exact_match_is_a_share() -> None:
    assert exact_match(["a", "b", "c", "d"], ["a", "x", "c", "d"], r"(?s)^.*$") == 0.75


# Answers


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "NEW_TOKENS", 12)


def answer_alone(model: Any, tokenizer: Any, row: Conversation, *, stops: tuple[int, ...] = (2,)) -> str:
    """Greedy decoding of one prompt, by the model's logits alone."""
    text = tokenizer.apply_chat_template(list(row.prompt), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    while len(ids) < start + generate.NEW_TOKENS:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


def test_answers_in_batches_are_those_made_alone(monkeypatch: pytest.MonkeyPatch, short: None, tokenizer: Any) -> None:
    monkeypatch.setattr(generate, "BATCH_ROWS", 3)
    model, rows = adapted(tiny_llama()), [from_prompt_completion(row) for row in make_rows(7)]
    assert len({len(str(row.prompt)) for row in rows[:3]}) > 1, "prompts of one length would not be padded"
    side = tokenizer.padding_side
    found = answers(model, Encoder(INSTRUCTION.encode, tokenizer, 96), rows)
    assert found == [answer_alone(model, tokenizer, row) for row in rows]
    assert len(set(found)) > 1
    assert tokenizer.padding_side == side


def test_an_answer_ends_with_the_template_s_turn(short: None, tokenizer: Any) -> None:
    model, rows = adapted(tiny_llama()), [from_prompt_completion(row) for row in make_rows(4)]
    model.generation_config.eos_token_id = 0  # as base models have it, which end a text and not a turn
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[2] = 3 * head.weight.abs().max() * torch.sign(head.weight[50])  # <|im_end|> is now likely
    found = answers(model, Encoder(INSTRUCTION.encode, tokenizer, 96), rows)
    expected = [answer_alone(model, tokenizer, row, stops=(0, 2)) for row in rows]
    assert found == expected
    assert any(len(one) < generate.NEW_TOKENS - 1 for one in found), "no answer ended, so nothing was tested"


@pytest.mark.parametrize("limit", [16, 24])
def test_a_model_of_few_positions_answers_within_them(limit: int, short: None, tokenizer: Any) -> None:
    """Half of them at most are the answer's, and the end of the prompt has the rest."""
    model = adapted(tiny_llama(max_position_embeddings=limit))
    rows = [from_prompt_completion({"prompt": words, "completion": "x"}) for words in ("a", "long " * 30)]
    found = answers(model, Encoder(INSTRUCTION.encode, tokenizer, 96), rows)
    assert len(found) == 2
    text = tokenizer.apply_chat_template(list(rows[1].prompt), tokenize=False, add_generation_prompt=True)
    new = min(generate.NEW_TOKENS, limit // 2)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][-(limit - new) :]
    with torch.no_grad():
        first = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    assert found[1][:1] == tokenizer.decode([first], skip_special_tokens=True)[:1]


def test_the_end_of_a_long_prompt_is_kept(short: None, tokenizer: Any) -> None:
    model, row = adapted(tiny_llama()), from_prompt_completion({"prompt": "long " * 30, "completion": "x"})
    text = tokenizer.apply_chat_template(list(row.prompt), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][-20:]
    with torch.no_grad():
        first = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    assert answers(model, Encoder(INSTRUCTION.encode, tokenizer, 20), [row])[0][:1] == tokenizer.decode([first])[:1]


def test_a_template_that_takes_the_prompt_of_a_long_talk(short: None, tokenizer: Any) -> None:
    turns = ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")
    row = Conversation(tuple({"role": role, "content": content} for role, content in turns))
    model = adapted(tiny_llama())
    assert answers(model, Encoder(INSTRUCTION.encode, tokenizer, 96), [row]) == [answer_alone(model, tokenizer, row)]


def test_a_training_is_the_same_whatever_was_measured_before_it(encoder_folder: Path) -> None:
    """The frozen encoder's own dropout (0.1 here) must stay off, also after a scan."""

    def trained(measure_first: bool) -> list[float]:
        loaded = load_model(str(encoder_folder), task=NER, labels=TAGS, dtype="fp32", device="cpu", seed=0)
        model = attach(
            loaded.model,
            rank=2,
            alpha=4.0,
            dropout=0.0,
            targets=("all-linear",),
            seed=1,
            task_type=NER.peft_type,
            trained=loaded.head,
        )
        rows = Encoder(NER.encode, loaded.tokenizer, 64, TAGS)(SENTENCES)
        if measure_first:
            evaluate(model, rows, batch_tokens=64)
        settings = TrainingSettings(train_rows=16, train_learning_rate=1e-2, train_batch_size=2)
        return list(train(model, rows, settings, seed=3).losses)

    assert trained(measure_first=True) == pytest.approx(trained(measure_first=False), rel=1e-4)
