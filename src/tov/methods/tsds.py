"""TSDS: a distribution over pool rows that is near the target by optimal transport and does not crowd where rows repeat.

Liu, Karbasi and Rekatsinas 2024, "TSDS: Data Selection for Task-Specific
Model Finetuning", NeurIPS 2024, arXiv 2410.11303.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import model_validator

from tov.errors import ConfigError, DataError
from tov.methods.base import Scorer
from tov.methods.shared.embedded import EmbeddingMethod, EmbeddingOptions, embedded, read_embeddings
from tov.methods.shared.neighbours import Backend, distance_of, nearest, normalised
from tov.methods.shared.options import option
from tov.seeds import generator

if TYPE_CHECKING:
    from tov.methods.work import Work

SIGMA = 0.75
"""The authors' kernel width, in distances of embeddings of length 1."""

_FIRST_NEIGHBOURS, _ROWS_AT_ONCE = 64, 4096


@dataclass(frozen=True)
class Plan:
    """How mass 1/M of each target row lies on its neighbours.

    Attributes:
        mass: (M, K) sums to 1/M in each row.
        level: s: a neighbour holds at most 1/(M s rho).
        exhausted: (M,) bool, target rows whose every neighbour is as full as it may be, so that the level stayed lower.
    """

    mass: np.ndarray
    level: float
    exhausted: np.ndarray


@dataclass(frozen=True)
class Selection:
    """What TSDS knows of a pool.

    Attributes:
        p: (N,) probability of each row, sums to 1; 0 for a row that no target row holds.
        neighbours: K.
        exhausted: target rows that used up their K neighbours; with many of them, a larger K changes p.
    """

    p: np.ndarray
    neighbours: int
    exhausted: int


def density(
    rows: np.ndarray,
    pool: np.ndarray,
    *,
    kde_k: int,
    sigma: float = SIGMA,
    usable: np.ndarray | None = None,
    backend: Backend = "numpy",
) -> np.ndarray:
    """(len(rows),) `rho(x) = sum over the kde_k nearest pool rows of max(0, 1 - d^2 / sigma^2)`; 1 where sigma is 0.

    A row is its own nearest, so rho is at least 1 (also where a rounded distance to itself is not 0 beside a small sigma):
    about how many copies of itself the pool holds.

    Args:
        rows: row ids, usable ones.
        pool: (N, H) embeddings, of any length; d is between directions, from 0 to 2.
        kde_k: neighbours counted, the row itself among them.
        sigma: kernel width; 0 turns the density off.
        usable: (N,) bool, rows that count.
        backend: of the search, see `tov.methods.shared.neighbours.nearest`.

    Raises:
        DataError: see `nearest`.
    """
    rho = np.ones(len(rows))
    for start in range(0, len(rows) if sigma else 0, _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        cosines = nearest(pool[rows[part]], pool, kde_k, usable=usable, backend=backend).values
        rho[part] = np.maximum(1.0, np.maximum(0.0, 1.0 - np.square(distance_of(cosines) / sigma)).sum(1))
    return rho


def transport(
    distances: np.ndarray, densities: np.ndarray, *, alpha: float = 0.5, c: float = 5.0, least_level: float = 0.0
) -> Plan:
    """The plan that minimises `(alpha/C) sum_ij gamma_ij d_ij + (1 - alpha) / s` with `gamma_ij <= 1 / (M s rho_j)`.

    At level s target row i fills its neighbours in order of distance, each to 1/(M s rho), and puts what remains of 1/M on
    the next. Raising s moves mass outward: with `S_k = sum_{j<=k} 1/rho_j`, the step to neighbour k+1 comes at s = S_k and
    makes `d_{k+1} S_k - sum_{j<=k} d_j/rho_j` the row's cost. The level is the first at which `(alpha/C) total cost >=
    (1 - alpha) M`. Costs only rise, so all steps are sorted by s and their costs cumulated, where the authors' heap takes
    them one by one: the same level.

    Args:
        distances: (M, K) rising along each row.
        densities: (M, K) rho of the same neighbours, positive.
        alpha: weight of nearness against spread; 1 puts all on the nearest row, 0 spreads as far as K allows.
        c: C, the scale of distances that alpha = 0.5 trades for one step of spread.
        least_level: raise s to this at least.

    Differs: a target row whose K neighbours are full keeps them full, at its own last level S_K, while others go on.
    """
    targets = len(distances)
    steps = np.cumsum(1.0 / densities, 1)
    rises = np.diff(distances.astype(np.float64), axis=1) * steps[:, :-1]
    order = np.argsort(steps[:, :-1], axis=None)
    enough = alpha / c * np.cumsum(rises.ravel()[order]) >= (1.0 - alpha) * targets
    levels = np.append(steps[:, :-1].ravel()[order], steps[:, -1].max())
    level = max(float(levels[np.argmax(enough)] if enough.any() else levels[-1]), least_level)
    own = np.minimum(level, steps[:, -1:])
    before = np.hstack([np.zeros((targets, 1)), steps[:, :-1]])
    mass = np.clip(own - before, 0.0, 1.0 / densities) / (own * targets)
    return Plan(mass, level, steps[:, -1] <= level)


def level_of_support(row_ids: np.ndarray, densities: np.ndarray, n: int) -> float:
    """The smallest step of the level at which n distinct rows hold mass; infinity if the lists hold fewer rows.

    Args:
        row_ids: (M, K) neighbours, nearest first.
        densities: (M, K) rho of them.
        n: rows.
    """
    steps = np.cumsum(1.0 / densities, 1)
    entries = np.full(int(row_ids.max()) + 1, np.inf)
    np.minimum.at(entries, row_ids, np.hstack([np.zeros((len(steps), 1)), steps[:, :-1]]))
    if n > np.isfinite(entries).sum():
        return np.inf
    entry = np.partition(entries, n - 1)[n - 1] if n else -np.inf
    return float(steps[steps > entry].min())


def tsds(
    pool: np.ndarray,
    target: np.ndarray,
    *,
    alpha: float = 0.5,
    c: float = 5.0,
    sigma: float = SIGMA,
    k: int | None = None,
    kde_k: int | None = None,
    least_rows: int = 0,
    usable: np.ndarray | None = None,
    backend: Backend = "numpy",
) -> Selection:
    """The probability `p_j = sum_i gamma_ij` of each pool row, gamma the plan of `transport` on each target row's K nearest.

    Embeddings are compared by direction: d = |x/|x| - z/|z||, from 0 to 2. A pool row repeated r times has density of about
    r, so that its copies together hold what one row would. Cost: a product of M x N, and one of N with each row that holds
    mass; densities of farther neighbours are computed only when the level comes near them. Memory: O(M K + N).

    Args:
        pool: (N, H) embeddings, position i is row_id i. It may be a memory map. Rows without a direction get p = 0.
        target: (M, H) embeddings.
        alpha: weight of nearness against spread, from 0 (spread over all K) to 1 (nearest rows only).
        c: C, scale of the distances.
        sigma: kernel width of the density; 0 turns it off. `calibrated_sigma` measures one for your embeddings.
        k: K, neighbours of a target row; if not given min(5000, N/10), N the usable rows, or `least_rows` where the lists
            of so many hold fewer rows than that.
        kde_k: neighbours counted in a density; min(1000, N/10) if not given.
        least_rows: rows that must have p > 0, where n distinct rows are to be drawn; 0 leaves p to alpha and C.
        usable: (N,) bool, rows that may be taken; the others do not count at all. All if not given.
        backend: of the search, see `tov.methods.shared.neighbours.nearest`.

    Raises:
        ConfigError: alpha outside 0..1, C not positive, or a negative sigma.
        DataError: too few rows for k, kde_k or least_rows, or a target row without a direction.

    Source: Liu et al. 2024, arXiv 2410.11303. Differs: search is exact (theirs: an approximate index); steps are sorted
    where theirs are in a heap; target rows with all K neighbours full stop rising (`transport`); `least_rows`.
    """
    for name, value, sound in (("alpha", alpha, 0 <= alpha <= 1), ("C", c, c > 0), ("sigma", sigma, sigma >= 0)):
        if not sound:
            raise ConfigError(
                f"TSDS got {name} = {value}.",
                allowed="alpha from 0 to 1, C above 0, sigma 0 or more",
                fix=f"Correct {name}.",
            )
    rows = len(pool) if usable is None else int(usable.sum())
    open_k = k is None
    k = max(1, min(5000, rows // 10)) if k is None else k
    kde_k = max(1, min(1000, rows // 10)) if kde_k is None else kde_k
    near = nearest(target, pool, k, usable=usable, backend=backend)
    if open_k and len(np.unique(near.row_ids)) < least_rows:
        k = least_rows  # a list of so many rows is enough by itself
        near = nearest(target, pool, k, usable=usable, backend=backend)
    distances, densities = distance_of(near.values), np.full(len(pool), np.nan)
    width = min(k, _FIRST_NEIGHBOURS)
    while True:
        row_ids = near.row_ids[:, :width]
        new = np.unique(row_ids[np.isnan(densities[row_ids])])
        densities[new] = density(new, pool, kde_k=kde_k, sigma=sigma, usable=usable, backend=backend)
        least = level_of_support(row_ids, densities[row_ids], least_rows)
        plan = transport(distances[:, :width], densities[row_ids], alpha=alpha, c=c, least_level=least)
        if width == k or not plan.exhausted.any():
            break
        width = min(k, 4 * width)
    if least == np.inf:
        raise DataError(
            f"{least_rows:,} rows are wanted, but the {k:,} neighbours of the target rows are "
            f"{len(np.unique(row_ids)):,} rows.",
            fix="Lower --n, or raise tsds/max_k (K).",
        )
    p = np.bincount(row_ids.ravel(), plan.mass.ravel(), minlength=len(pool))
    return Selection(p, k, int(plan.exhausted.sum()))


def calibrated_sigma(
    pool: np.ndarray,
    *,
    seed: int = 0,
    sample: int = 1000,
    quantile: float = 0.5,
    usable: np.ndarray | None = None,
    backend: Backend = "numpy",
) -> float:
    """A kernel width for these embeddings: the quantile of the distance of sampled pool rows to their nearest other row.

    Then rows of usual surroundings have rho near 1, and rho grows only where rows lie closer together than that. The
    authors' 0.75 suits a sentence encoder; hidden states of a causal model all lie within 0.75 of each other (cosines above
    0.7), so that rho would be kde_K for every row and say nothing.

    Args:
        pool: (N, H) embeddings.
        seed: of the sample.
        sample: rows in it, at most.
        quantile: 0 to 1; larger is wider.
        usable: (N,) bool, rows that count.
        backend: of the search, see `tov.methods.shared.neighbours.nearest`.

    Raises:
        DataError: fewer than two sampled rows with an embedding, or so many exact copies that the quantile is 0.

    Differs: ours; the authors give a constant.
    """
    rows = np.arange(len(pool)) if usable is None else np.flatnonzero(usable)
    picked = np.sort(generator(seed, "sigma of tsds").choice(rows, min(sample, len(rows)), replace=False))
    sampled = pool[picked][np.isfinite(normalised(pool[picked])).all(1)]
    if len(sampled) < 2:
        raise DataError(
            f"{len(sampled)} pool rows with an embedding are too few to measure sigma by.",
            allowed="2 or more",
            fix="Give sigma yourself.",
        )
    cosines = nearest(sampled, pool, 2, usable=usable, backend=backend).values[:, 1]
    sigma = float(np.quantile(distance_of(cosines), quantile))
    if sigma < 1e-3:
        raise DataError(
            f"Quantile {quantile} of the distances to the nearest other row is {sigma:.1g}: these rows are copies.",
            fix="Remove repeated rows from the pool, raise the quantile, or give sigma yourself.",
        )
    return sigma


class TsdsOptions(EmbeddingOptions):
    """Options of TSDS."""

    alpha: float = option("weight of nearness to the target against spread over the pool", 0.5, ge=0, le=1)
    c: float = option("constant C, the distance that one unit of spread is worth at alpha = 0.5", 5.0, gt=0)
    sigma: float | None = option(
        "kernel width of the density estimate (the authors: 0.75), or 0 for no density; default: the median distance of pool "
        "rows to their nearest other row", None, ge=0,
    )  # fmt: skip
    max_k: int | None = option(
        "nearest pool rows K of a target row; default: min(5000, N/10), or MIN_ROWS where that is too few", None, ge=1
    )
    kde_k: int | None = option("number of nearest rows in the density estimate; default: min(1000, N/10)", None, ge=1)
    min_rows: int | None = option(
        "minimum rows with a probability above 0; default: the number of rows to choose", None, ge=0
    )
    backend: Literal["numpy", "faiss"] = option(
        "library of the exact nearest-neighbour search: numpy or faiss", "numpy"
    )

    @model_validator(mode="after")
    def _counted(self) -> TsdsOptions:
        if self.sigma == 0 and self.kde_k is not None:
            raise ConfigError(
                f"kde_k={self.kde_k} has no effect without a density, and sigma is 0.",
                fix="Leave kde_k out, or give a sigma above 0.",
            )
        return self


class Tsds(EmbeddingMethod):
    """TSDS: `score_tsds`, the logarithm of a row's probability, -inf for rows that have none."""

    name = "tsds"
    summary = "rows near the target by optimal transport, with less weight on near-duplicates"
    options = TsdsOptions
    rule = "sample"
    of_pool = True
    unit = "nats (log probability)"
    source = "Liu et al. 2024, arXiv 2410.11303"
    differs = (
        "the nearest-neighbour search is exact; rows are drawn without repeats; sigma is measured on the pool (the authors: "
        "sigma=0.75); at least as many rows as are to be chosen have a probability; embeddings are hidden states of the "
        "fine-tuned model, as in rds"
    )

    def resolve(self, options: Any, n: int) -> Any:
        """`min_rows` left open means as many as are to be chosen."""
        return options if options.min_rows is not None else options.model_copy(update={"min_rows": n})

    def prepare(self, work: Work) -> Scorer:
        """Embeds, and plans the transport."""
        embeddings, options = embedded(work), work.options
        pool, target = read_embeddings(embeddings.folder)
        usable = work.rows.usable & ~np.isnan(pool[:, 0])
        with work.run.stage("plan"):
            sigma = options.sigma
            if sigma is None:
                sigma = calibrated_sigma(pool, seed=work.settings.seed, usable=usable, backend=options.backend)
            plan = tsds(
                pool, target, alpha=options.alpha, c=options.c, sigma=sigma, k=options.max_k,
                kde_k=options.kde_k, least_rows=min(options.min_rows, int(usable.sum())), usable=usable,
                backend=options.backend,
            )  # fmt: skip
        positive = plan.p > 0
        work.note(f"TSDS: sigma {sigma:.3g}; {int(positive.sum()):,} rows have a probability")
        if plan.exhausted:
            work.note(f"TSDS: {plan.exhausted:,} target rows used up their {plan.neighbours:,} neighbours")
        scores = np.log(plan.p, out=np.full(len(plan.p), -np.inf), where=positive)
        scores[np.isnan(pool[:, 0])] = np.nan
        return self.look_up(work, embeddings, scores)
