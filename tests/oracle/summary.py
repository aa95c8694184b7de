"""A report's numbers, counted row by row."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

Row = dict[str, Any]
LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def score_facts(rows: list[Row], scores: list[str]) -> dict[str, Any]:
    """Facts of a score table.

    Args:
        rows: in order, a column a key.
        scores: the columns whose quantiles are told.
    """
    left_out: dict[str, int] = {}
    for row in rows:
        reason = row["excluded"].split(":")[0]
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
    return {
        "rows": len(rows), "usable": len(rows) - sum(left_out.values()), "left_out": left_out,
        "in_base": sum(row["in_base"] for row in rows), "scored_tokens": sum(row["tokens"] for row in rows),
        "lost": {"rows": sum(row["lost"] > 0 for row in rows), "tokens": sum(row["lost"] for row in rows)},
        "quantiles": {name: quantiles([row[name] for row in rows]) for name in scores},
        "loss_base": quantiles([row["loss_base"] for row in rows]),
    }  # fmt: skip


def choice_facts(rows: list[Row], chosen: list[int], reasons: list[str], values: list[float]) -> dict[str, Any]:
    """Facts of a choice.

    Args:
        rows: in order, a column a key.
        chosen: row ids.
        reasons: of each chosen row.
        values: what each row of the table was ranked by.
    """
    usable = [row_id for row_id, row in enumerate(rows) if not row["excluded"]]
    best = [row_id for row_id, reason in zip(chosen, reasons, strict=True) if reason == "score"]
    sources: list[str] = []
    for row in rows:
        if row["source"] not in sources:
            sources.append(row["source"])
    composition = []
    for source in sources:
        pool, by_score, taken = (
            [row_id for row_id in ids if rows[row_id]["source"] == source] for ids in (usable, best, chosen)
        )
        finite = [values[row_id] for row_id in pool if math.isfinite(values[row_id])]
        composition.append({
            "source": source, "pool": len(pool), "by_score": len(by_score), "chosen": len(taken),
            "mean_score": sum(finite) / len(finite) if finite else None,
        })  # fmt: skip
    edges = [0, 1]
    if usable:
        tenths = np.quantile([rows[row_id]["tokens"] for row_id in usable], np.linspace(0, 1, 11))
        edges = sorted({int(tenth) for tenth in tenths})
    edges = [*(edges[:-1] or edges), edges[-1] + 1]
    lengths = []
    for low, high in itertools.pairwise(edges):
        pool, by_score, taken = (
            sum(low <= rows[row_id]["tokens"] < high for row_id in ids) for ids in (usable, best, chosen)
        )
        lengths.append({"from": low, "to": high - 1, "pool": pool, "by_score": by_score, "chosen": taken})
    return {
        "n": len(chosen), "by_score": len(best), "by_chance": len(chosen) - len(best),
        "tokens": sum(rows[row_id]["tokens"] for row_id in chosen), "composition": composition, "lengths": lengths,
        "without_score": sum(not math.isfinite(values[row_id]) for row_id in usable),
        "score_chosen": quantiles([values[row_id] for row_id in best]),
        "score_pool": quantiles([values[row_id] for row_id in usable]),
    }  # fmt: skip


def quantiles(values: list[float]) -> list[float] | None:
    """Quantiles of the finite values."""
    finite = [value for value in values if math.isfinite(value)]
    return np.quantile(finite, LEVELS).tolist() if finite else None
