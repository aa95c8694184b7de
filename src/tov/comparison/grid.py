"""A grid of comparisons as a YAML file: settings for all, and `experiments`, each a name with settings of its own.

`extends: OTHER.yaml` takes over another file's settings and experiments, so that a size of a grid is a file of a few lines.
`${NAME}` is replaced by the environment variable NAME, for paths that differ from machine to machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tov.errors import ConfigError, did_you_mean, kind_of
from tov.yaml_files import read_yaml

_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Grid:
    """Comparisons to run.

    Attributes:
        common: settings of all.
        experiments: name -> its own settings, which override the common ones.
    """

    common: Mapping[str, Any]
    experiments: Mapping[str, Mapping[str, Any]]

    def settings_of(self, name: str, flags: Mapping[str, Any], out: str) -> dict[str, Any]:
        """One experiment's settings; flags override the file; its folder is OUT/NAME."""
        return {**self.common, **self.experiments[name], **flags, "out": str(Path(out) / name)}


def is_grid(path: Path) -> bool:
    """Whether a settings file is a grid."""
    found = read_yaml(path)
    return "experiments" in found or "extends" in found


def read_grid(path: Path, only: tuple[str, ...] = ()) -> Grid:
    """Reads a grid, or those of its experiments that are named.

    Raises:
        ConfigError: no such file, broken YAML, an unset variable, no such experiment.
    """
    found = _read(path)
    experiments = found.pop("experiments", None)
    if not experiments or not all(isinstance(one, Mapping) for one in experiments.values()):
        raise ConfigError(
            f"{path}: experiments is {kind_of(experiments)}", allowed="a mapping NAME: {settings}, not empty"
        )
    if any("out" in one for one in (found, *experiments.values())):
        raise ConfigError(
            f"{path}: out in a grid: each experiment lies in OUT/NAME", fix="leave it out, and give --out"
        )
    for name in only:
        if name not in experiments:
            raise ConfigError(
                f"--only {name}: no such experiment{did_you_mean(name, experiments)}", allowed=", ".join(experiments)
            )
    kept = {str(name): _dashes(one) for name, one in experiments.items() if not only or name in only}
    return Grid(found, kept)


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path in above:
        raise ConfigError(f"{path} extends itself", fix="remove the line 'extends'")
    found = {name: _filled(value, path) for name, value in read_yaml(path).items()}
    if "extends" not in found:
        return found
    base = _read(path.parent / str(found.pop("extends")), (*above, path))
    own, theirs = found.pop("experiments", None) or {}, base.get("experiments") or {}
    for one in (own, theirs):
        if not isinstance(one, Mapping):
            raise ConfigError(f"{path}: experiments is {kind_of(one)}", allowed="a mapping NAME: {settings}")
    both = {name: {**theirs.get(name, {}), **own.get(name, {})} for name in [*theirs, *own]}
    return {**base, **found, "experiments": both}


def _filled(value: Any, path: Path) -> Any:
    """The value with its variables replaced, however deep."""
    if isinstance(value, Mapping):
        return {name: _filled(one, path) for name, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, path) for one in value]
    return _VARIABLE.sub(lambda match: _variable(match[1], path), value) if isinstance(value, str) else value


def _variable(name: str, path: Path) -> str:
    if name not in os.environ:
        raise ConfigError(f"{path}: ${{{name}}} is not set", fix=f"{name}=... tov compare {path} ...")
    return os.environ[name]


def _dashes(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name).replace("-", "_"): value for name, value in settings.items()}
