"""What engines cost: seconds of a scan by one process, and by Ray with one and more workers; and what breaks first beyond.

    python benchmarks/engines.py --data DATA [--rows 20000] [--workers 1 2] [--repeats 3] [--out benchmarks/engines-cpu.json]

DATA is a folder with ner/*.parquet. The pool is so many sentences of wikineural_en, embedded by MiniLM (method rds), whose
walk is one pass. Each run is a process of its own, engines in turns, all within one call. Seconds are those of the whole
command, and those of its two stages over the pool (`embed`, which passes the model; `scan`, which fills the table), in which
workers start and open the model. Files of all runs must be equal.

Beyond the cores of the machine a simulation goes on: shards are read by the driver one after another (measured), computed
by K workers (measured), and written by the driver (measured).
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from scan import made_with
from tov.files import write_json

POOL, TARGET = "ner/wikineural_en", "ner/wikigold"
SIMULATED = (1, 2, 4, 8, 16, 32)


def draw(source: Path, rows: int, file: Path) -> Path:
    """A file with so many random rows of another, those of one word left out."""
    table = pq.read_table(source.with_suffix(".parquet"), columns=["tokens", "ner_tags_coarse"])
    picked = np.sort(np.random.default_rng(0).choice(len(table), min(rows, len(table)), replace=False))
    pq.write_table(table.take(picked).rename_columns(["tokens", "ner_tags"]), file)
    return file


def run(engine: list[str], folder: Path, out: Path, shard_rows: int) -> dict[str, float]:
    """Seconds of a run."""
    command = [
        *(sys.executable, "-m", "tov", "select", "--model", "minilm", "--method", "rds", "--rule", "score-only"),
        *(
            "--pool",
            folder / "pool.parquet",
            "--target",
            folder / "target.parquet",
            "--n",
            "100",
            "--quiet",
            "--no-page",
        ),
        *("--shard-rows", shard_rows, "--no-decontaminate", "--out", out, *engine),
    ]
    begun = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    whole = time.perf_counter() - begun
    timings = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["timings"]
    return {"seconds": whole, "stages": timings, "passes": timings["embed"] + timings["scan"]}


def same(one: Path, other: Path) -> bool:
    """Whether two runs left the same shards."""
    files = [sorted(file.relative_to(out) for file in out.rglob("rows-*.parquet")) for out in (one, other)]
    return files[0] == files[1] and all((one / file).read_bytes() == (other / file).read_bytes() for file in files[0])


def driver_seconds(folder: Path, shard_rows: int) -> dict[str, float]:
    """Seconds a shard that the driver reads and makes tokens of, and that it packs to be sent."""
    import pickle

    from tov.config.records import DataSettings
    from tov.config.settings import build
    from tov.engine.models import Lora, ModelSpec
    from tov.inputs.read import labels_of, read_pool, read_target
    from tov.scores.shard import ShardReader

    rows = read_pool(
        [str(folder / "pool.parquet")], build(DataSettings, {}), np.zeros(0, np.uint64), decontaminate=False
    )
    labels = labels_of(
        rows, read_target([str(folder / "target.parquet")], build(DataSettings, {})), build(DataSettings, {})
    )
    encode = ModelSpec("minilm", "ner", labels, 0, Lora(1, 1.0, 0.0, ("all-linear",))).encoder()
    reader = ShardReader(rows.pool, rows.index, rows.excluded, encode, shard_rows)
    read, sent = [], []
    for start, stop in list(reader.bounds())[:8]:
        begun = time.perf_counter()
        shard = reader.read(start, stop)
        read.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        pickle.dumps(shard)
        sent.append(time.perf_counter() - begun)
    return {"read": statistics.median(read), "send": statistics.median(sent)}


def simulated(workers: int, shards: int, driver: float, compute: float) -> float:
    """Seconds of a walk: the driver gives one shard after another to whoever is free first."""
    free, now = [0.0] * workers, 0.0
    for _ in range(shards):
        now += driver
        heapq.heapreplace(free, max(now, free[0]) + compute)
    return max(free)


def summary(runs: dict[str, list[dict[str, Any]]], driver: dict[str, float], shards: int) -> dict[str, Any]:
    """Ratios to one process, medians over the repeats; and the simulation."""
    over = {
        engine: {
            key: statistics.median(mine[key] / theirs[key] for mine, theirs in zip(found, runs["local"], strict=True))
            for key in ("seconds", "passes")
        }
        for engine, found in runs.items()
    }
    each = statistics.median(one["stages"]["embed"] for one in runs["local"]) / shards
    compute, given = max(each - driver["read"], 0.0), driver["read"] + driver["send"]
    return {
        "runs": runs, "driver": driver, "over_local": over,
        "simulated": {
            "shard_seconds": each, "compute": compute, "driver": given,
            "speedup": {count: shards * each / simulated(count, shards, given, compute) for count in SIMULATED},
            "workers_that_one_driver_feeds": compute / given if given else None,
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--shard-rows", type=int, default=512)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    engines = {"local": [], **{f"ray {count}": ["--engine", "ray", "--workers", str(count)] for count in args.workers}}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(args.data / POOL, args.rows, folder / "pool.parquet")
        draw(args.data / TARGET, 100, folder / "target.parquet")
        for repeat in range(args.repeats):
            for engine, flags in engines.items():
                out = folder / f"{engine}-{repeat}"
                runs[engine].append(run(flags, folder, out, args.shard_rows))
                assert same(folder / "local-0", out), f"{engine} left other files"
                print(f"{engine}: {runs[engine][-1]}", file=sys.stderr, flush=True)
        driver = driver_seconds(folder, args.shard_rows)
    result = summary(runs, driver, -(-args.rows // args.shard_rows))
    result |= {"rows": args.rows, "shard_rows": args.shard_rows}
    result |= made_with()
    if args.out:
        write_json(args.out, result)
    print(json.dumps({name: result[name] for name in ("over_local", "driver", "simulated")}, indent=2))


if __name__ == "__main__":
    main()
