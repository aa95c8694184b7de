"""Metrics beside log-loss: entity F1, accuracy, exact match. Knows labels and texts; must not know tasks or models."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np


def entity_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Micro F1 over entities (type and both ends right), as conlleval and seqeval count them; 0 where there is none.

    Args:
        gold: BIO2 tags of each sentence.
        predicted: likewise; an I- without its B- begins an entity, as in conlleval.
    """
    from seqeval.metrics import f1_score  # type: ignore[import-untyped]

    return float(f1_score([list(tags) for tags in gold], [list(tags) for tags in predicted], zero_division=0))


def accuracy(gold: np.ndarray, predicted: np.ndarray) -> float:
    """The share of labels that are right."""
    return float(np.mean(gold == predicted))


def exact_match(references: Sequence[str], answers: Sequence[str], pattern: str) -> float:
    """The share of answers whose last match of `pattern` is that of the reference, white space collapsed.

    A reference without a match is compared whole.

    Raises:
        re.error: the pattern is no regular expression.
    """
    pairs = zip(references, answers, strict=True)
    return float(
        np.mean([_extract(reference, pattern, whole=True) == _extract(answer, pattern) for reference, answer in pairs])
    )


def _extract(text: str, pattern: str, *, whole: bool = False) -> str | None:
    matches = [match.group(match.lastindex or 0) for match in re.finditer(pattern, text)]
    if not matches and not whole:
        return None
    return " ".join((matches[-1] if matches else text).split())
