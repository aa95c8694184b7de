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

from tov.config.yaml_files import read_yaml
from tov.errors import ConfigError, did_you_mean, kind_of

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
    settings = read_yaml(path)
    return "experiments" in settings or "extends" in settings


def read_grid(path: Path, only: tuple[str, ...] = ()) -> Grid:
    """Reads a grid, or those of its experiments that are named.

    Raises:
        ConfigError: no such file, broken YAML, an unset variable, no such experiment.
    """
    settings = _read(path)
    experiments = settings.pop("experiments", None)
    if not experiments or not all(isinstance(experiment, Mapping) for experiment in experiments.values()):
        raise ConfigError(
            f"{path}: experiments is {kind_of(experiments) if experiments else 'empty'}, but must be a mapping.",
            allowed="a mapping NAME: {settings}, not empty",
            fix="Write each experiment as a line NAME: {settings}.",
        )
    if any("out" in block for block in (settings, *experiments.values())):
        raise ConfigError(
            f"{path} sets out, but in a grid each experiment's folder is OUT/NAME.",
            fix="Remove the line that sets out, and give --out.",
        )
    for name in only:
        if name not in experiments:
            raise ConfigError(
                f"--only {name}: the grid has no such experiment{did_you_mean(name, experiments)}.",
                allowed=", ".join(experiments),
                fix="Correct the name after --only.",
            )
    chosen = {str(name): _dashes(experiment) for name, experiment in experiments.items() if not only or name in only}
    return Grid(settings, chosen)


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path in above:
        raise ConfigError(f"{path} extends itself.", fix="Remove the line that begins with extends.")
    settings = {name: _filled(value, path) for name, value in read_yaml(path).items()}
    if "extends" not in settings:
        return settings
    base = _read(path.parent / str(settings.pop("extends")), (*above, path))
    own, theirs = settings.pop("experiments", None) or {}, base.get("experiments") or {}
    for experiments in (own, theirs):
        if not isinstance(experiments, Mapping):
            raise ConfigError(
                f"{path}: experiments is {kind_of(experiments)}, but must be a mapping.",
                allowed="a mapping NAME: {settings}",
                fix="Write each experiment as a line NAME: {settings}.",
            )
    both = {name: {**theirs.get(name, {}), **own.get(name, {})} for name in [*theirs, *own]}
    return {**base, **settings, "experiments": both}


def _filled(value: Any, path: Path) -> Any:
    """The value with its variables replaced, however deep."""
    if isinstance(value, Mapping):
        return {name: _filled(item, path) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, path) for item in value]
    return _VARIABLE.sub(lambda match: _variable(match[1], path), value) if isinstance(value, str) else value


def _variable(name: str, path: Path) -> str:
    if name not in os.environ:
        raise ConfigError(
            f"{path} uses ${{{name}}}, but the environment variable {name} is not set.",
            fix=f"Set it: {name}=VALUE tov compare {path} --out DIR",
        )
    return os.environ[name]


def _dashes(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name).replace("-", "_"): value for name, value in settings.items()}
