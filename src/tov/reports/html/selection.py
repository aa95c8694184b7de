"""The page of a selection, of what the run has stored (`manifest.json`, `shown.json`)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from tov.progress import counted, file_size
from tov.reports.html import charts
from tov.reports.html.charts import gain_bars
from tov.reports.html.page import Chart, Page, Section, Table
from tov.reports.numbers import QUANTILES
from tov.reports.summary import (
    FOR_TARGETS,
    amount_lines,
    brief,
    cluster_lines,
    composition_rows,
    cut_lines,
    gate_rows,
    gate_verdict,
    lengths_line,
    measured_in,
    number,
    share,
    span,
    target_rows,
    to_choose,
)
from tov.runs.manifest import Manifest
from tov.tasks import TASKS

MOST_SOURCES = 30
"""Sources that have a bar of their own; the tables have all."""
UNMEASURED = (
    "Whether these rows are better than random ones has not been measured. This command trains on both and measures it:"
)


def selection_page(manifest: Manifest, shown: Mapping[str, Any] | None, folder: str) -> Page:
    """The page of a finished selection.

    Args:
        manifest: of the run.
        shown: of `shown.json`; None of a run of an earlier version, whose page has no rows.
        folder: where the run lies, for commands.
    """
    assert manifest.model
    choice, task = manifest.summary["choice"], TASKS[manifest.model.task]
    sections = [
        *_warnings(manifest),
        *([_gate(manifest.gate)] if manifest.gate else []),
        _composition(choice),
        *_clusters(manifest),
        _scores(manifest, shown, choice, task.unit),
        _lengths(manifest, shown, task.length),
        *([_points(shown)] if shown and shown["points"]["id"] else []),
        _rows(manifest, shown, task.length),
        _cost(manifest),
        _again(manifest, folder),
    ]
    return Page(
        kind="tov selection",
        title=f"{counted(choice['n'], 'rows')} for {_targets(manifest)}",
        verdict=verdict(manifest),
        facts=_facts(manifest, choice),
        sections=sections,
        measure_lead=UNMEASURED,
        measure="" if manifest.gate or manifest.command != "select" else _compare(folder, choice["n"]),
        rows=None if shown is None else _table(manifest, shown, folder, task.length),
        rows_are="Rows: chosen, just below the cut, left out",
        rows_in="The chosen rows are in selected.jsonl.",
    )


def _compare(folder: str, n: int) -> str:
    return f"tov compare --from {shlex.quote(folder)} --test TEST.jsonl --sizes {n} --out {shlex.quote(folder + '-compared')}"


def _targets(manifest: Manifest) -> str:
    """Several targets by their names, one by its files."""
    files = [path.rpartition("/")[2] for path in manifest.inputs.target or ()]
    return ", ".join(manifest.targets if len(manifest.targets) > 1 else files) or "the target"


def verdict(manifest: Manifest) -> str:
    """The first thing to read: how many rows, from where, and what `auto` has found."""
    choice = manifest.summary["choice"]
    pool, n = sum(row["pool"] for row in choice["composition"]), choice["n"]
    best = sorted(choice["composition"], key=lambda row: -row["chosen"])[:2]
    most = [f"{row['source']} ({share(row['chosen'], n)})" for row in best if row["chosen"]]
    whence = f"most often from {' and '.join(most)}" if len(most) > 1 else f"all from {best[0]['source']}"
    how = f"{choice['by_score']:,} by score" + (f", {choice['by_chance']:,} at random" if choice["by_chance"] else "")
    sentence = f"tov chose {n:,} of {counted(pool, 'usable rows')} ({how}), {whence}."
    if manifest.gate:
        said = gate_verdict(manifest.gate)
        sentence += f" {said[:1].upper()}{said[1:]}."
    return sentence


def _facts(manifest: Manifest, choice: Mapping[str, Any]) -> list[tuple[str, str]]:
    scoring, targets = manifest.scoring, manifest.targets
    method = manifest.identity.get("method", "")
    facts = [("model", manifest.to_train.name if manifest.to_train else ""), ("method", str(method))]
    if manifest.chosen_for and manifest.model:
        facts.append(("scored by the proxy", manifest.model.name))
    if scoring and scoring.method != method:
        facts.append(("scored by", scoring.method))
    facts += [
        (f"target {name}" if len(targets) > 1 else "target", counted(one.rows, "rows")) for name, one in targets.items()
    ]
    facts += (
        [("length of the chosen rows", f"{choice['tokens']:,} {TASKS[manifest.model.task].length}")]
        if manifest.model
        else []
    )
    return [*facts, ("started", manifest.started[:16].replace("T", " "))]


def _warnings(manifest: Manifest) -> list[Section]:
    warnings = list(manifest.checks.warnings) if manifest.checks else []
    notes = [one for one in manifest.summary.get("notes", []) if one not in warnings]
    sections = [Section("warnings", "Warnings", points=warnings, style="warn")] if warnings else []
    return sections + ([Section("notes", "Notes", points=notes)] if notes else [])


def gate_page(gate: Mapping[str, Any], folder: str) -> Page:
    """The page of the pilots alone.

    Args:
        gate: what they have decided for.
        folder: where they lie.
    """
    said = f"{gate['verdict'][:1].upper()}{gate['verdict'][1:]}."
    return Page("tov pilots", "Which method scores the pool", said, [("folder", folder)], [_gate(gate)])


def _gate(gate: Mapping[str, Any]) -> Section:
    points = gate["judge"] == "metric"
    unit = "points of the metric over random rows" if points else "% better than random rows (log-loss)"
    data = gain_bars(
        [(one["variant"], one["gain"], one["outcome"]) for one in gate["candidates"] if one["gain"]], gate["chosen"]
    )
    header = ["candidate", "pilots", unit, "by the other measure", "scoring", "training", "outcome"]
    return Section(
        "gate",
        "How the method was chosen",
        lead=[
            "Pilot trainings were judged on target rows that no score had seen. The interval is the one that the rule goes by."
        ],
        charts=[Chart("gate", charts.gains(), data, words={"gain": unit})] if data else [],
        tables=[Table("Candidates of auto", header, gate_rows(gate, ("gain", "beside")))],
    )


def _composition(choice: Mapping[str, Any]) -> Section:
    rows = choice["composition"]
    pool, chosen = (sum(row[key] for row in rows) for key in ("pool", "chosen"))
    shown = sorted(rows, key=lambda row: -row["chosen"])[:MOST_SOURCES]
    data = [
        {"source": row["source"], "of": of, "rows": row[key], "share": row[key] / max(total, 1)}
        for row in shown
        for of, key, total in (("pool", "pool", pool), ("chosen", "chosen", chosen))
    ]
    tables = [Table("Rows by source, before and after", *composition_rows(choice))]
    lead = [f"The {len(shown)} sources that most rows are from have bars; the table has all."] * (
        len(rows) > len(shown)
    )
    lead += [f"{one[:1].upper()}{one[1:]}." for one in amount_lines(choice)]
    if "targets" in choice:
        lead.append(FOR_TARGETS)
        tables.append(Table("Rows by target", *target_rows(choice)))
    return Section(
        "composition",
        "Where the rows come from",
        lead=lead,
        charts=[Chart("composition", charts.composition(), data)],
        tables=tables,
    )


def _clusters(manifest: Manifest) -> list[Section]:
    lines = cluster_lines(manifest.summary.get("clusters", ()))
    return [Section("clusters", "Clusters of the target", points=lines)] if lines else []


def _scores(manifest: Manifest, shown: Mapping[str, Any] | None, choice: Mapping[str, Any], unit: str) -> Section:
    scoring, facts = manifest.scoring, manifest.summary["scores"]
    lead, drawn = [], []
    noise = (scoring.noise_floor or {}).get("row_rms") if scoring else None
    raw = bool(shown and shown["raw"])
    if noise is not None:
        lead.append(
            f"Noise floor: rounding alone moves a row's mean log-loss by {noise:.2g} nat a {unit}. "
            "Scores of that size mean nothing."
        )
        if not raw:
            lead.append(
                "Rows are ranked by another number here than the gain in nats, so the chart has no band for it."
            )
    if shown and shown["spread"]["edges"]:
        bars = _bars(shown, noise if raw else None)
        drawn = [
            Chart(
                "spread",
                charts.spread(any(bar["of"] == "noise" for bar in bars)),
                bars,
                "Filled: share of the source's rows in the pool. Outlined: share of all chosen rows. "
                "The ends hold what lies beyond.",
            )
        ]
    header = [measured_in(manifest, unit), *(f"{100 * level:g} %" for level in QUANTILES)]
    columns = [*facts["quantiles"].items(), ("log-loss", facts.get("loss_base"))]
    rows = [[name, *map(number, values)] for name, values in columns if values]
    rows.append(["ranked by, chosen by score", *map(number, choice["score_chosen"] or [])]) if choice[
        "score_chosen"
    ] else None
    return Section(
        "scores",
        "Scores by source",
        lead=lead,
        charts=drawn,
        tables=[Table("Quantiles over the pool's rows", header, rows, fold=True)],
    )


def _bars(shown: Mapping[str, Any], noise: float | None) -> list[dict[str, Any]]:
    edges, bars = shown["spread"]["edges"], list[dict[str, Any]]()
    whole = max(sum(map(sum, shown["spread"]["chosen"])), 1)
    largest = sorted(range(len(shown["sources"])), key=lambda one: -sum(shown["spread"]["chosen"][one]))[:MOST_SOURCES]
    for place in largest:
        source = shown["sources"][place]
        if noise is not None and edges[0] < noise and edges[-1] > -noise:
            bars.append({"source": source, "of": "noise", "from": max(-noise, edges[0]), "to": min(noise, edges[-1])})
        for of, total in (("pool", max(sum(shown["spread"]["pool"][place]), 1)), ("chosen", whole)):
            counts = shown["spread"][of][place]
            bars += [
                {"source": source, "of": of, "from": low, "to": high, "share": count / total}
                for low, high, count in zip(edges, edges[1:], counts, strict=False)
                if count
            ]
    return bars


def _lengths(manifest: Manifest, shown: Mapping[str, Any] | None, unit: str) -> Section:
    choice = manifest.summary["choice"]
    rows, data = choice["lengths"], []
    for place, row in enumerate(rows):
        name = span(row["from"], row["to"], "–")
        for of, key in (("pool", "pool"), ("by score", "by_score"), ("chosen", "chosen")):
            total = max(sum(one[key] for one in rows), 1)
            data.append({"length": name, "place": place, "of": of, "rows": row[key], "share": row[key] / total})
    lead = []
    if shown and len(shown["bins"]) > 1 and not manifest.identity.get("settings", {}).get("source_cap"):
        quota = counted(choice["by_score"] // len(shown["bins"]), "rows")
        lead.append(
            f"The rule has {len(shown['bins'])} bins of equally many rows by length; each gives {quota} by score"
            + (", the first ones one more." if choice["by_score"] % len(shown["bins"]) else ".")
        )
    lead.append(f"The bars of the chart are other groups. {lengths_line(rows)}" if lead else lengths_line(rows))
    table = Table(
        f"{unit.capitalize()} a row",
        [unit, "pool", "by score", "chosen"],
        [
            [span(row["from"], row["to"], " to "), f"{row['pool']:,}", f"{row['by_score']:,}", f"{row['chosen']:,}"]
            for row in rows
        ],
        fold=True,
    )
    return Section(
        "lengths",
        "Lengths",
        lead=lead,
        charts=[Chart("lengths", charts.lengths(), data, words={"length": f"{unit} a row"})],
        tables=[table],
    )


def _points(shown: Mapping[str, Any]) -> Section:
    points = shown["points"]
    data = [
        {"id": one, "source": shown["sources"][source], "score": score, "loss": loss, "chosen": bool(chosen)}
        for one, source, score, loss, chosen in zip(
            *(points[name] for name in ("id", "source", "score", "loss", "chosen")), strict=True
        )
    ]
    return Section(
        "points",
        "Loss against score",
        lead=[
            f"A sample of {len(data):,} rows; chosen ones are filled. Drag over the chart to filter the table of rows below."
        ],
        charts=[Chart("points", charts.points(), data)],
    )


def _rows(manifest: Manifest, shown: Mapping[str, Any] | None, unit: str) -> Section:
    facts, n = manifest.summary["scores"], manifest.summary["choice"]["n"]
    left = [f"{counted(count, 'rows')}: {reason}" for reason, count in facts["left_out"].items()]
    cut = cut_lines(facts, unit)
    if shown is None:
        return Section(
            "rows",
            "Rows",
            lead=["This run has stored no rows to show. tov select --from it (nothing is scored) stores them.", *cut],
            points=left,
        )
    chosen = sum(group in ("by score", "at random") for group in shown["rows"]["group"])
    lead = [
        "Chosen rows, the best rows just below the cut of each length bin, and some of those that were left out. "
        "Open a row to read it."
    ]
    if chosen < n:
        lead.append(f"{chosen:,} of the {n:,} chosen rows are here, drawn at random; selected.jsonl has all.")
    lead += [*cut, *(["Left out of the choice:"] if left else [])]
    return Section("rows", "Rows", lead=lead, points=left, rows=True)


def _table(manifest: Manifest, shown: Mapping[str, Any], folder: str, unit: str) -> dict[str, Any]:
    """What the page's script needs for the table of rows and the view of one."""
    names = ("rows", "sources", "bins", "eligible", "explained", "target", "unexplained")
    return {
        **{name: shown[name] for name in names},
        "targets": shown.get("targets", []),
        "unit": unit,
        "run": shlex.quote(folder),
        "inline": bool(manifest.model and TASKS[manifest.model.task].new_head),
    }


def _cost(manifest: Manifest) -> Section:
    rows = [[name, brief(seconds)] for name, seconds in manifest.timings.items()]
    cost, hardware = manifest.cost, manifest.hardware
    lead = (
        [
            f"Scoring in all: {cost['tokens_forward']:,} tokens forward, {cost['tokens_backward']:,} backward, "
            f"{file_size(cost['bytes'])} stored."
        ]
        if cost
        else []
    )
    gpus = "".join(f", {gpu}" for gpu in hardware.get("gpus", []))
    lead.append(f"On {hardware.get('cpu', '?')}, {hardware.get('cores', '?')} cores{gpus}.")
    return Section("cost", "Cost", lead=lead, tables=[Table("Time by stage", ["stage", "time"], rows)])


def _readable(manifest: Manifest) -> bool:
    """Whether the settings file names all inputs; those in memory are to be passed again."""
    return manifest.command != "select" or bool(manifest.inputs.pool and manifest.inputs.target)


def _again(manifest: Manifest, folder: str) -> Section:
    verb = "select" if manifest.command.startswith("select") else manifest.command
    prints = {
        "pool": manifest.identity.get("pool", {}).get("fingerprint"),
        "scores": manifest.scoring.fingerprint if manifest.scoring else None,
        "model": manifest.to_train.fingerprint if manifest.to_train else None,
        "proxy": manifest.model.fingerprint if manifest.model and manifest.chosen_for else None,
        **{
            f"target {name}" if len(manifest.targets) > 1 else "target": target.fingerprint
            for name, target in manifest.targets.items()
        },
    }
    lines = [f"{name} {value}" for name, value in prints.items() if value]
    n = to_choose(manifest.summary["scores"]["usable"])
    return Section(
        "again",
        "How to repeat it",
        lead=[
            "The same settings on the same files give the same rows.",
            f"Seed {manifest.seed}; " + "; ".join(lines) + ".",
        ],
        code=[
            *([f"tov {verb} {shlex.quote(folder + '/config.yaml')}"] if _readable(manifest) else []),
            "# other rows, nothing scored again:\n"
            f"tov select --from {shlex.quote(folder)} --n {n} --out {shlex.quote(f'{folder}-{n}')}",
        ],
        tables=[Table("Versions", ["package", "version"], list(manifest.versions.items()), fold=True)],
    )
