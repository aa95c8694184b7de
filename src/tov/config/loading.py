"""The settings of how a model is opened that is too large for one GPU, or for weights of 16 bits."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from tov.config.settings import Settings, setting
from tov.errors import ConfigError


class LoadingSettings(Settings):
    """Of a causal language model on CUDA GPUs."""

    device_map: Literal["auto", "balanced", "sequential"] | None = setting(
        "fit",
        "spread the layers of the model over the GPUs that the process sees, as transformers does",
        None,
        unless=None,
    )
    load_in_4bit: bool = setting(
        "fit", "frozen weights in 4 bits (NF4) by bitsandbytes; the adapter stays fp32", False, unless=False
    )
    load_in_8bit: bool = setting(
        "fit", "frozen weights in 8 bits by bitsandbytes; the adapter stays fp32", False, unless=False
    )

    @model_validator(mode="after")
    def _one_way(self) -> LoadingSettings:
        if self.load_in_4bit and self.load_in_8bit:
            raise ConfigError("--load-in-4bit and --load-in-8bit contradict each other.", fix="Give one of the two.")
        device, devices = getattr(self, "device", "auto"), getattr(self, "devices", None)
        if self.device_map and (devices or ":" in device):
            given = f"--devices {','.join(devices)}" if devices else f"--device {device}"
            raise ConfigError(
                f"--device-map {self.device_map} spreads one model over all GPUs, but {given} names one GPU for a model.",
                fix="Leave one of them out. CUDA_VISIBLE_DEVICES=0,1 says which GPUs --device-map may use.",
            )
        return self
