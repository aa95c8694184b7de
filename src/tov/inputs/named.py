"""What the user names as inputs: told apart, remembered, and read again by a later command, the same rows still."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np

from tov.config.records import DataSettings, P, PathSettings
from tov.config.settings import build
from tov.data.cells import NOT_GOLD, BadRow
from tov.data.pool import Index, Pool, check_mapping
from tov.data.rows import content_hash
from tov.data.sources import Input, Named, is_name, local_files
from tov.errors import ConfigError, DataError
from tov.files import content_digest, stamp_of
from tov.inputs import kept
from tov.inputs.read import (
    AUTO,
    Indexed,
    PoolRows,
    labels_of,
    open_rows,
    read_pool,
    read_target,
    target_of_row,
    targets_of,
)
from tov.model.load import check_loading, content_of, located
from tov.model.loading import Loading
from tov.objects.mirror import local
from tov.objects.stores import is_url
from tov.runs.changed import changed_files
from tov.runs.folder import Run, finished_run
from tov.runs.manifest import InputsRecord
from tov.scores.store import read_hashes
from tov.tasks import TASKS

READ_AT_ONCE = 1 << 16
"""Rows whose hashes are compared at once."""
Inputs: TypeAlias = Input | Sequence[Input] | Mapping[str, Input | Sequence[Input]]
IN_MEMORY = "<in memory>"


def list_inputs(inputs: Inputs) -> list[Input]:
    """One input, or several, as a list; of a mapping each with its name, as `NAME=FILE` has one.

    Raises:
        ConfigError: a name that cannot be one.
    """
    if isinstance(inputs, (str, Path, datasets.Dataset, Named)):
        return [inputs]
    if isinstance(inputs, Mapping):
        return [_called(name, one) for name, several in inputs.items() for one in list_inputs(several)]
    several = list(inputs)
    return [several] if several and isinstance(several[0], Mapping) else several


def _called(name: str, value: Input) -> Input:
    if not isinstance(name, str) or not is_name(name):
        raise ConfigError(
            f"Inputs got the name {name!r}.",
            allowed="names of letters, digits and _.-; a row of its own stands in a list: [row]",
            fix="Give it another name.",
        )
    if isinstance(value, Named):
        return Named(name, value.rows)
    return f"{name}={value}" if isinstance(value, (str, Path)) else Named(name, value)


def name_inputs(inputs: Sequence[Input]) -> tuple[str, ...]:
    """What settings call them."""
    return tuple(
        str(one) if isinstance(one, (str, Path)) else f"{one.name}={IN_MEMORY}" if isinstance(one, Named) else IN_MEMORY
        for one in inputs
    )


def read_inputs(
    config: P, pools: Sequence[Input], targets: Sequence[Input], *, out: str = AUTO
) -> tuple[P, Indexed, PoolRows, tuple[str, ...]]:
    """The settings with the target's task and its defaults; target, pool and labels.

    Args:
        config: the settings.
        pools: what the user names as pool.
        targets: and as target.
        out: the run folder that the pool is read for, in which its index may be.

    Raises:
        DataError: a row cannot be used, or labels differ.
        ConfigError: a column that is not there, or a model that cannot be loaded so here; told before the pool is read.
    """
    target = read_target(targets, config)
    names, _ = target_of_row(target)
    if len(names) > 1 and (empty := set(names) - targets_of(target).keys()):
        raise DataError(
            f"All rows of the target {min(empty)} say that they are not right {NOT_GOLD}.",
            fix="Name rows that are right, or leave that target out.",
        )
    config = config.for_task(target.task).model_copy(update={"model": located(config.model)})
    check_loading(Loading.of(config), config.device, new_head=TASKS[target.task].new_head)
    rows = read_pool(pools, config, target.index.prompt, decontaminate=config.decontaminate, out=out)
    check_mapping(config.columns, rows.pool, target.pool)
    return config, target, rows, labels_of(rows, target, config)


def pool_identity(pool: Pool, index: Index) -> dict[str, Any]:
    """What a run's identity says of a pool, or of a target or test."""
    return {
        "sources": {source.name: len(source.table) for source in pool.sources},
        "fingerprint": index.fingerprint,
    }


def targets_identity(target: Indexed) -> dict[str, Any]:
    """What a run's identity says of each of its targets; of several the place too, for they choose in turns."""
    several = targets_of(target)
    return {
        name: {"rows": len(one), "fingerprint": one.index.fingerprint} | ({"place": place} if len(several) > 1 else {})
        for place, (name, one) in enumerate(several.items(), 1)
    }


def model_identity(settings: PathSettings) -> str:
    """What a run's identity says of its model: its content, not its name."""
    return content_of(settings.model, revision=settings.revision)


def remember_in(run: Run, rows: PoolRows, settings: DataSettings, **inputs: Sequence[Input]) -> InputsRecord:
    """As `remember`, for a run that begins or goes on; it keeps the index of its pool until it is finished."""
    record = remember(settings, run.manifest.inputs, **inputs)
    kept.keep(run.folder, rows.pool, rows.index, rows.made_from, record)
    return record


def remember(settings: DataSettings, before: InputsRecord | None = None, **inputs: Sequence[Input]) -> InputsRecord:
    """What a later command needs to read the inputs again, and to tell that their files are the same.

    Args:
        settings: of reading.
        before: an earlier record; a file that has the stamp of then is not read again.
        **inputs: by role.
    """
    named = {
        name: [_absolute(str(one)) for one in several] if all(isinstance(one, (str, Path)) for one in several) else None
        for name, several in inputs.items()
    }
    files = [
        os.path.abspath(file) for file in local_files([one for several in inputs.values() for one in several]) or []
    ]
    stamps = {file: stamp_of(Path(file)) for file in files}  # first: a change while the file is read shows later
    return InputsRecord(
        **named, files={file: _digest_of(Path(file), file, before or InputsRecord()) for file in files},
        stamps={file: stamp for file, stamp in stamps.items() if stamp},
        reading={name: getattr(settings, name) for name in DataSettings.model_fields},
    )  # fmt: skip


def _digests(inputs: Sequence[Input], record: InputsRecord) -> dict[str, str] | None:
    """As `record.files`, of today; a file that has the stamp of then is not read again."""
    files = local_files(inputs)
    if files is None:
        return None
    return {os.path.abspath(file): _digest_of(file, os.path.abspath(file), record) for file in files}


def _digest_of(file: Path, name: str, record: InputsRecord) -> str:
    stamp = record.stamps.get(name)
    return record.files[name] if stamp and name in record.files and stamp == stamp_of(file) else content_digest(file)


def unchanged_run(out: str, *, command: str, **inputs: Sequence[Input]) -> Run | None:
    """The finished run in `out`, if it was made from these very files: found by their stamps, or their bytes; no row is read.

    Args:
        out: as the user named it.
        command: that made it.
        **inputs: by role, as for `remember`.
    """
    if out == "auto" or not all(isinstance(one, (str, Path)) for several in inputs.values() for one in several):
        return None
    run = finished_run(local(out, whole=True), command=command)
    if run is None or not run.manifest.inputs.files:
        return None
    record = run.manifest.inputs
    named = {name: [_absolute(str(one)) for one in several] for name, several in inputs.items()}
    if any(getattr(record, name) != locations for name, locations in named.items()):
        return None
    return run if _digests([one for several in inputs.values() for one in several], record) == record.files else None


def _absolute(location: str) -> str:
    if is_url(location):
        return location
    name, _, rest = location.partition("=")
    if rest and not Path(location).exists():
        return f"{name}={_absolute(rest)}"
    folder = Path(location).parent
    return os.path.abspath(location) if Path(location).exists() or (folder != Path() and folder.exists()) else location


def pool_again(origin: Run, pools: Sequence[Input] | None, scored: int) -> Pool:
    """The pool of an earlier run, which has as many rows still as were scored.

    Raises:
        ConfigError: it was in memory.
        DataError: it has more rows, or fewer.
    """
    record = origin.manifest.inputs
    if pools is None and record.pool is None:
        raise ConfigError(
            "The run's pool was in memory, so it cannot be read again.",
            fix="Pass it again: tov.reselect(..., pool=...)",
        )
    pool = open_rows(pools or record.pool or [], build(DataSettings, record.reading))
    if len(pool) != scored:
        changed = "".join(f"\n    {one}" for one in changed_files(record))
        raise DataError(
            f"The pool has {len(pool):,} rows, but {scored:,} were scored."
            + " Files that have changed:" * bool(changed)
            + changed,
            fix="Put the pool's files back, or score the new pool.",
        )
    return pool


def check_unchanged(pool: Pool, row_ids: np.ndarray, hashes: Sequence[str]) -> None:
    """These rows must still be the ones that were scored, whose content hashes these are.

    Raises:
        DataError: one is another row now.
    """
    for row_id, row, scored in zip(row_ids.tolist(), pool.each(row_ids), hashes, strict=True):
        now = 0 if isinstance(row, BadRow) else content_hash(row)
        if now != int(scored, 16):
            raise DataError(
                f"{pool.where(row_id)} is no longer the row that was scored.",
                fix="Put the pool's files back, or score the new pool: tov score --from RUN --pool POOL",
            )


def check_pool_unchanged(origin: Run, pools: Sequence[Input] | None, pool: Pool) -> None:
    """All rows of the pool must still be the ones that an earlier run has scored; read only if its files are not the same.

    Raises:
        DataError: as of `check_unchanged`, for the first row that has changed.
    """
    record = origin.manifest.inputs
    now = _digests(pools or record.pool or [], record)
    if now and all(record.files.get(file) == digest for file, digest in now.items()):
        return
    for start in range(0, len(pool), READ_AT_ONCE):
        row_ids = np.arange(start, min(start + READ_AT_ONCE, len(pool)))
        check_unchanged(pool, row_ids, read_hashes(origin.scores, row_ids, origin.stamp))
