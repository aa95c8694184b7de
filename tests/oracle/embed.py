"""A row's embedding and its normalised endpoint drop, one row alone and unpadded, by transformers and peft alone."""

from __future__ import annotations

from typing import Any

import torch

from oracle.gradients import row_loss


@torch.no_grad()
def embedding(adapted: Any, ids: list[int]) -> torch.Tensor:
    """sum_i i h_i / sum_i i over the row's tokens, divided by its length, in float64."""
    hidden = adapted.get_base_model().base_model(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
    mean = sum(place * state for place, state in enumerate(hidden, start=1)) / sum(range(1, len(ids) + 1))
    return mean / (mean @ mean).sqrt()


@torch.no_grad()
def endpoint_drop(adapted: Any, states: list[dict[str, torch.Tensor]], ids: list[int], labels: list[int]) -> float:
    """(l_1 - l_T) / l_1 of a row, from two states of the trained parameters by torch's names."""
    losses = []
    for state in states:
        for name, parameter in adapted.named_parameters():
            if name in state:
                parameter.copy_(state[name])
        losses.append(float(row_loss(adapted, ids, labels)))
    return (losses[0] - losses[1]) / losses[0]
