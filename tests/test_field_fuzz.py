"""Structured rows by chance, in every format: what is written back is what was read, by other readers' word.

`TOV_FUZZ_ROWS=10000` tries so many rows a format; a few hundred otherwise.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from test_field import written
from tov.data.pool import Pool, open_pool
from tov.errors import DataError
from tov.tasks import all_layouts

AT_ONCE = 20
EXAMPLES = max(1, int(os.environ.get("TOV_FUZZ_ROWS", "300")) // AT_ONCE)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBER = st.one_of(
    st.integers(-(2**70), 2**70), st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([2**53 + 1, 2**63 - 1, 2**63, 2**64, -0.0, 1e-11, 0.1, 1e300]),
)  # fmt: skip
LEAF = st.one_of(
    st.none(), st.booleans(), NUMBER, TEXT, st.sampled_from(["2024-01-31", "2024-01-31T00:00:00Z", "NaN", "007", ""])
)
KEY = st.one_of(st.sampled_from(["a", "b", "id", "meta", "tov", "été", "a.b", "0"]), TEXT)
VALUE = st.recursive(
    LEAF, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEY, inner, max_size=3)), max_leaves=8
)
ROW = st.builds(
    lambda first, more, last: {**first, **more, **last},
    st.dictionaries(KEY, VALUE, max_size=2), st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}),
    st.dictionaries(KEY, VALUE, max_size=3),
)  # fmt: skip
ROWS = st.lists(ROW, min_size=1, max_size=AT_ONCE).map(
    lambda rows: [{k: v for k, v in row.items() if not k.startswith("tov_")} for row in rows]
)
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)  # fmt: skip


def pool_of(source: Any) -> Pool:
    return open_pool([source], layouts=all_layouts())


def as_lines(rows: list[dict[str, Any]], folder: Path) -> Any:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / "rows.jsonl")


def as_array(rows: list[dict[str, Any]], folder: Path) -> Any:
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return str(folder / "rows.json")


def in_memory(rows: list[dict[str, Any]], folder: Path) -> Any:
    return rows


@pytest.mark.parametrize("form", [as_lines, as_array, in_memory])
@given(rows=ROWS)
@FUZZ
def test_json_comes_back(form: Callable[..., Any], rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """To the last digit, key and order; and the Parquet file has the same values, as columns or as JSON text."""
    found = written(pool_of(form(rows, tmp_path)), tmp_path)
    assert repr(found) == repr(rows)
    table = pq.read_table(tmp_path / "selected.parquet")
    for name in dict.fromkeys(name for row in rows for name in row):
        for cell, row in zip(table[name].to_pylist(), rows, strict=True):
            assert same(cell, row.get(name)), f"{name}: {cell!r} in Parquet, {row.get(name)!r} in the row"


def same(cell: Any, value: Any) -> bool:
    """A cell of Parquet: the value, padded with nulls, or its JSON text."""
    if unpadded(cell) == unpadded(value):
        return True
    return isinstance(cell, str) and json.loads(cell) == value


def unpadded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: unpadded(one) for name, one in value.items() if one is not None}
    return [unpadded(one) for one in value] if isinstance(value, list) else value


@given(rows=ROWS)
@FUZZ
def test_other_readers_read_the_files(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """Polars and DuckDB count the rows and find the same prompts and ids, in both files."""
    written(pool_of(rows), tmp_path)
    wanted = [row["prompt"] for row in rows]
    found = polars.read_parquet(tmp_path / "selected.parquet", columns=["prompt", "tov_row_id"])
    assert found["prompt"].to_list() == wanted
    assert found["tov_row_id"].to_list() == list(range(len(rows)))
    query = f"select prompt from read_parquet('{tmp_path}/selected.parquet') order by tov_row_id"
    assert [one for (one,) in duckdb.sql(query).fetchall()] == wanted
    lines = polars.read_ndjson(
        tmp_path / "selected.jsonl", schema={"prompt": polars.String, "tov_row_id": polars.Int64}
    )
    assert lines["prompt"].to_list() == wanted


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
TABLES = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(CELLS, min_size=width + 2, max_size=width + 2), min_size=1, max_size=AT_ONCE)
)


@pytest.mark.parametrize("separator", [",", "\t"])
@given(cells=TABLES)
@FUZZ
def test_csv_comes_back(separator: str, cells: list[list[str]], tmp_path: Path) -> None:
    """As Python writes it; a tab and a line break in one cell of a TSV file are refused, as they look like a stray quote."""
    names = ["prompt", "completion", *(f"c{place}" for place in range(len(cells[0]) - 2))]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([names, *cells])
    path = tmp_path / ("rows.csv" if separator == "," else "rows.tsv")
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    rows = [dict(zip(names, row, strict=True)) for row in cells]
    suspect = separator == "\t" and any("\t" in cell and "\n" in cell for row in cells for cell in row)
    if suspect:
        with pytest.raises(DataError, match="quotation mark"):
            pool_of(str(path))
        return
    found = written(pool_of(str(path)), tmp_path)
    assert found == rows


STRUCT = st.fixed_dictionaries({"a": st.one_of(st.none(), TEXT), "l": st.lists(st.booleans())})
ARROW = st.lists(
    st.fixed_dictionaries({
        "prompt": TEXT, "completion": TEXT, "n": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        "w": st.one_of(st.none(), st.floats()), "s": STRUCT, "b": st.one_of(st.none(), st.binary(max_size=5)),
    }), min_size=1, max_size=AT_ONCE,
)  # fmt: skip
SCHEMA = pa.schema({
    "prompt": pa.string(), "completion": pa.large_string(), "n": pa.int64(), "w": pa.float64(),
    "s": pa.struct({"a": pa.string(), "l": pa.list_(pa.bool_())}), "b": pa.binary(),
})  # fmt: skip


@given(rows=ARROW)
@FUZZ
def test_parquet_comes_back(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """With its types; NaN and Infinity are null in JSON."""
    table = pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table, tmp_path / "rows.parquet")
    found = written(pool_of(str(tmp_path / "rows.parquet")), tmp_path)
    assert [row["n"] for row in found] == [row["n"] for row in rows]
    assert [row["s"] for row in found] == [row["s"] for row in rows]
    assert [row["w"] for row in found] == [
        None if row["w"] is None or not math.isfinite(row["w"]) else row["w"] for row in rows
    ]
    back = pq.read_table(tmp_path / "selected.parquet").select(SCHEMA.names)
    assert str(back.to_pylist()) == str(table.to_pylist())
    assert back.schema.field("n").type == pa.int64()


WORD = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="\ufeff"), min_size=1, max_size=8
).map(lambda word: f"w{word.strip()}x")
SENTENCES = st.lists(
    st.lists(st.tuples(WORD, st.sampled_from(["O", "B-PER", "B-LOC"])), min_size=1, max_size=6),
    min_size=1,
    max_size=AT_ONCE,
)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@given(sentences=SENTENCES)
@FUZZ
def test_conll_comes_back(end: str, sentences: list[list[tuple[str, str]]], tmp_path: Path) -> None:
    """Words of any characters but tabs and line ends, parted from their tags by tabs."""
    text = (end * 2).join(end.join(f"{word}\t{tag}" for word, tag in sentence) for sentence in sentences)
    (tmp_path / "rows.conll").write_text(text, encoding="utf-8", newline="")
    found = written(pool_of(str(tmp_path / "rows.conll")), tmp_path)
    assert found == [
        {"tokens": [word for word, _ in sentence], "ner_tags": [tag for _, tag in sentence]} for sentence in sentences
    ]
