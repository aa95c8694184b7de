"""Target-source rows found in a real mixed pool: which path variant, optimizer and rates make a good default.

    python experiments/real_pool.py DATA OUT.jsonl [--arms NAME ...] [--amplify 1 16] [--per-source 150] [--seeds 0]

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import tov
from tov.methods.tov.scoring import normalized
from tov.model.load import load_tokenizer
from tov.selection.choose import length_bins, top_by_bin
from tov.tasks import TASKS
from tov.tasks.instruction import Conversation, encode

SOURCES = ("gsm8k", "alpaca_gpt35", "dolly", "flan_cot")
TARGET_ROWS, MAX_LENGTH = 64, 192
COMMON: dict[str, Any] = {"model": "smollm2-135m", "epochs": 2, "max_length": MAX_LENGTH, "quiet": True}
VARIANTS, OPTIMIZERS = ("interleaved", "parallel", "paired"), ("fresh", "carry", "sgd")
MEASURES = ("score_identity", "score_abs", "score_positive", "uncertainty")
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"{v}/{o}": {"path_variant": v, "target_optimizer": o} for v in VARIANTS for o in OPTIMIZERS},
    "default fp32": {"dtype": "fp32"},
    **{f"eps {eps}": {"target_learning_rate_ratio": eps} for eps in (0.03, 0.3, 1.0)},
    **{f"rate {rate}": {"learning_rate": rate} for rate in (1e-4, 2e-4, 1e-3)},
    **{f"rank {rank}": {"lora_r": rank} for rank in (4, 64)},
    **{f"base {size}": {"base_size": size} for size in (32, 64, 256)},
    "dropout 0.2": {"lora_dropout": 0.2},
    "constant": {"lr_scheduler_type": "constant"},
    "one epoch": {"epochs": 1},
    "four epochs": {"epochs": 4},
}


def make_data(data: Path, folder: Path, per_source: int, seed: int) -> tuple[list[str], str]:
    """Writes the pool and the target as JSON lines; returns their paths."""
    tokenizer, random = load_tokenizer("smollm2-135m", task=TASKS["instruction"]), np.random.default_rng(seed)
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
    parts = length_bins(tokens, ids, 10)
    best = top_by_bin(parts, values, ids, n)
    quota, extra = divmod(n, 10)
    most = sum(min(int(hit[part].sum()), quota + (at < extra)) for at, part in enumerate(parts)) / n
    share = float(hit[best].mean())
    return {
        "auc": auc(values, hit),
        "share": share,
        "most": most,
        "of_most": share / most,
        "pool_share": float(hit.mean()),
    }


def measures(result: tov.Result, n: int, source: str) -> dict[str, dict[str, float]]:
    """`judge` for every F, each also over the base state's log-loss, and for max-uncertainty."""
    scores = {column: np.array(result.scores[column].to_pylist()) for column in result.scores.column_names}
    for transform in ("identity", "abs", "positive"):
        scores[f"{transform} / loss"] = normalized(scores[f"score_{transform}"], scores["loss_base"])
    wanted = [name for name in scores if name in MEASURES or name.endswith("/ loss")]
    return {name.removeprefix("score_"): judge(scores, name, source, n) for name in wanted}


def path_facts(result: tov.Result) -> dict[str, Any]:
    """What a run's path was made from and scanned with."""
    model, scoring, path = result.manifest.model, result.manifest.scoring, result.path
    assert model
    assert scoring
    return {
        "task": model.task, "fingerprint": path.fingerprint, "epochs": path.epochs, "base_rows": path.manifest["base_size"],
        "target_rows": path.manifest["target"]["rows"], "dtype": model.dtype, "device": model.device,
        "amplify": scoring.settings["amplify"], "model_fingerprint": model.fingerprint,
    }  # fmt: skip


def noise_of(result: tov.Result) -> float:
    """What rounding does to a row's log-loss, in nats a token."""
    scoring = result.manifest.scoring
    assert scoring
    assert scoring.noise_floor
    return scoring.noise_floor["row_rms"]


def run_arm(
    folder: Path, pool: list[str], target: str, arm: str, seed: int, amplify: list[float]
) -> Iterator[dict[str, Any]]:
    """Fits and scans one arm; rescans its path with each factor in `amplify`; yields one record a measure."""
    settings = {**COMMON, **ARMS[arm]}
    rows = sum(Path(file).read_text().count("\n") for file in pool)
    picked = tov.select(pool=pool, target=target, n=rows // 8, seed=seed, out=folder / "run", force=True, **settings)
    n = int(picked.summary["choice"]["by_score"])
    scans = [
        picked,
        *(tov.score(picked, pool, out=folder / f"scan-{c:g}", force=True, amplify=c, quiet=True) for c in amplify),
    ]
    for scan in scans:
        facts = path_facts(scan)
        about = {
            "arm": arm, "seed": seed, "amplify": facts["amplify"], "dtype": facts["dtype"],
            "timings": scan.manifest.timings, "noise": noise_of(scan),
        }  # fmt: skip
        for transform, found in measures(scan, n, SOURCES[0]).items():
            yield {**about, "F": transform, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--amplify", nargs="*", type=float, default=[])
    parser.add_argument("--per-source", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pool, target = make_data(args.data, folder, args.per_source, seed)
            for arm in args.arms:
                for record in run_arm(folder, pool, target, arm, seed, args.amplify):
                    with open(args.out, "a") as file:
                        file.write(json.dumps({**record, "commit": commit}) + "\n")
                    facts = f"AUC {record['auc']:.3f}, {record['of_most']:.2f} of most"
                    print(f"{arm} c={record['amplify']:g} {record['F']}: {facts}", flush=True)


if __name__ == "__main__":
    main()
