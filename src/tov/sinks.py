"""Foreign text made harmless, one function for each place where it may end up: terminal, Markdown, JSON, picture.

File names, labels, names of sources and of methods, and rows are whatever their authors made them. Imports nothing of tov.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tab and line feed, DEL, C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # what turns the direction of writing, and ends a line
    "\u180e\u200b\u2060-\u2065\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # what is there and is not seen
    "\ud800-\udfff"  # half characters: bytes of a file's name that are no UTF-8
)
_ON_A_LINE = re.compile(f"[\t\n{_HIDDEN}]")
_ON_LINES = re.compile(f"[{_HIDDEN}]")
_MARKS = re.compile(r"([\\`*<>\[\]|$~#!])|(&(?=#?\w+;))|(?<!\w)(_)|(_)(?!\w)")
"""Signs that mean something in Markdown; an underscore inside a word does not."""


def line(text: object) -> str:
    """On one line, with every control character, turn of direction and half character as an escape that is seen."""
    return _ON_A_LINE.sub(_seen, str(text))


def argument(text: object) -> str:
    """A name as a shell takes it, to be copied from a terminal."""
    return shlex.quote(line(text))


def terminal(text: object) -> str:
    """As `line`, for a text of ours that has lines of its own."""
    return _ON_LINES.sub(_seen, str(text))


def _seen(match: re.Match[str]) -> str:
    code = ord(match[0])
    known = {9: r"\t", 10: r"\n", 13: r"\r"}.get(code)
    return known or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def markdown(text: object) -> str:
    """In running Markdown, and in a cell of a table: what it shows is the text, and nothing else."""
    shown = line(text)
    return _MARKS.sub(
        lambda match: "&lt;" if match[0] == "<" else "&amp;" if match[0] == "&" else f"\\{match[0]}", shown
    )


def note(text: object) -> str:
    """A sentence of ours with foreign names in it: our own punctuation stays as it is, what could do harm does not."""
    return re.sub(
        r"\$|\](?=[(\[:])|<(?=[\w/!?])", lambda match: "&lt;" if match[0] == "<" else f"\\{match[0]}", line(text)
    )


def code(text: object) -> str:
    """As inline code in Markdown; a bar is escaped, as tables want it."""
    shown = line(text).replace("|", r"\|")
    runs = re.findall("`+", shown)
    if not runs:
        return f"`{shown}`" if shown.strip() else "` `"
    fence = "`" * (1 + max(map(len, runs)))
    return f"{fence} {shown} {fence}"


def cell(text: object) -> str:
    """Of a Markdown table, whoever made it: on one line, and no bar ends it early."""
    return re.sub(r"(?<!\\)\|", r"\|", line(text))


def picture(text: object) -> str:
    """In a picture by matplotlib, which hides labels that begin with an underscore; mathematics is off (`figures.STYLE`)."""
    shown = line(text)
    return f" {shown}" if shown.startswith("_") else shown


def json_text(value: Any) -> str:
    """A value as JSON, letters of any script as they are."""
    return json.dumps(value, ensure_ascii=False, default=str)


def json_line(value: Any) -> str:
    """A value as JSON on one line, in ASCII: any terminal and any encoding shows it, any reader reads it back."""
    return json.dumps(value, ensure_ascii=True, default=str).replace("\x7f", r"\u007f")
