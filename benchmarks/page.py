"""How large a page is, how long it takes to write, and how soon it answers in a browser.

    python benchmarks/page.py [--rows 10000] [--repeats 5] [--out page.json]

Selects from the demo's sentences with MiniLM, then shows as many rows as asked for by repeating its rows. Needs Playwright and
Chromium for the browser's times; says so where they are not there.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import tov
from tov.cli.demo_data import write_styles
from tov.objects.stores import cache_home
from tov.reports.html.page import html
from tov.reports.html.selection import selection_page
from tov.runs.folder import open_run
from tov.verbs import shown as shown_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        target, pool = write_styles(folder / "data", "pip install 'tov[demo]'")
        picked = tov.select(model="minilm", pool=pool, target=target, n=300, out=folder / "run", quiet=True)
        run = open_run(picked.folder)
        shown = shown_rows.read(run)
        assert shown
        found = {
            "demo": measured(run, shown, folder / "small.html", given.repeats),
            f"{given.rows:,} rows": measured(run, repeated(shown, given.rows), folder / "large.html", given.repeats),
        }
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    record = {
        "commit": commit,
        "cpu": platform.processor() or platform.machine(),
        "repeats": given.repeats,
        "pages": found,
    }
    print(json.dumps(record, indent=1))
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def repeated(shown: dict[str, Any], rows: int) -> dict[str, Any]:
    """As many rows as asked for, each with a number of its own."""
    copies = rows // len(shown["rows"]["id"]) + 1
    many = {name: (values * copies)[:rows] for name, values in shown["rows"].items()}
    return {**shown, "rows": {**many, "id": list(range(rows))}}


def measured(run: Any, shown: dict[str, Any], file: Path, repeats: int) -> dict[str, Any]:
    """Bytes; medians in seconds of writing, opening (until rows answer, until the charts are drawn), sorting, searching."""
    writing = []
    for _ in range(repeats):
        start = time.perf_counter()
        text = html(selection_page(run.manifest, shown, "runs/demo"), version=tov.__version__, cache=cache_home())
        file.write_text(text, "utf-8")
        writing.append(time.perf_counter() - start)
    record: dict[str, Any] = {"bytes": file.stat().st_size, "writing": statistics.median(writing)}
    try:
        record |= in_browser(file, repeats)
    except ImportError:
        record["browser"] = "Playwright is not installed"
    return record


def in_browser(file: Path, repeats: int) -> dict[str, Any]:
    """Times in Chromium, medians in seconds."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        return {"browser": "no Chromium here"}
    times: dict[str, list[float]] = {"rows": [], "opening": [], "sorting": [], "searching": []}
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(repeats):
            page = browser.new_page()
            start = time.perf_counter()
            page.goto(file.as_uri())
            page.wait_for_selector("#row-table tbody tr button")
            times["rows"].append(time.perf_counter() - start)
            page.wait_for_selector("html[data-drawn=yes]")
            times["opening"].append(time.perf_counter() - start)
            start = time.perf_counter()
            page.click("#row-table th >> text=Row")
            page.evaluate("1")  # answered when the table has been drawn
            times["sorting"].append(time.perf_counter() - start)
            start = time.perf_counter()
            page.fill(".dt-search input", "invoice")
            page.evaluate("1")
            times["searching"].append(time.perf_counter() - start)
            page.close()
        browser.close()
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
