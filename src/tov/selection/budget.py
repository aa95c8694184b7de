"""Which rows to take for a budget of tokens, by the same rules as for a number of rows. Pure NumPy, as `tov.selection.choose`.

Rows are taken in the order of the rule until the next one does not fit into what is left; no shorter row is looked for further
down, so that being short brings no row forward. Where all rows have one length, this is the choice of so many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tov.errors import DataError
from tov.seeds import generator
from tov.selection.choose import (
    BY_CHANCE,
    BY_SCORE,
    Best,
    Choice,
    Quotas,
    among,
    best_of,
    check_rule,
    fewer_bins,
    length_bins,
    ranked_by,
)
from tov.selection.round_robin import in_turn


@dataclass
class Purse:
    """What is left of a budget, and the rows that may still be taken for it.

    Attributes:
        left: tokens.
        lengths: (N,) tokens of each row.
        free: (N,) bool, rows that may be taken.
        quotas: tokens that each source may still give; no bound if None.
    """

    left: int
    lengths: np.ndarray
    free: np.ndarray
    quotas: Quotas | None = None

    def take(self, lists: Sequence[np.ndarray], until: int = 0) -> np.ndarray:
        """Row ids in the order of taking: the lists in turn, until so many tokens are left or the next row does not fit.

        A source is full from its first row on that does not fit into its quota.
        """
        rows, taken = in_turn(lists, self.free, self._has_quota), list[int]()
        while self.left > until:
            row = next(rows, None)
            if row is None or self.lengths[row] > self.left:
                break
            self.left -= int(self.lengths[row])
            if self.quotas:
                self.quotas.left[self.quotas.sources[row]] -= self.lengths[row]
            taken.append(row)
        self.free[taken] = False
        return np.array(taken, np.int64)

    def _has_quota(self, row: int) -> bool:
        if self.quotas is None or self.lengths[row] > self.left:  # then nothing more is taken
            return True
        source = self.quotas.sources[row]
        if self.lengths[row] <= self.quotas.left[source]:
            return True
        self.quotas.left[source] = 0
        self.free[self.quotas.sources == source] = False
        return False

    def copy(self) -> Purse:
        """One that is spent by itself."""
        return Purse(self.left, self.lengths, self.free.copy(), self.quotas and self.quotas.copy())


def choose_tokens(
    *,
    scores: np.ndarray,
    tokens: np.ndarray,
    lengths: np.ndarray,
    in_base: np.ndarray,
    usable: np.ndarray,
    n: int,
    rule: str,
    bins: int,
    seed: int,
    quotas: Quotas | None = None,
    best: Best | None = None,
) -> Choice:
    """Chooses rows of at most n tokens together, by the rules of `tov.selection.choose.choose`.

    - `score+random`: by score until half of the budget is spent, the rest at random;
    - `score-only`, `sample`: in the order of the score, or of the draw;
    - `round-robin`: each target row in turn takes its best row that is still free.
    Length bins take turns, the shortest rows' first, so that each gives the same number of rows (to within one).

    Args:
        scores, tokens, in_base, usable, rule, bins, seed, best: as of `choose`.
        lengths: (N,) tokens of each row that are paid for.
        n: tokens to spend; fewer are left over than the row has that came next, or that of a full source.
        quotas: how many tokens each source may give.

    Differs: from a choice of rows, where sources are full: bins still take turns, while a choice of rows meets all bins' rows
    best first. Without quotas its random rows are others, drawn as uniformly.

    Raises:
        DataError: the rows that may be taken have fewer than n tokens.
        ConfigError: unknown rule.
    """
    check_rule(rule)
    usable_ids = np.flatnonzero(usable)
    whole = int(lengths[usable_ids].sum())
    if rule == "score+random":  # the other rules tell below of fewer: of those that they may take
        _check_enough("The usable rows have", whole, n, "Lower --tokens, or add rows to the pool.")
    if quotas:
        quotas.check(n, usable, lengths)
        quotas = quotas.copy()
    eligible = np.flatnonzero(usable & ~in_base & np.isfinite(scores))
    able = quotas.of(eligible, lengths) if quotas else int(lengths[eligible].sum())
    based, notes = bool(in_base.any()), list[str]()
    wanted = (n + 1) // 2 if rule == "score+random" else n
    if able < wanted:
        of_base = " outside the base set" * based
        if rule != "score+random":
            _check_enough(
                f"The usable rows{of_base} that have a score{' and are within the caps of their sources' * bool(quotas)} have",
                able, n, f"Lower --tokens, {'lower --base-size, ' * based}{'raise --source-cap, ' * bool(quotas)}"
                f"or {'use --rule score+random' if n <= whole else 'add rows to the pool'}.",
            )  # fmt: skip
        notes.append(f"only {able:,} tokens are of rows{of_base} with a score; the random part is larger")
        wanted = able
    purse, keys = Purse(n, lengths, among(eligible, len(usable)), quotas), ranked_by(scores, rule, seed)
    parts = _bins(tokens, lengths, eligible, wanted, bins, notes)
    edges = tuple((int(tokens[part[0]]), int(tokens[part[-1]])) for part in parts)
    if rule == "round-robin":
        assert best
        chosen = _turns(best, purse, eligible)
    else:
        chosen = purse.take(_best_first(parts, keys), until=n - wanted)
        chosen = chosen[np.lexsort((chosen, -keys[chosen]))]
    lucky = np.empty(0, np.int64)
    if rule == "score+random":
        lucky = _by_chance(purse, chosen, in_base, usable, generator(seed, "random half"), notes)
    reasons = np.array([BY_SCORE] * len(chosen) + [BY_CHANCE] * len(lucky))
    return Choice(np.concatenate([chosen, lucky]), reasons, edges, tuple(notes))


def _check_enough(whose: str, there: int, n: int, fix: str) -> None:
    if there < n:
        raise DataError(f"{whose} {there:,} tokens, but --tokens asks for {n:,}.", fix=fix)


def _bins(
    tokens: np.ndarray, lengths: np.ndarray, eligible: np.ndarray, wanted: int, bins: int, notes: list[str]
) -> list[np.ndarray]:
    """The row ids of each length bin; no more bins than rows of mean length reach the tokens wanted."""
    if not len(eligible):
        return []
    rows = max(1, -(-wanted * len(eligible) // int(lengths[eligible].sum())))
    if rows < bins:
        notes.append(f"about {fewer_bins(rows, bins)}")
    return [eligible[part] for part in length_bins(tokens[eligible], eligible, min(bins, rows))]


def _best_first(parts: Sequence[np.ndarray], keys: np.ndarray) -> list[np.ndarray]:
    """The row ids of each part, the largest key first, ties by row id."""
    parts = [np.sort(part) for part in parts]
    return [part[np.argsort(-keys[part], kind="stable")] for part in parts]


def _turns(best: Best, purse: Purse, eligible: np.ndarray) -> np.ndarray:
    """Row ids by round robin.

    With k best rows of each source for each target, what is taken is exact while fewer than k are taken of each source.
    """
    groups = [eligible]
    if purse.quotas:
        sources = purse.quotas.sources[eligible]
        groups = [eligible[sources == source] for source in np.unique(sources)]
    k = 1 + 5 * purse.left * len(eligible) // (4 * max(1, int(purse.lengths[eligible].sum())))
    while True:
        if purse.quotas:
            lists = best_of(best, [(min(k, len(group)), group) for group in groups], len(purse.free))
        else:
            lists = [np.asarray(row_ids) for row_ids in best(min(k, len(eligible)), purse.free)[0]]
        taken = purse.copy().take(lists)
        if all(k >= len(group) or k > np.isin(taken, group).sum() for group in groups):
            return taken
        k *= 2


def _by_chance(
    purse: Purse, chosen: np.ndarray, in_base: np.ndarray, usable: np.ndarray, random: np.random.Generator,
    notes: list[str],
) -> np.ndarray:  # fmt: skip
    """Row ids drawn uniformly from the usable rows of U, then from the other usable rows, for what is left."""
    purse.free = usable.copy()
    purse.free[chosen] = False
    base, others = (random.permutation(np.flatnonzero(purse.free & part)) for part in (in_base, ~in_base))
    lucky = purse.take([np.concatenate([base, others])])
    more = int((~in_base[lucky]).sum())
    if more and in_base.any():
        notes.append(
            f"the base set gave {len(lucky) - more:,} random rows; {more:,} more were drawn from the rest of the pool"
        )
    return np.sort(lucky)
