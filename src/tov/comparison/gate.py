"""`--method auto`: which method scores the pool, found out by pilot trainings on the user's own target.

The target is cut into folds. In each pilot one fold is held out from all scoring; every candidate scores a part of the pool
for the other folds and chooses rows; a model is trained on them from the pretrained weights, by equal steps, and is judged on
the fold. After each pilot the better half of the candidates goes on. `tov.comparison.decision` says which is taken, or that
random rows are.

The pilots are trials of a comparison of their own, whose seeds are the pilots: the same files, the same resumption, trial by
trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tov.comparison.bench import Bench, added, check_questions, seed_trials
from tov.comparison.decision import Gain, best_of, gains_of, halved
from tov.comparison.records import DONE, key_of, read_trials
from tov.comparison.split import Split, check_column, folds_of, near_test, subset_of
from tov.comparison.variants import BASELINE, Trial
from tov.config.records import CompareConfig, PathSettings
from tov.config.settings import build
from tov.data.decontamination import IN_TEST, NEAR_TEST, USABLE
from tov.engine.models import Models
from tov.errors import ConfigError, DataError
from tov.files import append_json_line, digest
from tov.inputs.read import Indexed, PoolRows
from tov.methods.auto import PilotSizes, pilot_sizes
from tov.methods.choice import check_choice
from tov.methods.spec import Variant, as_compared, dumped, parse_variant
from tov.metrics import own_metric
from tov.model.consent import Expected
from tov.progress import duration, tell
from tov.runs.folder import Run, work_on
from tov.seeds import generator
from tov.tasks import TASKS

PILOT_SEEDS = 1_000_000
"""Pilot k of a run of seed s has seed s + k times this: no comparison's seed."""
PILOT_RATE = 0.5
"""Learning rate of a pilot over that of the final training: small runs rank alike at reduced rates (arXiv 2512.24503)."""
LOSS, METRIC = "loss", "metric"
_COST = ("seconds", "tokens_forward", "tokens_backward", "bytes")


@dataclass(frozen=True)
class Decided:
    """What the pilots have decided for.

    Attributes:
        variant: the method taken; `random` where none was better.
        record: `verdict` (a sentence), `judge`, `candidates` (a record each), `pilots`, `cost`: for manifest and report.
    """

    variant: Variant
    record: dict[str, Any]


def candidates_of(config: Any) -> list[Variant]:
    """The candidates but for random rows, which are always among them.

    Raises:
        ConfigError: one cannot be, scores nothing, or stands for another choice.
    """
    variants = [parse_variant(text, flag="--candidates") for text in config.candidates if text != BASELINE]
    odd = next((one for one in variants if one.method.takes != "best"), None)
    if odd is not None or not variants:
        what = f"'{odd.name}', which scores no rows" if odd else "random rows alone"
        raise ConfigError(
            f"--candidates got {what}.", allowed="methods that score rows; random rows always stand beside them",
            fix="Leave it out." if odd else "Name a method too, e.g. --candidates tov,rds.",
        )  # fmt: skip
    return variants


def check_variant(variant: Variant, config: Any, rows: PoolRows, target: Indexed, n: int | None) -> None:
    """Before anything is scored: whether n rows can be chosen by a method, or by every candidate of `auto`.

    Raises:
        TovError: as `tov.methods.choice.check_choice`; or no part of the target can be held out.
    """
    if variant.method.takes != "pilots":
        check_choice(variant, config, rows, target, n)
        return
    if config.group_by:
        check_column(config.group_by, target.pool, "target")
    folds_of(target, config.group_by, config.pilot_folds, config.seed)
    if config.metric:
        own_metric(config.metric)
    if _judge(config) == METRIC and TASKS[config.task].generates:
        check_questions(target.pool, len(target))
    for one in candidates_of(config):
        check_choice(one, as_compared(config, one), rows, target, n)


def decide(
    folder: Path, rows: PoolRows, target: Indexed, config: Any, *, n: int, labels: tuple[str, ...],
    models: Models | None = None, expected: Expected | None = None,
) -> Decided:  # fmt: skip
    """Runs the pilots that have not been run yet, and says what they decide for.

    Args:
        folder: of the pilots.
        rows: the pool.
        target: the target, whose rows are held out in turn.
        config: of a selection or a comparison, with the task named.
        n: rows to choose in the end.
        labels: of a classifier.
        models: opens models, and keeps the last one.
        expected: the model that it must be.

    Raises:
        TovError: the pilot of random rows failed; that of a candidate drops the candidate, which the record tells.
    """
    candidates = candidates_of(config)
    sizes = pilot_sizes(config, int(rows.usable.sum()), n)
    settings = _pilot_settings(config, sizes, len(target))
    folds = folds_of(target, config.group_by, config.pilot_folds, config.seed)
    identity = {
        "settings": {**settings.of("fit", "scan", "choice", "training"), "candidates": [one.name for one in candidates]},
        "options": {one.name: dumped(one.options) for one in candidates},
        "sizes": asdict(sizes), "folds": digest([fold.tolist() for fold in folds]),
        "pool": {"fingerprint": rows.index.fingerprint, "excluded": rows.excluded_fingerprint},
        "target": target.index.fingerprint,
    }  # fmt: skip
    with work_on(folder, command="gate", identity=identity, settings=settings.shown()) as run:
        if not run.finished:
            benches = [
                Bench(
                    settings.model_copy(update={"seed": config.seed + number * PILOT_SEEDS}),
                    _split(rows, target, fold, sizes, settings, config.seed), labels, models or Models(), expected,
                )
                for number, fold in enumerate(folds, 1)
            ]  # fmt: skip
            records = _run_pilots(run, benches, candidates)
            run.note(comparison={"gate": _verdict(records, candidates, benches, sizes)})
            run.finish()
        record = (run.manifest.comparison or {})["gate"]
    return Decided(parse_variant(record["chosen"]), record)


def _pilot_settings(config: Any, sizes: PilotSizes, target_rows: int) -> CompareConfig:
    """The settings of the pilots, from those of a selection or a comparison; every row that is held out is asked."""
    task = TASKS[config.task]
    fields = CompareConfig.model_fields
    given = {name: getattr(config, name) for name in config.model_fields_set | {"task", "seed"} if name in fields}
    rate = given.get("train_learning_rate") or task.defaults.train_learning_rate
    asks = _judge(config) == METRIC and task.generates
    given |= {
        "sizes": (sizes.n,), "methods": (BASELINE,), "train_rows": sizes.passes, "num_train_epochs": None,
        "train_learning_rate": PILOT_RATE * rate, "exact_match": target_rows if asks else 0, "out": "auto", "force": False,
        "rule": None, "bins": None, "from_run": None, "report_only": False,
    }  # fmt: skip
    return build(CompareConfig, given).for_task(config.task)


def _judge(config: Any) -> str:
    """What candidates are judged by: as asked for, else the metric where it is the user's own or needs no answers."""
    return config.judge or (METRIC if config.metric or not TASKS[config.task].generates else LOSS)


def _split(
    rows: PoolRows, target: Indexed, fold: np.ndarray, sizes: PilotSizes, settings: CompareConfig, seed: int
) -> Split:
    """A pilot's rows: the fold held out as the test, the others as the target, and a part of the pool far from the fold."""
    test, others = subset_of(target, fold), np.setdiff1d(np.arange(len(target)), fold)
    excluded = np.where(np.isin(rows.index.prompt, test.index.prompt) & rows.usable, IN_TEST, rows.excluded)
    usable = np.flatnonzero(excluded == USABLE)
    row_ids = np.sort(generator(seed, "pilot pool").permutation(usable)[: sizes.pool])
    pool, excluded = rows.pool.subset(row_ids), excluded[row_ids]
    excluded[near_test(test, settings)(rows.pool, row_ids)] = NEAR_TEST
    return Split(PoolRows(pool, rows.index.subset(row_ids), excluded, rows.skip), subset_of(target, others), test, ())


def _run_pilots(run: Run, benches: Sequence[Bench], candidates: Sequence[Variant]) -> list[dict[str, Any]]:
    """Every trial of the pilots, those of an earlier call read."""
    file, alive = run.folder / "trials.jsonl", [one.name for one in candidates]
    there = {key_of(record): record for record in read_trials(file) if record["status"] == DONE}
    records: list[dict[str, Any]] = []
    for bench in benches:
        variants = [parse_variant(BASELINE), *(one for one in candidates if one.name in alive)]
        trials = [Trial(variant, bench.config.sizes[0], bench.config.seed) for variant in variants]
        todo = [trial for trial in trials if trial.key not in there]
        for record in seed_trials(run, bench, todo) if todo else ():
            append_json_line(file, record)
            there[key_of(record)] = record
            _tell(record, bench.config)
        bench.models.close()
        mine = [there[trial.key] for trial in trials]
        if mine[0]["status"] != DONE:
            raise DataError(
                f"The pilot on random rows failed: {mine[0]['error']}",
                fix="Mend that, or name a method in place of auto.",
            )
        records += mine
        done = gains_of(_differences(records, _judged_by(records, bench.config)))
        alive = halved({name: done[name] for name in alive if name in done and _has(mine, name)})
    return records


def _judged_by(records: Sequence[Mapping[str, Any]], config: Any) -> str:
    """As asked for; but a metric that is the same in all trainings (small models get nothing right at first) says nothing."""
    if _judge(config) == LOSS:
        return LOSS
    return METRIC if len({record["metric"] for record in records if record["status"] == DONE}) > 1 else LOSS


def _has(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a candidate's pilot among these is done."""
    return any(record["variant"] == name and record["status"] == DONE for record in records)


def _differences(records: Sequence[Mapping[str, Any]], judge: str) -> dict[str, list[float]]:
    """Candidate -> by how much it was better than random rows in each of its pilots: % of the loss, or points of the metric."""
    random = {one["seed"]: one for one in records if one["variant"] == BASELINE}
    differences = dict[str, list[float]]()
    for one in records:
        beside = random[one["seed"]]
        if one["variant"] != BASELINE and one["status"] == DONE:
            by_loss = 100 * (beside["loss"] - one["loss"]) / beside["loss"] if beside["loss"] else 0.0
            value = by_loss if judge == LOSS else 100 * (one["metric"] - beside["metric"])
            differences.setdefault(one["variant"], []).append(value)
    return differences


def _verdict(
    records: Sequence[Mapping[str, Any]], candidates: Sequence[Variant], benches: Sequence[Bench], sizes: PilotSizes
) -> dict[str, Any]:
    """What was decided and why, for manifest and report."""
    judge = _judged_by(records, benches[0].config)
    gains = gains_of(_differences(records, judge))
    last = [record for record in records if record["seed"] == benches[-1].config.seed]
    alive = {name: gain for name, gain in gains.items() if _has(last, name)}
    chosen = best_of(alive)
    rows = [_candidate(one.name, records, gains, alive, chosen) for one in candidates]
    beside = _beside(records, judge)
    rows = [{**row, "beside": beside.get(row["variant"], {})} for row in rows]
    judged = sum(len(bench.split.test) for bench in benches)
    unit = "%" if judge == LOSS else "points"
    by = f"{judged:,} held-out target rows, in {len(benches)} pilots of {sizes.n:,} rows out of {sizes.pool:,}"
    if judge != _judge(benches[0].config):
        by += ", judged by log-loss because the metric was the same in all of them"
    won = f"auto took {chosen}: {_interval(gains[chosen])} {unit} better than random rows on {by}" if chosen else (
        f"auto took random rows: none of {len(candidates)} candidates was reliably better on {by}"
    )  # fmt: skip
    return {
        "chosen": chosen or BASELINE, "verdict": won, "judge": judge, "unit": unit, "candidates": rows,
        "pilots": len(benches), "rows": sizes.n, "pool": sizes.pool, "judged": judged, "passes": sizes.passes,
        "cost": _cost(records),
    }  # fmt: skip


def _beside(records: Sequence[Mapping[str, Any]], judge: str) -> dict[str, dict[str, Any]]:
    """Candidate -> its gain by what did not judge; nothing where there is no metric."""
    other = LOSS if judge == METRIC else METRIC
    if any(record["metric"] is None for record in records if record["status"] == DONE):
        return {}
    return {name: _told(gain) for name, gain in gains_of(_differences(records, other)).items()}


def _told(gain: Gain) -> dict[str, Any]:
    return {"mean": gain.mean, "low": gain.low, "high": gain.high, "pilots": gain.pilots}


def _interval(gain: Gain) -> str:
    return f"{gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"


def _candidate(
    name: str, records: Sequence[Mapping[str, Any]], gains: Mapping[str, Gain], alive: Mapping[str, Gain],
    chosen: str | None,
) -> dict[str, Any]:  # fmt: skip
    """A line of the table: what the pilots say of a candidate, what it cost, and why it was taken or not."""
    mine = [record for record in records if record["variant"] == name]
    error = next((record["error"] for record in mine if record["status"] != DONE), None)
    gain = gains.get(name)
    why = (
        "taken" if name == chosen
        else f"failed: {error}" if error
        else f"dropped after pilot {len(mine)}: in the lower half" if name not in alive
        else "not reliably better than random rows" if alive[name].low <= 0
        else f"less than {chosen}" if chosen else ""
    )  # fmt: skip
    told = _told(gain) if gain else {}
    seconds = {
        "scoring": sum((record["scoring"] or {}).get("seconds", 0.0) for record in mine if record.get("scoring")),
        "training": sum((record["train"] or {}).get("seconds", 0.0) for record in mine if record.get("train")),
    }
    return {"variant": name, "gain": told, "outcome": why, "seconds": seconds}


def _cost(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all pilots took together; candidates that share a score table share its cost."""
    tables = {
        (record["seed"], record["table"]): record["scoring"] for record in records if record.get("scoring")
    }.values()
    trained = [record["train"] for record in records if record.get("train")]
    trainings = [
        {"seconds": one["seconds"], "tokens_forward": one["tokens"], "tokens_backward": one["tokens"], "bytes": 0}
        for one in trained
    ]
    return added(*tables, *trainings) or dict.fromkeys(_COST, 0)


def _tell(record: Mapping[str, Any], config: PathSettings) -> None:
    if config.quiet:  # type: ignore[attr-defined]
        return
    number = record["seed"] // PILOT_SEEDS
    if record["status"] != DONE:
        tell(f"pilot {number}  {record['variant']}: {record['status']}: {record['error']}")
        return
    metric = "" if record.get("metric") is None else f", metric {record['metric']:.3f}"
    tell(f"pilot {number}  {record['variant']}: {record['loss']:.4f} nat{metric}  ({duration(record['seconds'])})")
