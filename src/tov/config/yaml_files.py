"""Settings and label maps in YAML files. Knows YAML; must not know which settings there are.

What a file may do is bounded before it is built: aliases can stand for any number of values, and values can nest too deeply for
the parser. A file is read as its author sees it: a date is text, and a key that stands twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from tov.errors import ConfigError, kind_of, of_system

LabelMapping = dict[str, str | dict[str, str]]
"""`THEIRS: OURS`, or `SOURCE: {THEIRS: OURS}`."""
MOST_BYTES, MOST_VALUES, MOST_NESTED = 1 << 20, 100_000, 50
"""Of a file: its size; its values, those that an alias stands for with them; levels of lists and mappings."""


_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}
"""YAML 1.1 also has numbers to the base 60 (`2:16`) and octal ones (`010`): those are text, as YAML 1.2 and readers have it."""


class _Settings(yaml.SafeLoader):
    """Text, numbers, truth values, lists and mappings, as JSON has them."""

    yaml_implicit_resolvers: ClassVar[Any] = {  # type: ignore[misc]
        letter: [(tag, _NUMBERS.get(tag, pattern)) for tag, pattern in pairs if not tag.endswith(":timestamp")]
        for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar[Any] = {
        tag: build
        for tag, build in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] not in ("timestamp", "binary", "set", "omap", "pairs")
    }

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """A value; one that Python cannot hold, or JSON cannot, is an error with its line."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) >> 63:
                raise ValueError("an integer of more than 64 bits")
            if isinstance(value, float) and value != value:
                raise ValueError("not a number")
        except (ValueError, OverflowError, LookupError, TypeError, AttributeError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"the value is no setting: {error}", node.start_mark
            ) from None
        return value


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigError: no such file, broken YAML (with its line), a key that stands twice, or not a mapping.
    """
    value = _mapping_in(path, "settings file", "a mapping of settings, e.g. 'n: 4096'", _Settings)
    return with_text_keys(value, path)


def line_of(key: str, path: Path) -> str:
    """`, line 3` where the key of a settings file is seen to stand, else ""."""
    pattern = re.compile(rf"""\s*['"]?{re.escape(key).replace("_", "[-_]")}['"]?\s*:""")
    lines = enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
    return next((f", line {number}" for number, line in lines if pattern.match(line)), "")


def with_text_keys(settings: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """Settings under their names, `-` for `_` allowed.

    Raises:
        ConfigError: two keys are one name.
    """
    named: dict[str, Any] = {}
    for key, value in settings.items():
        name = str(key).replace("-", "_")
        if name in named:
            raise _twice(str(path), name)
        named[name] = value
    return named


def read_label_map(path: Path) -> LabelMapping:
    """The label map in a YAML or JSON file; every entry is text as it stands there (`NO` is no truth value).

    Raises:
        ConfigError: as `read_yaml`.
    """
    return _mapping_in(path, "label map", "a mapping of labels, e.g. 'person: PER'", yaml.BaseLoader)


def check_label_names(label_map: Mapping[Any, Any]) -> None:
    """Raises ConfigError if a label, or one of a source's, has no name of ours: `MISC:` with nothing behind it."""
    for label, ours in label_map.items():
        if isinstance(ours, Mapping):
            check_label_names(ours)
        elif ours is None or (isinstance(ours, str) and not ours.strip()):
            raise ConfigError(
                f"The label map has nothing for '{label}'.",
                allowed=f"a name: '{label}: OURS', or the same: '{label}: {label}'",
                fix=f"Write '{label}: O' to drop an entity type. No class can be dropped: give it the name of another, or "
                "leave its rows out of the input.",
            )


def _mapping_in(path: Path, what: str, allowed: str, kind: Any) -> dict[Any, Any]:
    text = _text(path, what)
    try:
        _check_bounds(text, path, kind)
        loader = kind(text)
        node = loader.get_single_node()
        _check_keys(node, path, loader)
        value = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        said = re.sub(r"<(unicode|byte) string>", path.name, str(error))
        raise ConfigError(f"{path} is not YAML: {said}", fix="Correct the line that it names.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {kind_of(value)}.", allowed=allowed, fix="Write it as KEY: VALUE lines.")
    return value


def _text(path: Path, what: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"There is no {what} {path}.", fix="Check the path.") from None
    except (OSError, ValueError) as error:  # a zero character in the path is a ValueError
        if refused := of_system(error, f"The {what} {path} cannot be read", ConfigError):
            raise refused from None
        raise ConfigError(f"The {what} {str(path)!r} cannot be read: {error}.", fix="Check the path.") from None
    if len(data) > MOST_BYTES:
        raise ConfigError(
            f"{path} has more than {MOST_BYTES:,} bytes.",
            allowed=f"a {what} of at most {MOST_BYTES:,} bytes",
            fix="Check that this is the file that you mean.",
        )
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or 0 in data[:2]:
        raise ConfigError(
            f"{path} is UTF-16, not UTF-8.", fix=f"Convert the file: iconv -f utf-16 -t utf-8 {path.name} > NEW.yaml"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8.",
            fix=f"Convert the file, e.g. with iconv -f latin1 -t utf-8 {path.name}",
        ) from None


def _check_bounds(text: str, path: Path, kind: Any) -> None:
    """Raises ConfigError if the values, those that aliases stand for with them, are too many or too deeply nested."""
    counts = [0]
    """Values in each list or mapping that is open, from without."""
    names: list[str | None] = [None]
    sizes: dict[str | None, int] = {}
    event: Any
    for event in yaml.parse(text, Loader=kind):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in names:
                raise ConfigError(
                    f"{path}:{line}: *{event.anchor} stands inside what it names.", fix="Write the value out."
                )
            counts[-1] += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            counts[-1] += 1
            if event.anchor:
                sizes[event.anchor] = 1
            _check_characters(event.value, f"{path}:{line}")
        elif isinstance(event, yaml.CollectionStartEvent):
            counts.append(1)
            names.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            size, name = counts.pop(), names.pop()
            counts[-1] += size
            if name:
                sizes[name] = size
        if len(counts) > MOST_NESTED + 1 or sum(counts) > MOST_VALUES:
            deep = len(counts) > MOST_NESTED + 1
            raise ConfigError(
                f"{path}:{line}: "
                + ("the value is nested too deeply." if deep else f"the file has more than {MOST_VALUES:,} values."),
                allowed=f"at most {MOST_NESTED} levels and {MOST_VALUES:,} values, those that aliases stand for with them",
                fix="Write fewer values, or without aliases.",
            )


def _check_characters(text: str, place: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(
            f"{place}: a text holds half a character (a lone surrogate).", fix="Correct the text."
        ) from None


def _check_keys(node: Any, path: Path, loader: Any) -> None:
    """Raises ConfigError if a mapping has a key twice."""
    for mapping in _mappings(node):
        seen = set[Any]()
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue  # what can be no key is said by who builds it
            name = loader.construct_object(key)
            if name in seen:
                raise _twice(f"{path}:{key.start_mark.line + 1}", key.value)
            seen.add(name)


def _mappings(node: Any) -> Iterator[Any]:
    """All mappings in a node, each once."""
    seen, rest = set[int](), [node]
    while rest:
        node = rest.pop()
        if node is None or id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            rest += [part for pair in node.value for part in pair]
        else:
            rest += node.value


def _twice(place: str, key: str) -> ConfigError:
    return ConfigError(f"{place}: the key '{key}' stands twice.", fix="Remove one of the two lines.")
