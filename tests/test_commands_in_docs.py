"""Every command that the documents show is one that tov takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import cli_page
from tov.cli.main import VERBS, tov
from tov.errors import TovError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROMPT = re.compile(r"^(?:\$ )?((?:[A-Z_]+=\S+ )*)tov (?=[a-z-])")
"""A command, at the beginning of a line of a block, after variables of its environment."""


class Command(NamedTuple):
    place: str
    """File and line."""
    text: str


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of the lines of blocks, fenced or indented, without their indentation; not those of output."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if bare.startswith("```"):
            fence = "" if fence else bare
        elif fence not in ("", "```text") or (not fence and line.startswith("    ")):
            yield number, bare


def commands_in(file: Path, text: str) -> Iterator[Command]:
    """The commands of a page; one that goes on behind a backslash is one."""
    begun, start = "", 0
    for number, line in blocks(text):
        if not begun and not PROMPT.match(line):
            continue
        start = start if begun else number
        begun += line.removesuffix("\\")
        if not line.endswith("\\"):
            yield Command(f"{file.name}, line {start}", PROMPT.sub("", begun))
            begun = ""


def refused(text: str) -> str:
    """Why tov would not take what stands behind its name; "" if it would. Nothing is run."""
    verb, *words = shlex.split(text, comments=True)
    words = [word for raw in words if (word := raw.strip("[]")) and word != "..."]
    if verb not in VERBS:
        return f"there is no command {verb}"
    if cli_page.usage(tov.get_command(click.Context(tov), verb)) == f"tov {text}":
        return ""  # the usage line of the page of commands
    try:
        command = tov.get_command(click.Context(tov), verb)
        assert command is not None
        command.make_context(verb, words, resilient_parsing=False)
    except click.exceptions.Exit:  # --help
        return ""
    except (click.ClickException, TovError) as error:
        return error.format_message() if isinstance(error, click.ClickException) else str(error)
    return ""


def every_command() -> list[Command]:
    return [one for file in PAGES for one in commands_in(file, file.read_text(encoding="utf-8"))]


def test_every_command_of_the_documents_is_one_that_tov_takes() -> None:
    found = every_command()
    assert len(found) > 60, "the pages have more commands: they are not found"
    assert {one.text.split()[0] for one in found} == set(VERBS), "each verb stands on a page"
    wrong = [f"{one.place}: tov {one.text}: {why}" for one in found if (why := refused(one.text))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("    tov selekt --n 3", "no command selekt"),
        ("```\ntov select --modle a\n```", "--modle"),
        ("    tov export runs/a --to nemo --out b", "nemo"),
        ("    tov select --n many", "many"),
        ("    tov plan --model m \\\n        --pol p", "--pol"),
    ],
)
def test_a_wrong_command_is_noticed(line: str, why: str) -> None:
    [command] = commands_in(Path("page.md"), f"# Page\n\n{line}\n")
    assert command.place == ("page.md, line 4" if line.startswith("```") else "page.md, line 3")
    assert why in refused(command.text)


def test_commands_in_prose_and_output_are_not_taken_for_commands() -> None:
    text = "tov chose 40 rows\n\n    note: tov select\n    tov plan --n 3  # the cost\n"
    assert [one.text for one in commands_in(Path("p.md"), text)] == ["plan --n 3  # the cost"]
