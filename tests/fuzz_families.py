"""Families of files that tov reads: how one is made by chance, how it is spoiled, and how it is read.

A case is a number. An even one is a file as it should be, which must be read to the values that were written; an odd one is
spoiled, and must be read to something or be refused.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fuzzing import another_value, one_byte, some_bytes
from tov.comparison.grid import read_grid
from tov.comparison.records import read_results, read_trials
from tov.config.yaml_files import read_label_map, read_yaml
from tov.data.labels import LabelMap
from tov.data.pool import index_rows, open_pool
from tov.runs.manifest import FILE as MANIFEST
from tov.runs.manifest import Manifest, read_manifest
from tov.tasks import all_layouts

Files = dict[str, bytes]
"""Name in a folder -> content; a family that reads one file has one."""


@dataclass(frozen=True)
class Family:
    """Files of one kind.

    Attributes:
        make: values and files by chance.
        spoil: the values and files -> files.
        read: a folder -> what was read.
        many: cases in a usual run of the tests.
    """

    make: Callable[[random.Random], tuple[Any, Files]]
    spoil: Callable[[Any, Files, random.Random], Files]
    read: Callable[[Path], Any]
    many: int = 300


def case_of(family: Family, folder: Path) -> Callable[[int], str]:
    """What reads a case by its number; for `fuzzing.outcomes`."""

    def read(number: int) -> str:
        draw = random.Random(number)
        values, files = family.make(draw)
        if number % 2:
            files = family.spoil(values, files, draw)
        found = read_files(family, files, folder)
        if number % 2 == 0:
            assert repr(found) == repr(values), f"{found!r} was read, not {values!r}"
        return str(len(repr(found)))

    return read


def read_files(family: Family, files: Files, folder: Path) -> Any:
    """Writes the files into a fresh folder of this process and reads them."""
    here = folder / f"case-{os.getpid()}"
    shutil.rmtree(here, ignore_errors=True)
    (here / "rows").mkdir(parents=True)
    datasets.config.HF_DATASETS_CACHE = here / "cache"
    for name, data in files.items():
        (here / "rows" / name).write_bytes(data)
    return family.read(here / "rows")


# Values


def _text(draw: random.Random) -> str:
    return "".join(
        draw.choice("ab\u00e9\u4e2d\U0001f600 \"'\\,\t:#{}[]-%&*!|>?\u00a0") for _ in range(draw.randint(0, 8))
    )


def _value(draw: random.Random, levels: int = 3) -> Any:
    match draw.randrange(9 if levels else 7):
        case 0:
            return None
        case 1:
            return draw.random() < 0.5
        case 2:
            return draw.choice([draw.randint(-5, 5), draw.randint(-(2**70), 2**70), 2**53 + 1])
        case 3:
            return draw.choice([draw.random(), -0.0, 1e-11, 1e300, 0.1])
        case 7:
            return [_value(draw, levels - 1) for _ in range(draw.randint(0, 3))]
        case 8:
            return {_text(draw): _value(draw, levels - 1) for _ in range(draw.randint(0, 3))}
    return _text(draw)


def _rows(draw: random.Random) -> list[dict[str, Any]]:
    return [
        {"prompt": _text(draw), "completion": _text(draw), **{f"k{draw.randrange(4)}": _value(draw) for _ in range(2)}}
        for _ in range(draw.randint(1, 6))
    ]


def _pool(folder: Path) -> list[dict[str, Any]]:
    """The rows as they stand; indexed too, which reads each as the model sees it."""
    files = sorted(folder.iterdir())
    pool = open_pool([str(folder if len(files) > 1 else files[0])], layouts=all_layouts(), label_map=LabelMap())
    index_rows(pool, on_bad_row="skip")
    return list(pool.originals(range(len(pool))))


def _bytes_or_values(write: Callable[[Any], bytes]) -> Callable[[Any, Files, random.Random], Files]:
    """Spoils the values before they are written, or the bytes after."""

    def spoil(values: Any, files: Files, draw: random.Random) -> Files:
        ((name, data),) = files.items()
        if draw.random() < 0.5:
            data = write(another_value(values, draw))
        return {name: some_bytes(data, draw) if draw.random() < 0.7 else data}

    return spoil


def _json_family(name: str, write: Callable[[Any], bytes]) -> Family:
    def make(draw: random.Random) -> tuple[Any, Files]:
        rows = _rows(draw)
        return rows, {name: write(rows)}

    return Family(make, _bytes_or_values(write), _pool)


def _as_lines(rows: Any) -> bytes:
    rows = rows if isinstance(rows, list) else [rows]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _as_array(rows: Any) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")


# Tables of text


def _make_csv(draw: random.Random) -> tuple[Any, Files]:
    names = ["prompt", "completion", "c", "d"][: draw.randint(2, 4)]
    rows = [{name: _text(draw) for name in names} for _ in range(draw.randint(1, 6))]
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([names, *(row.values() for row in rows)])
    return rows, {"rows.csv": text.getvalue().encode()}


def _make_conll(draw: random.Random) -> tuple[Any, Files]:
    tags = ["O", "B-PER", "B-LOC", "I-LOC"]
    rows = []
    for _ in range(draw.randint(1, 5)):
        words = [
            "w" + "".join(draw.choice("a\u00e9\u4e2d#-.1\u00a0") for _ in range(3)) + "x"
            for _ in range(draw.randint(1, 5))
        ]
        rows.append({"tokens": words, "ner_tags": [draw.choice(tags) for _ in words]})
    text = "\n".join(
        "".join(f"{w}\t{t}\n" for w, t in zip(row["tokens"], row["ner_tags"], strict=True)) for row in rows
    )
    return rows, {"rows.conll": text.encode()}


def _spoil_bytes(values: Any, files: Files, draw: random.Random) -> Files:
    name = draw.choice(sorted(files))
    return {**files, name: some_bytes(files[name], draw)}


# Arrow


_SCHEMA = pa.schema({
    "prompt": pa.string(), "completion": pa.large_string(), "n": pa.int64(), "w": pa.float64(), "t": pa.list_(pa.string()),
    "s": pa.struct({"a": pa.string(), "l": pa.list_(pa.bool_())}), "b": pa.binary(),
})  # fmt: skip


def _table(draw: random.Random) -> tuple[list[dict[str, Any]], pa.Table]:
    def maybe(value: Any) -> Any:
        return None if draw.random() < 0.2 else value

    rows = [
        {
            "prompt": _text(draw), "completion": _text(draw), "n": maybe(draw.randint(-(2**63), 2**63 - 1)),
            "w": maybe(draw.random()), "t": [_text(draw) for _ in range(draw.randint(0, 3))],
            "s": {"a": maybe(_text(draw)), "l": [draw.random() < 0.5 for _ in range(draw.randint(0, 3))]},
            "b": maybe(draw.randbytes(draw.randint(0, 4))),
        }
        for _ in range(draw.randint(1, 12))
    ]  # fmt: skip
    return rows, pa.Table.from_pylist(rows, _SCHEMA)


def _make_parquet(draw: random.Random) -> tuple[Any, Files]:
    rows, table = _table(draw)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=5, compression=draw.choice(["none", "snappy", "zstd", "gzip"]),
        use_dictionary=draw.random() < 0.5, data_page_version=draw.choice(["1.0", "2.0"]),
    )  # fmt: skip
    return rows, {"rows.parquet": sink.getvalue().to_pybytes()}


def _make_arrow(draw: random.Random) -> tuple[Any, Files]:
    rows, table = _table(draw)
    for name in ("prompt", "t") if draw.random() < 0.3 else ():
        table = table.set_column(table.schema.get_field_index(name), name, _views(table[name], name))
    if draw.random() < 0.3:
        table = table.set_column(0, "prompt", table["prompt"].dictionary_encode())
    sink, new = pa.BufferOutputStream(), draw.choice([pa.ipc.new_file, pa.ipc.new_stream])
    options = pa.ipc.IpcWriteOptions(compression=draw.choice([None, None, "zstd", "lz4"]))
    with new(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=5)
    return rows, {"rows.arrow": sink.getvalue().to_pybytes()}


def _views(column: pa.ChunkedArray, name: str) -> pa.Array:
    kind = pa.string_view() if name == "prompt" else pa.list_view(pa.string())
    return pa.array(column.to_pylist(), kind)


def _make_disk(draw: random.Random) -> tuple[Any, Files]:
    rows, table = _table(draw)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    info = {"features": datasets.Features.from_arrow_schema(table.schema).to_dict(), "description": "", "citation": ""}
    state = {
        "_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0123456789abcdef", "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    return rows, {
        "data-00000-of-00001.arrow": sink.getvalue().to_pybytes(),
        "dataset_info.json": json.dumps(info).encode(),
        "state.json": json.dumps(state).encode(),
    }


def _spoil_binary(values: Any, files: Files, draw: random.Random) -> Files:
    name = draw.choice(sorted(files))
    if name.endswith(".json") and draw.random() < 0.5:
        return {**files, name: json.dumps(another_value(json.loads(files[name]), draw)).encode()}
    data = files[name]
    if draw.random() < 0.6:
        for _ in range(draw.choice([1, 1, 2, 5])):
            data = one_byte(data, draw)
    elif draw.random() < 0.5:  # a length or an offset that is far off
        at = draw.randrange(max(1, len(data) - 8)) & ~3
        number = draw.choice([-1, 0, 1, 255, 2**31 - 1, -(2**31), len(data), 10**9])
        data = data[:at] + number.to_bytes(4, "little", signed=True) + data[at + 4 :]
    else:
        data = some_bytes(data, draw)
    return {**files, name: data}


# Settings and records


def _make_yaml(draw: random.Random) -> tuple[Any, Files]:
    values = {f"k{place}": _setting(draw, 3) for place in range(draw.randint(1, 5))}
    return values, {"settings.yaml": _as_yaml(values)}


def _setting(draw: random.Random, levels: int) -> Any:
    value = _value(draw, 0)
    if levels and draw.random() < 0.3:
        return [_setting(draw, levels - 1) for _ in range(draw.randint(0, 3))]
    if levels and draw.random() < 0.4:
        return {f"a{place}": _setting(draw, levels - 1) for place in range(draw.randint(0, 3))}
    return value % 2**63 if isinstance(value, int) and not isinstance(value, bool) else value


def _as_yaml(values: Any) -> bytes:
    try:
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    except RecursionError:
        return json.dumps(values).encode()


def _read_yaml(folder: Path) -> Any:
    file = folder / "settings.yaml"
    value = read_yaml(file)
    json.dumps(value, allow_nan=True)  # settings are part of a run's identity
    read_label_map(file)
    if "experiments" in value or "extends" in value:
        read_grid(file)
    return value


_TRIAL = {
    "variant": "random", "method": "random", "n": 8, "seed": 0, "status": "done", "error": None, "notes": ["a"],
    "train": {"diverged": False}, "scoring": None, "chosen": {"pool": 8}, "by_score": 0, "loss": 1.5, "metric": None,
    "test_rows": 9, "test_rows_without_tokens": 0, "seconds": 0.25,
}  # fmt: skip


def _make_trials(draw: random.Random) -> tuple[Any, Files]:
    rows = [
        {**_TRIAL, "n": draw.randint(0, 99), "seed": seed, "loss": draw.random()} for seed in range(draw.randint(1, 4))
    ]
    return rows, {"trials.jsonl": _as_lines(rows)}


def _make_results(draw: random.Random) -> tuple[Any, Files]:
    spread = {"mean": draw.random(), "sd": None, "low": None, "high": None}
    shown = {"variant": "tov", "role": "variant", "loss": spread, "gain": {**spread, "wins": 1}, "equivalent": None}
    values = {"metric": None, "sizes": [{"n": draw.randint(1, 99), "variants": [shown]}], "notes": ["a"]}
    return values, {"results.json": json.dumps(values).encode()}


def _make_manifest(draw: random.Random) -> tuple[Any, Files]:
    made = Manifest(
        command=draw.choice(["select", "score"]), started="now", identity={"n": draw.randint(0, 9), "a": _text(draw)},
        seed=draw.randint(0, 9), versions={"tov": "1"}, timings={"fit": 0.5}, spent={"scan": (1, 2)}, notes=[_text(draw)],
    ).model_dump(mode="json", exclude_none=True)  # fmt: skip
    return made, {MANIFEST: json.dumps(made).encode()}


def _read_manifest(folder: Path) -> Any:
    return read_manifest(folder).model_dump(mode="json", exclude_none=True)


def _as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


FAMILIES = {
    "json": _json_family("rows.json", _as_array),
    "jsonl": _json_family("rows.jsonl", _as_lines),
    "csv": Family(_make_csv, _spoil_bytes, _pool),
    "conll": Family(_make_conll, _spoil_bytes, _pool),
    "parquet": Family(_make_parquet, _spoil_binary, _pool, 60),
    "arrow": Family(_make_arrow, _spoil_binary, _pool, 60),
    "save_to_disk": Family(_make_disk, _spoil_binary, _pool, 150),
    "yaml": Family(_make_yaml, _bytes_or_values(_as_yaml), _read_yaml),
    "manifest": Family(_make_manifest, _bytes_or_values(_as_json), _read_manifest),
    "trials": Family(_make_trials, _bytes_or_values(_as_lines), lambda folder: read_trials(folder / "trials.jsonl")),
    "results": Family(_make_results, _bytes_or_values(_as_json), lambda folder: read_results(folder / "results.json")),
}
