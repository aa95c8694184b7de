"""`--method auto`: which method scores the pool, found out by pilot trainings on the user's own target.

The target is cut into folds. In each pilot one fold is held out from all scoring; every candidate scores a part of the pool
for the other folds and chooses rows; a model is trained on them from the pretrained weights, by equal steps, and is judged on
the fold. After each pilot the better half of the candidates goes on; those half of whose rows are random have every pilot.
`tov.comparison.decision` says which is taken, or that random rows are.

The pilots are trials of a comparison of their own, whose seeds are the pilots: the same files, the same resumption, trial by
trial.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tov.comparison.bench import Bench, check_questions, seed_trials
from tov.comparison.decision import Gain, best_of, gains_of, halved, safest_of
from tov.comparison.pilots import LOSS, METRIC, in_pilot, judge_of, of_pilot, pilot_settings, split_of
from tov.comparison.records import DONE, keeper, key_of, read_trials
from tov.comparison.split import check_column, folds_of
from tov.comparison.variants import BASELINE, Trial, check_distinct, check_pattern
from tov.config.gate import WHOLE_ANSWER
from tov.config.records import CompareConfig
from tov.engine.models import Models, ModelSpec
from tov.errors import ConfigError, DataError
from tov.files import digest
from tov.inputs.read import Indexed, PoolRows
from tov.methods.auto import LEAST, PilotSizes, hedged, pilot_sizes
from tov.methods.choice import check_choice
from tov.methods.costs import clusters_asked
from tov.methods.spec import Variant, dumped, parse_variant, settings_for
from tov.metrics import own_metric
from tov.model.consent import Expected
from tov.progress import counted, duration, tell
from tov.runs.folder import Run, work_on
from tov.runs.manifest import FILE, read_manifest
from tov.tasks import TASKS

PILOT_SEEDS = 1_000_000
"""Pilot k of a run of seed s has seed s + k times this: no comparison's seed."""


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
    check_distinct(variants, config, "--candidates")
    return variants


def check_variant(
    variant: Variant, config: Any, rows: PoolRows, target: Indexed, n: int | None, flag: str = "--n"
) -> None:
    """Before anything is scored: whether n rows can be chosen by a method, or by every candidate of `auto`.

    Raises:
        TovError: as `tov.methods.choice.check_choice`; or no part of the target can be held out.
    """
    if variant.method.takes != "pilots":
        check_choice(variant, config, rows, target, n, flag)
        return
    if config.group_by:
        check_column(config.group_by, target.pool, "target")
    folds_of(target, config.group_by, config.pilot_folds, config.seed)
    _check_answers(config)
    if judge_of(config) == METRIC and TASKS[config.task].generates:
        check_questions(target.pool, len(target), "--judge metric", "target")
    candidates = candidates_of(config)
    if config.target_clusters and not any(clusters_asked(one.method, config) for one in candidates):
        raise ConfigError(
            f"--target-clusters {config.target_clusters} has no effect with --candidates {','.join(config.candidates)}: "
            "none of them knows rows by a model.", fix="Leave it out, or name a candidate that does, e.g. tov or rds.",
        )  # fmt: skip
    for one in candidates:
        try:
            check_choice(one, settings_for(config, one), rows, target, n, flag)
        except DataError as error:
            raise DataError(
                f"The candidate {one.name} cannot choose: {error.problem}",
                fix=f"Leave it out of --candidates, or lower {flag} or --base-size.",
            ) from None


def _check_answers(config: Any) -> None:
    """Raises ConfigError: a metric or pattern of answers that cannot be, or that cannot take effect."""
    check_pattern(config.answer_pattern)
    if config.metric:
        own_metric(config.metric)
    if isinstance(config, CompareConfig):  # whose other variants, or whose final trainings, may be judged by both
        return
    answers = judge_of(config) == METRIC and TASKS[config.task].generates
    if config.metric and TASKS[config.task].generates and not answers:
        raise ConfigError("--metric has no effect with --judge loss.", fix="Leave one of them out.")
    if config.answer_pattern != WHOLE_ANSWER and (not answers or config.metric):
        why = "with --metric, which gets whole answers" if answers else "where no answer is generated"
        raise ConfigError(
            f"--answer-pattern has no effect {why}.",
            fix="Leave it out, or have answers judged: --judge metric, in instruction tuning, without --metric.",
        )


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
    settings = pilot_settings(config, sizes, len(target))
    folds = folds_of(target, config.group_by, config.pilot_folds, config.seed)
    identity = {
        "settings": settings.of("pilots", "fit", "scan", "choice", "training"),
        "options": {one.name: dumped(one.options) for one in candidates},
        "sizes": asdict(sizes), "part": "of rows with a scored token", "folds": digest([fold.tolist() for fold in folds]),
        "pool": {"fingerprint": rows.index.fingerprint, "excluded": rows.excluded_fingerprint},
        "target": target.index.fingerprint,
    }  # fmt: skip
    with work_on(folder, command="gate", identity=identity, settings=settings.shown()) as run:
        if not run.finished:
            models = models or Models()
            encode = ModelSpec.of(settings, labels).encoder()
            splits = [split_of(rows, target, fold, sizes, settings, config.seed, encode) for fold in folds]
            benches = [
                Bench(of_pilot(settings, config.seed + number * PILOT_SEEDS, one), one, labels, models, expected)
                for number, one in enumerate(splits, 1)
            ]  # fmt: skip
            sizes = replace(sizes, pool=min(len(split.rows) for split in splits))  # what there is of the part's rows
            records = _run_pilots(run, benches, [in_pilot(one, settings, sizes) for one in candidates])
            verdict = _verdict(records, candidates, benches, sizes)
            run.note(comparison={"gate": {**verdict, "cost": _cost(run, records)}})
            run.finish()
        record = (run.manifest.comparison or {})["gate"]
    return Decided(parse_variant(record["chosen"]), record)


def _run_pilots(run: Run, benches: Sequence[Bench], candidates: Sequence[Variant]) -> list[dict[str, Any]]:
    """Every trial of the pilots, those of an earlier call read; what failed then is tried again."""
    file, alive = run.folder / "trials.jsonl", [one.name for one in candidates]
    there = {key_of(record): record for record in read_trials(file) if record["status"] == DONE}
    records: list[dict[str, Any]] = []
    stay = hedged((one.name for one in candidates), benches[0].config)
    for number, bench in enumerate(benches, 1):
        variants = [parse_variant(BASELINE), *(one for one in candidates if one.name in alive)]
        trials = [Trial(variant, bench.config.sizes[0], bench.config.seed) for variant in variants]
        todo = [trial for trial in trials if trial.key not in there]
        if todo:
            seed_trials(run, bench, todo, keeper(file, there, partial(_tell, number, bench.config)))
        bench.models.close()
        mine = [there[trial.key] for trial in trials]
        if mine[0]["status"] != DONE:
            raise DataError(
                f"The pilot on random rows failed: {mine[0]['error']}",
                fix="Mend that, or name a method in place of auto.",
            )
        records += mine
        done = gains_of(_differences(records, _judged_by(records, bench.config)))
        alive = halved({name: done[name] for name in alive if name in done and _has(mine, name)}, LEAST, stay)
        if not alive:
            raise DataError(
                f"The pilots of all candidates failed; of {mine[1]['variant']}: {_fault(mine[1])}",
                fix="Mend that, or name a method in place of auto.",
            )
    return records


def _fault(record: Mapping[str, Any]) -> str | None:
    """Why a candidate's pilot does not count; None if it does."""
    if record["status"] != DONE:
        return str(record["error"])
    by_chance = record["variant"] != BASELINE and not record["by_score"]
    return "no row of the pilot could be chosen by score: all are in the base set" if by_chance else None


def _judged_by(records: Sequence[Mapping[str, Any]], config: Any) -> str:
    """As asked for; but a metric by which no candidate differs from random rows in the first pilot says nothing.

    So the judge is one from the first halving to the verdict.
    """
    if judge_of(config) == LOSS:
        return LOSS
    first = [record for record in records if record["seed"] == records[0]["seed"]]
    return METRIC if any(map(any, _differences(first, METRIC).values())) else LOSS


def _has(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a candidate's pilot among these counts."""
    return any(record["variant"] == name and _fault(record) is None for record in records)


def _differences(records: Sequence[Mapping[str, Any]], judge: str) -> dict[str, list[float]]:
    """Candidate -> by how much it was better than random rows in each of its pilots: % of the loss, or points of the metric."""
    random = {one["seed"]: one for one in records if one["variant"] == BASELINE}
    differences = dict[str, list[float]]()
    for one in records:
        beside = random[one["seed"]]
        if one["variant"] != BASELINE and _fault(one) is None:
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
    sure = best_of(alive)
    half = hedged(alive, benches[0].config)
    chosen = sure or safest_of({name: gain for name, gain in alive.items() if name in half})
    rows = [_candidate(one.name, records, gains, alive, chosen) for one in candidates]
    beside = _beside(records, judge)
    rows = [{**row, "beside": beside.get(row["variant"], {})} for row in rows]
    answers = judge == METRIC and TASKS[benches[0].config.task or ""].generates  # of every row, scored token or none
    judged = sum(
        len(bench.split.test) if answers else record["test_rows"]
        for bench, record in zip(benches, (one for one in records if one["variant"] == BASELINE), strict=True)
    )
    unit = "%" if judge == LOSS else "points"
    by = f"{judged:,} held-out target rows, in {len(benches)} pilots of {sizes.n:,} rows out of {sizes.pool:,}"
    if judge != judge_of(benches[0].config):
        by += ", judged by log-loss because the metric did not differ in the first pilot"
    none = f"none of {counted(len(candidates), 'candidates')} was reliably better than random rows on {by}"
    if sure:
        won = f"auto took {sure}: {_interval(gains[sure])} {unit} better than random rows on {by}"
    elif chosen:
        won = f"auto took {chosen}, half of whose rows are random ({_gain(gains[chosen])} {unit}): {none}"
    else:
        worse = "; with half of them random they were reliably worse" if half else ""
        won = f"auto took random rows: {none}{worse}"
    return {
        "chosen": chosen or BASELINE, "verdict": won, "judge": judge, "unit": unit, "candidates": rows,
        "pilots": len(benches), "rows": sizes.n, "pool": sizes.pool, "judged": judged, "passes": sizes.passes,
    }  # fmt: skip


def _beside(records: Sequence[Mapping[str, Any]], judge: str) -> dict[str, dict[str, Any]]:
    """Candidate -> its gain by what did not judge; nothing where there is no metric."""
    other = LOSS if judge == METRIC else METRIC
    if any(record["metric"] is None for record in records if record["status"] == DONE):
        return {}
    return {name: _told(gain) for name, gain in gains_of(_differences(records, other)).items()}


def _told(gain: Gain) -> dict[str, Any]:
    ends = {"low": gain.low, "high": gain.high} if math.isfinite(gain.error) else {"low": None, "high": None}
    return {"mean": gain.mean, **ends, "pilots": gain.pilots}


def _gain(gain: Gain) -> str:
    return _interval(gain) if math.isfinite(gain.error) else f"{gain.mean:+.1f}"


def _interval(gain: Gain) -> str:
    return f"{gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"


def _candidate(
    name: str, records: Sequence[Mapping[str, Any]], gains: Mapping[str, Gain], alive: Mapping[str, Gain],
    chosen: str | None,
) -> dict[str, Any]:  # fmt: skip
    """A line of the table: what the pilots say of a candidate, what it cost, and why it was taken or not."""
    mine = [record for record in records if record["variant"] == name]
    error = next((fault for record in mine if (fault := _fault(record))), None)
    gain = gains.get(name)
    why = (
        "taken" if name == chosen and name in alive and alive[name].low > 0
        else "taken as the safest: half of its rows are random" if name == chosen
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


def _cost(run: Run, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all pilots took together; what candidates share (a score table, embeddings) is counted once."""
    stages: dict[Any, tuple[float, int, int]] = {}
    for file in sorted(run.folder.glob(f"scores/seed-*/*/{FILE}")):
        table = read_manifest(file.parent)
        for stage in {*table.timings, *table.spent}:
            place = table.artifacts.get(stage)
            where = os.path.normpath(file.parent / place) if place else (str(file.parent), stage)
            stages[where] = (table.timings.get(stage, 0.0), *table.spent.get(stage, (0, 0)))
    for at, record in enumerate(records):
        if record.get("train"):
            stages["training", at] = (record["train"]["seconds"], record["train"]["tokens"], record["train"]["tokens"])
    seconds, forward, backward = (sum(one[part] for one in stages.values()) for part in range(3))
    size = sum(file.stat().st_size for file in (run.folder / "scores").rglob("*") if file.is_file())
    return {"seconds": round(seconds, 3), "tokens_forward": forward, "tokens_backward": backward, "bytes": size}


def _tell(number: int, config: CompareConfig, record: Mapping[str, Any]) -> None:
    if config.quiet:
        return
    if record["status"] != DONE:
        tell(f"pilot {number}  {record['variant']}: {record['status']}: {record['error']}")
        return
    metric = "" if record.get("metric") is None else f", metric {record['metric']:.3f}"
    tell(f"pilot {number}  {record['variant']}: {record['loss']:.4f} nat{metric}  ({duration(record['seconds'])})")
