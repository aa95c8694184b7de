"""From rows to what gradient methods compare: gradients at stored checkpoints, as Adam would use them, and projected.

Knows a batch of rows and the state in the model; must not know how a method weighs checkpoints (`influence`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tov.errors import ModelError
from tov.methods.shared.projection import Projection, add_projected
from tov.model.adapters import State, parameters
from tov.model.gradients import Run, places
from tov.text.batches import Batch

FIRST_DECAY, SECOND_DECAY, EPS = 0.9, 0.999, 1e-8
CACHED_NUMBERS = 1 << 18
"""Numbers of a layer's gradients that a CPU turns into Adam directions at once: what stays in its cache, twice as fast."""
Moments = Mapping[str, tuple[Tensor, Tensor]]
"""Adam's first and second moment of each parameter, by the names of `tov.model.adapters.parameters`."""


@dataclass(frozen=True)
class Checkpoint:
    """A state of a training.

    Attributes:
        state: the adapter's parameters.
        rate: eta_k, the mean learning rate of the epoch that led to it.
        moments: of the optimizer after that epoch; None where only plain gradients are wanted.
    """

    state: State
    rate: float
    moments: Moments | None = None


def moments_by_name(adapted: Any, stored: Mapping[str, Any]) -> Moments:
    """Adam's moments from an optimizer's `state_dict` (`tov.training.loop.moments_of`), which knows parameters by number.

    Numbers and names are both in the order of `tov.model.adapters.parameters`, in which the optimizer was given them. Copies.

    Args:
        adapted: the PeftModel that the optimizer trained.
        stored: of `tov.training.loop.make_optimizer(adapted, "carry")` after at least one step.

    Raises:
        ModelError: the moments are not those of this model's parameters, or are none (SGD, or no step yet).
    """
    live = parameters(adapted)
    numbers = [number for group in stored["param_groups"] for number in group["params"]]
    moments = {}
    for name, number in zip(live, numbers, strict=False):
        of_one = stored["state"].get(number, {})
        pair = tuple(of_one[key].detach().clone() for key in ("exp_avg", "exp_avg_sq") if key in of_one)
        if len(pair) == 2 and pair[0].shape == pair[1].shape == live[name].shape:
            moments[name] = (pair[0], pair[1])
    if len(numbers) != len(live) or len(moments) != len(live):
        raise ModelError(
            f"The optimizer has Adam moments for {len(moments)} of the model's {len(live)} trained parameters.",
            fix="Take them after a step of AdamW on this very adapter.",
        )
    return moments


def adam_direction(gradients: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """u = (b1 m + (1 - b1) g) / sqrt(b2 v + (1 - b2) g^2 + eps) of each row: the step that Adam would take, moments unchanged.

    b1 = .9, b2 = .999, eps = 1e-8. Source: LESS (Xia et al. 2024, arXiv 2402.04333), Section 3.1. Differs from Adam, as the
    authors' code does: eps stands inside the root and there is no bias correction.

    Args:
        gradients: (B, *shape).
        first: (*shape) m.
        second: (*shape) v.
    """
    above, under = FIRST_DECAY * first.to(gradients), SECOND_DECAY * second.to(gradients) + EPS
    directions = torch.empty_like(gradients)
    some = max(1, CACHED_NUMBERS // first.numel()) if gradients.device.type == "cpu" else max(1, len(gradients))
    for g, u in zip(gradients.split(some), directions.split(some), strict=True):
        root = torch.addcmul(under, g, g, value=1 - SECOND_DECAY).rsqrt_()
        torch.add(above, g, alpha=1 - FIRST_DECAY, out=u).mul_(root)
    return directions


def projected(adapted: Any, run: Run, batch: Batch, projection: Projection, moments: Moments | None = None) -> Tensor:
    """(B, d) R^T g of a batch's rows, or R^T u in the Adam form if there are moments; the model's state is the one in it.

    Args:
        adapted: a PeftModel.
        run: from `tov.model.gradients.per_example_gradients`.
        batch: B rows.
        projection: R.
        moments: of every parameter, or None.

    Raises:
        ModelError: a parameter has no moments.
    """
    out: list[Tensor] = []

    def take(place: slice, directions: Tensor) -> None:
        if not out:
            out.append(directions.new_zeros(len(directions), projection.size))
        add_projected(out[0], directions, start=place.start, projection=projection)

    _directions(adapted, run, batch, moments, take)
    return out[0]


def products(
    adapted: Any, run: Run, batch: Batch, vectors: Tensor, moments: Moments | None = None, *, unit: bool
) -> Tensor:
    """(B, S) <g, vector> of a batch's rows, or <u, vector>, of whole gradients, layer by layer: 2 P S FLOPs a row.

    Args:
        adapted: a PeftModel.
        run: from `tov.model.gradients.per_example_gradients`.
        batch: B rows.
        vectors: (S, P), as they are.
        moments: of every parameter, or None.
        unit: whether a row's gradient or direction is divided by its length; one that is zero has products 0.

    Raises:
        ModelError: a parameter has no moments.
    """
    found: list[Tensor] = []
    squares: list[Tensor] = []

    def take(place: slice, directions: Tensor) -> None:
        found.append(directions @ vectors[:, place].to(directions).T)
        if unit:
            squares.append(torch.linalg.vector_norm(directions, dim=1).square_())

    _directions(adapted, run, batch, moments, take)
    total = torch.stack(found).sum(0)
    if not unit:
        return total
    length = torch.stack(squares).sum(0).sqrt_()
    return total / length.clamp_min_(torch.finfo(length.dtype).tiny)[:, None]


def _directions(
    adapted: Any, run: Run, batch: Batch, moments: Moments | None, take: Callable[[slice, Tensor], None]
) -> None:
    """Hands on each parameter's (B, p) gradients, or Adam directions, with their place among the P."""
    where = places(adapted)
    if moments is not None and set(moments) != set(where):
        odd = sorted(set(moments) ^ set(where))[0]
        raise ModelError(
            f"The moments do not fit the model: one of them lacks {odd}.",
            fix="Take them with moments_by_name from the same adapter.",
        )

    def direct(name: str, gradients: Tensor) -> None:
        if moments is not None:
            gradients = adam_direction(gradients, *moments[name])
        take(where[name], gradients.flatten(1))

    run(batch, direct)
