"""`tov score`: a new pool, scored with what an earlier run has prepared; and `tov fit`: prepares without scoring."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tov.config.presets import PRESETS
from tov.config.records import FitConfig, PathSettings, ScanSettings, ScoreConfig, SelectConfig
from tov.config.settings import build
from tov.data.labels import check_known
from tov.data.pool import files_of
from tov.data.sources import Input
from tov.engine.choose import check_here, engine_of
from tov.engine.local import LocalEngine
from tov.engine.models import Models, ModelSpec
from tov.files import write_text
from tov.inputs.named import (
    Inputs,
    list_inputs,
    model_identity,
    name_inputs,
    pool_identity,
    read_inputs,
    remember_in,
    targets_identity,
)
from tov.inputs.read import read_pool, reading_notes
from tov.methods.choice import check_pairs
from tov.methods.clusters import check_clusters, records_of, split_target
from tov.methods.registry import find_method
from tov.methods.score_pool import Prepared, fill_table
from tov.methods.tov.path import StoredPath, open_path
from tov.methods.work import Work, model_record, note_model, recorded_in
from tov.model.load import check_loading
from tov.model.loading import Loading
from tov.objects.mirror import relative
from tov.reports.summary import summary_markdown
from tov.runs.folder import open_run, run_folder, work_on
from tov.runs.manifest import TargetRecord
from tov.scores.store import read_table
from tov.scores.table import DEFAULT_TARGET, artifacts_of, column_name
from tov.tasks import TASKS
from tov.verbs import quarantine, training_file
from tov.verbs.looked import few, note_target, see_target
from tov.verbs.result import Result, fitted, fitted_paths
from tov.verbs.select import facts_of


def score(path: str | os.PathLike[str], pool: Inputs, *, out: str | Path | None = None, **settings: Any) -> Result:
    """Scans a new pool with a stored path; nothing is fitted.

    Args:
        path: folder of a `select`, `score` or `fit` run (or its result).
        pool: rows to score.
        out: run folder; default `tov-runs/<fingerprint>`.
        **settings: `device`, `batch_tokens`, `shard_rows`, `amplify`, `trust_remote_code`, `force`, `quiet`.

    Returns:
        The run; its `.scores` has one row per pool row, and `reselect` chooses from it.
    """
    pools = list_inputs(pool)
    arguments = {"from_run": os.fspath(path), "pool": name_inputs(pools), "out": str(out or "auto"), **settings}
    return run_score(build(ScoreConfig, arguments), pools)


def run_score(config: ScoreConfig, pools: Sequence[Input] | None = None) -> Result:
    """`score` from a record of settings."""
    check_here(config)
    pools = pools or config.pool
    origin = open_run(config.from_run)
    paths = {name: open_path(folder) for name, folder in fitted_paths(origin).items()}
    stored = next(iter(paths.values()))
    overrides = {key: getattr(config, key) for key in ("label_map", "repair_bio") if getattr(config, key) is not None}
    overrides |= {"max_length": stored.manifest["max_length"], "device": config.device}
    overrides |= {"model": origin.manifest.model.name} if origin.manifest.model else {}
    overrides["trust_remote_code"] = config.trust_remote_code
    before = build(PathSettings, {**stored.settings, **overrides})
    scan = _scan_settings(config, origin.manifest.scoring.settings if origin.manifest.scoring else {}, before)
    settings = _as_selection(before, scan)
    check_loading(Loading.of(settings), settings.device, new_head=TASKS[settings.task or ""].new_head)
    prompts = np.concatenate([path.prompts for path in paths.values()])
    rows = read_pool(pools, settings, prompts, decontaminate=settings.decontaminate, out=config.out)
    training_file.check_writable(rows.pool)
    check_pairs(settings.score, rows.pool)
    labels = tuple(stored.manifest["labels"])
    task = TASKS[settings.task or ""]
    check_known(rows.index.labels, [source.name for source in rows.pool.sources], task.row_labels(labels))
    identity = {
        "path": _fingerprint(paths),
        "pool": {**pool_identity(rows.pool, rows.index), "excluded": rows.excluded_fingerprint},
        "settings": scan,
    }
    with work_on(
        run_folder(config.out, identity), command="score", identity=identity, settings=config.shown(), force=config.force,
        tells=not config.quiet,
        reads=[*origin.reads, *files_of(rows.pool)],
    ) as run:  # fmt: skip
        if run.finished:
            return Result(run)
        models, method = Models(), find_method(origin.manifest.scoring.method if origin.manifest.scoring else "tov")
        run.note(
            inputs=remember_in(run, rows, settings, pool=pools),
            artifacts={column_name("fit", name): relative(path.folder, run.folder) for name, path in paths.items()},
            seed=settings.seed,
            chosen_for=origin.manifest.chosen_for,
            targets=origin.manifest.targets or {name: TargetRecord(**path.target) for name, path in paths.items()},
        )
        note_model(run, model_record(models.open(ModelSpec.of(settings, labels), stored.expected), settings))
        batches = settings.model_copy(update={"batch_tokens": settings.batch_tokens or recorded_in(run)})
        scorers = {name: method.reuse(artifacts_of(run.artifacts, name), batches, models) for name in paths}
        ready = {name: scorer for name, scorer in scorers.items() if scorer}
        assert len(ready) == len(paths)
        prepared = Prepared(run, rows, settings, method, None, labels, ready, None)
        fill_table(prepared, models, engine_of(config, models), quiet=config.quiet)
        notes = [*few(run), *reading_notes(pool=rows)]
        if settings.on_bad_row == quarantine.MODE:
            excluded = read_table(run.scores, columns=["excluded"], fingerprint=run.stamp)
            notes += quarantine.write_quarantine(run.folder, rows.pool, excluded)
        run.note(summary={"scores": facts_of(run), "notes": notes})
        write_text(run.folder / "summary.md", summary_markdown(run.manifest))
        run.finish()
    return Result(run)


def _fingerprint(paths: Mapping[str, StoredPath]) -> Any:
    if list(paths) == [DEFAULT_TARGET]:
        return paths[DEFAULT_TARGET].fingerprint
    return {name: path.fingerprint for name, path in paths.items()}


def _as_selection(before: PathSettings, scan: dict[str, Any]) -> SelectConfig:
    """The settings of a preparation and of a scan, as those of a selection, of which the rest has no effect here."""
    prepared = {name: getattr(before, name) for name in PathSettings.model_fields}
    return build(SelectConfig, {**prepared, **scan, "n": 1, "out": "auto"})


def _scan_settings(config: ScoreConfig, of_run: dict[str, Any], before: PathSettings) -> dict[str, Any]:
    """Settings of the scan: as given, else those of the run, else those of the path's preset, else the task's."""
    task = before.task or ""
    of_preset = PRESETS[before.preset](task, before.base_size) if before.preset else {}
    return {
        name: getattr(config, name)
        or of_run.get(name)
        or of_preset.get(name)
        or ScanSettings.model_fields[name].default
        or getattr(TASKS[task].defaults, name, None)
        for name in ScanSettings.model_fields
    }


def fit(model: str, target: Inputs, *, pool: Inputs, out: str | Path | None = None, **settings: Any) -> Result:
    """Fits and stores a path without scanning: adapters that score any pool later.

    Args:
        model: Hub id, local folder, .gguf file or alias.
        target: examples of what is wanted.
        pool: from which the base set U is drawn.
        out: run folder; default `tov-runs/<fingerprint>`.
        **settings: any other setting of `tov fit --help`.
    """
    pools, targets = list_inputs(pool), list_inputs(target)
    arguments = {
        "model": model,
        "pool": name_inputs(pools),
        "target": name_inputs(targets),
        "out": str(out or "auto"),
        **settings,
    }
    return run_fit(build(FitConfig, arguments), pools, targets)


def run_fit(config: FitConfig, pools: Sequence[Input] | None = None, targets: Sequence[Input] | None = None) -> Result:
    """`fit` from a record of settings."""
    check_here(config)
    pools, targets = pools or config.pool, targets or config.target
    config, target, rows, labels = read_inputs(config, pools, targets, out=config.out)
    check_clusters(config.target_clusters, target)
    identity = {
        "settings": config.of("fit"),
        "model": model_identity(config),
        "pool": {**pool_identity(rows.pool, rows.index), "excluded": rows.excluded_fingerprint},
        "targets": targets_identity(target),
    }
    with work_on(
        run_folder(config.out, identity), command="fit", identity=identity, settings=config.shown(), force=config.force,
        tells=not config.quiet,
        reads=[*files_of(rows.pool), *files_of(target.pool)],
    ) as run:  # fmt: skip
        if run.finished:
            return Result(run)
        run.note(
            inputs=remember_in(run, rows, config, pool=pools, target=targets),
            seed=config.seed,
        )
        scan = _scan_settings(ScoreConfig(from_run="-", pool=("-",), out="auto"), {}, config)
        settings = _as_selection(config, scan)
        models = Models()
        work = Work(
            run=run, name=DEFAULT_TARGET, rows=rows, target=target, settings=settings, method=find_method("tov"), options=None,
            labels=labels, artifacts=run.folder / "artifacts", models=models, engine=LocalEngine(models), quiet=config.quiet,
        )  # fmt: skip
        each = split_target(work, config.target_clusters)
        run.note(targets=records_of(run, each))
        for name, one in each.items():
            work.method.prepare(work.of(name, one))
        note_target(run, see_target(target, settings, labels)[1])
        stored = open_path(fitted(run))
        run.note(
            summary={
                "epochs": stored.epochs,
                "base_rows": stored.manifest["base_size"],
                "log": stored.manifest["log"],
                "notes": few(run),
            }
        )
        run.finish()
    return Result(run)
