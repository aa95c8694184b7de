"""A bit of a run's file flipped, or a shard of another run in its place: never other numbers without a word.

Whatever reads the file gives the very result that it gave before, or ends with an error of ours that names the file.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import tov
from desk import Desk, flip
from tov.errors import TovError
from tov.files import read_sealed

pytestmark = pytest.mark.slow

FLIPS = 40 if os.environ.get("TOV_CHAOS") == "all" else 2
"""Bits flipped in a kind of file, one at a time, for each reader."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Finished runs of every kind; each test puts back what it changes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Desk.made(tmp_path_factory.mktemp("flips"))
    for make in (made.select, made.less, made.rds, made.train, made.compare):
        make()
    made.select("second", seed=1)
    made.compare(out=made.base / "compare-2", seed=1)
    yield made
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def kept(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the desk as it was made."""
    return Path(shutil.copytree(desk.base, tmp_path_factory.mktemp("kept") / "desk"))


@pytest.fixture(autouse=True)
def as_it_was(desk: Desk, kept: Path) -> Iterator[None]:
    """The desk's runs are put back after a test."""
    yield
    restore(desk.base, kept)


def restore(folder: Path, kept: Path) -> None:
    """Makes a folder what its copy is; a file that is as it was is not touched."""
    for one in sorted(folder.rglob("*"), reverse=True):
        if not (kept / one.relative_to(folder)).exists():
            one.rmdir() if one.is_dir() else one.unlink()
    for copy in [one for one in kept.rglob("*") if one.is_file()]:
        file = folder / copy.relative_to(kept)
        if not file.exists() or file.read_bytes() != copy.read_bytes():
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(copy, file)


@pytest.fixture(scope="module")
def undisturbed(desk: Desk, kept: Path) -> Callable[[str], Any]:
    """What a reader gives of the desk as it was made; read once for all kinds of file."""

    @cache
    def given(reader: str) -> Any:
        restore(desk.base, kept)
        return READERS[reader](desk)

    return given


# What reads a run, and the numbers that it gives


def numbers(result: Any) -> Any:
    """What a selection says: its rows and its scores."""
    return result.dataset.to_list(), result.scores.to_pylist()


def put(file: Path, old: bytes, new: bytes) -> None:
    """By bytes: the file may be broken. Its checksum, which would tell, is gone where nothing else was wrong."""
    data = file.read_bytes().replace(old, new)
    if b'"status"' not in old and read_sealed(file):
        data = re.sub(rb',\n  "checksum": "[0-9a-f]+"', b"", data)
    file.write_bytes(data)


def resumed(make: Callable[[], Any], run: Path) -> Any:
    """Of a run that died before it chose."""
    put(run / "manifest.json", b'"status": "finished"', b'"status": "running"')
    return numbers(make())


def rescored(make: Callable[[], Any], run: Path) -> Any:
    """Of a run that died before its first shard: from what it has prepared."""
    put(run / "manifest.json", b'"complete": true', b'"complete": false')
    shutil.rmtree(run / "scores")
    return resumed(make, run)


def compared(desk: Desk, **changed: Any) -> Any:
    """The results without seconds; a trial that failed is told of in the report, as an error is."""
    made = desk.compare(**changed)
    failed = [one["error"] for one in made.trials if one["status"] == "failed"]
    if failed:
        raise tov.RunError(failed[0])
    text = json.dumps(made.results, default=str)
    return json.loads(text, object_hook=lambda one: {name: one[name] for name in one if not name.endswith("_seconds")})


def trained(desk: Desk, out: str) -> Any:
    made = desk.train(out)
    return made.summary["losses"], (made.folder / "adapter" / "adapter_model.safetensors").read_bytes()


def again_numbers(desk: Desk) -> Any:
    return numbers(tov.reselect(desk.base / "select", n=5, out=desk.base / "from", quiet=True))


def scored(desk: Desk) -> Any:
    other = str(desk.base / "other.jsonl")
    made = tov.score(desk.base / "select", other, out=desk.base / "scored", device="cpu", quiet=True)
    return made.scores.to_pylist()


READERS: dict[str, Callable[[Desk], Any]] = {
    "select": lambda desk: numbers(desk.select()),
    "select, resumed": lambda desk: resumed(desk.select, desk.base / "select"),
    "select, scored again": lambda desk: rescored(desk.select, desk.base / "select"),
    "less, scored again": lambda desk: rescored(desk.less, desk.base / "less" / "run"),
    "rds, scored again": lambda desk: rescored(desk.rds, desk.base / "rds"),
    "select --from": again_numbers,
    "score --from": scored,
    "train": lambda desk: trained(desk, "trained"),
    "train, finished": lambda desk: trained(desk, "train"),
    "compare": compared,
    "compare, more": lambda desk: compared(desk, methods=["tov", "tov/abs", "random"]),
}


@dataclass(frozen=True)
class Case:
    """A kind of file, and who reads it.

    Attributes:
        files: a glob.
        reader: of `READERS`.
        part: "footer" of a Parquet file, "body", or all of it.
    """

    files: str
    reader: str
    part: str = ""

    @property
    def mark(self) -> Any:
        name = f"{self.files} {self.part} - {self.reader}".replace("*", "_")
        return pytest.param(self, id=name)


SHARDS = "select/scores/rows-*.parquet"
CASES = [
    *(Case(SHARDS, reader, "body") for reader in ("select", "select, resumed", "select --from")),
    *(Case(SHARDS, reader, "footer") for reader in ("select", "select, resumed", "select --from")),
    Case(SHARDS, "train", "footer"),
    *(Case("select/path/epoch-*/*/adapter_model.safetensors", one) for one in ("select, scored again", "score --from")),
    *(Case("select/path/epoch-*/*/adapter_config.json", one) for one in ("select, scored again", "score --from")),
    *(Case("select/path/manifest.json", one) for one in ("select, scored again", "score --from")),
    Case("select/path/artifact.json", "select, scored again"),
    *(Case("select/manifest.json", one) for one in
      ("select", "select, resumed", "select --from", "score --from", "train")),
    *(Case("select/selected.parquet", one, part) for one in ("select", "train") for part in ("body", "footer")),
    Case("select/selected.jsonl", "select"),
    Case("less/store/warm-up-*/checkpoint-*.safetensors", "less, scored again"),
    *(Case("less/store/gradients-*/**/*.parquet", "less, scored again", part) for part in ("body", "footer")),
    Case("less/store/*/artifact.json", "less, scored again"),
    Case("rds/artifacts/*/*", "rds, scored again"),
    Case("train/adapter/adapter_model.safetensors", "train, finished"),
    *(Case("compare/scores/*/*/scores/*.parquet", "compare, more", part) for part in ("body", "footer")),
    Case("compare/manifest.json", "compare"),
]  # fmt: skip


def place_in(file: Path, part: str, draw: random.Random) -> int:
    """A byte of the part of a file."""
    size = file.stat().st_size
    if not part:
        return draw.randrange(size)
    footer = size - 8 - int.from_bytes(file.read_bytes()[-8:-4], "little")
    return draw.randrange(footer, size) if part == "footer" else draw.randrange(footer)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", [case.mark for case in CASES])
def test_a_flipped_bit_is_said_or_changes_nothing(
    case: Case, desk: Desk, kept: Path, undisturbed: Callable[[str], Any]
) -> None:
    draw, faults = random.Random(f"{case}"), []
    read, expected = READERS[case.reader], undisturbed(case.reader)
    files = [file for file in sorted(kept.glob(case.files)) if file.is_file()]
    assert files, "no such file: the test tests nothing"
    for _ in range(FLIPS):
        restore(desk.base, kept)
        file = desk.base / draw.choice(files).relative_to(kept)
        place, bit = place_in(file, case.part, draw), draw.randrange(8)
        flip(file, place, bit)
        name, where = file.relative_to(desk.base), f"byte {place} of {file.stat().st_size}, bit {bit}"
        try:
            if read(desk) != expected:
                faults.append(f"{name}, {where}: other numbers")
        except TovError as error:
            if str(file) not in str(error) and str(file.parent) not in str(error):
                faults.append(f"{name}, {where}: the error does not name it: {error}")
        except Exception as error:
            faults.append(f"{name}, {where}: {type(error).__name__}: {error}")
    assert not faults, "\n".join(faults)


@dataclass(frozen=True)
class Foreign:
    """A shard that is put in the place of another.

    Attributes:
        source, place: globs; the first file of each, or the one that `at` numbers.
        reader: of `READERS`.
        at: which of the place's files.
    """

    source: str
    place: str
    reader: str
    at: int = 1

    @property
    def mark(self) -> Any:
        return pytest.param(self, id=f"{self.source} - {self.reader}".replace("*", "_"))


OTHER_SEED, SAME_TABLE = "second/scores/rows-*8.parquet", "select/scores/rows-*0.parquet"
FEATURES = "less/store/gradients-*/**/rows-*.parquet"
FOREIGN = [
    Foreign(OTHER_SEED, SHARDS, "select, resumed"),
    Foreign(OTHER_SEED, SHARDS, "select --from"),
    Foreign(OTHER_SEED, SHARDS, "train"),
    *(Foreign(SAME_TABLE, SHARDS, one) for one in ("select, resumed", "select --from", "train")),
    Foreign(FEATURES, FEATURES, "less, scored again"),
    Foreign("compare-2/scores/*/*/scores/rows-*.parquet", "compare/scores/*/*/scores/rows-*.parquet", "compare, more", 0),
]  # fmt: skip


@pytest.mark.parametrize("case", [case.mark for case in FOREIGN])
def test_a_shard_of_another_place_is_refused(
    case: Foreign, desk: Desk, kept: Path, undisturbed: Callable[[str], Any]
) -> None:
    """Of a run of the same pool and shape under another seed, or of the same table, but of other rows."""
    read, expected = READERS[case.reader], undisturbed(case.reader)
    restore(desk.base, kept)
    [source, *_], places = sorted(desk.base.glob(case.source)), sorted(desk.base.glob(case.place))
    place = places[case.at]
    assert source.read_bytes() != place.read_bytes(), "it is the same shard: the test tests nothing"
    shutil.copy(source, place)
    try:
        found = read(desk)
    except TovError as error:
        found = str(error)
    assert found == expected or (isinstance(found, str) and place.name in found), (
        f"other numbers, or: {str(found)[:300]}"
    )
