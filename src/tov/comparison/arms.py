"""What a comparison is made of: its arms, each with the options of its own, and the trials of a seed.

Knows settings alone; must not know data or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tov.config import CompareConfig
from tov.errors import ConfigError
from tov.files import digest
from tov.methods import Arm, parse_arm, with_rule
from tov.settings import build

CURVE = (0.5, 1.0, 2.0, 4.0)
"""Sizes of the random curve, over each size asked for."""
BASELINE = "random"


@dataclass(frozen=True)
class Trial:
    """An arm at a size under a seed; n is 0 for zero-shot, and the number of usable rows for the full pool."""

    arm: Arm
    n: int
    seed: int

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from all others of its comparison."""
        return self.arm.name, self.n, self.seed


def check_settings(config: CompareConfig) -> None:
    """What can be told wrong before any data is read, but for the task.

    Raises:
        ConfigError: an arm, the pattern, or a setting that cannot take effect.
    """
    arms_of(config)
    try:
        re.compile(config.answer_pattern)
    except re.error as error:
        raise ConfigError(f"--answer-pattern {config.answer_pattern!r}: {error}", fix="correct it") from None
    if not config.exact_match and config.answer_pattern != CompareConfig.model_fields["answer_pattern"].default:
        raise ConfigError(
            "--answer-pattern has no effect without --exact-match", fix="give --exact-match ROWS, or leave it out"
        )
    if config.exact_match and config.task != "instruction":
        raise ConfigError(f"--exact-match is for instruction tuning, not {config.task}", fix="leave it out")


def arms_of(config: CompareConfig) -> list[Arm]:
    """The arms asked for; random is always among them, as what the others are compared with.

    Raises:
        ConfigError: an arm or a value in it is wrong or cannot take effect, or two arms are one.
    """
    arms = [parse_arm(name) for name in dict.fromkeys([*config.methods, BASELINE])]
    resolved: dict[str, str] = {}
    for arm in arms:
        settings = with_options(config, arm)
        sgd = settings.val_optimizer == "sgd"
        for name, effective in (("sgd_learning_rate", sgd), ("eps", not sgd)):
            if name in arm.options and not effective:
                raise ConfigError(
                    f"--methods got '{arm.name}': {name} has no effect with val_optimizer {settings.val_optimizer}",
                    fix="leave it out",
                )
        means = digest([arm.method.name, arm.own_options, settings.of_stage("path", "scan", "selection")])
        if means in resolved:
            raise ConfigError(f"--methods: '{arm.name}' and '{resolved[means]}' are the same", fix="leave one out")
        resolved[means] = arm.name
    return arms


def plan_trials(arms: Sequence[Arm], config: CompareConfig, seed: int, usable: int) -> Iterator[Trial]:
    """Every trial of a seed, the baseline's first.

    The random curve ends where the pool does, and where a whole epoch would be more steps than the smaller sizes have.
    """
    sizes, most = config.sizes, usable if config.train_epochs else min(usable, max(config.train_rows, *config.sizes))
    curve = sorted({n for n in (round(factor * n) for n in sizes for factor in CURVE) if 2 <= n <= most} | set(sizes))
    for arm in sorted(arms, key=lambda arm: arm.name != BASELINE):
        of_method = {"none": [0], "all": [usable], "random": curve}
        for n in of_method.get(arm.method.takes, sizes):
            yield Trial(arm, n, seed)


def with_options(config: CompareConfig, arm: Arm) -> CompareConfig:
    """The comparison's settings as an arm has them."""
    given = {name: getattr(config, name) for name in config.model_fields_set | {"task", "seed"}}
    return with_rule(build(CompareConfig, {**given, **arm.options}).for_task(config.task or ""), arm)


def rule_of(config: CompareConfig, arm: Arm) -> str:
    """`sample, 1 bins`: the rule that an arm's rows are chosen by."""
    settings = with_options(config, arm)
    return f"{settings.rule}, {settings.bins} bins"
