"""Checkpoints of a warm-up on disk: a safetensors file each, with the state, Adam's moments and the mean rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tov.errors import RunError
from tov.files import atomic
from tov.methods.shared.gradients import Checkpoint

_RATE, _SEPARATOR = "tov_rate", "|"
_STATE, _FIRST, _SECOND = "state", "first", "second"


def save_checkpoints(folder: Path, checkpoints: Sequence[Checkpoint]) -> None:
    """Writes `checkpoint-K.safetensors`, K from 1: 12 bytes a trained parameter, 4 without moments."""
    from safetensors.torch import save_file

    for number, checkpoint in enumerate(checkpoints, 1):
        tensors = {f"{_STATE}{_SEPARATOR}{name}": value for name, value in checkpoint.state.items()}
        for at, kind in enumerate((_FIRST, _SECOND) if checkpoint.moments is not None else ()):
            assert checkpoint.moments is not None
            tensors |= {f"{kind}{_SEPARATOR}{name}": pair[at].cpu() for name, pair in checkpoint.moments.items()}
        with atomic(folder / f"checkpoint-{number}.safetensors") as temporary:
            contiguous = {name: value.contiguous() for name, value in tensors.items()}
            save_file(contiguous, str(temporary), metadata={_RATE: repr(checkpoint.rate)})


def load_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints in a folder, first to last.

    Raises:
        RunError: there is none, or one is broken.
    """
    from safetensors import SafetensorError, safe_open

    checkpoints = []
    files = sorted(folder.glob("checkpoint-*.safetensors"), key=lambda file: int(file.stem.rpartition("-")[2]))
    for file in files:
        parts: dict[str, dict] = {_STATE: {}, _FIRST: {}, _SECOND: {}}  # type: ignore[type-arg]
        try:
            with safe_open(str(file), "pt") as opened:
                rate = float((opened.metadata() or {})[_RATE])
                for key in opened.keys():  # noqa: SIM118
                    kind, _, name = key.partition(_SEPARATOR)
                    parts[kind][name] = opened.get_tensor(key)
        except (SafetensorError, KeyError) as error:
            raise RunError(f"{file} is broken: {error}", fix=f"Delete the folder {folder}: it is made again.") from None
        moments = {name: (parts[_FIRST][name], parts[_SECOND][name]) for name in parts[_FIRST]}
        checkpoints.append(Checkpoint(parts[_STATE], rate, moments or None))
    if not checkpoints:
        raise RunError(f"{folder} holds no checkpoint.", fix="Delete the folder: it is made again.")
    return checkpoints
