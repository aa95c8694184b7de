"""Opening a model and its tokenizer: alias, GGUF file, local folder or Hub id. The only place that picks device and dtype."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tov.errors import ConfigError, ModelError, did_you_mean
from tov.files import digest, file_digest
from tov.model.builtin import ALIASES, from_gguf, packaged_file
from tov.model.memory import keep_freed_memory
from tov.text.encode import prepare

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Loaded:
    """A frozen causal language model.

    Attributes:
        name: as the user gave it.
        model: a transformers model in evaluation mode.
        tokenizer: its tokenizer, with a chat template.
        device: where it is.
        dtype: "fp32" or "bf16".
        fingerprint: 16 hex digits of configuration and weights (a Hub model: of its commit).
    """

    name: str
    model: Any
    tokenizer: Any
    device: torch.device
    dtype: str
    fingerprint: str


def pick_device(name: str) -> torch.device:
    """The device for a name; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}", allowed="auto, cpu, cuda, cuda:0, mps", fix="name one of these") from None
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}.get(
        device.type, 0
    )
    if count <= (device.index or 0):
        raise ConfigError(
            f"device {name!r} is not here", allowed="cpu" + f", {count} {device.type}" * bool(count),
            fix="use --device auto, which takes what is here",
        )  # fmt: skip
    return device


def pick_dtype(name: str, device: torch.device) -> str:
    """`auto`: bf16 where the hardware multiplies it natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"
    return "fp32"


def resolve(name: str) -> str:
    """What transformers is asked for: a folder for aliases and GGUF files, else the name itself."""
    if name in ALIASES:
        return str(from_gguf(packaged_file(name)))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.exists():
            raise ModelError(f"no file {path}", fix="check the path")
        return str(from_gguf(path))
    if path.is_dir() and not (path / "config.json").exists():
        raise ModelError(
            f"folder {path} holds no config.json", allowed="a folder made by save_pretrained",
            fix="name the folder that holds config.json and the weights",
        )  # fmt: skip
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelError(f"no folder {path}", fix="check the name: a model is a folder, a .gguf file or a Hub id")
    return str(path) if path.is_dir() else name


def load_tokenizer(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model, ready for `tov.text.encode`."""
    from transformers import AutoTokenizer

    source = resolve(name)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    return prepare(_from_pretrained(AutoTokenizer, name, source, options))


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Loads a model for fitting and scanning; its weights are frozen.

    Raises:
        ModelError: not found, no causal language model, or not to be had offline.
        ConfigError: the device is not here.
    """
    from transformers import AutoModelForCausalLM

    place = pick_device(device)
    if place.type == "cpu":
        keep_freed_memory()
    kind = pick_dtype(dtype, place)
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    source = resolve(name)
    options = {"revision": revision, "trust_remote_code": trust_remote_code, "dtype": DTYPES[kind]}
    model = _from_pretrained(AutoModelForCausalLM, name, source, options).to(place).eval()
    model.requires_grad_(False)
    return Loaded(name, model, tokenizer, place, kind, _fingerprint(model, source))


def _from_pretrained(auto: Any, name: str, source: str, options: dict[str, Any]) -> Any:
    try:
        return auto.from_pretrained(source, **options)
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"the model '{name}'{did_you_mean(name, ALIASES)} cannot be loaded: {reason}",
            allowed=f"a Hub id, a folder made by save_pretrained, a .gguf file, or {', '.join(ALIASES)}",
            fix="check the name; offline, name a local folder or a model in the Hub cache",
        ) from error


def _fingerprint(model: Any, source: str) -> str:
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return str(commit)[:16]
    folder = Path(source)
    weights = {path.name: file_digest(path) for path in sorted(folder.glob("*.safetensors"))}
    settings = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}
    settings.pop("transformers_version", None)
    return digest([settings, weights])
