"""What a verb returns: a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from tov.errors import RunError
from tov.methods.tov.path import StoredPath, open_path
from tov.runs.folder import Run
from tov.runs.manifest import Manifest
from tov.scores.store import read_table
from tov.verbs import training_file


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        run: its folder and manifest.
    """

    run: Run

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run.folder

    @property
    def manifest(self) -> Manifest:
        """What `manifest.json` says."""
        return self.run.manifest

    @cached_property
    def scores(self) -> pa.Table:
        """The score table: one row per pool row (row_id, source, hash, tokens, in_base, excluded, and the method's columns)."""
        return read_table(self.run.scores)

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of the report."""
        return dict(self.manifest.summary)

    @property
    def path(self) -> StoredPath:
        """The stored path.

        Raises:
            RunError: the run's method has none.
        """
        return open_path(fitted(self.run))

    def __fspath__(self) -> str:
        """A result may be given wherever its folder may."""
        return str(self.folder)


@dataclass(frozen=True)
class Picked(Result):
    """A finished selection."""

    @cached_property
    def dataset(self) -> datasets.Dataset:
        """(n rows) the chosen rows: original columns, then tov_row_id, tov_source, tov_score, tov_reason."""
        return training_file.read_selected(self.folder)


def fitted(run: Run) -> Path:
    """The folder of a run's fitted path.

    Raises:
        RunError: there is none.
    """
    if "fit" in run.artifacts:
        return run.artifacts["fit"]
    if run.manifest.scoring:
        name = run.manifest.scoring.method
        raise RunError(
            f"{run.folder} was scored by {name}, which leaves no path to score another pool with.",
            fix=f"Score the other pool by itself: tov select --method {name} --pool POOL",
        )
    raise RunError(f"{run.folder} holds no path.", fix="Name the folder of a select or fit run.")
