"""Which n rows to take, given scores and lengths. Pure NumPy: knows no files, no models, no methods.

Rows without a score (NaN) are never taken by score; ties go to the smaller row_id; the result has exactly n distinct rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tov.baselines.round_robin import round_robin_of
from tov.baselines.sampling import gumbel_noise
from tov.errors import ConfigError, DataError, did_you_mean
from tov.methods.table import Best
from tov.seeds import generator
from tov.settings import EVERY_SOURCE

BY_SCORE, BY_CHANCE = "score", "random"
RULES = ("score+random", "score-only", "sample", "round-robin")


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


@dataclass(frozen=True)
class Room:
    """How many rows each source may still give.

    Attributes:
        sources: (N,) the source of each row, by its place in `names`.
        names: of the sources.
        left: (S,) rows that may still be taken.
    """

    sources: np.ndarray
    names: tuple[str, ...]
    left: np.ndarray

    def copy(self) -> Room:
        """One that is used up by itself."""
        return replace(self, left=self.left.copy())

    def take(self, row_id: int) -> bool:
        """Whether the row's source still has room; if so, it has one less."""
        source = self.sources[row_id]
        if not self.left[source]:
            return False
        self.left[source] -= 1
        return True

    def of(self, row_ids: np.ndarray) -> int:
        """How many of these rows may be taken together."""
        return int(np.minimum(self.left, np.bincount(self.sources[row_ids], minlength=len(self.names))).sum())

    def check(self, n: int, usable: np.ndarray) -> None:
        """Raises DataError if fewer than n rows may be taken."""
        most = self.of(np.flatnonzero(usable))
        if n > most:
            counts = np.bincount(self.sources[usable], minlength=len(self.names))
            given = [
                f"{name} {min(*pair):,} of {pair[0]:,}"
                for name, *pair in zip(self.names, counts, self.left, strict=True)
            ]
            raise DataError(
                f"n = {n:,} rows wanted, but --source-cap allows {most:,}: {', '.join(given)}",
                fix="raise --source-cap, lower --n, or add sources to the pool",
            )


def room_for(sources: Sequence[str], caps: Mapping[str, float], n: int) -> Room | None:
    """Room for at most floor(cap n) rows of each source that has a cap; None without caps.

    Args:
        sources: (N,) the source of each row.
        caps: source (or `EVERY_SOURCE`) -> largest share of the chosen rows.
        n: rows to choose.

    Raises:
        ConfigError: a cap for a source that is not there.
    """
    if not caps:
        return None
    names, codes = np.unique(np.array(sources, dtype=object).astype(str), return_inverse=True)
    for name in caps:
        if name != EVERY_SOURCE and name not in names:
            raise ConfigError(
                f"--source-cap {name}={caps[name]:g}: the pool has no source '{name}'{did_you_mean(name, names)}",
                allowed=", ".join(names),
            )
    shares = [caps.get(str(name), caps.get(EVERY_SOURCE, 1.0)) for name in names]
    left = np.array([math.floor(share * n + 1e-9) for share in shares], np.int64)  # 0.3 * 10 is 2.9999...
    return Room(codes, tuple(map(str, names)), left)


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
    room: Room | None = None,
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
        room: how many rows each source may give; no bound if not given.
        best: for round-robin, gives each target row's k best.

    Differs: where U holds fewer than n/2 usable rows, the rest of the random half is drawn uniformly from the other
    usable rows, and a note says so. Where sources are full, their share goes to the next best rows of the others.

    Raises:
        DataError: fewer rows than asked for.
        ConfigError: unknown rule.
    """
    if rule not in RULES:
        raise ConfigError(f"rule {rule!r}", allowed=", ".join(RULES))
    usable_ids = np.flatnonzero(usable)
    if n > len(usable_ids):
        raise DataError(
            f"n = {n:,} rows wanted, but the pool has {len(usable_ids):,} usable rows of {len(usable):,}",
            fix="lower --n or add rows to the pool",
        )
    if room:
        room.check(n, usable)
        room = room.copy()
    eligible = np.flatnonzero(usable & ~in_base & np.isfinite(scores))
    by_score, notes = n - n // 2 if rule == "score+random" else n, list[str]()
    able, based = room.of(eligible) if room else len(eligible), bool(in_base.any())
    if by_score > able:
        if rule != "score+random":
            raise DataError(
                f"n = {n:,} rows wanted by score, but {able:,} usable rows{' outside the base set' * based} have one"
                + (" that the sources' caps allow" if room else ""),
                fix=f"lower --n, {'lower --base-size, ' * based}{'raise --source-cap, ' * bool(room)}"
                "or use --rule score+random",
            )
        notes.append(f"only {able:,} rows{' outside the base set' * based} have a score; the random part is larger")
        by_score = able
    chosen = np.empty(0, np.int64)
    edges: tuple[tuple[int, int], ...] = ()
    if by_score:
        keys = scores + gumbel_noise(len(scores), seed) if rule == "sample" else scores
        kept = keys[eligible], tokens[eligible], eligible
        if rule == "round-robin":
            assert best
            chosen = _in_turn(best, eligible, len(scores), n, room)
        elif room:
            chosen = _top_with_room(*kept, by_score, bins, room, notes)
        else:
            chosen = eligible[top_by_bin(*kept, by_score, bins)]
        edges = tuple(
            (int(tokens[eligible[part]].min()), int(tokens[eligible[part]].max()))
            for part in length_bins(tokens[eligible], eligible, min(bins, by_score))
        )
        if by_score < bins:
            notes.append(f"{by_score:,} rows by score are fewer than {bins} length bins; {by_score} bins are used")
    lucky = _by_chance(n - by_score, chosen, in_base, usable, generator(seed, "random half"), notes, room)
    reasons = np.array([BY_SCORE] * len(chosen) + [BY_CHANCE] * len(lucky))
    return Choice(np.concatenate([chosen, lucky]), reasons, edges, tuple(notes))


def _top_with_room(
    scores: np.ndarray, tokens: np.ndarray, row_ids: np.ndarray, n: int, bins: int, room: Room, notes: list[str]
) -> np.ndarray:
    """(n,) row ids as by `top_by_bin`, but no more from a source than it has room for.

    Rows are met best first; one whose bin has its number or whose source is full is passed over. Where full sources keep bins
    from their number, the best of the rows passed over for their bin make up for it.
    """
    parts = length_bins(tokens, row_ids, min(bins, n))
    quota, extra = divmod(n, len(parts))
    left, bin_of = [quota + (index < extra) for index in range(len(parts))], np.empty(len(tokens), np.int64)
    for index, part in enumerate(parts):
        bin_of[part] = index
    taken, waiting = list[int](), list[int]()
    for place in np.lexsort((row_ids, -scores)).tolist():
        if len(taken) == n:
            break
        if not left[bin_of[place]]:
            waiting.append(place)
        elif room.take(int(row_ids[place])):
            left[bin_of[place]] -= 1
            taken.append(place)
    missing = n - len(taken)
    if missing:
        notes.append(f"sources reached their cap: {missing:,} rows by score are from other length bins than their own")
        taken += itertools.islice((place for place in waiting if room.take(int(row_ids[place]))), missing)
    chosen = np.array(taken, np.int64)
    return row_ids[chosen[np.lexsort((row_ids[chosen], -scores[chosen]))]]


def _in_turn(best: Best, eligible: np.ndarray, rows: int, n: int, room: Room | None) -> np.ndarray:
    """(n,) row ids by round robin. Of a source with room for c rows no target needs to know more than its c best."""
    among = np.zeros(rows, bool)
    among[eligible] = True
    if room is None:
        return round_robin_of(best(min(n, len(eligible)), among)[0], n)
    parts = []
    for source, cap in enumerate(room.left):
        mine = among & (room.sources == source)
        if cap and mine.any():
            parts.append(best(min(int(cap), n, int(mine.sum())), mine))
    lists = []
    for target in range(len(parts[0][0])):
        row_ids = np.concatenate([part[0][target] for part in parts])
        values = np.concatenate([part[1][target] for part in parts])
        lists.append(row_ids[np.lexsort((row_ids, -values))])
    return round_robin_of(lists, n, allow=room.take)


def _by_chance(
    n: int, taken: np.ndarray, in_base: np.ndarray, usable: np.ndarray, random: np.random.Generator, notes: list[str],
    room: Room | None,
) -> np.ndarray:  # fmt: skip
    """(n,) rows drawn uniformly from the usable rows of U, then from the other usable rows."""
    free = usable.copy()
    free[taken] = False
    base, others = np.flatnonzero(free & in_base), np.flatnonzero(free & ~in_base)
    if room:
        base = np.fromiter(itertools.islice((row for row in random.permutation(base) if room.take(row)), n), np.int64)
        more = (row for row in random.permutation(others) if room.take(row))
        others = np.fromiter(itertools.islice(more, n - len(base)), np.int64)
    picked = random.choice(base, min(n, len(base)), replace=False)
    missing = n - len(picked)
    if missing:
        if in_base.any():
            notes.append(
                f"the base set gave {len(base):,} random rows; {missing:,} more were drawn from the rest of the pool"
            )
        picked = np.concatenate([picked, random.choice(others, missing, replace=False)])
    return np.sort(picked)
