"""LoRA adapters by peft: attach, read, write, save, load. What is trained is fp32 under any base dtype."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tov.errors import ConfigError, ModelError
from tov.files import atomic_folder

State = dict[str, Tensor]
"""Adapter parameters by peft's names, fp32, on the CPU."""


ATTENTION = (
    ("q_proj", "k_proj", "v_proj", "o_proj"), ("query", "key", "value", "attention.output.dense"),
    ("q_lin", "k_lin", "v_lin", "out_lin"), ("q_proj", "k_proj", "v_proj", "out_proj"), ("query_key_value", "dense"),
    ("qkv_proj", "o_proj"), ("Wqkv", "Wo"),
)  # fmt: skip
"""Names of the query, key, value and output layers in models of different families."""


def attach(
    model: Any,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: tuple[str, ...],
    seed: int,
    task_type: str = "CAUSAL_LM",
    trained: tuple[str, ...] = (),
) -> Any:
    """The model with a fresh adapter (B = 0, A seeded), a `PeftModel` of which nothing else is trained but a new head.

    In evaluation mode.

    Args:
        model: a frozen transformers model.
        rank: r.
        alpha: the adapter is scaled by alpha / r.
        dropout: on the adapter's inputs.
        targets: modules that get an adapter; `all-linear`; or `attention`, those of `ATTENTION` that the model has.
        seed: of A.
        task_type: peft's name of the task (`Task.peft_type`): with it any PEFT user's code loads the stored adapters.
        trained: modules that are trained in full (`Loaded.head`); they are fp32, and so is what they are given.

    Raises:
        ConfigError: no module of the model matches `targets`.
    """
    from peft import LoraConfig, get_peft_model

    if targets == ("attention",):
        targets = _attention(model)
    names: Any = targets[0] if targets == ("all-linear",) else list(targets)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=names,
        exclude_modules=list(trained) or None,
        modules_to_save=list(trained) or None,
        task_type=task_type,
    )
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
        except ValueError as error:
            raise ConfigError(
                f"--lora-target-modules {' '.join(targets)}: {error}",
                allowed="all-linear, attention, or names of modules",
                fix="Name modules that the model has.",
            ) from None
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for name in trained:
        adapted.get_base_model().get_submodule(name).register_forward_pre_hook(_widen)
    return (
        adapted.eval()
    )  # peft leaves the outermost module in training mode, which a scan would put back into all of them


def _attention(model: Any) -> tuple[str, ...]:
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for family in ATTENTION:
        if all(any(name.endswith(f".{wanted}") for name in names) for wanted in family):
            return family
    raise ConfigError(
        "LoRA on attention was asked for, but tov does not know the names of this model's query, key, value and output layers.",
        fix="Name them, e.g. lora_target_modules=q_proj+v_proj, or take lora_target_modules=all-linear.",
    )


def _widen(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What is narrower than fp32 as fp32."""
    return tuple(
        value.to(torch.promote_types(value.dtype, torch.float32))
        if torch.is_tensor(value) and value.is_floating_point()
        else value
        for value in inputs
    )


def read_state(adapted: Any) -> State:
    """A copy of the adapter's parameters."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(
        adapted, save_embedding_layers=False
    )  # else all of them, for an adapter on the head
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def parameters(adapted: Any) -> dict[str, Tensor]:
    """The adapter's live parameters, and a new head's, by the names that `read_state` uses."""
    return {
        name.replace(".modules_to_save.default", "").replace(".default", ""): parameter
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def write_state(adapted: Any, state: Mapping[str, Tensor]) -> None:
    """Puts parameters in place.

    Raises:
        ModelError: names or shapes are another model's.
    """
    live = parameters(adapted)
    if set(live) != set(state):
        odd = sorted(set(live) ^ set(state))[0]
        raise ModelError(
            f"The stored adapter does not fit the model: one of them lacks {odd}.",
            fix="Use the model that the path was fitted on.",
        )
    for name, parameter in live.items():
        parameter.copy_(state[name])


def save(adapted: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Writes a state as a PEFT adapter folder that any PEFT user can load."""
    from safetensors.torch import save_file

    config = adapted.peft_config["default"]
    with atomic_folder(folder) as temporary:
        inference, config.inference_mode = config.inference_mode, True
        targets = config.target_modules
        if isinstance(targets, set):  # whose order is another in every process
            config.target_modules = sorted(targets)
        try:
            config.save_pretrained(str(temporary))
        finally:
            config.inference_mode, config.target_modules = inference, targets
        save_file(dict(state), str(temporary / "adapter_model.safetensors"), metadata={"format": "pt"})


def load(folder: Path) -> State:
    """Reads the parameters in a PEFT adapter folder.

    Raises:
        ModelError: no adapter there, or a broken file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(folder / "adapter_model.safetensors"))
    except (FileNotFoundError, SafetensorError) as error:
        raise ModelError(f"{folder} holds no readable adapter: {error}", fix="Fit the path again (--force).") from None
