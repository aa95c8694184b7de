"""Features kept on disk: a safetensors file a shard of rows, whole or absent, stamped with what it was made from.

Scores need none of this; it is for features that serve several targets. A row takes `row_bytes` a checkpoint: 16 KiB at
LESS's d = 8192 in fp16. fp16 keeps 11 bits of a number between 6e-5 and 65504, enough for features of unit length (a cosine is
off by under 1e-3), not for raw gradients, which want fp32. Must not know what features mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tov.errors import ConfigError, NumericError, RunError
from tov.files import atomic
from tov.progress import Progress, Silent, part

Make = Callable[[int, int], Tensor]
"""(stop - start, d) features of the rows from `start` up to `stop`; NaN in all of a row that has none."""
_STAMP, _NAME = "tov_fingerprint", "features"
_KINDS = (torch.float16, torch.float32)


def row_bytes(size: int, dtype: torch.dtype = torch.float16) -> int:
    """Bytes on disk a row and checkpoint: d times 2 or 4, headers (about 100 bytes a shard) not counted."""
    return size * dtype.itemsize


def store_features(
    folder: Path,
    rows: int,
    make: Make,
    *,
    shard_rows: int,
    fingerprint: str,
    dtype: torch.dtype = torch.float16,
    progress: Progress | None = None,
) -> None:
    """Makes and writes every shard that is not there yet.

    Killed at any moment and called again, it goes on with the first missing shard and ends with the same files.

    Args:
        folder: of one checkpoint's features.
        rows: N.
        make: gives a shard's features; called once a missing shard, in row order.
        shard_rows: rows a shard; part of what the fingerprint must be of.
        fingerprint: of all that the features depend on: state, moments, projection, pool, tokens.
        dtype: fp16 or fp32.
        progress: told of rows.

    Raises:
        ConfigError: another dtype.
        RunError: a shard was made from something else, or is broken.
        NumericError: a feature is infinite or too large for the dtype.
        StorageError: the disk is full.
    """
    if dtype not in _KINDS:
        raise ConfigError(f"features in {dtype}", allowed="torch.float16, torch.float32")
    progress = progress or Silent()
    for start in range(0, rows, shard_rows):
        stop = min(start + shard_rows, rows)
        file = shard_file(folder, start)
        found = is_done(file, fingerprint)
        if not found:
            with part(progress, stop - start):
                features = make(start, stop).to(dtype)
            write_shard(file, features, fingerprint=fingerprint)
        progress.advance(stop - start, found=found)


def shard_file(folder: Path, start: int) -> Path:
    """The file of the shard whose first row is `start`."""
    return folder / f"rows-{start:012d}.safetensors"


def is_done(file: Path, fingerprint: str) -> bool:
    """Whether a shard is there and was made from the same things.

    Raises:
        RunError: it was made from others, or is broken.
    """
    if not file.exists():
        return False
    _read(file, fingerprint, header=True)
    return True


def write_shard(file: Path, features: Tensor, *, fingerprint: str) -> None:
    """Writes one shard atomically.

    Args:
        file: from `shard_file`.
        features: (rows, d).
        fingerprint: of what they were made from.

    Raises:
        NumericError: a feature is infinite.
    """
    from safetensors.torch import save_file

    if torch.isinf(features).any():
        raise NumericError(
            f"a feature is not a finite number in {features.dtype}", fix="keep features in fp32, or normalise them"
        )
    with atomic(file) as temporary:
        save_file({_NAME: features.cpu().contiguous()}, str(temporary), metadata={_STAMP: fingerprint})


def read_features(folder: Path, rows: int, *, fingerprint: str) -> Iterator[tuple[int, Tensor]]:
    """(start, (shard rows, d)) of every shard in row order, one in memory at a time.

    Raises:
        RunError: a shard is missing, broken, or was made from something else.
    """
    start = 0
    while start < rows:
        features = stored_shard(folder, start, fingerprint=fingerprint)
        yield start, features
        start += len(features)


def stored_shard(folder: Path, start: int, *, fingerprint: str) -> Tensor:
    """(shard rows, d) of the shard whose first row is `start`. Errors as of `read_features`."""
    file = shard_file(folder, start)
    if not file.exists():
        raise RunError(f"{folder} lacks the features of row {start}", fix="give the command that makes them again")
    return _read(file, fingerprint, header=False)


def _read(file: Path, fingerprint: str, *, header: bool) -> Tensor:
    """A shard's features, or of its header alone nothing but the proof that it is whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt") as shard:
            stamp = (shard.metadata() or {}).get(_STAMP, "")
            features = torch.empty(0) if header else shard.get_tensor(_NAME)
    except SafetensorError as error:
        raise RunError(
            f"{file} is broken: {error}", fix="delete it, then give the same command again: it makes what is missing"
        ) from None
    if stamp != fingerprint:
        raise RunError(f"{file} belongs to another run", fix="choose another folder, or delete this one")
    return features
