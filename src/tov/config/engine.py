"""The settings of where shards and trials are computed: nothing that is computed depends on them."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import field_validator, model_validator

from tov.config.settings import Settings, setting
from tov.errors import ConfigError


class EngineSettings(Settings):
    """Of passes over the pool, and of the trainings of pilots and comparisons."""

    engine: Literal["local", "ray"] = setting(
        "output",
        "where shards of the pool and trials are computed: local (this machine), or ray (a Ray cluster)",
        "local",
    )
    devices: tuple[str, ...] | None = setting(
        "output",
        "GPUs of this machine by number, one process each, e.g. 0,1,2,3; cpu,cpu for two processes without",
        None,
    )
    ray_address: str | None = setting(
        "output",
        "address of the Ray cluster; default: the one that this process belongs to, else one on this machine",
        None,
    )
    workers: str | None = setting(
        "output", "Ray workers, MIN:MAX or a number: those that must have room, and those that may join", None
    )
    gpus_per_worker: float | None = setting("output", "GPUs of a Ray worker, or a part of one, e.g. 0.5", None, ge=0)

    @field_validator("devices", mode="before")
    @classmethod
    def _devices(cls, value: Any) -> Any:
        if isinstance(value, (str, int)):
            value = str(value).split(",")
        if isinstance(value, (list, tuple)):
            value = tuple(part.strip() for one in value for part in str(one).split(","))
            wrong = [one for one in value if not (one == "cpu" or one.isdecimal())]
            if wrong or not value:
                raise ValueError("numbers of GPUs, or cpu, with commas between them, e.g. 0,1 or cpu,cpu")
            twice = {one for one in value if one != "cpu" and value.count(one) > 1}
            if twice:
                raise ValueError(f"each GPU once; {min(twice)} stands there twice")
        return value

    @field_validator("workers", mode="before")
    @classmethod
    def _workers(cls, value: Any) -> Any:
        if value is None:
            return None
        match = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", str(value).strip())
        least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= least <= most:
            raise ValueError("MIN:MAX or one number, at least 1, e.g. 2:16")
        return f"{least}:{most}"

    @model_validator(mode="after")
    def _go_together(self) -> EngineSettings:
        of_ray = [name for name in ("ray_address", "workers", "gpus_per_worker") if getattr(self, name) is not None]
        if self.engine != "ray" and of_ray:
            raise ConfigError(
                f"--{of_ray[0].replace('_', '-')} has no effect without --engine ray.", fix="Add that, or leave it out."
            )
        if self.devices and self.engine == "ray":
            raise ConfigError(
                "--devices is for the processes of one machine, but --engine ray starts its own workers.",
                fix="Leave one of them out; --gpus-per-worker says what a Ray worker needs.",
            )
        device, kinds = getattr(self, "device", "auto"), {one == "cpu" for one in self.devices or ()}
        if (kinds and device != "auto" and kinds != {device == "cpu"}) or (kinds and ":" in device):
            raise ConfigError(
                f"--device {device} and --devices {','.join(self.devices or ())} contradict each other.",
                fix="Leave one of them out.",
            )
        return self
