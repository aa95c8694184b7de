"""One target as several: its rows are split by kind, and each cluster is a target of its own (`--target-clusters`).

The split is made once a run, as an artifact; whoever needs it later reads that. Must not know any method.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tov.errors import ConfigError, DataError, RunError
from tov.files import write_text
from tov.inputs.read import Indexed, subset_of, target_of_row, targets_of
from tov.methods.base import CLUSTERS, LEAST_ROWS
from tov.methods.shared.embedded import EmbedTask
from tov.methods.work import Work
from tov.progress import Progress, counted
from tov.runs.folder import Run
from tov.runs.manifest import TargetRecord
from tov.selection.clusters import Clusters, cluster_rows

FILE = "clusters.json"
MOST_CENTRAL, MOST_EXCERPT = 3, 100
"""Rows of a cluster that are told, and characters of each."""


def check_clusters(k: int | None, target: Indexed) -> None:
    """Before anything is scored: whether a target can be split so.

    Raises:
        ConfigError: there are several targets already.
        DataError: there are too few rows.
    """
    if k is None:
        return
    names, _ = target_of_row(target)
    if len(names) > 1:
        raise ConfigError(
            f"--target-clusters {k} splits one target, but there are {len(names)}: {', '.join(names)}.",
            allowed="one target, or several that are named",
            fix="Leave --target-clusters out, or the names before '=': the rows are one target, then.",
        )
    if len(target) < k * LEAST_ROWS:
        raise DataError(
            f"--target-clusters {k} needs {k * LEAST_ROWS} target rows, {LEAST_ROWS} for each, but there are {len(target):,}.",
            fix="Ask for fewer clusters, or leave --target-clusters out.",
        )


def check_shares(k: int | None, shares: Mapping[str, float]) -> None:
    """Raises ConfigError if a share is of a cluster, which nobody knows before the target is split."""
    named = next((name for name in shares if k and re.fullmatch(r"cluster-\d+", name)), None)
    if named:
        raise ConfigError(
            f"--share {named}={shares[named]:g}: what the clusters are is known only when the target has been split.",
            fix="Leave it out, look at the report, and choose again: tov select --from RUN --share ...",
        )


def split_target(work: Work, k: int | None) -> dict[str, Indexed]:
    """The targets that a target is for a method: its clusters by name, the largest first, or itself if k is None.

    Args:
        work: of the whole target; its method reads the model, or has an encoder.
        k: clusters.

    Raises:
        TovError: as of embedding.
    """
    target = work.target
    if k is None:
        return targets_of(target)
    encoder = getattr(work.options, "encoder", None)
    lora = (
        work.options if hasattr(work.options, "lora_r") else None
    )  # as the method opens it, so that it is loaded once
    opened = None if encoder else work.open(lora)
    task = EmbedTask(None, encoder=encoder, device=work.settings.device)
    if opened:
        task = EmbedTask(opened.spec, work.batch_tokens(opened))

    def make(folder: Path, progress: Progress) -> None:
        encoded, row_ids = work.encode_target(opened.encode if opened else work.encoder())
        rows = target.rows
        vectors = task.embedder(work.models)([rows[row] for row in row_ids], encoded)
        if opened:
            work.spend(CLUSTERS, int(encoded.lengths.sum()))
        able = max(1, min(k, len(row_ids) // LEAST_ROWS))
        found = cluster_rows(vectors, able, least=LEAST_ROWS, seed=work.settings.seed)
        _tell(work, k, found)
        write_text(folder / FILE, json.dumps(_record(target, row_ids, found), ensure_ascii=False))
        progress.advance(len(target))

    work.artifact(CLUSTERS, [target.index.fingerprint, k, encoder], opened, make, rows=len(target))
    return targets_now(work.run, target)


def _tell(work: Work, k: int, found: Clusters) -> None:
    there = len(found.rows)
    for few in found.merged:
        work.note(
            f"a cluster of {counted(few, 'target rows')} was joined to its nearest one: each has at least {LEAST_ROWS} rows"
        )
    if there < k:
        of_one = "the target is not split" if there == 1 else f"the target has {there} clusters"
        work.note(f"{of_one}, where --target-clusters asks for {k}: its rows are of so few kinds, or too few")


def _record(target: Indexed, row_ids: np.ndarray, found: Clusters) -> dict[str, Any]:
    """What is kept of a split. A row without a scored token is of no kind: the largest cluster has it, and says so as ever."""
    without, texts = np.setdiff1d(np.arange(len(target)), row_ids), target.rows
    clusters = []
    for place, (mine, central) in enumerate(zip(found.rows, found.central, strict=True)):
        rows = row_ids[mine] if place else np.sort(np.concatenate([row_ids[mine], without]))
        shown = _telling(texts, row_ids[central].tolist())
        clusters.append({
            "name": f"cluster-{place + 1}", "rows": rows.tolist(), "scored": len(mine),
            "central": list(shown.values()), "excerpts": list(shown),
        })  # fmt: skip
    return {"of": len(target), "clusters": clusters}


def _telling(texts: Sequence[Any], central: Sequence[int]) -> dict[str, int]:
    """Excerpt -> row, of the first few of these rows; what begins like one before it tells nothing new."""
    shown = dict[str, int]()
    for row in central:
        shown.setdefault(_excerpt(texts[row].text), row)
        if len(shown) == MOST_CENTRAL:
            break
    return shown


def _excerpt(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= MOST_EXCERPT else f"{words[: MOST_EXCERPT - 1].rstrip()}…"


def targets_now(run: Run, target: Indexed) -> dict[str, Indexed]:
    """The targets of a run by name: the clusters that its target was split into, else those that the user names.

    Args:
        run: with its artifacts.
        target: all rows, as `read_target` reads them.

    Raises:
        RunError: the split is gone, or is of other rows.
    """
    clusters = _clusters(run)
    if len(clusters) < 2:
        return targets_of(target)
    if sum(len(one["rows"]) for one in clusters) != len(target):
        raise RunError("The target's rows are not those that were split into clusters.", fix="Put its files back.")
    return {one["name"]: subset_of(target, np.array(one["rows"])) for one in clusters}


def records_of(run: Run, targets: Mapping[str, Indexed]) -> dict[str, TargetRecord]:
    """What the manifest says of the targets of a run, as `targets_now` or `split_target` gives them."""
    told = {one["name"]: {"weight": one["scored"], "excerpts": one["excerpts"]} for one in _clusters(run)}
    return {
        name: TargetRecord(rows=len(one), fingerprint=one.index.fingerprint, **told.get(name, {}))
        for name, one in targets.items()
    }


def _clusters(run: Run) -> list[dict[str, Any]]:
    folder = run.artifacts.get(CLUSTERS)
    if folder is None:
        return []
    try:
        clusters: list[dict[str, Any]] = json.loads((folder / FILE).read_text("utf-8"))["clusters"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"The clusters in {folder} cannot be read: {error}", fix="Score again, with --force.") from None
    return clusters
