"""`trials.jsonl`: a record a trial, appended, of which the last of a key counts; and `results.json`, what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tov.errors import RunError, kind_of
from tov.files import append_json_line
from tov.runs.manifest import ChecksRecord

DONE, FAILED, LEFT_OUT = "done", "failed", "left out"
"""Of a trial: has a loss; is tried again by the next call; cannot be, whatever is tried."""


def key_of(record: dict[str, Any]) -> tuple[str, int, int]:
    """A record's `Trial.key`."""
    return record["variant"], record["n"], record["seed"]


class _Trial(BaseModel):
    """What is used of a record; it may hold more."""

    model_config = ConfigDict(strict=True)

    variant: str
    n: int = Field(ge=0, lt=1 << 63)
    seed: int = Field(ge=-(1 << 63), lt=1 << 63)
    status: Literal["done", "failed", "left out"]
    method: str | None = None
    error: str | None = None
    notes: list[str]
    test_rows: int | None = None
    test_rows_without_tokens: int | None
    seconds: float | None = None
    loss: float | None = None
    metric: float | None = None
    train: dict[str, Any] | None = None
    scoring: dict[str, Any] | None = None
    chosen: dict[str, int] = {}
    by_score: int | None = None
    checks: ChecksRecord | None = None
    version: str | None = None
    commit: str | None = None


class _Spread(BaseModel):
    mean: float | None


class _Shown(BaseModel):
    variant: str
    role: str
    loss: _Spread
    gain: _Spread


class _Size(BaseModel):
    n: int
    variants: list[_Shown]


class _Results(BaseModel):
    """What a grid's report shows of an experiment."""

    sizes: list[_Size]
    notes: list[str]


def read_trials(file: Path) -> list[dict[str, Any]]:
    """The records written so far; a last line that is being written, or that a kill cut short, is left out.

    Raises:
        RunError: a line is no record of a trial; with file and line.
    """
    if not file.exists():
        return []
    data = file.read_bytes()
    lines = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]
    return [_record(line, _Trial, f"{file}:{number}", "a trial") for number, line in enumerate(lines, 1)]


def keeper(
    file: Path, records: MutableMapping[tuple[str, int, int], dict[str, Any]], tell: Callable[[dict[str, Any]], None]
) -> Callable[[dict[str, Any]], None]:
    """What appends the record of a trial to a file, then keeps it among others by its key, and tells of it."""

    def keep(record: dict[str, Any]) -> None:
        append_json_line(file, record)
        records[key_of(record)] = record
        tell(record)

    return keep


def read_results(file: Path) -> dict[str, Any]:
    """The numbers of a comparison, `results.json`.

    Raises:
        RunError: they are broken, or of another shape.
    """
    return _record(file.read_bytes(), _Results, str(file), "results")


def _record(data: bytes, shape: type[BaseModel], place: str, what: str) -> dict[str, Any]:
    try:
        record: Any = renamed(json.loads(data))
        if not isinstance(record, dict):
            raise _broken(place, f"it is {kind_of(record)}, not a record of {what}")
        shape.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise _broken(place, f"as a record of {what}: {key + ': ' if key else ''}{first['msg']}") from None
    except RecursionError:
        raise _broken(place, "it is nested too deeply") from None
    except ValueError as error:  # broken JSON, bytes that are no text, a number of too many digits
        raise _broken(place, str(error)) from None
    return record


def _broken(place: str, why: str) -> RunError:
    return RunError(f"{place} is broken: {why}", fix="Put the file back from a copy, or start over with --force.")


def renamed(value: Any) -> Any:
    """Records under their present names; 0.1.0 called a variant an arm."""
    if isinstance(value, dict):
        named = {{"arm": "variant", "arms": "variants"}.get(name, name): renamed(item) for name, item in value.items()}
        return named | ({"role": "variant"} if named.get("role") == "arm" else {})
    return [renamed(item) for item in value] if isinstance(value, list) else value
