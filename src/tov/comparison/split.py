"""What a seed fixes before any training: which rows are target, which are test, which are the pool. Knows no models.

Rows that share a prompt, or a value of the --group-by column, are never parted between target, test and pool. Near duplicates
of a test row are neither target nor pool, unless they are to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from scipy.cluster.hierarchy import DisjointSet  # type: ignore[import-untyped]

from tov.config.records import CompareConfig
from tov.config.settings import EVERY_SOURCE
from tov.data.decontamination import NEAR_TEST, USABLE, exclusions
from tov.data.near import Near, question_text
from tov.data.pool import Index, Pool, index_rows
from tov.data.sources import Input
from tov.errors import ConfigError, DataError, did_you_mean
from tov.inputs.read import Indexed, PoolRows, open_rows, read_target, subset_of
from tov.seeds import generator
from tov.selection.choose import quotas_for

IsNear: TypeAlias = Callable[[Pool, np.ndarray], np.ndarray]
"""From a pool and (n,) row ids to (n,) bool, whether each row is to be kept from the test as a near duplicate."""


@dataclass(frozen=True)
class Data:
    """All that was named, read once.

    Attributes:
        pool: rows to choose from, all of them.
        target: rows to draw the target (and the test) from.
        test: rows to test on; None: they are drawn from the target's.
        near: which rows are near duplicates of that test; None without one.
    """

    pool: Indexed
    target: Indexed
    test: Indexed | None
    near: IsNear | None = None

    @cached_property
    def near_pool(self) -> np.ndarray:
        """(N,) bool, which rows of the pool are near duplicates of the test that all seeds share."""
        assert self.near
        return self.near(self.pool.pool, np.arange(len(self.pool)))


@dataclass(frozen=True)
class Split:
    """One seed's rows.

    Attributes:
        rows: the pool, with what may not be chosen.
        target: the target.
        test: the test.
        notes: what was kept out.
    """

    rows: PoolRows
    target: Indexed
    test: Indexed
    notes: tuple[str, ...]


def read_data(config: CompareConfig, pools: Sequence[Input], targets: Sequence[Input], tests: Sequence[Input]) -> Data:
    """Reads target, pool and test; all are of the target's task.

    Raises:
        ConfigError: no test, or two; no column of the name that --group-by gives.
        DataError: a row cannot be used.
    """
    if bool(tests) == bool(config.test_rows):
        raise ConfigError(
            "Two tests were named: --test and --test-rows." if tests else "No test was named.",
            allowed="one of --test and --test-rows",
            fix="Name held-out rows with --test, or have some of the target's held out with --test-rows.",
        )
    target = read_target(targets, config)
    config = config.model_copy(update={"task": target.task})
    test = read_target(tests, config, role="test") if tests else None
    for role, read in (("target", target), ("test", test)):
        if config.group_by and read:
            check_column(config.group_by, read.pool, role)
    pool = open_rows(pools, config)
    near = near_test(test, config) if test else None
    return Data(Indexed(pool, index_rows(pool, on_bad_row=config.on_bad_row)), target, test, near)


def check_column(group_by: str, pool: Pool, role: str) -> None:
    """Raises ConfigError if no source has the column."""
    columns = {name for source in pool.sources for name in source.table.columns}
    if group_by not in columns:
        raise ConfigError(
            f"--group-by {group_by}: the {role} has no such column{did_you_mean(group_by, columns)}.",
            allowed=", ".join(sorted(columns)),
            fix="Correct the name after --group-by.",
        )


def make_split(data: Data, config: CompareConfig, seed: int) -> Split:
    """Draws the seed's target, test and pool. Rows of the test are never in the target or the pool, decontamination or not.

    Raises:
        DataError: fewer rows than asked for.
    """
    target, test, is_near, notes = _draw_target(data, config, seed)
    pool, index = data.pool.pool, data.pool.index
    apart = [test, target] if config.decontaminate else [test]
    free = ~_shares_group(data.pool, apart, config.group_by)
    if not free.all():
        notes.append(f"{int((~free).sum()):,} pool rows share a --group-by value with target or test and were kept out")
    row_ids = np.flatnonzero(free)
    if config.pool_rows:
        row_ids = row_ids[_excluded(index, target, test, config)[row_ids] == USABLE]
        row_ids, near = _sample(pool, row_ids, is_near, config.pool_rows, seed)
        counts = np.bincount(pool.source_index(row_ids), minlength=len(pool.sources))
        few = [
            f"{one.name} {rows:,}" for one, rows in zip(pool.sources, counts, strict=True) if rows < config.pool_rows
        ]
        notes += [f"sources with fewer rows than --pool-rows {config.pool_rows:,}: {', '.join(few)}"] if few else []
    pool, index = pool.subset(row_ids), index.subset(row_ids)
    excluded = _excluded(index, target, test, config)
    if not config.pool_rows:
        usable = np.flatnonzero(excluded == USABLE)
        excluded[usable[data.near_pool[row_ids][usable] if data.near else is_near(pool, usable)]] = NEAR_TEST
        near = int((excluded == NEAR_TEST).sum())
    if near:
        notes.append(f"{near:,} pool rows are near duplicates of a test row and were kept out")
    return Split(PoolRows(pool, index, excluded), target, test, tuple(notes))


def near_test(test: Indexed, config: CompareConfig) -> IsNear:
    """Of a seed's test; under --near-duplicates keep no row is."""
    if config.near_duplicates == "keep":
        return lambda _, row_ids: np.zeros(len(row_ids), bool)
    near = Near([question_text(row) for row in test.pool.rows(0, len(test))])
    return lambda pool, row_ids: near.of(map(question_text, pool.each(row_ids))) >= 0


def like_test(read: Indexed, test: Indexed, config: CompareConfig) -> Callable[[np.ndarray], np.ndarray]:
    """From (n,) row ids to (n,) bool, whether each row has a prompt or --group-by value of the test, or is nearly one of it."""
    apart, is_near = np.isin(read.index.prompt, test.index.prompt), near_test(test, config)
    apart |= _shares_group(read, [test], config.group_by)
    return lambda row_ids: apart[row_ids] | is_near(read.pool, row_ids)


def _excluded(index: Index, target: Indexed, test: Indexed, config: CompareConfig) -> np.ndarray:
    return exclusions(index, target.index.prompt, decontaminate=config.decontaminate, test_prompts=test.index.prompt)


def _draw_target(data: Data, config: CompareConfig, seed: int) -> tuple[Indexed, Indexed, IsNear, list[str]]:
    """Target, test, what is near the test, and notes."""
    notes: list[str] = []
    pool, index = data.target.pool, data.target.index
    row_ids = np.arange(len(pool))

    def far(row_ids: np.ndarray, is_near: IsNear) -> np.ndarray:
        near = is_near(pool, row_ids)
        if near.any():
            notes.append(f"{int(near.sum()):,} target rows are near duplicates of a test row and were left out")
        return row_ids[~near]

    if data.test is not None:
        assert data.near
        leaked = np.isin(index.prompt, data.test.index.prompt) | _shares_group(
            data.target, [data.test], config.group_by
        )
        if leaked.any():
            notes.append(f"{int(leaked.sum()):,} target rows share a prompt or group with the test and were left out")
        row_ids = far(row_ids[~leaked], data.near)
        if not len(row_ids):
            raise DataError(
                "Every target row has a prompt that is in the test, or nearly.",
                fix="Give the target and the test different rows.",
            )
    if not config.test_rows and not config.target_rows:
        assert data.test is not None
        assert data.near
        return subset_of(data.target, row_ids), data.test, data.near, notes
    units = _units(pool, index, config.group_by, row_ids)
    units = [units[place] for place in generator(seed, "split").permutation(len(units))]
    test_ids, units = _take(units, config.test_rows or 0, "--test-rows", len(row_ids))
    test = data.test or subset_of(data.target, test_ids)
    is_near = data.near or near_test(test, config)
    if data.test is None:
        left = set(far(np.array([row_id for unit in units for row_id in unit], np.int64), is_near).tolist())
        units = [kept for unit in units if (kept := [row_id for row_id in unit if row_id in left])]
    target_ids, _ = _take(units, config.target_rows or sum(map(len, units)), "--target-rows", len(row_ids))
    return subset_of(data.target, target_ids), test, is_near, notes


def _take(units: list[list[int]], wanted: int, flag: str, total: int) -> tuple[np.ndarray, list[list[int]]]:
    """So many rows from whole units, and the units left; the last unit's rows over the number go to nobody."""
    taken: list[int] = []
    used = 0
    while used < len(units) and len(taken) < wanted:
        taken += units[used]
        used += 1
    if len(taken) < wanted or (wanted == 0 and flag == "--target-rows"):
        raise DataError(
            f"The target's {total:,} rows are too few for {flag}.",
            fix="Lower --test-rows or --target-rows, or add target rows.",
        )
    return np.sort(np.array(taken[:wanted], np.int64)), units[used:]


def _units(pool: Pool, index: Index, group_by: str | None, row_ids: np.ndarray) -> list[list[int]]:
    """Rows that may not be parted, in order of their first: linked by prompts or --group-by values, directly or not."""
    groups, linked = pool.cells(group_by), DisjointSet()
    for row_id in row_ids.tolist():
        prompt, group = ("prompt", int(index.prompt[row_id])), ("group", groups[row_id])
        linked.add(prompt)
        if groups[row_id] is not None:
            linked.add(group)
            linked.merge(prompt, group)
    units = dict[object, list[int]]()
    for row_id in row_ids.tolist():
        units.setdefault(linked["prompt", int(index.prompt[row_id])], []).append(row_id)
    return list(units.values())


def folds_of(target: Indexed, group_by: str | None, folds: int, seed: int) -> list[np.ndarray]:
    """The row_ids of each fold of a target: every row is in one, folds are as even as prompts and groups let them be.

    Fewer folds, at least two, where there are fewer rows that may be parted.

    Raises:
        DataError: no two rows may be parted.
    """
    units = _units(target.pool, target.index, group_by, np.arange(len(target)))
    if len(units) < 2:
        raise DataError(
            f"The target's {len(target):,} rows have one prompt or --group-by value, so none can be held out.",
            fix="Add other rows to the target, or name a method in place of auto.",
        )
    parts: list[list[int]] = [[] for _ in range(min(folds, len(units)))]
    for place in generator(seed, "folds").permutation(len(units)).tolist():
        min(parts, key=len).extend(units[place])
    return [np.sort(np.array(part, np.int64)) for part in parts]


def _shares_group(read: Indexed, others: Sequence[Indexed], group_by: str | None) -> np.ndarray:
    """(rows,) bool, whether a row has a --group-by value of the others."""
    values = {group for other in others for group in other.pool.cells(group_by)} - {None}
    return np.array([group in values for group in read.pool.cells(group_by)], bool)


def _sample(
    pool: Pool, row_ids: np.ndarray, is_near: IsNear, rows: int, seed: int
) -> tuple[np.ndarray, int]:  # fmt: skip
    """At most so many of the kept rows of each source, in row order, and how many near duplicates gave way to others.

    The order drawn is that of all kept rows, so that a near duplicate changes no more of the sample than its own place.
    """
    of, parts, near = pool.source_index(row_ids), [np.empty(0, np.int64)], 0
    for place, source in enumerate(pool.sources):
        order = generator(seed, "pool", source.name).permutation(row_ids[of == place])
        wanted = rows
        while wanted and len(order):
            block, order = order[:wanted], order[wanted:]
            kept = block[~is_near(pool, block)]
            parts.append(kept)
            wanted, near = wanted - len(kept), near + len(block) - len(kept)
    return np.sort(np.concatenate(parts)), near


def caps_within(rows: PoolRows, caps: Mapping[str, float], n: int) -> dict[str, float]:
    """Of the caps of sources, those that a choice of n of these rows can keep.

    A part of a pool may have no row of a small source. Where the caps together leave fewer than n rows of it, there are none.
    """
    row_ids, sources = np.arange(len(rows)), rows.pool.sources
    there = {EVERY_SOURCE, *(source.name for source in sources if len(source.table))}
    own = {name: cap for name, cap in caps.items() if name in there}
    quotas = quotas_for(rows.pool.source_index(row_ids), [source.name for source in sources], own, n)
    return own if quotas is None or quotas.of(row_ids) >= n else {}
