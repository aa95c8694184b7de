"""Tags of words checked to be BIO2 (`O`, `B-TYPE`, `I-TYPE`), or made so. Must not know files or rows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tov.data.cells import BadRow

OUTSIDE = "O"
TAG = re.compile(r"(?P<place>[BI])-(?P<type>.+)", re.DOTALL)
_OTHER_TAG = re.compile(r"(?P<place>[ELMSUW])-(?P<type>.+)", re.DOTALL)
"""Of BIOES, BILOU, BMES and BMEWO: the end or middle of an entity, or an entity of one word."""
_SINGLE, _LAST = "SUW", "ELSUW"
_REPAIR = "--repair-bio makes the tags BIO2 and counts what it changed."
_BEFORE = re.compile(r"(?P<place>[BIELMSUW])[-_:.](?P<type>\S.*)", re.DOTALL | re.IGNORECASE)
_AFTER = re.compile(r"(?P<type>.*\S)[-_:.](?P<place>[BIELMSUW])", re.DOTALL | re.IGNORECASE)


def bio2(words: Sequence[str], tags: Sequence[str], *, repair: bool) -> list[str]:
    """The tags, checked to be BIO2, or made so.

    IOB1, BIOES, BILOU and BMES lose nothing by it. IO cannot part neighbours of one type, so these become one entity.

    Raises:
        BadRow: a tag is not BIO2 and `repair` is not asked for, or is of no scheme known; with the word.
    """
    out: list[str] = []
    closed = False  # whether the word before was the last of its entity
    for place, (word, tag) in enumerate(zip(words, tags, strict=True), 1):
        if tag == OUTSIDE:
            out.append(tag)
            continue
        other = _OTHER_TAG.fullmatch(tag) if repair else None
        if other:
            tag = f"{'B' if other['place'] in _SINGLE else 'I'}-{other['type']}"
        match = TAG.fullmatch(tag)
        if not match:
            raise BadRow(f"word {place} '{word}' has the tag '{tag}', but must have O, B-TYPE or I-TYPE", _remedy(tag))
        before = out[-1] if out else OUTSIDE
        if match["place"] == "I" and (closed or before[2:] != match["type"]):
            if not repair:
                raise BadRow(f"word {place} '{word}' has {tag} after {before}, but an entity starts with B-", _REPAIR)
            tag = f"B-{match['type']}"
        out.append(tag)
        closed = other is not None and other["place"] in _LAST
    return out


def _remedy(tag: str) -> str:
    """What helps with a tag that is not BIO2: how it would be written, where that can be told."""
    if _OTHER_TAG.fullmatch(tag):
        return _REPAIR
    if tag.isdecimal():
        return "Tags can be named by --label-map, e.g. '3: B-PER'."
    if tag.upper() == OUTSIDE:
        return f"Write O, or map it by --label-map: '{tag}: O'."
    match = _BEFORE.fullmatch(tag) or _AFTER.fullmatch(tag)
    if not match:
        return f"Write B-{tag} or I-{tag}; or --label-map with '{tag}: I-{tag}', and --repair-bio."
    meant = f"{match['place'].upper()}-{match['type']}"
    also = "" if TAG.fullmatch(meant) else ", and --repair-bio"
    return f"The letter is a capital and stands before a hyphen: write {meant}, or --label-map with '{tag}: {meant}'{also}."
