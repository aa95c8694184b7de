"""A row as the model sees it, with what is scored marked. Must not know tasks or models."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tov.text.encode import IGNORED, Encoded

OPENS, CLOSES = "[[", "]]"
"""Around what is scored, in a line of text."""
SHOWN = 400
"""Characters of a part that a line of text shows."""


@dataclass(frozen=True)
class Part:
    """Tokens that follow each other and are scored, or are not.

    Attributes:
        text: of the tokens, special ones included.
        scored: whether they are.
        label: of a classifier, what must be predicted here; "" elsewhere.
    """

    text: str
    scored: bool
    label: str = ""


def parts(rows: Encoded, index: int, tokenizer: Any, labels: tuple[str, ...] = ()) -> list[Part]:
    """One row, part by part.

    Args:
        rows: as tokens.
        index: of the row.
        tokenizer: that made them.
        labels: of a classifier, by id: each label then has a part of its own.
    """
    ids, wanted = (array.tolist() for array in rows.row(index))
    found = []
    for (scored, _), run in groupby(enumerate(wanted), lambda one: _key(one, bool(labels))):
        places = [place for place, _ in run]
        text = tokenizer.decode(ids[places[0] : places[-1] + 1], clean_up_tokenization_spaces=False)
        label = labels[wanted[places[0]]] if labels and scored else ""
        found.append(Part(str(text), scored, label))
    return found


def _key(one: tuple[int, int], each: bool) -> tuple[bool, int]:
    """What tokens of a part have in common."""
    place, label = one
    scored = label != IGNORED
    return scored, place if scored and each else -1


def marked(row: list[Part]) -> str:
    """The parts as one text: `[[what is scored]]`, and `[[word]]/LABEL` where labels are predicted."""
    return " ".join(_marked(part) for part in row) if any(part.label for part in row) else "".join(map(_marked, row))


def _marked(part: Part) -> str:
    text = _shortened(part.text)
    around = " " if text.startswith("[") or text.endswith("]") else ""  # [[ [CLS] ]]: which brackets are whose is seen
    shown = f"{OPENS}{around}{text}{around}{CLOSES}" if part.scored else text
    return f"{shown}/{part.label}" if part.label else shown


def _shortened(text: str) -> str:
    half = SHOWN // 2
    return text if len(text) <= SHOWN else f"{text[:half]} ... {text[-half:]}"
