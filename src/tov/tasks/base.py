"""What a task is: everything that differs between instruction tuning, named entities, text classification and the next one.

A task is a file of this room: a record of its rows, functions from columns to such rows, and a subclass of `Task` that says the
rest. Nothing elsewhere asks which task it is: a room above asks the task, a room below is handed one of its members.

Importing a task costs nothing: numpy is imported by the functions that need it. A task loads no model itself; it names the
class that does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from tov.data.labels import LabelMap
from tov.data.rows import Layout, Row

if TYPE_CHECKING:
    import numpy as np

    from tov.text.encode import Encoded

R = TypeVar("R", bound=Row)
"""A task's rows: a frozen record with what `tov.data.rows.Row` lists (the text that methods read, what is hashed, the prompt
that decontamination goes by, labels)."""


class Part(NamedTuple):
    """A piece of a row, for a reader.

    Attributes:
        name: who says it, or what it is; "" for what needs no name.
        text: of the piece.
        scored: whether the model must predict it, or a label of it.
    """

    name: str
    text: str
    scored: bool


@dataclass(frozen=True)
class Defaults:
    """What `auto` means; docs/defaults.md has the tables that decided.

    Attributes:
        lora_r: of the adapter.
        learning_rate: of the base epochs.
        target_learning_rate_ratio: the target epoch's learning rate over its base epoch's mean one.
        amplify: factor on the target's step.
        normalize: `none` or `initial-loss`.
        train_learning_rate: of the final training.
        pilot_train_rows: most rows passed in the training of a pilot.
    """

    lora_r: int
    learning_rate: float
    target_learning_rate_ratio: float
    amplify: float
    normalize: str
    train_learning_rate: float
    pilot_train_rows: int


class Task(ABC, Generic[R]):
    """A task. Members without a value must be given by each; the others have the value of a task that needs no more.

    Shapes: S scored tokens, words or texts of all rows together; C labels of the head.
    """

    name: ClassVar[str]
    """As settings, manifests and folders call it: one lower-case word."""
    title: ClassVar[str]
    """As a sentence calls it."""
    hint: ClassVar[str] = ""
    """The columns that tell it, in the help of `--task`; none for what most rows are."""
    layouts: ClassVar[tuple[Layout, ...]]
    """The sets of columns that are its rows, tried in this order."""

    auto_model: ClassVar[str]
    """The class of transformers that loads its model."""
    peft_type: ClassVar[str]
    """PEFT's `TaskType`: with it any PEFT user's code loads a stored adapter."""
    new_head: ClassVar[bool]
    """Whether the model gets a head for the task's labels, trained in full; False: its own predicts the next token."""

    metric: ClassVar[str]
    """The name of its metric; larger is better."""
    unit: ClassVar[str]
    """What a log-loss is a mean over, in the singular: token, word, text."""
    length: ClassVar[str]
    """What a row's length, by which bins are cut, counts (`Encoded.sizes`), in the plural."""

    defaults: ClassVar[Defaults]
    """What `auto` means for settings."""
    by_trl: ClassVar[bool] = False
    """Whether TRL's SFTTrainer trains it."""
    generates: ClassVar[bool] = False
    """Whether answers can be generated, which the metric then is one of; rows have what `tov.model.generate.Asked` lists."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Columns that the training file gets where labels were read otherwise than they stand in the user's."""
    read_from: ClassVar[Mapping[str, str]] = {}
    """The column of a layout -> that of `columns` which is read in its place, where a training file has it."""

    @abstractmethod
    def encode(self, tokenizer: Any, rows: Sequence[R], /, *, max_length: int, labels: tuple[str, ...]) -> Encoded:
        """Rows as tokens, and what must be predicted of each.

        Args:
            tokenizer: as `open_tokenizer` returned it.
            rows: at least one.
            max_length: tokens a row may have, special ones included; what is longer is cut at the end.
            labels: (C,) the head's labels by id; none without a new head.

        Returns:
            Ragged token ids and labels: the token's own id (no new head), or a label's id at the first token of its word, or at
            the first token of the row for a head that sees the row as a whole. With each row's length, as `length` counts it.

        Raises:
            DataError: a row cannot be made tokens of.
        """

    def open_tokenizer(self, name: str, load: Callable[..., Any]) -> Any:
        """The tokenizer as `encode` wants it.

        Args:
            name: the model's, for messages.
            load: reads it; keywords are `AutoTokenizer.from_pretrained`'s.

        Raises:
            ModelError: the task cannot be had with this tokenizer.
        """
        return load()

    def head_labels(
        self,
        target: Sequence[frozenset[str]],
        pool: Sequence[frozenset[str]],
        names: Sequence[str],
        label_map: LabelMap,
    ) -> tuple[str, ...]:
        """(C,) what the new head must tell apart, in order; none without one.

        Args:
            target: labels of the rows of each of the target's sources.
            pool: likewise of the pool's.
            names: of the pool's sources.
            label_map: the user's.

        Raises:
            DataError: target and pool have different labels, or too few.
        """
        return ()

    def row_labels(self, head: Sequence[str]) -> frozenset[str]:
        """The labels of rows that a head of these (C,) labels tells apart."""
        return frozenset(head)

    def label_metric(
        self, labels: Sequence[str], gold: np.ndarray, predicted: np.ndarray, offsets: np.ndarray
    ) -> float | None:
        """The metric of a head's predictions; None where the metric is one of generated answers.

        Args:
            labels: (C,) the head's labels by id.
            gold: (S,) label ids, rows one after another.
            predicted: (S,) likewise.
            offsets: (rows + 1,) where each row starts in the two.
        """
        return None

    def predictions(self, labels: Sequence[str], ids: np.ndarray, offsets: np.ndarray) -> list[Any]:
        """What a head says of each row, as a metric of the user's own gets it; arguments as of `label_metric`."""
        return []

    def traits(self, row: R) -> Collection[str]:
        """What of a row is counted before training, as the end of a sentence `30 % of the rows ...`: `have no entity`."""
        return ()

    def parts(self, row: R) -> list[Part]:
        """The row for a reader, in its order; at least one part."""
        return [Part("", row.text, False)]

    def kind(self, row: R) -> str:
        """What a row is, for trainers that take rows of one kind at a time: a word."""
        return self.name

    def columns_as_read(self, rows: Sequence[R]) -> Mapping[str, Sequence[Any]]:
        """A value a row for each of `columns`."""
        return {}
