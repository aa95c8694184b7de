"""TracIn: how much a gradient step on a row lowers the target's loss, to first order (Pruthi et al. 2020, arXiv 2002.08484).

score(x) = sum_k eta_k <grad l(theta_k, x), (1/M) sum_z grad l(theta_k, z)> over checkpoints k: its TracInCP with the mean over
the target's rows. In nats a token, larger is better. Plain gradients of the adapter (and a new head), l as in Eq. 7.

By default of whole gradients, which is cheaper than of projected ones at any adapter's size (`tov.methods.shared.influence`);
projected, a score is unbiased and off by about |g(x)| |g(z)| / sqrt(d). Differs: the paper has the sum over the target's rows,
and no adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from tov.methods.base import Method, PoolStats, Scorer, Stage
from tov.methods.shared.influence import influence
from tov.methods.shared.projection import Projection
from tov.methods.shared.warm_up import (
    ProjectedOptions,
    checkpoints_in,
    projection_of,
    spared,
    target_measured,
    warm_up_cost,
    warmed_up,
)
from tov.objects.mirror import local, named

if TYPE_CHECKING:
    from tov.engine.models import Models
    from tov.methods.work import Work
    from tov.scores.shard import Shard
    from tov.scores.table import Columns


class TracinOptions(ProjectedOptions):
    """Options of TracIn."""


@dataclass(frozen=True, kw_only=True)
class TracinScorer(Scorer):
    """Scores shards against the target's mean gradient at the checkpoints of a warm-up.

    Attributes:
        warm_up: the folder of the checkpoints.
        targets: for each checkpoint (1, d), from `target_means`.
        projection: R; None for the exact form.
        batch_tokens: most tokens in a batch.
    """

    warm_up: str
    targets: tuple[Tensor, ...] = field(compare=False)
    projection: Projection | None
    batch_tokens: int

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], Columns]]:
        """As of `Scorer.open`; the column is `score_tracin`, nats a token."""
        assert self.model
        opened = models.open(self.model)
        checkpoints = [replace(checkpoint, moments=None) for checkpoint in checkpoints_in(local(self.warm_up))]
        rates = [checkpoint.rate for checkpoint in checkpoints]

        def score(shard: Shard) -> Columns:
            scores = influence(
                opened.adapted, checkpoints, rates, self.targets, shard.encoded, unit=False, projection=self.projection,
                batch_tokens=self.batch_tokens,
            )  # fmt: skip
            return {"score_tracin": scores[:, 0]}

        yield score


class Tracin(Method):
    """Of whole gradients, or of projected ones."""

    name = "tracin"
    summary = "rows whose gradient step lowers the target's log-loss, to first order"
    needs = "gradients"
    uses: ClassVar[frozenset[str]] = frozenset({"clusters"})
    passes = "1 a checkpoint (4 by default), forward and backward"
    stored = "0 bytes (and once, 12 bytes a trained parameter and checkpoint)"
    options = TracinOptions
    unit = "nats a token"
    source = "Pruthi et al. 2020, arXiv 2002.08484"
    differs = (
        "the score is a mean over the target's rows, not a sum; gradients are of a LoRA adapter; the checkpoints are those of "
        "LESS's warm-up"
    )

    def prepare(self, work: Work) -> Scorer:
        """Warms up, and takes the target's mean gradients."""
        warm = warmed_up(work)
        opened = warm.opened
        target, _ = work.encode_target(opened.encode)
        return TracinScorer(
            model=opened.spec, passes=(len(warm.checkpoints),) * 2, about=work.about(opened), warm_up=named(warm.folder),
            targets=target_measured(work, warm, target, unit=False), projection=projection_of(work),
            batch_tokens=work.batch_tokens(opened),
        )  # fmt: skip

    def cost(self, stats: PoolStats) -> list[Stage]:
        """The warm-up, then target and pool forward and backward at each checkpoint that has a rate."""
        return warm_up_cost(stats)

    def shared(self, stats: PoolStats) -> list[Stage]:
        """The warm-up."""
        return [*spared(stats), *super().shared(stats)]
