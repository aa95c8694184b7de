"""The score table of methods that read text: DSIR. No model is loaded, only its tokenizer, which tells lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tov.baselines.dsir import Ngrams, log_ratio, ngram_counts, row_weights, wordpunct
from tov.data.conversations import Conversation
from tov.data.labelled import Tagged
from tov.data.rows import Row
from tov.files import atomic
from tov.progress import Progress
from tov.scan.stream import Shard, read_rows, shards
from tov.stages import usable_rows
from tov.tables.ahead import Facts, Stage
from tov.tables.work import Work
from tov.text.encode import Encoder


def text_of(row: Row) -> str:
    """What a method that reads text is given: all turns of a conversation, a sentence's words, a text."""
    if isinstance(row, Conversation):
        return "\n".join(str(message["content"]) for message in row.messages)
    return " ".join(row.words) if isinstance(row, Tagged) else row.text


def dsir(work: Work) -> None:
    """DSIR's log importance weights, `score_dsir` in nats: target against the whole usable pool."""
    options, encode = work.options, work.encoder()
    ngrams = Ngrams(_tokenizer(options.tokens, encode), options.buckets, options.hashing)
    stream = work.stream(encode, work.target[1].fingerprint)

    def count(folder: Path, progress: Progress) -> None:
        counts = np.zeros(options.buckets, np.int64)
        for start, stop in shards(stream):
            counts += ngram_counts(_texts(read_rows(stream, start, stop).values()), ngrams=ngrams)
            progress.advance(stop - start)
        with atomic(folder / "counts.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, counts)

    key = {name: getattr(options, name) for name in ("tokens", "buckets", "hashing")}
    counts = np.load(work.part("count", key, None, count, rows=len(stream.pool)) / "counts.npy")
    target = ngram_counts(_texts(usable_rows(work.target[0].rows(0, len(work.target[0])))), ngrams=ngrams)
    ratio = log_ratio(target, counts)

    def score(shard: Shard) -> dict[str, np.ndarray]:
        found = row_weights(_texts(shard.rows), ratio, ngrams=ngrams, over=options.over, min_tokens=options.min_tokens)
        return {"score_dsir": found.log_weights}

    work.fill(stream, score)


def _texts(rows: Iterable[Row]) -> list[str]:
    return [text_of(row) for row in rows]


def _tokenizer(name: str, encode: Encoder) -> Callable[[str], Sequence[str]]:
    of: dict[str, Any] = {"wordpunct": wordpunct, "whitespace": str.split, "model": encode.tokenizer.tokenize}
    tokenize: Callable[[str], Sequence[str]] = of[name]
    return tokenize


def ahead(facts: Facts) -> list[Stage]:
    """Two readings of the pool's text; no token passes a model."""
    return [Stage("count", kept=8 * facts.options.buckets), Stage("scan", kept=facts.table(1))]
