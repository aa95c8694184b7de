"""Embeddings of pool and target as an artifact that RDS+ and TSDS share: hidden states of the model being tuned, or those of a
sentence encoder on the rows' text.

Kept in fp16 and of length 1: 2 bytes a number; cosines are off by about 1e-5. No rows x target matrix is made.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from tov.config.settings import Settings
from tov.errors import RunError
from tov.files import atomic
from tov.methods.base import Method, PoolStats, Scorer, Stage
from tov.methods.shared.neighbours import import_faiss, nearest
from tov.methods.shared.options import option
from tov.selection.choose import Best

if TYPE_CHECKING:
    from tov.engine.models import Models, ModelSpec, Opened
    from tov.inputs.read import Indexed
    from tov.methods.work import Work
    from tov.progress import Progress
    from tov.scores.shard import Shard
    from tov.scores.store import ShardStore
    from tov.scores.table import Columns
    from tov.text.encode import Encoded

EMBED = "embed"
"""The artifact, and the stage."""
POOL, TARGET = "pool.npy", "target.npy"


class EmbeddingOptions(Settings):
    """Options of RDS+, and of TSDS too."""

    encoder: str | None = option(
        "sentence encoder that embeds the rows' text (a sentence-transformers model: folder, Hub id or minilm), as the last "
        "option; default: the hidden states of the fine-tuned model", None, min_length=1,
    )  # fmt: skip


@dataclass(frozen=True)
class EmbedTask:
    """(rows, D) fp32 of length 1 of a shard's rows; NaN for a row without an embedding.

    Attributes:
        model: whose hidden states; None under an encoder.
        batch_tokens: most tokens in a batch.
        encoder: a sentence encoder; None for the model.
        device: of the encoder.
    """

    model: ModelSpec | None
    batch_tokens: int = 0
    encoder: str | None = None
    device: str = "auto"

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], np.ndarray]]:
        """As of `tov.engine.base.ShardTask.open`."""
        embed = self.embedder(models)
        yield lambda shard: embed(shard.rows, shard.encoded)

    def embedder(self, models: Models) -> Callable[[list[Any], Encoded], np.ndarray]:
        """The function from rows, and the same rows as tokens, to their embeddings."""
        if self.encoder is None:
            from tov.methods.shared.embeddings import embed_rows

            assert self.model
            opened = models.open(self.model)
            return lambda _, encoded: embed_rows(opened.adapted, encoded, batch_tokens=self.batch_tokens)
        from tov.methods.shared.sentences import open_sentence_encoder

        encoder = open_sentence_encoder(self.encoder, device=self.device)

        def embed(rows: list[Any], encoded: Encoded) -> np.ndarray:
            vectors = encoder.embed([row.text for row in rows])
            vectors[encoded.scored_counts == 0] = np.nan  # they cannot be chosen, so nothing may fall to them
            return vectors

        return embed


@dataclass(frozen=True)
class Embedded:
    """Embeddings of a pool and a target.

    Attributes:
        folder: of the artifact.
        opened: the model that made them; None for an encoder.
        key: the encoder's fingerprint; None for the model.
    """

    folder: Path
    opened: Opened | None
    key: str | None


def embedded(work: Work) -> Embedded:
    """Embeds pool and target, or finds them; shards that a kill left are gone on with."""
    options = work.options
    opened = None if options.encoder else work.open()
    encode = opened.encode if opened else work.encoder()
    task, key = EmbedTask(None, encoder=options.encoder, device=work.settings.device), None
    if opened:
        task = EmbedTask(opened.spec, work.batch_tokens(opened))
    else:
        from tov.methods.shared.sentences import open_sentence_encoder

        key = open_sentence_encoder(options.encoder, device=work.settings.device).fingerprint
    target, row_ids = work.encode_target(encode)
    rows, reader = len(work.scored.pool), work.reader(encode)

    depends = [work.settings.shard_rows, key]

    def make(folder: Path, progress: Progress) -> None:
        other, all_rows = work.like_of_others(EMBED, depends, opened), work.target.rows
        if other:
            _link(other / POOL, folder / POOL)  # another target of this run has had the pool embedded
            progress.advance(rows)
        else:
            shards = folder / "shards"
            # Tokens that pass an encoder are not the model's; its seconds are noted.
            passes = (1, 0) if opened else (0, 0)
            store = work.store_features(shards, encode, task, progress, stage=EMBED, passes=passes)
            _gather(store, [start for start, _ in reader.bounds()], rows, folder)
            shutil.rmtree(shards)
        _save(
            folder / TARGET, task.embedder(work.models)([all_rows[row] for row in row_ids], target).astype(np.float16)
        )
        if opened:
            work.spend(EMBED, int(target.lengths[target.scored_counts > 0].sum()))

    folder = work.artifact(EMBED, [work.target.index.fingerprint, *depends], opened, make, rows=rows)
    return Embedded(folder, opened, key)


def _gather(store: ShardStore, starts: list[int], rows: int, folder: Path) -> None:
    """All shards as one file, which can be a memory map, in their place."""
    from tov.scores.store import features_of

    with atomic(folder / POOL) as temporary:
        whole = None
        for start in starts:
            part = features_of(store.read(start))
            if whole is None:
                whole = np.lib.format.open_memmap(temporary, "w+", np.float16, (rows, part.shape[1]))
            whole[start : start + len(part)] = part
        if whole is not None:
            whole.flush()


def _link(made: Path, file: Path) -> None:
    """One file under a second name, or its copy where the file system has no such thing."""
    with atomic(file) as temporary:
        try:
            os.link(made, temporary)
        except OSError:
            shutil.copyfile(made, temporary)


def _save(file: Path, values: np.ndarray) -> None:
    with atomic(file) as temporary, open(temporary, "wb") as opened:
        np.save(opened, values)


def read_embeddings(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) memory map and (M, D), fp16 of length 1, NaN for rows without an embedding.

    Raises:
        RunError: they are gone or broken.
    """
    try:
        return np.load(folder / POOL, mmap_mode="r"), np.load(folder / TARGET).astype(np.float32)
    except (OSError, ValueError) as error:
        raise RunError(
            f"The embeddings in {folder} cannot be read: {error}", fix="Score again, with --force."
        ) from None


@dataclass(frozen=True, kw_only=True)
class LookUp(Scorer):
    """Scores that are there already, one a pool row.

    Attributes:
        column: of the score table.
        scores: (N,) by row_id.
    """

    column: str
    scores: np.ndarray = field(compare=False)

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], Columns]]:
        """As of `Scorer.open`."""
        yield lambda shard: {self.column: self.scores[shard.row_ids]}


class EmbeddingMethod(Method):
    """A method that compares embeddings."""

    needs = "embeddings"
    uses: ClassVar[frozenset[str]] = frozenset({"clusters"})
    passes = "1, forward"
    stored = "2 bytes x the model's width (SmolLM2-135M: 1,152)"
    round_robin = True

    def check(self, options: Any, settings: Any, target: Indexed) -> None:
        """Raises ConfigError if a package that the options ask for is not installed."""
        if options.encoder:
            from tov.methods.shared.sentences import import_sentence_transformers

            import_sentence_transformers()
        if getattr(options, "backend", None) == "faiss":
            import_faiss()

    def look_up(self, work: Work, embeddings: Embedded, scores: np.ndarray) -> Scorer:
        """The scorer of (N,) scores."""
        return LookUp(
            model=embeddings.opened.spec if embeddings.opened else None, key=embeddings.key,
            column=self.column, scores=scores,
            about=work.about(embeddings.opened),
        )  # fmt: skip

    def by_target(self, scores: pa.Table, artifacts: Mapping[str, Path], options: Mapping[str, Any]) -> Best:
        """Each target row's nearest pool rows. Raises RunError if the embeddings are gone."""
        pool, target = read_embeddings(artifacts[EMBED])
        backend = options.get("backend", "numpy")

        def best(k: int, usable: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
            neighbours = nearest(target, pool, k, usable=usable, backend=backend)
            return list(neighbours.row_ids), list(neighbours.values)

        return best

    def shared(self, stats: PoolStats) -> list[Stage]:
        """The pool is embedded once."""
        spared = Stage(EMBED, kept=0)
        if not stats.options.encoder:
            spared = Stage(EMBED, stats.tokens, 0, 2 * stats.width * stats.rows)
        return [spared, *super().shared(stats)]

    def cost(self, stats: PoolStats) -> list[Stage]:
        """One pass over pool and target; a sentence encoder's tokens are not the model's, and its width is not known."""
        if stats.options.encoder:
            return [Stage(EMBED, kept=None), Stage("scan", kept=stats.table(1))]
        stored = 2 * stats.width * (stats.rows + stats.target_rows)
        return [Stage(EMBED, stats.tokens + stats.target_tokens, 0, stored), Stage("scan", kept=stats.table(1))]
