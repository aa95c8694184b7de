"""The page of two selections side by side: what both chose, what either alone, and how the sources shift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tov.progress import counted
from tov.reports.html import charts
from tov.reports.html.page import Chart, Page, Section, Table
from tov.reports.summary import share

SHOWN = "Rows that only one of the two has chosen; as many as were stored to be shown."


def pair_page(
    names: tuple[str, str], chosen: tuple[Mapping[Any, str], Mapping[Any, str]], rows: dict[str, Any] | None
) -> Page:
    """The page.

    Args:
        names: of the runs.
        chosen: of each run, what tells a row (its content) -> its source.
        rows: the table of the rows that one of the two has alone, as `tov.reports.html.selection` has it.
    """
    one, two = chosen
    both, gained, lost = one.keys() & two.keys(), two.keys() - one.keys(), one.keys() - two.keys()
    sources = sorted({*one.values(), *two.values()})
    counts = [{source: sum(value == source for value in of.values()) for source in sources} for of in chosen]
    data = [
        {
            "source": source,
            "of": of,
            "rows": counts[place][source],
            "share": counts[place][source] / max(len(chosen[place]), 1),
        }
        for source in sources
        for place, of in enumerate(names)
    ]
    table = Table(
        "Rows by source",
        ["source", names[0], "share", names[1], "share", "gained", "lost"],
        [
            [
                source,
                f"{counts[0][source]:,}",
                share(counts[0][source], len(one)),
                f"{counts[1][source]:,}",
                share(counts[1][source], len(two)),
                f"{sum(two[key] == source for key in gained):,}",
                f"{sum(one[key] == source for key in lost):,}",
            ]
            for source in sources
        ],
    )
    union = len(both) + len(gained) + len(lost)
    said = (
        f"{names[1]} shares {len(both):,} of its {counted(len(two), 'rows')} with {names[0]} ({share(len(both), len(two))}); "
        f"{counted(len(gained), 'rows')} {_are(len(gained))} new and {len(lost):,} {_are(len(lost))} gone."
    )
    return Page(
        kind="two selections",
        title=f"{names[0]} and {names[1]}",
        verdict=said,
        facts=[("first", names[0]), ("second", names[1]), ("overlap (Jaccard)", share(len(both), union))],
        sections=[
            Section(
                "composition",
                "How the sources shift",
                charts=[Chart("composition", charts.composition(*names), data)],
                tables=[table],
            ),
            Section(
                "rows",
                "Rows gained and lost",
                lead=[SHOWN if rows else "One of the runs is of an earlier version and has stored no rows to show."],
                rows=rows is not None,
            ),
        ],
        rows=rows,
        rows_are="Rows that only one of the two selections has: gained and lost",
        rows_in="The chosen rows are in selected.jsonl of each run.",
    )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
