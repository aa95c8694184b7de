"""Rows as people have them, a small file a case: read right and written back right, or refused in one clear sentence."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tov.data.cells import BadRow
from tov.data.pool import Pool, index_rows
from tov.data.pool import open_pool as open_any
from tov.errors import DataError
from tov.inputs.read import Indexed, reading_notes
from tov.tasks import all_layouts
from tov.verbs.training_file import check_writable, read_selected, write_selected

FIELD = Path(__file__).parent / "field"


def open_pool(inputs: Any) -> Pool:
    return open_any(inputs if isinstance(inputs, list) else [inputs], layouts=all_layouts())


def texts(pool: Pool) -> list[list[str]]:
    """Each row's turns, as `role: content`."""
    rows = [row for row in pool.rows(0, len(pool)) if not isinstance(row, BadRow)]
    return [[f"{turn['role']}: {turn['content']}" for turn in row.messages] for row in rows]


def written(pool: Pool, folder: Path) -> list[dict[str, Any]]:
    """What `selected.jsonl` holds of all rows, but for our own columns."""
    size = len(pool)
    check_writable(pool)
    write_selected(folder, pool, np.arange(size), np.array(["score"] * size), np.ones(size))
    lines = (folder / "selected.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("tov_")} for line in lines]


def as_python(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON file by Python's own parser."""
    text = path.read_bytes().decode("utf-8-sig")
    return (
        json.loads(text)
        if text.lstrip()[:1] == "["
        else [json.loads(line) for line in text.split("\n") if line.strip()]
    )


READ = {
    "keys-that-the-first-object-lacks.json": [
        ["user: Name a colour.", "assistant: Red."],
        ["system: You translate.", "user: Translate.\n\ngood day", "assistant: bonjour"],
    ],
    "byte-order-mark-before-an-array.json": [["user: Two and two?", "assistant: Four."]],
    "byte-order-mark-before-lines.jsonl": [["user: Two and two?", "assistant: Four."], ["user: a", "assistant: b"]],
    "numbers.jsonl": [["user: a", "assistant: b"], ["user: c", "assistant: d"], ["user: e", "assistant: f"]],
    "huge-integers.jsonl": [["user: a", "assistant: b"], ["user: c", "assistant: d"]],
    "an-id-that-is-an-integer-here-and-a-float-there.jsonl": [["user: a", "assistant: b"], ["user: c", "assistant: d"]],
    "key-order-and-absent-keys.jsonl": [["user: a", "assistant: b"], ["user: c", "assistant: d"], ["user: e", "assistant: f"]],
    "arguments-of-several-tools.jsonl": [["user: ?", "assistant: ok"]] * 3,
    "a-line-separator-inside-a-text.jsonl": [["user: a\u2028b\u0085c", "assistant: d\0e"]],
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_json_is_read_and_written_back_as_it_is(name: str, tmp_path: Path) -> None:
    pool, rows = open_pool(str(FIELD / name)), as_python(FIELD / name)
    assert texts(pool) == READ[name]
    found = written(pool, tmp_path)
    assert found == rows
    assert [list(row) for row in found] == [list(row) for row in rows], "the order of keys, or which there are, changed"
    assert [repr(row) for row in found] == [repr(row) for row in rows], "a number changed its kind"
    assert len(read_selected(tmp_path)) == len(rows)


@pytest.mark.parametrize("name", READ)
def test_a_list_in_memory_is_the_same_as_its_file(name: str, tmp_path: Path) -> None:
    rows = as_python(FIELD / name)
    pool = open_pool([rows])
    assert texts(pool) == READ[name]
    assert [repr(row) for row in written(pool, tmp_path)] == [repr(row) for row in rows]
    assert index_rows(pool).fingerprint == index_rows(open_pool(str(FIELD / name))).fingerprint


PACK: dict[str, Any] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": partial(pa.compress, codec="zstd", asbytes=True),
}  # fmt: skip


@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_file_is_the_same_as_its_content(suffix: str, tmp_path: Path) -> None:
    pack = PACK[suffix]
    for name in ("keys-that-the-first-object-lacks.json", "numbers.jsonl"):
        path = tmp_path / (name + suffix)
        path.write_bytes(pack((FIELD / name).read_bytes()))
        pool = open_pool(str(path))
        assert texts(pool) == READ[name]
        assert written(pool, tmp_path) == as_python(FIELD / name)
        path.write_bytes(pack((FIELD / name).read_bytes())[:-9])
        with pytest.raises(DataError, match=rf"{path.name} cannot be read|{path.name}:\d+"):
            open_pool(str(path))


REFUSED = {
    "a-comma-too-many.csv": ["a-comma-too-many.csv, line 2", "3 cells", "the header has 2"],
    "a-cell-too-few.csv": ["a-cell-too-few.csv, line 3", "2 cells", "the header has 3"],
    "a-stray-quote.tsv": ["a-stray-quote.tsv:2", "quotation mark"],
    "an-open-quote.csv": ["an-open-quote.csv:2", "quotation mark"],
    "a-key-twice.jsonl": ["a-key-twice.jsonl:2", "the key 'prompt' stands twice"],
    "utf-16.jsonl": ["utf-16.jsonl is UTF-16", "iconv -f utf-16"],
    "utf-16-without-a-mark.csv": ["utf-16-without-a-mark.csv is UTF-16", "iconv"],
    "an-array-cut-off.json": ["an-array-cut-off.json:2", "broken JSON"],
    "an-array-and-more.json": ["an-array-and-more.json:2", "follows the end of the array"],
    "an-empty-array.json": ["an-empty-array.json", "no rows"],
    "deep.jsonl": ["deep.jsonl:1", "nested too deeply"],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_place(name: str) -> None:
    with pytest.raises(DataError) as caught:
        open_pool(str(FIELD / name))
    for words in REFUSED[name]:
        assert words in str(caught.value)


def test_a_cell_of_another_type_is_told_with_row_and_key() -> None:
    with pytest.raises(DataError, match=r"a-late-change-of-type\.jsonl, row 41: completion is an int"):
        index_rows(open_pool(str(FIELD / "a-late-change-of-type.jsonl")))


def test_cells_of_csv_are_the_text_that_they_are(tmp_path: Path) -> None:
    rows = written(open_pool(str(FIELD / "quotes-and-line-breaks.csv")), tmp_path)
    assert rows == [
        {"prompt": 'Say "hi", twice', "completion": "hi\nhi, hi", "zip": "007"},
        {"prompt": "NA", "completion": "null", "zip": ""},
    ]
    rows = written(open_pool(str(FIELD / "a-quote-inside-a-cell.tsv")), tmp_path)
    assert [row["prompt"] for row in rows] == ['5" disk', '6" disk']


def test_numbers_that_json_lacks_become_null_and_are_told(tmp_path: Path) -> None:
    pool = open_pool(str(FIELD / "not-a-number.jsonl"))
    notes = write_selected(tmp_path, pool, np.arange(2), np.array(["score"] * 2), np.ones(2))
    lines = (tmp_path / "selected.jsonl").read_text().splitlines()
    assert [json.loads(line)["w"] for line in lines] == [None, 1.5]
    assert "NaN" not in "".join(lines)
    assert notes == ["selected.jsonl: 1 rows hold NaN or Infinity, which JSON lacks: written as null"]


def test_padding_of_arrow_is_not_what_the_model_sees(tmp_path: Path) -> None:
    """Arrow gives every struct of a column the same keys; a null that a row of JSON has is its own."""
    rows = [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ok", "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": arguments}}]}]}
        for arguments in ({"city": "Oslo"}, {"a": 1}, {"b": [{"c": 2}]})
    ]  # fmt: skip
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    pool = open_pool(str(tmp_path / "rows.parquet"))
    calls = [row.messages[1]["tool_calls"][0]["function"]["arguments"] for row in pool.rows(0, 3)]  # type: ignore[union-attr]
    assert calls == [{"city": "Oslo"}, {"a": 1}, {"b": [{"c": 2}]}]
    assert index_rows(pool).fingerprint == index_rows(open_pool([rows])).fingerprint


def test_many_keys_do_not_multiply(tmp_path: Path) -> None:
    """A thousand rows with a key each would be a million cells as one struct."""
    rows = [{"prompt": f"q{n}", "completion": "a", "meta": {f"key{n}": n, "note": "x" * 50}} for n in range(1000)]
    assert written(open_pool([rows]), tmp_path) == rows
    assert (tmp_path / "selected.parquet").stat().st_size < 100_000
    assert json.loads(read_selected(tmp_path)["meta"][7]) == rows[7]["meta"]


@pytest.mark.parametrize("depth", [90, 2_000])
def test_nesting_is_bounded(depth: int, tmp_path: Path) -> None:
    """Deep values come back; those on which a library would fail are refused with their line."""
    deep: Any = "x"
    for level in range(depth - 2):
        deep = [deep] if level % 2 else {"a": deep}
    text = '{"prompt": "a", "completion": "b", "deep": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}\n"
    (tmp_path / "deep.jsonl").write_text(text)
    for source in (str(tmp_path / "deep.jsonl"), [{"prompt": "a", "completion": "b", "deep": deep}]):
        if depth > 100:
            with pytest.raises(DataError, match=r"(deep\.jsonl:1|row 1): the value is nested too deeply"):
                open_pool([source])
        else:
            assert written(open_pool([source]), tmp_path)[0]["prompt"] == "a"


def test_a_folder_of_splits_is_read_as_its_training_split(tmp_path: Path) -> None:
    for name, rows in {
        "train-00000-of-00002": 3,
        "train-00001-of-00002": 2,
        "test-00000-of-00001": 4,
        "validation": 1,
    }.items():
        lines = [json.dumps({"prompt": f"{name} {n}", "completion": "a"}) for n in range(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    pool = open_pool(str(tmp_path))
    assert len(pool) == 5
    assert all(turns[0].startswith("user: train") for turns in texts(pool))
    [note] = reading_notes(pool=Indexed(pool, index_rows(pool)))
    assert "2 files are read" in note
    assert "1 test" in note
    assert "1 validation" in note
    assert len(open_pool(f"{tmp_path}:test")) == 4
    (tmp_path / "train-00000-of-00002.jsonl").unlink()
    (tmp_path / "train-00001-of-00002.jsonl").unlink()
    with pytest.raises(DataError, match="none of train"):
        open_pool(str(tmp_path))


def test_brackets_in_a_name_are_no_pattern(tmp_path: Path) -> None:
    for name, answer in (("pool[1]", "right"), ("pool1", "wrong")):
        rows = [{"prompt": "a", "completion": answer}]
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(rows[0]) + "\n")
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{name}.parquet")
    for suffix in (".jsonl", ".parquet"):
        assert texts(open_pool(str(tmp_path / f"pool[1]{suffix}")))[0][1] == "assistant: right"


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_of_every_arrow_type_are_text(kind: pa.DataType, tmp_path: Path) -> None:
    """Polars writes views; pandas' categories are dictionaries."""
    table = pa.table({name: pa.array(["one", "two"]).cast(kind) for name in ("prompt", "completion")})
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    files = ["rows.arrow"]
    if kind != pa.string_view():
        pq.write_table(table, tmp_path / "rows.parquet")
        files.append("rows.parquet")
    for file in files:
        pool = open_pool(str(tmp_path / file))
        assert texts(pool) == [["user: one", "assistant: one"], ["user: two", "assistant: two"]]
        assert written(pool, tmp_path)[1]["prompt"] == "two"


def test_images_are_written_by_path_or_as_base64(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    pil.new("RGB", (2, 2), "red").save(tmp_path / "red.png")
    rows = {"prompt": ["a"], "completion": ["b"], "image": [str(tmp_path / "red.png")]}
    features = datasets.Features(
        {**{name: datasets.Value("string") for name in ("prompt", "completion")}, "image": datasets.Image()}
    )
    found = written(open_pool([datasets.Dataset.from_dict(rows, features=features)]), tmp_path)
    assert found[0]["image"] == {"bytes": None, "path": str(tmp_path / "red.png")}
    embedded = [{"prompt": "a", "completion": "b", "image": {"bytes": b"\x89PNG\xff", "path": None}}]
    assert written(open_pool([embedded]), tmp_path)[0]["image"] == {"bytes": "iVBOR/8=", "path": None}


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{n}", "completion": "a"}) + "\n" for n in range(100)))
    pool = open_pool(str(path))
    path.write_text('{"prompt": "q", "completion": "a"}\n')
    with pytest.raises(DataError, match="has changed while it was read"):
        list(pool.rows(0, len(pool)))


def test_jq_reads_what_is_written(tmp_path: Path) -> None:
    try:
        subprocess.run(["jq", "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("jq is not installed")
    written(open_pool(str(FIELD / "numbers.jsonl")), tmp_path)
    done = subprocess.run(
        ["jq", "-c", ".prompt", str(tmp_path / "selected.jsonl")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ['"a"', '"c"', '"e"']


def test_columns_of_types_that_datasets_lacks_stand_in_no_ones_way(tmp_path: Path) -> None:
    """DuckDB's maps and UUIDs, list views."""
    columns = {
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef", None], pa.binary(16))),
        "view": pa.array([["a"], []], pa.list_view(pa.string())),
    }
    table = pa.table({"prompt": ["a", "b"], "completion": ["c", "d"], **columns})
    expected = [
        {"prompt": "a", "completion": "c", "map": [{"key": "k", "value": 1}],
         "uuid": "30313233-3435-3637-3839-616263646566", "view": ["a"]},
        {"prompt": "b", "completion": "d", "map": None, "uuid": None, "view": []},
    ]  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as file:
        file.write_table(table)
    with pa.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as file:
        file.write_table(table)
    for name in ("a.parquet", "file.arrow", "stream.arrow"):
        assert written(open_pool(str(tmp_path / name)), tmp_path) == expected
    assert len(read_selected(tmp_path)) == 2


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="this version of datasets has no columns of several types")
@pytest.mark.parametrize("others", [{"when": datasets.Value("date32")}, {}], ids=["beside a date", "alone"])
def test_json_columns_are_the_values_in_them(others: dict[str, Any], tmp_path: Path) -> None:
    """`datasets.Json`, in which a null is one that somebody wrote."""
    call = {"function": {"name": "f", "arguments": {"x": None}}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": [call]}]
    feature, empty = datasets.Features({"messages": datasets.List(datasets.Json()), **others}), dict.fromkeys(others)
    values = {"messages": [turns], **{name: [None] for name in others}}
    pool = open_pool(datasets.Dataset.from_dict(values, features=feature))
    (row,) = pool.rows(0, 1)
    assert row.messages[1]["tool_calls"][0]["function"] == call["function"]  # type: ignore[union-attr]
    assert written(pool, tmp_path) == [{"messages": turns, **empty}]
    assert not others or pq.read_schema(tmp_path / "selected.parquet").field("when").type == pa.date32()


def test_values_of_memory_that_json_lacks_are_written(tmp_path: Path) -> None:
    values = {
        "uuid": uuid.UUID(int=1), "path": Path("a/b"), "time": np.datetime64("2020-01-01T00:00:00.000000001"),
        "nat": pd.NaT, "na": pd.NA, "flag": np.bool_(True),
    }  # fmt: skip
    (row,) = written(open_pool([[{"text": "a", **values}]]), tmp_path)
    assert row == {
        "text": "a", "uuid": str(values["uuid"]), "path": "a/b", "time": "2020-01-01T00:00:00.000000001",
        "nat": None, "na": None, "flag": True,
    }  # fmt: skip
    assert pq.read_schema(tmp_path / "selected.parquet").field("flag").type == pa.bool_()
    with pytest.raises(DataError, match="keys must be str"):
        check_writable(open_pool([[{"text": "a", "x": {(1, 2): 3}}]]))


@pytest.mark.parametrize(
    ("value", "column"),
    [
        (np.array([1, 2]), [1, 2]), (np.array([0.5, np.nan]), [0.5, None]), (np.array(["a", "b"]), ["a", "b"]),
        (np.array([True, False]), [True, False]), (np.array([]), []), (np.array([[1, 2], [3, 4]]), "[[1, 2], [3, 4]]"),
        ({"e": [np.array([1, 2])]}, {"e": [[1, 2]]}), (np.array([{"a": 1}, {"b": 2}]), None), ([1, np.array([2, 3])], None),
    ],
)  # fmt: skip
def test_arrays_of_numpy_are_lists(value: Any, column: Any, tmp_path: Path) -> None:
    """In JSON always; in Parquet as lists where one type holds them, else as JSON."""
    found = written(open_pool([[{"text": "x", "e": value}, {"text": "y", "e": value}]]), tmp_path)
    plain = json.loads(json.dumps(value, default=np.ndarray.tolist).replace("NaN", "null"))
    assert [row["e"] for row in found] == [plain] * 2
    read = pq.read_table(tmp_path / "selected.parquet")["e"].to_pylist()[0]
    if column is not None:
        assert json.dumps(read).replace("NaN", "null") == json.dumps(column)


def test_bytes_and_text_are_no_one_type(tmp_path: Path) -> None:
    sources: list[Any] = []
    for name, value in {"bytes": b"\xff", "text": "é"}.items():
        sources.append(str(tmp_path / f"{name}.parquet"))
        pq.write_table(pa.table({"text": ["a"], "x": [value]}), sources[-1])
    written(open_pool(sources), tmp_path)
    assert read_selected(tmp_path)["x"][:] == ['"/w=="', '"é"']


def test_files_beside_rows_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.csv").write_text("prompt,completion\na,b\n")
    (tmp_path / "rows" / "b.tsv").write_text("prompt\tcompletion\nc\td, e\n")
    for name in ("dataset_infos.json", "dataset_info.json", "README.txt"):
        (tmp_path / "rows" / name).write_text("{}")
    assert texts(open_pool(str(tmp_path / "rows"))) == [["user: a", "assistant: b"], ["user: c", "assistant: d, e"]]


def test_an_array_under_the_name_of_lines_is_an_array(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps([{"text": "a"}, {"text": "b"}], indent=1))
    assert texts(open_pool(str(tmp_path / "a.jsonl"))) == [["assistant: a"], ["assistant: b"]]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "prompt;completion\na;b\n", "holds a semicolon"),
        ("a.csv", "prompt\tcompletion\na\tb\n", "holds a tab"),
        ("a.tsv", "prompt,completion\na,b\n", "holds a comma"),
        ("a.jsonl", '{\n "text": "a"\n}\n', r"jq -c \. a\.jsonl"),
        ("a.jsonl", '{"instruction": "a", "response": "b"}\n', "--columns output=YOURS"),
    ],
)
def test_the_advice_is_for_the_fault(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        open_pool(str(tmp_path / name))


def test_a_table_in_memory_is_told_how_to_become_an_input() -> None:
    for table in (pd.DataFrame({"text": ["a"]}), pa.table({"text": ["a"]}), {"text": ["a"]}, None):
        with pytest.raises(DataError, match="Make it a data set"):
            open_any([table], layouts=all_layouts())  # type: ignore[list-item]
