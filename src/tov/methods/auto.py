"""`auto`: the method is chosen on the user's own target. Here are its sizes and its cost; `tov.comparison.gate` decides.

A part of the target is held out from all scoring, fold by fold, so that each row is judged once. In each *pilot* every
candidate scores a part of the pool for the other folds, a model is trained on the rows that it chooses, and is judged on the
fold held out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tov.config.records import TrainingSettings
from tov.methods.base import Method, PoolStats, Stage
from tov.methods.costs import cost_of
from tov.tasks import TASKS

PILOT_POOL, PILOT_PART = 8, 24
"""Pool rows in a pilot: so many times the rows that it chooses, but at least one of so many usable rows."""
PILOTS = "pilots"
LEAST = 2
"""Candidates that take part in every pilot."""


@dataclass(frozen=True)
class PilotSizes:
    """The sizes of a pilot.

    Attributes:
        n: rows that each candidate chooses.
        pool: usable rows that it chooses from.
        passes: rows passed in a training.
    """

    n: int
    pool: int
    passes: int


def pilot_sizes(settings: Any, usable: int, n: int) -> PilotSizes:
    """The sizes of the pilots for a choice of n rows out of so many usable ones.

    A pilot has as many epochs as the final training, but passes no more than `pilot_train_rows` rows (or its n once). A new
    head must first learn what the labels are, so it has as many steps as in the final training, within the same bound.

    Args:
        settings: of the run, with those of the pilots; of a comparison also with those of the final training.
        usable: rows that may be chosen.
        n: rows to choose in the end.
    """
    rows = max(2, min(n, settings.pilot_rows, usable // 2))
    task = TASKS[settings.task or "instruction"]
    budget = getattr(settings, "train_rows", TrainingSettings.model_fields["train_rows"].default)
    epochs = getattr(settings, "num_train_epochs", None) or max(1, round(budget / n))
    of_pilot = max(1, round(epochs * n / rows)) if task.new_head else epochs
    passes = rows * max(1, min(of_pilot, (settings.pilot_train_rows or task.defaults.pilot_train_rows) // rows))
    return PilotSizes(rows, min(usable, max(PILOT_POOL * rows, usable // PILOT_PART)), passes)


class Auto(Method):
    """Decides by pilots which of several methods scores the pool."""

    name = "auto"
    summary = "the rows of the candidate that did best in pilot trainings, judged on target rows that no score has seen"
    takes = "pilots"
    needs = "pilots"
    unit = "that of the candidate taken"
    stored = "what the candidate taken stores"
    passes = "those of the candidate taken; beside them pilots on a part of the pool"
    uses: ClassVar[frozenset[str]] = frozenset({"path", "gain", "gate", "clusters"})
    source = "the rule and its evidence: docs/auto.md"

    def cost(self, stats: PoolStats) -> list[Stage] | None:
        """The pilots, then the dearest candidate's stages. The pilots of candidates that are dropped early are counted too."""
        priced = [cost for cost in _priced(stats, stats.settings) if cost is not None]
        dearest = max(priced, key=lambda cost: sum(one.forward + 2 * one.backward for one in cost), default=None)
        return None if dearest is None else [_pilots(stats), *dearest]


def _priced(stats: PoolStats, settings: Any) -> Iterator[list[Stage] | None]:
    """The stages of every candidate's run; candidates that share a table are priced once."""
    from tov.methods.spec import parse_variant, settings_for, table_made_from  # they ask for the methods in the box

    seen: list[dict[str, Any]] = []
    for text in settings.candidates:
        variant = parse_variant(text, flag="--candidates")
        options = variant.method.resolve(variant.options, stats.usable)
        own = settings_for(settings, variant)
        table = table_made_from(own, variant.method, options)
        if variant.method.takes == "best" and table not in seen:
            seen.append(table)
            yield cost_of(variant.method, replace(stats, settings=own, options=options))


def _pilots(stats: PoolStats) -> Stage:
    """All pilots together."""
    settings = stats.settings
    sizes = pilot_sizes(settings, stats.usable, getattr(settings, "n", None) or stats.usable)
    part = sizes.pool / max(stats.usable, 1)
    folds, kept = settings.pilot_folds, 1 - 1 / settings.pilot_folds
    small = replace(
        stats, rows=sizes.pool, usable=sizes.pool, scored=stats.scored * part, tokens=stats.tokens * part,
        target_rows=round(stats.target_rows * kept), target_tokens=round(stats.target_tokens * kept),
        targets=tuple((round(rows * kept), round(tokens * kept)) for rows, tokens in stats.targets),
    )  # fmt: skip
    # What two candidates make alike (embeddings, say) is made once.
    stages = {(one.name, one.forward, one.backward): one for cost in _priced(small, settings) for one in cost or ()}
    names = {*settings.candidates} - {"random"}
    trainings = sum(alive + 1 for alive in alive_in(len(names), folds, len(hedged(names, settings))))
    trained = trainings * stats.drawn(sizes.passes)
    judged = trainings * stats.target_tokens / folds
    forward, backward = (folds * sum(getattr(one, way) for one in stages.values()) for way in ("forward", "backward"))
    stored = folds * sum(one.kept or 0 for one in stages.values())
    return Stage(PILOTS, forward + trained + judged, backward + trained, stored)


def hedged(names: Iterable[str], settings: Any) -> set[str]:
    """The candidates that choose half of their rows at random in a pilot, and so can be no more than half wrong."""
    from tov.methods.spec import parse_variant, settings_for

    free = settings.model_copy(update={"rule": None})
    return {name for name in names if settings_for(free, parse_variant(name)).rule == "score+random"}


def alive_in(candidates: int, pilots: int, staying: int = 0) -> list[int]:
    """How many candidates take part in each pilot: those that stay, and of the others after each the better half, at least
    `LEAST` together."""
    counts = [candidates]
    for _ in range(pilots - 1):
        half = math.ceil((counts[-1] - staying) / 2)
        counts.append(min(counts[-1], max(LEAST, staying + half)))
    return counts
