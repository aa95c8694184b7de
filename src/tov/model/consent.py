"""What of a model is known before anything of it is loaded or run: its fingerprint, and the code that it brings.

Only JSON files and bytes are read here, so a model may be looked at that nobody has consented to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tov.errors import ModelError
from tov.files import digest, file_digest

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
"""Files of a model's folder that may hold weights."""
TOKENS = (
    "tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json", "*.jinja", "*.model", "dict.txt",
)  # fmt: skip
"""Files of a model's folder that tokens may depend on."""
FLAG = "--trust-remote-code"


class Expected(NamedTuple):
    """The model that an earlier run had; what is there now is held against it before it is opened.

    Attributes:
        fingerprint: of configuration and weights; None where that is not known.
        tokenizer: likewise.
        whose: ends the sentence "is no longer the one ...".
        anew: what to do if the old files are gone.
    """

    fingerprint: str | None
    tokenizer: str | None
    whose: str
    anew: str

    def check(self, name: str, *, fingerprint: str | None = None, tokenizer: str | None = None) -> None:
        """Raises ModelError if a fingerprint is given and is another one."""
        pairs = {
            "weights": (self.fingerprint, fingerprint),
            "tokenizer or chat template": (self.tokenizer, tokenizer),
        }
        for what, (was, now) in pairs.items():
            if was and now and was != now:
                raise ModelError(
                    f"The model '{name}' is no longer the one {self.whose}: {what} {was} -> {now}.",
                    fix=f"Put the old files back, or {self.anew}.",
                )


def read_settings(source: str, revision: str | None = None) -> dict[str, Any]:
    """What `config.json` says."""
    file = folder_of(source, revision) / "config.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def folder_of(source: str, revision: str | None = None) -> Path:
    """The folder of a model; of a Hub id that of the commit in the Hub's cache, with its configuration fetched."""
    from transformers.utils.hub import cached_file

    if Path(source).is_dir():
        return Path(source)
    return Path(str(cached_file(source, "config.json", revision=revision))).parent


def fingerprint(source: str, settings: dict[str, Any], *, revision: str | None = None) -> str:
    """16 hex digits of every byte of weights, own code and configuration, in any format; of a Hub model its commit.

    Args:
        source: a folder or a Hub id.
        settings: `read_settings`.
        revision: on the Hub.
    """
    folder = Path(source)
    if not folder.is_dir():
        return folder_of(source, revision).name[:16]
    kinds = (*WEIGHTS, *(("*.py",) if settings.get("auto_map") else ()))
    files = {file.name: file for kind in kinds for file in folder.glob(kind)}
    files |= {name: file for name, file in _parts(folder) if name not in files}
    about = {name: value for name, value in settings.items() if name != "transformers_version"}
    return digest([about, {name: _digest(files[name]) for name in sorted(files)}])


def tokens_of(folder: Path) -> dict[str, str]:
    """The files of a model's folder that tokens may depend on, with their digests."""
    files = {file for kind in TOKENS for file in folder.glob(kind) if file.is_file()}
    return {file.name: _digest(file) for file in sorted(files)}


def _digest(file: Path) -> str:
    state = file.stat()
    return _digest_in(file, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@cache
def _digest_in(file: Path, *state: int) -> str:
    """Of a file in this state: one command asks for that of a model several times."""
    return file_digest(file)


def _parts(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files that an index of weights names, which may lie in other folders."""
    for index in folder.glob("*.index.json"):
        names = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        yield from ((str(name), folder / str(name)) for name in names if (folder / str(name)).is_file())


def code_of(source: str, revision: str | None = None) -> list[str]:
    """The code that a model brings: `modeling.py (Class)`; of another repository `OTHER: modeling.py (Class)`."""
    files = [folder_of(source, revision) / name for name in ("config.json", "tokenizer_config.json")]
    maps = [json.loads(file.read_text(encoding="utf-8")).get("auto_map") for file in files if file.is_file()]
    found: dict[str, None] = {}
    for names in maps:
        values = list(names.values()) if isinstance(names, dict) else names or []
        flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
        found |= dict.fromkeys(_described(str(one)) for one in flat if one)
    return list(found)


def _described(reference: str) -> str:
    repository, _, name = reference.rpartition("--")
    module, _, kind = name.rpartition(".")
    return f"{repository}: {module}.py ({kind})" if repository else f"{module}.py ({kind})"


def kernels_of(settings: Any) -> list[str]:
    """Compiled kernels of the Hub that a configuration asks for, in any part of it."""
    if isinstance(settings, list):
        return [name for one in settings for name in kernels_of(one)]
    if not isinstance(settings, dict):
        return []
    named = [settings.get(key) for key in ("attn_implementation", "_attn_implementation", "experts_implementation")]
    flat = [one for value in named for one in (value.values() if isinstance(value, dict) else [value])]
    inside = [name for value in settings.values() for name in kernels_of(value)]
    return list(dict.fromkeys([*(one for one in flat if isinstance(one, str) and "/" in one), *inside]))


def not_consented(name: str, source: str, code: list[str]) -> ModelError:
    """The error for a model whose code would have to be run."""
    place = Path(source).absolute() if Path(source).is_dir() else f"https://hf.co/{source}"
    return ModelError(
        f"The model '{name}' brings code of its own, which was not run: {', '.join(code)}.",
        fix=f"Read that code in {place}. If you trust it, give {FLAG} with this command: no file can give it for you.",
    )


def check_consent(
    name: str, source: str, settings: dict[str, Any], *, revision: str | None = None, trust_remote_code: bool = False
) -> None:
    """Raises ModelError if a configuration cannot be had without code that the user has not consented to."""
    from transformers import CONFIG_MAPPING

    if trust_remote_code:
        return
    brings = "AutoConfig" in (settings.get("auto_map") or {}) and settings.get("model_type") not in CONFIG_MAPPING
    code = [*(code_of(source, revision) if brings else []), *(f"the kernel {one}" for one in kernels_of(settings))]
    if code:
        raise not_consented(name, source, code)
