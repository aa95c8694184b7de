"""Label sets of several sources brought together: names of ids, the user's label map, and the check that they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from tov.errors import DataError

SHOWN = 40
"""Labels that a message lists."""


@dataclass(frozen=True)
class LabelMap:
    """A source's labels -> ours.

    Attributes:
        everywhere: for all sources.
        by_source: source name -> for this source, before `everywhere`.
    """

    everywhere: Mapping[str, str] = field(default_factory=dict)
    by_source: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of_settings(cls, given: Mapping[str, Any]) -> LabelMap:
        """From what `--label-map` holds: `LABEL: OURS` entries, and `SOURCE: {LABEL: OURS}` entries."""
        single = {str(label): ours for label, ours in given.items() if not isinstance(ours, Mapping)}
        return cls(single, {str(source): entries for source, entries in given.items() if isinstance(entries, Mapping)})

    def of(self, source: str) -> dict[str, str]:
        """The map of one source."""
        return {**self.everywhere, **self.by_source.get(source, {})}

    @property
    def ours(self) -> set[str]:
        """Every label that the map names as ours, by entity type where it is a tag."""
        values = [
            *self.everywhere.values(),
            *(ours for entries in self.by_source.values() for ours in entries.values()),
        ]
        return {value[2:] if value[:2] in ("B-", "I-") else value for value in values}


def names_of(table: datasets.Dataset, column: str, columns: Mapping[str, str]) -> tuple[str, ...]:
    """The names that a dataset gives to the label ids of a column (`ClassLabel`, or a list of them), or none."""
    feature: Any = table.features.get(columns.get(column, column)) or table.features.get(column)
    feature = getattr(feature, "feature", feature)
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()


def agreed_labels(
    target: Sequence[frozenset[str]],
    pool: Sequence[frozenset[str]],
    names: Sequence[str],
    label_map: LabelMap,
    *,
    task: str,
) -> tuple[str, ...]:
    """The labels of target and pool in order, which must be the same set but for labels that the label map names as ours.

    Args:
        target: labels of each of the target's sources.
        pool: labels of each of the pool's sources.
        names: of the pool's sources.
        label_map: a label that it maps to itself may stand on one side alone.
        task: ner or classification.

    Raises:
        DataError: the sets differ (both are listed), or there is nothing to tell apart.
    """
    ours, theirs = frozenset[str]().union(*target), frozenset[str]().union(*pool)
    lacking, unknown = ours - theirs - label_map.ours, theirs - ours - label_map.ours
    if lacking or unknown:
        odd = [f"  pool '{name}': {_listed(found)}" for name, found in zip(names, pool, strict=True) if found - ours]
        said = [f"only in the target: {_listed(lacking)}"] * bool(lacking)
        said += [f"only in the pool: {_listed(unknown)}"] * bool(unknown)
        raise DataError(
            "\n".join(
                [
                    f"the labels differ ({'; '.join(said)})",
                    f"  target: {_listed(ours)}",
                    *(odd or [f"  pool: {_listed(theirs)}"]),
                ]
            ),
            allowed="the same labels in both, after --label-map",
            fix=_example(lacking, unknown, task),
        )
    if len(ours | theirs) < (1 if task == "ner" else 2):
        raise DataError(
            "no row of target or pool has an entity"
            if task == "ner"
            else f"all rows have the one label {_listed(ours)}",
            fix="check the column of tags or labels: --columns, --label-map",
        )
    return tuple(sorted(ours | theirs))


def known_labels(
    found: Sequence[frozenset[str]], names: Sequence[str], head: Sequence[str], task: str, *, role: str = "pool"
) -> None:
    """Checks that a new pool (or a test) has no label that a fitted path does not know.

    Raises:
        DataError: it has; both sets are listed.
    """
    known = {label[2:] for label in head if label != "O"} if task == "ner" else set(head)
    for name, labels in zip(names, found, strict=True):
        if labels - known:
            raise DataError(
                f"{role} '{name}' has labels that the path was not fitted with: {_listed(labels - known)}\n"
                f"  the path: {_listed(frozenset(known))}",
                fix="map them: --label-map FILE, a YAML file of 'THEIRS: OURS'; or fit a path with them",
            )


def _listed(labels: Sequence[str] | frozenset[str]) -> str:
    shown = sorted(labels)[:SHOWN]
    return (", ".join(shown) or "none") + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")


def _example(lacking: frozenset[str], unknown: frozenset[str], task: str) -> str:
    one = min(unknown or lacking)
    drop = f", '{one}: O' drops it" if task == "ner" else ""
    return f"--label-map FILE, a YAML file: '{one}: OURS' renames it, '{one}: {one}' keeps it all the same{drop}"
