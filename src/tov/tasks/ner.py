"""Named entities: words with BIO2 tags, a head for the tags, entity F1.

A tag passes through, in this order: the dataset's own name of its id, the label map (a whole tag), the check of BIO2 (or its
repair, where asked), the label map (the entity type).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tov.data.cells import BadRow, as_list, as_text, named_kind
from tov.data.labels import LabelMap, Reading, agreed_labels, label_text, nothing_to_tell_apart
from tov.data.rows import Layout
from tov.errors import ModelError
from tov.tasks.base import Defaults, Task

if TYPE_CHECKING:
    import numpy as np

    from tov.text.encode import Encoded

OUTSIDE = "O"
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_TAG = re.compile(r"(?P<place>[BI])-(?P<type>.+)", re.DOTALL)
_OTHER_TAG = re.compile(r"(?P<place>[ESLU])-(?P<type>.+)", re.DOTALL)
_REPAIR = "--repair-bio makes the tags BIO2 and counts what it changed."


@dataclass(frozen=True)
class Tagged:
    """A sentence as words, each with a BIO2 tag.

    Attributes:
        words: (T,) words.
        tags: (T,) `O`, `B-TYPE` or `I-TYPE`.
        repaired: whether a tag was made BIO2.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    repaired: bool = field(default=False, compare=False)

    @property
    def text(self) -> str:
        """The words, with a space between."""
        return " ".join(self.words)

    @property
    def content(self) -> list[Any]:
        """Words and tags."""
        return [list(self.words), list(self.tags)]

    @property
    def question(self) -> list[str]:
        """The words."""
        return list(self.words)

    @property
    def labels(self) -> set[str]:
        """Entity types."""
        return {tag[2:] for tag in self.tags if tag != OUTSIDE}


def from_tags(row: Mapping[str, Any], reading: Reading) -> Tagged:
    """`tokens` with `ner_tags`: tags as strings or ids."""
    return _from_tags(row["tokens"], row["ner_tags"], "ner_tags", reading)


def from_labels(row: Mapping[str, Any], reading: Reading) -> Tagged:
    """`tokens` with `labels`: tags as strings or ids."""
    return _from_tags(row["tokens"], row["labels"], "labels", reading)


def _from_tags(tokens: Any, tags: Any, name: str, reading: Reading) -> Tagged:
    words, values = as_list(tokens, "tokens"), as_list(tags, name)
    if len(words) != len(values):
        raise BadRow(f"there are {len(words)} tokens, but {len(values)} {name}")
    return _tagged(words, [label_text(tag, name, reading) for tag in values], reading)


def from_spans(row: Mapping[str, Any], reading: Reading) -> Tagged:
    """`text` with `entities`, each with `start`, `end` (characters, end excluded) and `label`.

    Words are runs of word characters and single other signs, cut where an entity starts or ends.
    """
    text, spans = as_text(row["text"], "text"), _spans(row["entities"], as_text(row["text"], "text"))
    edges = {edge for start, end, _ in spans for edge in (start, end)}
    words, tags, seen = [], [], set[int]()
    for start, end in _word_places(text, edges):
        inside = next((at for at, span in enumerate(spans) if span[0] <= start and end <= span[1]), None)
        words.append(text[start:end])
        tags.append(OUTSIDE if inside is None else f"{'I' if inside in seen else 'B'}-{spans[inside][2]}")
        if inside is not None:
            seen.add(inside)
    if len(seen) < len(spans):
        start, end, label = next(span for at, span in enumerate(spans) if at not in seen)
        raise BadRow(f"the {label} at {start}:{end} holds no word, but {text[start:end]!r}")
    return _tagged(words, tags, reading)


def _tagged(words: Sequence[Any], tags: list[str], reading: Reading) -> Tagged:
    if not words:
        raise BadRow("the row has no words")
    for place, word in enumerate(words, 1):
        if not isinstance(word, str) or not word.strip():
            raise BadRow(f"word {place} is {'empty' if isinstance(word, str) else named_kind(word)}")
    mapped = [reading.mapping.get(tag, tag) if tag not in (OUTSIDE, "") else tag for tag in tags]
    checked = _bio(words, mapped, repair=reading.repair)
    return Tagged(tuple(words), tuple(_mapped(tag, reading.mapping) for tag in checked), repaired=checked != mapped)


def _mapped(tag: str, mapping: Mapping[str, str]) -> str:
    ours = mapping.get(tag[2:], tag[2:]) if tag != OUTSIDE else OUTSIDE
    return OUTSIDE if ours == OUTSIDE else f"{tag[:2]}{ours}"


def _bio(words: Sequence[str], tags: Sequence[str], *, repair: bool) -> list[str]:
    """The tags, checked to be BIO2, or made so: IOB1, BIOES and BILOU lose nothing by it."""
    out: list[str] = []
    for place, (word, tag) in enumerate(zip(words, tags, strict=True)):
        if tag == OUTSIDE:
            out.append(tag)
            continue
        if repair and (other_tag := _OTHER_TAG.fullmatch(tag)):
            tag = f"{'B' if other_tag['place'] in 'SU' else 'I'}-{other_tag['type']}"
        match = _TAG.fullmatch(tag)
        if not match:
            fix = _REPAIR if _OTHER_TAG.fullmatch(tag) else "Tags can be named by --label-map, e.g. '3: B-PER'."
            raise BadRow(f"word {place + 1} '{word}' has the tag '{tag}', but must have O, B-TYPE or I-TYPE", fix)
        before = out[-1] if out else OUTSIDE
        if match["place"] == "I" and before[2:] != match["type"]:
            if not repair:
                raise BadRow(
                    f"word {place + 1} '{word}' has {tag} after {before}, but an entity starts with B-", _REPAIR
                )
            tag = f"B-{match['type']}"
        out.append(tag)
    return out


def _spans(entities: Any, text: str) -> list[tuple[int, int, str]]:
    if isinstance(entities, Mapping):  # how `datasets` gives a sequence of records
        entities = [dict(zip(entities, values, strict=True)) for values in zip(*entities.values(), strict=True)]
    spans = []
    for place, entity in enumerate(as_list(entities, "entities"), 1):
        if not isinstance(entity, Mapping) or not {"start", "end", "label"} <= set(entity):
            raise BadRow(f"entity {place} is {named_kind(entity)}, but must have start, end and label")
        start, end, label = entity["start"], entity["end"], entity["label"]
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
            raise BadRow(f"entity {place} is at {start}:{end}, but the text has {len(text)} characters")
        if not isinstance(label, str) or not label:
            raise BadRow(f"entity {place} has {named_kind(label)} for a label, but must have text")
        spans.append((start, end, label))
    spans.sort()
    for earlier, later in itertools.pairwise(spans):
        if earlier[1] > later[0]:
            raise BadRow(f"entities at {earlier[0]}:{earlier[1]} and {later[0]}:{later[1]} overlap")
    return spans


def _word_places(text: str, edges: set[int]) -> list[tuple[int, int]]:
    places: list[tuple[int, int]] = []
    for match in _WORD.finditer(text):
        cuts = [match.start(), *(at for at in range(match.start() + 1, match.end()) if at in edges), match.end()]
        places += itertools.pairwise(cuts)
    return places


class NamedEntities(Task[Tagged]):
    """Sentences with entities."""

    name = "ner"
    title = "named entities"
    hint = "tokens + tags"
    layouts = (
        Layout("tokens+ner_tags", name, ("tokens", "ner_tags"), from_tags, "ner_tags"),
        Layout("tokens+labels", name, ("tokens", "labels"), from_labels, "labels"),
        Layout("spans", name, ("text", "entities"), from_spans, converted=True),
    )
    auto_model = "AutoModelForTokenClassification"
    peft_type = "TOKEN_CLS"
    new_head = True
    metric = "entity F1"
    unit = "word"
    length = "words"
    defaults = Defaults(
        lora_r=8, learning_rate=2e-3, target_learning_rate_ratio=1.0, amplify=1.0,
        normalize="none", train_learning_rate=2e-3,
    )  # fmt: skip
    columns = ("tov_tokens", "tov_tags")

    def encode(self, tokenizer: Any, rows: Sequence[Tagged], /, *, max_length: int, labels: tuple[str, ...]) -> Encoded:
        """The first sub-token of a word carries its tag, the others and the special tokens none."""
        import numpy as np

        from tov.text.encode import IGNORED, pack

        places = {label: place for place, label in enumerate(labels)}
        encoded = tokenizer(
            [list(row.words) for row in rows], is_split_into_words=True, truncation=True, max_length=max_length,
            return_attention_mask=False,
        )  # fmt: skip
        packed, sizes, lost = [], [], []
        for at, row in enumerate(rows):
            tags, before = np.full(len(encoded["input_ids"][at]), IGNORED), None
            for token, word in enumerate(encoded.word_ids(at)):
                if word is not None and word != before:
                    tags[token] = places[row.tags[word]]
                before = word
            packed.append((np.array(encoded["input_ids"][at]), tags))
            sizes.append(int((tags != IGNORED).sum()))
            lost.append(len(row.words) - sizes[-1])
        return pack(packed, np.array(sizes), np.array(lost))

    def open_tokenizer(self, name: str, load: Callable[..., Any]) -> Any:
        """A fast one, which tells a word's tokens, and whose words begin with a space if it is of byte-level BPE."""
        tokenizer = load()
        if not tokenizer.is_fast:
            raise ModelError(
                f"The tokenizer of '{name}' does not tell which word a token is from.",
                fix="Use a model with a tokenizer.json.",
            )
        return tokenizer if getattr(tokenizer, "add_prefix_space", True) else load(add_prefix_space=True)

    def head_labels(
        self,
        target: Sequence[frozenset[str]],
        pool: Sequence[frozenset[str]],
        names: Sequence[str],
        label_map: LabelMap,
    ) -> tuple[str, ...]:
        """BIO2 tags of the entity types, `O` first."""
        kinds = agreed_labels(target, pool, names, label_map, hint=f", '{{label}}: {OUTSIDE}' drops it")
        if not kinds:
            raise nothing_to_tell_apart("No row of target or pool has an entity.")
        return (OUTSIDE, *(f"{place}-{kind}" for kind in kinds for place in "BI"))

    def row_labels(self, head: Sequence[str]) -> frozenset[str]:
        """Entity types."""
        return frozenset(label[2:] for label in head if label != OUTSIDE)

    def label_metric(
        self, labels: Sequence[str], gold: np.ndarray, predicted: np.ndarray, offsets: np.ndarray
    ) -> float | None:
        """Entity F1; an entity ends with its sentence."""
        import numpy as np

        from tov.metrics import entity_f1

        tags = np.array(labels, dtype=object)
        rows = [[list(row) for row in np.split(tags[ids], offsets[1:-1])] for ids in (gold, predicted)]
        return entity_f1(*rows)

    def columns_as_read(self, rows: Sequence[Tagged]) -> Mapping[str, Sequence[Any]]:
        """Words and tags."""
        return {"tov_tokens": [row.words for row in rows], "tov_tags": [row.tags for row in rows]}
