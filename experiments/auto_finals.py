"""What `--method auto` took in each trial, and how much better than random rows the final training on it was.

    python experiments/auto_finals.py docs/results/auto-finals.jsonl --pilots docs/results/auto-instruction-pilots.jsonl

A line of the first file is a final training of `tov compare`: experiment, seed, variant, rows, test log-loss, and of a trial of
`auto` what it took. Where a trial has none, the rule is read here off all pilots of the second file, and `auto` is the training
of the variant that they take: the same rows, for the method taken scores the whole pool as it does alone. `--methods` are shown
beside it, in the trials that have them. Numbers behind +- are standard errors over trials.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from pilots_apart import DEFAULT, HEDGED, RANDOM, gain, read_trials

from tov.comparison.decision import best_of, gains_of, safest_of

Trial = tuple[str, int]
AUTO = "auto"


def taken_by(pilots: dict[int, dict[str, float]]) -> str:
    """What the rule takes by all pilots of a trial, among the candidates that the last one has."""
    names = [name for name in pilots[max(pilots)] if name != RANDOM]
    every = dict.fromkeys(name for pilot in pilots.values() for name in pilot if name != RANDOM)
    differences = {name: [gain(pilot, name) for pilot in pilots.values() if name in pilot] for name in every}
    gains = {name: one for name, one in gains_of(differences).items() if name in names}
    return best_of(gains) or safest_of({name: one for name, one in gains.items() if name in HEDGED}) or RANDOM


def told(gains: list[float]) -> str:
    """Mean, standard error where there are two, and how many are below 0."""
    error = f" +- {np.std(gains, ddof=1) / np.sqrt(len(gains)):.1f}" if len(gains) > 1 else ""
    return f"{np.mean(gains):+.1f}{error} %, below 0 in {sum(one < 0 for one in gains)} of {len(gains)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a line a final training")
    parser.add_argument("--pilots", type=Path, help="a line a pilot's training, of trials without `auto`")
    parser.add_argument("--methods", nargs="+", default=[DEFAULT], metavar="VARIANT", help="shown beside auto")
    args = parser.parse_args()
    losses, took = defaultdict[Trial, dict[str, float]](dict), dict[Trial, str]()
    for line in args.file.read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        trial = one["experiment"], one["seed"]
        if one["variant"] != RANDOM or one["n"] == one["size"]:
            losses[trial][one["variant"]] = one["loss"]
        if one.get("took"):
            took[trial] = one["took"]
    pilots = read_trials(args.pilots) if args.pilots else {}
    took |= {trial: taken_by(pilots[trial]) for trial in losses if trial in pilots}
    gains = defaultdict[str, dict[Trial, float]](dict)
    for trial in sorted(losses):
        finals = losses[trial]
        finals.setdefault(AUTO, finals.get(took.get(trial, ""), np.nan))
        for name in (AUTO, *args.methods):
            if np.isfinite(finals.get(name, np.nan)):
                gains[name][trial] = gain(finals, name)
        beside = ", ".join(f"{name} {gains[name][trial]:+.1f}" for name in args.methods if trial in gains[name])
        print(f"{trial[0]} seed {trial[1]}: took {took.get(trial)} {gains[AUTO].get(trial, np.nan):+.1f} % ({beside})")
    for kind in sorted({trial[0].partition("-")[0] for trial in losses}):
        print()
        for name, of in gains.items():
            mine = {trial: value for trial, value in of.items() if trial[0].startswith(kind)}
            both = [gains[AUTO][trial] - value for trial, value in mine.items() if trial in gains[AUTO]]
            if mine:
                print(
                    f"{kind} {name}: {told(list(mine.values()))}" + f"; auto less this: {told(both)}" * (name != AUTO)
                )


if __name__ == "__main__":
    main()
