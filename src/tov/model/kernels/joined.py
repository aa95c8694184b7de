"""The adapter's forward pass in a scan: never merged, exact to the base model's own rounding, almost free.

peft computes an adapter beside its frozen layer, in fp32 also on a bf16 base, which halves the speed of a forward pass. Here
layers that read the same input (query, key and value; gate and up) are one product, and their adapters ride on it as a few
more columns: `[x | h] [W | B]^T` with `h = x A^T`. Each fp32 factor is a sum of two bf16 numbers (16 bits of mantissa), so
`[x | x A1^T | x A2^T | x A1^T] [W | B1 | B1 | B2]^T`, all on the hardware's bf16 multiplier with fp32 sums. Rounding the
factors to bf16 alone would lose the difference of two states; h is an activation, and is rounded as the model's others are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tov.model.adapters import write_state
from tov.model.kernels.attention import for_scans
from tov.model.kernels.lowrank import factors_of, forwards, plain_layers, split, spread

Refresh = Callable[[Mapping[str, Tensor]], None]
UNIT, THIN_UNIT = 16, 32
"""Numbers of half precision that a CPU's matrix unit takes at once, and columns of a product that it makes at once."""


class Joined:
    """Adapted linear layers that read the same input, as one product.

    Layers from H inputs to O outputs in all, of total rank R. Of each input, c thin columns are made: by A, or by A1 and A2
    under a dtype narrower than fp32, and a constant 1 for the bias, which costs nothing in the product and much beside it. The
    first k of them (A1's) count twice, for B2; k = 0 in fp32. The weight's inputs lead: a CPU is up to a third faster so.
    """

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        bases = [layer.base_layer for layer in layers]
        like: Tensor = bases[0].weight
        self.outputs, self.inputs = [base.out_features for base in bases], bases[0].in_features
        biased = any(base.bias is not None for base in bases)
        self.narrow = like.dtype.itemsize < 4
        self.rank = sum(len(factors_of(layer)[0]) for layer in layers)
        thin, self.again = self.rank + biased, 0
        if self.narrow:
            thin, self.again = _whole(self.rank + thin, UNIT), _whole(self.rank, UNIT)
            thin = thin if thin == UNIT else _whole(thin, THIN_UNIT)
        self.down = like.new_zeros(thin, self.inputs)  # (c, H)
        self.weight = like.new_zeros(self.inputs + thin + self.again, sum(self.outputs))  # (H + c + k, O)
        self.one = functional.one_hot(torch.tensor(thin - 1), thin).to(like) if biased else None  # (c,)
        for base, columns in zip(bases, self.weight.split(self.outputs, 1), strict=True):
            columns[: self.inputs] = base.weight.T
            base.weight.data = columns[: self.inputs].T  # a view, so that no weight is held twice
            if base.bias is not None:
                columns[self.inputs + thin - 1] = base.bias
        self.given: Tensor | None = None
        self.parts: dict[int, Tensor] = {}

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the adapters' parameters as they now are."""
        at = 0
        for layer, columns in zip(self.layers, self.weight[self.inputs :].split(self.outputs, 1), strict=True):
            down, up, scaling = factors_of(layer)
            one, two = slice(at, at + len(down)), slice(self.rank + at, self.rank + at + len(down))
            up = up.T * scaling
            if self.narrow:
                self.down[one], self.down[two] = split(down, self.down.dtype)
                columns[one], columns[len(self.down) :][one] = split(up, columns.dtype)
                columns[two] = columns[one]
            else:
                self.down[one], columns[one] = down, up
            at += len(down)

    def forward(self, layer: Any, x: Tensor) -> Tensor:
        """(..., out) the output of one of the layers; the first that is asked for an input computes all."""
        if x is not self.given or id(layer) not in self.parts:
            out = self._all(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
            self.given = x
            self.parts = {id(one): part for one, part in zip(self.layers, out.split(self.outputs, -1), strict=True)}
        out = self.parts.pop(id(layer))
        if not self.parts:
            self.given = None
        return out

    def release(self) -> None:
        """Gives each layer a weight of its own back: equal numbers that lie otherwise are multiplied with other rounding."""
        for layer in self.layers:
            layer.base_layer.weight.data = layer.base_layer.weight.data.contiguous()
        self.weight = self.weight.new_empty(0)  # so that no weight is held twice

    def _all(self, x: Tensor) -> Tensor:
        """(rows, O) from (rows, H)."""
        thin = functional.linear(x, self.down, self.one)  # (rows, c)
        extra = [thin, thin[:, : self.again]] if self.again else [thin]
        if self.inputs > sum(self.outputs):  # to add to the output moves less memory than to copy the input
            out = torch.mm(x, self.weight[: self.inputs])
            return out.addmm_(torch.cat(extra, 1), self.weight[self.inputs :])
        return torch.mm(torch.cat([x, *extra], 1), self.weight)


def _whole(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def join(adapted: Any) -> list[Joined]:
    """The adapted plain linear layers by the input that they read, found out by passing two tokens."""
    layers, seen = plain_layers(adapted), list[tuple[Any, Tensor]]()

    def record(layer: Any, x: Tensor) -> Tensor:
        seen.append((layer, x))
        return functional.linear(x, layer.base_layer.weight, layer.base_layer.bias)

    with torch.no_grad(), forwards(layers, record):
        model = adapted.get_base_model()
        model.base_model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device))
    groups: list[list[Any]] = []
    for place, (layer, x) in enumerate(seen):
        if any(layer in group for group in groups):
            continue  # a layer used twice
        mates = place and groups and x is seen[place - 1][1] and seen[place - 1][0] in groups[-1]
        alike = mates and layer.base_layer.weight.dtype == groups[-1][0].base_layer.weight.dtype
        groups[-1].append(layer) if alike else groups.append([layer])
    groups += [[layer] for layer in layers if not any(layer in group for group in groups)]
    return [Joined(group) for group in groups]


def quick_norms(adapted: Any) -> list[Any]:
    """The model's RMS norms that `_quick_norm` reproduces, found out by trying: some add 1 to the weight or order the steps
    otherwise."""
    norms = [
        module for module in adapted.modules() if hasattr(module, "variance_epsilon") and hasattr(module, "weight")
    ]
    return [module for module in norms if not spread(module) and _reproduced(module)]


@torch.no_grad()
def _reproduced(norm: Any) -> bool:
    weight = norm.weight
    x = torch.linspace(-3, 3, 4 * len(weight), device=weight.device).reshape(4, -1).to(weight.dtype)
    return torch.allclose(_quick_norm(norm, x), norm(x), rtol=max(1e-5, 2 * torch.finfo(weight.dtype).eps), atol=0)


def _quick_norm(norm: Any, x: Tensor) -> Tensor:
    """x / rms(x) * weight, in fp32 up to the weight, as transformers' RMS norms do, in half as many passes over memory."""
    if x.is_cuda and not torch.is_grad_enabled():
        return functional.rms_norm(x, x.shape[-1:], eps=norm.variance_epsilon).mul_(norm.weight)
    wide = x.to(torch.float32, copy=True)
    scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    return wide.mul_(scale.add_(norm.variance_epsilon).rsqrt_()).to(x.dtype).mul_(norm.weight)


@contextlib.contextmanager
def scanning(adapted: Any) -> Iterator[Refresh]:
    """Within the block the model is in evaluation mode and runs the joined forward; yields the function that sets a state.

    Layers that are not plain linear ones (GPT-2's Conv1D, quantised layers), or of a model over several devices, keep peft's
    own forward; RMS norms are quickened.
    """
    was_training = adapted.training
    adapted.eval()
    joined = join(adapted)
    layers = [layer for group in joined for layer in group.layers]
    of = {id(layer): group for group in joined for layer in group.layers}

    def refresh() -> None:
        for group in joined:
            group.refresh()

    def set_state(state: Mapping[str, Tensor]) -> None:
        write_state(adapted, state)
        refresh()

    try:
        with (
            torch.inference_mode(),
            forwards(layers, lambda layer, x: of[id(layer)].forward(layer, x)),
            forwards(quick_norms(adapted), _quick_norm),
            for_scans(adapted.get_base_model()),
        ):
            refresh()
            yield set_state
    finally:
        for group in joined:
            group.release()
        adapted.train(was_training)
