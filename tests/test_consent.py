"""A received run, settings file or model runs no code: consent is given with each command, and never found in a file."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from commands import Ended, run_commands
from tiny import make_rows, tiny_model_folder, write_jsonl
from tov.errors import ModelError
from tov.methods.shared.sentences import _check_modules
from tov.model.consent import check_consent, code_of, fingerprint, read_settings
from tov.model.load import load_model
from tov.tasks import TASKS

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

with open({mark!r}, "a") as mark:
    mark.write("run")

class OwnConfig(LlamaConfig):
    model_type = "own-llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
SMALL = [
    "--max-length",
    "96",
    "--epochs",
    "1",
    "--base-size",
    "8",
    "--lora-r",
    "2",
    "--device",
    "cpu",
    "--dtype",
    "fp32",
]
FLAG = "--trust-remote-code"


@dataclass
class Place:
    """A run of a model with its own code, made with consent, and what was told then.

    Attributes:
        folder: with the model, the pool, the target, the run.
        told: how each command ended, by a name.
    """

    folder: Path
    told: dict[str, Ended]

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def own_model(folder: Path) -> Path:
    model = tiny_model_folder(folder)
    config = json.loads((model / "config.json").read_text())
    config |= {
        "model_type": "own-llama", "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text(CODE.format(mark=str(folder / "mark")))
    return model


def consenting(value: Any) -> Any:
    """As somebody else's run may say it, everywhere where settings are."""
    if isinstance(value, dict):
        here = {"trust_remote_code": True} if "revision" in value or "dtype" in value else {}
        return {**{name: consenting(inner) for name, inner in value.items()}, **here}
    return value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("consent")
    model, mark = own_model(folder), folder / "mark"
    write_jsonl(folder / "pool.jsonl", make_rows(40, seed=1))
    write_jsonl(folder / "target.jsonl", make_rows(6, seed=2))
    data = ["--pool", folder / "pool.jsonl", "--target", folder / "target.jsonl"]
    select = ["select", "--model", model, *data, "--n", "6", "--out", folder / "run", *SMALL]
    environment = {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    allowed = run_commands([select, [*select, FLAG]], **environment)
    told = {"select, not asked": allowed[0], "select": allowed[1]}
    for file in (folder / "run" / "manifest.json", folder / "run" / "path" / "manifest.json"):
        if file.exists():
            file.write_text(json.dumps(consenting(json.loads(file.read_text()))))
    (folder / "settings.yaml").write_text(yaml.safe_dump({"model": str(model), "trust_remote_code": True}))
    (folder / "grid.yaml").write_text(
        yaml.safe_dump({"model": str(model), "experiments": {"a": {"trust_remote_code": True}}})
    )
    run = folder / "run"
    compare = [
        "compare",
        "--from",
        run,
        "--test-rows",
        "2",
        "--sizes",
        "4",
        "--seeds",
        "1",
        "--methods",
        "random",
        *SMALL,
    ]
    train = ["train", "--from", run, "--num-train-epochs", "1", "--device", "cpu"]
    score = ["score", "--from", run, "--pool", folder / "pool.jsonl", "--device", "cpu"]
    unfinished = Path(shutil.copytree(run, folder / "unfinished"))
    facts = json.loads((unfinished / "manifest.json").read_text())
    facts["scoring"]["complete"] = False
    (unfinished / "manifest.json").write_text(json.dumps({**facts, "status": "running"}))
    shutil.rmtree(unfinished / "scores")
    resume = [word if word != folder / "run" else unfinished for word in select]
    received = {
        "score": [*score, "--out", folder / "scored"],
        "train": [*train, "--out", folder / "trained"],
        "compare": [*compare, "--out", folder / "compared"],
        "resume": resume,
        "reselect": ["select", "--from", run, "--n", "4", "--out", folder / "again"],
        "settings": ["select", folder / "settings.yaml", *data, "--n", "6", "--out", folder / "y"],
        "grid": ["compare", folder / "grid.yaml", *data, "--out", folder / "grid"],
        "dsir": ["select", *data, "--model", model, "--method", "dsir", "--n", "6", "--out", folder / "dsir"],
        "train, asked": [*train, "--out", folder / "trained", FLAG],
        "train, printed again": [*train, "--out", folder / "trained"],
    }
    mark.unlink()
    told |= dict(zip(received, run_commands(list(received.values()), watch=mark, **environment), strict=True))
    return Place(folder, told)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["select, not asked", "score", "train", "compare", "resume", "dsir"])
def test_no_file_consents(place: Place, name: str) -> None:
    ended = place.told[name]
    assert ended.code == 2, ended
    assert "own.py (OwnConfig)" in ended.err, "which code would run"
    assert str(place / "tiny-model") in ended.err, "of which model"
    assert FLAG in ended.err


@pytest.mark.slow
def test_nothing_of_it_has_run(place: Place) -> None:
    assert [name for name, ended in place.told.items() if ended.there] == [
        "train, asked", "train, printed again"
    ]  # fmt: skip
    assert place.told["reselect"].code == 0, "choosing needs no model"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["settings", "grid"])
def test_a_settings_file_that_consents_is_refused(place: Place, name: str) -> None:
    assert place.told[name].code == 2
    assert "no file can allow a model's code for you" in place.told[name].err


@pytest.mark.slow
def test_with_the_flag_it_runs(place: Place) -> None:
    for name in ("select", "train, asked"):
        assert place.told[name].code == 0, place.told[name]
    assert "trust_remote_code=True" in place.told["train, asked"].out
    assert "trust_remote_code" not in place.told["train, printed again"].out, "the one who gave it is another"


@pytest.mark.slow
def test_consent_is_not_stored(place: Place) -> None:
    for folder in ("trained", "again"):
        kept = [file for file in (place / folder).rglob("*") if file.suffix in (".json", ".yaml")]
        assert kept
        assert not [file for file in kept if "trust_remote_code" in file.read_text()], folder


def test_the_fingerprint_of_a_hub_model_is_its_commit_and_no_file_says_another(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, model = "0123456789abcdef" * 2 + "01234567", tmp_path / "models--some--model"
    shutil.copytree(tiny_folder, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    settings = read_settings("some/model")
    assert settings["model_type"] == "llama"
    assert fingerprint("some/model", settings) == commit[:16]
    assert code_of("some/model") == []

    local = Path(shutil.copytree(tiny_folder, tmp_path / "local"))
    before = fingerprint(str(local), read_settings(str(local)))
    config = {**json.loads((local / "config.json").read_text()), "_commit_hash": commit}
    (local / "config.json").write_text(json.dumps(config))
    assert fingerprint(str(local), read_settings(str(local))) != commit[:16], "a folder is known by its bytes"
    (local / "own.py").write_text("print('x')")
    assert fingerprint(str(tiny_folder), read_settings(str(tiny_folder))) == before


def test_kernels_of_the_hub_need_consent_too(tmp_path: Path, tiny_folder: Path) -> None:
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    config = {**json.loads((model / "config.json").read_text()), "attn_implementation": "someone/kernel"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="the kernel someone/kernel"):
        check_consent("model", str(model), read_settings(str(model)))
    check_consent("model", str(model), read_settings(str(model)), trust_remote_code=True)
    check_consent("model", str(tiny_folder), read_settings(str(tiny_folder)))


def test_weights_that_are_pickles_run_nothing(tmp_path: Path, tiny_folder: Path) -> None:
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (model / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "mark"), "w")

    torch.save({"lm_head.weight": Evil()}, model / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(model), task=TASKS["instruction"], device="cpu", dtype="fp32")
    assert not (tmp_path / "mark").exists()


def test_a_sentence_encoder_runs_no_code_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]))
    with pytest.raises(ModelError, match=r"evil\.Module"):
        _check_modules("encoder", str(tmp_path))
