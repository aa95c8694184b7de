"""The pages of a comparison and of a grid, of their `results.json`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tov.progress import counted
from tov.reports import comparison as markdown
from tov.reports.html import charts
from tov.reports.html.charts import EDGE, gain_bars
from tov.reports.html.page import Chart, Page, Section, Table
from tov.runs.manifest import Manifest


def comparison_page(results: Mapping[str, Any], manifest: Manifest, folder: str) -> Page:
    """The page of a comparison.

    Args:
        results: of `results.json`.
        manifest: of the run.
        folder: where it lies, for commands.
    """
    sizes = results["sizes"]
    sections = [Section("notes", "Notes", points=results["notes"], style="warn")] if results["notes"] else []
    for size in sizes:
        sections.append(_gains(size, results))
    if results.get("auto"):
        sections.append(_auto(results["auto"]))
    if len(results["random_curve"]) > 1:
        sections.append(_curve(results))
    sections += [
        *(_composition(size) for size in sizes),
        Section(
            "cost",
            "Cost",
            lead=[markdown.COSTS_LEGEND],
            tables=[Table("Cost of each variant", *markdown.costs(results))],
        ),
    ]
    sections.append(
        Section(
            "again",
            "How to repeat it",
            lead=["The same settings on the same files give the same trials."],
            code=[f"tov compare {shlex.quote(folder + '/config.yaml')}"],
            tables=[Table("Versions", ["package", "version"], list(manifest.versions.items()), fold=True)],
        )
    )
    seeds = max((len(one["seeds"]) for size in sizes for one in size["variants"]), default=0)
    facts = [
        *([("model", manifest.model.name)] if manifest.model else []),
        ("seeds", str(seeds)),
        ("test", "rows that no method has seen"),
        ("started", manifest.started[:16].replace("T", " ")),
    ]
    title = f"Which rows help most: {', '.join(format(size['n'], ',') for size in sizes)} rows"
    return Page("tov comparison", title, verdict(results), facts, sections)


def verdict(results: Mapping[str, Any]) -> str:
    """The first thing to read: the best variant at the largest size, and whether its interval is above random rows."""
    for size in reversed(results["sizes"]):
        variants = _with_gain(size["variants"])
        if not variants:
            continue
        best = max(variants, key=lambda one: one["gain"]["mean"])
        gain, low = best["gain"], best["gain"]["low"]
        gain_of, seeds = markdown.gain_of(best), counted(len(best["paired"]), "seeds")
        if gain["mean"] <= 0:
            return (
                f"No variant was better than random rows at {counted(size['n'], 'rows')}; {best['variant']} came nearest "
                f"({gain_of} % of the test log-loss over {seeds})."
            )
        luck = (
            ", a single draw of which no interval can be had"
            if low is None
            else ", but the interval holds 0: it may be luck"
        )
        sure = "" if low is not None and low > 0 else luck
        ratio = markdown.worth(best["equivalent"])
        return (
            f"At {counted(size['n'], 'rows')} {best['variant']} did best: over {seeds} its rows were {gain_of} % (of the test "
            f"log-loss) better than random rows{sure}."
        ) + (f" Its rows are worth {ratio} × as many random ones." if ratio != markdown.NONE else "")
    return "No variant has a finished trial beside random rows yet."


def _with_gain(variants: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that were compared with random rows."""
    return [one for one in variants if one["role"] == "variant" and one["gain"]["mean"] is not None]


def _gains(size: Mapping[str, Any], results: Mapping[str, Any]) -> Section:
    n = size["n"]
    ranked = _with_gain(size["variants"])
    best = ranked[0]["variant"] if ranked else None
    data = gain_bars([(one["variant"], one["gain"], f"{markdown.gain_of(one)} %") for one in ranked], best)
    return Section(
        f"gains-{n}",
        f"{n:,} rows",
        lead=[
            "Better: fall of the test log-loss in % of that of random rows of the same seed, with a "
            f"{100 * results['confidence']:g} % t interval over seeds."
        ],
        charts=[
            Chart(
                f"gains-{n}",
                charts.gains(),
                data,
                EDGE * any(one["cut"] for one in data),
                words={"gain": "better than random rows, % of the test log-loss"},
            )
        ]
        if data
        else [],
        tables=[Table(f"Variants at {n:,} rows", *markdown.variants(size, results["metric"]))],
    )


def _auto(decisions: Sequence[Mapping[str, Any]]) -> Section:
    table = Table("Decisions of auto", *markdown.decisions(decisions))
    return Section("auto", "What auto took", lead=[markdown.AUTO_LEGEND], tables=[table])


def _curve(results: Mapping[str, Any]) -> Section:
    data = [
        {"name": "random", "n": point["n"], "loss": point["mean"], "random": True} for point in results["random_curve"]
    ]
    for size in results["sizes"]:
        best = [one for one in size["variants"] if one["role"] == "variant" and one["loss"]["mean"] is not None][:3]
        data += [
            {"name": one["variant"], "n": one["rows"], "loss": one["loss"]["mean"], "random": False} for one in best
        ]
    return Section(
        "curve",
        "Loss against rows",
        lead=[
            "The line is random rows, the points the best variants of each size. What one is worth is read off the line."
        ],
        charts=[Chart("curve", charts.curve(), data)],
        tables=[Table("Random rows", *markdown.curve(results["random_curve"]), fold=True)],
    )


def _composition(size: Mapping[str, Any]) -> Section:
    title = f"Where the rows come from, {size['n']:,} rows"
    return Section(f"sources-{size['n']}", title, tables=[Table(title, *markdown.sources(size))])


def grid_page(experiments: Mapping[str, Mapping[str, Any]], folder: str) -> Page:
    """The page of a grid: gains of all variants in all experiments.

    Args:
        experiments: name -> `results.json`.
        folder: where it lies.
    """
    sections, wins, cells = [], 0, 0
    for n, table in markdown.grid_cells(experiments):
        rows = []
        for variant, by_name in table.items():
            gains = [one["gain"]["mean"] for one in _with_gain(by_name.values())]
            wins, cells = wins + sum(gain > 0 for gain in gains), cells + len(gains)
            mean = f"{sum(gains) / len(gains):+.1f}" if gains else markdown.NONE
            worse = f"{sum(gain < 0 for gain in gains)} of {len(gains)}" if gains else markdown.NONE
            rows.append(
                [
                    variant,
                    *(markdown.gain_of(by_name[name]) if name in by_name else markdown.NONE for name in experiments),
                    mean,
                    worse,
                ]
            )
        rows.sort(key=lambda row: -float(row[-2]) if row[-2] != markdown.NONE else 1e9)
        sections.append(
            Section(
                f"grid-{n}",
                f"{n:,} rows",
                lead=["Better than random rows, % of the test log-loss, with intervals over seeds."],
                tables=[
                    Table(
                        f"Variants by experiments at {n:,} rows",
                        ["variant", *experiments, "mean", "worse than random"],
                        rows,
                    )
                ],
            )
        )
    sections += [
        Section(f"of-{place}", name, lead=[verdict(results)], points=results["notes"])
        for place, (name, results) in enumerate(experiments.items())
    ]
    said = f"In {wins} of {cells} cells (a variant in an experiment) the chosen rows were better than random ones."
    return Page("tov grid", f"{len(experiments)} experiments", said, [("folder", folder)], sections)
