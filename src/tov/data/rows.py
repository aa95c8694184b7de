"""Every column layout that tov reads, the task that it means, and what makes two rows the same.

A layout is a row of one table: its task, the columns that it needs and a function from a row to what the model sees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tov.data import conversations, labelled
from tov.data.conversations import Conversation
from tov.data.labelled import Labelled, Reading, Tagged

Row: TypeAlias = Conversation | Tagged | Labelled
Convert: TypeAlias = Callable[[Mapping[str, Any], Reading], Row]


@dataclass(frozen=True)
class Layout:
    """A column layout.

    Attributes:
        name: as messages call it.
        task: of `tov.config.Task`.
        columns: the columns that a source of this layout has.
        convert: from a row to what the model sees; raises BadRow.
        labels: the column that holds label ids or names, if any.
    """

    name: str
    task: str
    columns: tuple[str, ...]
    convert: Convert
    labels: str = ""


def _unlabelled(convert: Callable[[Mapping[str, Any]], Conversation]) -> Convert:
    return lambda row, _: convert(row)


LAYOUTS: tuple[Layout, ...] = (
    Layout("messages", "instruction", ("messages",), _unlabelled(conversations.from_messages)),
    Layout("sharegpt", "instruction", ("conversations",), _unlabelled(conversations.from_sharegpt)),
    Layout(
        "prompt+completion", "instruction", ("prompt", "completion"), _unlabelled(conversations.from_prompt_completion)
    ),
    Layout("alpaca", "instruction", ("instruction", "output"), _unlabelled(conversations.from_alpaca)),
    Layout("tokens+ner_tags", "ner", ("tokens", "ner_tags"), labelled.from_tags, "ner_tags"),
    Layout("tokens+labels", "ner", ("tokens", "labels"), labelled.from_labels, "labels"),
    Layout("spans", "ner", ("text", "entities"), labelled.from_spans),
    Layout("text+label", "classification", ("text", "label"), labelled.from_label, "label"),
    Layout("text", "instruction", ("text",), _unlabelled(conversations.from_text)),
)
"""Tried in this order: the first whose columns are all there is taken."""


def layout_of(columns: Sequence[str], task: str | None = None) -> Layout | None:
    """The layout of a file with these columns, for a task where one is named, or None."""
    fitting = (layout for layout in LAYOUTS if set(layout.columns) <= set(columns))
    return next((layout for layout in fitting if task in (None, layout.task)), None)


def _hash(value: Any) -> int:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def content_hash(row: Row) -> int:
    """64-bit hash of all that the model sees and must predict: equal for equal rows, whatever file format they came in."""
    return _hash(row.content)


def prompt_hash(row: Row) -> int:
    """64-bit hash of what the model is given (turns, words or text), ignoring case and white space."""
    return _hash([" ".join(text.lower().split()) for text in row.question])
