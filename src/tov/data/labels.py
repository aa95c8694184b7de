"""Labels of several sources brought together: how each source's are read, the user's label map, and the check that they agree.

A label is whatever target and pool must agree on; must not know tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tov.data.cells import BadRow, named_kind
from tov.errors import DataError

SHOWN = 40
"""Labels that a message lists."""
MOST_CUT = 0.03
"""Share of a source's spans that may begin or end inside a word: more are wrong offsets, not loose ends of words."""


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
    def of_settings(cls, settings: Mapping[str, Any]) -> LabelMap:
        """From what `--label-map` holds: `LABEL: OURS` entries, and `SOURCE: {LABEL: OURS}` entries."""
        single = {str(label): ours for label, ours in settings.items() if not isinstance(ours, Mapping)}
        return cls(
            single, {str(source): entries for source, entries in settings.items() if isinstance(entries, Mapping)}
        )

    def of(self, source: str) -> dict[str, str]:
        """The map of one source."""
        return {**self.everywhere, **self.by_source.get(source, {})}

    def of_no_source(self, names: Iterable[str]) -> list[str]:
        """The sources that the map has a part for and that are none of these."""
        return sorted(self.by_source.keys() - {*names})

    @property
    def ours(self) -> set[str]:
        """Every label that the map names as ours, by entity type where it is a tag."""
        values = [
            *self.everywhere.values(),
            *(ours for entries in self.by_source.values() for ours in entries.values()),
        ]
        return {value[2:] if value[:2] in ("B-", "I-") else value for value in values}


@dataclass(frozen=True)
class Reading:
    """How the labels of one source are read.

    Attributes:
        names: the dataset's names of label ids (`datasets.ClassLabel`), or none.
        mapping: a tag, an entity type or a label -> ours (for tags also `O`).
        repair: whether tags that are not BIO2 are made so.
    """

    names: tuple[str, ...] = ()
    mapping: Mapping[str, str] = field(default_factory=dict)
    repair: bool = False


@dataclass
class Spans:
    """Entities of one source that are given as spans of characters, counted over its rows.

    Attributes:
        count: all of them.
        cut: those that begin or end inside a word.
        first: the row_id of the first row with such a one, and what it cuts.
    """

    count: int = 0
    cut: int = 0
    first: tuple[int, str] | None = None

    def add(self, row_id: int, row: Any) -> None:
        """Counts those of a row, if its task has any (`spans`, and `cuts` in words)."""
        cuts = getattr(row, "cuts", ())
        self.count += getattr(row, "spans", 0)
        self.cut += len(cuts)
        if cuts and self.first is None:
            self.first = (row_id, cuts[0])

    def check(self, where: Callable[[int], str]) -> None:
        """Spans must be of whole words, but for a few.

        Args:
            where: says of a row_id which row it is.

        Raises:
            DataError: more than `MOST_CUT` of them, and more than one, are not; with the first row.
        """
        if self.first is not None and self.cut > max(1, MOST_CUT * self.count):
            row_id, cut = self.first
            raise DataError(
                f"{where(row_id)}: {cut}. So it is with {self.cut:,} of the source's {self.count:,} entities.",
                allowed=f"at most {100 * MOST_CUT:g} % that begin or end inside a word",
                fix="Check that start and end count characters from 0, with the end excluded: not bytes, and not JavaScript's "
                "UTF-16 units. Where words are meant to be parted there, give them yourself, as tokens and ner_tags.",
            )


def label_text(value: Any, what: str, reading: Reading) -> str:
    """A label as text; an id by its name where the dataset has names.

    Args:
        value: of a cell.
        what: the column, for messages.
        reading: how the source's labels are read.

    Raises:
        BadRow: neither text nor an id that the dataset knows.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, int):
        raise BadRow(f"{what} holds {named_kind(value)}, but must be text or an id")
    if not reading.names:
        return str(int(value))
    if not 0 <= value < len(reading.names):
        raise BadRow(f"{what} holds the id {value}, but the dataset has names for 0 to {len(reading.names) - 1}")
    return reading.names[value]


def agreed_labels(
    target: Sequence[frozenset[str]],
    pool: Sequence[frozenset[str]],
    names: Sequence[str],
    label_map: LabelMap,
    *,
    hint: str = "",
) -> tuple[str, ...]:
    """The labels of target and pool in order, which must be the same set but for labels that the label map names as ours.

    Args:
        target: labels of each of the target's sources.
        pool: labels of each of the pool's sources.
        names: of the pool's sources.
        label_map: a label that it maps to itself may stand on one side alone.
        hint: what else a label map can do for a task, with `{label}` for an example.

    Raises:
        DataError: the sets differ; both are listed.
    """
    ours, theirs = frozenset[str]().union(*target), frozenset[str]().union(*pool)
    lacking, unknown = ours - theirs - label_map.ours, theirs - ours - label_map.ours
    if lacking or unknown:
        odd = [f"  pool '{name}': {listed(labels)}" for name, labels in zip(names, pool, strict=True) if labels - ours]
        differences = [f"only in the target: {listed(lacking)}"] * bool(lacking)
        differences += [f"only in the pool: {listed(unknown)}"] * bool(unknown)
        one = min(unknown or lacking)
        raise DataError(
            "\n".join(
                [
                    f"The labels of target and pool differ ({'; '.join(differences)}).",
                    f"  target: {listed(ours)}",
                    *(odd or [f"  pool: {listed(theirs)}"]),
                ]
            ),
            allowed="the same labels in both, after --label-map",
            fix=f"Give --label-map FILE, a YAML file: '{one}: OURS' renames {one}, '{one}: {one}' keeps it all the same"
            f"{hint.format(label=one)}.",
        )
    return tuple(sorted(ours | theirs))


def nothing_to_tell_apart(problem: str) -> DataError:
    """Target and pool have too few labels for a head."""
    return DataError(problem, fix="Check the column of tags or labels: --columns, --label-map.")


def check_known(
    label_sets: Sequence[frozenset[str]], names: Sequence[str], known: frozenset[str], *, role: str = "pool"
) -> None:
    """Checks that a new pool (or a test) has no label that a fitted path does not know.

    Args:
        label_sets: labels of each of its sources.
        names: of its sources.
        known: labels that the path was fitted with.
        role: pool or test.

    Raises:
        DataError: it has; both sets are listed.
    """
    for name, labels in zip(names, label_sets, strict=True):
        if labels - known:
            raise DataError(
                f"The {role} '{name}' has labels that the path was not fitted with: {listed(labels - known)}\n"
                f"  the path: {listed(known)}",
                allowed="the labels of the path, after --label-map",
                fix="Give --label-map FILE, a YAML file of lines 'THEIRS: OURS', or fit a path with these labels.",
            )


def listed(labels: Sequence[str] | frozenset[str]) -> str:
    """Labels in order, the first of many."""
    shown = sorted(labels)[:SHOWN]
    return (", ".join(shown) or "none") + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")
