"""Trainings of a comparison and of pilots on several workers: the records of one process, whatever befalls a worker."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import skip_without
from faults import killed
from test_compare import compare
from test_engines import picked, scored
from test_gate import select
from tov.comparison.trainings import Training
from tov.engine import crew
from tov.engine.local import LocalEngine
from tov.engine.making import Only
from tov.engine.processes import ProcessEngine, _Processes
from tov.errors import DataError, NumericError
from troubled import Meeting, Troubled

pytestmark = pytest.mark.slow

FEW: dict[str, Any] = {"methods": ["random", "zero-shot"], "seeds": 1, "dtype": "fp32"}
"""No scans, so that all workers train; five trials."""


def jobs(count: int) -> Iterator[Training]:
    for place in range(count):
        yield Training(place, None)


def ran(engine: Any, task: Any, count: int = 4) -> tuple[dict[int, Any], dict[int, str]]:
    done, failed = dict[int, Any](), dict[int, str]()
    engine.run(
        task, jobs(count), lambda job, value: done.update({job.start: value}),
        lambda job, why: failed.update({job.start: why}),
    )  # fmt: skip
    return done, failed


def records(folder: Path, name: str = "trials.jsonl") -> dict[tuple[str, int, int], dict[str, Any]]:
    """Trial -> its record, without what no two runs share; a trial that is there twice is an error."""
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    found = {(one["variant"], one["n"], one["seed"]): timeless(one) for one in lines}
    assert len(found) == len(lines), "a finished trial was run again"
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):  # a file that tells of seconds has another size, too
        return {name: timeless(one) for name, one in value.items() if name not in ("seconds", "bytes")}
    return value


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[Any, Any]:
    """The records of one process."""
    return records(compare(tmp_path_factory.mktemp("alone") / "run", tiny_folder, **FEW).folder)


def test_a_job_that_fails_everywhere_is_told_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where so many fail in a row that shards would be given up."""
    monkeypatch.setattr(crew, "STILLBORN", 1)
    monkeypatch.setattr(crew, "TRIES", 2)
    task = Troubled(tmp_path, {0: ("fails", 99), 1: ("dies", 1), 2: ("fails", 1)})
    done, failed = ran(ProcessEngine(("cpu",)), task)
    assert done == {1: 1, 2: 4, 3: 9}
    assert failed == {0: "failed on 2 workers: RuntimeError: CUDA error: an illegal memory access was encountered"}


def test_one_process_tells_of_it_too(tmp_path: Path) -> None:
    done, failed = ran(LocalEngine(), Troubled(tmp_path, {0: ("fails", 1)}))
    assert done == {1: 1, 2: 4, 3: 9}
    assert failed == {0: "RuntimeError: CUDA error: an illegal memory access was encountered"}


@pytest.mark.parametrize("engine", [LocalEngine(), ProcessEngine(("cpu",))])
def test_an_error_of_the_users_ends_the_walk_on_every_engine(engine: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 3: no answer"):
        ran(engine, Troubled(tmp_path, {1: ("is the user's", 1)}))


def test_two_jobs_are_done_side_by_side(tmp_path: Path) -> None:
    assert ran(ProcessEngine(("cpu", "cpu")), Meeting(tmp_path), 2) == ({0: "met", 1: "met"}, {})


def test_a_worker_killed_in_a_training_costs_that_training_alone(
    tmp_path: Path, tiny_folder: Path, alone: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sent, calls = list[int](), itertools.count(1)

    def send(self: _Processes, worker: int, piece: Training, made: Any = _Processes.send) -> None:
        made(self, worker, piece)
        sent.append(piece.start)
        if next(calls) == 2:
            self.processes[worker].popen.kill()

    monkeypatch.setattr(_Processes, "send", send)
    compared = compare(tmp_path / "run", tiny_folder, **FEW, devices="cpu")
    assert sent == [0, 1, 1, 2, 3, 4]
    assert records(compared.folder) == alone
    assert capfd.readouterr().err.count("a worker was lost") == 1


def test_trainings_that_fail_are_recorded_as_by_one_process(tmp_path: Path, tiny_folder: Path) -> None:
    given = {**FEW, "train_learning_rate": 1e30}
    one, several = (
        records(compare(tmp_path / name, tiny_folder, **given, **more).folder)
        for name, more in (("one", {}), ("several", {"devices": "cpu,cpu"}))
    )
    assert several == one
    errors = {n: record["error"] for (name, n, _), record in one.items() if name == "random"}
    assert len(errors) == 4
    assert all(error.startswith("NumericError: ") and "--train-learning-rate" in error for error in errors.values())
    assert one["zero-shot", 0, 0]["status"] == "done"


def test_a_metric_of_the_users_is_computed_and_fails_where_the_driver_is(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a worker need not have its module."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_moody_metric.py").write_text(
        "import os\nwhere = []\ndef moody(references, answers):\n    where.append(os.getpid())\n"
        "    return 0.5 if len(where) > 1 else 1 / 0\n"
    )
    given = {**FEW, "exact_match": 2, "metric": "my_moody_metric:moody", "devices": "cpu"}
    found = records(compare(tmp_path / "run", tiny_folder, **given).folder)
    assert sorted(str(one.get("metric")) for one in found.values()) == ["0.5"] * 4 + ["None"]
    assert [one["error"].splitlines()[0] for one in found.values() if one["status"] == "failed"] == [
        "ConfigError: --metric my_moody_metric:moody failed: ZeroDivisionError: division by zero"
    ]
    assert sys.modules["my_moody_metric"].where == [os.getpid()] * 5


def test_a_killed_driver_goes_on_trial_by_trial(tmp_path: Path, tiny_folder: Path, alone: Any) -> None:
    with killed(function="tov.comparison.records.append_json_line", call=3):
        compare(tmp_path / "run", tiny_folder, **FEW, devices="cpu")
    before = (tmp_path / "run" / "trials.jsonl").read_bytes()
    assert before.count(b"\n") == 2
    compare(tmp_path / "run", tiny_folder, **FEW, devices="cpu")
    assert (tmp_path / "run" / "trials.jsonl").read_bytes().startswith(before)
    assert records(tmp_path / "run") == alone


def test_actors_of_a_cluster_train_and_one_is_lost(
    tmp_path: Path, tiny_folder: Path, alone: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    skip_without("ray", install="pip install 'tov[ray]'")
    from tov.engine.on_ray import _Actors

    calls = itertools.count(1)

    def send(self: _Actors, worker: int, piece: Training, made: Any = _Actors.send) -> None:
        made(self, worker, piece)
        if next(calls) == 2:
            self.ray.kill(self.actors[worker])

    monkeypatch.setattr(_Actors, "send", send)
    compared = compare(tmp_path / "run", tiny_folder, **FEW, engine="ray", workers=1)
    assert records(compared.folder) == alone
    assert capfd.readouterr().err.count("a worker was lost") == 1


def test_pilots_decide_alike(tmp_path: Path, tiny_folder: Path) -> None:
    one, several = (
        select(tmp_path / name, tiny_folder, candidates=["dsir"], **more)
        for name, more in (("one", {}), ("several", {"devices": "cpu,cpu"}))
    )
    found = [records(run.folder / "gate") for run in (one, several)]
    assert found[0] == found[1]
    assert several.manifest.gate["verdict"] == one.manifest.gate["verdict"]
    assert several.dataset["tov_row_id"] == one.dataset["tov_row_id"]


# What comes before a scan


@pytest.mark.parametrize("method", ["tov", "less"])
def test_a_cluster_fits_on_a_worker_and_the_driver_has_the_files(
    method: str, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if that worker is lost once; the driver trains nothing itself."""
    skip_without("ray", install="pip install 'tov[ray]'")
    from tov.engine.on_ray import _Actors

    one = picked(tmp_path / "one", tiny_folder, method)
    sent = list[Any]()

    def send(self: _Actors, worker: int, piece: Any, made: Any = _Actors.send) -> None:
        made(self, worker, piece)
        sent.append(piece)
        if len(sent) == 1:
            self.ray.kill(self.actors[worker])

    def trains(*_: Any, **__: Any) -> None:
        raise AssertionError("the driver trains")

    monkeypatch.setattr(_Actors, "send", send)
    for room in ("tov.fit", "shared.warm_up"):
        monkeypatch.setattr(f"tov.methods.{room}.train_epoch", trains)
    several = picked(tmp_path / "several", tiny_folder, method, engine="ray", workers=1)
    assert [type(piece) is Only for piece in sent[:3]] == [True, True, False]
    assert made_before(several.folder) == made_before(one.folder)
    assert scored(several.folder) == scored(one.folder)


def made_before(folder: Path) -> dict[str, bytes]:
    files = [file for place in ("path", "artifacts") for file in (folder / place).rglob("*") if file.is_file()]
    found = {str(file.relative_to(folder)): file.read_bytes() for file in files if file.name != "artifact.json"}
    assert any(name.endswith(".safetensors") for name in found)
    return found


def test_an_error_of_the_users_in_a_fit_is_raised_as_it_is(tmp_path: Path, tiny_folder: Path) -> None:
    skip_without("ray", install="pip install 'tov[ray]'")
    errors = []
    for name, more in {"one": {}, "several": {"engine": "ray"}}.items():
        with pytest.raises(NumericError, match="diverged") as told:
            picked(tmp_path / name, tiny_folder, "tov", learning_rate=1e30, **more)
        errors.append(str(told.value))
    assert errors[0] == errors[1]
