"""The Python front door: settings in, run folder out. Each function walks the stages in order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from tov import output
from tov.config import (
    TASK_DEFAULTS,
    FitConfig,
    P,
    PathSettings,
    ReselectConfig,
    ScoreConfig,
    SelectConfig,
    SelectionSettings,
)
from tov.data.labels import known_labels
from tov.data.pool import Index, Pool, check_mapping, files_of
from tov.data.sources import Input
from tov.errors import RunError
from tov.files import write_text
from tov.inputs import (
    Inputs,
    check_unchanged,
    list_inputs,
    name_inputs,
    path_folder,
    pool_again,
    read_by,
    remember,
    task_of,
)
from tov.methods.arms import Arm, inert, reselect_settings, select_settings
from tov.path.store import StoredPath, open_path
from tov.report import summary_markdown
from tov.run import Run, at_work, open_run, run_folder, start_run
from tov.scan.shards import read_scores
from tov.settings import Settings, build
from tov.stages import (
    SCAN_SETTINGS,
    Rows,
    check_n,
    fit_stage,
    labels_of,
    open_model,
    read_pool,
    read_target,
    repair_notes,
    scan_stage,
    unhex,
)
from tov.summary import choice_facts, score_facts
from tov.tables.choice import check_choice, choose_rows
from tov.tables.work import Work, cost_of, fill_table, settled


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        folder: its run folder.
        manifest: what `manifest.json` says.
    """

    folder: Path
    manifest: dict[str, Any]

    @cached_property
    def scores(self) -> pa.Table:
        """The score table: one row per pool row (row_id, source, hash, tokens, in_base, excluded, scores in nats a token)."""
        return read_scores(self._scores_folder())

    def __fspath__(self) -> str:
        """A result may be given wherever its folder may."""
        return str(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of the report."""
        return dict(self.manifest["summary"])

    @property
    def path(self) -> StoredPath:
        """The stored path."""
        return open_path(path_folder(Run(self.folder, self.manifest)))

    def _scores_folder(self) -> Path:
        origin = self.manifest.get("scores_from")
        return Path(origin) if origin else self.folder / "scores"


@dataclass(frozen=True)
class Picked(Result):
    """A finished selection."""

    @cached_property
    def dataset(self) -> datasets.Dataset:
        """(n rows) the chosen rows: original columns, then tov_row_id, tov_source, tov_score, tov_reason."""
        return output.read_selected(self.folder)


def select(
    *, model: str, pool: Inputs, target: Inputs, n: int, out: str | Path | None = None, **settings: Any
) -> Picked:
    """Fits the path, scans the pool, chooses n rows and writes the run folder.

    The same call again returns the finished run, or goes on where it was interrupted.

    Args:
        model: Hub id, local folder, .gguf file or alias.
        pool: rows to choose from: path(s), glob(s), Hub id(s), `datasets.Dataset`(s) or a list of rows.
        target: examples of what is wanted, likewise.
        n: rows to choose.
        out: run folder; default `tov-runs/<fingerprint>`.
        **settings: any other setting of `tov select --help`, with underscores.

    Returns:
        The selection: `.dataset` (goes into TRL's SFTTrainer), `.scores`, `.summary`, `.folder`.

    Raises:
        TovError: one of its six kinds; the text says what to do.
    """
    pools, targets = list_inputs(pool), list_inputs(target)
    given = {
        "model": model,
        "pool": name_inputs(pools),
        "target": name_inputs(targets),
        "n": n,
        "out": str(out or "auto"),
        **settings,
    }
    return run_select(build(SelectConfig, given), pools, targets)


def run_select(
    config: SelectConfig, pools: Sequence[Input] | None = None, targets: Sequence[Input] | None = None
) -> Picked:
    """`select` from a record of settings; inputs in memory are passed beside it."""
    config, arm = select_settings(config)
    pools, targets = pools or config.pool, targets or config.target
    config, target, rows, labels = read_inputs(config, pools, targets)
    output.check_columns(rows.pool)
    check_n(config.n, rows)
    check_choice(arm, config, rows, target[0], config.n)
    identity = select_identity(config, arm, rows, target)
    run = start_run(
        run_folder(config.out, identity), command="select", identity=identity, force=config.force,
        settings={name: value for name, value in config.shown().items() if name not in inert(arm.method)},
        reads=[*files_of(rows.pool), *files_of(target[0])],
    )  # fmt: skip
    if run.finished:
        return Picked(run.folder, run.manifest)
    scan: dict[str, Any] = {key: getattr(config, key) for key in SCAN_SETTINGS}
    with at_work(run):
        run.note(
            inputs=remember(config, pool=pools, target=targets),
            scan_settings=scan,
            **({} if arm.method.name == "tov" else {"scored_by": arm.method.name}),
        )
        fill_table(
            Work(
                run=run, rows=rows, target=target, settings=config, arm=arm, options=settled(arm, config.n), labels=labels,
                parts=run.folder / "parts", open_with=lambda changed: open_model(changed, labels), quiet=config.quiet,
            )
        )  # fmt: skip
        run.note(cost=cost_of(run))
        return _choose_and_write(run, rows.pool, read_scores(run.scores, len(rows.pool)), arm, config, config.seed)


def select_identity(config: SelectConfig, arm: Arm, rows: Rows, target: tuple[Pool, Index]) -> dict[str, Any]:
    """What the files of a selection depend on."""
    return {
        "settings": _of_method(_identity_settings(config, "path", "scan", "selection"), arm),
        "pool": _pool_identity(rows),
        "target": {"rows": len(target[0]), "fingerprint": target[1].fingerprint},
    }


def read_inputs(
    config: P, pools: Sequence[Input], targets: Sequence[Input]
) -> tuple[P, tuple[Pool, Index], Rows, tuple[str, ...]]:
    """The settings with the target's task and its defaults; target, pool and labels."""
    target = read_target(targets, config)
    config = config.for_task(target[0].task)
    rows = read_pool(pools, config, target[1].prompt, leak_guard=config.leak_guard)
    check_mapping(config.columns, rows.pool, target[0])
    return config, target, rows, labels_of(rows, target, config)


def reselect(
    from_run: str | os.PathLike[str], *, n: int, out: str | Path, pool: Inputs | None = None, **settings: Any
) -> Picked:
    """Chooses again from a finished run's scores; nothing is scanned.

    Args:
        from_run: folder of a `select` or `score` run (or its result).
        n: rows to choose.
        out: the new run folder.
        pool: the run's pool, needed only if it was in memory.
        **settings: `method`, `transform`, `normalize`, `rule`, `bins`, `source_cap`, `seed`, by default as in the run;
            `force`, `quiet`.
    """
    config = build(ReselectConfig, {"from_run": os.fspath(from_run), "n": n, "out": str(out), **settings})
    return run_reselect(config, list_inputs(pool) if pool is not None else None)


def run_reselect(config: ReselectConfig, pools: Sequence[Input] | None = None) -> Picked:
    """`reselect` from a record of settings."""
    origin = open_run(config.from_run)
    scores_folder = Path(origin.manifest.get("scores_from") or origin.scores)
    if "scan" not in origin.manifest:
        raise RunError(f"{config.from_run} has no complete scores yet", fix="finish it first: give its command again")
    chosen_by = origin.manifest["identity"].get("settings", {})
    config, arm = reselect_settings(config, origin.manifest.get("scored_by", "tov"), chosen_by)
    scored = origin.manifest.get("identity", {}).get("pool", {}).get("sources", {})
    scores = read_scores(scores_folder, sum(scored.values()))
    pool = pool_again(origin, pools, scores)
    if "normalize" in arm.method.options:
        normalize = config.normalize or TASK_DEFAULTS[task_of(origin.manifest)]["normalize"]
        config = config.model_copy(update={"normalize": normalize})
    seed = config.seed if config.seed is not None else origin.manifest["seed"]
    identity = {
        "settings": {**_of_method(_identity_settings(config, "selection"), arm), "seed": seed},
        "scan": origin.manifest["scan"]["fingerprint"],
    }
    run = start_run(
        Path(config.out), command="select --from", identity=identity, settings=config.shown(), force=config.force,
        reads=[*read_by(origin), *files_of(pool)],
    )  # fmt: skip
    if run.finished:
        return Picked(run.folder, run.manifest)
    kept = ("inputs", "path", "scan", "noise_floor", "notes", "method", "model", "scored_by")
    with at_work(run):
        run.note(
            scores_from=str(scores_folder.absolute()),
            **{key: origin.manifest[key] for key in kept if key in origin.manifest},
        )
        return _choose_and_write(run, pool, scores, arm, config, seed, scores_folder.parent)


def score(path: str | os.PathLike[str], pool: Inputs, *, out: str | Path | None = None, **settings: Any) -> Result:
    """Scans a new pool with a stored path; nothing is fitted.

    Args:
        path: folder of a `select`, `score` or `fit` run (or its result).
        pool: rows to score.
        out: run folder; default `tov-runs/<fingerprint>`.
        **settings: `device`, `batch_tokens`, `shard_rows`, `amplify`, `force`, `quiet`.

    Returns:
        The run; its `.scores` has one row per pool row, and `reselect` chooses from it.
    """
    pools = list_inputs(pool)
    given = {"from_run": os.fspath(path), "pool": name_inputs(pools), "out": str(out or "auto"), **settings}
    return run_score(build(ScoreConfig, given), pools)


def run_score(config: ScoreConfig, pools: Sequence[Input] | None = None) -> Result:
    """`score` from a record of settings."""
    pools = pools or config.pool
    origin = open_run(config.from_run)
    stored = open_path(path_folder(origin))
    given = {key: getattr(config, key) for key in ("label_map", "repair_bio") if getattr(config, key) is not None}
    given |= {"max_length": stored.manifest["max_length"], "device": config.device}
    fitted = build(PathSettings, {**stored.manifest["settings"], **given})
    rows = read_pool(pools, fitted, unhex(stored.manifest["target"]["prompt"]), leak_guard=fitted.leak_guard)
    output.check_columns(rows.pool)
    labels = tuple(stored.manifest["labels"])
    known_labels(rows.index.labels, [source.name for source in rows.pool.sources], labels, fitted.task or "")
    scan: dict[str, Any] = {
        key: getattr(config, key)
        or origin.manifest.get("scan_settings", {}).get(key)
        or SelectConfig.model_fields[key].default
        or TASK_DEFAULTS[fitted.task or "instruction"].get(key)
        for key in SCAN_SETTINGS
    }
    identity = {"path": stored.fingerprint, "pool": _pool_identity(rows), "settings": scan}
    run = start_run(
        run_folder(config.out, identity), command="score", identity=identity, settings=config.shown(), force=config.force,
        reads=[*read_by(origin), *files_of(rows.pool)],
    )  # fmt: skip
    if run.finished:
        return Result(run.folder, run.manifest)
    with at_work(run):
        run.note(
            inputs=remember(fitted, pool=pools),
            path_from=str(stored.folder.absolute()),
            seed=fitted.seed,
            scan_settings=scan,
        )
        scan_stage(run, rows, stored, open_model(fitted, labels), quiet=config.quiet, **scan)
        run.note(summary={"scores": score_facts(read_scores(run.scores)), "notes": repair_notes(pool=rows.index)})
        write_text(run.folder / "summary.md", summary_markdown(run.manifest))
        run.finish()
    return Result(run.folder, run.manifest)


def fit(model: str, target: Inputs, *, base: Inputs, out: str | Path | None = None, **settings: Any) -> Result:
    """Fits and stores a path without scanning: adapters that score any pool later.

    Args:
        model: Hub id, local folder, .gguf file or alias.
        target: examples of what is wanted.
        base: the pool from which the base set U is drawn.
        out: run folder; default `tov-runs/<fingerprint>`.
        **settings: any other setting of `tov fit --help`.
    """
    pools, targets = list_inputs(base), list_inputs(target)
    given = {
        "model": model,
        "pool": name_inputs(pools),
        "target": name_inputs(targets),
        "out": str(out or "auto"),
        **settings,
    }
    return run_fit(build(FitConfig, given), pools, targets)


def run_fit(config: FitConfig, pools: Sequence[Input] | None = None, targets: Sequence[Input] | None = None) -> Result:
    """`fit` from a record of settings."""
    pools, targets = pools or config.pool, targets or config.target
    config, target, rows, labels = read_inputs(config, pools, targets)
    identity = {
        "settings": _identity_settings(config, "path"),
        "pool": _pool_identity(rows), "target": {"rows": len(target[0]), "fingerprint": target[1].fingerprint},
    }  # fmt: skip
    run = start_run(
        run_folder(config.out, identity), command="fit", identity=identity, settings=config.shown(), force=config.force,
        reads=[*files_of(rows.pool), *files_of(target[0])],
    )  # fmt: skip
    if run.finished:
        return Result(run.folder, run.manifest)
    with at_work(run):
        run.note(inputs=remember(config, pool=pools, target=targets), seed=config.seed)
        stored = fit_stage(run, rows, target, config, open_model(config, labels), quiet=config.quiet)
        run.note(
            summary={"epochs": stored.epochs, "base_rows": stored.manifest["base_size"], "log": stored.manifest["log"]}
        )
        run.finish()
    return Result(run.folder, run.manifest)


def _choose_and_write(
    run: Run, pool: Pool, scores: pa.Table, arm: Arm, config: SelectionSettings, seed: int, origin: Path | None = None
) -> Picked:
    """Of the scores in this run's folder, or in that of `origin`."""
    with run.stage("select"):
        choice, values = choose_rows(arm.method, config, scores, origin or run.folder, n=config.n, seed=seed)
        check_unchanged(pool, choice.row_ids, scores)
        output.write_selected(run.folder, pool, choice.row_ids, choice.reasons, values[choice.row_ids])
    facts = {
        "choice": choice_facts(scores, choice.row_ids, choice.reasons, values), "scores": score_facts(scores),
        "notes": [*run.manifest.get("notes", []), *choice.notes],
    }  # fmt: skip
    run.note(
        summary=facts,
        seed=seed,
    )
    write_text(run.folder / "summary.md", summary_markdown(run.manifest))
    run.finish()
    return Picked(run.folder, run.manifest)


def _pool_identity(rows: Rows) -> dict[str, Any]:
    names = {source.name: len(source.table) for source in rows.pool.sources}
    return {"sources": names, "fingerprint": rows.index.fingerprint, "excluded": rows.excluded_fingerprint}


def _of_method(settings: dict[str, Any], arm: Arm) -> dict[str, Any]:
    """Settings with the method as its name and its own options, without those that have no effect with it."""
    kept = {name: value for name, value in settings.items() if name not in ("method", *inert(arm.method))}
    method = {} if arm.method.name == "tov" else {"method": arm.method.name}
    return {**kept, **method, **({"options": arm.own_options} if arm.own else {})}


def _identity_settings(config: Settings, *stages: Any) -> dict[str, Any]:
    """The settings that decide the files; where rows were read from does not (their content does)."""
    kept = config.of_stage(*stages)
    return {key: value for key, value in kept.items() if key not in ("pool", "target", "from_run")}
