"""A text as words, by their places: for entities that are given as spans of characters. Must not know rows or tags.

A word is a run of letters and digits of any script, with the marks that belong to them (Devanagari's vowel signs, accents of
decomposed text, joiners) and apostrophes inside. Every other visible sign is a word of its own. Scripts that put no space
between words, or none between a name and its particle (Korean), have a word for each character as a reader sees it: where
their words begin cannot be known without a dictionary, and must not be guessed from the entities.
"""

from __future__ import annotations

import itertools
import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaa7f"
    "\u1100-\u11ff\ua960-\ua97f\uac00-\ud7ff\u3130-\u318f"
    "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3031-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
"""South-East Asian scripts from Thai to Javanese; Hangul; Han, Kana and Bopomofo. As ranges of a character class."""
_BLANK = r"\s\u200b\ufeff"
"""White space, and the zero-width space that parts words in Thai and Khmer."""
_STACKERS = "\u1039\u17d2\u1a60\u1b44\ua9c0"
"""Signs that put the next consonant below the one before."""
_HANGUL = "[\u1100-\u115f\ua960-\ua97c]+[\u1160-\u11a7\ud7b0-\ud7c6]*[\u11a8-\u11ff\ud7cb-\ud7fb]*"
"""A syllable in its parts, as decomposed text has it."""


def word_places(text: str) -> list[tuple[int, int]]:
    """Start and end (excluded) of each word."""
    return [match.span() for match in _pattern().finditer(text)]


def is_unspaced(character: str) -> bool:
    """Whether it is of a script that has a word for each character."""
    return bool(_of_unspaced().match(character))


@cache
def _of_unspaced() -> re.Pattern[str]:
    return re.compile(f"[{_UNSPACED}]")


def cut_at(places: Iterable[tuple[int, int]], edges: set[int]) -> list[tuple[int, int]]:
    """The same words, cut where an edge lies inside one."""
    parts: list[tuple[int, int]] = []
    for start, end in places:
        parts += itertools.pairwise([start, *(at for at in range(start + 1, end) if at in edges), end])
    return parts


@cache
def _pattern() -> re.Pattern[str]:
    marks = _marks()
    letter = rf"[^\W{_UNSPACED}][{marks}]*"
    apart = rf"[{_UNSPACED}][{marks}]*(?:(?<=[{_STACKERS}])[{_UNSPACED}][{marks}]*)*"
    sign = rf"[^\w{_BLANK}][{marks}]*(?:(?<=\u200d)[^\w{_BLANK}][{marks}]*)*"  # joined signs, as in emoji
    return re.compile(rf"(?:{letter})+(?:['’](?:{letter})+)*|{_HANGUL}[{marks}]*|{apart}|{sign}")


def _marks() -> str:
    """What belongs to the character before it: combining marks, joiners and other format characters, skin tones."""
    codes = [
        code
        for code in range(0x300, sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me", "Cf") or 0x1F3FB <= code <= 0x1F3FF
    ]
    codes = sorted({*codes, 0xAD, 0xE33, 0xEB3} - {0x200B, 0xFEFF})  # soft hyphen; vowels that follow as letters
    runs = itertools.groupby(enumerate(codes), lambda pair: pair[1] - pair[0])
    ranges = [[code for _, code in run] for _, run in runs]
    return "".join(f"{chr(run[0])}-{chr(run[-1])}" if len(run) > 1 else chr(run[0]) for run in ranges)
