"""Rows as vectors from a sentence encoder, a model of the library sentence-transformers, in place of the model that is tuned.

Knows texts only. Each text is cut at the encoder's own length.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tov.errors import ConfigError, ModelError, NumericError, of_system
from tov.model.load import pick_device, resolve

BATCH = 64
"""Texts in one batch; the library sorts them by length."""


@dataclass(frozen=True)
class SentenceEncoder:
    """A sentence encoder.

    Attributes:
        model: a SentenceTransformer.
        fingerprint: 16 hex digits of its modules and weights.
    """

    model: Any
    fingerprint: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, D) fp32 of length 1, as the encoder pools them.

        Raises:
            NumericError: an embedding is not a finite number, or zero.
        """
        embeddings: np.ndarray = self.model.encode(
            list(texts) or [""],
            batch_size=BATCH,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )[: len(texts)]
        if not np.isfinite(embeddings).all() or not embeddings.any(axis=1).all():
            raise NumericError(
                "The sentence encoder gave an embedding that is zero or not a finite number.",
                fix="Leave out rows without text, or take another encoder.",
            )
        return embeddings.astype(np.float32, copy=False)


def open_sentence_encoder(name: str, *, device: str = "auto") -> SentenceEncoder:
    """A sentence encoder by name.

    Args:
        name: a folder, a Hub id, or minilm.
        device: auto, cpu, cuda, ...

    Raises:
        ConfigError: sentence-transformers is not installed.
        ModelError: there is no such model, or it cannot be read.
    """
    library, place = import_sentence_transformers(), pick_device(device)
    try:
        source = resolve(name)
        _check_modules(name, source)
        model = library.SentenceTransformer(source, device=str(place), trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:
        if refused := of_system(error, f"The sentence encoder '{name}' cannot be loaded", ModelError):
            raise refused from error
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"The sentence encoder '{name}' cannot be loaded: {reason}",
            allowed="a model of sentence-transformers: a folder, a Hub id, or minilm",
            fix="Check the name. Offline, name a local folder or a model in the Hub cache.",
        ) from error
    return SentenceEncoder(model, _fingerprint(model))


def _check_modules(name: str, source: str) -> None:
    """Raises ModelError if a folder's modules are not all the library's own: older versions of it import any others."""
    file = Path(source) / "modules.json"
    modules = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    own = [str(one.get("type")) for one in modules if not str(one.get("type")).startswith("sentence_transformers.")]
    if own:
        raise ModelError(
            f"The sentence encoder '{name}' brings code of its own, which was not run: {', '.join(own)}.",
            fix="Take an encoder whose modules are those of sentence-transformers: tov runs no other.",
        )


def import_sentence_transformers() -> Any:
    """The module sentence_transformers.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("sentence_transformers")
    except ImportError:
        raise ConfigError(
            "The option encoder needs the package sentence-transformers, which is not installed.",
            fix="Install it with pip install 'tov[encoder]', or leave encoder out: then the model being tuned embeds the rows.",
        ) from None


def _fingerprint(model: Any) -> str:
    sha = hashlib.sha256(str(model).encode())
    for name, weights in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(weights.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
