"""A seed's trials: score tables first, then one training a trial from the same initial weights, each tested on the same rows.

A trial that fails is a record with its error. Knows no other seeds; used by comparisons and by the pilots of `--method auto`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np

from tov.checks.facts import drawn, seen
from tov.checks.look import Beside, look
from tov.comparison.records import DONE, FAILED, LEFT_OUT
from tov.comparison.split import Split
from tov.comparison.variants import Trial
from tov.config.records import CompareConfig
from tov.data.pool import Pool
from tov.engine.models import Models, ModelSpec, Opened, auto_batch_tokens
from tov.errors import DataError, TovError, interrupted
from tov.files import digest
from tov.inputs.draw import RANDOM_ROWS, draw_rows, encode_scored
from tov.inputs.read import targets_of, usable_rows
from tov.methods.choice import choose_rows, columns_for
from tov.methods.score_pool import score_pool
from tov.methods.spec import Variant, dumped, settings_for, table_made_from
from tov.methods.work import model_record, note_model
from tov.metrics import exact_match, own_metric
from tov.model.consent import Expected
from tov.model.evaluate import Evaluation, evaluate
from tov.model.generate import Asked, answers
from tov.runs.environment import versions
from tov.runs.folder import Run, work_on
from tov.runs.manifest import ChecksRecord
from tov.scores.store import read_table
from tov.seeds import derive, generator
from tov.tasks import TASKS, Task
from tov.text.encode import Encoded
from tov.training.final import train

FAILURES = (TovError, RuntimeError, LookupError, ValueError, TypeError, MemoryError)
"""What may end a trial and not the comparison: torch tells of memory and shapes by its own, and another's method as it will."""


@dataclass
class Bench:
    """What the trials of one seed share.

    Attributes:
        config: the comparison's settings under this seed.
        split: its rows.
        labels: of a classifier.
        models: opens models, and keeps the last one.
        expected: the model of the comparison so far, or of the run that it goes out from.
    """

    config: CompareConfig
    split: Split
    labels: tuple[str, ...]
    models: Models = field(default_factory=Models)
    expected: Expected | None = None

    @cached_property
    def beside(self) -> Beside:
        """What chosen rows are looked at beside; the same for all trials."""
        split, encode, seed = self.split, self.model().encode, self.config.seed
        pool_rows, of_pool = seen(split.rows.pool, np.flatnonzero(split.rows.usable), encode, seed)
        target, of_target = seen(split.target.pool, np.arange(len(split.target)), encode, seed)
        test, _ = seen(split.test.pool, np.arange(len(split.test)), None, seed)
        return Beside(self.task, of_pool, pool_rows, of_target, {"target": target, "test": test})

    @property
    def task(self) -> Task[Any]:
        """The task of all rows."""
        return TASKS[self.config.task or ""]

    def model(self) -> Opened:
        """The model in its initial state (pretrained weights, seeded adapter and head)."""
        return self.models.open(ModelSpec.of(self.config, self.labels), self.expected)


def seed_trials(run: Run, bench: Bench, todo: Sequence[Trial]) -> Iterator[dict[str, Any]]:
    """Score tables first (each on its own model), then the trainings (all from one)."""
    opened = bench.model()
    # What every trial of a comparison must share.
    note_model(run, model_record(opened, bench.config))
    version = {"version": versions()["tov"], "commit": versions().get("commit")}
    test, row_ids = encode_scored(bench.split.test.pool, opened.encode, role="test")
    lost = len(bench.split.test) - len(row_ids)
    tables: dict[str, _Table | Exception] = {}
    of_trial: dict[tuple[str, int, int], str] = {}
    for trial in todo:
        variant = trial.chooser
        options = variant.method.resolve(variant.options, trial.n)  # they may depend on n, and then so does the table
        of_trial[trial.key] = name = digest([variant.name, dumped(options)])
        if variant.method.takes == "best" and name not in tables:
            tables[name] = _score_table(run, bench, variant, options, trial.n)
    for trial in todo:
        yield {**_try(trial, bench, tables.get(of_trial[trial.key]), test, lost), **version}


def check_questions(test: Pool, rows: int, flag: str = "--exact-match", role: str = "test") -> None:
    """Raises DataError if a row to be answered has nothing before its answer."""
    plain = sum(not row.prompt for row in _asked(test, rows))
    if plain:
        raise DataError(
            f"{flag} asks for answers to {rows:,} {role} rows, but {plain:,} of them are bare text without a question.",
            fix=f"Leave {flag} out, or name a {role} of questions and answers.",
        )


def _asked(test: Pool, rows: int) -> list[Asked]:
    """The first rows of the test, of a task whose answers can be generated."""
    return cast(list[Asked], usable_rows(test.rows(0, min(len(test), rows))))


@dataclass(frozen=True)
class _Table:
    run: Run
    config: CompareConfig
    rows: int

    @property
    def notes(self) -> list[str]:
        return self.run.manifest.notes


def _score_table(run: Run, bench: Bench, variant: Variant, options: Any, n: int) -> _Table | Exception:
    """Fills the variant's table by its method, or reads what an earlier call has left; variants of one table share it."""
    config, rows, target = settings_for(bench.config, variant), bench.split.rows, bench.split.target
    made_from, targets = table_made_from(config, variant.method, options), targets_of(target)
    seed_folder = run.folder / "scores" / f"seed-{config.seed}"
    identity = {
        "settings": made_from, "pool": {"fingerprint": rows.index.fingerprint, "excluded": rows.excluded_fingerprint},
        "target": target.index.fingerprint, **({"targets": list(targets)} if len(targets) > 1 else {}),
    }  # fmt: skip
    try:
        with work_on(
            seed_folder / digest(made_from), command="compare", identity=identity, settings=made_from
        ) as table:
            if not table.finished:
                score_pool(
                    table, rows, targets, config, variant, n=n, labels=bench.labels, models=bench.models,
                    artifacts=seed_folder / "artifacts", quiet=config.quiet,
                )  # fmt: skip
                table.finish()
    except FAILURES as error:
        stop_if_interrupted(error)
        return error
    return _Table(table, config, len(rows.pool))


def stop_if_interrupted(error: Exception) -> None:
    """An interrupted trial has not failed: it is to be run again."""
    if interrupted(error):
        raise KeyboardInterrupt from error


def _try(trial: Trial, bench: Bench, table: _Table | Exception | None, test: Encoded, lost: int) -> dict[str, Any]:
    start = time.monotonic()
    record = {**_named(trial), "notes": table.notes if isinstance(table, _Table) else []}
    try:
        if isinstance(table, Exception):
            raise table
        record |= _run_trial(trial, bench, table, test)
    except _TooFewRows as error:
        record |= {"status": LEFT_OUT, "error": error.problem}
    except FAILURES as error:
        stop_if_interrupted(error)
        record |= _failure(error)
    if trial.gate:
        record |= {"gate": trial.gate, "notes": [trial.gate["verdict"], *record["notes"]]}
    return {
        **record,
        "test_rows": len(test),
        "test_rows_without_tokens": lost,
        "seconds": round(time.monotonic() - start, 3),
    }


def _named(trial: Trial) -> dict[str, Any]:
    return {
        "variant": trial.variant.name, "method": trial.variant.method.name, "n": trial.n, "seed": trial.seed, "status": DONE,
        "error": None,
    }  # fmt: skip


def _failure(error: Exception) -> dict[str, Any]:
    return {"status": FAILED, "error": f"{type(error).__name__}: {error}"}


def failed(trial: Trial, error: Exception, bench: Bench) -> dict[str, Any]:
    """The record of a trial that could not be begun.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    stop_if_interrupted(error)
    lacks = {"test_rows": len(bench.split.test), "test_rows_without_tokens": 0, "seconds": 0.0}
    return {**_named(trial), "notes": [], **_failure(error), **lacks}


def _added(*costs: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Costs of scoring, together; None where there is none."""
    there = [cost for cost in costs if cost]
    return {name: sum(cost[name] for cost in there) for name in there[0]} if there else None


def _run_trial(trial: Trial, bench: Bench, table: _Table | None, test: Encoded) -> dict[str, Any]:
    opened, config = bench.model(), bench.config
    record: dict[str, Any] = {
        "scoring": _added(trial.gate["cost"] if trial.gate else None, table.run.manifest.cost if table else None),
        "table": table.run.folder.name if table else None,
        "train": None,
        "chosen": {},
        "by_score": 0,
    }
    if trial.chooser.method.takes != "none":
        row_ids, rows, by_score, notes = _chosen(trial, bench, table, opened)
        record["checks"] = _look(bench, row_ids, rows).model_dump(mode="json")
        log = train(opened.adapted, rows, config, seed=derive(config.seed, "final training"))
        record |= {
            "train": log.facts(),
            "chosen": dict(Counter(bench.split.rows.pool.source_names(row_ids))),
            "by_score": by_score,
            "notes": [*(table.notes if table else []), *notes],
            "rows_fingerprint": digest([int(row_id) for row_id in row_ids]),
        }
    result = evaluate(opened.adapted, test, batch_tokens=config.batch_tokens or auto_batch_tokens(opened.loaded.device))
    return {**record, "loss": result.loss, "metric": _metric(result, bench, opened)}


def _look(bench: Bench, row_ids: np.ndarray, rows: Encoded) -> ChecksRecord:
    places = drawn(np.arange(len(row_ids)), bench.config.seed)
    chosen = usable_rows(bench.split.rows.pool.at(row_ids[places]))
    return look(chosen, rows.sizes[places], bench.beside, n=len(row_ids))


class _TooFewRows(DataError):
    """A point of the random curve, at a size that nobody asked for, is beyond the pool's rows with a scored token."""


def _chosen(
    trial: Trial, bench: Bench, table: _Table | None, opened: Opened
) -> tuple[np.ndarray, Encoded, int, tuple[str, ...]]:
    """The rows to train on: ids, tokens, how many the score chose, and what a reader must be told of the choice."""
    rows = bench.split.rows
    if table is None:
        row_ids, encoded = draw_rows(rows, trial.n, generator(trial.seed, RANDOM_ROWS), opened.encode)
        if len(row_ids) < trial.n and trial.chooser.method.takes == "random":
            short = DataError if trial.n in bench.config.sizes else _TooFewRows
            raise short(
                f"{trial.n:,} random rows are wanted, but {len(row_ids):,} have a scored token.", fix="Lower --sizes."
            )
        return row_ids, encoded, 0, ()
    method, scores = trial.chooser.method, table.run.scores
    targets = list(table.run.manifest.targets)
    columns = read_table(
        scores, table.rows, columns_for(method, table.config, scores, targets=targets), table.run.stamp
    )
    choice, _ = choose_rows(method, table.config, columns, table.run, targets=targets, n=trial.n, seed=trial.seed)
    encoded = opened.encode(usable_rows(rows.pool.at(choice.row_ids)))
    return choice.row_ids, encoded, int((choice.reasons == "score").sum()), choice.notes


def _metric(result: Evaluation, bench: Bench, opened: Opened) -> float | None:
    config, task, labels = bench.config, bench.task, opened.loaded.labels
    if not task.generates:
        if not config.metric:
            return task.label_metric(labels, result.labels, result.predicted, result.offsets)
        rows = (task.predictions(labels, ids, result.offsets) for ids in (result.labels, result.predicted))
        return own_metric(config.metric)(*rows)
    if not config.exact_match:
        return None
    asked = _asked(bench.split.test.pool, config.exact_match)
    references, given = [row.answer for row in asked], answers(opened.adapted, opened.encode, asked)
    if config.metric:
        return own_metric(config.metric)(references, given)
    return exact_match(references, given, config.answer_pattern)
