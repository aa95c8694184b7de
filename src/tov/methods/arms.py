"""A method with its options, as a user writes it: `METHOD[/OPTION...]`, the same for `--method` and for an arm of `--methods`.

An option is a value that names its setting (`abs`, `sgd`, `score-only`) or `SETTING=VALUE`. It is one of the method's own, one
of the rule's (rule, bins, source_cap), or, for methods of the path, one of the path's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from tov.config import PathSettings, ReselectConfig, RuleSettings, ScanSettings, SelectConfig
from tov.errors import ConfigError, did_you_mean
from tov.methods.rankings import gain
from tov.methods.table import Method, find_method
from tov.settings import Settings, build

RULE = ("rule", "bins", "source_cap")
"""Settings of the rule, which any ranking method takes."""
FITTING = (
    "base_size", "epochs", "variant", "learning_rate", "schedule", "eps", "val_optimizer", "sgd_learning_rate", "batch_size",
    "amplify",
)  # fmt: skip
PATH_SETTINGS = (*FITTING, "lora_rank", "lora_alpha", "lora_dropout", "dtype")
"""Settings of the run that an arm of the path may change."""
PATH_ONLY = (*FITTING, "transform", "normalize")
"""Settings of the run that no method off the path has a use for; LoRA settings are also the final training's."""
SLASHED = ("encoder", "store")
"""Options whose value may hold a `/`: it takes all that is left of the text."""
R = TypeVar("R", bound=RuleSettings)


@dataclass(frozen=True)
class Arm:
    """A method with its options.

    Attributes:
        name: as the user wrote it.
        method: the method.
        options: settings of the run that it changes, as given.
        own: the method's own options, all of them.
    """

    name: str
    method: Method
    options: Mapping[str, Any] = field(default_factory=dict)
    own: Settings | None = None

    @property
    def own_options(self) -> dict[str, Any]:
        """The method's own options as JSON has them."""
        return self.own.model_dump(mode="json") if self.own else {}


def parse_arm(text: str, *, flag: str = "--methods") -> Arm:
    """An arm from its words.

    Args:
        text: `METHOD[/OPTION...]`.
        flag: where the user wrote it.

    Raises:
        ConfigError: no such method or option, a value that cannot be, or one that cannot take effect.
    """
    name, *words = text.split("/")
    method, found = find_method(name, flag=f"{flag} got '{text}'"), dict[str, Any]()
    for part in _parts(words):
        key, value = _option(f"{flag} got '{text}'", part, method)
        if key in found:
            raise ConfigError(f"{flag} got '{text}': {key} is given twice", fix="give it once")
        found[key] = value
    mine = set(method.settings.model_fields) if method.settings else set()
    own = {key: value for key, value in found.items() if key in mine}
    record = build(method.settings, own, place=f"{flag} got '{text}': ") if method.settings else None
    return Arm(text, method, {key: value for key, value in found.items() if key not in mine}, record)


def _parts(words: Sequence[str]) -> Iterable[str]:
    """The options one by one, from the words between slashes."""
    for at, word in enumerate(words):
        if word.partition("=")[0] in SLASHED:
            yield "/".join(words[at:])
            return
        yield word


def _option(said: str, part: str, method: Method) -> tuple[str, Any]:
    kinds = _effective(method)
    words = {word: key for key, kind in kinds.items() for word in _words(kind)}
    named, equals, value = part.partition("=")
    key = named if equals else words.get(part)
    if part in kinds and part not in words:
        raise ConfigError(f"{said}: '{part}' needs a value", fix=f"{part}=VALUE")
    if key is None or key not in kinds:
        others = [f"{name}=..." for name, kind in kinds.items() if not _words(kind)]
        raise ConfigError(
            f"{said}: '{part}' is no option of {method.name}{did_you_mean(part, words)}",
            allowed=", ".join([*words, *others]) or f"{method.name} alone",
        )
    try:
        parsed = yaml.safe_load(value) if equals else part
    except yaml.YAMLError:
        parsed = None
    if parsed is None:
        raise ConfigError(f"{said}: '{part}' has no usable value", fix=f"{key}=VALUE")
    return key, parsed


def _effective(method: Method) -> dict[str, Any]:
    """Every option that a method takes, and what it may be."""
    if method.takes != "best":
        return {}
    kinds = {name: _kind(record, name) for record, names in settings_of_run(method) for name in names}
    own = {name: _kind(method.settings, name) for name in method.settings.model_fields} if method.settings else {}
    return kinds | own


def settings_of_run(method: Method) -> Iterable[tuple[type[Settings], tuple[str, ...]]]:
    """Settings of the run that take effect with a method as its options, by the record that holds them; the rule's first."""
    yield RuleSettings, (*method.options, *RULE)
    if method.of_path:
        yield PathSettings, tuple(name for name in PATH_SETTINGS if name in PathSettings.model_fields)
    if method.ranking is gain:  # no other ranking looks at the target's state, which it moves
        yield ScanSettings, ("amplify",)


def _kind(record: type[Settings], name: str) -> Any:
    return record.model_fields[name].annotation


def _words(kind: Any) -> tuple[str, ...]:
    """The words of a choice, also of one that may be left open."""
    choices = [kind] if get_origin(kind) is Literal else [one for one in get_args(kind) if get_origin(one) is Literal]
    return tuple(word for choice in choices for word in get_args(choice))


def with_rule(settings: R, arm: Arm) -> R:
    """The settings with rule and bins named: as given, else the method's own.

    Raises:
        ConfigError: a rule that the method has no numbers for, or bins that cannot take effect.
    """
    method = arm.method
    rule = settings.rule or method.rule
    if rule == "round-robin" and method.candidates is None and method.takes == "best":
        raise ConfigError(
            f"rule round-robin with {method.name}, which has but one score a row",
            allowed="methods with a score for each target row or sub-task: less, rds, tsds",
            fix="use score-only, score+random or sample",
        )
    if rule == "round-robin" and settings.bins not in (None, 1):
        raise ConfigError(f"{settings.bins} bins have no effect with rule round-robin", fix="leave bins out")
    bins = 1 if rule == "round-robin" else settings.bins or method.bins
    return settings.model_copy(update={"rule": rule, "bins": bins})


def select_settings(config: SelectConfig) -> tuple[SelectConfig, Arm]:
    """The settings of a selection with those of its `method` taken over, and the method.

    Raises:
        ConfigError: the method cannot be, or a setting cannot take effect with it.
    """
    arm = parse_arm(config.method, flag="--method")
    return with_rule(_taken_over(config, arm), arm), arm


def reselect_settings(
    config: ReselectConfig, scored_by: str, chosen_by: Mapping[str, Any]
) -> tuple[ReselectConfig, Arm]:
    """Likewise for a choice from scores that are there.

    Args:
        config: as given; F, normaliser, rule, bins and caps that are not are those of the run, unless it ranks otherwise.
        scored_by: the method that filled the scores.
        chosen_by: the settings of the run's own choice, its `method` among them if that is not tov.

    Raises:
        ConfigError: also if the method ranks by other scores.
    """
    arm, filled = parse_arm(config.method or scored_by, flag="--method"), find_method(scored_by)
    if arm.method.takes == "best" and arm.method.function != filled.function:
        raise ConfigError(
            f"--method {arm.method.name} cannot rank by the scores of {scored_by}",
            fix=f"score the pool by it: tov select --method {arm.method.name} --model ... (without --from)",
        )
    late = next((name for name in (*arm.options, *_given(arm)) if name not in RuleSettings.model_fields), None)
    if late:
        raise ConfigError(f"{late} cannot take effect with --from: the scores are there already", fix="leave it out")
    if arm.method.name == chosen_by.get("method", "tov"):
        open_yet = set(RuleSettings.model_fields) - config.model_fields_set - set(arm.options)
        kept = {name: chosen_by[name] for name in open_yet if chosen_by.get(name) is not None}
        given = {name: getattr(config, name) for name in config.model_fields_set}
        config = build(ReselectConfig, {**given, **kept})
    return with_rule(_taken_over(config, arm), arm), arm


def _given(arm: Arm) -> set[str]:
    """The method's own options that the user gave."""
    return arm.own.model_fields_set if arm.own else set()


def inert(method: Method) -> tuple[str, ...]:
    """Settings of the run that have no effect with a method."""
    of_gain = () if method.options else ("transform", "normalize")
    return of_gain if method.of_path else PATH_ONLY


C = TypeVar("C", SelectConfig, ReselectConfig)


def _taken_over(config: C, arm: Arm) -> C:
    method, record = arm.method, type(config)
    if method.takes != "best":
        raise ConfigError(
            f"--method {method.name} scores nothing", fix=f"tov compare --methods {method.name},... compares it"
        )
    for name in inert(method):
        if name in record.model_fields and getattr(config, name) != record.model_fields[name].default:
            own = method.settings.model_fields if method.settings else {}
            raise ConfigError(
                f"--{name.replace('_', '-')} has no effect with --method {method.name}",
                fix=f"--method {arm.name}/{name}=..." if name in own else "leave it out",
            )
    given = {name: getattr(config, name) for name in config.model_fields_set}
    clash = next((name for name in arm.options if given.get(name) not in (None, {}, arm.options[name])), None)
    if clash and given[clash] != record.model_fields[clash].default:
        raise ConfigError(
            f"--method got '{arm.name}', but --{clash.replace('_', '-')} is {given[clash]}", fix="say it once"
        )
    return build(record, {**given, **arm.options})
