"""Engines of several processes: the same files as one process, and what happens when workers die, fail, dawdle or differ."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tov
from conftest import skip_without
from killing import MARK, gone, processes
from tiny import make_rows, write_jsonl
from tov.cli.main import main
from tov.config.records import SelectConfig
from tov.config.settings import build
from tov.engine import crew
from tov.engine.bench import ALIKE, Bench, Outcome, Refusal, described
from tov.engine.models import Models
from tov.engine.processes import ProcessEngine
from tov.errors import ConfigError, DataError, RunError, TovError
from tov.progress import Silent
from tov.runs.environment import versions
from tov.scores.shard import Shard
from tov.text.encode import pack
from troubled import Opens, Stillborn, Troubled


def shards(count: int) -> Iterator[Shard]:
    nothing = pack([], np.zeros(0, np.int64), np.zeros(0, np.int64))
    for start in range(count):
        yield Shard(start, start + 1, [], np.zeros(0, np.int64), nothing)


def computed(task: Any, *, workers: int = 1, count: int = 5, given_up: Any = None) -> dict[int, Any]:
    found: dict[int, Any] = {}

    def done(shard: Shard, value: Any) -> None:
        assert shard.start not in found, "a result was handed on twice"
        found[shard.start] = value

    ProcessEngine(("cpu",) * workers).map(task, shards(count), done, Silent(), given_up)
    return found


def test_no_shards_need_no_worker() -> None:
    assert computed(Troubled(Path("nowhere")), count=0) == {}


@pytest.mark.slow
def test_a_lost_worker_costs_its_shards_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Troubled(tmp_path, {1: ("dies", 1), 3: ("fails", 1)})
    assert computed(task, count=8) == {number: number**2 for number in range(8)}
    assert {file.name for file in tmp_path.iterdir()} == {"1-0", "3-0"}
    assert capsys.readouterr().err.count("a worker was lost") == 1


@pytest.mark.slow
def test_a_shard_that_fails_everywhere_is_an_error_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "TRIES", 2)
    found: dict[int, Any] = {}
    with pytest.raises(RunError) as told:
        ProcessEngine(("cpu",)).map(
            Troubled(tmp_path, {2: ("fails", 99)}), shards(5),
            lambda shard, value: found.update({shard.start: value}), Silent(),
        )  # fmt: skip
    assert found.keys() == {0, 1, 3, 4}
    assert told.value.problem.startswith(
        "Pool rows 2 to 2 could not be computed: failed on 2 workers: RuntimeError: CUDA"
    )
    assert "--on-bad-row quarantine" in told.value.fix


@pytest.mark.slow
def test_or_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "TRIES", 1)
    monkeypatch.setattr(crew, "LOSSES", 2)
    given: list[Any] = []
    found = computed(
        Troubled(tmp_path, {1: ("dies", 99), 3: ("fails", 99)}),
        given_up=lambda shard, why: given.append((shard.start, why)),
    )  # fmt: skip
    assert found.keys() == {0, 2, 4}
    assert given == [
        (1, "2 workers were lost over it"),
        (3, "failed on a worker: RuntimeError: CUDA error: an illegal memory access was encountered"),
    ]


@pytest.mark.slow
def test_an_error_of_the_users_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError) as told:
        computed(Troubled(tmp_path, {2: ("is the user's", 1)}))
    assert (told.value.problem, told.value.allowed) == ("pool.jsonl, row 3: no answer.", "rows with one")
    assert told.value.fix == "Correct the row."


@pytest.mark.slow
def test_a_slow_worker_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "SLOW_SECONDS", 0.5)
    begun = time.monotonic()
    found = computed(Troubled(tmp_path, {2: ("dawdles", 1)}), workers=2, count=6)
    assert found == {number: number**2 for number in range(6)}
    assert time.monotonic() - begun < 300


@pytest.mark.slow
def test_workers_that_all_die_are_an_error_and_not_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "STILLBORN", 1)
    with pytest.raises(
        RunError, match=r"workers ended one after another without a result; the last one: cpu: exit code 3\."
    ):
        computed(Stillborn(), given_up=print)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
@pytest.mark.parametrize("moment", ["they start", "they work"])
def test_workers_end_with_a_killed_driver(moment: str, tmp_path: Path, tiny_folder: Path) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", make_rows(300, seed=1))
    target = write_jsonl(tmp_path / "target.jsonl", make_rows(6, seed=2))
    inputs = ["--model", tiny_folder, "--pool", pool, "--target", target, "--out", tmp_path / "run"]
    chosen = ["--n", 2, "--epochs", 1, "--base-size", 8, "--max-length", 64, "--shard-rows", 1, "--dtype", "fp32"]
    words = ["select", *inputs, *chosen, "--devices", "cpu,cpu", "--quiet"]
    mark, worker = uuid.uuid4().hex, "tov.engine.processes"
    driver = subprocess.Popen([sys.executable, "-m", "tov", *map(str, words)], env={**os.environ, MARK: mark})
    shards = tmp_path / "run" / "scores"
    while driver.poll() is None and not (
        len(list(processes(worker, mark))) == 2 and (moment == "they start" or list(shards.glob("rows-*")))
    ):
        time.sleep(0.01)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert gone(worker, mark), "workers go on without their driver"


# Workers that are not of one kind with the driver


def test_a_worker_of_another_version_is_refused(tmp_path: Path) -> None:
    sent = described(Troubled(tmp_path), Models(), 1)
    assert sent.versions.keys() == set(ALIKE)
    assert Bench(sent).compute(next(shards(1))).value == 0
    other = replace(sent, versions={**sent.versions, "torch": "1.0"})
    refused = Bench(other).compute(next(shards(1))).error
    assert refused
    assert refused.kind == "RunError"
    assert f"A worker has torch {versions()['torch']}, but the driver has 1.0" in refused.problem


def test_a_worker_with_another_model_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    from tov.engine.models import Lora, ModelSpec

    spec = ModelSpec(str(tiny_folder), "instruction", (), 0, Lora(2, 8.0, 0.0, ("all-linear",)), 64, "auto", "cpu")

    models = Models()
    models.open(spec)
    sent = described(Opens(spec), models, 1)
    assert Bench(sent).compute(next(shards(1))).value == 0
    weights, tokens, dtype, *rest = sent.models[spec]
    others = {"dtype": [weights, tokens, "fp64", *rest], "weights": ["another", tokens, dtype, *rest]}
    for name, fingerprint in others.items():
        refused = Bench(replace(sent, models={spec: fingerprint})).compute(next(shards(1))).error
        assert refused
        assert f"A worker opens another model {spec.name} than the driver: {name} " in refused.problem


def test_a_worker_with_another_model_is_refused_by_whatever_name_the_task_has_it(tiny_folder: Path) -> None:
    """A task may be sent with dtype and device named, as the driver's model has them, or with `auto`."""
    from tov.engine.models import Lora, ModelSpec

    spec, models = ModelSpec(str(tiny_folder), "instruction", (), 0, Lora(2, 8.0, 0.0, ("all-linear",)), 64), Models()
    named = models.open(spec).spec
    assert named != spec
    for one in (spec, named):
        sent = described(Opens(one), models, 1)
        assert Bench(sent).compute(next(shards(1))).value == 0
        other = {known: ["another", *fingerprint[1:]] for known, fingerprint in sent.models.items()}
        refused = Bench(replace(sent, models=other)).compute(next(shards(1))).error
        assert refused
        assert "A worker opens another model" in refused.problem


class ByTheClock:
    """A crew in this process: a worker computes its pieces one after another, each in its own time."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self.size, self.seconds, self.hired = len(seconds), seconds, 0
        self.ready: list[crew.News] = []
        self.ends: dict[int, deque[tuple[float, int]]] = {}

    def hire(self) -> int:
        worker, self.hired = self.hired, self.hired + 1
        self.ends[worker] = deque()
        self.ready.append(crew.News(worker))
        return worker

    def send(self, worker: int, piece: Any) -> None:
        queue, now = self.ends[worker], time.monotonic()
        queue.append(((queue[-1][0] if queue else now) + self.seconds[worker], piece.start))

    def news(self, seconds: float) -> list[crew.News]:
        until = time.monotonic() + seconds
        while True:
            heard, self.ready = self.ready, []
            for worker, queue in self.ends.items():
                while queue and queue[0][0] <= time.monotonic():
                    start = queue.popleft()[1]
                    heard.append(crew.News(worker, start, Outcome(start**2, seconds=0.01)))
            if heard or time.monotonic() >= until:
                return heard
            time.sleep(0.005)

    def dismiss(self, worker: int) -> None:
        self.ends.pop(worker, None)


def test_what_another_worker_has_finished_meanwhile_is_nobodys_next_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow worker's second piece is given to an idle one too, and ends there before the first one does here."""
    monkeypatch.setattr(crew, "SLOW", 0.0)
    monkeypatch.setattr(crew, "SLOW_SECONDS", 0.05)
    found: dict[int, int] = {}
    crew.walk(ByTheClock([1.0, 0.01, 2.0]), shards(6), lambda shard, value: found.update({shard.start: value}), None)
    assert found == {number: number**2 for number in range(6)}


@pytest.mark.parametrize("kind_of", [one for one in TovError.__subclasses__() if one.__module__ == "tov.errors"])
def test_every_error_survives_the_way(kind_of: type[TovError]) -> None:
    again = Refusal.of(kind_of("what.", allowed="this", fix="Do that.")).raised()
    assert type(again) is kind_of
    assert (again.problem, again.allowed, again.fix) == ("what.", "this", "Do that.")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workers", "0:2", "--engine", "ray"], "--workers got '0:2', but must be MIN:MAX or one number"),
        (["--workers", "3:2", "--engine", "ray"], "MIN:MAX"),
        (["--workers", "x", "--engine", "ray"], "MIN:MAX"),
        (["--devices", "0,0"], "0 stands there twice"),
        (["--devices", "gpu"], "numbers of GPUs, or cpu"),
        (["--devices", "77"], "this machine has no GPU 77"),
        (["--devices", "0", "--device", "cpu"], "contradict each other"),
        (["--devices", "0", "--engine", "ray"], "starts its own workers"),
        (["--engine", "ray", "--gpus-per-worker", "-1"], "--gpus-per-worker"),
        (["--engine", "ray", "--ray-address", "127.0.0.1:1"], "There is no Ray cluster to be had at 127.0.0.1:1"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], says: str, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--ray-address" in words:
        skip_without("ray", install="pip install 'tov[ray]'")
    pool, target = (write_jsonl(tmp_path / f"{seed}.jsonl", make_rows(9, seed=seed)) for seed in (1, 2))
    with pytest.raises(SystemExit) as ended:
        main(["select", "--model", str(tiny_folder), "--pool", str(pool), "--target", str(target), "--n", "2",
              "--out", str(tmp_path / "run"), *words])  # fmt: skip
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run" / "scores").exists()


def test_words_become_settings() -> None:
    given = {"model": "m", "pool": ["p"], "target": ["t"], "n": 1, "out": "auto"}
    settings = build(SelectConfig, {**given, "engine": "ray", "workers": "4", "gpus_per_worker": 0.5})
    assert (settings.workers, settings.gpus_per_worker) == ("4:4", 0.5)
    assert build(SelectConfig, {**given, "devices": ["0,1", "2"]}).devices == ("0", "1", "2")
    assert build(SelectConfig, {**given, "devices": "cpu, cpu", "device": "cpu"}).devices == ("cpu", "cpu")


# Whole runs

GIVEN: dict[str, Any] = {
    "n": 20, "epochs": 1, "base_size": 8, "max_length": 64, "shard_rows": 10, "dtype": "fp32", "quiet": True,
}  # fmt: skip
METHODS = {"tov": "cpu,cpu", "less": "cpu", "bm25": "cpu"}


def picked(out: Path, model: Path, method: str, **more: Any) -> Any:
    given = {name: value for name, value in GIVEN.items() if name not in ("epochs", "base_size") or method == "tov"}
    inputs = {"pool": make_rows(60, seed=1), "target": make_rows(6, seed=2)}
    return tov.select(**{"model": str(model), **inputs, "out": out, "method": method, **given, **more})


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_several_processes_leave_the_files_of_one(method: str, tmp_path: Path, tiny_folder: Path) -> None:
    if method == "bm25":
        skip_without("bm25s", install="pip install bm25s")
    one = picked(tmp_path / "one", tiny_folder, method)
    several = picked(tmp_path / "several", tiny_folder, method, devices=METHODS[method])
    assert scored(several.folder) == scored(one.folder)
    assert (several.folder / "selected.jsonl").read_bytes() == (one.folder / "selected.jsonl").read_bytes()


@pytest.mark.slow
def test_a_cluster_leaves_the_files_of_one_process(tmp_path: Path, tiny_folder: Path) -> None:
    skip_without("ray", install="pip install 'tov[ray]'")
    from tov.engine.on_ray import connected

    one = picked(tmp_path / "one", tiny_folder, "less")
    several = picked(tmp_path / "several", tiny_folder, "less", engine="ray", workers=1)
    assert scored(several.folder) == scored(one.folder)
    assert (several.folder / "selected.jsonl").read_bytes() == (one.folder / "selected.jsonl").read_bytes()
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(ConfigError, match="is connected to the Ray cluster"),
    ):
        connected(f"127.0.0.1:{other.getsockname()[1]}")
    assert connected(None) is connected("auto")


def scored(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("scores/*"), *folder.glob("artifacts/*/**/*.parquet")]
    assert files
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_where_shards_are_computed_is_no_part_of_a_run(tmp_path: Path, tiny_folder: Path) -> None:
    one = picked(tmp_path / "run", tiny_folder, "rds")
    before = (one.folder / "manifest.json").read_bytes()
    picked(tmp_path / "run", tiny_folder, "rds", devices="cpu")
    assert (one.folder / "manifest.json").read_bytes() == before
