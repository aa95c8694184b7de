"""What a record of settings is: a field with its help and what it declares, how values are read, how faults are told.

Knows no setting by its meaning but for those whose values may be written in several ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tov.config.yaml_files import check_label_names, read_label_map
from tov.errors import ConfigError, did_you_mean, nearest
from tov.objects.mirror import check_writable
from tov.objects.stores import at_home, is_url

Invalidates = Literal["pilots", "fit", "scan", "choice", "training", "trials", "export", "output"]
Choices = Callable[[], Sequence[str]]
_RENAME = "Correct it, or rename the file. Where the language of the system is C, set PYTHONUTF8=1."
NOT_KEPT = {"force", "json_output", "quiet", "report_only", "trust_remote_code", "metric"}
"""How a call behaves, and what it allows: `config.yaml` has none of it."""
EVERY_SOURCE = "*"
"""In a mapping of sources: each that is not named."""


@dataclass(frozen=True)
class Declared:
    """What a setting says of itself, once; what a run is, what resumes and what has no effect is derived from it.

    Attributes:
        invalidates: the first thing that is made anew when it changes, and with it all that is made from that: `pilots` (what
            `auto` decides by), `fit` (what a method prepares), `scan` (scores), `choice` (the chosen rows), `training` (models
            trained on them), `trials` (which trials a comparison has), `export` (files for
            a trainer), `output` (nothing: where and how results go).
        used_by: what reads it: `path` (methods that scan ToV's path), `gain` (those that rank by its gain), `clusters`
            (those that know rows by a model), `model` (those that read a model), `rule` (choosing rows), `training` (the
            final training). Empty: every method.
        variant: whether a variant of a method of the path may change it although every method reads it.
        named: it names what is read; the content of that is part of a run's identity, the name is not.
        unless: not part of a run's identity at this value, so that runs older than the setting go on.
        file: a flag of it names a file.
        choices: its values, where they are known only when they are asked for.
    """

    invalidates: Invalidates
    used_by: tuple[str, ...] = ()
    variant: bool = False
    named: bool = False
    unless: Any = ...
    file: bool = False
    choices: Choices | None = None


def setting(
    invalidates: Invalidates, help: str, default: Any = ..., *, used_by: tuple[str, ...] = (), variant: bool = False,
    named: bool = False, unless: Any = ..., file: bool = False, choices: Choices | None = None, **bounds: Any,
) -> Any:  # fmt: skip
    """A field of a record: what it declares (`Declared`), its help, default and bounds."""
    declared = Declared(invalidates, used_by, variant, named, unless, file, choices)
    return Field(default, description=help, json_schema_extra={"declared": declared}, **bounds)  # type: ignore[dict-item]


def consent() -> Any:
    """The setting by which the user allows a model's own code; no identity, manifest or settings file has it."""
    return setting(
        "output",
        "run the code that the model brings; never taken from a run or a settings file: give it each time",
        False,
    )


class Settings(BaseModel):
    """Base of all records of settings: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("pool", "target", "test", "lora_target_modules", mode="before", check_fields=False)
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("methods", "candidates", "sizes", mode="before", check_fields=False)
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        values = value if isinstance(value, (list, tuple)) else (value,)
        return tuple(dict.fromkeys(part.strip() for one in values for part in str(one).split(",") if part.strip()))

    @field_validator("source_cap", mode="before", check_fields=False)
    @classmethod
    def _for_every_source(cls, value: Any) -> Any:
        return {EVERY_SOURCE: value} if isinstance(value, (int, float, str)) else value

    @field_validator("out", mode="after", check_fields=False)
    @classmethod
    def _writable(cls, value: str | None) -> str | None:
        check_writable(value or "")
        return value if is_url(value) else value and str(at_home(value))

    @field_validator("store", mode="after", check_fields=False)
    @classmethod
    def _local(cls, value: str | None) -> str | None:
        if is_url(value):
            raise ConfigError(f"{value} is a URL.", allowed="a local folder", fix="Name a folder here: store=FOLDER.")
        return value and str(at_home(value))

    @field_validator("label_map", mode="before", check_fields=False)
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        value = read_label_map(at_home(value)) if isinstance(value, (str, Path)) else value
        check_label_names(value if isinstance(value, Mapping) else {})
        return value

    def of(self, *invalidates: Invalidates, named: bool = False) -> dict[str, Any]:
        """The settings, as JSON has them, on which what they invalidate depends; those that name inputs only if asked for."""
        dumped = self.model_dump(mode="json")
        declared = {name: declared_by(type(self), name) for name in dumped}
        return {
            name: value
            for name, value in dumped.items()
            if declared[name].invalidates in invalidates
            and (named or not declared[name].named)
            and value != declared[name].unless
        }


S = TypeVar("S", bound=Settings)


def declared_by(record: type[Settings], name: str) -> Declared:
    """What one setting of a record declares."""
    extra = record.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return extra["declared"]  # type: ignore[return-value]


FEW_NAMES = 12
"""Settings that are all named where there is no such one."""
WHY_A_MODEL = (
    " --model is the model that the rows are chosen for. Methods that read text alone (bm25, random) need it too, though "
    "not its weights: its tokenizer and chat template say how many tokens a row has, which of them are scored, and what "
    "--max-length cuts off; and tov train and tov export take it from the run."
)


def build(record: type[S], given: Mapping[str, Any], *, place: str = "--") -> S:
    """A checked record from keys and values.

    Args:
        record: of which kind.
        given: settings.
        place: what stands before a setting's name in a message.

    Raises:
        ConfigError: unknown, missing or unusable settings, each with what is allowed.
    """
    for key in given:
        if key not in record.model_fields:
            raise _unknown(key, record)
    for key, value in given.items():
        for text in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(text, str) and (flaw := _unusable(text, record, key)):
                flag = f"--{key.replace('_', '-')}" if place == "--" else f"{place}{key}"
                raise ConfigError(f"{flag} got {text!r}, which {flaw}.", fix=_RENAME)
    try:
        return record(**given)
    except ValidationError as error:
        faults = error.errors()
        for fault in faults:
            ours = fault.get("ctx", {}).get("error")
            if isinstance(ours, ConfigError):  # it says itself what to do
                where = f"{_flag(fault, place)}: " if fault["loc"] else place.removesuffix("--")
                raise ConfigError(f"{where}{ours.problem}", allowed=ours.allowed, fix=ours.fix) from None
        lacks_model = any(fault["type"] == "missing" and fault["loc"] == ("model",) for fault in faults)
        raise ConfigError(
            "; ".join(_in_words(fault, place) for fault in faults) + ".",
            fix="Correct it and give the command again." + WHY_A_MODEL * lacks_model,
        ) from None


def _unknown(key: str, record: type[Settings]) -> ConfigError:
    name = record.__name__
    verb = "select" if name == "ReselectConfig" else name.removesuffix("Config").lower() * name.endswith("Config")
    return no_setting(key, record.model_fields, verb)


def no_setting(key: str, known: Iterable[str], verb: str, place: str = "") -> ConfigError:
    """There is no such setting; of many only the nearest are named.

    Args:
        key: that was given.
        known: names of settings.
        verb: whose help lists them all; "" for none.
        place: where it stands; "" where that is the command.
    """
    names = sorted(known)
    near = names if len(names) <= FEW_NAMES else nearest(key, names)
    all_of = f" All are listed by: tov {verb} --help (in Python and YAML with _ for -)."
    return ConfigError(
        f"{f'{place}: ' if place else ''}There is no setting '{key}'{did_you_mean(key, names)}.",
        allowed=", ".join(near) + ", ..." * (near != names),
        fix="Correct the name." + all_of * (near != names and bool(verb)),
    )


def _unusable(text: str, record: type[Settings], key: str) -> str:
    """What makes a text unusable as the name of a file, and as text; "" if nothing does."""
    if "\0" in text:
        return "has a zero byte in it"
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        return "is not UTF-8"
    return "is empty" if not text.strip() and declared_by(record, key).named else ""


def _flag(fault: Any, place: str) -> str:
    name = ".".join(str(part) for part in fault["loc"][:1])
    return f"--{name.replace('_', '-')}" if place == "--" else f"{place}{name}"


def _in_words(fault: Any, place: str) -> str:
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ").partition(", unable to")[0]
    message = message.replace("a valid number", "a number").replace("a valid integer", "an integer")
    if not fault["loc"]:  # several settings together
        return f"{'' if place == '--' else place}{message}"
    if fault["type"] == "missing":
        return f"{_flag(fault, place)} is missing"
    return f"{_flag(fault, place)} got {fault['input']!r}, but must be {message}"
