"""Target-source rows found in pools of sentences with entities and of labelled texts: which rank and rates make good defaults.

    python experiments/labelled_pool.py DATA OUT.jsonl [--cases NER-E4 ...] [--arms default ...] [--per-source 1000] [--seeds 0]

DATA holds ner/*.parquet. Cases: NER-E1 (target wikineural_en) and NER-E4 (target presidio_synth, templates of the target kept
out of the pool), both in a pool of wikineural_en, presidio_synth, btc and wikiann_en by the coarse tags without MISC; NER-X2
(target ncbi_disease in a pool of ncbi_disease, bc5cdr, bc2gm and wikineural_en, every type but Disease dropped); `topics`
(labelled texts: the topics of chatterbot-corpus, its languages as sources, target English). 256 target rows (topics: 64). For
each arm and F it writes one JSON line: AUC of the score for the target's source against the rest (rows outside U), its share
among the rows chosen by score under ten length bins, and the largest share that the bins allow.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from real_pool import measures, noise_of, path_facts

import tov

MIXED = ("wikineural_en", "presidio_synth", "btc", "wikiann_en")
COARSE: dict[str, Any] = {"columns": {"ner_tags": "ner_tags_coarse"}, "label_map": {"MISC": "O"}}
ONLY_DISEASE = dict.fromkeys(("Chemical", "GENE", "PER", "ORG", "LOC", "MISC"), "O")
LANGUAGES = ("english", "italian", "korean", "ukrainian", "japanese")
TOPICS = ("ai", "emotion", "humor", "literature", "money", "movies", "politics", "psychology", "science", "sports")


@dataclass(frozen=True)
class Case:
    """A target and a pool; settings of `tov.select` that they need."""

    sources: tuple[str, ...]
    target: str
    target_rows: int = 256
    settings: dict[str, Any] = field(default_factory=dict)


CASES = {
    "NER-E1": Case(MIXED, "wikineural_en", settings=COARSE),
    "NER-E4": Case(MIXED, "presidio_synth", settings=COARSE),
    "NER-X2": Case(
        ("ncbi_disease", "bc5cdr", "bc2gm", "wikineural_en"), "ncbi_disease", settings={"label_map": ONLY_DISEASE}
    ),
    "topics": Case(LANGUAGES, "english", target_rows=64),
}
FIRST: dict[str, Any] = {"lora_r": 1, "learning_rate": 5e-4}
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"rank {rank}": {"lora_r": rank} for rank in (1, 4, 8, 16)},
    **{f"rate {rate:g}": {"learning_rate": rate} for rate in (2e-4, 5e-4, 1e-3, 2e-3, 5e-3)},
    **{f"rank {rank} rate {rate:g}": {"lora_r": rank, "learning_rate": rate} for rank in (1, 8) for rate in (2e-4, 2e-3)},
    **{f"amplify {factor:g}": {"amplify": factor} for factor in (1.0, 2.0, 16.0)},
    **{f"{variant}": {"path_variant": variant} for variant in ("parallel", "paired")},
    "fp32": {"dtype": "fp32"},
    "eps 1": {"target_learning_rate_ratio": 1.0},
    "sgd": {"target_optimizer": "sgd"},
    "carry": {"target_optimizer": "carry"},
    # The arms of the tables in docs/defaults.md, with every setting named that has since become a default.
    **{f"L 4 c {c:g} eps {eps:g} {variant}": {**FIRST, "epochs": 4, "amplify": c, "target_learning_rate_ratio": eps,
                                              "path_variant": variant}
       for c, eps, variant in ((1.0, 0.1, "interleaved"), (1.0, 0.3, "interleaved"), (1.0, 1.0, "interleaved"),
                               (1.0, 1.0, "paired"), (1.0, 1.0, "parallel"), (4.0, 0.1, "interleaved"))},
    "L 1": {**FIRST, "epochs": 1, "target_learning_rate_ratio": 0.3},
    "L 2 eps 1": {**FIRST, "epochs": 2, "target_learning_rate_ratio": 1.0},
    **{f"topics rate {rate:g} c {c:g} eps {eps:g}": {"learning_rate": rate, "amplify": c, "target_learning_rate_ratio": eps}
       for rate, c, eps in ((5e-4, 1.0, 0.1), (5e-4, 4.0, 0.1), (2e-3, 1.0, 0.3), (2e-3, 1.0, 1.0), (5e-3, 1.0, 0.3))},
}  # fmt: skip


def read_source(data: Path, name: str) -> list[dict[str, Any]]:
    """All rows of a source; `group` must not be parted between target and pool."""
    if name in LANGUAGES:
        files = importlib.metadata.files("chatterbot-corpus") or []
        found = {file.stem: Path(str(file.locate())) for file in files if file.match(f"*/{name}/*.yml")}
        rows = {}
        for topic in TOPICS:
            for turns in yaml.safe_load(found[topic].read_text(encoding="utf-8"))["conversations"]:
                text = " ".join(str(turn) for turn in turns)
                rows[text] = {"text": text, "label": topic}
        return [{**row, "group": text} for text, row in rows.items()]
    rows = pq.read_table(data / "ner" / f"{name}.parquet").to_pylist()
    return [{**row, "group": row["split"] if name == "presidio_synth" else str(row["tokens"])} for row in rows]


def make_data(case: Case, data: Path, folder: Path, per_source: int, seed: int) -> tuple[list[str], str]:
    """Writes the pool and the target as JSON lines; returns their paths."""
    random, pool = np.random.default_rng(seed), []
    for name in case.sources:
        rows = read_source(data, name)
        rows = [rows[place] for place in random.permutation(len(rows))]
        if name == case.target:
            groups = list(dict.fromkeys(row["group"] for row in rows))
            held: set[str] = set()
            target: list[dict[str, Any]] = []
            for group in groups:
                if len(target) >= case.target_rows:
                    break
                held.add(group)
                target += [row for row in rows if row["group"] == group]
            _write(folder / "target.jsonl", target[: case.target_rows])
            rows = [row for row in rows if row["group"] not in held]
        _write(folder / f"{name}.jsonl", rows[:per_source])
        pool.append(str(folder / f"{name}.jsonl"))
    return pool, str(folder / "target.jsonl")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_arm(case: Case, folder: Path, pool: list[str], target: str, arm: str, seed: int) -> Iterator[dict[str, Any]]:
    """Fits, scans and judges one arm; yields one record a measure."""
    rows = sum(Path(file).read_text().count("\n") for file in pool)
    picked = tov.select(
        model="minilm", pool=pool, target=target, n=rows // 8, seed=seed, out=folder / "run", force=True, quiet=True,
        **{**case.settings, **ARMS[arm]},
    )  # fmt: skip
    about = {
        "arm": arm, "seed": seed, "rows": rows, "path": path_facts(picked), "timings": picked.manifest.timings,
        "noise": noise_of(picked),
    }  # fmt: skip
    about["losses"] = [entry["log_loss"] for entry in picked.path.manifest["log"]]
    for transform, facts in measures(picked, int(picked.summary["choice"]["by_score"]), case.target).items():
        yield {**about, "F": transform, **facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--arms", nargs="+", default=["default"], choices=list(ARMS), metavar="ARM")
    parser.add_argument("--per-source", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    for name in args.cases:
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                pool, target = make_data(CASES[name], args.data, folder, args.per_source, seed)
                for arm in args.arms:
                    shown = []
                    for record in run_arm(CASES[name], folder, pool, target, arm, seed):
                        with open(args.out, "a") as file:
                            file.write(json.dumps({"case": name, **record, "commit": commit}) + "\n")
                        shown.append(f"{record['F']} {record['auc']:.2f}/{record['share']:.2f}/{record['of_most']:.2f}")
                    print(f"{name} {arm} seed {seed} noise {record['noise']:.2g}: {'; '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
