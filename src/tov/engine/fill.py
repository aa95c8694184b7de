"""Filling a shard store by an engine: what is there is left alone, what is missing is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import pyarrow as pa

from tov.engine.base import Engine, ShardTask
from tov.progress import Progress
from tov.scores.shard import Shard, ShardReader
from tov.scores.store import ShardStore

T = TypeVar("T")


def fill(
    store: ShardStore, reader: ShardReader, task: ShardTask[T], table_of: Callable[[Shard, T], pa.Table], engine: Engine, *,
    progress: Progress, passed: Callable[[Shard], int] = lambda shard: 0,
    given_up: Callable[[Shard, str], pa.Table] | None = None,
) -> None:  # fmt: skip
    """Makes every shard of a store that is not there yet.

    Killed at any moment and called again, it goes on with the shards that are missing and ends with the same files.

    Args:
        store: where shards are kept.
        reader: of the pool.
        task: what is computed on a shard's rows.
        table_of: a shard and what was computed, to the table of all its rows.
        engine: computes it.
        progress: told of rows and tokens.
        passed: called once a shard is computed; gives the tokens that went through the model for it.
        given_up: a shard that failed on several workers, and why, to the table that stands for it; without it that is an
            error.

    Raises:
        RunError: a shard was made from something else, or is broken.
        StorageError: the disk is full.
        TovError: as the task says.
    """

    def missing() -> Iterator[Shard]:
        for start, stop in reader.bounds():
            if store.has(start):
                progress.advance(stop - start, found=True)
            else:
                yield reader.read(start, stop)

    def done(shard: Shard, computed: T) -> None:
        tokens = passed(shard)  # noted before the shard is written: a kill between the two forgets no token
        store.write(shard.start, table_of(shard, computed))
        progress.advance(shard.stop - shard.start, tokens)

    def give_up(shard: Shard, why: str) -> None:
        assert given_up
        store.write(shard.start, given_up(shard, why))
        progress.advance(shard.stop - shard.start)

    engine.map(task, missing(), done, progress, give_up if given_up else None)
