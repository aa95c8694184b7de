"""Tiny inputs, the commands of tov on them, and what of a run's files must come out the same however it was disturbed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos import LONGEST, Ended, Server, server
from tiny import make_rows, tiny_model_folder, write_jsonl

LESS = "less/lora_r=2/lora_alpha=8/batch_size=8/epochs=1/dim=64"
OF_TIME: dict[str, tuple[str, ...]] = {
    "manifest.json": ("started", "finished", "timings", "seconds", "cost", "spent", "tokens_passed", "commit", "checksum"),
    "artifact.json": ("seconds", "spent", "checksum"),
    "trials.jsonl": ("seconds", "scoring", "commit"),
    "results.json": ("scoring_seconds", "train_seconds", "scoring_tokens_forward", "scoring_tokens_backward", "scoring_bytes"),
}  # fmt: skip
"""Fields, wherever they stand in such a file, that tell how long it took, how much was computed twice, and by which commit."""
PARTS_OF_TIME = {
    "summary.md": (r"## Time\n.*?(?=\n## )", r"(?<= tokens in )\S+", r"commit \S+"),
    "report.md": (r"## Cost\n.*?(?=\n## )", r"commit \S+"),
    "report.html": (
        r'<section id="cost".*?</section>',
        r"<dt>started</dt><dd[^>]*>[^<]*</dd>",
        r"commit</th><td>[^<]*",
        r"commit \S+",
    ),
}
"""Likewise, in a text."""
UNCOMPARED = (".lock", "events.jsonl")
"""An empty file, and a log of what happened when."""


@dataclass
class Whole:
    """What an undisturbed run has come to: its files, their sizes, operations, seconds and tokens."""

    files: dict[str, bytes]
    sizes: list[int]
    ended: Ended
    spent: dict[str, list[int]]


@dataclass
class Scene:
    """A model, inputs and a finished selection in `base`; every run lies in `base/place`, so that all have one path.

    Attributes:
        base: the folder.
        server: runs commands.
    """

    base: Path
    server: Server
    _whole: dict[str, Whole] = field(default_factory=dict)

    @classmethod
    def made(cls, base: Path) -> Scene:
        """With its inputs, which make every kind of note."""
        scene = cls(base, server())
        tiny_model_folder(base, name="model")
        pool = [{**row, "extra": at if at % 2 else f"t{at}"} for at, row in enumerate(make_rows(24, seed=1))]
        write_jsonl(base / "pool.jsonl", pool)
        too_long = {"prompt": "x" * 200, "completion": "y"}
        write_jsonl(base / "target.jsonl", [*make_rows(5, seed=2), too_long])
        write_jsonl(base / "test.jsonl", make_rows(4, seed=3))
        write_jsonl(base / "other.jsonl", [*make_rows(12, seed=7), too_long])
        argv = [*scene.command("select")[:-1], base / "origin"]
        ended = scene.server.run(*argv, below=base / "origin", imports=True, seconds=2 * LONGEST)
        assert ended.code == 0, ended.said
        return scene

    @property
    def place(self) -> Path:
        """Where runs lie, with what they share."""
        return self.base / "place"

    def command(self, name: str, *more: Any) -> list[Any]:
        """The arguments of a command; the last is its `--out`."""
        base = self.base
        on_cpu = ["--device", "cpu", "--quiet"]
        always = ["--dtype", "fp32", "--max-length", 64, "--lora-r", 2, *on_cpu]
        inputs = ["--model", base / "model", "--pool", base / "pool.jsonl", "--target", base / "target.jsonl", *always]
        chosen, path = ["--n", 6, "--shard-rows", 8], ["--base-size", 6, "--epochs", 1]
        test = ["--test", base / "test.jsonl"]
        words: list[Any] = {
            "select": ["select", *inputs, *path, *chosen],
            "less": ["select", *inputs, *chosen, "--method", f"{LESS}/store={self.place}/store"],
            "rds": ["select", *inputs, *chosen, "--method", "rds"],
            "from": ["select", "--from", base / "origin", "--n", 5, "--quiet"],
            "fit": ["fit", *inputs, *path],
            "score": ["score", "--from", base / "origin", "--pool", base / "other.jsonl", "--shard-rows", 4, *on_cpu],
            "train": ["train", base / "origin", *test, "--num-train-epochs", 2, *on_cpu],
            "compare": ["compare", *inputs, *path, *test, "--methods", "tov,rds,random", "--sizes", 4, "--seeds", 1,
                        "--train-rows", 8],
        }[name]  # fmt: skip
        return [*words, *more, "--out", self.place / "run"]

    def run(self, name: str, *more: Any, **fault: Any) -> Ended:
        """A command, in the place as it is."""
        return self.server.run(*self.command(name, *more), below=self.place, **fault)

    def clear(self) -> None:
        """An empty place."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()

    def whole(self, name: str) -> Whole:
        """What a command comes to, undisturbed."""
        if name not in self._whole:
            self.clear()
            ended = self.run(name)
            assert ended.code == 0, ended.said
            sizes = [file.stat().st_size for file in self.place.rglob("*") if file.is_file()]
            self._whole[name] = Whole(settled(self.place), sizes, ended, spent(self.place))
        return self._whole[name]

    def disturbed(self, name: str, strikes: Sequence[dict[str, Any]]) -> tuple[list[Ended], str]:
        """A command that is struck by one fault after another, and given once more: how each ended, and what is wrong."""
        self.whole(name)
        self.clear()
        struck = [self.run(name, **strike) for strike in strikes]
        wrong = [f"ended with {one.code}: {one.said[-2000:]}" for one in struck if not one.killed and one.code]
        last = self.run(name)
        if last.code:
            wrong.append(f"ended with {last.code} when given again: {last.said[-2000:]}")
        return struck, "; ".join(wrong) or self.differs(name)

    def settled(self) -> dict[str, bytes]:
        """The files of the place, without what tells of time."""
        return settled(self.place)

    def missing_from(self, files: dict[str, bytes]) -> list[str]:
        """The files that are not there, or not as they were."""
        found = self.settled()
        return [name for name, data in files.items() if found.get(name) != data]

    def shards(self) -> dict[str, int]:
        """The finished shards of the place, and when each was written."""
        return {str(file): file.stat().st_mtime_ns for file in sorted(self.place.rglob("rows-*.parquet"))}

    def drop(self, name: str) -> None:
        """Removes a folder of the place."""
        shutil.rmtree(self.place / name, ignore_errors=True)

    def differs(self, name: str) -> str:
        """In what the place differs from an undisturbed run; "" where it does not."""
        whole, found = self.whole(name), settled(self.place)
        faults = [f"{one} is there" for one in sorted(found.keys() - whole.files.keys())]
        faults += [f"{one} is missing" for one in sorted(whole.files.keys() - found.keys())]
        both = sorted(found.keys() & whole.files.keys())
        faults += [
            f"{one}: {first_difference(whole.files[one], found[one])}" for one in both if found[one] != whole.files[one]
        ]
        tokens = spent(self.place)
        faults += [
            f"{stage}: {tokens.get(stage)} tokens are told, undisturbed {count}"
            for stage, count in whole.spent.items()
            if any(few < many for few, many in zip(tokens.get(stage, [0, 0]), count, strict=True))
        ]
        return "; ".join([*faults, *broken_logs(self.place)])


def settled(folder: Path) -> dict[str, bytes]:
    """Path -> bytes of every file, without what tells of time."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in UNCOMPARED]
    # Others may be at work in what is shared: halves of files are swept from there an hour later.
    files = [file for file in files if not (file.name.endswith(".tmp") and "store" in file.parts)]
    return {str(file.relative_to(folder)): timeless(file.name, file.read_bytes()) for file in sorted(files)}


def timeless(name: str, data: bytes) -> bytes:
    """A file's bytes without what tells of time; a file that does not is left as it is."""
    if name in OF_TIME:
        values = data.splitlines() if name.endswith(".jsonl") else [data]
        return b"\n".join(json.dumps(_without(json.loads(one), OF_TIME[name])).encode() for one in values)
    for pattern in PARTS_OF_TIME.get(name, ()):
        data = re.sub(pattern, "", data.decode(), flags=re.DOTALL).encode()
    return data


def _without(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, dict):
        if isinstance(value.get("files"), dict):  # checksums of files that tell of time
            dated = (*OF_TIME, *PARTS_OF_TIME)
            made = {name: "" if name.rpartition("/")[2] in dated else one for name, one in value["files"].items()}
            value = {**value, "files": made}
        # A trial's `scoring` is what it cost; a manifest's is how it was done, and stays.
        return {name: _without(one, names) for name, one in value.items() if name not in names}
    return [_without(one, names) for one in value] if isinstance(value, list) else value


def spent(folder: Path) -> dict[str, list[int]]:
    """Tokens by run and stage, as the manifests tell them."""
    return {
        f"{file.parent.relative_to(folder)} {stage}": tokens
        for file in sorted(folder.rglob("manifest.json"))
        for stage, tokens in json.loads(file.read_bytes()).get("spent", {}).items()
    }


def broken_logs(folder: Path) -> list[str]:
    """Logs with a line that is no JSON."""
    faults = []
    for file in sorted(folder.rglob("events.jsonl")):
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            try:
                json.loads(line)
            except ValueError:
                faults.append(f"{file.relative_to(folder)}: line {number} is no JSON: {line[:80]!r}")
    return faults


def first_difference(was: bytes, found: bytes) -> str:
    """Where two files part."""
    at = next(
        (at for at, (one, two) in enumerate(zip(was, found, strict=False)) if one != two), min(len(was), len(found))
    )
    return f"from byte {at} {found[at : at + 60]!r}, undisturbed {was[at : at + 60]!r}"
