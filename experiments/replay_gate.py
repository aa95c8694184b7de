"""Replays the rule of `--method auto` on a table of finished trainings.

    python experiments/replay_gate.py TABLE.parquet [--pilot-n N] [--caution C] [--json]

The table has a row a training: `pool`, `model`, `task`, `method` (one is `Random`), `n`, `seed`, `metric` (larger is better).
In each cell (pool, model, task) the rule sees the trainings of the pilot size, all seeds, and names a method. That method's
gain over random rows is then read at every n from 2,500 on: mean over seeds, points of the metric. `worse` counts the sizes
of cells at which it is below random rows. Beside it stand each method taken always, and the best method of each cell and
size (`oracle`).

A cell without random rows, pilots or larger sizes is left out of every line; what is left out is told on stderr.

The pilots' metric is that of the test itself, so the rule looks better here than where it judges on held-out target rows.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tov.comparison.decision import CAUTION, best_of, gains_of
from tov.progress import counted

RANDOM, ZERO_SHOT = "Random", "zero-shot"
PILOT_AT_MOST, SCORED_FROM = 1_000, 2_500
COLUMNS = ("model", "task", "method", "n", "seed", "metric")
NAME_A_TABLE = "Name a Parquet table of finished trainings."
Cell = dict[tuple[str, int], dict[int, float]]
"""(method, n) -> seed -> metric."""
Cells = dict[tuple[str, ...], Cell]
"""(pool, model, task) -> its trainings."""


def read_cells(file: Path) -> Cells:
    """Every cell of the table. Exits with a sentence where it cannot be read; tells how many trainings lack a metric."""
    cells: Cells = defaultdict(lambda: defaultdict(dict))
    without = 0
    for at, row in enumerate(read_rows(file), 1):
        if row["method"] == ZERO_SHOT:
            continue
        check_row(row, f"Row {at} of {file}")
        if row["metric"] is None or not math.isfinite(row["metric"]):
            without += 1
            continue
        trainings = cells[str(row.get("pool", "")), row["model"], row["task"]][row["method"], int(row["n"])]
        if int(row["seed"]) in trainings:
            sys.exit(f"Row {at} of {file} is a training that another row is too. Keep one row a training.")
        trainings[int(row["seed"])] = float(row["metric"])
    if without:
        tell(f"{counted(without, 'trainings')} without a metric (null, or no finite number): left out.")
    return cells


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The table's rows. Exits with a sentence where it is no such table."""
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        sys.exit(f"{file} cannot be read as Parquet ({str(error).splitlines()[0]}). {NAME_A_TABLE}")
    lacks = [name for name in COLUMNS if name not in table.column_names]
    if lacks:
        sys.exit(f"{file} has no column {lacks[0]}. It needs {', '.join(COLUMNS)}.")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def check_row(row: dict[str, Any], place: str) -> None:
    """Exits with a sentence where a value cannot be one of a training. A metric may be missing."""
    for name in COLUMNS:
        value, number = row[name], isinstance(row[name], int | float)
        right, allowed = (
            (value is None or number, "a number") if name == "metric"
            else (number and float(value).is_integer(), "a whole number") if name in ("n", "seed")
            else (isinstance(value, str), "text")
        )  # fmt: skip
        if not right:
            sys.exit(f"{place} has {value!r} as its {name}, which must be {allowed}. Correct the row, or leave it out.")


def replayable(cells: Cells, pilot_n: int | None) -> Cells:
    """The cells that have pilots and larger sizes; tells of the others. Exits with a sentence where none is left."""
    why = {key: why_not(cell, pilot_n) for key, cell in cells.items()}
    reasons = Counter(reason for reason in why.values() if reason)
    lines = [f"{counted(count, 'cells')} left out: {reason}." for reason, count in reasons.items()]
    if reasons.total() == len(cells):
        there = ", ".join(f"{n:,}" for n in sorted({n for cell in cells.values() for n in pilot_sizes(cell)}))
        told = " ".join(["No cell of the table can be replayed.", *(lines or ["It has no trainings."])])
        sys.exit(f"{told} Sizes that can be pilots: {there or 'none'}. Name one with --pilot-n, or add trainings.")
    for line in lines:
        tell(line)
    return {key: cell for key, cell in cells.items() if why[key] is None}


def why_not(cell: Cell, pilot_n: int | None) -> str | None:
    """Why a cell cannot be replayed; None if it can."""
    if not any(method == RANDOM for method, _ in cell):
        return f"no trainings of the method {RANDOM}, which gains are measured from"
    if pilot_size(cell, pilot_n) is None:
        size = f"of n <= {PILOT_AT_MOST:,}" if pilot_n is None else f"of n = {pilot_n:,}"
        return f"no pilots {size}, where the rule needs two seeds that a method shares with {RANDOM}"
    return None if sizes_of(cell) else f"no trainings of {RANDOM} at n >= {SCORED_FROM:,}, where gains are read"


def pilot_sizes(cell: Cell) -> list[int]:
    """The sizes at which a method shares two seeds with random rows, without which the rule knows no error."""
    return sorted({n for method, n in cell if method != RANDOM and len(differences(cell, method, n)) > 1})


def pilot_size(cell: Cell, asked: int | None) -> int | None:
    """The size whose trainings are the pilots: as asked, else the largest of at most 1,000; None where there is none."""
    fits = [n for n in pilot_sizes(cell) if (n <= PILOT_AT_MOST if asked is None else n == asked)]
    return max(fits, default=None)


def tell(line: str) -> None:
    print(line, file=sys.stderr)


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


def replay(name: str, cells: Cells, choose: Callable[[Cell, int], str]) -> dict[str, Any]:
    """Mean gain, and at how many sizes of cells it is below random rows, of a choice a cell and size. Tells what it lacks."""
    chosen = [(cell, choose(cell, n), n) for cell in cells.values() for n in sizes_of(cell)]
    gains = [gain(cell, method, n) for cell, method, n in chosen if method == RANDOM or (method, n) in cell]
    if not gains:
        sys.exit(f"No method that the line '{name}' takes was trained at n >= {SCORED_FROM:,}. Add those trainings.")
    if len(gains) < len(chosen):
        tell(
            f"{name}: {len(chosen) - len(gains)} of {len(chosen)} sizes of cells have no training of it: not in its line."
        )
    return {"mean": round(float(np.mean(gains)), 4), "worse": sum(one < 0 for one in gains), "cells": len(gains)}


def sizes_of(cell: Cell) -> list[int]:
    """The sizes that are scored."""
    return sorted({n for method, n in cell if method == RANDOM and n >= SCORED_FROM})


def results(cells: Cells, pilot_n: int | None, caution: float) -> dict[str, Any]:
    """Every line of the table."""
    chosen = {id(cell): by_rule(cell, pilot_size(cell, pilot_n) or 0, caution) for cell in cells.values()}
    names = sorted({name for cell in cells.values() for n in sizes_of(cell) for name in methods_of(cell, n)})
    choices: dict[str, Callable[[Cell, int], str]] = {"rule": lambda cell, _: chosen[id(cell)]}
    choices |= {f"always {name}": lambda _, __, name=name: name for name in names}  # type: ignore[misc]
    choices["oracle"] = lambda cell, n: max([RANDOM, *methods_of(cell, n)], key=lambda one: gain(cell, one, n))
    return {name: replay(name, cells, choose) for name, choose in choices.items()}


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
        sys.exit(f"{arguments.table} is not there. {NAME_A_TABLE}")
    lines = results(replayable(read_cells(arguments.table), arguments.pilot_n), arguments.pilot_n, arguments.caution)
    if arguments.json:
        print(json.dumps(lines, indent=2))
        return
    print(f"{'':20} {'points over random':>18} {'worse':>6} {'of':>4}")
    for name, line in sorted(lines.items(), key=lambda pair: -pair[1]["mean"]):
        print(f"{name:20} {line['mean']:>+18.2f} {line['worse']:>6} {line['cells']:>4}")


if __name__ == "__main__":
    main()
