"""Makes docs/api.md from the docstrings of `tov.__all__`: signatures, arguments, results, errors.

    python docs/api_page.py > docs/api.md

Knows how tov writes its docstrings; must not know which there are.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import tov

HEAD = """# Python API

`make docs` writes this page from the docstrings of `tov`. `help(tov.select)` prints the same. [From Python](python.md) shows
the functions at work. `**settings` are the flags of the command of the same name, with underscores ([command line](cli.md)).

"""
TITLES = {"Functions": inspect.isfunction, "Results": lambda one: not _is_error(one), "Errors": lambda one: True}
"""Heading -> what stands under it, unless it stands above."""
SECTIONS = ("Args", "Attributes", "Returns", "Raises")
WIDE = 100
"""Characters of a signature from which each of its parameters has a line."""


def page() -> str:
    """The whole page."""
    left, parts = {name: getattr(tov, name) for name in tov.__all__}, [HEAD]
    for title, belongs in TITLES.items():
        found = [name for name, one in left.items() if belongs(one)]
        parts += [f"## {title}\n\n", *(entry(name, left.pop(name)) for name in found)]
    return "".join(parts).rstrip() + "\n"


def _is_error(one: Any) -> bool:
    return inspect.isclass(one) and issubclass(one, BaseException)


def entry(name: str, one: Any) -> str:
    """One name: what it is, its signature if it is called, its members if it is a result."""
    text = documented(inspect.getdoc(one) or "")
    if inspect.isfunction(one):
        return f"### tov.{name}\n\n```python\n{signature(name, one)}\n```\n\n{text}\n\n"
    bases = [f"`{base.__name__}`" for base in one.__bases__ if base.__name__ in tov.__all__]
    listing = "\n".join(f"- `{member}`: {about}" for member, about in members(one))
    inherits = [f"A {' and '.join(bases)}, with all that it has."] if bases and not _is_error(one) else []
    return "\n\n".join([f"### tov.{name}", text, *inherits, *(["Members:", listing] if listing else []), ""])


def members(one: type) -> Iterator[tuple[str, str]]:
    """Public properties and methods that the class itself has, each with the first sentence of its docstring."""
    for name, member in vars(one).items():
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, (property, cached_property))):
            shown = f"{name}()" if inspect.isfunction(member) else name
            yield shown, (inspect.getdoc(member) or "").partition("\n\n")[0].replace("\n", " ")


def signature(name: str, function: Any) -> str:
    """`tov.NAME(...) -> RESULT`, with annotations as the source has them."""
    found = inspect.signature(function)
    parts, starred = list[str](), False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
        starred |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        parts.append(f"{stars}{parameter.name}: {parameter.annotation}{default}")
    short = f"tov.{name}({', '.join(parts)}) -> {found.return_annotation}"
    if len(short) <= WIDE:
        return short
    return "\n".join([f"tov.{name}(", *(f"    {part}," for part in parts), f") -> {found.return_annotation}"])


def documented(docstring: str) -> str:
    """A docstring in Markdown: its sections become lists."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", docstring, flags=re.MULTILINE)
    texts = [parts[0].strip()]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        text = textwrap.dedent(body).strip()
        texts.append(f"{title}:\n\n{text if title == 'Returns' else listed(text)}")
    return "\n\n".join(texts)


def listed(body: str) -> str:
    """`name: text` lines, those that go on indented, as a list."""
    pairs = [line.partition(": ") for line in re.sub(r"\n +", " ", body).splitlines()]
    return "\n".join(f"- `{name}`: {text}" for name, _, text in pairs)


if __name__ == "__main__":
    print(page(), end="")
