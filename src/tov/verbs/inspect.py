"""`tov inspect`: why these rows. Text, scores, what each token gains, the nearest target rows; on the terminal or as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from tov.config.page import InspectConfig
from tov.config.records import PathSettings, ScanSettings, SelectConfig
from tov.config.settings import build
from tov.data.pool import Pool
from tov.data.sources import Input
from tov.engine.models import Models
from tov.errors import ConfigError, RunError
from tov.inputs.named import Inputs, check_unchanged, list_inputs, pool_again
from tov.methods.registry import find_method
from tov.model.load import pick_device
from tov.reports.numbers import is_of_epoch
from tov.runs.folder import Run, open_run
from tov.scores.store import columns_in, read_hashes, read_rows, read_table, rows_in
from tov.scores.table import FIXED
from tov.sinks import line, terminal
from tov.verbs import shown as shown_rows
from tov.verbs.explain import explain
from tov.verbs.looked import same_target

MOST_TEXT = 4000
"""Characters of a row on the terminal; --json has more."""


@dataclass(frozen=True)
class Inspected:
    """Rows of a run.

    Attributes:
        rows: a record each: `row_id`, `source`, `scores` (all columns of the table), `parts`, `group`, `rank`, `of`, `bin`,
            `better_than`, `tokens` (text, log-loss, gain, label), `near` (target rows with cosine and parts).
        unexplained: why some have no tokens and no nearest target rows, or "".
        far: why rows that have tokens have no nearest target rows, where it is not by the method; or "".
    """

    rows: list[dict[str, Any]]
    unexplained: str
    far: str = ""

    @property
    def record(self) -> dict[str, Any]:
        """What the command prints with --json."""
        return {"rows": self.rows, "unexplained": self.unexplained, "far": self.far}

    def __str__(self) -> str:
        """What the command prints."""
        return _rendered(self)


def inspect(
    run: str | os.PathLike[str], rows: int | Sequence[int], *, pool: Inputs | None = None, **settings: Any
) -> Inspected:  # fmt: skip
    """Shows rows of a run.

    Args:
        run: folder of a select or score run (or its result).
        rows: row_ids, or one.
        pool: the run's pool, needed only if it was in memory.
        **settings: `tokens`, `device`, `trust_remote_code`.

    Raises:
        ConfigError: no such row.
        RunError: the run has no scores.
        DataError: the pool's files have changed.
    """
    row_ids = tuple(int(row) for row in ((rows,) if isinstance(rows, (int, np.integer)) else rows))
    given = {"from_run": os.fspath(run), "rows": row_ids, "quiet": True, **settings}
    return run_inspect(build(InspectConfig, given), list_inputs(pool) if pool is not None else None)


def run_inspect(config: InspectConfig, pools: Sequence[Input] | None = None) -> Inspected:
    """`inspect` from a record of settings; a pool in memory is passed beside it."""
    run = open_run(config.from_run)
    scoring = run.manifest.scoring
    if run.finished and scoring is None:
        raise RunError(
            f"{config.from_run} is a run of tov {run.manifest.command}, which has no scores of rows.",
            fix="Name the --out of a tov select or score.",
        )
    if scoring is None or not scoring.complete:
        raise RunError(f"{config.from_run} has no complete scores.", fix="Finish it first: give its command again.")
    if config.tokens:
        pick_device(config.device)
    count = scoring.rows or rows_in(run.scores)
    beyond = [row for row in config.rows if not 0 <= row < count]
    if beyond:
        raise ConfigError(
            f"There is no row {beyond[0]:,} in the pool of {config.from_run}.", allowed=f"0 to {count - 1:,}",
            fix="Take a row_id from the report, or tov_row_id from selected.jsonl.",
        )  # fmt: skip
    row_ids = np.array(config.rows, np.int64)
    pool = pool_again(run, pools, count)
    check_unchanged(pool, row_ids, read_hashes(run.scores, row_ids, run.stamp))
    shown = shown_rows.read(run) or {"rows": {"id": []}, "explained": {}, "target": {}, "unexplained": ""}
    explained, target = dict(shown["explained"]), dict(shown["target"])
    missing = np.array([row for row in config.rows if str(row) not in explained], np.int64)
    why = "--no-tokens leaves out what the run has not stored" if len(missing) else ""
    if len(missing) and config.tokens:
        fresh = {**shown, "explained": {}, "target": {}, "unexplained": ""}
        _explain(run, config, pool, missing, fresh)
        explained |= fresh["explained"]
        target |= fresh["target"]
        why = fresh["unexplained"]
    table = read_rows(run.scores, row_ids, None, run.stamp).to_pylist()
    better = _better_than(run, table)
    parts = shown_rows.texts(pool, row_ids)
    records = [
        _record(row, one, place, shown, explained.get(str(row["row_id"])), target) | {"better_than": of}
        for row, one, place, of in zip(table, parts, config.rows, better, strict=True)
    ]
    lacking = any(row["tokens"] and not row["near"] for row in records)
    gone = lacking and run.manifest.targets and same_target(run) is None
    in_memory = not run.manifest.inputs.target
    nowhere = (
        "the run's target was in memory" if in_memory else "the files of the run's target are gone, or have changed"
    )
    return Inspected(records, why.rstrip("."), nowhere if gone else "")


def _explain(run: Run, config: InspectConfig, pool: Pool, row_ids: np.ndarray, shown: dict[str, Any]) -> None:
    """Measures the tokens of rows by the run's model, where that is at hand."""
    assert run.manifest.scoring
    assert run.manifest.model
    method = find_method(run.manifest.scoring.method)
    settings = {
        **run.manifest.model.settings, **run.manifest.scoring.settings, "device": config.device,
        "trust_remote_code": config.trust_remote_code, "model": run.manifest.model.name, "n": 1, "out": "auto",
    }  # fmt: skip
    known = {**PathSettings.model_fields, **ScanSettings.model_fields, "n": 0, "out": 0}
    given = {name: value for name, value in settings.items() if name in known and value is not None}
    for role in ("pool", "target"):  # of the run, whose files may be gone: neither is read by them
        given[role] = getattr(run.manifest.inputs, role) or ["-"]
    built = build(SelectConfig, given).for_task(run.manifest.model.task)
    with closing(Models()) as models:
        explain(
            shown, row_ids, pool=pool, method=method, run=run, settings=built, models=models, target=same_target(run)
        )


def _better_than(run: Run, table: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Of each row and score: the share of the rows with a score that have less."""
    names = [name for name in columns_in(run.scores) if name.startswith("score_") and not is_of_epoch(name)]
    found: list[dict[str, float]] = [{} for _ in table]
    for name in names:
        values = read_table(run.scores, columns=[name], fingerprint=run.stamp)[name].to_numpy()
        values = np.sort(values[np.isfinite(values)])
        for row, shares in zip(table, found, strict=True):
            if row[name] is not None and np.isfinite(row[name]) and len(values):
                shares[name] = float(np.searchsorted(values, np.float32(row[name])) / len(values))
    return found


def _record(
    row: Mapping[str, Any], parts: list[list[Any]], row_id: int, shown: Mapping[str, Any], explained: Mapping[str, Any] | None,
    target: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    scores = {name: value for name, value in row.items() if name not in FIXED}
    record: dict[str, Any] = {
        "row_id": row_id, "source": row["source"], "hash": row["hash"], "excluded": row["excluded"], "length": row["tokens"],
        "lost": row["lost"], "in_base": row["in_base"],
        "scores": {name: None if value is None or not np.isfinite(value) else value for name, value in scores.items()},
        "parts": parts, "group": None, "rank": None, "of": None, "bin": None, "tokens": None, "near": [],
    }  # fmt: skip
    if row_id in shown["rows"]["id"]:
        at = shown["rows"]["id"].index(row_id)
        place = shown["rows"]["bin"][at]
        record |= {"group": shown["rows"]["group"][at], "of": shown["eligible"]}
        record["rank"] = shown["rows"]["rank"][at] if shown["rows"]["score"][at] is not None else None
        record["bin"] = (
            [place + 1, len(shown["bins"]), *shown["bins"][place][:2]] if 0 <= place < len(shown["bins"]) else None
        )
    if explained:
        record["tokens"] = explained["tokens"]
        record["for"] = f"the target {explained['for']}" if "for" in explained else "the target"
        record["near"] = [
            {"row": place, "cosine": cosine, "parts": target.get(str(place))} for place, cosine in explained["near"]
        ]
    return record


def _rendered(inspected: Inspected) -> str:
    """For a terminal: colours where it has them, marks where not."""
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    colours = os.environ.get("NO_COLOR") is None and _is_terminal()
    console = Console(file=out, force_terminal=colours, width=min(_width(), 120), highlight=False, no_color=not colours)
    for row in inspected.rows:
        _print_row(console, row, colours)
    if inspected.unexplained:
        far = "" if any(row["near"] for row in inspected.rows) else ", nor nearest target rows"
        console.print(f"No single tokens{far}: {line(inspected.unexplained)}.", markup=False)
    if inspected.far:
        console.print(f"No nearest target rows: {line(inspected.far)}.", markup=False)
    return out.getvalue().rstrip("\n")


def _is_terminal() -> bool:
    import sys

    return sys.stdout.isatty()


def _width() -> int:
    import shutil

    return shutil.get_terminal_size((100, 20)).columns


def _print_row(console: Any, row: Mapping[str, Any], colours: bool) -> None:
    from rich.text import Text

    console.rule(Text(f"row {row['row_id']} of {line(row['source'])}"))
    console.print(Text(". ".join(_why(row)) + "."))
    console.print(_measures(row))
    for name, text, scored in row["parts"]:
        shown = text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + " …"
        head = f"[{line(name)}{', scored' if scored else ''}] " if name else ""
        console.print(Text(head, style="dim") + Text(terminal(shown), style="bold" if scored else ""))
    if row["tokens"]:
        console.print(
            Text(f"\nToken by token: + gains by {row['for']}'s step, - loses; the number is in nats", style="dim")
        )
        console.print(_tokens(row["tokens"], colours))
    for near in row["near"]:
        if near["parts"]:
            said = " ".join(text for _, text, _ in near["parts"])[:300]
            console.print(
                Text(f"near target row {near['row']} (cosine {near['cosine']:.3f}): ", style="dim") + Text(line(said))
            )


def _measures(row: Mapping[str, Any]) -> Any:
    """A line a measure: its value, the share of rows that have less, and what it is in each epoch."""
    from rich.table import Table

    whole = {name: value for name, value in row["scores"].items() if not is_of_epoch(name)}
    of_epochs = row["scores"].keys() - whole.keys()
    epochs = sorted({int(name.partition("@")[0].rpartition("_")[2]) for name in of_epochs})
    table = Table(box=None, pad_edge=False)
    table.add_column("measure")
    for name in ("value", "better than", *(f"epoch {epoch}" for epoch in epochs)):
        table.add_column(name, justify="right")
    for name, value in whole.items():
        share = row["better_than"].get(name)
        measure, at, target = name.partition("@")
        by_epoch = [_digits(row["scores"].get(f"{measure}_{epoch}{at}{target}")) for epoch in epochs]
        table.add_row(line(name), _digits(value), "" if share is None else f"{100 * share:.1f} %", *by_epoch)
    return table


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _why(row: Mapping[str, Any]) -> list[str]:
    said = [row["group"].capitalize()] if row["group"] else ["Not among the rows that the run has stored to be shown"]
    said += [f"left out: {line(row['excluded'])}"] if row["excluded"] else []
    said += ["in the base set, so never taken by score"] if row["in_base"] else []
    said += [f"rank {row['rank']:,} of {row['of']:,}"] if row["rank"] else []
    if row["bin"]:
        number, count, low, high = row["bin"]
        said.append(f"length {row['length']}, bin {number} of {count} ({low} to {high})")
    else:
        said.append(f"length {row['length']}")
    return said


def _tokens(tokens: Sequence[Sequence[Any]], colours: bool) -> Any:
    """The tokens in colours; without them, each that moved has its gain in brackets."""
    from rich.text import Text

    most = max((abs(gain) for _, _, gain, _ in tokens if gain is not None), default=0.0) or 1.0
    text = Text()
    for piece, _, gain, _ in tokens:
        shown = terminal(piece)
        if gain is None:
            text.append(shown, style="dim")
        elif abs(gain) < most / 20:
            text.append(shown)
        elif colours:
            text.append(shown, style="bold blue" if gain > 0 else "underline yellow")
        else:
            text.append(f"{shown}[{gain:+.2g}]")
    return text
