"""A page as data, and its HTML: one file that holds all it needs."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from tov.reports.html import libraries
from tov.sinks import line


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: its own on the page.
        spec: of `tov.reports.html.charts`.
        data: records.
        caption: under it.
        words: what stands for `@WORD` in the specification, beside colours.
    """

    name: str
    spec: dict[str, Any]
    data: list[dict[str, Any]]
    caption: str = ""
    words: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A plain table: numbers are texts by now.

    Attributes:
        caption: what it is.
        header: a text a column.
        rows: as many texts each.
        fold: whether it opens at a click only.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    fold: bool = False


@dataclass(frozen=True)
class Section:
    """A section: its parts stand in the order of the attributes.

    Attributes:
        id: of the heading's link.
        title: of the section.
        lead: paragraphs.
        points: a list.
        charts, tables, code: one below the other.
        rows: whether the table of rows stands here.
        style: a CSS class.
    """

    id: str
    title: str
    lead: Sequence[str] = ()
    points: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    code: Sequence[str] = ()
    rows: bool = False
    style: str = ""


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        kind: what it is of, in a word or two.
        title: of the page.
        verdict: the first thing to read, a sentence.
        facts: name and value.
        sections: in order.
        measure_lead, measure: a command that would measure what has not been measured, and what it is for.
        rows: what the table of rows shows; None without one.
        rows_are: the table's caption.
        rows_in: where the rows stand, for a reader to whom the table is not shown.
    """

    kind: str
    title: str
    verdict: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    measure_lead: str = ""
    measure: str = ""
    rows: dict[str, Any] | None = None
    rows_are: str = ""
    rows_in: str = ""


@functools.cache
def _asset(name: str) -> str:
    return (files("tov.reports.html") / "assets" / name).read_text("utf-8")


@functools.cache
def _template() -> Any:
    import jinja2

    return jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(
        _asset("page.html")
    )


def html(page: Page, *, version: str, cache: Path) -> str:
    """The page as HTML.

    Args:
        page: what it says.
        version: of tov.
        cache: folder in which what takes long to make is kept.
    """
    charts = {one.name: one for section in page.sections for one in section.charts}
    data = {
        "charts": {
            name: {"spec": one.spec, "data": one.data, "words": {key: line(word) for key, word in one.words.items()}}
            for name, one in charts.items()
        },
        "rows": page.rows,
    }
    return str(
        _template().render(
            page=page,
            version=version,
            data=_in_script(data),
            style=_asset("page.css"),
            script=_asset("page.js"),
            charts_script=libraries.charts_script(cache) if charts else "",
            table_script=libraries.table_script() if page.rows else "",
            table_style=libraries.table_style() if page.rows else "",
        )
    )


def _in_script(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it ends that or begins another."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")
