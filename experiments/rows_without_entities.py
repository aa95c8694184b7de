"""How many of the rows that LESS and TracIn take have no entity, and what a model trained on them makes of the test.

    DATA=DATA PREPARED=PREPARED tov compare experiments/ner-quick.yaml --methods random,less,tracin --out RUNS
    python experiments/rows_without_entities.py DATA PREPARED RUNS > docs/results/rows-without-entities.jsonl

One line an experiment, seed and variant, from the score tables that a comparison leaves in its folder: the share of rows
without an entity among the n best by score (what the rule score-only takes) and among all that could be taken; entity F1 and
gain over random rows of the same seed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tov.comparison.records import DONE, read_trials
from tov.data.labels import LabelMap
from tov.data.pool import index_rows, open_pool
from tov.inputs.read import usable_rows
from tov.tasks import all_layouts

VARIANTS = ("less", "tracin")


def without_entities(data: Path, prepared: Path) -> dict[str, bool]:
    """Content hash, as score tables have it -> whether no word of the row has a tag."""
    files = [
        *(data / "ner" / f"{name}.parquet" for name in ("wikineural_en", "btc", "wikiann_en")),
        prepared / "presidio_synth.parquet",
    ]
    pool = open_pool(
        list(map(str, files)),
        layouts=all_layouts(),
        columns={"ner_tags": "ner_tags_coarse"},
        label_map=LabelMap.of_settings({"MISC": "O"}),
    )
    hashes = index_rows(pool).content
    return {
        f"{int(hashes[row_id]):016x}": not row.labels for row_id, row in enumerate(usable_rows(pool.rows(0, len(pool))))
    }


def main(data: Path, prepared: Path, runs: Path) -> None:
    empty = without_entities(data, prepared)
    for experiment in sorted(folder for folder in runs.iterdir() if folder.is_dir()):
        done = [trial for trial in read_trials(experiment / "trials.jsonl") if trial["status"] == DONE]
        trials = {(trial["variant"], trial["seed"], trial["n"]): trial for trial in done}
        for (variant, seed, n), trial in sorted(trials.items(), key=str):
            if variant not in VARIANTS:
                continue
            tables = (experiment / "scores" / f"seed-{seed}").rglob("*.parquet")
            parts = [part for part in map(pq.read_table, sorted(tables)) if f"score_{variant}" in part.column_names]
            if not parts:
                print(f"{experiment.name} {variant} seed {seed}: no score table here, left out", file=sys.stderr)
                continue
            score = np.concatenate([part[f"score_{variant}"].to_numpy() for part in parts])
            usable = np.array([not reason for part in parts for reason in part["excluded"].to_pylist()])
            rows = np.array([row for part in parts for row in part["hash"].to_pylist()])
            bare = np.array([empty[row] for row in rows[usable]])
            best = np.argsort(-score[usable], kind="stable")[:n]
            gain = 100 * (1 - trial["loss"] / trials["random", seed, n]["loss"])
            line = {
                "experiment": experiment.name, "variant": variant, "seed": seed, "n": n,
                "chosen": round(float(bare[best].mean()), 3), "pool": round(float(bare.mean()), 3),
                "f1": round(trial["metric"], 3), "gain": round(gain, 1), "commit": trial["commit"],
            }  # fmt: skip
            print(json.dumps(line))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
