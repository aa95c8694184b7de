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

from tov.config.records import PathSettings, TrainConfig
from tov.config.settings import build
from tov.data.labels import check_known
from tov.data.pool import Pool, files_of
from tov.data.rows import Row, prompt_hash
from tov.data.sources import Input
from tov.engine.choose import check_here
from tov.engine.models import ModelSpec, Opened, auto_batch_tokens
from tov.errors import ConfigError, DataError, RunError
from tov.files import digest, write_text
from tov.inputs.draw import encode_scored
from tov.inputs.named import Inputs, check_unchanged, list_inputs, name_inputs, pool_again, remember
from tov.inputs.read import Indexed, read_target, usable_rows
from tov.model.adapters import load, read_state, save, write_state
from tov.model.consent import Expected
from tov.model.evaluate import Evaluation, evaluate
from tov.objects.mirror import named
from tov.progress import Progress, track
from tov.reports.training import printed, training_markdown
from tov.runs.folder import Run, run_folder, work_on
from tov.runs.manifest import ModelRecord
from tov.scores.store import read_hashes, rows_in
from tov.seeds import derive
from tov.tasks import TASKS, Task, titles
from tov.text.encode import Encoded
from tov.training.final import TrainingLog, epochs_for
from tov.training.final import train as train_by_tov
from tov.training.trl import train_by_trl
from tov.verbs import training_file
from tov.verbs.asked import chosen_for
from tov.verbs.result import Result
from tov.verbs.training_file import open_choice


@dataclass(frozen=True)
class Trained(Result):
    """A finished training.

    Attributes:
        trusted: whether the user of this call allows the model's own code.
    """

    trusted: bool = False

    @property
    def adapter(self) -> Path:
        """The PEFT adapter: `adapter_model.safetensors` (with a classifier's head) and `adapter_config.json`."""
        return self.folder / "adapter"

    def __str__(self) -> str:
        """What the command prints: rows, losses, test before and after, where the adapter is and how to load it, notes."""
        return printed(self.manifest, self.folder, trusted=self.trusted)


@dataclass(frozen=True)
class _Job:
    """All that is read before anything is trained."""

    config: TrainConfig  # with seed and learning rate named
    settings: PathSettings  # of the path, under this training's seed and device
    model: ModelRecord  # that the rows were chosen with
    rows: list[Row]  # what is trained on, in the order of the choice
    chosen: int
    test: Indexed | None
    notes: list[str]

    @property
    def task(self) -> Task[Any]:
        return TASKS[self.settings.task or ""]


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
    arguments = {"from_run": os.fspath(from_run), "out": out and str(out), "test": name_inputs(tests), **settings}
    return run_train(build(TrainConfig, arguments), list_inputs(pool) if pool is not None else None, tests or None)


def run_train(
    config: TrainConfig, pools: Sequence[Input] | None = None, tests: Sequence[Input] | None = None
) -> Trained:
    """`train` from a record of settings; inputs in memory are passed beside it."""
    check_here(config)
    origin = open_choice(config.from_run)
    model = origin.manifest.to_train
    assert model
    config, settings = _resolved(config, origin, model)
    row_ids, pool, hashes = _read_choice(origin, pools)
    test = _read_test(tests or config.test, settings, model)
    job = _guarded(_Job(config, settings, model, usable_rows(pool.at(row_ids)), len(row_ids), test, []))
    identity = _identity(job, origin, hashes)
    with work_on(
        run_folder(config.out, identity), command="train", identity=identity, force=config.force, tells=not config.quiet,
        settings=config.shown(),
        reads=[*origin.reads, *files_of(pool), *(files_of(test.pool) if test else [])],
    ) as run:  # fmt: skip
        if not run.finished:
            run.note(
                inputs=remember(settings, test=tests or config.test),
                origin={"run": named(origin.folder.absolute())},
                seed=config.seed,
            )
            _train_and_test(run, job)
            write_text(
                run.folder / "summary.md", training_markdown(run.manifest, run.place, trusted=config.trust_remote_code)
            )
            run.finish()
        else:
            for name in run.manifest.files:
                if name.startswith("adapter/"):
                    run.check_file(name)
    return Trained(run, config.trust_remote_code)


def _resolved(config: TrainConfig, origin: Run, model: ModelRecord) -> tuple[TrainConfig, PathSettings]:
    """The settings with seed and rate named, and those of the model: the run's, but for seed, device and length."""
    if model.task not in TASKS:
        raise RunError(
            f"{origin.folder} has the task '{model.task}', which tov does not know.", allowed=", ".join(TASKS),
            fix="Update tov: pip install -U tov",
        )  # fmt: skip
    task = TASKS[model.task]
    seed = config.seed if config.seed is not None else origin.manifest.seed or 0
    rate = config.train_learning_rate or task.defaults.train_learning_rate
    if config.trainer == "trl":
        _check_trl(task)
    of_model = {"seed": seed, "device": config.device, "max_length": model.max_length, "task": model.task}
    of_model["trust_remote_code"] = config.trust_remote_code
    settings = build(PathSettings, {**model.settings, **of_model})
    return config.model_copy(update={"seed": seed, "train_learning_rate": rate}), settings


def _check_trl(task: Task[Any]) -> None:
    if not task.by_trl:
        raise ConfigError(
            f"--trainer trl is for {titles(lambda one: one.by_trl)}, but this run's task is {task.title}.",
            fix="Leave --trainer out.",
        )
    if importlib.util.find_spec("trl") is None:
        raise ConfigError("--trainer trl needs TRL, which is not installed.", fix="Install it: pip install 'tov[trl]'")


def _read_choice(origin: Run, pools: Sequence[Input] | None) -> tuple[np.ndarray, Pool, list[str]]:
    """(n,) chosen row ids, the pool they are in, and (n,) their content hashes; the rows are those that were scored."""
    if pools is None and origin.manifest.inputs.pool is None:
        raise ConfigError(
            "The run's pool was in memory, so it cannot be read again.", fix="Pass it again: tov.train(..., pool=...)"
        )
    pool = pool_again(origin, pools, rows_in(origin.scores))
    row_ids = np.array(training_file.read_selected(origin.folder)["tov_row_id"], np.int64)
    hashes = read_hashes(origin.scores, row_ids, origin.stamp)
    check_unchanged(pool, row_ids, hashes)
    return row_ids, pool, hashes


def _read_test(tests: Sequence[Input], settings: PathSettings, model: ModelRecord) -> Indexed | None:
    """The test, read as the target was; None if there is none."""
    if not tests:
        return None
    test = read_target(tests, settings, role="test")
    if model.labels:
        names = [source.name for source in test.pool.sources]
        try:
            known = TASKS[settings.task or ""].row_labels(model.labels)
            check_known(test.index.labels, names, known, role="test")
        except DataError as error:
            raise DataError(
                error.problem,
                allowed=error.allowed,
                fix="Rename them in the test, or select again with a --label-map that maps them.",
            ) from None
    return test


def _guarded(job: _Job) -> _Job:
    """The job without the rows whose prompt is a prompt of the test, unless the run's decontamination is off."""
    if job.test is None:
        return job
    leaked = np.isin([prompt_hash(row) for row in job.rows], job.test.index.prompt)
    if not leaked.any():
        return job
    overlap = f"{int(leaked.sum()):,} chosen rows have a prompt of the test"
    if not job.settings.decontaminate:
        job.notes.append(f"{overlap}, and are trained on: the run's decontamination is off")
        return job
    if leaked.all():
        raise DataError(
            f"All {len(leaked):,} chosen rows have a prompt that is in the test.", fix="Test on other rows."
        )
    job.notes.append(f"{overlap} and were left out")
    rows = [row for row, out in zip(job.rows, leaked, strict=True) if not out]
    return replace(job, rows=rows)


def _identity(job: _Job, origin: Run, hashes: Sequence[str]) -> dict[str, Any]:
    test, scoring = job.test, origin.manifest.scoring
    return {
        "settings": job.config.of("training"),
        "model": job.model.fingerprint,
        "chosen_for": chosen_for(origin),
        "scores": scoring.fingerprint if scoring else "",
        "chosen": {"rows": len(hashes), "fingerprint": digest(list(hashes))},
        "test": {"rows": len(test) if test else 0, "fingerprint": test.index.fingerprint if test else ""},
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
    run.note(trained={
        "task": job.task.name, "model": opened.loaded.model.name_or_path,
        "load": {"revision": job.settings.revision},
        "labels": list(labels), "dtype": dtype, "device": str(opened.loaded.device),
    })  # fmt: skip
    if test is not None and job.config.trainer == "trl":  # TRL changes the model's forward
        opened = _open_pretrained(job)
        write_state(opened.adapted, load(run.folder / "adapter"))
    after = _evaluate(opened, test)
    job.notes.extend(_warnings(log, before, after))
    run.note(summary={
        "rows": len(rows), "chosen": job.chosen, "epochs": epochs, **asdict(log), "losses": list(log.losses),
        "trainer": job.config.trainer, "learning_rate": job.config.train_learning_rate,
        "batch_size": job.config.train_batch_size, "test": _test_facts(job.task, labels, before, after), "notes": job.notes,
    })  # fmt: skip


def _open_pretrained(job: _Job) -> Opened:
    expected = Expected(
        job.model.fingerprint, job.model.tokenizer, "that the rows were chosen with",
        "select again",
    )  # fmt: skip
    return ModelSpec.of(job.settings, tuple(job.model.labels)).open(expected)


def _encode(job: _Job, opened: Opened) -> Encoded:
    """The rows to train on; those without a scored token are counted."""
    encoded = opened.encode(job.rows)
    scored = np.flatnonzero(encoded.scored_counts > 0)
    if not len(scored):
        raise DataError(
            f"None of the {len(encoded):,} chosen rows has a scored token within {opened.encode.max_length} tokens.",
            fix="Select again with a larger --max-length.",
        )
    if len(scored) < len(encoded):
        lost = len(encoded) - len(scored)
        job.notes.append(f"{lost:,} chosen rows have no scored token within --max-length and were left out")
    job.notes.extend(encoded.left_out_notes("chosen"))
    return encoded.take(scored)


def _encode_test(job: _Job, opened: Opened) -> Encoded | None:
    if job.test is None:
        return None
    encoded, row_ids = encode_scored(job.test.pool, opened.encode, role="test")
    lost = len(job.test) - len(row_ids)
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
    warnings = []
    if log.diverged:
        warnings.append("the training log-loss rose: lower --train-learning-rate")
    if before and after and after.loss > before.loss:
        warnings.append(
            "the test log-loss rose: these rows do not help, or --train-learning-rate or --train-rows is too high"
        )
    return warnings


def _test_facts(
    task: Task[Any], labels: Sequence[str], before: Evaluation | None, after: Evaluation | None
) -> dict[str, Any] | None:
    if before is None or after is None:
        return None
    metrics = [task.label_metric(labels, result.labels, result.predicted, result.offsets) for result in (before, after)]
    return {
        "rows": len(after.losses), "loss_before": before.loss, "loss_after": after.loss,
        "metric": task.metric if metrics[0] is not None else None,
        "metric_before": metrics[0], "metric_after": metrics[1],
    }  # fmt: skip
