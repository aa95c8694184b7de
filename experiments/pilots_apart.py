"""What the rule of `--method auto` takes by all pilots of a trial but the last, read in the last.

    python experiments/pilots_apart.py docs/results/auto-instruction-pilots.jsonl

The last pilot judges on target rows, and trains on rows of a pool, that the decision has not seen, so its gain is the rule's
own, at the size of a pilot. A line of the file is a pilot's training: experiment, seed, pilot, variant, loss. Candidates that
were dropped before the last pilot cannot be read there; the rule takes none of them.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from tov.comparison.decision import best_of, gains_of, safest_of

RANDOM, HEDGED = "random", "tov"
"""The latter's rows are half random: the rule falls back on it."""
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
    differences = {
        name: [gain(pilots[number], name) for number in sorted(pilots) if number < last and name in pilots[number]]
        for name in pilots[last]
        if name != RANDOM
    }
    gains = gains_of(differences)
    return best_of(gains) or safest_of({name: one for name, one in gains.items() if name == HEDGED}) or RANDOM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a line a pilot's training")
    ruled, always = list[float](), defaultdict[str, list[float]](list)
    for (experiment, seed), pilots in sorted(read_trials(parser.parse_args().file).items()):
        last = max(pilots)
        name = taken_by(pilots, last)
        ruled.append(gain(pilots[last], name))
        always[HEDGED].append(gain(pilots[last], HEDGED))
        always["best of the last pilot"].append(max(gain(pilots[last], one) for one in pilots[last]))
        print(f"{experiment} seed {seed}: {name} {ruled[-1]:+.1f} %; {HEDGED} {always[HEDGED][-1]:+.1f} %")
    for who, gains in {"the rule": ruled, f"always {HEDGED}": always.pop(HEDGED), **always}.items():
        error = np.std(gains, ddof=1) / np.sqrt(len(gains))
        worse = sum(one < 0 for one in gains)
        print(f"{who}: {np.mean(gains):+.2f} +- {error:.2f} %, worse than random rows in {worse} of {len(gains)}")


if __name__ == "__main__":
    main()
