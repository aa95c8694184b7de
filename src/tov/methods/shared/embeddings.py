"""Rows as vectors, from the model that is tuned: what RDS+ and TSDS compare, and ToV in passing. Forward passes only.

Knows a model under its adapter and rows as tokens; must not know what embeddings are for. One pass over the rows; D fp32
numbers a row are kept, 4 D bytes (2.3 KB for a model of width 576).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tov.errors import NumericError
from tov.methods.shared.neighbours import normalised
from tov.model.fitting import passes
from tov.model.kernels.joined import scanning
from tov.model.logloss import filled_mask, is_causal
from tov.text.batches import Batch, batches_of, plan
from tov.text.encode import Encoded


def embed_rows(adapted: Any, rows: Encoded, *, batch_tokens: int, half_way: bool = False) -> np.ndarray:
    """(rows, D) fp32 of length 1: the position-weighted mean of the last hidden states, `sum_i i h_i / sum_i i`, normalised.

    Over all of a row's tokens i = 1..T, special ones included; h is what the head is given (after the last norm). Padding has
    weight 0, and encoders do not attend to it. The model is taken as it stands: under a fresh adapter (B = 0) it is the base
    model. A row without a token has no embedding: NaN. Nor has a row without a scored token (its answer was cut off, say): the
    score table does not let it be chosen, and here it costs nothing.

    Source: RDS+ (Ivison et al. 2025, arXiv 2503.01807). Differs: rows go in batches; h in the model's dtype, its mean in fp32.

    Args:
        adapted: a PeftModel: causal, token or sequence classification.
        rows: encoded rows.
        batch_tokens: most tokens in a batch, padding included.
        half_way: take the hidden states after half of the layers, not the last ones.

    Raises:
        NumericError: an embedding is not a finite number, or zero.
    """
    model = adapted.get_base_model()
    embeddings = np.full((len(rows), model.config.get_text_config().hidden_size), np.nan, np.float32)
    with scanning(adapted), _hidden_half_way(model) if half_way else nullcontext() as latest:

        def embed(batch: Batch) -> np.ndarray:
            last = _last_hidden(model, batch)
            return _weighted_mean(latest(batch) if latest else last, batch.lengths).cpu().numpy()

        for batch, embedded in passes(batches_of(rows, batch_tokens), embed):
            embeddings[batch.rows] = embedded
            if not np.isfinite(embeddings[batch.rows]).all():
                raise NumericError("The embedding of a row is zero or not a finite number.", fix="Try --dtype fp32.")
    return embeddings


@contextmanager
def cosines_in_passing(model: Any, targets: Mapping[str, np.ndarray]) -> Iterator[Callable[[Batch], dict[str, Tensor]]]:
    """Within the block, what gives (B, M) the cosines of a batch's rows to each target's rows, of the pass just made.

    A row is embedded as by `embed_rows` half way, from the hidden states of a forward pass that is made for something else, and
    no other is made. In padded batches the numbers are the same to the last bit.

    Args:
        model: the model under its adapter, in a scan.
        targets: by name, (M, D) embeddings of a target's rows under the same state, also half way.
    """
    directions = {name: torch.from_numpy(normalised(target)).to(model.device) for name, target in targets.items()}

    def of_batch(batch: Batch) -> dict[str, Tensor]:
        embedded = _embedded(latest(batch), batch)
        return {name: embedded @ one.to(embedded.dtype).T for name, one in directions.items()}

    with _hidden_half_way(model) as latest:
        yield of_batch


@contextmanager
def _hidden_half_way(model: Any) -> Iterator[Callable[[Batch], Tensor]]:
    """Within the block, what gives (B, T, D) the hidden states of the batch that has just passed, after half of the layers.

    Layers are the outermost list of modules in the backbone. Of a model without one, or whose layers are given rows otherwise
    than (B, T, D), they are the last hidden states.
    """
    latest: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        latest.append(output if torch.is_tensor(output) else output[0])

    def of_batch(batch: Batch) -> Tensor:
        found = next(one for one in latest if one.shape[:-1] == batch.ids.shape)
        latest.clear()
        return found.to(model.device)

    backbone = model.base_model
    handles = [module.register_forward_hook(keep) for module in (*_layer_half_way(backbone), backbone)]
    try:
        yield of_batch
    finally:
        for handle in handles:
            handle.remove()


def _layer_half_way(backbone: Any) -> list[nn.Module]:
    lists = [(name.count("."), part) for name, part in backbone.named_modules() if isinstance(part, nn.ModuleList)]
    layers = min(lists, key=lambda one: one[0])[1] if lists else ()
    return [layers[max(len(layers) // 2, 1) - 1]] if len(layers) else []


def _last_hidden(model: Any, batch: Batch) -> Tensor:
    """(B, T, D). Right padding needs no mask in a causal model: no token sees what follows it."""
    ids = torch.from_numpy(batch.ids).to(model.device)
    if is_causal(model):
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state.to(model.device)
    return model.base_model(input_ids=ids, attention_mask=filled_mask(batch, model.device)).last_hidden_state


def _embedded(hidden: Tensor, batch: Batch) -> Tensor:
    """(B, D) the weighted means of (B, T, D) hidden states, or of (1, N, D) where rows stand end to end.

    Those are gathered row by row in groups of like length, so that no more than N tokens are copied at once.
    """
    if not batch.end_to_end:
        return _weighted_mean(hidden, batch.lengths)
    lengths = batch.lengths[: len(batch.rows)]
    starts, embedded = np.cumsum(lengths) - lengths, []
    groups = plan(lengths, lengths > 0, hidden.shape[1])
    for group in groups:
        places = starts[group][:, None] + np.arange(lengths[group].max())
        places = np.minimum(places, hidden.shape[1] - 1)  # what is beyond a row weighs 0
        embedded.append(_weighted_mean(hidden[0, torch.from_numpy(places).to(hidden.device)], lengths[group]))
    return torch.cat(embedded)[torch.from_numpy(np.argsort(np.concatenate(groups))).to(hidden.device)]


def _weighted_mean(hidden: Tensor, lengths: np.ndarray) -> Tensor:
    """(B, D) fp32 or wider, of length 1; a hidden state of zeros gives NaN. The sum of weights cancels in the length."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    places = np.arange(1, hidden.shape[1] + 1)
    weights = torch.from_numpy(places * (places <= lengths[:, None])).to(hidden.device, dtype)  # (B, T)
    return functional.normalize(torch.bmm(weights[:, None], hidden.to(dtype))[:, 0], eps=0.0)
