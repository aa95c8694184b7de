"""The one place where a seed is derived: every random choice names itself and gets its own stream."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the choice called `names`, independent of every other choice of the same run."""
    text = ":".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the choice called `names`."""
    return np.random.default_rng(derive(seed, *names))
