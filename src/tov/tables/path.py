"""The score table of ToV and of all that its scan measures: fit the path, scan the pool through it."""

from __future__ import annotations

from typing import Any

from tov.stages import SCAN_SETTINGS, fit_stage, scan_stage
from tov.tables.work import Work


def fill(work: Work) -> None:
    """Fits the path, or takes the stored one, and scans every shard that is not there yet."""
    opened = work.open()
    stored = fit_stage(work.run, work.rows, work.target, work.settings, opened, quiet=work.quiet)
    scan: dict[str, Any] = {name: getattr(work.settings, name) for name in SCAN_SETTINGS}
    scan_stage(work.run, work.rows, stored, opened, quiet=work.quiet, **scan)
    trained = sum(entry["tokens"] for entry in stored.manifest["log"])
    work.run.note(spent={**work.run.manifest.get("spent", {}), "fit": [trained, trained]})
