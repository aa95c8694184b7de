"""A folder with tiny inputs and runs of its own, made in this process, and bits of its files flipped."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tov
from tiny import make_rows, tiny_model_folder, write_jsonl

ALWAYS: dict[str, Any] = {"dtype": "fp32", "device": "cpu", "max_length": 64, "lora_r": 2, "quiet": True}
FITTED = {"base_size": 6, "epochs": 1}
LESS = "less/lora_r=2/lora_alpha=8/batch_size=8/epochs=1/dim=64"


@dataclass
class Desk:
    """A folder with inputs, a model and runs of its own."""

    base: Path

    @classmethod
    def made(cls, base: Path) -> Desk:
        rows = {"pool": make_rows(24, seed=1), "target": make_rows(5, seed=2), "test": make_rows(4, seed=3)}
        for name, made in {**rows, "other": make_rows(10, seed=7)}.items():
            write_jsonl(base / f"{name}.jsonl", made)
        tiny_model_folder(base, name="model")
        return cls(base)

    @property
    def inputs(self) -> dict[str, str]:
        return {name: str(self.base / f"{name}.jsonl") for name in ("pool", "target")} | {
            "model": str(self.base / "model")
        }

    def select(self, out: str = "select", **changed: Any) -> Any:
        given = {**self.inputs, **ALWAYS, **FITTED, "n": 6, "shard_rows": 8, "out": self.base / out, **changed}
        return tov.select(**{name: value for name, value in given.items() if value is not None})

    def less(self, **changed: Any) -> Any:
        store = f"{LESS}/store={self.base}/less/store"
        return self.select("less/run", base_size=None, epochs=None, method=store, **changed)

    def rds(self, **changed: Any) -> Any:
        return self.select("rds", base_size=None, epochs=None, method="rds", **changed)

    def train(self, out: str = "train") -> Any:
        return tov.train(self.base / "select", out=self.base / out, num_train_epochs=2, device="cpu", quiet=True)

    def compare(self, **changed: Any) -> Any:
        given = {
            **self.inputs, **ALWAYS, **FITTED, "test": str(self.base / "test.jsonl"), "methods": ["tov", "random"],
            "sizes": 4, "seeds": 1, "train_rows": 8, "out": self.base / "compare", **changed,
        }  # fmt: skip
        return tov.compare(**given)


def flip(file: Path, place: int, bit: int = 0) -> None:
    """One bit, under the same size and time."""
    was, data = file.stat(), bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(bytes(data))
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
