"""Attention: what torch does slowly, done another way with the same result.

On a CPU, in training: in fp32, where torch's backward pass is faster, and row by row where rows stand end to end
(`tov.model.kernels.packed`), so that nothing is padded or masked. On a CPU, in a scan: with lengths padded to a multiple of 16,
where torch's forward pass takes half the time or, below 16, a third. On a GPU, in a scan in half precision: rows end to end, by
the flash kernel for rows of any lengths. docs/speed.md has the figures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

WIDE, ALIGNED, JOINED_ROWS = "tov_wide_sdpa", "tov_aligned_sdpa", "tov_rows_sdpa"
ROWS = "tov_rows"
"""Option of a model's forward, handed down to its attention: `Rows` that stand end to end."""
STRANGE = ("position_bias", "softcap", "s_aux", "sliding_window", "cache")
"""Options of some models' attention that the flash kernel is not told of."""
UNIT = 16
"""Keys that a CPU's vector unit takes at once."""


@dataclass(frozen=True)
class Rows:
    """Rows that stand end to end.

    Attributes:
        lengths: of each, in tokens.
        ends: (rows + 1,) int32, 0 and where each of them ends, on the model's device.
    """

    lengths: list[int]
    ends: Tensor


def wide_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Any]:
    """(B, T, heads, d) as transformers' `sdpa`, which does the work, in fp32; rounded to the model's dtype again.

    Under the option `ROWS` B is 1, the mask is not asked, and each row attends to itself.

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
    rows = options.pop(ROWS, None)
    if rows:
        attention_mask = None  # also for one row alone: what it was given stands for no mask, and would undo causality
    lengths = rows.lengths if rows else [query.shape[2]]
    each = zip(*(part.float().split(lengths, 2) for part in (query, key, value)), strict=True)
    parts = [sdpa_attention_forward(module, q, k, v, attention_mask, **options)[0] for q, k, v in each]
    return torch.cat(parts, 1).to(query.dtype), None


def rows_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Any]:
    """(1, T, heads, d) as transformers' `sdpa` for each row alone, by one kernel; without the option `ROWS` as `sdpa` itself.

    Arguments as of `wide_attention`. Raises ValueError on a GPU: an option that the kernel does not know.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows = options.pop(ROWS, None)
    if rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if not query.is_cuda:
        return wide_attention(module, query, key, value, None, **options, **{ROWS: rows})
    if unknown := [name for name in STRANGE if options.get(name) is not None]:
        raise ValueError(f"The attention of {type(module).__name__} has {unknown[0]}.")
    causal, longest, ends = options.get("is_causal"), max(rows.lengths), rows.ends.to(query.device)
    causal = getattr(module, "is_causal", True) if causal is None else causal
    each = (part[0].transpose(0, 1) for part in (query, key, value))  # (T, heads, d)
    out = torch.ops.aten._flash_attention_forward(
        *each, ends, ends, longest, longest, 0.0, causal, False, scale=options.get("scaling")
    )[0]
    return out[None], None


def aligned_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Any]:
    """(B, T, heads, d) as transformers' `sdpa`, which does the work, with keys padded to a multiple of `UNIT`.

    Causal attention sees nothing of what is appended; else a mask hides it. Arguments as of `wide_attention`.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    length = query.shape[2]
    more = -length % UNIT
    plain = key.shape[2] == length and options.get("position_bias") is None
    if not more or not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    causal = options.get("is_causal")
    if attention_mask is None and (getattr(module, "is_causal", True) if causal is None else causal):
        query = _longer(query, more)
    elif attention_mask is None:
        attention_mask = (torch.arange(length + more) < length).expand(1, 1, length, -1)
    else:
        hidden = False if attention_mask.dtype == torch.bool else float("-inf")
        attention_mask = functional.pad(attention_mask, (0, more), value=hidden)
    out, weights = sdpa_attention_forward(
        module, query, _longer(key, more), _longer(value, more), attention_mask, **options
    )
    return out[:, :length], weights


def _longer(x: Tensor, more: int) -> Tensor:
    return functional.pad(x, (0, 0, 0, more))


@contextlib.contextmanager
def wide(model: Any) -> Iterator[None]:
    """Within the block a model of at most fp32 on a CPU uses `wide_attention`."""
    wanted = model.device.type == "cpu" and model.dtype.itemsize <= 4
    with _instead_of_sdpa(model, WIDE, wide_attention) if wanted else contextlib.nullcontext():
        yield


def walks_rows(model: Any) -> bool:
    """Whether the model's attention heeds `ROWS`."""
    return getattr(model.config, "_attn_implementation", None) in (WIDE, JOINED_ROWS)


def aligned(model: Any) -> contextlib.AbstractContextManager[None]:
    """Within the block the model uses `aligned_attention`."""
    return _instead_of_sdpa(model, ALIGNED, aligned_attention)


def end_to_end(model: Any) -> contextlib.AbstractContextManager[None]:
    """Within the block the model uses `rows_attention`."""
    return _instead_of_sdpa(model, JOINED_ROWS, rows_attention)


def for_scans(model: Any) -> contextlib.AbstractContextManager[None]:
    """Within the block a model on a CPU uses `aligned_attention`, one on a GPU in half precision `rows_attention`."""
    if model.device.type == "cpu":
        return aligned(model)
    on_gpu = model.device.type == "cuda" and model.dtype.itemsize == 2
    return end_to_end(model) if on_gpu else contextlib.nullcontext()


@contextlib.contextmanager
def _instead_of_sdpa(model: Any, name: str, attention: Any) -> Iterator[None]:
    """Within the block a model that uses transformers' `sdpa` uses `attention` instead."""
    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
