"""The projection matrices, entry by entry, in Python's own integers."""

from __future__ import annotations

MASK = (1 << 64) - 1


def splitmix64(seed: int, counter: int) -> int:
    """Output number `counter` (from 0) of the generator splitmix64 started at `seed`."""
    z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def rademacher(rows: int, size: int, seed: int) -> list[list[float]]:
    """(rows, size) of +-1/sqrt(size): bit b of word w of a row is the sign in column 64 w + b."""
    words = (size + 63) // 64
    return [
        [
            (1.0 if splitmix64(seed, row * words + column // 64) >> column % 64 & 1 else -1.0) / size**0.5
            for column in range(size)
        ]
        for row in range(rows)
    ]


def sjlt(rows: int, size: int, seed: int, nonzeros: int) -> list[list[float]]:
    """(rows, size) with one entry +-1/sqrt(nonzeros) in each of `nonzeros` equal parts of a row.

    Bit `row % 64` of word (row // 64, part) is the sign; the row's block of `width` rows is turned by random columns.
    """
    matrix, width = [[0.0] * size for _ in range(rows)], size // nonzeros
    for row in range(rows):
        for part in range(nonzeros):
            turn = (splitmix64(seed, -1 - (row // width * nonzeros + part)) >> 1) % width
            bit = splitmix64(seed, row // 64 * nonzeros + part) >> row % 64 & 1
            matrix[row][part * width + (row + turn) % width] = (1.0 if bit else -1.0) / nonzeros**0.5
    return matrix
