"""Input that would take all time or memory: bounded, in words; and what may be large is read in good time."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from test_field import written
from tiny import tiny_tokenizer, write_jsonl
from tov.comparison.grid import read_grid
from tov.comparison.records import read_results, read_trials
from tov.config.yaml_files import read_label_map, read_yaml
from tov.data import bounds, text_files
from tov.data.pool import Pool, index_rows, open_pool
from tov.errors import ConfigError, DataError, ModelError, RunError
from tov.tasks import all_layouts
from tov.text import chat

LONG = 30.0
"""Seconds on a slow machine; what is bounded here took minutes, or did not end."""
PACK: dict[str, Any] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": partial(pa.compress, codec="zstd", asbytes=True),
}  # fmt: skip


def opened(path: Path) -> Pool:
    return open_pool([str(path)], layouts=all_layouts())


# What a file unpacks to


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "conll", "parquet", "arrow"])
def test_a_file_that_unpacks_to_more_than_any_data_is_refused(
    kind: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "ALWAYS", 1 << 20)
    path = tmp_path / f"rows.{kind}{suffix}"
    path.write_bytes(PACK[suffix](b"prompt\tcompletion\n" + b" " * (6 << 20)))
    with pytest.raises(DataError, match="unpacks to more than") as caught:
        opened(path)
    assert caught.value.allowed, "what is allowed must be said"
    assert caught.value.fix, "what to do must be said"


@pytest.mark.parametrize("suffix", PACK)
def test_packed_files_of_several_parts_are_read_whole(suffix: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{place}", "completion": "a" * 1000} for place in range(3000)]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(PACK[suffix](b"".join(lines[:1000])) + PACK[suffix](b"".join(lines[1000:])))
    pool = opened(path)
    assert list(pool.originals(range(len(pool)))) == rows


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_packed_tables_are_read_and_checked(kind: str, suffix: str, tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "completion": ["c", "d"],
            "m": pa.array([[("x", 1)], []], pa.map_(pa.string(), pa.int8())),
        }
    )
    plain = tmp_path / f"plain.{kind}"
    if kind == "parquet":
        pq.write_table(table, plain)
    else:
        with pa.OSFile(str(plain), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    path = tmp_path / f"rows.{kind}{suffix}"
    path.write_bytes(PACK[suffix](plain.read_bytes()))
    pool = opened(path)
    assert [row["prompt"] for row in pool.originals([0, 1])] == ["a", "b"]
    path.write_bytes(PACK[suffix](plain.read_bytes()[:200]))
    with pytest.raises(DataError, match=rf"{path.name} cannot be read"):
        opened(path)


def test_a_dictionary_that_stands_for_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "ALWAYS", 1 << 20)
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 1000]))
    pq.write_table(pa.table({"prompt": words, "completion": ["a"] * 20_000}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="unpacks to more than"):
        opened(tmp_path / "rows.parquet")
    pq.write_table(pa.table({"prompt": words[:500], "completion": ["a"] * 500}), tmp_path / "rows.parquet")
    assert len(opened(tmp_path / "rows.parquet")) == 500, "few values many times are usual"


def test_a_line_of_no_row_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LONGEST_LINE", 1000)
    monkeypatch.setattr(text_files, "LONGEST_LINE", 1000)
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a" * 2000, "completion": "b"}]
    )
    with pytest.raises(DataError, match=r"rows.jsonl:2: the line has more than 1,000 bytes"):
        opened(path)


# What is large


def spans(path: Path) -> Path:
    count = 20_000
    entities = [{"start": 3 * place, "end": 3 * place + 2, "label": "X"} for place in range(count)]
    return write_jsonl(path / "rows.jsonl", [{"text": "ab " * count, "entities": entities}])


def columns_of_their_own(path: Path) -> Path:
    return write_jsonl(path / "rows.jsonl", [{"prompt": f"q{n}", "completion": "b", f"k{n}": n} for n in range(2500)])


def keys_of_their_own(path: Path) -> Path:
    return write_jsonl(
        path / "rows.jsonl", [{"prompt": f"q{n}", "completion": "b", "m": {f"k{n}": n}} for n in range(5000)]
    )


def keys(path: Path) -> Path:
    return write_jsonl(
        path / "rows.jsonl", [{"prompt": "a", "completion": "b", "m": {f"k{n}": n for n in range(200_000)}}]
    )


def turns(path: Path) -> Path:
    talk = [{"role": "assistant" if place % 2 else "user", "content": f"t{place}"} for place in range(20_000)]
    return write_jsonl(path / "rows.jsonl", [{"messages": talk}])


def wide(path: Path) -> Path:
    names = ["prompt", "completion", *(f"c{place}" for place in range(3000))]
    (path / "rows.csv").write_text("".join(",".join(row) + "\n" for row in (names, ["a"] * 3002, ["b"] * 3002)))
    return path / "rows.csv"


def sentence(path: Path) -> Path:
    (path / "rows.conll").write_text("".join(f"w{place} O\n" for place in range(200_000)))
    return path / "rows.conll"


@pytest.mark.slow
@pytest.mark.parametrize("make", [spans, columns_of_their_own, keys_of_their_own, keys, turns, wide, sentence])
def test_large_rows_take_time_by_their_size(make: Any, tmp_path: Path) -> None:
    path, start = make(tmp_path), time.monotonic()
    pool = opened(path)
    index_rows(pool)
    found = written(pool, tmp_path)
    assert time.monotonic() - start < LONG
    if path.suffix == ".jsonl":
        assert found == [json.loads(line) for line in path.read_text().splitlines()]


ENDLESS = (
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
)


@pytest.mark.parametrize("text", ENDLESS)
@pytest.mark.parametrize("in_main", [True, False])
def test_a_template_that_never_ends_is_told(text: str, in_main: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MOST_SECONDS", 0.5)
    tokenizer, found = tiny_tokenizer(chat_template=text), list[Exception]()

    def render() -> None:
        try:
            chat.apply(tokenizer, [{"role": "user", "content": "a"}])
        except ModelError as error:
            found.append(error)

    if in_main:
        render()
    else:
        thread = threading.Thread(target=render)
        thread.start()
        thread.join(LONG)
    assert [str(error).split(",")[0] for error in found] == ["The model's chat template has not ended after 0.5 s"]
    time.sleep(0.6)  # nothing comes late
    assert chat.apply(tiny_tokenizer(), [{"role": "user", "content": "a"}]).startswith("<|im_start|>user")


# Settings and records


@pytest.mark.parametrize(("text", "said"), [
    ("a: 1\nn: 1\nn: 2\n", r"s.yaml:3: the key 'n' stands twice"), ("a-b: 1\na_b: 2\n", "the key 'a_b' stands twice"),
    ("[" * 3000, r"s.yaml:1: the value is nested too deeply"), ("a: &a [*a]\n", r"s.yaml:1: \*a stands inside what it names"),
    ("".join(f"k{n}: &a{n} [{f'*a{n - 1},' * 9 if n else 'x'}]\n" for n in range(9)), "more than 100,000 values"),
    ("n: " + "9" * 5000, "no setting(.|\n)*line 1"), ("n: .nan\n", "not a number(.|\n)*line 1"),
    ("n: !!binary eA==\n", "line 1"),
    ("n: !!python/object/apply:os.getcwd []\n", "line 1"), ("n: 1\n#" + "x" * (1 << 20), "more than 1,048,576 bytes"),
])  # fmt: skip
def test_settings_are_refused_with_their_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_yaml(tmp_path / "s.yaml")


def test_settings_are_read_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(
        "\ufeffday: 2024-01-31\nat: 2024-01-31 10:00:00\nbase: &b {x: 1}\nmore: {<<: *b, y: 2}\n".encode()
    )
    assert read_yaml(tmp_path / "s.yaml") == {
        "day": "2024-01-31", "at": "2024-01-31 10:00:00", "base": {"x": 1}, "more": {"x": 1, "y": 2},
    }  # fmt: skip
    (tmp_path / "s.yaml").write_text(
        "[2:16, 1:30.5, -190:20:30, 010, '2', 0, -7, +7, 1_000, 0x1F, 0b11, 1.5, -.5e+3, 3., .5, true]".join(
            ["n: ", "\n"]
        )
    )
    assert read_yaml(tmp_path / "s.yaml")["n"] == [
        "2:16", "1:30.5", "-190:20:30", "010", "2", 0, -7, 7, 1000, 31, 3, 1.5, "-.5e+3", 3.0, 0.5, True,
    ], "minutes and seconds are no numbers, nor is a number octal by a zero"  # fmt: skip
    (tmp_path / "s.yaml").write_bytes("a: 1\n".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"UTF-16(.|\n)*iconv"):
        read_yaml(tmp_path / "s.yaml")
    (tmp_path / "s.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(ConfigError, match=r"s.yaml:2: byte 0xe9"):
        read_label_map(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/tmp/x",
        "a/b",
        "a\\b",
        "",
        " ",
        ".",
        "..",
        ".hidden",
        "~root",
        "-x",
        "a\0b",
        "a\nb",
        "C:x",
        "x" * 101,
    ],
)
def test_an_experiment_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(json.dumps({"experiments": {"A": {"n": 1}, name: {"n": 1}}}))
    with pytest.raises(ConfigError, match=r"grid.yaml: the name .* of an experiment"):
        read_grid(tmp_path / "grid.yaml")


@pytest.mark.parametrize(
    "experiments", [{"Ab": {}, "aB": {}}, {"\ufb01": {}, "fi": {}}, 5, [1], {"A": 3}, {"A": None}, {}]
)
def test_experiments_of_another_shape_are_refused(experiments: Any, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(json.dumps({"experiments": experiments}))
    with pytest.raises(ConfigError, match=r"grid.yaml"):
        read_grid(tmp_path / "grid.yaml")


def test_files_that_extend_each_other_are_told(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("extends: sub/../b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: sub/../a.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml extends b\.yaml extends a\.yaml"):
        read_grid(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "line", ["null", "[]", "{}", "5", "[" * 9000, "9" * 5000, '{"variant": "a", "n": 1, "seed": 0, "status": "x"}']
)
def test_a_record_of_another_shape_is_told_with_its_line(line: str, tmp_path: Path) -> None:
    good = {"variant": "a", "n": 1, "seed": 0, "status": "done", "notes": [], "test_rows_without_tokens": 0}
    (tmp_path / "trials.jsonl").write_text(json.dumps(good) + "\n" + line + "\n")
    with pytest.raises(RunError, match=r"trials.jsonl:2 is broken"):
        read_trials(tmp_path / "trials.jsonl")
    (tmp_path / "results.json").write_text(line)
    with pytest.raises(RunError, match=r"results.json is broken"):
        read_results(tmp_path / "results.json")
