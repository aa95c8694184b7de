"""What the methods are measured against: rows at random, all rows, and no training at all. None of them scores anything."""

from __future__ import annotations

from tov.methods.base import Method


class Random(Method):
    """Uniform without repeats."""

    name = "random"
    summary = "rows drawn uniformly at random"
    takes = "random"


class Full(Method):
    """The whole pool."""

    name = "full"
    summary = "every usable row of the pool"
    takes = "all"


class ZeroShot(Method):
    """The pretrained model."""

    name = "zero-shot"
    summary = "no rows; the pretrained model is tested without training"
    takes = "none"
