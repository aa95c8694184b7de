"""The stored path: `path/epoch-K/base` and `path/epoch-K/target`, PEFT folders, the target's embeddings under the first base
state (`path/target.npy`), and a manifest that says they are complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tov.errors import RunError
from tov.files import atomic, digest, file_digest, read_sealed, write_sealed
from tov.methods.tov.scan import Epoch
from tov.methods.tov.variants import Step
from tov.model.adapters import State, load, save
from tov.model.consent import Expected
from tov.runs.format1 import renamed
from tov.runs.manifest import CONSENT

REQUIRED = ("model", "model_fingerprint", "max_length", "labels", "epochs", "settings", "base", "target", "fingerprint")
"""What the manifest of a path must say."""
EMBEDDINGS = "target.npy"
HELD_BYTES = 2 << 30
"""Bytes of states that a process keeps in memory between shards."""


@dataclass(frozen=True)
class StoredPath:
    """A fitted path on disk.

    Attributes:
        folder: the `path/` folder.
        manifest: model, settings, schedule, base rows, log, fingerprint.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def epochs(self) -> int:
        """L."""
        return int(self.manifest["epochs"])

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the adapters' bytes and of how rows must be encoded for them."""
        return str(self.manifest["fingerprint"])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that it was fitted under, by their present names; whoever goes out from it consents anew."""
        settings = renamed(self.manifest["settings"])
        return {name: value for name, value in settings.items() if name != CONSENT}

    @property
    def prompts(self) -> np.ndarray:
        """(M,) uint64 prompt hashes of the target."""
        return np.array([int(value, 16) for value in self.manifest["target"]["prompt"]], np.uint64)

    @property
    def target(self) -> dict[str, Any]:
        """Rows and fingerprint of the target, for a manifest."""
        return {"rows": self.manifest["target"]["rows"], "fingerprint": digest(self.manifest["target"]["prompt"])}

    @property
    def expected(self) -> Expected:
        """The model that it was fitted on."""
        return Expected(
            self.manifest["model_fingerprint"], self.manifest.get("tokenizer_fingerprint"),
            "that the path was fitted on", "fit again (--force)",
        )  # fmt: skip

    def state(self, epoch: int, which: str) -> State:
        """The adapter of epoch k (from 1), `base` or `target`."""
        return load(self.folder / f"epoch-{epoch}" / which)

    @property
    def embeddings(self) -> np.ndarray | None:
        """(M, D) fp32 of length 1, the target's rows under the first base state; None in a path of 0.1.0, which has none."""
        file = self.folder / EMBEDDINGS
        return np.load(file).astype(np.float32) if EMBEDDINGS in self.manifest.get("adapters", {}) else None

    def pairs(self, amplify: float = 1.0) -> Iterator[tuple[int, State, State]]:
        """(k, base state, amplified target state) of each epoch, read when asked for.

        The amplified state is theta_bas + c (theta_val - theta_bas). States are linear in the adapter's parameters, so to first
        order every gain is c times as large, at no cost; rounding is not. c = 1 is theta_val itself (the paper's).
        """
        for epoch in range(1, self.epochs + 1):
            base, target = self.state(epoch, "base"), self.state(epoch, "target")
            if amplify != 1.0:
                target = {name: base[name] + amplify * (target[name] - base[name]) for name in base}
            yield epoch, base, target


def epochs_again(paths: Mapping[str, StoredPath], amplify: float) -> Callable[[], Iterable[Epoch]]:
    """What gives the epochs of several paths any number of times: from memory where they are at most `HELD_BYTES`.

    Args:
        paths: by target; base states of the same bytes are one.
        amplify: c, as of `StoredPath.pairs`.
    """
    files = [file for path in paths.values() for file in path.folder.glob("epoch-*/*/adapter_model.safetensors")]
    if sum(file.stat().st_size for file in files) > HELD_BYTES:
        return lambda: _epochs(paths, amplify)
    epochs = list(_epochs(paths, amplify))
    return lambda: epochs


def _epochs(paths: Mapping[str, StoredPath], amplify: float) -> Iterator[Epoch]:
    walks = {name: path.pairs(amplify) for name, path in paths.items()}
    for groups in base_groups(paths):
        states = {name: next(walk) for name, walk in walks.items()}
        yield [(states[group[0]][1], {name: states[name][2] for name in group}) for group in groups]


def base_groups(paths: Mapping[str, StoredPath]) -> list[list[list[str]]]:
    """For each epoch, the names of the paths that have one base state in common, together.

    Raises:
        RunError: their numbers of epochs differ.
    """
    counts = {name: path.epochs for name, path in paths.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise RunError(
            f"The targets' paths have different numbers of scoring epochs ({told}): they were fitted under other settings.",
            fix="Fit them again (--force), or set --out to another folder.",
        )
    epochs = []
    for epoch in range(1, next(iter(paths.values())).epochs + 1):
        groups = dict[str, list[str]]()
        for name, path in paths.items():
            adapter = f"epoch-{epoch}/base/adapter_model.safetensors"
            groups.setdefault(path.manifest.get("adapters", {}).get(adapter, name), []).append(name)
        epochs.append(list(groups.values()))
    return epochs


def save_step(adapted: Any, folder: Path, step: Step, state: State) -> None:
    """Writes one state of the path; `finish` later says that all are there."""
    save(adapted, state, folder / f"epoch-{step.epoch}" / step.result.partition("-")[0])


def save_embeddings(folder: Path, embeddings: np.ndarray) -> None:
    """Writes the target's embeddings, in fp16: cosines are off by about 1e-5."""
    with atomic(folder / EMBEDDINGS) as temporary, open(temporary, "wb") as opened:
        np.save(opened, embeddings.astype(np.float16))


def finish(folder: Path, manifest: dict[str, Any]) -> StoredPath:
    """Writes the manifest, with which the path becomes a finished one."""
    adapters = [*sorted(folder.glob("epoch-*/*/adapter_model.safetensors")), folder / EMBEDDINGS]
    prints = {str(path.relative_to(folder)): file_digest(path) for path in adapters if path.exists()}
    encoding = {key: manifest[key] for key in ("model_fingerprint", "dtype", "max_length", "labels")}
    write_sealed(folder / "manifest.json", {**manifest, "adapters": prints, "fingerprint": digest([prints, encoding])})
    return open_path(folder)


def open_path(folder: Path) -> StoredPath:
    """A finished path.

    Raises:
        RunError: there is none, it was not finished, or a file is not the one that was fitted.
    """
    file = folder / "manifest.json"
    if not file.exists():
        raise RunError(f"{folder} holds no finished path.", fix="Give the command that fits it again.")
    manifest = read_sealed(file)
    lacks = [key for key in REQUIRED if not isinstance(manifest, dict) or key not in manifest]
    if lacks:
        raise RunError(
            f"{file} is broken: it lacks {lacks[0]}.", fix="Put it back from a copy, or fit the path again (--force)."
        )
    stored = StoredPath(folder, manifest)
    for name, fingerprint in stored.manifest.get("adapters", {}).items():
        made = folder / name
        if not made.exists() or file_digest(made) != fingerprint:
            raise RunError(
                f"{made} is {'not there' if not made.exists() else 'not the file that was fitted (changed or cut)'}.",
                fix="Put the file back from a copy, or fit the path again (--force).",
            )
    return stored
