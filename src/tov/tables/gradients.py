"""The score tables of methods that compare gradients: LESS and TracIn, at the checkpoints of one warm-up.

Scores are streamed: a pool row's gradient is compared, projected first if asked for, and forgotten; the warm-up is kept. LESS
may keep the pool's projected gradients too, in a store that serves every target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tov.baselines.checkpoints import load_checkpoints, save_checkpoints
from tov.baselines.features import Checkpoint
from tov.baselines.less import less_features, less_targets, linear_rates, stored_scores, subtask_scores, warm_up
from tov.baselines.projection import Projection
from tov.baselines.round_robin import top_candidates
from tov.baselines.store import store_features, stored_shard
from tov.baselines.tracin import projected_scores, projected_targets, tracin_scores, tracin_targets
from tov.data.guard import IN_TEST, USABLE, exclusions
from tov.data.pool import Pool
from tov.errors import ConfigError, did_you_mean
from tov.methods.table import Best
from tov.progress import Progress, part, track
from tov.scan.stream import Shard, read_shard
from tov.seeds import derive, generator
from tov.stages import Opened, draw_rows
from tov.tables.ahead import Facts, Stage
from tov.tables.work import LORA, Tokens, Work, tokens_of
from tov.text.encode import Encoded

WARM_UP = (*LORA, "warm_up_share", "epochs", "learning_rate", "batch_size")
BY_HEAD: dict[bool, dict[str, Any]] = {
    False: {"learning_rate": 2e-5, "batch_size": 128},
    True: {"learning_rate": 2e-3, "batch_size": 16},
}
"""Of the warm-up, where none is given: the authors'; and where a new head must be learned, of which they do not write, ours."""
OF_SUBTASK = "score_less:"
"""Columns of a sub-task's score, where there are several."""


def less(work: Work) -> None:
    """LESS: `score_less`, the largest over sub-tasks; where there are several also `score_less:NAME`, for round-robin."""
    subtasks, shared = _subtasks(work.target[0], work.options.subtask_column), _shared(work)
    opened, checkpoints = _warmed_up(shared)
    batch_tokens, projection = work.batch_tokens(opened), _projection(work)
    target, kept = work.encode_target(opened.encode)
    names = list(dict.fromkeys(subtasks[row] for row in kept))
    _check_rule(work.settings, names)
    of_row = np.array([names.index(subtasks[row]) for row in kept], np.int64)
    with _target_stage(work, target, len(checkpoints)):
        targets = less_targets(
            opened.adapted, checkpoints, target, subtasks=of_row, projection=projection, batch_tokens=batch_tokens
        )
    store = _stored(shared, opened, checkpoints, projection) if projection and work.options.store else None

    def score(shard: Shard) -> dict[str, np.ndarray]:
        if store:
            features = [stored_shard(folder, shard.start, fingerprint=store[0])[shard.places] for folder in store[1]]
            by_subtask = stored_scores(checkpoints, targets, features)
        else:
            by_subtask = subtask_scores(
                opened.adapted, checkpoints, targets, shard.encoded, projection=projection, batch_tokens=batch_tokens,
                form=work.options.form,
            )  # fmt: skip
        if by_subtask.shape[1] < len(names):  # no row here has a scored token
            by_subtask = np.full((len(shard.rows), len(names)), np.nan)
        columns = {f"{OF_SUBTASK}{name}": by_subtask[:, place] for place, name in enumerate(names)}
        return {"score_less": by_subtask.max(1), **(columns if len(names) > 1 else {})}

    stream = work.stream(opened.encode, [work.target[1].fingerprint, names, of_row.tolist()], opened)
    work.fill(stream, score, opened=opened, passes=_passes(0 if store else len(checkpoints), 1))


def _shared(work: Work) -> Work:
    """Where gradients are stored, the work as every target shares it: parts in the store, of all rows but those of a test."""
    if not work.options.store:
        return work
    excluded = exclusions(work.rows.index, np.empty(0, np.uint64), leak_guard=work.settings.leak_guard)
    excluded[work.rows.excluded == IN_TEST] = IN_TEST
    more = int((excluded == USABLE).sum() - work.rows.usable.sum())
    if more:
        work.note(f"{more:,} rows that the target excludes are in the store and may be in its warm-up; none is chosen")
    return replace(work, rows=replace(work.rows, excluded=excluded), parts=Path(work.options.store))


def _stored(
    shared: Work, opened: Opened, checkpoints: list[Checkpoint], projection: Projection
) -> tuple[str, list[Path]]:
    """The pool's projected gradients, made if they are not there: their fingerprint, and a folder a checkpoint."""
    options, rows = shared.options, len(shared.rows.pool)
    stream = shared.stream(opened.encode, None, opened)
    how: dict[str, Any] = {"projection": projection, "batch_tokens": shared.batch_tokens(opened), "form": options.form}

    def make(folder: Path, progress: Progress) -> None:
        for part_of, checkpoint in zip(_parts(folder, checkpoints), checkpoints, strict=True):

            def features(start: int, stop: int, checkpoint: Checkpoint = checkpoint) -> torch.Tensor:
                shard = read_shard(stream, start, stop)
                found = less_features(opened.adapted, checkpoint, shard.encoded, **how)
                shared.spent("gradients", _passes(1, tokens_of(shard.encoded)))
                return torch.from_numpy(shard.spread(found))

            store_features(
                part_of, rows, features, shard_rows=stream.shard_rows, fingerprint=folder.name, progress=progress
            )

    warm_up = Path(shared.run.manifest["parts"]["warm-up"]).name
    key = [warm_up, asdict(projection), options.form, stream.shard_rows]
    folder = shared.part("gradients", key, opened, make, rows=rows * len(checkpoints))
    return folder.name, _parts(folder, checkpoints)


def _parts(folder: Path, checkpoints: list[Checkpoint]) -> list[Path]:
    return [folder / f"checkpoint-{number}" for number in range(1, len(checkpoints) + 1)]


def by_subtask(folder: Path, scores: pa.Table) -> Best:
    """Each sub-task's best rows, for the rule round-robin.

    Raises:
        ConfigError: there is but one sub-task.
    """
    names = [name for name in scores.column_names if name.startswith(OF_SUBTASK)]
    if not names:
        raise _one_subtask()
    columns = np.stack([scores[name].to_numpy() for name in names], 1)

    def best(k: int, usable: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        row_ids = top_candidates(columns, k, usable=usable)
        return row_ids, [columns[rows, place] for place, rows in enumerate(row_ids)]

    return best


def tracin(work: Work) -> None:
    """TracIn: `score_tracin` in nats a token, of whole gradients or of projected ones."""
    opened, checkpoints = _warmed_up(work)
    batch_tokens, projection = work.batch_tokens(opened), _projection(work)
    target, _ = work.encode_target(opened.encode)
    how: dict[str, Any] = {"batch_tokens": batch_tokens}
    targets_of: Any
    scores_of: Any
    targets_of, scores_of = (tracin_targets, tracin_scores) if projection is None else (
        partial(projected_targets, projection=projection), partial(projected_scores, projection=projection)
    )  # fmt: skip
    with _target_stage(work, target, len(checkpoints)):
        targets = targets_of(opened.adapted, checkpoints, target, **how)

    def score(shard: Shard) -> dict[str, np.ndarray]:
        return {"score_tracin": scores_of(opened.adapted, checkpoints, targets, shard.encoded, **how)}

    stream = work.stream(opened.encode, work.target[1].fingerprint, opened)
    work.fill(stream, score, opened=opened, passes=_passes(len(checkpoints), 1))


@contextmanager
def _target_stage(work: Work, target: Encoded, checkpoints: int) -> Iterator[None]:
    """The target's gradients at every checkpoint: timed, shown, counted."""
    rows = len(target)
    with work.run.stage("target"), track("target", rows, quiet=work.quiet) as progress, part(progress, rows):
        yield
    work.spent("target", _passes(checkpoints, tokens_of(target)))


def _passes(checkpoints: int, tokens: int) -> Tokens:
    return checkpoints * tokens, checkpoints * tokens


def _projection(work: Work) -> Projection | None:
    options = work.options
    if options.dimension is None:
        return None
    return Projection(options.dimension, derive(work.settings.seed, "projection"), options.projection, options.nonzeros)


def _warmed_up(work: Work) -> tuple[Opened, list[Checkpoint]]:
    """The model, and the checkpoints of its warm-up on rows drawn from the pool."""
    usable = int(work.rows.usable.sum())
    options, size = _warm_up_for(work.settings.task, work.options, usable)
    opened = work.open(**{name: getattr(options, name) for name in LORA})

    def make(folder: Path, progress: Progress) -> None:
        _, rows = draw_rows(work.rows, size, generator(work.settings.seed, "warm-up"), opened)
        found = warm_up(
            opened.adapted, rows, epochs=options.epochs, learning_rate=options.learning_rate, batch_size=options.batch_size,
            batch_tokens=work.batch_tokens(opened), seed=derive(work.settings.seed, "warm-up"), progress=progress,
        )  # fmt: skip
        save_checkpoints(folder, found)
        work.spent("warm-up", _passes(options.epochs, int(rows.lengths.sum())))

    key = {name: getattr(options, name) for name in WARM_UP}
    folder = work.part("warm-up", key, opened, make, rows=size * options.epochs)
    work.note(
        f"warm-up: {options.epochs} epochs in batches of {options.batch_size:,} at a peak rate of {options.learning_rate:g}"
    )
    if size > options.warm_up_share * usable + 1:
        work.note(f"the warm-up set is one batch, {size:,} rows: {options.warm_up_share:g} of the pool are fewer")
    found = load_checkpoints(folder)
    # The first step of a linear rise has rate 0: with one batch an epoch so has the first checkpoint.
    kept = [checkpoint for checkpoint in found if checkpoint.rate > 0]
    if len(kept) < len(found):
        work.note(
            f"{len(found) - len(kept)} of {len(found)} checkpoints have rate 0 and were left out: they add nothing"
        )
    return opened, kept


def _warm_up_for(task: str, options: Any, usable: int) -> tuple[Any, int]:
    """The options with the task's own where none were given, and the rows of the warm-up set."""
    auto = {name: value for name, value in BY_HEAD[task != "instruction"].items() if getattr(options, name) is None}
    options = options.model_copy(update=auto)
    return options, min(usable, max(options.batch_size, math.ceil(options.warm_up_share * usable)))


def ahead(facts: Facts) -> list[Stage]:
    """The warm-up, then target and pool forward and backward at each checkpoint that has a rate. Of LESS, for one sub-task."""
    options, size = _warm_up_for(facts.settings.task, facts.options, facts.usable)
    rates = linear_rates(options.learning_rate, epochs=options.epochs, steps=math.ceil(size / options.batch_size))
    checkpoints, warm = int((rates.mean(1) > 0).sum()), options.epochs * facts.drawn(size)
    target, pool = checkpoints * facts.target_tokens, checkpoints * facts.tokens
    before = [
        Stage("warm-up", warm, warm, options.epochs * 12 * facts.trained(options)),
        Stage("target", target, target),
    ]
    if getattr(options, "store", None):
        kept = 2 * options.dimension * facts.rows * checkpoints
        return [*before, Stage("gradients", pool, pool, kept), Stage("scan", kept=facts.table(1))]
    return [*before, Stage("scan", pool, pool, facts.table(1))]


def _one_subtask() -> ConfigError:
    return ConfigError(
        "rule round-robin with a target of one sub-task",
        fix="name a column of sub-tasks, less/subtask_column=..., or use score-only",
    )


def check(options: Any, settings: Any, target: Pool) -> None:
    """Before anything is done.

    Raises:
        ConfigError: no such column of sub-tasks in the target, or one sub-task where the rule needs several.
    """
    _check_rule(settings, _subtasks(target, options.subtask_column))


def _check_rule(settings: Any, subtasks: list[str]) -> None:
    if settings.rule == "round-robin" and len(set(subtasks)) == 1:
        raise _one_subtask()


def _subtasks(target: Pool, column: str | None) -> list[str]:
    """(M,) the sub-task of each target row.

    Raises:
        ConfigError: no such column in the target.
    """
    if column is None:
        return target.source_names(np.arange(len(target)))
    columns = sorted({name for source in target.sources for name in source.table.column_names})
    if column not in columns:
        raise ConfigError(
            f"subtask_column={column}: the target has no such column{did_you_mean(column, columns)}",
            allowed=", ".join(columns),
        )
    return ["(none)" if cell is None else cell for cell in target.cells(column)]
