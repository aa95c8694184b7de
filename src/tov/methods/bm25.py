"""BM25: rows that share their rarer words with a target row, each target row a query of its own.

With tf the count of a word in a pool row of T words, T' the mean T, N rows and df of them with the word:
`score(x, z) = sum_w count_w(z) idf_w tf / (tf + k1 (1 - b + b T / T'))`, `idf_w = ln(1 + (N - df + 0.5) / (df + 0.5))`.
A long query, or one of rare words, has larger scores, so each is divided by what the query gives to its own text: 1 is what a
copy of the target row has, 0 what shares no word with it. Only so may scores of two target rows be compared; the order of a
target row's own pool rows, by which round robin goes, is BM25's.

Of each row the words that the target has are counted, and kept shard by shard; all else is
computed from these counts. Memory is a shard and a product of `CELLS` numbers, whatever the pool's size. On disk a row of 68
words (alpaca, flan, gsm8k) takes 51 to 72 bytes. docs/speed.md has a pool of 10^6 rows.

Knows text and counts; no models.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"; idf and tf as in Lucene (Kamphuis
et al. 2020, "Which BM25 Do You Mean?").
Differs: the query is a whole row, each word as often as it is there; the division above; rows are taken by round robin.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from tov.config.settings import Settings
from tov.data.words import is_unspaced, word_places
from tov.errors import DataError, RunError
from tov.files import atomic
from tov.methods.base import Method, PoolStats, Scorer, Stage
from tov.methods.shared.neighbours import keep_best
from tov.methods.shared.options import option
from tov.objects.mirror import local, named
from tov.progress import counted
from tov.scores.store import ShardStore
from tov.selection.choose import Best

if TYPE_CHECKING:
    from tov.engine.models import Models
    from tov.methods.work import Work
    from tov.progress import Progress
    from tov.scores.shard import Shard
    from tov.scores.table import Columns

INDEX = "index"
"""The artifact, and the stage."""
CELLS = 4_000_000
"""Scores of pool rows for target rows that are held at once (8 bytes each, 12 where they are sparse); it changes no result."""
BYTES_A_TOKEN = 1.0
"""Of the index on disk, for each token of the pool; 0.75 to 1.1 for a word, the more of them the target has."""
_PLAIN, _INNER = re.compile(r"[^\W_]+"), re.compile("['’_]+")


def words_of(text: str) -> list[str]:
    """The words of a text in any language, case and forms of characters made alike; marks and punctuation are none.

    A word ends at an apostrophe (l'homme) and an underline. Of a script that puts no space between words each two neighbouring
    characters are a word, a lone one too: where words begin cannot be known without a dictionary.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    if text.isascii():
        return _PLAIN.findall(text)
    words, in_pair = list[str](), False
    places = [(start, end) for start, end in word_places(text) if text[start].isalnum() or text[start] == "_"]
    for (start, end), (after, its_end) in itertools.pairwise([*places, (-1, -1)]):
        pairs = end == after and is_unspaced(text[start]) and is_unspaced(text[after])
        if pairs:
            words.append(text[start:its_end])
        elif not in_pair:
            words += filter(None, _INNER.split(text[start:end]))
        in_pair = pairs
    return words


@dataclass(frozen=True)
class Counts:
    """How often rows have the words of a vocabulary.

    Attributes:
        words: (rows, V) counts, sparse.
        lengths: (rows,) words of each row, those outside the vocabulary too.
    """

    words: csr_array
    lengths: np.ndarray


def count_words(texts: Sequence[str], vocabulary: Mapping[str, int]) -> Counts:
    """The counts of some texts.

    Args:
        texts: rows, held in memory.
        vocabulary: word -> its number, 0 to V - 1.
    """
    split = [words_of(text) for text in texts]
    found = [[vocabulary[word] for word in words if word in vocabulary] for words in split]
    rows, size = np.repeat(np.arange(len(found)), [len(row) for row in found]), max(len(vocabulary), 1)
    keys, counts = np.unique(rows * size + np.array([*itertools.chain(*found)], np.int64), return_counts=True)
    places = np.searchsorted(keys // size, np.arange(len(texts) + 1))
    shape = (len(texts), len(vocabulary))
    return Counts(csr_array((counts, keys % size, places), shape=shape), np.array([len(words) for words in split]))


@dataclass(frozen=True)
class Pool:
    """What BM25 knows of a whole pool.

    Attributes:
        rows: N.
        words: of all rows together.
        frequency: (V,) df, rows that have each word.
    """

    rows: int
    words: int
    frequency: np.ndarray

    @property
    def idf(self) -> np.ndarray:
        """(V,) nats, above 0; largest for a word that no row has."""
        return np.log1p((self.rows - self.frequency + 0.5) / (self.frequency + 0.5))


def saturated(counts: Counts, pool: Pool, *, k1: float, b: float) -> csr_array:
    """(rows, V) `tf / (tf + k1 (1 - b + b T / T'))`, from 0 to 1."""
    mean = pool.words / pool.rows
    penalty = np.repeat(k1 * (1 - b + b * counts.lengths / mean), np.diff(counts.words.indptr))
    tf = counts.words.data
    return csr_array((tf / (tf + penalty), counts.words.indices, counts.words.indptr), shape=counts.words.shape)


def queries_of(target: Counts, pool: Pool, *, k1: float, b: float) -> csr_array:
    """(V, M) weights of each target row's words: `saturated(rows) @ queries_of(target)` is the (rows, M) score of this file's
    head, 1 for a copy of the target row.

    Args:
        target: of M target rows, each with a word.
        pool: that rows are chosen from.
        k1: see `Bm25Options`.
        b: likewise.
    """
    weights = csr_array(target.words.multiply(pool.idf))
    own = weights.multiply(saturated(target, pool, k1=k1, b=b)).sum(1)
    return csr_array(weights.multiply(1 / own[:, None])).T.tocsr()


def scored_blocks(counts: Counts, queries: csr_array, pool: Pool, *, k1: float, b: float) -> Iterator[csr_array]:
    """The (rows, M) scores of rows, some rows after another, so that at most `CELLS` are there at once."""
    weights, step = saturated(counts, pool, k1=k1, b=b), max(1, CELLS // max(queries.shape[1], 1))
    for start in range(0, len(counts.lengths), step):
        yield weights[start : start + step] @ queries


@dataclass(frozen=True)
class Index:
    """A pool and a target as counts, on disk.

    Attributes:
        pool: the pool as a whole.
        target: counts of the target rows that have a word.
        shards: of the pool's rows.
        starts: first row_id of each shard.
    """

    pool: Pool
    target: Counts
    shards: ShardStore
    starts: tuple[int, ...]

    def counts(self, start: int) -> Counts:
        """Of one shard, of every row; of an excluded one none. Raises RunError if it is gone or broken."""
        table = self.shards.read(start)
        terms, counts = (pc.list_flatten(table[name]).to_numpy() for name in ("terms", "counts"))
        places = np.concatenate([[0], np.cumsum(pc.list_value_length(table["terms"]).to_numpy())])
        shape = (len(table), len(self.pool.frequency))
        return Counts(csr_array((counts.astype(np.float64), terms, places), shape=shape), table["words"].to_numpy())


def index_shard(counts: Counts, places: np.ndarray, rows: int) -> pa.Table:
    """A shard of so many rows, of which those at these places were counted, as `Index.counts` reads it."""
    lengths, sizes = np.zeros((2, rows), np.int32)
    lengths[places], sizes[places] = counts.lengths, np.diff(counts.words.indptr)
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    terms, numbers = (pa.array(part, pa.int32()) for part in (counts.words.indices, counts.words.data))
    lists = {
        name: pa.ListArray.from_arrays(offsets, values) for name, values in (("terms", terms), ("counts", numbers))
    }
    return pa.table({**lists, "words": pa.array(lengths)})


def add_up(folder: Path, shards: ShardStore, starts: Sequence[int], target: Counts, *, rows: int) -> None:
    """Writes what completes an index whose shards are there.

    Args:
        folder: of the index.
        shards: of `index_shard`.
        starts: first row_id of each.
        target: counts of the target rows that have a word.
        rows: of the pool, those that were counted.

    Raises:
        DataError: no row has a word.
    """
    words, frequency = 0, np.zeros(target.words.shape[1], np.int64)
    index = Index(Pool(rows, words, frequency), target, shards, tuple(starts))
    for start in starts:
        counts = index.counts(start)
        words += int(counts.lengths.sum())
        frequency += np.bincount(counts.words.indices, minlength=len(frequency))
    if not words:
        raise _no_word("pool")
    with atomic(folder / "index.npz") as temporary, open(temporary, "wb") as file:
        np.savez(
            file, rows=rows, words=words, frequency=frequency, starts=starts, stamp=shards.fingerprint,
            lengths=target.lengths, terms=target.words.indices, counts=target.words.data, places=target.words.indptr,
        )  # fmt: skip


def _make(work: Work, target: Counts, vocabulary: Mapping[str, int], folder: Path, progress: Progress) -> None:
    """Counts the shards that are not there yet, then adds them up."""
    reader, shards = work.reader(work.encoder()), work.feature_store(folder / "shards", stage=INDEX)
    for start, stop in reader.bounds():
        found = shards.has(start)
        if not found:
            rows = reader.rows(start, stop)
            counts = count_words([row.text for row in rows.values()], vocabulary)
            shards.write(start, index_shard(counts, np.array(list(rows), np.int64), stop - start))
        progress.advance(stop - start, found=found)
    add_up(folder, shards, [start for start, _ in reader.bounds()], target, rows=int(work.rows.usable.sum()))


def read_index(folder: Path) -> Index:
    """The index in an artifact's folder.

    Raises:
        RunError: it is gone or broken.
    """
    try:
        with open(folder / "index.npz", "rb") as opened, np.load(opened) as file:
            pool = Pool(int(file["rows"]), int(file["words"]), file["frequency"])
            shape = (len(file["lengths"]), len(pool.frequency))
            words = csr_array((file["counts"].astype(np.float64), file["terms"], file["places"]), shape=shape)
            store = ShardStore(folder / "shards", str(file["stamp"]))
            return Index(pool, Counts(words, file["lengths"]), store, tuple(file["starts"].tolist()))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(f"The index in {folder} cannot be read: {error}", fix="Score again, with --force.") from None


class Bm25Options(Settings):
    """Options of BM25."""

    k1: float = option(
        "saturation of a word's count in a row: 0 counts a word once, large values count each repeat",
        1.5,
        ge=0,
        le=1000,
    )
    b: float = option("penalty on rows longer than the mean, from 0 (none) to 1 (in proportion)", 0.75, ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class Bm25Scorer(Scorer):
    """Scores a shard by its counts.

    Attributes:
        folder: of the index.
        options: of BM25.
    """

    folder: str
    options: Bm25Options

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], Columns]]:
        """As of `Scorer.open`; the column is `score_bm25`, the best over the target rows."""
        index, how = read_index(local(self.folder)), self.options.model_dump()
        queries = queries_of(index.target, index.pool, **how)

        def score(shard: Shard) -> Columns:
            blocks = scored_blocks(index.counts(shard.start), queries, index.pool, **how)
            best = np.concatenate([np.empty(0), *(block.max(axis=1).toarray().ravel() for block in blocks)])
            return {"score_bm25": best[shard.places]}

        yield score


class Bm25(Method):
    """BM25 of each target row against the usable pool. No model is loaded, only its tokenizer."""

    name = "bm25"
    summary = "rows that share their rarer words with a target row"
    needs = "text"
    passes = "2, over the text alone"
    stored = "about 1 byte a token of the pool"
    options = Bm25Options
    rule = "round-robin"
    round_robin = True
    unit = "share of the score that the target row has itself"
    source = "Robertson and Zaragoza 2009, The Probabilistic Relevance Framework: BM25 and Beyond; Lucene's idf and tf"
    differs = (
        "the query is a whole target row; its scores are divided by that of its own text, so that target rows can be compared; "
        "no stop words and no stemming; of scripts without spaces each two neighbouring characters are a word"
    )

    def prepare(self, work: Work) -> Scorer:
        """Counts the words of pool and target, kept."""
        split = [set(words_of(row.text)) for row in work.target.rows]
        vocabulary = {word: number for number, word in enumerate(sorted(set().union(*split)))}
        texts = [row.text for row, words in zip(work.target.rows, split, strict=True) if words]
        if not texts:
            raise _no_word("target")
        lost = len(split) - len(texts)
        work.note(f"{lost:,} target rows have no word and were left out" if lost else "")
        target = count_words(texts, vocabulary)
        folder = work.artifact(
            INDEX, [work.target.index.fingerprint, work.settings.shard_rows], None,
            lambda folder, progress: _make(work, target, vocabulary, folder, progress), rows=len(work.rows.pool),
        )  # fmt: skip
        return Bm25Scorer(folder=named(folder), options=work.options, about=f"M = {counted(len(texts), 'target rows')}")

    def by_target(self, scores: pa.Table, artifacts: Mapping[str, Path], options: Mapping[str, Any]) -> Best:
        """Each target row's best pool rows. Raises RunError if the index is gone."""
        index, how = read_index(artifacts[INDEX]), Bm25Options(**options).model_dump()
        return lambda k, usable: best_rows(index, k, usable, **how)

    def cost(self, stats: PoolStats) -> list[Stage]:
        """One reading of the pool's text; no token passes a model."""
        return [Stage(INDEX, kept=BYTES_A_TOKEN * stats.tokens), Stage("scan", kept=stats.table(1))]


def best_rows(
    index: Index, k: int, usable: np.ndarray, *, k1: float, b: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each target row, the row_ids and scores of its k best usable rows; ties by row_id.

    A row that shares no word with a target row is in its list only where all lists together have fewer than k rows. The index
    is read once; memory is M k row_ids and scores beside a shard.
    """
    queries = queries_of(index.target, index.pool, k1=k1, b=b)
    rows, keys = np.full((queries.shape[1], k), -1), np.full((queries.shape[1], k), -np.inf)
    for start in index.starts:
        for block in scored_blocks(index.counts(start), queries, index.pool, k1=k1, b=b):
            row_ids = np.arange(start, start + block.shape[0])
            values, may = block.toarray().T, usable[row_ids]
            keep_best(rows, keys, row_ids[may], np.where(values > 0, values, -np.inf)[:, may])
            start += block.shape[0]
    lists = [(found[value > 0], value[value > 0]) for found, value in zip(rows, keys, strict=True)]
    if len(np.unique(rows[rows >= 0])) < k:
        others = [np.setdiff1d(np.flatnonzero(usable), found)[: k - len(found)] for found, _ in lists]
        lists = [
            (np.append(found, more), np.append(values, np.zeros(len(more))))
            for (found, values), more in zip(lists, others, strict=True)
        ]
    return [found for found, _ in lists], [values for _, values in lists]


def _no_word(name: str) -> DataError:
    return DataError(f"The text of the {name} holds no word.", fix=f"Check which field of the {name} is the text.")
