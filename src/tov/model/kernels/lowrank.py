"""The adapter's forward and backward pass in training: one thin product and one accumulation into the frozen output.

peft computes an adapter on a bf16 base in fp32 beside it. Here each fp32 factor is a sum of two bf16 numbers and their products
ride on the hardware's bf16 multiplier with fp32 sums: `x (A1 + A2)^T (B1 + B2)^T`, without the product of the two small parts.
The scan has its own forward (`tov.model.kernels.joined`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tov.model.kernels.attention import wide


def split(wide: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(high, low) in `dtype` with high + low = wide to twice its precision."""
    high = wide.to(dtype)
    return high, (wide - high.to(wide.dtype)).to(dtype)


Factors = tuple[Tensor, Tensor]


def thin_factors(down: Tensor, up: Tensor, scaling: float, dtype: torch.dtype) -> Factors:
    """(k, in) and (k, out) factors in `dtype` whose product is `scaling * B A`: k = r, or 3r where `dtype` is narrower.

    Args:
        down: (r, in) A, fp32.
        up: (out, r) B, fp32.
        scaling: alpha / r.
        dtype: of the frozen layer.
    """
    up = up.T * scaling
    if dtype.itemsize >= down.dtype.itemsize:
        return down.to(dtype), up.to(dtype)
    (down1, down2), (up1, up2) = split(down, dtype), split(up, dtype)
    return torch.cat([down1, down2, down1]), torch.cat([up1, up1, up2])


def thin_linear(x: Tensor, base: nn.Linear, factors: Factors) -> tuple[Tensor, Tensor]:
    """(output (..., out), thin product (..., k)) of a frozen linear layer with its adapter."""
    down, up = factors
    thin = functional.linear(x, down)
    out = functional.linear(x, base.weight, base.bias)
    out.flatten(0, -2).addmm_(thin.flatten(0, -2), up)
    return out, thin


class _TrainedLinear(torch.autograd.Function):
    """The same forward with gradients for A and B in fp32, in two thin products each and no copy of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, base: nn.Linear, scaling: float) -> Tensor:
        out, thin = thin_linear(x, base, thin_factors(down, up, scaling, base.weight.dtype))
        ctx.base, ctx.scaling = base, scaling
        ctx.save_for_backward(x, down, up, thin)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, down, up, thin = ctx.saved_tensors
        weight, rank = ctx.base.weight, len(down)
        upstream, rows, thin = (tensor.flatten(0, -2) for tensor in (upstream, x, thin))
        if thin.shape[1] > rank:  # the parts of A1 and A2 add up to x A
            thin = thin[:, :rank] + thin[:, rank : 2 * rank]
        back = upstream @ (up * ctx.scaling).to(weight.dtype)  # (rows, r)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = upstream @ weight
            to_x.addmm_(back, down.to(weight.dtype))
            to_x = to_x.reshape(x.shape)
        to_down, to_up = back.T @ rows, upstream.T @ thin
        return to_x, to_down.to(down.dtype), to_up.to(up.dtype) * ctx.scaling, None, None


def plain_layers(adapted: Any) -> list[Any]:
    """The adapted layers that are plain linear ones, the head excepted; others (in 4 or 8 bits, say) keep peft's forward."""
    from peft.tuners.lora.layer import Linear

    head = adapted.get_base_model().get_output_embeddings()
    return [
        layer
        for layer in adapted.modules()
        if type(layer) is Linear
        and type(layer.base_layer) is nn.Linear
        and layer is not head
        and not spread(layer.base_layer)
    ]


def spread(module: Any) -> bool:
    """Whether the module is part of a model over several devices: accelerate moves what it is given to its own."""
    return hasattr(module, "_hf_hook")


def factors_of(layer: Any) -> tuple[Tensor, Tensor, float]:
    """A (r, in), B (out, r) and alpha / r of an adapted layer, live."""
    name = layer.active_adapters[0]
    return layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]


@contextlib.contextmanager
def training(adapted: Any) -> Iterator[None]:
    """Within the block adapters drop out, if they do; layers without dropout run the thin forward with its gradients.

    The frozen model stays in evaluation mode: its own dropout (encoders have some) is noise beside a small step, and slow.
    """

    def forward(layer: Any, x: Tensor) -> Any:
        down, up, scaling = factors_of(layer)
        return _TrainedLinear.apply(x, down, up, layer.base_layer, scaling)

    adapted.eval()
    dropped = any(getattr(config, "lora_dropout", 0.0) for config in adapted.peft_config.values())
    for name, module in adapted.named_modules():
        if name.endswith("lora_dropout"):
            module.train()
    try:
        with forwards([] if dropped else plain_layers(adapted), forward), wide(adapted.get_base_model()):
            yield
    finally:
        adapted.eval()


@contextlib.contextmanager
def forwards(layers: list[Any], forward: Callable[[Any, Tensor], Tensor]) -> Iterator[None]:
    """Within the block each layer's forward is `forward(layer, x)`."""
    for layer in layers:
        layer.forward = partial(forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
