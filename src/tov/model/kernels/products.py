"""Products of fp32 matrices on a CPU's bf16 multiplier: factors are rounded to bf16, sums and results stay fp32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def bf16_products(wanted: bool) -> Iterator[None]:
    """Within the block, if wanted, fp32 matrices on a CPU are multiplied so, where the hardware and torch (2.9 on) can.

    Args:
        wanted: whether the rounding of the factors loses nothing that matters: the caller's to say.
    """
    products: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not wanted or products is None:
        yield
        return
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before
