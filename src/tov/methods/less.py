"""LESS: rows whose Adam step points the way of the target's gradient (Xia et al. 2024, arXiv 2402.04333).

`tov.methods.shared` has the gradients and the warm-up, this file the method: features of the target, scores of the pool.

Two forms. Projected: the authors'; what is compared is R^T u, which a folder can keep for later targets (`store`).
Exact (no projection): the cosines of the whole gradients, which the projected ones estimate to about 1/sqrt(d). A row's product
with the mean of a sub-task is all that its score needs: 2 P S FLOPs a row in place of 2 P d, nothing stored, and S P numbers
held a checkpoint. It is the cheaper one for a target that is known and has fewer sub-tasks than d.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from tov.config.records import RuleSettings
from tov.data.decontamination import IN_TEST, USABLE, exclusions
from tov.engine.models import ModelSpec, Opened
from tov.errors import ConfigError, DataError, ModelError, did_you_mean
from tov.methods.base import Method, PoolStats, Scorer, Stage
from tov.methods.shared.gradients import Checkpoint, Moments, cosines, projected, summed
from tov.methods.shared.options import option
from tov.methods.shared.projection import Projection
from tov.methods.shared.warm_up import (
    ProjectedOptions,
    checkpoints_in,
    projection_of,
    target_stage,
    warm_up_cost,
    warmed_up,
)
from tov.model.adapters import parameters, write_state
from tov.model.gradients import Run, batches_of, flat_gradients, per_example_gradients
from tov.progress import Progress, each
from tov.scores.store import ShardStore, features_of
from tov.selection.choose import Best
from tov.selection.round_robin import top_candidates
from tov.text.batches import Batch, collate
from tov.text.encode import Encoded

if TYPE_CHECKING:
    from tov.data.pool import Pool
    from tov.engine.models import Models
    from tov.inputs.read import Indexed
    from tov.methods.work import Work
    from tov.scores.shard import Shard
    from tov.scores.table import Columns

Form = Literal["adam", "sgd"]
TARGET_NUMBERS = 1 << 30
"""Numbers of sub-tasks' mean whole gradients that are held at most, over all checkpoints: 4 GiB in fp32."""
HELD_NUMBERS = 1 << 27
"""Numbers of target rows' whole gradients that are held at once in the exact form: 512 MiB in fp32."""


@torch.no_grad()
def less_targets(
    adapted: Any,
    checkpoints: Sequence[Checkpoint],
    target: Encoded,
    *,
    subtasks: Sequence[int] | np.ndarray | None = None,
    projection: Projection | None,
    batch_tokens: int,
) -> list[Tensor]:
    """For each checkpoint (S, d): the mean over a sub-task's rows of R^T g / |R^T g|, g the plain gradient (the SGD form).

    The cosine with a mean of unit vectors is the mean of the cosines, so a row of the target need not be kept: S d numbers a
    checkpoint instead of M d. Without a projection (S, P), the means of g / |g|. The model is left in the last checkpoint's
    state.

    Args:
        adapted: a PeftModel.
        checkpoints: from `warm_up`.
        target: M rows; those without a scored token do not count.
        subtasks: (M,) the sub-task of each row, 0 to S - 1; None for one.
        projection: R, the same as for the pool; None for the exact form.
        batch_tokens: most tokens in a batch.

    Raises:
        DataError: a sub-task has no row with a scored token, or not every row has a sub-task.
        ConfigError: whole gradients of so many sub-tasks are more than `TARGET_NUMBERS`.
    """
    of_row = np.zeros(len(target), np.int64) if subtasks is None else np.asarray(subtasks)
    if len(of_row) != len(target):
        raise DataError(
            f"Sub-tasks are given for {len(of_row)} rows, but the target has {len(target)}.",
            fix="Give each target row a sub-task.",
        )
    counts = np.bincount(of_row[target.scored_counts > 0], minlength=int(of_row.max(initial=0)) + 1)
    if not counts.all():
        raise DataError(
            f"The sub-task {int(np.argmin(counts))} of the target has no row with a scored token.",
            fix="Number sub-tasks from 0 without gaps, or raise --max-length.",
        )
    batches, means = batches_of(target, batch_tokens), []
    if projection is None:
        size = sum(parameter.numel() for parameter in parameters(adapted).values())
        if len(counts) * size * len(checkpoints) > TARGET_NUMBERS:
            raise ConfigError(
                f"Whole gradients of {len(counts):,} sub-tasks, {size:,} numbers each at "
                f"{len(checkpoints)} checkpoints, are {len(counts) * size * len(checkpoints) * 4 / 2**30:.1f} GiB.",
                allowed=f"{TARGET_NUMBERS * 4 >> 30} GiB",
                fix="Project them (less/dim=8192), lower less/lora_r, or name a coarser less/subtask_column.",
            )
        most = max(1, HELD_NUMBERS // size)
        batches = [collate(target, one.rows[at : at + most]) for one in batches for at in range(0, len(one.rows), most)]
    with per_example_gradients(adapted) as run:
        for k, checkpoint in enumerate(checkpoints):
            write_state(adapted, checkpoint.state)
            walk = each(batches, k, len(checkpoints))
            means.append(_subtask_means(adapted, run, walk, of_row, counts, projection))
    return means


def _subtask_means(
    adapted: Any,
    run: Run,
    batches: Iterable[Batch],
    of_row: np.ndarray,
    counts: np.ndarray,
    projection: Projection | None,
) -> Tensor:
    total: Any = 0
    for batch in batches:
        whole = (
            flat_gradients(adapted, run, batch) if projection is None else projected(adapted, run, batch, projection)
        )
        features = functional.normalize(whole)
        member = torch.from_numpy(of_row[batch.rows][None] == np.arange(len(counts))[:, None]).to(features)  # (S, B)
        total = total + member @ features
    return total / torch.from_numpy(counts).to(total)[:, None]


@torch.no_grad()
def subtask_scores(
    adapted: Any,
    checkpoints: Sequence[Checkpoint],
    targets: Sequence[Tensor],
    rows: Encoded,
    *,
    projection: Projection | None,
    batch_tokens: int,
    form: Form = "adam",
) -> np.ndarray:
    """(rows, S) sum_k w_k mean_z cos(R^T u_k(x), R^T g_k(z)) over rows z of each sub-task; from -1 to 1, larger is better.

    u is the row's Adam direction (`tov.methods.shared.gradients.adam_direction`) at checkpoint k, or the row's plain
    gradient (form `sgd`); w_k = eta_k / sum of all eta. Without a projection the cosines are those of the whole u and
    g. NaN for rows without a scored token. A row is forgotten as soon as its cosines are taken: nothing of N x M or N x
    d is held.

    Source: LESS (Xia et al. 2024, arXiv 2402.04333), Eq. 3 and Section 3.2. Differs: rows go in batches; the projection is the
    same for any block size and device, and may be left out; each target row is normalised before the mean over a sub-task's
    rows.

    Args:
        adapted: a PeftModel; left in the last checkpoint's state.
        checkpoints: from `warm_up`, with moments.
        targets: from `less_targets`, of the same checkpoints and projection.
        rows: encoded rows of the pool, any part of it.
        projection: R; None for the exact form.
        batch_tokens: most tokens in a batch.
        form: how a pool row's gradient is taken.

    Raises:
        ModelError: a checkpoint has no moments, in the Adam form.
        NumericError: a log-loss is not a finite number.
    """
    weights, moments = epoch_weights(checkpoints), _moments(checkpoints, form)
    if len(targets) != len(checkpoints):
        raise ConfigError(
            f"There are {len(checkpoints)} checkpoints, but target features of {len(targets)}.",
            allowed="target features of every checkpoint",
            fix="Take the target features at these checkpoints.",
        )

    def weighed(k: int, run: Run, batch: Batch) -> Tensor:
        if projection is None:
            return weights[k] * cosines(adapted, run, batch, targets[k], moments[k])
        features = functional.normalize(projected(adapted, run, batch, projection, moments[k]))
        return weights[k] * features @ targets[k].to(features).T

    return summed(adapted, checkpoints, rows, weighed, batch_tokens=batch_tokens)


def _moments(checkpoints: Sequence[Checkpoint], form: Form) -> list[Moments | None]:
    moments = [checkpoint.moments if form == "adam" else None for checkpoint in checkpoints]
    if form == "adam" and None in moments:
        raise ModelError(
            "LESS needs the optimizer's moments at every checkpoint, but one has none.",
            fix="Take checkpoints from warm_up.",
        )
    return moments


@torch.no_grad()
def less_features(
    adapted: Any,
    checkpoint: Checkpoint,
    rows: Encoded,
    *,
    projection: Projection,
    batch_tokens: int,
    form: Form = "adam",
) -> np.ndarray:
    """(rows, d) fp32 R^T u / |R^T u| of each row at one checkpoint, for a store; NaN for rows without a scored token.

    Arguments and errors as of `subtask_scores`.
    """
    [moments], batches = _moments([checkpoint], form), batches_of(rows, batch_tokens)
    features = np.full((len(rows), projection.size), np.nan, np.float32)
    write_state(adapted, checkpoint.state)
    with per_example_gradients(adapted) as run:
        for batch in each(batches):
            features[batch.rows] = (
                functional.normalize(projected(adapted, run, batch, projection, moments)).cpu().numpy()
            )
    return features


def stored_scores(
    checkpoints: Sequence[Checkpoint], targets: Sequence[Tensor], features: Sequence[Tensor]
) -> np.ndarray:
    """(rows, S) as `subtask_scores`, from features that `less_features` has made at the same checkpoints.

    Args:
        checkpoints: for their rates.
        targets: (S, d) a checkpoint, from `less_targets`.
        features: (rows, d) a checkpoint. In fp16 a cosine is off by about 1e-4.
    """
    terms = zip(epoch_weights(checkpoints), targets, features, strict=True)
    scores = torch.stack([weight * (rows.to(target) @ target.T) for weight, target, rows in terms]).sum(0)
    return scores.cpu().double().numpy()


def epoch_weights(checkpoints: Sequence[Checkpoint]) -> list[float]:
    """w_k = eta_k / sum of all eta.

    Raises:
        ConfigError: no checkpoint, or no rate above 0.
    """
    total = sum(checkpoint.rate for checkpoint in checkpoints)
    if not total > 0:
        raise ConfigError(
            f"The learning rates of {len(checkpoints)} checkpoints sum to {total}.",
            allowed="one checkpoint or more, with a sum above 0",
            fix="Give a checkpoint that has a learning rate.",
        )
    return [checkpoint.rate / total for checkpoint in checkpoints]


OF_SUBTASK = "score_less:"
"""Columns of a sub-task's score, where there are several."""
STORED = "gradients"
"""The artifact, and the stage, of stored gradients."""


class LessOptions(ProjectedOptions):
    """Options of LESS."""

    gradient_type: Literal["adam", "sgd"] = option(
        "per-example gradient of a pool row: its Adam step (adam), or its plain gradient (sgd)", "adam"
    )
    subtask_column: str | None = option(
        "column of the target that names each row's sub-task; default: the sources of the target", None
    )
    store: str | None = option(
        "folder that keeps the warm-up and the pool's projected gradients (fp16) for further targets, as the last option; "
        "default: no gradient is kept", None, min_length=1,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LessScorer(Scorer):
    """Scores shards against the target's features at the checkpoints of a warm-up.

    Attributes:
        warm_up: the folder of the checkpoints.
        subtasks: names, in the order of the features.
        targets: for each checkpoint (S, d), from `less_targets`.
        projection: R; None for the exact form.
        form: how a pool row's gradient is taken.
        batch_tokens: most tokens in a batch.
        stores: shards of stored gradients, a checkpoint each; empty where none are kept.
    """

    warm_up: str
    subtasks: tuple[str, ...]
    targets: tuple[Tensor, ...] = field(compare=False)
    projection: Projection | None
    form: Form
    batch_tokens: int
    stores: tuple[ShardStore, ...] = ()

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], Columns]]:
        """As of `Scorer.open`: `score_less`, the largest over sub-tasks; where there are several also `score_less:NAME`."""
        checkpoints, names = checkpoints_in(Path(self.warm_up)), self.subtasks
        assert self.model
        opened = None if self.stores else models.open(self.model)

        def by_subtask(shard: Shard) -> np.ndarray:
            if opened is None:
                features = [
                    torch.from_numpy(features_of(store.read(shard.start))[shard.places]) for store in self.stores
                ]
                return stored_scores(checkpoints, self.targets, features)
            return subtask_scores(
                opened.adapted, checkpoints, self.targets, shard.encoded, projection=self.projection,
                batch_tokens=self.batch_tokens, form=self.form,
            )  # fmt: skip

        def score(shard: Shard) -> Columns:
            scores = by_subtask(shard)
            if scores.shape[1] < len(names):  # no row here has a scored token
                scores = np.full((len(shard.rows), len(names)), np.nan)
            columns = {f"{OF_SUBTASK}{_quoted(name)}": scores[:, place] for place, name in enumerate(names)}
            return {"score_less": scores.max(1), **(columns if len(names) > 1 else {})}

        yield score


def _quoted(subtask: str) -> str:
    """A sub-task's name as a part of a column's: an `@` would begin a target's name there."""
    return subtask.replace("%", "%25").replace("@", "%40")


@dataclass(frozen=True)
class LessFeatures:
    """(rows, d) of a shard's rows at one checkpoint, for a store (`less_features`).

    Attributes:
        model: whose gradients.
        warm_up: the folder of the checkpoints.
        number: of the checkpoint, from 0.
        projection, form, batch_tokens: as of `LessScorer`.
    """

    model: ModelSpec
    warm_up: str
    number: int
    projection: Projection
    form: Form
    batch_tokens: int

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], np.ndarray]]:
        """As of `tov.engine.base.ShardTask.open`."""
        opened, checkpoint = models.open(self.model), checkpoints_in(Path(self.warm_up))[self.number]
        how: dict[str, Any] = {
            "projection": self.projection, "batch_tokens": self.batch_tokens, "form": self.form,
        }  # fmt: skip
        yield lambda shard: less_features(opened.adapted, checkpoint, shard.encoded, **how)


class Less(Method):
    """Scores are streamed: a pool row's gradient is compared and forgotten; the warm-up is kept, and gradients on request."""

    name = "less"
    summary = "rows whose Adam step is aligned with the target's gradient"
    needs = "gradients"
    passes = "1 a checkpoint (4 by default), forward and backward"
    stored = "0 bytes (and once, 12 bytes a trained parameter and checkpoint)"
    options = LessOptions
    round_robin = True
    unit = "cosine"
    source = "Xia et al. 2024, arXiv 2402.04333"
    differs = (
        "cosines are of whole gradients by default (the authors project to 8,192 dimensions: projection=rademacher); "
        "per-example gradients are computed in batches; adapter and moments are in fp32; gradients are stored only under "
        "store=FOLDER (2 bytes x DIM a row and checkpoint); a new head has a higher learning rate and smaller batches; "
        "warm-up rows may be chosen, as with the authors"
    )

    def check(self, options: Any, settings: Any, target: Indexed) -> None:
        """Raises ConfigError: no such column of sub-tasks in the target, or one sub-task where the rule needs several."""
        _check_rule(settings, _subtasks(target.pool, options.subtask_column))

    def prepare(self, work: Work) -> Scorer:
        """Warms up, takes the target's features, and stores the pool's gradients if asked to."""
        subtasks, shared, options = (
            _subtasks(work.target.pool, work.options.subtask_column),
            _shared(work),
            work.options,
        )
        warm = warmed_up(shared)
        opened, batch_tokens, projection = warm.opened, work.batch_tokens(warm.opened), projection_of(work)
        target, row_ids = work.encode_target(opened.encode)
        names = list(dict.fromkeys(subtasks[row] for row in row_ids))
        _check_rule(work.settings, names)
        of_row = np.array([names.index(subtasks[row]) for row in row_ids], np.int64)
        with target_stage(work, target, len(warm.checkpoints)):
            targets = less_targets(
                opened.adapted,
                warm.checkpoints,
                target,
                subtasks=of_row,
                projection=projection,
                batch_tokens=batch_tokens,
            )
        stores = _stored(shared, warm.folder, opened, len(warm.checkpoints), projection) if options.store else ()
        loaded = opened.loaded
        return LessScorer(
            model=opened.spec, passes=(0, 0) if stores else (len(warm.checkpoints),) * 2, key=[names, of_row.tolist()],
            about=f"M = {len(work.target):,} target rows, {loaded.dtype} on {loaded.device}",
            warm_up=str(warm.folder), subtasks=tuple(names), targets=tuple(targets), projection=projection,
            form=options.gradient_type, batch_tokens=batch_tokens, stores=stores,
        )  # fmt: skip

    def columns(self, settings: RuleSettings, available: Sequence[str]) -> Sequence[str]:
        """The largest over sub-tasks; those of the sub-tasks too where they take turns."""
        of_subtasks = [name for name in available if name.startswith(OF_SUBTASK)]
        return [self.column, *(of_subtasks if settings.rule == "round-robin" else [])]

    def by_target(self, scores: pa.Table, artifacts: Mapping[str, Path], options: Mapping[str, Any]) -> Best:
        """Each sub-task's best rows. Raises ConfigError if there is but one sub-task."""
        names = [name for name in scores.column_names if name.startswith(OF_SUBTASK)]
        if not names:
            raise _one_subtask()
        columns = np.stack([scores[name].to_numpy() for name in names], 1)

        def best(k: int, usable: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
            row_ids = top_candidates(columns, k, usable=usable)
            return row_ids, [columns[rows, place] for place, rows in enumerate(row_ids)]

        return best

    def cost(self, stats: PoolStats) -> list[Stage]:
        """The warm-up, then target and pool forward and backward at each checkpoint that has a rate; for one sub-task."""
        return warm_up_cost(stats)


def _shared(work: Work) -> Work:
    """Where gradients are stored, the work as every target shares it: artifacts in the store, of all rows but a test's."""
    if not work.options.store:
        return work
    excluded = exclusions(work.rows.index, np.empty(0, np.uint64), decontaminate=work.settings.decontaminate)
    excluded[work.rows.excluded == IN_TEST] = IN_TEST
    more = int((excluded == USABLE).sum() - work.rows.usable.sum())
    if more:
        work.note(f"{more:,} rows that the target excludes are in the store and may be in its warm-up; none is chosen")
    return replace(work, rows=replace(work.rows, excluded=excluded), artifacts=Path(work.options.store))


def _stored(
    shared: Work, warm_up: Path, opened: Opened, checkpoints: int, projection: Projection | None
) -> tuple[ShardStore, ...]:
    """The pool's projected gradients, made if they are not there."""
    assert projection
    options, rows, batch_tokens = shared.options, len(shared.rows.pool), shared.batch_tokens(opened)

    def make(folder: Path, progress: Progress) -> None:
        for number in range(checkpoints):
            task = LessFeatures(opened.spec, str(warm_up), number, projection, options.gradient_type, batch_tokens)
            place = folder / f"checkpoint-{number + 1}"
            shared.store_features(place, opened.encode, task, progress, stage=STORED, passes=(1, 1))

    key = [warm_up.name, asdict(projection), options.gradient_type, shared.settings.shard_rows]
    folder = shared.artifact(STORED, key, opened, make, rows=rows * checkpoints)
    return tuple(
        shared.feature_store(folder / f"checkpoint-{number + 1}", stage=STORED) for number in range(checkpoints)
    )


def _one_subtask() -> ConfigError:
    return ConfigError(
        "The rule round-robin needs several sub-tasks, but the target has only one.",
        fix="Name a column of sub-tasks, less/subtask_column=COLUMN, or use score-only.",
    )


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
            f"subtask_column={column}: the target has no such column{did_you_mean(column, columns)}.",
            allowed=", ".join(columns),
            fix="Correct the name after '='.",
        )
    return ["(none)" if cell is None else cell for cell in target.cells(column)]
