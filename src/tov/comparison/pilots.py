"""What a pilot of `--method auto` is made of: its settings, its part of pool and target, and its candidates.

`tov.comparison.gate` runs the pilots and says what they decide for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tov.comparison.split import Split, caps_within, like_test
from tov.comparison.variants import BASELINE
from tov.config.records import CompareConfig
from tov.config.settings import build
from tov.errors import DataError
from tov.inputs.draw import encode_drawn
from tov.inputs.read import Indexed, PoolRows, subset_of
from tov.methods.auto import PilotSizes
from tov.methods.spec import Variant, settings_for
from tov.seeds import generator
from tov.tasks import TASKS
from tov.text.encode import Encoder

PILOT_RATE = {False: 0.5, True: 1.0}
"""Learning rate of a pilot over that of the final training, by whether the model has a new head: language models rank alike at
reduced rates in small runs (arXiv 2512.24503), but a new head has then not learned yet what the labels are."""
LOSS, METRIC = "loss", "metric"
AT_ONCE = 2048
"""Rows that are made tokens of together."""


def pilot_settings(config: Any, sizes: PilotSizes, target_rows: int) -> CompareConfig:
    """The settings of the pilots, from those of a selection or a comparison; every row that is held out is asked."""
    task = TASKS[config.task]
    fields = CompareConfig.model_fields
    given = {name: getattr(config, name) for name in config.model_fields_set | {"task", "seed"} if name in fields}
    rate = given.get("train_learning_rate") or task.defaults.train_learning_rate
    asks = judge_of(config) == METRIC and task.generates
    given |= {
        "sizes": (sizes.n,), "methods": (BASELINE,), "train_rows": sizes.passes, "num_train_epochs": None,
        "train_learning_rate": PILOT_RATE[task.new_head] * rate, "exact_match": target_rows if asks else 0, "out": "auto",
        "force": False,
        "rule": None, "bins": None, "from_run": None, "report_only": False, "near_duplicates": "exclude",
    }  # fmt: skip
    return build(CompareConfig, given).for_task(config.task)


def in_pilot(variant: Variant, settings: CompareConfig, sizes: PilotSizes) -> Variant:
    """A candidate as pilots have it: with a base set of the part's size, and nothing in a store that outlives them.

    A base set that was given, or is a preset's, is of the whole pool, and of a part would leave little to choose from.
    """
    if base_size := settings_for(settings, variant).base_size:
        variant = replace(variant, changes={**variant.changes, "base_size": max(1, min(base_size, sizes.pool // 4))})
    if variant.options and getattr(variant.options, "store", None):
        variant = replace(variant, options=variant.options.model_copy(update={"store": None}))
    return variant


def judge_of(config: Any) -> str:
    """What candidates are judged by: as asked for, else the metric where it is the user's own or needs no answers."""
    return config.judge or (METRIC if config.metric or not TASKS[config.task].generates else LOSS)


def split_of(
    rows: PoolRows, target: Indexed, fold: np.ndarray, sizes: PilotSizes, settings: CompareConfig, seed: int, encode: Encoder
) -> Split:  # fmt: skip
    """A pilot's rows: the fold held out as the test, and of the others and of the pool those that are not like it. Pool rows
    without a scored token, which nobody chooses, take no place.

    Raises:
        DataError: nothing is left of the target, or too little of the pool.
    """
    test, others = subset_of(target, fold), np.setdiff1d(np.arange(len(target)), fold)
    others = others[~like_test(target, test, settings)(others)]
    if not len(others):
        raise DataError(
            "Every target row is like one that is held out from it (prompt, --group-by value, or nearly).",
            fix="Add other rows to the target, or name a method in place of auto.",
        )
    usable = generator(seed, "pilot pool").permutation(np.flatnonzero(rows.usable))
    is_like, parts, there = like_test(rows, test, settings), list[np.ndarray](), 0
    while there < sizes.pool and len(usable):
        block, usable = np.split(usable, [min(AT_ONCE, sizes.pool - there)])
        block = block[~is_like(block)]
        parts.append(block[encode_drawn(rows, block, encode).scored_counts > 0])
        there += len(parts[-1])
    if there < sizes.n:
        raise DataError(
            f"A pilot is to choose {sizes.n:,} rows, but only {there:,} of the pool have a scored token and are not like the "
            "target rows held out.",
            fix="Lower --pilot-rows, add rows to the pool, or name a method in place of auto.",
        )
    return Split(rows.subset(np.sort(np.concatenate(parts))), subset_of(target, others), test, ())


def of_pilot(settings: CompareConfig, seed: int, split: Split) -> CompareConfig:
    """A pilot's settings: its seed, and the caps of sources that its part of the pool can keep."""
    caps = caps_within(split.rows, settings.source_cap, settings.sizes[0])
    return settings.model_copy(update={"seed": seed, "source_cap": caps})
