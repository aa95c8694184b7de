"""Object stores: inputs and runs at s3:// URLs, against a real S3 server on loopback (moto), with kills and a line that breaks.

What this does not prove: throttling, credentials, delays of a store far away, and stores other than S3.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tov
from conftest import skip_without
from tiny import make_rows, tiny_model_folder, write_jsonl
from tov.config.records import SelectConfig
from tov.config.settings import build
from tov.engine.models import Models, ModelSpec
from tov.errors import ConfigError, DataError, RunError, StorageError
from tov.files import write_text
from tov.inputs.read import read_pool
from tov.methods.registry import find_method
from tov.objects import lease as leases
from tov.objects import mirror as mirrors
from tov.objects import stores
from tov.runs.folder import Run, open_run, run_folder, work_on
from tov.scores.shard import ShardReader

PLAIN: dict[str, Any] = {
    "n": 8, "base_size": 8, "epochs": 1, "max_length": 64, "shard_rows": 16, "quiet": True, "dtype": "fp32",
    "explain_rows": 4,
}  # fmt: skip
pytestmark = [  # of s3fs and of the server, which leave sockets to the collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TIMELESS = ("selected.jsonl", "selected.parquet", "shown.json")


class Line:
    """A TCP line to the server that can be cut: every connection through it then ends at once."""

    def __init__(self, port: int) -> None:
        self.server, self.cut, self.refused = port, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while self.listener.fileno() >= 0:
            with suppress(OSError):
                client, _ = self.listener.accept()
                if self.cut:
                    self.cut, self.refused = self.cut - 1, self.refused + 1
                    client.close()
                    continue
                there = socket.create_connection(("127.0.0.1", self.server))
                for one, other in ((client, there), (there, client)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                if self.cut:
                    break
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    skip_without("moto", install="pip install 'moto[s3]' flask flask-cors")
    skip_without("s3fs", install="pip install 'tov[s3]'")
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    found = Line(port)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "any"), ("SECRET_ACCESS_KEY", "any"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{found.port}")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        # The process may have had a server before, whose client and content are still there.
        type(store()).clear_instance_cache()
        urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/reset", data=b"").close()
        store().mkdir("bucket")
        yield found
    found.listener.close()
    server.stop()


def store() -> Any:
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, line: Line) -> Path:
    """A tiny model; pool, target and test here and in the store."""
    folder = tmp_path_factory.mktemp("objects")
    tiny_model_folder(folder)
    rows = {
        "pool/a": make_rows(40, seed=1),
        "pool/b": make_rows(24, seed=3),
        "target": make_rows(8, seed=2),
        "test": make_rows(6, seed=9),
    }
    (folder / "pool").mkdir()
    for name, found in rows.items():
        write_jsonl(folder / f"{name}.jsonl", found)
        store().put_file(str(folder / f"{name}.jsonl"), f"bucket/{name}.jsonl")
    return folder


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, as another machine has one."""
    monkeypatch.setenv("TOV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stores, "WAITS", (0.01, 0.05, 0.1))
    mirrors._PULLED.clear()
    return tmp_path / "cache"


def settings(files: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": str(files / "tiny-model"),
        "pool": "s3://bucket/pool/*.jsonl",
        "target": "s3://bucket/target.jsonl",
        **PLAIN,
        **more,
    }


@pytest.fixture(scope="module")
def here(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same selection from files, in a local folder."""
    out = tmp_path_factory.mktemp("here") / "run"
    return tov.select(
        **settings(files, pool=str(files / "pool" / "*.jsonl"), target=str(files / "target.jsonl")), out=out
    )


def shards_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "scores").glob("rows-*.parquet"))}


def another_machine() -> None:
    shutil.rmtree(stores.cache_folder(), ignore_errors=True)
    mirrors._PULLED.clear()


@pytest.mark.slow
def test_a_run_at_a_url_has_the_files_of_a_local_one(files: Path, here: Any) -> None:
    run = tov.select(**settings(files), out="s3://bucket/runs/a/")
    assert shards_of(run.folder) == shards_of(here.folder)
    for name in TIMELESS:
        assert (run.folder / name).read_bytes() == (here.folder / name).read_bytes(), name
    names = {str(file.relative_to(here.folder)) for file in here.folder.rglob("*") if file.is_file()} - {".lock"}
    there = {path.removeprefix("bucket/runs/a/") for path in store().find("bucket/runs/a")}
    assert there == names, "no lease and no list stays behind"
    for name in names - {
        "manifest.json",
        "events.jsonl",
        "config.yaml",
        "summary.md",
        "report.html",
        "path/manifest.json",
    }:
        assert store().cat_file(f"bucket/runs/a/{name}") == (run.folder / name).read_bytes(), name
    assert "8 rows in s3://bucket/runs/a/selected.jsonl" in str(run)
    assert run.manifest.inputs.pool == ["s3://bucket/pool/*.jsonl"]
    assert set(run.scores["source"].to_pylist()) == {"a", "b"}


@pytest.mark.slow
def test_another_machine_reads_it_chooses_again_and_trains(files: Path, here: Any, tmp_path: Path) -> None:
    tov.select(**settings(files), out="s3://bucket/runs/read")
    another_machine()
    again = tov.reselect("s3://bucket/runs/read", n=5, out="s3://bucket/runs/five", quiet=True)
    assert again.manifest.origin.scores == "s3://bucket/runs/read/scores"
    wanted = tov.reselect(here, n=5, out=tmp_path / "five", quiet=True)
    assert again.dataset["tov_row_id"] == wanted.dataset["tov_row_id"]
    another_machine()
    row = again.dataset["tov_row_id"][0]
    assert "Token by token" in str(tov.inspect("s3://bucket/runs/five", [row]))
    assert "By score" in str(tov.inspect("s3://bucket/runs/five", [row], tokens=False))
    trained = tov.train("s3://bucket/runs/five", out="s3://bucket/runs/trained", train_rows=16, quiet=True)
    assert store().exists("bucket/runs/trained/adapter/adapter_model.safetensors")
    assert trained.manifest.origin.run == "s3://bucket/runs/five"
    scored = tov.score("s3://bucket/runs/read", pool="s3://bucket/pool/a.jsonl", out=tmp_path / "scored", quiet=True)
    np.testing.assert_allclose(
        scored.scores["score_positive"].to_numpy(), here.scores["score_positive"].to_numpy()[:40], rtol=1e-4, atol=1e-6
    )


ELSEWHERE = """
import pickle, sys
from tov.engine.models import Models
with open(sys.argv[1], "rb") as file:
    scorer, shard = pickle.load(file)
with scorer.open(Models()) as score:
    found = score(shard)
with open(sys.argv[2], "wb") as file:
    pickle.dump(found, file)
"""


@pytest.mark.slow
def test_a_worker_of_another_machine_fetches_what_it_needs(files: Path, tmp_path: Path) -> None:
    """A scorer of a run at a URL, opened by a process with an empty cache."""
    run = tov.select(**settings(files), out="s3://bucket/runs/worker")
    method, built = find_method("tov"), build(SelectConfig, {**settings(files), "out": "o"}).for_task("instruction")
    rows = read_pool(["s3://bucket/pool/*.jsonl"], built, np.empty(0, np.uint64), decontaminate=False)
    built = built.model_copy(update={"model": str(files / "tiny-model")})
    scorer = method.reuse(run.run.artifacts, built, Models())
    assert scorer
    reader = ShardReader(rows.pool, rows.index, rows.excluded, ModelSpec.of(built, ()).encoder(), 16)
    (tmp_path / "sent").write_bytes(pickle.dumps((scorer, reader.read(0, 16))))
    environment = {**os.environ, "TOV_CACHE": str(tmp_path / "theirs"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "sent"), str(tmp_path / "found")]
    subprocess.run(command, check=True, timeout=300, env=environment)
    found = pickle.loads((tmp_path / "found").read_bytes())
    np.testing.assert_allclose(
        found["score_positive"], run.scores["score_positive"].to_numpy()[:16], rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
def test_a_page_is_put_into_the_run(files: Path, tmp_path: Path) -> None:
    tov.select(**settings(files, page=False), out="s3://bucket/runs/page")
    assert not store().exists("bucket/runs/page/report.html")
    another_machine()
    tov.report("s3://bucket/runs/page")
    assert b"s3://bucket/runs/page" in store().cat_file("bucket/runs/page/report.html")
    another_machine()
    assert "report.html" in open_run("s3://bucket/runs/page").manifest.files
    with pytest.raises(ConfigError, match="is a URL"):
        tov.report("s3://bucket/runs/page", out="s3://bucket/page.html")


@pytest.mark.slow
def test_a_comparison_at_a_url_goes_on_elsewhere(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tov.comparison import trainings

    given = {
        **settings(files),
        "test": "s3://bucket/test.jsonl",
        "sizes": [6],
        "seeds": 1,
        "methods": ["random", "tov", "bm25"],
    }
    given = {name: value for name, value in given.items() if name not in ("n", "explain_rows")} | {"train_rows": 16}
    train, made = trainings.trained, list[int]()

    def ends_after_two(*given: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return train(*given)

    monkeypatch.setattr(trainings, "trained", ends_after_two)
    with pytest.raises(KeyboardInterrupt):
        tov.compare(**given, out="s3://bucket/runs/compared")
    another_machine()
    made.clear()
    monkeypatch.setattr(trainings, "trained", lambda *given: made.append(1) or train(*given))
    tov.compare(**given, out="s3://bucket/runs/compared")
    lines = [json.loads(one) for one in store().cat_file("bucket/runs/compared/trials.jsonl").decode().splitlines()]
    assert len({(one["variant"], one["n"], one["seed"]) for one in lines}) == len(lines), "no training was made twice"
    assert 0 < len(made) == len(lines) - 2


@pytest.mark.slow
@pytest.mark.parametrize("after", [2])
def test_a_driver_that_is_killed_loses_no_finished_shard_on_another_machine(
    after: int, files: Path, here: Any, tmp_path: Path, machine: Path
) -> None:
    """SIGKILL of a real process after so many shards; the next one, with an empty cache, waits for no dead process."""
    url = f"s3://bucket/runs/killed-{after}"
    given = settings(files)
    words = [
        part
        for name, value in given.items()
        if name not in ("quiet",)
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    driver = subprocess.Popen(
        [sys.executable, "-m", "tov", "select", *words, "--quiet", "--out", url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    shards = f"{url.removeprefix('s3://')}/scores"
    until = time.monotonic() + 120
    while driver.poll() is None and time.monotonic() < until:
        with suppress(FileNotFoundError):
            if len(store().ls(shards)) >= after:
                break
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = {path: store().info(path)["LastModified"] for path in store().find(shards)}
    assert len(kept) >= after
    shutil.rmtree(machine)
    run = tov.select(**given, out=url)
    assert {path: store().info(path)["LastModified"] for path in kept} == kept, "a finished shard was scored again"
    assert shards_of(run.folder) == shards_of(here.folder)
    assert (run.folder / "selected.jsonl").read_bytes() == (here.folder / "selected.jsonl").read_bytes()


@pytest.mark.slow
def test_two_drivers_do_not_work_in_one_run(files: Path, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "s3://bucket/runs/two"
    place = mirrors.local(url)
    with mirrors.held(place):
        with pytest.raises(RunError, match=r"Another process is at work in s3://bucket/runs/two \(on this machine\)"):
            tov.select(**settings(files), out=url)
        monkeypatch.setenv("TOV_CACHE", str(machine.with_name("other")))
        with pytest.raises(
            RunError,
            match=rf"at work in s3://bucket/runs/two \({socket.gethostname()}, process {os.getpid()}; its lease ends in",
        ):
            tov.select(**settings(files), out=url)
    assert len(tov.select(**settings(files), out=url).dataset) == 8


def test_of_two_that_come_at_once_one_has_the_lease(line: Line) -> None:
    begun, won, refused = threading.Barrier(4), list[str](), list[str]()

    def come() -> None:
        one = leases.Lease(store(), "bucket/race", "s3://bucket/race")
        begun.wait()
        try:
            with one.hold():
                won.append(one.id)
                time.sleep(1.0)
        except RunError as error:
            refused.append(error.problem)

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 3)
    assert not store().find("bucket/race"), "the lease is given back"


def test_a_lease_that_is_over_is_taken_and_its_holder_writes_no_more(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder is a machine that sleeps: its lease ends, another one takes it, and the first finds out when it wakes."""
    monkeypatch.setattr(leases, "LEASE", 0.3)
    monkeypatch.setattr(leases, "SKEW", 0.0)
    monkeypatch.setattr(leases, "RENEW", 0.8)
    mine, other = (leases.Lease(store(), "bucket/slept", "s3://bucket/slept") for _ in range(2))
    with mine.hold():
        mine.check()
        time.sleep(0.4)
        with other.hold():
            time.sleep(0.9)
            with pytest.raises(RunError, match="taken over"):
                mine.check()
            other.check()


def test_a_holder_that_slept_through_another_ones_work_writes_no_more(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has taken over and ended while the first one slept: nothing of its lease is left."""
    monkeypatch.setattr(leases, "LEASE", 0.3)
    monkeypatch.setattr(leases, "SKEW", 0.0)
    mine, other = (leases.Lease(store(), "bucket/slept-long", "s3://bucket/slept-long") for _ in range(2))
    with mine.hold():
        time.sleep(0.4)
        with other.hold():
            pass
        assert not store().find("bucket/slept-long")
        with pytest.raises(RunError, match="taken over"):
            mine.check()
    assert not store().find("bucket/slept-long")


def test_a_run_below_the_url_of_another_is_a_run_of_its_own(line: Line) -> None:
    def made(url: str) -> Run:
        with work_on(run_folder(url, {}), command="select", identity={}, settings={"model": "m"}) as run:
            write_text(run.folder / "a.txt", url)
            run.finish()
        return run

    made("s3://bucket/outer")
    inner = made("s3://bucket/outer/inner")
    assert mirrors.named(inner.folder) == "s3://bucket/outer/inner"
    assert store().cat_file("bucket/outer/inner/a.txt") == b"s3://bucket/outer/inner"
    mirrors._PULLED.clear()
    open_run("s3://bucket/outer")
    assert (inner.folder / "a.txt").exists()
    assert mirrors.local("s3://bucket/outer/a.txt").read_text() == "s3://bucket/outer", "a part of it is found in it"


@pytest.mark.slow
@pytest.mark.parametrize("removals", range(1, 7))
def test_a_kill_while_the_last_of_force_is_removed_leaves_the_new_run(
    removals: int, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(which: str, *, force: bool = False) -> None:
        with work_on(
            run_folder(url, {}), command="select", identity={"which": which}, settings={"model": "m"}, force=force
        ) as run:
            write_text(run.folder / "a.txt", which)
            write_text(run.folder / "scores" / "b.txt", which)
            run.finish()

    url, done = f"s3://bucket/forced-{removals}", [0]
    made("old")
    tried = mirrors.tried

    def killed(verb: str, at: str, ask: Any) -> Any:
        removed = getattr(ask, "args", ())
        done[0] += len(removed) == 1 and verb == "written" and ".tov-new" in removed[0]
        if done[0] > removals:
            raise KeyboardInterrupt
        return tried(verb, at, ask)

    monkeypatch.setattr(mirrors, "tried", killed)
    with suppress(KeyboardInterrupt):
        made("new", force=True)
    monkeypatch.undo()
    another_machine()
    run = open_run(url)
    assert run.finished
    assert (run.folder / "a.txt").read_text() == "new"


@pytest.mark.slow
def test_a_line_that_is_cut_for_a_while_is_waited_for(files: Path, here: Any, line: Line) -> None:
    before = line.refused
    timer = threading.Timer(1.0, lambda: setattr(line, "cut", 3))
    timer.start()
    run = tov.select(**settings(files), out="s3://bucket/runs/cut")
    timer.join()
    assert line.refused > before, "the line was not cut while it was needed"
    assert (run.folder / "selected.jsonl").read_bytes() == (here.folder / "selected.jsonl").read_bytes()


def test_a_store_that_stays_away_is_told(files: Path, line: Line) -> None:
    line.cut = 10_000
    try:
        with pytest.raises(StorageError, match="could not be read"):
            tov.select(**settings(files), out="s3://bucket/runs/away")
    finally:
        line.cut = 0


def test_what_has_changed_in_the_store_is_fetched_anew_and_nothing_else(files: Path, tmp_path: Path) -> None:
    store().pipe_file("bucket/changing/one.jsonl", (files / "target.jsonl").read_bytes())
    [first] = stores.fetched("s3://bucket/changing/one.jsonl")
    time_of_copy = first.stat().st_mtime_ns
    assert stores.fetched("s3://bucket/changing/one.jsonl") == [first]
    assert first.stat().st_mtime_ns == time_of_copy
    store().pipe_file("bucket/changing/one.jsonl", (files / "test.jsonl").read_bytes())
    [second] = stores.fetched("s3://bucket/changing/one.jsonl")
    assert second.read_bytes() == (files / "test.jsonl").read_bytes()
    assert first.name == second.name == "one.jsonl"


def test_names_patterns_and_folders_are_sources_as_files_are(files: Path) -> None:
    from tov.data.sources import open_sources

    named = open_sources(["mine=s3://bucket/pool/*.jsonl", "s3://bucket/pool/b.jsonl"])
    beside = store()
    beside.put_file(str(files / "test.jsonl"), "bucket/mixed/a.jsonl")
    beside.put_file(str(files / "test.jsonl"), "bucket/mixed/more/b.jsonl")
    assert [len(one.table) for one in open_sources(["s3://bucket/mixed/*"])] == [6], "a folder is no file"
    assert [(one.name, len(one.table)) for one in named] == [("mine", 64), ("b", 24)]
    [folder] = open_sources(["s3://bucket/pool"])
    assert (folder.name, len(folder.table), folder.location) == ("pool", 64, "s3://bucket/pool")


@pytest.mark.slow
def test_force_replaces_a_run_and_leaves_nothing_of_it(files: Path) -> None:
    tov.select(**settings(files), out="s3://bucket/runs/force")
    tov.select(**{**settings(files), "shard_rows": 32}, out="s3://bucket/runs/force", force=True)
    shards = [path for path in store().find("bucket/runs/force") if "rows-" in path]
    assert len(shards) == 2
    assert not [path for path in store().find("bucket/runs/force") if ".tov-new" in path or ".lease" in path]
    another_machine()
    assert open_run("s3://bucket/runs/force").finished
    with pytest.raises(RunError, match="s3://bucket/runs/force holds another run"):
        tov.select(**settings(files), out="s3://bucket/runs/force")


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"pool": "s3://bucket/nowhere.jsonl"}, DataError, "There is no object 's3://bucket/nowhere.jsonl'"),
        ({"pool": "s3://bucket/none*.jsonl"}, DataError, "No object matches"),
        ({"pool": "nonsense://bucket/x.jsonl"}, ConfigError, "Correct the URL"),
        ({"out": "hf://datasets/me/run"}, ConfigError, "a run folder cannot be at hf://"),
        ({"out": "https://example.org/run"}, ConfigError, "a run folder cannot be at https://"),
        ({"method": "less/dim=64/store=s3://bucket/store"}, ConfigError, "a local folder"),
        ({"pool": "s3://no-such-bucket/x.jsonl"}, DataError, "There is no object"),
        ({"lora_target_modules": ("nowhere",)}, ConfigError, "nowhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(changed: dict[str, Any], kind: type[Exception], said: str, files: Path) -> None:
    with pytest.raises(kind, match=said):
        tov.select(**{**settings(files), "out": "s3://bucket/runs/wrong", **changed})
    assert not [path for path in store().find("bucket/runs/wrong") if ".lease" not in path]


def test_a_refusal_beside_a_cache_that_is_gone_takes_nothing_from_the_store(line: Line) -> None:
    folder = mirrors.local("s3://bucket/runs/gone")
    name = "scores/rows-000000000000.parquet"

    def refused() -> None:
        with work_on(folder, command="select", identity={}, settings={}):
            write_text(folder / name, "work")
            shutil.rmtree(folder)
            raise RunError("gone")

    with pytest.raises(RunError, match="gone"):
        refused()
    assert store().exists(f"bucket/runs/gone/{name}")
    shutil.rmtree(folder)
    assert (mirrors.local("s3://bucket/runs/gone") / name).read_text() == "work"


def test_a_package_that_is_missing_is_named(files: Path) -> None:
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="pip install gcsfs"):
            tov.select(**{**settings(files), "pool": "gs://bucket/x.jsonl"}, out="s3://bucket/runs/wrong")
    else:
        pytest.skip("gcsfs is installed")
