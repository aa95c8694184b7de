"""Near duplicates with Python's own sets, pair by pair."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """Lower case, words alone, one space between; nothing of fewer than 25 characters."""
    whole = " ".join(re.findall(r"\w+", text.lower()))
    return whole if len(whole) >= 25 else ""


def similarity(one: str, other: str) -> float:
    """Shared runs of five characters over all of them."""
    a, b = ({text[at : at + 5] for at in range(len(text) - 4)} for text in (one, other))
    return len(a & b) / len(a | b) if a | b else 0.0


def first_near(texts: list[str], others: list[str], threshold: float) -> list[int]:
    """For each of the others the number of the first text that it is near to, or -1."""
    return [
        next((at for at, one in enumerate(texts) if one and similarity(one, other) >= threshold), -1)
        for other in others
    ]
