"""Running a comparison: score tables once a seed, then one training a trial, one appended line each.

A trial is a variant of a method, a size and a seed. The seed fixes split, U, initial weights, order of rows and number
of batches for all variants alike. `trials.jsonl` is append-only: a killed comparison goes on after its last whole line,
and a finished trial is never run again. A trial that fails is a line with its error, and is tried again by the next
call; a point of the random curve for which the pool has too few rows is left out for good.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np

from tov.checks.facts import drawn, seen
from tov.checks.look import Beside, look
from tov.comparison.records import DONE, FAILED, LEFT_OUT, key_of, read_trials
from tov.comparison.split import Data, Split, make_split
from tov.comparison.variants import Trial, plan_trials, variants_of
from tov.config.records import CompareConfig
from tov.data.labels import check_known
from tov.data.pool import Pool
from tov.engine.models import Models, ModelSpec, Opened, auto_batch_tokens
from tov.errors import DataError, TovError, interrupted
from tov.files import append_json_line, digest
from tov.inputs.draw import draw_rows, encode_scored
from tov.inputs.read import check_n, labels_of, usable_rows
from tov.methods.choice import check_choice, choose_rows, columns_for
from tov.methods.score_pool import score_pool
from tov.methods.spec import Variant, as_compared, dumped, kind_of_table, read_by
from tov.methods.work import expected_by, model_record, note_model
from tov.metrics import exact_match
from tov.model.consent import Expected
from tov.model.evaluate import Evaluation, evaluate
from tov.model.generate import Asked, answers
from tov.progress import duration, tell
from tov.runs.environment import versions
from tov.runs.folder import Run, work_on
from tov.runs.manifest import ChecksRecord
from tov.scores.store import read_table
from tov.scores.table import DEFAULT_TARGET
from tov.seeds import derive, generator
from tov.tasks import TASKS, Task
from tov.text.encode import Encoded
from tov.training.final import train

FAILURES = (TovError, RuntimeError, LookupError, ValueError, TypeError, MemoryError)
"""What may end a trial and not the comparison: torch tells of memory and shapes by its own, and another's method as it will."""


_NUMBER = re.compile(r"\d[\d,.]*")


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


def run_trials(
    run: Run, data: Data, config: CompareConfig, expected: Expected | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Runs what has not been run yet; under `report_only` nothing. `expected` is the model of the run gone out from.

    Returns:
        The record of every trial asked for, finished or failed, the last of each key; and what a reader must be told.
    """
    file, variants = run.folder / "trials.jsonl", variants_of(config)
    records: dict[tuple[str, int, int], dict[str, Any]] = {}
    for record in read_trials(file):
        if records.get(key_of(record), {}).get("status") != DONE:
            records[key_of(record)] = record
    others = {name for name, _, _ in records} - {variant.name for variant in variants}
    benches = [make_bench(data, config, seed) for seed in range(config.seed, config.seed + config.seeds)]
    notes = list(
        _one_of_each_kind(
            (None, f"seed {bench.config.seed}: {note}") for bench in benches for note in bench.split.notes
        )
    )
    if others:
        notes.append(f"{len(others)} more variants were trained here and are not shown: {', '.join(sorted(others))}")
    wanted = []
    for bench in benches:
        bench.expected = expected_by(run) or expected
        trials = list(plan_trials(variants, config, bench.config.seed, int(bench.split.rows.usable.sum())))
        wanted += [trial.key for trial in trials]
        todo = [trial for trial in trials if not _settled(records.get(trial.key, {}), config)]
        for record in _seed_trials(run, bench, todo) if todo and not config.report_only else ():
            append_json_line(file, record)
            records[key_of(record)] = record
            _tell(record, config)
        bench.models.close()
    asked = [records[key] for key in wanted if key in records]
    if len(asked) < len(wanted):
        notes.append(_not_run([key for key in wanted if key not in records], len(wanted)))
    shown = [record for record in asked if record["status"] != LEFT_OUT]
    notes += list(
        _one_of_each_kind(
            (one["n"], f"seed {one['seed']}: the random curve is without its point at n = {one['n']:,}: {one['error']}")
            for one in asked
            if one["status"] == LEFT_OUT
        )
    )
    lost = sorted({record["test_rows_without_tokens"] for record in shown if record["test_rows_without_tokens"]})
    notes += [f"{', '.join(map(str, lost))} test rows have no scored token within --max-length"] if lost else []
    return shown, notes + _warnings(shown) + _variant_notes(shown) + _versions_note(shown)


def _not_run(missing: Sequence[tuple[str, int, int]], total: int) -> str:
    counts = Counter(name for name, _, _ in missing)
    parts = ", ".join(f"{count} of {name}" for name, count in counts.items())
    return f"{len(missing)} of {total} trials have not been run: {parts}"


def _settled(record: dict[str, Any], config: CompareConfig) -> bool:
    """Whether a trial need not be run: it is done, or was left out and is no more than a point of the curve now too."""
    return record.get("status") == DONE or (record.get("status") == LEFT_OUT and record["n"] not in config.sizes)


def make_bench(data: Data, config: CompareConfig, seed: int) -> Bench:
    """A seed's split, checked before anything is trained.

    Raises:
        ConfigError: a cap for a source, or an option of a column or a package, that is not there.
        DataError: too few rows, or labels that differ.
    """
    seeded = config.model_copy(update={"seed": seed})
    split = make_split(data, seeded, seed)
    check_n(max(config.sizes), split.rows, "--sizes")
    for variant in variants_of(seeded):
        for n in config.sizes if variant.method.takes == "best" else ():
            check_choice(variant, as_compared(seeded, variant), split.rows, split.target, n)
    if seeded.exact_match and TASKS[seeded.task or ""].generates:
        _check_questions(split.test.pool, seeded.exact_match)
    bench = Bench(seeded, split, labels_of(split.rows, split.target, seeded))
    if bench.labels:
        names = [source.name for source in split.test.pool.sources]
        check_known(split.test.index.labels, names, bench.task.row_labels(bench.labels), role="test")
    return bench


def _one_of_each_kind(notes: Iterable[tuple[Any, str]]) -> dict[str, list[Any]]:
    """Notes, by what they are about: of those about one thing that differ in numbers alone, as seeds do, the first."""
    kinds: dict[tuple[Any, str], str] = {}
    for about, note in notes:
        kinds.setdefault((about, _NUMBER.sub("#", note)), note)
    by_note: dict[str, list[Any]] = {}
    for (about, _), note in kinds.items():
        by_note.setdefault(note, []).append(about)
    return by_note


def _variant_notes(records: Sequence[dict[str, Any]]) -> list[str]:
    """What was noted of variants, each note once, with the variants that it is true of."""
    by_note = _one_of_each_kind(((one["variant"], one["n"]), note) for one in records for note in one["notes"])
    lines = []
    for note, abouts in by_note.items():
        names = list(dict.fromkeys(name for name, _ in abouts))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"{', '.join(names[:3])}{more}: {note}")
    return lines


def _warnings(records: Sequence[dict[str, Any]]) -> list[str]:
    """What was warned of before training, once a variant and size, in the first seed's words, with the number of seeds."""
    first: dict[tuple[str, int, str], str] = {}
    counts, seeds = Counter[tuple[str, int, str]](), Counter((one["variant"], one["n"]) for one in records)
    for one in records:
        for warning in (one.get("checks") or {}).get("warnings", ()):
            kind = (one["variant"], one["n"], _NUMBER.sub("#", warning))
            first.setdefault(kind, warning)
            counts[kind] += 1
    return [
        f"{name}, {n:,} rows, {counts[name, n, kind]} of {seeds[name, n]} seeds: {warning}"
        for (name, n, kind), warning in first.items()
    ]


def _versions_note(records: Sequence[dict[str, Any]]) -> list[str]:
    counts = Counter(f"{one['version']} {one.get('commit') or ''}".strip() for one in records if "version" in one)
    parts = ", ".join(f"{count} by {name}" for name, count in counts.items())
    return [f"the trials were made by {len(counts)} versions of tov: {parts}"] if len(counts) > 1 else []


def _seed_trials(run: Run, bench: Bench, todo: Sequence[Trial]) -> Iterator[dict[str, Any]]:
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
        variant = trial.variant
        options = variant.method.resolve(variant.options, trial.n)  # they may depend on n, and then so does the table
        of_trial[trial.key] = name = digest([variant.name, dumped(options)])
        if variant.method.takes == "best" and name not in tables:
            tables[name] = _score_table(run, bench, variant, options, trial.n)
    for trial in todo:
        yield {**_try(trial, bench, tables.get(of_trial[trial.key]), test, lost), **version}


def _check_questions(test: Pool, rows: int) -> None:
    """Raises DataError if a row to be answered has nothing before its answer."""
    plain = sum(not row.prompt for row in _asked(test, rows))
    if plain:
        raise DataError(
            f"--exact-match asks for answers to {rows:,} test rows, but {plain:,} of them are bare text without a question.",
            fix="Leave --exact-match out, or name a test of questions and answers.",
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
    config, rows, target = as_compared(bench.config, variant), bench.split.rows, bench.split.target
    made_from = {
        "table": kind_of_table(variant.method),
        "options": dumped(options),
        **read_by(config, variant.method, "fit", "scan"),
    }
    seed_folder = run.folder / "scores" / f"seed-{config.seed}"
    identity = {
        "settings": made_from, "pool": {"fingerprint": rows.index.fingerprint, "excluded": rows.excluded_fingerprint},
        "target": target.index.fingerprint,
    }  # fmt: skip
    try:
        with work_on(
            seed_folder / digest(made_from), command="compare", identity=identity, settings=made_from
        ) as table:
            if not table.finished:
                score_pool(
                    table, rows, {DEFAULT_TARGET: target}, config, variant, n=n, labels=bench.labels, models=bench.models,
                    artifacts=seed_folder / "artifacts", quiet=config.quiet,
                )  # fmt: skip
                table.finish()
    except FAILURES as error:
        _stop_if_interrupted(error)
        return error
    return _Table(table, config, len(rows.pool))


def _stop_if_interrupted(error: Exception) -> None:
    """An interrupted trial has not failed: it is to be run again."""
    if interrupted(error):
        raise KeyboardInterrupt from error


def _try(trial: Trial, bench: Bench, table: _Table | Exception | None, test: Encoded, lost: int) -> dict[str, Any]:
    start = time.monotonic()
    record: dict[str, Any] = {
        "variant": trial.variant.name, "method": trial.variant.method.name, "n": trial.n, "seed": trial.seed, "status": DONE,
        "error": None, "notes": table.notes if isinstance(table, _Table) else [],
    }  # fmt: skip
    try:
        if isinstance(table, Exception):
            raise table
        record |= _run_trial(trial, bench, table, test)
    except _TooFewRows as error:
        record |= {"status": LEFT_OUT, "error": error.problem}
    except FAILURES as error:
        _stop_if_interrupted(error)
        record |= {"status": FAILED, "error": f"{type(error).__name__}: {error}"}
    return {
        **record,
        "test_rows": len(test),
        "test_rows_without_tokens": lost,
        "seconds": round(time.monotonic() - start, 3),
    }


def _run_trial(trial: Trial, bench: Bench, table: _Table | None, test: Encoded) -> dict[str, Any]:
    opened, config = bench.model(), bench.config
    record: dict[str, Any] = {
        "scoring": table.run.manifest.cost if table else None,
        "train": None,
        "chosen": {},
        "by_score": 0,
    }
    if trial.variant.method.takes != "none":
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
        row_ids, encoded = draw_rows(rows, trial.n, generator(trial.seed, "random rows"), opened.encode)
        if len(row_ids) < trial.n and trial.variant.method.takes == "random":
            short = DataError if trial.n in bench.config.sizes else _TooFewRows
            raise short(
                f"{trial.n:,} random rows are wanted, but {len(row_ids):,} have a scored token.", fix="Lower --sizes."
            )
        return row_ids, encoded, 0, ()
    method, scores = trial.variant.method, table.run.scores
    columns = read_table(scores, table.rows, columns_for(method, table.config, scores), table.run.stamp)
    choice, _ = choose_rows(method, table.config, columns, table.run, n=trial.n, seed=trial.seed)
    encoded = opened.encode(usable_rows(rows.pool.at(choice.row_ids)))
    return choice.row_ids, encoded, int((choice.reasons == "score").sum()), choice.notes


def _metric(result: Evaluation, bench: Bench, opened: Opened) -> float | None:
    if not bench.config.exact_match or not bench.task.generates:
        return bench.task.label_metric(opened.loaded.labels, result.labels, result.predicted, result.offsets)
    rows = _asked(bench.split.test.pool, bench.config.exact_match)
    predictions = answers(opened.adapted, opened.encode, rows)
    return exact_match([row.answer for row in rows], predictions, bench.config.answer_pattern)


def _tell(record: dict[str, Any], config: CompareConfig) -> None:
    if config.quiet:
        return
    text = f"{record['loss']:.4f} nat" if record["status"] == DONE else f"{record['status']}: {record['error']}"
    if record.get("metric") is not None:
        text += f", metric {record['metric']:.3f}"
    n = f" n = {record['n']:,}" if record["n"] else ""
    tell(f"seed {record['seed']}  {record['variant']}{n}: {text}  ({duration(record['seconds'])})")
