"""Opening a model and its tokenizer: alias, GGUF file, local folder or Hub id. The only place that picks device and dtype."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from tov.errors import ConfigError, ModelError, TovError, did_you_mean, of_system
from tov.files import digest
from tov.model.builtin import ALIASES, from_gguf, packaged_model
from tov.model.consent import Expected, check_consent, code_of, fingerprint, not_consented, read_settings, tokens_of
from tov.model.kernels.memory import keep_freed_memory
from tov.model.loading import DENSE, Loading
from tov.objects.stores import at_home
from tov.system import kind_of_file

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LARGEST_DEFAULT = 1024
"""Tokens a row may have where --max-length is not given and the model takes so many."""


class ForTask(Protocol):
    """What loading asks of a task (`tov.tasks.base.Task`)."""

    @property
    def auto_model(self) -> str:
        """The class of transformers that loads its model."""

    @property
    def new_head(self) -> bool:
        """Whether the model gets a head for the task's labels."""

    def open_tokenizer(self, name: str, load: Callable[..., Any]) -> Any:
        """The tokenizer as the task wants it, by a function that loads it."""


@dataclass(frozen=True)
class Loaded:
    """A frozen model.

    Attributes:
        name: as the user gave it.
        model: a transformers model in evaluation mode: causal, token or sequence classification.
        tokenizer: its tokenizer, ready for the task.
        labels: of a classifier, by id.
        head: names of the modules that are new and must be trained in full; none for a causal model.
        device: where it is.
        dtype: "fp32" or "bf16".
        fingerprint: 16 hex digits of configuration and weights (a Hub model: of its commit), and of how they were loaded.
        tokenizer_fingerprint: 16 hex digits of what makes tokens of a row.
    """

    name: str
    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    head: tuple[str, ...]
    device: torch.device
    dtype: str
    fingerprint: str
    tokenizer_fingerprint: str


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
        raise ConfigError(
            f"There is no device {name!r}.", allowed="auto, cpu, cuda, cuda:0, mps", fix="Name one of these."
        ) from None
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}.get(
        device.type, 0
    )
    if count <= (device.index or 0):
        raise ConfigError(
            f"The device {name!r} is not on this machine.",
            allowed="cpu" + f", {count} {device.type}" * bool(count),
            fix="Use --device auto, which takes what is here.",
        )
    return device


def check_loading(loading: Loading, device: str, *, new_head: bool) -> None:
    """Raises ConfigError if a model cannot be loaded so on the device of this name; reads nothing (`Loading.check`)."""
    if loading.asked:
        loading.check(pick_device(device), new_head=new_head)


def pick_dtype(name: str, device: torch.device) -> str:
    """`auto`: bf16 where the hardware multiplies it natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_amx_tile_supported() and not _held_back() else "fp32"
    return "fp32"


def _held_back() -> bool:
    """Whether oneDNN was told to use no AMX: bf16 without it is slower than fp32 by far."""
    most = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    return "AMX" not in most.upper() and most.upper() not in ("DEFAULT", "ALL")


def resolve(name: str) -> str:
    """What transformers is asked for: a folder for aliases and GGUF files, else the name itself."""
    if name in ALIASES:
        return str(packaged_model(name))
    path = at_home(name)
    if kind := kind_of_file(path):
        raise ModelError(f"{path} is {kind}.", fix="Name a model: a folder, a .gguf file or a Hub id.")
    if path.suffix == ".gguf":
        if not path.exists():
            raise ModelError(f"There is no file {path}.", fix="Check the path.")
        return str(from_gguf(path))
    if path.is_dir() and not (path / "config.json").exists():
        raise ModelError(
            f"The folder {path} holds no config.json.",
            allowed="a folder made by save_pretrained",
            fix="Name the folder that holds config.json and the weights.",
        )
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelError(
            f"There is no folder {path}.", fix="Check the name: a model is a folder, a .gguf file or a Hub id."
        )
    if path.is_file():
        raise ModelError(f"{path} is a file.", allowed="a folder, a .gguf file or a Hub id", fix="Name its folder.")
    return str(path) if path.is_dir() else name


def load_tokenizer(name: str, *, task: ForTask, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model, ready for the task.

    Raises:
        ModelError: there is none, or none that the task can use.
    """
    from transformers import AutoTokenizer

    source = resolve(name)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    return task.open_tokenizer(name, lambda **more: _from_pretrained(AutoTokenizer, name, source, {**options, **more}))


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """A model's configuration; its weights are not read."""
    from transformers import AutoConfig

    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    return _from_pretrained(AutoConfig, name, resolve(name), options)


def longest(config: Any, tokenizer: Any) -> int | None:
    """Tokens that a model of this configuration takes, or None where nothing says."""
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions and getattr(config, "model_type", "") in OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1
    known = [limit for limit in (positions, tokenizer.model_max_length) if limit and limit < 10**9]
    return min(known) if known else None


OFFSET_POSITIONS = (
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "data2vec-text", "longformer",
    "mpnet", "ibert", "luke", "lilt", "markuplm", "esm",
)  # fmt: skip
"""Models that count positions from the padding id on, so that their table has that many entries more than places."""


def load_model(
    name: str,
    *,
    task: ForTask,
    labels: tuple[str, ...] = (),
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    expected: Expected | None = None,
    loading: Loading = DENSE,
) -> Loaded:
    """Loads a model for fitting and scanning; its weights are frozen.

    Args:
        name: alias, GGUF file, folder or Hub id.
        task: decides the head.
        labels: of a classifier, by id.
        dtype: fp32, bf16 or auto.
        device: auto or torch's name.
        revision: on the Hub.
        trust_remote_code: whether a model may bring its own code.
        seed: of a new head.
        expected: the model that it must be; told before its code is run or its weights are read.
        loading: how a large model is opened.

    Raises:
        ModelError: not found, no model for the task, not to be had offline, another model than expected, or one whose code
            would have to be run.
        ConfigError: the device is not here, or the GPUs have too little memory for all of the model.
    """
    import transformers

    place = pick_device(device)
    if place.type == "cpu":
        keep_freed_memory()
    kind = pick_dtype(dtype, place)
    source = resolve(name)
    weights = _look_at(name, source, revision, trust_remote_code, expected, loading)
    tokenizer = load_tokenizer(name, task=task, revision=revision, trust_remote_code=trust_remote_code)
    tokens = tokenizer_fingerprint(tokenizer)
    if expected:
        expected.check(name, tokenizer=tokens)
    options = {"revision": revision, "trust_remote_code": trust_remote_code, "dtype": DTYPES[kind]}
    options |= loading.options(place, DTYPES[kind])
    head: tuple[str, ...] = ()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto = getattr(transformers, task.auto_model)
        if task.new_head:
            model, labels, head = _classifier(name, source, auto, labels, options)
        else:
            model = _from_pretrained(auto, name, source, options)
    if model.config.pad_token_id is None:  # decoders with a sequence head look for a row's last token by it
        ends = tokenizer.eos_token_id if task.new_head else None
        model.config.pad_token_id = ends if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    loading.check_placed(name, model)
    model = (model if loading.asked else model.to(place)).eval()
    model.requires_grad_(False)
    return Loaded(name, model, tokenizer, labels, head, model.device if loading.asked else place, kind, weights, tokens)


def _look_at(
    name: str, source: str, revision: str | None, trust_remote_code: bool, expected: Expected | None, loading: Loading
) -> str:
    """The fingerprint of a model of which nothing has been run or loaded yet."""
    with _said(name, source, {"revision": revision, "trust_remote_code": trust_remote_code}):
        settings = read_settings(source, revision)
        check_consent(name, source, settings, revision=revision, trust_remote_code=trust_remote_code)
        mark = loading.fingerprint(fingerprint(source, settings, revision=revision))
    if expected:
        expected.check(name, fingerprint=mark)
    return mark


def _classifier(
    name: str, source: str, auto: Any, labels: tuple[str, ...], options: dict[str, Any]
) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """A model with a head for the labels, the labels by id, and the names of the modules that must be trained in full.

    A checkpoint that was trained on these very labels keeps its head and their order; any other head is made anew.
    """
    from transformers import AutoConfig

    here = {key: options[key] for key in ("revision", "trust_remote_code")}
    trained_on = _from_pretrained(AutoConfig, name, source, here).id2label or {}
    same = sorted(trained_on.values()) == sorted(labels)
    labels = tuple(trained_on[place] for place in range(len(labels))) if same else labels
    ids = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
    wanted = {**options, "num_labels": len(labels), **ids, "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, info = _from_pretrained(auto, name, source, wanted)
    missing = {key.rpartition(".")[0] for key in info["missing_keys"]}
    heads = {
        child: module
        for child, module in model.named_children()
        if child != model.base_model_prefix and next(module.parameters(), None) is not None
    }
    for module in (one for head in heads.values() for one in head.modules() if not same):
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=getattr(model.config, "initializer_range", 0.02))
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    inside = {module for module in missing if module.partition(".")[0] not in heads}
    return model, labels, tuple(sorted({*heads, *inside}))


def _from_pretrained(auto: Any, name: str, source: str, options: dict[str, Any]) -> Any:
    with _said(name, source, options):
        return auto.from_pretrained(source, **options)


@contextmanager
def _said(name: str, source: str, options: dict[str, Any]) -> Iterator[None]:
    """Whatever a library raises over a model, in our words."""
    try:
        yield
    except TovError:
        raise
    except Exception as error:
        if refused := of_system(error, f"The model '{name}' cannot be loaded", ModelError):
            raise refused from error
        # Its own classes are asked for in these words, whichever of configuration, tokenizer and model has them.
        if "trust_remote_code" in str(error) and not options.get("trust_remote_code"):
            code = code_of(source, options.get("revision"))
            raise not_consented(name, source, code or ["files of its own"]) from None
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"The model '{name}'{did_you_mean(name, ALIASES)} cannot be loaded: {reason}",
            allowed=f"a Hub id, a folder made by save_pretrained, a .gguf file, or {', '.join(ALIASES)}",
            fix="Check the name. Offline, name a local folder or a model in the Hub cache.",
        ) from error


def content_of(name: str, *, revision: str | None = None) -> str:
    """16 hex digits of a model's files, code too, wherever they lie and however they are named; nothing is loaded or run.

    Of a Hub model: the digits of its commit.

    Raises:
        ModelError: there is no such model.
    """
    source = resolve(name)
    with _said(name, source, {"revision": revision}):
        settings = read_settings(source, revision)
        weights = fingerprint(source, settings, revision=revision)
        return digest([weights, tokens_of(Path(source))]) if Path(source).is_dir() else weights


def located(name: str) -> str:
    """A model's name that says the same from anywhere: of a folder or file, its absolute path."""
    path = at_home(name)
    return name if name in ALIASES or not path.exists() else os.path.abspath(path)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """16 hex digits of what makes tokens of a row: vocabulary, rules, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else [type(tokenizer).__name__, tokenizer.get_vocab()]
    return digest([rules, tokenizer.special_tokens_map, getattr(tokenizer, "chat_template", None)])
