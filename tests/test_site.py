"""The site: pages made from the code are up to date, every link leads somewhere, and what is built asks no network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import api_page
import cli_page
from conftest import skip_without
from test_browser import browser  # noqa: F401
from test_commands_in_docs import PAGES, ROOT
from tov.methods import page as methods_page

SITE = ROOT / "mkdocs.yml"


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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    skip_without("mkdocs", "mkdocs-material", install="pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.slow
def test_no_page_of_the_site_fetches_anything(site: Path) -> None:
    fetched = re.compile(r"<(?:script|img|iframe|link)[^>]+(?:src|href)=\"?(?:https?:)?//")
    pages = list(site.rglob("*.html"))
    assert {"index.html", "tour.html", "SECURITY.html", "CHANGELOG.html"} <= {page.name for page in pages}
    assert not [page.name for page in pages if fetched.search(page.read_text(encoding="utf-8"))]


def test_the_results_have_live_pages(site: Path) -> None:
    links = re.findall(r'href="?(pages/[^" >]+)', (site / "results" / "index.html").read_text(encoding="utf-8"))
    assert "pages/ner-quick.html" in links
    assert "pages/ner-quick--NER-E1.html" in links
    for link in links:
        assert 'id="page-data"' in (site / "results" / link).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index.html", "results/index.html"])
def test_the_search_works_from_files(site: Path, browser: Any, page: str) -> None:  # noqa: F811
    opened, asked = browser.new_page(), list[str]()
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto((site / page).as_uri())
    opened.click("[data-md-component=search-query]")
    opened.keyboard.type("near duplicates", delay=20)
    opened.wait_for_selector(".md-search-result__item")
    found = opened.locator(".md-search-result__link").evaluate_all("links => links.map(link => link.href)")
    assert any("/checks.html" in link for link in found)
    assert all(url.startswith(("file:", "data:", "about:", "blob:")) for url in asked), asked
