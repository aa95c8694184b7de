"""What a user's mistakes answer: never a traceback, always what was wrong, where, and what to do next.

Run with `-s` to read the messages.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import CHATML, make_rows, tiny_encoder_folder, tiny_model_folder, write_jsonl
from tov.cli.main import main
from tov.errors import StorageError, explain
from tov.runs.folder import Run
from tov.runs.manifest import Manifest

SMALL = [
    "--max-length",
    "96",
    "--epochs",
    "1",
    "--base-size",
    "8",
    "--lora-r",
    "2",
    "--shard-rows",
    "8",
    "--device",
    "cpu",
]
POOL, TARGET = make_rows(30), make_rows(6, seed=9)
SENTENCES = [{"tokens": [f"w{place}", "saw", "Rome"], "ner_tags": ["B-PER", "O", "B-LOC"]} for place in range(30)]
TEXTS = [{"text": f"text {place}", "label": "good" if place % 2 else "bad"} for place in range(30)]


def spoiled(place: int, **instead: Any) -> list[dict[str, Any]]:
    """The sentences, one of them with other columns."""
    return [*SENTENCES[:place], {**SENTENCES[place], **instead}, *SENTENCES[place + 1 :]]


@dataclass
class Bench:
    """A fresh folder with good input, in which one case spoils one thing."""

    folder: Path
    shared: Path
    mounts: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        write_jsonl(self / "pool.jsonl", POOL)
        write_jsonl(self / "target.jsonl", TARGET)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @property
    def model(self) -> Path:
        return self.shared / "tiny-model"

    def own_model(self) -> Path:
        return Path(shutil.copytree(self.model, self / "model"))

    def select(self, *more: str | Path, **instead: Any) -> list[str]:
        """A `tov select` that would work; `instead` replaces a flag's value, None leaves the flag out."""
        flags = {
            "model": self.model, "pool": self / "pool.jsonl", "target": self / "target.jsonl", "n": 6, "out": self / "run",
            **instead,
        }  # fmt: skip
        given = [str(part) for name, value in flags.items() if value is not None for part in (f"--{name}", value)]
        return ["select", *given, *SMALL, *map(str, more)]

    def labelled(self, pool: Any, *more: str | Path, target: Any = None, **instead: Any) -> list[str]:
        """A `tov select` of an encoder on a pool and a target: rows, or a file."""
        paths = {"pool": pool, "target": target or SENTENCES}
        for name, rows in paths.items():
            paths[name] = rows if isinstance(rows, Path) else write_jsonl(self / f"{name}.jsonl", rows)
        return self.select(*more, **{"model": self.shared / "tiny-encoder", **paths, **instead})

    def finished(self) -> Path:
        """A copy of a finished run, and its pool."""
        run = Path(shutil.copytree(self.shared / "run", self / "run"))
        facts = json.loads((run / "manifest.json").read_text())
        facts["inputs"]["pool"] = [str(self / "pool.jsonl")]
        (run / "manifest.json").write_text(json.dumps(facts))
        return run

    def of_model(self, run: Path, model: Path) -> None:
        """The run says that it was made with a model in another place."""
        facts = json.loads((run / "manifest.json").read_text())
        facts["model"]["name"] = str(model)
        (run / "manifest.json").write_text(json.dumps(facts))

    def reselect(self, run: Path, *more: str) -> list[str]:
        return ["select", "--from", str(run), "--n", "4", "--out", str(self / "again"), *more]

    def unfinished(self) -> Path:
        """A copy of a run that was killed in its scan."""
        run = self.finished()
        for name in ("selected.jsonl", "selected.parquet", "summary.md"):
            (run / name).unlink()
        facts = json.loads((run / "manifest.json").read_text())
        facts["scoring"]["complete"] = False
        (run / "manifest.json").write_text(json.dumps({**facts, "status": "running"}))
        sorted((run / "scores").iterdir())[-1].unlink()
        return run

    def raw(self, name: str, content: bytes) -> Path:
        (self / name).write_bytes(content)
        return self / name

    def yaml(self, text: str) -> list[str]:
        return ["select", str(self.raw("config.yaml", text.encode()))]

    def mount(self, name: str, options: str) -> Path:
        """A real small file system; skips where that is not allowed."""
        folder = self / name
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"mounting a small file system is not allowed here: {done.stderr.strip()}")
        self.mounts.append(folder)
        return folder


Make = Callable[[Bench], list[str]]
CASES: dict[str, tuple[Make, tuple[str, ...], int]] = {}


def bad(name: str, *words: str, code: int = 2) -> Callable[[Make], Make]:
    """A row of the table: a name, how to make it, words that the message must have, the exit code."""

    def add(make: Make) -> Make:
        assert name not in CASES
        CASES[name] = (make, words, code)
        return make

    return add


# The command


@bad("unknown command", "do: Run tov --help", "selcet", "did you mean 'select'?")
def _(b: Bench) -> list[str]:
    return ["selcet", *b.select()[1:]]


@bad("unknown flag", "error: ", "--modle", "--model", "do: Run tov select --help")
def _(b: Bench) -> list[str]:
    return ["select", "--modle", str(b.model)]


@bad("missing --target", "--target is missing")
def _(b: Bench) -> list[str]:
    return b.select(target=None)


@bad("missing --model of a method that reads text", "--model is missing", "tokenizer and chat template", "tov train")
def _(b: Bench) -> list[str]:
    return b.select(model=None, method="bm25")


@bad("value out of range", "--target-learning-rate-ratio", "-1", "greater than 0")
def _(b: Bench) -> list[str]:
    return b.select("--target-learning-rate-ratio", "-1")


@bad("not a number", "--n", "ten")
def _(b: Bench) -> list[str]:
    return b.select(n="ten")


@bad("n = 0", "--n", "0", "greater than or equal to 1")
def _(b: Bench) -> list[str]:
    return b.select(n=0)


@bad("wrong choice", "--path-variant", "zigzag", "interleaved", "parallel", "paired")
def _(b: Bench) -> list[str]:
    return b.select("--path-variant", "zigzag")


@bad("--columns without =", "--columns", "prompt", "OURS=YOURS")
def _(b: Bench) -> list[str]:
    return b.select("--columns", "prompt")


@bad("no such settings file", "config.yml", "Check the path")
def _(b: Bench) -> list[str]:
    return ["select", str(b / "config.yml")]


@bad("unknown key in YAML", "lerning_rate", "did you mean 'learning_rate'?")
def _(b: Bench) -> list[str]:
    return b.yaml("lerning_rate: 1e-4\n")


@bad("broken YAML", 'in "config.yaml", line 2')
def _(b: Bench) -> list[str]:
    return b.yaml("n: 3\npool: [a, b\n")


@bad("YAML that is a list", "config.yaml holds a list", "mapping of settings")
def _(b: Bench) -> list[str]:
    return b.yaml("- n\n- 3\n")


@bad("wrong kind in YAML", "--n", "many", "must be an integer.")
def _(b: Bench) -> list[str]:
    return b.yaml(f"n: many\nmodel: {b.model}\npool: p\ntarget: t\nout: o\n")


# Files


@bad("wrong path", "pool.jsnl", "did you mean", "pool.jsonl")
def _(b: Bench) -> list[str]:
    return b.select(pool=b / "pool.jsnl")


@bad("a glob that matches nothing", "*.parquet", "No file matches", "quote")
def _(b: Bench) -> list[str]:
    return b.select(pool=b / "*.parquet")


@bad("a folder without data", "holds no data file", ".jsonl")
def _(b: Bench) -> list[str]:
    (b / "empty").mkdir()
    return b.select(pool=b / "empty")


@bad("a folder of several formats", "one format a source")
def _(b: Bench) -> list[str]:
    write_jsonl(b / "mix" / "a.jsonl", POOL[:1])
    datasets.Dataset.from_list(POOL).to_parquet(b / "mix" / "b.parquet")
    return b.select(pool=b / "mix")


@bad("an unknown format", ".docx", ".jsonl", "do:")
def _(b: Bench) -> list[str]:
    return b.select(pool=b.raw("pool.docx", b"x"))


@bad("an empty file", "pool.jsonl is empty", "at least one row")
def _(b: Bench) -> list[str]:
    return b.select(pool=b.raw("pool.jsonl", b""))


@bad("a file of blank lines", "pool.jsonl", "no rows")
def _(b: Bench) -> list[str]:
    return b.select(pool=b.raw("pool.jsonl", b"\n\n\n"))


@bad("an empty table", "pool.parquet", "no rows")
def _(b: Bench) -> list[str]:
    datasets.Dataset.from_list(POOL).select([]).to_parquet(b / "pool.parquet")
    return b.select(pool=b / "pool.parquet")


@bad("a broken JSON line", "pool.jsonl:3", "broken JSON", "Correct or delete the line")
def _(b: Bench) -> list[str]:
    good = json.dumps(POOL[0])
    return b.select(pool=b.raw("pool.jsonl", f"{good}\n{good}\n{good[:-4]}\n{good}\n".encode()))


@bad("a JSON line that is a form feed", "pool.jsonl:2", "broken JSON", "x0c", "Correct or delete the line")
def _(b: Bench) -> list[str]:
    good = json.dumps(POOL[0])
    return b.select(pool=b.raw("pool.jsonl", f"{good}\n\x0c\n{good}\n".encode()))


@bad("a JSON line that is a list", "pool.jsonl:2", "list", "one JSON object a line")
def _(b: Bench) -> list[str]:
    good = json.dumps(POOL[0])
    return b.select(pool=b.raw("pool.jsonl", f'{good}\n["a", "b"]\n{good}\n'.encode()))


@bad("a broken JSON array", "pool.json:3", "column")
def _(b: Bench) -> list[str]:
    return b.select(
        pool=b.raw("pool.json", b'[\n{"prompt": "a", "completion": "b"},\n{"prompt": "a" "completion": "b"}\n]\n')
    )


@bad("an answer that is a number in one line", "pool.jsonl", "2", "completion", "must be text")
def _(b: Bench) -> list[str]:
    return b.select(pool=write_jsonl(b / "pool.jsonl", [POOL[0], {**POOL[1], "completion": 3}, *POOL[2:]]))


@bad("JSON that is not UTF-8", "pool.jsonl:2", "not UTF-8", "iconv")
def _(b: Bench) -> list[str]:
    good = json.dumps(POOL[0])
    return b.select(pool=b.raw("pool.jsonl", f"{good}\n".encode() + b'{"prompt": "caf\xe9", "completion": "x"}\n'))


@bad("a JSON array that is not UTF-8", "pool.json:3", "not UTF-8", "iconv")
def _(b: Bench) -> list[str]:
    text = b'[\n{"prompt": "a", "completion": "b"},\n{"prompt": "caf\xe9", "completion": "x"}\n]\n'
    return b.select(pool=b.raw("pool.json", text))


@bad("a JSON array of other things", "pool.json, row 2", "an int", "one JSON object a row")
def _(b: Bench) -> list[str]:
    return b.select(pool=b.raw("pool.json", b'[{"prompt": "a", "completion": "b"}, 3]'))


@bad("JSON with dates that breaks off", "pool.jsonl:2", "broken JSON")
def _(b: Bench) -> list[str]:
    return b.select(pool=b.raw("pool.jsonl", b'{"prompt": "a", "completion": "2024-01-31"}\n{"prompt": "a", "comp'))


@bad("CSV that is not UTF-8", "pool.csv:3", "not UTF-8", "iconv")
def _(b: Bench) -> list[str]:
    return b.select(pool=b.raw("pool.csv", b"prompt,completion\na,b\ncaf\xe9,x\n"))


@bad("CSV with too many cells in a line", "pool.csv", "line 3")
def _(b: Bench) -> list[str]:
    return b.select(pool=b.raw("pool.csv", b"prompt,completion\na,b\na,b,c,d\n"))


@bad("text called .parquet", "pool.parquet", "cannot be read", "suffix")
def _(b: Bench) -> list[str]:
    return b.select(pool=b.raw("pool.parquet", b"not a table at all"))


@bad("a cut .gz file", "pool.jsonl.gz", "cannot be read")
def _(b: Bench) -> list[str]:
    import gzip

    return b.select(pool=b.raw("pool.jsonl.gz", gzip.compress((b / "pool.jsonl").read_bytes())[:-40]))


@bad("a DatasetDict without its split", "splits", "splits:train", "no split")
def _(b: Bench) -> list[str]:
    rows = datasets.Dataset.from_list(POOL)
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(b / "splits")
    return b.select(pool=b / "splits")


@bad("a DatasetDict's split that is not there", "'validation'", "splits:train")
def _(b: Bench) -> list[str]:
    rows = datasets.Dataset.from_list(POOL)
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(b / "splits")
    return b.select(pool=f"{b / 'splits'}:validation")


@bad("a save_to_disk folder that lost its data", "saved")
def _(b: Bench) -> list[str]:
    datasets.Dataset.from_list(POOL).save_to_disk(b / "saved")
    next((b / "saved").glob("*.arrow")).unlink()
    return b.select(pool=b / "saved")


@bad("a Hub data set while offline", "nobody/nothing", "Hub", "Check the path")
def _(b: Bench) -> list[str]:
    return b.select(pool="nobody/nothing")


# Rows


@bad("columns that are no layout", "question, reply", "prompt + completion", "--columns prompt=YOURS")
def _(b: Bench) -> list[str]:
    return b.select(pool=write_jsonl(b / "pool.jsonl", [{"question": "a", "reply": "b"}]))


@bad("wrong column in --columns", "questoin", "did you mean 'question'?")
def _(b: Bench) -> list[str]:
    rows = [{"question": row["prompt"], "answer": row["completion"]} for row in POOL]
    write_jsonl(b / "target.jsonl", rows[:6])
    return b.select("--columns", "prompt=questoin", "completion=answer", pool=write_jsonl(b / "pool.jsonl", rows))


def turn(role: Any, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@bad("unknown role", "pool.jsonl, row 2", "'robot'", "assistant", "--on-bad-row skip")
def _(b: Bench) -> list[str]:
    rows = [{"messages": [turn("user", "a"), turn(role, "b"), turn("assistant", "c")]} for role in ("user", "robot")]
    return b.select(pool=write_jsonl(b / "pool.jsonl", rows))


@bad("missing content", "pool.jsonl, row 2", "turn 2", "content is missing")
def _(b: Bench) -> list[str]:
    rows = [{"messages": [turn("user", "a"), turn("assistant", text)]} for text in ("b", None)]
    return b.select(pool=write_jsonl(b / "pool.jsonl", rows))


@bad("a conversation without an answer", "target.jsonl, row 1", "no assistant turn")
def _(b: Bench) -> list[str]:
    return b.select(target=write_jsonl(b / "target.jsonl", [{"messages": [turn("user", "a")]}]))


@bad("a target row that is no conversation, under --on-bad-row skip", "target.jsonl, row 1", "target")
def _(b: Bench) -> list[str]:
    write_jsonl(b / "target.jsonl", [{"messages": [turn("user", "a")]}])
    return b.select("--on-bad-row", "skip")


@bad("a pool of nothing but unreadable rows", "0 usable rows", "9 unreadable", "row_id 0", "no assistant turn")
def _(b: Bench) -> list[str]:
    write_jsonl(b / "pool.jsonl", [{"messages": [turn("user", "a")]}] * 9)
    return b.select("--on-bad-row", "skip")


@bad("empty answers in the target", "None of the 6 target rows has a scored token", "answers are not empty")
def _(b: Bench) -> list[str]:
    return b.select(target=write_jsonl(b / "target.jsonl", [{**row, "completion": ""} for row in TARGET]))


@bad("half a character in a text", "pool.jsonl:2", "surrogate")
def _(b: Bench) -> list[str]:
    good = json.dumps(POOL[0])
    return b.select(
        pool=b.raw("pool.jsonl", f'{good}\n{{"prompt": "a \\ud83d", "completion": "\\ude00 b"}}\n'.encode()), n=1
    )


@bad("a pool that has our columns", "tov_score", "Rename or drop")
def _(b: Bench) -> list[str]:
    return b.select(pool=write_jsonl(b / "pool.jsonl", [{**row, "tov_score": 1.0} for row in POOL]))


@bad("more rows wanted than there are", "--n asks for 31", "30 usable rows", "Lower --n")
def _(b: Bench) -> list[str]:
    return b.select(n=31)


@bad("the target is the pool", "0 usable rows", "30 prompt in target", "--no-decontaminate")
def _(b: Bench) -> list[str]:
    return b.select(target=b / "pool.jsonl")


@bad("--max-length cuts every answer", "None of the 6 target rows", "Raise --max-length")
def _(b: Bench) -> list[str]:
    return b.select("--max-length", "4")


@bad("--max-length is more than the model takes", "--max-length 99999", "2048", "do:")
def _(b: Bench) -> list[str]:
    return b.select("--max-length", "99999")


# Model and device


@bad("no such model", "no-such-model", "smollm2-135m", "Check the name")
def _(b: Bench) -> list[str]:
    return b.select(model="nobody/no-such-model")


@bad("a mistyped alias", "smollm2-135", "did you mean 'smollm2-135m'?")
def _(b: Bench) -> list[str]:
    return b.select(model="smollm2-135")


@bad("a model folder without config.json", "config.json", "save_pretrained")
def _(b: Bench) -> list[str]:
    (b / "folder").mkdir()
    return b.select(model=b / "folder")


@bad("no such .gguf file", "model.gguf", "Check the path")
def _(b: Bench) -> list[str]:
    return b.select(model=b / "model.gguf")


@bad("a .gguf file that is none", "model.gguf", "GGUF")
def _(b: Bench) -> list[str]:
    return b.select(model=b.raw("model.gguf", b"GGUF but not really"))


@bad("a model without its tokenizer", "tokenizer")
def _(b: Bench) -> list[str]:
    model = b.own_model()
    for file in model.glob("*token*"):
        file.unlink()
    return b.select(model=model)


@bad("cut model weights", "cannot be loaded")
def _(b: Bench) -> list[str]:
    weights = b.own_model() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return b.select(model=weights.parent)


@bad("a model whose weights are not numbers", "not a finite number", code=1)
def _(b: Bench) -> list[str]:
    model = b.own_model()
    state = load_file(model / "model.safetensors")
    state["model.norm.weight"] = torch.full_like(state["model.norm.weight"], float("nan"))
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    return b.select(model=model)


@bad("a chat template that takes no system turn", "System role not supported", "system, user, assistant", "do:")
def _(b: Bench) -> list[str]:
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    model = tiny_model_folder(b.folder, chat_template=refuse + CHATML, name="gemma-like")
    rows = [{"messages": [turn("system", "s"), turn("user", f"q{at}"), turn("assistant", "a")]} for at in range(20)]
    return b.select(model=model, target=write_jsonl(b / "target.jsonl", rows))


@bad("a broken chat template", "chat template", "do:")
def _(b: Bench) -> list[str]:
    return b.select(
        model=tiny_model_folder(b.folder, chat_template="{% for message in messages %}{{ message", name="broken")
    )


@bad("a chat template that hides the answer", "cannot tell which part", "q9.0", "{% generation %}")
def _(b: Bench) -> list[str]:
    hidden = CHATML.replace(
        "{% for message in messages %}", "{% for message in messages if message['role'] == 'user' %}"
    )
    return b.select(model=tiny_model_folder(b.folder, chat_template=hidden, name="hopeless"))


@bad("unknown module in --lora-target-modules", "--lora-target-modules", "w_pack", "all-linear")
def _(b: Bench) -> list[str]:
    return b.select("--lora-target-modules", "w_pack")


@bad("a device that is not here", "'cuda", "cpu")
def _(b: Bench) -> list[str]:
    return b.select("--device", f"cuda:{torch.cuda.device_count()}")


@bad("a model path that is not there", "no folder", "nowhere", "Check the name")
def _(b: Bench) -> list[str]:
    return b.select(model=b / "nowhere")


@bad("an unknown device", "'tpu9'", "cpu, cuda", "do:")
def _(b: Bench) -> list[str]:
    return b.select("--device", "tpu9")


# Run folders


@bad("--out holds another run", "differs", "learning_rate: 0.0005 -> 0.001", "--force", "select --from")
def _(b: Bench) -> list[str]:
    b.finished()
    return b.select("--learning-rate", "0.001")


@bad("--out is a folder of other things", "holds no run", "Choose another --out")
def _(b: Bench) -> list[str]:
    return b.select(out=b.folder)


@bad("--out is a folder of other things, with --force", "--force does not delete it")
def _(b: Bench) -> list[str]:
    return b.select("--force", out=b.folder)


@bad("--out is a file", "pool.jsonl", "--out")
def _(b: Bench) -> list[str]:
    return b.select(out=b / "pool.jsonl")


@bad("--out is below a file", "pool.jsonl", "--out")
def _(b: Bench) -> list[str]:
    return b.select(out=b / "pool.jsonl" / "run")


@bad("--out on a read-only disk", "ead-only", "--out")
def _(b: Bench) -> list[str]:
    return b.select(out=b.mount("frozen", "ro,size=64k") / "run")


@bad("--from names no run", "holds no run", "manifest.json")
def _(b: Bench) -> list[str]:
    return b.reselect(b.folder)


@bad("--from together with --model", "--model cannot take effect with --from", "--rule")
def _(b: Bench) -> list[str]:
    return b.reselect(b.finished(), "--model", str(b.model))


@bad("--from a run that is not finished", "no complete scores yet", "give its command again")
def _(b: Bench) -> list[str]:
    return b.reselect(b.unfinished())


@bad("rows were added to the pool since the run", "31", "30", "Put the pool's files back")
def _(b: Bench) -> list[str]:
    run = b.finished()
    write_jsonl(b / "pool.jsonl", [*POOL, *make_rows(1, seed=70)])
    return b.reselect(run)


@bad("rows of the pool were changed since the run", "pool", "Put the pool's files back")
def _(b: Bench) -> list[str]:
    run = b.finished()
    write_jsonl(b / "pool.jsonl", POOL[::-1])
    return b.reselect(run)


@bad("the pool is gone since the run", "pool.jsonl", "Check the path")
def _(b: Bench) -> list[str]:
    run = b.finished()
    (b / "pool.jsonl").unlink()
    return b.reselect(run)


@bad("more rows wanted than were scored", "31", "30", "Lower --n")
def _(b: Bench) -> list[str]:
    return ["select", "--from", str(b.finished()), "--n", "31", "--out", str(b / "again")]


@bad("a cut score shard, reselecting", "rows-000000000008.parquet", "do:")
def _(b: Bench) -> list[str]:
    shard = b.finished() / "scores" / "rows-000000000008.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    return b.reselect(b / "run")


@bad("a cut score shard, going on", "rows-000000000008.parquet", "do:")
def _(b: Bench) -> list[str]:
    shard = b.unfinished() / "scores" / "rows-000000000008.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    return b.select()


@bad("a score shard was deleted", "scores", "row_id 8 to 15", "do:")
def _(b: Bench) -> list[str]:
    (b.finished() / "scores" / "rows-000000000008.parquet").unlink()
    return b.reselect(b / "run")


@bad("the last score shard was deleted", "scores", "row_id 24 to 29", "do:")
def _(b: Bench) -> list[str]:
    (b.finished() / "scores" / "rows-000000000024.parquet").unlink()
    return b.reselect(b / "run")


@bad("--force would delete the scores of a selection", "--force would delete", "Choose another --out")
def _(b: Bench) -> list[str]:
    assert run_inside(b.reselect(b.finished())) == 0
    return ["select", "--from", str(b / "again"), "--n", "3", "--out", str(b / "run"), "--force"]


@bad("a score shard of another run", "rows-000000000008.parquet", "belongs to another run")
def _(b: Bench) -> list[str]:
    shard = b.unfinished() / "scores" / "rows-000000000008.parquet"
    pq.write_table(pq.read_table(shard).replace_schema_metadata({b"tov_fingerprint": b"0"}), shard)
    return b.select()


@bad("a cut adapter", "epoch-1/target", "changed or cut", "do:")
def _(b: Bench) -> list[str]:
    file = b.finished() / "path" / "epoch-1" / "target" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])
    return ["score", "--from", str(b / "run"), "--pool", str(b / "pool.jsonl"), "--out", str(b / "scored")]


@bad("an adapter that was changed", "adapter_model.safetensors", "do:")
def _(b: Bench) -> list[str]:
    file = b.finished() / "path" / "epoch-1" / "target" / "adapter_model.safetensors"
    save_file({name: 2 * value for name, value in load_file(file).items()}, file)
    return ["score", "--from", str(b / "run"), "--pool", str(b / "pool.jsonl"), "--out", str(b / "scored")]


@bad("a broken manifest", "manifest.json", "do:")
def _(b: Bench) -> list[str]:
    file = b.finished() / "manifest.json"
    file.write_text(file.read_text()[:-30])
    return b.reselect(b / "run")


@bad("the model changed since the path was fitted", "no longer the one", "Put the old files back")
def _(b: Bench) -> list[str]:
    run, model = b.finished(), tiny_model_folder(b.folder, seed=8, name="other")
    b.of_model(run, model)
    return ["score", "--from", str(run), "--pool", str(b / "pool.jsonl"), "--out", str(b / "scored")]


@bad("the model is gone since the path was fitted", "gone", "Check the name")
def _(b: Bench) -> list[str]:
    b.of_model(b.finished(), b / "gone")
    return ["score", "--from", str(b / "run"), "--pool", str(b / "pool.jsonl"), "--out", str(b / "scored")]


def full_disk(kilobytes: int, *flags: str) -> Make:
    return lambda b: b.select(*flags, out=b.mount("small", f"size={kilobytes}k") / "run")


for moment, kilobytes, flags in (
    ("at the start", 4, ()), ("in the fit", 40, ("--lora-r", "64")), ("in the scan", 100, ("--shard-rows", "1")),
    ("while results are written", 88, ()),
):  # fmt: skip
    bad(f"the disk is full {moment}", "The disk is full", "give the same command again", code=1)(
        full_disk(kilobytes, *flags)
    )


# Named entities and labelled texts


@bad("an empty sentence", "pool.jsonl, row 3: the row has no words", "--on-bad-row skip")
def _(b: Bench) -> list[str]:
    return b.labelled(spoiled(2, tokens=[], ner_tags=[]))


@bad("more tokens than tags", "pool.jsonl, row 2: there are 3 tokens, but 2 ner_tags")
def _(b: Bench) -> list[str]:
    return b.labelled(spoiled(1, ner_tags=["O", "O"]))


@bad("I- without B-", "row 4: word 1 'w3' has I-PER after O", "an entity starts with B-", "--repair-bio")
def _(b: Bench) -> list[str]:
    return b.labelled(spoiled(3, ner_tags=["I-PER", "O", "B-LOC"]))


@bad("BIOES tags", "word 1 'w0' has the tag 'S-PER'", "must have O, B-TYPE or I-TYPE", "--repair-bio")
def _(b: Bench) -> list[str]:
    return b.labelled(spoiled(0, ner_tags=["S-PER", "O", "B-LOC"]))


@bad("a tag that is no BIO tag", "has the tag 'person'", "--label-map")
def _(b: Bench) -> list[str]:
    return b.labelled(spoiled(0, ner_tags=["person", "O", "O"]))


@bad("tag ids without names", "has the tag '3'", "--label-map", "3: B-PER")
def _(b: Bench) -> list[str]:
    return b.labelled([{**row, "ner_tags": [3, 0, 1]} for row in SENTENCES])


@bad(
    "an unknown entity type in the pool",
    "only in the pool: MISC",
    "target: LOC, PER",
    "LOC, MISC, PER",
    "--label-map",
    "MISC: O",
)
def _(b: Bench) -> list[str]:
    return b.labelled(spoiled(5, ner_tags=["B-MISC", "O", "B-LOC"]))


@bad(
    "an entity type that the pool lacks",
    "only in the target: EVENT",
    "target: EVENT, LOC, PER",
    "pool: LOC, PER",
    "EVENT: EVENT",
)
def _(b: Bench) -> list[str]:
    return b.labelled(SENTENCES, target=spoiled(5, ner_tags=["B-EVENT", "O", "B-LOC"]))


@bad("two label sets", "only in the target: LOC, PER; only in the pool: location, person", "location: OURS")
def _(b: Bench) -> list[str]:
    return b.labelled([{**row, "ner_tags": ["B-person", "O", "B-location"]} for row in SENTENCES])


@bad("a label map that is not there", "no label map", "Check the path")
def _(b: Bench) -> list[str]:
    return b.labelled(SENTENCES, "--label-map", b / "map.yaml")


@bad("a label map that is a list", "map.yaml holds a list", "person: PER")
def _(b: Bench) -> list[str]:
    return b.labelled(SENTENCES, "--label-map", b.raw("map.yaml", b"- PER\n"))


@bad(
    "a label map with an empty entry",
    "--label-map: The label map has nothing for 'MISC'",
    "'MISC: O' to drop an entity",
)
def _(b: Bench) -> list[str]:
    return b.labelled(SENTENCES, "--label-map", b.raw("map.yaml", b"PER: PERSON\nMISC:\n"))


@bad("a label map with an empty entry for a source", "nothing for '0'", "No class can be dropped")
def _(b: Bench) -> list[str]:
    return b.labelled(TEXTS, "--label-map", b.raw("map.yaml", b"pool:\n  '0': ' '\n"), target=TEXTS)


@bad("an empty entry in a label map of the settings", "nothing for 'MISC'")
def _(b: Bench) -> list[str]:
    return b.yaml(f"n: 3\nmodel: {b.model}\npool: p\ntarget: t\nout: o\nlabel_map: {{MISC: }}\n")


@bad("a number to the base 60", "n got '2:16', but must be an integer")
def _(b: Bench) -> list[str]:
    return b.yaml(f"n: 2:16\nmodel: {b.model}\npool: p\ntarget: t\nout: o\n")


@bad("no entity anywhere", "No row of target or pool has an entity", "--columns")
def _(b: Bench) -> list[str]:
    nothing = [{**row, "ner_tags": ["O"] * 3} for row in SENTENCES]
    return b.labelled(nothing, target=nothing)


@bad("a CoNLL line of one column", "pool.conll:2: the line has one column, 'Rome'", "its tag in the last column")
def _(b: Bench) -> list[str]:
    return b.labelled(b.raw("pool.conll", b"Ada B-PER\nRome\n"))


@bad("a CoNLL file that is not UTF-8", "pool.conll:1: byte 0xe9", "iconv")
def _(b: Bench) -> list[str]:
    return b.labelled(b.raw("pool.conll", b"R\xe9my B-PER\n"))


@bad("a text file that is no CoNLL file", "no CoNLL file", "a line of JSON")
def _(b: Bench) -> list[str]:
    return b.labelled(b.raw("pool.txt", b"Just a text.\n"))


@bad("spans beyond the text", "entity 1 is at 0:99, but the text has 4 characters")
def _(b: Bench) -> list[str]:
    return b.labelled([{"text": "Rome", "entities": [{"start": 0, "end": 99, "label": "LOC"}]}])


@bad("spans that overlap", "entities at 0:4 and 2:5 overlap")
def _(b: Bench) -> list[str]:
    spans = [{"start": 0, "end": 4, "label": "LOC"}, {"start": 2, "end": 5, "label": "PER"}]
    return b.labelled([{"text": "Rome!", "entities": spans}])


@bad("sentences for a target of conversations", "no layout that tov knows for instruction", "they are one for ner")
def _(b: Bench) -> list[str]:
    return b.select(pool=write_jsonl(b / "pool.jsonl", SENTENCES))


@bad("a task that is none", "--task", "instruction", "ner", "classification")
def _(b: Bench) -> list[str]:
    return b.labelled(SENTENCES, "--task", "pos")


@bad("an empty text", "pool.jsonl, row 1: the text is empty")
def _(b: Bench) -> list[str]:
    return b.labelled([{"text": " ", "label": "good"}, *TEXTS], target=TEXTS)


@bad("a number for a label", "label holds a float", "text or an id")
def _(b: Bench) -> list[str]:
    return b.labelled([{"text": "a", "label": 0.5}], target=TEXTS)


@bad("one label only", "All rows have the one label good")
def _(b: Bench) -> list[str]:
    rows = [{**row, "label": "good"} for row in TEXTS]
    return b.labelled(rows, target=rows)


@bad("a label that the target lacks", "only in the pool: ugly", "target: bad, good", "ugly: ugly")
def _(b: Bench) -> list[str]:
    return b.labelled([{"text": "a", "label": "ugly"}, *TEXTS], target=TEXTS)


@bad("more tokens than the encoder takes", "--max-length 96 is more than", "at most 64")
def _(b: Bench) -> list[str]:
    tiny_encoder_folder(b.folder, name="short", max_position_embeddings=64)
    return b.labelled(SENTENCES[:20], target=SENTENCES[20:], model=b / "short")


@bad("a new pool with labels that the path does not know", "labels that the path was not fitted with: MISC", "LOC, PER")
def _(b: Bench) -> list[str]:
    assert run_inside(b.labelled(SENTENCES[:20], "--no-decontaminate", target=SENTENCES[20:])) == 0
    new = write_jsonl(b / "new.jsonl", spoiled(0, ner_tags=["B-MISC", "O", "O"]))
    return ["score", "--from", str(b / "run"), "--pool", str(new), "--out", str(b / "scored")]


# Comparing and training


def compare(b: Bench, *more: str | Path, **instead: Any) -> list[str]:
    """A `tov compare` that would work."""
    write_jsonl(b / "test.jsonl", make_rows(4, seed=11))
    flags = {"test": b / "test.jsonl", "sizes": 6, "seeds": 1, "train-rows": 16, "n": None, **instead}
    return ["compare", *b.select(*more, **flags)[1:]]


@bad("compare without a test", "No test", "--test-rows")
def _(b: Bench) -> list[str]:
    return compare(b, test=None)


@bad("compare an unknown method", "there is no method 'les'", "allowed: tov", "random")
def _(b: Bench) -> list[str]:
    return compare(b, methods="tov,les")


@bad(
    "select by an unknown method",
    "--method got 'les': there is no method 'les' (did you mean 'less'?)",
    "allowed: tov, less",
)
def _(b: Bench) -> list[str]:
    return b.select(method="les")


@bad("a setting of tov's with another method", "--base-size has no effect with --method dsir", "Leave it out")
def _(b: Bench) -> list[str]:
    return b.select(method="dsir")


@bad("a wrong value in a method", "--method got 'less/dim=0': dim got 0", "greater than or equal to 1")
def _(b: Bench) -> list[str]:
    return b.select(method="less/dim=0")


@bad(
    "a rule that a method has no numbers for",
    "round-robin needs a score for each target row",
    "tov has only one",
    "allowed: round-robin with less",
)
def _(b: Bench) -> list[str]:
    return b.select(rule="round-robin")


@bad(
    "caps that leave too few rows",
    "--source-cap allows 3 rows (pool 3 of 30), but --n asks for 6",
    "Raise --source-cap",
)
def _(b: Bench) -> list[str]:
    return b.select("--source-cap", "0.5")


@bad("a cap for a source that is not there", "no source 'web'", "allowed: pool")
def _(b: Bench) -> list[str]:
    return b.select("--source-cap", "web=0.5")


@bad("an option that cannot take effect", "'abs' is no option of random")
def _(b: Bench) -> list[str]:
    return compare(b, methods="tov,random/abs")


@bad(
    "a wrong value in a variant",
    "--methods got 'tov/target_learning_rate_ratio=-1': target_learning_rate_ratio got -1",
    "greater than 0",
)
def _(b: Bench) -> list[str]:
    return compare(b, methods="tov/target_learning_rate_ratio=-1")


@bad("compare at a size of one row", "--sizes got", "must be sizes of at least 2 rows")
def _(b: Bench) -> list[str]:
    return compare(b, sizes=1)


@bad("compare more rows than the pool has", "--sizes asks for 600", "30 usable rows")
def _(b: Bench) -> list[str]:
    return compare(b, sizes=600)


@bad("a test too large for the target", "--test-rows", "The target's 6 rows are too few")
def _(b: Bench) -> list[str]:
    return compare(b, **{"test": None, "test-rows": 60})


@bad("a grid with an unset variable", "uses ${TOV_NOWHERE}", "TOV_NOWHERE=VALUE tov compare")
def _(b: Bench) -> list[str]:
    grid = b.raw("grid.yaml", b"experiments: {A: {target: '${TOV_NOWHERE}/a.jsonl'}}")
    return ["compare", str(grid), "--out", str(b / "out")]


@bad("--only of an unknown experiment", "no such experiment", "did you mean 'NER-E1'?")
def _(b: Bench) -> list[str]:
    grid = b.raw("grid.yaml", b"experiments: {NER-E1: {target: a.jsonl}}")
    return ["compare", str(grid), "--only", "NER-E", "--out", str(b / "out")]


@bad("train from what is no run", "holds no run", "Name the --out of an earlier select")
def _(b: Bench) -> list[str]:
    return ["train", str(b / "nothing"), "--out", str(b / "model")]


@bad("train from a run that is not finished", "holds no chosen rows")
def _(b: Bench) -> list[str]:
    return ["train", "--from", str(b.unfinished()), "--out", str(b / "model")]


# Running them


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a finished run that cases copy."""
    folder = tmp_path_factory.mktemp("shared")
    tiny_model_folder(folder)
    tiny_encoder_folder(folder)
    bench = Bench(tmp_path_factory.mktemp("good"), folder)
    assert run_inside(bench.select()) == 0, "good input was refused: no case below means anything"
    shutil.copytree(bench / "run", folder / "run")
    return folder


@pytest.fixture
def bench(tmp_path: Path, shared: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, shared)
    yield made
    for folder in made.mounts:
        subprocess.run(["umount", str(folder)], check=True)


def run_inside(args: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(args)
    return int(ended.value.code or 0)


def check(name: str, code: int, text: str) -> None:
    _, words, wanted = CASES[name]
    print(f"\n--- {name} (exit code {code})\n{text.strip()}")
    assert "Traceback" not in text, f"{name}: the user sees a traceback"
    assert "Value error" not in text, f"{name}: the user sees a library's words"
    assert text.count("  do: ") == 1, f"{name}: one thing to do is needed, and enough"
    missing = [word for word in words if word not in text]
    assert not missing, f"{name}: the message lacks {missing}; it says:\n{text}"
    assert code == wanted, f"{name}: exit code {code}, should be {wanted}"


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_answered(name: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    args = CASES[name][0](bench)
    capsys.readouterr()
    try:
        code = run_inside(args)
    except Exception as error:
        raise AssertionError(
            f"{name}: the user sees a traceback that ends in {type(error).__name__}: {error}"
        ) from error
    said = capsys.readouterr()
    assert "selected.jsonl" not in said.out, "bad input was taken for good"
    check(name, code, said.err)
    with capsys.disabled():
        if sys.stdout.isatty() or os.environ.get("TOV_SHOW_MESSAGES"):
            print(f"\n--- {name} (exit code {code})\n{said.err.strip()}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrong path", "unknown key in YAML", "a broken JSON line", "--out holds another run"])
def test_bad_input_through_the_real_command(name: str, bench: Bench) -> None:
    args = CASES[name][0](bench)
    done = subprocess.run([sys.executable, "-m", "tov", *args], capture_output=True, text=True, timeout=120)
    assert done.stdout == "", "messages belong on stderr: stdout is for results"
    check(name, done.returncode, done.stderr)


def test_a_target_row_cannot_be_skipped_and_is_not_advised_to_be(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(bench / "target.jsonl", [{"messages": [turn("user", "a")]}])
    assert run_inside(bench.select()) == 2
    assert "--on-bad-row" not in capsys.readouterr().err, "--bad-rows is for the pool"


def test_what_went_wrong_is_said_even_if_it_cannot_be_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, Manifest(command="select", started="now", identity={}))

    def full(**facts: Any) -> None:
        raise StorageError("The disk is full.", fix="Free some.")

    monkeypatch.setattr(run, "note", full)
    with pytest.raises(KeyError, match="first"), run.stage("fit"):
        raise KeyError("the first error")


@pytest.mark.parametrize(("number", "code"), [(errno.EROFS, 2), (errno.EACCES, 2), (errno.EIO, 1), (errno.ENOENT, 1)])
def test_what_the_operating_system_says_is_a_sentence(number: int, code: int) -> None:
    explained = explain(OSError(number, os.strerror(number), "some/file"))
    assert explained is not None
    assert "some/file" in explained[0]
    assert "do:" in explained[0]
    assert explained[1] == code


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 60


def test_a_full_disk_is_survived(bench: Bench) -> None:
    """After more room is made, the same command goes on and ends as it would have."""
    small = bench.mount("small", "size=60k")
    args = bench.select(out=small / "run")
    assert run_inside(args) == 1, "60 kB should be too little for a run"
    subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
    assert run_inside(args) == 0, "with room on the disk the same command must go on"
    for name in ("selected.jsonl", "scores/rows-000000000024.parquet"):
        assert (small / "run" / name).read_bytes() == (bench.shared / "run" / name).read_bytes(), (
            f"{name} differs after a full disk"
        )
