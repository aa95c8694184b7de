"""Speed and memory of a scan, side by side in one run.

    python benchmarks/scan.py [--dtype bf16] [--rows 160] [--repeats 5]     # speed
    python benchmarks/scan.py --memory                                      # peak memory for 2,000 and 20,000 rows

Speed: tokens/s of a whole scan (padding, setting both states, backbone, exact head, scores) over those of a bare backbone
forward (no head, no adapter) on as many tokens in ideal batches without padding, same dtype, same tokens a batch; and over
those of the usual loop (peft's forward, batches of 16 rows in pool order, the model's own logits, log_softmax in fp32).
Repeats are interleaved and medians taken. Rows: the question and answer pairs of chatterbot-corpus.
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
import torch

from tov.data.rows import Conversation
from tov.demo import read_topics
from tov.model.adapters import attach, read_state
from tov.model.load import load_model
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


def ideal_batches(rows: Encoded, batch_tokens: int) -> list[torch.Tensor]:
    """All tokens of the rows in rectangles of the rows' mean length: the same tokens, nothing padded."""
    length = int(rows.lengths.mean())
    whole = torch.from_numpy(rows.ids[: len(rows.ids) // length * length].astype(np.int64)).reshape(-1, length)
    return list(whole.split(max(1, batch_tokens // length)))


def bare(causal: Any, batches: list[torch.Tensor]) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        for ids in batches:
            causal.base_model(input_ids=ids.to(causal.device), use_cache=False)
    _settle(causal)
    return time.perf_counter() - start


def usual(adapted: Any, rows: Encoded) -> float:
    """One pass as it is usually written."""
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
    return time.perf_counter() - start


def _settle(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Medians over interleaved repeats."""
    loaded = load_model("smollm2-135m", dtype=args.dtype)
    rows = encode(loaded.tokenizer, corpus_rows(args.rows), max_length=192)
    plain = load_model("smollm2-135m", dtype=args.dtype).model  # without an adapter's modules in the way
    adapted = attach(loaded.model, rank=args.rank, alpha=32, dropout=0.0, targets=("all-linear",), seed=0)
    state = read_state(adapted)
    changed = {name: value + 1e-3 * torch.randn_like(value) for name, value in state.items()}
    batches = ideal_batches(rows, args.batch_tokens)
    times: dict[str, list[float]] = {"bare": [], "scan": [], "usual": []}
    for repeat in range(args.repeats + 1):
        bare_seconds = bare(plain, batches)
        with scanning(adapted) as set_state:
            start = time.perf_counter()
            passed = scan_rows(
                adapted.get_base_model(), set_state, rows, [(1, changed, state)], batch_tokens=args.batch_tokens
            ).passed
            scan_seconds = time.perf_counter() - start
        usual_seconds = usual(adapted, rows)
        if repeat:  # the first is a warm-up
            times["bare"].append(sum(ids.numel() for ids in batches) / bare_seconds)
            times["scan"].append(passed / scan_seconds)
            times["usual"].append(len(rows.ids) / usual_seconds)
    ratios = {
        name: statistics.median(s / o for s, o in zip(times["scan"], times[name], strict=True))
        for name in ("bare", "usual")
    }
    return {
        "what": "speed", "dtype": loaded.dtype, "rank": args.rank, "rows": len(rows), "tokens": len(rows.ids),
        "scored_share": float(rows.scored.mean()), "batch_tokens": args.batch_tokens,
        "tokens_per_second": {name: round(statistics.median(values)) for name, values in times.items()},
        "spread": {name: [round(min(values)), round(max(values))] for name, values in times.items()},
        "scan_over_bare": round(ratios["bare"], 3), "scan_over_usual": round(ratios["usual"], 2),
    }  # fmt: skip


def memory() -> dict[str, Any]:
    """Peak memory of `tov.score` on pools of 2,000 and 20,000 short rows, each in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool = [
            json.dumps({"prompt": f"Say {number}.", "completion": f"It is {number}."}) + "\n"
            for number in range(20_000)
        ]
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
    args = parser.parse_args()
    result = memory() if args.memory else speed(args)
    result["commit"] = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    result |= {"hardware": hardware(), "torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
