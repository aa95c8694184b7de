"""What the user names as inputs: told apart, remembered, and read again by a later command, the same rows still."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow as pa

from tov.config import DataSettings
from tov.data.cells import BadRow
from tov.data.pool import Pool
from tov.data.rows import content_hash
from tov.data.sources import Input
from tov.errors import ConfigError, DataError, RunError
from tov.path.store import StoredPath, open_path
from tov.run import Run, open_run
from tov.settings import build
from tov.stages import hexes, open_rows

Inputs: TypeAlias = Input | Sequence[Input]


def pool_again(origin: Run, pools: Sequence[Input] | None, scores: pa.Table) -> Pool:
    """The pool of an earlier run, checked to be the same rows still."""
    remembered = origin.manifest["inputs"]
    if pools is None and remembered["pool"] is None:
        raise ConfigError("the run's pool was in memory", fix="pass it again: tov.reselect(..., pool=...)")
    pool = open_rows(pools or remembered["pool"], build(DataSettings, remembered["reading"]))
    if len(pool) != len(scores):
        raise DataError(
            f"the pool has {len(pool):,} rows, the scores {len(scores):,}",
            fix="put the pool's files back, or score the new pool",
        )
    return pool


def task_of(manifest: Mapping[str, Any]) -> str:
    """The task of a run whose pool was scored."""
    return str(manifest.get("path", manifest.get("method", {}))["task"])


def path_folder(origin: Run) -> Path:
    """Where the stored path of a run lies: in its own folder, or in the run that it went out from.

    Raises:
        RunError: there is none.
    """
    if origin.path.exists():
        return origin.path
    if "path_from" in origin.manifest:
        return Path(origin.manifest["path_from"])
    if "scores_from" in origin.manifest:
        return path_folder(open_run(Path(origin.manifest["scores_from"]).parent))
    if "method" in origin.manifest:
        name = origin.manifest["method"]["name"]
        raise RunError(
            f"{origin.folder} was scored by {name}, which leaves no path to score another pool with",
            fix=f"score the other pool by itself: tov select --method {name} --pool ...",
        )
    raise RunError(f"{origin.folder} holds no path", fix="name a select or fit run")


def chosen_with(origin: Run) -> StoredPath:
    """The stored path; for rows chosen by a method without one, what its run says of the model, in the same words."""
    if "model" in origin.manifest:
        return StoredPath(origin.folder, origin.manifest["model"])
    return open_path(path_folder(origin))


def read_by(origin: Run) -> list[Path]:
    """The folders that a command reads when it goes out from a run."""
    return [
        origin.folder,
        *(Path(origin.manifest[key]) for key in ("scores_from", "path_from") if key in origin.manifest),
    ]


def check_unchanged(pool: Pool, row_ids: np.ndarray, scores: pa.Table) -> None:
    """The chosen rows must still be the ones that were scored."""
    hashes = [scores["hash"][int(row_id)].as_py() for row_id in row_ids]
    for row_id, row, scored in zip(row_ids, pool.at(row_ids), hashes, strict=True):
        if isinstance(row, BadRow) or hexes(np.array([content_hash(row)], np.uint64)) != [scored]:
            raise DataError(
                f"{pool.where(int(row_id))} is no longer the row that was scored",
                fix="put the pool's files back, or score the new pool: tov score --from RUN --pool POOL",
            )


def list_inputs(given: Inputs) -> list[Input]:
    """One input, or several, as a list."""
    if isinstance(given, (str, Path, datasets.Dataset)):
        return [given]
    several = list(given)
    return [several] if several and isinstance(several[0], Mapping) else several


def name_inputs(inputs: Sequence[Input]) -> tuple[str, ...]:
    """What the manifest calls them."""
    return tuple(str(one) if isinstance(one, (str, Path)) else "<in memory>" for one in inputs)


def remember(settings: DataSettings, **inputs: Sequence[Input]) -> dict[str, Any]:
    """What a later command needs to read pool and target again; None for one that was in memory."""
    found = {
        name: [_absolute(str(one)) for one in given] if all(isinstance(one, (str, Path)) for one in given) else None
        for name, given in inputs.items()
    }
    return {**found, "reading": {name: getattr(settings, name) for name in DataSettings.model_fields}}


def _absolute(location: str) -> str:
    name, _, rest = location.partition("=")
    if rest and not Path(location).exists():
        return f"{name}={_absolute(rest)}"
    folder = Path(location).parent
    return os.path.abspath(location) if Path(location).exists() or (folder != Path() and folder.exists()) else location
