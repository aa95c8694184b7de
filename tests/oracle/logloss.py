"""Log p of one row, one token at a time, with the plain model's own logits and a float64 softmax."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def token_logprobs(model: Any, ids: list[int], scored: list[bool]) -> list[float]:
    """log p of each scored token of one row: the model reads up to it, says what comes next, and reads on.

    Args:
        model: any transformers causal language model, adapted or not, in evaluation mode.
        ids: the row's tokens.
        scored: which of them count; the first one cannot.
    """
    found, cache, read = [], None, 0
    for place in [place for place, counts in enumerate(scored) if counts]:
        output = model(input_ids=torch.tensor([ids[read:place]]), past_key_values=cache, use_cache=True)
        cache, read, logits = output.past_key_values, place, output.logits[0, -1].double()
        found.append(float(logits[ids[place]] - torch.logsumexp(logits, 0)))
    return found
