"""Runs killed at random moments, 20 kills a round, each a line of a log: `make kills` (rounds: ARGS="--rounds 3").

A round kills drivers of eight commands in one process, drivers and workers of several processes, and drivers and workers on
Ray. After every kill the same command must end with the files of an undisturbed one: scores and chosen rows byte-equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import uuid
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet as pq

from killing import AT_WORK, MARK, Killer, gone
from scene import Scene
from tiny import make_rows, write_jsonl

VERBS = ("select", "less", "rds", "from", "fit", "score", "train", "compare")
ROWS = 150
"""Of the pool that workers score, each a shard."""
ROUND = {
    ("one process", "driver"): 7,
    ("processes", "driver"): 3,
    ("processes", "worker"): 5,
    ("ray", "worker"): 3,
    ("ray", "driver"): 2,
}
"""Kills in a round, by engine and who is killed."""
FLAGS = {"processes": ("--devices", "cpu,cpu"), "ray": ("--engine", "ray", "--workers", 1)}
WORKERS = {"processes": "tov.engine.processes", "ray": "ray::_Worker"}
"""What is in the command line or title of a worker."""


class Kills:
    """Kills runs, and writes what came of it.

    Attributes:
        scene: model, inputs and place.
        log: gets a JSON object a line.
        chance: draws the moments.
        mark: in the environment of every process.
        failed: kills after which something was wrong.
    """

    def __init__(self, scene: Scene, log: TextIO, seed: int, mark: str) -> None:
        self.scene, self.log, self.chance, self.mark, self.failed = scene, log, random.Random(seed), mark, 0
        write_jsonl(scene.base / "many.jsonl", make_rows(ROWS, seed=1))
        self.files: dict[str, bytes] = {}
        self.seconds: dict[str, float] = {}

    def round(self) -> None:
        """As `ROUND` says."""
        for (engine, who), count in ROUND.items():
            for _ in range(count if who == "driver" else 1):
                if engine == "one process":
                    self._in_one_process(self.chance.choice(VERBS))
                elif who == "driver":
                    self._driver(engine)
                else:
                    self._workers(engine, count)

    def _write(self, engine: str, who: str, verb: str, when: str, wrong: str, lost: int | None = None) -> None:
        self.failed += bool(wrong or lost)
        line: dict[str, Any] = {"time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), "engine": engine}
        line |= {"killed": who, "verb": verb, "when": when, "equal": not wrong}
        line |= {"rows_lost": lost} if lost is not None else {}
        line |= {"wrong": wrong.replace(str(self.scene.base), "")[:300]} if wrong else {}
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()

    def _in_one_process(self, verb: str) -> None:
        """All files of the command are compared, and the tokens that it tells of."""
        while True:
            share = self.chance.random()
            seconds = share * self.scene.whole(verb).ended.seconds
            [struck], wrong = self.scene.disturbed(verb, [{"seconds": seconds}])
            if struck.killed:  # else it was faster
                break
        lost = self._lost(self.scene.place / "run", self.scene.base / "origin") if verb == "select" else None
        self._write("one process", "driver", verb, f"after {seconds:.2f} s", wrong, lost)

    def _driver(self, engine: str) -> None:
        """Killed once; its workers must end, the shards that are there must be right, and the same command ends well."""
        whole = self._whole(engine)
        while True:
            self.scene.clear()
            seconds = self.chance.random() * self.seconds[engine]
            if self._run(engine, seconds=seconds).killed:
                break
        there = len(list((self.scene.place / "run" / "scores").glob("rows-*")))
        wrong = "" if gone(WORKERS[engine], self.mark) else "workers go on without their driver; "
        wrong += "; ".join(name for name, data in self._files(partly=True).items() if whole[name] != data)
        self._finish(engine, "driver", [f"after {seconds:.2f} s, at {there} shards"], wrong)

    def _workers(self, engine: str, count: int) -> None:
        """So many, of as many runs as that takes."""
        self._whole(engine)
        while count > 0:
            self.scene.clear()
            told: list[str] = []
            words = AT_WORK if engine == "ray" else WORKERS[engine]
            shards = self.scene.place / "run" / "scores"
            with Killer(
                self.chance, shards, words, self.mark, count, lambda at, told=told: told.append(f"at {at} shards")
            ):
                ended = self._run(engine)
            self._finish(engine, "worker", told, ended.said[-300:] if ended.code else "")
            count -= len(told)

    def _finish(self, engine: str, who: str, told: list[str], wrong: str) -> None:
        """Gives the command again where it has not ended, and holds the files against the undisturbed ones."""
        if who == "driver":
            ended = self._run(engine)
            wrong += ended.said[-300:] if ended.code else ""
        found, run = self._files(), self.scene.place / "run"
        wrong += "; ".join(name for name in found.keys() | self.files.keys() if found.get(name) != self.files.get(name))
        lost = self._lost(run, self.scene.base / "whole")
        for when in told:
            self._write(engine, who, "select", when, wrong, lost)

    def _whole(self, engine: str) -> dict[str, bytes]:
        """The files of one process, undisturbed; how long it takes by this engine is measured."""
        if not self.files:
            self.scene.clear()
            ended = self._run("one process")
            assert ended.code == 0, ended.said
            self.files = self._files()
            (self.scene.place / "run").rename(self.scene.base / "whole")
        if engine not in self.seconds:
            self.scene.clear()
            ended = self._run(engine)
            assert ended.code == 0, ended.said
            assert self._files() == self.files, "undisturbed it leaves other files than one process"
            self.seconds[engine] = ended.seconds
        return self.files

    def _run(self, engine: str, **fault: Any) -> Any:
        base = self.scene.base
        words = ["select", "--model", base / "model", "--pool", base / "many.jsonl", "--target", base / "target.jsonl"]
        words += ["--n", 20, "--epochs", 1, "--base-size", 8, "--shard-rows", 1, "--dtype", "fp32", "--max-length", 64]
        words += ["--lora-r", 2, "--quiet", *FLAGS.get(engine, ()), "--out", self.scene.place / "run"]
        return self.scene.server.run(*words, below=self.scene.place, **fault)

    def _files(self, partly: bool = False) -> dict[str, bytes]:
        """Scores and chosen rows; of a run that was killed those shards that are there."""
        run = self.scene.place / "run"
        names = [*run.glob("scores/rows-*.parquet"), *([] if partly else [run / "selected.jsonl"])]
        return {file.name: file.read_bytes() for file in names}

    def _lost(self, run: Path, whole: Path) -> int:
        """Rows without scores."""
        with suppress(OSError):
            return _scored(whole) - _scored(run)
        return _scored(whole)


def _scored(run: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in run.glob("scores/rows-*.parquet"))


def main() -> None:
    """Rounds of kills."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=10, help="of 20 kills each")
    asked.add_argument("--log", type=Path, default=Path("kills.jsonl"), help="file that a line a kill is added to")
    asked.add_argument("--seed", type=int, default=0, help="of the moments")
    given = asked.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    mark = os.environ[MARK] = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as base, given.log.open("a") as log:
        kills = Kills(Scene.made(Path(base)), log, given.seed, mark)
        for number in range(given.rounds):
            kills.round()
            print(f"round {number + 1}: {kills.failed} kills so far after which something was wrong", flush=True)
    sys.exit(kills.failed > 0)


if __name__ == "__main__":
    main()
