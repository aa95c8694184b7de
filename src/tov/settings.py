"""What a record of settings is: a field with its stage and help, how values are read, how faults are told.

Knows no setting by its meaning but for those whose values may be written in several ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tov.errors import ConfigError, did_you_mean
from tov.yaml_files import read_label_map

Stage = Literal["path", "scan", "selection", "training", "trials", "place"]
EVERY_SOURCE = "*"
"""In a mapping of sources: each that is not named."""


def setting(stage: Stage, help: str, default: Any = ..., *, file: bool = False, **bounds: Any) -> Any:
    """A field of a record: its stage (`tov.config` tells what each means), help, default, bounds; `file`: a flag names one."""
    return Field(default, description=help, json_schema_extra={"stage": stage, "file": file}, **bounds)


_LATER: dict[str, Any] = {"method": "tov", "source_cap": {}}
"""Settings younger than the first run folders: at these values they are no part of what a run is, so that older ones go on."""


class Settings(BaseModel):
    """Base of all records of settings: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("pool", "target", "test", "lora_targets", mode="before", check_fields=False)
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("methods", "sizes", mode="before", check_fields=False)
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        values = value if isinstance(value, (list, tuple)) else (value,)
        return tuple(dict.fromkeys(part.strip() for one in values for part in str(one).split(",") if part.strip()))

    @field_validator("source_cap", mode="before", check_fields=False)
    @classmethod
    def _for_every_source(cls, value: Any) -> Any:
        return {EVERY_SOURCE: value} if isinstance(value, (int, float, str)) else value

    @field_validator("out", "store", mode="after", check_fields=False)
    @classmethod
    def _at_home(cls, value: str | None) -> str | None:
        return value and str(Path(value).expanduser())  # shells leave the ~ of --out=~/x alone

    @field_validator("label_map", mode="before", check_fields=False)
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        return read_label_map(Path(value)) if isinstance(value, (str, Path)) else value

    def of_stage(self, *stages: Stage) -> dict[str, Any]:
        """The settings on which the artefacts of these stages depend."""
        dumped = self.model_dump(mode="json")
        return {
            name: value
            for name, value in dumped.items()
            if stage_of(type(self), name) in stages and not (name in _LATER and value == _LATER[name])
        }


S = TypeVar("S", bound=Settings)


def stage_of(record: type[Settings], name: str) -> Stage:
    """The stage of one setting."""
    extra = record.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return extra["stage"]  # type: ignore[return-value]


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
            raise ConfigError(
                f"unknown setting '{key}'{did_you_mean(key, record.model_fields)}",
                allowed=", ".join(sorted(record.model_fields)),
            )
    try:
        return record(**given)
    except ValidationError as error:
        faults = error.errors()
        for fault in faults:
            ours = fault.get("ctx", {}).get("error")
            if isinstance(ours, ConfigError):  # of a file that a setting names: it says itself what to do
                raise ConfigError(
                    f"{_flag(fault, place)}: {ours.problem}", allowed=ours.allowed, fix=ours.fix
                ) from None
        raise ConfigError(
            "; ".join(_in_words(fault, place) for fault in faults), fix="correct it and give the command again"
        ) from None


def _flag(fault: Any, place: str) -> str:
    name = ".".join(str(part) for part in fault["loc"][:1])
    return f"--{name.replace('_', '-')}" if place == "--" else f"{place}{name}"


def _in_words(fault: Any, place: str) -> str:
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not fault["loc"]:  # several settings together
        return f"{'' if place == '--' else place}{message}"
    if fault["type"] == "missing":
        return f"{_flag(fault, place)} is missing"
    return f"{_flag(fault, place)} got {fault['input']!r}, should be {message}"
