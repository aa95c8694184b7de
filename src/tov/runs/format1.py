"""The manifest of version 0.1.0 in the present shape: its finished runs can be chosen from, scored with and trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tov.files import read_json

RENAMED: dict[str, str] = {
    "leak_guard": "decontaminate", "val_optimizer": "target_optimizer", "sgd_learning_rate": "target_sgd_learning_rate",
    "lora_rank": "lora_r", "lora_targets": "lora_target_modules", "bad_rows": "on_bad_row", "train_epochs": "num_train_epochs",
    "eps": "target_learning_rate_ratio", "variant": "path_variant", "schedule": "lr_scheduler_type",
}  # fmt: skip
"""Settings that were called otherwise."""


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under their present names."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def upgraded(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The manifest in format 2.

    Args:
        raw: what `manifest.json` says.
        folder: of the run; the model of a ToV run is described in `path/manifest.json` below it.
    """
    identity = dict(raw["identity"])
    command = identity.get("command", "")
    settings = renamed(identity.get("settings", {}))
    method = raw.get("scored_by", "tov")
    fields = (
        "status",
        "started",
        "finished",
        "seed",
        "versions",
        "hardware",
        "timings",
        "spent",
        "cost",
        "notes",
        "summary",
    )
    manifest: dict[str, Any] = {name: raw[name] for name in fields if raw.get(name) is not None}
    manifest |= {
        "format": 2,
        "command": command,
        "identity": {**identity, "settings": settings},
        "inputs": _inputs(raw.get("inputs", {})),
        "artifacts": _artifacts(raw, folder),
        "origin": {name: raw[key] for name, key in (("run", "run_from"), ("scores", "scores_from")) if raw.get(key)},
    }  # fmt: skip
    if command == "compare":
        asked = {"rules": raw.get("rules", {}), "asked": raw.get("asked", {})}
        return manifest | {"comparison": {**asked, "model": raw.get("model")}}
    if command == "train":
        return manifest | {"trained": raw.get("path")}
    path, scored = raw.get("path", {}), raw.get("method", {})
    if "target" in identity:
        manifest["targets"] = {"target": identity["target"]}
    model = _model(raw, folder)
    if model:
        manifest["model"] = model
    if "scan" in raw:
        manifest["scoring"] = {
            "method": method, "options": scored.get("options", {}), "settings": renamed(raw.get("scan_settings", {})),
            "fingerprint": raw["scan"]["fingerprint"], "unit": scored.get("unit", ""), "about": _about(path, scored),
            "noise_floor": raw.get("noise_floor") or None, "tokens_passed": raw["scan"].get("tokens_passed", 0),
            "rows": sum(identity.get("pool", {}).get("sources", {}).values()), "complete": True,
        }  # fmt: skip
    return manifest


def _artifacts(raw: Mapping[str, Any], folder: Path) -> dict[str, str]:
    scored = Path(raw["scores_from"]).parent if raw.get("scores_from") else folder
    path = raw.get("path_from") or ("path" if (scored / "path").exists() else None)
    return {**raw.get("parts", {}), **({"fit": path} if path else {})}


def _inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    locations = {name: inputs[name] for name in ("pool", "target", "test") if inputs.get(name) is not None}
    return {**locations, "reading": renamed(inputs.get("reading", {}))}


def _model(raw: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """What was said of the model: by the run, or by its stored path, or by that of the run that it went out from."""
    described = raw.get("model")
    if described is None:
        places = [folder / "path"]
        places += [Path(raw["path_from"])] if raw.get("path_from") else []
        places += [Path(raw["scores_from"]).parent / "path"] if raw.get("scores_from") else []
        file = next((place / "manifest.json" for place in places if (place / "manifest.json").exists()), None)
        if file is None:
            return None
        described = read_json(file)
    settings, on = renamed(described["settings"]), raw.get("path") or raw.get("method") or {}
    return {
        "name": settings["model"], "task": described["task"], "labels": described["labels"],
        "max_length": described["max_length"], "fingerprint": described.get("model_fingerprint"),
        "dtype": on.get("dtype") or described.get("dtype"), "device": on.get("device"), "settings": settings,
    }  # fmt: skip


def _about(path: Mapping[str, Any], scored: Mapping[str, Any]) -> str:
    if scored:
        return f"scored by {scored['name']}, {scored['target_rows']:,} target rows"
    return f"{path['base_rows']:,} base rows, {path['target_rows']:,} target rows, {path['epochs']} scoring epochs"
