"""Whether warnings before training foretell trainings that end at entity F1 0, and how often they come without such an end.

    export DATA=DATA PREPARED=PREPARED
    tov compare experiments/ner-quick.yaml --out RUNS
    python experiments/foretold.py experiments/ner-quick.yaml RUNS [TRIALS] > docs/results/foretold.jsonl

One line a training: the shares of rows without an entity among the chosen rows, the pool and the target, whether the rule of
`tov.checks.apart` warns of more of them, its other warnings, and the entity F1. Trainings are those of RUNS, a folder of
`tov compare`, whose trials hold what was seen. Where TRIALS, a folder of older trials such as docs/results/ner-quick, has
trained on the same rows, F1 is taken from there: RUNS may then be trained as shortly as --train-rows 512. For less and tracin,
if RUNS has none of them, the rule is applied to the shares recorded in docs/results/rows-without-entities.jsonl, with the
target drawn again. A table of counts goes to standard error.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tov.checks.apart import far, warnings
from tov.checks.facts import LOOKED_AT, seen
from tov.comparison.grid import read_grid
from tov.comparison.records import DONE, read_trials
from tov.comparison.split import make_split, read_data
from tov.runs.manifest import RowsFacts
from tov.tasks import TASKS
from tov.verbs.compare import compare_config

RECORDED = Path(__file__).parents[1] / "docs" / "results" / "rows-without-entities.jsonl"
TRAIT = "have no entity"


def looked_at(folder: Path, older: Path | None) -> Iterator[dict[str, Any]]:
    """A line for each trial of an experiment that holds what was seen."""
    known = {_key(one): one for one in read_trials(older / "trials.jsonl") if one["status"] == DONE} if older else {}
    for one in read_trials(folder / "trials.jsonl"):
        if one["status"] != DONE or not one.get("checks"):
            continue
        checks, was = one["checks"], known.get(_key(one), {})
        rows = {name: RowsFacts.model_validate(rows) for name, rows in checks["rows"].items()}
        shares = {name: one.shares.get(TRAIT, 0.0) for name, one in rows.items()}
        said = warnings(rows["chosen"], rows["pool"], rows["target"], TASKS["ner"].length)
        warned = [line for line in said if TRAIT in line and shares["chosen"] > shares["pool"]]
        same = "rows_fingerprint" in was and was["rows_fingerprint"] == one["rows_fingerprint"]
        yield {
            "experiment": folder.name, "variant": one["variant"], "seed": one["seed"], "n": one["n"],
            **{name: round(share, 3) for name, share in shares.items()},
            "warned": bool(warned), "others": [line for line in said if line not in warned],
            "f1": round((was if same else one)["metric"], 3), "from": "older trial" if same else "trial",
            "commit": one["commit"],
        }  # fmt: skip


def recorded(name: str, config: Any) -> Iterator[dict[str, Any]]:
    """A line for each of an experiment's trainings whose shares were recorded; the target is drawn again."""
    lines = [one for one in map(json.loads, RECORDED.read_text().splitlines()) if one["experiment"] == name]
    data = read_data(config, config.pool, config.target, config.test)
    for seed in sorted({one["seed"] for one in lines}):
        split = make_split(data, config.for_task(data.target.task), seed)
        target = seen(split.target.pool, np.arange(len(split.target)), None, seed)[1]
        of_target = target.shares.get(TRAIT, 0.0), target.looked_at
        of_pool = min(LOOKED_AT, int(split.rows.usable.sum()))
        for one in (one for one in lines if one["seed"] == seed):
            warned = far((one["chosen"], one["n"]), (one["pool"], of_pool), of_target) and one["chosen"] > one["pool"]
            yield {
                "experiment": name, "variant": one["arm"], "seed": seed, "n": one["n"], "chosen": one["chosen"],
                "pool": one["pool"], "target": round(of_target[0], 3), "warned": bool(warned), "others": [], "f1": one["f1"],
                "from": "recorded", "commit": one["commit"],
            }  # fmt: skip


def _key(trial: dict[str, Any]) -> tuple[str, int, int]:
    return trial["variant"], trial["n"], trial["seed"]


def main(grid: Path, runs: Path, older: Path | None) -> None:
    """Lines to standard output, counts to standard error."""
    read, lines = read_grid(grid), []
    for name in read.experiments:
        folder, config = runs / name, compare_config(read.settings_of(name, {}, str(runs)))
        if (folder / "trials.jsonl").exists():
            lines += looked_at(folder, older / name if older else None)
        if not any(one["from"] == "trial" and one["variant"] in ("less", "tracin") for one in lines):
            lines += recorded(name, config) if name in RECORDED.read_text() else []
    counts = Counter((one["variant"], one["from"], one["f1"] == 0, one["warned"], bool(one["others"])) for one in lines)
    for one in lines:
        print(json.dumps(one))
    print("variant, from, F1 is 0, warned of rows without entities, warned of else: trainings", file=sys.stderr)
    for key, count in sorted(counts.items()):
        print(*key, count, sep="\t", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) == 4 else None)
