"""All path variants and target optimizers on one real pool, every state fitted and scanned once.

    python experiments/variants.py DATA OUT.jsonl [--per-source 150] [--seed 0] [--dtype auto]

The pool is that of `real_pool.py`. A state is known by how it was reached (which epochs, in which order, which target
optimizer), so `parallel` and `paired` share their base epochs, and `interleaved` and `paired` their target epochs: nine paths
for the price of three. One JSON line a path and F: AUC and shares as in `real_pool.py`.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from real_pool import COMMON, MEASURES, SOURCES, judge, make_data

from tov.config.records import SelectConfig
from tov.config.settings import build
from tov.engine.models import CPU_BATCH_TOKENS, ModelSpec
from tov.inputs.draw import draw_rows
from tov.inputs.read import read_pool, read_target
from tov.losses import log_loss
from tov.methods.tov.fit import _order, _rates_of, base_size_for, schedule_for
from tov.methods.tov.scan import token_losses
from tov.methods.tov.scoring import normalized, row_scores
from tov.methods.tov.variants import START, VARIANTS, Step
from tov.model.adapters import read_state, write_state
from tov.model.kernels.joined import scanning
from tov.seeds import derive, generator
from tov.text.batches import collate, plan
from tov.training.loop import make_optimizer, moments_of, train_epoch

OPTIMIZERS = ("fresh", "carry", "sgd")
History = tuple[tuple[str, int, str], ...]


class Bench:
    """The states and token log-probabilities made so far, by history."""

    def __init__(self, config: SelectConfig) -> None:
        target = read_target(config.target, config)
        config = config.for_task(target.task)
        self.config, self.opened = config, ModelSpec.of(config).open()
        self.rows = read_pool(config.pool, config, target.index.prompt, decontaminate=True)
        self.schedule = schedule_for(config, base_size_for(config, int(self.rows.usable.sum())))
        encoded = self.opened.encode
        self.base_ids, base = draw_rows(self.rows, self.schedule.base_size, generator(config.seed, "base set"), encoded)
        self.data = {"base": base, "target": encoded(target.rows)}
        self.pool = encoded(self.rows.rows)
        counts = self.pool.scored_counts
        self.batches = [collate(self.pool, group) for group in plan(self.pool.lengths, counts > 0, CPU_BATCH_TOKENS)]
        self.order = np.concatenate([batch.rows for batch in self.batches])
        self.offsets = np.concatenate([[0], np.cumsum(counts[self.order])])
        self.states: dict[History, Any] = {(): (read_state(self.opened.adapted), None)}
        self.logp: dict[tuple[History, History], np.ndarray] = {}

    def state(self, history: History) -> Any:
        """(weights, base moments) after a history."""
        if history not in self.states:
            (data, epoch, kind), before = history[-1], self.state(history[:-1])
            step = Step(epoch, "base" if data == "base" else "target", START, START)
            config = self.config.model_copy(update={"target_optimizer": kind or "fresh"})
            write_state(self.opened.adapted, before[0])
            carried = data == "base" or kind == "carry"
            optimizer = make_optimizer(self.opened.adapted, "sgd" if kind == "sgd" else "adamw")
            if carried and before[1] is not None:
                optimizer.load_state_dict(copy.deepcopy(before[1]))
            train_epoch(
                self.opened.adapted, self.data[data], order=_order(config.seed, step, len(self.data[data])),
                optimizer=optimizer, rate=_rates_of(config, self.schedule, step), batch_size=config.batch_size,
                batch_tokens=2048, seed=derive(config.seed, "dropout", data, epoch),
            )  # fmt: skip
            moments = moments_of(optimizer) if carried else before[1]
            self.states[history] = (read_state(self.opened.adapted), moments)
        return self.states[history]

    def scan(self, base: History, target: History) -> np.ndarray:
        """Token log-probabilities under the target state, its step from the base state amplified."""
        if (base, target) not in self.logp:
            one, two = self.state(base)[0], self.state(target)[0]
            state = {name: one[name] + self.config.amplify * (two[name] - one[name]) for name in one}
            with scanning(self.opened.adapted) as set_state:
                set_state(state)
                self.logp[base, target] = token_losses(self.opened.adapted.get_base_model(), self.batches)
        return self.logp[base, target]

    def path(self, variant: str, kind: str) -> list[tuple[History, History]]:
        """The (base, target) pairs of a variant, as histories."""
        histories: dict[str, History] = {START: ()}
        for step in VARIANTS[variant](self.schedule.epochs):
            histories[step.result] = (
                *histories[step.source],
                (step.data, step.epoch, kind if step.data == "target" else ""),
            )
        return [(histories[f"base-{k}"], histories[f"target-{k}"]) for k in range(1, self.schedule.epochs + 1)]

    def scores(self, variant: str, kind: str) -> dict[str, np.ndarray]:
        """Columns as in the score table."""
        columns: dict[str, list[np.ndarray]] = {}
        for base, target in self.path(variant, kind):
            before, after = self.scan(base, base), self.scan(base, target)
            found = {f"score_{name}": value for name, value in row_scores(before, after, self.offsets).items()}
            for name, value in {**found, "loss_base": log_loss(before, self.offsets)}.items():
                placed = np.full(len(self.pool), np.nan)
                placed[self.order] = value
                columns.setdefault(name, []).append(placed)
        return {name: np.mean(values, axis=0) for name, values in columns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-source", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--paths", nargs="+", default=[f"{v}/{o}" for o in OPTIMIZERS for v in VARIANTS])
    args = parser.parse_args()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as name:
        pool, target = make_data(args.data, Path(name), args.per_source, args.seed)
        given = {**COMMON, "pool": pool, "target": target, "n": 1, "out": name, "seed": args.seed, "dtype": args.dtype}
        bench = Bench(build(SelectConfig, given))
    total = len(bench.pool)
    about = {
        "excluded": np.array([""] * total), "in_base": np.isin(np.arange(total), bench.base_ids),
        "tokens": bench.pool.scored_counts, "source": np.array(bench.rows.pool.source_names(np.arange(total))),
    }  # fmt: skip
    for path in args.paths:
        scores = bench.scores(*path.split("/"))
        for measure in (name for name in MEASURES if name in scores):
            for suffix, values in (
                ("", scores[measure]),
                (" / loss", normalized(scores[measure], scores["loss_base"])),
            ):
                facts = judge({**about, "x": values}, "x", SOURCES[0], total // 16 + 1)
                record = {"path": path, "F": measure.removeprefix("score_") + suffix, "seed": args.seed, **facts}
                record |= {"dtype": bench.opened.loaded.dtype, "commit": commit}
                with open(args.out, "a") as file:
                    file.write(json.dumps(record) + "\n")
                print(f"{path} {record['F']}: AUC {facts['auc']:.3f}, {facts['of_most']:.2f} of most", flush=True)


if __name__ == "__main__":
    main()
