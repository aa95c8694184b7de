"""Charts of the page as Vega-Lite specifications, without their data, which the page has once for table and charts.

Colours are names (`@chosen`) that the page replaces by those of its light or dark style. A chart says by length, position and
words what it says by colour, so that it can be read in grey.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

DATA = {"name": "data"}
FLOOR, FLOORS = 50, 5
"""Gains below both, in their unit and in best gains, are drawn at the edge: they would take the room of the others."""
EDGE = "What lies beyond the left edge is drawn at the edge; the table has the numbers."
SHARE = ".0%"


def _ready(chart: Any, description: str) -> dict[str, Any]:
    spec: dict[str, Any] = _without_data(chart.to_dict(validate=False))
    return spec | {"data": DATA, "description": description}


def _without_data(spec: Any) -> Any:
    """The specification without what altair puts in for charts that have no data of their own yet."""
    if isinstance(spec, dict):
        return {key: _without_data(value) for key, value in spec.items() if key not in ("data", "datasets", "config")}
    return [_without_data(one) for one in spec] if isinstance(spec, list) else spec


@functools.cache
def composition(before: str = "pool", after: str = "chosen") -> dict[str, Any]:
    """Each source's share of the rows before and after. Data: source, of (one of the two names), share, rows."""
    import altair as alt

    base = alt.Chart().encode(
        y=alt.Y("of:N", title=None, sort=[before, after], axis=alt.Axis(labels=False, ticks=False, domain=False)),
        x=alt.X("share:Q", title="share of the rows", axis=alt.Axis(format="%", tickCount=5)),
    )
    bars = base.mark_bar(height={"band": 0.85}).encode(
        color=alt.Color(
            "of:N",
            title=None,
            scale=alt.Scale(domain=[before, after], range=["@pool", "@chosen"]),
            legend=alt.Legend(orient="top"),
        ),
        tooltip=["source:N", "of:N", "rows:Q", alt.Tooltip("share:Q", format=".1%")],
    )
    text = base.mark_text(align="left", dx=4, color="@ink").encode(text=alt.Text("share:Q", format=SHARE))
    chart = alt.layer(bars, text, data=alt.NamedData("data")).properties(width=520, height=34)
    facet = chart.facet(
        row=_by_source(),
        spacing=6,
    )
    return _ready(facet, f"Bars: each source's share of the rows, {before} and {after}.")


@functools.cache
def spread(with_noise: bool) -> dict[str, Any]:
    """How scores lie by source. Data: source, of, from, to, share; `of` a "noise" of its own where there is a band for it.

    A layer without data has no extent, and Vega complains of it: so there is none without a band.
    """
    import altair as alt

    base = alt.Chart().encode(
        x=alt.X("from:Q", title="score", scale=alt.Scale(zero=False)),
        x2="to:Q",
        y=alt.Y("share:Q", title=None, axis=alt.Axis(format=SHARE, tickCount=2)),
        y2=alt.datum(0),
        tooltip=["source:N", "of:N", "from:Q", "to:Q", alt.Tooltip("share:Q", format=".2%")],
    )
    pool = base.transform_filter("datum.of === 'pool'").mark_bar(color="@pool")
    chosen = base.transform_filter("datum.of === 'chosen'").mark_bar(
        fillOpacity=0, stroke="@chosen", strokeWidth=1.5, binSpacing=0
    )
    noise = (
        alt.Chart()
        .transform_filter("datum.of === 'noise'")
        .mark_rect(color="@warn", opacity=0.35)
        .encode(x="from:Q", x2="to:Q")
    )
    facet = (
        alt.layer(*([noise] if with_noise else []), pool, chosen, data=alt.NamedData("data"))
        .properties(width=520, height=52)
        .facet(
            row=_by_source(),
            spacing=6,
        )
    )
    return _ready(
        facet,
        "Histograms by source: scores of the pool's rows, filled, and of the chosen rows, outlined"
        + ("; the noise floor." if with_noise else "."),
    )


@functools.cache
def lengths() -> dict[str, Any]:
    """Rows by length. Data: length, place, of, share, rows."""
    import altair as alt

    chart = (
        alt.Chart()
        .mark_bar()
        .encode(
            x=alt.X("length:N", title="@length", sort=alt.EncodingSortField("place"), axis=alt.Axis(labelAngle=-30)),
            xOffset=alt.XOffset("of:N", sort=["pool", "by score", "chosen"]),
            y=alt.Y("share:Q", title="share of the rows", axis=alt.Axis(format=SHARE)),
            color=alt.Color(
                "of:N",
                title=None,
                scale=alt.Scale(domain=["pool", "by score", "chosen"], range=["@pool", "@score", "@chosen"]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=["length:N", "of:N", "rows:Q", alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(width=640, height=180)
    )
    return _ready(chart, "Bars: shares of the pool's rows, of those taken by score and of all chosen ones, by length.")


@functools.cache
def points() -> dict[str, Any]:
    """Loss against score, to be brushed. Data: id, source, score, loss, chosen."""
    import altair as alt

    brush = alt.selection_interval(name="brush")
    base = (
        alt.Chart()
        .encode(
            x=alt.X(
                "loss:Q",
                title="log-loss before the target's step (nats)",
                scale=alt.Scale(type="symlog", constant=0.05, zero=False),
            ),
            y=alt.Y("score:Q", title="score", scale=alt.Scale(zero=False)),
            tooltip=["id:Q", "source:N", "loss:Q", "score:Q"],
        )
        .properties(width=640, height=300)
    )
    others = base.transform_filter("!datum.chosen").mark_point(color="@pool", size=14, opacity=0.7, strokeWidth=1)
    chosen = (
        base.transform_filter("datum.chosen")
        .mark_point(filled=True, color="@chosen", size=22, opacity=0.75, shape="diamond")
        .add_params(brush)
    )
    return _ready(
        alt.layer(others, chosen),
        "Points: log-loss and score of rows; chosen ones are filled diamonds. Drag to filter the table of rows.",
    )


def _by_source() -> Any:
    """A chart a source, one below the other, in the order of the data."""
    import altair as alt

    names = alt.Header(labelAngle=0, labelAlign="left", labelLimit=180, labelPadding=8)
    return alt.Row("source:N", title=None, sort=None, header=names)


def gain_bars(gains: Sequence[tuple[str, Mapping[str, Any], str]], chosen: str | None) -> list[dict[str, Any]]:
    """The data of `gains`; `cut` says whether a value lies beyond the edge and is drawn there.

    Args:
        gains: name, mean with low and high (None for no interval), and what a tooltip says.
        chosen: the one that stands out.
    """
    best = max((gain["mean"] for _, gain, _ in gains), default=0.0)
    edge = -max(FLOOR, FLOORS * best)
    data = []
    for place, (name, gain, text) in enumerate(gains):
        ends = [gain["mean"] if gain[end] is None else gain[end] for end in ("mean", "low", "high")]
        mean, low, high = (max(value, edge) for value in ends)
        role = "chosen" if name == chosen else "other"
        data.append(
            {"name": name, "place": place, "role": role, "text": text, "mean": mean, "low": low, "high": high}
            | {"cut": min(ends) < edge}
        )
    return data


@functools.cache
def gains() -> dict[str, Any]:
    """Gains with intervals. Data: name, place, mean, low, high, role, text."""
    import altair as alt

    base = alt.Chart().encode(
        y=alt.Y("name:N", title=None, sort=alt.EncodingSortField("place"), axis=alt.Axis(labelLimit=320))
    )
    zero = alt.Chart().mark_rule(color="@ink", strokeDash=[4, 3]).encode(x=alt.datum(0))
    bars = base.mark_rule(strokeWidth=3, color="@pool").encode(x=alt.X("low:Q", title="@gain"), x2="high:Q")
    dots = base.mark_point(filled=True, size=90, opacity=1).encode(
        x="mean:Q",
        color=alt.Color(
            "role:N",
            title=None,
            legend=None,
            scale=alt.Scale(domain=["chosen", "other"], range=["@chosen", "@score"]),
        ),
        shape=alt.Shape(
            "role:N", legend=None, scale=alt.Scale(domain=["chosen", "other"], range=["diamond", "circle"])
        ),
        tooltip=["name:N", "text:N"],
    )
    return _ready(
        alt.layer(zero, bars, dots).properties(width=560, height={"step": 26}),
        "Points with intervals: how much better than random rows each variant is; the dashed line is random rows.",
    )


@functools.cache
def curve() -> dict[str, Any]:
    """Test loss against rows. Data: name, n, loss, random."""
    import altair as alt

    base = alt.Chart().encode(
        x=alt.X("n:Q", title="rows", scale=alt.Scale(type="log", nice=False)),
        y=alt.Y("loss:Q", title="test log-loss (nats)", scale=alt.Scale(zero=False)),
    )
    line = base.transform_filter("datum.random").mark_line(point=True, color="@pool", strokeWidth=2)
    dots = base.transform_filter("!datum.random").mark_point(filled=True, size=70, color="@chosen", shape="diamond")
    names = (
        base.transform_filter("!datum.random")
        .mark_text(align="left", dx=7, color="@ink", limit=220)
        .encode(text="name:N")
    )
    return _ready(
        alt.layer(line, dots.encode(tooltip=["name:N", "n:Q", "loss:Q"]), names).properties(width=600, height=280),
        "Test log-loss against the number of rows: random rows as a line, the variants as points.",
    )
