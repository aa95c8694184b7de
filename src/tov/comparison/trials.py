"""Running a comparison: the trials of each seed that have not been run, one appended line each; and what a reader must be told.

A trial is a variant of a method, a size and a seed. The seed fixes split, U, initial weights, order of rows and number
of batches for all variants alike. `trials.jsonl` is append-only: a killed comparison goes on after its last whole line,
and a finished trial is never run again. Lines stand in the order in which trials end. A trial that fails is a line with its
error, and is tried again by the next call; a point of the random curve for which the pool has too few rows is left out for
good.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tov.comparison.bench import Bench, check_questions, failed, seed_trials
from tov.comparison.gate import check_variant, decide
from tov.comparison.records import DONE, LEFT_OUT, keeper, key_of, read_trials
from tov.comparison.split import Data, make_split
from tov.comparison.variants import Trial, plan_trials, rule_of, variants_of
from tov.config.records import CompareConfig
from tov.data.labels import check_known
from tov.engine.base import FAILURES
from tov.files import digest
from tov.inputs.read import check_n, labels_of
from tov.methods.spec import settings_for
from tov.methods.work import expected_by
from tov.model.consent import Expected
from tov.progress import duration, tell
from tov.runs.folder import Run
from tov.tasks import TASKS

_NUMBER = re.compile(r"\d[\d,.]*")


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
    done = keeper(file, records, partial(_tell, config))
    for bench in benches:
        bench.expected = expected_by(run) or expected
        trials = list(plan_trials(variants, config, bench.config.seed, int(bench.split.rows.usable.sum())))
        wanted += [trial.key for trial in trials]
        todo = [trial for trial in trials if not _settled(records.get(trial.key, {}), config)]
        if todo and not config.report_only:
            _run_seed(run, bench, todo, done)
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


def _run_seed(run: Run, bench: Bench, todo: Sequence[Trial], done: Callable[[dict[str, Any]], None]) -> None:
    """Hands the records of a seed's trials to `done`. Where `auto` is asked for, what it decides for is found out first."""
    ready = []
    for trial in todo:
        if trial.variant.method.takes != "pilots":
            ready.append(trial)
            continue
        try:
            ready.append(_decided(run, bench, trial))
        except FAILURES as error:
            done(failed(trial, error, bench))
    seed_trials(run, bench, ready, done)


def _decided(run: Run, bench: Bench, trial: Trial) -> Trial:
    config, split = settings_for(bench.config, trial.variant), bench.split
    named = digest([trial.variant.name, trial.n, rule_of(bench.config, trial.variant)])
    decided = decide(
        run.folder / "scores" / f"seed-{config.seed}" / f"auto-{named}", split.rows, split.target, config,
        n=trial.n, labels=bench.labels, models=bench.models,
        expected=bench.expected,
    )  # fmt: skip
    return replace(trial, decided=decided.variant, gate=decided.record)


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
        for n in config.sizes if variant.method.takes in ("best", "pilots") else ():
            check_variant(variant, settings_for(seeded, variant), split.rows, split.target, n)
    if seeded.exact_match and TASKS[seeded.task or ""].generates:
        check_questions(split.test.pool, seeded.exact_match)
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


def _tell(config: CompareConfig, record: dict[str, Any]) -> None:
    if config.quiet:
        return
    text = f"{record['loss']:.4f} nat" if record["status"] == DONE else f"{record['status']}: {record['error']}"
    if record.get("metric") is not None:
        text += f", metric {record['metric']:.3f}"
    n = f" n = {record['n']:,}" if record["n"] else ""
    tell(f"seed {record['seed']}  {record['variant']}{n}: {text}  ({duration(record['seconds'])})")
