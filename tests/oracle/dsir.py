"""DSIR with dictionaries: every n-gram hashed by itself, every share and every weight from its definition."""

from __future__ import annotations

import hashlib
import itertools
import math
import re


def features(text: str, buckets: int) -> dict[int, int]:
    """Bucket -> count of the unigrams and bigrams of one text, at SHA-256 modulo the number of buckets."""
    tokens = [token for token in re.split(r"(\w+)|\s+", text.lower()) if token]
    counts: dict[int, int] = {}
    for ngram in tokens + [" ".join(pair) for pair in itertools.pairwise(tokens)]:
        bucket = int(hashlib.sha256(ngram.encode()).hexdigest(), 16) % buckets
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def log_weights(pool: list[str], target: list[str], buckets: int) -> list[float]:
    """Of each pool row: sum of count * [log(p + 1e-8) - log(q + 1e-8)]; NaN for a row without a token."""
    shares = []
    for texts in (target, pool):
        counts: dict[int, int] = {}
        for text in texts:
            for bucket, count in features(text, buckets).items():
                counts[bucket] = counts.get(bucket, 0) + count
        total = sum(counts.values())
        shares.append({bucket: count / total for bucket, count in counts.items()})
    weights = []
    for text in pool:
        row = features(text, buckets)
        terms = [
            count * (math.log(shares[0].get(bucket, 0.0) + 1e-8) - math.log(shares[1][bucket] + 1e-8))
            for bucket, count in row.items()
        ]
        weights.append(math.fsum(terms) if row else math.nan)
    return weights
