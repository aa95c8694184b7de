"""Metrics beside log-loss: entity F1, accuracy, exact match, and the user's own. Knows labels and texts; must not know tasks
or models.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tov.errors import ConfigError


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


def own_metric(name: str) -> Callable[[Sequence[Any], Sequence[Any]], float]:
    """The user's own metric, as a function of references and predictions; larger is better.

    The module is looked for where Python looks, and in the working directory.

    Args:
        name: MODULE:FUNCTION.

    Raises:
        ConfigError: there is no such function; when it is called, it raises or gives no finite number.
    """
    module, colon, function = name.partition(":")
    fix = "Name it as MODULE:FUNCTION, e.g. --metric my_metrics:accuracy for accuracy in my_metrics.py."
    if not colon or not module or not function:
        raise ConfigError(f"--metric got {name!r}.", allowed="MODULE:FUNCTION", fix=fix)
    try:
        with_here = os.getcwd()
        sys.path.append(with_here)
        try:
            found = getattr(importlib.import_module(module), function)
        finally:
            sys.path.remove(with_here)
    except Exception as error:
        raise ConfigError(f"--metric {name} cannot be had: {type(error).__name__}: {error}", fix=fix) from error
    if not callable(found):
        raise ConfigError(f"--metric {name} is no function.", fix=fix)

    def measured(references: Sequence[Any], predictions: Sequence[Any]) -> float:
        try:
            value = float(found(list(references), list(predictions)))
        except Exception as error:
            raise ConfigError(
                f"--metric {name} failed: {type(error).__name__}: {error}",
                fix="It is given two lists of equal length, references and predictions, and returns a number.",
            ) from error
        if not math.isfinite(value):
            raise ConfigError(f"--metric {name} gave {value}.", allowed="a finite number", fix="Correct the function.")
        return value

    return measured
