"""What a comparison is made of: its variants of methods, and the trials of a seed.

Knows settings alone; must not know data or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tov.config.records import CompareConfig
from tov.errors import ConfigError
from tov.files import digest
from tov.methods.spec import Variant, parse_variant, settings_for
from tov.metrics import own_metric
from tov.tasks import TASKS, titles

CURVE = (0.5, 1.0, 2.0, 4.0)
"""Sizes of the random curve, over each size asked for."""
BASELINE = "random"
DECIDED_BY = ("candidates", "pilot_rows", "pilot_train_rows", "pilot_folds", "judge")
"""Settings that only the trials of `auto` depend on."""


@dataclass(frozen=True)
class Trial:
    """A variant at a size under a seed; n is 0 for zero-shot, and the number of usable rows for the full pool.

    Attributes:
        variant: as it was asked for.
        decided: what chooses its rows, where that is another: what `auto` has decided for.
        gate: what was decided, for the record of the trial (`tov.comparison.gate.Decided.record`).
    """

    variant: Variant
    n: int
    seed: int
    decided: Variant | None = None
    gate: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def chooser(self) -> Variant:
        """What chooses its rows."""
        return self.decided or self.variant

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from all others of its comparison."""
        return self.variant.name, self.n, self.seed


def check_settings(config: CompareConfig) -> None:
    """What can be told wrong before any data is read, but for the task.

    Raises:
        ConfigError: a variant, the pattern, or a setting that cannot take effect.
    """
    decided = [settings_for(config, one) for one in variants_of(config) if one.method.takes == "pilots"]
    if config.metric:
        own_metric(config.metric)
        if TASKS[config.task or ""].generates and not config.exact_match and not decided:
            raise ConfigError(
                "--metric has no effect without --exact-match.",
                fix="Give --exact-match ROWS too, the test rows whose answers are generated.",
            )
    check_pattern(config.answer_pattern)
    asks = config.exact_match or any(one.judge == "metric" for one in decided)
    if not asks and config.answer_pattern != CompareConfig.model_fields["answer_pattern"].default:
        raise ConfigError(
            "--answer-pattern has no effect without --exact-match.",
            fix="Give --exact-match ROWS too, or leave --answer-pattern out.",
        )
    if config.exact_match and not TASKS[config.task or ""].generates:
        raise ConfigError(
            f"--exact-match is for {titles(lambda one: one.generates)}, but the task is {config.task}.",
            fix="Leave --exact-match out.",
        )


def check_pattern(pattern: str) -> None:
    """Raises ConfigError if --answer-pattern is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"--answer-pattern {pattern!r} is not a regular expression: {error}",
            allowed="a regular expression in Python's syntax",
            fix="Correct the pattern.",
        ) from None


def variants_of(config: CompareConfig) -> list[Variant]:
    """The variants asked for; random is always among them, as what the others are compared with.

    Raises:
        ConfigError: a variant or a value in it is wrong or cannot take effect, or two variants are one.
    """
    variants = [parse_variant(name) for name in dict.fromkeys([*config.methods, BASELINE])]
    for variant in variants:
        settings = settings_for(config, variant)
        sgd = settings.target_optimizer == "sgd"
        for name, effective in (("target_sgd_learning_rate", sgd), ("target_learning_rate_ratio", not sgd)):
            if name in variant.changes and not effective:
                raise ConfigError(
                    f"--methods got '{variant.name}', but {name} has no effect with {settings.target_optimizer}.",
                    fix=f"Leave {name} out.",
                )
    check_distinct(variants, config, "--methods")
    return variants


def check_distinct(variants: Sequence[Variant], config: Any, flag: str) -> None:
    """Raises ConfigError if two variants choose the same rows."""
    resolved: dict[str, str] = {}
    for variant in variants:
        settings = settings_for(config, variant)
        means = digest([variant.method.name, variant.dumped, settings.of("pilots", "fit", "scan", "choice")])
        if means in resolved:
            raise ConfigError(
                f"{flag} names one selection twice: '{variant.name}' and '{resolved[means]}' mean the same.",
                fix="Leave one of them out.",
            )
        resolved[means] = variant.name


def plan_trials(variants: Sequence[Variant], config: CompareConfig, seed: int, usable: int) -> Iterator[Trial]:
    """Every trial of a seed, the baseline's first.

    The random curve ends where the pool does, and where a whole epoch would be more steps than the smaller sizes have.
    """
    sizes, most = (
        config.sizes,
        usable if config.num_train_epochs else min(usable, max(config.train_rows, *config.sizes)),
    )
    curve = sorted({n for n in (round(factor * n) for n in sizes for factor in CURVE) if 2 <= n <= most} | set(sizes))
    for variant in sorted(variants, key=lambda variant: variant.name != BASELINE):
        of_method = {"none": [0], "all": [usable], "random": curve}
        for n in of_method.get(variant.method.takes, sizes):
            yield Trial(variant, n, seed)


def rule_of(config: CompareConfig, variant: Variant) -> str:
    """`sample, 1 bins`: the rule that a variant's rows are chosen by; of `auto` what it decides between, and how."""
    settings = settings_for(config, variant)
    if variant.method.takes == "pilots":
        gate = {name: getattr(settings, name) for name in DECIDED_BY}
        return ", ".join(f"{name} {'+'.join(value) if name == 'candidates' else value}" for name, value in gate.items())
    return f"{settings.rule}, {settings.bins} bins"
