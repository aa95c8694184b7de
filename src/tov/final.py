"""The final training: a run's chosen rows, from the pretrained weights, to an adapter that any PEFT user can load, tested.

Walks the stages in order: read the choice, keep the test's prompts out, train, save, test. Must not know how rows were chosen.
Speaks nats a token (a word, a text).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tov import output
from tov.config import TASK_DEFAULTS, PathSettings, TrainConfig
from tov.data.labels import known_labels
from tov.data.pool import Index, Pool, files_of
from tov.data.rows import Row, prompt_hash
from tov.data.sources import Input
from tov.errors import ConfigError, DataError, ModelError, RunError
from tov.files import digest, write_text
from tov.inputs import Inputs, check_unchanged, chosen_with, list_inputs, name_inputs, pool_again, read_by, remember
from tov.metrics import NAMES, label_metric
from tov.model.adapters import load, read_state, save, write_state
from tov.model.evaluate import Evaluation, evaluate
from tov.path.store import StoredPath
from tov.progress import Progress, duration, track
from tov.report import UNITS, table
from tov.run import Run, at_work, open_run, run_folder, start_run
from tov.scan.shards import read_scores
from tov.seeds import derive
from tov.settings import build
from tov.stages import Opened, auto_batch_tokens, encode_target, open_model, read_target, usable_rows
from tov.text.encode import Encoded
from tov.training import TrainingLog, epochs_for, train_by_trl
from tov.training import train as train_by_tov

AUTO_CLASSES = {
    "instruction": "AutoModelForCausalLM",
    "ner": "AutoModelForTokenClassification",
    "classification": "AutoModelForSequenceClassification",
}
"""What transformers calls a model of each task."""
SHOWN_EPOCHS = 16
"""Epochs whose training log-loss the report shows."""


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        folder: its run folder.
        manifest: what `manifest.json` says.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def adapter(self) -> Path:
        """The PEFT adapter: `adapter_model.safetensors` (with a classifier's head) and `adapter_config.json`."""
        return self.folder / "adapter"

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of the report."""
        return dict(self.manifest["summary"])


@dataclass(frozen=True)
class _Job:
    """All that is read before anything is trained."""

    config: TrainConfig  # with seed and learning rate named
    settings: PathSettings  # of the path, under this training's seed and device
    stored: StoredPath
    rows: list[Row]  # what is trained on, in the order of the choice
    chosen: int
    test: tuple[Pool, Index] | None
    notes: list[str]

    @property
    def task(self) -> str:
        return str(self.settings.task)


def train(
    from_run: str | os.PathLike[str], *, out: str | Path, test: Inputs | None = None, pool: Inputs | None = None,
    **settings: Any,
) -> Trained:  # fmt: skip
    """Trains the final model on a run's chosen rows, by the run's LoRA settings, and tests it.

    The same call again returns the finished training; one that was interrupted is begun again.

    Args:
        from_run: folder of a `select` (or `select --from`) run (or its result).
        out: the new run folder; the adapter lies in `adapter/` below it.
        test: held-out rows like the target.
        pool: the run's pool, needed only if it was in memory.
        **settings: any other setting of `tov train --help`, with underscores.

    Raises:
        TovError: one of its six kinds; the text says what to do.
    """
    tests = list_inputs(test) if test is not None else []
    given = {"from_run": os.fspath(from_run), "out": str(out), "test": name_inputs(tests), **settings}
    return run_train(build(TrainConfig, given), list_inputs(pool) if pool is not None else None, tests or None)


def run_train(
    config: TrainConfig, pools: Sequence[Input] | None = None, tests: Sequence[Input] | None = None
) -> Trained:
    """`train` from a record of settings; inputs in memory are passed beside it."""
    origin = _open_choice(config.from_run)
    stored = chosen_with(origin)
    config, settings = _settled(config, origin, stored)
    row_ids, pool, hashes = _read_choice(origin, pools)
    test = _read_test(tests or config.test, settings, stored)
    job = _guarded(_Job(config, settings, stored, usable_rows(pool.at(row_ids)), len(row_ids), test, []))
    identity = _identity(job, hashes)
    run = start_run(
        run_folder(config.out, identity),
        command="train", identity=identity, force=config.force,
        settings=config.shown(),
        reads=[*read_by(origin), stored.folder, *files_of(pool), *(files_of(test[0]) if test else [])],
    )  # fmt: skip
    if run.finished:
        return Trained(run.folder, run.manifest)
    with at_work(run):
        run.note(inputs=remember(settings, test=tests or config.test), run_from=str(origin.folder.absolute()))
        _train_and_test(run, job)
        write_text(run.folder / "summary.md", _markdown(Trained(run.folder, run.manifest)))
        run.finish()
    return Trained(run.folder, run.manifest)


def _open_choice(folder: str) -> Run:
    """A finished run that has chosen rows."""
    origin = open_run(folder)
    if not (origin.folder / "selected.parquet").exists():
        fix = (
            f"tov select --from {folder} --n N --out DIR" if "scan" in origin.manifest else "name a tov select's --out"
        )
        raise RunError(f"{folder} holds no chosen rows (no selected.parquet)", fix=fix)
    if not origin.finished:
        raise RunError(f"the run in {folder} is not finished", fix="finish it first: give its command again")
    return origin


def _settled(config: TrainConfig, origin: Run, stored: StoredPath) -> tuple[TrainConfig, PathSettings]:
    """The settings with seed and rate named, and those of the model: the path's, but for seed, device and length."""
    task = stored.manifest["task"]
    seed = config.seed if config.seed is not None else origin.manifest["seed"]
    rate = config.train_learning_rate or TASK_DEFAULTS[task]["train_learning_rate"]
    if config.trainer == "trl":
        _check_trl(task)
    of_model = {"seed": seed, "device": config.device, "max_length": stored.manifest["max_length"], "task": task}
    settings = build(PathSettings, {**stored.manifest["settings"], **of_model})
    return config.model_copy(update={"seed": seed, "train_learning_rate": rate}), settings


def _check_trl(task: str) -> None:
    if task != "instruction":
        raise ConfigError(
            f"--trainer trl is for instruction tuning, this run's task is {task}", fix="leave --trainer out"
        )
    if importlib.util.find_spec("trl") is None:
        raise ConfigError("--trainer trl, but TRL is not installed", fix="pip install 'tov[trl]'")


def _read_choice(origin: Run, pools: Sequence[Input] | None) -> tuple[np.ndarray, Pool, list[str]]:
    """(n,) chosen row ids, the pool they are in, and (n,) their content hashes; the rows are those that were scored."""
    if pools is None and origin.manifest["inputs"]["pool"] is None:
        raise ConfigError("the run's pool was in memory", fix="pass it again: tov.train(..., pool=...)")
    scores = read_scores(Path(origin.manifest.get("scores_from") or origin.scores))
    pool = pool_again(origin, pools, scores)
    row_ids = np.array(output.read_selected(origin.folder)["tov_row_id"], np.int64)
    check_unchanged(pool, row_ids, scores)
    return row_ids, pool, [scores["hash"][int(row_id)].as_py() for row_id in row_ids]


def _read_test(tests: Sequence[Input], settings: PathSettings, stored: StoredPath) -> tuple[Pool, Index] | None:
    """The test, read as the target was; None if there is none."""
    if not tests:
        return None
    test, index = read_target(tests, settings, role="test")
    if stored.manifest["labels"]:
        names = [source.name for source in test.sources]
        try:
            known_labels(index.labels, names, stored.manifest["labels"], str(settings.task), role="test")
        except DataError as error:
            raise DataError(
                error.problem, fix="rename them in the test, or select again with a --label-map that maps them"
            ) from None
    return test, index


def _guarded(job: _Job) -> _Job:
    """The job without the rows whose prompt is a prompt of the test, unless the run's leak guard is off."""
    if job.test is None:
        return job
    leaked = np.isin([prompt_hash(row) for row in job.rows], job.test[1].prompt)
    if not leaked.any():
        return job
    said = f"{int(leaked.sum()):,} chosen rows have a prompt of the test"
    if not job.settings.leak_guard:
        job.notes.append(f"{said}, and are trained on: the run's leak guard is off")
        return job
    if leaked.all():
        raise DataError(f"all {len(leaked):,} chosen rows have a prompt of the test", fix="test on other rows")
    job.notes.append(f"{said} and were left out")
    kept = [row for row, out in zip(job.rows, leaked, strict=True) if not out]
    return replace(job, rows=kept)


def _identity(job: _Job, hashes: Sequence[str]) -> dict[str, Any]:
    settings = job.config.of_stage("training")
    test = job.test
    return {
        "settings": {name: value for name, value in settings.items() if name not in ("from_run", "test")},
        "path": job.stored.fingerprint,
        "chosen": {"rows": len(hashes), "fingerprint": digest(list(hashes))},
        "test": {"rows": len(test[0]) if test else 0, "fingerprint": test[1].fingerprint if test else ""},
    }


def _train_and_test(run: Run, job: _Job) -> None:
    """Fills `adapter/` and the manifest."""
    opened = _open_pretrained(job)
    rows = _encode(job, opened)
    test = _encode_test(job, opened)
    before = _evaluate(opened, test)
    epochs = epochs_for(job.config, len(rows))
    with run.stage("train"), track("train", epochs * len(rows), quiet=job.config.quiet) as progress:
        log = _train(run, job, opened, rows, progress)
    save(opened.adapted, read_state(opened.adapted), run.folder / "adapter")
    labels, dtype = opened.loaded.labels, opened.loaded.dtype
    run.note(path={
        "task": job.task, "fingerprint": job.stored.fingerprint, "model": opened.loaded.model.name_or_path,
        "load": {name: getattr(job.settings, name) for name in ("revision", "trust_remote_code")},
        "labels": list(labels), "dtype": dtype, "device": str(opened.loaded.device),
    })  # fmt: skip
    if test is not None and job.config.trainer == "trl":  # TRL changes the model's forward
        opened = _open_pretrained(job)
        write_state(opened.adapted, load(run.folder / "adapter"))
    after = _evaluate(opened, test)
    job.notes.extend(_warnings(log, before, after))
    run.note(seed=job.config.seed, summary={
        "rows": len(rows), "chosen": job.chosen, "epochs": epochs, **asdict(log), "losses": list(log.losses),
        "trainer": job.config.trainer, "learning_rate": job.config.train_learning_rate,
        "batch_size": job.config.train_batch_size, "test": _test_facts(job.task, labels, before, after), "notes": job.notes,
    })  # fmt: skip


def _open_pretrained(job: _Job) -> Opened:
    opened = open_model(job.settings, tuple(job.stored.manifest["labels"]))
    if job.stored.manifest["model_fingerprint"] not in (None, opened.loaded.fingerprint):
        raise ModelError(
            f"the model '{job.settings.model}' is no longer the one that the rows were chosen with",
            fix="put the old weights back, or select again",
        )
    return opened


def _encode(job: _Job, opened: Opened) -> Encoded:
    """The rows to train on; those without a scored token are counted."""
    encoded = opened.encode(job.rows)
    kept = np.flatnonzero(encoded.scored_counts > 0)
    if not len(kept):
        raise DataError(
            f"none of the {len(encoded):,} chosen rows has a scored token within {opened.encode.max_length} tokens",
            fix="select again with a larger --max-length",
        )
    if len(kept) < len(encoded):
        lost = len(encoded) - len(kept)
        job.notes.append(f"{lost:,} chosen rows have no scored token within --max-length and were left out")
    return encoded.take(kept)


def _encode_test(job: _Job, opened: Opened) -> Encoded | None:
    if job.test is None:
        return None
    encoded, lost = encode_target(job.test[0], opened, role="test")
    if lost:
        job.notes.append(f"{lost:,} test rows have no scored token within --max-length and were left out")
    return encoded


def _evaluate(opened: Opened, test: Encoded | None) -> Evaluation | None:
    tokens = auto_batch_tokens(opened.loaded.device)
    return evaluate(opened.adapted, test, batch_tokens=tokens) if test else None


def _train(run: Run, job: _Job, opened: Opened, rows: Encoded, progress: Progress) -> TrainingLog:
    """By our loop or TRL's; a seed's order of rows is that of the same seed's trials in a comparison."""
    assert job.config.seed is not None
    seed = derive(job.config.seed, "final training")
    if job.config.trainer == "trl":
        tokenizer, folder = opened.encode.tokenizer, run.folder / "trl"
        return train_by_trl(opened.adapted, tokenizer, rows, job.config, seed=seed, folder=folder, progress=progress)
    return train_by_tov(opened.adapted, rows, job.config, seed=seed, progress=progress)


def _warnings(log: TrainingLog, before: Evaluation | None, after: Evaluation | None) -> list[str]:
    found = []
    if log.diverged:
        found.append("the training log-loss rose: lower --train-learning-rate")
    if before and after and after.loss > before.loss:
        found.append(
            "the test log-loss rose: these rows do not help, or --train-learning-rate or --train-rows is too high"
        )
    return found


def _test_facts(
    task: str, labels: Sequence[str], before: Evaluation | None, after: Evaluation | None
) -> dict[str, Any] | None:
    if before is None or after is None:
        return None
    metrics = [label_metric(task, labels, one.labels, one.predicted, one.offsets) for one in (before, after)]
    return {
        "rows": len(after.losses), "loss_before": before.loss, "loss_after": after.loss,
        "metric": NAMES[task] if metrics[0] is not None else None,
        "metric_before": metrics[0], "metric_after": metrics[1],
    }  # fmt: skip


def describe(trained: Trained) -> str:
    """What the command prints: rows, losses, test before and after, where the adapter is and how to load it, notes."""
    facts, unit = trained.summary, UNITS[trained.manifest["path"]["task"]]
    first, *rest = facts["losses"]
    lines = [f"trained on {_what(facts)}: log-loss {_fall(first, rest[-1]) if rest else f'{first:.4f}'} nats a {unit}"]
    lines += [f"test ({facts['test']['rows']:,} rows): {line}" for line in _test_lines(facts, unit)]
    lines += [f"note: {note}" for note in facts["notes"]]
    lines += ["", f"adapter: {trained.adapter}", *(f"    {line}" for line in _snippet(trained)), ""]
    return "\n".join([*lines, f"report: {trained.folder / 'summary.md'}"])


def _what(facts: dict[str, Any]) -> str:
    return (
        f"{facts['rows']:,} rows, {facts['epochs']:,} epoch{'s' * (facts['epochs'] != 1)}, {facts['steps']:,} steps, "
        f"{facts['tokens']:,} tokens "
        f"in {duration(facts['seconds'])}"
    )


def _fall(before: float, after: float) -> str:
    """`1.2345 -> 1.1000 (-10.9 %)`."""
    change = f" ({100 * (after - before) / before:+.1f} %)" if before else ""
    return f"{before:.4f} -> {after:.4f}{change}"


def _test_lines(facts: dict[str, Any], unit: str) -> list[str]:
    test = facts["test"]
    if test is None:
        return []
    lines = [f"log-loss {_fall(test['loss_before'], test['loss_after'])} nats a {unit}"]
    if test["metric"]:
        lines.append(f"{test['metric']} {test['metric_before']:.3f} -> {test['metric_after']:.3f}")
    return lines


def _snippet(trained: Trained) -> list[str]:
    """Four lines of Python that load the trained model."""
    base = trained.manifest["path"]
    auto, options = AUTO_CLASSES[base["task"]], {**base["load"], "id2label": dict(enumerate(base["labels"]))}
    more = "".join(f", {name}={value!r}" for name, value in options.items() if value)
    return [
        "from peft import PeftModel",
        f"from transformers import {auto}",
        f"model = {auto}.from_pretrained({base['model']!r}{more})",
        f"model = PeftModel.from_pretrained(model, {str(trained.adapter.absolute())!r})",
    ]


def _markdown(trained: Trained) -> str:
    """The text of `summary.md`."""
    manifest, facts = trained.manifest, trained.summary
    unit = UNITS[manifest["path"]["task"]]
    shown = np.unique(np.linspace(1, facts["epochs"], SHOWN_EPOCHS).round().astype(int))
    epochs = [[str(epoch), f"{facts['losses'][epoch - 1]:.4f}"] for epoch in shown]
    parts = [
        "# tov train",
        f"- run: `{manifest['run_from']}`\n- model: `{manifest['path']['model']}`\n- trainer: `{facts['trainer']}`, rate "
        f"`{facts['learning_rate']:g}`, batches of {facts['batch_size']} rows, seed {manifest['seed']}",
        f"## Training\n\n{_what(facts)}.",
        table(["epoch", f"log-loss, nats a {unit}"], epochs),
    ]
    if facts["test"]:
        told = "\n".join(f"- {line}" for line in _test_lines(facts, unit))
        parts += [f"## Test, {facts['test']['rows']:,} rows", told]
    if facts["notes"]:
        parts += ["## Notes", "\n".join(f"- {note}" for note in facts["notes"])]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    parts += ["## Use it", "\n".join(["```python", *_snippet(trained), "```"]), "## Made with", versions]
    return "\n\n".join(parts) + "\n"
