"""Settings and label maps in YAML files. Knows YAML; must not know which settings there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tov.errors import ConfigError, kind_of

LabelMapping = dict[str, str | dict[str, str]]
"""`THEIRS: OURS`, or `SOURCE: {THEIRS: OURS}`."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigError: no such file, broken YAML (with its line), or not a mapping.
    """
    value = _mapping_in(path, "settings file", "a mapping of settings, e.g. 'n: 4096'", yaml.SafeLoader)
    return {str(key).replace("-", "_"): entry for key, entry in value.items()}


def read_label_map(path: Path) -> LabelMapping:
    """The label map in a YAML or JSON file; every entry is text as it stands there (`NO` is no truth value).

    Raises:
        ConfigError: as `read_yaml`.
    """
    return _mapping_in(path, "label map", "a mapping of labels, e.g. 'person: PER'", yaml.BaseLoader)


def _mapping_in(path: Path, what: str, allowed: str, loader: Any) -> dict[Any, Any]:
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except FileNotFoundError:
        raise ConfigError(f"There is no {what} {path}.", fix="Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = re.sub(r"<(unicode|byte) string>", path.name, str(error))
        raise ConfigError(f"{path} is not YAML: {said}", fix="Correct the line that it names.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {kind_of(value)}.", allowed=allowed, fix="Write it as KEY: VALUE lines.")
    return value
