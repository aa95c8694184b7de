"""The Markdown report of a comparison: renders what `comparison.statistics` found. Computes nothing but the look of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from tov.progress import file_size
from tov.reports.summary import brief, note_list, table
from tov.sinks import markdown, note

NONE = "-"
Rows: TypeAlias = tuple[Sequence[str], Sequence[Sequence[object]]]
"""A header and lines of texts, foreign names as they are: whoever shows them escapes them."""


def comparison_markdown(results: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The report as one Markdown text.

    Args:
        results: what `tov.comparison.statistics.summarize` returns.
        about: what stands at its head, a line an entry: model, inputs, training, versions.
    """
    sizes = results["sizes"]
    parts = ["# tov compare", "\n".join(f"- {name}: {note(value)}" for name, value in about.items()), _legend(results)]
    if results["notes"]:
        parts += ["## Notes", note_list(results["notes"])]
    for size in sizes:
        parts += [f"## {size['n']:,} rows", _table(variants(size, results["metric"]))]
    if results.get("auto"):
        parts += ["## What auto took", AUTO_LEGEND, _table(decisions(results["auto"]), (0, 3))]
    parts += ["## Cost", COSTS_LEGEND, _table(costs(results))]
    for size in sizes:
        parts += [
            f"## Where the rows come from, {size['n']:,} rows",
            _table(sources(size), otherwise="No variant chose any rows."),
        ]
    parts += ["## Random rows", CURVE_LEGEND, _table(curve(results["random_curve"]), (), "No random trial finished.")]
    return "\n\n".join(parts) + "\n"


def grid_markdown(experiments: Mapping[str, Mapping[str, Any]]) -> str:
    """The joint report of a grid: for each size a table of gains over random rows, variants by experiments.

    Args:
        experiments: name -> what `tov.comparison.statistics.summarize` returns.
    """
    parts = [
        "# tov compare",
        "Better than random, % of its test log-loss [95 % t interval over seeds]; each has a report of its own.",
    ]
    for n, by_variant in grid_cells(experiments):
        parts += [f"## {n:,} rows", _grid_table(by_variant, list(experiments))]
    notes = [f"- {markdown(name)}: {note(one)}" for name, results in experiments.items() for one in results["notes"]]
    return "\n\n".join([*parts, *(["## Notes", "\n".join(notes)] if notes else [])]) + "\n"


def grid_cells(
    experiments: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[int, dict[str, dict[str, Mapping[str, Any]]]]]:
    """Each size of a grid, ascending, with variant -> experiment -> what the experiment says of the variant at it."""
    for n in sorted({size["n"] for results in experiments.values() for size in results["sizes"]}):
        cells: dict[str, dict[str, Mapping[str, Any]]] = {}
        for name, results in experiments.items():
            for size in results["sizes"]:
                for variant in size["variants"] if size["n"] == n else []:
                    cells.setdefault(variant["variant"], {})[name] = variant
        yield n, cells


def _grid_table(by_variant: Mapping[str, Mapping[str, Mapping[str, Any]]], names: Sequence[str]) -> str:
    def shown(one: Mapping[str, Any] | None) -> str:
        return NONE if one is None else _loss(one["loss"]) if one["role"] == "yardstick" else gain_of(one)

    rows = [
        [f"{variant} (nat)" if variant == "random" else markdown(variant), *(shown(cells.get(name)) for name in names)]
        for variant, cells in by_variant.items()
    ]
    return table(["variant", *map(markdown, names)], rows)


COSTS_LEGEND = (
    "Means over the finished trials. Scoring is what choosing the rows took, apart from training on them; a token of "
    "training goes forward and backward. Variants of one path share its fit and scan, and each shows the whole of it."
)
CURVE_LEGEND = (
    "The curve that the worth of a variant is read from: test log-loss after training on random rows, made non-increasing, "
    "linear in log n between the sizes."
)


AUTO_LEGEND = (
    "By its pilots on held-out target rows alone; no test row was seen. Gain: over random rows of the same pilots, with the "
    "interval that the rule goes by."
)


def decisions(decisions: Sequence[Mapping[str, Any]]) -> Rows:
    """A line a trial of `auto`: what it took, and what the pilots said of that."""
    rows = []
    for one in decisions:
        taken = next((line["gain"] for line in one["candidates"] if line["variant"] == one["chosen"]), None)
        gain = _number(taken["mean"], "+.1f") + _interval(taken, "+.1f") + f" {one['unit']}" if taken else NONE
        rows.append([one["variant"], f"{one['n']:,}", one["seed"], one["chosen"], gain, one["judge"]])
    return ["variant", "rows", "seed", "took", "gain", "judged by"], rows


def _legend(results: Mapping[str, Any]) -> str:
    level = f"{100 * results['confidence']:g} %"
    return (
        f"Test log-loss: mean over test rows of a row's mean log-loss, in nats, ± standard deviation over seeds. Better: "
        f"fall of the loss in % of that of random rows at the same size and seed, with a {level} t interval over seeds. "
        f"A tie is a gain within ±{results['tie']:g} %. Worth: how many times the rows random would need for the same loss, "
        f"with the {level} t interval of the paired difference, read off the same curve. zero-shot (no training) and full "
        f"(every usable row) have sizes of their own and no interval."
    )


def variants(size: Mapping[str, Any], metric: str | None) -> Rows:
    """A line a variant: losses, gains over random rows, the metric where there is one, worth."""
    header = ["variant", "rows", "seeds", "test log-loss", "better than random, %", "wins / ties / losses"]
    header += [metric, f"{metric} over random's"] if metric else []
    rows = []
    for variant in size["variants"]:
        row = [
            variant["variant"],
            f"{variant['rows']:,}",
            _seeds(variant),
            _loss(variant["loss"]),
            gain_of(variant),
            _counts(variant["gain"]),
        ]
        row += _metric(variant["metric"]) if metric else []
        rows.append([*row, worth(variant["equivalent"])])
    return [*header, "worth × random rows"], rows


def _seeds(variant: Mapping[str, Any]) -> str:
    done, failed = len(variant["seeds"]), variant["failed"]["count"]
    return f"{done} of {done + failed}" if failed else str(done)


def _loss(loss: Mapping[str, Any]) -> str:
    return _number(loss["mean"], ".4f") + ("" if loss["sd"] is None else f" ± {loss['sd']:.4f}")


def gain_of(variant: Mapping[str, Any]) -> str:
    """`+8.4 [+1.7, +15.1]`"""
    gain = variant["gain"]
    return _number(gain["mean"], "+.1f") + _interval(gain, "+.1f")


def _counts(gain: Mapping[str, Any]) -> str:
    return NONE if gain["wins"] is None else f"{gain['wins']} / {gain['ties']} / {gain['losses']}"


def _metric(metric: Mapping[str, Any]) -> list[str]:
    return [_number(metric["mean"], ".3f"), _number(metric["difference"], "+.3f") + _interval(metric, "+.3f")]


def _number(value: float | None, spec: str) -> str:
    return NONE if value is None else format(value, spec)


def _interval(values: Mapping[str, Any], spec: str) -> str:
    return "" if values["low"] is None else f" [{values['low']:{spec}}, {values['high']:{spec}}]"


def worth(equivalent: Mapping[str, Any] | None) -> str:
    """`2.5 [1.9, at least 4.0]`"""
    if equivalent is None:
        return NONE
    ends = "" if equivalent["low"] is None else f" [{_ratio(equivalent['low'])}, {_ratio(equivalent['high'])}]"
    return _ratio(equivalent["point"]) + ends


def _ratio(end: Mapping[str, Any]) -> str:
    bound = "at least " if end["at_least"] else "at most " if end["at_most"] else ""
    return bound + _number(end["ratio"], ".2f" if end["ratio"] < 1 else ".1f" if end["ratio"] < 10 else ",.0f")


def costs(results: Mapping[str, Any]) -> Rows:
    """A line a variant and size: seconds, tokens and bytes."""
    header = [
        "variant",
        "rows",
        "scoring",
        "tokens forward",
        "tokens backward",
        "stored",
        "training",
        "tokens trained on",
    ]
    rows = {
        (variant["variant"], variant["rows"]): [
            variant["variant"],
            f"{variant['rows']:,}",
            _time(variant["cost"]["scoring_seconds"]),
            _number(variant["cost"]["scoring_tokens_forward"], ",.0f"),
            _number(variant["cost"]["scoring_tokens_backward"], ",.0f"),
            _bytes(variant["cost"]["scoring_bytes"]),
            _time(variant["cost"]["train_seconds"]),
            _number(variant["cost"]["train_tokens"], ",.0f"),
        ]
        for size in results["sizes"]
        for variant in size["variants"]
    }
    return header, list(rows.values())


def _time(seconds: float | None) -> str:
    return NONE if seconds is None else brief(seconds)


def _bytes(count: float | None) -> str:
    return NONE if count is None else file_size(count)


def sources(size: Mapping[str, Any]) -> Rows:
    """Shares by source of the rows that each variant trained on; no line where none chose any."""
    chosen = [variant for variant in size["variants"] if variant["chosen"]]
    names = sorted({source for variant in chosen for source in variant["chosen"]})
    return ["variant", *names], [
        [variant["variant"], *(f"{100 * variant['chosen'].get(source, 0):.1f} %" for source in names)]
        for variant in chosen
    ]


def curve(points: Sequence[Mapping[str, Any]]) -> Rows:
    """A line a size of random rows."""
    rows = [[f"{point['n']:,}", len(point["seeds"]), _loss(point), _number(point["fitted"], ".4f")] for point in points]
    return ["rows", "seeds", "test log-loss", "non-increasing"], rows


def _table(rows: Rows, foreign: Sequence[int] = (0,), otherwise: str = "") -> str:
    """Rows as Markdown, their header and the columns of foreign names escaped."""
    header, lines = rows
    if not lines:
        return otherwise
    escaped = [[markdown(one) if at in foreign else one for at, one in enumerate(line)] for line in lines]
    return table([markdown(name) for name in header], escaped)
