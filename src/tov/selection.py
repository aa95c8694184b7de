"""Which n rows to take, given scores and lengths. Pure NumPy: knows no files, no models, no methods.

Rows without a score (NaN) are never taken by score; ties go to the smaller row_id; the result has exactly n distinct rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tov.errors import ConfigError, DataError
from tov.seeds import generator

BY_SCORE, BY_CHANCE = "score", "random"


@dataclass(frozen=True)
class Choice:
    """The chosen rows.

    Attributes:
        row_ids: (n,) distinct; by score first (best first), then by chance in row order.
        reasons: (n,) "score" or "random".
        bin_edges: smallest and largest number of scored tokens in each length bin used.
        notes: what the reader of a report must be told.
    """

    row_ids: np.ndarray
    reasons: np.ndarray
    bin_edges: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()


def length_bins(tokens: np.ndarray, row_ids: np.ndarray, bins: int) -> list[np.ndarray]:
    """Splits rows into equal-capacity bins by scored tokens (ties by row_id); sizes differ by at most one, larger first.

    Returns positions into `tokens`, shortest rows in the first bin.
    """
    return [part for part in np.array_split(np.lexsort((row_ids, tokens)), bins) if len(part)]


def top_by_bin(scores: np.ndarray, tokens: np.ndarray, row_ids: np.ndarray, n: int, bins: int) -> np.ndarray:
    """(n,) positions of the best rows, the same number from each length bin (to within one).

    Fewer rows than bins are taken from as many bins, so that no length is favoured.
    """
    parts = length_bins(tokens, row_ids, min(bins, n))
    quota, extra = divmod(n, len(parts))
    taken = []
    for index, part in enumerate(parts):
        best = part[np.lexsort((row_ids[part], -scores[part]))]
        taken.append(best[: quota + (index < extra)])
    chosen = np.concatenate(taken)
    return chosen[np.lexsort((row_ids[chosen], -scores[chosen]))]


def choose(
    *,
    scores: np.ndarray,
    tokens: np.ndarray,
    in_base: np.ndarray,
    usable: np.ndarray,
    n: int,
    rule: str,
    bins: int,
    seed: int,
) -> Choice:
    """Chooses n rows (Algorithm 1: n/2 by score from outside U, n/2 uniformly from U; or all n by score).

    Args:
        scores: (N,) larger is better, NaN for none.
        tokens: (N,) scored tokens a row.
        in_base: (N,) bool, the base set U; its rows were trained on, so they are not taken by score.
        usable: (N,) bool, rows that may be taken at all.
        n: rows to take; an odd one goes to the score.
        rule: "score+random" or "score-only".
        bins: length bins.
        seed: of the random half.

    Differs: where U holds fewer than n/2 usable rows, the rest of the random half is drawn uniformly from the other
    usable rows, and a note says so.

    Raises:
        DataError: fewer rows than asked for.
        ConfigError: unknown rule.
    """
    if rule not in ("score+random", "score-only"):
        raise ConfigError(f"rule {rule!r}", allowed="score+random, score-only")
    usable_ids = np.flatnonzero(usable)
    if n > len(usable_ids):
        raise DataError(
            f"n = {n:,} rows wanted, but the pool has {len(usable_ids):,} usable rows of {len(usable):,}",
            fix="lower --n or add rows to the pool",
        )
    eligible = np.flatnonzero(usable & ~in_base & np.isfinite(scores))
    by_score = n if rule == "score-only" else n - n // 2
    notes = []
    if by_score > len(eligible):
        if rule == "score-only":
            raise DataError(
                f"n = {n:,} rows wanted by score, but {len(eligible):,} usable rows outside the base set have one",
                fix="lower --n, lower --base-size, or use --rule score+random",
            )
        notes.append(f"only {len(eligible):,} rows outside the base set have a score; the random part is larger")
        by_score = len(eligible)
    chosen = np.empty(0, np.int64)
    edges: tuple[tuple[int, int], ...] = ()
    if by_score:
        kept = scores[eligible], tokens[eligible], eligible
        chosen = eligible[top_by_bin(*kept, by_score, bins)]
        edges = tuple(
            (int(tokens[eligible[part]].min()), int(tokens[eligible[part]].max()))
            for part in length_bins(tokens[eligible], eligible, min(bins, by_score))
        )
        if by_score < bins:
            notes.append(f"{by_score:,} rows by score are fewer than {bins} length bins; {by_score} bins are used")
    lucky = _by_chance(n - by_score, chosen, in_base, usable, generator(seed, "random half"), notes)
    reasons = np.array([BY_SCORE] * len(chosen) + [BY_CHANCE] * len(lucky))
    return Choice(np.concatenate([chosen, lucky]), reasons, edges, tuple(notes))


def _by_chance(
    n: int, taken: np.ndarray, in_base: np.ndarray, usable: np.ndarray, random: np.random.Generator, notes: list[str]
) -> np.ndarray:
    """(n,) rows drawn uniformly from the usable rows of U, then from the other usable rows."""
    free = usable.copy()
    free[taken] = False
    base, others = np.flatnonzero(free & in_base), np.flatnonzero(free & ~in_base)
    picked = random.choice(base, min(n, len(base)), replace=False)
    missing = n - len(picked)
    if missing:
        if len(base):
            notes.append(
                f"the base set gave {len(base):,} random rows; {missing:,} more were drawn from the rest of the pool"
            )
        picked = np.concatenate([picked, random.choice(others, missing, replace=False)])
    return np.sort(picked)
