"""What the trials of a comparison say: gains over random rows of the same seed, and what a selection is worth in random rows.

Computes, never renders; knows no files, models or methods, only trial records. Losses are in nats, gains are % of random's
loss (up is better), sizes are training rows. What cannot be said is None and a note, never NaN and never an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]
from scipy.special import stdtrit  # type: ignore[import-untyped]

from tov.comparison.records import DONE

RANDOM, ZERO_SHOT, FULL = "random", "zero-shot", "full"
ROLES = {RANDOM: "yardstick", ZERO_SHOT: "reference", FULL: "reference"}
"""Variants with a part of their own: what all others are paired with; no training and every usable row, of other sizes."""
TIE = 0.1
"""A gain smaller than this many % either way is a tie."""
CONFIDENCE = 0.95
FEW_SEEDS = 5
COSTS = (
    ("scoring", "seconds"), ("scoring", "tokens_forward"), ("scoring", "tokens_backward"), ("scoring", "bytes"),
    ("train", "seconds"), ("train", "tokens"),
)  # fmt: skip
"""What a trial tells of its cost; a training token goes forward and backward."""
ROUNDING = 1e-12
"""Losses closer than this, in nats, are the same: the mean of equal numbers may differ from them in the last place."""


@dataclass(frozen=True)
class Cell:
    """The trials of one variant at one size, one a seed.

    Attributes:
        done: finished trials by seed, seeds ascending.
        failed: the error of each trial that did not finish, by seed.
    """

    variant: str
    method: str
    n: int
    done: Mapping[int, Mapping[str, Any]]
    failed: Mapping[int, str]

    def values(self, key: str) -> dict[int, float]:
        """`loss` (nats) or `metric` by seed, for the seeds that have one."""
        return {seed: float(trial[key]) for seed, trial in self.done.items() if _is_finite(trial.get(key))}

    @property
    def diverged(self) -> int:
        """Finished trials whose training diverged."""
        return sum(bool((trial.get("train") or {}).get("diverged")) for trial in self.done.values())


Cells = dict[tuple[str, int], Cell]


def summarize(trials: Sequence[Mapping[str, Any]], *, sizes: Sequence[int], metric: str | None) -> dict[str, Any]:
    """Everything that a comparison's report shows, ready for JSON. The order of the trials does not matter.

    Args:
        trials: one record a trial, as `trials.jsonl` holds them.
        sizes: the sizes n that were asked for; random's other sizes only make up its curve.
        metric: name of the task metric (larger is better), None where there is none.

    Returns:
        `sizes`: for each n its variants, best first; `random_curve`: loss against rows; `notes`: what a reader must be told.
    """
    cells = _cells(trials)
    with np.errstate(all="ignore"):  # losses of diverged trainings overflow; _json turns what is not finite into None
        tables = [{"n": n, "variants": _variants(cells, n, metric)} for n in sorted(set(sizes))]
        curve = _json(_random_curve(cells))
        twice = sum(map(_finished, trials)) - sum(len(cell.done) for cell in cells.values())
        notes = _notes(cells, tables, curve, twice)
    shown = {"metric": metric, "confidence": CONFIDENCE, "tie": TIE}
    return {**shown, "sizes": tables, "random_curve": curve, "notes": notes}


def t_interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """95 % interval of a mean by Student's t; (None, None) below two values.

    Args:
        values: (S,) one a seed; for a paired interval the differences.
    """
    if len(values) < 2:
        return None, None
    half = stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def non_increasing(values: np.ndarray) -> np.ndarray:
    """(K,) the least-squares fit that never rises (isotonic regression, equal weights), nats.

    Args:
        values: (K,) one curve.
    """
    return isotonic_regression(values, increasing=False).x


def rows_worth(log_sizes: np.ndarray, fitted: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """(D,) log of the fewest rows at which the curve is down to each loss; -inf before its start, inf beyond its end.

    Args:
        log_sizes: (K,) log n, ascending.
        fitted: (K,) a curve that never rises, nats; linear in log n in between.
        losses: (D,) nats.
    """
    reached = fitted <= losses[:, None] + ROUNDING
    after = reached.argmax(axis=1)
    before = np.maximum(after - 1, 0)
    high, low = fitted[before], fitted[after]
    part = np.clip((high - losses) / np.where(after > 0, high - low, 1.0), 0.0, 1.0)
    rows = log_sizes[before] + part * (log_sizes[after] - log_sizes[before])
    rows[fitted[0] < losses - ROUNDING] = -np.inf
    rows[~reached.any(axis=1)] = np.inf
    return rows


def data_equivalent(sizes: np.ndarray, random: np.ndarray, variant: np.ndarray, n: int) -> dict[str, Any]:
    """How many times n random rows give the variant's test loss, with a t interval paired over seeds.

    The curve of random rows is the mean over seeds, made non-increasing. The interval is that of the paired difference between
    the variant and random rows at n, read off the curve (the curve itself is taken as it is); an end beyond it says so.

    Args:
        sizes: (K,) rows, ascending, K >= 2.
        random: (K, S) test losses of random rows, nats.
        variant: (S,) test losses of the variant at n rows, same seeds.
        n: rows of the variant.

    Returns:
        `point`, `low`, `high`: {"ratio", "at_least", "at_most"}; `low` and `high` are None with one seed.
    """
    near = np.abs(np.log(sizes / n)).argmin()
    less, more = t_interval(variant - random[near])
    half = 0.0 if less is None or more is None else (more - less) / 2
    levels = variant.mean() + half * np.array([0.0, 1.0, -1.0])
    fitted = non_increasing(random.mean(axis=1))
    point, low, high = (_ratio(float(at), sizes, n) for at in rows_worth(np.log(sizes), fitted, levels))
    return {"point": point, "low": None if less is None else low, "high": None if less is None else high}


def _ratio(log_rows: float, sizes: np.ndarray, n: int) -> dict[str, Any]:
    ends = {math.inf: sizes[-1], -math.inf: sizes[0]}
    rows = float(ends[log_rows]) if log_rows in ends else math.exp(log_rows)
    return {"ratio": rows / n, "at_least": log_rows == math.inf, "at_most": log_rows == -math.inf}


def _cells(trials: Sequence[Mapping[str, Any]]) -> Cells:
    """Trials by variant and size. Of a trial that is there twice (a run again after a failure) a finished line is taken.

    Full trials are one cell, at the largest n: how many rows are usable may differ from seed to seed.
    """
    most = max((int(trial["n"]) for trial in trials if trial["variant"] == FULL), default=0)
    chosen: dict[tuple[str, int], dict[int, Mapping[str, Any]]] = {}
    for trial in sorted(trials, key=lambda one: (not _finished(one), json.dumps(one, sort_keys=True, default=str))):
        key = trial["variant"], most if trial["variant"] == FULL else int(trial["n"])
        chosen.setdefault(key, {}).setdefault(int(trial["seed"]), trial)
    return {key: _cell(*key, chosen[key]) for key in sorted(chosen)}


def _cell(variant: str, n: int, by_seed: Mapping[int, Mapping[str, Any]]) -> Cell:
    done = {seed: trial for seed, trial in sorted(by_seed.items()) if _finished(trial)}
    failed = {seed: by_seed[seed].get("error") or "no finite test loss" for seed in sorted(set(by_seed) - set(done))}
    method = min(trial.get("method") or variant for trial in by_seed.values())
    return Cell(variant, method, n, done, failed)


def _finished(trial: Mapping[str, Any]) -> bool:
    return trial.get("status") == DONE and _is_finite(trial.get("loss"))


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _variants(cells: Cells, n: int, metric: str | None) -> list[dict[str, Any]]:
    """The records of one size, best first: by gain (random's is nothing), then by loss, then by name."""
    own = [cell for cell in cells.values() if cell.n == n and cell.variant not in (ZERO_SHOT, FULL)]
    alone = [cell for variant in (ZERO_SHOT, FULL) for cell in _sizes_of(cells, variant)]
    random = cells.get((RANDOM, n))
    records = [_json(_record(cell, random, cells, n, metric)) for cell in own + alone]
    return sorted(records, key=_place)


def _sizes_of(cells: Cells, variant: str) -> list[Cell]:
    return [cell for cell in cells.values() if cell.variant == variant]


def _place(record: Mapping[str, Any]) -> tuple[float, float, str]:
    gain, loss = record["gain"]["mean"], record["loss"]["mean"]
    if record["variant"] == RANDOM and loss is not None:
        gain = 0.0
    return math.inf if gain is None else -gain, math.inf if loss is None else loss, record["variant"]


def _record(cell: Cell, random: Cell | None, cells: Cells, n: int, metric: str | None) -> dict[str, Any]:
    """All that is said of one variant at one size; the pairs are the seeds that both it and random at n finished."""
    baseline = {} if random is None or cell.variant in ROLES else random.values("loss")
    pairs = [seed for seed in cell.done if baseline.get(seed, 0.0) > 0]  # a loss of nothing leaves no share to gain
    dropped = sorted((set(cell.done) | set(baseline)) - set(pairs)) if baseline else []
    return {
        "variant": cell.variant, "method": cell.method, "role": ROLES.get(cell.variant, "variant"), "rows": cell.n,
        "seeds": list(cell.done), "paired": pairs, "dropped": dropped, "diverged": cell.diverged,
        "failed": {"count": len(cell.failed), "first_error": next(iter(cell.failed.values()), None)},
        "loss": _spread(cell.values("loss").values()), "gain": _gain(cell, random, pairs),
        "metric": _metric(cell, random) if metric is not None else None,
        "equivalent": _equivalent(cell, cells, n, pairs), "cost": _cost(cell), "chosen": _chosen(cell),
    }  # fmt: skip


def _spread(values: Iterable[float]) -> dict[str, float | None]:
    """Mean, standard deviation (of a sample) and t interval over seeds; None where there are too few."""
    array = np.array(list(values), np.float64)
    low, high = t_interval(array)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return {"mean": float(array.mean()) if len(array) else None, "sd": sd, "low": low, "high": high}


def _gain(cell: Cell, random: Cell | None, pairs: Sequence[int]) -> dict[str, Any]:
    """100 (loss_random - loss) / loss_random by seed; of zero-shot and full, of other sizes, from the means alone."""
    baseline = random.values("loss") if random else {}
    gains = np.array([100 * (baseline[seed] - cell.values("loss")[seed]) / baseline[seed] for seed in pairs])
    wins, losses = int((gains >= TIE).sum()), int((gains <= -TIE).sum())
    spread, counts = _spread(gains), {"wins": wins, "ties": len(gains) - wins - losses, "losses": losses}
    own, yardstick = _means(cell.values("loss"), baseline)
    if cell.variant in (ZERO_SHOT, FULL) and own is not None and yardstick:
        spread["mean"] = 100 * (yardstick - own) / yardstick
    shown = counts if pairs else dict.fromkeys(counts)
    return {"per_seed": gains.tolist(), **{key: spread[key] for key in ("mean", "low", "high")}, **shown}


def _metric(cell: Cell, random: Cell | None) -> dict[str, float | None]:
    """The task metric's mean over seeds and its paired difference to random; of zero-shot and full from the means alone."""
    own, reference = cell.values("metric"), random.values("metric") if random and cell.variant != RANDOM else {}
    spread = _spread(own[seed] - reference[seed] for seed in own if seed in reference)
    if cell.variant in (ZERO_SHOT, FULL):
        ours, theirs = _means(own, reference)
        spread = _spread([] if ours is None or theirs is None else [ours - theirs])
    mean = _spread(own.values())["mean"]
    return {"mean": mean, "difference": spread["mean"], "low": spread["low"], "high": spread["high"]}


def _means(one: Mapping[int, float], two: Mapping[int, float]) -> tuple[float | None, float | None]:
    """Both means over the seeds of both (the seed draws the test rows too); over all where they share none."""
    shared = set(one) & set(two) or set(one) | set(two)
    first, second = (_spread(part[seed] for seed in part if seed in shared)["mean"] for part in (one, two))
    return first, second


def _equivalent(cell: Cell, cells: Cells, n: int, pairs: Sequence[int]) -> dict[str, Any] | None:
    """The data-equivalent over the seeds that finished at every size of the curve.

    A size that half the seeds or fewer finished is left out of the curve; elsewhere a seed that is missing is left out.
    """
    curve = [one for one in _sizes_of(cells, RANDOM) if one.n > 0 and 2 * len(set(pairs) & set(one.done)) > len(pairs)]
    seeds = [seed for seed in pairs if all(seed in random.done for random in curve)]
    if len(curve) < 2 or not seeds:
        return None
    sizes, own = [random.n for random in curve], cell.values("loss")
    random = np.array([[losses[seed] for seed in seeds] for losses in (one.values("loss") for one in curve)])
    worth = data_equivalent(np.array(sizes), random, np.array([own[seed] for seed in seeds]), n)
    return {"seeds": seeds, "sizes": sizes, **worth}


def _cost(cell: Cell) -> dict[str, float | None]:
    """Means over the finished trials that tell."""
    means: dict[str, float | None] = {}
    for part, key in COSTS:
        values = [(trial.get(part) or {}).get(key) for trial in cell.done.values()]
        means[f"{part}_{key}"] = _spread(value for value in values if _is_finite(value))["mean"]
    return means


def _chosen(cell: Cell) -> dict[str, float]:
    """Share of the rows by source, in [0, 1], mean over seeds."""
    counts = [trial["chosen"] for trial in cell.done.values() if sum((trial.get("chosen") or {}).values())]
    shares = [{source: count / sum(chosen.values()) for source, count in chosen.items()} for chosen in counts]
    sources = sorted({source for share in shares for source in share})
    return {source: float(np.mean([share.get(source, 0.0) for share in shares])) for source in sources}


def _random_curve(cells: Cells) -> list[dict[str, Any]]:
    """Random's test loss at every size that it was run at and has a finite loss, with the non-increasing fit."""
    curve = [cell for cell in _sizes_of(cells, RANDOM) if cell.values("loss")]
    spreads = [_spread(cell.values("loss").values()) for cell in curve]
    fitted = non_increasing(np.array([spread["mean"] for spread in spreads], np.float64))
    return [
        {"n": cell.n, "seeds": list(cell.done), **spread, "fitted": float(fit)}
        for cell, spread, fit in zip(curve, spreads, fitted, strict=True)
    ]


def _json(value: Any) -> Any:
    """The same with None for every number that is not finite."""
    if isinstance(value, dict):
        return {key: _json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _notes(cells: Cells, tables: list[dict[str, Any]], curve: list[dict[str, Any]], twice: int) -> list[str]:
    """What a reader must be told, the weightiest first."""
    repeated = [f"{twice:,} lines repeat a finished trial; one of each was used"] if twice else []
    return [
        *_notes_on_random(cells, tables, curve), *_notes_on_no_training(cells, [table["n"] for table in tables]),
        *_notes_on_trials(cells), *repeated, *_notes_on_pairs(tables), *_notes_on_seeds(tables), *_notes_on_variants(tables),
    ]  # fmt: skip


def _notes_on_random(cells: Cells, tables: list[dict[str, Any]], curve: list[dict[str, Any]]) -> list[str]:
    """Sizes without random rows; a curve of one size; more rows that were worse."""
    sizes, worse = {point["n"] for point in curve}, []
    missing = [table["n"] for table in tables if table["n"] not in sizes]
    notes = [f"{n:,} rows: no random trial finished, so there is nothing to compare with" for n in missing]
    if len(sizes) == 1:
        notes.append("random rows were run at one size only: how many of them a variant is worth cannot be said")
    for at, point in enumerate(curve[1:], start=1):
        best = min(curve[:at], key=lambda earlier: math.inf if earlier["mean"] is None else earlier["mean"])
        loss, lowest = _means(cells[RANDOM, point["n"]].values("loss"), cells[RANDOM, best["n"]].values("loss"))
        if loss is not None and lowest is not None and loss > lowest * (1 + TIE / 100):
            worse.append(f"{point['n']:,} were worse than {best['n']:,} ({loss:.3g} against {lowest:.3g} nat)")
    if worse:
        notes.append(f"random rows: {', '.join(worse)}: the training is not well tuned, distrust gains here")
    return notes


def _notes_on_no_training(cells: Cells, sizes: Iterable[int]) -> list[str]:
    notes, still = [], next((cell.values("loss") for cell in _sizes_of(cells, ZERO_SHOT)), {})
    for n in sizes:
        means = [(cell.variant, *_means(cell.values("loss"), still)) for cell in cells.values() if cell.n == n]
        worse = [
            f"{variant} ({loss:.3g} against {base:.3g} nat)"
            for variant, loss, base in means
            if loss and base and loss > base
        ]
        if worse:
            notes.append(f"training on {n:,} rows is worse than no training: {', '.join(worse)}")
    return notes


def _notes_on_trials(cells: Cells) -> list[str]:
    notes = []
    for cell in cells.values():
        where, total = f"{cell.variant}, {cell.n:,} rows", len(cell.done) + len(cell.failed)
        if cell.failed:
            error = next(iter(cell.failed.values())).partition("\n")[0]
            notes.append(f"{where}: {len(cell.failed)} of {total} trials failed: {error}")
        if cell.diverged:
            notes.append(f"{where}: training diverged in {cell.diverged} of {total} trials; their losses are counted")
    return notes


def _notes_on_pairs(tables: list[dict[str, Any]]) -> list[str]:
    """Seeds without a partner, or not on all of the curve; variants that share a fate in one line."""
    variants: dict[tuple[int, str, str], list[str]] = {}
    for n, record in ((table["n"], record) for table in tables for record in table["variants"]):
        off = set(record["paired"]) - set(record["equivalent"]["seeds"]) if record["equivalent"] else set()
        for what, seeds in (("the pairs", record["dropped"]), ("the curve behind worth", sorted(off))):
            if seeds:
                variants.setdefault((n, what, ", ".join(map(str, seeds))), []).append(record["variant"])
    return [
        f"{n:,} rows: left out of {what}, for not all of its trials finished: seed {seeds} ({', '.join(names)})"
        for (n, what, seeds), names in variants.items()
    ]


def _notes_on_seeds(tables: list[dict[str, Any]]) -> list[str]:
    counts = sorted({len(record["paired"]) for table in tables for record in table["variants"] if record["paired"]})
    if not counts or counts[0] >= FEW_SEEDS:
        return []
    if counts == [1]:
        return ["1 seed: a single draw, and no interval can be had from it"]
    if counts[0] == 1:
        return ["as few as 1 seed: intervals are wide and rough, and of one seed there is none"]
    few = f"{counts[0]} seeds" if len(counts) == 1 else f"as few as {counts[0]} seeds"
    return [f"{few}: intervals are wide and rough"]


def _notes_on_variants(tables: list[dict[str, Any]]) -> list[str]:
    variants: dict[str, set[str]] = {}
    for record in (record for table in tables for record in table["variants"]):
        variants.setdefault(record["method"], set()).add(record["variant"])
    return [
        f"{len(names)} variants of {method} are shown; picking the best after seeing the table overstates it"
        for method, names in sorted(variants.items())
        if len(names) > 1
    ]
