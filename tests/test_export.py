"""What is exported is what was scored: the real trainers that are installed read the files as they are, and learn our masks."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoTokenizer

import tov
from commands import run_commands
from tiny import make_rows, tiny_encoder_folder, tiny_model_folder, tiny_tokenizer, write_jsonl
from tov.data.rows import Layout
from tov.tasks import TASKS, all_layouts
from tov.text.chat import PLAIN_TEMPLATE
from tov.trainers import TRAINERS
from tov.trainers.base import filled
from tov.trainers.card import bare
from tov.trainers.rows import read_chosen
from tov.verbs.training_file import open_choice, our_columns

IGNORED = -100
Rows = Sequence[Mapping[str, Any]]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def tool(name: str, argument: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {argument: {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": "does it", "parameters": schema}}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": "c1", "function": {"name": name, "arguments": arguments}}


def turns(*messages: dict[str, Any], **beside: Any) -> dict[str, Any]:
    return {"messages": list(messages), **beside}


RESULT = {"role": "tool", "content": "4 C", "tool_call_id": "c1"}
SEVERAL = [
    *(
        turns({"role": "system", "content": "Be brief."}, user(f"q{at}"), says(f"one {at}"), user("more"), says("two"))
        for at in range(4)
    ),
    turns(user("q"), says("hm", weight=0), user("r"), says("yes")),
    turns(user("p"), says("yes"), user("r"), says("hm", weight=0)),
    turns(user("o"), says("first"), user("r"), says("hm", weight=0), user("r"), says("last")),
]
"""The last learns two answers and not the one between."""
TOOLS = [
    turns(
        user("w?"),
        says("", tool_calls=[call("weather", city="Oslo")]),
        RESULT,
        says("Four."),
        tools=[tool("weather", "city")],
    ),
    turns(user("a?"), says("", tool_calls=[call("add", x=None, y=2)]), RESULT, says("4."), tools=[tool("add", "x")]),
    turns(user("hi"), says("ho", reasoning_content="hmm")),
    turns(
        user("l?"),
        says("Look:", tool_calls=[call("weather", city="Bonn")]),
        RESULT,
        says("4."),
        tools=[tool("weather", "city")],
    ),
]
"""The last says something beside a call."""
FORMS = [
    {"instruction": "Say", "input": "it", "output": "it", "history": [["a", "b"]]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"prompt": "q", "completion": "answer", "id": 7},
    turns(user("u"), says("v")),
]
PAIRS = [{"prompt": f"q{at}", "chosen": f"good {at}", "rejected": "bad"} for at in range(4)]
TEXT = [{"text": f"some text {at}"} for at in range(4)]
WORDS = [{"text": f"Ann lives in Oslo {at}", "entities": [[0, 3, "PER"], [13, 17, "LOC"]], "id": at} for at in range(4)]
LABELLED = [{"text": f"text {at}", "label": "ab"[at % 2]} for at in range(4)]
KINDS: dict[str, tuple[str, Rows]] = {
    "several": ("plain", SEVERAL), "tools": ("plain", TOOLS), "single": ("chatml", make_rows(6)), "pairs": ("chatml", PAIRS),
    "text": ("chatml", TEXT), "words": ("encoder", WORDS), "labelled": ("encoder", LABELLED),
}  # fmt: skip


@dataclass
class Runs:
    """Selections of all rows of a pool, made when they are asked for."""

    folder: Path
    models: Mapping[str, str]
    made: dict[str, Any] = field(default_factory=dict)

    def of(self, name: str) -> Any:
        """The selection of a kind."""
        if name not in self.made:
            model, rows = KINDS[name]
            self.made[name] = self.select(name, model, write_jsonl(self.folder / f"{name}.jsonl", rows), rows)
        return self.made[name]

    def select(self, name: str, model: str, pool: Any, rows: Rows, **more: Any) -> Any:
        return tov.select(
            model=self.models[model], pool=pool, target=list(rows[:3]), n=more.pop("n", len(rows)), method="random",
            decontaminate=False, max_length=128 if model == "encoder" else 600, lora_r=2, device="cpu", quiet=True,
            out=self.folder / name, **more,
        )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("export")
    models = {
        "chatml": tiny_model_folder(folder), "plain": tiny_model_folder(folder, name="plain", chat_template=None),
        "encoder": tiny_encoder_folder(folder),
    }  # fmt: skip
    return Runs(folder, {name: str(model) for name, model in models.items()})


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def scored(picked: Any, rows: Rows, layout: str) -> dict[int, tuple[list[int], list[int]]]:
    """row_id -> the tokens and labels that tov makes of a row of the pool."""
    model = picked.manifest.model
    task = TASKS[model.task]
    (found,) = (one for one in all_layouts() if one.name == layout)
    assert isinstance(found, Layout)
    tokenizer = task.open_tokenizer("", lambda **more: AutoTokenizer.from_pretrained(model.name, **more))
    from tov.data.labels import Reading

    read = [found.convert({**dict.fromkeys(found.columns), **row}, Reading()) for row in rows]
    encoded = task.encode(tokenizer, read, max_length=model.max_length, labels=tuple(model.labels))
    return {at: tuple(part.tolist() for part in encoded.row(at)) for at in range(len(rows))}  # type: ignore[misc]


def run_script(folder: Path, *words: str) -> None:
    """The script itself, in a process of its own, as a user starts it."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    ended = subprocess.run(
        [sys.executable, "train.py", "--max-steps", "2", *words], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=400,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    check_learnt(folder, ended.stdout)


def check_learnt(folder: Path, printed: str) -> None:
    assert (folder / "model" / "adapter_model.safetensors").stat().st_size > 0
    said = [float(one) for one in re.findall(r"'train_loss': '?([\d.e+-]+)", printed)]
    assert [0 < one < 30 for one in said] == [True], f"it learnt from nothing: {printed[-500:]}"


# How the model was opened


OPENED = {
    "load_in_4bit": (
        "load_in_4bit=True", {"load_in_4bit": True, "adapter": "qlora"}, {"quantization_bit": 4, "double_quantization": False},
        "load_in_4bit=True",
    ),
    "load_in_8bit": (
        "load_in_8bit=True", {"load_in_8bit": True, "adapter": "lora"}, {"quantization_bit": 8}, "load_in_8bit=True"
    ),
    "device_map": ('"device_map": \'auto\'', {"adapter": "lora"}, {}, "load_in_4bit=False"),
}  # fmt: skip
"""Setting of the run -> what stands in TRL's script, Axolotl's and LLaMA-Factory's configurations, and Unsloth's script."""


@pytest.mark.parametrize("setting", OPENED)
def test_a_model_of_few_bits_or_over_several_gpus_is_trained_as_it_scored(
    setting: str, runs: Runs, tmp_path: Path
) -> None:
    """Such a run needs a GPU; here the manifest of another one says so."""
    run = shutil.copytree(runs.of("single").folder, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["model"]["settings"][setting] = "auto" if setting == "device_map" else True
    (run / "manifest.json").write_text(json.dumps(manifest))
    in_trl, in_axolotl, in_llamafactory, in_unsloth = OPENED[setting]
    for to in ("trl", "unsloth", "axolotl", "llamafactory"):
        tov.export(run, to=to, out=tmp_path / to)
    script = (tmp_path / "trl" / "train.py").read_text()
    opened = re.search(r"model_init_kwargs=(\{.*?\n        \}),\n", script, re.DOTALL)
    assert opened, script
    assert in_trl in opened[1]
    quantised = setting != "device_map"
    assert ("import AutoTokenizer, BitsAndBytesConfig" in script) == quantised
    compile(script, "train.py", "exec")
    shown = {"BitsAndBytesConfig": dict, "torch": torch, "REVISION": None, "model": "m", "MODEL": "m"}
    assert list(eval(opened[1], shown)) == ["quantization_config" if quantised else "device_map"]
    for to in ("trl", "llamafactory"):
        assert (" bitsandbytes" in (tmp_path / to / "README.md").read_text()) == quantised
    assert in_unsloth in (tmp_path / "unsloth" / "train.py").read_text()
    for to, wanted in (("axolotl", in_axolotl), ("llamafactory", in_llamafactory)):
        config = yaml.safe_load((tmp_path / to / f"{to}.yaml").read_text())
        assert {name: config.get(name) for name in wanted} == wanted
        assert ("load_in" in str(config) or "quantization" in str(config)) == quantised
        assert ("--device-map auto" in (tmp_path / to / "README.md").read_text()) == (setting == "device_map")


# TRL and transformers, which are installed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["several", "words"])
def test_the_exported_script_trains(name: str, runs: Runs, tmp_path: Path) -> None:
    if name == "several":
        pytest.importorskip("trl", reason="trl is not installed (pip install 'tov[trl]')")
    tov.export(runs.of(name), to="trl", out=tmp_path / "out")
    run_script(tmp_path / "out")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["single", "pairs", "text", "labelled"])
def test_so_does_that_of_every_other_kind(
    name: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the main program of this process: another one's imports take longer than its two steps."""
    if name != "labelled":
        pytest.importorskip("trl", reason="trl is not installed (pip install 'tov[trl]')")
    tov.export(runs.of(name), to="trl", out=tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["train.py", "--max-steps", "2"])
    capsys.readouterr()
    runpy.run_path("train.py", run_name="__main__")
    check_learnt(tmp_path / "out", capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("several", "messages"), ("tools", "messages"), ("single", "prompt+completion"), ("text", "text"),
        ("words", "spans"), ("labelled", "text+label"),
    ],
)  # fmt: skip
def test_trl_learns_what_was_scored(name: str, layout: str, runs: Runs, tmp_path: Path) -> None:
    if name not in ("words", "labelled"):
        pytest.importorskip("trl", reason="trl is not installed (pip install 'tov[trl]')")
    picked, rows = runs.of(name), KINDS[name][1]
    out = tov.export(picked, to="trl", out=tmp_path / "out")
    made = runpy.run_path(str(tmp_path / "out" / "train.py"))["make_trainer"](
        picked.manifest.model.name, 1, str(tmp_path / "model")
    )
    row_ids = [row["tov_row_id"] for row in lines(tmp_path / "out" / "train.jsonl")]
    wanted, breaks = scored(picked, rows, layout), set(tiny_tokenizer().encode("\n"))
    assert set(row_ids) == set(range(len(rows)))
    assert out.summary["rows"] == len(rows)
    learnt = {row_id: np.full(len(ids), IGNORED) for row_id, (ids, _) in wanted.items()}
    for row_id, found in zip(row_ids, made.train_dataset, strict=True):
        ids = found["input_ids"]
        assert ids == wanted[row_id][0][: len(ids)], "turns behind an answer are not written, those before it are"
        labels = [found["label"]] if name == "labelled" else found["labels"]
        for place, label in enumerate(labels):
            if label != IGNORED and not (label in breaks and name in ("several", "tools", "single")):
                assert learnt[row_id][place] == IGNORED, "an answer is learnt once"
                learnt[row_id][place] = label
    for row_id, (_, labels) in wanted.items():
        ours = [IGNORED if label in breaks and name in ("several", "tools", "single") else label for label in labels]
        if name == "text":
            learnt[row_id][0] = IGNORED  # nothing predicts the first token
        assert learnt[row_id].tolist() == ours


@pytest.mark.filterwarnings("ignore")
def test_trl_prefers_the_chosen_answers(runs: Runs, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="trl is not installed (pip install 'tov[trl]')")
    picked = runs.of("pairs")
    tov.export(picked, to="trl", out=tmp_path / "out")
    made = runpy.run_path(str(tmp_path / "out" / "train.py"))["make_trainer"](
        picked.manifest.model.name, 1, str(tmp_path / "model")
    )
    tokenizer = tiny_tokenizer()
    for row, found in zip(lines(tmp_path / "out" / "train.jsonl"), made.train_dataset, strict=True):
        pair = PAIRS[row["tov_row_id"]]
        assert (
            tokenizer.decode(found["prompt_ids"])
            == f"<|im_start|>user\n{pair['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert tokenizer.decode(found["chosen_ids"]) == f"{pair['chosen']}<|im_end|>\n"
        assert tokenizer.decode(found["rejected_ids"]) == "bad<|im_end|>\n"


# The files of trainers that need not be installed


def test_axolotl_is_told_of_every_turn_whether_it_is_learnt(runs: Runs, tmp_path: Path) -> None:
    out = tov.export(runs.of("several"), to="axolotl", out=tmp_path / "out")
    assert out.summary["rows"] == len(SEVERAL)
    config = yaml.safe_load((tmp_path / "out" / "axolotl.yaml").read_text())
    (source,) = config["datasets"]
    assert (source["path"], source["type"], source["roles_to_train"]) == ("train.jsonl", "chat_template", ["assistant"])
    assert source["chat_template_jinja"] == PLAIN_TEMPLATE
    flag = source["message_field_training"]
    by_id = {row["tov_row_id"]: row["messages"] for row in lines(tmp_path / "out" / "train.jsonl")}
    assert [turn.get(flag) for turn in by_id[6]] == [None, None, None, False, None, None]
    assert [turn["content"] for turn in by_id[5]] == ["p", "yes"]  # what stands behind changes nothing


def test_axolotl_gets_arguments_and_tools_as_text(runs: Runs, tmp_path: Path) -> None:
    tov.export(runs.of("tools"), to="axolotl", out=tmp_path / "out")
    by_id = {row["tov_row_id"]: row for row in lines(tmp_path / "out" / "train.jsonl")}
    assert json.loads(by_id[1]["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"x": None, "y": 2}
    assert json.loads(by_id[0]["tools"]) == [tool("weather", "city")]


def test_llamafactory_gets_sharegpt_and_what_it_cannot_say_is_counted(runs: Runs, tmp_path: Path) -> None:
    out = tov.export(runs.of("tools"), to="llamafactory", out=tmp_path / "out")
    assert out.summary["left_out"] == {"something is said beside a call": 1}
    assert "1 row left out: something is said beside a call" in str(out)
    assert "something is said beside a call" in (tmp_path / "out" / "README.md").read_text()
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())["tov"]
    by_id = {row["tov_row_id"]: row for row in lines(tmp_path / "out" / info["file_name"])}
    said = by_id[1][info["columns"]["messages"]]
    assert [turn[info["tags"]["role_tag"]] for turn in said] == ["human", "function_call", "observation", "gpt"]
    assert json.loads(said[1]["value"]) == {"name": "add", "arguments": {"x": None, "y": 2}}
    assert by_id[2]["conversations"][1]["value"] == "<think>\nhmm\n</think>\n\nho"
    config = yaml.safe_load((tmp_path / "out" / "llamafactory.yaml").read_text())
    assert (config["stage"], config["dataset"], config["dataset_dir"]) == ("sft", "tov", ".")
    assert "mask_history" not in config


def test_llamafactory_masks_history_where_most_rows_do(runs: Runs, tmp_path: Path) -> None:
    rows = [turns(user(f"q{at}"), says("hm", weight=0), user("r"), says(f"yes {at}")) for at in range(4)]
    rows.append(turns(user("z"), says("a"), user("r"), says("b")))
    picked = runs.select("history", "chatml", rows, rows)
    out = tov.export(picked, to="llamafactory", out=tmp_path / "out")
    assert yaml.safe_load((tmp_path / "out" / "llamafactory.yaml").read_text())["mask_history"] is True
    assert out.summary["left_out"] == {
        "earlier answers are to be learnt too, but LLaMA-Factory is told to learn the last one alone, as fits most rows": 1
    }


def test_several_answers_are_a_line_each(runs: Runs, tmp_path: Path) -> None:
    out = tov.export(runs.of("several"), to="trl", out=tmp_path / "out")
    said = [row for row in lines(tmp_path / "out" / "train.jsonl") if row["tov_row_id"] == 6]
    assert [row["completion"][0]["content"] for row in said] == ["first", "last"]
    assert [turn["content"] for turn in said[1]["prompt"]] == ["o", "first", "r", "hm", "r"]
    (note,) = [one for one in out.summary["notes"] if "several answers" in one]
    assert note.startswith("5 rows have several answers to learn")
    assert note.endswith("12 lines in all")


@pytest.mark.parametrize(("name", "needed"), [("tools", True), ("single", False), ("text", False)])
def test_rows_with_tools_need_datasets_that_do_not_pad_them(
    name: str, needed: bool, runs: Runs, tmp_path: Path
) -> None:
    out = tov.export(runs.of(name), to="trl", out=tmp_path / "out")
    assert ("pip install 'trl>=1.0' peft 'datasets>=4.8'" in str(out)) == needed
    assert ("'datasets>=4.8'" in (tmp_path / "out" / "README.md").read_text()) == needed


def test_unsloth_gets_a_script_that_compiles_and_tools_as_a_list(runs: Runs, tmp_path: Path) -> None:
    tov.export(runs.of("tools"), to="unsloth", out=tmp_path / "out")
    compile((tmp_path / "out" / "train.py").read_text(), "train.py", "exec")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == PLAIN_TEMPLATE
    said = [row for row in lines(tmp_path / "out" / "train.jsonl") if row["tov_row_id"] == 0]
    assert [row["tools"] for row in said] == [[tool("weather", "city")]] * 2


LLAMAFACTORY = """
import json, os, yaml
from transformers import AutoTokenizer
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
given = {**yaml.safe_load(open("llamafactory.yaml")), "overwrite_cache": True, "use_cpu": True, "bf16": False}
model, data, training, tuning, _ = get_train_args(given)
tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path)
template = get_template_and_fix_tokenizer(tokenizer, data)
stage = {"dpo": "rm"}.get(tuning.stage, tuning.stage)
rows = get_dataset(template, model, data, training, stage, tokenizer=tokenizer, processor=None)["train_dataset"]
print("ROWS " + json.dumps([{name: row[name] for name in row if name.endswith(("ids", "labels"))} for row in rows]))
"""
AXOLOTL = """
import json, yaml
def main():
    from axolotl.utils.config import normalize_config, validate_config
    from axolotl.utils.data.rl import prepare_preference_datasets
    from axolotl.utils.data.sft import prepare_datasets
    from axolotl.utils.dict import DictDefault
    from transformers import AutoTokenizer
    on_cpu = {"dataset_prepared_path": "prepared", "dataset_num_proc": 1, "bf16": False, "fp16": False, "tf32": False}
    config = validate_config(DictDefault({**yaml.safe_load(open("axolotl.yaml")), **on_cpu}))
    config.world_size, config.is_preprocess = 1, True
    normalize_config(config)
    prepare = prepare_preference_datasets if config.rl else prepare_datasets
    rows = prepare(config, AutoTokenizer.from_pretrained(config.base_model))[0]
    print("ROWS " + json.dumps(list(rows)))
if __name__ == "__main__":
    main()
"""


def read_by(package: str, script: str, folder: Path) -> list[dict[str, Any]]:
    """The rows as the real loader of a trainer gives them; skips where it is not installed."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (pip install {package})")
    (folder / "load.py").write_text(script)
    environment = {**os.environ, "DISABLE_VERSION_CHECK": "1", "AXOLOTL_DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, "load.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    found = [line for line in ended.stdout.splitlines() if line.startswith("ROWS ")]
    assert (ended.returncode, len(found)) == (0, 1), ended.stderr[-3000:]
    return list(json.loads(found[0].removeprefix("ROWS ")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout"),
    [("several", "messages"), ("tools", "messages"), ("single", "prompt+completion"), ("text", "text")],
)
def test_axolotl_learns_what_was_scored(name: str, layout: str, runs: Runs, tmp_path: Path) -> None:
    tov.export(runs.of(name), to="axolotl", out=tmp_path / "out")
    found = read_by("axolotl", AXOLOTL, tmp_path / "out")
    ours = scored(runs.of(name), KINDS[name][1], layout)
    learnt = sorted([[one for one in row["labels"] if one != IGNORED] for row in found])
    wanted = [[one for one in labels if one != IGNORED] for _, labels in ours.values()]
    if name == "text":  # the first token is predicted by nothing
        wanted = [ids for ids, _ in ours.values()]
    assert learnt == sorted(wanted)


@pytest.mark.slow
def test_axolotl_reads_pairs(runs: Runs, tmp_path: Path) -> None:
    tov.export(runs.of("pairs"), to="axolotl", out=tmp_path / "out")
    found = read_by("axolotl", AXOLOTL, tmp_path / "out")
    assert sorted(row["chosen"] for row in found) == [f"good {at}<|im_end|>" for at in range(4)]
    assert {row["rejected"] for row in found} == {"bad<|im_end|>"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["single", "pairs", "text", "several", "tools"])
def test_llamafactory_reads_every_row_that_is_written(name: str, runs: Runs, tmp_path: Path) -> None:
    out = tov.export(runs.of(name), to="llamafactory", out=tmp_path / "out")
    found = read_by("llamafactory", LLAMAFACTORY, tmp_path / "out")
    assert len(found) == out.summary["rows"]
    tokenizer = tiny_tokenizer()
    if name == "single":
        ours = scored(runs.of(name), KINDS[name][1], "prompt+completion")
        assert sorted(row["input_ids"] for row in found) == sorted(ids for ids, _ in ours.values())
        learnt = [tokenizer.decode([one for one in row["labels"] if one != IGNORED]) for row in found]
        assert sorted(learnt) == sorted(f"{row['completion']}<|im_end|>\n" for row in KINDS[name][1])
    if name == "pairs":
        learnt = [tokenizer.decode([one for one in row["chosen_labels"] if one != IGNORED]) for row in found]
        assert sorted(learnt) == [f"good {at}<|im_end|>\n" for at in range(4)]


# The Hub, and the card


def test_the_hub_loads_the_rows_as_they_are(runs: Runs, tmp_path: Path) -> None:
    picked = runs.of("words")
    out = tov.export(picked, to="hub", out=tmp_path / "out")
    folder = tmp_path / "out" / "dataset"
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == picked.dataset.to_list()
    assert out.summary["columns_left_out"] == {}
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert front["configs"][0]["data_files"][0]["path"] == "data/train-*.parquet"
    assert front["task_categories"] == ["token-classification"]
    assert "license" not in front


@pytest.mark.parametrize("to", TRAINERS)
def test_the_card_says_whence_and_names_no_folder(to: str, runs: Runs, tmp_path: Path) -> None:
    picked = runs.of("single")
    again = tov.reselect(picked, n=3, rule="score-only", out=tmp_path / "again", quiet=True)
    tov.export(again, to=to, out=tmp_path / "out")
    (file,) = (tmp_path / "out").rglob("README.md")
    text, manifest = file.read_text(), picked.manifest
    assert str(runs.folder) not in text
    assert str(tmp_path) not in text
    for wanted in (
        "tov select --rule", "--method random", manifest.targets["target"].fingerprint,
        manifest.identity["pool"]["fingerprint"],
        f"seed {manifest.seed}", "| single", "licences of the sources", manifest.versions["torch"], f"tov {tov.__version__}",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_columns_that_are_left_out_are_named(runs: Runs, tmp_path: Path) -> None:
    picked = runs.select("forms", "chatml", [[row] for row in FORMS], make_rows(3), n=len(FORMS))
    out = tov.export(picked, to="trl", out=tmp_path / "out")
    assert out.summary["rows"] == len(FORMS)
    assert out.summary["columns_left_out"] == {"memory-3": ["id"]}
    assert "memory-3: id" in (tmp_path / "out" / "README.md").read_text()
    by_id = {row["tov_row_id"]: row for row in lines(tmp_path / "out" / "train.jsonl")}
    assert [turn["content"] for turn in [*by_id[0]["prompt"], *by_id[0]["completion"]]] == ["a", "b", "Say\n\nit", "it"]
    assert by_id[1]["completion"] == [says("b")]
    assert "id" not in by_id[2]


# Rows come back as they were scored


def test_nulls_of_a_parquet_file_are_not_shown_to_the_trainer(runs: Runs, tmp_path: Path) -> None:
    calls = [[call("weather", city="Oslo")], [call("add", x="1")]]
    rows = [turns(user(f"u{at}"), says("", tool_calls=one), RESULT, says(f"a{at}")) for at, one in enumerate(calls)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    picked = runs.select("padded", "plain", str(tmp_path / "pool.parquet"), rows, n=2)
    assert '"x": null' in (picked.folder / "selected.jsonl").read_text()
    tov.export(picked, to="axolotl", out=tmp_path / "out")
    by_id = {row["tov_row_id"]: row for row in lines(tmp_path / "out" / "train.jsonl")}
    assert by_id[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Oslo"}'


def test_dates_of_a_parquet_file_are_the_rows_own(runs: Runs, tmp_path: Path) -> None:
    at = datetime.datetime(2020, 1, 1)
    rows = [turns(user(f"u{day}"), says("a"), documents=[{"title": "t", "at": at.replace(day=day)}]) for day in (1, 2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    picked = runs.select("dates", "chatml", str(tmp_path / "pool.parquet"), make_rows(3), n=2)
    assert tov.export(picked, to="hub", out=tmp_path / "out").summary["rows"] == 2


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="this version of datasets has no columns of several types")
@pytest.mark.parametrize("inner", [False, True], ids=["a column", "a part of it"])
def test_nulls_of_json_beside_padding_are_kept(inner: bool, runs: Runs, tmp_path: Path) -> None:
    text, schema = datasets.Value("string"), datasets.Json()
    called = {"function": {"name": text, "arguments": {"x": text, "y": text}}}
    described = {"type": text, "function": {"name": text, "description": text, "parameters": schema}}
    features = datasets.Features({
        "messages": datasets.List({"role": text, "content": text, "tool_calls": datasets.List(called)}),
        "tools": datasets.List(described) if inner else schema,
    })  # fmt: skip
    rows = []
    for at in range(4):
        function = {"name": "f", "parameters": {"default": None}, **({"description": "d"} if at % 2 else {})}
        calls = [{"function": {"name": "f", "arguments": {"xy"[at % 2]: str(at)}}}]
        rows.append(
            turns(user(f"u{at}"), says("", tool_calls=calls), tools=[{"type": "function", "function": function}])
        )
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "pool.parquet"))
    picked = runs.select(f"json {inner}", "plain", str(tmp_path / "pool.parquet"), rows)
    assert '"y": null' in (picked.folder / "selected.jsonl").read_text()
    tov.export(picked, to="axolotl", out=tmp_path / "out")
    for row in lines(tmp_path / "out" / "train.jsonl"):
        at = row["tov_row_id"]
        assert json.loads(row["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"xy"[at % 2]: str(at)}
        (one,) = json.loads(row["tools"])
        assert one == rows[at]["tools"][0]


def test_an_edited_row_is_not_the_one_that_was_scored(runs: Runs, tmp_path: Path) -> None:
    picked = runs.of("several")
    rows = [json.loads(line) for line in (picked.folder / "selected.jsonl").read_text().splitlines()]
    rows[2]["messages"][0]["content"] += "!"
    edited = write_jsonl(tmp_path / "selected.jsonl", rows)
    with pytest.raises(tov.RunError, match="row 3 is not the row that was scored"):
        read_chosen(open_choice(str(picked.folder)), edited, our_columns(), TASKS["instruction"])


def test_own_names_of_columns_and_a_pool_that_is_gone(runs: Runs, tmp_path: Path) -> None:
    rows = [{"question": f"q{at}", "reply": f"r{at}", "topic": "x"} for at in range(4)]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    picked = runs.select("named", "chatml", str(pool), rows, columns={"prompt": "question", "completion": "reply"})
    pool.unlink()
    tov.export(picked, to="trl", out=tmp_path / "out")
    for row in lines(tmp_path / "out" / "train.jsonl"):
        assert row["completion"] == [says(f"r{row['tov_row_id']}")]


MAPPED: dict[str, tuple[Rows, dict[str, str], str, list[Any]]] = {
    "label": (
        [{"text": f"t{at}", "kind": "ab"[at % 2], "label": at} for at in range(4)],
        {"label": "kind"}, "label", ["a", "b"],
    ),
    "tags": (
        [{"tokens": ["Ann", "is"], "gold": ["B-PER", "O"], "ner_tags": ["O", "B-X"], "id": at} for at in range(4)],
        {"ner_tags": "gold"}, "ner_tags", [["B-PER", "O"]],
    ),
    "words": (
        [{"words": ["Ann", str(at)], "tokens": [5], "ner_tags": ["B-PER", "O"]} for at in range(4)],
        {"tokens": "words"}, "tokens", [["Ann", "0"], ["Ann", "1"], ["Ann", "2"], ["Ann", "3"]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MAPPED)
def test_a_column_that_another_takes_the_place_of_is_not_read(name: str, runs: Runs, tmp_path: Path) -> None:
    rows, columns, column, values = MAPPED[name]
    picked = runs.select(f"mapped-{name}", "encoder", list(rows), rows, columns=columns)
    tov.export(picked, to="trl", out=tmp_path / "out")
    for row in lines(tmp_path / "out" / "train.jsonl"):
        assert row[column] == values[row["tov_row_id"] % len(values)]


def test_labels_are_those_that_were_read(runs: Runs, tmp_path: Path) -> None:
    tov.export(runs.of("words"), to="trl", out=tmp_path / "out")
    for row in lines(tmp_path / "out" / "train.jsonl"):
        assert row["ner_tags"] == ["B-PER", "O", "O", "B-LOC", "O"]
        assert row["tokens"][:4] == ["Ann", "lives", "in", "Oslo"]


# The run folder, and errors


def test_the_same_call_returns_the_finished_export(runs: Runs, tmp_path: Path) -> None:
    first = tov.export(runs.of("single"), to="trl", out=tmp_path / "out")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    again = tov.export(runs.of("single"), to="trl", out=tmp_path / "out")
    assert again.summary == first.summary
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == times
    with pytest.raises(tov.RunError, match=r"to: trl -> axolotl"):
        tov.export(runs.of("single"), to="axolotl", out=tmp_path / "out")
    tov.export(runs.of("single"), to="axolotl", out=tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "train.py").exists()
    (tmp_path / "out" / "train.jsonl").unlink()
    assert tov.export(runs.of("single"), to="axolotl", out=tmp_path / "out").files[0].exists()


def test_errors_say_what_can_be_done(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(
        tov.DataError, match=r"Axolotl cannot take named entities .*\n.*conversations, preference pairs"
    ):
        tov.export(runs.of("words"), to="axolotl", out=tmp_path / "a")
    with pytest.raises(tov.DataError, match=r"Unsloth cannot take preference pairs .*\n.*\n.*--to trl or axolotl"):
        tov.export(runs.of("pairs"), to="unsloth", out=tmp_path / "b")
    with pytest.raises(tov.ConfigError, match=r"--to got 'nobody', but must be 'trl', 'axolotl'"):
        tov.export(runs.of("pairs"), to="nobody", out=tmp_path / "c")
    with pytest.raises(tov.RunError, match="holds no run"):
        tov.export(tmp_path, to="trl", out=tmp_path / "d")
    path = tov.fit(
        runs.models["chatml"], make_rows(4), pool=make_rows(8, seed=1), epochs=1, lora_r=2, max_length=64, quiet=True,
        out=tmp_path / "path",
    )  # fmt: skip
    with pytest.raises(tov.RunError, match="holds no chosen rows"):
        tov.export(path, to="trl", out=tmp_path / "e")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(tov.RunError, match="is not empty and holds no run"):
        tov.export(runs.of("pairs"), to="trl", out=tmp_path / "full", force=True)


@pytest.mark.parametrize("to", ["axolotl", "llamafactory"])
def test_an_alpha_that_a_trainer_cannot_take_is_not_rounded(to: str, runs: Runs, tmp_path: Path) -> None:
    run = shutil.copytree(runs.of("single").folder, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["model"]["settings"]["lora_alpha"] = 1.5
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(tov.DataError, match=r"whole number as LoRA alpha, but that of the run is 1\.5(?s:.*)--to trl"):
        tov.export(run, to=to, out=tmp_path / "out")
    tov.export(run, to="trl", out=tmp_path / "trl")
    assert "lora_alpha=1.5," in (tmp_path / "trl" / "train.py").read_text()


def test_a_value_that_holds_the_name_of_another_stays_as_it_is() -> None:
    values = {"labels": ["x@rate@", "@model@"], "rate": 0.1, "model": "o/@labels@"}
    assert filled("(@labels@, @rate@, @model@, '@other@')", **values) == repr((*values.values(), "@other@"))


def test_rows_of_several_kinds_need_a_choice(runs: Runs, tmp_path: Path) -> None:
    pool = [write_jsonl(tmp_path / "a.jsonl", make_rows(4)), write_jsonl(tmp_path / "b.jsonl", TEXT)]
    picked = runs.select("mixed", "chatml", [str(one) for one in pool], make_rows(4), n=8)
    with pytest.raises(tov.DataError, match=r"several kinds \(4 .*TRL trains on one kind at a time"):
        tov.export(picked, to="trl", out=tmp_path / "a")
    out = tov.export(picked, to="trl", kind="text", out=tmp_path / "b")
    assert (out.summary["rows"], out.summary["left_out"]) == (4, {"they are conversations": 4})
    with pytest.raises(tov.DataError, match="has no preference pairs"):
        tov.export(picked, to="trl", kind="pairs", out=tmp_path / "c")
    assert tov.export(picked, to="hub", out=tmp_path / "d").summary["rows"] == 8
    with pytest.raises(tov.ConfigError, match="--kind text has no effect with --to hub"):
        tov.export(picked, to="hub", kind="text", out=tmp_path / "e")


def test_none_that_can_be_taken_is_an_error(runs: Runs, tmp_path: Path) -> None:
    rows = [turns(user(f"q{at}"), says("b"), documents=[{"title": "t", "text": "d"}]) for at in range(4)]
    picked = runs.select("documents", "plain", rows, rows)
    with pytest.raises(
        tov.DataError, match="none of the 4 chosen rows as they were scored: 4 because documents stand beside the turns"
    ):
        tov.export(picked, to="trl", out=tmp_path / "out")


@pytest.mark.slow
def test_the_command_line(runs: Runs, tmp_path: Path) -> None:
    run = runs.of("single").folder
    told, as_json, wrong = run_commands([
        ["export", run, "--to", "trl", "--out", tmp_path / "a"],
        ["export", run, "--to", "hub", "--out", tmp_path / "b", "--json"],
        ["export", run, "--to", "nobody", "--out", tmp_path / "c"],
    ])  # fmt: skip
    assert (told.code, as_json.code, wrong.code) == (0, 0, 2)
    assert "6 of 6 chosen rows for TRL" in told.out
    assert f"cd {tmp_path / 'a'}" in told.out
    assert json.loads(as_json.out)["summary"]["rows"] == 6
    assert "axolotl" in wrong.err


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("data/private/x.jsonl", "x.jsonl"), ("s3://bucket/private/x.jsonl", "x.jsonl"), ("data/*.parquet", "*.parquet"),
        ("wiki=data/x.jsonl.gz", "wiki=x.jsonl.gz"), ("data/lang=en.jsonl", "lang=en.jsonl"), ("/abs/model", "model"),
        ("org/data:train", "org/data:train"), ("org/model-1.5", "org/model-1.5"), ("minilm", "minilm"),
    ],
)  # fmt: skip
def test_a_card_names_files_without_their_folders(location: str, shown: str) -> None:
    assert bare(location) == shown
