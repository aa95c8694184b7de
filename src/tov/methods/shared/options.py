"""What records of options are made of; each method has its own record in its file. `METHOD/OPTION=VALUE` sets one.

Defaults are those of the method's authors; where they are not, `Method.differs` says so.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from tov.config.settings import Settings


def option(help: str, default: Any, **bounds: Any) -> Any:
    """A field of a record of options."""
    return Field(default, description=help, **bounds)


RANK, ALPHA = "LoRA rank", "LoRA alpha; the adapter is scaled by alpha / rank"
TARGETS = "modules that get a LoRA adapter, joined by +; attention stands for query, key, value and output"


class LoraOptions(Settings):
    """The adapter that a method trains; the final training has its own (`--lora-r` and its like)."""

    lora_r: int = option(RANK, 128, ge=1)
    lora_alpha: float = option(ALPHA, 512.0, gt=0)
    lora_dropout: float = option("dropout on LoRA inputs during training", 0.1, ge=0, lt=1)
    lora_target_modules: tuple[str, ...] = option(TARGETS, ("attention",), min_length=1)

    @field_validator("lora_target_modules", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        return tuple(part for part in value.split("+") if part) if isinstance(value, str) else value
