"""LESS: rows whose Adam step points the way of the target's gradient (Xia et al. 2024, arXiv 2402.04333).

score(x, sub-task) = sum_k w_k mean_z cos(R^T u_k(x), R^T g_k(z)) over rows z of the sub-task, w_k = eta_k / sum of all eta:
its Eq. 3 and Section 3.2. u is the row's Adam direction at checkpoint k (`tov.methods.shared.gradients.adam_direction`), or
its plain gradient. From -1 to 1, larger is better. Each target row is normalised before the mean over a sub-task's rows. What
is projected, R^T u, a folder can keep for later targets (`store`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tov.config.choice import RuleSettings
from tov.data.decontamination import IN_TEST, USABLE, exclusions
from tov.engine.models import ModelSpec, Opened
from tov.errors import ConfigError, ModelError, did_you_mean
from tov.methods.base import Method, PoolStats, Scorer, Stage, no_turns
from tov.methods.shared.gradients import Checkpoint
from tov.methods.shared.influence import influence, row_features
from tov.methods.shared.options import option
from tov.methods.shared.projection import Projection
from tov.methods.shared.warm_up import (
    STORED,
    ProjectedOptions,
    checkpoints_in,
    projection_of,
    spared,
    target_measured,
    warm_up_cost,
    warmed_up,
)
from tov.model.adapters import write_state
from tov.model.fitting import passes
from tov.model.gradients import per_example_gradients
from tov.objects.mirror import local, named
from tov.progress import Progress
from tov.scores.store import ShardStore, features_of
from tov.scores.table import DEFAULT_TARGET
from tov.selection.choose import Best
from tov.selection.round_robin import top_candidates
from tov.text.batches import batches_of
from tov.text.encode import Encoded

if TYPE_CHECKING:
    from tov.data.pool import Pool
    from tov.engine.models import Models
    from tov.inputs.read import Indexed
    from tov.methods.work import Work
    from tov.scores.shard import Shard
    from tov.scores.table import Columns

Form = Literal["adam", "sgd"]


def in_form(checkpoints: Sequence[Checkpoint], form: Form) -> list[Checkpoint]:
    """The checkpoints with the moments that the form takes: all, or none.

    Raises:
        ModelError: a checkpoint has no moments, in the Adam form.
    """
    if form == "sgd":
        return [replace(checkpoint, moments=None) for checkpoint in checkpoints]
    if any(checkpoint.moments is None for checkpoint in checkpoints):
        raise ModelError(
            "LESS needs the optimizer's moments at every checkpoint, but one has none.",
            fix="Take checkpoints from warm_up.",
        )
    return list(checkpoints)


@torch.no_grad()
def less_features(
    adapted: Any, checkpoint: Checkpoint, rows: Encoded, *, projection: Projection, batch_tokens: int
) -> np.ndarray:
    """(rows, d) fp32 R^T u / |R^T u| of each row at one checkpoint, for a store; NaN for rows without a scored token.

    Arguments and errors as of `tov.methods.shared.influence.influence`.
    """
    features = np.full((len(rows), projection.size), np.nan, np.float32)
    write_state(adapted, checkpoint.state)
    with per_example_gradients(adapted) as run:
        for batch, made in passes(
            batches_of(rows, batch_tokens),
            lambda batch: row_features(adapted, run, batch, projection, checkpoint, unit=True).cpu().numpy(),
        ):
            features[batch.rows] = made
    return features


def stored_scores(weights: Sequence[float], targets: Sequence[Tensor], features: Sequence[Tensor]) -> np.ndarray:
    """(rows, S) as `influence`, from features that `less_features` has made at the same checkpoints.

    Args:
        weights: of the checkpoints.
        targets: (S, d) a checkpoint, from `target_means`.
        features: (rows, d) a checkpoint. In fp16 a cosine is off by about 1e-4.
    """
    terms = zip(weights, targets, features, strict=True)
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
        targets: for each checkpoint (S, d), from `target_means`.
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
        checkpoints, names = in_form(checkpoints_in(local(self.warm_up)), self.form), self.subtasks
        weights = epoch_weights(checkpoints)
        assert self.model
        opened = None if self.stores else models.open(self.model)

        def by_subtask(shard: Shard) -> np.ndarray:
            if opened is None:
                features = [
                    torch.from_numpy(features_of(store.read(shard.start))[shard.places]) for store in self.stores
                ]
                return stored_scores(weights, self.targets, features)
            return influence(
                opened.adapted, checkpoints, weights, self.targets, shard.encoded, unit=True, projection=self.projection,
                batch_tokens=self.batch_tokens,
            )  # fmt: skip

        def score(shard: Shard) -> Columns:
            scores = by_subtask(shard)
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
        opened = models.open(self.model)
        [checkpoint] = in_form([checkpoints_in(local(self.warm_up))[self.number]], self.form)
        yield lambda shard: less_features(
            opened.adapted, checkpoint, shard.encoded, projection=self.projection, batch_tokens=self.batch_tokens
        )


class Less(Method):
    """Scores are streamed: a pool row's gradient is compared and forgotten; the warm-up is kept, and gradients on request."""

    name = "less"
    summary = "rows whose Adam step is aligned with the target's gradient"
    needs = "gradients"
    uses: ClassVar[frozenset[str]] = frozenset({"clusters"})
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
        """Raises ConfigError: no such column of sub-tasks in the target."""
        _subtasks(target.pool, options.subtask_column)

    def check_turns(self, options: Any, target: Indexed) -> None:
        """Raises ConfigError: the target has one sub-task."""
        _check_subtasks(_subtasks(target.pool, options.subtask_column))

    def prepare(self, work: Work) -> Scorer:
        """Warms up, takes the target's features, and stores the pool's gradients if asked to."""
        shared, options = _shared(work), work.options
        subtasks = _subtasks(work.target.pool, options.subtask_column)
        warm = warmed_up(shared)
        opened, batch_tokens, projection = warm.opened, work.batch_tokens(warm.opened), projection_of(work)
        target, row_ids = work.encode_target(opened.encode)
        names = list(dict.fromkeys(subtasks[row] for row in row_ids))
        if work.settings.rule == "round-robin" and work.alone:
            _check_subtasks(names)
        of_row = np.array([names.index(subtasks[row]) for row in row_ids], np.int64)
        targets = target_measured(work, warm, target, unit=True, subtasks=of_row)
        stores = _stored(shared, warm.folder, opened, len(warm.checkpoints), projection) if options.store else ()
        return LessScorer(
            model=opened.spec, passes=(0, 0) if stores else (len(warm.checkpoints),) * 2, key=[names, of_row.tolist()],
            about=work.about(opened),
            warm_up=named(warm.folder), subtasks=tuple(names), targets=targets, projection=projection,
            form=options.gradient_type, batch_tokens=batch_tokens, stores=stores,
        )  # fmt: skip

    def columns(self, settings: RuleSettings, available: Sequence[str]) -> Sequence[str]:
        """The largest over sub-tasks; those of the sub-tasks too where they take turns."""
        of_subtasks = [name for name in available if name.startswith(OF_SUBTASK)]
        return [self.column, *(of_subtasks if settings.rule == "round-robin" else [])]

    def by_target(self, scores: pa.Table, artifacts: Mapping[str, Path], options: Mapping[str, Any]) -> Best | None:
        """Each sub-task's best rows; None of one sub-task."""
        names = [name for name in scores.column_names if name.startswith(OF_SUBTASK)]
        if not names:
            return None
        columns = np.stack([scores[name].to_numpy() for name in names], 1)

        def best(k: int, usable: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
            row_ids = top_candidates(columns, k, usable=usable)
            return row_ids, [columns[rows, place] for place, rows in enumerate(row_ids)]

        return best

    def cost(self, stats: PoolStats) -> list[Stage]:
        """The warm-up, then target and pool forward and backward at each checkpoint that has a rate; for one sub-task."""
        return warm_up_cost(stats)

    def shared(self, stats: PoolStats) -> list[Stage]:
        """The warm-up, and the gradients in a store."""
        return [*spared(stats), *super().shared(stats)]


def _shared(work: Work) -> Work:
    """Where gradients are stored, the work as every target shares it: artifacts in the store, of all rows but a test's."""
    if not work.options.store:
        return work
    excluded = exclusions(work.rows.index, np.empty(0, np.uint64), decontaminate=work.settings.decontaminate)
    excluded[work.rows.excluded == IN_TEST] = IN_TEST
    more = int((excluded == USABLE).sum() - work.rows.usable.sum())
    if more:
        work.note(f"{more:,} rows that the target excludes are in the store and may be in its warm-up; none is chosen")
    rows = replace(work.rows, excluded=excluded)
    return replace(work, name=DEFAULT_TARGET, rows=rows, artifacts=Path(work.options.store))


def _stored(
    shared: Work, warm_up: Path, opened: Opened, checkpoints: int, projection: Projection | None
) -> tuple[ShardStore, ...]:
    """The pool's projected gradients, made if they are not there."""
    assert projection
    options, rows, batch_tokens = shared.options, len(shared.rows.pool), shared.batch_tokens(opened)

    def make(folder: Path, progress: Progress) -> None:
        for number in range(checkpoints):
            task = LessFeatures(opened.spec, named(warm_up), number, projection, options.gradient_type, batch_tokens)
            place = folder / f"checkpoint-{number + 1}"
            shared.store_features(place, opened.encode, task, progress, stage=STORED, passes=(1, 1))

    key = [warm_up.name, asdict(projection), options.gradient_type, shared.settings.shard_rows]
    folder = shared.artifact(STORED, key, opened, make, rows=rows * checkpoints)
    return tuple(
        shared.feature_store(folder / f"checkpoint-{number + 1}", stage=STORED) for number in range(checkpoints)
    )


def _check_subtasks(names: Sequence[str]) -> None:
    """Raises ConfigError: they are one sub-task, which has nobody to take turns with."""
    if len(set(names)) == 1:
        raise no_turns()


def _subtasks(target: Pool, column: str | None) -> list[str]:
    """(M,) the sub-task of each target row.

    Raises:
        ConfigError: no such column in the target.
    """
    if column is None:
        return target.source_names(np.arange(len(target)))
    columns = sorted({name for source in target.sources for name in source.table.columns})
    if column not in columns:
        raise ConfigError(
            f"subtask_column={column}: the target has no such column{did_you_mean(column, columns)}.",
            allowed=", ".join(columns),
            fix="Correct the name after '='.",
        )
    return ["(none)" if cell is None else cell for cell in target.cells(column)]
