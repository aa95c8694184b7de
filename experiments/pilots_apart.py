"""What the rule of `--method auto` takes by all pilots of a trial but the last, read in the last.

    python experiments/pilots_apart.py docs/results/auto-instruction-pilots.jsonl

The last pilot is judged on target rows that no pilot before it was judged on, so its gain is the rule's own, at the size of a
pilot. Candidates that were dropped before the last pilot cannot be read there; the rule takes none of them. Below stand the
gains of all candidates in the first pilot, which has them all, and their differences from `tov` in it. Numbers behind +- are
standard errors. A line of the file is a pilot's training: experiment, seed, pilot, variant, loss.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from tov.comparison.decision import best_of, gains_of, safest_of

RANDOM, DEFAULT = "random", "tov"
HEDGED = ("tov", "uncertainty")
"""Half of whose rows are random: the rule falls back on one of them."""
Losses = dict[int, dict[str, float]]
"""Pilot -> variant -> log-loss on the rows held out."""


def read_trials(file: Path) -> dict[tuple[str, int], Losses]:
    """(experiment, seed) -> its pilots."""
    trials: dict[tuple[str, int], Losses] = defaultdict(lambda: defaultdict(dict))
    for line in file.read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        if one["status"] == "done":
            trials[one["experiment"], one["seed"]][one["pilot"]][one["variant"]] = one["loss"]
    return trials


def gain(pilot: dict[str, float], variant: str) -> float:
    """% of the log-loss of the pilot's random rows by which a variant was better."""
    return 100 * (1 - pilot[variant] / pilot[RANDOM])


def taken_by(pilots: Losses, last: int) -> str:
    """What the rule takes by the pilots before the last, among the candidates that the last one has."""
    seen = {number: pilots[number] for number in sorted(pilots) if number < last}
    names = dict.fromkeys(name for pilot in seen.values() for name in pilot if name != RANDOM)
    differences = {name: [gain(pilot, name) for pilot in seen.values() if name in pilot] for name in names}
    gains = {name: one for name, one in gains_of(differences).items() if name in pilots[last]}
    safe = {name: one for name, one in gains.items() if name in HEDGED}
    return best_of(gains) or safest_of(safe) or RANDOM


def told(gains: list[float]) -> str:
    """Mean, standard error, and how many are below 0."""
    error = np.std(gains, ddof=1) / np.sqrt(len(gains))
    return f"{np.mean(gains):+.2f} +- {error:.2f} %, below 0 in {sum(one < 0 for one in gains)} of {len(gains)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a line a pilot's training")
    trials = read_trials(parser.parse_args().file)
    third, first, beside = (defaultdict[str, list[float]](list) for _ in range(3))
    by_experiment: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (experiment, seed), pilots in sorted(trials.items()):
        last, opening = max(pilots), pilots[min(pilots)]
        name = taken_by(pilots, last)
        third["the rule"].append(gain(pilots[last], name))
        third[f"always {DEFAULT}"].append(gain(pilots[last], DEFAULT))
        third["the best there, random rows too"].append(max(gain(pilots[last], one) for one in pilots[last]))
        print(f"{experiment} seed {seed}: {name} {third['the rule'][-1]:+.1f} %")
        for one in opening:
            if one != RANDOM:
                first[one].append(gain(opening, one))
                by_experiment[one][experiment].append(gain(opening, one))
                beside[one].append(gain(opening, one) - gain(opening, DEFAULT))
    print("\nin the last pilot")
    for who, gains in third.items():
        print(f"{who}: {told(gains)}")
    print("\nin the first pilot")
    for who, gains in sorted(first.items(), key=lambda one: -float(np.mean(one[1]))):
        each = ", ".join(f"{name} {np.mean(found):+.1f}" for name, found in by_experiment[who].items())
        print(f"{who}: {told(gains)} ({each}); less {DEFAULT}: {told(beside[who])}")


if __name__ == "__main__":
    main()
