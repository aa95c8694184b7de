"""How a model is opened that is too large for one GPU, or for weights of 16 bits: spread over GPUs, in 4 or 8 bits.

transformers, accelerate and bitsandbytes do it. tov's own kernels take dense weights on one device, so layers that are not
such keep peft's forward (`tov.model.kernels.lowrank.plain_layers`).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch

from tov.errors import ConfigError
from tov.files import digest

INSTALL = "pip install 'tov[quantised]'"
"""What brings accelerate and bitsandbytes."""


@dataclass(frozen=True)
class Loading:
    """How it is opened; by default as most models are, dense and on one device.

    Attributes:
        bits: 4 or 8, of the frozen weights; None for those of the dtype.
        device_map: how it is spread, in the words of transformers; None for one device.
    """

    bits: int | None = None
    device_map: str | None = None

    @staticmethod
    def of(settings: Any) -> Loading:
        """What a record of settings asks for (`tov.config.loading`)."""
        return Loading(4 if settings.load_in_4bit else 8 if settings.load_in_8bit else None, settings.device_map)

    @property
    def asked(self) -> str:
        """The flags that ask for it; "" where nothing is."""
        flags = [f"--load-in-{self.bits}bit"] * bool(self.bits) + [f"--device-map {self.device_map}"] * bool(
            self.device_map
        )
        return " ".join(flags)

    def check(self, device: torch.device, *, new_head: bool) -> None:
        """Whether what is asked for can be done here; reads nothing.

        Args:
            device: that the model is to be on.
            new_head: whether the task makes a head of its own.

        Raises:
            ConfigError: no CUDA GPU, a package that is not installed, or a classifier.
        """
        if new_head:
            raise ConfigError(
                f"{self.asked} is for causal language models, but this task trains a classifier.",
                fix="Leave it out: encoders are small.",
            )
        if device.type != "cuda":
            raise ConfigError(
                f"{self.asked} needs a CUDA GPU, but the device is {device}.",
                allowed="a machine with an NVIDIA GPU, and a torch built for CUDA",
                fix="Run it where a GPU is, or leave it out.",
            )
        for name in ("accelerate", *(("bitsandbytes",) if self.bits else ())):
            if importlib.util.find_spec(name) is None:
                raise ConfigError(
                    f"{self.asked} needs the package {name}, which is not installed.", fix=f"Install it: {INSTALL}"
                )

    def options(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """What `from_pretrained` is given for it. 4 bits are NF4 without nested quantisation, as TRL's default is."""
        if not self.asked:
            return {}
        from transformers import BitsAndBytesConfig

        options: dict[str, Any] = {"device_map": self.device_map or {"": device}}
        if self.bits:
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=self.bits == 4, load_in_8bit=self.bits == 8, bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=dtype,
            )  # fmt: skip
        return options

    def fingerprint(self, weights: str) -> str:
        """16 hex digits: that of the files where nothing is asked for, else another one: the numbers are others."""
        return digest([weights, self.bits, self.device_map]) if self.asked else weights

    def check_placed(self, name: str, model: Any) -> None:
        """Raises ConfigError if parts of an opened model lie outside the GPUs, where every pass would fetch them."""
        places = getattr(model, "hf_device_map", {}) if self.device_map else {}
        outside = [part for part, place in places.items() if str(place) in ("cpu", "disk")]
        if outside and len(outside) < len(places):
            raise ConfigError(
                f"The model '{name}' does not fit into the GPUs: {len(outside)} of its {len(places)} parts are left.",
                fix="Use more GPUs, or --load-in-8bit or --load-in-4bit.",
            )


DENSE = Loading()
"""Dense weights on one device."""
