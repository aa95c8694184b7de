"""What the dry run of gpu.sh measures on, made on the spot: models/TASK and data/, laid out as the real ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tiny import make_rows, tiny_encoder_folder, tiny_model_folder

SOURCES = ("gsm8k", "alpaca_gpt35", "flan_cot", "dolly", "gpteacher_toolformer")
ROWS = 24


def conversations(seed: int) -> list[dict[str, Any]]:
    """Questions with answers."""
    return [
        {"messages": [{"role": "user", "content": one["prompt"]}, {"role": "assistant", "content": one["completion"]}]}
        for one in make_rows(ROWS, seed=seed)
    ]


def sentences() -> list[dict[str, Any]]:
    """Sentences with one name each."""
    draw, found = random.Random(0), []
    for number in range(ROWS):
        words = [f"w{number}", *draw.choices(["saw", "and", "went", "to"], k=draw.randint(1, 6)), "Ada"]
        found.append({"tokens": words, "ner_tags": ["O"] * (len(words) - 1) + ["B-PER"]})
    return found


def make(folder: Path) -> None:
    """Models and data below a folder."""
    tiny_model_folder(folder / "models", name="instruction")
    tiny_encoder_folder(folder / "models", name="ner")
    files = {f"instruct/{source}": conversations(seed) for seed, source in enumerate(SOURCES)}
    for name, rows in {**files, "ner/wikineural_en": sentences()}.items():
        file = folder / "data" / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
