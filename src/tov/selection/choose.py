"""Which n rows to take, given scores and lengths. Pure NumPy: knows no files, no models, no methods.

Rows without a score (NaN) are never taken by score; ties go to the smaller row_id; the result has exactly n distinct rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tov.config.choice import written
from tov.config.settings import EVERY_SOURCE
from tov.errors import ConfigError, DataError, did_you_mean
from tov.progress import counted
from tov.seeds import generator
from tov.selection.round_robin import round_robin_of

Best = Callable[[int, np.ndarray], tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]
"""(k, (N,) bool usable) -> for each target row (or sub-task) the row_ids and scores of its k best usable rows, best first."""
BY_SCORE, BY_CHANCE = "score", "random"
RULES = ("score+random", "score-only", "sample", "round-robin")
BLOCK_ROWS = 65_536
"""Rows that are looked at together where sources have caps."""


@dataclass(frozen=True)
class Choice:
    """The chosen rows.

    Attributes:
        row_ids: (n,) distinct; by score first (best first), then by chance in row order.
        reasons: (n,) "score" or "random".
        bin_edges: smallest and largest number of scored tokens in each length bin used.
        notes: what the reader of a report must be told.
        targets: (n,) the target that each row was chosen for, where there are several.
    """

    row_ids: np.ndarray
    reasons: np.ndarray
    bin_edges: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()
    targets: np.ndarray | None = None


@dataclass(frozen=True)
class Quotas:
    """How many rows, or tokens, each source may still give.

    Attributes:
        sources: (N,) the source of each row, by its place in `names`.
        names: of the sources.
        left: (S,) rows that may still be taken, or their tokens.
    """

    sources: np.ndarray
    names: tuple[str, ...]
    left: np.ndarray

    def copy(self) -> Quotas:
        """One that is used up by itself."""
        return replace(self, left=self.left.copy())

    def take(self, row_id: int) -> bool:
        """Whether the row's source has any left of its quota; if so, it has one less."""
        source = self.sources[row_id]
        if not self.left[source]:
            return False
        self.left[source] -= 1
        return True

    def of(self, row_ids: np.ndarray, lengths: np.ndarray | None = None) -> int:
        """How many of these rows, or of their tokens, may be taken together."""
        return int(np.minimum(self.left, self.sums(row_ids, lengths)).sum())

    def sums(self, row_ids: np.ndarray, lengths: np.ndarray | None = None) -> np.ndarray:
        """(S,) rows, or tokens where lengths are given, of each source among these."""
        weights = None if lengths is None else lengths[row_ids]
        return np.bincount(self.sources[row_ids], weights, minlength=len(self.names)).astype(np.int64)

    def check(self, n: int, usable: np.ndarray, lengths: np.ndarray | None = None) -> None:
        """Raises DataError if fewer than n rows may be taken; with (N,) lengths, if rows of fewer than n tokens."""
        usable_ids = np.flatnonzero(usable)
        most = self.of(usable_ids, lengths)
        if n > most:
            unit, flag = ("rows", "--n") if lengths is None else ("tokens", "--tokens")
            limits = [
                f"{name} {min(*pair):,} of {pair[0]:,}"
                for name, *pair in sorted(zip(self.names, self.sums(usable_ids, lengths), self.left, strict=True))
            ]
            raise DataError(
                f"--source-cap allows {most:,} {unit} ({', '.join(limits)}), but {flag} asks for {n:,}.",
                fix=f"Raise --source-cap, lower {flag}, or add sources to the pool.",
            )


def quotas_for(codes: np.ndarray, names: Sequence[str], caps: Mapping[str, float], n: int) -> Quotas | None:
    """Quotas for at most floor(cap n) rows (or tokens) of each source that has a cap; None without caps.

    Args:
        codes: (N,) the source of each row, by its place in `names`.
        names: of the sources, each with a row.
        caps: source (or `EVERY_SOURCE`) -> largest share of the chosen rows (or tokens).
        n: rows (or tokens) to choose.

    Raises:
        ConfigError: a cap for a source that is not there.
    """
    if not caps:
        return None
    for name in caps:
        if name != EVERY_SOURCE and name not in names:
            raise ConfigError(
                f"--source-cap {name}={caps[name]:g}: the pool has no source '{name}'{did_you_mean(name, names)}.",
                allowed=", ".join(sorted(names)),
                fix="Correct the name before '='.",
            )
    shares = [caps.get(name, caps.get(EVERY_SOURCE, 1.0)) for name in names]
    left = np.array([math.floor(written(share) * n) for share in shares], np.int64)  # as floats 0.57 * 100 is 56.99...
    return Quotas(codes, tuple(names), left)


def length_bins(tokens: np.ndarray, row_ids: np.ndarray, bins: int) -> list[np.ndarray]:
    """Splits rows into equal-capacity bins by scored tokens (ties by row_id); sizes differ by at most one, larger first.

    Returns positions into `tokens`, shortest rows in the first bin.
    """
    # NumPy sorts integers of up to 16 bits by radix, some five times as fast as wider ones.
    narrow = tokens.astype(np.min_scalar_type(int(tokens.max(initial=0))))
    return [part for part in np.array_split(np.lexsort((row_ids, narrow)), bins) if len(part)]


def top_by_bin(parts: Sequence[np.ndarray], scores: np.ndarray, row_ids: np.ndarray, n: int) -> np.ndarray:
    """(n,) positions of the best rows, best first, the same number from each length bin (to within one).

    Args:
        parts: from `length_bins`, at most n, so that no length is favoured.
        scores: (rows,) larger is better.
        row_ids: (rows,) ties go to the smaller one.
        n: rows to take.
    """
    taken = []
    for part, quota in zip(parts, _shares(n, len(parts)), strict=True):
        values = scores[part]
        near = part[values >= np.partition(values, -quota)[-quota]] if 0 < quota < len(part) else part
        taken.append(near[np.lexsort((row_ids[near], -scores[near]))[:quota]])
    chosen = np.concatenate(taken)
    return chosen[np.lexsort((row_ids[chosen], -scores[chosen]))]


def _shares(n: int, parts: int) -> list[int]:
    """How many of n rows each length bin gives: the same number, the first ones one more where n is no multiple."""
    quota, extra = divmod(n, parts)
    return [quota + (index < extra) for index in range(parts)]


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
    quotas: Quotas | None = None,
    best: Best | None = None,
) -> Choice:
    """Chooses n rows by a rule that any method's score can be given.

    - `score+random`: n/2 by score from outside U, n/2 uniformly from U (Algorithm 1; without a U, from the whole pool);
    - `score-only`: all n by score;
    - `sample`: n drawn one after another with probability proportional to exp(score) among those left (Gumbel top-k);
    - `round-robin`: each target row (or sub-task) in turn takes its best row that is still free (RDS+).

    Args:
        scores: (N,) larger is better, NaN for none; infinite ones (log 0) are never taken by score either.
        tokens: (N,) scored tokens a row.
        in_base: (N,) bool, the base set U; its rows were trained on, so they are not taken by score.
        usable: (N,) bool, rows that may be taken at all.
        n: rows to take; an odd one goes to the score.
        rule: one of those above.
        bins: length bins, for all rules but round-robin.
        seed: of the random half and of the draw.
        quotas: how many rows each source may give; no bound if not given.
        best: for round-robin, gives each target row's k best.

    Differs: where U holds fewer than n/2 usable rows, the rest of the random half is drawn uniformly from the other
    usable rows, and a note says so. Where sources are full, their share goes to the next best rows of the others.

    Raises:
        DataError: fewer rows than asked for.
        ConfigError: unknown rule.
    """
    check_rule(rule)
    usable_ids = np.flatnonzero(usable)
    if n > len(usable_ids):
        raise DataError(
            f"The pool has {counted(len(usable_ids), 'usable rows')} of {len(usable):,}, but --n asks for {n:,}.",
            fix="Lower --n, or add rows to the pool.",
        )
    if quotas:
        quotas.check(n, usable)
        quotas = quotas.copy()
    eligible = np.flatnonzero(usable & ~in_base & np.isfinite(scores))
    by_score, notes = n - n // 2 if rule == "score+random" else n, list[str]()
    able, based = quotas.of(eligible) if quotas else len(eligible), bool(in_base.any())
    if by_score > able:
        if rule != "score+random":
            raise DataError(
                f"{counted(able, 'usable rows')}{' outside the base set' * based} {'has' if able == 1 else 'have'} a score"
                f"{' and a place within the caps of the sources' * bool(quotas)}, but --n asks for {n:,} by score.",
                fix=f"Lower --n, {'lower --base-size, ' * based}{'raise --source-cap, ' * bool(quotas)}"
                "or use --rule score+random.",
            )
        have = f"{' outside the base set' * based} {'has' if able == 1 else 'have'} a score"
        notes.append(f"only {counted(able, 'rows')}{have}; the random part is larger")
        by_score = able
    chosen = np.empty(0, np.int64)
    edges: tuple[tuple[int, int], ...] = ()
    if by_score:
        keys = ranked_by(scores, rule, seed)
        lengths = tokens[eligible]
        parts = length_bins(lengths, eligible, min(bins, by_score))
        if rule == "round-robin":
            assert best
            chosen = _in_turn(best, eligible, len(scores), n, quotas)
        elif quotas:
            chosen = _top_within_quotas(parts, keys[eligible], eligible, by_score, quotas, notes)
        else:
            chosen = eligible[top_by_bin(parts, keys[eligible], eligible, by_score)]
        edges = tuple((int(lengths[part[0]]), int(lengths[part[-1]])) for part in parts)
        if by_score < bins:
            notes.append(fewer_bins(by_score, bins))
    lucky = _by_chance(n - by_score, chosen, in_base, usable, generator(seed, "random half"), notes, quotas)
    reasons = np.array([BY_SCORE] * len(chosen) + [BY_CHANCE] * len(lucky))
    return Choice(np.concatenate([chosen, lucky]), reasons, edges, tuple(notes))


def fewer_bins(rows: int, bins: int) -> str:
    """Says that so many rows by score do not fill the bins."""
    used = "bin is" if rows == 1 else "bins are"
    return f"{counted(rows, 'rows')} by score for {bins} length bins: only {rows} {used} used"


def check_rule(rule: str) -> None:
    """Raises ConfigError if there is no such rule."""
    if rule not in RULES:
        raise ConfigError(f"There is no rule {rule!r}.", allowed=", ".join(RULES), fix="Name one of these.")


def ranked_by(scores: np.ndarray, rule: str, seed: int) -> np.ndarray:
    """(N,) what a rule takes rows by, larger first: the score, or the score with the noise of the draw."""
    return scores + gumbel_noise(len(scores), seed) if rule == "sample" else scores


def gumbel_noise(rows: int, seed: int) -> np.ndarray:
    """(rows,) independent standard Gumbel noise, tied to the row_id: a row keeps its noise whichever others may be drawn.

    The n largest of `log w_i + G_i` are n distinct rows, drawn one after another with probability proportional to weight among
    those left, in the order of drawing; so the first k of them are the draw of k. Source: Vieira 2014; Kool, van Hoof and
    Welling 2019, arXiv 1903.06059; used by DSIR, arXiv 2302.03169.
    """
    return generator(seed, "gumbel top-k").gumbel(size=rows)


def _top_within_quotas(
    parts: Sequence[np.ndarray], scores: np.ndarray, row_ids: np.ndarray, n: int, quotas: Quotas, notes: list[str]
) -> np.ndarray:
    """(n,) row ids as by `top_by_bin`, but no more from a source than its quota.

    Rows are met best first; one whose bin has its number or whose source is full is passed over. Where full sources keep bins
    from their number, the best of the rows passed over make up for it.
    """
    bin_of = np.empty(len(scores), np.int32)
    for index, part in enumerate(parts):
        bin_of[part] = index
    order = np.lexsort((row_ids, -scores))
    places = _met(bin_of[order], _shares(n, len(parts)), row_ids[order], quotas)
    missing = n - len(places)
    if missing:
        notes.append(f"sources reached their cap: {missing:,} rows by score are from other length bins than their own")
        others = np.delete(np.arange(len(order)), places)
        more = _met(np.zeros(len(others), np.int32), [missing], row_ids[order[others]], quotas)
        places = np.sort(np.concatenate([places, others[more]]))
    return row_ids[order[places]]


def _met(groups: np.ndarray, shares: Sequence[int], row_ids: np.ndarray, quotas: Quotas) -> np.ndarray:
    """Places of the rows that are taken when rows are met in this order, while their group and their source have any left.

    Args:
        groups: (rows,) the group of each row.
        shares: rows that each group may give.
        row_ids: (rows,) which have sources.
        quotas: of the sources; has less afterwards.
    """
    left, taken = np.array(shares), list[int]()
    for start in range(0, len(row_ids), BLOCK_ROWS):
        if not left.any():
            break
        # What is full when a block begins stays full: its rows, most of all rows in the end, are passed over at once.
        block = slice(start, start + BLOCK_ROWS)
        may = (left[groups[block]] > 0) & (quotas.left[quotas.sources[row_ids[block]]] > 0)
        for place in (start + np.flatnonzero(may)).tolist():
            if left[groups[place]] and quotas.take(row_ids[place]):
                left[groups[place]] -= 1
                taken.append(place)
    return np.array(taken, np.int64)


def _in_turn(best: Best, eligible: np.ndarray, rows: int, n: int, quotas: Quotas | None) -> np.ndarray:
    """(n,) row ids by round robin. Of a source with a quota of c rows no target needs to know more than its c best."""
    if quotas is None:
        return round_robin_of(best(min(n, len(eligible)), among(eligible, rows))[0], n)
    sources = quotas.sources[eligible]
    groups = [(min(int(cap), n), eligible[sources == source]) for source, cap in enumerate(quotas.left)]
    lists = best_of(best, [(min(k, len(group)), group) for k, group in groups if k and len(group)], rows)
    return round_robin_of(lists, n, allow=quotas.take)


def best_of(best: Best, groups: Sequence[tuple[int, np.ndarray]], rows: int) -> list[np.ndarray]:
    """Of each target, the k best row ids of every group together, best first.

    Args:
        best: each target's k best.
        groups: of each its k, and its row ids.
        rows: of the pool.
    """
    parts = [best(k, among(row_ids, rows)) for k, row_ids in groups]
    lists = []
    for target in range(len(parts[0][0])):
        row_ids = np.concatenate([part[0][target] for part in parts])
        values = np.concatenate([part[1][target] for part in parts])
        lists.append(row_ids[np.lexsort((row_ids, -values))])
    return lists


def among(row_ids: np.ndarray, rows: int) -> np.ndarray:
    """(rows,) bool, whether a row is one of these."""
    among = np.zeros(rows, bool)
    among[row_ids] = True
    return among


def _by_chance(
    n: int, taken: np.ndarray, in_base: np.ndarray, usable: np.ndarray, random: np.random.Generator, notes: list[str],
    quotas: Quotas | None,
) -> np.ndarray:  # fmt: skip
    """(n,) rows drawn uniformly from the usable rows of U, then from the other usable rows."""
    free = usable.copy()
    free[taken] = False
    base, others = np.flatnonzero(free & in_base), np.flatnonzero(free & ~in_base)
    if quotas:
        base, others = random.permutation(base), random.permutation(others)
        base = base[_met(np.zeros(len(base), np.int32), [n], base, quotas)]
        others = others[_met(np.zeros(len(others), np.int32), [n - len(base)], others, quotas)]
    picked = random.choice(base, min(n, len(base)), replace=False)
    missing = n - len(picked)
    if missing:
        if in_base.any():
            notes.append(
                f"the base set gave {len(base):,} random rows; {missing:,} more were drawn from the rest of the pool"
            )
        picked = np.concatenate([picked, random.choice(others, missing, replace=False)])
    return np.sort(picked)
