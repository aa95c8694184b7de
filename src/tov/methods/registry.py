"""Every method by its name: those in the box, and those that other packages bring.

A package adds one by an entry point of the group `tov.methods`, whose name is the method's and whose value is its class.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from importlib import import_module

from tov.errors import ConfigError, did_you_mean
from tov.methods.base import Method

GROUP = "tov.methods"
"""Entry points that are methods."""
_NAME = re.compile(r"[\w.+-]+")


KINDS = {
    "tov": "tov.method:Tov", "less": "less:Less", "tracin": "tracin:Tracin", "dsir": "dsir:Dsir", "bm25": "bm25:Bm25",
    "tsds": "tsds:Tsds", "rds": "rds:Rds", "target-path": "target_path:TargetPath", "uncertainty": "uncertainty:Uncertainty",
    "highest-loss": "uncertainty:HighestLoss", "lowest-loss": "uncertainty:LowestLoss", "auto": "auto:Auto",
    "random": "random:Random", "full": "random:Full", "zero-shot": "random:ZeroShot",
}  # fmt: skip
"""Name -> module of this room and class, of the methods in the box, in the order in which they are shown."""


def built_in() -> dict[str, Method]:
    """Name -> method, of those in the box, in the order in which they are shown."""
    return dict(_built_in())


@functools.cache
def _built_in() -> dict[str, Method]:
    found = [value.partition(":") for value in KINDS.values()]
    kinds: list[type[Method]] = [getattr(import_module(f"tov.methods.{module}"), name) for module, _, name in found]
    return {kind.name: kind() for kind in kinds}


def plug_ins() -> dict[str, importlib.metadata.EntryPoint]:
    """Name -> entry point, of those that other packages bring, the first of each name; none is loaded."""
    return {name: entries[0] for name, entries in _by_name().items()}


def _by_name() -> dict[str, list[importlib.metadata.EntryPoint]]:
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found


def package_of(entry: importlib.metadata.EntryPoint) -> str:
    """The package that brings a method."""
    return entry.dist.name if entry.dist else "an unknown package"


def find_method(name: str, *, flag: str = "--methods") -> Method:
    """The method of this name; one in the box is never replaced by another package's.

    Args:
        name: of the box or of a plug-in.
        flag: where it was named.

    Raises:
        ConfigError: there is none, or its plug-in is broken.
    """
    boxed = built_in()
    if name in boxed:
        return boxed[name]
    others = plug_ins()  # reads every installed package's metadata: 40 ms
    if name in others:
        return load_plug_in(others[name])
    known = [*boxed, *others]
    raise ConfigError(
        f"{flag}: there is no method '{name}'{did_you_mean(name, known)}.",
        allowed=", ".join(known),
        fix="Name one of these.",
    )


def load_plug_in(entry: importlib.metadata.EntryPoint) -> Method:
    """A method that another package brings.

    Raises:
        ConfigError: it cannot be imported, is no usable method, or has the name of another; such a one is not even imported.
    """
    package = package_of(entry)
    what, fix = f"The method '{entry.name}' of the package {package}", f"Update or uninstall {package}."
    if entry.name in built_in():
        raise ConfigError(f"{what} has the name of a method that tov has, and is not taken in its place.", fix=fix)
    others = sorted({package_of(one) for one in _by_name().get(entry.name, [])} - {package})
    if others:
        raise ConfigError(
            f"{what} has the name of one of the package {', '.join(others)}, so neither is taken.",
            fix=f"Uninstall {package}, or {others[0]}.",
        )
    try:
        loaded = entry.load()
        method = loaded() if isinstance(loaded, type) else loaded
    except Exception as error:
        raise ConfigError(f"{what} cannot be imported: {type(error).__name__}: {error}", fix=fix) from error
    if not isinstance(method, Method):
        raise ConfigError(f"{what} is a {type(method).__name__}.", allowed="a subclass of tov.methods.Method", fix=fix)
    name = getattr(method, "name", "")
    wrong = {
        f"is called '{name}'": name != entry.name,
        "has a name of other signs than letters, digits, '.', '_', '+' and '-'": not _NAME.fullmatch(str(name)),
        "has no summary": not getattr(method, "summary", ""),
        "does not implement prepare": type(method).prepare is Method.prepare,
    }
    for fault, holds in wrong.items():
        if holds:
            raise ConfigError(f"{what} {fault}.", fix=fix)
    return method
