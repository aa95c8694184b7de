"""Workers and drivers on a Ray cluster, killed at random: the same command ends with the same files, and no row is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import skip_without
from killing import AT_WORK, MARK, Killer, gone, processes
from test_engines import picked, scored
from tiny import make_rows, write_jsonl

MOST = int(os.environ.get("TOV_RAY_KILLS", "8"))
"""Workers that are killed."""
DRIVERS = 2
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")]


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster of the test's own, and what its processes have in their environment: other tests may have one too."""
    skip_without("ray", install="pip install 'tov[ray]'")
    import ray

    ray.shutdown()
    name = uuid.uuid4().hex
    monkeypatch.setenv(MARK, name)
    yield name
    ray.shutdown()


def driver_of(model: Path, pool: Path, target: Path, out: Path, *more: str) -> list[str]:
    """A selection by workers of Ray, a shard a row."""
    inputs = ["--model", str(model), "--pool", str(pool), "--target", str(target), "--n", "20", "--out", str(out)]
    sizes = ["--epochs", "1", "--base-size", "8", "--max-length", "64", "--shard-rows", "1", "--dtype", "fp32"]
    return [sys.executable, "-m", "tov", "select", *inputs, *sizes, "--engine", "ray", "--quiet", *more]


def by_one_process(folder: Path, model: Path) -> tuple[Path, Path, Any]:
    """The files of a pool and a target, and the selection from them that those by Ray must equal."""
    pool = write_jsonl(folder / "pool.jsonl", make_rows(60, seed=1))
    target = write_jsonl(folder / "target.jsonl", make_rows(6, seed=2))
    return pool, target, picked(folder / "whole", model, "tov", shard_rows=1, pool=pool, target=target)


@pytest.mark.timeout(600)
def test_workers_killed_at_random_lose_nothing(tmp_path: Path, tiny_folder: Path, mark: str) -> None:
    whole = picked(tmp_path / "whole", tiny_folder, "tov", shard_rows=1)
    chance, killed, runs = random.Random(7), 0, 0
    while killed < MOST:
        out = tmp_path / f"run{runs}"
        with Killer(chance, out / "scores", AT_WORK, mark, MOST) as killer:
            run = picked(out, tiny_folder, "tov", shard_rows=1, engine="ray", workers=1)
        assert scored(run.folder) == scored(whole.folder)
        assert (run.folder / "selected.jsonl").read_bytes() == (whole.folder / "selected.jsonl").read_bytes()
        killed, runs = killed + killer.killed, runs + 1
        assert runs < 20, f"only {killed} workers were killed"


@pytest.mark.timeout(600)
def test_drivers_killed_at_random_lose_nothing(tmp_path: Path, tiny_folder: Path, mark: str) -> None:
    pool, target, whole = by_one_process(tmp_path, tiny_folder)
    command = driver_of(tiny_folder, pool, target, tmp_path / "run")
    chance, shards = random.Random(8), tmp_path / "run" / "scores"
    for number in range(DRIVERS):
        driver = subprocess.Popen(command)
        until = (number + 1) * 15 + chance.randrange(10)
        while driver.poll() is None and (not shards.exists() or len(list(shards.glob("rows-*"))) < until):
            time.sleep(0.005)
        driver.kill()
        assert driver.wait() == -signal.SIGKILL, "it ended before it was killed"
        assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] != "finished"
    subprocess.run(command, check=True)
    assert scored(tmp_path / "run") == scored(whole.folder)
    assert (tmp_path / "run" / "selected.jsonl").read_bytes() == (whole.folder / "selected.jsonl").read_bytes()
    assert gone("ray::_Worker", mark), "workers go on without their driver"


@pytest.mark.timeout(600)
def test_a_node_that_goes_with_all_its_workers_loses_nothing(tmp_path: Path, tiny_folder: Path, mark: str) -> None:
    """A cluster of two nodes, one of which is killed with what runs on it while it has shards in work."""
    from ray.cluster_utils import Cluster

    pool, target, whole = by_one_process(tmp_path, tiny_folder)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        shards, more = tmp_path / "run" / "scores", ("--ray-address", cluster.address, "--workers", "2")
        command = driver_of(tiny_folder, pool, target, tmp_path / "run", *more)
        with (tmp_path / "said").open("w") as said:
            driver = subprocess.Popen(command, stderr=said)
        while driver.poll() is None and (not shards.exists() or len(list(processes(AT_WORK, mark))) < 2):
            time.sleep(0.005)
        assert driver.poll() is None, "both nodes, of one CPU each, never had a shard in work at once"
        cluster.remove_node(node, allow_graceful=False)
        at_loss = len(list(shards.glob("rows-*")))
        assert driver.wait(timeout=300) == 0, (tmp_path / "said").read_text()
    finally:
        cluster.shutdown()
    assert at_loss < 60, "the node went after the last shard"
    assert scored(tmp_path / "run") == scored(whole.folder)
    assert (tmp_path / "run" / "selected.jsonl").read_bytes() == (whole.folder / "selected.jsonl").read_bytes()
