"""A seed's trials: score tables first, then one training a trial from the same initial weights, each tested on the same rows.

A trial that fails is a record with its error. Knows no other seeds; used by comparisons and by the pilots of `--method auto`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np

from tov.checks.facts import drawn, seen
from tov.checks.look import Beside, look
from tov.comparison.records import DONE, FAILED, LEFT_OUT
from tov.comparison.split import Split
from tov.comparison.trainings import Failed, Trained, Training, Trainings, in_words
from tov.comparison.variants import Trial
from tov.config.records import CompareConfig
from tov.data.pool import Pool
from tov.engine.base import FAILURES
from tov.engine.choose import engine_of
from tov.engine.models import Models, ModelSpec, Opened
from tov.errors import DataError, stop_if_interrupted
from tov.files import digest
from tov.inputs.draw import RANDOM_ROWS, draw_rows, encode_scored
from tov.inputs.read import targets_of, usable_rows
from tov.methods.choice import choose_rows, columns_for
from tov.methods.score_pool import score_pool
from tov.methods.spec import Variant, dumped, settings_for, table_made_from
from tov.methods.work import model_record, note_model
from tov.metrics import exact_match, own_metric
from tov.model.consent import Expected
from tov.model.generate import Asked
from tov.runs.environment import versions
from tov.runs.folder import Run, work_on
from tov.runs.manifest import ChecksRecord
from tov.scores.store import read_table
from tov.seeds import generator
from tov.tasks import TASKS, Task
from tov.text.encode import Encoded, Encoder


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
        split, encode, seed = self.split, self.encode, self.config.seed
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
        return self.models.open(self.spec, self.expected)

    @property
    def spec(self) -> ModelSpec:
        """The model described."""
        return ModelSpec.of(self.config, self.labels)

    @cached_property
    def encode(self) -> Encoder:
        """Rows to the model's tokens; stays when the model is let go."""
        return self.model().encode

    @cached_property
    def asked(self) -> list[Asked]:
        """The test rows whose answers are generated."""
        return _asked(self.split.test.pool, self.config.exact_match) if self.task.generates else []


def seed_trials(run: Run, bench: Bench, todo: Sequence[Trial], done: Callable[[dict[str, Any]], None]) -> None:
    """Score tables first (each on its own model), then the trainings (all from one), side by side where there are workers.

    Args:
        run: of the comparison, or of the pilots.
        bench: of the seed.
        todo: trials that have not been run.
        done: takes the record of a trial when it ends; workers end them in any order.
    """
    # What every trial of a comparison must share.
    note_model(run, model_record(bench.model(), bench.config))
    test, row_ids = encode_scored(bench.split.test.pool, bench.encode, role="test")
    tables: dict[str, _Table | Exception] = {}
    of_trial: list[str] = []
    for trial in todo:
        variant = trial.chooser
        options = variant.method.resolve(variant.options, trial.n)  # they may depend on n, and then so does the table
        of_trial.append(name := digest([variant.name, dumped(options)]))
        if variant.method.takes == "best" and name not in tables:
            tables[name] = _score_table(run, bench, variant, options, trial.n)
    shared = {
        "test_rows": len(test), "test_rows_without_tokens": len(bench.split.test) - len(row_ids),
        "version": versions()["tov"], "commit": versions().get("commit"),
    }  # fmt: skip
    trials = _Trials(
        bench, [(trial, tables.get(name)) for trial, name in zip(todo, of_trial, strict=True)], shared, done
    )
    task = Trainings(bench.config, bench.spec, bench.expected, test, bench.asked)
    engine_of(bench.config, bench.models).run(task, trials.chosen(), trials.trained, trials.failed)


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
                    table, rows, target, config, variant, n=n, labels=bench.labels, models=bench.models,
                    artifacts=seed_folder / "artifacts", quiet=config.quiet,
                )  # fmt: skip
                table.finish()
    except FAILURES as error:
        stop_if_interrupted(error)
        return error
    return _Table(table, config, len(rows.pool))


@dataclass(frozen=True)
class _Trials:
    """The trials of a seed: what each is trained on, and the record of what came of it.

    Attributes:
        bench: what they share.
        trials: each with its score table, if its rows are chosen by one.
        shared: what all their records hold.
        done: takes a record.
        known: place -> what is known of a trial before its training, and the seconds that this took.
    """

    bench: Bench
    trials: Sequence[tuple[Trial, _Table | Exception | None]]
    shared: Mapping[str, Any]
    done: Callable[[dict[str, Any]], None]
    known: dict[int, tuple[dict[str, Any], float]] = field(default_factory=dict)

    def chosen(self) -> Iterator[Training]:
        """The trainings; the rows of one are chosen when it is asked for. A trial whose rows cannot be chosen has ended."""
        for place, (trial, table) in enumerate(self.trials):
            begun = time.monotonic()
            try:
                if isinstance(table, Exception):
                    raise table
                known, rows = _before_training(trial, self.bench, table)
            except _TooFewRows as error:
                self._write(place, {"status": LEFT_OUT, "error": error.problem}, time.monotonic() - begun)
            except FAILURES as error:
                stop_if_interrupted(error)
                self._write(place, _failure(in_words(error)), time.monotonic() - begun)
            else:
                self.known[place] = known, time.monotonic() - begun
                yield Training(place, rows)

    def trained(self, training: Training, came: Trained | Failed) -> None:
        """Writes what came of a training."""
        known, seconds = self.known[training.start]
        try:
            if isinstance(came, Failed):
                ended = _failure(came.why)
            else:
                ended = {**known, "train": came.train, "loss": came.result.loss, "metric": _metric(came, self.bench)}
        except FAILURES as error:  # the user's own metric
            stop_if_interrupted(error)
            ended = _failure(in_words(error))
        self._write(training.start, ended, seconds + came.seconds)

    def failed(self, training: Training, why: str) -> None:
        """Writes that a training could not be had from any worker."""
        self._write(training.start, _failure(why), self.known[training.start][1])

    def _write(self, place: int, ended: Mapping[str, Any], seconds: float) -> None:
        trial, table = self.trials[place]
        record = {**_named(trial), "notes": table.notes if isinstance(table, _Table) else [], **ended}
        if trial.gate:
            record |= {"gate": trial.gate, "notes": [trial.gate["verdict"], *record["notes"]]}
        self.done({**record, **self.shared, "seconds": round(seconds, 3)})


def _named(trial: Trial) -> dict[str, Any]:
    return {
        "variant": trial.variant.name, "method": trial.variant.method.name, "n": trial.n, "seed": trial.seed, "status": DONE,
        "error": None,
    }  # fmt: skip


def _failure(why: str) -> dict[str, Any]:
    return {"status": FAILED, "error": why}


def failed(trial: Trial, error: Exception, bench: Bench) -> dict[str, Any]:
    """The record of a trial that could not be begun.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    stop_if_interrupted(error)
    lacks = {"test_rows": len(bench.split.test), "test_rows_without_tokens": 0, "seconds": 0.0}
    return {**_named(trial), "notes": [], **_failure(in_words(error)), **lacks}


def _added(*costs: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Costs of scoring, together; None where there is none."""
    there = [cost for cost in costs if cost]
    return {name: sum(cost[name] for cost in there) for name in there[0]} if there else None


def _before_training(trial: Trial, bench: Bench, table: _Table | None) -> tuple[dict[str, Any], Encoded | None]:
    """What a trial's record says of the rows chosen, and these as tokens; None where there is no training."""
    known: dict[str, Any] = {
        "scoring": _added(trial.gate["cost"] if trial.gate else None, table.run.manifest.cost if table else None),
        "table": table.run.folder.name if table else None,
        "train": None,
        "chosen": {},
        "by_score": 0,
    }
    if trial.chooser.method.takes == "none":
        return known, None
    row_ids, rows, by_score, notes = _chosen(trial, bench, table)
    known |= {
        "chosen": dict(Counter(bench.split.rows.pool.source_names(row_ids))),
        "by_score": by_score,
        "checks": _look(bench, row_ids, rows).model_dump(mode="json"),
        "notes": [*(table.notes if table else []), *notes],
        "rows_fingerprint": digest([int(row_id) for row_id in row_ids]),
    }
    return known, rows


def _look(bench: Bench, row_ids: np.ndarray, rows: Encoded) -> ChecksRecord:
    places = drawn(np.arange(len(row_ids)), bench.config.seed)
    chosen = usable_rows(bench.split.rows.pool.at(row_ids[places]))
    return look(chosen, rows.sizes[places], bench.beside, n=len(row_ids))


class _TooFewRows(DataError):
    """A point of the random curve, at a size that nobody asked for, is beyond the pool's rows with a scored token."""


def _chosen(trial: Trial, bench: Bench, table: _Table | None) -> tuple[np.ndarray, Encoded, int, tuple[str, ...]]:
    """The rows to train on: ids, tokens, how many the score chose, and what a reader must be told of the choice."""
    rows = bench.split.rows
    if table is None:
        row_ids, encoded = draw_rows(rows, trial.n, generator(trial.seed, RANDOM_ROWS), bench.encode)
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
    encoded = bench.encode(usable_rows(rows.pool.at(choice.row_ids)))
    return choice.row_ids, encoded, int((choice.reasons == "score").sum()), choice.notes


def _metric(came: Trained, bench: Bench) -> float | None:
    config, task, labels, result = bench.config, bench.task, bench.encode.labels, came.result
    if not task.generates:
        if not config.metric:
            return task.label_metric(labels, result.labels, result.predicted, result.offsets)
        rows = (task.predictions(labels, ids, result.offsets) for ids in (result.labels, result.predicted))
        return own_metric(config.metric)(*rows)
    if not config.exact_match:
        return None
    references = [row.answer for row in bench.asked]
    if config.metric:
        return own_metric(config.metric)(references, came.answers)
    return exact_match(references, came.answers, config.answer_pattern)
