"""Attention in training on a CPU: in fp32 under a bf16 model, where torch's backward pass is faster.

Elsewhere than on a CPU, and in a scan, this module does nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

NAME = "tov_wide_sdpa"


def wide_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Any]:
    """(B, T, heads, d) as transformers' `sdpa`, which does the work, in fp32; rounded to the model's dtype again.

    Args:
        module: the attention layer.
        query: (B, heads, T, d).
        key: (B, heads or fewer, T, d).
        value: likewise.
        attention_mask: (B or 1, 1, T, T) bool, additive, or None.
        **options: handed on.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    out, weights = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return out.to(query.dtype), weights


@contextlib.contextmanager
def wide(model: Any) -> Iterator[None]:
    """Within the block a bf16 model on a CPU that uses transformers' `sdpa` uses `wide_attention` instead."""
    used = getattr(model.config, "_attn_implementation", None)
    if model.device.type != "cpu" or model.dtype != torch.bfloat16 or used != "sdpa":
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, wide_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
