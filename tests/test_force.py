"""What stays and what is replaced under --force; folders that moved; files that are not as they were made."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from safetensors.torch import load_file, save_file

import tov
from faults import killed
from test_invalidation import files
from tiny import make_rows, tiny_model_folder, write_jsonl
from tov.errors import ConfigError, DataError, ModelError, RunError
from tov.files import atomic_folder, listing, write_text

TIMES = ("manifest.json", "events.jsonl", ".lock")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a pool, a target, a test, and a finished run of them below `runs/`; tests copy it."""
    folder = tmp_path_factory.mktemp("shared") / "project"
    tiny_model_folder(folder, name="model")
    for name, count, seed in (("pool", 30, 1), ("target", 6, 2), ("test", 5, 3)):
        write_jsonl(folder / f"{name}.jsonl", make_rows(count, seed=seed))
    select(folder)
    return folder


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(project, tmp_path / "project"))


def select(folder: Path, out: str = "runs/a", **changed: Any) -> tov.Picked:
    given = {"n": 6, "base_size": 8, "epochs": 1, "max_length": 64, "shard_rows": 10, "quiet": True, **changed}
    named = {name: str(folder / f"{name}.jsonl") for name in ("pool", "target")}
    return tov.select(**{"model": str(folder / "model"), **named, "out": folder / out, **given})


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"model": "/no/such/model"}, ModelError), ({"max_length": 99_999}, ModelError), ({"device": "cuda:7"}, ConfigError),
        ({"pool": "/no/such/pool.jsonl"}, DataError), ({"n": 10_000}, DataError), ({"learning_rate": -1.0}, ConfigError),
        ({"lora_target_modules": ["nothing"]}, ConfigError),
    ],
)  # fmt: skip
def test_what_cannot_be_leaves_the_finished_run_as_it_was(copy: Path, changed: dict[str, Any], error: type) -> None:
    before = files(copy / "runs")
    with pytest.raises(error):
        select(copy, force=True, **changed)
    assert files(copy / "runs") == before
    assert not list((copy / "runs").rglob(".tov-new"))


def test_only_what_tov_has_made_is_replaced(copy: Path) -> None:
    run = copy / "runs" / "a"
    (run / "notes.txt").write_text("mine")
    (run / "scores" / "notes.txt").write_text("mine too")
    (run / "path" / "epoch-1" / "base" / "notes.txt").write_text("and mine")
    shutil.copytree(copy / "model", run / "model")
    datasets.Dataset.from_list(make_rows(30, seed=1)).save_to_disk(run / "pool")
    mine = {
        name: before for name, before in files(run).items() if "notes" in name or name.startswith(("model", "pool"))
    }
    before = files(run)
    again = select(copy, model=str(run / "model"), pool=str(run / "pool"), shard_rows=15, force=True)
    after = files(run)
    assert len(mine) >= 8
    assert {name: after[name] for name in mine} == mine
    assert again.folder == run
    assert sorted(set(after) - set(mine) - set(TIMES)) == sorted({
        *(name for name in before if name not in mine and not name.startswith("scores") and name not in TIMES),
        "scores/rows-000000000000.parquet", "scores/rows-000000000015.parquet",
    })  # fmt: skip
    assert len(again.dataset) == 6


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("said", ['{"name": "a web app", "icons": []}', "[]", "null", "{", ""])
def test_a_manifest_of_something_else_is_no_run(copy: Path, force: bool, said: str) -> None:
    app = copy / "app"
    app.mkdir()
    (app / "manifest.json").write_text(said)
    (app / "index.html").write_text("<p>")
    before = files(app)
    with pytest.raises(RunError, match="manifest"):
        select(copy, "app", force=force)
    assert files(app) == before


@pytest.mark.skipif(os.name != "posix", reason="links are POSIX's")
@pytest.mark.parametrize("force", [False, True])
def test_links_and_the_folder_that_one_is_in(copy: Path, force: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "link").symlink_to(copy / "runs" / "a", target_is_directory=True)
    (copy / "broken").symlink_to(copy / "nowhere")
    (copy / "file").symlink_to(copy / "pool.jsonl")
    assert select(copy, "link", force=force).folder == copy / "link"
    assert (copy / "link").is_symlink()
    for name in ("broken", "file"):
        with pytest.raises(RunError, match="must be a folder"):
            select(copy, name, force=force)
    monkeypatch.chdir(copy)
    with pytest.raises(RunError, match="is not empty"):
        select(copy, ".", force=force)
    monkeypatch.chdir(copy / "runs" / "a")
    given = {name: f"../../{name}.jsonl" for name in ("pool", "target")}
    again = tov.select(
        model="../../model", **given, out=".", n=6, base_size=8, epochs=1, max_length=64, shard_rows=10, quiet=True,
        force=force,
    )  # fmt: skip
    assert (copy / "runs" / "a" / "selected.jsonl").exists()
    assert len(again.dataset) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["config.yaml", "path/manifest.json", "scores/rows-000000000010.parquet", "selected.jsonl", "manifest.json"]
)
def test_a_kill_while_the_new_run_takes_its_place_loses_neither(copy: Path, file: str) -> None:
    """Each file is moved by os.replace, the manifest is written last; the next command that reads the folder goes on."""
    new, run = select(copy, "expected", n=4, seed=3), copy / "runs" / "a"
    where = (
        {"naming": f"{run}/.manifest.json"} if file == "manifest.json" else {"naming": f".tov-new/{file}", "call": 2}
    )
    with killed(function="os.replace", **where):
        select(copy, n=4, seed=3, force=True)
    assert (run / ".tov-new" / "moves.json").exists(), "it was killed too early for this test"
    tov.reselect(run, n=2, out=copy / "again", quiet=True)
    found, expected = (
        {name: made[1] for name, made in files(folder).items() if name.startswith(("path/ep", "scores", "selected"))}
        for folder in (run, new.folder)
    )
    assert found == expected
    assert not (run / ".tov-new").exists()


def test_a_forced_run_that_was_killed_goes_on(copy: Path) -> None:
    before = files(copy / "runs" / "a")
    with killed(function="tov.scores.store.ShardStore.write", call=3):
        select(copy, seed=3, force=True)
    assert {name: made for name, made in files(copy / "runs" / "a").items() if ".tov-new" not in name} == before
    again = select(copy, seed=3, force=True)
    events = [json.loads(line)["event"] for line in (again.folder / "events.jsonl").read_text().splitlines()]
    assert events.count("fit started") == 1, "what the killed one had fitted is taken"
    assert not (again.folder / ".tov-new").exists()


def test_folders_move_together(copy: Path, tmp_path: Path) -> None:
    """Model, pool and runs under another roof, the first one gone: every verb finds them."""
    tov.reselect(copy / "runs" / "a", n=5, out=copy / "runs" / "b", quiet=True)
    tov.score(copy / "runs" / "a", str(copy / "test.jsonl"), out=copy / "runs" / "s", quiet=True)
    new = copy.rename(tmp_path / "elsewhere")
    select(new)  # returned at once
    tov.reselect(new / "runs" / "b", n=3, out=new / "runs" / "c", quiet=True)
    tov.reselect(new / "runs" / "s", n=3, out=new / "runs" / "d", quiet=True)
    tov.score(new / "runs" / "s", str(new / "pool.jsonl"), out=new / "runs" / "s2", quiet=True)
    made = tov.train(
        new / "runs" / "b", out=new / "runs" / "m", test=str(new / "test.jsonl"), train_rows=4, device="cpu", quiet=True
    )
    assert made.manifest.status == "finished"


def test_a_model_is_known_by_its_content(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(copy / "runs" / "a", spare=TIMES)
    monkeypatch.chdir(copy)
    (copy / "link").symlink_to(copy / "model")
    shutil.copytree(copy / "model", copy / "same")
    for name in ("model", "./model", "model/", "link", "same", "../project/model"):
        select(copy, model=name)
    assert files(copy / "runs" / "a", spare=TIMES) == before
    weights = copy / "same" / "model.safetensors"
    state, changed = weights.stat(), load_file(weights)
    changed["model.norm.weight"][3] += 1e-3
    save_file(changed, weights, metadata={"format": "pt"})
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(RunError, match=r"holds another run(.|\n)*model: "):
        select(copy, model="same")


@pytest.mark.parametrize("name", ["path/manifest.json", "path/epoch-1/target/adapter_config.json"])
def test_an_artifact_that_has_decayed_is_not_used(copy: Path, name: str) -> None:
    file = copy / "runs" / "a" / name
    data = bytearray(file.read_bytes())
    at = data.index(b"1")
    data[at] = ord("2")
    file.write_bytes(data)
    run = copy / "runs" / "a"
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"status": "finished"', '"status": "running"'))
    with pytest.raises(RunError, match=r"broken|not the file that was made"):
        select(copy)


def test_names_in_a_received_folder_do_not_lead_out_of_it(copy: Path) -> None:
    victim, run = copy / "victim.txt", copy / "runs" / "a"
    victim.write_text("mine")
    other = Path(shutil.copytree(run, copy / "runs" / "b"))
    names = ["../../victim.txt", str(victim), "scores/../../../victim.txt", "a\0b"]
    facts = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**facts, "files": dict.fromkeys(names, "")}))
    (run / ".files").write_bytes(b"\xff\xfe\n../../victim.txt\n")
    before = files(other)
    select(copy, seed=3, force=True)
    assert victim.read_text() == "mine"
    for said in ('["../b/selected.jsonl"]', "null", "5", "[1]", '{"a": 1}', "{"):
        new = Path(shutil.copytree(other, run / ".tov-new", dirs_exist_ok=True))
        (new / "moves.json").write_text(said)
        kept = files(run)
        with pytest.raises(RunError, match=r"moves\.json"):
            tov.reselect(run, n=3, out=copy / "again", quiet=True)
        assert files(run, spare=(".lock",)) == {name: made for name, made in kept.items() if name != ".lock"}
    assert files(other) == before


def test_a_replacement_that_is_not_whole_or_a_link_replaces_nothing(copy: Path) -> None:
    run = copy / "runs" / "a"
    new = run / ".tov-new"
    new.mkdir()
    shutil.copy(run / "manifest.json", new)
    before = files(run)
    with pytest.raises(RunError, match="is not there"):
        tov.reselect(run, n=3, out=copy / "again", quiet=True)
    assert {name: made for name, made in files(run).items() if name != ".lock"} == {
        name: made for name, made in before.items() if name != ".lock"
    }
    shutil.rmtree(new)
    elsewhere = Path(shutil.copytree(run, copy / "elsewhere"))
    kept = files(elsewhere)
    new.symlink_to(elsewhere, target_is_directory=True)
    tov.reselect(run, n=3, out=copy / "again", quiet=True)
    assert files(elsewhere) == kept


def test_runs_copies_and_files_of_the_users_inside_a_run_stay(copy: Path) -> None:
    run = copy / "runs" / "a"
    shutil.copytree(run, run / "backup")
    tov.reselect(run, n=3, out=run / "inner", quiet=True)
    (run / ".work.tmp").mkdir()
    (run / ".work.tmp" / "thesis.txt").write_text("mine")
    (run / "report.md").write_text("mine")
    mine = {
        name: made for name, made in files(run).items() if name.startswith(("backup", "inner", ".work", "report.md"))
    }
    select(copy, seed=3, force=True)
    assert {name: files(run).get(name) for name in mine} == mine
    fitted = tov.fit(
        str(copy / "model"), str(copy / "target.jsonl"), pool=str(copy / "pool.jsonl"), out=copy / "runs" / "f",
        base_size=8, epochs=1, max_length=64, quiet=True,
    )  # fmt: skip
    (fitted.folder / "selected.jsonl").write_text("mine")
    select(copy, "runs/f", force=True)
    assert (fitted.folder / "selected.jsonl.kept").read_text() == "mine"


@pytest.mark.parametrize("name", ["scores/rows-000000000010.parquet", "selected.jsonl", "summary.md"])
def test_what_a_finished_run_has_lost_is_made_again(copy: Path, name: str) -> None:
    file = copy / "runs" / "a" / name
    was = file.read_bytes()
    file.unlink()
    select(copy)
    assert file.exists()
    assert name == "summary.md" or file.read_bytes() == was


def test_a_file_in_the_way_of_a_folder_is_kept_too(copy: Path) -> None:
    again = tov.reselect(copy / "runs" / "a", n=3, out=copy / "runs" / "c", quiet=True)
    (again.folder / "scores").write_text("mine")
    select(copy, "runs/c", force=True)
    assert (again.folder / "scores.kept").read_text() == "mine"
    tov.reselect(again.folder, n=2, out=copy / "runs" / "d", quiet=True)


@pytest.mark.parametrize("name", ["selected.jsonl", "selected.parquet"])
def test_chosen_rows_that_were_changed_are_told(copy: Path, name: str) -> None:
    file = copy / "runs" / "a" / name
    file.write_bytes(file.read_bytes()[:-1] + b" ")
    for command in (lambda: select(copy), lambda: tov.train(copy / "runs" / "a", out=copy / "m", quiet=True)):
        with pytest.raises(RunError, match=f"{name} is not the file that was made"):
            command()


def test_a_stored_adapter_names_its_modules_in_one_order(copy: Path) -> None:
    """Peft keeps them as a set, whose order is another in every process."""
    for file in (copy / "runs" / "a").rglob("adapter_config.json"):
        names = json.loads(file.read_text())["target_modules"]
        assert names == sorted(names)


def test_a_folder_that_is_there_is_filled_and_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("mine", "ours"):
        (folder / name).write_text("before")
    with atomic_folder(folder) as temporary:
        (temporary / "ours").write_text("now")
    assert {file.name: file.read_text() for file in folder.iterdir()} == {"mine": "before", "ours": "now"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_files_are_listed_for_their_own_folder_whoever_ends_first(tmp_path: Path) -> None:
    """As two runs in two threads may."""
    told: dict[str, list[str]] = {"a": [], "b": []}
    blocks = {name: listing(tmp_path / name, lambda path, name=name: told[name].append(str(path))) for name in told}
    for name in ("a", "b"):
        blocks[name].__enter__()
    blocks["a"].__exit__(None, None, None)
    write_text(tmp_path / "b" / "file", "x")
    write_text(tmp_path / "a" / "file", "x")
    blocks["b"].__exit__(None, None, None)
    assert told == {"a": [], "b": ["file"]}


def test_what_is_made_of_equal_rows_for_another_adapter_or_model_is_another_run(copy: Path) -> None:
    """Methods that read text alone choose the same rows by the same scores, whatever the adapter is to be."""
    given: dict[str, Any] = {"method": "random", "page": False, "base_size": None, "epochs": None}
    one = select(copy, "runs/one", **given, lora_r=2)
    other = select(copy, "runs/other", **given, lora_r=4)
    assert one.dataset.to_list() == other.dataset.to_list()
    made = {
        "export": lambda run: tov.export(run, to="trl", out=copy / "runs" / "e", quiet=True),
        "again": lambda run: tov.reselect(run, n=3, out=copy / "runs" / "s", page=False, quiet=True),
        "train": lambda run: tov.train(run, out=copy / "runs" / "t", train_rows=6, quiet=True),
    }
    for make in made.values():
        make(one)
        make(one)  # the same again is no other run
        with pytest.raises(RunError, match=r"chosen_for\.lora_r: 2 -> 4"):
            make(other)
