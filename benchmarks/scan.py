"""Speed and memory of a scan, side by side in one run.

    python benchmarks/scan.py [--dtype bf16] [--rows 160] [--repeats 5] [--data DATA]     # speed
    python benchmarks/scan.py --memory                                      # peak memory for 2,000 and 20,000 rows

Speed: tokens/s of a whole scan (padding, both states, backbone, exact head, scores) over those of a bare backbone forward
(transformers alone in its own process, no head, no adapter) on as many tokens in ideal batches without padding, same
dtype, same tokens a batch; over the same in this process, whose allocator keeps freed memory; and over the usual loop (peft's
forward, batches of 16 rows in pool order, the model's own logits, cross-entropy in fp32). Repeats are interleaved; medians.
Rows: the question and answer pairs of chatterbot-corpus, or --data.
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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from tov.data.conversations import Conversation
from tov.demo_data import read_topics
from tov.model.adapters import attach, read_state
from tov.model.load import DTYPES, load_model, resolve
from tov.model.lowrank import scanning
from tov.run import hardware
from tov.scan.scan import scan_rows
from tov.text.batches import collate
from tov.text.encode import Encoded, encode


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


def ideal_batches(rows: Encoded, batch_tokens: int) -> list[torch.Tensor]:
    """All tokens of the rows in rectangles of the rows' mean length: the same tokens, nothing padded."""
    length = int(rows.lengths.mean())
    whole = torch.from_numpy(rows.ids[: len(rows.ids) // length * length].astype(np.int64)).reshape(-1, length)
    return list(whole.split(max(1, batch_tokens // length)))


def bare(causal: Any, batches: list[torch.Tensor]) -> float:
    """Tokens/s of one pass through the backbone and nothing else."""
    start = time.perf_counter()
    with torch.inference_mode():
        for ids in batches:
            causal.base_model(input_ids=ids.to(causal.device), use_cache=False)
    _settle(causal)
    return sum(ids.numel() for ids in batches) / (time.perf_counter() - start)


class PlainProcess:
    """The bare pass as anyone would run it: transformers alone in a process of its own, nothing of tov's set up."""

    def __init__(self, dtype: str, device: str, batches: list[torch.Tensor], folder: Path) -> None:
        torch.save(batches, folder / "batches.pt")
        words = [
            sys.executable,
            __file__,
            "--serve",
            resolve("smollm2-135m"),
            dtype,
            device,
            str(folder / "batches.pt"),
        ]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self) -> float:
        asked, told = self.process.stdin, self.process.stdout
        assert asked is not None
        assert told is not None
        print("go", file=asked, flush=True)
        return float(told.readline())

    def close(self) -> None:
        self.process.communicate()


def serve(source: str, dtype: str, device: str, file: str) -> None:
    """The other end of `PlainProcess`."""
    from transformers import AutoModelForCausalLM

    causal = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[dtype]).to(device).eval()
    batches = torch.load(file)
    for _ in sys.stdin:
        print(bare(causal, batches), flush=True)


def usual(adapted: Any, rows: Encoded) -> float:
    """Tokens/s of one pass as it is usually written."""
    start = time.perf_counter()
    with torch.inference_mode():
        for at in range(0, len(rows), 16):
            batch = collate(rows, np.arange(at, min(at + 16, len(rows))))
            ids, scored = (
                torch.from_numpy(batch.ids).to(adapted.device),
                torch.from_numpy(batch.scored).to(adapted.device),
            )
            mask = torch.arange(ids.shape[1])[None] < torch.from_numpy(batch.lengths)[:, None]
            logits = adapted(input_ids=ids, attention_mask=mask.to(ids), use_cache=False).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            (losses.view(len(ids), -1) * scored[:, 1:]).sum(1)
    _settle(adapted)
    return len(rows.ids) / (time.perf_counter() - start)


def scan(adapted: Any, rows: Encoded, states: tuple[Any, Any], batch_tokens: int) -> float:
    """Tokens/s of a whole scan of one epoch (two passes)."""
    with scanning(adapted) as set_state:
        start = time.perf_counter()
        done = scan_rows(adapted.get_base_model(), set_state, rows, [(1, *states)], batch_tokens=batch_tokens)
        return done.passed / (time.perf_counter() - start)


def _settle(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Medians over interleaved repeats."""
    loaded = load_model("smollm2-135m", dtype=args.dtype)
    rows = encode(loaded.tokenizer, args.conversations, max_length=192)
    batches = ideal_batches(rows, args.batch_tokens)
    adapted = attach(loaded.model, rank=args.rank, alpha=32, dropout=0.0, targets=("all-linear",), seed=0)
    state = read_state(adapted)
    changed = {name: value + 1e-3 * torch.randn_like(value) for name, value in state.items()}
    same = load_model("smollm2-135m", dtype=args.dtype).model  # without an adapter's modules in the way
    times: dict[str, list[float]] = {"bare": [], "bare, our allocator settings": [], "scan": [], "usual loop": []}
    with tempfile.TemporaryDirectory() as name:
        plain = PlainProcess(loaded.dtype, str(loaded.device), batches, Path(name))
        for repeat in range(args.repeats + 1):
            rates = (
                plain.run(),
                bare(same, batches),
                scan(adapted, rows, (changed, state), args.batch_tokens),
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
        "what": "speed", "dtype": loaded.dtype, "rank": args.rank, "rows": len(rows), "tokens": len(rows.ids),
        "scored_share": round(float(rows.scored.mean()), 3), "batch_tokens": args.batch_tokens, "repeats": args.repeats,
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
        "import resource, sys\nfrom tov.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--quiet"], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--data", type=Path, help="a folder with instruct/*.parquet instead of chatterbot-corpus")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(*args.serve)
        return
    args.conversations = data_rows(args.data, args.rows) if args.data else corpus_rows(args.rows)
    result = memory() if args.memory else speed(args)
    result["commit"] = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    result |= {"hardware": hardware(), "torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
