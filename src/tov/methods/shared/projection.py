"""Random projections of gradients to d numbers, block by block: the matrix is a function of a seed and is never whole anywhere.

Entry (i, j) of the matrix depends on the seed, i, j and d alone, by a counter hashed with splitmix64 (Steele, Lea, Flood 2014)
in integer arithmetic: any block size, process and device has the same matrix. Must not know what is projected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tov.errors import ConfigError

BLOCK_NUMBERS = 1 << 22
"""Entries of the matrix that are made at once: 16 MiB in fp32."""
_WORD = 64
_GAMMA, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class Projection:
    """A random matrix R of d columns and as many rows as there are parameters; E |x R|^2 = |x|^2.

    Attributes:
        size: d.
        seed: of the matrix.
        kind: `rademacher`, entries +-1/sqrt(d) (LESS's; 2 P d FLOPs a row), or `sjlt`, `nonzeros` entries +-1/sqrt(s) in each
            row of R, one in each of s equal parts of the columns (Kane, Nelson 2014; 2 P s FLOPs a row). Of the w = d/s columns
            of a part, w coordinates one after another take all in turn, from a random one on: two coordinates meet with
            probability 1/w or never, and signs are independent, which is all that the variance of an inner product asks for,
            about |x|^2 |y|^2 / d as of `rademacher`. In return a block of coordinates is added as it lies in memory.
        nonzeros: s, a divisor of d; of `sjlt` alone.
    """

    size: int = 8192
    seed: int = 0
    kind: Literal["rademacher", "sjlt"] = "rademacher"
    nonzeros: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("rademacher", "sjlt"):
            raise ConfigError(
                f"There is no projection of kind {self.kind!r}.", allowed="rademacher, sjlt", fix="Name one of these."
            )
        if self.size < 1:
            raise ConfigError(
                f"A projection cannot have {self.size} numbers.", allowed="1 or more", fix="Raise its size."
            )
        if self.kind == "sjlt" and (self.nonzeros < 1 or self.size % self.nonzeros):
            raise ConfigError(
                f"A projection to {self.size} numbers cannot have {self.nonzeros} nonzeros a row.",
                allowed="a divisor of the size",
                fix="Name a divisor of the size.",
            )


def add_projected(
    out: Tensor, values: Tensor, *, start: int, projection: Projection, block_numbers: int = BLOCK_NUMBERS
) -> None:
    """out += values @ R[start : start + p]. A flat gradient is projected part by part, in any order of the parts.

    Args:
        out: (B, d), added to in place.
        values: (B, p) of the same dtype and device, coordinates `start` to `start + p` of the rows' gradients.
        start: where the part lies (`tov.model.gradients.places`).
        projection: the matrix.
        block_numbers: numbers held at once beside these: entries of R, or B p for `sjlt`.
    """
    rademacher = projection.kind == "rademacher"
    step = max(1, block_numbers // (projection.size if rademacher else max(1, len(values))))
    for at in range(0, values.shape[1], step):
        part = values[:, at : at + step]
        if rademacher:
            coordinates = start + at + torch.arange(part.shape[1], device=values.device)
            out.addmm_(part, signs(coordinates, projection, values.dtype), alpha=projection.size**-0.5)
        else:
            _add_turned(out, part, start + at, projection)


def signs(coordinates: Tensor, projection: Projection, dtype: torch.dtype) -> Tensor:
    """(rows, d) entries +-1 of R sqrt(d), of these rows.

    Args:
        coordinates: (rows,) int64.
        projection: of kind `rademacher`.
        dtype: of the result.
    """
    words = -(-projection.size // _WORD)
    counters = coordinates[:, None] * words + torch.arange(words, device=coordinates.device)
    return _unpacked(_hashed(counters, projection.seed), dtype).flatten(1)[:, : projection.size]


def _unpacked(words: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., words 64) signs +-1 from (..., words) int64: the bits of each, the least significant first."""
    octets = words.contiguous().view(torch.uint8)
    bits = (torch.arange(256, device=octets.device)[:, None] >> torch.arange(8, device=octets.device)) & 1
    table = bits.to(dtype).mul_(2).sub_(1)  # (256, 8)
    return functional.embedding(octets.int(), table).flatten(-2)


def _add_turned(out: Tensor, part: Tensor, start: int, projection: Projection) -> None:
    """Adds each number, with a sign, to one column in each of s parts of `out`: block by block of w, each turned round."""
    s, stop = projection.nonzeros, start + part.shape[1]
    width = projection.size // s
    words = torch.arange(start // _WORD, -(-stop // _WORD), device=part.device)
    blocks = range(start // width, -(-stop // width))
    turns = _hashed(
        -1 - torch.arange(blocks.start * s, blocks.stop * s), projection.seed
    )  # signs have counters from 0 on
    turn = (_shifted(turns, 1) % width).reshape(-1, s).tolist()
    for piece in range(s):
        sign = _unpacked(_hashed(words * s + piece, projection.seed), part.dtype)[start % _WORD :][: stop - start]
        signed, columns = part * sign.mul_(s**-0.5), out[:, piece * width : (piece + 1) * width]
        for block in blocks:
            at, end = max(start, block * width), min(stop, (block + 1) * width)
            first = (at + turn[block - blocks.start][piece]) % width
            until = min(end, at + width - first)
            columns[:, first : first + until - at] += signed[:, at - start : until - start]
            columns[:, : end - until] += signed[:, until - start : end - start]


def _hashed(counters: Tensor, seed: int) -> Tensor:
    """splitmix64 of a seed at these counters, as int64: products wrap around, as the hash wants them to."""
    z = (counters + 1) * _signed(_GAMMA) + _signed(seed)
    z = (z ^ _shifted(z, 30)) * _signed(_MIX1)
    z = (z ^ _shifted(z, 27)) * _signed(_MIX2)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
