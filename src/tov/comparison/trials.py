"""Running a comparison: score tables once a seed, then one training a trial, one appended line each.

A trial is an arm, a size and a seed. The seed fixes split, U, initial weights, order of rows and number of batches for all arms
alike. `trials.jsonl` is append-only: a killed comparison goes on after its last whole line, and a finished trial is never run
again. A trial that fails is a line with its error, and is tried again by the next call; a point of the random curve for which
the pool has too few rows is left out for good.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tov.comparison.arms import Trial, arms_of, plan_trials, with_options
from tov.comparison.records import DONE, FAILED, LEFT_OUT, key_of, read_trials, repair_trials
from tov.comparison.split import Data, Split, make_split
from tov.config import CompareConfig
from tov.data.conversations import Conversation
from tov.data.labels import known_labels
from tov.data.pool import Pool
from tov.errors import DataError, ModelError, TovError, interrupted
from tov.files import append_json_line, digest
from tov.methods import Arm
from tov.metrics import exact_match, label_metric
from tov.model.adapters import State, read_state, write_state
from tov.model.evaluate import Evaluation, evaluate
from tov.model.generate import answers
from tov.progress import duration
from tov.run import Run, differences, start_run, versions
from tov.scan.shards import read_scores
from tov.seeds import derive, generator
from tov.stages import (
    Opened,
    auto_batch_tokens,
    check_n,
    draw_rows,
    encode_target,
    labels_of,
    open_model,
    usable_rows,
)
from tov.tables.choice import check_choice, choose_rows
from tov.tables.work import NAMED, Work, cost_of, dumped, effective_settings, fill_table, settled
from tov.text.encode import Encoded
from tov.training import train

FAILURES = (TovError, RuntimeError, LookupError, ValueError, TypeError, MemoryError)
"""What may end a trial and not the comparison: torch tells of memory and shapes by its own, and another's method as it will."""
MODEL_SETTINGS = (
    "model", "revision", "trust_remote_code", "dtype", "device", "seed", "task", "max_length",
    "lora_rank", "lora_alpha", "lora_dropout", "lora_targets",
)  # fmt: skip
"""What a model's initial state depends on."""


@dataclass
class Bench:
    """What the trials of one seed share.

    Attributes:
        config: the comparison's settings under this seed.
        split: its rows.
        labels: of a classifier.
        opened: the model, and the state it starts from; by the settings it was opened with.
    """

    config: CompareConfig
    split: Split
    labels: tuple[str, ...]
    opened: dict[str, tuple[Opened, State]] = field(default_factory=dict)

    def model(self, config: CompareConfig) -> Opened:
        """The model in its initial state (pretrained weights, seeded adapter and head); the last one is kept."""
        key = digest([getattr(config, name) for name in MODEL_SETTINGS])
        if key not in self.opened:
            self.opened.clear()
            opened = open_model(config, self.labels)
            self.opened[key] = opened, read_state(opened.adapted)
        opened, start = self.opened[key]
        write_state(opened.adapted, start)
        return opened


def run_trials(run: Run, data: Data, config: CompareConfig) -> tuple[list[dict[str, Any]], list[str]]:
    """Runs what has not been run yet; under `report_only` nothing.

    Returns:
        The record of every trial asked for, finished or failed, the last of each key; and what a reader must be told.
    """
    file, arms = run.folder / "trials.jsonl", arms_of(config)
    if not config.report_only:
        repair_trials(file)
    records: dict[tuple[str, int, int], dict[str, Any]] = {}
    for record in read_trials(file):
        if records.get(key_of(record), {}).get("status") != DONE:
            records[key_of(record)] = record
    others = {arm for arm, _, _ in records} - {arm.name for arm in arms}
    benches = [make_bench(data, config, seed) for seed in range(config.seed, config.seed + config.seeds)]
    notes = list(
        _one_of_each_kind(
            (None, f"seed {bench.config.seed}: {note}") for bench in benches for note in bench.split.notes
        )
    )
    if others:
        notes.append(f"{len(others)} more arms were trained here and are not shown: {', '.join(sorted(others))}")
    wanted = []
    for bench in benches:
        trials = list(plan_trials(arms, config, bench.config.seed, int(bench.split.rows.usable.sum())))
        wanted += [trial.key for trial in trials]
        todo = [trial for trial in trials if not _settled(records.get(trial.key, {}), config)]
        for record in _seed_trials(run, bench, todo) if todo and not config.report_only else ():
            append_json_line(file, record)
            records[key_of(record)] = record
            _tell(record, config)
        bench.opened.clear()
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
    return shown, notes + _arms_notes(shown) + _versions_note(shown)


def _not_run(missing: Sequence[tuple[str, int, int]], total: int) -> str:
    counts = Counter(arm for arm, _, _ in missing)
    arms = ", ".join(f"{count} of {arm}" for arm, count in counts.items())
    return f"{len(missing)} of {total} trials have not been run: {arms}"


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
    for arm in arms_of(seeded):
        for n in config.sizes if arm.method.takes == "best" else ():
            check_choice(arm, with_options(seeded, arm), split.rows, split.target[0], n)
    if seeded.exact_match and seeded.task == "instruction":
        _check_questions(split.test[0], seeded.exact_match)
    bench = Bench(seeded, split, labels_of(split.rows, split.target, seeded))
    if bench.labels:
        names = [source.name for source in split.test[0].sources]
        known_labels(split.test[1].labels, names, bench.labels, seeded.task or "", role="test")
    return bench


def _one_of_each_kind(notes: Iterable[tuple[Any, str]]) -> dict[str, list[Any]]:
    """Notes, by what they are about: of those about one thing that differ in numbers alone, as seeds do, the first."""
    kinds: dict[tuple[Any, str], str] = {}
    for about, note in notes:
        kinds.setdefault((about, re.sub(r"\d[\d,.]*", "#", note)), note)
    told: dict[str, list[Any]] = {}
    for (about, _), note in kinds.items():
        told.setdefault(note, []).append(about)
    return told


def _arms_notes(records: Sequence[dict[str, Any]]) -> list[str]:
    """What was noted of arms, each note once, with the arms that it is true of."""
    told = _one_of_each_kind(((one["arm"], one["n"]), note) for one in records for note in one["notes"])
    lines = []
    for note, abouts in told.items():
        arms = list(dict.fromkeys(arm for arm, _ in abouts))
        more = f" and {len(arms) - 3} more" if len(arms) > 3 else ""
        lines.append(f"{', '.join(arms[:3])}{more}: {note}")
    return lines


def _versions_note(records: Sequence[dict[str, Any]]) -> list[str]:
    made = Counter(f"{one['version']} {one.get('commit') or ''}".strip() for one in records if "version" in one)
    told = ", ".join(f"{count} by {name}" for name, count in made.items())
    return [f"the trials were made by {len(made)} versions of tov: {told}"] if len(made) > 1 else []


def _seed_trials(run: Run, bench: Bench, todo: Sequence[Trial]) -> Iterator[dict[str, Any]]:
    """Score tables first (each on its own model), then the trainings (all from one)."""
    made = _made(run, bench.model(bench.config))
    test, lost = encode_target(bench.split.test[0], bench.model(bench.config), role="test")
    tables: dict[str, _Table | Exception] = {}
    of_trial: dict[tuple[str, int, int], str] = {}
    for trial in todo:
        options = settled(trial.arm, trial.n)  # they may depend on n, and then so does the table
        of_trial[trial.key] = name = digest([trial.arm.name, dumped(options)])
        if trial.arm.method.takes == "best" and name not in tables:
            tables[name] = _score_table(run, bench, trial.arm, options)
    for trial in todo:
        yield {**_try(trial, bench, tables.get(of_trial[trial.key]), test, lost), **made}


def _made(run: Run, opened: Opened) -> dict[str, Any]:
    """What every trial of a comparison must share, and the version that made this one.

    Raises:
        ModelError: the model, its dtype or the kind of device is not that of the earlier trials.
    """
    loaded = opened.loaded
    now = {"fingerprint": loaded.fingerprint, "dtype": loaded.dtype, "device": loaded.device.type}
    was = run.manifest.get("model", now)
    if was != now:
        raise ModelError(
            "the model is no longer that of the earlier trials: " + ", ".join(differences(was, now)),
            fix="put it back (weights, --dtype, --device), or choose another --out",
        )
    run.note(model=now)
    found = versions()
    return {"version": found["tov"], "commit": found.get("commit")}


def _check_questions(test: Pool, rows: int) -> None:
    """Raises DataError if a row to be answered has nothing before its answer."""
    asked = usable_rows(test.rows(0, min(len(test), rows)))
    plain = sum(not row.prompt for row in asked if isinstance(row, Conversation))
    if plain:
        raise DataError(
            f"--exact-match {rows:,}: {plain:,} of these test rows are bare text, with no question to answer",
            fix="leave --exact-match out, or name a test of questions and answers",
        )


@dataclass(frozen=True)
class _Table:
    scores: pa.Table
    config: CompareConfig
    folder: Path
    cost: dict[str, Any]
    notes: list[str]


def _score_table(run: Run, bench: Bench, arm: Arm, options: Any) -> _Table | Exception:
    """Fills the arm's table by its method, or reads what an earlier call has left; arms of one table, or part, share it."""
    config, rows, target = with_options(bench.config, arm), bench.split.rows, bench.split.target
    if arm.method.of_path:
        made_from = {name: value for name, value in config.of_stage("path", "scan").items() if name not in NAMED}
    else:
        made_from = {"method": arm.method.name, "options": dumped(options), **effective_settings(config)}
    seed_folder = run.folder / "scores" / f"seed-{config.seed}"
    folder = seed_folder / digest(made_from)
    identity = {
        "settings": made_from, "pool": {"fingerprint": rows.index.fingerprint, "excluded": rows.excluded_fingerprint},
        "target": target[1].fingerprint,
    }  # fmt: skip
    try:
        table = start_run(folder, command="compare", identity=identity, settings=made_from)
        if not table.finished:
            fill_table(
                Work(
                    run=table, rows=rows, target=target, settings=config, arm=arm, options=options, labels=bench.labels,
                    parts=seed_folder / "parts", open_with=bench.model, quiet=config.quiet,
                )
            )  # fmt: skip
            table.note(cost=cost_of(table))
            table.finish()
    except FAILURES as error:
        _stop_if_interrupted(error)
        return error
    scores = read_scores(table.scores, len(rows.pool))
    return _Table(scores, config, folder, table.manifest["cost"], table.manifest.get("notes", []))


def _stop_if_interrupted(error: Exception) -> None:
    """An interrupted trial has not failed: it is to be run again."""
    if interrupted(error):
        raise KeyboardInterrupt from error


def _try(trial: Trial, bench: Bench, table: _Table | Exception | None, test: Encoded, lost: int) -> dict[str, Any]:
    start = time.monotonic()
    record: dict[str, Any] = {
        "arm": trial.arm.name, "method": trial.arm.method.name, "n": trial.n, "seed": trial.seed, "status": DONE,
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
    opened, config = bench.model(bench.config), bench.config
    record: dict[str, Any] = {"scoring": table.cost if table else None, "train": None, "chosen": {}, "by_score": 0}
    if trial.arm.method.takes != "none":
        row_ids, rows, by_score, notes = _chosen(trial, bench, table, opened)
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


class _TooFewRows(DataError):
    """A point of the random curve, at a size that nobody asked for, is beyond the pool's rows with a scored token."""


def _chosen(
    trial: Trial, bench: Bench, table: _Table | None, opened: Opened
) -> tuple[np.ndarray, Encoded, int, tuple[str, ...]]:
    """The rows to train on: ids, tokens, how many the score chose, and what a reader must be told of the choice."""
    rows = bench.split.rows
    if table is None:
        row_ids, encoded = draw_rows(rows, trial.n, generator(trial.seed, "random rows"), opened)
        if len(row_ids) < trial.n and trial.arm.method.takes == "random":
            short = DataError if trial.n in bench.config.sizes else _TooFewRows
            raise short(
                f"{trial.n:,} random rows wanted, but {len(row_ids):,} have a scored token", fix="lower --sizes"
            )
        return row_ids, encoded, 0, ()
    choice, _ = choose_rows(trial.arm.method, table.config, table.scores, table.folder, n=trial.n, seed=trial.seed)
    encoded = opened.encode(usable_rows(rows.pool.at(choice.row_ids)))
    return choice.row_ids, encoded, int((choice.reasons == "score").sum()), choice.notes


def _metric(result: Evaluation, bench: Bench, opened: Opened) -> float | None:
    if not bench.config.exact_match or bench.config.task != "instruction":
        names = opened.loaded.labels
        return label_metric(bench.config.task or "", names, result.labels, result.predicted, result.offsets)
    pool = bench.split.test[0]
    rows = [row for row in pool.rows(0, min(len(pool), bench.config.exact_match)) if isinstance(row, Conversation)]
    said = answers(opened.adapted, opened.encode.tokenizer, rows, max_length=opened.encode.max_length)
    return exact_match([row.answer for row in rows], said, bench.config.answer_pattern)


def _tell(record: dict[str, Any], config: CompareConfig) -> None:
    if config.quiet:
        return
    said = f"{record['loss']:.4f} nat" if record["status"] == DONE else f"{record['status']}: {record['error']}"
    if record.get("metric") is not None:
        said += f", metric {record['metric']:.3f}"
    n = f" n = {record['n']:,}" if record["n"] else ""
    print(f"seed {record['seed']}  {record['arm']}{n}: {said}  ({duration(record['seconds'])})", file=sys.stderr)
