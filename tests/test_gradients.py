"""Per-per-example gradients and their projections, each against a slow twin; and what must not matter."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from adapted import BERT, TASKS, WORDS, adapted_model, gap, in_batches, make_encoded, one_by_one, shake
from oracle import projection as matrices
from tov.errors import ConfigError, ModelError, NumericError
from tov.methods.shared.projection import Projection, add_projected, signs
from tov.model.adapters import attach, parameters, read_state
from tov.model.gradients import flat_gradients, per_example_gradients, places
from tov.text.batches import batches_of, collate
from tov.training.loop import make_optimizer, train_epoch

# Gradients


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("task", TASKS)
def test_gradients_of_a_padded_batch_equal_autograd_one_row_at_a_time(task, rank):
    adapted, rows = adapted_model(task, rank=rank), make_encoded(task)
    wanted, where = one_by_one(adapted, rows), places(adapted)
    found = in_batches(adapted, rows)
    assert list(where) == list(parameters(adapted)), "the flat order is not that of the parameters"
    assert found.shape == wanted.shape == (len(rows), sum(one.numel() for one in parameters(adapted).values()))
    for name, place in where.items():
        assert np.abs(wanted[:, place]).max() > 1e-4 * np.abs(wanted).max(), f"{name} is idle: the comparison is empty"
        for row in range(len(rows)):
            off = np.abs(found[row, place] - wanted[row, place]).max() / np.abs(wanted[row]).max()
            assert off < 1e-12, (
                f"{name} of row {row} is {off:.2g} from autograd: scaling, A against B, or another row's"
            )


@pytest.mark.parametrize("task", TASKS)
def test_losses_are_those_of_the_rows(task):
    adapted, rows = adapted_model(task), make_encoded(task)
    (batch,) = batches_of(rows, 10_000)
    with per_example_gradients(adapted) as run:
        together = run(batch, lambda *_: None)
        alone = torch.cat([run(collate(rows, np.array([row])), lambda *_: None) for row in batch.rows])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)
    assert together.std() > 0.1, "all rows have the same loss here, so the comparison is empty"


@pytest.mark.parametrize("task", TASKS)
def test_dropout_is_off(task):
    rows = make_encoded(task)
    found = in_batches(adapted_model(task, dropout=0.5).train(), rows)
    assert gap(found, in_batches(adapted_model(task), rows)) < 1e-12, "dropout is on while gradients are taken"


@pytest.mark.parametrize("task", TASKS)
def test_fp32_gradients_are_fp32_and_near(task):
    rows = make_encoded(task)
    adapted = adapted_model(task, dtype=torch.float32)
    with per_example_gradients(adapted) as run:
        assert flat_gradients(adapted, run, batches_of(rows, 10_000)[0]).dtype == torch.float32
    assert gap(in_batches(adapted, rows), one_by_one(adapted, rows)) < 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_bf16_gradients_are_summed_in_fp32(task):
    """Under a bf16 model: fp32 numbers of which most are no bf16 number, near those of the same weights in fp32."""
    rows, adapted = make_encoded(task), adapted_model(task, dtype=torch.bfloat16)
    with per_example_gradients(adapted) as run:
        for batch in batches_of(rows, 10_000):
            found = flat_gradients(adapted, run, batch)
    assert found.dtype == torch.float32
    some = found[found != 0]
    assert (some.bfloat16().float() == some).float().mean() < 0.2, "the sums over tokens were rounded to bf16"
    exact = torch.from_numpy(one_by_one(adapted.float(), rows))[torch.from_numpy(batch.rows)]
    cosine = torch.cosine_similarity(found.double(), exact, dim=1)
    assert cosine.min() > 0.97, f"cosines with the fp32 gradients: {cosine.tolist()}"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch_tokens", [1, 20])
def test_neither_batch_nor_padding_nor_row_order_matters(task, batch_tokens):
    adapted, rows = adapted_model(task), make_encoded(task)
    wanted = in_batches(adapted, rows)
    assert gap(in_batches(adapted, rows, batch_tokens), wanted) < 1e-12
    order = np.random.default_rng(1).permutation(len(rows))
    assert gap(in_batches(adapted, rows.take(order)), wanted[order]) < 1e-12
    with per_example_gradients(adapted) as run:
        wide = flat_gradients(adapted, run, collate(rows, np.arange(len(rows)), 30)).numpy()
    assert gap(wide, wanted) < 1e-12, "padded tokens contribute"


def test_a_batch_adds_up_to_what_training_sees():
    adapted, rows = adapted_model(), make_encoded()
    wanted = in_batches(adapted, rows).mean(0)
    before = read_state(adapted)
    optimizer = make_optimizer(adapted, "sgd")
    train_epoch(
        adapted, rows, order=np.arange(len(rows)), optimizer=optimizer, rate=lambda _: 1.0, batch_size=len(rows),
        batch_tokens=999, seed=0,
    )  # fmt: skip
    moved = torch.cat([(before[name] - value).flatten() for name, value in read_state(adapted).items()])
    assert gap(moved.numpy(), wanted) < 1e-6, "a step of SGD is not the mean of the per-example gradients"


def test_layers_that_only_peft_knows_and_layers_used_twice():
    """GPT-2's layers are no plain linear ones; ALBERT passes every layer several times."""
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=WORDS, n_positions=32, initializer_range=0.3)
    ).eval()
    config = LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapted = shake(get_peft_model(gpt, config)).double().eval()
    rows = make_encoded()
    assert gap(in_batches(adapted, rows), one_by_one(adapted, rows)) < 1e-12
    albert = AlbertForTokenClassification(
        AlbertConfig(**{**BERT, "embedding_size": 8, "initializer_range": 0.3})
    ).eval()
    adapted = attach(
        albert,
        rank=2,
        alpha=4,
        dropout=0,
        targets=("query", "ffn"),
        seed=0,
        task_type="TOKEN_CLS",
        trained=("classifier",),
    )
    adapted, rows = shake(adapted).double().eval(), make_encoded("ner")
    calls = []
    with per_example_gradients(adapted) as run:
        run(batches_of(rows, 999)[0], lambda name, _: calls.append(name))
    assert sorted(calls) == sorted(parameters(adapted)), "a parameter's gradient came in parts, or not at all"
    assert gap(in_batches(adapted, rows), one_by_one(adapted, rows)) < 1e-12, "a layer's second use is lost"


def call_idle(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
    layer.idle(given[0])


def test_a_parameter_without_influence_has_a_zero_gradient():
    """Called or not: Adam's direction of a zero gradient is not zero, so it must not be passed over."""
    rows = make_encoded("ner")
    for called in (False, True):
        adapted, seen = adapted_model("ner"), dict[str, torch.Tensor]()
        attention = adapted.get_base_model().bert.encoder.layer[0].attention
        attention.idle = nn.Linear(16, 16).double()
        if called:
            attention.register_forward_pre_hook(call_idle)
        with per_example_gradients(adapted) as run:
            run(batches_of(rows, 999)[0], lambda name, gradient, seen=seen: seen.update({name: gradient}))
        idle = [name for name in seen if "idle" in name]
        assert len(idle) == 2
        assert all(seen[name].shape[0] == len(rows) and not seen[name].any() for name in idle)


def test_what_cannot_be_told_apart_by_row_is_refused():
    adapted = adapted_model(targets=("q_proj", "lm_head"))
    with per_example_gradients(adapted) as run, pytest.raises(ModelError, match="lm_head"):
        run(batches_of(make_encoded(), 999)[0], lambda *_: None)
    adapted = adapted_model("ner")
    layer = adapted.get_base_model().bert.encoder.layer[0].attention.self.query
    inner = layer.forward

    with per_example_gradients(adapted) as run:
        inner = layer.forward
        layer.forward = lambda x: inner(x.mean(0, keepdim=True)).expand(len(x), -1, -1)
        with pytest.raises(ModelError, match="row by row"):
            run(batches_of(make_encoded("ner"), 999)[0], lambda *_: None)
        run(batches_of(make_encoded("ner"), 1)[0], lambda *_: None)
        layer.forward = inner


def test_the_model_is_as_before_afterwards_even_after_an_error():
    adapted, rows = adapted_model(dropout=0.1), make_encoded()
    adapted.train()
    before = read_state(adapted)

    def stop(*_):
        raise RuntimeError("stop here")

    with per_example_gradients(adapted) as run:
        run(batches_of(rows, 999)[0], lambda *_: None)
        assert all(one.grad is None for one in parameters(adapted).values()), "gradients were left behind"
    with pytest.raises(RuntimeError, match="stop here"), per_example_gradients(adapted) as run:
        run(batches_of(rows, 999)[0], stop)
    assert adapted.training
    assert not any("forward" in layer.__dict__ for layer in adapted.modules()), "a layer kept its replaced forward"
    assert all(torch.equal(value, before[name]) for name, value in read_state(adapted).items())


def test_a_loss_that_is_no_number_is_said():
    adapted = adapted_model()
    with torch.no_grad():
        next(iter(parameters(adapted).values())).fill_(float("nan"))
    with per_example_gradients(adapted) as run, pytest.raises(NumericError, match="not a finite number"):
        run(batches_of(make_encoded(), 999)[0], lambda *_: None)


# Projections


def matrix_of(projection: Projection, rows: int, **options: Any) -> torch.Tensor:
    out = torch.zeros(rows, projection.size, dtype=torch.float64)
    add_projected(out, torch.eye(rows, dtype=torch.float64), start=0, projection=projection, **options)
    return out


@pytest.mark.parametrize("seed", [0, 7, (1 << 63) - 1])
@pytest.mark.parametrize("size", [1, 64, 80])
def test_the_rademacher_matrix_is_the_written_one(size, seed):
    wanted = torch.tensor(matrices.rademacher(11, size, seed), dtype=torch.float64)
    assert torch.allclose(matrix_of(Projection(size, seed), 11), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(("size", "nonzeros"), [(8, 1), (8, 8), (60, 4)])
def test_the_sparse_matrix_is_the_written_one(size, nonzeros, seed):
    wanted = torch.tensor(matrices.sjlt(150, size, seed, nonzeros), dtype=torch.float64)
    found = matrix_of(Projection(size, seed, "sjlt", nonzeros), 150)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=0)
    assert ((found != 0).sum(1) == nonzeros).all()


@pytest.mark.slow
@given(
    cuts=st.lists(st.integers(0, 90), max_size=4), block=st.integers(1, 5000), kind=st.sampled_from(["rademacher", "sjlt"])
)  # fmt: skip
def test_neither_blocks_nor_parts_matter(cuts, block, kind):
    projection = Projection(72, 3, kind, 8)
    values = torch.randn(3, 90, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = torch.zeros(3, 72, dtype=torch.float64)
    edges = sorted({0, 90, *cuts})
    for start, stop in reversed(list(itertools.pairwise(edges))):
        add_projected(out, values[:, start:stop], start=start, projection=projection, block_numbers=block)
    torch.testing.assert_close(out, values @ matrix_of(projection, 90), rtol=0, atol=1e-12)


def test_signs_are_the_same_wherever_a_block_begins_and_in_any_dtype():
    projection = Projection(100, 5)
    whole = signs(torch.arange(50), projection, torch.float32)
    assert torch.equal(signs(torch.arange(20, 50), projection, torch.bfloat16).float(), whole[20:])
    assert set(whole.unique().tolist()) == {-1.0, 1.0}
    assert not torch.equal(whole, signs(torch.arange(50), Projection(100, 6), torch.float32)), "the seed does nothing"


@pytest.mark.parametrize(("kind", "nonzeros"), [("rademacher", 1), ("sjlt", 1), ("sjlt", 8)])
def test_the_error_of_a_projection_falls_as_one_over_the_root_of_d(kind, nonzeros):
    """Johnson-Lindenstrauss: inner products of unit vectors, 4 matrices a size."""
    torch.manual_seed(0)
    vectors = nn.functional.normalize(torch.randn(40, 3000, dtype=torch.float64))
    exact, sizes, errors = vectors @ vectors.T, [16, 64, 256, 1024], []
    for size in sizes:
        off = []
        for seed in range(4):
            features = torch.zeros(40, size, dtype=torch.float64)
            add_projected(features, vectors, start=0, projection=Projection(size, seed, kind, nonzeros))
            off.append((features @ features.T - exact).square().mean())
        errors.append(float(torch.stack(off).mean().sqrt()))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.1), f"errors {errors}"
    assert errors[0] * 16**0.5 == pytest.approx(1.0, abs=0.25), f"rms error times sqrt(d) is {errors[0] * 16**0.5:.2f}"


def test_sizes_that_cannot_be_are_refused():
    for settings in ({"size": 0}, {"size": 10, "kind": "sjlt", "nonzeros": 4}):
        with pytest.raises(ConfigError, match="allowed"):
            Projection(**settings)
