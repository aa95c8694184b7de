"""The pictures of a comparison: gains over random rows, and loss against rows. Draws the results, computes only places.

Written as SVG or PNG, by the file's name; the same numbers give the same bytes. Uses matplotlib's objects alone, so
nothing global is set and no display is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from tov.errors import ConfigError
from tov.files import atomic
from tov.sinks import picture

BETTER, WORSE, UNCLEAR, QUIET = "#0072B2", "#D55E00", "#7F7F7F", "#595959"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A")
"""Okabe and Ito's palette, which stays apart for colour-blind readers; a brown for its yellow, too pale for thin lines."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: Any = {
    "font.size": 10.0, "font.family": ["DejaVu Sans"], "svg.hashsalt": "tov", "text.parse_math": False, "text.usetex": False,
}  # fmt: skip
"""A name with dollar signs in it is a name, and no formula."""
METADATA: dict[str, dict[str, Any]] = {".svg": {"Date": None, "Creator": "tov"}, ".png": {"Software": None}}
DASHES: Any = ((0, (2, 2)), (0, (6, 3)))
DODGE = 0.5
"""Octaves over which the points of one size are spread, so that their intervals do not hide each other."""
LONGEST_NAME = 48
"""Characters of a variant's name that leave the axes room; the tables have it whole."""
FLOOR, FLOORS = 50, 5
"""Losses beyond both, in % and in best gains, are not worth the width that they take from the others."""


def gain_picture(results: Mapping[str, Any], path: Path) -> Path:
    """Draws the gain over random rows with its interval, a panel a size, variants in the order of the table.

    Args:
        results: what `tov.comparison.statistics.summarize` returns.
        path: file to write, .svg or .png.
    """
    panels = [
        (size["n"], [variant for variant in size["variants"] if variant["gain"]["mean"] is not None])
        for size in results["sizes"]
    ]
    lines = [max(len(variants), 1) + 0.6 for _, variants in panels]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 0.27 * sum(lines) + 0.5 * max(len(lines), 1) + 0.9), layout="constrained")
        axes = figure.subplots(max(len(panels), 1), 1, sharex=True, squeeze=False, height_ratios=lines or None)
        limits = _gain_limits([variant for _, variants in panels for variant in variants])
        for place, (n, variants) in enumerate(panels):
            _gain_panel(axes[place, 0], n, variants, limits)
        figure.supxlabel(
            "test log-loss, % better than with as many random rows (line at 0)\n"
            f"bar: {100 * results['confidence']:g} % interval over seeds, blue above 0, orange below, grey across 0 or none\n"
            "hollow: other numbers of rows; arrow: beyond the picture",
            fontsize=9,
        )
        return _save(figure, path)


def curve_picture(results: Mapping[str, Any], path: Path) -> Path:
    """Draws test log-loss against training rows: random's curve, each variant, zero-shot and full as dashed lines.

    Args:
        results: what `tov.comparison.statistics.summarize` returns.
        path: file to write, .svg or .png.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 5.6), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log", base=2)
        _random_line(axes, results["random_curve"])
        points = _points(results)
        for place, variant in enumerate(points):
            _variant_line(axes, variant, points[variant], place, sorted(points))
        _frame(axes, results, [point for line in points.values() for point in line] + results["random_curve"])
        axes.set_xlabel("training rows (points of one size are set side by side)")
        axes.set_ylabel(
            f"test log-loss, nats\n(bar: {100 * results['confidence']:g} % interval over seeds, not paired)"
        )
        _legend(figure, axes)
        return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    kind = path.suffix.lower()
    if kind not in METADATA:
        raise ConfigError(
            f"The picture {path.name!r} has a suffix that tov cannot write.",
            allowed=", ".join(METADATA),
            fix="Name it with one of these suffixes.",
        )
    with atomic(path) as temporary:
        figure.savefig(temporary, format=kind[1:], metadata=METADATA[kind], dpi=150)
    return path


def _name(variant: str) -> str:
    """A variant's name; of a long one, as with a store's folder in it, both ends."""
    variant = picture(variant)
    if len(variant) <= LONGEST_NAME:
        return variant
    return f"{variant[: LONGEST_NAME * 2 // 3]}…{variant[1 - LONGEST_NAME // 3 :]}"


def _limits(means: Sequence[float], ends: Sequence[float]) -> tuple[float, float]:
    """An axis that holds all means, and the ends of intervals as far as they leave the means apart."""
    low, high = min(means), max(means)
    span = max(high - low, 0.02 * max(abs(low), abs(high)), 1e-6)
    low, high = max(min([low, *ends]), low - span), min(max([high, *ends]), high + span)
    margin = 0.04 * max(high - low, span)
    return low - margin, high + margin


def _gain_limits(variants: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Fitted to the variants that have as many rows; zero-shot, full and a few that do great harm may lie far outside."""
    gains = [variant["gain"] for variant in variants if variant["role"] != "reference"] or [
        variant["gain"] for variant in variants
    ]
    means = [0.0, 0.5, *(gain["mean"] for gain in gains)]
    floor = -max(FLOOR, FLOORS * max(means))
    near = [gain for gain in gains if gain["mean"] >= floor]
    if 2 * len(near) >= len(gains):
        gains, means = near, [mean for mean in means if mean >= floor]
    ends = [end for gain in gains for end in (gain["low"], gain["high"]) if end is not None]
    return _limits(means, [0.0, *ends])


def _gain_panel(panel: Axes, n: int, variants: Sequence[Mapping[str, Any]], limits: tuple[float, float]) -> None:
    panel.set_title(f"{n:,} rows", loc="left", fontsize=10.5, fontweight="bold")
    panel.set_xlim(*limits)
    panel.set_ylim(max(len(variants), 1) - 0.4, -0.6)
    panel.set_yticks(range(len(variants)), [_name(variant["variant"]) for variant in variants])
    panel.tick_params(axis="y", length=0, pad=9)  # room for an arrow at the edge
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.grid(axis="x", color="#E5E5E5")
    panel.set_axisbelow(True)
    panel.axvline(0.0, color="black", linewidth=1.0)
    for place, variant in enumerate(variants):
        _gain_mark(panel, place, variant, limits)
    if not variants:
        panel.text(0.5, 0.5, "nothing to compare with random rows", transform=panel.transAxes, ha="center", va="center")


def _gain_mark(panel: Axes, place: int, variant: Mapping[str, Any], limits: tuple[float, float]) -> None:
    gain, (left, right) = variant["gain"], limits
    colour = QUIET if variant["role"] == "reference" else _verdict(gain)
    fill = "white" if variant["role"] == "reference" else colour
    mark = "<" if gain["mean"] < left else ">" if gain["mean"] > right else "o"
    if gain["low"] is not None:
        panel.hlines(place, gain["low"], gain["high"], color=colour, linewidth=2.0)
    panel.plot(
        min(max(gain["mean"], left), right), place, mark, color=colour, markerfacecolor=fill, markersize=6.5,
        clip_on=False, zorder=3,
    )  # fmt: skip
    number = f"{gain['mean']:+.1f}".replace("-", "−")
    panel.text(1.02, place, number, transform=panel.get_yaxis_transform(), va="center", fontsize=9)


def _verdict(gain: Mapping[str, Any]) -> str:
    if gain["low"] is None or gain["low"] <= 0 <= gain["high"]:
        return UNCLEAR
    return BETTER if gain["low"] > 0 else WORSE


def _random_line(axes: Axes, curve: Sequence[Mapping[str, Any]]) -> None:
    points = [point for point in curve if point["mean"] is not None and point["n"] > 0]
    rows, losses = [point["n"] for point in points], [point["mean"] for point in points]
    if not points:
        return
    fitted = [point["fitted"] for point in points]
    if any(not math.isclose(loss, fit) for loss, fit in zip(losses, fitted, strict=True)):
        axes.plot(rows, fitted, ":", color=QUIET, linewidth=1.5, label="random, non-increasing")
    axes.errorbar(rows, losses, _arms_of_bar(points), fmt="-o", color="black", markersize=4.5, label="random", zorder=2)


def _arms_of_bar(points: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """(2, points) how far an interval reaches down and up; nothing where there is none."""
    reach = [
        (0.0, 0.0) if point["low"] is None else (point["mean"] - point["low"], point["high"] - point["mean"])
        for point in points
    ]
    return [[down for down, _ in reach], [up for _, up in reach]]


def _points(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The points of each variant, in the order of the tables."""
    points: dict[str, list[dict[str, Any]]] = {}
    for size in results["sizes"]:
        for variant in size["variants"]:
            if variant["role"] == "variant" and variant["loss"]["mean"] is not None:
                points.setdefault(variant["variant"], []).append({"n": size["n"], **variant["loss"]})
    return points


def _variant_line(
    axes: Axes, variant: str, points: Sequence[Mapping[str, Any]], place: int, names: Sequence[str]
) -> None:
    """One variant; colour and mark go by its name, and no two of 49 variants have both alike."""
    look, aside = names.index(variant), (place + 0.5) / len(names) - 0.5
    axes.errorbar(
        [point["n"] * 2 ** (DODGE * aside) for point in points],
        [point["mean"] for point in points],
        _arms_of_bar(points),
        fmt=MARKERS[(look + look // len(COLOURS)) % len(MARKERS)],
        linestyle="-" if len(points) > 1 else "none", linewidth=0.9, elinewidth=1.3, markersize=5.5,
        color=COLOURS[look % len(COLOURS)], label=_name(variant), zorder=3,
    )  # fmt: skip


def _frame(axes: Axes, results: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> None:
    """Limits, ticks and the dashed lines; a line too far off is told in the legend instead of squeezing all the rest."""
    shown = [point for point in points if point["mean"] is not None]
    references = [
        variant for size in results["sizes"] for variant in size["variants"] if variant["role"] == "reference"
    ]
    levels = {
        variant["variant"]: variant["loss"]["mean"] for variant in references if variant["loss"]["mean"] is not None
    }
    lines = [(name, levels[name], dashes) for name, dashes in zip(sorted(levels), DASHES, strict=False)]
    means = [point["mean"] for point in shown] or [level for _, level, _ in lines] or [0.0, 1.0]
    ends = [end for point in shown for end in (point["low"], point["high"]) if end is not None]
    low, high = _limits(means, ends)
    near = [level for _, level, _ in lines if 1.5 * low - 0.5 * high <= level <= 1.5 * high - 0.5 * low]
    low, high = _limits([low, high, *near], [])
    for name, level, dashes in lines:
        beyond = " (above)" if level > high else " (below)" if level < low else ""
        axes.plot([], [], linestyle=dashes, color=QUIET, label=picture(f"{name} {level:.3g}{beyond}"))
        axes.axhline(level, linestyle=dashes, color=QUIET, linewidth=1.2)
    axes.set_ylim(low, high)
    ticks = _ticks(sorted({point["n"] for point in shown if point["n"] > 0}))
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E5E5E5")
    axes.set_axisbelow(True)


def _legend(figure: Figure, axes: Axes) -> None:
    """Beside the axes: what has marks in the order drawn, then plain lines."""
    entries = sorted(
        zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: isinstance(entry[0], Line2D)
    )
    if entries:
        handles, labels = zip(*entries, strict=True)
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)


def _ticks(sizes: Sequence[int]) -> list[int]:
    """The sizes that can be labelled side by side: a twelfth of the axis apart."""
    ticks: list[int] = []
    for n in sizes:
        if not ticks or math.log(n / ticks[-1]) >= math.log(sizes[-1] / sizes[0]) / 12:
            ticks.append(n)
    return ticks
