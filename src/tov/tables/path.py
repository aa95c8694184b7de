"""The score table of ToV and of all that its scan measures: fit the path, scan the pool through it."""

from __future__ import annotations

from typing import Any

from tov.path.fit import base_size_for, schedule_for
from tov.path.variants import VARIANTS
from tov.scan.shards import MEASURES
from tov.stages import SCAN_SETTINGS, fit_stage, scan_stage
from tov.tables.ahead import Facts, Stage
from tov.tables.work import Work


def fill(work: Work) -> None:
    """Fits the path, or takes the stored one, and scans every shard that is not there yet."""
    opened = work.open()
    stored = fit_stage(work.run, work.rows, work.target, work.settings, opened, quiet=work.quiet)
    scan: dict[str, Any] = {name: getattr(work.settings, name) for name in SCAN_SETTINGS}
    scan_stage(work.run, work.rows, stored, opened, quiet=work.quiet, **scan)
    trained = sum(entry["tokens"] for entry in stored.manifest["log"])
    work.run.note(spent={**work.run.manifest.get("spent", {}), "fit": [trained, trained]})


def ahead(facts: Facts) -> list[Stage]:
    """The steps of the variant on base set and target, then two passes over the pool an epoch."""
    schedule = schedule_for(facts.settings, base_size_for(facts.settings, facts.usable))
    epochs, base = schedule.epochs, facts.drawn(schedule.base_size)
    trained = sum(
        base if step.data == "base" else facts.target_tokens for step in VARIANTS[facts.settings.variant](epochs)
    )
    columns = len(MEASURES) * (epochs + 1)
    return [
        Stage("fit", trained, trained, 2 * epochs * 4 * facts.trained(facts.settings)),
        Stage("scan", 2 * epochs * facts.tokens, 0, facts.table(columns)),
    ]
