"""Golden records as files: scores as Parquet, all else as JSON; compared to the last bit; and what they were made with."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent


def provenance() -> dict[str, Any]:
    """Commit, tree of the source, versions and processor."""
    packages = ("torch", "transformers", "peft", "numpy", "pyarrow", "datasets", "tokenizers")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "source": _git("rev-parse", "HEAD:src/tov"),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "cpu": _processor(),
    }


def _processor() -> str:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def changes() -> str:
    """What `git status` says of the tree; nothing if all is committed."""
    return _git("status", "--porcelain", "--", ":/") if _git("rev-parse", "HEAD") else "there is no git checkout"


def _git(*words: str) -> str:
    """What git says; nothing where there is no checkout."""
    said = subprocess.run(["git", *words], cwd=HERE, check=False, capture_output=True, text=True)
    return said.stdout.strip()


def save(found: dict[str, Any], folder: Path = HERE) -> None:
    """Writes each record as JSON, its table of scores as Parquet."""
    for name, record in found.items():
        rest = {key: value for key, value in record.items() if key != "scores"}
        if "scores" in record:
            pq.write_table(record["scores"], folder / f"{name}.parquet", compression="zstd")
        (folder / f"{name}.json").write_text(json.dumps(rest, indent=1) + "\n")


def load(name: str, folder: Path = HERE) -> dict[str, Any]:
    """The inverse of `save`, for one record."""
    record = json.loads((folder / f"{name}.json").read_text())
    table = folder / f"{name}.parquet"
    return {**record, "scores": comparable(pq.read_table(table))} if table.exists() else dict(record)


def comparable(scores: pa.Table) -> pa.Table:
    """A score table with texts as texts, and of an excluded row the reason without the words of the error behind it."""
    for at, name in enumerate(scores.column_names):
        if pa.types.is_dictionary(scores[name].type) or name == "excluded":
            texts = [text.partition(":")[0] if name == "excluded" else text for text in scores[name].to_pylist()]
            scores = scores.set_column(at, name, pa.chunked_array([pa.array(texts, pa.string())]))
    return scores


def differences(was: Any, now: Any, where: str = "") -> list[str]:
    """Every place where two records are not equal to the last bit."""
    if isinstance(was, pa.Table):
        was, now = ({name: table[name] for name in table.column_names} for table in (was, now))
    if isinstance(was, pa.ChunkedArray):
        same = was.type == now.type and _bits(was) == _bits(now)
        return [] if same else [f"{where}: {_apart(was, now)}"]
    if isinstance(was, dict) and isinstance(now, dict):
        gone = [f"{where}/{key}: {'gone' if key in was else 'new'}" for key in sorted(set(was) ^ set(now))]
        return gone + [line for key in was if key in now for line in differences(was[key], now[key], f"{where}/{key}")]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return [
            line for at, pair in enumerate(zip(was, now, strict=True)) for line in differences(*pair, f"{where}/{at}")
        ]
    return [] if was == now else [f"{where}: {was} -> {now}"]


def _bits(column: pa.ChunkedArray) -> Any:
    return column.to_numpy().tobytes() if pa.types.is_floating(column.type) else column.to_pylist()


def _apart(was: pa.ChunkedArray, now: pa.ChunkedArray) -> str:
    if not pa.types.is_floating(was.type) or len(was) != len(now):
        return "other values"
    gap = np.abs(was.to_numpy().astype(float) - now.to_numpy().astype(float))
    return f"floats differ in {int((gap > 0).sum())} of {len(gap)} rows, by at most {np.nanmax(gap):.2e}"
