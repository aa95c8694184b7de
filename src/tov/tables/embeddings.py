"""The score tables of methods that compare embeddings: RDS+ and TSDS share one part. Embeddings are hidden states of the model
being tuned, or those of a sentence encoder on the rows' text.

Embeddings are kept, in fp16 and of length 1: 2 bytes a number; cosines are off by about 1e-5. No rows x target matrix is made.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from tov.baselines.embed import embed_rows
from tov.baselines.embeddings import import_faiss, nearest
from tov.baselines.rds import rds_scores
from tov.baselines.sentences import import_sentence_transformers, open_sentence_encoder
from tov.baselines.store import read_features, store_features
from tov.baselines.tsds import calibrated_sigma
from tov.baselines.tsds import tsds as tsds_plan
from tov.errors import RunError
from tov.files import atomic, read_json
from tov.methods.table import Best
from tov.progress import Progress
from tov.scan.stream import Shard, Stream, read_shard
from tov.stages import Opened
from tov.tables.ahead import Facts, Stage
from tov.tables.text import text_of
from tov.tables.work import Work, tokens_of
from tov.text.encode import Encoded, Encoder

PART = "embed"
POOL, TARGET = "pool.npy", "target.npy"


def rds(work: Work) -> None:
    """RDS+: `score_rds`, the cosine to the nearest target row. Round robin goes by the embeddings themselves."""
    source, folder = _embedded(work)
    _write(work, source, "score_rds", rds_scores(*_read(folder)))


def tsds(work: Work) -> None:
    """TSDS: `score_tsds`, the logarithm of a row's probability, -inf for rows that have none."""
    source, folder = _embedded(work)
    options, (pool, target) = work.options, _read(folder)
    usable = work.rows.usable & ~np.isnan(pool[:, 0])
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
    scores[np.isnan(pool[:, 0])] = np.nan
    _write(work, source, "score_tsds", scores)


def check(options: Any, settings: Any, target: Any) -> None:
    """Before anything is done.

    Raises:
        ConfigError: a package that the options ask for is not installed.
    """
    if options.encoder:
        import_sentence_transformers()
    if getattr(options, "backend", None) == "faiss":
        import_faiss()


def candidates(folder: Path, scores: pa.Table) -> Best:
    """Each target row's nearest pool rows, for the rule round-robin.

    Raises:
        RunError: the embeddings are gone.
    """
    made = read_json(folder / "manifest.json")
    pool, target = _read(folder / made["parts"][PART])
    backend = made["method"]["options"].get("backend", "numpy")

    def best(k: int, usable: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        found = nearest(target, pool, k, usable=usable, backend=backend)
        return list(found.row_ids), list(found.values)

    return best


def _embedded(work: Work) -> tuple[Source, Path]:
    """What embedded the rows, and the folder of the embeddings of pool and target; shards that a kill left are gone on with."""
    source = _of_encoder(work) if work.options.encoder else _of_model(work)
    stream = work.stream(source.encode, [PART, source.key], source.opened)
    target, kept = work.encode_target(source.encode)

    def make(folder: Path, progress: Progress) -> None:
        def embed(start: int, stop: int) -> torch.Tensor:
            shard = read_shard(stream, start, stop)
            return torch.from_numpy(shard.spread(source.embed(shard.rows, shard.encoded)))

        shards = folder / "shards"
        made: dict[str, Any] = {"shard_rows": stream.shard_rows, "fingerprint": folder.name}
        store_features(shards, len(stream.pool), embed, progress=progress, **made)
        rows = list(work.target[0].rows(0, len(work.target[0])))
        _save(folder / TARGET, source.embed([rows[row] for row in kept], target).astype(np.float16))
        _gather(shards, stream, folder)

    key = [work.target[1].fingerprint, stream.shard_rows, source.key]
    return source, work.part(PART, key, source.opened, make, rows=len(stream.pool))


@dataclass(frozen=True)
class Source:
    """Where embeddings come from.

    Attributes:
        opened: the model being tuned, if they are its hidden states.
        encode: rows to tokens of the model being tuned: which rows may be chosen, and how long they are.
        embed: rows, and the same rows as tokens, to (rows, D) of length 1; NaN for a row without an embedding.
        key: of the encoder, if they are not the model's.
    """

    opened: Opened | None
    encode: Encoder
    embed: Callable[[list[Any], Encoded], np.ndarray]
    key: str | None = None


def _of_model(work: Work) -> Source:
    opened = work.open()
    batch_tokens = work.batch_tokens(opened)

    def embed(rows: list[Any], encoded: Encoded) -> np.ndarray:
        work.spent(PART, (tokens_of(encoded), 0))
        return embed_rows(opened.adapted, encoded, batch_tokens=batch_tokens)

    return Source(opened, opened.encode, embed)


def _of_encoder(work: Work) -> Source:
    """Tokens that pass the encoder are not noted: they are not the model's. Its seconds are."""
    encoder = open_sentence_encoder(work.options.encoder, device=work.settings.device)

    def embed(rows: list[Any], encoded: Encoded) -> np.ndarray:
        found = encoder.embed([text_of(row) for row in rows])
        found[encoded.scored_counts == 0] = np.nan  # they cannot be chosen, so nothing may fall to them
        return found

    return Source(None, work.encoder(), embed, encoder.fingerprint)


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


def _write(work: Work, source: Source, name: str, scores: np.ndarray) -> None:
    """The score table from (N,) scores."""

    def score(shard: Shard) -> dict[str, np.ndarray]:
        return {name: scores[shard.row_ids]}

    key = [work.target[1].fingerprint, source.key]
    work.fill(work.stream(source.encode, key, source.opened), score, opened=source.opened)


def ahead(facts: Facts) -> list[Stage]:
    """One pass over pool and target; a sentence encoder's tokens are not the model's, and its width is not known."""
    if facts.options.encoder:
        return [Stage(PART, kept=None), Stage("scan", kept=facts.table(1))]
    kept = 2 * facts.width * (facts.rows + facts.target_rows)
    return [Stage(PART, facts.tokens + facts.target_tokens, 0, kept), Stage("scan", kept=facts.table(1))]
