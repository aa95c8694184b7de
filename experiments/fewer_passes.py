"""Ways to spend fewer tokens on ToV's scan, by training: the same number of rows, chosen from a part of the passes.

    export DATA=DATA PREPARED=PREPARED
    tov compare experiments/ner-quick.yaml --only NER-E1 NER-E4 --methods random,tov,tov/epochs=2,tov/epochs=1 \\
        --seed 1000 --seeds 1 --out RUNS
    python experiments/fewer_passes.py experiments/ner-quick.yaml RUNS OUT.jsonl --only NER-E1 NER-E4 --seed 1000
    python experiments/fewer_passes.py experiments/instruction-quick.yaml RUNS - --only IT-E1 --count

RUNS holds the finished score tables. Every way sees a part of the numbers of the table of L epochs (2 L passes of every row):

    halving        after each epoch the better half, by the mean of the epochs so far, goes on
    quarter        the best quarter after the first epoch goes on, through all the others
    first-half     the first L / 2 epochs of the path of L epochs
    first of two, last of two  one epoch of a path of two (tov/epochs=2 in RUNS)
    landmarks      a quarter of the rows, drawn at random, is scored in full; a ridge regression on the embedding half way up
                   the first base state and the loss under it gives the score of the others
    first+landmarks  the same with the first epoch's score of every row, which two passes cost, beside these
    tov/epochs=K   a path of K epochs, scanned in full; its own table in RUNS
    tov, random    the whole table, and random rows: what they are measured by
    tov again      the rows of tov, trained on in two other orders: how far a loss goes by chance alone

Rows go on in each length bin alike, so the bins of the choice stay as they are. The choice is the default's: half by score,
half random, and the random half is the same for all. Training and test are those of `tov compare`: seed, initial state,
steps, test rows. Where RUNS has trained on the same rows, its record is taken (`from`: trial).

A line a training: `tokens`, the share of the tokens of the passes of the full table (of rows that may be chosen by score;
those of the base set U never are); `overlap`, the share of its rows by score that are chosen here by score; `lost`, the share
of them that a way has given up before the end, and `foretold`, what 256 rows scored in full would have said of `lost`: the
mean and the standard deviation over 200 such samples; test log-loss in nats a token, the metric, and the gain over random
rows in % of the log-loss. OUT goes on where it was interrupted. --count trains nothing: it counts the scored tokens of the
pools, and what is left of them and of all tokens where at most so many of a row are scored.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tov.comparison.bench import Bench
from tov.comparison.grid import Grid, read_grid
from tov.comparison.records import DONE, read_trials
from tov.comparison.split import read_data
from tov.comparison.trainings import Trainings, trained
from tov.comparison.trials import make_bench
from tov.engine.models import auto_batch_tokens
from tov.files import append_json_line, digest
from tov.inputs.draw import RANDOM_ROWS, draw_rows, encode_scored
from tov.inputs.read import usable_rows
from tov.methods.shared.embeddings import embed_rows
from tov.methods.spec import parse_variant, settings_for
from tov.methods.tov.path import open_path
from tov.model.adapters import write_state
from tov.scores.store import read_table
from tov.scores.table import LENGTH, usable_in
from tov.seeds import generator
from tov.selection.choose import Choice, choose, length_bins, top_by_bin
from tov.text.encode import Encoded
from tov.verbs.compare import compare_config

HALVING, QUARTER = (0.5, 0.5, 0.5), (0.25, 1.0, 1.0)
LANDMARKS = 0.25
PENALTIES = 10.0 ** np.arange(-2, 6)
SAMPLE, SAMPLES = 256, 200
CAPS = (16, 32, 64)


@dataclass(frozen=True)
class Table:
    """A finished score table, as the choice reads it.

    Attributes:
        folder: of its run.
        score: (N,) means over epochs, NaN for rows without.
        epochs: (L, N) the score of each epoch.
        loss: (N,) nats a token under the first base state.
        tokens: (N,) the length that bins go by.
        lengths: (N,) tokens of a pass.
        in_base: (N,) bool, the base set.
        usable: (N,) bool, rows that may be chosen.
    """

    folder: Path
    score: np.ndarray
    epochs: np.ndarray
    loss: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    in_base: np.ndarray
    usable: np.ndarray

    @cached_property
    def free(self) -> np.ndarray:
        """Row_ids of the rows that may be chosen by score."""
        return np.flatnonzero(self.usable & ~self.in_base & np.isfinite(self.score))


@dataclass(frozen=True)
class Way:
    """What a way to spend fewer tokens knows in the end.

    Attributes:
        name: of the way.
        scores: (N,) NaN for rows that were given up.
        tokens: share of the tokens of the full table's passes.
        rule: from (rows,) row_ids scored in full to those that are not given up; None where none are.
        order: another order of the rows in the training, if any.
    """

    name: str
    scores: np.ndarray
    tokens: float
    rule: Callable[[np.ndarray], np.ndarray] | None = None
    order: int = 0

    def ordered(self, row_ids: np.ndarray, seed: int) -> np.ndarray:
        """The chosen rows as they are trained on."""
        return generator(seed, f"order {self.order}").permutation(row_ids) if self.order else row_ids


def best_in_bins(scores: np.ndarray, tokens: np.ndarray, row_ids: np.ndarray, n: int, bins: int) -> np.ndarray:
    """(n,) row_ids of the best of these rows, the same number from each length bin, in ascending order."""
    parts = length_bins(tokens[row_ids], row_ids, min(bins, n))
    return np.sort(row_ids[top_by_bin(parts, scores[row_ids], row_ids, n)])


def dropped(
    epochs: np.ndarray, tokens: np.ndarray, row_ids: np.ndarray, shares: Sequence[float], bins: int
) -> list[np.ndarray]:
    """The row_ids that each epoch scans, where a share of them goes on after each but the last, best mean so far first.

    Args:
        epochs: (L, N) the score of each epoch.
        tokens: (N,) the length that bins go by.
        row_ids: those of the first epoch.
        shares: L - 1, of the rows of epoch k that epoch k + 1 scans.
        bins: length bins, in each of which the share goes on.
    """
    scanned = [row_ids]
    for done, share in enumerate(shares, 1):
        kept = max(1, round(share * len(scanned[-1])))
        scanned.append(best_in_bins(epochs[:done].mean(0), tokens, scanned[-1], kept, bins))
    return scanned


def ridge(features: np.ndarray, values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(rows,) the values of the known rows, and for the others what a ridge regression on these foretells.

    The penalty is the one of `PENALTIES` with the smallest squared error where each known row is left out in turn.

    Args:
        features: (rows, D), standardised here by the known rows; one that does not vary among them says nothing.
        values: (rows,) read where known.
        known: (rows,) bool, at least two.
    """
    mean, spread = features[known].mean(0), features[known].std(0)
    scaled = (features - mean) / np.where(spread > 0, spread, np.inf)
    middle = values[known].mean()
    left, singular, right = np.linalg.svd(scaled[known], full_matrices=False)
    inner, errors = left.T @ (values[known] - middle), []
    for penalty in PENALTIES:
        shrunk = singular**2 / (singular**2 + penalty)
        reach = (left**2 * shrunk).sum(1) + 1 / known.sum()  # the diagonal of the hat matrix, with the mean's part
        errors.append(
            np.mean(((values[known] - middle - left @ (shrunk * inner)) / (1 - np.minimum(reach, 0.999))) ** 2)
        )
    penalty = PENALTIES[int(np.argmin(errors))]
    foretold = middle + scaled @ (right.T @ (singular / (singular**2 + penalty) * inner))
    return np.where(known, values, foretold)


def lost_share(chosen: np.ndarray, kept: np.ndarray) -> float:
    """The share of the chosen rows that are not among those kept."""
    return 1 - float(np.isin(chosen, kept).mean())


def foretell(table: Table, way: Way, share: float, bins: int, seed: int) -> tuple[float, float]:
    """Mean and standard deviation, over samples of rows scored in full, of the share of the rows to choose that a way loses."""
    random, lost = generator(seed, "sample of fewer passes"), []
    for _ in range(SAMPLES):
        drawn = np.sort(random.choice(table.free, min(SAMPLE, len(table.free)), replace=False))
        best = best_in_bins(table.score, table.tokens, drawn, max(1, round(share * len(drawn))), bins)
        assert way.rule
        lost.append(lost_share(best, way.rule(drawn)))
    return float(np.mean(lost)), float(np.std(lost))


def read_scores(folder: Path, transform: str) -> Table:
    """The table of a finished scan in a folder of `tov compare`."""
    columns, name = read_table(folder / "scores"), f"score_{transform}"
    numbers = [
        f"{name}_{epoch}" for epoch in range(1, len(columns.column_names)) if f"{name}_{epoch}" in columns.column_names
    ]
    epochs = np.array([columns[number].to_numpy() for number in numbers], np.float64)
    score, loss = (columns[one].to_numpy().astype(np.float64) for one in (name, "loss_base_1"))
    tokens, lengths, in_base = (columns[one].to_numpy() for one in ("tokens", LENGTH, "in_base"))
    return Table(folder, score, epochs, loss, tokens, lengths, in_base, usable_in(columns))


def tables_of(experiment: Path, seed: int, transform: str) -> dict[int | None, Table]:
    """By `--epochs` (None: not given), the tables of ToV that a comparison has left."""
    found = {}
    for folder in sorted((experiment / "scores" / f"seed-{seed}").iterdir()):
        manifest = json.loads((folder / "manifest.json").read_text()) if (folder / "manifest.json").exists() else {}
        settings = manifest.get("identity", {}).get("settings", {})
        if settings.get("table") == "tov" and manifest["status"] == "finished":
            found[settings["epochs"]] = read_scores(folder, transform)
    return found


def by_dropping(table: Table, name: str, shares: Sequence[float], bins: int) -> Way:
    """Rows are given up after an epoch; a row's score is the mean of all epochs if it has come so far."""

    def kept(row_ids: np.ndarray) -> np.ndarray:
        return dropped(table.epochs, table.tokens, row_ids, shares, bins)[-1]

    scanned = dropped(table.epochs, table.tokens, table.free, shares, bins)
    scores = np.full(len(table.score), np.nan)
    scores[scanned[-1]] = table.score[scanned[-1]]
    passed = sum(int(table.lengths[row_ids].sum()) for row_ids in scanned)
    return Way(name, scores, passed / (len(scanned) * int(table.lengths[table.free].sum())), kept)


def by_landmarks(table: Table, embedded: np.ndarray, seed: int, first_epoch: bool) -> Way:
    """Landmarks are scored in full; what all rows are passed for is one base pass, or the first epoch's two."""
    free, passes = table.free, 2 * len(table.epochs)
    known = np.zeros(len(free), bool)
    known[generator(seed, "landmarks").choice(len(free), round(LANDMARKS * len(free)), replace=False)] = True
    features = np.column_stack([embedded, table.loss[free], *([table.epochs[0][free]] if first_epoch else [])])
    scores = np.full(len(table.score), np.nan)
    scores[free] = ridge(features, table.score[free], known)
    for_all, lengths = 1 + first_epoch, table.lengths[free]
    passed = for_all * lengths.sum() + (passes - for_all) * lengths[known].sum()
    return Way("first+landmarks" if first_epoch else "landmarks", scores, float(passed / (passes * lengths.sum())))


def ways_of(bench: Bench, tables: dict[int | None, Table], bins: int) -> Iterator[Way]:
    """All ways but random rows, the full table first."""
    table, seed = tables[None], bench.config.seed
    most = len(table.epochs)
    yield Way("tov", table.score, 1.0)
    halves = HALVING if most == len(HALVING) + 1 else (0.5,) * (most - 1)
    yield by_dropping(table, "halving", halves, bins)
    yield by_dropping(table, "quarter", (QUARTER[0], *(1.0,) * (most - 2)), bins)
    yield Way("first-half", table.epochs[: most // 2].mean(0), most // 2 / most)
    if 2 in tables:
        for name, scores in zip(("first of two", "last of two"), tables[2].epochs, strict=True):
            yield Way(name, scores, 1 / most)
    embedded = embed_base(bench, table)
    yield by_landmarks(table, embedded, seed, first_epoch=False)
    yield by_landmarks(table, embedded, seed, first_epoch=True)
    for epochs, own in tables.items():
        if epochs is not None:
            yield Way(f"tov/epochs={epochs}", own.score, len(own.epochs) / most)
    for order in (1, 2):
        yield Way(f"tov again {order}", table.score, 1.0, order=order)


def embed_base(bench: Bench, table: Table) -> np.ndarray:
    """(free rows, D) embeddings half way up the model under the first base state, as its pass has them in passing."""
    opened = bench.model()
    write_state(opened.adapted, open_path(table.folder / "path").state(1, "base"))
    batch_tokens = bench.config.batch_tokens or auto_batch_tokens(opened.loaded.device)
    return embed_rows(opened.adapted, encoded(bench, table.free), batch_tokens=batch_tokens, half_way=True)


def encoded(bench: Bench, row_ids: np.ndarray) -> Encoded:
    """Rows of the pool as tokens."""
    return bench.encode(usable_rows(bench.split.rows.pool.at(row_ids)))


@dataclass(frozen=True)
class Judge:
    """Trains on what is chosen, or finds that a comparison has done so.

    Attributes:
        bench: of the seed.
        n: rows to choose.
        trials: finished trials of the comparison by the fingerprint of their rows.
    """

    bench: Bench
    n: int
    trials: dict[str, dict[str, Any]]

    @cached_property
    def _task(self) -> Trainings:
        test, _ = encode_scored(self.bench.split.test.pool, self.bench.encode, role="test")
        return Trainings(self.bench.config, self.bench.spec, self.bench.expected, test, [])

    def loss_of(self, row_ids: np.ndarray) -> dict[str, Any]:
        """Test log-loss and metric of a training on these rows."""
        known = self.trials.get(digest([int(row_id) for row_id in row_ids]))
        if known:
            return {"loss": known["loss"], "metric": known["metric"], "from": "trial"}
        result = trained(self._task, self.bench.models, encoded(self.bench, row_ids)).result
        labels = self.bench.encode.labels
        metric = self.bench.task.label_metric(labels, result.labels, result.predicted, result.offsets)
        return {"loss": result.loss, "metric": metric, "from": "training"}

    def random_rows(self) -> np.ndarray:
        """Those of the method random."""
        random = generator(self.bench.config.seed, RANDOM_ROWS)
        return draw_rows(self.bench.split.rows, self.n, random, self.bench.encode)[0]


def choice_of(table: Table, scores: np.ndarray, n: int, rule: str, bins: int, seed: int) -> Choice:
    """What ToV chooses where these are the scores."""
    return choose(
        scores=scores, tokens=table.tokens, in_base=table.in_base, usable=table.usable, n=n, rule=rule, bins=bins, seed=seed
    )  # fmt: skip


def judged(
    bench: Bench, experiment: Path, n: int, done: set[str], wanted: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """A line for each way that is wanted (none named: all) and not done."""
    settings, seed = settings_for(bench.config, parse_variant("tov")), bench.config.seed
    assert settings.rule
    assert settings.bins
    trials = [one for one in read_trials(experiment / "trials.jsonl") if one["status"] == DONE and one["seed"] == seed]
    judge = Judge(bench, n, {one["rows_fingerprint"]: one for one in trials if "rows_fingerprint" in one})
    of_random = judge.loss_of(judge.random_rows())
    if "random" not in done:
        yield {"variant": "random", "tokens": 0.0, **of_random, "gain": 0.0}
    tables = tables_of(experiment, seed, settings.transform)
    table, full = tables[None], np.empty(0, np.int64)
    for way in ways_of(bench, tables, settings.bins):
        own = choice_of(table, way.scores, n, settings.rule, settings.bins, seed)
        by_score = own.row_ids[own.reasons == "score"]
        full = by_score if way.name == "tov" else full
        if way.name in done or (wanted and way.name not in wanted):
            continue
        line: dict[str, Any] = {"variant": way.name, "tokens": round(way.tokens, 3)}
        line["overlap"] = round(float(np.isin(full, by_score).mean()), 3)
        if way.rule:
            line["lost"] = round(lost_share(full, way.rule(table.free)), 3)
            share = len(full) / len(table.free)
            line["foretold"] = [round(one, 3) for one in foretell(table, way, share, settings.bins, seed)]
        came = judge.loss_of(way.ordered(own.row_ids, seed))
        yield {**line, **came, "gain": round(100 * (1 - came["loss"] / of_random["loss"]), 1)}


def bench_of(grid: Grid, name: str, seed: int) -> Bench:
    """What `tov compare` would train an experiment of a grid with."""
    config = compare_config(grid.settings_of(name, {"seed": seed}, "-"))
    data = read_data(config, config.pool, config.target, config.test)
    return make_bench(data, config.for_task(data.target.task), seed)


def counted(bench: Bench) -> dict[str, Any]:
    """Tokens of the usable rows of a pool, those scored, and the shares left where at most so many of a row are scored.

    `scored_K` is the share of the scored tokens (what the head is computed for), `passed_K` that of all tokens, where an answer
    ends after its first K scored tokens (what the layers are computed for; nothing of it holds where words after a scored token
    are read too, as in a tagger).
    """
    rows = encoded(bench, np.flatnonzero(bench.split.rows.usable))
    scored, lengths = rows.scored_counts, rows.lengths
    line: dict[str, Any] = {"rows": len(rows), "tokens": int(lengths.sum()), "scored": int(scored.sum())}
    for cap in CAPS:
        beyond = np.maximum(scored - cap, 0).sum()
        line[f"scored_{cap}"] = round(float(1 - beyond / scored.sum()), 3)
        line[f"passed_{cap}"] = round(float(1 - beyond / lengths.sum()), 3)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, help="experiments, as of tov compare")
    parser.add_argument("runs", type=Path, help="folder of tov compare on that grid")
    parser.add_argument("out", type=Path, help="JSON lines are added here")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="experiments; default all")
    parser.add_argument("--seed", type=int, default=1000, help="a seed that RUNS has (default 1000)")
    parser.add_argument("--ways", nargs="+", default=[], metavar="WAY", help="ways to train; default all")
    parser.add_argument("--count", action="store_true", help="count tokens to standard output; train nothing")
    args = parser.parse_args()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    grid = read_grid(args.grid, tuple(args.only))
    for name in grid.experiments:
        bench = bench_of(grid, name, args.seed)
        about = {"experiment": name, "seed": args.seed}
        if args.count:
            print(json.dumps({**about, **counted(bench)}))
            continue
        if not (args.runs / name / "trials.jsonl").exists():
            sys.exit(f"{args.runs / name} holds no trials. Name the --out of tov compare {args.grid}.")
        n = max(bench.config.sizes)
        lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
        done = {one["variant"] for one in lines if one["experiment"] == name and one["seed"] == args.seed}
        for line in judged(bench, args.runs / name, n, done, args.ways):
            append_json_line(args.out, {**about, "n": n, **line, "commit": commit})
            print(json.dumps({**about, **line}), flush=True)


if __name__ == "__main__":
    main()
