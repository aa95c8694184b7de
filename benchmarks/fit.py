"""Speed of fitting, side by side in one run.

    python benchmarks/fit.py [--task ner] [--dtype bf16] [--rows 32] [--repeats 3] [--dropout 0.1] [--data DATA]

Tokens/s (padding not counted) of one epoch of adapter training as tov does it, over the same epoch as it is usually written:
peft's forward on 16 rows padded to the longest, transformers' own loss, torch's AdamW. Between them tov in padded batches, as
it trains where rows cannot stand end to end (a GPU, some models). Each repeat has a new order of the rows, the same for all, so
that batches have new shapes, as in a real run. Repeats are interleaved; medians; the first is a warm-up.
Rows as in scan.py: of --data, or of the packaged texts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from scan import MODELS, rows_of
from tov.config import TASK_DEFAULTS
from tov.model import train
from tov.model.adapters import attach, parameters, read_state, write_state
from tov.model.load import load_model
from tov.model.train import make_optimizer, train_epoch
from tov.run import hardware
from tov.stages import BATCH_TOKENS, CPU_BATCH_TOKENS
from tov.text.batches import collate
from tov.text.encode import Encoded, Encoder

RATE, BATCH = 1e-4, 16


def ours(adapted: Any, rows: Encoded, order: np.ndarray) -> None:
    """One epoch by `train_epoch`."""
    tokens = CPU_BATCH_TOKENS if adapted.device.type == "cpu" else BATCH_TOKENS
    optimizer = make_optimizer(adapted, "carry")
    train_epoch(
        adapted, rows, order=order, optimizer=optimizer, rate=lambda _: RATE, batch_size=BATCH, batch_tokens=tokens,
        seed=0,
    )  # fmt: skip


def padded(adapted: Any, rows: Encoded, order: np.ndarray) -> None:
    """The same epoch in padded batches."""
    with mock.patch.object(train, "packable", return_value=False):
        ours(adapted, rows, order)


def usual(adapted: Any, rows: Encoded, order: np.ndarray) -> None:
    """One epoch as it is usually written."""
    optimizer = torch.optim.AdamW(parameters(adapted).values(), lr=RATE, weight_decay=0.0)
    for name, module in adapted.named_modules():
        module.training = name.endswith("lora_dropout")
    for start in range(0, len(order), BATCH):
        batch = collate(rows, order[start : start + BATCH])
        ids, labels = (torch.from_numpy(array).to(adapted.device) for array in (batch.ids, batch.labels))
        mask = torch.from_numpy(np.arange(batch.ids.shape[1]) < batch.lengths[:, None]).long().to(adapted.device)
        adapted(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval()


def timed(run: Any, adapted: Any, rows: Encoded, order: np.ndarray) -> float:
    """Tokens/s of an epoch."""
    start = time.perf_counter()
    run(adapted, rows, order)
    if adapted.device.type == "cuda":
        torch.cuda.synchronize()
    return len(rows.ids) / (time.perf_counter() - start)


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Medians over interleaved repeats."""
    given, labels = rows_of(args)
    loaded = load_model(MODELS[args.task], task=args.task, labels=labels, dtype=args.dtype)
    rows = Encoder(loaded.tokenizer, 192, loaded.labels)(given)
    rank = TASK_DEFAULTS[args.task]["lora_rank"]
    adapted = attach(
        loaded.model, rank=rank, alpha=32, dropout=args.dropout, targets=("all-linear",), seed=0, task=args.task,
        trained=loaded.head,
    )  # fmt: skip
    state = read_state(adapted)
    rates: dict[str, list[float]] = {"tov": [], "tov, padded": [], "usual loop": []}
    for repeat in range(args.repeats + 1):
        order = np.random.default_rng(repeat).permutation(len(rows))
        for run, values in zip((ours, padded, usual), rates.values(), strict=True):
            write_state(adapted, state)
            values.append(timed(run, adapted, rows, order))
    rates = {name: values[1:] for name, values in rates.items()}
    return {
        "what": "fit", "task": args.task, "model": MODELS[args.task], "dtype": loaded.dtype, "rank": rank,
        "dropout": args.dropout, "rows": len(rows), "tokens": len(rows.ids), "batch": BATCH, "repeats": args.repeats,
        "tokens_per_second": {name: round(statistics.median(values)) for name, values in rates.items()},
        "spread": {name: [round(min(values)), round(max(values))] for name, values in rates.items()},
        "over": {
            name: round(statistics.median(a / b for a, b in zip(rates["tov"], values, strict=True)), 3)
            for name, values in rates.items()
            if name != "tov"
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--task", default="instruction", choices=list(MODELS))
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--data", type=Path, help="a folder with instruct/*.parquet and ner/*.parquet")
    args = parser.parse_args()
    result = speed(args)
    result["commit"] = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    result |= {"hardware": hardware(), "torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
