"""RMS norms in training on a CPU: the scan's quick forward with a gradient that is one fused kernel and a row sum.

Autograd would walk a dozen times over fp32 copies of the activations, which is bound by memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tov.model.kernels.joined import _quick_norm, quick_norms
from tov.model.kernels.lowrank import forwards


class _TrainedNorm(torch.autograd.Function):
    """y = w x / rms(x) with frozen w: dL/dx = s (wg - n mean(wg n)) for n = x s, s = 1 / rms(x).

    A layer norm's gradient at mean 0 is that less `s mean(wg)`, and torch has it as one kernel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Any) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        ctx.norm = norm
        ctx.save_for_backward(x, square.div_(x.shape[-1]).add_(norm.variance_epsilon).rsqrt_())
        return _quick_norm(norm, x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        x, scale = ctx.saved_tensors
        weight = ctx.norm.weight.float()
        to_x = torch.ops.aten.native_layer_norm_backward(
            upstream.contiguous(), x, weight.shape, torch.zeros_like(scale), scale, weight, None, [True, False, False]
        )[0]
        mean = (upstream @ ctx.norm.weight[:, None]).float().div_(len(weight))  # (..., 1)
        return to_x.add_(scale.mul(mean).to(to_x.dtype)), None


@contextlib.contextmanager
def trained_norms(model: Any) -> Iterator[None]:
    """Within the block the frozen RMS norms that the quick one reproduces have its forward, on a CPU."""
    known = model.device.type == "cpu" and model.dtype in (torch.float32, torch.bfloat16)
    norms = [norm for norm in quick_norms(model) if not norm.weight.requires_grad] if known else []
    with forwards(norms, lambda norm, x: _TrainedNorm.apply(x, norm)):
        yield
