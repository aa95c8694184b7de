"""What is said of a selection whose rows a proxy has scored: sentences from the facts of its summary. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def proxy_notes(facts: Mapping[str, Any]) -> list[str]:
    """Which model scored for which, whose tokens are counted, and how far the two agree: a sentence each.

    Args:
        facts: `summary.proxy` of a manifest.
    """
    proxy, model = facts["proxy"], facts["model"]
    scored = (
        f"the proxy {proxy} scored the rows in place of {model}, for which they are chosen; lengths are tokens of the proxy's "
        f"tokenizer, and rows were cut at {facts['max_length']:,} of them"
    )
    agreed = [_agreed(one, _of(name, facts)) for name, one in facts["agreement"].items()]
    return [scored, *(agreed or [f"how far {proxy} and {model} agree on rows of this pool was not measured"])]


def proxy_warnings(facts: Mapping[str, Any]) -> list[str]:
    """A sentence for each target of which the sample does not show that proxy and model agree."""
    return [
        f"nothing shows that {facts['proxy']} ranks rows as {facts['model']} does{_of(name, facts)}: {_interval(one)}"
        for name, one in facts["agreement"].items()
        if one["low"] is None or one["low"] <= 0
    ]


def _of(name: str, facts: Mapping[str, Any]) -> str:
    return f" for the target {name}" if len(facts["agreement"]) > 1 else ""


def _agreed(one: Mapping[str, Any], whose: str) -> str:
    said = f"agreement of proxy and model{whose} on {one['rows']:,} rows drawn at random: "
    if one["correlation"] is None:
        return said + "no rank correlation, as one of them gives all rows one score"
    within = "" if one["low"] is None else f" (95 % interval {one['low']:+.2f} to {one['high']:+.2f})"
    return said + (
        f"rank correlation {one['correlation']:+.2f}{within}, {100 * one['overlap']:.0f} % of the best half in common "
        "(50 % by chance)"
    )


def _interval(one: Mapping[str, Any]) -> str:
    if one["correlation"] is None and one["rows"] > 1:
        return "one of them gives all sampled rows one score"
    if one["low"] is None:
        return f"{one['rows']:,} sampled rows that both rank are too few to tell; raise --proxy-sample"
    where = (
        "includes 0; raise --proxy-sample, or take another proxy" if one["high"] >= 0
        else "lies below 0; take another proxy"
    )  # fmt: skip
    return f"the interval of their rank correlation, {one['low']:+.2f} to {one['high']:+.2f}, {where}"
