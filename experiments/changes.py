"""Changes to ToV that are no options of it, by training: the same number of rows, chosen in another way.

    export DATA=DATA PREPARED=PREPARED
    tov compare experiments/ner-quick.yaml --only NER-E1 NER-E4 --methods random,tov,tov/epochs=2 \\
        --seed 1000 --seeds 1 --out RUNS
    python experiments/changes.py experiments/ner-quick.yaml RUNS WORK OUT.jsonl --only NER-E1 NER-E4 --seed 1000

RUNS holds the score tables of two epochs and the trainings on random rows and on those of ToV, which are read from there.
WORK takes the score tables that are made here.

    tov            the default of two epochs: half by score, half random
    score-only     all by score
    in turns       half by score; these are the base set of another path, under whose scores the other half is taken
    clusters       the target in four clusters (--target-clusters 4), a direction each
    spread         as tov, but a row is taken by score after a penalty for its likeness to those taken before it: percentile
                   of the score less half the largest cosine, of embeddings half way up the first base state less their mean
    spread, score-only  the same, all by score

Training and test are those of `tov compare`: seed, initial state, steps, test rows. A line a training: test log-loss in nats a
token, the metric, the gain over random rows in % of the log-loss, and `overlap`, the share of all rows that are also those of
`tov` (under `spread` half are the same random ones), or of score-only. OUT goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
from fewer_passes import Judge, Table, bench_of, choice_of, embed_base, encoded, read_scores, tables_of

from tov.comparison.bench import Bench
from tov.comparison.grid import read_grid
from tov.comparison.records import DONE, read_trials
from tov.files import append_json_line
from tov.methods.choice import choose_rows
from tov.methods.score_pool import score_pool
from tov.methods.shared.percentiles import percentiles
from tov.methods.spec import parse_variant, settings_for
from tov.methods.tov import method as of_tov
from tov.runs.folder import Run, work_on
from tov.scores.store import read_table
from tov.seeds import generator

CLUSTERS, PENALTY = 4, 0.5


def scored(bench: Bench, folder: Path, text: str, n: int, base: np.ndarray | None = None) -> Run:
    """The finished score table of a variant of ToV; `base` is the base set, where it is not to be drawn."""
    variant = parse_variant(text)
    settings = settings_for(bench.config, variant)

    def given(*_: Any) -> Any:
        assert base is not None
        return base, encoded(bench, base)

    with work_on(folder, command="compare", identity={"variant": text}, settings={}) as run:
        if not run.finished:
            with mock.patch.object(of_tov, "draw_rows", given) if base is not None else nullcontext():
                score_pool(
                    run, bench.split.rows, bench.split.target, settings, variant, n=n, labels=bench.labels,
                    models=bench.models, quiet=True,
                )  # fmt: skip
            run.finish()
    return run


def spread(table: Table, embedded: np.ndarray, n: int) -> np.ndarray:
    """(n,) row_ids taken one by one, by the percentile of the score less a penalty for likeness to those taken before.

    Args:
        table: the scores.
        embedded: (free rows, D).
        n: rows to take.
    """
    free = table.free
    worth = percentiles(table.score, np.isin(np.arange(len(table.score)), free))[free]
    apart = embedded - embedded.mean(0)
    apart /= np.linalg.norm(apart, axis=1, keepdims=True) + 1e-12
    like, taken = np.zeros(len(free)), np.zeros(len(free), bool)
    order = []
    for _ in range(n):
        best = int(np.argmax(np.where(taken, -np.inf, worth - PENALTY * like)))
        order.append(best)
        taken[best] = True
        like = np.maximum(like, apart @ apart[best])
    return free[order]


def chosen(bench: Bench, experiment: Path, work: Path, n: int) -> dict[str, Callable[[], np.ndarray]]:
    """By way, what takes its rows: those by score first."""
    seed, half = bench.config.seed, n - n // 2
    settings = settings_for(bench.config, parse_variant("tov"))
    assert settings.bins
    bins, table = settings.bins, tables_of(experiment, seed, settings.transform)[2]
    default = choice_of(table, table.score, n, "score+random", bins, seed)
    random = default.row_ids[default.reasons == "random"]

    def by_score(scores: Table, count: int) -> np.ndarray:
        return choice_of(scores, scores.score, count, "score-only", bins, seed).row_ids

    def in_turns() -> np.ndarray:
        first = by_score(table, half)
        run = scored(bench, work / "in-turns", f"tov/epochs=2/base_size={half}", n, np.sort(first))
        again = read_scores(run.folder, settings.transform)
        return np.concatenate([first, by_score(again, n - half)])

    def clusters() -> np.ndarray:
        variant = parse_variant(f"tov/epochs=2/target_clusters={CLUSTERS}")
        run = scored(bench, work / "clusters", variant.name, n)
        columns: pa.Table = read_table(run.folder / "scores")
        return choose_rows(
            variant.method, settings_for(bench.config, variant), columns, run, targets=list(run.manifest.targets), n=n,
            seed=seed,
        )[0].row_ids  # fmt: skip

    @cache
    def embedded() -> np.ndarray:
        return embed_base(bench, table)

    def spread_out(count: int) -> np.ndarray:
        return spread(table, embedded(), count)

    return {
        "tov": lambda: default.row_ids,
        "score-only": lambda: by_score(table, n),
        "in turns": in_turns,
        "clusters": clusters,
        "spread": lambda: generator(seed, "spread").permutation(np.concatenate([spread_out(half), random])),
        "spread, score-only": lambda: spread_out(n),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, help="experiments, as of tov compare")
    parser.add_argument("runs", type=Path, help="folder of tov compare on that grid")
    parser.add_argument("work", type=Path, help="folder for the score tables made here")
    parser.add_argument("out", type=Path, help="JSON lines are added here")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="experiments; default all")
    parser.add_argument("--seed", type=int, default=1000, help="a seed that RUNS has (default 1000)")
    args = parser.parse_args()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    grid = read_grid(args.grid, tuple(args.only))
    for name in grid.experiments:
        bench, experiment = bench_of(grid, name, args.seed), args.runs / name
        n = max(bench.config.sizes)
        trials = [
            one
            for one in read_trials(experiment / "trials.jsonl")
            if one["status"] == DONE and one["seed"] == args.seed
        ]
        judge = Judge(bench, n, {one["rows_fingerprint"]: one for one in trials if "rows_fingerprint" in one})
        lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
        done = {one["variant"] for one in lines if (one["experiment"], one["seed"]) == (name, args.seed)}
        ways = chosen(bench, experiment, args.work / f"{name}-{args.seed}", n)
        if done >= ways.keys():
            continue
        of_random = judge.loss_of(judge.random_rows())
        whole = {"tov": ways["tov"](), "score-only": ways["score-only"]()}
        for way, rows_of in ways.items():
            if way in done:
                continue
            row_ids = rows_of()
            beside = whole["score-only" if "score-only" in way else "tov"]
            came = judge.loss_of(row_ids)
            line = {
                "experiment": name, "seed": args.seed, "variant": way, "n": n,
                "overlap": round(float(np.isin(row_ids, beside).mean()), 3), **came,
                "random": of_random["loss"], "gain": round(100 * (1 - came["loss"] / of_random["loss"]), 1), "commit": commit,
            }  # fmt: skip
            append_json_line(args.out, line)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
