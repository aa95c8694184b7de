"""Gradients of every row's log-loss in the adapter (and a new head), a batch at a time, layer by layer.

A batch's row losses are summed and go backward once: rows do not meet in the model, so what reaches a layer's output at token t
of row i is the gradient of row i's loss alone. With it and the layer's input the row's gradient is a sum of outer products,
`dW_i = sum_t g_it x_it^T`; for an adapter `s B A`: `dA_i = s sum_t (B^T g_it) x_it^T`, `dB_i = s sum_t g_it (A x_it)^T`. It is
handed on while the backward pass is at that layer, and then forgotten, so no more than a layer of a batch is ever held. Padded
tokens have g = 0. Must not know what the gradients are for. Speaks nats per unit of a parameter.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tov.errors import ModelError, NumericError
from tov.model.adapters import parameters
from tov.model.kernels.attention import wide
from tov.model.kernels.lowrank import factors_of, forwards, plain_layers, thin_factors, thin_linear
from tov.model.kernels.norms import trained_norms
from tov.model.kernels.products import bf16_products
from tov.model.logloss import row_logprobs
from tov.text.batches import Batch
from tov.text.encode import IGNORED

Take = Callable[[str, Tensor], None]
"""Given a parameter's name and (B, *shape) the rows' gradients in it; once a parameter, last layers first."""
Run = Callable[[Batch, Take], Tensor]
"""A forward and a backward pass over a batch; returns (B,) the rows' token-mean log-losses in nats (Eq. 7)."""


@contextlib.contextmanager
def per_example_gradients(adapted: Any) -> Iterator[Run]:
    """Within the block the model is in evaluation mode (no dropout); yields the function that passes a batch.

    The state is the one in the model (`tov.model.adapters.write_state` sets another, also within the block). Gradients are fp32
    (float64 under a float64 model), summed in fp32 also where the model is bf16; there the thin factors are rounded to bf16, as
    activations and their gradients are already. Nothing is left in the parameters' `.grad`.
    Per row of T tokens and layer (in, out) of rank r: 4 T r (in + out) FLOPs beside 4 T in out + 2 T r (2 in + out) of the
    forward and backward pass itself, and B r (in + out) numbers at once.

    Differs: LESS's authors take rows one at a time.

    Args:
        adapted: a PeftModel from `tov.model.adapters.attach`; every trained parameter belongs to a linear layer.

    The function raises:
        ModelError: a trained parameter is not part of a linear layer that is called row by row.
        NumericError: a row's log-loss is not a finite number.
    """
    was_training, model = adapted.training, adapted.get_base_model()
    adapted.eval()
    names = {id(parameter): name for name, parameter in parameters(adapted).items()}
    layers = plain_layers(adapted)
    inner = {id(part) for layer in layers for part in layer.modules()}
    others = [
        part
        for part in adapted.modules()
        if isinstance(part, nn.Linear) and part.weight.requires_grad and id(part) not in inner
    ]
    sink = _Sink(names, model.device)

    def adapter(layer: Any, x: Tensor) -> Any:
        down, up, scaling = factors_of(layer)
        sink.called(down, up)
        return _AdapterRows.apply(x, down, up, layer.base_layer, scaling, sink)

    def linear(layer: Any, x: Tensor) -> Any:
        sink.called(layer.weight, *([] if layer.bias is None else [layer.bias]))
        return _LinearRows.apply(x, layer.weight, layer.bias, sink)

    try:
        with forwards(layers, adapter), forwards(others, linear), wide(model), trained_norms(model):
            yield lambda batch, take: _pass(adapted, batch, sink, take)
    finally:
        adapted.train(was_training)


def places(adapted: Any) -> dict[str, slice]:
    """Where each parameter lies in the flat gradient of P numbers: the order of `tov.model.adapters.parameters`."""
    slices, start = {}, 0
    for name, parameter in parameters(adapted).items():
        slices[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return slices


def flat_gradients(adapted: Any, run: Run, batch: Batch) -> Tensor:
    """(B, P) whole gradients of a batch's rows, for small adapters: this does hold B x P.

    Args:
        adapted: a PeftModel.
        run: from `per_example_gradients`.
        batch: B rows.
    """
    parts: dict[str, Tensor] = {}
    run(batch, lambda name, gradient: parts.update({name: gradient.flatten(1)}))
    return torch.cat([parts[name] for name in parameters(adapted)], 1)


class _Sink:
    """Adds up a parameter's gradients over the calls of its layer (some models use one twice); hands on the sum."""

    def __init__(self, names: dict[int, str], home: torch.device) -> None:
        self.names, self.home = names, home

    def start(self, batch: Batch, take: Take) -> None:
        self.shape, self.take = batch.ids.shape, take
        self.left, self.parts, self.taken = Counter[str](), dict[str, Tensor](), set[str]()

    def called(self, *tensors: Tensor) -> None:
        self.left.update(self.names[id(tensor)] for tensor in tensors if id(tensor) in self.names)

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        name = self.names[id(parameter)]
        self.parts[name] = self.parts[name] + gradient if name in self.parts else gradient
        self.left[name] -= 1
        if not self.left[name]:
            self.hand_on(name, self.parts.pop(name))

    def hand_on(self, name: str, gradient: Tensor) -> None:
        self.taken.add(name)
        self.take(name, gradient.to(self.home))

    def by_row(self, x: Tensor) -> Tensor:
        """(B, T or 1, features) fp32 or wider from (B, T, features), (B, features) or (B T, features)."""
        rows, tokens = self.shape
        if rows > 1 and x.shape[0] != rows and x.shape[:-1] != (rows * tokens,):
            raise ModelError(
                f"The gradient of a trained layer cannot be taken row by row: "
                f"the layer is given {tuple(x.shape)} for a batch of {rows} rows of {tokens} tokens.",
                fix="Pass rows one at a time, with batch_tokens=1.",
            )
        return x.reshape(rows, -1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """(B, m, n) sum over tokens of outer products, from (B, T, m) and (B, T, n)."""
    return left.transpose(1, 2) @ right


class _AdapterRows(torch.autograd.Function):
    """The thin forward of `tov.model.kernels.lowrank`; its backward pass hands each row's gradients of A and B to the sink."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, base: nn.Linear, scaling: float, sink: _Sink) -> Tensor:
        ctx.base, ctx.scaling, ctx.sink, ctx.down, ctx.up = base, scaling, sink, down, up
        ctx.save_for_backward(x)
        return thin_linear(x, base, thin_factors(down, up, scaling, base.weight.dtype))[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:
        (x,), sink, weight = ctx.saved_tensors, ctx.sink, ctx.base.weight
        rows, pull = sink.by_row(x), sink.by_row(upstream)
        with bf16_products(weight.dtype == torch.bfloat16 and weight.device.type == "cpu"):
            back = pull @ (ctx.up * ctx.scaling)  # (B, T, r)
            to_down, to_up = _outer(back, rows), _outer(pull, rows @ (ctx.down * ctx.scaling).T)
        sink.add(ctx.down, to_down)
        sink.add(ctx.up, to_up)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None, None
        to_x = upstream.flatten(0, -2) @ weight
        to_x.addmm_(back.flatten(0, -2).to(weight.dtype), ctx.down.to(weight.dtype))
        return to_x.reshape(x.shape), None, None, None, None, None


class _LinearRows(torch.autograd.Function):
    """A linear layer that is trained itself: a new head's, or A or B on a layer of a kind that peft alone knows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sink: _Sink) -> Tensor:
        ctx.weight, ctx.bias, ctx.sink = weight, bias, sink
        ctx.save_for_backward(x)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None, None]:
        (x,), sink = ctx.saved_tensors, ctx.sink
        pull = sink.by_row(upstream)
        sink.add(ctx.weight, _outer(pull, sink.by_row(x)))
        if ctx.bias is not None and ctx.bias.requires_grad:
            sink.add(ctx.bias, pull.sum(1))
        return upstream @ ctx.weight if ctx.needs_input_grad[0] else None, None, None, None


def _pass(adapted: Any, batch: Batch, sink: _Sink, take: Take) -> Tensor:
    live = parameters(adapted)
    for parameter in live.values():
        parameter.grad = None
    sink.start(batch, take)
    with torch.enable_grad():
        losses = _row_losses(row_logprobs(adapted.get_base_model(), batch), batch)
        if not torch.isfinite(losses).all():
            raise NumericError(
                "The log-loss of a row is not a finite number.", fix="Try --dtype fp32, or a lower --learning-rate."
            )
        losses.sum().backward()
    for name, parameter in live.items():
        if parameter.grad is not None:
            parameter.grad = None
            raise ModelError(
                f"The gradient of {name} cannot be taken row by row: it is not part of a linear layer that is called.",
                allowed="adapters on linear layers, the language model's head excepted, and linear classifier heads",
                fix="Name linear layers with lora_target_modules.",
            )
        if name not in sink.taken:  # nothing that the loss depends on came from it
            shape = (len(batch.rows), *parameter.shape)
            with torch.no_grad():
                sink.hand_on(name, sink.parts.pop(name, torch.zeros(shape, device=parameter.device)))
    return losses.detach()


def _row_losses(logp: Tensor, batch: Batch) -> Tensor:
    """(B,) token-mean log-losses from (S,) log-probabilities, row by row; a row without a scored token has none: NaN."""
    counts = (batch.labels != IGNORED).sum(1)
    at = torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(logp.device)
    sums = logp.new_zeros(len(counts)).index_add(0, at, logp)
    return -sums / torch.from_numpy(counts).to(sums)
