"""Presets: named bundles of settings, below whatever is given and above the defaults of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tov.errors import ConfigError, did_you_mean
from tov.tasks import TASKS

SCORING_BUDGET = 16 * 1024
"""Rows trained on in all scoring epochs together: L = 16*1024 / |U| (1,024 batches of 16 whatever |U| is)."""
LARGEST_BASE = 4096
"""|U| of the paper, where the pool is large enough."""
PAPER_RANK = {"instruction": 256, "ner": 1}


def paper(task: str, base_size: int | None = None) -> dict[str, Any]:
    """Train on Validation as published, where it says: the step is not amplified, no score is divided, L has no cap.

    Where it is silent (learning rates, optimizer and its moments in a target epoch, sequence length, and all of text
    classification but what holds for every task) no setting is named, so tov's default stands.

    Args:
        task: by name.
        base_size: |U| as given; None for the paper's 4*1024.

    Source: Jain, Montanari, Sasoglu 2025, arXiv 2510.00386.
    """
    base_size = base_size or LARGEST_BASE
    rank = {"lora_r": PAPER_RANK[task]} if task in PAPER_RANK else {}
    return {
        **rank, "lora_alpha": 32.0, "lora_dropout": 0.2, "base_size": base_size,
        "epochs": max(1, round(SCORING_BUDGET / base_size)), "path_variant": "interleaved", "batch_size": 16,
        "target_learning_rate_ratio": 0.1, "amplify": 1.0, "transform": "positive", "normalize": "none",
    }  # fmt: skip


PRESETS: Mapping[str, Callable[[str, int | None], dict[str, Any]]] = {"paper": paper}


def known_preset(name: str | None) -> str | None:
    """The same name.

    Raises:
        ConfigError: there is no such preset.
    """
    if name is not None and name not in PRESETS:
        raise ConfigError(
            f"There is no preset '{name}'{did_you_mean(name, PRESETS)}.",
            allowed=", ".join(PRESETS),
            fix="Correct the name, or leave the preset out.",
        )
    return name


def by_task(name: str) -> str:
    """`0.1 instruction, 1 ner, ...`: what `auto` means for a setting."""
    values = {task.name: getattr(task.defaults, name) for task in TASKS.values()}
    return ", ".join(
        f"{value:g} {task}" if isinstance(value, float) else f"{value} {task}" for task, value in values.items()
    )


def named_by(preset: str | None) -> set[str]:
    """The settings that a preset may give a value; none without one, or where there is no such preset."""
    bundle = PRESETS.get(preset or "")
    return {name for task in PAPER_RANK for name in bundle(task, None)} if bundle else set()


def derived_by(settings: Mapping[str, Any]) -> set[str]:
    """Of a run's settings, the ones that its preset has derived from others: of other ones they are to be derived anew."""
    bundle = PRESETS.get(settings.get("preset") or "")
    derived = bundle(settings["task"], settings.get("base_size"))["epochs"] if bundle else None
    return {"epochs"} if derived is not None and settings.get("epochs") == derived else set()


def filled(settings: Any, task: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of a record, the task named; one that was not given is the preset's, else the task's.

    What is filled in does not count as given, so a variant of another |U| has its own L.

    Args:
        settings: the record; `model_fields_set` says what was given.
        task: by name.
        defaults: of the task, for settings that are None.
    """
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    bundle = PRESETS[settings.preset](task, settings.base_size) if settings.preset else {}
    not_given = {name for name, value in values.items() if value is None or name not in settings.model_fields_set}
    of_task = {name: value for name, value in defaults.items() if name in values and values[name] is None}
    of_preset = {name: value for name, value in bundle.items() if name in not_given}
    return {**values, **of_task, **of_preset, "task": task}
