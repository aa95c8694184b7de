"""What the files of a selection depend on, and whether a finished run is the one that is asked for."""

from __future__ import annotations

from typing import Any

from tov.config.choice import SelectionSettings
from tov.config.records import PathSettings, SelectConfig
from tov.config.settings import declared_by
from tov.errors import ModelError
from tov.inputs.named import model_identity, pool_identity, targets_identity
from tov.inputs.read import Indexed, PoolRows
from tov.methods.spec import Variant, with_effect
from tov.runs.folder import Run
from tov.runs.manifest import differences
from tov.verbs.proxy import proxy_asked, proxy_identity


def is_asked_for(done: Run, config: SelectConfig, variant: Variant) -> bool:
    """Whether a finished selection, made from the very files that are named, has these settings, model and proxy too."""
    task = done.manifest.model.task if done.manifest.model else ""
    asked = {**_of_settings(config.for_task(task), variant), "model": _model_of(done, config), "proxy": None}
    asked |= proxy_asked(done, config)
    return not differences({name: done.manifest.identity.get(name) for name in asked}, asked)


def select_identity(config: SelectConfig, variant: Variant, rows: PoolRows, target: Indexed) -> dict[str, Any]:
    """What the files of a selection depend on."""
    return {
        **_of_settings(config, variant),
        "model": model_identity(config),
        **proxy_identity(config),
        "pool": {**pool_identity(rows.pool, rows.index), "excluded": rows.excluded_fingerprint},
        "targets": targets_identity(target),
    }


def chosen_for(origin: Run) -> dict[str, Any]:
    """What a training on a run's rows depends on beside them: the model's content, its length, and the adapter's settings.

    Methods that read text alone have scores that do not depend on these.
    """
    model = origin.manifest.to_train
    if model is None:
        return {}
    adapter = [name for name in PathSettings.model_fields if "training" in declared_by(PathSettings, name).used_by]
    return {
        "model": origin.manifest.identity.get("model") or model.fingerprint or model.name,
        "max_length": model.max_length,
        **{name: model.settings[name] for name in (*adapter, *_LOADED) if model.settings.get(name) is not None},
    }


_LOADED = ("revision", "load_in_4bit", "load_in_8bit", "device_map")
"""Settings by which a model is loaded."""


def _of_settings(config: SelectionSettings, variant: Variant) -> dict[str, Any]:
    """The part of the identity that settings decide."""
    stages: Any = ("pilots", "fit", "scan", "choice")
    return {
        "method": variant.method.name,
        "options": variant.dumped,
        "settings": with_effect(config, variant.method, *stages),
    }


def _model_of(done: Run, config: SelectConfig) -> str:
    """The content of the model that is asked for; one that is gone is taken for the run's if it is called so."""
    try:
        return model_identity(config)
    except ModelError:
        if done.manifest.to_train and done.manifest.to_train.is_called(config.model):
            return str(done.manifest.identity.get("model"))
        raise
