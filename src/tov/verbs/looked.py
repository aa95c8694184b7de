"""A selection's look at its chosen rows: what is read for it, and remembered of the target for later choices."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pyarrow as pa

from tov.checks.apart import few_target
from tov.checks.facts import drawn, facts, seen
from tov.checks.look import Beside, look
from tov.config.records import DataSettings, PathSettings
from tov.config.settings import build
from tov.data.pool import Pool
from tov.data.rows import Row
from tov.data.sources import local_files
from tov.engine.models import ModelSpec
from tov.errors import TovError
from tov.inputs.read import Indexed, read_target, targets_of, usable_rows
from tov.methods.clusters import targets_now
from tov.methods.registry import find_method
from tov.runs.folder import Run
from tov.runs.manifest import ChecksRecord, RowsFacts
from tov.scores.table import DEFAULT_TARGET, usable_in
from tov.tasks import TASKS
from tov.text.encode import Encoder

Seen: TypeAlias = tuple[list[Row], RowsFacts]
"""Rows of a target that are looked at, and what they are like."""


def see_target(target: Indexed, settings: PathSettings, labels: tuple[str, ...]) -> Seen:
    """What chosen rows will be looked at beside; read before the scan, while the files are as they were."""
    encode = ModelSpec.of(settings, labels).encoder()
    rows, like = _seen_of(target, encode, settings.seed)
    each = targets_of(target)
    if len(each) == 1:
        return rows, like
    by_target = {name: _seen_of(one, encode, settings.seed)[1].looked_at for name, one in each.items()}
    return rows, like.model_copy(update={"by_target": by_target})


def _seen_of(target: Indexed, encode: Encoder, seed: int) -> Seen:
    return seen(target.pool, np.arange(len(target)), encode, seed)


def note_target(run: Run, like: RowsFacts) -> None:
    """Remembers what the target's rows are like (all targets' together): a later choice may not have them at hand."""
    run.note(targets={name: one.model_copy(update={"facts": like}) for name, one in run.manifest.targets.items()})


def target_again(origin: Run, seed: int) -> Seen | None:
    """The target of an earlier run, if it lies in files that are there and the same still: a look can do without."""
    inputs = origin.manifest.inputs
    if not inputs.target or not local_files(inputs.target):
        return None
    target = same_target(origin)
    if target is None:
        return None
    rows, like = seen(target.pool, np.arange(len(target)), None, seed)
    return rows, _facts(origin) or like


def same_target(run: Run) -> Indexed | None:
    """All targets of a run together, if their rows can be read and are the same still."""
    record, inputs = run.manifest.targets, run.manifest.inputs
    if not record or not inputs.target:
        return None
    try:
        target = read_target(inputs.target, build(DataSettings, inputs.reading))
        now = targets_now(run, target)
    except TovError:
        return None
    prints = {name: one.index.fingerprint for name, one in now.items()}
    return target if prints == {name: one.fingerprint for name, one in record.items()} else None


def _facts(run: Run) -> RowsFacts | None:
    return next((one.facts for one in run.manifest.targets.values()), None)


def look_at(
    run: Run, pool: Pool, scores: pa.Table, row_ids: np.ndarray, target: Seen | None, seed: int
) -> ChecksRecord:  # fmt: skip
    """What is seen of the chosen rows beside the pool and the target.

    Args:
        run: of the choice.
        pool: its pool.
        scores: the score table.
        row_ids: (n,) the chosen rows.
        target: its target, if it is at hand; else what was noted of it serves.
        seed: of the rows that are looked at.
    """
    lengths, usable = scores["tokens"].to_numpy(), np.flatnonzero(usable_in(scores))
    mine, theirs = drawn(row_ids, seed), drawn(usable, seed)
    task, pool_rows = TASKS[pool.task], usable_rows(pool.at(theirs))
    others, like = ({"target": target[0]}, target[1]) if target else ({}, _facts(run))
    beside = Beside(task, facts(pool_rows, task, sizes=lengths[theirs], of=len(usable)), pool_rows, like, others)
    seen_of = look(usable_rows(pool.at(mine)), lengths[mine], beside, n=len(row_ids))
    return seen_of.model_copy(update={"warnings": [*few(run), *seen_of.warnings]})


def few(run: Run) -> list[str]:
    """The warning that targets of a run are small, as `tov plan` has it; none where the method draws rows at random.

    Clusters of one target count together: each is small by design, and the target that was given is what can have more rows.
    """
    scoring, targets = run.manifest.scoring, run.manifest.targets
    if not targets or (scoring and find_method(scoring.method).takes == "random"):
        return []
    like, of_each = _facts(run), {name: one.rows for name, one in targets.items()}
    clusters = any(one.weight is not None for one in targets.values())
    if len(targets) > 1 and not clusters:
        return few_target((like and like.by_target) or of_each)  # a run of an older version has not counted each
    return few_target({DEFAULT_TARGET: like.looked_at if like else sum(of_each.values())})
