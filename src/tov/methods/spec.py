"""A method with its options, as a user writes it: `METHOD[/OPTION...]`, the same for `--method` and for `--methods`.

An option is a value that names its setting (`abs`, `sgd`, `score-only`) or `SETTING=VALUE`. It is one of the method's own, or a
setting of the run that the method reads. Which those are, which have no effect, and what a score table depends on all
follow from what the settings declare (`tov.config.settings.Declared`) and from `Method.uses`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from tov.config.choice import Rule, RuleSettings
from tov.config.gate import GateSettings
from tov.config.records import PathSettings, ReselectConfig, ScanSettings, SelectConfig
from tov.config.settings import Invalidates, Settings, build, declared_by
from tov.data.sources import name_of
from tov.errors import ConfigError, did_you_mean
from tov.methods.base import Method
from tov.methods.costs import clusters_asked
from tov.methods.registry import built_in, find_method

SLASHED = ("encoder", "store")
"""Options whose value may hold a `/`: it takes all that is left of the text."""
R = TypeVar("R", bound=RuleSettings)


@dataclass(frozen=True)
class Variant:
    """A method with its options.

    Attributes:
        name: as the user wrote it.
        method: the method.
        changes: settings of the run that it changes, as given.
        options: the method's own options, all of them; None where it has none.
        flag: where the user wrote it.
    """

    name: str
    method: Method
    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Settings | None = None
    flag: str = "--methods"

    @property
    def dumped(self) -> dict[str, Any]:
        """The method's own options as JSON has them."""
        return dumped(self.options)

    def changed(self, record: type[S], settings: Mapping[str, Any]) -> S:
        """A record of settings as the variant has them; what is wrong with a change is said in the variant's words.

        Raises:
            ConfigError: a value that cannot be.
        """
        build(record, settings)  # what was given otherwise is wrong by itself
        return build(record, {**settings, **self.changes}, place=f"{self.flag} got '{self.name}': ")


S = TypeVar("S", bound=Settings)


def dumped(options: Settings | None) -> dict[str, Any]:
    """A method's own options as JSON has them."""
    return options.model_dump(mode="json") if options else {}


def parse_variant(text: str, *, flag: str = "--methods") -> Variant:
    """A variant from its words.

    Args:
        text: `METHOD[/OPTION...]`.
        flag: where the user wrote it.

    Raises:
        ConfigError: no such method or option, a value that cannot be, or one that cannot take effect.
    """
    name, *words = text.split("/")
    method, values = find_method(name, flag=f"{flag} got '{text}'"), dict[str, Any]()
    for part in _parts(words):
        key, value = _option(f"{flag} got '{text}'", part, method)
        if key in values:
            raise ConfigError(f"{flag} got '{text}': {key} is given twice.", fix="Give it once.")
        values[key] = value
    own = set(method.options.model_fields) if method.options else set()
    mine = {key: value for key, value in values.items() if key in own}
    options = build(method.options, mine, place=f"{flag} got '{text}': ") if method.options else None
    return Variant(text, method, {key: value for key, value in values.items() if key not in own}, options, flag)


def _parts(words: Sequence[str]) -> Iterable[str]:
    """The options one by one, from the words between slashes."""
    for at, word in enumerate(words):
        if word.partition("=")[0] in SLASHED:
            yield "/".join(words[at:])
            return
        yield word


def _option(place: str, part: str, method: Method) -> tuple[str, Any]:
    kinds = _options_of(method)
    words = {word: key for key, kind in kinds.items() for word in _words(kind)}
    named, equals, value = part.partition("=")
    key = named if equals else words.get(part)
    if part in kinds and part not in words:
        raise ConfigError(f"{place}: '{part}' needs a value.", fix=f"Write {part}=VALUE.")
    if key is None or key not in kinds:
        others = [f"{name}=..." for name, kind in kinds.items() if not _words(kind)]
        raise ConfigError(
            f"{place}: '{part}' is no option of {method.name}{did_you_mean(part, words)}.",
            allowed=", ".join([*words, *others]) or f"{method.name} alone",
            fix="Correct the option, or leave it out.",
        )
    try:
        parsed = yaml.safe_load(value) if equals else part
    except yaml.YAMLError:
        parsed = None
    if parsed is None:
        raise ConfigError(f"{place}: '{part}' has no usable value.", fix=f"Write {key}=VALUE.")
    return key, parsed


def _options_of(method: Method) -> dict[str, Any]:
    """Every option that a method takes, and what it may be."""
    if method.takes not in ("best", "pilots"):
        return {}
    kinds = {name: record.model_fields[name].annotation for record, name in settings_of_run(method)}
    own = {name: info.annotation for name, info in method.options.model_fields.items()} if method.options else {}
    return kinds | own


def settings_of_run(method: Method) -> Iterable[tuple[type[Settings], str]]:
    """Settings of the run that a variant of a method may change, with the record that holds each; the choice's first."""
    groups = method.uses | {"rule"}
    # The other settings of the run are those of each candidate of `auto`, not its own.
    records = (GateSettings,) if method.takes == "pilots" else (RuleSettings, PathSettings, ScanSettings)
    for record in records:
        for name in record.model_fields:
            declared = declared_by(record, name)
            needed = set(declared.used_by) - {"training"}
            if (needed and needed <= groups) or (declared.variant and "path" in method.uses):
                yield record, name


def has_no_effect(record: type[Settings], name: str, method: Method) -> bool:
    """Whether a setting of the run has no effect with a method. With `auto`, each candidate has a rule of its own."""
    if method.takes == "pilots" and name in ("rule", "bins"):
        return True
    groups = set(declared_by(record, name).used_by)
    return bool(groups) and not groups & (method.reads | {"rule", "training"})


def read_by(settings: Settings, method: Method, *invalidates: Invalidates) -> dict[str, Any]:
    """The settings that a method reads, of those that invalidate these: what its artifacts and scores depend on."""
    values, record = settings.of(*invalidates), type(settings)
    groups = {name: set(declared_by(record, name).used_by) for name in values}
    return {name: value for name, value in values.items() if not groups[name] or groups[name] & method.reads}


def with_effect(settings: Settings, method: Method, *invalidates: Invalidates) -> dict[str, Any]:
    """The settings that take effect with a method, also in the final training: what a run of it is."""
    values = settings.of(*invalidates)
    return {name: value for name, value in values.items() if not has_no_effect(type(settings), name, method)}


def _words(kind: Any) -> tuple[str, ...]:
    """The words of a choice, also of one that may be left open."""
    choices = [kind] if get_origin(kind) is Literal else [one for one in get_args(kind) if get_origin(one) is Literal]
    return tuple(word for choice in choices for word in get_args(choice))


def with_rule(settings: R, variant: Variant, targets: int | None = None) -> R:
    """The settings with rule and bins named: as given, else the method's own.

    Args:
        settings: of the run.
        variant: the method.
        targets: how many the run has; by default as many as the settings name.

    Raises:
        ConfigError: a rule that the method has no numbers for, or bins that cannot take effect.
    """
    method = variant.method
    if method.takes == "pilots":
        return settings.model_copy(update={"rule": None, "bins": None})
    rule = settings.rule or method.rule
    if method.takes == "best" and (targets or targets_in(settings, method)) < 2:
        _check_turns(rule, method)
    if rule == "sample":
        _check_draw(settings, method)
    if rule == "round-robin" and settings.bins not in (None, 1):
        raise ConfigError(f"{settings.bins} bins have no effect with rule round-robin.", fix="Leave bins out.")
    bins = 1 if rule == "round-robin" else settings.bins or method.bins
    return settings.model_copy(update={"rule": rule, "bins": bins})


def targets_in(settings: RuleSettings, method: Method) -> int:
    """How many targets a run has by its settings: each `NAME=` is one, and all that has no name together another; or as many
    as the clusters that one is to be split into.
    """
    named = {pair[0] if (pair := name_of(one)) else None for one in getattr(settings, "target", ())}
    return clusters_asked(method, settings) or len(named)


def _check_draw(settings: RuleSettings, method: Method) -> None:
    """Percentiles and places in an order are no log-weights: a draw by them would be nearly uniform, or none.

    Weights that the method does not read are another candidate's.
    """
    given = read_by(settings, method, "choice")
    weighed = next((name for name in ("nearness", "uncertainty") if given.get(name)), None)
    if weighed or method.takes == "random":
        what = f"--{weighed}, which ranks by percentiles" if weighed else "random, whose rows are drawn already"
        raise ConfigError(
            f"The rule sample draws by exp(score), but here stands {what}.", fix="Use score-only or score+random."
        )


def _check_turns(rule: Rule | None, method: Method) -> None:
    if rule == "round-robin" and not method.round_robin:
        raise ConfigError(
            f"The rule round-robin needs a score for each target row or sub-task, but {method.name} has only one score a row.",
            allowed=f"round-robin with {', '.join(name for name, one in built_in().items() if one.round_robin)}",
            fix="Use score-only, score+random or sample; of several targets (--target NAME=FILE) each takes its turn.",
        )


def select_settings(config: SelectConfig) -> tuple[SelectConfig, Variant]:
    """The settings of a selection with those of its `method` taken over, and the method.

    Raises:
        ConfigError: the method cannot be, or a setting cannot take effect with it.
    """
    variant = parse_variant(config.method, flag="--method")
    return with_rule(_taken_over(config, variant), variant), variant


def reselect_settings(
    config: ReselectConfig, scored_by: str, chosen_by: Mapping[str, Any], chosen_method: str, targets: int
) -> tuple[ReselectConfig, Variant]:
    """Likewise for a choice from scores that are there.

    Args:
        config: as given; F, normaliser, rule, bins and caps that are not are those of the run, unless it ranks otherwise.
        scored_by: the method that filled the scores.
        chosen_by: the settings of the run's own choice.
        chosen_method: the method of the run's own choice.
        targets: how many the scores are for.

    Raises:
        ConfigError: also if the method ranks by other scores.
    """
    variant, filled = parse_variant(config.method or scored_by, flag="--method"), find_method(scored_by)
    if variant.method.ranks and kind_of_table(variant.method) != kind_of_table(filled):
        raise ConfigError(
            f"--method {variant.method.name} cannot rank by the scores of {scored_by}.",
            fix=f"Score the pool by it: tov select --method {variant.method.name} --model MODEL, without --from.",
        )
    own = variant.options.model_fields_set if variant.options else set()
    late = next((name for name in (*variant.changes, *own) if name not in RuleSettings.model_fields), None)
    if late:
        raise ConfigError(
            f"{late} cannot take effect with --from, because the scores are there already.", fix="Leave it out."
        )
    if variant.method.name == chosen_method:
        open_yet = set(RuleSettings.model_fields) - config.model_fields_set - set(variant.changes)
        open_yet -= {"bins"} if "round-robin" in (config.rule, variant.changes.get("rule")) else set()
        earlier = {name: chosen_by[name] for name in open_yet if chosen_by.get(name) is not None}
        values = {name: getattr(config, name) for name in config.model_fields_set}
        config = build(ReselectConfig, {**values, **earlier})
    return with_rule(_taken_over(config, variant, targets), variant, targets), variant


def kind_of_table(method: Method) -> str:
    """The kind of score table that a method ranks."""
    return method.table or method.name


def table_made_from(config: Settings, method: Method, options: Settings | None) -> dict[str, Any]:
    """What a method's score table depends on beside pool and target: variants with equal ones share a table."""
    return {"table": kind_of_table(method), "options": dumped(options), **read_by(config, method, "fit", "scan")}


C = TypeVar("C", SelectConfig, ReselectConfig)


def _taken_over(config: C, variant: Variant, targets: int | None = None) -> C:
    method, record = variant.method, type(config)
    if not method.ranks:
        raise ConfigError(
            f"--method {method.name} scores nothing, so no row can be chosen by it.",
            fix=f"Compare it instead: tov compare --methods {method.name},tov",
        )
    for name, info in record.model_fields.items():
        if has_no_effect(record, name, method) and getattr(config, name) != info.default:
            own = method.options.model_fields if method.options else {}
            raise ConfigError(
                f"--{name.replace('_', '-')} has no effect with --method {method.name}.",
                fix=f"Write --method {variant.name}/{name}=VALUE." if name in own
                else f"Name it with the candidates: --candidates tov/{name}={getattr(config, name)},rds"
                if name in ("rule", "bins") and method.takes == "pilots"
                else "Leave it out.",
            )  # fmt: skip
    values = {name: getattr(config, name) for name in config.model_fields_set}
    clash = next((name for name in variant.changes if values.get(name) not in (None, {}, variant.changes[name])), None)
    if clash and values[clash] != record.model_fields[clash].default:
        raise ConfigError(
            f"--method got '{variant.name}', but --{clash.replace('_', '-')} is {values[clash]}.",
            allowed="one value a setting",
            fix="Say it once.",
        )
    changed = variant.changed(record, values)
    if (targets or targets_in(changed, method)) < 2:
        _check_turns(changed.rule, method)
    return changed


def settings_for(config: R, variant: Variant) -> R:
    """The settings of a comparison, or of a selection by `auto`, as a variant has them, task and rule named.

    Raises:
        ConfigError: a value that cannot be, or a rule that cannot take effect.
    """
    values = {name: getattr(config, name) for name in config.model_fields_set | {"task", "seed"}}
    changed: Any = variant.changed(type(config), values)
    return with_rule(changed.for_task(values["task"] or ""), variant)
