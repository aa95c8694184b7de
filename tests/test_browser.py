"""Pages in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tov
from conftest import skip_without
from test_page import picked  # noqa: F401
from tiny import make_rows
from tov.reports.html.page import html
from tov.reports.html.selection import selection_page
from tov.runs.folder import open_run
from tov.verbs import shown as shown_rows
from tov.verbs.report import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    skip_without("playwright", install="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        # Tests run as root in containers, where Chromium's sandbox is not to be had.
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


class Opened:
    """A page in the browser, with all that it complained of and asked for."""

    def __init__(
        self, browser: Any, file: Path, *, width: int = 1280, height: int = 900, scheme: str = "light"
    ) -> None:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page, self.said, self.asked = context.new_page(), list[str](), list[str]()
        self.page.on("console", lambda one: self.said.append(one.text) if one.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda one: (self.said.append(one.message), one.dismiss()))
        self.page.on("request", lambda one: self.asked.append(one.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-drawn=yes]", timeout=120_000)

    def count(self) -> int:
        """Rows that the table's filters leave."""
        text = self.page.inner_text(".dt-info")
        return int(text.split(" of ")[1].split(" ")[0].replace(",", ""))


@pytest.fixture
def opened(browser: Any, picked: Any) -> Opened:  # noqa: F811
    return Opened(browser, picked.folder / "report.html")


@pytest.mark.slow
def test_nothing_is_complained_of_and_nothing_leaves_the_machine(opened: Opened) -> None:
    opened.page.click("button.open >> nth=0")
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert opened.page.evaluate("document.querySelectorAll('.chart svg').length") == 4


def test_the_table_sorts_searches_and_filters(opened: Opened, picked: Any) -> None:  # noqa: F811
    page, whole = opened.page, opened.count()
    assert whole == len(shown_of(picked)["rows"]["id"])
    page.select_option("#of-group", "by score")
    assert opened.count() == 10
    page.select_option("#of-group", "all")
    page.fill(".dt-search input", "right to left")
    assert 1 <= opened.count() < whole
    page.fill(".dt-search input", "")
    page.select_option(".dt-length select", "100")
    page.click("#row-table th >> text=Score")
    page.click("#row-table th >> text=Score")
    texts = page.eval_on_selector_all(
        "#row-table tbody tr td:nth-child(4)", "cells => cells.map(one => one.textContent)"
    )
    values = [float(text) for text in texts if text != "–"]
    assert len(values) > 10
    assert values in (sorted(values), sorted(values, reverse=True))


def test_brushing_the_chart_filters_the_table(opened: Opened) -> None:
    page, whole = opened.page, opened.count()
    page.locator("[data-chart=points] svg").scroll_into_view_if_needed()
    box = page.locator("[data-chart=points] svg").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.95, box["y"] + box["height"] * 0.6, steps=5)
    page.mouse.up()
    page.wait_for_selector("#no-brush:visible")
    assert opened.count() < whole
    page.click("#no-brush")
    page.wait_for_function(f"document.querySelector('.dt-info').textContent.includes(' of {whole} ')")


def test_a_row_opens_by_the_keyboard_with_its_tokens_and_target_rows(opened: Opened) -> None:
    page = opened.page
    page.focus("button.open >> nth=0")
    page.keyboard.press("Enter")
    detail = page.inner_text(".detail")
    assert "rank 1 of" in detail
    assert "Length bin" in detail
    assert "Token by token" in detail
    assert "The nearest target rows" in detail
    assert page.get_attribute("button.open >> nth=0", "aria-expanded") == "true"
    assert page.locator(".tokens .up, .tokens .down").count() > 0
    page.keyboard.press("Enter")
    assert page.locator(".detail").count() == 0


def test_a_row_without_tokens_says_so_and_has_its_target_rows(browser: Any, tmp_path: Path, tiny_folder: Path) -> None:
    run = tov.select(
        model=str(tiny_folder), pool=make_rows(20, seed=1), target=make_rows(5, seed=2), n=6, method="rds", max_length=64,
        quiet=True, out=tmp_path / "run",
    )  # fmt: skip
    opened = Opened(browser, run.folder / "report.html")
    opened.page.click("button.open >> nth=0")
    detail = opened.page.inner_text(".detail")
    assert "The nearest target rows" in detail
    assert "Token by token" not in detail
    assert "No single tokens: rds says nothing of single tokens." in detail
    assert opened.said == []


@pytest.mark.slow
def test_rows_that_would_do_harm_are_inert_and_readable(opened: Opened) -> None:
    page = opened.page
    page.select_option(".dt-length select", "100")
    for button in page.locator("button.open").all():
        button.click()
    text = page.inner_text("#row-table")
    assert "</script><script>" in text
    assert "<svg onload=" in text
    assert "{{ page }}" in text
    assert "owned" not in page.title()
    assert page.locator("#row-table img, #row-table svg, #row-table script, h1 img").count() == 0
    assert opened.said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark"), (820, "light")])
def test_it_fits_a_phone_and_a_dark_screen(browser: Any, picked: Any, width: int, scheme: str) -> None:  # noqa: F811
    opened = Opened(browser, picked.folder / "report.html", width=width, scheme=scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.said == []
    ink = opened.page.evaluate("getComputedStyle(document.body).color")
    assert (ink == "rgb(230, 233, 238)") == (scheme == "dark")
    assert opened.page.evaluate("document.querySelector('.chart svg text').getAttribute('fill')") == {
        "dark": "#e6e9ee"
    }.get(scheme, "#1b1f24")


def test_it_prints(browser: Any, picked: Any, tmp_path: Path) -> None:  # noqa: F811
    opened = Opened(browser, picked.folder / "report.html", scheme="dark")
    opened.page.pdf(path=str(tmp_path / "page.pdf"), print_background=True)
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    opened.page.emulate_media(media="print", color_scheme="light")
    assert not opened.page.is_visible(".filters")
    assert opened.said == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["selection", "pair", "grid"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Any, picked: Any, tmp_path: Path, kind: str, scheme: str) -> None:  # noqa: F811
    skip_without("axe-playwright-python", install="pip install axe-playwright-python")
    from axe_playwright_python.sync_playwright import Axe

    file = picked.folder / "report.html"
    if kind == "pair":
        other = tov.reselect(picked, n=12, rule="score-only", out=tmp_path / "other", quiet=True)
        file = report(picked, other, out=tmp_path / "pair.html").file
    if kind == "grid":
        results = Path(__file__).parents[1] / "docs" / "results" / "ner-quick"
        file = report(results, out=tmp_path / "grid.html").file
    opened = Opened(browser, file, scheme=scheme)
    if kind == "selection":
        opened.page.click("button.open >> nth=0")
    found = Axe().run(opened.page).response["violations"]
    bad = {one["id"]: [node["html"][:120] for node in one["nodes"][:3]] for one in found if one["impact"] in SERIOUS}
    assert not bad, json.dumps(bad, indent=1)


def shown_of(run: Any) -> dict[str, Any]:
    found = shown_rows.read(open_run(run.folder))
    assert found
    return found


@pytest.mark.slow
def test_ten_thousand_rows(browser: Any, picked: Any, tmp_path: Path) -> None:  # noqa: F811
    """benchmarks/page.py tells how fast they are; here they are all there, and sort."""
    shown = shown_of(picked)
    copies = 10_000 // len(shown["rows"]["id"]) + 1
    shown["rows"] = {name: (values * copies)[:10_000] for name, values in shown["rows"].items()}
    shown["rows"]["id"] = list(range(10_000))
    page = selection_page(open_run(picked.folder).manifest, shown, "runs/a")
    file = tmp_path / "large.html"
    file.write_text(html(page, version="0", cache=Path(os.environ.get("TOV_CACHE") or tmp_path)), "utf-8")
    opened = Opened(browser, file)
    assert opened.count() == 10_000
    opened.page.click("#row-table th >> text=Row")
    opened.page.click("#row-table th >> text=Row")
    first = opened.page.inner_text("#row-table tbody tr:first-child td:nth-child(8)")
    assert first in ("0", "9999")
    assert opened.said == []
