"""How near `tov plan` comes to the run that it plans: seconds in all and by stage, peak memory, bytes on disk.

    python benchmarks/plan.py --data DATA [--task ner instruction] [--repeats 1] [--out benchmarks/plan-cpu.json]

DATA is a folder with instruct/*.parquet and ner/*.parquet. Pool and target are rows of it, drawn by a seed: sentences
of wnut17 for a target of wikigold (MiniLM), Alpaca and Dolly for a target of Orca (SmolLM2-135M). Each command is a
process of its own. The plan is made before the run and again after it, because other work on the machine changes
between the two; the ratio is that of the mean of the two plans. Seconds of the run are wall time from its start to its
end, with all imports, which a plan does not count. The load is the mean number of running processes over the last
minute: where it is more than the cores, seconds are not the machine's own. The ratio of CPU seconds leaves that out:
those of the plan are its seconds times the share of the time for which the probe had a processor.
"""

from __future__ import annotations

import argparse
import json
import os
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

CASES: dict[str, dict[str, Any]] = {
    "ner": {
        "pool": ["ner/wnut17"], "target": "ner/wikigold", "rows": 2000, "target_rows": 300,
        "flags": ["--model", "minilm", "--columns", "ner_tags=ner_tags_coarse", "--n", "300"],
    },
    "instruction": {
        "pool": ["instruct/alpaca_gpt35", "instruct/dolly"], "target": "instruct/orca", "rows": 120, "target_rows": 48,
        "flags": ["--model", "smollm2-135m", "--max-length", "192", "--epochs", "1", "--n", "48"],
    },
}  # fmt: skip
"""Of each task: sources, rows of each, flags of both commands."""


def draw(source: Path, rows: int, folder: Path) -> str:
    """A file with so many random rows of another."""
    table = pq.read_table(source.with_suffix(".parquet"))
    picked = np.sort(np.random.default_rng(0).choice(len(table), min(rows, len(table)), replace=False))
    pq.write_table(table.take(picked), folder / f"{source.stem}.parquet")
    return str(folder / f"{source.stem}.parquet")


def flags_of(case: dict[str, Any], data: Path, folder: Path, more: list[str]) -> list[str]:
    """The flags that both commands are given."""
    pool = [draw(data / source, case["rows"], folder) for source in case["pool"]]
    target = draw(data / case["target"], case["target_rows"], folder)
    return ["--pool", *pool, "--target", target, *case["flags"], *more]


def run(verb: str, flags: list[str]) -> dict[str, Any]:
    """Runs a command; its seconds, peak memory in bytes, what it printed, and the load when it began."""
    load, begun = os.getloadavg()[0], time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "tov", verb, *flags, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"tov {verb} ended with status {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": time.perf_counter() - begun, "cpu_seconds": usage.ru_utime + usage.ru_stime, "load": load,
        "peak": usage.ru_maxrss * 1024, "printed": json.loads(printed),
    }  # fmt: skip


def planned(flags: list[str]) -> dict[str, Any]:
    """What a plan says, and what it took."""
    done = run("plan", flags)
    [method] = done["printed"]["methods"]
    return {
        "seconds": method["seconds"], "stages": method["stage_seconds"], "rates": method["rates"],
        "peak": method["memory"]["peak"], "bytes": method["bytes"] + method["training_file"],
        "cpu_seconds": method["seconds"] * done["printed"]["probe"]["cpu_seconds"] / done["printed"]["probe"]["seconds"],
        "took": round(done["seconds"], 1), "probe": done["printed"]["probe"], "load": round(done["load"], 2),
    }  # fmt: skip


def ran(flags: list[str], out: Path) -> dict[str, Any]:
    """What the run took."""
    done = run("select", [*flags, "--out", str(out)])
    manifest = json.loads((out / "manifest.json").read_text())
    return {
        "seconds": done["seconds"], "cpu_seconds": done["cpu_seconds"], "stages": manifest["timings"], "peak": done["peak"],
        "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()), "load": round(done["load"], 2),
    }  # fmt: skip


def compare(task: str, data: Path, more: list[str]) -> dict[str, Any]:
    """A plan, the run, the plan again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = flags_of(CASES[task], data, folder, more)
        before, real, after = planned(flags), ran(flags, folder / "run"), planned(flags)
    plans = (before, after)
    return {
        "task": task, "plans": plans, "run": real,
        "planned_over_run": {
            **{key: _ratio([plan[key] for plan in plans], real[key]) for key in ("seconds", "cpu_seconds", "peak", "bytes")},
            "stages": {
                stage: _ratio([plan["stages"][stage] for plan in plans], real["stages"][stage]) for stage in before["stages"]
            },
        },
    }  # fmt: skip


def _ratio(plans: list[float], real: float) -> float:
    return round(statistics.mean(plans) / real, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file, also of the measurements that are finished")
    args, more = parser.parse_known_args()
    results: list[dict[str, Any]] = []
    for task in [task for task in args.task for _ in range(args.repeats)]:
        results.append({**compare(task, args.data, more), **made_with()})
        print(f"{task}: planned over run {results[-1]['planned_over_run']}", file=sys.stderr, flush=True)
        if args.out:
            write_json(args.out, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
