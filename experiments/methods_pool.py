"""Target-source rows found in real mixed pools, by every method.

    python experiments/methods_pool.py DATA OUT.jsonl [--cases gsm8k NER-E4] [--methods tov less ...] [--seeds 0]

DATA holds instruct/*.parquet and ner/*.parquet. The pools are those of `real_pool.py` (case gsm8k) and of `labelled_pool.py`
(NER-E4). A line for each case, seed and method: the AUC of its score for rows of the target's source against the rest; the
share of the target's source among the rows that it chooses (an eighth of the pool) under its own rule, those drawn at random
not counted; and the same under one rule for all, score-only with ten length bins.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import labelled_pool
import numpy as np
import real_pool

import tov
from tov.config.records import ReselectConfig
from tov.config.settings import build
from tov.methods.spec import parse_variant, with_rule

METHODS = ("tov", "uncertainty", "less", "tracin", "dsir", "bm25", "tsds", "rds", "target-path")


def make_data(case: str, data: Path, folder: Path, seed: int) -> tuple[list[str], str, str, dict[str, Any]]:
    """Pool files, target file, the target's source, and settings."""
    if case == "gsm8k":
        pool, target = real_pool.make_data(data, folder, 150, seed)
        settings = {name: value for name, value in real_pool.COMMON.items() if name != "epochs"}
        return pool, target, "gsm8k", settings
    made = labelled_pool.CASES[case]
    pool, target = labelled_pool.make_data(made, data, folder, 1000, seed)
    return pool, target, made.target, {"model": "minilm", "quiet": True, **made.settings}


def judge(picked: tov.Picked, method: str, source: str) -> dict[str, float]:
    """Share under the method's own rule, and the AUC of its score."""
    variant, columns = parse_variant(method), picked.scores
    settings = with_rule(build(ReselectConfig, {"n": 2, "from_run": "-", "out": "-", "normalize": "none"}), variant)
    values = variant.method.rank(columns, settings)
    kept = np.array([not reason for reason in columns["excluded"].to_pylist()]) & ~columns["in_base"].to_numpy()
    kept &= ~np.isnan(values)
    hit = np.array(columns["source"].to_pylist()) == source
    return {"auc": real_pool.auc(values[kept], hit[kept]), "share": share_of(picked, source)}


def share_of(picked: tov.Picked, source: str) -> float:
    """Of the rows chosen by score."""
    rows = [row for row in picked.dataset if row["tov_reason"] == "score"]
    return float(np.mean([row["tov_source"] == source for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", nargs="+", default=["gsm8k", "NER-E4"], choices=["gsm8k", *labelled_pool.CASES])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    for case, seed in ((case, seed) for case in args.cases for seed in args.seeds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pool, target, source, settings = make_data(case, args.data, folder, seed)
            n = sum(Path(file).read_text().count("\n") for file in pool) // 8
            for at, method in enumerate(args.methods):
                picked = tov.select(
                    pool=pool, target=target, n=n, seed=seed, method=method, out=folder / f"{at}", **settings
                )
                binned = tov.reselect(picked, n=n, rule="score-only", bins=10, out=folder / f"{at}-bins", quiet=True)
                record = {
                    "case": case, "seed": seed, "method": method, **judge(picked, method, source),
                    "share_binned": share_of(binned, source), "timings": picked.manifest.timings, "commit": commit,
                }  # fmt: skip
                with open(args.out, "a") as file:
                    file.write(json.dumps(record) + "\n")
                print({key: value for key, value in record.items() if key not in ("timings", "commit")}, flush=True)


if __name__ == "__main__":
    main()
