"""`trials.jsonl`: one record a trial, appended; the last of a key counts. Must not know how a trial is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tov.errors import RunError

DONE, FAILED, LEFT_OUT = "done", "failed", "left out"
"""Of a trial: has a loss; is tried again by the next call; cannot be, whatever is tried."""


def key_of(record: dict[str, Any]) -> tuple[str, int, int]:
    """A record's `Trial.key`."""
    return record["variant"], record["n"], record["seed"]


def read_trials(file: Path) -> list[dict[str, Any]]:
    """The records written so far; a last line that is being written, or that a kill cut short, is left out."""
    if not file.exists():
        return []
    data = file.read_bytes()
    try:
        return [renamed(json.loads(line)) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    except ValueError as error:
        raise RunError(
            f"{file} is broken: {error}", fix="Put the file back from a copy, or start over with --force."
        ) from None


def renamed(value: Any) -> Any:
    """Records under their present names; 0.1.0 called a variant an arm."""
    if isinstance(value, dict):
        return {{"arm": "variant", "arms": "variants"}.get(name, name): renamed(item) for name, item in value.items()}
    return [renamed(item) for item in value] if isinstance(value, list) else value


def repair_trials(file: Path) -> None:
    """Removes a last line that a kill cut short, so that the next one begins a line."""
    data = file.read_bytes() if file.exists() else b""
    if not data.endswith(b"\n") and data:
        with open(file, "rb+") as broken:
            broken.truncate(data.rfind(b"\n") + 1)
