"""What a notebook shows of a result: a few lines of HTML, all foreign text escaped."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tov.reports import comparison as markdown
from tov.reports.html import comparison, selection
from tov.reports.summary import share
from tov.runs.manifest import Manifest
from tov.sinks import line


def page_of(folder: Path, place: str) -> str:
    """Where the page of a run is, or the command that makes it."""
    return f"{place}/report.html" if (folder / "report.html").exists() else f"tov report {shlex.quote(place)}"


def selection_card(manifest: Manifest, page: str) -> str:
    """Of a selection; `page` is where its page is, or the command that makes it."""
    choice = manifest.summary["choice"]
    pool, chosen = (sum(row[key] for row in choice["composition"]) for key in ("pool", "chosen"))
    rows = [
        [
            row["source"],
            f"{row['pool']:,}",
            share(row["pool"], pool),
            f"{row['chosen']:,}",
            share(row["chosen"], chosen),
        ]
        for row in sorted(choice["composition"], key=lambda row: -row["chosen"])
    ]
    warnings = manifest.checks.warnings if manifest.checks else []
    return _card(
        selection.verdict(manifest),
        warnings,
        ["source", "pool", "share", "chosen", "share"],
        rows,
        page,
    )


def comparison_card(results: Mapping[str, Any], page: str) -> str:
    """Of a comparison, likewise."""
    rows = [
        [one["variant"], f"{size['n']:,}", markdown.gain_of(one), markdown.worth(one["equivalent"])]
        for size in results["sizes"]
        for one in size["variants"]
    ]
    header = ["variant", "rows", "better than random, %", "worth × random rows"]
    return _card(comparison.verdict(results), results["notes"], header, rows, page)


def _card(verdict: str, notes: Sequence[str], header: Sequence[str], rows: Sequence[Sequence[str]], page: str) -> str:
    head = "".join(f"<th>{_text(one)}</th>" for one in header)
    body = "".join(f"<tr>{''.join(f'<td>{_text(one)}</td>' for one in row)}</tr>" for row in rows)
    points = f"<ul>{''.join(f'<li>{_text(one)}</li>' for one in notes)}</ul>" if notes else ""
    return (
        f"<div><p><b>{_text(verdict)}</b></p>{points}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<p>page: {_text(page)}</p></div>"
    )


def _text(text: str) -> str:
    return escape(line(text))
