"""Inputs as a command reads them: the target, every row of which must be usable, and the pool, its excluded rows marked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tov.config.records import DataSettings
from tov.data.cells import NOT_GOLD, BadRow
from tov.data.decontamination import DUPLICATE, IN_TARGET, USABLE, exclusions, left_out
from tov.data.labels import LabelMap
from tov.data.pool import Index, Pool, index_rows, open_pool
from tov.data.rows import Row
from tov.data.sources import Input
from tov.errors import DataError
from tov.inputs import kept
from tov.progress import counted
from tov.scores.table import DEFAULT_TARGET
from tov.tasks import TASKS, all_layouts

AUTO = "auto"
"""An `out` whose folder is named by what is in it, so that it is not known before."""


@dataclass(frozen=True)
class Indexed:
    """Rows as read (a target, a test, a pool), with their hashes.

    Attributes:
        pool: the rows.
        index: their hashes.
    """

    pool: Pool
    index: Index

    @property
    def task(self) -> str:
        """The task that the columns mean."""
        return self.pool.task

    @property
    def rows(self) -> list[Row]:
        """Those that could be read."""
        return usable_rows(self.pool.rows(0, len(self.pool)))

    def __len__(self) -> int:
        return len(self.pool)


@dataclass(frozen=True)
class PoolRows(Indexed):
    """A pool to choose from.

    Attributes:
        excluded: (N,) codes of `tov.data.decontamination`.
        skip: whether a row that the model's chat template refuses is left out, rather than being an error.
        made_from: what its run is to keep the index under (`tov.inputs.kept`); None where it is not kept.
    """

    excluded: np.ndarray
    skip: bool = False
    made_from: str | None = None

    @property
    def usable(self) -> np.ndarray:
        """(N,) bool, as far as text alone tells (a row may yet turn out to have no scored token)."""
        return self.excluded == USABLE

    def subset(self, row_ids: np.ndarray) -> PoolRows:
        """These rows alone, which must be in order."""
        return PoolRows(self.pool.subset(row_ids), self.index.subset(row_ids), self.excluded[row_ids], self.skip)

    @property
    def excluded_fingerprint(self) -> str:
        """16 hex digits of which rows may not be chosen."""
        return hashlib.sha256(self.excluded.tobytes()).hexdigest()[:16]


def open_rows(inputs: Sequence[Input], settings: DataSettings) -> Pool:
    """Inputs as one pool, read as the settings say."""
    return open_pool(
        inputs, layouts=all_layouts(), columns=settings.columns, task=settings.task,
        label_map=LabelMap.of_settings(settings.label_map or {}), repair_bio=settings.repair_bio,
    )  # fmt: skip


def read_target(inputs: Sequence[Input], settings: DataSettings, *, role: str = "target") -> Indexed:
    """The target (or the test); every row must be usable. Those that an annotator rejected are left out.

    Raises:
        DataError: a row cannot be used, or all are rejected.
    """
    pool = open_rows(inputs, settings)
    index = index_rows(pool, role=role)
    if index.not_gold:
        gold = np.setdiff1d(np.arange(len(pool)), list(index.not_gold))
        if not len(gold):
            raise DataError(
                f"All {len(pool):,} rows of the {role} say that they are not right {NOT_GOLD}.",
                fix="Name rows that are right, or delete the column that says so if it means something else.",
            )
        pool, index = pool.subset(gold), index.subset(gold)
    return Indexed(pool, index)


def targets_of(target: Indexed) -> dict[str, Indexed]:
    """The targets of a run by name, in the order given: those that `NAME=INPUT` names, and all other rows as `target`.

    A target alone is called `target`, whatever the user calls it: its columns in the score table have no suffix. One of which a
    part of the target has no row (as where rows are held out) is not among them.

    Args:
        target: all of them together, as `read_target` reads them.
    """
    names, of_row = target_of_row(target)
    if len(names) == 1:
        return {DEFAULT_TARGET: target}
    places = {name: np.flatnonzero(of_row == place) for place, name in enumerate(names)}
    return {name: subset_of(target, rows) for name, rows in places.items() if len(rows)}


def target_of_row(target: Indexed) -> tuple[list[str], np.ndarray]:
    """The names of the targets, and (M,) the place of each row's among them."""
    given = [source.given or DEFAULT_TARGET for source in target.pool.sources]
    names = list(dict.fromkeys(given))
    return names, np.array([names.index(name) for name in given])[target.pool.source_index(np.arange(len(target)))]


def subset_of(read: Indexed, row_ids: np.ndarray) -> Indexed:
    """These rows alone, in order."""
    return Indexed(read.pool.subset(row_ids), read.index.subset(row_ids))


def read_pool(
    inputs: Sequence[Input], settings: DataSettings, target_prompts: np.ndarray, *, decontaminate: bool, out: str = AUTO
) -> PoolRows:
    """The pool, with leaks, repeats and unreadable rows marked; by the index that an unfinished run in `out` has kept of the
    very files, if it has one."""
    made_from = kept.key(inputs, settings) if out != AUTO else None
    found = kept.take_over(out, made_from, lambda: open_rows(inputs, settings))
    if found and kept.key(inputs, settings) != made_from:  # a file was replaced while they were opened
        found = None
    pool = found[0] if found else open_rows(inputs, settings)
    index = found[1] if found else index_rows(pool, on_bad_row=settings.on_bad_row)
    excluded = exclusions(index, target_prompts, decontaminate=decontaminate)
    return PoolRows(pool, index, excluded, settings.on_bad_row != "error", made_from)


def check_n(n: int, rows: PoolRows, flag: str = "--n") -> None:
    """Raises DataError, with what was left out and why, if fewer than n rows may be chosen."""
    usable = int(rows.usable.sum())
    if n > usable:
        guarded = np.isin(rows.excluded, (IN_TARGET, DUPLICATE)).any()
        reasons = left_out(rows.excluded, rows.index)
        raise DataError(
            f"The pool has {counted(usable, 'usable rows')} of {len(rows.pool):,}, but {flag} asks for {n:,}."
            + (f" Left out: {reasons}." if reasons else ""),
            fix=f"Lower {flag}, or add rows."
            + (" --no-decontaminate allows rows of the target, and repeats." if guarded else ""),
        )


def labels_of(rows: PoolRows, target: Indexed, settings: DataSettings) -> tuple[str, ...]:
    """What a new head of the model must tell apart, in order; nothing where the task has none.

    Raises:
        DataError: target and pool have different labels, or there is but one.
    """
    names = [source.name for source in rows.pool.sources]
    label_map = LabelMap.of_settings(settings.label_map or {})
    try:
        return TASKS[rows.task].head_labels(target.index.labels, rows.index.labels, names, label_map)
    except DataError as error:
        problem = "\n  ".join([error.problem, *label_map_notes(settings, target=target, pool=rows)])
        raise DataError(problem, allowed=error.allowed, fix=error.fix) from None


def reading_notes(**inputs: Indexed) -> list[str]:
    """What is said of how the named inputs were read: files left aside, what was changed or left out, a line a kind."""
    notes = [note for one in inputs.values() for source in one.pool.sources for note in source.notes]
    for name, one in inputs.items():
        index = one.index
        if index.bad:
            lost, first = counted(len(index.bad), f"{name} rows"), min(index.bad)
            notes.append(
                f"{lost} could not be read and were left out; the first is {one.pool.where(first)}: {index.bad[first]}"
            )
        if index.repaired:
            notes.append(f"--repair-bio made the tags of {index.repaired:,} {name} rows BIO2")
        if index.cut_spans:
            notes.append(f"{index.cut_spans:,} entities of {name} rows begin or end inside a word, which was cut there")
        if index.rejected:
            notes.append(f"{index.rejected:,} {name} rows say that they are not right {NOT_GOLD} and were left out")
    return notes


def label_map_notes(settings: DataSettings, **inputs: Indexed) -> list[str]:
    """Parts of the label map that are for none of the sources of these inputs, and so have no effect."""
    names = [source.name for one in inputs.values() for source in one.pool.sources]
    others = LabelMap.of_settings(settings.label_map or {}).of_no_source(names)
    if not others:
        return []
    return [f"--label-map has a part for {', '.join(others)}, but the sources are {', '.join(dict.fromkeys(names))}"]


def usable_rows(rows: Iterable[Row | BadRow]) -> list[Row]:
    """Those that could be read."""
    return [row for row in rows if not isinstance(row, BadRow)]
