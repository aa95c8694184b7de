"""Exact log-probabilities of all that is scored. Labels are shifted here, nowhere else; the tasks part here and meet again.

A causal language model: backbone, gather, chunked head in fp32. Its own head returns logits in the model's dtype: in bf16
their error is 0.05 nat a token (rms), where the signal can be 0.01 nat. Here the hidden states that predict a scored token
are gathered first and meet the head in fp32, block of vocabulary by block: neither rounding nor an N x V tensor ever exists.
A classifier of words or texts: its head is trained in full, so it is fp32 (`tov.model.adapters`), as are its few logits.
Speaks nats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tov.errors import ModelError, NumericError
from tov.model.kernels.lowrank import factors_of
from tov.model.kernels.products import bf16_products
from tov.text.batches import Batch
from tov.text.encode import IGNORED

CHUNK_TOKENS = 1024
"""Scored tokens that meet the head at once on a CPU."""
GPU_CHUNK_TOKENS = 4096
"""On a GPU, where each block of vocabulary is five kernels: 4096 x 2048 fp32 (32 MiB) keeps all of it busy."""
WIDENS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
"""Whether a product on a GPU can have another dtype than its factors."""
BLOCK_WORDS = 2048
"""Vocabulary entries that a chunk meets at once: 1024 x 2048 fp32 stays in a CPU's cache (4096 take a sixth longer)."""


@dataclass(frozen=True)
class Head:
    """What turns a hidden state into logits.

    Attributes:
        weight: (V, H) frozen.
        bias: (V,) or None.
        low_rank: () -> (A (r, H), B (V, r), scaling) if the head has an adapter, else None.
        scale: multiplies logits (Cohere's logit_scale, Granite's 1 / logits_scaling).
        softcap: c in c * tanh(logits / c) (Gemma 2), or None.
    """

    weight: Tensor
    bias: Tensor | None
    low_rank: Callable[[], tuple[Tensor, Tensor, float]] | None
    scale: float
    softcap: float | None


def row_logprobs(model: Any, batch: Batch, **options: Any) -> Tensor:
    """(S,) log p of every label of a batch in fp32, row by row; differentiable in whatever of the model is trained.

    Args:
        model: a transformers model under its adapter: causal, token or sequence classification.
        batch: B rows of up to T tokens, S labels in all.
        **options: of the model's forward, for rows end to end (`tov.model.kernels.packed`).
    """
    if not is_causal(model):
        return label_logprobs(*classifier_logits(model, batch, **options))
    ids, labels = _on_device(model, batch)
    return token_logprobs(head_of(model), *gather_hidden(model, ids, labels != IGNORED, **options)).to(ids.device)


def is_causal(model: Any) -> bool:
    """Whether a transformers model predicts the next token (else it is a classifier of words or texts)."""
    return model.get_output_embeddings() is not None


def classifier_logits(model: Any, batch: Batch, **options: Any) -> tuple[Tensor, Tensor]:
    """(B, T, C) logits of words and (B, T) labels; of texts (B, 1, C), and (B, 1) those at their first tokens."""
    ids, labels = _on_device(model, batch)
    if not options:
        filled, pad = filled_mask(batch, model.device), getattr(model.config, "pad_token_id", None)
        if filled is not None and pad:  # decoders look for a row's last token by the id, and not by the mask
            ids = ids.masked_fill(~filled, pad)
        options = {"attention_mask": filled}
    logits = model(input_ids=ids, **options).logits
    return (logits[:, None], labels[:, :1]) if logits.dim() == 2 else (logits, labels)


def filled_mask(batch: Batch, device: torch.device) -> Tensor | None:
    """(B, T) bool, False where padded; None for a batch without padding, which needs no mask."""
    if batch.lengths.min() == batch.ids.shape[1]:
        return None
    return torch.from_numpy(np.arange(batch.ids.shape[1]) < batch.lengths[:, None]).to(device)


def _on_device(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    ids, labels = (torch.from_numpy(array).to(model.device, non_blocking=True) for array in (batch.ids, batch.labels))
    return ids, labels


def label_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """(S,) log p of each label.

    Args:
        logits: (B, T, C) fp32.
        labels: (B, T), `IGNORED` where nothing is scored.
    """
    scored = labels != IGNORED
    return logits[scored].log_softmax(-1).gather(1, labels[scored][:, None])[:, 0]


def head_of(causal: Any) -> Head:
    """The head of a transformers causal language model, adapted or not."""
    layer, config = causal.get_output_embeddings(), causal.config.get_text_config()
    low_rank = None
    if hasattr(layer, "lora_A"):
        low_rank, layer = partial(factors_of, layer), layer.base_layer
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(layer.weight, layer.bias, low_rank, scale, getattr(config, "final_logit_softcapping", None))


def gather_hidden(causal: Any, ids: Tensor, scored: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Hidden states that predict the scored tokens, and those tokens: (S, H), (S,), row by row, on the head's device.

    Causal models with right padding need no attention mask for these positions, so the fast causal kernel serves.

    Args:
        causal: a transformers causal language model.
        ids: (B, T).
        scored: (B, T) bool; the first column is never scored.
        **options: of the model's forward, for rows end to end.
    """
    hidden = causal.base_model(input_ids=ids, use_cache=False, **options).last_hidden_state  # (B, T, H)
    predicted, head = scored[:, 1:], causal.get_output_embeddings().weight.device
    return hidden[:, :-1][predicted.to(hidden.device)].to(head), ids[:, 1:][predicted].to(head)


def token_logprobs(head: Head, hidden: Tensor, labels: Tensor) -> Tensor:
    """(S,) log p of each label in fp32 (float64 for float64 hidden states); differentiable in `hidden` and the adapter.

    Args:
        head: from `head_of`.
        hidden: (S, H).
        labels: (S,).
    """
    if not len(labels):
        return hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    whole = torch.is_grad_enabled() and head.low_rank is not None  # against all of the vocabulary at once
    parts, chunk = [], GPU_CHUNK_TOKENS if hidden.is_cuda and not whole else CHUNK_TOKENS
    for states, wanted in zip(hidden.split(chunk), labels.split(chunk), strict=True):
        if not torch.is_grad_enabled():
            parts.append(_chunk(head, states, wanted))
        elif head.low_rank is None:
            parts.append(_FrozenHead.apply(states, wanted, head))
        else:
            parts.append(checkpoint(_chunk_dense, head, states, wanted, use_reentrant=False))
    return torch.cat(parts)


class _FrozenHead(torch.autograd.Function):
    """Log p with its gradient in the hidden state worked out on the way: d log p / dh = sum_v (1[v = label] - p_v) w_v.

    In one walk over the vocabulary: p_v = exp(logit_v - logit_label) / sum, and the sum is divided by at the end.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        wide = hidden.to(dtype)
        label = _label_logits(head, wide, labels)
        total, pull = torch.zeros_like(label), torch.zeros_like(wide)
        with _exact_products(head, hidden):
            narrow = _narrow(head, hidden)
            for words in _blocks(head):
                weight = head.weight[words]
                weight = weight.to(dtype) if narrow is None else weight
                logits = _logits(head, wide, words, weight, narrow)
                slope = _slope(head, logits)
                share = logits.sub_(label[:, None]).exp_()
                total += share.sum(1)
                share = share if slope is None else share.mul_(slope)
                if narrow is None:
                    pull.addmm_(share, weight)
                else:
                    pull += torch.mm(share.to(weight.dtype), weight, out_dtype=dtype)
        logp = -total.log()
        gradient = _sloped(head, head.weight[labels].to(dtype), label[:, None]) - pull / total[:, None]
        far = ~(torch.isfinite(logp) & torch.isfinite(gradient).all(1))  # as in `_chunk`
        if far.any():
            parts = [_dense_gradient(head, *part) for part in _parts(wide[far], labels[far])]
            logp[far], gradient[far] = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(gradient.to(hidden.dtype))
        return logp

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream[:, None]).to(gradient.dtype), None, None


def _dense_gradient(head: Head, wide: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log p and its gradient of a few tokens, against the whole vocabulary by autograd."""
    with torch.enable_grad():
        wide = wide.detach().requires_grad_()
        logp = _chunk_dense(head, wide, labels)
        return logp.detach(), torch.autograd.grad(logp.sum(), wide)[0]


def _blocks(head: Head) -> Iterator[slice]:
    for start in range(0, len(head.weight), BLOCK_WORDS):
        yield slice(start, start + BLOCK_WORDS)


def _chunk_dense(head: Head, hidden: Tensor, labels: Tensor) -> Tensor:
    """One chunk against the whole vocabulary."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = _logits(head, hidden.to(dtype), slice(None))
    return logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(1)


def _chunk(head: Head, hidden: Tensor, labels: Tensor) -> Tensor:
    """One chunk, block of vocabulary by block: -log sum_v exp(logit_v - logit_label)."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    wide = hidden.to(dtype)
    label = _label_logits(head, wide, labels)
    total = torch.zeros_like(label)
    narrow = _narrow(head, hidden)
    with _exact_products(head, hidden):
        for words in _blocks(head):
            total += _logits(head, wide, words, narrow=narrow).sub_(label[:, None]).exp_().sum(1)
    logp = -total.log()
    far = ~torch.isfinite(logp)  # the label is over 88 nats less likely than another: shift by the maximum instead
    if far.any():
        logp[far] = torch.cat([_chunk_dense(head, *part) for part in _parts(wide[far], labels[far])])
    return logp


def _parts(wide: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What meets the whole vocabulary at once."""
    return zip(wide.split(CHUNK_TOKENS), labels.split(CHUNK_TOKENS), strict=True)


def _label_logits(head: Head, wide: Tensor, labels: Tensor) -> Tensor:
    """(S,) the logit of each label."""
    logits = (wide * head.weight[labels].to(wide.dtype)).sum(1)
    if head.low_rank is not None:
        down, up, scaling = head.low_rank()
        logits = logits + scaling * ((wide @ down.to(wide.dtype).T) * up[labels].to(wide.dtype)).sum(1)
    if head.bias is not None:
        logits = logits + head.bias[labels].to(wide.dtype)
    return _after(head, logits)


def _narrow(head: Head, hidden: Tensor) -> Tensor | None:
    """The hidden states, if a GPU can multiply them in bf16 with sums in fp32, which loses nothing."""
    bf16 = head.weight.dtype == hidden.dtype == torch.bfloat16
    return hidden if bf16 and hidden.is_cuda and WIDENS and not torch.is_grad_enabled() else None


def _logits(
    head: Head, wide: Tensor, words: slice, weight: Tensor | None = None, narrow: Tensor | None = None
) -> Tensor:
    """(S, words) logits in the dtype of `wide`.

    Args:
        head, wide, words: of what and for what.
        weight: these words' own, where it is at hand in another dtype.
        narrow: from `_narrow`, the same states.
    """
    weight = head.weight[words] if weight is None else weight
    logits = wide @ weight.to(wide.dtype).T if narrow is None else torch.mm(narrow, weight.T, out_dtype=wide.dtype)
    if head.low_rank is not None:
        down, up, scaling = head.low_rank()
        logits = logits + scaling * ((wide @ down.to(wide.dtype).T) @ up[words].to(wide.dtype).T)
    if head.bias is not None:
        logits = logits + head.bias[words].to(wide.dtype)
    return _after(head, logits)


def _after(head: Head, logits: Tensor) -> Tensor:
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits


def _slope(head: Head, logits: Tensor) -> Tensor | None:
    """The derivative of `_after`, from its result; None for 1."""
    if head.softcap is not None:
        return head.scale * (1.0 - (logits / head.softcap) ** 2)
    return None if head.scale == 1.0 else torch.full_like(logits, head.scale)


def _sloped(head: Head, values: Tensor, logits: Tensor) -> Tensor:
    slope = _slope(head, logits)
    return values if slope is None else values * slope


def _exact_products(head: Head, hidden: Tensor) -> contextlib.AbstractContextManager[None]:
    """Lets the CPU multiply in bf16 where that loses nothing: both factors are bf16 numbers, sums stay fp32.

    A bf16 x bf16 product is exact in fp32, so this is the fp32 head at three times its speed on hardware that has it. An
    adapter on the head is fp32, so such a head does without. In training the softmax is rounded too, which only its gradient
    sees, in the precision of the hidden state's own.
    """
    bf16 = head.weight.dtype == hidden.dtype == torch.bfloat16
    return bf16_products(bf16 and head.low_rank is None and hidden.device.type == "cpu")


@torch.no_grad()
def check_head(causal: Any, head: Head, ids: Tensor) -> None:
    """Compares with the model's own logits on a few tokens, so that an unknown head is found before anything is scored.

    Raises:
        ModelError: the two disagree by more than the rounding of the model's dtype.
        NumericError: the model's weights or activations are not finite numbers.
    """
    scored = torch.ones_like(ids, dtype=torch.bool)
    ours = token_logprobs(head, *gather_hidden(causal, ids, scored))
    if not torch.isfinite(ours).all():
        raise NumericError(
            "The model's log-loss is not a finite number.",
            fix="Try --dtype fp32. If that does not help, the weights are broken: fetch the model again.",
        )
    logits = causal(input_ids=ids, use_cache=False).logits[:, :-1].float()
    theirs = logits.log_softmax(-1).gather(2, ids[:, 1:, None].to(logits.device)).flatten()
    gap = float((ours.float() - theirs.to(ours.device)).abs().max())
    if not gap <= (1.0 if causal.dtype == torch.bfloat16 else 0.01):
        raise ModelError(
            f"The head of {type(causal).__name__} does something to its logits that tov does not know "
            f"(the log-loss differs by {gap:.3g} nat).",
            allowed="linear heads with bias, logit_scale, logits_scaling, final_logit_softcapping",
            fix="Report the model's name to the project.",
        )
