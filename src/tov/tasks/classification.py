"""Text classification: a text with one label, a head for the labels, accuracy."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tov.data.cells import BadRow, as_text, check_gold
from tov.data.labels import LabelMap, Reading, agreed_labels, label_text, listed, nothing_to_tell_apart
from tov.data.rows import Layout
from tov.tasks.base import Defaults, Part, Task

if TYPE_CHECKING:
    import numpy as np

    from tov.text.encode import Encoded


@dataclass(frozen=True)
class Labelled:
    """A text with one label."""

    text: str
    label: str
    repaired: ClassVar[bool] = False

    @property
    def content(self) -> list[Any]:
        """Text and label."""
        return [self.text, self.label]

    @property
    def question(self) -> list[str]:
        """The text."""
        return [self.text]

    @property
    def labels(self) -> set[str]:
        """The label."""
        return {self.label}


def from_label(row: Mapping[str, Any], reading: Reading) -> Labelled:
    """`text` with `label`: a string or an id."""
    check_gold(row)
    text = as_text(row["text"], "text")
    if not text.strip():
        raise BadRow("the text is empty")
    if isinstance(row["label"], list):
        raise BadRow(
            "label holds a list, but must be text or an id: one label a text",
            "If it holds entities, as Doccano has them, give --task ner --columns entities=label.",
        )
    label = label_text(row["label"], "label", reading)
    if not label.strip():
        raise BadRow("the label is empty")
    return Labelled(text, reading.mapping.get(label, label))


class Classification(Task[Labelled]):
    """Texts with a label."""

    name = "classification"
    title = "text classification"
    hint = "text + label"
    layouts = (Layout("text+label", name, ("text", "label"), from_label, "label", beside=("answer",)),)
    auto_model = "AutoModelForSequenceClassification"
    peft_type = "SEQ_CLS"
    new_head = True
    metric = "accuracy"
    unit = "text"
    length = "tokens"
    defaults = Defaults(
        lora_r=8, learning_rate=2e-3, target_learning_rate_ratio=1.0, amplify=1.0,
        normalize="initial-loss", train_learning_rate=2e-3, pilot_train_rows=2048,
    )  # fmt: skip
    columns = ("tov_label",)
    read_from: ClassVar[Mapping[str, str]] = {"label": "tov_label"}

    def encode(
        self, tokenizer: Any, rows: Sequence[Labelled], /, *, max_length: int, labels: tuple[str, ...]
    ) -> Encoded:
        """The label stands at the first token; a text's length is its tokens without the special ones."""
        import numpy as np

        from tov.text.encode import IGNORED, pack

        places = {label: place for place, label in enumerate(labels)}
        texts = [row.text for row in rows]
        whole = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
        long = [place for place, ids in enumerate(whole) if len(ids) > max_length]
        kept = list(whole)
        if long:
            cut = tokenizer(
                [texts[place] for place in long], truncation=True, max_length=max_length, return_attention_mask=False
            )["input_ids"]
            for place, ids in zip(long, cut, strict=True):
                kept[place] = ids
        special = tokenizer.num_special_tokens_to_add()
        packed = []
        for ids, row in zip(kept, rows, strict=True):
            marked = np.full(len(ids), IGNORED)
            marked[0] = places[row.label]
            packed.append((np.array(ids), marked))
        sizes = np.array([max(1, len(ids) - special) for ids, _ in packed])
        lost = np.array([len(ids) - len(left) for ids, left in zip(whole, kept, strict=True)])
        return pack(packed, sizes, lost)

    def head_labels(
        self,
        target: Sequence[frozenset[str]],
        pool: Sequence[frozenset[str]],
        names: Sequence[str],
        label_map: LabelMap,
    ) -> tuple[str, ...]:
        """The labels in order."""
        labels = agreed_labels(target, pool, names, label_map)
        if len(labels) < 2:
            raise nothing_to_tell_apart(f"All rows have the one label {listed(labels)}.")
        return labels

    def label_metric(
        self, labels: Sequence[str], gold: np.ndarray, predicted: np.ndarray, offsets: np.ndarray
    ) -> float | None:
        """Accuracy."""
        from tov.metrics import accuracy

        return accuracy(gold, predicted)

    def predictions(self, labels: Sequence[str], ids: np.ndarray, offsets: np.ndarray) -> list[str]:
        """The label of each text."""
        return [labels[place] for place in ids.tolist()]

    def traits(self, row: Labelled) -> Collection[str]:
        """Its label."""
        return [f"have the label {row.label}"]

    def parts(self, row: Labelled) -> list[Part]:
        """The text and its label."""
        return [Part("", row.text, False), Part("label", row.label, True)]

    def columns_as_read(self, rows: Sequence[Labelled]) -> Mapping[str, Sequence[Any]]:
        """The label."""
        return {"tov_label": [row.label for row in rows]}
