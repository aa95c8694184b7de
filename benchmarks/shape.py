"""A scan of a random model of a large model's shape, side by side in one run.

    python benchmarks/shape.py --shape 8b --device cuda          # 16 GB of weights, made on the card
    python benchmarks/shape.py --shape tiny --batch-tokens 128   # the same code in a second, on a CPU

Tokens/s of a whole scan (padding, both states, backbone, exact head, scores) over those of a bare backbone forward on the
same rows in ideal batches without padding, and over the usual loop (peft's forward, 16 rows a batch, the model's own logits).
`of_matmul_peak` is the scan's share of what the device's matrix product reaches in the same dtype: products with the
backbone's and the adapter's weights for every token, with the head for every scored one, and of causal attention; padding
counts as lost. Repeats are interleaved; medians. Rows are random tokens: lengths are log-normal, the second half of a row is
scored.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scan import bare, made_with, part_of_a_shard, scan, usual
from tov.engine.models import auto_batch_tokens
from tov.files import write_json
from tov.model.adapters import attach, read_state
from tov.model.load import DTYPES, pick_device, pick_dtype
from tov.text.encode import IGNORED, Encoded

SHAPES = {
    "8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
}  # fmt: skip
"""Llama-3-8B and Llama-3.2-1B as their papers give them, and a model for a dry run."""
RANK = 16
TYPICAL, SPREAD, LONGEST = 256, 0.6, 1024
"""Median of the rows' lengths, standard deviation of their logarithms, and the most, in tokens."""


@dataclass(frozen=True)
class Size:
    """How large the measurement is: rows, their typical length, and the side of the square matrices of the peak."""

    rows: int
    typical: int
    side: int


SIZES = {"8b": Size(192, TYPICAL, 8192), "1b": Size(384, TYPICAL, 8192), "tiny": Size(32, 16, 256)}


def random_model(shape: str, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of random weights, made where it will run."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=LONGEST)).eval()
    finally:
        torch.set_default_dtype(before)


def random_rows(size: Size, vocabulary: int) -> Encoded:
    """Rows of random tokens; the second half of each is scored."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(np.log(size.typical), SPREAD, size.rows).astype(np.int64), 8, LONGEST)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = draw.integers(0, vocabulary, offsets[-1]).astype(np.int32)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    labels = np.where(place >= np.repeat(lengths // 2, lengths), ids, IGNORED).astype(np.int32)
    return Encoded(ids, labels, offsets, lengths - lengths // 2, np.zeros(size.rows, np.int64))


def flops(model: Any, rows: Encoded) -> float:
    """Of one pass, without padding; with an adapter attached, its products too."""
    config, head = model.config, model.get_output_embeddings().weight.numel()
    embedded = model.get_input_embeddings().weight.numel()
    backbone = sum(one.numel() for one in model.parameters()) - embedded - (0 if config.tie_word_embeddings else head)
    products = 2 * backbone * len(rows.ids) + 2 * head * int(rows.scored.sum())
    return float(products + 2 * config.num_hidden_layers * config.hidden_size * int((rows.lengths**2).sum()))


def peak(side: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a product of two square matrices; the median of ten."""
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    times = []
    for _ in range(12):
        start = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(times[2:])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Medians over interleaved repeats; the first round is a warm-up."""
    device, size = pick_device(args.device), SIZES[args.shape]
    name = pick_dtype(args.dtype, device)
    dtype = DTYPES[name]
    model = random_model(args.shape, dtype, device)
    shard = random_rows(size, model.config.vocab_size)
    batch_tokens = args.batch_tokens or auto_batch_tokens(device)
    rows, ideal = part_of_a_shard(shard, batch_tokens, 1)
    weights = sum(one.numel() for one in model.parameters())
    adapted = attach(
        model, rank=RANK, alpha=32, dropout=0.0, targets=("all-linear",), seed=0, task_type="CAUSAL_LM", trained=()
    )
    state = read_state(adapted)
    trained = sum(one.numel() for one in state.values())
    changed = {key: value + 1e-3 * torch.randn_like(value) for key, value in state.items()}
    times: dict[str, list[float]] = {"bare, ideal batches": [], "scan": [], "usual loop": []}
    peaks = []
    for repeat in range(args.repeats + 1):
        with adapted.disable_adapter():
            plain = bare(model, ideal)
        rates = plain, scan(adapted, rows, (changed, state), batch_tokens), usual(adapted, rows)
        peaks.append(peak(size.side, dtype, device))
        if repeat:
            for values, rate in zip(times.values(), rates, strict=True):
                values.append(rate)
    rate = statistics.median(times["scan"])
    return {
        "what": "shape", "shape": args.shape, "weights": weights, "trained": trained, "dtype": name, "device": str(device),
        "rows": len(rows), "tokens": len(rows.ids), "scored_share": round(float(rows.scored.mean()), 3),
        "batch_tokens": batch_tokens, "repeats": args.repeats,
        "tokens_per_second": {key: round(statistics.median(values)) for key, values in times.items()},
        "scan_over": {
            key: round(statistics.median(s / o for s, o in zip(times["scan"], values, strict=True)), 3)
            for key, values in times.items() if key != "scan"
        },
        "tera_flops_of_a_matrix_product": round(statistics.median(peaks) / 1e12, 3),
        "of_matmul_peak": round(rate * flops(model, rows) / len(rows.ids) / statistics.median(peaks), 4),
        **made_with(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="8b")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-tokens", type=int, help="default: those of a scan on the device")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    found = measure(args)
    if args.out:
        write_json(args.out, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
