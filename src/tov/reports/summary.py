"""The Markdown summary of a run: reads the manifest and renders it. Computes nothing but widths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len

from tov.progress import counted, duration
from tov.reports.numbers import QUANTILES
from tov.runs.manifest import Manifest
from tov.sinks import cell, code, line, markdown, note
from tov.tasks import TASKS

BLOCKS = " ▁▂▃▄▅▆▇█"
MOST_NAMED = 3
"""Sources that are named of each target."""
GROUPS = 10
"""Groups of rows by length, where the pool has lengths enough."""
SHOWN = (
    "method",
    "options",
    "target_clusters",
    "preset",
    "model",
    "n",
    "tokens",
    "share",
    "transform",
    "normalize",
    "rule",
    "bins",
    "source_cap",
    "path_variant",
    "seed",
)
"""Settings at the head of a report, where they are given."""


FOR_TARGETS = (
    "Each target has its share of the rows, and takes it by its own scores. What rows are ranked by here is the largest share, "
    "over the targets, of the rows that have a lower score."
)


def summary_markdown(manifest: Manifest) -> str:
    """The text of `summary.md`."""
    assert manifest.model
    facts, task = manifest.summary, TASKS[manifest.model.task]
    parts = [f"# tov {markdown(manifest.command)}", _what(manifest)]
    if manifest.gate:
        parts += ["## What auto decided", gate_text(manifest.gate)]
    if "choice" in facts:
        parts += [
            "## Where the rows come from",
            composition_table(facts["choice"]),
            *([FOR_TARGETS, target_table(facts["choice"])] if "targets" in facts["choice"] else []),
            *(
                ["\n".join(f"- {one}" for one in amounts)]
                if (amounts := amount_lines(facts["choice"], markdown))
                else []
            ),
            *(
                ["## Clusters of the target", note_list(cluster_lines(facts["clusters"]))]
                if facts.get("clusters")
                else []
            ),
            "## Lengths",
            _lengths(facts["choice"], task.length),
        ]
    if "scores" in facts:
        parts += ["## Scores", _scores(facts["scores"], manifest, task.unit)]
        parts += ["## Left out", _left_out(facts, task.length)]
    if facts.get("notes"):
        parts += ["## Notes", note_list(facts["notes"])]
    parts += ["## Time", _timings(manifest), "## Made with", _made_with(manifest)]
    return "\n\n".join(parts) + "\n"


def gate_text(gate: Mapping[str, Any]) -> str:
    """What `auto` has decided for, and a line a candidate."""
    points, percent = "over random rows, points of the metric", "better than random rows, % of the log-loss"
    names = (points, percent) if gate["judge"] == "metric" else (percent, points)
    columns = [("gain", f"{names[0]} (decides)")]
    columns += [("beside", names[1])] if any(one["beside"] for one in gate["candidates"]) else []
    rows = gate_rows(gate, [column for column, _ in columns])
    rows = [[markdown(variant), *numbers, note(outcome)] for variant, *numbers, outcome in rows]
    header = ["candidate", "pilots", *(name for _, name in columns), "scoring", "training", "outcome"]
    return f"{note(gate_verdict(gate))}.\n\n" + table(header, rows)


def gate_verdict(gate: Mapping[str, Any]) -> str:
    """What `auto` has found; where another choice was made from its scores, also by what. Without a full stop."""
    return "; ".join(gate[name] for name in ("verdict", "here") if name in gate)


def gate_rows(gate: Mapping[str, Any], columns: Sequence[str]) -> list[list[Any]]:
    """A line a candidate of `auto`: its name, pilots, these gains of `gain` and `beside`, seconds, and what came of it."""
    return [
        [
            one["variant"],
            one["gain"].get("pilots", 0),
            *(interval(one[column]) for column in columns),
            *(duration(one["seconds"][part]) for part in ("scoring", "training")),
            one["outcome"],
        ]
        for one in gate["candidates"]
    ]


def interval(gain: Mapping[str, Any]) -> str:
    """`+2.1 [+0.4, +3.8]`, or a dash."""
    if not gain:
        return "-"
    return f"{gain['mean']:+.1f}" + ("" if gain["low"] is None else f" [{gain['low']:+.1f}, {gain['high']:+.1f}]")


def table(header: Sequence[str], rows: Sequence[Sequence[object]], shown: Callable[[object], str] = cell) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned. Names are escaped by the caller.

    Args:
        header: names of the columns.
        rows: of the table.
        shown: a cell as it is written; by default a bar is escaped, which would end it.
    """
    cells = [[shown(one) for one in row] for row in (header, *rows)]
    widths = [max(cell_len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        spaces = [" " * (width - cell_len(one)) for one, width in zip(row, widths, strict=True)]
        padded = [
            one + space if not at else space + one for at, (one, space) in enumerate(zip(row, spaces, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = (
        "|"
        + "|".join("-" * (width + 2) if not at else "-" * (width + 1) + ":" for at, width in enumerate(widths))
        + "|"
    )
    return "\n".join([line(cells[0]), rule, *(line(row) for row in cells[1:])])


def _what(manifest: Manifest) -> str:
    identity, scoring = manifest.identity, manifest.scoring
    settings = {"method": identity.get("method"), "options": identity.get("options"), **identity.get("settings", {})}
    shown = {key: settings[key] for key in SHOWN if settings.get(key) not in (None, {})}
    for name in shown.keys() & {"options", "source_cap", "share"}:
        shown[name] = ", ".join(f"{key}={_plain(value)}" for key, value in shown[name].items() if value is not None)
    lines = [f"- {key}: {code(value)}" for key, value in shown.items()]
    about = [f"- scored by {markdown(scoring.method)}: {note(scoring.about)}"] if scoring else []
    return "\n".join([*lines, *about])


def _plain(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def share(part: int, whole: int) -> str:
    """`25.0 %`, or a dash."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def composition_rows(choice: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines by source: rows and share in the pool, among the rows taken by score, among all chosen rows."""
    rows = choice["composition"]
    pool, by_score, chosen = (sum(row[key] for row in rows) for key in ("pool", "by_score", "chosen"))
    return ["source", "pool", "share", "by score", "share", "chosen", "share", "mean score"], [
        [
            row["source"],
            f"{row['pool']:,}",
            share(row["pool"], pool),
            f"{row['by_score']:,}",
            share(row["by_score"], by_score),
            f"{row['chosen']:,}",
            share(row["chosen"], chosen),
            number(row["mean_score"]),
        ]
        for row in rows
    ]


def composition_table(choice: Mapping[str, Any], named: Callable[[object], str] = markdown) -> str:
    """The same in Markdown; for a terminal with `named=line`: names as they are typed."""
    header, rows = composition_rows(choice)
    return table(header, [[named(name), *rest] for name, *rest in rows], line if named is line else cell)


def target_rows(choice: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of several targets: rows chosen for each, by score among them, and where most of them come from."""
    return ["target", "chosen", "share", "by score", "most often from"], [
        [
            one["target"],
            f"{one['chosen']:,}",
            share(one["chosen"], choice["n"]),
            f"{one['by_score']:,}",
            ", ".join(
                f"{name} {count:,}"
                for name, count in sorted(one["sources"].items(), key=lambda pair: -pair[1])[:MOST_NAMED]
            ),
        ]
        for one in choice.get("targets", [])
    ]


def target_table(choice: Mapping[str, Any], named: Callable[[object], str] = markdown) -> str:
    """The same in Markdown; for a terminal with `named=line`."""
    header, rows = target_rows(choice)
    escaped = [[named(first), *rest, named(last)] for first, *rest, last in rows]
    return table(header, escaped, line if named is line else cell)


def cluster_lines(clusters: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the clusters of a target are: a line each, as text."""
    return [
        f"{one['cluster']}: {counted(one['rows'], 'target rows')}, such as {' | '.join(one['central'])}"
        for one in clusters
    ]


def note_list(lines: Iterable[object]) -> str:
    """Lines of foreign text as a list."""
    return "\n".join(f"- {note(one)}" for one in lines)


def to_choose(usable: int) -> int:
    """Rows that an example of a command asks for: 1,000, or of fewer usable ones a half."""
    return max(1, min(1000, usable // 2))


def amount_lines(choice: Mapping[str, Any], named: Callable[[object], str] = line) -> list[str]:
    """Of a budget and of shares, where they were given: a line each, names made harmless by `named`.

    A source gives rows, and one of several targets takes them.
    """
    budget, unit = choice.get("budget"), "tokens" if "budget" in choice else "rows"
    spent = (
        [f"{budget['spent']:,} of {budget['tokens']:,} tokens are spent, on {counted(choice['n'], 'rows')}"]
        if budget
        else []
    )
    sources = {row["source"] for row in choice["composition"]}
    return spent + [
        f"{f'{named(name)} gives' if name in sources else f'the target {named(name)} takes'} "
        f"{100 * one['reached']:.2f} % of the {unit}; {100 * one['asked']:g} % were asked for"
        for name, one in choice.get("shares", {}).items()
    ]


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "-" if value is None else f"{value:.4g}"


def lengths_line(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of how many rows the groups by length are; rows of one length stay together."""
    sizes = [row["pool"] for row in rows]
    if len(rows) == GROUPS and max(sizes) <= 2 * min(sizes):
        return "The groups are tenths of the pool, to within rows of one length."
    if len(rows) == 1:
        return f"There are too few lengths for tenths of the pool: one group has all {counted(sizes[0], 'rows')}."
    return (
        f"Rows of one length stay together, so these are {len(rows)} groups of {min(sizes):,} to {max(sizes):,} rows, "
        "not tenths of the pool."
    )


def span(low: int, high: int, between: str) -> str:
    """`12-20`, or `12`."""
    return f"{low}{between}{high}" if low != high else str(low)


def _lengths(choice: dict[str, Any], unit: str) -> str:
    rows = choice["lengths"]
    return f"{unit.capitalize()} a row. {lengths_line(rows)}\n\n" + table(
        [unit, "pool", "by score", "chosen", "chosen share"],
        [
            [
                span(row["from"], row["to"], "-"),
                row["pool"],
                row["by_score"],
                row["chosen"],
                _bar(row["chosen"], choice["n"]),
            ]
            for row in rows
        ],
    )


def _bar(part: int, whole: int) -> str:
    return f"{BLOCKS[min(8, round(8 * part / whole * 4))] if whole else ''} {share(part, whole)}"


def measured_in(manifest: Manifest, unit: str) -> str:
    """What scores are numbers of, in words of the task: `nats a word`."""
    scoring = manifest.scoring
    found = scoring.unit if scoring and scoring.unit else "score"
    return f"nats a {unit}" if found == "nats a token" else found


def cut_lines(facts: Mapping[str, Any], unit: str) -> list[str]:
    """How much lies beyond `--max-length`: a sentence, or none where nothing does."""
    lost = facts["lost"]
    lie = "lies" if lost["tokens"] == 1 else "lie"
    cut = f"{counted(lost['tokens'], unit)} of {counted(lost['rows'], 'rows')}"
    return [f"{cut} {lie} beyond --max-length: not seen, not scored."] if lost["tokens"] else []


def _scores(facts: dict[str, Any], manifest: Manifest, unit: str) -> str:
    scoring = manifest.scoring
    header = [
        markdown(measured_in(manifest, unit)),
        *(f"{100 * level:g} %" for level in QUANTILES),
    ]
    rows = [
        [markdown(name), *(number(value) for value in values)]
        for name, values in [*facts["quantiles"].items(), ("loss_base", facts.get("loss_base"))]
        if values
    ]
    noise = scoring.noise_floor if scoring else None
    text = "Quantiles over the pool's rows.\n\n" + table(header, rows)
    if noise:
        text += (
            f"\n\nNoise floor (same weights, two batch layouts): {noise['row_rms']:.2g} nat a {unit} for a row's mean, "
            f"{noise['token_rms']:.2g} for a single {unit}. Scores of that size mean nothing."
        )
    return text


def _left_out(summary: dict[str, Any], unit: str) -> str:
    facts, unscored = summary["scores"], summary.get("choice", {}).get("without_score", 0)
    lines = [f"- {counted(count, 'rows')}: {note(reason)}" for reason, count in facts["left_out"].items()]
    if unscored:
        have = "row that could be chosen has" if unscored == 1 else "rows that could be chosen have"
        lines.append(f"- {unscored:,} {have} no score by the method: never taken by score")
    parts = [f"{facts['usable']:,} of {facts['rows']:,} pool rows could be chosen.", "\n".join(lines) or "- nothing"]
    return "\n\n".join([*parts, *cut_lines(facts, unit)])


def _timings(manifest: Manifest) -> str:
    lines = [table(["stage", "time"], [[markdown(name), brief(time)] for name, time in manifest.timings.items()])]
    if manifest.scoring and manifest.scoring.tokens_passed:
        lines.append(f"{manifest.scoring.tokens_passed:,} tokens went forward through the model in the scan.")
    cost = manifest.cost
    if cost:
        lines.append(
            f"Scoring in all: {cost['tokens_forward']:,} tokens forward, {cost['tokens_backward']:,} backward, "
            f"{cost['bytes']:,} bytes stored."
        )
    return "\n\n".join(lines)


def brief(seconds: float) -> str:
    """`4.2s`, `3m 05s`: as `duration`, with a digit more of a short time."""
    return duration(seconds) if seconds >= 10 else f"{seconds:.1f}s"


def _made_with(manifest: Manifest) -> str:
    hardware = manifest.hardware
    gpus = f", {', '.join(hardware['gpus'])}" if hardware["gpus"] else ""
    return f"{versions_line(manifest)}\n\n{note(hardware['cpu'])}, {hardware['cores']} cores{note(gpus)}"


def versions_line(manifest: Manifest) -> str:
    """`python 3.11.2, torch 2.6.0`."""
    return note(", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
