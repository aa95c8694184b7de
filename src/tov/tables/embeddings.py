"""The score tables of methods that compare embeddings, of the model being tuned: RDS+ and TSDS share one part.

Embeddings are kept, in fp16 and of length 1: 2 bytes a number; cosines are off by about 1e-5. No rows x target matrix is made.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tov.baselines.embed import embed_rows
from tov.baselines.embeddings import nearest
from tov.baselines.rds import rds_scores
from tov.baselines.store import read_features, store_features
from tov.baselines.tsds import calibrated_sigma
from tov.baselines.tsds import tsds as tsds_plan
from tov.errors import RunError
from tov.files import atomic, read_json
from tov.methods.table import Best
from tov.progress import Progress
from tov.scan.stream import Shard, Stream, read_shard
from tov.stages import Opened
from tov.tables.work import Work, tokens_of

PART = "embed"
POOL, TARGET = "pool.npy", "target.npy"


def rds(work: Work) -> None:
    """RDS+: `score_rds`, the cosine to the nearest target row. Round robin goes by the embeddings themselves."""
    opened, folder = _embedded(work)
    _write(work, opened, "score_rds", rds_scores(*_read(folder)))


def tsds(work: Work) -> None:
    """TSDS: `score_tsds`, the logarithm of a row's probability, -inf for rows that have none."""
    opened, folder = _embedded(work)
    options, (pool, target) = work.options, _read(folder)
    usable = work.rows.usable
    with work.run.stage("plan"):
        sigma = options.sigma
        if sigma is None:
            sigma = calibrated_sigma(pool, seed=work.settings.seed, usable=usable, backend=options.backend)
        found = tsds_plan(
            pool, target, alpha=options.alpha, c=options.c, sigma=sigma, k=options.neighbours,
            kde_k=options.density_neighbours, least_rows=min(options.least_rows, int(usable.sum())), usable=usable,
            backend=options.backend,
        )  # fmt: skip
    held = found.p > 0
    work.note(f"TSDS: sigma {sigma:.3g}; {int(held.sum()):,} rows have a probability")
    if found.exhausted:
        work.note(f"TSDS: {found.exhausted:,} target rows used up their {found.neighbours:,} neighbours")
    scores = np.log(found.p, out=np.full(len(found.p), -np.inf), where=held)
    scores[~np.isfinite(pool[:, 0])] = np.nan
    _write(work, opened, "score_tsds", scores)


def candidates(folder: Path, scores: pa.Table) -> Best:
    """Each target row's nearest pool rows, for the rule round-robin.

    Raises:
        RunError: the embeddings are gone.
    """
    pool, target = _read(folder / read_json(folder / "manifest.json")["parts"][PART])

    def best(k: int, usable: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        found = nearest(target, pool, k, usable=usable)
        return list(found.row_ids), list(found.values)

    return best


def _embedded(work: Work) -> tuple[Opened, Path]:
    """The model, and the folder with the embeddings of pool and target; shards that a kill left are gone on with."""
    opened = work.open()
    batch_tokens, stream = work.batch_tokens(opened), work.stream(opened.encode, PART, opened)
    target, _ = work.encode_target(opened.encode)

    def make(folder: Path, progress: Progress) -> None:
        def embed(start: int, stop: int) -> torch.Tensor:
            shard = read_shard(stream, start, stop)
            work.spent(PART, (tokens_of(shard.encoded), 0))
            return torch.from_numpy(shard.spread(embed_rows(opened.adapted, shard.encoded, batch_tokens=batch_tokens)))

        shards = folder / "shards"
        made: dict[str, Any] = {"shard_rows": stream.shard_rows, "fingerprint": folder.name}
        store_features(shards, len(stream.pool), embed, progress=progress, **made)
        _save(folder / TARGET, embed_rows(opened.adapted, target, batch_tokens=batch_tokens).astype(np.float16))
        _gather(shards, stream, folder)
        work.spent(PART, (tokens_of(target), 0))

    key = [work.target[1].fingerprint, stream.shard_rows]
    return opened, work.part(PART, key, opened, make, rows=len(stream.pool))


def _gather(shards: Path, stream: Stream, folder: Path) -> None:
    """All shards as one file, which can be a memory map, in their place."""
    parts = read_features(shards, len(stream.pool), fingerprint=folder.name)
    with atomic(folder / POOL) as temporary:
        whole = None
        for start, part in parts:
            if whole is None:
                shape = (len(stream.pool), part.shape[1])
                whole = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
            whole[start : start + len(part)] = part.numpy()
        if whole is not None:
            whole.flush()
    shutil.rmtree(shards)


def _save(file: Path, values: np.ndarray) -> None:
    with atomic(file) as temporary, open(temporary, "wb") as opened:
        np.save(opened, values)


def _read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) memory map and (M, D), fp16 of length 1, NaN for rows without an embedding."""
    try:
        return np.load(folder / POOL, mmap_mode="r"), np.load(folder / TARGET).astype(np.float32)
    except (OSError, ValueError) as error:
        raise RunError(f"the embeddings in {folder} cannot be read: {error}", fix="score again, with --force") from None


def _write(work: Work, opened: Opened, name: str, scores: np.ndarray) -> None:
    """The score table from (N,) scores."""

    def score(shard: Shard) -> dict[str, np.ndarray]:
        return {name: scores[shard.row_ids]}

    work.fill(work.stream(opened.encode, work.target[1].fingerprint, opened), score, opened=opened)
