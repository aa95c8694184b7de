"""Values in a row's cells, checked: what is wrong with one is said by `BadRow`. Must not know layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tov.errors import kind_of


class BadRow(ValueError):
    """A row that cannot be used.

    Args:
        reason: why, a clause: it follows the row's place and a colon.
        fix: what may help, beside correcting the row; a sentence.
    """

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix


NOT_GOLD = "(answer reject or ignore, label or kto_tag false)"


class NotGold(BadRow):
    """A row that says itself that its labels are not right: it is left out and counted, and never an error."""


def check_gold(row: Mapping[str, Any]) -> None:
    """Raises NotGold if an annotator rejected or skipped the row, as Prodigy's column `answer` says it."""
    answer = row.get("answer")
    if answer in ("reject", "ignore") and row.get("label") != answer:  # unless `answer` is the label itself
        raise NotGold(f"its answer is {answer}, so its labels are not gold")


def as_text(value: Any, what: str) -> str:
    """A text, or OpenAI's list of text parts joined.

    Raises:
        BadRow: anything else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value)
    parts = value if isinstance(value, list | tuple) else ()
    others = sorted({str(part["type"]) for part in parts if isinstance(part, Mapping) and "type" in part} - {"text"})
    if others:
        raise BadRow(
            f"{what} has a part of type {', '.join(others)}, but only text is read",
            "Delete the part or the row, or leave such rows out by --on-bad-row skip.",
        )
    raise BadRow(f"{what} is {named_kind(value)}, but must be text")


def as_list(value: Any, what: str) -> Sequence[Any]:
    """A list that may be empty.

    Raises:
        BadRow: anything else.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    raise BadRow(f"{what} is {named_kind(value)}, but must be a list")


def named_kind(value: Any) -> str:
    """`a str`, `an int`, `missing`, or `NaN`, which is how pandas has what is missing."""
    if isinstance(value, float) and value != value:
        return "NaN (of pandas, for a missing value)"
    return "missing" if value is None else kind_of(value)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
