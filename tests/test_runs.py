"""What one command leaves and the next one finds: locks, failed runs, choices taken over, notes; what is checked first."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import tov
import tov.data.pool
import tov.files
import tov.inputs.named
import tov.inputs.read
from chaos import kill_for_real
from faults import killed
from test_compare import QUICK, compare
from tiny import make_rows, tiny_encoder_folder, write_jsonl
from tov.comparison.grid import read_grid
from tov.comparison.variants import check_settings
from tov.config.records import CompareConfig, SelectConfig, TrainConfig
from tov.config.settings import build
from tov.errors import ConfigError, DataError, ModelError, RunError
from tov.files import content_digest, file_digest, stamp_of
from tov.progress import file_size
from tov.reports.numbers import choice_facts
from tov.runs.folder import work_on
from tov.scores.store import ShardStore, read_table
from tov.verbs.compare import compare_config, run_grid
from tov.verbs.plan import run_plan

LESS = "less/lora_r=2/lora_alpha=8/batch_size=8/epochs=2"


def select(folder: Path, model: Path, **changed: Any) -> Any:
    given = {"pool": make_rows(40, seed=1), "target": make_rows(6, seed=2), "n": 8}
    given |= {} if "method" in changed else {"base_size": 8, "epochs": 1}
    return tov.select(model=str(model), out=folder, max_length=64, **{"quiet": True, **given, **changed})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    rows = {"pool": make_rows(40, seed=1), "target": make_rows(6, seed=2), "test": make_rows(5, seed=3)}
    return {name: str(write_jsonl(folder / f"{name}.jsonl", made)) for name, made in rows.items()}


# Two at once, and one after another that failed


@pytest.mark.skipif(os.name != "posix", reason="locks and SIGKILL are POSIX")
def test_two_processes_do_not_work_in_one_folder_and_a_kill_frees_it(tmp_path: Path) -> None:
    made = {"command": "select", "identity": {}, "settings": {}}
    folder = tmp_path / "run"
    half = folder / ".half.1.tmp"
    with work_on(folder, **made):
        pass
    script = (
        "import sys, time; from pathlib import Path; from tov.runs.folder import work_on\n"
        "with work_on(Path(sys.argv[1]), command='select', identity={}, settings={}):\n"
        "    print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, folder], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "in\n"
        half.write_text("of the other process")
        with pytest.raises(RunError, match="Another process is at work"), work_on(folder, **made):
            pass
        with pytest.raises(RunError, match="Another process is at work"), work_on(folder, **made, force=True):
            pass
        assert half.exists(), "what another process is writing was swept away"
        other.send_signal(signal.SIGKILL)
    with work_on(folder, **made):
        assert not half.exists()


@pytest.mark.slow
def test_a_run_that_failed_before_it_made_anything_gives_way(tmp_path: Path, tiny_folder: Path) -> None:
    rows = {"target": make_rows(6, seed=2), "pool": make_rows(40, seed=1), "base_size": 8, "epochs": 1, "quiet": True}
    with pytest.raises(ModelError):
        tov.fit(str(tiny_folder.parent / "nowhere"), out=tmp_path / "fit", **rows)
    assert tov.fit(str(tiny_folder), out=tmp_path / "fit", **rows).manifest.status == "finished"
    with pytest.raises(ConfigError, match="no source 'web'"):
        compare(tmp_path / "compare", tiny_folder, source_cap={"web": 0.5}, seeds=1)
    assert compare(tmp_path / "compare", tiny_folder, seeds=1).manifest.status == "finished"


def test_a_command_that_is_refused_leaves_no_folder(tmp_path: Path, tiny_folder: Path, files: dict[str, str]) -> None:
    rows = {"pool": files["pool"], "target": files["target"], "quiet": True}
    picked = select(tmp_path / "run", tiny_folder, pool=files["pool"], target=files["target"])
    out, refused = tmp_path / "runs" / "new", (ConfigError, DataError, ModelError)

    gone = "cuda"  # tests see no GPU
    calls: dict[str, Callable[[], Any]] = {
        "device": lambda: select(out, tiny_folder, device=gone),
        "devices": lambda: select(out, tiny_folder, devices="0,1", method="bm25"),
        "auto": lambda: select(out, tiny_folder, device=gone, method="auto"),
        "modules": lambda: select(out, tiny_folder, lora_target_modules=("nowhere",)),
        "encoder": lambda: select(out, tiny_folder, method=f"rds/encoder={tmp_path / 'nowhere'}"),
        "n": lambda: tov.reselect(picked, n=500, out=out, quiet=True),
        "score": lambda: tov.score(picked, files["pool"], out=out, device=gone, quiet=True),
        "fit": lambda: tov.fit(str(tiny_folder), **rows, out=out, device=gone),
        "train": lambda: tov.train(picked, out=out, device=gone, quiet=True),
        "compare": lambda: compare(out, tiny_folder, source_cap={"web": 0.5}, seeds=1),
        "kind": lambda: tov.export(picked, to="trl", out=out, kind="pairs"),
        "no kind": lambda: tov.export(picked, to="hub", out=out, kind="pairs"),
    }

    for name, call in calls.items():
        with pytest.raises(refused):
            call()
        assert not out.parent.exists(), name
    out.mkdir(parents=True)
    for name in ("modules", "kind"):
        with pytest.raises(refused):
            calls[name]()
        assert not [*out.iterdir()], f"{name}: a folder of the user's, and nothing in it"


def test_a_command_that_is_refused_leaves_what_was_there(tmp_path: Path) -> None:
    def fails(name: str, error: Exception, shard: bool = False) -> None:
        with work_on(tmp_path / name, command="select", identity={}, settings={}) as run:
            if shard:
                (run.folder / "scores").mkdir()
                (run.folder / "scores" / "rows-000000000000.parquet").write_text("work")
            raise error

    with pytest.raises(ConfigError):
        fails("run", ConfigError("no"), shard=True)
    before = contents(tmp_path / "run")
    assert "scores/rows-000000000000.parquet" in before
    with pytest.raises(ConfigError):
        fails("run", ConfigError("no"))
    assert contents(tmp_path / "run").keys() >= before.keys()
    with pytest.raises(tov.NumericError):
        fails("other", tov.NumericError("NaN"))
    assert (tmp_path / "other" / "manifest.json").exists(), "what was not the user's fault is looked into"


def test_force_spares_the_run_that_is_compared(tmp_path: Path, tiny_folder: Path, files: dict[str, str]) -> None:
    picked = select(tmp_path / "run", tiny_folder, pool=files["pool"], target=files["target"])
    with pytest.raises(RunError, match="--force would delete"):
        tov.compare(
            from_run=picked,
            test=files["test"],
            sizes=8,
            seeds=1,
            out=picked.folder,
            force=True,
            train_rows=32,
            quiet=True,
        )
    assert (picked.folder / "selected.parquet").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("left", [[], [".lock"], [".manifest.json.4321.tmp", ".lock"]])
def test_what_a_kill_before_the_first_manifest_leaves_is_gone_on_with(
    tmp_path: Path, tiny_folder: Path, left: list[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in left:
        (folder / name).write_text('{"format": 2, "comm' if "manifest" in name else "")
    assert len(select(folder, tiny_folder).dataset) == 8
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize(
    "name", ["notes.txt", ".manifest.json.bak", ".manifest.json.7.tmp/mine", ".locks/mine", ".lockfile", "scores/mine"]
)
def test_a_folder_of_other_things_is_refused_untouched(tmp_path: Path, tiny_folder: Path, name: str) -> None:
    folder = tmp_path / "run"
    for file in (folder / name, folder / ".lock"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    before = contents(folder)
    for force in (False, True):
        with pytest.raises(RunError, match="is not empty and holds no run"):
            select(folder, tiny_folder, force=force)
        assert contents(folder) == before


# The same command again


@pytest.mark.slow
def test_a_finished_run_is_returned_without_reading_a_row(
    tmp_path: Path, tiny_folder: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"pool": files["pool"], "target": files["target"]}
    first = select(tmp_path / "run", tiny_folder, **given)
    before = contents(first.folder)

    def unread(*_: Any, **__: Any) -> None:
        raise AssertionError("rows are read")

    for module in (tov.data.pool, tov.inputs.read):
        monkeypatch.setattr(module, "index_rows", unread)
    again = select(tmp_path / "run", tiny_folder, **given)
    assert again.manifest == first.manifest
    assert again.dataset.to_list() == first.dataset.to_list()
    assert contents(first.folder) == before, "a finished run was touched"
    with pytest.raises(AssertionError, match="rows are read"):
        select(tmp_path / "run", tiny_folder, **given, seed=1)


@pytest.mark.slow
def test_files_that_have_rested_are_told_by_their_stamps_and_not_read_again(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"pool": make_rows(40, seed=1), "target": make_rows(6, seed=2)}
    given = {role: str(write_jsonl(tmp_path / f"{role}.jsonl", made)) for role, made in rows.items()}
    monkeypatch.setattr(tov.files, "RACY", 0)  # as if they had been written long ago
    first, read = select(tmp_path / "run", tiny_folder, **given), list[str]()

    def digested(path: Path) -> str:
        read.append(path.name)
        return content_digest(path)

    monkeypatch.setattr(tov.inputs.named, "content_digest", digested)
    assert first.manifest.inputs.stamps.keys() == set(given.values())
    assert select(tmp_path / "run", tiny_folder, **given).manifest == first.manifest
    assert read == []
    os.utime(given["pool"])  # the same bytes at another time
    assert select(tmp_path / "run", tiny_folder, **given).manifest == first.manifest
    assert read == ["pool.jsonl"]
    copy = tmp_path / "copy"
    shutil.copy2(given["target"], copy)
    os.replace(copy, given["target"])  # the same bytes, size and time in another inode
    assert select(tmp_path / "run", tiny_folder, **given).manifest == first.manifest
    assert read == ["pool.jsonl", "pool.jsonl", "target.jsonl"]


def test_a_file_that_has_just_been_written_has_no_stamp(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "pool.jsonl", make_rows(3, seed=1))
    assert stamp_of(file) == []
    os.utime(file, (0, 0))  # its time may be set back, but not that of the last change
    assert stamp_of(file) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pool", "target"])
@pytest.mark.parametrize("rested", [False, True])
def test_other_content_under_the_same_size_and_time_is_noticed(
    tmp_path: Path, tiny_folder: Path, name: str, rested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rested:
        monkeypatch.setattr(tov.files, "RACY", 0)
    rows = {"pool": make_rows(40, seed=1), "target": make_rows(6, seed=2)}
    given = {role: str(write_jsonl(tmp_path / f"{role}.jsonl", made)) for role, made in rows.items()}
    first = select(tmp_path / "run", tiny_folder, **given)
    before, file = contents(first.folder), Path(given[name])
    was, first_row = file.stat(), rows[name][0]
    swapped = {**first_row, "completion": first_row["completion"][:-1] + "!"}
    write_jsonl(file, [swapped, *rows[name][1:]])
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    with pytest.raises(RunError, match=rf"holds another run(.|\n)*{name}[a-z.]*\.fingerprint: "):
        select(tmp_path / "run", tiny_folder, **given)
    assert contents(first.folder) == before


def test_a_refusal_that_is_killed_at_any_moment_leaves_a_folder_that_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever `unmake` was about to remove when it ended."""
    real, left = Path.unlink, [0]

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if not path.name.endswith(".tmp") and path.parent == folder:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        real(path, missing_ok=missing_ok)

    def refused() -> None:
        with work_on(folder, command="select", identity={}, settings={}):
            monkeypatch.setattr(Path, "unlink", unlink)
            raise ConfigError("no")

    kills = 0
    for kills in range(10):
        folder, left[0] = tmp_path / str(kills), kills
        try:
            refused()
        except KeyboardInterrupt:
            monkeypatch.undo()
            with work_on(folder, command="train", identity={}, settings={}, force=True) as run:
                run.finish()
            assert run.manifest.command == "train"
            continue
        except ConfigError:
            break
        finally:
            monkeypatch.undo()
    assert kills >= 3, "manifest, settings, events"
    assert not folder.exists()


@pytest.mark.parametrize("text", ["", "- 1", "n: 1", "model: {", "model: before"])
def test_another_model_is_told_whatever_its_settings_file_says(tmp_path: Path, text: str) -> None:
    """Also where that names no model, or holds no settings any more."""
    given: dict[str, Any] = {"settings": {"model": "now"}}
    with work_on(tmp_path / "run", command="select", identity={"model": "1"}, settings={}) as run:
        run.finish()
    (tmp_path / "run" / "config.yaml").write_text(text)
    names = "of before -> of now" if text == "model: before" else "of now"
    with (
        pytest.raises(RunError, match=rf"model: 1 -> 2 \(content of its files: {names}\)"),
        work_on(tmp_path / "run", command="select", identity={"model": "2"}, **given),
    ):
        pass


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_run_of_another_command_stays_and_is_told_in_a_line(tmp_path: Path, status: str) -> None:
    """One that failed and made nothing gives way to its own command alone."""
    given: dict[str, Any] = {"identity": {"model": "1", "settings": {"seed": 0}}, "settings": {"model": "now"}}
    with work_on(tmp_path / "run", command="select", **given) as run:
        run.finish()
        run.note(status=status)
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    with pytest.raises(RunError) as told, work_on(tmp_path / "run", command="export", identity={}, settings={}):
        pass
    assert str(told.value).split("differs in:\n")[1].splitlines()[0].strip() == "command: select -> export"
    assert "settings.seed" not in str(told.value)
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_a_run_that_is_there_says_so(
    tmp_path: Path, tiny_folder: Path, files: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    given = {"pool": files["pool"], "target": files["target"], "shard_rows": 10}
    folder = tmp_path / "run"

    def said(call: Callable[[], Any]) -> tuple[str, str]:
        capfd.readouterr()
        found = call()
        lines = [line for line in capfd.readouterr().err.splitlines() if str(tmp_path) in line]
        return found.record["found"], "\n".join(lines)

    def choose(**more: Any) -> Any:
        return select(folder, tiny_folder, **{**given, "method": "bm25", **more})

    with killed(naming="scores/rows-000000000020"):
        choose()
    assert said(lambda: choose(quiet=False)) == (
        "unfinished",
        f"Going on with {folder}: 2 of 4 shards are there.",
    )
    finished = f"The run in {folder} is finished: nothing was computed anew."
    assert said(lambda: choose(quiet=False)) == ("finished", finished)
    assert said(lambda: choose(quiet=True)) == ("finished", "")
    with pytest.raises(RunError, match=r"pool\.sources\.memory"):
        choose(pool=make_rows(40, seed=1))
    assert said(lambda: select(tmp_path / "new", tiny_folder, **given, method="random", quiet=False)) == ("nothing", "")
    again = {"n": 3, "out": tmp_path / "again"}
    with killed(naming="selected.parquet"):
        tov.reselect(folder, **again, quiet=True)
    on = f"Going on with {again['out']}."
    assert said(lambda: tov.reselect(folder, **again)) == ("unfinished", on), "its scores are another run's"
    assert said(lambda: tov.reselect(folder, **again)) == ("finished", finished.replace(str(folder), str(again["out"])))


def test_a_file_that_has_changed_is_named(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tov.files, "RACY", 0)
    rows = {"pool": make_rows(40, seed=1), "target": make_rows(6, seed=2)}
    given = {role: str(write_jsonl(tmp_path / f"{role}.jsonl", made)) for role, made in rows.items()}
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    first = select(tmp_path / "run", model, **given)
    pool, other = Path(given["pool"]), str(shutil.copy(given["target"], tmp_path / "other.jsonl"))
    size = pool.stat().st_size
    write_jsonl(pool, make_rows(41, seed=1))
    with pytest.raises(RunError) as error:
        select(tmp_path / "run", model, **given)
    said = str(error.value)
    assert "pool.sources.pool: 40 -> 41" in said
    assert f"{pool}: {size:,} bytes, SHA-256 " in said
    assert f" -> {pool.stat().st_size:,} bytes, SHA-256 " in said
    assert given["target"] not in said, "it is as it was"
    assert "put its files back" in error.value.fix
    with pytest.raises(DataError, match=rf"41 rows, but 40 were scored(.|\n)*{re.escape(str(pool))}: "):
        tov.reselect(first, n=3, out=tmp_path / "again", quiet=True)
    write_jsonl(pool, rows["pool"])
    write_jsonl(Path(other), make_rows(7, seed=9))
    with pytest.raises(RunError) as error:
        select(tmp_path / "run", model, **{**given, "target": other})
    assert f"{given['target']}: read -> not read" in str(error.value)
    assert f"{other}: not read -> read" in str(error.value)
    in_memory = {"pool": make_rows(40, seed=1), "target": given["target"]}
    select(tmp_path / "memory", model, **in_memory, method="bm25")
    with pytest.raises(RunError, match=r"targets\.target\.fingerprint") as error:
        select(tmp_path / "memory", model, **{**in_memory, "target": other}, method="bm25")
    assert "read -> " not in str(error.value), "nothing is known of what was read"
    assert "put its files back" not in error.value.fix
    whole = tmp_path / "pool"
    whole.mkdir()
    shutil.copy(pool, whole)
    (whole / "README.md").write_text("no rows")
    select(tmp_path / "whole", model, **{**given, "pool": str(whole)}, method="bm25")
    with pytest.raises(RunError) as error:
        select(tmp_path / "whole", model, **{**given, "pool": str(whole), "target": other}, method="bm25")
    assert f"{other}: not read -> read" in str(error.value)
    assert "README.md" not in str(error.value), "it never had rows"
    mutate_template(model)
    with pytest.raises(RunError, match=rf"model: .*content of its files: of {re.escape(str(model))}\)"):
        select(tmp_path / "run", model, **given)


def mutate_template(model: Path) -> None:
    file = model / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_start|>", "<|im_start|> "))


def mutate_vocabulary(model: Path) -> None:
    facts = json.loads((model / "tokenizer.json").read_text())
    facts["added_tokens"][-1]["lstrip"] = not facts["added_tokens"][-1]["lstrip"]
    (model / "tokenizer.json").write_text(json.dumps(facts))


def mutate_weights(model: Path) -> None:
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.slow
@pytest.mark.parametrize("mutate", [mutate_template, mutate_vocabulary, mutate_weights])
def test_whatever_changes_a_score_is_noticed(tmp_path: Path, tiny_folder: Path, mutate: Callable[[Path], None]) -> None:
    """Each input alone, under the same size and time where it can be: a stored path is not used with it."""
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    fitted = select(tmp_path / "run", model)
    mutate(model)
    with pytest.raises(ModelError, match="no longer the one"):
        tov.score(fitted, make_rows(10, seed=7), out=tmp_path / "scored", quiet=True)


def told(read: Callable[[], pa.Table]) -> tuple[pa.Table | None, str]:
    """What is read, or the error."""
    try:
        return read(), ""
    except RunError as error:
        return None, str(error)


def test_a_flipped_bit_in_a_shard_is_never_read_as_another_number(tmp_path: Path) -> None:
    """Three hundred flips anywhere before the file's footer: an error that names it, or the very table."""
    draw = np.random.default_rng(0)
    table = pa.table({
        "row_id": np.arange(500), "source": ["a"] * 500, "excluded": [""] * 500,
        "hash": [f"{one:016x}" for one in draw.integers(0, 2**63, 500)],
        "score": draw.normal(size=500).astype(np.float32),
    })  # fmt: skip
    store = ShardStore(tmp_path, "1")
    store.write(0, table)
    whole, wrong = store.file(0).read_bytes(), 0
    body = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place, bit in zip(draw.integers(0, body, 300), draw.integers(0, 8, 300), strict=True):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(bit)
        store.file(0).write_bytes(flipped)
        for read in (lambda: read_table(tmp_path), lambda: store.read(0)):
            found, said = told(read)
            wrong += found is None
            assert str(store.file(0)) in said if found is None else found.to_pylist() == table.to_pylist()
    assert wrong > 570


def test_every_byte_of_a_large_file_counts(tmp_path: Path) -> None:
    file, data = tmp_path / "weights", bytearray(40 << 20)
    file.write_bytes(data)
    was = file_digest(file)
    data[(20 << 20) + 12_345] = 1
    file.write_bytes(data)
    assert file_digest(file) != was


def test_a_column_that_the_model_does_not_see_is_written_as_it_is_today(tmp_path: Path, tiny_folder: Path) -> None:
    """The scores stand; the files have today's rows, and the places that the rows had."""
    rows = [{**row, "license": "old"} for row in make_rows(40, seed=1)]
    given = {"pool": str(write_jsonl(tmp_path / "pool.jsonl", rows)), "target": make_rows(6, seed=2)}
    given["target"] = str(write_jsonl(tmp_path / "target.jsonl", given["target"]))
    first = select(tmp_path / "run", tiny_folder, **given)
    scores = {file.name: file.read_bytes() for file in first.run.scores.iterdir()}
    chosen = first.dataset.to_list()
    write_jsonl(tmp_path / "pool.jsonl", [{**row, "license": "new"} for row in rows])
    again = select(tmp_path / "run", tiny_folder, **given)
    assert again.dataset.to_list() == [{**row, "license": "new"} for row in chosen]
    lines = [json.loads(line) for line in (again.folder / "selected.jsonl").read_text().splitlines()]
    assert {line["license"] for line in lines} == {"new"}
    assert {file.name: file.read_bytes() for file in again.run.scores.iterdir()} == scores
    assert any("the model does not see have changed" in note for note in again.summary["notes"])
    before = contents(again.folder)
    assert select(tmp_path / "run", tiny_folder, **given).dataset.to_list() == again.dataset.to_list()
    assert contents(again.folder) == before, "the second time nothing was to be done"


@pytest.mark.slow
def test_choosing_again_from_a_changed_pool_names_the_first_row(tmp_path: Path, tiny_folder: Path) -> None:
    """Also where the changed row is none of those chosen; another column may change."""
    rows = make_rows(40, seed=1)
    pool = str(write_jsonl(tmp_path / "pool.jsonl", rows))
    first = select(tmp_path / "run", tiny_folder, pool=pool)
    left = next(number for number in range(40) if number not in first.dataset["tov_row_id"])
    write_jsonl(tmp_path / "pool.jsonl", [{**row, "note": "new"} for row in rows])
    assert tov.reselect(first, n=4, out=tmp_path / "again", quiet=True).dataset[0]["note"] == "new"
    rows[left] = {**rows[left], "completion": "other"}
    write_jsonl(tmp_path / "pool.jsonl", rows)
    with pytest.raises(DataError, match=rf"pool\.jsonl, row {left + 1} is no longer the row that was scored"):
        tov.reselect(first, n=4, out=tmp_path / "third", quiet=True)


@pytest.mark.slow
def test_a_run_is_not_gone_on_with_in_another_dtype(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `auto` means bf16 a run is killed after its first shard; where it means fp32 it is refused, and nothing is lost."""
    write, written = ShardStore.write, list[int]()

    def once(self: ShardStore, start: int, table: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(start)
        write(self, start, table)

    def auto_means(dtype: str) -> None:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: dtype == "bf16")

    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    auto_means("bf16")
    with monkeypatch.context() as patch:
        patch.setattr(ShardStore, "write", once)
        with pytest.raises(KeyboardInterrupt):
            select(tmp_path / "run", tiny_folder, shard_rows=10)
    before = contents(tmp_path / "run")
    [shard] = [name for name in before if name.startswith("scores")]
    auto_means("fp32")
    with pytest.raises(ModelError) as refused:
        select(tmp_path / "run", tiny_folder, shard_rows=10)
    assert refused.value.problem.endswith("begun with: dtype bf16 -> fp32.")
    assert "\n" not in refused.value.problem
    kept = contents(tmp_path / "run")
    assert {name for name in before if kept.get(name) != before[name]} <= {"manifest.json", "events.jsonl"}
    auto_means("bf16")
    made = select(tmp_path / "run", tiny_folder, shard_rows=10)
    assert made.manifest.model.dtype == "bf16"
    assert contents(tmp_path / "run")[shard] == before[shard], "the finished shard was made again"
    whole = select(tmp_path / "whole", tiny_folder, shard_rows=10)
    assert made.scores.equals(whole.scores)


# What is taken over


@pytest.mark.slow
def test_more_rows_are_chosen_as_the_first_ones_were(tmp_path: Path, tiny_folder: Path) -> None:
    pool = make_rows(40, seed=1)
    first = select(
        tmp_path / "first", tiny_folder, transform="abs", rule="score-only", bins=2, normalize="initial-loss"
    )
    more = tov.reselect(first, n=12, out=tmp_path / "more", pool=pool)
    settings = ("transform", "rule", "bins", "normalize")
    assert [more.manifest.identity["settings"][name] for name in settings] == [
        "abs",
        "score-only",
        2,
        "initial-loss",
    ]
    again = tov.reselect(more, n=12, out=tmp_path / "again", pool=pool)
    assert list(again.dataset["tov_row_id"]) == list(more.dataset["tov_row_id"]), "and from a choice made again"
    direct = select(tmp_path / "direct", tiny_folder, transform="abs", rule="score-only", bins=2,
                    normalize="initial-loss", n=12)  # fmt: skip
    assert list(more.dataset["tov_row_id"]) == list(direct.dataset["tov_row_id"])
    other = tov.reselect(first, n=12, transform="identity", out=tmp_path / "other", pool=pool)
    assert other.manifest.identity["settings"]["rule"] == "score-only", "what is given is given, the rest stays"
    ranked = tov.reselect(first, n=12, method="uncertainty", out=tmp_path / "ranked", pool=pool)
    assert ranked.manifest.identity["settings"]["rule"] == "score+random", "another ranking has its own rule"


def test_the_rule_of_a_run_is_that_of_its_own_method(tmp_path: Path, tiny_folder: Path, files: dict[str, str]) -> None:
    picked = select(
        tmp_path / "run", tiny_folder, method=f"{LESS}/sample/bins=3", pool=files["pool"], target=files["target"]
    )
    given = {"from_run": str(picked.folder), "test": [files["test"]], "sizes": [8], "out": "x"}
    config = compare_config({**given, "methods": ["tov", "less", "rds"]})
    assert config.methods == ("tov", "less/sample/bins=3", "rds")
    assert (config.rule, config.bins) == (None, None), "the others keep their own"
    assert compare_config({**given, "methods": ["less"], "rule": "score-only"}).methods == ("less",)
    plain = select(tmp_path / "plain", tiny_folder, pool=files["pool"], target=files["target"])
    assert compare_config({**given, "from_run": str(plain.folder), "methods": "tov,rds"}).methods == ("tov", "rds")


def test_the_path_of_a_scored_pool_is_that_it_was_scored_with(tmp_path: Path, tiny_folder: Path) -> None:
    fitted = select(tmp_path / "run", tiny_folder)
    scored = tov.score(fitted, make_rows(10, seed=7), out=tmp_path / "scored", quiet=True)
    assert scored.path.fingerprint == fitted.path.fingerprint


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_killed_scoring_goes_on_and_ends_with_the_same_files(
    tmp_path: Path, tiny_folder: Path, files: dict[str, str]
) -> None:
    """Killed at its third shard: the two before it are not scored again."""
    fitted = select(tmp_path / "run", tiny_folder, dtype="fp32", device="cpu")
    whole = tov.score(fitted, files["pool"], out=tmp_path / "whole", shard_rows=8, quiet=True)
    command = ["score", "--from", str(fitted.folder), "--pool", files["pool"], "--shard-rows", "8", "--quiet"]
    kill_for_real([*command, "--out", str(tmp_path / "killed")], naming="rows-000000000016")
    first = [
        (file.name, file.stat().st_mtime_ns) for file in sorted((tmp_path / "killed" / "scores").glob("rows-*.parquet"))
    ]
    assert len(first) == 2
    made = tov.score(fitted, files["pool"], out=tmp_path / "killed", shard_rows=8, quiet=True)
    found = sorted((made.folder / "scores").glob("rows-*.parquet"))
    assert [(file.name, file.stat().st_mtime_ns) for file in found[:2]] == first
    assert [file.read_bytes() for file in found] == [
        file.read_bytes() for file in sorted((whole.folder / "scores").glob("rows-*.parquet"))
    ]
    assert not list(made.folder.rglob("*.tmp"))


# What a report tells


@pytest.mark.slow
def test_a_comparison_tells_what_its_choices_note_and_of_which_variants(tmp_path: Path, tiny_folder: Path) -> None:
    variants = [LESS, LESS.replace("batch_size=8", "batch_size=4"), "tov", "tov/abs"]
    notes = compare(tmp_path / "run", tiny_folder, methods=variants, seeds=2).results["notes"]
    assert f"{variants[0]}: warm-up: 2 epochs in batches of 8 at a peak rate of 2e-05" in notes
    assert f"{variants[1]}: warm-up: 2 epochs in batches of 4 at a peak rate of 2e-05" in notes, (
        "numbers are what differs"
    )
    [few] = [note for note in notes if "for 10 length bins" in note]
    assert few == "tov, tov/abs: 4 rows by score for 10 length bins: only 4 bins are used"


@pytest.mark.slow
def test_trials_of_several_versions_are_told_and_a_finished_one_is_not_undone(
    tmp_path: Path, tiny_folder: Path
) -> None:
    compared = compare(tmp_path / "run", tiny_folder, seeds=1)
    file = compared.folder / "trials.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["version"], lines[0]["commit"] = "0.0.9", "abc"
    failed = {**next(one for one in lines if one["variant"] == "tov"), "status": "failed", "error": "no", "loss": None}
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, failed]))
    shown = compare(tmp_path / "run", tiny_folder, seeds=1, report_only=True)
    [told] = [note for note in shown.results["notes"] if "versions of tov" in note]
    assert "2 versions" in told
    assert "1 by 0.0.9 abc" in told
    [scored] = [one for one in shown.results["sizes"][0]["variants"] if one["variant"] == "tov"]
    assert scored["gain"]["mean"] is not None, "a later failure hides a finished trial"


def test_lengths_that_are_all_one_are_a_row_of_the_table() -> None:
    import pyarrow as pa

    scores = pa.table({
        "source": ["a"] * 4, "tokens": [1] * 4, "excluded": [""] * 4, "in_base": [False] * 4, "lost": [0] * 4,
    })  # fmt: skip
    facts = choice_facts(scores, np.array([0, 2]), np.array(["score", "score"]), np.arange(4.0))
    assert facts["lengths"] == [{"from": 1, "to": 1, "pool": 4, "by_score": 2, "chosen": 2}]


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (98, "98 B"),
        (3.21e6, "3.21 MB"),
        (999_600, "1 MB"),
        (6.5e12, "6.5 TB"),
        (1.2e15, "1,200 TB"),
        (999.4e9, "999 GB"),
    ],
)
def test_sizes_of_files(count: float, said: str) -> None:
    assert file_size(count) == said


# Said before anything is scored


def test_a_base_set_that_leaves_too_few_rows_is_said_before_the_fit(tmp_path: Path, tiny_folder: Path) -> None:
    too_many = {"n": 36, "rule": "score-only"}
    for ask in (
        lambda: select(tmp_path / "run", tiny_folder, **too_many),
        lambda: tov.plan(model=str(tiny_folder), pool=make_rows(40, seed=1), target=make_rows(6, seed=2), base_size=8,
                         max_length=64, **too_many),
        lambda: compare(tmp_path / "compare", tiny_folder, methods=["tov/score-only"], sizes=[36]),
    ):  # fmt: skip
        with pytest.raises(
            DataError, match="--n asks for 36 rows by score, but 8 of the 40 usable rows are the base set"
        ):
            ask()
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "compare" / "trials.jsonl").exists()


def test_options_of_what_is_not_there_are_said_before_anything_is_scored(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("sentence_transformers", "faiss"):
        monkeypatch.setitem(sys.modules, package, None)
    cases = {
        f"{LESS}/subtask_column=nope": "the target has no such column",
        f"{LESS}/round-robin": "the target has only one",
        "rds/encoder=minilm": "sentence-transformers",
        "tsds/faiss": "faiss-cpu",
    }
    for method, says in cases.items():
        with pytest.raises(ConfigError, match=says):
            select(tmp_path / "run", tiny_folder, method=method)
        assert not (tmp_path / "run").exists()
        with pytest.raises(ConfigError, match=says):
            compare(tmp_path / "compare", tiny_folder, methods=["tov", method], seeds=1)
        assert not (tmp_path / "compare" / "trials.jsonl").exists()
        with pytest.raises(ConfigError, match=says):
            tov.plan(model=str(tiny_folder), pool=make_rows(40, seed=1), target=make_rows(6, seed=2), methods=[method])


def test_a_plan_says_that_the_folder_is_not_free(tmp_path: Path, tiny_folder: Path, files: dict[str, str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and holds no run"):
        tov.plan(model=str(tiny_folder), pool=files["pool"], target=files["target"], out=str(tmp_path / "full"))
    from tov.config.records import PlanConfig

    given = {"model": str(tiny_folder), "pool": files["pool"], "target": files["target"], "methods": ("rds",)}
    with pytest.raises(ConfigError, match="--method less stands beside --methods rds"):
        run_plan(build(PlanConfig, {**given, "method": "less"}))


@pytest.mark.slow
def test_a_grid_that_leaves_the_task_to_the_data_is_not_judged_by_another(tmp_path: Path) -> None:
    """A ratio of 0.1 is the default of instruction tuning, and another variant with named entities."""
    encoder = tiny_encoder_folder(tmp_path / "encoder")
    rows = [{"tokens": ["a", "b", f"n{at}"], "ner_tags": ["B-LOC", "O", "O"]} for at in range(60)]
    given = {"pool": rows[:40], "target": rows[40:50], "test": rows[50:]}
    made = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", part)) for name, part in given.items()}
    common = {"model": str(encoder), **{name: [file] for name, file in made.items()}, "sizes": [8], "seeds": 1, **QUICK}
    file = tmp_path / "grid.yaml"
    file.write_text(
        json.dumps({**common, "methods": ["tov", "tov/target_learning_rate_ratio=0.1"], "experiments": {"one": {}}})
    )
    _, found = run_grid(read_grid(file), {"out": str(tmp_path / "out")})
    assert {"tov", "tov/target_learning_rate_ratio=0.1"} <= {
        one["variant"] for one in found["one"]["sizes"][0]["variants"]
    }
    file.write_text(json.dumps({**common, "out": "elsewhere", "experiments": {"one": {}}}))
    with pytest.raises(ConfigError, match="sets out, but in a grid"):
        read_grid(file)


def test_settings_that_cannot_take_effect_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    given = {"model": "m", "pool": "p", "target": "t", "test": "e", "sizes": 8, "out": "o", "task": "instruction"}
    with pytest.raises(ConfigError, match="--num-train-epochs and --train-rows both say"):
        build(TrainConfig, {"from_run": "r", "out": "o", "num_train_epochs": 2, "train_rows": 64})
    with pytest.raises(ConfigError, match="--answer-pattern has no effect without --exact-match"):
        check_settings(build(CompareConfig, {**given, "answer_pattern": "[0-9]+"}).for_task("instruction"))
    keyed = [{**row, "key": str(at)} for at, row in enumerate(make_rows(6, seed=2))]
    with pytest.raises(ConfigError, match="--group-by key: the test has no such column"):
        compare(tmp_path / "keyed", tiny_folder, target=keyed, group_by="key")
    with pytest.raises(DataError, match="2 of them are bare text"):
        compare(tmp_path / "text", tiny_folder, test=[{"text": "one"}, {"text": "two"}], exact_match=4)
    assert build(SelectConfig, {**{k: given[k] for k in ("model", "pool", "target", "out")}, "n": 1}).n == 1
