"""What each method costs on one pool, side by side in one run: seconds, peak memory, bytes on disk a pool row.

    python benchmarks/methods.py --task instruction --rows 256 --target-rows 32 --data DATA [--repeats 3] [--methods tov,less]
    python benchmarks/methods.py --task ner --rows 2000 --target-rows 256 --data DATA

Each method is `tov select --method METHOD` in a process of its own; repeats are interleaved; medians of the seconds that its
stages took (imports and the loading of the model, the same for all, are left out). Beside them LESS as it is published
(less_as_published.py): seconds a row at one checkpoint, measured on --published-rows rows, times four checkpoints, times the
rows of pool and target; its warm-up is ours. On the same rows, where the seconds of our LESS go (`parts_of_less`).

A part of the cost does not grow with the pool, and is cut short here by `SMALL`, so each stage is also scaled by what it passes
through the model (`passes`) to a pool of --scale-rows rows and a target of --scale-target rows under the defaults.

Rows of at most 192 tokens. Instruction tuning: SmolLM2-135M, target gsm8k, pool gsm8k, alpaca_gpt35, flan_cot and dolly in
equal parts. Named entities: MiniLM, target presidio_synth, pool of wikineural_en, btc, wikiann_en and presidio_synth.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

import less_as_published as published
from tov.config.records import PathSettings
from tov.data.cells import BadRow
from tov.data.pool import open_pool
from tov.engine.models import CPU_BATCH_TOKENS
from tov.methods.shared.gradients import Checkpoint, adam_direction, products, projected
from tov.methods.shared.projection import Projection
from tov.methods.shared.warm_up import warm_up
from tov.methods.target_path import depth_for
from tov.methods.tov.fit import base_size_for, schedule_for
from tov.model.adapters import attach, parameters
from tov.model.gradients import Run, per_example_gradients
from tov.model.load import load_model
from tov.runs.environment import hardware
from tov.runs.manifest import read_manifest
from tov.tasks import TASKS, all_layouts
from tov.text.batches import Batch, batches_of
from tov.text.encode import Encoded, Encoder

MODELS = {"instruction": "smollm2-135m", "ner": "minilm"}
SOURCES = {
    "instruction": ("gsm8k", "alpaca_gpt35", "flan_cot", "dolly"),
    "ner": ("presidio_synth", "wikineural_en", "btc", "wikiann_en"),
}
METHODS = ("tov", "uncertainty", "less", "less/projection=sjlt", "tracin", "dsir", "bm25", "tsds", "rds", "target-path")
SMALL = {
    "instruction": {
        "less": "less/batch_size=8/warm_up_share={share}",
        "less/projection=sjlt": "less/projection=sjlt/batch_size=8/warm_up_share={share}",
        "tracin": "tracin/batch_size=8/warm_up_share={share}", "target-path": "target-path/epochs=4",
    },
    "ner": {},
}  # fmt: skip
"""On a pool of a few hundred rows a warm-up of one batch of 128 and a path of 2,048 rows would outweigh all else: it is two
batches of 8 (of one, the first checkpoint has rate 0 and no pass)."""
CHECKPOINTS, WARM_UP_SHARE, MAX_LENGTH = 4, 0.05, 192
PART_REPEATS = 3
READ = 8000
"""Rows read of a source, unless more are asked for."""
PUBLISHED = "less as published"
IMPORTED = (
    "tov.cli.main", "tov.verbs.select", "tov.methods.less", "tov.methods.tracin", "tov.methods.dsir", "tov.methods.bm25",
    "tov.methods.tsds", "tov.methods.rds", "tov.methods.target_path", "tov.methods.uncertainty",
    "tov.methods.shared.embeddings", "peft", "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
)  # fmt: skip
"""Once for all processes."""


def write_rows(task: str, data: Path, rows: int, target_rows: int, folder: Path) -> None:
    """`pool.jsonl` and `target.jsonl`, without a row in common."""
    pool, target = [], []
    for place, source in enumerate(SOURCES[task]):
        count = rows // 4
        read = _instructions if task == "instruction" else _sentences
        found = read(data, source, max(READ, 2 * count))
        if place == 0:
            target, found = found[:target_rows], found[target_rows:]
        pool += found[:count]
    for name, lines in (("pool", pool), ("target", target)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _instructions(data: Path, source: str, most: int) -> list[dict[str, Any]]:
    found = pq.read_table(data / "instruct" / f"{source}.parquet", columns=["messages"]).slice(0, most).to_pylist()
    return [row for row in found if sum(len(turn["content"]) for turn in row["messages"]) < 700]


def _sentences(data: Path, source: str, most: int) -> list[dict[str, Any]]:
    table = pq.read_table(data / "ner" / f"{source}.parquet", columns=["tokens", "ner_tags_coarse"]).slice(0, most)
    return [
        {
            "tokens": row["tokens"],
            "ner_tags": ["O" if tag.endswith("MISC") else tag for tag in row["ner_tags_coarse"]],
        }
        for row in table.to_pylist()
    ]


def select(task: str, method: str, folder: Path, out: Path, n: int) -> dict[str, Any]:
    """One run: its stages' seconds, peak memory and bytes."""
    short = SMALL[task].get(method, method).format(share=max(WARM_UP_SHARE, 16 / (4 * n)))
    peak = _child(
        "select", "--model", MODELS[task], "--pool", str(folder / "pool.jsonl"), "--target", str(folder / "target.jsonl"),
        "--n", str(n), "--max-length", str(MAX_LENGTH), "--method", short, "--out", str(out),
    )  # fmt: skip
    return {
        "stages": read_manifest(out).timings, "peak_mib": peak, "pool_bytes": _bytes(out, of_pool=True),
        "fixed_bytes": _bytes(out, of_pool=False),
    }  # fmt: skip


def _child(*words: str) -> int:
    """Runs `tov WORDS` in a process of its own, whose imports are done; returns its peak resident memory in MiB."""
    from multiprocessing import get_context

    fresh = get_context("forkserver")
    fresh.set_forkserver_preload([*IMPORTED])
    told, tell = fresh.Pipe(duplex=False)
    process = fresh.Process(target=_run, args=(words, tell))
    process.start()
    tell.close()
    try:
        return int(told.recv())
    except EOFError:
        raise SystemExit(f"tov {' '.join(words)} failed") from None
    finally:
        process.join()


def _run(words: Sequence[str], tell: Any) -> None:
    import resource

    from tov.cli.main import main

    try:
        main([*words, "--quiet"])
    except SystemExit as stop:
        if stop.code:
            raise
    tell.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def _bytes(out: Path, *, of_pool: bool) -> int:
    """Bytes on disk that grow with the pool (score table, embeddings), or that do not (states, moments)."""
    files = [file for file in out.rglob("*") if file.is_file() and file.suffix in (".parquet", ".npy", ".safetensors")]
    grows = [file for file in files if "scores" in file.parts or (file.parent.name.startswith("embed-"))]
    return sum(file.stat().st_size for file in files if (file in grows) == of_pool)


def passes(task: str, method: str, stage: str, rows: int, target_rows: int, *, small: bool) -> float:
    """What a stage passes: rows trained on, rows scored; times any factor that does not depend on the sizes.

    Args:
        task: of the pool.
        method: as in `METHODS`.
        stage: as the run's manifest calls it.
        rows: N.
        target_rows: M.
        small: under `SMALL`, else under the defaults.
    """
    if stage == "explain":
        return 1.0  # a few chosen rows, however many there are
    if stage in ("warm-up", "target") or method.startswith(("less", "tracin")):
        batch = 16 if small and task == "instruction" else 128
        warm = min(rows, max(batch, int(np.ceil(WARM_UP_SHARE * rows))))
        return {"warm-up": warm, "target": target_rows}.get(stage, rows)
    if stage == "fit" and method == "target-path":
        return (4 if small and task == "instruction" else depth_for(target_rows)) * target_rows
    if stage == "fit":
        settings = PathSettings(model="-", target=("-",), pool=("-",)).for_task(task)
        base = base_size_for(settings, rows)
        return schedule_for(settings, base).epochs * (base + target_rows)
    return rows + target_rows if stage == "embed" else rows


def measure_published(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds a row and checkpoint, peak memory and bytes a pool row of LESS as published, in a process of its own."""
    words = [sys.executable, __file__, "--serve", str(folder), "--task", args.task]
    words += ["--published-rows", str(args.published_rows)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def serve(args: argparse.Namespace) -> None:
    """The other end of `measure_published`."""
    import resource

    folder, task = Path(args.serve), args.task
    pool = open_pool([str(folder / "pool.jsonl")], layouts=all_layouts())
    drawn = pool.at(np.random.default_rng(0).permutation(len(pool))[: args.published_rows])
    rows = [row for row in drawn if not isinstance(row, BadRow)]
    labels = () if task == "instruction" else ("O", *(f"{p}-{kind}" for kind in ("LOC", "ORG", "PER") for p in "BI"))
    loaded = load_model(MODELS[task], task=TASKS[task], labels=labels)
    encoded = Encoder(TASKS[task].encode, loaded.tokenizer, MAX_LENGTH, loaded.labels)(rows)
    encoded = encoded.take(np.flatnonzero(encoded.scored_counts > 0))
    adapted = attach(
        loaded.model,
        rank=128,
        alpha=512,
        dropout=0.1,
        targets=("attention",),
        seed=0,
        task_type=TASKS[task].peft_type,
        trained=loaded.head,
    )
    checkpoint = warm_up(adapted, encoded, epochs=1, batch_size=len(encoded))[0]
    published.features(
        adapted, checkpoint, encoded.take([0]), adam=True, projection=Projection(64), seconds={}
    )  # warms torch up
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    found = published.features(adapted, checkpoint, encoded, adam=True, projection=Projection(8192), seconds=seconds)
    start = published._add(seconds, "all", start)
    size = published.store(folder / "features.npy", found)
    published._add(seconds, "store", start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({
        "rows": len(encoded), "trained_parameters": sum(one.numel() for one in parameters(adapted).values()),
        "seconds_a_row_and_checkpoint": {name: value / len(encoded) for name, value in seconds.items()},
        "bytes_a_row": round(CHECKPOINTS * (size - 128) / len(encoded)), "peak_mib": peak,
        "parts_of_less": parts_of_less(adapted, checkpoint, encoded),
    }))  # fmt: skip


def parts_of_less(adapted: Any, checkpoint: Checkpoint, rows: Encoded) -> dict[str, float]:
    """Seconds a row and checkpoint of our LESS up to each step: medians of interleaved repeats, after one that warms up.

    `gradients`: forward and backward pass with the rows' gradients. `adam`: these, and Adam's directions. `cosines`: `adam`,
    and cosines with one sub-task, which is all that a score takes. `sjlt`, `rademacher`: `adam`, and a projection to 8,192.
    """
    moments = checkpoint.moments or {}
    batches = batches_of(rows, CPU_BATCH_TOKENS)
    target = torch.ones(1, sum(one.numel() for one in parameters(adapted).values()))

    def adam(name: str, gradients: torch.Tensor) -> None:
        adam_direction(gradients, *moments[name])

    steps: dict[str, Callable[[Run, Batch], object]] = {
        "gradients": lambda run, batch: run(batch, lambda name, gradients: None),
        "adam": lambda run, batch: run(batch, adam),
        "cosines": lambda run, batch: products(adapted, run, batch, target, moments, unit=True),
        "sjlt": lambda run, batch: projected(adapted, run, batch, Projection(8192, kind="sjlt"), moments),
        "rademacher": lambda run, batch: projected(adapted, run, batch, Projection(8192), moments),
    }
    found: dict[str, list[float]] = {name: [] for name in steps}
    with torch.no_grad(), per_example_gradients(adapted) as run:
        for repeat in range(1 + PART_REPEATS):
            for name, step in steps.items():
                if name == "rademacher" and repeat > 1:
                    continue  # so slow that one repeat says it
                start = time.perf_counter()
                for batch in batches:
                    step(run, batch)
                if repeat:
                    found[name].append((time.perf_counter() - start) / len(rows))
    return {name: statistics.median(values) for name, values in found.items()}


def summary(runs: list[dict[str, Any]], args: argparse.Namespace, method: str, rows: int) -> dict[str, Any]:
    """Medians of a method's runs, and its seconds scaled."""
    stages = {name: statistics.median(run["stages"].get(name, 0.0) for run in runs) for name in runs[0]["stages"]}
    scaled = {}
    for name, seconds in stages.items():
        at = [
            passes(args.task, method, name, *sizes, small=small)
            for sizes, small in (((rows, args.target_rows), True), ((args.scale_rows, args.scale_target), False))
        ]
        scaled[name] = seconds * at[1] / at[0]
    total = [sum(run["stages"].values()) for run in runs]
    return {
        "seconds": round(sum(stages.values()), 2), "spread": [round(min(total), 2), round(max(total), 2)],
        "stages": {name: round(value, 2) for name, value in stages.items()},
        "scaled_seconds": round(sum(scaled.values()), 1),
        "scaled_stages": {name: round(value, 1) for name, value in scaled.items()},
        "peak_mib": max(run["peak_mib"] for run in runs),
        "bytes_a_row": round(statistics.median(run["pool_bytes"] for run in runs) / rows),
        "fixed_bytes": runs[0]["fixed_bytes"],
    }  # fmt: skip


def with_published(methods: dict[str, Any], found: dict[str, Any], args: argparse.Namespace, rows: int) -> None:
    """Adds LESS as published to the methods: warm-up as ours, and its rate for every row of pool and target."""
    ours = methods.get("less", {"stages": {}, "scaled_stages": {}, "fixed_bytes": 0})
    row = CHECKPOINTS * found["seconds_a_row_and_checkpoint"]["all"]
    bare = CHECKPOINTS * found["seconds_a_row_and_checkpoint"]["gradients"]
    totals = {}
    for name, count, stages in (
        ("seconds", rows + args.target_rows, "stages"),
        ("scaled_seconds", args.scale_rows + args.scale_target, "scaled_stages"),
    ):
        warm = ours[stages].get("warm-up", 0.0)
        totals[name], totals[f"{name}_without_projection"] = round(warm + row * count, 1), round(warm + bare * count, 1)
    methods[PUBLISHED] = {
        **totals, "peak_mib": found["peak_mib"], "bytes_a_row": found["bytes_a_row"], "fixed_bytes": ours["fixed_bytes"],
        "measured": found,
    }  # fmt: skip


def ratios(methods: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Each method over tov: seconds, scaled seconds, bytes a pool row."""
    keys = (
        "seconds",
        "scaled_seconds",
        "seconds_without_projection",
        "scaled_seconds_without_projection",
        "bytes_a_row",
    )
    tov = methods["tov"]
    return {
        name: {key: round(one[key] / tov[key.removesuffix("_without_projection")], 2) for key in keys if key in one}
        for name, one in methods.items()
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The Markdown table."""
    scale = result["scaled_to"]
    lines = [
        f"| {result['task']} | seconds | of tov | seconds at {scale['rows']:,} rows | of tov | peak MiB | bytes a pool row | "
        "of tov |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in result["methods"].items():
        over = result["over_tov"][name]
        lines.append(
            f"| {name} | {one['seconds']:,.1f} | {over['seconds']:.2f} | {one['scaled_seconds']:,.0f} | "
            f"{over['scaled_seconds']:.2f} | {one['peak_mib']:,} | {one['bytes_a_row']:,} | {over['bytes_a_row']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="instruction", choices=list(MODELS))
    parser.add_argument("--data", type=Path, help="a folder with instruct/*.parquet and ner/*.parquet")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--target-rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--published-rows", type=int, default=16)
    parser.add_argument("--scale-rows", type=int, default=20_000)
    parser.add_argument("--scale-target", type=int, default=256)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args)
        return
    names = args.methods.split(",")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(args.task, args.data, args.rows, args.target_rows, folder)
        rows = sum(1 for _ in (folder / "pool.jsonl").open())
        for repeat in range(args.repeats):
            for place, method in enumerate(names):
                runs[method].append(select(args.task, method, folder, folder / f"{repeat}-{place}", rows // 4))
        found = measure_published(args, folder) if args.published_rows else None
    methods = {name: summary(of_one, args, name, rows) for name, of_one in runs.items()}
    if found:
        with_published(methods, found, args, rows)
    result = {
        "what": "methods", "task": args.task, "model": MODELS[args.task], "rows": rows, "target_rows": args.target_rows,
        "repeats": args.repeats, "scaled_to": {"rows": args.scale_rows, "target_rows": args.scale_target},
        "short": SMALL[args.task], "methods": methods, "over_tov": ratios(methods) if "tov" in methods else {},
    }  # fmt: skip
    result["commit"] = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    result |= {"hardware": hardware(), "torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps(result, indent=2))
    if "tov" in methods:
        print(table(result), file=sys.stderr)


if __name__ == "__main__":
    main()
