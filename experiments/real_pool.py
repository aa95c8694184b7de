"""Target-source rows found in a real mixed pool: which path variant, optimizer and rates make a good default.

    python experiments/real_pool.py DATA OUT.jsonl [--arms NAME ...] [--per-source 150] [--seeds 0]

DATA holds instruct/{gsm8k,alpaca_gpt35,dolly,flan_cot}.parquet. The target is 64 gsm8k rows; the pool has as many rows of each
source as asked for, none with a prompt of the target, all up to 192 tokens. For each arm and transform F it writes one
JSON line: the AUC of the score for gsm8k rows against the rest (rows outside U), the share of gsm8k among the n/2 best rows
under ten length bins, and the largest share that the bins allow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import tov
from tov.data.rows import Conversation
from tov.model.load import load_tokenizer
from tov.selection import length_bins, top_by_bin
from tov.text.encode import encode

SOURCES = ("gsm8k", "alpaca_gpt35", "dolly", "flan_cot")
TARGET_ROWS, MAX_LENGTH = 64, 192
COMMON = {"model": "smollm2-135m", "epochs": 2, "max_length": MAX_LENGTH, "quiet": True}
VARIANTS, OPTIMIZERS = ("interleaved", "parallel", "paired"), ("fresh", "carry", "sgd")
MEASURES = ("score_identity", "score_abs", "score_positive", "uncertainty")
ARMS: dict[str, dict[str, object]] = {
    "default": {},
    **{f"{v}/{o}": {"variant": v, "val_optimizer": o} for v in VARIANTS for o in OPTIMIZERS},
    "default fp32": {"dtype": "fp32"},
    **{f"eps {eps}": {"eps": eps} for eps in (0.03, 0.3, 1.0)},
    **{f"rate {rate}": {"learning_rate": rate} for rate in (1e-4, 2e-4, 1e-3)},
    **{f"rank {rank}": {"lora_rank": rank} for rank in (4, 64)},
    **{f"base {size}": {"base_size": size} for size in (32, 64, 256)},
    "dropout 0.2": {"lora_dropout": 0.2},
    "constant": {"schedule": "constant"},
    "one epoch": {"epochs": 1},
    "four epochs": {"epochs": 4},
}


def make_data(data: Path, folder: Path, per_source: int, seed: int) -> tuple[list[str], str]:
    """Writes the pool and the target as JSON lines; returns their paths."""
    tokenizer, random = load_tokenizer("smollm2-135m"), np.random.default_rng(seed)
    target_prompts: set[str] = set()
    pool = []
    for source in SOURCES:
        rows = pq.read_table(data / "instruct" / f"{source}.parquet").to_pylist()
        rows = [rows[index] for index in random.permutation(len(rows))[: 6 * (per_source + TARGET_ROWS)]]
        lengths = encode(tokenizer, [Conversation(tuple(row["messages"])) for row in rows], max_length=10_000).lengths
        rows = [row for row, length in zip(rows, lengths, strict=True) if length <= MAX_LENGTH]
        if source == SOURCES[0]:
            target, rows = rows[:TARGET_ROWS], rows[TARGET_ROWS:]
            target_prompts = {row["prompt_id"] for row in target}
            _write(folder / "target.jsonl", target)
        rows = [row for row in rows if row["prompt_id"] not in target_prompts][:per_source]
        _write(folder / f"{source}.jsonl", rows)
        pool.append(str(folder / f"{source}.jsonl"))
    return pool, str(folder / "target.jsonl")


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def auc(values: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive row's value is above another row's (ties count half)."""
    from scipy.stats import rankdata

    ranks, hits = rankdata(values), int(positive.sum())
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * (len(values) - hits)))


def judge(scores: dict[str, np.ndarray], name: str, source: str, n: int) -> dict[str, float]:
    """AUC, share among the n best under ten bins, and the largest share that the bins allow."""
    kept = (scores["excluded"] == "") & ~scores["in_base"]
    values, tokens, hit = scores[name][kept], scores["tokens"][kept], scores["source"][kept] == source
    ids = np.flatnonzero(kept)
    best = top_by_bin(values, tokens, ids, n, 10)
    quota, extra = divmod(n, 10)
    parts = length_bins(tokens, ids, 10)
    most = sum(min(int(hit[part].sum()), quota + (at < extra)) for at, part in enumerate(parts)) / n
    share = float(hit[best].mean())
    return {
        "auc": auc(values, hit),
        "share": share,
        "most": most,
        "of_most": share / most,
        "pool_share": float(hit.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--per-source", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as name:
            pool, target = make_data(args.data, Path(name), args.per_source, seed)
            for arm in args.arms:
                start = time.monotonic()
                picked = tov.select(pool=pool, target=target, n=len(pool) * args.per_source // 8, seed=seed,
                                    out=Path(name) / "run", force=True, **{**COMMON, **ARMS[arm]})  # fmt: skip
                table = picked.scores
                scores = {column: np.array(table[column].to_pylist()) for column in table.column_names}
                for name in ("identity", "abs", "positive"):
                    scores[f"{name} / loss"] = scores[f"score_{name}"] / scores["loss_base"]
                n = int(picked.summary["choice"]["by_score"])
                for measure in [name for name in scores if name in MEASURES or name.endswith("/ loss")]:
                    record = {
                        "arm": arm,
                        "seed": seed,
                        "F": measure.removeprefix("score_"),
                        **judge(scores, measure, SOURCES[0], n),
                    }
                    record |= {
                        "gain": float(np.nanmean(scores["score_identity"])),
                        "noise": picked.manifest["noise_floor"]["row_rms"],
                    }
                    record |= {
                        "seconds": round(time.monotonic() - start),
                        "timings": picked.manifest["timings"],
                        "commit": commit,
                    }
                    with open(args.out, "a") as file:
                        file.write(json.dumps(record) + "\n")
                    print(
                        {k: round(v, 3) if isinstance(v, float) else v for k, v in record.items() if k != "timings"},
                        flush=True,
                    )


if __name__ == "__main__":
    main()
