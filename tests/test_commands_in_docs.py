"""Every command that the documents show is one that tov takes, every link leads somewhere, and the site can be built."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import api_page
import cli_page
from conftest import skip_without
from tov.cli.main import VERBS, tov
from tov.errors import TovError
from tov.methods import page as methods_page

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROMPT = re.compile(r"^(?:\$ )?((?:[A-Z_]+=\S+ )*)tov (?=[a-z-])")
"""A command, at the beginning of a line of a block, after variables of its environment."""
SITE = ROOT / "mkdocs.yml"


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


@pytest.mark.parametrize(
    ("page", "made"),
    [("cli.md", cli_page.page), ("api.md", api_page.page), ("methods.md", methods_page.whole_page)],
    ids=["commands", "functions", "methods"],
)
def test_pages_made_from_the_code_are_what_it_says(page: str, made: object) -> None:
    assert callable(made)
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == made(), "make docs writes it anew"


def anchors(text: str) -> set[str]:
    """What a link may name behind `#`: headings as GitHub and the site write them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#{1,6} (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> Iterator[str]:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def broken(file: Path, link: str) -> bool:
    """Whether a link of a page leads nowhere; one to another server is not followed."""
    if re.match(r"https?:|mailto:", link):
        return False
    path, _, anchor = link.partition("#")
    goal = (file.parent / path).resolve() if path else file
    if not goal.exists() or ROOT not in goal.parents:
        return True
    return bool(anchor) and anchor not in anchors(goal.read_text(encoding="utf-8"))


def test_every_link_of_the_documents_leads_somewhere() -> None:
    found = [(file, link) for file in PAGES for link in links(file.read_text(encoding="utf-8"))]
    assert len(found) > 100
    wrong = [f"{file.relative_to(ROOT)}: {link}" for file, link in found if broken(file, link)]
    assert not wrong, "\n".join(wrong)


def test_a_broken_link_is_noticed() -> None:
    page = ROOT / "docs" / "plan.md"
    assert broken(page, "no-such-page.md")
    assert broken(page, "data.md#no-such-heading")
    assert broken(page, "#no-such-heading")
    assert not broken(page, "data.md#which-of-its-tokens-are-scored")


def test_every_page_has_a_place_in_the_site() -> None:
    named = set(re.findall(r": ([\w/-]+\.md)$", SITE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    there = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").glob("*.md")}
    assert there <= named, "mkdocs.yml lacks a page"


def test_the_site_is_built_without_a_warning_and_asks_no_network(tmp_path: Path) -> None:
    skip_without("mkdocs", "mkdocs-material", install="pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "site" / "search" / "search_index.js").is_file(), "the search works from files"
    fetched = re.compile(
        r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//|<link(?![^>]+canonical)[^>]+href=\"?(?:https?:)?//"
    )
    asks = [
        page.name for page in (tmp_path / "site").rglob("*.html") if fetched.search(page.read_text(encoding="utf-8"))
    ]
    assert not asks
