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
from tov.errors import ConfigError, DataError
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
    """Reads pool, target and test.

    Raises:
        ConfigError: no test, or two.
        DataError: a row cannot be used.
    """
    if bool(tests) == bool(config.test_rows):
        raise ConfigError(
            "two tests: --test and --test-rows" if tests else "no test",
            fix="name held-out rows with --test, or have some of the target's held out with --test-rows (one of the two)",
        )
    target = read_target(targets, config)
    pool = open_rows(pools, config)
    return Data(
        (pool, index_rows(pool, bad_rows=config.bad_rows)),
        target,
        read_target(tests, config, role="test") if tests else None,
    )


def make_split(data: Data, config: CompareConfig, seed: int) -> Split:
    """Draws the seed's target, test and pool.

    Raises:
        DataError: fewer rows than asked for.
    """
    target, test, notes = _draw_target(data, config, seed)
    pool, index = data.pool
    held_prompts = np.concatenate([target[1].prompt, test[1].prompt])
    held_groups = {group for read in (target, test) for group in _groups(read[0], config.group_by) if group is not None}
    free = np.array([group not in held_groups for group in _groups(pool, config.group_by)])
    if config.leak_guard and not free.all():
        notes.append(f"{int((~free).sum()):,} pool rows share a --group-by value with target or test and were kept out")
    kept = np.flatnonzero(free) if config.leak_guard else np.arange(len(pool))
    if config.pool_rows:
        usable = exclusions(index, held_prompts, leak_guard=config.leak_guard)[kept] == USABLE
        kept = _sample(pool, kept[usable], config.pool_rows, seed)
    pool, index = pool.subset(kept), index.subset(kept)
    excluded = exclusions(index, target[1].prompt, leak_guard=config.leak_guard, test_prompts=test[1].prompt)
    return Split(Rows(pool, index, excluded), target, test, tuple(notes))


def _draw_target(data: Data, config: CompareConfig, seed: int) -> tuple[Read, Read, list[str]]:
    notes: list[str] = []
    pool, index = data.target
    kept = np.arange(len(pool))
    if data.test is not None and config.leak_guard:
        leaked = np.isin(index.prompt, data.test[1].prompt)
        if leaked.any():
            notes.append(f"{int(leaked.sum()):,} target rows have a prompt of the test and were left out")
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
    """Rows that may not be parted, in order of their first: those of one --group-by value, else of one prompt."""
    groups, found = _groups(pool, group_by), dict[object, list[int]]()
    for row_id in kept.tolist():
        key = groups[row_id] if groups[row_id] is not None else int(index.prompt[row_id])
        found.setdefault(key, []).append(row_id)
    return list(found.values())


def _groups(pool: Pool, group_by: str | None) -> list[str | None]:
    """Each row's value in the --group-by column; None in a source without it."""
    values: list[str | None] = []
    for source in pool.sources:
        has = group_by is not None and group_by in source.table.column_names
        values += [str(value) for value in source.table[group_by]] if has else [None] * len(source.table)
    return values


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
