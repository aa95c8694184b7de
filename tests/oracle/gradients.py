"""A row's gradient by plain autograd through peft's own model, one row alone and unpadded."""

from __future__ import annotations

from typing import Any

import torch


def row_gradient(adapted: Any, ids: list[int], labels: list[int]) -> dict[str, torch.Tensor]:
    """The gradient of the row's token-mean log-loss in every trained parameter, by torch's names.

    Args:
        adapted: a PeftModel in evaluation mode: causal, or a classifier of words or texts.
        ids: the row's tokens.
        labels: of each token, -100 where nothing is scored; of a causal model the token itself.
    """
    loss = row_loss(adapted, ids, labels)
    trained = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {
        name: torch.zeros_like(value) if one is None else one
        for (name, value), one in zip(trained.items(), found, strict=True)
    }


def row_loss(adapted: Any, ids: list[int], labels: list[int]) -> torch.Tensor:
    """The row's token-mean log-loss; arguments as of `row_gradient`."""
    logits = adapted(input_ids=torch.tensor([ids])).logits[0]
    if logits.dim() == 1:  # a text: its label stands at the first token
        losses = [-logits.log_softmax(0)[labels[0]]]
    else:
        back = 1 if adapted.get_base_model().get_output_embeddings() is not None else 0
        losses = [-logits[place - back].log_softmax(0)[label] for place, label in enumerate(labels) if label != -100]
    return sum(losses) / len(losses)
