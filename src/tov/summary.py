"""The numbers of a report: composition before and after, scores, lengths, what was left out. Computes, never renders."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def score_facts(scores: pa.Table) -> dict[str, Any]:
    """Facts of a score table alone: rows, rows left out by reason, quantiles of each score."""
    excluded = np.array(scores["excluded"].to_pylist(), dtype=object)
    reasons = np.array([reason.partition(":")[0] for reason in excluded], dtype=object)
    left_out = {str(reason): int((reasons == reason).sum()) for reason in sorted(set(reasons)) if reason}
    return {
        "rows": len(scores),
        "usable": int((reasons == "").sum()),
        "left_out": left_out,
        "in_base": int(np.sum(scores["in_base"].to_numpy())),
        "scored_tokens": int(np.sum(scores["tokens"].to_numpy())),
        "lost": {"rows": int(np.sum(scores["lost"].to_numpy() > 0)), "tokens": int(np.sum(scores["lost"].to_numpy()))},
        "quantiles": {name: quantiles(scores[name].to_numpy()) for name in scores.column_names if _is_score(name)},
        **({"loss_base": quantiles(scores["loss_base"].to_numpy())} if "loss_base" in scores.column_names else {}),
    }  # fmt: skip


def _is_score(column: str) -> bool:
    """Whether it ranks rows as it stands: not of one epoch (`_K`), nor of one sub-task (`:NAME`)."""
    return column.startswith("score_") and ":" not in column and not column.rpartition("_")[2].isdigit()


def quantiles(values: np.ndarray) -> list[float] | None:
    """Values at `QUANTILES`, over rows that have one."""
    finite = values[np.isfinite(values)]
    return [float(value) for value in np.quantile(finite, QUANTILES)] if len(finite) else None


def choice_facts(scores: pa.Table, row_ids: np.ndarray, reasons: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Facts of a selection: by source and by length, before and after; scores of the chosen rows.

    Args:
        scores: the score table.
        row_ids: (n,) the chosen rows.
        reasons: (n,) "score" or "random".
        values: (N,) the number that rows were ranked by.
    """
    sources = np.array(scores["source"].to_pylist(), dtype=object)
    usable = np.array([not reason for reason in scores["excluded"].to_pylist()])
    tokens = scores["tokens"].to_numpy()
    by_score = row_ids[reasons == "score"]
    chosen = row_ids
    composition = [
        {
            "source": str(source),
            "pool": int((usable & (sources == source)).sum()),
            "by_score": int((sources[by_score] == source).sum()),
            "chosen": int((sources[chosen] == source).sum()),
            "mean_score": _mean(values[usable & (sources == source)]),
        }
        for source in dict.fromkeys(sources)
    ]
    edges = (
        np.unique(np.quantile(tokens[usable], np.linspace(0, 1, 11)).astype(int)) if usable.any() else np.array([0, 1])
    )
    edges = np.append(edges[:-1], edges[-1] + 1) if len(edges) > 1 else np.array([edges[0], edges[0] + 1])
    lengths = [
        {
            "from": int(low), "to": int(high) - 1,
            "pool": int(((tokens[usable] >= low) & (tokens[usable] < high)).sum()),
            "by_score": int(((tokens[by_score] >= low) & (tokens[by_score] < high)).sum()),
            "chosen": int(((tokens[chosen] >= low) & (tokens[chosen] < high)).sum()),
        }
        for low, high in itertools.pairwise(edges)
    ]  # fmt: skip
    return {
        "n": len(row_ids), "by_score": len(by_score), "by_chance": int((reasons == "random").sum()),
        "tokens": int(tokens[chosen].sum()), "composition": composition, "lengths": lengths,
        "without_score": int((~np.isfinite(values[usable])).sum()),
        "score_chosen": quantiles(values[by_score]), "score_pool": quantiles(values[usable]),
    }  # fmt: skip


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
