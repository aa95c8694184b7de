"""Each input of a run changed alone, under the same size and time: the run is not gone on with, before its end or after it.

Changes of settings where a finished run lies are in test_invalidation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import tov
from desk import Desk, flip
from faults import killed
from tov.errors import TovError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fresh(tmp_path: Path) -> Desk:
    """Inputs alone."""
    return Desk.made(tmp_path / "desk")


# An input


def swap(file: Path, old: str, new: str) -> None:
    """Other bytes under the same size and time."""
    was, text = file.stat(), file.read_text()
    assert old in text, f"{file.name} lacks {old!r}: the test tests nothing"
    assert len(old) == len(new)
    file.write_text(text.replace(old, new, 1))
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))


def deep(name: str, desk: Desk) -> None:
    """The lowest bit of a number in the middle of the largest tensor."""
    file = desk.base / "model" / name
    largest = max(torch_tensors(file).values(), key=torch.numel).contiguous().numpy().tobytes()
    at = file.read_bytes().find(largest[:64])
    assert at > 0, "the tensor's bytes are not in the file"
    flip(file, at + len(largest) // 8 * 4)


def torch_tensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file) if file.suffix == ".safetensors" else torch.load(file)


def as_bin(desk: Desk) -> None:
    """The model's weights in the older format."""
    file = desk.base / "model" / "model.safetensors"
    torch.save(torch_tensors(file), desk.base / "model" / "pytorch_model.bin")
    file.unlink()


def row(name: str, desk: Desk) -> None:
    """One that has been chosen, if rows have been."""
    file, chosen = desk.base / f"{name}.jsonl", desk.base / "select" / "selected.jsonl"
    at = json.loads(chosen.read_text().splitlines()[0])["tov_row_id"] if name == "pool" and chosen.exists() else 0
    completion = json.loads(file.read_text().splitlines()[at])["completion"]
    swap(file, completion, completion[:-1] + "!")


INPUTS: dict[str, Callable[[Desk], None]] = {
    "a row of the pool": partial(row, "pool"),
    "a row of the target": partial(row, "target"),
    "weights in safetensors": partial(deep, "model.safetensors"),
    "weights in .bin": partial(deep, "pytorch_model.bin"),
    "tokenizer": lambda desk: swap(desk.base / "model" / "tokenizer.json", '"lstrip": false', '"lstrip": true '),
    "chat template": lambda desk: swap(desk.base / "model" / "chat_template.jinja", "'\n'", "'\t'"),
    "config.json": lambda desk: swap(
        desk.base / "model" / "config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 2e-06'
    ),
}
OF_MODEL = {name for name in INPUTS if "row" not in name}
OF_TARGET = {"a row of the target"}
UNREAD = {"select": set(), "train": OF_TARGET, "score": set(INPUTS) - OF_MODEL, "select --from": OF_MODEL | OF_TARGET}
"""What a command that goes out from a finished run does not read: it has no use for it, or it is stored."""


def begun(desk: Desk) -> None:
    """A selection that died at its second shard."""
    with killed(naming="rows-000000000008"):
        desk.select()


@pytest.mark.parametrize("what", INPUTS)
def test_a_changed_input_stops_a_run_that_was_interrupted(what: str, fresh: Desk) -> None:
    if ".bin" in what:
        as_bin(fresh)
    begun(fresh)
    before = {file: file.read_bytes() for file in (fresh.base / "select").rglob("*.parquet")}
    assert len(before) == 1
    INPUTS[what](fresh)
    with pytest.raises(TovError):
        fresh.select()
    assert {file: file.read_bytes() for file in (fresh.base / "select").rglob("*.parquet")} == before


@pytest.mark.parametrize("what", INPUTS)
def test_a_changed_input_is_noticed_by_every_later_command(what: str, fresh: Desk) -> None:
    """The same command over the finished run, choosing again, scoring with it, training from it."""
    if ".bin" in what:
        as_bin(fresh)
    fresh.select()
    INPUTS[what](fresh)
    base = fresh.base
    commands: dict[str, Callable[[], Any]] = {
        "select": fresh.select,
        "train": fresh.train,
        "score": lambda: tov.score(
            base / "select", str(base / "other.jsonl"), out=base / "scored", device="cpu", quiet=True
        ),
        "select --from": lambda: tov.reselect(base / "select", n=5, out=base / "from", quiet=True),
    }
    ended = {}
    for name, command in commands.items():
        try:
            command()
            ended[name] = "went on"
        except TovError:
            ended[name] = "refused"
    right = {name: "went on" if what in UNREAD[name] else "refused" for name in commands}
    assert ended == right


OTHER_SETTINGS = {
    "seed": 1, "dtype": "bf16", "device": "cpu:0", "learning_rate": 1e-3, "label_map": {"A": "B"}, "max_length": 63,
    "n": 7, "shard_rows": 9,
}  # fmt: skip


@pytest.mark.parametrize("setting", OTHER_SETTINGS)
def test_another_setting_stops_a_run_that_was_interrupted(setting: str, fresh: Desk) -> None:
    begun(fresh)
    before = {file: file.read_bytes() for file in (fresh.base / "select").rglob("*") if file.is_file()}
    with pytest.raises(tov.RunError, match=setting):
        fresh.select(**{setting: OTHER_SETTINGS[setting]})
    assert {file: file.read_bytes() for file in (fresh.base / "select").rglob("*") if file.is_file()} == before
