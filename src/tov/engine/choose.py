"""Which engine a record of settings asks for."""

from __future__ import annotations

from typing import Any

from tov.engine.base import Engine
from tov.engine.local import LocalEngine
from tov.engine.models import Models


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
