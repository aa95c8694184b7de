"""DSIR: rows weighed by how much likelier their words and word pairs are in the target than in the pool.

A row's log importance weight is `sum_g count_g(x) [log(p_g + 1e-8) - log(q_g + 1e-8)]`, p and q the shares of bucket g among
the hashed unigrams and bigrams of the target and of the whole pool: `ngram_counts` of both, `log_ratio` of the two counts,
`row_weights` of the pool. The pool is read twice; memory is a block of rows' features, and 16 bytes a pool row. The n rows are
drawn by the rule `sample`, with the noise of `tov.selection.choose.gumbel_noise`.

Knows text and counts; no files, no models.

Source: Xie, Santurkar, Ma and Liang 2023, "Data Selection for Language Models via Importance Resampling", arXiv 2302.03169;
facts of hashing from their package `data-selection` 1.0.3.
Differs: no row is dropped for its length by default (theirs: under 100 tokens); short rows keep their place with NaN; q is
counted on the whole pool (theirs: up to 100,000 n-grams a bucket); bigrams are hashed all at once by default
(`Ngrams(hashing="sha256")` has theirs); one target (theirs: several, with proportions).
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tov.config.settings import Settings
from tov.errors import ConfigError, DataError
from tov.files import atomic
from tov.methods.base import Method, PoolStats, Scorer, Stage
from tov.methods.shared.options import option

if TYPE_CHECKING:
    from tov.engine.models import Models, ModelSpec
    from tov.methods.work import Work
    from tov.progress import Progress
    from tov.scores.shard import Shard
    from tov.scores.table import Columns
    from tov.text.encode import Encoder

Tokenize = Callable[[str], Sequence[str]]

SMOOTHING = 1e-8
"""Added to the share of each bucket before its logarithm."""

BLOCK_ROWS = 1000
"""Rows whose features are held at once; it changes no result."""

_WORD_OR_MARKS = re.compile(r"\w+|[^\w\s]+")


def wordpunct(text: str) -> list[str]:
    """Lower-cased words and runs of punctuation, as the authors have them (`WordPunctTokenizer` of nltk on lower case)."""
    return _WORD_OR_MARKS.findall(text.lower())


@dataclass(frozen=True)
class Ngrams:
    """How text becomes features: its unigrams and bigrams, each in one of a number of buckets.

    Attributes:
        tokenize: a text's tokens; it sees the text as it is.
        buckets: the authors' 10,000.
        hashing: "sha256" puts an n-gram where the authors do, at SHA-256 of its tokens joined by a space modulo `buckets`,
            computed once for each distinct n-gram of a block. "mixed" does so for unigrams only and mixes the 64-bit
            hashes of two tokens for a bigram, all pairs at once: other collisions, same law.
    """

    tokenize: Tokenize = wordpunct
    buckets: int = 10_000
    hashing: Literal["mixed", "sha256"] = "mixed"

    def __post_init__(self) -> None:
        if self.buckets < 1:
            raise ConfigError(f"There are {self.buckets} buckets.", allowed="1 or more", fix="Raise buckets.")
        if self.hashing not in ("mixed", "sha256"):
            raise ConfigError(
                f"There is no hashing {self.hashing!r}.", allowed="mixed, sha256", fix="Name one of these."
            )


@dataclass(frozen=True)
class _Block:
    """Features of some rows, rows one after another.

    Attributes:
        grams: (T_total, 2) each token's bucket, and the bucket of it and the next; `buckets` where the row ends.
        offsets: (rows + 1,) where each row starts.
    """

    grams: np.ndarray
    offsets: np.ndarray


class _Vocabulary(dict[str, int]):
    """Token -> its number, in order of first sight."""

    def __missing__(self, token: str) -> int:
        self[token] = number = len(self)
        return number


def _digests(ngrams: Iterable[str]) -> list[bytes]:
    return [hashlib.sha256(ngram.encode("utf-8", "surrogatepass")).digest() for ngram in ngrams]


def _in_buckets(digests: list[bytes], buckets: int) -> np.ndarray:
    return np.array([int.from_bytes(digest, "big") % buckets for digest in digests], np.int64)


def _mixed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(T,) uint64 hash of ordered pairs: the finaliser of splitmix64 on a combination that is not symmetric."""
    mixed = first * np.uint64(0x9E3779B97F4A7C15) + second
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _pairs(ids: np.ndarray, tokens: list[str], digests: list[bytes], ngrams: Ngrams) -> np.ndarray:
    """(T - 1,) buckets of neighbouring tokens."""
    first, second = ids[:-1].astype(np.int64), ids[1:]
    if ngrams.hashing == "mixed":
        hashes = np.frombuffer(b"".join(digest[:8] for digest in digests), ">u8").astype(np.uint64)
        return (_mixed(hashes[first], hashes[second]) % np.uint64(ngrams.buckets)).astype(np.int64)
    pairs, places = np.unique(first * len(tokens) + second, return_inverse=True)
    texts = (f"{tokens[left]} {tokens[right]}" for left, right in zip(*np.divmod(pairs, len(tokens)), strict=True))
    return _in_buckets(_digests(texts), ngrams.buckets)[places]


def _features(texts: Sequence[str], ngrams: Ngrams) -> _Block:
    vocabulary, numbers, counts = _Vocabulary(), array("i"), [0]
    for text in texts:
        tokens = ngrams.tokenize(text)
        numbers.extend(map(vocabulary.__getitem__, tokens))
        counts.append(len(tokens))
    ids, offsets, words = np.array(numbers, np.int32), np.cumsum(counts), list(vocabulary)
    digests = _digests(words)
    grams = np.full((len(ids), 2), ngrams.buckets, np.int64)
    if len(ids):
        grams[:, 0] = _in_buckets(digests, ngrams.buckets)[ids]
        grams[:-1, 1] = _pairs(ids, words, digests, ngrams)
        grams[offsets[1:][np.diff(offsets) > 0] - 1, 1] = ngrams.buckets
    return _Block(grams, offsets)


def _blocks(texts: Iterable[str], ngrams: Ngrams, block_rows: int) -> Iterator[_Block]:
    rows = iter(texts)
    while block := list(islice(rows, block_rows)):
        yield _features(block, ngrams)


def ngram_counts(texts: Iterable[str], *, ngrams: Ngrams = Ngrams(), block_rows: int = BLOCK_ROWS) -> np.ndarray:
    """(buckets,) int64 how many unigrams and bigrams of all texts fall into each bucket.

    Args:
        texts: read once, `block_rows` at a time; bigrams stay within a text.
        ngrams: how text becomes features.
        block_rows: texts whose features are held at once.
    """
    counts = np.zeros(ngrams.buckets + 1, np.int64)
    for block in _blocks(texts, ngrams, block_rows):
        counts += np.bincount(block.grams.ravel(), minlength=ngrams.buckets + 1)
    return counts[:-1]


def log_ratio(target_counts: np.ndarray, pool_counts: np.ndarray) -> np.ndarray:
    """(buckets,) nats: log(p + 1e-8) - log(q + 1e-8), p and q the shares of each bucket in the target and in the pool.

    Args:
        target_counts: (buckets,) of `ngram_counts`.
        pool_counts: (buckets,) of `ngram_counts`.

    Raises:
        DataError: no n-gram in the target, or none in the pool.
    """
    for name, counts in (("target", target_counts), ("pool", pool_counts)):
        if not counts.sum():
            raise DataError(
                f"The text of the {name} holds no token.", fix=f"Check which field of the {name} is the text."
            )
    p, q = target_counts / target_counts.sum(), pool_counts / pool_counts.sum()
    return np.log(p + SMOOTHING) - np.log(q + SMOOTHING)


def row_weights(
    texts: Iterable[str],
    ratio: np.ndarray,
    *,
    ngrams: Ngrams = Ngrams(),
    over: Literal["sum", "mean"] = "sum",
    min_tokens: int = 1,
    block_rows: int = BLOCK_ROWS,
) -> np.ndarray:
    """(N,) nats, larger is nearer to the target: the sum, or the mean, of `ratio` over a row's unigrams and bigrams.

    Args:
        texts: of N rows, read once, `block_rows` at a time.
        ratio: (buckets,) nats, of `log_ratio`.
        ngrams: how text becomes features; the same as for the counts.
        over: "sum" is the method's, log p(x) - log q(x) of a bag of n-grams, and grows with length; "mean" is that over
            the row's 2T - 1 n-grams, T its tokens.
        min_tokens: rows of fewer tokens get NaN; 1 or more, the authors' is 100.
        block_rows: texts whose features are held at once; it changes no result.

    Raises:
        ConfigError: unknown `over`, `min_tokens` below 1, or a ratio for other buckets.
    """
    if over not in ("sum", "mean"):
        raise ConfigError(f"Weights cannot be taken over {over!r}.", allowed="sum, mean", fix="Name one of these.")
    if min_tokens < 1:
        raise ConfigError(
            f"min_tokens is {min_tokens}, but a row without a token has no weight.",
            allowed="1 or more",
            fix="Raise min_tokens.",
        )
    if ratio.shape != (ngrams.buckets,):
        raise ConfigError(
            f"The ratio has the shape {ratio.shape}, but there are {ngrams.buckets:,} buckets.",
            allowed="one number a bucket",
            fix="Use one Ngrams for both.",
        )
    padded = np.append(ratio, 0.0)
    sums: list[np.ndarray] = [np.empty(0)]
    tokens = [np.empty(0, np.int64)]
    for block in _blocks(texts, ngrams, block_rows):
        length = np.diff(block.offsets)
        row = np.repeat(np.arange(len(length)), length)
        sums.append(np.bincount(row, padded[block.grams].sum(1), minlength=len(length)))
        tokens.append(length)
    lengths, totals = np.concatenate(tokens), np.concatenate(sums)
    weights = totals / np.maximum(2 * lengths - 1, 1) if over == "mean" else totals
    return np.where(lengths < min_tokens, np.nan, weights)


class DsirOptions(Settings):
    """Options of DSIR."""

    over: Literal["sum", "mean"] = option("aggregation of a row's weight over its n-grams: sum or mean", "sum")
    tokenizer: Literal["wordpunct", "whitespace", "model"] = option(
        "tokens of the n-grams: lower-cased words and runs of punctuation (wordpunct), words between spaces (whitespace), or "
        "the model's tokens (model)",
        "wordpunct",
    )
    num_buckets: int = option("number of buckets that n-grams are hashed into", 10_000, ge=1)
    hashing: Literal["mixed", "sha256"] = option(
        "hash function of bigrams: a fast one (mixed), or that of the authors' package (sha256)", "mixed"
    )
    min_example_length: int = option("minimum tokens of a row; shorter rows have no weight (the authors: 100)", 1, ge=1)


@dataclass(frozen=True, kw_only=True)
class DsirScorer(Scorer):
    """Weighs a shard's texts.

    Attributes:
        options: of DSIR.
        ratio: (buckets,) log of the target's share of each bucket over the pool's.
        tokens: the model whose tokens n-grams are of; None for words.
    """

    options: DsirOptions
    tokens: ModelSpec | None = None
    ratio: np.ndarray = field(compare=False)

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], Columns]]:
        """As of `Scorer.open`; the column is `score_dsir`, nats."""
        options = self.options
        ngrams = ngrams_of(options, self.tokens.encoder() if self.tokens else None)

        def score(shard: Shard) -> Columns:
            weights = row_weights(
                [row.text for row in shard.rows],
                self.ratio,
                ngrams=ngrams,
                over=options.over,
                min_tokens=options.min_example_length,
            )
            return {"score_dsir": weights}

        yield score


class Dsir(Method):
    """DSIR's log importance weights: target against the whole usable pool. No model is loaded, only its tokenizer."""

    name = "dsir"
    summary = "rows whose words and word pairs are more likely in the target than in the pool"
    needs = "text"
    passes = "2, over the text alone"
    options = DsirOptions
    rule = "sample"
    unit = "nats (log importance weight)"
    source = "Xie et al. 2023, arXiv 2302.03169"
    differs = (
        "short rows are kept (the authors: min_example_length=100); the pool's counts are over all usable rows; bigrams have "
        "another hash function (the authors: hashing=sha256)"
    )

    def prepare(self, work: Work) -> Scorer:
        """Counts the pool's n-grams, kept, and the target's."""
        options, encode = work.options, work.encoder()
        ngrams, reader = ngrams_of(options, encode), work.reader(encode)

        def count(folder: Path, progress: Progress) -> None:
            counts = np.zeros(options.num_buckets, np.int64)
            for start, stop in reader.bounds():
                counts += ngram_counts([row.text for row in reader.rows(start, stop).values()], ngrams=ngrams)
                progress.advance(stop - start)
            with atomic(folder / "counts.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, counts)

        key = {name: getattr(options, name) for name in ("tokenizer", "num_buckets", "hashing")}
        folder = work.artifact("count", key, None, count, rows=len(reader.pool))
        target = ngram_counts([row.text for row in work.target.rows], ngrams=ngrams)
        return DsirScorer(
            options=options, ratio=log_ratio(target, np.load(folder / "counts.npy")),
            about=work.about(), tokens=work.spec() if options.tokenizer == "model" else None,
        )  # fmt: skip

    def cost(self, stats: PoolStats) -> list[Stage]:
        """Two readings of the pool's text; no token passes a model."""
        return [Stage("count", kept=8 * stats.options.num_buckets), Stage("scan", kept=stats.table(1))]


def ngrams_of(options: DsirOptions, encode: Encoder | None) -> Ngrams:
    """The features that the options describe; `encode` is needed for the model's own tokens."""
    of: dict[str, Any] = {"wordpunct": wordpunct, "whitespace": str.split}
    tokenize = of[options.tokenizer] if options.tokenizer in of or encode is None else encode.tokenizer.tokenize
    return Ngrams(tokenize, options.num_buckets, options.hashing)
