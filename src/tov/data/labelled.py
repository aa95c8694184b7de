"""Labelled rows: words with BIO2 tags, and texts with a label. Knows column layouts; must not know models or tokenizers.

A tag passes through, in this order: the dataset's own name of its id, the label map (a whole tag), the check of BIO2 (or its
repair, where asked), the label map (the entity type).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tov.data.cells import BadRow, as_list, as_text, named_kind

OUTSIDE = "O"
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_TAG = re.compile(r"(?P<place>[BI])-(?P<type>.+)", re.DOTALL)
_OTHER_TAG = re.compile(r"(?P<place>[ESLU])-(?P<type>.+)", re.DOTALL)
_REPAIR = "--repair-bio makes it BIO2 and counts what it changed"


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


@dataclass(frozen=True)
class Labelled:
    """A text with one label."""

    text: str
    label: str

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


@dataclass(frozen=True)
class Reading:
    """How the labels of one source are read.

    Attributes:
        names: the dataset's names of label ids (`datasets.ClassLabel`), or none.
        mapping: a tag, an entity type or a label -> ours (for tags also `O`).
        repair: whether tags that are not BIO2 are made so.
    """

    names: tuple[str, ...] = ()
    mapping: Mapping[str, str] = field(default_factory=dict)
    repair: bool = False


def from_tags(row: Mapping[str, Any], reading: Reading) -> Tagged:
    """`tokens` with `ner_tags`: tags as strings or ids."""
    return _from_tags(row["tokens"], row["ner_tags"], "ner_tags", reading)


def from_labels(row: Mapping[str, Any], reading: Reading) -> Tagged:
    """`tokens` with `labels`: tags as strings or ids."""
    return _from_tags(row["tokens"], row["labels"], "labels", reading)


def _from_tags(tokens: Any, tags: Any, name: str, reading: Reading) -> Tagged:
    words, given = as_list(tokens, "tokens"), as_list(tags, name)
    if len(words) != len(given):
        raise BadRow(f"{len(words)} tokens but {len(given)} {name}")
    return _tagged(words, [_named(tag, name, reading) for tag in given], reading)


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
        raise BadRow(f"the {label} at {start}:{end} holds no word: {text[start:end]!r}")
    return _tagged(words, tags, reading)


def from_label(row: Mapping[str, Any], reading: Reading) -> Labelled:
    """`text` with `label`: a string or an id."""
    text = as_text(row["text"], "text")
    if not text.strip():
        raise BadRow("the text is empty")
    label = _named(row["label"], "label", reading)
    if not label.strip():
        raise BadRow("the label is empty")
    return Labelled(text, reading.mapping.get(label, label))


def _named(value: Any, what: str, reading: Reading) -> str:
    """A label as text; an id by its name where the dataset has names."""
    if isinstance(value, str):
        return value
    if not isinstance(value, int):
        raise BadRow(f"{what} holds {named_kind(value)}, should be text or an id")
    if not reading.names:
        return str(int(value))
    if not 0 <= value < len(reading.names):
        raise BadRow(f"{what} holds the id {value}, the dataset names 0 to {len(reading.names) - 1}")
    return reading.names[value]


def _tagged(words: Sequence[Any], tags: list[str], reading: Reading) -> Tagged:
    if not words:
        raise BadRow("no words")
    for place, word in enumerate(words, 1):
        if not isinstance(word, str) or not word.strip():
            raise BadRow(f"word {place} is {'empty' if isinstance(word, str) else named_kind(word)}")
    given = [reading.mapping.get(tag, tag) if tag not in (OUTSIDE, "") else tag for tag in tags]
    checked = _bio(words, given, repair=reading.repair)
    return Tagged(tuple(words), tuple(_mapped(tag, reading.mapping) for tag in checked), repaired=checked != given)


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
        if repair and (other := _OTHER_TAG.fullmatch(tag)):
            tag = f"{'B' if other['place'] in 'SU' else 'I'}-{other['type']}"
        found = _TAG.fullmatch(tag)
        if not found:
            fix = _REPAIR if _OTHER_TAG.fullmatch(tag) else "name tags by --label-map, e.g. '3: B-PER'"
            raise BadRow(f"word {place + 1} '{word}' has the tag '{tag}', should be O, B-TYPE or I-TYPE", fix)
        before = out[-1] if out else OUTSIDE
        if found["place"] == "I" and before[2:] != found["type"]:
            if not repair:
                raise BadRow(f"word {place + 1} '{word}' has {tag} after {before}, an entity starts with B-", _REPAIR)
            tag = f"B-{found['type']}"
        out.append(tag)
    return out


def _spans(entities: Any, text: str) -> list[tuple[int, int, str]]:
    if isinstance(entities, Mapping):  # how `datasets` gives a sequence of records
        entities = [dict(zip(entities, values, strict=True)) for values in zip(*entities.values(), strict=True)]
    spans = []
    for place, entity in enumerate(as_list(entities, "entities"), 1):
        if not isinstance(entity, Mapping) or not {"start", "end", "label"} <= set(entity):
            raise BadRow(f"entity {place} is {named_kind(entity)}, should have start, end and label")
        start, end, label = entity["start"], entity["end"], entity["label"]
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(text)):
            raise BadRow(f"entity {place} is at {start}:{end} of a text of {len(text)} characters")
        if not isinstance(label, str) or not label:
            raise BadRow(f"entity {place} has {named_kind(label)} for a label, should be text")
        spans.append((start, end, label))
    spans.sort()
    for one, other in itertools.pairwise(spans):
        if one[1] > other[0]:
            raise BadRow(f"entities at {one[0]}:{one[1]} and {other[0]}:{other[1]} overlap")
    return spans


def _word_places(text: str, edges: set[int]) -> list[tuple[int, int]]:
    places: list[tuple[int, int]] = []
    for match in _WORD.finditer(text):
        cuts = [match.start(), *(at for at in range(match.start() + 1, match.end()) if at in edges), match.end()]
        places += itertools.pairwise(cuts)
    return places
