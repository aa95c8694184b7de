"""The score table: one row a pool row; what every method writes beside its own columns, and whose columns are whose.

A run may have several targets. A column of the target called `target`, the only one of most runs, has no suffix; one of
the target `NAME` ends in `@NAME`. Columns that depend on no target stand once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tov.data.decontamination import KEPT_APART, NO_TOKENS, NOT_SCORED, REASONS, REFUSED
from tov.data.rows import hexes
from tov.scores.shard import Shard, ShardReader

DEFAULT_TARGET = "target"
LENGTH = "length"
"""Tokens of a row as a training passes them: prompt and answer (of a preference pair the chosen one), within --max-length."""
FIXED = ("row_id", "source", "hash", "tokens", LENGTH, "lost", "in_base", "excluded")
"""The columns that every table has; one of version 0.1.0 has no `length`."""
Columns = Mapping[str, np.ndarray]
"""(rows,) numbers of a shard's rows, by column; NaN for a row without one. Larger is better where the column is a score."""


def column_name(measure: str, target: str) -> str:
    """What a measure of a target is called in the table."""
    return measure if target == DEFAULT_TARGET else f"{measure}@{target}"


def measures_of(columns: Sequence[str], target: str = DEFAULT_TARGET) -> list[str]:
    """The measures that a table with these columns has of a target."""
    suffix = "" if target == DEFAULT_TARGET else target
    return [name.partition("@")[0] for name in columns if name.partition("@")[2] == suffix and name not in FIXED]


def of_target(table: pa.Table, target: str) -> pa.Table:
    """The table as a method knows it: a target's columns under the names of the measures, the other targets' left out."""
    own = [
        name for name in table.column_names if name.partition("@")[2] == ("" if target == DEFAULT_TARGET else target)
    ]
    shared = [name for name in table.column_names if "@" not in name and column_name(name, target) not in own]
    names = [*shared, *(name for name in own if name not in shared)]
    return table.select(names).rename_columns([name.partition("@")[0] for name in names])


def artifacts_of(artifacts: Mapping[str, Path], target: str) -> dict[str, Path]:
    """A target's own of all artifacts of a run, under the names that its method gives them."""
    own = {name.partition("@")[0]: folder for name, folder in artifacts.items()}
    return {name: artifacts[column_name(name, target)] for name in own if column_name(name, target) in artifacts}


def coded(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """(N,) the code of each row's text, and the texts by code, in the order in which rows have them first.

    Args:
        column: of texts, as dictionary arrays or plain.
    """
    column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    places = whole.indices.unique()
    code_of = np.zeros(len(whole.dictionary), np.int32)
    code_of[places.to_numpy()] = np.arange(len(places))
    return code_of[whole.indices.to_numpy()], whole.dictionary.take(places).to_pylist()


def usable_in(scores: pa.Table) -> np.ndarray:
    """(N,) bool, rows that may be chosen: those that nothing excludes."""
    codes, reasons = coded(scores["excluded"])
    return np.array([not reason for reason in reasons])[codes]


def shard_table(reader: ShardReader, shard: Shard, columns: Columns, base: np.ndarray, why: str = "") -> pa.Table:
    """A shard of the score table.

    Columns: `row_id`; `source`; `hash`, 16 hex digits of the content; `tokens`, the length that bins go by; `length`, all
    tokens of the row; `lost`, scored tokens (or words) beyond --max-length; `in_base`; `excluded`, why the row may not be
    chosen, or ""; then the method's own, in fp32.

    Args:
        reader: of the pool.
        shard: the rows that were scored.
        columns: (rows,) numbers of those.
        base: uint64 content hashes of the base set U.
        why: the rows have no numbers, if they have none.
    """
    part = slice(shard.start, shard.stop)
    tokens, lengths, lost = np.zeros((3, shard.stop - shard.start), np.int32)
    tokens[shard.places], lost[shard.places] = shard.encoded.sizes, shard.encoded.lost
    lengths[shard.places] = shard.encoded.lengths
    codes = reader.excluded[part].copy()
    scored = shard.encoded.sizes > 0
    codes[shard.places[scored]] = NOT_SCORED if why else codes[shard.places[scored]]
    codes[shard.places[~scored]] = NO_TOKENS
    row_ids, content = np.arange(shard.start, shard.stop), reader.index.content[part]
    said = {place: reader.refusal(shard.start + place) for place in shard.places[shard.encoded.lengths == 0].tolist()}
    said = {place: refusal for place, refusal in said.items() if refusal}
    codes[list(said)] = REFUSED
    reasons = [
        _reason(int(code), reader.index.bad.get(int(row), said.get(int(row) - shard.start, why)))
        for row, code in zip(row_ids, codes, strict=True)
    ]
    arrays: dict[str, pa.Array] = {
        "row_id": pa.array(row_ids, pa.int64()),
        "source": pa.array(reader.pool.source_names(row_ids), pa.string()),
        "hash": pa.array(hexes(content), pa.string()),
        "tokens": pa.array(tokens, pa.int32()),
        LENGTH: pa.array(lengths, pa.int32()),
        "lost": pa.array(lost, pa.int32()),
        "in_base": pa.array(np.isin(content, base), pa.bool_()),
        "excluded": pa.array(reasons, pa.string()),
    }
    spread = {name: shard.spread(np.where(scored, values, np.nan)) for name, values in columns.items()}
    return pa.table(arrays | {name: pa.array(values, pa.float32()) for name, values in spread.items()})


def _reason(code: int, why: str) -> str:
    return REASONS[code] + (f": {why}" if code in KEPT_APART and why else "")
