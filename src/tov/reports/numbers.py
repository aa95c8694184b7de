"""The numbers of a report: composition before and after, scores, lengths, what was left out. Computes, never renders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tov.runs.manifest import TargetRecord
from tov.scores.table import coded, usable_in

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
READ = ("source", "tokens", "lost", "in_base", "excluded", "loss_base")
"""Columns that the facts are of, beside the scores."""


def facts_read(names: Sequence[str]) -> list[str]:
    """Which of a score table's columns the facts below are of."""
    return [name for name in names if name.partition("@")[0] in READ or _is_score(name)]


def score_facts(scores: pa.Table) -> dict[str, Any]:
    """Facts of a score table alone: rows, rows left out by reason, quantiles of each score."""
    codes, texts = coded(scores["excluded"])
    counts = Counter[str]()
    for text, count in zip(texts, np.bincount(codes, minlength=len(texts)).tolist(), strict=True):
        counts[text.partition(":")[0]] += count
    # Of several targets the first one's: base states differ little.
    loss = next((name for name in scores.column_names if name.partition("@")[0] == "loss_base"), None)
    return {
        "rows": len(scores),
        "usable": counts[""],
        "left_out": {reason: counts[reason] for reason in sorted(counts) if reason},
        "in_base": int(np.sum(scores["in_base"].to_numpy())),
        "scored_tokens": int(np.sum(scores["tokens"].to_numpy())),
        "lost": {"rows": int(np.sum(scores["lost"].to_numpy() > 0)), "tokens": int(np.sum(scores["lost"].to_numpy()))},
        "quantiles": {name: quantiles(scores[name].to_numpy()) for name in scores.column_names if _is_score(name)},
        **({"loss_base": quantiles(scores[loss].to_numpy())} if loss else {}),
    }  # fmt: skip


def _is_score(column: str) -> bool:
    """Whether it ranks rows as it stands: not of one epoch (`_K`), nor of one sub-task (`:NAME`)."""
    return column.startswith("score_") and ":" not in column and not is_of_epoch(column)


def is_of_epoch(column: str) -> bool:
    """Whether a column, of whichever target, is a measure of one epoch: `NAME_K`."""
    return column.partition("@")[0].rpartition("_")[2].isdigit()


def quantiles(values: np.ndarray) -> list[float] | None:
    """Values at `QUANTILES`, over rows that have one."""
    finite = values[np.isfinite(values)]
    return [float(value) for value in np.quantile(finite, QUANTILES, overwrite_input=True)] if len(finite) else None


def choice_facts(
    scores: pa.Table, row_ids: np.ndarray, reasons: np.ndarray, values: np.ndarray, targets: np.ndarray | None = None
) -> dict[str, Any]:
    """Facts of a selection: by source and by length, before and after; scores of the chosen rows.

    Args:
        scores: the score table.
        row_ids: (n,) the chosen rows.
        reasons: (n,) "score" or "random".
        values: (N,) the number that rows were ranked by.
        targets: (n,) the target that each was chosen for, where there are several.
    """
    codes, names = coded(scores["source"])
    may = usable_in(scores)
    tokens = scores["tokens"].to_numpy()
    by_score, chosen = row_ids[reasons == "score"], row_ids
    counts = [np.bincount(codes[rows], minlength=len(names)).tolist() for rows in (may, by_score, chosen)]
    means = _means(values[may], codes[may], len(names))
    composition = [
        {"source": name, "pool": pool, "by_score": best, "chosen": taken, "mean_score": mean}
        for name, pool, best, taken, mean in zip(names, *counts, means, strict=True)
    ]
    edges = np.unique(np.quantile(tokens[may], np.linspace(0, 1, 11)).astype(int)) if may.any() else np.array([0, 1])
    edges = np.append(edges[:-1], edges[-1] + 1) if len(edges) > 1 else np.array([edges[0], edges[0] + 1])
    lengths = [
        {"from": low, "to": high - 1, "pool": pool, "by_score": best, "chosen": taken}
        for low, high, pool, best, taken in zip(
            edges[:-1].tolist(), edges[1:].tolist(), *(_counts(tokens[rows], edges) for rows in (may, by_score, chosen)),
            strict=True,
        )
    ]  # fmt: skip
    return {
        "n": len(row_ids), "by_score": len(by_score), "by_chance": int((reasons == "random").sum()),
        "tokens": int(tokens[chosen].sum()), "composition": composition, "lengths": lengths,
        "without_score": int((~np.isfinite(values[may])).sum()),
        "score_chosen": quantiles(values[by_score]), "score_pool": quantiles(values[may]),
        **({} if targets is None else {"targets": _of_targets(scores, row_ids, reasons, targets)}),
    }  # fmt: skip


def _of_targets(
    scores: pa.Table, row_ids: np.ndarray, reasons: np.ndarray, targets: np.ndarray
) -> list[dict[str, Any]]:  # fmt: skip
    """Of each target: how many rows it has, and from which sources."""
    codes, names = coded(scores["source"])
    found = []
    for target in dict.fromkeys(targets.tolist()):
        mine = targets == target
        counts = np.bincount(codes[row_ids[mine]], minlength=len(names)).tolist()
        sources = {name: count for name, count in zip(names, counts, strict=True) if count}
        by_score = int((reasons[mine] == "score").sum())
        found.append({"target": target, "chosen": int(mine.sum()), "by_score": by_score, "sources": sources})
    return found


def clusters_facts(targets: Mapping[str, TargetRecord]) -> dict[str, Any]:
    """Of the clusters of a target, where it is split: how many rows each has, and how its most central ones begin."""
    clusters = [
        {"cluster": name, "rows": one.rows, "central": one.excerpts} for name, one in targets.items() if one.excerpts
    ]
    return {"clusters": clusters} if clusters else {}


def _counts(tokens: np.ndarray, edges: np.ndarray) -> list[int]:
    """How many rows are from each edge up to the next; those outside are not counted."""
    places = np.searchsorted(edges, tokens, side="right")
    return np.bincount(places, minlength=len(edges) + 1)[1:-1].tolist()


def amount_facts(
    scores: pa.Table, row_ids: np.ndarray, tokens: int | None, shares: Mapping[str, float],
    targets: np.ndarray | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Facts of a budget and of shares, where they were given.

    Args:
        scores: the score table.
        row_ids: (n,) the chosen rows.
        tokens: the budget.
        shares: source, or one of several targets -> share that was asked for.
        targets: (n,) the target that each was chosen for, where there are several.

    Returns:
        `budget`: `tokens`, and `spent` of them; `shares`: of each source or target `asked` and `reached`, of the rows or of the
        tokens that were spent.
    """
    spent = scores["length"].to_numpy()[row_ids] if tokens else np.ones(len(row_ids), np.int64)
    facts: dict[str, Any] = {"budget": {"tokens": tokens, "spent": int(spent.sum())}} if tokens else {}
    if shares:
        codes, names = coded(scores["source"])
        of_source = np.bincount(codes[row_ids], spent, minlength=len(names))
        reached = dict(zip(names, (of_source / spent.sum()).tolist(), strict=True))
        if targets is not None:
            reached |= {name: float(spent[targets == name].sum() / spent.sum()) for name in shares if name not in names}
        facts["shares"] = {name: {"asked": share, "reached": reached[name]} for name, share in shares.items()}
    return facts


def _means(values: np.ndarray, codes: np.ndarray, groups: int) -> list[float | None]:
    """(groups,) the mean over the rows of each code; a group's values stay in row order, so that sums round alike."""
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=groups))
    return [_mean(part) for part in np.split(values[order], ends[:-1])]


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
