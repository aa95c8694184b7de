"""A grid of comparisons as a YAML file: settings for all, and `experiments`, each a name with settings of its own.

`extends: OTHER.yaml` takes over another file's settings and experiments, so that a size of a grid is a file of a few lines.
`${NAME}` is replaced by the environment variable NAME, for paths that differ from machine to machine. Experiments that `--only`
leaves out need none of theirs.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tov.config.yaml_files import read_yaml, with_text_keys
from tov.errors import ConfigError, did_you_mean, kind_of

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_EXPERIMENTS, _WRITE_EXPERIMENTS = (
    "a mapping NAME: {settings}, not empty",
    "Write each experiment as a line NAME: {settings}",
)
_LONGEST_NAME = 100


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
    experiments = _experiments(settings, path)
    if not experiments:
        raise ConfigError(
            f"{path}: experiments is empty, but must be a mapping.", allowed=_EXPERIMENTS, fix=f"{_WRITE_EXPERIMENTS}."
        )
    _check_names(experiments, path)
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
    chosen = {
        name: with_text_keys(_filled(experiment, path), path)
        for name, experiment in experiments.items()
        if not only or name in only
    }
    return Grid(_filled(settings, path), chosen)


def _experiments(settings: dict[str, Any], path: Path) -> dict[str, Mapping[str, Any]]:
    """Taken out of the settings, under their names as text."""
    experiments = settings.pop("experiments", None) or {}
    if not isinstance(experiments, Mapping):
        raise ConfigError(
            f"{path}: experiments is {kind_of(experiments)}, but must be a mapping.",
            allowed=_EXPERIMENTS,
            fix=f"{_WRITE_EXPERIMENTS}.",
        )
    odd = next((name for name, experiment in experiments.items() if not isinstance(experiment, Mapping)), None)
    if odd is not None:
        raise ConfigError(
            f"{path}: the experiment {odd} is {kind_of(experiments[odd])}, but must be a mapping.",
            allowed=_EXPERIMENTS,
            fix=f"{_WRITE_EXPERIMENTS}; of one without settings of its own, NAME: {{}}.",
        )
    named = {str(name): experiment for name, experiment in experiments.items()}
    if len(named) < len(experiments):
        raise ConfigError(f"{path}: two experiments have one name.", allowed=_EXPERIMENTS, fix="Rename one of them.")
    return named


def _check_names(names: Iterable[str], path: Path) -> None:
    """Raises ConfigError for a name that is no folder of its own in --out, on any system."""
    seen = dict[str, str]()
    for name in names:
        alike = seen.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        reason = (
            "is empty" if not name.strip()
            else f"has more than {_LONGEST_NAME} bytes" if len(name.encode()) > _LONGEST_NAME
            else f"begins with {name[0]!r}" if name[0] in ".~- "
            else f"ends with {name[-1]!r}" if name[-1] in ". "
            else "is no name of a folder" if not name.isprintable() or set(name) & set('/\\:*?"<>|')
            else f"differs from {alike} by capitals alone, which some disks do not tell apart" if alike != name
            else ""
        )  # fmt: skip
        if reason:
            raise ConfigError(
                f"{path}: the name {name[:100]!r} of an experiment {reason}.",
                allowed=f'names that differ by more than capitals, at most {_LONGEST_NAME} bytes, without / \\ : * ? " < > |',
                fix="Write a name such as small-1: the experiment's folder is OUT/NAME.",
            )


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file with all that it extends; variables stand as they are, but for the name of that file."""
    real = path.resolve() if "\0" not in str(path) else path
    if real in above:
        round_ = " extends ".join(file.name for file in (*above[above.index(real) :], real))
        raise ConfigError(f"{path} extends itself: {round_}.", fix="Remove one of the lines that begin with extends.")
    settings = dict(read_yaml(path))
    if "extends" not in settings:
        return settings
    other = _filled(settings.pop("extends"), path)
    if not isinstance(other, str):
        raise ConfigError(
            f"{path}: extends is {kind_of(other)}, but must be a file's name.",
            allowed="extends: OTHER.yaml",
            fix="Correct the line that begins with extends.",
        )
    base = _read(path.parent / other, (*above, real))
    theirs, own = _experiments(base, path), _experiments(settings, path)
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
