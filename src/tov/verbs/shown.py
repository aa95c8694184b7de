"""What a reader is shown of a selection: rows chosen, rows just below the cut, rows left out, and numbers for charts.

Made when the run ends, while its pool is at hand, and stored as `shown.json`: pages and `tov inspect` read it and compute
nothing. Texts are cut so that the file stays small; `selected.jsonl` has the whole rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tov.config.choice import SelectionSettings
from tov.data.cells import BadRow
from tov.data.pool import Pool
from tov.files import write_text
from tov.runs.folder import Run
from tov.scores.table import coded, usable_in
from tov.seeds import generator
from tov.selection.choose import Choice, length_bins
from tov.sinks import json_line, json_text
from tov.tasks import TASKS

FILE = "shown.json"
FORMAT = 1
MOST_CHOSEN, MOST_BELOW, MOST_LEFT_OUT, MOST_POINTS = 10_000, 200, 20, 3000
"""Rows that are shown: chosen ones, those just below the cut, of each reason to be left out, and points of a chart."""
TEXT_CHARACTERS = 6_000_000
"""Of all rows together; a row has its share, at least `LEAST_TEXT` and at most `MOST_TEXT`."""
LEAST_TEXT, MOST_TEXT = 200, 4000
MOST_FIRST = 500
"""Of more chosen rows than are shown, the best ones that always are."""
STEPS = 40
"""Bars of a distribution."""
AT_ONCE = 2**20
"""Rows that are counted together."""
CHOSEN, BY_CHANCE, BELOW, LEFT_OUT = "by score", "at random", "below the cut", "left out"


@dataclass(frozen=True)
class Ranked:
    """A choice with all that says why.

    Attributes:
        pool: the rows.
        scores: the score table, with the columns that were ranked by.
        values: (N,) what rows were ranked by.
        choice: the rows taken.
        settings: of the choice.
    """

    pool: Pool
    scores: pa.Table
    values: np.ndarray
    choice: Choice
    settings: SelectionSettings

    @property
    def eligible(self) -> np.ndarray:
        """Rows that could be taken by score."""
        free = usable_in(self.scores) & ~self.scores["in_base"].to_numpy() & np.isfinite(self.values)
        return np.flatnonzero(free)

    def bins(self, eligible: np.ndarray) -> list[np.ndarray]:
        """Row ids of each length bin of the rule."""
        by_score = int((self.choice.reasons == "score").sum())
        count = max(1, min(self.settings.bins or 1, by_score))
        return [eligible[part] for part in length_bins(self.scores["tokens"].to_numpy()[eligible], eligible, count)]


def show(run: Run, ranked: Ranked, seed: int) -> dict[str, Any]:
    """What is shown of a choice, without single tokens.

    Args:
        run: whose scores were chosen from.
        ranked: the choice.
        seed: of what is drawn where there are more rows than are shown.
    """
    codes, names = coded(ranked.scores["source"])
    loss, tokens = _loss(ranked), ranked.scores["tokens"].to_numpy()
    eligible = ranked.eligible
    bins, able = ranked.bins(eligible), len(eligible)
    groups = [*_chosen(ranked, seed), (BELOW, _below(ranked, bins)), *_left_out(ranked, seed)]
    row_ids = np.concatenate([ids for _, ids in groups]).astype(np.int64)
    bin_of, ranks = _bins_of(bins, len(tokens), row_ids), _ranks(ranked.values, eligible, row_ids)
    lengths = [[int(tokens[rows].min()), int(tokens[rows].max()), len(rows)] for rows in bins if len(rows)]
    del eligible, bins  # 16 bytes a row of the pool, which what follows has no use for
    excluded = ranked.scores["excluded"].take(row_ids).to_pylist()
    # A budget of tokens, shares and several targets have bins of their own, which the choice does not tell.
    targets = list(run.manifest.targets) if ranked.choice.targets is not None else []
    whole = not ranked.settings.tokens and not ranked.settings.share and not targets
    return {
        "format": FORMAT,
        "sources": names,
        "eligible": able,
        "chosen": len(ranked.choice.row_ids),
        "raw": _is_raw(ranked),
        "targets": targets,
        "bins": lengths * whole,
        "rows": {
            "id": row_ids.tolist(),
            "source": codes[row_ids].tolist(),
            "group": [name for name, ids in groups for _ in ids],
            "why": excluded,
            "score": numbers(ranked.values[row_ids]),
            "loss": numbers(loss[row_ids]),
            "length": tokens[row_ids].tolist(),
            "rank": [rank if place >= 0 else None for rank, place in zip(ranks, bin_of.tolist(), strict=True)],
            "bin": (bin_of if whole else np.full(len(row_ids), -1)).tolist(),
            "target": _for_whom(ranked.choice, row_ids, targets),
            "parts": list(texts(ranked.pool, row_ids)),
        },
        "spread": _spread(ranked, codes, len(names)),
        "points": _points(ranked, codes, loss, seed),
        "explained": {},
        "target": {},
        "unexplained": "",
    }


def _for_whom(choice: Choice, row_ids: np.ndarray, targets: Sequence[str]) -> list[int]:
    """The place of the target that each row was chosen for; -1 of none, and where there is but one."""
    if choice.targets is None:
        return [-1] * len(row_ids)
    place_of = {row: targets.index(name) for row, name in zip(choice.row_ids.tolist(), choice.targets, strict=True)}
    return [place_of.get(row, -1) for row in row_ids.tolist()]


def _is_raw(ranked: Ranked) -> bool:
    """Whether rows were ranked by a column of gains in nats, which the noise floor can be held against."""
    names = [name for name in ranked.scores.column_names if name.startswith("score_")]
    return any(np.array_equal(ranked.scores[name].to_numpy(), ranked.values, equal_nan=True) for name in names)


def numbers(values: np.ndarray) -> list[float | None]:
    """As JSON has them: five digits, null for none."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]


def _bins_of(bins: Sequence[np.ndarray], rows: int, row_ids: np.ndarray) -> np.ndarray:
    """The length bin of each of these rows, -1 of none."""
    bin_of = np.full(rows, -1, np.int32)
    for number, members in enumerate(bins):
        bin_of[members] = number
    return bin_of[row_ids]


def _ranks(values: np.ndarray, eligible: np.ndarray, row_ids: np.ndarray) -> list[int]:
    """The place of each of these rows among those that could be taken by score, 1 the best."""
    ordered = np.sort(values[eligible])
    return (len(ordered) - np.searchsorted(ordered, values[row_ids], side="right") + 1).tolist()


def loss_columns(available: Sequence[str]) -> list[str]:
    """The column of a row's log-loss before the target's step, if a score table has one; of several targets the first one's."""
    return [name for name in available if name.partition("@")[0] in ("loss_base", "loss_first")][:1]


def _loss(ranked: Ranked) -> np.ndarray:
    """(N,) that column, NaN where the method has none."""
    names = loss_columns(ranked.scores.column_names)
    return ranked.scores[names[0]].to_numpy() if names else np.full(len(ranked.values), np.nan, np.float32)


def _chosen(ranked: Ranked, seed: int) -> list[tuple[str, np.ndarray]]:
    row_ids, reasons = ranked.choice.row_ids, ranked.choice.reasons
    if len(row_ids) > MOST_CHOSEN:
        # The first ones are the best; of the rest a part is drawn.
        rest = generator(seed, "shown").choice(len(row_ids) - MOST_FIRST, MOST_CHOSEN - MOST_FIRST, replace=False)
        drawn = np.concatenate([np.arange(MOST_FIRST), MOST_FIRST + np.sort(rest)])
        row_ids, reasons = row_ids[drawn], reasons[drawn]
    return [(CHOSEN, row_ids[reasons == "score"]), (BY_CHANCE, row_ids[reasons == "random"])]


def _below(ranked: Ranked, bins: Sequence[np.ndarray]) -> np.ndarray:
    """The best rows that were not taken, the same number from each length bin."""
    each, found = max(1, MOST_BELOW // max(len(bins), 1)), [np.empty(0, np.int64)]
    free = np.ones(len(ranked.values), bool)
    free[ranked.choice.row_ids] = False
    for rows in bins:
        rows = rows[free[rows]]
        values = ranked.values[rows]
        best = np.argpartition(-values, each)[:each] if len(rows) > each else np.arange(len(rows))
        found.append(rows[best])
    rows = np.concatenate(found)
    return rows[np.lexsort((rows, -ranked.values[rows]))]


def _left_out(ranked: Ranked, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    codes, reasons = coded(ranked.scores["excluded"])
    kinds = np.array([reason.partition(":")[0] for reason in reasons])
    for kind in sorted({*kinds.tolist()} - {""}):
        rows = np.flatnonzero((kinds == kind)[codes])
        yield (
            LEFT_OUT,
            np.sort(generator(seed, "left out", kind).choice(rows, min(MOST_LEFT_OUT, len(rows)), replace=False)),
        )


def texts(pool: Pool, row_ids: np.ndarray) -> Iterator[list[list[Any]]]:
    """Each row's parts: name, text, whether it is scored."""
    most = int(np.clip(TEXT_CHARACTERS // max(len(row_ids), 1), LEAST_TEXT, MOST_TEXT))
    task = TASKS[pool.task]
    for row_id, row in zip(row_ids.tolist(), pool.each(row_ids), strict=True):
        if isinstance(row, BadRow):
            raw = json_text(pool.original(row_id))
            yield cut([["as it stands in the file", raw, 0]], most)
        else:
            yield cut([[part.name, part.text, int(part.scored)] for part in task.parts(row)], most)


def cut(parts: list[list[Any]], most: int) -> list[list[Any]]:
    """Parts of at most so many characters together; what is cut ends in an ellipsis."""
    kept, left = list[list[Any]](), most
    for name, text, scored in parts:
        if left <= 0:
            kept.append(["", "…", 0])
            break
        kept.append([name, text if len(text) <= left else text[:left] + " …", scored])
        left -= len(text)
    return kept


def _spread(ranked: Ranked, codes: np.ndarray, sources: int) -> dict[str, Any]:
    """How scores lie, by source, in the pool and among the chosen rows; the ends hold what lies beyond them."""
    usable = np.flatnonzero(usable_in(ranked.scores) & np.isfinite(ranked.values))
    if not len(usable):
        return {"edges": [], "pool": [], "chosen": []}
    low, high = np.quantile(ranked.values[usable], [0.002, 0.998], overwrite_input=True)
    edges = np.linspace(low, high if high > low else low + 1e-6 + abs(low), STEPS + 1)
    taken = ranked.choice.row_ids[np.isfinite(ranked.values[ranked.choice.row_ids])]

    def counted(rows: np.ndarray) -> list[list[int]]:
        found = np.zeros(sources * STEPS, np.int64)
        for some in np.array_split(rows, len(rows) // AT_ONCE + 1):
            places = np.clip(np.searchsorted(edges, ranked.values[some], side="right") - 1, 0, STEPS - 1)
            found += np.bincount(codes[some] * STEPS + places, minlength=len(found))
        return found.reshape(sources, STEPS).tolist()

    return {"edges": numbers(edges), "pool": counted(usable), "chosen": counted(taken)}


def _points(ranked: Ranked, codes: np.ndarray, loss: np.ndarray, seed: int) -> dict[str, Any]:
    """Rows of the pool for the chart of loss against score: as many chosen ones as others at most."""
    able = np.isfinite(ranked.values) & np.isfinite(loss) & usable_in(ranked.scores)
    chosen = np.zeros(len(able), bool)
    chosen[ranked.choice.row_ids] = True
    random, picked = generator(seed, "points"), []
    for rows in (np.flatnonzero(able & chosen), np.flatnonzero(able & ~chosen)):
        picked.append(random.choice(rows, min(MOST_POINTS // 2, len(rows)), replace=False))
    ids = np.sort(np.concatenate(picked))
    return {
        "id": ids.tolist(),
        "source": codes[ids].tolist(),
        "score": numbers(ranked.values[ids]),
        "loss": numbers(loss[ids]),
        "chosen": chosen[ids].astype(int).tolist(),
    }


def write(run: Run, shown: dict[str, Any]) -> None:
    """Stores what is shown in the run."""
    write_text(run.folder / FILE, json_line(shown) + "\n")


def read(run: Run) -> dict[str, Any] | None:
    """What a finished run has stored; None of a run of an earlier version.

    Raises:
        RunError: the file is not the one that was written.
    """
    return read_file(run.check_file(FILE)) if FILE in run.manifest.files else None


def read_file(file: Path) -> dict[str, Any] | None:
    """What a file says; None of one of another format."""
    found = json.loads(file.read_text("utf-8"))
    return found if found.get("format") == FORMAT else None


def apart(
    one: dict[str, Any], two: dict[str, Any], hashes: Sequence[dict[int, str]], names: tuple[str, str], *, same: bool
) -> dict[str, Any]:  # fmt: skip
    """The chosen rows that only one of two selections has, as a page shows rows.

    Args:
        one, two: of `show`.
        hashes: of each selection, chosen row_id -> content.
        names: of the two groups.
        same: whether both are of one pool, so that a row_id means one row.
    """
    # Targets are each run's own, and have their numbers there.
    rows: dict[str, list[Any]] = {name: [] for name in one["rows"] if name != "target"}
    sources = sorted({*one["sources"], *two["sources"]})
    found: dict[str, Any] = {}
    for shown, mine, others, name in ((one, hashes[0], hashes[1], names[0]), (two, hashes[1], hashes[0], names[1])):
        theirs = set(others.values())
        for place, row_id in enumerate(shown["rows"]["id"]):
            if row_id not in mine or mine[row_id] in theirs:
                continue
            for column in rows:
                rows[column].append(shown["rows"][column][place])
            rows["group"][-1], rows["bin"][-1], rows["rank"][-1] = name, -1, None  # each run has its own
            rows["source"][-1] = sources.index(shown["sources"][shown["rows"]["source"][place]])
            found |= (
                {str(row_id): shown["explained"][str(row_id)]} if same and str(row_id) in shown["explained"] else {}
            )
    why = "" if same else "the two runs have other pools, in which a number is another row"
    return {
        "rows": rows, "sources": sources, "explained": found, "target": {}, "bins": [], "eligible": 0, "unexplained": why,
    }  # fmt: skip
