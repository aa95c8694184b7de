"""Replays the rule of `--method auto` on a table of finished trainings.

    python experiments/replay_gate.py TABLE.parquet [--pilot-n N] [--caution C] [--json]

The table has a row a training: `pool`, `model`, `task`, `method` (one is `Random`), `n`, `seed`, `metric` (larger is better).
In each cell (pool, model, task) the rule sees the trainings of the pilot size, all seeds, and names a method. That method's
gain over random rows is then read at every n from 2,500 on: mean over seeds, points of the metric. `worse` counts the sizes
of cells at which it is below random rows. Beside it stand each method taken always, and the best method of each cell and
size (`oracle`).

The pilots' metric is that of the test itself, so the rule looks better here than where it judges on held-out target rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tov.comparison.decision import CAUTION, best_of, gains_of

RANDOM, ZERO_SHOT = "Random", "zero-shot"
PILOT_AT_MOST, SCORED_FROM = 1_000, 2_500
COLUMNS = ("model", "task", "method", "n", "seed", "metric")
Cell = dict[tuple[str, int], dict[int, float]]
"""(method, n) -> seed -> metric."""


def read_cells(file: Path) -> dict[tuple[str, ...], Cell]:
    """Every cell of the table. Exits with a sentence where a column or random rows are missing."""
    table = pq.read_table(file)
    lacks = [name for name in COLUMNS if name not in table.column_names]
    if lacks:
        sys.exit(f"{file} has no column {lacks[0]}. It needs {', '.join(COLUMNS)}.")
    cells: dict[tuple[str, ...], Cell] = defaultdict(lambda: defaultdict(dict))
    for row in table.to_pylist():
        if row["method"] != ZERO_SHOT and row["metric"] is not None:
            cell = cells[str(row.get("pool", "")), row["model"], row["task"]]
            cell[row["method"], int(row["n"])][int(row["seed"])] = float(row["metric"])
    if any(not any(method == RANDOM for method, _ in cell) for cell in cells.values()):
        sys.exit(f"{file} has a cell without trainings of the method {RANDOM}, which gains are measured from.")
    return dict(cells)


def methods_of(cell: Cell, n: int) -> list[str]:
    """The methods trained at a size beside random rows, in the order of their names."""
    return sorted({method for method, size in cell if size == n and method != RANDOM})


def differences(cell: Cell, method: str, n: int) -> list[float]:
    """Points over random rows of the same seed, for the seeds that have both."""
    random = cell.get((RANDOM, n), {})
    return [value - random[seed] for seed, value in sorted(cell.get((method, n), {}).items()) if seed in random]


def gain(cell: Cell, method: str, n: int) -> float:
    """Points over random rows, means over seeds."""
    if method == RANDOM:
        return 0.0
    return float(np.mean(list(cell[method, n].values())) - np.mean(list(cell[RANDOM, n].values())))


def by_rule(cell: Cell, pilot_n: int, caution: float) -> str:
    """The method that the rule takes from the pilots of a size."""
    pilots = {method: differences(cell, method, pilot_n) for method in methods_of(cell, pilot_n)}
    return best_of(gains_of({method: values for method, values in pilots.items() if values}, caution)) or RANDOM


def replay(cells: dict[tuple[str, ...], Cell], choose: Callable[[Cell, int], str]) -> dict[str, Any]:
    """Mean gain, and at how many sizes of cells it is below random rows, of a choice a cell and size."""
    gains = [
        gain(cell, method, n)
        for cell in cells.values()
        for n in sizes_of(cell)
        for method in [choose(cell, n)]
        if method == RANDOM or (method, n) in cell
    ]
    return {"mean": round(float(np.mean(gains)), 4), "worse": sum(one < 0 for one in gains), "cells": len(gains)}


def sizes_of(cell: Cell) -> list[int]:
    """The sizes that are scored."""
    return sorted({n for method, n in cell if method == RANDOM and n >= SCORED_FROM})


def pilot_size(cell: Cell, asked: int | None) -> int:
    """The size whose trainings are the pilots: as asked, else the largest of at most 1,000."""
    return asked or max(n for method, n in cell if method == RANDOM and n <= PILOT_AT_MOST)


def results(cells: dict[tuple[str, ...], Cell], pilot_n: int | None, caution: float) -> dict[str, Any]:
    """Every line of the table."""
    chosen = {id(cell): by_rule(cell, pilot_size(cell, pilot_n), caution) for cell in cells.values()}
    names = sorted({method for cell in cells.values() for method, n in cell if n >= SCORED_FROM} - {RANDOM})
    lines = {"rule": replay(cells, lambda cell, _: chosen[id(cell)])}
    lines |= {f"always {name}": replay(cells, lambda _, __, name=name: name) for name in names}  # type: ignore[misc]
    lines["oracle"] = replay(
        cells, lambda cell, n: max([RANDOM, *methods_of(cell, n)], key=lambda one: gain(cell, one, n))
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Replays the rule of --method auto on finished trainings.")
    parser.add_argument("table", type=Path, metavar="TABLE.parquet")
    parser.add_argument("--pilot-n", type=int, help="rows of the pilots; default: the largest size of at most 1,000")
    parser.add_argument(
        "--caution", type=float, default=CAUTION, help="errors that a gain must exceed; default: the rule's"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    arguments = parser.parse_args()
    if not arguments.table.is_file():
        sys.exit(f"{arguments.table} is not there. Name a Parquet table of finished trainings.")
    lines = results(read_cells(arguments.table), arguments.pilot_n, arguments.caution)
    if arguments.json:
        print(json.dumps(lines, indent=2))
        return
    print(f"{'':20} {'points over random':>18} {'worse':>6} {'of':>4}")
    for name, line in sorted(lines.items(), key=lambda pair: -pair[1]["mean"]):
        print(f"{name:20} {line['mean']:>+18.2f} {line['worse']:>6} {line['cells']:>4}")


if __name__ == "__main__":
    main()
