"""What a verb returns: a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa

from tov.errors import RunError
from tov.methods.tov.path import StoredPath, open_path
from tov.objects.mirror import joined, named
from tov.progress import counted
from tov.reports.summary import amount_lines, cluster_lines, composition_table, gate_text, target_table, to_choose
from tov.runs.folder import Run
from tov.runs.manifest import Manifest
from tov.scores.store import read_table
from tov.scores.table import DEFAULT_TARGET, column_name
from tov.sinks import argument, line
from tov.verbs import training_file
from tov.verbs.looked import few

if TYPE_CHECKING:
    import os

    import pandas as pd  # type: ignore[import-untyped]

    from tov.verbs.report import Reported


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
        return self.run.place

    @property
    def place(self) -> str:
        """What its user calls it: the folder, or the URL."""
        return named(self.run.place)

    @property
    def manifest(self) -> Manifest:
        """What `manifest.json` says."""
        return self.run.manifest

    @cached_property
    def scores(self) -> pa.Table:
        """The score table: a row a pool row (row_id, source, hash, tokens, length, in_base, excluded, the method's columns)."""
        return read_table(self.run.scores, fingerprint=self.run.stamp)

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of the report."""
        return dict(self.manifest.summary)

    @property
    def path(self) -> StoredPath:
        """The stored path; of several targets the first one's.

        Raises:
            RunError: the run's method has none.
        """
        return open_path(fitted(self.run))

    @property
    def record(self) -> dict[str, Any]:
        """What the command prints with --json; `found`: what the folder held of the run (nothing, unfinished, finished)."""
        manifest = self.manifest
        return {
            "folder": self.place, "status": manifest.status, "summary": manifest.summary, "timings": manifest.timings,
            "found": self.run.found,
            **({"gate": manifest.gate} if manifest.gate else {}),
        }  # fmt: skip

    @property
    def told(self) -> list[str]:
        """Its notes, a line each; what a plan warns of, and what the looks at the chosen rows do, is a warning."""
        checks = self.manifest.checks
        doubts = {*few(self.run), *(checks.warnings if checks else ())}
        notes = self.summary.get("notes", ())
        return [f"{'warning' if one in doubts else 'note'}: {line(one)}" for one in notes]

    def __str__(self) -> str:
        """What the command prints: what there is, and what to do next."""
        notes = self.told
        if "scores" not in self.summary:
            return "\n".join([
                *(
                    f"path of {counted(self.summary['epochs'], 'epochs')} in {line(joined(self.place, folder.name))}"
                    for folder in fitted_paths(self.run).values()
                ),
                *notes,
                f"score a pool with it: tov score --from {argument(self.place)} --pool POOL --out OUT",
            ])  # fmt: skip
        facts = self.summary["scores"]
        return "\n".join([
            f"{facts['usable']:,} of {counted(facts['rows'], 'rows')} scored; report: {line(joined(self.place, 'summary.md'))}",
            *(f"  {counted(count, 'rows')} without a score: {line(reason)}" for reason, count in facts["left_out"].items()),
            *notes,
            f"choose from them: tov select --from {argument(self.place)} --n {to_choose(facts['usable'])} --out OUT",
        ])  # fmt: skip

    def report(
        self, other: str | os.PathLike[str] | None = None, *, out: str | Path | None = None, open: bool = False
    ) -> Reported:
        """Writes the page of a selection, or of this and another one side by side: as `tov.report`."""
        from tov.verbs.report import report

        return report(self, other, out=out, open=open)

    def to_pandas(self) -> pd.DataFrame:
        """The score table as a DataFrame: a line a pool row."""
        return self.scores.to_pandas()

    def __fspath__(self) -> str:
        """A result may be given wherever its folder may."""
        return str(self.folder)


@dataclass(frozen=True)
class Picked(Result):
    """A finished selection."""

    @cached_property
    def dataset(self) -> datasets.Dataset:
        """(n rows) the chosen rows: original columns, then tov_row_id, tov_source, tov_score, tov_reason; of several targets
        also tov_target."""
        return training_file.read_selected(self.run.check_file(training_file.FILE).parent)

    def to_pandas(self) -> pd.DataFrame:
        """The chosen rows as a DataFrame, with our columns; `.scores.to_pandas()` is the table of all rows."""
        return self.dataset.to_pandas()

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, where the rows come from, and where the page is."""
        from tov.reports.html.card import page_of, selection_card

        return selection_card(self.manifest, page_of(self.run.folder, self.place))

    def __str__(self) -> str:
        """What the command prints: the composition, notes, and where the rows are."""
        choice, gate = self.summary["choice"], self.manifest.gate
        parts = [
            *([gate_text(gate), ""] if gate else []),
            composition_table(choice, line),
            *(["", target_table(choice, line)] if "targets" in choice else []),
            *(line(one) for one in cluster_lines(self.summary.get("clusters", ()))),
            *amount_lines(choice),
            *self.told,
            "",
            f"{counted(choice['n'], 'rows')} in {line(joined(self.place, 'selected.jsonl'))} (and .parquet)",
            f"report: {line(joined(self.place, 'summary.md'))}",
            f"page:   tov report {argument(self.place)} --open",
        ]
        return "\n".join(parts)


def fitted(run: Run) -> Path:
    """The folder of a run's fitted path; of several targets the first one's. Raises RunError if there is none."""
    return next(iter(fitted_paths(run).values()))


def fitted_paths(run: Run) -> dict[str, Path]:
    """Target's name -> the folder of its fitted path.

    Raises:
        RunError: there is none.
    """
    names = list(run.manifest.targets) or [DEFAULT_TARGET]
    paths = {name: run.artifacts.get(column_name("fit", name)) for name in names}
    found = {name: folder for name, folder in paths.items() if folder}
    if len(found) == len(names):
        return found
    if run.manifest.scoring:
        name = run.manifest.scoring.method
        raise RunError(
            f"{run.folder} was scored by {name}, which leaves no path to score another pool with.",
            fix=f"Score the other pool by itself: tov select --method {name} --pool POOL",
        )
    raise RunError(f"{run.folder} holds no path.", fix="Name the folder of a select or fit run.")
