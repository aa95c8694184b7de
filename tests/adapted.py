"""Tiny models under adapters that are not zero, rows of different lengths, and their gradients both ways."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from oracle.gradients import row_gradient
from tiny import tiny_llama
from tov import tasks
from tov.model.adapters import attach, parameters
from tov.model.gradients import flat_gradients, per_example_gradients
from tov.text.batches import batches_of
from tov.text.encode import IGNORED, Encoded

WORDS, CLASSES = 60, 3
BERT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": WORDS,
    "max_position_embeddings": 64, "initializer_range": 0.3, "num_labels": CLASSES,
}  # fmt: skip


def bare(task: str, **config: Any) -> Any:
    torch.manual_seed(0)
    if task == "instruction":
        return tiny_llama(vocabulary=WORDS, hidden_size=16, intermediate_size=24, initializer_range=0.3, **config)
    made = {"ner": BertForTokenClassification, "classification": BertForSequenceClassification}[task]
    return made(BertConfig(**{**BERT, **config})).eval()


def adapted_model(
    task: str = "instruction",
    *,
    rank: int = 4,
    dtype: torch.dtype = torch.float64,
    dropout: float = 0.0,
    targets: tuple[str, ...] = ("all-linear",),
    **config: Any,
) -> Any:
    """A tiny model under an adapter whose B is not zero, and a trained head if it is a classifier."""
    model = bare(task, **config).to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    trained = () if task == "instruction" else ("classifier",)
    adapted = attach(
        model,
        rank=rank,
        alpha=6.0,
        dropout=dropout,
        targets=targets,
        seed=0,
        task_type=tasks.TASKS[task].peft_type,
        trained=trained,
    ).eval()
    shake(adapted)
    return adapted.double() if dtype == torch.float64 else adapted


def shake(adapted: Any, seed: int = 1, std: float = 0.3) -> Any:
    torch.manual_seed(seed)
    for parameter in parameters(adapted).values():
        nn.init.normal_(parameter, std=std)
    return adapted


def make_encoded(task: str = "instruction", lengths: tuple[int, ...] = (3, 9, 1, 12, 7, 5), seed: int = 0) -> Encoded:
    """Rows of different lengths; of each sentence some words count, of each text its label; causal rows need two tokens."""
    draw = np.random.default_rng(seed)
    lengths = tuple(max(length, 2) for length in lengths) if task == "instruction" else lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = draw.integers(3, WORDS, offsets[-1]).astype(np.int32)
    labels = np.full(len(ids), IGNORED, np.int32)
    for start, stop in itertools.pairwise(offsets):
        if task == "classification":
            labels[start] = draw.integers(CLASSES)
            continue
        first = start + (task == "instruction")
        chosen = np.arange(first, stop)[(draw.random(stop - first) < 0.6) | (np.arange(first, stop) == stop - 1)]
        labels[chosen] = ids[chosen] if task == "instruction" else draw.integers(0, CLASSES, len(chosen))
    return Encoded(ids, labels, offsets, np.array(lengths), np.zeros(len(lengths), np.int32))


def one_by_one(adapted: Any, rows: Encoded) -> np.ndarray:
    """(rows, P) by the oracle, in the order of `parameters`."""
    found = [row_gradient(adapted, *(part.tolist() for part in rows.row(index))) for index in range(len(rows))]
    return np.stack([torch.cat([one.flatten() for one in of_row.values()]).double().numpy() for of_row in found])


def in_batches(adapted: Any, rows: Encoded, batch_tokens: int = 10_000) -> np.ndarray:
    """(rows, P) by the batch."""
    found: Any = None
    with per_example_gradients(adapted) as run:
        for batch in batches_of(rows, batch_tokens):
            part = flat_gradients(adapted, run, batch).double().cpu().numpy()
            found = np.full((len(rows), part.shape[1]), np.nan) if found is None else found
            found[batch.rows] = part
    return found


def gap(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


TASKS = ("instruction", "ner", "classification")
