"""LESS as it is published (Xia et al. 2024, arXiv 2402.04333), written from its description: a yardstick, not a product.

One row at a time through transformers and peft as they come, the gradient of the model's own token-mean loss by autograd,
Adam's direction of the whole gradient, 16 gradients at a time times an explicit Rademacher matrix that is made anew block by
block (whole it would be 480 GB at rank 128 on SmolLM2-135M), L2-normalised, stored in fp16 for each checkpoint (2 bytes x 8192
x 4 checkpoints a row), and only then compared. `tov.methods.less` gives the same scores.

Kinder than published in one thing: the signs are tov's, made faster than by torch's generator on a CPU; what is left of their
making is timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tov.methods.shared.gradients import Checkpoint
from tov.methods.shared.projection import Projection, signs
from tov.model.adapters import parameters, write_state
from tov.text.encode import Encoded

ROWS_AT_ONCE = 16
"""Gradients that meet a block of the matrix together."""
BLOCK = 512
"""Rows of the matrix that exist at once."""
Seconds = dict[str, float]
"""Seconds by part: gradients, signs (the making of the matrix), projection (the product with it)."""


def features(
    adapted: Any, checkpoint: Checkpoint, rows: Encoded, *, adam: bool, projection: Projection, seconds: Seconds
) -> Tensor:
    """(rows, d) normalised features at one checkpoint; adds to `seconds`.

    Args:
        adapted: a PeftModel: causal or for tokens.
        checkpoint: with moments, for the Adam form.
        rows: each with a scored token.
        adam: pool rows as Adam would step on them; else the plain gradient, as for the target.
        projection: the matrix, of kind `rademacher`.
        seconds: what each part took.
    """
    write_state(adapted, checkpoint.state)
    adapted.eval()
    names = parameters(adapted)
    moments = [
        torch.cat([checkpoint.moments[name][place].flatten() for name in names])
        if adam and checkpoint.moments
        else None
        for place in (0, 1)
    ]
    made = []
    for at in range(0, len(rows), ROWS_AT_ONCE):
        start = time.perf_counter()
        group = range(at, min(at + ROWS_AT_ONCE, len(rows)))
        whole = torch.stack(
            [_direction(_gradient(adapted, list(names.values()), rows, row), *moments) for row in group]
        )
        _add(seconds, "gradients", start)
        made.append(torch.nn.functional.normalize(_projected(whole, projection, seconds)))
    return torch.cat(made)


def _gradient(adapted: Any, trained: list[Tensor], rows: Encoded, row: int) -> Tensor:
    """(P,) of one row, by autograd of the model's own loss."""
    ids, labels = (torch.from_numpy(part.astype(np.int64))[None].to(adapted.device) for part in rows.row(row))
    loss = adapted(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
    return torch.cat([one.flatten() for one in torch.autograd.grad(loss, trained)])


def _direction(g: Tensor, m: Tensor | None, v: Tensor | None) -> Tensor:
    return g if m is None or v is None else (0.9 * m + 0.1 * g) / (0.999 * v + 0.001 * g**2 + 1e-8).sqrt()


def _projected(whole: Tensor, projection: Projection, seconds: Seconds) -> Tensor:
    """(rows, d) from (rows, P)."""
    out = whole.new_zeros(len(whole), projection.size)
    for at in range(0, whole.shape[1], BLOCK):
        start = time.perf_counter()
        part = whole[:, at : at + BLOCK]
        matrix = signs(torch.arange(at, at + part.shape[1]), projection, whole.dtype)
        start = _add(seconds, "signs", start)
        out += part @ matrix
        _add(seconds, "projection", start)
    return out / projection.size**0.5


def _add(seconds: Seconds, part: str, start: float) -> float:
    now = time.perf_counter()
    seconds[part] = seconds.get(part, 0.0) + now - start
    return now


def store(file: Path, found: Tensor) -> int:
    """Writes one checkpoint's features in fp16; returns the bytes."""
    np.save(file, found.to(torch.float16).numpy())
    return file.stat().st_size


def scores(
    pool: Sequence[Tensor], target: Sequence[Tensor], rates: Sequence[float], subtasks: Sequence[int]
) -> np.ndarray:
    """(N,) max over sub-tasks of the mean over its rows of sum_k w_k cos, from (N, d) and (M, d) features a checkpoint."""
    cosines = [rate / sum(rates) * x.double() @ z.double().T for rate, x, z in zip(rates, pool, target, strict=True)]
    each = torch.stack(cosines).sum(0).numpy()  # (N, M)
    of_row = np.asarray(subtasks)
    return np.stack([each[:, of_row == task].mean(1) for task in np.unique(of_row)], 1).max(1)
