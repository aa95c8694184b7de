"""The index of a pool that an unfinished run keeps: taken over where files are the same, else made again."""

from __future__ import annotations

import builtins
import gzip
import json
import os
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tov
import tov.data.json_rows
import tov.files
import tov.inputs.read
from chaos import kill_for_real
from desk import Desk, flip
from faults import Moment, killed
from tiny import make_rows, write_jsonl
from tov.config.records import SelectConfig
from tov.config.settings import build
from tov.data.pool import Index, Pool
from tov.errors import DataError, NumericError, RunError
from tov.inputs import kept
from tov.inputs.read import open_rows, read_pool
from tov.runs.made import INDEX, INDEXED, made_nothing
from tov.runs.manifest import InputsRecord

RACY = tov.files.RACY
SECOND = "rows-000000000008"
"""The second shard of a selection of the desk's."""


@pytest.fixture(autouse=True)
def rested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are as if they had been written long ago."""
    monkeypatch.setattr(tov.files, "RACY", 0)


@pytest.fixture
def fresh(tmp_path: Path) -> Desk:
    return Desk.made(tmp_path / "desk")


def begun(desk: Desk, **changed: Any) -> Path:
    """The folder of a selection that died at its second shard."""
    with killed(naming=SECOND):
        desk.select(**changed)
    return desk.base / "select"


class Reading:
    """How often a pool is walked: lines looked at on opening, rows indexed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.walked, self.indexed = list[str](), list[int]()
        first_read, index_rows = tov.data.json_rows._first_read, tov.inputs.read.index_rows

        def walk(line: bytes, path: Path, number: int) -> Any:
            self.walked.append(path.name)
            return first_read(line, path, number)

        def index(pool: Pool, **how: Any) -> Index:
            if how.get("role") != "target":
                self.indexed.append(len(pool))
            return index_rows(pool, **how)

        monkeypatch.setattr(tov.data.json_rows, "_first_read", walk)
        monkeypatch.setattr(tov.inputs.read, "index_rows", index)

    def taken(self) -> tuple[int, int]:
        """Lines of the pool that were walked, and pools that were indexed, since it was asked last."""
        counts = self.walked.count("pool.jsonl"), len(self.indexed)
        self.walked.clear()
        self.indexed.clear()
        return counts


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    return Reading(monkeypatch)


def result(folder: Path) -> dict[str, bytes]:
    """The scores and the choice of a run."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in [*sorted((folder / "scores").iterdir()), folder / "selected.jsonl", folder / "selected.parquet"]
    }


# Taken over


@pytest.mark.slow
def test_a_run_that_goes_on_reads_no_row_of_its_pool_for_the_index(fresh: Desk, reading: Reading) -> None:
    whole = result(fresh.select("whole").folder)
    assert reading.taken() == (24, 1)
    folder = begun(fresh)
    assert reading.taken() == (24, 1)
    assert (folder / INDEX).exists()
    again = fresh.select()
    assert reading.taken() == (0, 0)
    assert result(again.folder) == whole
    assert not list(folder.glob(".index*")), "a finished run keeps no index"


def test_the_first_shard_that_is_missing_is_read_and_none_before_it(
    fresh: Desk, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"method": "random", "base_size": None, "epochs": None, "explain_rows": 0}
    begun(fresh, **given)
    reading.taken()
    read, rows = list[tuple[int, int]](), Pool.rows

    def counted(pool: Pool, start: int, stop: int) -> Any:
        read.extend([(start, stop)] * (len(pool) == 24))
        return rows(pool, start, stop)

    monkeypatch.setattr(Pool, "rows", counted)
    with killed(naming=SECOND):
        fresh.select(**given)
    assert read == [(8, 16)]
    assert reading.taken() == (0, 0)


def test_a_parquet_pool_is_neither_indexed_nor_digested_again(
    fresh: Desk, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = fresh.base / "pool.parquet"
    pq.write_table(pa.Table.from_pylist(make_rows(24, seed=1)), pool)
    begun(fresh, pool=str(pool))
    assert reading.taken()[1] == 1
    opened, real = list[str](), builtins.open

    def counted(file: Any, *how: Any, **more: Any) -> Any:
        opened.append(str(file))
        return real(file, *how, **more)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", counted)
        with killed(naming=SECOND):
            fresh.select(pool=str(pool))
    assert reading.taken()[1] == 0
    assert str(pool) not in opened, "its bytes are read for their digest"


@pytest.mark.parametrize(
    "kind", ["lines", "blank lines", "packed", "array", "csv", "two and a name", "bad rows", "not gold"]
)
def test_what_is_taken_over_is_what_is_made(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every field of the index, and every row with its place, of each form of a pool."""
    rows = make_rows(12, seed=1)
    if kind == "bad rows":
        rows[3], rows[7] = {**rows[3], "completion": None}, {**rows[7], "prompt": 5}
    if kind == "not gold":
        rows = [{"text": f"a text of {place}", "label": "good" if place % 2 else "bad",
                 "answer": "reject" if place == 4 else "accept"} for place in range(12)]  # fmt: skip
    inputs: list[Any] = [str(write_jsonl(tmp_path / "pool.jsonl", rows))]
    lines = Path(inputs[0]).read_text()
    if kind == "blank lines":
        Path(inputs[0]).write_text("\n\n" + lines.replace("\n", "\n\n"), encoding="utf-8-sig")
    if kind == "packed":
        inputs = [str(tmp_path / "pool.jsonl.gz")]
        Path(inputs[0]).write_bytes(gzip.compress(lines.encode()))
    if kind == "array":
        inputs = [str(tmp_path / "pool.json")]
        Path(inputs[0]).write_text(json.dumps(rows))
    if kind == "csv":
        inputs = [str(tmp_path / "pool.csv")]
        Path(inputs[0]).write_text("prompt,completion\n" + "".join(f"ask {n},answer {n}\n" for n in range(9)))
    if kind == "two and a name":
        inputs = [
            *inputs,
            f"web={write_jsonl(tmp_path / 'more.jsonl', make_rows(5, seed=9))}",
            str(tmp_path / "m*.jsonl"),
        ]
    given = {"model": "m", "pool": ["p"], "target": ["t"], "n": 1, "out": str(tmp_path / "run"), "on_bad_row": "skip"}
    settings = build(SelectConfig, given)
    read = lambda: read_pool(inputs, settings, np.zeros(0, np.uint64), decontaminate=True, out=given["out"])  # noqa: E731
    first = read()
    kept.keep(tmp_path / "run", first.pool, first.index, first.made_from, InputsRecord())
    monkeypatch.setattr(tov.inputs.read, "index_rows", None)
    again = read()
    for field in fields(Index):
        was, now = getattr(first.index, field.name), getattr(again.index, field.name)
        assert np.array_equal(was, now) if isinstance(was, np.ndarray) else was == now, field.name
    assert again.excluded.tolist() == first.excluded.tolist()
    ids = range(len(first.pool))
    assert list(map(str, again.pool.at(ids))) == list(map(str, first.pool.at(ids)))
    assert [again.pool.where(one) for one in ids] == [first.pool.where(one) for one in ids]
    assert [one.table.columns for one in again.pool.sources] == [one.table.columns for one in first.pool.sources]
    assert {"bad rows": bool(again.index.bad), "not gold": bool(again.index.not_gold)}.get(kind, True)


def test_fit_and_score_go_on_with_it_too(fresh: Desk, reading: Reading) -> None:
    given = {"model": str(fresh.base / "model"), "pool": str(fresh.base / "pool.jsonl"), "max_length": 64, "lora_r": 2}
    fit: dict[str, Any] = {
        **given,
        "target": str(fresh.base / "target.jsonl"),
        "out": fresh.base / "fit",
        "quiet": True,
    }
    fit |= {"base_size": 6, "epochs": 1, "dtype": "fp32", "device": "cpu"}
    with killed(naming="epoch-1/target"):
        tov.fit(**fit)
    assert reading.taken() == (24, 1)
    tov.fit(**fit)
    assert reading.taken() == (0, 0)
    score: dict[str, Any] = {"out": fresh.base / "score", "shard_rows": 8, "device": "cpu", "quiet": True}
    with killed(naming=SECOND):
        tov.score(fresh.base / "fit", given["pool"], **score)
    assert reading.taken() == (24, 1)
    tov.score(fresh.base / "fit", given["pool"], **score)
    assert reading.taken() == (0, 0)


def test_a_forced_run_goes_on_with_its_own(fresh: Desk, reading: Reading) -> None:
    fresh.select(seed=3)
    reading.taken()
    begun(fresh, force=True)
    assert (fresh.base / "select" / ".tov-new" / INDEX).exists()
    assert reading.taken() == (24, 1)
    fresh.select(force=True)
    assert reading.taken() == (0, 0)
    assert not list((fresh.base / "select").rglob(".index*"))


def test_a_run_that_has_kept_nothing_else_gives_way(fresh: Desk, reading: Reading) -> None:
    def fail() -> None:
        raise NumericError("NaN.")

    with pytest.raises(NumericError), Moment("tov.verbs.select.score_pool").struck(fail):
        fresh.select(seed=5)
    folder = fresh.base / "select"
    assert (folder / INDEX).exists()
    assert made_nothing(folder)
    reading.taken()
    fresh.select()
    assert reading.taken() == (0, 0), "the corrected command has the same pool"


# Made again


def other_settings(desk: Desk) -> dict[str, Any]:
    return {"on_bad_row": "skip"}


def another_row(desk: Desk) -> dict[str, Any]:
    file = desk.base / "pool.jsonl"
    was, rows = file.stat(), [json.loads(line) for line in file.read_text().splitlines()]
    rows[20]["completion"] = rows[20]["completion"][:-1] + "!"
    write_jsonl(file, rows)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert file.stat().st_size == was.st_size
    return {}


def row_more(desk: Desk) -> dict[str, Any]:
    with open(desk.base / "pool.jsonl", "a") as file:
        file.write(json.dumps(make_rows(1, seed=77)[0]) + "\n")
    return {}


def other_inode(desk: Desk) -> dict[str, Any]:
    file = desk.base / "pool.jsonl"
    (desk.base / "copy").write_bytes(file.read_bytes().replace(b"completion", b"complEtion", 1))
    os.replace(desk.base / "copy", file)
    return {}


@pytest.mark.parametrize("change", [other_settings, another_row, row_more, other_inode])
def test_what_has_changed_is_found_as_if_nothing_had_been_kept(
    change: Callable[[Desk], dict[str, Any]], fresh: Desk, reading: Reading
) -> None:
    folder = begun(fresh)
    changed, before = change(fresh), {file: file.read_bytes() for file in folder.rglob("*.parquet")}
    reading.taken()
    with pytest.raises((RunError, DataError)) as with_it:
        fresh.select(**changed)
    assert reading.taken()[0] >= 20, "the index of other rows was taken over"
    for name in (INDEX, INDEXED):
        (folder / name).unlink()
    with pytest.raises((RunError, DataError)) as without:
        fresh.select(**changed)
    assert str(with_it.value) == str(without.value)
    assert {file: file.read_bytes() for file in folder.rglob("*.parquet")} == before


def test_a_file_touched_is_indexed_again_and_the_run_goes_on(fresh: Desk, reading: Reading) -> None:
    begun(fresh)
    reading.taken()
    os.utime(fresh.base / "pool.jsonl")
    with killed(naming=SECOND):
        fresh.select()
    assert reading.taken() == (24, 1)
    fresh.select()
    assert reading.taken() == (0, 0), "the index of the touched file is kept in place of the old one"


def test_a_file_that_has_just_been_written_is_not_kept(fresh: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tov.files, "RACY", 10**18)
    assert not list(begun(fresh).glob(".index*"))


def test_another_version_makes_its_own(fresh: Desk, reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(fresh)
    reading.taken()
    monkeypatch.setattr(kept, "versions", lambda: {"tov": "another"})
    fresh.select()
    assert reading.taken() == (24, 1)


def test_a_file_replaced_while_the_pool_is_opened_is_read_anew(
    fresh: Desk, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(fresh)
    reading.taken()
    calls = list[int]()

    def opened(*given: Any) -> Pool:
        calls.append(1)
        pool = open_rows(*given)
        if len(calls) == 2:  # the pool's, behind the target's
            another_row(fresh)
        return pool

    monkeypatch.setattr(tov.inputs.read, "open_rows", opened)
    with pytest.raises(RunError, match=r"pool\.fingerprint"):
        fresh.select()
    assert reading.taken() == (24, 1)


def test_rows_of_a_task_of_another_package_are_not_kept(fresh: Desk, tmp_path: Path) -> None:
    settings = build(SelectConfig, {**fresh.inputs, "n": 1, "out": str(tmp_path / "run")})
    rows = read_pool(
        [fresh.inputs["pool"]], settings, np.zeros(0, np.uint64), decontaminate=True, out=str(tmp_path / "run")
    )
    convert = lambda row, reading: rows.pool.layouts[0].convert(row, reading)  # noqa: E731
    foreign = replace(rows.pool, layouts=(replace(rows.pool.layouts[0], convert=convert),))
    kept.keep(tmp_path / "run", foreign, rows.index, rows.made_from, InputsRecord())
    assert not (tmp_path / "run").exists()
    kept.keep(tmp_path / "run", rows.pool, rows.index, rows.made_from, InputsRecord())
    assert (tmp_path / "run" / INDEX).exists()


# Broken, and killed


@pytest.mark.slow
@pytest.mark.parametrize("name", [INDEX, INDEXED])
@pytest.mark.parametrize("fault", ["gone", "empty", "cut", "bit", "other"])
def test_a_broken_index_is_made_again(name: str, fault: str, fresh: Desk, reading: Reading) -> None:
    whole = result(fresh.select("whole").folder)
    file = begun(fresh) / name
    reading.taken()
    data = file.read_bytes()
    if fault == "gone":
        file.unlink()
    elif fault == "bit":
        flip(file, len(data) // 2)
    else:
        file.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "other": b"[1, 2]"}[fault])
    with killed(naming=SECOND):
        fresh.select()
    assert reading.taken() == (24, 1)
    assert result(fresh.select().folder) == whole
    assert reading.taken() == (0, 0), "it is not mended"


@pytest.mark.slow
@pytest.mark.parametrize("flipped", range(12))
def test_a_bit_flipped_anywhere_changes_nothing_that_is_taken_over(flipped: int, fresh: Desk) -> None:
    whole, folder = result(fresh.select("whole").folder), begun(fresh)
    file = folder / (INDEX if flipped % 2 else INDEXED)
    flip(file, file.stat().st_size * (2 * flipped + 1) // 24, flipped % 8)
    assert result(fresh.select().folder) == whole


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("name", [INDEX, INDEXED])
def test_a_kill_while_it_is_written_leaves_a_run_that_goes_on(name: str, fresh: Desk, reading: Reading) -> None:
    whole, changed = result(fresh.select("whole").folder), (fresh.base / "pool.jsonl").stat().st_ctime_ns
    while time.time_ns() - changed <= RACY:  # as the other process must see it
        time.sleep(0.1)
    words = [f"--{key}={value}" for key, value in {**fresh.inputs, "out": fresh.base / "select"}.items()]
    words += ["--n=6", "--shard-rows=8", "--base-size=6", "--epochs=1", "--max-length=64", "--lora-r=2", "--dtype=fp32"]
    kill_for_real(["select", *words, "--device=cpu", "--quiet"], naming=f"/{name}")
    folder = fresh.base / "select"
    assert not (folder / INDEXED).exists()
    reading.taken()
    assert result(fresh.select().folder) == whole
    assert reading.taken() == (24, 1)
    assert not list(folder.rglob(".index*"))
