"""Speed of fitting, side by side in one run.

    python benchmarks/fit.py [--task ner] [--dtype bf16] [--rows 32] [--repeats 3] [--dropout 0.1] [--data DATA]

Tokens/s (padding not counted) of one epoch of adapter training as tov does it, over the same epoch as it is usually written:
peft's forward on 16 rows padded to the longest, transformers' own loss, torch's AdamW. Between them, on a CPU, tov in padded
batches, as it trains where rows cannot stand end to end (some models). On a GPU, where it always pads, tov in parts of the size
that a CPU takes, as `tov.select` and `tov.compare` train everywhere. Each repeat has a new order of the rows, the same for all,
so that batches have new shapes, as in a real run. Repeats are interleaved; medians; the first is a warm-up.
Rows as in scan.py: of --data, or of the packaged texts. Several tasks and dtypes as there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch

from scan import add_flags, measure_all, model_of, rows_of
from tov.engine.models import CPU_BATCH_TOKENS, auto_batch_tokens
from tov.model.adapters import attach, parameters, read_state, write_state
from tov.model.load import load_model
from tov.tasks import TASKS
from tov.text.batches import collate
from tov.text.encode import Encoded, Encoder
from tov.training import loop
from tov.training.loop import make_optimizer, train_epoch

RATE, BATCH = 1e-4, 16


def ours(adapted: Any, rows: Encoded, order: np.ndarray, tokens: int | None = None) -> None:
    """One epoch by `train_epoch`, in parts of so many tokens, by default those of a scan on the device."""
    tokens = tokens or auto_batch_tokens(adapted.device)
    optimizer = make_optimizer(adapted, "carry")
    train_epoch(
        adapted, rows, order=order, optimizer=optimizer, rate=lambda _: RATE, batch_size=BATCH, batch_tokens=tokens,
        seed=0,
    )  # fmt: skip


def padded(adapted: Any, rows: Encoded, order: np.ndarray) -> None:
    """The same epoch in padded batches."""
    with mock.patch.object(loop, "packable", return_value=False):
        ours(adapted, rows, order)


def small_parts(adapted: Any, rows: Encoded, order: np.ndarray) -> None:
    """The same epoch in parts of the size that a CPU takes."""
    ours(adapted, rows, order, CPU_BATCH_TOKENS)


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


def speed(args: argparse.Namespace, task: str, dtype: str) -> dict[str, Any]:
    """Medians over interleaved repeats."""
    given, labels = rows_of(args, task)
    loaded = load_model(model_of(args, task), task=TASKS[task], labels=labels, dtype=dtype, device=args.device)
    rows = Encoder(TASKS[task].encode, loaded.tokenizer, args.max_length, loaded.labels)(given)
    rank = TASKS[task].defaults.lora_r
    adapted = attach(
        loaded.model, rank=rank, alpha=32, dropout=args.dropout, targets=("all-linear",), seed=0,
        task_type=TASKS[task].peft_type, trained=loaded.head,
    )  # fmt: skip
    state = read_state(adapted)
    on_cpu = loaded.device.type == "cpu"
    between = {"tov, padded": padded} if on_cpu else {f"tov, parts of {CPU_BATCH_TOKENS} tokens": small_parts}
    runs: dict[str, Callable[..., None]] = {"tov": ours, **between, "usual loop": usual}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(args.repeats + 1):
        order = np.random.default_rng(repeat).permutation(len(rows))
        for name, run in runs.items():
            write_state(adapted, state)
            rates[name].append(timed(run, adapted, rows, order))
    rates = {name: values[1:] for name, values in rates.items()}
    return {
        "what": "fit", "task": task, "model": loaded.name, "dtype": loaded.dtype, "device": str(loaded.device),
        "rank": rank, "dropout": args.dropout, "rows": len(rows), "tokens": len(rows.ids), "batch": BATCH,
        "repeats": args.repeats,
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
    add_flags(parser, rows=32, repeats=3)
    parser.add_argument("--dropout", type=float, default=0.0)
    measure_all(parser.parse_args(), speed)


if __name__ == "__main__":
    main()
