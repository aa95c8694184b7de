"""Nearest rows by embedding, exact and in blocks. Knows matrices only: where embeddings come from is another room's matter.

A row whose embedding is zero or not finite has no direction; it is never anyone's neighbour.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tov.errors import ConfigError, DataError

Backend = Literal["numpy", "faiss"]

BLOCK_ROWS, BLOCK_QUERIES = 32_768, 256
"""Rows of either side in one product (32 MiB in fp32)."""


@dataclass(frozen=True)
class Neighbours:
    """The k nearest pool rows of each query, nearest first; ties by row_id.

    Attributes:
        row_ids: (Q, k) int64.
        values: (Q, k) float64, the cosines.
    """

    row_ids: np.ndarray
    values: np.ndarray


def normalised(embeddings: np.ndarray) -> np.ndarray:
    """(rows, H) each row over its Euclidean length; NaN for a row that is zero or not finite.

    Args:
        embeddings: (rows, H); fp16 is computed in fp32, other kinds stay as they are.
    """
    rows = _floats(embeddings)
    largest = np.abs(rows).max(1, keepdims=True, initial=0.0)
    sound = np.isfinite(largest) & (largest > 0)
    rows = np.divide(rows, largest, out=np.full_like(rows, np.nan), where=sound)
    return rows / np.sqrt(np.square(rows).sum(1, keepdims=True))


def nearest(
    queries: np.ndarray,
    pool: np.ndarray,
    k: int,
    *,
    usable: np.ndarray | None = None,
    backend: Backend = "numpy",
    block_rows: int = BLOCK_ROWS,
    block_queries: int = BLOCK_QUERIES,
) -> Neighbours:
    """The k pool rows of largest cosine `q.x / (|q| |x|)` for each query; exact.

    Memory: one product of `block_queries` x `block_rows` and Q x k results, never Q x N. A product is computed in the
    kind of number given: cosines in fp32 carry 1e-7.

    Args:
        queries: (Q, H).
        pool: (N, H); position i is row_id i. It may be a memory map: it is read block by block.
        k: neighbours a query.
        usable: (N,) bool, rows that may be neighbours; all if not given.
        backend: "faiss" searches an exact flat index (package faiss-cpu), which holds the usable rows in fp32; between
            rows of equal value at the k-th place its choice is its own.
        block_rows: pool rows in one product.
        block_queries: queries in one product.

    Raises:
        ConfigError: unknown backend, or faiss is not installed.
        DataError: k below 1, more neighbours than rows with an embedding, other widths, or a query without a direction.
    """
    if backend not in ("numpy", "faiss"):
        raise ConfigError(f"There is no backend {backend!r}.", allowed="numpy, faiss", fix="Name one of these.")
    if queries.shape[1] != pool.shape[1]:
        raise DataError(
            f"Target embeddings have {queries.shape[1]} numbers, but those of the pool have {pool.shape[1]}.",
            allowed="as many numbers in both",
            fix="Take both from one model and one layer.",
        )
    if not 1 <= k <= len(pool):
        raise _not_so_many(k, len(pool))
    prepared = normalised(queries).astype(np.result_type(_floats(queries[:0]), _floats(pool[:0])))
    if np.isnan(prepared).any():
        lost = np.flatnonzero(np.isnan(prepared).any(1))
        raise DataError(
            f"{len(lost):,} of {len(queries):,} target embeddings are zero or not finite, the first of row {lost[0]}.",
            fix="Leave these rows out of the target.",
        )
    search = _search_numpy if backend == "numpy" else _search_faiss
    usable = np.ones(len(pool), bool) if usable is None else usable
    rows, cosines = search(prepared, _pool_blocks(pool, usable, block_rows), k, block_queries)
    if (rows < 0).any():
        raise _not_so_many(k, len(pool))
    return Neighbours(rows, cosines.astype(np.float64))


def _not_so_many(k: int, rows: int) -> DataError:
    return DataError(
        f"{k:,} nearest rows are wanted, but the pool has {rows:,}, not all of them usable and with an embedding.",
        allowed="1 to the number of such rows",
        fix="Lower --n or the number of neighbours, or add rows to the pool.",
    )


def distance_of(cosine: np.ndarray) -> np.ndarray:
    """The Euclidean distance of two rows of length 1: `sqrt(2 - 2 cos)`, from 0 to 2."""
    return np.sqrt(np.maximum(2.0 - 2.0 * cosine, 0.0))


def best_cosine(
    pool: np.ndarray, target: np.ndarray, *, block_rows: int = BLOCK_ROWS, block_queries: int = BLOCK_QUERIES
) -> np.ndarray:
    """(N,) float64 largest cosine of each pool row to any target row; NaN for a pool row without a direction.

    Args:
        pool: (N, H); it may be a memory map.
        target: (M, H).
        block_rows: pool rows in one product.
        block_queries: target rows in one product.

    Raises:
        DataError: no target row, or one that is zero or not finite.
    """
    directions = normalised(target)
    if not len(directions) or np.isnan(directions).any():
        raise DataError(
            "The target has no embedding, or one that is zero or not finite.",
            fix="Give the target rows that have an embedding, and no others.",
        )
    best = np.full(len(pool), -np.inf)
    for start in range(0, len(pool), block_rows):
        block = normalised(pool[start : start + block_rows])
        for first in range(0, len(target), block_queries):
            part = best[start : start + block_rows]
            np.maximum(part, (block @ directions[first : first + block_queries].T).max(1), out=part)
    return best


def _floats(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows)
    return rows if rows.dtype in (np.float32, np.float64) else rows.astype(np.float32)


def _pool_blocks(pool: np.ndarray, usable: np.ndarray, block_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row ids and normalised embeddings of the rows that may be neighbours, ids rising."""
    for start in range(0, len(pool), block_rows):
        block = normalised(pool[start : start + block_rows])
        sound = usable[start : start + block_rows] & ~np.isnan(block[:, :1]).any(1)
        yield start + np.flatnonzero(sound), block[sound]


def _search_numpy(
    queries: np.ndarray, blocks: Iterator[tuple[np.ndarray, np.ndarray]], k: int, block_queries: int
) -> tuple[np.ndarray, np.ndarray]:
    """(Q, k) row ids, -1 where there are none, and cosines, largest first."""
    rows, cosines = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, queries.dtype)
    for row_ids, block in blocks:
        for start in range(0, len(queries), block_queries):
            part = slice(start, start + block_queries)
            keep_best(rows[part], cosines[part], row_ids, queries[part] @ block.T)
    return rows, cosines


def keep_best(rows: np.ndarray, keys: np.ndarray, new_rows: np.ndarray, new_keys: np.ndarray) -> None:
    """Merges new candidates into the k best so far, in place. A later row has a larger id and so loses every tie.

    Args:
        rows: (Q, k) row ids.
        keys: (Q, k) their values, largest first; -inf where there is none.
        new_rows: (rows,) ids, rising and larger than those before.
        new_keys: (Q, rows) values; one of -inf is never taken.
    """
    k = keys.shape[1]
    better = new_keys > keys[:, -1:]
    for query in np.flatnonzero(better.any(1)):
        places = np.flatnonzero(better[query])
        values = new_keys[query, places]
        if len(places) > k:
            places = places[values >= np.partition(values, -k)[-k]]
        both = np.concatenate([keys[query], new_keys[query, places]])
        order = np.argsort(-both, kind="stable")[:k]
        rows[query] = np.concatenate([rows[query], new_rows[places]])[order]
        keys[query] = both[order]


def _search_faiss(
    queries: np.ndarray, blocks: Iterator[tuple[np.ndarray, np.ndarray]], k: int, block_queries: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `_search_numpy`, by an exact flat index."""
    index = import_faiss().IndexFlatIP(queries.shape[1])
    row_ids = [np.empty(0, np.int64)]
    for block_ids, block in blocks:
        index.add(np.ascontiguousarray(block, np.float32))
        row_ids.append(block_ids)
    cosines, places = index.search(np.ascontiguousarray(queries, np.float32), k)
    rows = np.where(places < 0, -1, np.append(np.concatenate(row_ids), -1)[places])
    order = np.lexsort((rows, -cosines))
    return np.take_along_axis(rows, order, 1), np.take_along_axis(cosines, order, 1)


def import_faiss() -> Any:
    """The module faiss.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise ConfigError(
            "The backend 'faiss' needs the package faiss-cpu, which is not installed.",
            fix="Install it with pip install faiss-cpu, or use the backend 'numpy'.",
        ) from None
