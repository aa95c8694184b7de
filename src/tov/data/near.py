"""Near duplicates: rows whose questions share most of their letters in order. Exact; NumPy and SciPy alone.

A text is taken in lower case without punctuation, as words with one space between; its shingles are all runs of five
characters. Two texts are near duplicates if the Jaccard similarity of their sets of shingles is at least `NEAR`. MinHash would
estimate that number, and miss some pairs. Here one side is small (a test, a target, chosen rows), so the number itself is as
cheap.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from tov.data.cells import BadRow
from tov.data.rows import Row

NEAR = 0.8
"""Jaccard similarity from which on two texts are near duplicates: texts of 100 letters may differ in one word of five."""
SHINGLE = 5
"""Characters of a shingle: an English word, or two words of a script without spaces."""
SHORTEST = 25
"""Characters, about five English words; a shorter text is like others by accident, and has no near duplicates."""
LONGEST = 4000
"""Characters that are looked at, from the start."""
BLOCK = 1024
"""Texts looked at at once."""
CELLS = 1 << 22
"""Pairs of texts of which the rare shingles that they share are counted at once, at most."""
PAIRS = 1 << 14
"""Pairs of texts compared at once."""
_WORD = re.compile(r"\w+")
_ODD = np.uint64(0x9E3779B97F4A7C15)
_ROW_BITS = np.uint64(BLOCK.bit_length())


def question_text(row: Row | BadRow) -> str:
    """What rows are compared by: what the model is given, as `plain`; nothing of a row that cannot be used."""
    return "" if isinstance(row, BadRow) else plain("\n".join(row.question))


def plain(text: str) -> str:
    """A text without case and punctuation, cut at `LONGEST`; "" if it is too short to be compared."""
    whole = " ".join(_WORD.findall(text.lower()))
    return whole[:LONGEST] if len(whole) >= SHORTEST else ""


@dataclass(frozen=True)
class Shingles:
    """The shingles of texts, one text after another, each once a text.

    Attributes:
        hashes: (sum of counts,) uint64 hash of each, in order within a text.
        counts: (texts,) how many a text has; 0 for a text that is not compared.
    """

    hashes: np.ndarray
    counts: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """(sum of counts,) the number of each shingle's text."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def part(self, start: int, stop: int) -> Shingles:
        """Those of the texts from `start` up to `stop`."""
        before, upto = self.counts[:start].sum(), self.counts[:stop].sum()
        return Shingles(self.hashes[before:upto], self.counts[start:stop])

    @staticmethod
    def of(texts: Sequence[str]) -> Shingles:
        """Of texts as `plain` makes them."""
        parts = [_block(texts[start : start + BLOCK]) for start in range(0, len(texts), BLOCK)]
        hashes, counts = ([part[at] for part in parts] for at in (0, 1))
        return Shingles(np.concatenate([np.empty(0, np.uint64), *hashes]), np.concatenate([np.empty(0, int), *counts]))


def _block(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and counts of at most `BLOCK` texts: a polynomial of five characters, of which 64 bits less the row's are kept."""
    signs = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    rows = np.repeat(np.arange(len(texts), dtype=np.uint64), [len(text) for text in texts])
    places = max(0, len(signs) - SHINGLE + 1)
    hashes = np.zeros(places, np.uint64)
    for at in range(SHINGLE):
        hashes = (hashes + signs[at : places + at]) * _ODD
    within = rows[:places] == rows[SHINGLE - 1 :]
    keys = np.unique(rows[:places][within] << (np.uint64(64) - _ROW_BITS) | hashes[within] >> _ROW_BITS)
    counts = np.bincount((keys >> (np.uint64(64) - _ROW_BITS)).astype(int), minlength=len(texts))
    return keys & (np.uint64(2**64 - 1) >> _ROW_BITS), counts


class Near:
    """Texts, as `plain` makes them, in which near duplicates of others are looked up.

    Two texts of similarity J share at least J of the shingles of either. So of any p of a text's a shingles, a near duplicate
    has at least p - (1 - J) a. The p = a / 2 that fewest of our texts have are looked up first, which leaves few pairs.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.shingles = Shingles.of(texts)
        self.counts = self.shingles.counts
        self.known, places, self.texts_with = np.unique(self.shingles.hashes, return_inverse=True, return_counts=True)
        self.matrix = _matrix(places, self.shingles.rows, (len(texts), len(self.known)))
        self.at_once = max(1, min(BLOCK, CELLS // max(len(texts), 1)))

    def of(self, texts: Iterable[str]) -> np.ndarray:
        """(texts,) int64, for each of the others the number of the first of ours that it is near to; -1 for none."""
        return _joined(self._first(Shingles.of(block)) for block in _blocks(texts, self.at_once))

    def among(self, others: Near) -> np.ndarray:
        """(texts,) int64, for each of ours the number of the first of the others that it is near to; -1 for none."""
        size = len(self.counts)
        blocks = (self.shingles.part(start, start + others.at_once) for start in range(0, size, others.at_once))
        return _joined(map(others._first, blocks))

    def repeats(self) -> np.ndarray:
        """(texts,) bool, which of ours are near to an earlier one of ours."""
        first = self.among(self)
        return (first >= 0) & (first < np.arange(len(first)))

    def _first(self, theirs: Shingles) -> np.ndarray:
        texts = len(theirs.counts)
        first = np.full(texts, len(self.counts), np.int64)
        if len(self.known) and len(theirs.hashes):
            places = np.minimum(np.searchsorted(self.known, theirs.hashes), len(self.known) - 1)
            here = self.known[places] == theirs.hashes
            may = np.bincount(theirs.rows[here], minlength=texts) >= NEAR * theirs.counts
            kept = may[theirs.rows]  # of most texts too little is known here
            theirs = Shingles(theirs.hashes[kept], np.where(may, theirs.counts, 0))
            places, here = places[kept], here[kept]
            shape = (texts, len(self.known))
            whole = _matrix(places[here], theirs.rows[here], shape)
            rare = here & _rarest_half(theirs, np.where(here, self.texts_with[places], 0))
            pairs = (_matrix(places[rare], theirs.rows[rare], shape) @ self.matrix.T).tocoo()
            needed = (theirs.counts + 1) // 2 - (theirs.counts - np.ceil(NEAR * theirs.counts))
            likely = np.flatnonzero(pairs.data >= needed[pairs.row])
            for start in range(0, len(likely), PAIRS):
                rows, columns = (ends[likely[start : start + PAIRS]] for ends in (pairs.row, pairs.col))
                shared = np.asarray(whole[rows].multiply(self.matrix[columns]).sum(axis=1)).ravel()
                near = shared >= NEAR * (theirs.counts[rows] + self.counts[columns] - shared)
                np.minimum.at(first, rows[near], columns[near])
        return np.where(first < len(self.counts), first, -1)


def _rarest_half(shingles: Shingles, texts_with: np.ndarray) -> np.ndarray:
    """(sum of counts,) bool, the half of each text's shingles, rounded up, that the fewest of other texts have."""
    order = np.lexsort((texts_with, shingles.rows))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(shingles.counts) - shingles.counts, shingles.counts)
    rare = np.empty(len(order), bool)
    rare[order] = rank < np.repeat((shingles.counts + 1) // 2, shingles.counts)
    return rare


def _matrix(columns: np.ndarray, rows: np.ndarray, shape: tuple[int, int]) -> Any:
    return sparse.csr_matrix((np.ones(len(columns), np.int32), (rows, columns)), shape=shape)


def _joined(found: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *found])


def _blocks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(texts)
    while block := list(islice(rest, size)):
        yield block
