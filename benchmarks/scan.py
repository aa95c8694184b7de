"""Speed and memory of a scan, side by side in one run.

    python benchmarks/scan.py [--task ner] [--dtype bf16] [--rows 160] [--repeats 5] [--data DATA]     # speed
    python benchmarks/scan.py --memory                                      # peak memory for 2,000 and 20,000 rows

Speed: tokens/s of a whole scan (padding, both states, backbone, exact head, scores) over those of a bare backbone forward
(transformers alone in its own process, no head, no adapter) on the same rows in ideal batches without padding, same dtype,
same tokens a batch; over the same in this process, whose allocator keeps freed memory; and over the usual loop (peft's
forward, batches of 16 rows in pool order, the model's own logits, cross-entropy in fp32); over the scan without the
nearness to 256 target rows. Repeats are interleaved; medians.
Measured on every --part-th batch of a shard of --rows rows, so that padding is that of a real scan. Rows: the question and
answer pairs of chatterbot-corpus, or --data; --task ner: MiniLM and the demo's sentences, or wikineural_en of --data.
Several tasks and dtypes are measured one after another, and --out holds those that are finished.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from tov.cli.demo_data import read_styles, read_topics
from tov.data.cells import BadRow
from tov.data.pool import open_pool
from tov.data.rows import Row
from tov.engine.models import auto_batch_tokens
from tov.files import write_json
from tov.methods.tov.scan import scan_rows
from tov.model.adapters import attach, read_state
from tov.model.kernels.joined import scanning
from tov.model.load import DTYPES, load_model, resolve
from tov.runs.environment import hardware, versions
from tov.tasks import TASKS, all_layouts
from tov.tasks.instruction import Conversation
from tov.text.batches import collate, plan
from tov.text.encode import Encoded, Encoder

MODELS = {"instruction": "smollm2-135m", "ner": "minilm"}
TARGET_ROWS = 256
"""Rows of the target that the nearness is to."""
Measure = Callable[[argparse.Namespace, str, str], dict[str, Any]]
"""From the flags, a task and a dtype to what was measured."""


def model_of(args: argparse.Namespace, task: str) -> str:
    """The packaged model of a task, or that of --models."""
    return str(args.models / task) if args.models else MODELS[task]


def corpus_rows(count: int) -> list[Conversation]:
    """Pairs of the corpus, the long ones first, so that a row has some 100 tokens."""
    pairs = [(row["prompt"], row["completion"]) for rows in read_topics().values() for row in rows]
    pairs = sorted(pairs, key=lambda pair: -len(pair[1]))[:count]
    turns = [
        ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer}) for prompt, answer in pairs
    ]
    return [Conversation(turn) for turn in turns]


def data_rows(folder: Path, count: int) -> list[Conversation]:
    """As many rows of each of four instruction sources, each of at most 700 characters."""
    rows = []
    for source in ("gsm8k", "alpaca_gpt35", "dolly", "flan_cot"):
        table = pq.read_table(folder / "instruct" / f"{source}.parquet", columns=["messages"]).slice(0, 4 * count)
        short = [
            row["messages"] for row in table.to_pylist() if sum(len(turn["content"]) for turn in row["messages"]) < 700
        ]
        rows += [Conversation(tuple(turns)) for turns in short[: count // 4]]
    return rows


def sentences(data: Path | None, count: int) -> list[Row]:
    """Sentences with entities: of wikineural_en, or the demo's."""
    if data:
        pool = open_pool([str(data / "ner" / "wikineural_en.parquet")], layouts=all_layouts())
        return [row for row in pool.rows(0, count) if not isinstance(row, BadRow)]
    rows = [row for rows in read_styles(count // 5).values() for row in rows]
    return [row for row in open_pool([rows], layouts=all_layouts()).rows(0, len(rows)) if not isinstance(row, BadRow)]


def rows_of(args: argparse.Namespace, task: str) -> tuple[list[Row], tuple[str, ...]]:
    """The rows to scan and the labels of their head."""
    if task == "instruction":
        return [*(data_rows(args.data, args.rows) if args.data else corpus_rows(args.rows))], ()
    rows = sentences(args.data, args.rows)
    types = sorted(set().union(*(row.labels for row in rows)))
    return rows, ("O", *(f"{place}-{kind}" for kind in types for place in "BI"))


def part_of_a_shard(rows: Encoded, batch_tokens: int, part: int) -> tuple[Encoded, list[torch.Tensor]]:
    """Every `part`-th batch of the plan of a shard: its rows, and the same batches without padding.

    The ideal batches are cut to their shortest row, so that lengths, and with them the cost of attention, are the scan's.
    """
    groups = plan(rows.lengths, rows.scored_counts > 0, batch_tokens)[:: max(1, part)]
    ideal = []
    for group in groups:
        shortest = int(rows.lengths[group].min())
        ideal.append(torch.from_numpy(np.stack([rows.row(int(row))[0][:shortest] for row in group]).astype(np.int64)))
    return rows.take(np.sort(np.concatenate(groups))), ideal


def bare(model: Any, batches: list[torch.Tensor]) -> float:
    """Tokens/s of one pass through the backbone and nothing else."""
    start, options = time.perf_counter(), {"use_cache": False} if model.get_output_embeddings() is not None else {}
    with torch.inference_mode():
        for ids in batches:
            model.base_model(input_ids=ids.to(model.device), **options)
    _settle(model)
    return sum(ids.numel() for ids in batches) / (time.perf_counter() - start)


class PlainProcess:
    """The bare pass as anyone would run it: transformers alone in a process of its own, nothing of tov's set up."""

    def __init__(
        self, task: str, model: str, dtype: str, device: str, batches: list[torch.Tensor], folder: Path
    ) -> None:
        file = folder / "batches.pt"
        torch.save(batches, file)
        words = [sys.executable, __file__, "--serve", task, resolve(model), dtype, device, str(file)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self) -> float:
        asked, told = self.process.stdin, self.process.stdout
        assert asked is not None
        assert told is not None
        print("go", file=asked, flush=True)
        said = told.readline()
        if not said:
            raise RuntimeError(f"the process of the bare pass ended with status {self.process.wait()}")
        return float(said)

    def close(self) -> None:
        self.process.communicate()


def serve(task: str, source: str, dtype: str, device: str, file: str) -> None:
    """The other end of `PlainProcess`."""
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

    auto: Any = AutoModelForCausalLM if task == "instruction" else AutoModelForTokenClassification
    model = auto.from_pretrained(source, dtype=DTYPES[dtype]).to(device).eval()
    batches = torch.load(file)
    for _ in sys.stdin:
        print(bare(model, batches), flush=True)


def usual(adapted: Any, rows: Encoded) -> float:
    """Tokens/s of one pass as it is usually written."""
    start = time.perf_counter()
    with torch.inference_mode():
        for at in range(0, len(rows), 16):
            batch = collate(rows, np.arange(at, min(at + 16, len(rows))))
            ids, labels = (torch.from_numpy(array).to(adapted.device) for array in (batch.ids, batch.labels))
            mask = torch.arange(ids.shape[1])[None] < torch.from_numpy(batch.lengths)[:, None]
            logits = adapted(input_ids=ids, attention_mask=mask.to(ids)).logits.float()
            if adapted.get_base_model().get_output_embeddings() is not None:
                logits, labels = logits[:, :-1], labels[:, 1:]
            losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            losses.view(len(ids), -1).sum(1)
    _settle(adapted)
    return len(rows.ids) / (time.perf_counter() - start)


def scan(
    adapted: Any, rows: Encoded, states: tuple[Any, Any], batch_tokens: int, embedded: np.ndarray | None = None
) -> float:
    """Tokens/s of a whole scan of one epoch (two passes), with the nearness to embedded target rows if there are any."""
    with scanning(adapted) as set_state:
        start = time.perf_counter()
        done = scan_rows(
            adapted.get_base_model(), set_state, rows, [(1, *states)], batch_tokens=batch_tokens, embedded=embedded
        )
        return done.passed / (time.perf_counter() - start)


def _settle(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def speed(args: argparse.Namespace, task: str, dtype: str) -> dict[str, Any]:
    """Medians over interleaved repeats."""
    given, labels = rows_of(args, task)
    name = model_of(args, task)
    loaded = load_model(name, task=TASKS[task], labels=labels, dtype=dtype, device=args.device)
    shard = Encoder(TASKS[task].encode, loaded.tokenizer, args.max_length, loaded.labels)(given)
    batch_tokens = args.batch_tokens or auto_batch_tokens(loaded.device)
    rows, batches = part_of_a_shard(shard, batch_tokens, args.part)
    rank = args.rank or TASKS[task].defaults.lora_r
    adapted = attach(
        loaded.model,
        rank=rank,
        alpha=32,
        dropout=0.0,
        targets=("all-linear",),
        seed=0,
        task_type=TASKS[task].peft_type,
        trained=loaded.head,
    )
    state = read_state(adapted)
    changed = {name: value + 1e-3 * torch.randn_like(value) for name, value in state.items()}
    # Without an adapter's modules in the way.
    same = load_model(name, task=TASKS[task], labels=labels, dtype=dtype, device=args.device).model
    names = ("bare", "bare, our allocator settings", "scan", "scan without nearness", "usual loop")
    times: dict[str, list[float]] = {name: [] for name in names}
    embedded = np.random.default_rng(0).normal(size=(TARGET_ROWS, loaded.model.config.hidden_size))
    with tempfile.TemporaryDirectory() as folder:
        plain = PlainProcess(task, name, loaded.dtype, str(loaded.device), batches, Path(folder))
        for repeat in range(args.repeats + 1):
            rates = (
                plain.run(),
                bare(same, batches),
                scan(adapted, rows, (changed, state), batch_tokens, embedded),
                scan(adapted, rows, (changed, state), batch_tokens),
                usual(adapted, rows),
            )
            if repeat:  # the first is a warm-up
                for values, rate in zip(times.values(), rates, strict=True):
                    values.append(rate)
        plain.close()
    ratios = {
        name: round(statistics.median(s / o for s, o in zip(times["scan"], values, strict=True)), 3)
        for name, values in times.items()
        if name != "scan"
    }
    return {
        "what": "speed", "task": task, "model": name, "dtype": loaded.dtype, "device": str(loaded.device), "rank": rank,
        "rows": len(rows), "tokens": len(rows.ids),
        "scored_share": round(float(rows.scored.mean()), 3), "batch_tokens": batch_tokens, "repeats": args.repeats,
        "tokens_per_second": {name: round(statistics.median(values)) for name, values in times.items()},
        "spread": {name: [round(min(values)), round(max(values))] for name, values in times.items()},
        "scan_over": ratios,
    }  # fmt: skip


def memory() -> dict[str, Any]:
    """Peak memory of `tov.score` on pools of 2,000 and 20,000 short rows, each in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool = [json.dumps({"text": f"It is {number}."}) + "\n" for number in range(20_000)]
        (folder / "small.jsonl").write_text("".join(pool[:2_000]))
        (folder / "large.jsonl").write_text("".join(pool))
        (folder / "target.jsonl").write_text("".join(pool[:8]))
        base = [
            "--target",
            str(folder / "target.jsonl"),
            "--base-size",
            "16",
            "--epochs",
            "1",
            "--model",
            "smollm2-135m",
        ]
        _child("fit", *base, "--pool", str(folder / "small.jsonl"), "--out", str(folder / "fit"))
        peaks = {
            size: _child(
                "score",
                "--from",
                str(folder / "fit"),
                "--pool",
                str(folder / f"{size}.jsonl"),
                "--out",
                str(folder / size),
            )
            for size in ("small", "large")
        }
    return {"what": "memory", "peak_mib": peaks, "large_over_small": round(peaks["large"] / peaks["small"], 3)}


def _child(*words: str) -> int:
    """Runs `tov WORDS` in a process of its own; returns its peak resident memory in MiB."""
    code = (
        "import resource, sys\nfrom tov.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--quiet"], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(done.stdout.split()[-1])


def add_flags(parser: argparse.ArgumentParser, *, rows: int, repeats: int) -> None:
    """What the benchmarks of scans and fits share."""
    parser.add_argument("--task", nargs="+", default=["instruction"], choices=list(MODELS))
    parser.add_argument("--dtype", nargs="+", default=["auto"], choices=["auto", *DTYPES])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--max-length", type=int, default=192)
    parser.add_argument("--data", type=Path, help="a folder with instruct/*.parquet and ner/*.parquet, for its rows")
    parser.add_argument("--models", type=Path, help="a folder with a model a task, instead of the packaged ones")
    parser.add_argument("--out", type=Path, help="a JSON file, also of the measurements that are finished")


def measure_all(args: argparse.Namespace, measure: Measure) -> None:
    """Every dtype of every task; prints what was measured, and keeps --out up to date."""
    results: list[dict[str, Any]] = []
    for dtype in args.dtype:
        for task in args.task:
            results.append({**measure(args, task, dtype), **made_with()})
            if args.out:
                write_json(args.out, results)
            print(f"{task} {dtype}: {results[-1]['tokens_per_second']}", file=sys.stderr, flush=True)
            gc.collect()  # models and adapters refer to each other, and would stay on the device
    print(json.dumps(results if len(results) > 1 else results[0], indent=2))


def made_with() -> dict[str, Any]:
    """What a measurement was made with."""
    found = versions()
    return {
        "commit": found.get("commit", ""), "hardware": hardware(), "torch": found["torch"],
        "transformers": found["transformers"], "python": platform.python_version(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, rows=160, repeats=5)
    parser.add_argument("--part", type=int, default=1, help="measure on every so many-th batch")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--batch-tokens", type=int, help="default: those of a scan on the device")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(*args.serve)
    elif args.memory:
        print(json.dumps({**memory(), **made_with()}, indent=2))
    else:
        measure_all(args, speed)


if __name__ == "__main__":
    main()
