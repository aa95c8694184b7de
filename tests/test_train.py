"""The final training: what it trains on, what it leaves out, and that its adapter gives the numbers that it tells."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import tov
from chaos import kill_for_real
from faults import killed
from oracle.classifier import label_logprob, tag_logprobs
from tiny import make_rows, tiny_encoder_folder, tiny_model_folder, write_jsonl
from tov.cli.main import main
from tov.config.records import TrainingSettings
from tov.errors import ConfigError, DataError, ModelError, NumericError, RunError
from tov.metrics import entity_f1
from tov.runs.folder import open_run
from tov.tasks.instruction import encode, from_prompt_completion
from tov.text.chat import prepare
from tov.text.encode import IGNORED
from tov.training import final as loop
from tov.training import trl as by_trl
from tov.verbs import train as final
from tov.verbs.result import fitted

NAMES = {"PER": ["ada", "bo", "cy"], "LOC": ["rome", "ulm", "york"]}
FILLERS = ["saw", "and", "went", "to", "the", "house"]
QUICK = {"num_train_epochs": 3, "train_batch_size": 4, "train_learning_rate": 1e-2, "device": "cpu", "quiet": True}


def tagged(count: int, seed: int) -> list[dict[str, Any]]:
    """Sentences of fillers and one name."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        kind = ("PER", "LOC")[number % 2]
        fillers = [draw.choice(FILLERS) for _ in range(draw.randint(2, 5))]
        rows.append({"tokens": [draw.choice(NAMES[kind]), *fillers], "ner_tags": [f"B-{kind}", *["O"] * len(fillers)]})
    return rows


def labelled(count: int, seed: int) -> list[dict[str, Any]]:
    return [{"text": " ".join(row["tokens"]), "label": row["ner_tags"][0][2:]} for row in tagged(count, seed)]


MAKE = {"instruction": lambda count, seed: make_rows(count, seed=seed), "ner": tagged, "classification": labelled}


def select(task: str, model: Path, folder: Path, **settings: Any) -> tov.Picked:
    pool = write_jsonl(folder / "pool.jsonl", MAKE[task](40, 1))
    target = write_jsonl(folder / "target.jsonl", MAKE[task](6, 2))
    given = {
        "pool": str(pool), "target": str(target), "n": 16, "out": folder / "run", "epochs": 1, "base_size": 8, "max_length": 96,
        "lora_r": 4, "device": "cpu", "dtype": "fp32", "decontaminate": task == "instruction", "quiet": True, **settings,
    }  # fmt: skip
    return tov.select(model=str(model), **given)


@pytest.fixture(scope="module")
def picked(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tov.Picked:
    """16 of 40 instruction rows; the tests must not change the run."""
    return select("instruction", tiny_folder, tmp_path_factory.mktemp("instruction"))


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> tov.Picked:
    """16 of 40 sentences; the tests must not change the run."""
    folder = tmp_path_factory.mktemp("ner")
    return select("ner", tiny_encoder_folder(folder), folder)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_jsonl(tmp_path_factory.mktemp("test") / "test.jsonl", MAKE["instruction"](6, 3)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, picked: tov.Picked, held_out: str) -> final.Trained:
    return final.train(picked.folder, out=tmp_path_factory.mktemp("trained") / "m", test=held_out, **QUICK)


def loaded(made: final.Trained) -> Any:
    """The model that the printed snippet loads."""
    lines = [line[4:] for line in str(made).splitlines() if line.startswith("    ")]
    assert len(lines) == 4, "the snippet should have four lines"
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    return names["model"].float().eval()


# Numbers


def causal_losses(model: Any, rows: list[dict[str, str]], max_length: int = 96) -> list[float]:
    """Each row's mean log-loss, by transformers' own loss, one row at a time."""
    tokenizer = prepare(AutoTokenizer.from_pretrained(model.peft_config["default"].base_model_name_or_path))
    losses = []
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        scored = tokenizer(row["completion"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids, labels = torch.tensor([before + scored]), torch.tensor([[IGNORED] * len(before) + scored])
        with torch.no_grad():
            losses.append(float(model(input_ids=ids[:, :max_length], labels=labels[:, :max_length]).loss))
    return losses


@pytest.mark.slow
def test_the_adapter_gives_the_reported_loss_in_plain_peft(trained: final.Trained) -> None:
    facts, rows = trained.summary["test"], MAKE["instruction"](6, 3)
    model = loaded(trained)
    assert np.mean(causal_losses(model, rows)) == pytest.approx(facts["loss_after"], abs=1e-5)
    with model.disable_adapter():
        assert np.mean(causal_losses(model, rows)) == pytest.approx(facts["loss_before"], abs=1e-5)
    assert facts["loss_after"] < 0.95 * facts["loss_before"], "training on like rows should help on the test"
    assert facts["rows"] == 6
    assert facts["metric"] is None


def test_the_summary_counts_what_was_done(trained: final.Trained) -> None:
    facts = trained.summary
    assert (facts["rows"], facts["chosen"], facts["epochs"], facts["steps"]) == (16, 16, 3, 12)
    assert len(facts["losses"]) == 3
    assert facts["losses"][-1] < facts["losses"][0]
    assert facts["notes"] == []
    assert facts["learning_rate"] == 1e-2


def test_what_is_printed_and_written(trained: final.Trained) -> None:
    facts, said = trained.summary, str(trained)
    written = (trained.folder / "summary.md").read_text()
    for value in (facts["losses"][0], facts["losses"][-1], facts["test"]["loss_before"], facts["test"]["loss_after"]):
        assert f"{value:.4f}" in said
        assert f"{value:.4f}" in written
    assert "16 rows, 3 epochs, 12 steps" in said
    assert str(trained.adapter) in said
    assert {file.name for file in trained.adapter.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}


@torch.no_grad()
def said_of(model: Any, tokenizer: Any, row: dict[str, Any]) -> Any:
    """The tags of a sentence, or the label of a text, that the model says."""
    words = row.get("tokens")
    encoded = tokenizer(words or row["text"], is_split_into_words=words is not None, return_tensors="pt")
    logits = torch.atleast_2d(model(**encoded).logits[0])
    names = [model.config.id2label[int(place)] for place in logits.argmax(-1)]
    return [names[encoded.word_ids().index(word)] for word in range(len(words))] if words else names[0]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "metric"), [("ner", "entity F1"), ("classification", "accuracy")])
def test_a_classifier_learns_and_its_head_is_stored(tmp_path: Path, task: str, metric: str) -> None:
    encoder = tiny_encoder_folder(tmp_path)
    run = select(task, encoder, tmp_path, n=32)
    rows = MAKE[task](40, 1)[:12]  # of the pool: a random encoder learns 32 rows by heart and nothing else
    settings = {**QUICK, "num_train_epochs": 12, "train_learning_rate": 2e-3}
    made = final.train(run.folder, out=tmp_path / "m", test=rows, **settings)
    facts = made.summary["test"]
    assert facts["loss_after"] < facts["loss_before"]
    assert facts["metric"] == metric
    assert facts["metric_after"] >= facts["metric_before"]
    assert f"{metric} {facts['metric_before']:.3f} -> {facts['metric_after']:.3f}" in str(made)
    model, tokenizer = loaded(made), AutoTokenizer.from_pretrained(encoder)
    model.config.label2id = {label: number for number, label in model.config.id2label.items()}
    gold, said = [[*row.values()][1] for row in rows], [said_of(model, tokenizer, row) for row in rows]
    metric_again = entity_f1(gold, said) if task == "ner" else np.mean(np.array(gold) == np.array(said))
    assert facts["metric_after"] == pytest.approx(metric_again)
    log_p = tag_logprobs if task == "ner" else label_logprob
    losses = [-np.mean(log_p(model, tokenizer, *row.values())) for row in rows]
    assert np.mean(losses) == pytest.approx(facts["loss_after"], abs=1e-5), "the head that peft loads is another one"


def test_a_seed_decides_every_byte(tmp_path: Path, picked: tov.Picked, trained: final.Trained) -> None:
    again = final.train(picked.folder, out=tmp_path / "again", **QUICK)
    other = final.train(picked.folder, out=tmp_path / "other", seed=7, **QUICK)
    files = [one.adapter / "adapter_model.safetensors" for one in (trained, again, other)]
    assert files[0].read_bytes() == files[1].read_bytes(), (
        "the same seed, and a test or none, must give the same adapter"
    )
    assert files[0].read_bytes() != files[2].read_bytes(), "--seed has no effect"
    assert again.summary["test"] is None


def test_epochs_by_the_rule(tmp_path: Path, picked: tov.Picked) -> None:
    assert loop.epochs_for(TrainingSettings(), 1024) == 16
    assert loop.epochs_for(TrainingSettings(), 10_000) == 2
    assert loop.epochs_for(TrainingSettings(), 100_000) == 1
    assert loop.epochs_for(TrainingSettings(num_train_epochs=5), 1024) == 5
    made = final.train(picked.folder, out=tmp_path / "m", **{**QUICK, "num_train_epochs": None}, train_rows=40)
    assert (made.summary["epochs"], made.summary["steps"]) == (2, 8), "40 rows passed over 16 are 2.5 epochs, rounded 2"


def test_the_rate_falls_linearly_to_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, picked: tov.Picked
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def seen(self: torch.optim.AdamW, *given: Any, **more: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *given, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", seen)
    final.train(picked.folder, out=tmp_path / "m", **{**QUICK, "num_train_epochs": 2})
    assert rates == pytest.approx([1e-2 * (1 - at / 8) for at in range(8)])


# Rows


def trained_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled with the texts of the rows that the next training trains on, in order."""
    texts: list[str] = []

    def seen(adapted: Any, rows: Any, *given: Any, **more: Any) -> Any:
        texts.extend(" ".join(map(str, rows.row(index)[0])) for index in range(len(rows)))
        return loop.train(adapted, rows, *given, **more)

    monkeypatch.setattr(final, "train_by_tov", seen)
    return texts


def texts_of(rows: list[dict[str, str]], model: Path) -> list[str]:
    tokenizer = prepare(AutoTokenizer.from_pretrained(model))
    encoded = encode(tokenizer, [from_prompt_completion(row) for row in rows], max_length=96)
    return [" ".join(map(str, encoded.row(index)[0])) for index in range(len(rows))]


def test_the_chosen_rows_are_trained_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, picked: tov.Picked, tiny_folder: Path
) -> None:
    texts = trained_texts(monkeypatch)
    final.train(picked.folder, out=tmp_path / "m", **{**QUICK, "num_train_epochs": 1})
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in picked.dataset]
    assert texts == texts_of(rows, tiny_folder)


def test_rows_with_a_prompt_of_the_test_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, picked: tov.Picked, tiny_folder: Path
) -> None:
    chosen = [{"prompt": row["prompt"], "completion": row["completion"]} for row in picked.dataset]
    leaked = [{"prompt": f" {row['prompt'].upper()}", "completion": "another"} for row in chosen[3:5]]
    texts = trained_texts(monkeypatch)
    made = final.train(picked.folder, out=tmp_path / "m", test=[*leaked, *make_rows(2, seed=3)], **QUICK)
    assert texts == texts_of(chosen[:3] + chosen[5:], tiny_folder)
    assert (made.summary["rows"], made.summary["chosen"]) == (14, 16)
    assert made.summary["notes"] == ["2 chosen rows have a prompt of the test and were left out"]
    assert "note: 2 chosen rows have a prompt of the test" in str(made)
    with pytest.raises(DataError, match="All 16 chosen rows have a prompt that is in the test"):
        final.train(picked.folder, out=tmp_path / "none", test=chosen, **QUICK)


def test_without_the_leak_guard_they_are_trained_on_and_told(tmp_path: Path, tiny_folder: Path) -> None:
    run = select("instruction", tiny_folder, tmp_path, decontaminate=False)
    rows = [{"prompt": row["prompt"], "completion": "another"} for row in run.dataset][:3]
    made = final.train(run.folder, out=tmp_path / "m", test=rows, **QUICK)
    assert made.summary["rows"] == 16
    assert "decontamination is off" in made.summary["notes"][0]


def test_a_test_row_without_a_scored_token_is_counted(tmp_path: Path, picked: tov.Picked) -> None:
    rows = [*make_rows(3, seed=3), {"prompt": "long " * 40, "completion": "lost"}]
    made = final.train(picked.folder, out=tmp_path / "m", test=rows, **QUICK)
    assert made.summary["test"]["rows"] == 3
    assert made.summary["notes"] == ["1 test rows have no scored token within --max-length and were left out"]


def test_a_choice_from_an_earlier_run_s_scores(tmp_path: Path, picked: tov.Picked) -> None:
    again = tov.reselect(picked, n=8, out=tmp_path / "eight", seed=3, quiet=True)
    made = final.train(again.folder, out=tmp_path / "m", **QUICK)
    assert made.summary["rows"] == 8
    assert made.manifest.seed == 3, "the seed should be the choice's"
    assert fitted(open_run(again.folder)) == picked.folder / "path"


def test_a_pool_in_memory_is_passed_again(tmp_path: Path, tiny_folder: Path) -> None:
    rows = make_rows(40, seed=1)
    run = select("instruction", tiny_folder, tmp_path, pool=rows)
    with pytest.raises(ConfigError, match=r"in memory(.|\n)*do: .*tov\.train\(\.\.\., pool=\.\.\.\)"):
        final.train(run.folder, out=tmp_path / "m", **QUICK)
    assert final.train(run.folder, out=tmp_path / "m", pool=rows, **QUICK).summary["rows"] == 16
    chosen = run.dataset["tov_row_id"][0]
    rows[chosen] = {**rows[chosen], "completion": "changed"}
    with pytest.raises(DataError, match="no longer the row that was scored"):
        final.train(run.folder, out=tmp_path / "other", pool=rows, **QUICK)


def test_the_base_weights_must_be_those_of_the_path(tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path)
    run = select("instruction", model, tmp_path)
    tiny_model_folder(tmp_path, seed=1)
    with pytest.raises(ModelError, match="no longer the one"):
        final.train(run.folder, out=tmp_path / "m", **QUICK)


# The run folder


def test_a_finished_training_is_returned_at_once(
    monkeypatch: pytest.MonkeyPatch, picked: tov.Picked, trained: final.Trained, held_out: str
) -> None:
    monkeypatch.setattr(final, "ModelSpec", None)
    again = final.train(picked.folder, out=trained.folder, test=held_out, **QUICK)
    assert again.manifest == trained.manifest


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("really", [False, True])
def test_a_killed_training_starts_over(
    tmp_path: Path, picked: tov.Picked, trained: final.Trained, really: bool
) -> None:
    """Killed when its adapter is written and has no name yet."""
    moment = {"naming": "adapter"}
    if really:
        flags = [
            "--num-train-epochs",
            "3",
            "--train-batch-size",
            "4",
            "--train-learning-rate",
            "1e-2",
            "--device",
            "cpu",
        ]
        kill_for_real(["train", str(picked.folder), "--out", str(tmp_path / "m"), *flags], **moment)
    else:
        with killed(**moment):
            final.train(picked.folder, out=tmp_path / "m", **QUICK)
    made = final.train(picked.folder, out=tmp_path / "m", **QUICK)
    assert made.manifest.status == "finished"
    file = "adapter_model.safetensors"
    assert (made.adapter / file).read_bytes() == (trained.adapter / file).read_bytes()
    assert not list(made.folder.rglob("*.tmp"))


def test_another_training_in_the_folder_is_refused(
    tmp_path: Path, picked: tov.Picked, trained: final.Trained, held_out: str
) -> None:
    with pytest.raises(RunError, match=r"differs in:\n +settings\.num_train_epochs: 3 -> 4"):
        final.train(picked.folder, out=trained.folder, test=held_out, **{**QUICK, "num_train_epochs": 4})
    with pytest.raises(RunError, match=r"test\.rows: 6 -> 0"):
        final.train(picked.folder, out=trained.folder, **QUICK)
    other = tov.reselect(picked.folder, n=8, out=tmp_path / "eight", quiet=True)
    with pytest.raises(RunError, match=r"chosen\.rows: 16 -> 8"):
        final.train(other.folder, out=trained.folder, test=held_out, **QUICK)


def test_force_trains_anew_but_never_over_what_it_reads(tmp_path: Path, picked: tov.Picked) -> None:
    final.train(picked.folder, out=tmp_path / "m", **{**QUICK, "num_train_epochs": 1})
    made = final.train(picked.folder, out=tmp_path / "m", force=True, **QUICK)
    assert made.summary["epochs"] == 3
    with pytest.raises(RunError, match="--force would delete"):
        final.train(picked.folder, out=picked.folder, force=True, **QUICK)


# The command


def test_the_command(tmp_path: Path, picked: tov.Picked, held_out: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--num-train-epochs", "2", "--train-batch-size", "4", "--device", "cpu", "--test", held_out]
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as stop:
            main(["train", str(picked.folder), "--out", str(tmp_path / "m"), *flags, *more])
        assert stop.value.code == 0
    text, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    assert text.startswith("trained on 16 rows, 2 epochs, 8 steps")
    assert json.loads(last)["summary"]["epochs"] == 2


@pytest.mark.parametrize("what", ["nothing", "fit", "score", "unfinished"])
def test_a_run_without_a_choice_is_refused(tmp_path: Path, picked: tov.Picked, what: str) -> None:
    folder, pool = tmp_path / what, str(picked.folder.parent / "pool.jsonl")
    if what == "score":
        tov.score(picked.folder, pool, out=folder, quiet=True, device="cpu")
    elif what != "nothing":
        folder.mkdir()
        source = picked.folder / "manifest.json"
        manifest = json.loads(source.read_text())
        manifest["status"] = "running" if what == "unfinished" else "finished"
        manifest.pop("scoring")
        (folder / "manifest.json").write_text(json.dumps(manifest))
        if what == "unfinished":
            (folder / "selected.parquet").write_bytes((picked.folder / "selected.parquet").read_bytes())
    said = {
        "nothing": "holds no run", "fit": "no chosen rows(.|\n)*tov select", "unfinished": "not finished",
        "score": f"no chosen rows(.|\n)*tov select --from {folder}",
    }[what]  # fmt: skip
    with pytest.raises(RunError, match=said):
        final.train(folder, out=tmp_path / "m", **QUICK)
    assert not (tmp_path / "m").exists(), "a refused training must leave nothing behind"


def test_labels_of_the_test_must_be_known(tmp_path: Path, sentences: tov.Picked) -> None:
    rows = [*tagged(3, 5), {"tokens": ["acme", "went"], "ner_tags": ["B-ORG", "O"]}]
    with pytest.raises(DataError, match=r"test .*ORG(.|\n)*LOC, PER(.|\n)*Rename them in the test"):
        final.train(sentences.folder, out=tmp_path / "m", test=rows, **QUICK)
    assert not (tmp_path / "m").exists()


def test_a_diverged_training_names_its_own_flag(tmp_path: Path, picked: tov.Picked) -> None:
    with pytest.raises(NumericError, match="Lower --train-learning-rate"):
        final.train(picked.folder, out=tmp_path / "m", **{**QUICK, "train_learning_rate": 1e20})


# TRL


def test_trl_is_for_instruction_tuning(tmp_path: Path, sentences: tov.Picked) -> None:
    with pytest.raises(
        ConfigError, match="--trainer trl is for instruction tuning, but this run's task is named entities"
    ):
        final.train(sentences.folder, out=tmp_path / "m", trainer="trl", **QUICK)


def test_trl_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, picked: tov.Picked) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ConfigError, match=r"pip install 'tov\[trl\]'"):
        final.train(picked.folder, out=tmp_path / "m", trainer="trl", **QUICK)


def test_trl_trains_and_is_tested_by_us(
    tmp_path: Path, picked: tov.Picked, held_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trl", reason="trl is not installed (pip install 'tov[trl]')")
    made = final.train(picked.folder, out=tmp_path / "m", test=held_out, trainer="trl", **QUICK)
    facts = made.summary
    assert (facts["rows"], facts["epochs"], facts["steps"], len(facts["losses"])) == (16, 3, 12, 3)
    assert facts["losses"][-1] < facts["losses"][0]
    assert facts["test"]["loss_after"] < 0.95 * facts["test"]["loss_before"]
    losses = causal_losses(loaded(made), MAKE["instruction"](6, 3))
    assert np.mean(losses) == pytest.approx(facts["test"]["loss_after"], abs=1e-5)
    assert capsys.readouterr().out == "", "TRL's own lines would break --json"


def test_trl_sees_our_tokens_and_labels_and_steps_at_our_rates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, picked: tov.Picked
) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed (pip install 'tov[trl]')")
    ours: list[tuple[list[int], list[int]]] = []
    theirs: list[tuple[list[int], list[int]]] = []
    rates: list[float] = []
    make, compute, step = by_trl.trl_trainer, trl.SFTTrainer.compute_loss, torch.optim.AdamW.step

    def made(adapted: Any, tokenizer: Any, rows: Any, *given: Any, **more: Any) -> Any:
        pairs = [rows.row(index) for index in range(len(rows))]
        ours.extend((ids.tolist(), labels.tolist()) for ids, labels in pairs)
        trainer = make(adapted, tokenizer, rows, *given, **more)
        assert trainer.args.max_grad_norm == 0, "we do not clip"
        return trainer

    def seen(self: Any, model: Any, inputs: dict[str, Any], *given: Any, **more: Any) -> Any:
        for ids, labels, filled in zip(inputs["input_ids"], inputs["labels"], inputs["attention_mask"], strict=True):
            assert (labels[filled == 0] == IGNORED).all()
            theirs.append((ids[filled == 1].tolist(), labels[filled == 1].tolist()))
        return compute(self, model, inputs, *given, **more)

    def stepped(self: torch.optim.AdamW, *given: Any, **more: Any) -> Any:
        assert all(group["weight_decay"] == 0 for group in self.param_groups)
        rates.append(self.param_groups[0]["lr"])
        return step(self, *given, **more)

    monkeypatch.setattr(by_trl, "trl_trainer", made)
    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", seen)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    final.train(
        picked.folder, out=tmp_path / "m", trainer="trl", **{**QUICK, "num_train_epochs": 2, "train_batch_size": 5}
    )
    assert sorted(theirs) == sorted(ours * 2), "TRL must see each row once an epoch, with our tokens and labels"
    assert rates == pytest.approx([1e-2 * (1 - at / 8) for at in range(8)]), "linear decay over 2 x 4 steps, no warm-up"


def test_trl_with_other_labels_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, picked: tov.Picked) -> None:
    pytest.importorskip("trl", reason="trl is not installed (pip install 'tov[trl]')")
    make = by_trl.trl_dataset
    monkeypatch.setattr(by_trl, "trl_dataset", lambda rows: make(rows).remove_columns(["labels", "completion_mask"]))
    with pytest.raises(ModelError, match="The installed TRL makes other labels of row 1"):
        final.train(picked.folder, out=tmp_path / "m", trainer="trl", **QUICK)


def test_what_trl_refuses_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, picked: tov.Picked) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed (pip install 'tov[trl]')")

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("an adapter on lm_head is not supported")

    monkeypatch.setattr(trl.SFTTrainer, "__init__", refuse)
    with pytest.raises(ConfigError, match=r"TRL refuses these settings: an adapter on lm_head(.|\n)*--trainer tov"):
        final.train(picked.folder, out=tmp_path / "m", trainer="trl", **QUICK)
