"""What makes fitting quick against plain peft, transformers and autograd: the gradients of a step, norms, the head, dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from test_lowrank import adapted_llama
from tiny import VOCABULARY, tiny_llama
from tov.model.adapters import parameters, read_state
from tov.model.kernels import packed as packing
from tov.model.kernels.norms import _TrainedNorm
from tov.model.kernels.packed import packable
from tov.model.logloss import Head, _chunk_dense, _FrozenHead
from tov.text.encode import IGNORED, Encoded
from tov.training.loop import make_optimizer, train_epoch


def some_rows(lengths=(5, 11, 23, 9)) -> Encoded:
    """Rows of random tokens of which all but the first are scored."""
    ids = np.random.default_rng(0).integers(3, VOCABULARY, sum(lengths)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = ids.copy()
    labels[offsets[:-1]] = IGNORED
    counts = np.asarray(lengths) - 1
    return Encoded(ids, labels, offsets, counts, np.zeros_like(counts))


def one_step(adapted, rows, **options):
    """Adapter parameters after a step of plain gradient descent at rate 1."""
    train_epoch(
        adapted, rows, order=range(len(rows)), optimizer=make_optimizer(adapted, "sgd"), rate=lambda _: 1.0,
        batch_size=len(rows), **{"batch_tokens": 64, "seed": 0, **options},
    )  # fmt: skip
    return read_state(adapted)


def plain_step(adapted, rows):
    """The same with peft's forward, a row at a time, and the model's own logits."""
    loss = torch.zeros(())
    for row in range(len(rows)):
        ids = torch.from_numpy(rows.row(row)[0].astype(np.int64))[None]
        logits = adapted(input_ids=ids).logits[0, :-1]
        loss = loss + torch.nn.functional.cross_entropy(logits, ids[0, 1:]) / len(rows)
    loss.backward()
    with torch.no_grad():
        for parameter in parameters(adapted).values():
            parameter -= parameter.grad
    return read_state(adapted)


def test_a_step_is_the_step_of_plain_peft():
    rows, before = some_rows(), read_state(adapted_llama())
    ours, theirs = one_step(adapted_llama(), rows), plain_step(adapted_llama(), rows)
    for name, wanted in theirs.items():
        moved = (wanted - before[name]).norm()
        assert moved > 0, f"{name} did not move: the comparison is empty"
        gap = float((ours[name] - wanted).norm() / moved)
        assert gap < 1e-4, f"{name}: the gradient is {gap:.2g} from plain peft's"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_gradient_of_a_norm_is_as_exact_as_autograds(dtype):
    torch.manual_seed(0)
    norm = LlamaRMSNorm(64).to(dtype).requires_grad_(False)
    norm.weight.copy_(torch.randn(64))
    x, upstream = (2 * torch.randn(3, 5, 64) + 0.3).to(dtype).requires_grad_(), torch.randn(3, 5, 64).to(dtype)
    exact_norm, wide = LlamaRMSNorm(64), x.detach().float().requires_grad_()
    exact_norm.weight.data = norm.weight.float()
    (exact,) = torch.autograd.grad(exact_norm(wide), wide, upstream.float())
    errors = [
        float((torch.autograd.grad(run(x), x, upstream)[0].float() - exact).norm() / exact.norm())
        for run in (lambda x: _TrainedNorm.apply(x, norm), norm)
    ]
    assert errors[0] < max(1e-6, 1.2 * errors[1]), f"{errors[0]:.2g} off; autograd through the norm is {errors[1]:.2g}"


@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, None), (1.0, 3.0), (0.5, 3.0)])
@pytest.mark.parametrize("spread", [0.3, 60.0], ids=["near", "far"])
def test_the_gradient_of_the_head_is_that_of_a_softmax(scale, softcap, spread):
    """`far` has labels that are hundreds of nats less likely than other words, where exponents overflow."""
    torch.manual_seed(0)
    head = Head(torch.randn(5000, 16), torch.randn(5000), None, scale, softcap)
    hidden, labels = (spread * torch.randn(7, 16)).requires_grad_(), torch.arange(7) * 700
    ours, dense = _FrozenHead.apply(hidden, labels, head), _chunk_dense(head, hidden, labels)
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-5)
    (one,), (two,) = (torch.autograd.grad(logp.sum(), hidden) for logp in (ours, dense))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_dropout_is_the_seeds():
    rows = some_rows()
    one, same, other = (one_step(adapted_llama(dropout=0.5), rows, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one), "the same seed gave two paths"
    assert any(not torch.equal(one[name], other[name]) for name in one), "dropout does not follow the seed"


def test_padding_to_few_widths_changes_no_step(monkeypatch):
    rows, steps = some_rows(), []
    for width in (1, 8):
        monkeypatch.setattr("tov.training.loop.CPU_WIDTHS", width)
        monkeypatch.setattr("tov.training.loop.packable", lambda _: False)
        steps.append(one_step(adapted_llama(), rows))
    for name, wanted in steps[0].items():
        torch.testing.assert_close(steps[1][name], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [(5, 11, 23, 9), (32,), (3, 32)], ids=["four", "alone, unfilled", "one a part"])
def test_rows_end_to_end_are_the_step_of_padded_rows(lengths, monkeypatch):
    rows, steps = some_rows(lengths), []
    assert packable(tiny_llama()), "the comparison is empty: the model pads"
    for packed in (True, False):
        if not packed:
            monkeypatch.setattr("tov.training.loop.packable", lambda _: False)
        steps.append(one_step(adapted_llama(), rows, batch_tokens=max(32, sum(lengths[:-1]))))
    for name, wanted in steps[1].items():
        torch.testing.assert_close(steps[0][name], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["sees the other row", "slides", "takes no positions"])
def test_models_to_which_rows_end_to_end_are_another_text_are_padded(kind, monkeypatch):
    model = tiny_llama()
    if kind == "slides":
        model.config.sliding_window = 4
    elif kind == "sees the other row":
        options = packing.options_for
        monkeypatch.setattr(packing, "options_for", lambda *args: {**options(*args), packing.ROWS: None})
    else:
        monkeypatch.setattr(packing, "options_for", lambda *_: {"no_such_option": 1, "position_ids": "none"})
    assert not packable(model)
