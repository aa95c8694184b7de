"""Whether this machine computes what tov means: its kernels on a small random model, against float64 and against plain peft.

Knows the kernels; must not know users' models. Speaks nats a token. Takes about a second after the imports.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tov.methods.tov.scan import noise_floor
from tov.model.adapters import attach, parameters, read_state, write_state
from tov.model.kernels.joined import scanning
from tov.model.kernels.lowrank import training
from tov.model.load import DTYPES
from tov.model.logloss import gather_hidden, head_of, row_logprobs, token_logprobs
from tov.text.batches import Batch, batches_of
from tov.text.encode import IGNORED, Encoded, pack

VOCABULARY, ROWS, LONGEST = 2000, 16, 64
HEAD_ERROR = 1e-4
"""Nats: the head computes in fp32 whatever the model's dtype, so its error is that of fp32 sums."""
MODEL_ERROR = {"fp32": 1e-3, "bf16": 0.2}
"""Nats a token: of a whole pass of the random model, whose log-losses are spread over some nats; measured 1e-6 and 0.01."""
ADAPTER_ERROR = {"fp32": 1e-4, "bf16": 0.1}
"""Relative: of gradients of the fused adapter beside peft's; measured 5e-7 and 0.02."""


@dataclass(frozen=True)
class Precision:
    """What a dtype gives on a device.

    Attributes:
        head: nats, largest error of a token's log p from given hidden states, against float64.
        model: nats, root mean square error of a token's log p by a whole pass, against the same weights in float64.
        floor: nats a token, root mean square difference of two batch layouts of the same rows (`noise_floor`).
        scan: nats a token, root mean square difference of the scan's forward from peft's.
        gradients: relative difference of the fused adapter's gradients from peft's.
    """

    head: float
    model: float
    floor: float
    scan: float
    gradients: float

    def faults(self, dtype: str) -> list[str]:
        """What is worse than rounding explains, in words; none on a sound machine."""
        limits = {
            "the log-loss from given hidden states": (self.head, HEAD_ERROR),
            "the log-loss of a pass": (self.model, MODEL_ERROR[dtype]),
            "the noise floor": (self.floor, MODEL_ERROR[dtype]),
            "the scan's forward pass": (self.scan, MODEL_ERROR[dtype]),
            "the gradients of the fused adapter": (self.gradients, ADAPTER_ERROR[dtype]),
        }
        return [
            f"{what} is off by {found:.2g} (at most {most:.2g})"
            for what, (found, most) in limits.items()
            if not found <= most
        ]


def precision_of(dtype: str, device: torch.device) -> Precision:
    """Tries the kernels in a dtype on a device.

    Args:
        dtype: fp32 or bf16.
        device: where the model runs; the reference is float64 on the CPU.
    """
    kind, rows = DTYPES[dtype], _rows()
    base = _random_model(kind)
    exact = _log_p(copy.deepcopy(base).double(), rows)
    adapted = attach(base.to(device), rank=4, alpha=8.0, dropout=0.0, targets=("all-linear",), seed=0)
    model = adapted.get_base_model()
    start = {name: torch.zeros_like(value) for name, value in read_state(adapted).items()}
    passed = _log_p(model, rows)  # under peft's own forward, where nothing is scanned
    state = {
        name: torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) / 10 for name, value in start.items()
    }
    with scanning(adapted) as set_state:
        set_state(state)
        scanned = _log_p(model, rows)
        floor = noise_floor(model, set_state, rows, start, batch_tokens=1024)["token_rms"]
    write_state(adapted, state)
    return Precision(
        head=_head_error(model, rows), model=_rms(passed - exact), floor=floor, scan=_rms(scanned - _log_p(model, rows)),
        gradients=_gradient_error(adapted, batches_of(rows, 2048)[0]),
    )  # fmt: skip


def _random_model(dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=LONGEST, initializer_range=0.06, bos_token_id=None, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
        return model.to(dtype).eval().requires_grad_(False)


def _rows() -> Encoded:
    """Random rows of several lengths, of which a half is scored."""
    draw = np.random.default_rng(0)
    rows = []
    for length in np.linspace(8, LONGEST, ROWS).astype(int):
        ids = draw.integers(3, VOCABULARY, length)
        labels = np.where(np.arange(length) < length // 2, IGNORED, ids)
        rows.append((ids, labels))
    none = np.zeros(ROWS, np.int64)
    return pack(rows, none, none)


@torch.no_grad()
def _log_p(model: Any, rows: Encoded) -> np.ndarray:
    """(S,) float64 log p of every scored token."""
    return torch.cat([row_logprobs(model, batch) for batch in batches_of(rows, 512)]).cpu().double().numpy()


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


@torch.no_grad()
def _head_error(model: Any, rows: Encoded) -> float:
    """Of the same hidden states."""
    head, [batch, *_] = head_of(model), batches_of(rows, 512)
    ids, labels = (torch.from_numpy(array).to(model.device) for array in (batch.ids, batch.labels))
    hidden, wanted = gather_hidden(model, ids, labels != IGNORED)
    ours = token_logprobs(head, hidden, wanted).cpu().double()
    weight = model.get_output_embeddings()
    weight = getattr(weight, "base_layer", weight).weight.cpu().double()
    exact = (hidden.cpu().double() @ weight.T).log_softmax(-1).gather(1, wanted.cpu()[:, None])[:, 0]
    return float((ours - exact).abs().max())


def _gradient_error(adapted: Any, batch: Batch) -> float:
    """The fused adapter's gradients beside peft's, over the length of those."""
    theirs = _gradients(adapted, batch)
    with training(adapted):
        ours = _gradients(adapted, batch)
    return float((ours - theirs).norm() / theirs.norm())


def _gradients(adapted: Any, batch: Batch) -> Tensor:
    live = list(parameters(adapted).values())
    loss = -row_logprobs(adapted.get_base_model(), batch).mean()
    found = torch.autograd.grad(loss, live)
    return torch.cat([one.flatten() for one in found]).cpu().double()
