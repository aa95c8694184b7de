"""What a trainer is to tov: the kinds of rows that it takes, and the files that it reads them from."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from tov.errors import DataError
from tov.tasks import Task

TITLES = {
    "conversations": "conversations", "pairs": "preference pairs", "text": "bare text", "ner": "named entities",
    "classification": "labelled texts",
}  # fmt: skip
"""Kind of rows (`Task.kind`) -> as a sentence calls it; a kind of another's task is called by its own word."""
DATA = "train.jsonl"
Form: TypeAlias = Callable[[Any], "Mapping[str, Any] | list[dict[str, Any]]"]
"""From a row to a trainer's columns: of one line, or of several."""


class NotTaken(ValueError):
    """A row that the trainer cannot be given as it was scored: a clause that says why, the same for all rows like it."""


@dataclass(frozen=True)
class Chosen:
    """A chosen row.

    Attributes:
        row_id: its place in the pool.
        source: the name of its source.
        row: as the model sees it, a row of the task.
    """

    row_id: int
    source: str
    row: Any


@dataclass(frozen=True)
class Facts:
    """What a configuration needs to know of the run.

    Attributes:
        model: what transformers loads: a Hub id or a folder.
        revision: of it, or None.
        template: the chat template for a model that has none, and none for one that has its own.
        task: of the rows.
        labels: (C,) of a classifier, by id.
        max_length: tokens a row may have, special ones included.
        rate: learning rate of the final training.
        lora_r, lora_alpha: of the adapter.
        seed: of the run.
        selected: the run's `selected.parquet`.
        bits: 4 or 8, where the rows were scored by a model of such weights.
        device_map: how that model was spread over GPUs.
    """

    model: str
    revision: str | None
    template: str | None
    task: Task[Any]
    labels: tuple[str, ...]
    max_length: int
    rate: float
    lora_r: int
    lora_alpha: float
    seed: int
    selected: Path
    bits: int | None = None
    device_map: str | None = None


@dataclass
class Written:
    """What is written for a trainer.

    Attributes:
        files: path in the folder -> the text, or the file that is copied there.
        rows: those that were taken, in order.
        left_out: reason -> rows that could not be given as they were scored.
        notes: in what the trainer differs from what was scored, in sentences.
        use: the commands that use the files, to be given in the folder.
    """

    files: Mapping[str, str | Path]
    rows: list[Chosen]
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    use: list[str] = field(default_factory=list)


class Trainer(ABC):
    """A trainer, or another place where rows go."""

    name: ClassVar[str]
    """As `--to` calls it."""
    title: ClassVar[str]
    """As its makers call it."""
    kinds: ClassVar[tuple[str, ...]] = tuple(TITLES)
    """The kinds of rows that it takes."""
    several: ClassVar[bool] = False
    """Whether it takes rows of several kinds at once."""
    folder: ClassVar[str] = "."
    """Where its files lie in the folder of the export."""
    names_model: ClassVar[str] = ""
    """Where its files say which model is trained; nowhere, if they say nothing."""
    spreads_model: ClassVar[bool] = False
    """Whether they spread it over GPUs as the run did."""

    @abstractmethod
    def write(self, rows: Sequence[Chosen], kind: str, facts: Facts) -> Written:
        """The files for rows of one kind that it takes.

        Raises:
            DataError: it takes none of them.
        """


def fitted(rows: Sequence[Chosen], form: Form, title: str) -> tuple[list[Chosen], list[dict[str, Any]], Counter[str]]:
    """The rows that a trainer takes; each in its form, with `tov_row_id` and `tov_source`; and why others are left out.

    Args:
        rows: at least one.
        form: from a row to the trainer's columns, of one line or of several; raises NotTaken.
        title: of the trainer.

    Raises:
        DataError: no row is taken.
    """
    taken, formed, left_out = list[Chosen](), list[dict[str, Any]](), Counter[str]()
    for chosen in rows:
        try:
            lines = form(chosen.row)
        except NotTaken as reason:
            left_out[str(reason)] += 1
            continue
        taken.append(chosen)
        ours = {"tov_row_id": chosen.row_id, "tov_source": chosen.source}
        formed += [{**line, **ours} for line in (lines if isinstance(lines, list) else [lines])]
    if not taken:
        reasons = "; ".join(f"{count:,} because {reason}" for reason, count in left_out.most_common())
        raise DataError(
            f"{title} can be given none of the {len(rows):,} chosen rows as they were scored: {reasons}.",
            fix="Export for another trainer, or train with tov train, which takes them all.",
        )
    return taken, formed, left_out


def whole_alpha(facts: Facts, title: str) -> int:
    """LoRA alpha for a trainer that takes whole numbers.

    Raises:
        DataError: that of the run is none.
    """
    if not float(facts.lora_alpha).is_integer():
        raise DataError(
            f"{title} takes a whole number as LoRA alpha, but that of the run is {facts.lora_alpha}.",
            allowed="whole numbers",
            fix="Export --to trl, whose script takes it, or select again with another --lora-alpha.",
        )
    return int(facts.lora_alpha)


def json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as JSON, a line each."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def filled(script: str, **values: Any) -> str:
    """A script with each `@name@` as the Python value that it stands for, so that no value can become code."""
    names = "|".join(map(re.escape, values))
    return re.sub(f"@({names})@", lambda match: repr(values[match[1]]), script)  # at once: a value may hold a name
