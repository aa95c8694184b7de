"""What a seed fixes before any training: which rows are target, which are test, which are the pool. Knows no models.

Rows that share a prompt, or a value of the --group-by column, are never parted between target, test and pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tov.config import CompareConfig
from tov.data.guard import USABLE, exclusions
from tov.data.pool import Index, Pool, index_rows
from tov.data.sources import Input
from tov.errors import ConfigError, DataError, did_you_mean
from tov.seeds import generator
from tov.stages import Rows, open_rows, read_target

Read = tuple[Pool, Index]


@dataclass(frozen=True)
class Data:
    """All that was named, read once.

    Attributes:
        pool: rows to choose from, all of them.
        target: rows to draw the target (and the test) from.
        test: rows to test on; None: they are drawn from the target's.
    """

    pool: Read
    target: Read
    test: Read | None


@dataclass(frozen=True)
class Split:
    """One seed's rows.

    Attributes:
        rows: the pool, with what may not be chosen.
        target: the target.
        test: the test.
        notes: what was kept out.
    """

    rows: Rows
    target: Read
    test: Read
    notes: tuple[str, ...]


def read_data(config: CompareConfig, pools: Sequence[Input], targets: Sequence[Input], tests: Sequence[Input]) -> Data:
    """Reads target, pool and test; all are of the target's task.

    Raises:
        ConfigError: no test, or two; no column of the name that --group-by gives.
        DataError: a row cannot be used.
    """
    if bool(tests) == bool(config.test_rows):
        raise ConfigError(
            "two tests: --test and --test-rows" if tests else "no test",
            fix="name held-out rows with --test, or have some of the target's held out with --test-rows (one of the two)",
        )
    target = read_target(targets, config)
    config = config.model_copy(update={"task": target[0].task})
    test = read_target(tests, config, role="test") if tests else None
    for role, read in (("target", target), ("test", test)):
        if config.group_by and read:
            _check_column(config.group_by, read[0], role)
    pool = open_rows(pools, config)
    return Data((pool, index_rows(pool, bad_rows=config.bad_rows)), target, test)


def _check_column(group_by: str, pool: Pool, role: str) -> None:
    columns = {name for source in pool.sources for name in source.table.column_names}
    if group_by not in columns:
        raise ConfigError(
            f"--group-by {group_by}: the {role} has no such column{did_you_mean(group_by, columns)}",
            allowed=", ".join(sorted(columns)),
        )


def make_split(data: Data, config: CompareConfig, seed: int) -> Split:
    """Draws the seed's target, test and pool. Rows of the test are never in the target or the pool, leak guard or not.

    Raises:
        DataError: fewer rows than asked for.
    """
    target, test, notes = _draw_target(data, config, seed)
    pool, index = data.pool
    held = [test, target] if config.leak_guard else [test]
    free = ~_shares_group(data.pool, held, config.group_by)
    if not free.all():
        notes.append(f"{int((~free).sum()):,} pool rows share a --group-by value with target or test and were kept out")
    excluded = _excluded(index, target, test, config)
    kept = np.flatnonzero(free)
    if config.pool_rows:
        kept = _sample(pool, kept[excluded[kept] == USABLE], config.pool_rows, seed)
        counts = np.bincount(pool.source_index(kept), minlength=len(pool.sources))
        few = [
            f"{one.name} {rows:,}" for one, rows in zip(pool.sources, counts, strict=True) if rows < config.pool_rows
        ]
        notes += [f"sources with fewer rows than --pool-rows {config.pool_rows:,}: {', '.join(few)}"] if few else []
    pool, index = pool.subset(kept), index.subset(kept)
    return Split(Rows(pool, index, _excluded(index, target, test, config)), target, test, tuple(notes))


def _excluded(index: Index, target: Read, test: Read, config: CompareConfig) -> np.ndarray:
    return exclusions(index, target[1].prompt, leak_guard=config.leak_guard, test_prompts=test[1].prompt)


def _draw_target(data: Data, config: CompareConfig, seed: int) -> tuple[Read, Read, list[str]]:
    notes: list[str] = []
    pool, index = data.target
    kept = np.arange(len(pool))
    if data.test is not None:
        leaked = np.isin(index.prompt, data.test[1].prompt) | _shares_group(data.target, [data.test], config.group_by)
        if leaked.any():
            notes.append(f"{int(leaked.sum()):,} target rows share a prompt or group with the test and were left out")
        kept = kept[~leaked]
        if not len(kept):
            raise DataError(
                "every target row has a prompt of the test", fix="give the target and the test different rows"
            )
    if not config.test_rows and not config.target_rows:
        assert data.test is not None
        return _subset(data.target, kept), data.test, notes
    units = _units(pool, index, config.group_by, kept)
    units = [units[place] for place in generator(seed, "split").permutation(len(units))]
    test_ids, units = _take(units, config.test_rows or 0, "--test-rows", len(kept))
    target_ids, _ = _take(units, config.target_rows or sum(map(len, units)), "--target-rows", len(kept))
    test = data.test or _subset(data.target, test_ids)
    return _subset(data.target, target_ids), test, notes


def _take(units: list[list[int]], wanted: int, flag: str, total: int) -> tuple[np.ndarray, list[list[int]]]:
    """So many rows from whole units, and the units left; the last unit's rows over the number go to nobody."""
    taken: list[int] = []
    used = 0
    while used < len(units) and len(taken) < wanted:
        taken += units[used]
        used += 1
    if len(taken) < wanted or (wanted == 0 and flag == "--target-rows"):
        raise DataError(
            f"{flag}: the target's {total:,} rows are too few",
            fix="lower --test-rows or --target-rows, or add target rows",
        )
    return np.sort(np.array(taken[:wanted], np.int64)), units[used:]


def _units(pool: Pool, index: Index, group_by: str | None, kept: np.ndarray) -> list[list[int]]:
    """Rows that may not be parted, in order of their first: linked by prompts or --group-by values, directly or not."""
    groups, root = pool.cells(group_by), dict[object, object]()

    def find(key: object) -> object:
        while root.setdefault(key, key) != key:
            root[key] = root[root[key]]
            key = root[key]
        return key

    for row_id in kept.tolist():
        if groups[row_id] is not None:
            root[find(("group", groups[row_id]))] = find(("prompt", int(index.prompt[row_id])))
    found = dict[object, list[int]]()
    for row_id in kept.tolist():
        found.setdefault(find(("prompt", int(index.prompt[row_id]))), []).append(row_id)
    return list(found.values())


def _shares_group(read: Read, others: Sequence[Read], group_by: str | None) -> np.ndarray:
    """(rows,) bool, whether a row has a --group-by value of the others."""
    held = {group for other in others for group in other[0].cells(group_by)} - {None}
    return np.array([group in held for group in read[0].cells(group_by)], bool)


def _sample(pool: Pool, kept: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """At most so many of the kept rows of each source, in row order."""
    of = pool.source_index(kept)
    parts = [
        generator(seed, "pool", source.name).permutation(kept[of == place])[:rows]
        for place, source in enumerate(pool.sources)
    ]
    return np.sort(np.concatenate(parts))


def _subset(read: Read, row_ids: np.ndarray) -> Read:
    return read[0].subset(row_ids), read[1].subset(row_ids)
