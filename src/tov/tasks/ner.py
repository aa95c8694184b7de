"""Named entities: words with BIO2 tags, a head for the tags, entity F1.

A tag passes through, in this order: the dataset's own name of its id, the label map (a whole tag), the check of BIO2 (or its
repair, where asked), the label map (the entity type).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tov.data.cells import BadRow, as_list, as_text, check_gold, named_kind
from tov.data.labels import LabelMap, Reading, agreed_labels, label_text, nothing_to_tell_apart
from tov.data.rows import Layout
from tov.data.tags import OUTSIDE, TAG, bio2
from tov.data.words import cut_at, word_places
from tov.errors import ModelError
from tov.tasks.base import Defaults, Part, Task

if TYPE_CHECKING:
    import numpy as np

    from tov.text.encode import Encoded

PROBE = ("Ann", "lives", "in", "Oslo,", "isn't", "she?")
"""Words that show whether a tokenizer takes them as it takes the words of a text."""
_BARE = {"add_special_tokens": False, "return_attention_mask": False}


@dataclass(frozen=True)
class Tagged:
    """A sentence as words, each with a BIO2 tag.

    Attributes:
        words: (T,) words.
        tags: (T,) `O`, `B-TYPE` or `I-TYPE`.
        repaired: whether a tag was made BIO2.
        spans: entities that were given as spans of characters.
        cuts: those of them that begin or end inside a word, in words.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    repaired: bool = field(default=False, compare=False)
    spans: int = field(default=0, compare=False)
    cuts: tuple[str, ...] = field(default=(), compare=False)

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
    return _from_tags(row, "ner_tags", reading)


def from_labels(row: Mapping[str, Any], reading: Reading) -> Tagged:
    """`tokens` with `labels`: tags as strings or ids."""
    return _from_tags(row, "labels", reading)


def _from_tags(row: Mapping[str, Any], name: str, reading: Reading) -> Tagged:
    check_gold(row)
    words, values = as_list(row["tokens"], "tokens"), as_list(row[name], name)
    if len(words) != len(values):
        raise BadRow(f"there are {len(words)} tokens, but {len(values)} {name}")
    return _tagged(words, [label_text(tag, name, reading) for tag in values], reading)


def from_spans(row: Mapping[str, Any], reading: Reading) -> Tagged:
    """`text` with `entities`, each with `start`, `end` (characters, end excluded) and `label`.

    Words are those of `tov.data.words`, cut where an entity starts or ends inside one.
    """
    check_gold(row)
    text, spans = as_text(row["text"], "text"), _spans(row["entities"], as_text(row["text"], "text"))
    whole, starts = word_places(text), [start for start, _, _ in spans]
    words, tags, seen = [], [], set[int]()
    for start, end in cut_at(whole, {edge for span in spans for edge in span[:2]}):
        before = bisect.bisect_right(starts, start) - 1
        inside = before if before >= 0 and end <= spans[before][1] else None
        words.append(text[start:end])
        tags.append(OUTSIDE if inside is None else f"{'I' if inside in seen else 'B'}-{spans[inside][2]}")
        if inside is not None:
            seen.add(inside)
    if len(seen) < len(spans):
        start, end, label = next(span for at, span in enumerate(spans) if at not in seen)
        raise BadRow(f"the {label} at {start}:{end} holds no word, but {text[start:end]!r}")
    cuts = tuple(_cuts(text, spans, whole))
    return replace(_tagged(words, tags, reading), spans=len(spans), cuts=cuts)


def _cuts(text: str, spans: Sequence[tuple[int, int, str]], words: Sequence[tuple[int, int]]) -> Iterator[str]:
    """`the LOC at 0:6, 'Berlin', cuts 'Berliner'`, of each span that begins or ends inside a word."""
    starts = [start for start, _ in words]
    for start, end, label in spans:
        at = [bisect.bisect_left(starts, edge) - 1 for edge in (start, end)]  # of the word that begins before the edge
        cut = next(
            (words[one] for one, edge in zip(at, (start, end), strict=True) if one >= 0 and edge < words[one][1]), None
        )
        if cut:
            yield f"the {label} at {start}:{end}, {text[start:end]!r}, cuts {text[cut[0] : cut[1]]!r}"


def _tagged(words: Sequence[Any], tags: list[str], reading: Reading) -> Tagged:
    if not words:
        raise BadRow("the row has no words")
    for place, word in enumerate(words, 1):
        if not isinstance(word, str) or not word.strip():
            raise BadRow(f"word {place} is {'empty' if isinstance(word, str) else named_kind(word)}")
    mapped = [reading.mapping.get(tag, tag) if tag not in (OUTSIDE, "") else tag for tag in tags]
    checked = bio2(words, mapped, repair=reading.repair)
    return Tagged(tuple(words), tuple(_mapped(tag, reading.mapping) for tag in checked), repaired=checked != mapped)


def _mapped(tag: str, mapping: Mapping[str, str]) -> str:
    """A BIO2 tag by its entity type; an entry that names a whole tag (`PER: I-PER`) has been applied before.

    A type that is itself named `O` (of P, L and O) is a type: only one that is mapped to `O` is left out.
    """
    if tag == OUTSIDE or mapping.get(tag[2:]) == OUTSIDE:
        return OUTSIDE
    ours = mapping.get(tag[2:], tag[2:])
    return tag if TAG.fullmatch(ours) else f"{tag[:2]}{ours}"


def _spans(entities: Any, text: str) -> list[tuple[int, int, str]]:
    if isinstance(entities, Mapping):
        entities = _records(entities)
    spans = []
    for place, entity in enumerate(as_list(entities, "entities"), 1):
        start, end, label = _span(entity, place)
        for name, value in (("start", start), ("end", end)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise BadRow(
                    f"entity {place} has {named_kind(value)} for its {name}, but must have a number of characters"
                )
        if not 0 <= start < end <= len(text):
            raise BadRow(
                f"entity {place} is at {start}:{end}, but the text has {len(text)} characters",
                "An entity starts at a character counted from 0 and ends, excluded, after it.",
            )
        if not isinstance(label, str) or not label:
            raise BadRow(f"entity {place} has {named_kind(label)} for a label, but must have text")
        spans.append((start, end, label))
    spans.sort()
    for earlier, later in itertools.pairwise(spans):
        if earlier[1] > later[0]:
            raise BadRow(f"entities at {earlier[0]}:{earlier[1]} and {later[0]}:{later[1]} overlap")
    return spans


def _records(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A list of records that is written as a record of lists, as `datasets` gives it."""
    fix = 'Write them as [{"start": 0, "end": 4, "label": "LOC"}].'
    for name, values in columns.items():
        if not isinstance(values, list | tuple):
            raise BadRow(
                f"entities is an object whose {name} is {named_kind(values)}, but must be a list of entities", fix
            )
    if len({len(values) for values in columns.values()}) > 1:
        told = ", ".join(f"{len(values)} of {name}" for name, values in columns.items())
        raise BadRow(f"entities is an object of lists of different lengths ({told})", fix)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _span(entity: Any, place: int) -> Sequence[Any]:
    """Start, end and label of an entity: a record, Doccano's record, or spaCy's and Doccano's list of the three."""
    if isinstance(entity, list | tuple) and len(entity) == 3:
        return entity
    for names in (("start", "end", "label"), ("start_offset", "end_offset", "label")):
        if isinstance(entity, Mapping) and set(names) <= set(entity):
            return [entity[name] for name in names]
    held = f"has {', '.join(map(str, entity))}" if isinstance(entity, Mapping) else f"is {named_kind(entity)}"
    raise BadRow(
        f"entity {place} {held}, but must have start, end and label", "Or write each as a list: [start, end, label]."
    )


class NamedEntities(Task[Tagged]):
    """Sentences with entities."""

    name = "ner"
    title = "named entities"
    hint = "tokens + tags"
    layouts = (
        Layout("tokens+ner_tags", name, ("tokens", "ner_tags"), from_tags, "ner_tags", beside=("answer",)),
        Layout("tokens+labels", name, ("tokens", "labels"), from_labels, "labels", beside=("answer",)),
        Layout("spans", name, ("text", "entities"), from_spans, converted=True, beside=("answer",)),
    )
    auto_model = "AutoModelForTokenClassification"
    peft_type = "TOKEN_CLS"
    new_head = True
    metric = "entity F1"
    unit = "word"
    length = "words"
    defaults = Defaults(
        lora_r=8, learning_rate=2e-3, target_learning_rate_ratio=1.0, amplify=1.0,
        normalize="none", train_learning_rate=2e-3, pilot_train_rows=2048,
    )  # fmt: skip
    columns = ("tov_tokens", "tov_tags")
    read_from: ClassVar[Mapping[str, str]] = {"tokens": "tov_tokens", "ner_tags": "tov_tags"}

    def encode(self, tokenizer: Any, rows: Sequence[Tagged], /, *, max_length: int, labels: tuple[str, ...]) -> Encoded:
        """The first sub-token of a word carries its tag, the others and the special tokens none."""
        import numpy as np

        from tov.text.encode import IGNORED, pack

        places = {label: place for place, label in enumerate(labels)}
        space = leading_space(tokenizer)
        encoded = tokenizer(
            [_spaced(row.words, space) for row in rows], is_split_into_words=True, truncation=True, max_length=max_length,
            return_attention_mask=False,
        )  # fmt: skip
        packed, sizes, lost = [], [], []
        for row, kept in zip(rows, encoded.encodings, strict=True):
            tags, first = np.full(len(kept.ids), IGNORED), _first_tokens(kept, space)
            for word, token in first.items():
                tags[token] = places[row.tags[word]]
            packed.append((np.array(kept.ids), tags))
            sizes.append(len(first))
            beyond = {word for rest in kept.overflowing for word in _first_tokens(rest, space)}
            lost.append(len(beyond - first.keys()))
        return pack(packed, np.array(sizes), np.array(lost))

    def open_tokenizer(self, name: str, load: Callable[..., Any]) -> Any:
        """A fast one, which tells a word's tokens. One whose words would stick together is asked to put a space before each,
        as RoBERTa's authors have it; if it cannot, `encode` does it."""
        tokenizer = load()
        if not tokenizer.is_fast:
            raise ModelError(
                f"The tokenizer of '{name}' does not tell which word a token is from.",
                fix="Use a model with a tokenizer.json.",
            )
        if getattr(tokenizer, "add_prefix_space", True) or not leading_space(tokenizer):
            return tokenizer
        spaced = load(add_prefix_space=True)
        # Some put the space before each piece of a word as well, which makes `Oslo ,` of `Oslo,`.
        wanted = tokenizer(" " + " ".join(PROBE), **_BARE)["input_ids"]
        return spaced if spaced(list(PROBE), is_split_into_words=True, **_BARE)["input_ids"] == wanted else tokenizer

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
        from tov.metrics import entity_f1

        return entity_f1(*(self.predictions(labels, ids, offsets) for ids in (gold, predicted)))

    def predictions(self, labels: Sequence[str], ids: np.ndarray, offsets: np.ndarray) -> list[list[str]]:
        """The tags of each sentence's words."""
        import numpy as np

        return [list(row) for row in np.split(np.array(labels, dtype=object)[ids], offsets[1:-1])]

    def traits(self, row: Tagged) -> Collection[str]:
        """Which entity types it has."""
        return [f"have the entity type {label}" for label in row.labels] or ["have no entity"]

    def parts(self, row: Tagged) -> list[Part]:
        """Entities by their types, and the words between them."""
        spans: list[tuple[str, list[str]]] = []
        for tag, word in zip(row.tags, row.words, strict=True):
            if spans and not tag.startswith("B-") and spans[-1][0] == tag[2:]:
                spans[-1][1].append(word)
            else:
                spans.append((tag[2:], [word]))
        return [Part(kind, " ".join(words), True) for kind, words in spans] or [Part("", "", False)]

    def columns_as_read(self, rows: Sequence[Tagged]) -> Mapping[str, Sequence[Any]]:
        """Words and tags."""
        return {"tov_tokens": [row.words for row in rows], "tov_tags": [row.tags for row in rows]}


def leading_space(tokenizer: Any) -> bool:
    """Whether words must be given with their space in front, because the tokenizer would make `AnnlivesinOslo` of them.

    It is tried: words that are given one by one must become the tokens that they are in a text.
    """
    alone = tokenizer(list(PROBE), is_split_into_words=True, **_BARE)["input_ids"]
    text = tokenizer(" ".join(PROBE), **_BARE)["input_ids"]
    if alone == text:
        return False
    spaced = tokenizer(_spaced(PROBE, True), is_split_into_words=True, **_BARE)["input_ids"]
    return bool(spaced == text) or not any(map(str.isspace, tokenizer.decode(alone)))


def _first_tokens(encoding: Any, space: bool) -> dict[int, int]:
    """Word -> the first of its tokens; a token of the space alone shows nothing of its word yet."""
    found: dict[int, int] = {}
    for token, (word, (_, end)) in enumerate(zip(encoding.word_ids, encoding.offsets, strict=True)):
        if word is not None and not (space and word and end <= 1):
            found.setdefault(word, token)
    return found


def _spaced(words: Sequence[str], space: bool) -> list[str]:
    """Words as the tokenizer gets them. The first has no space before it, as at the start of a text: with it, a row's tokens
    would not be those of its text, which the model is given once it is trained."""
    return [f" {word}" if space and place else word for place, word in enumerate(words)]
