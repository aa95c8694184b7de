"""Which engine a record of settings asks for."""

from __future__ import annotations

from typing import Any

from tov.engine.base import Engine
from tov.engine.local import LocalEngine
from tov.engine.models import Models
from tov.inputs.read import AUTO
from tov.model.load import pick_device
from tov.objects.mirror import local
from tov.runs.manifest import FILE


def engine_of(settings: Any, models: Models) -> Engine:
    """The engine that settings with `tov.config.engine.EngineSettings` ask for.

    Args:
        settings: of a run.
        models: of this process.

    Raises:
        ConfigError: a GPU that is named is not here, Ray is not installed, or there is no such cluster.
    """
    if settings.engine == "ray":
        from tov.engine.on_ray import RayEngine, connected

        connected(settings.ray_address)
        least, _, most = (settings.workers or "1:1").partition(":")
        return RayEngine(settings.ray_address, int(least), int(most), settings.gpus_per_worker or 0.0, models)
    if settings.devices:
        from tov.engine.processes import ProcessEngine, check_devices

        check_devices(settings.devices)
        return ProcessEngine(settings.devices, models)
    return LocalEngine(models)


def check_here(settings: Any, *, reads_model: bool = True) -> None:
    """Before anything is read or made, where --out holds no run yet: one that is finished needs no device.

    Args:
        settings: with `out` and `device`, of a command with `tov.config.engine.EngineSettings` or without.
        reads_model: whether the command opens a model in this process.

    Raises:
        ConfigError: a device that is named is not here.
    """
    if settings.out != AUTO and (local(settings.out, whole=True) / FILE).exists():
        return
    if getattr(settings, "devices", None):
        from tov.engine.processes import check_devices

        check_devices(settings.devices)
    if reads_model and getattr(settings, "engine", "local") == "local":
        pick_device(settings.device)
