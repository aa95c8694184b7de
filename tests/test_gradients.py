"""Per-row gradients, their projections and what is made of them, each against a slow twin; and what must not matter."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
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
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from oracle import less as oracle
from oracle import projection as matrices
from oracle.gradients import row_gradient
from tiny import tiny_llama
from tov.baselines.features import Checkpoint, adam_direction, moments_by_name, projected
from tov.baselines.less import less_scores, less_targets, linear_rates, warm_up
from tov.baselines.projection import Projection, add_projected, signs
from tov.baselines.store import read_features, row_bytes, shard_file, store_features
from tov.baselines.tracin import projected_scores, projected_targets, tracin_scores, tracin_targets
from tov.errors import ConfigError, DataError, ModelError, NumericError, RunError
from tov.model.adapters import attach, parameters, read_state, write_state
from tov.model.gradients import batches_of, flat_gradients, places, row_gradients
from tov.model.train import make_optimizer, moments_of, train_epoch
from tov.text.batches import collate
from tov.text.encode import IGNORED, Encoded

WORDS, CLASSES = 60, 3
BERT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": WORDS,
    "max_position_embeddings": 64, "initializer_range": 0.3, "num_labels": CLASSES,
}  # fmt: skip


def bare(task: str) -> Any:
    torch.manual_seed(0)
    if task == "instruction":
        return tiny_llama(vocabulary=WORDS, hidden_size=16, intermediate_size=24, initializer_range=0.3)
    made = {"ner": BertForTokenClassification, "classification": BertForSequenceClassification}[task]
    return made(BertConfig(**BERT)).eval()


def adapted_model(
    task: str = "instruction",
    *,
    rank: int = 4,
    dtype: torch.dtype = torch.float64,
    dropout: float = 0.0,
    targets: tuple[str, ...] = ("all-linear",),
) -> Any:
    """A tiny model under an adapter whose B is not zero, and a trained head if it is a classifier."""
    model = bare(task).to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    trained = () if task == "instruction" else ("classifier",)
    adapted = attach(
        model, rank=rank, alpha=6.0, dropout=dropout, targets=targets, seed=0, task=task, trained=trained
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
    with row_gradients(adapted) as run:
        for batch in batches_of(rows, batch_tokens):
            part = flat_gradients(adapted, run, batch).double().numpy()
            found = np.full((len(rows), part.shape[1]), np.nan) if found is None else found
            found[batch.rows] = part
    return found


def gap(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


TASKS = ("instruction", "ner", "classification")


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
        for row in range(len(rows)):
            assert np.abs(wanted[row, place]).max() > 0 or "key" in name or len(rows.row(row)[0]) < 3, f"{name} is idle"
            off = np.abs(found[row, place] - wanted[row, place]).max() / np.abs(wanted[row]).max()
            assert off < 1e-12, f"{name} of row {row} is {off:.2g} from autograd: scaling, A against B, or another row's"


@pytest.mark.parametrize("task", TASKS)
def test_losses_are_those_of_the_rows(task):
    adapted, rows = adapted_model(task), make_encoded(task)
    (batch,) = batches_of(rows, 10_000)
    with row_gradients(adapted) as run:
        together = run(batch, lambda *_: None)
        alone = torch.cat([run(collate(rows, np.array([row])), lambda *_: None) for row in batch.rows])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)
    assert together.std() > 0.1, "all rows have the same loss here, so the comparison is empty"


@pytest.mark.parametrize("task", TASKS)
def test_dropout_is_off(task):
    rows = make_encoded(task)
    found = [in_batches(adapted_model(task, dropout=dropout).train(), rows) for dropout in (0.0, 0.5)]
    assert gap(found[1], found[0]) < 1e-12, "lora_dropout is on while gradients are taken"


@pytest.mark.parametrize("task", TASKS)
def test_fp32_gradients_are_fp32_and_near(task):
    rows = make_encoded(task)
    adapted = adapted_model(task, dtype=torch.float32)
    with row_gradients(adapted) as run:
        assert flat_gradients(adapted, run, batches_of(rows, 10_000)[0]).dtype == torch.float32
    assert gap(in_batches(adapted, rows), one_by_one(adapted, rows)) < 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_bf16_gradients_are_summed_in_fp32(task):
    """Under a bf16 model: fp32 numbers of which most are no bf16 number, near those of the same weights in fp32."""
    rows, adapted = make_encoded(task), adapted_model(task, dtype=torch.bfloat16)
    with row_gradients(adapted) as run:
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
    with row_gradients(adapted) as run:
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
    assert gap(moved.numpy(), wanted) < 1e-6, "a step of SGD is not the mean of the row gradients"


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
        albert, rank=2, alpha=4, dropout=0, targets=("query", "ffn"), seed=0, task="ner", trained=("classifier",)
    )
    adapted, rows = shake(adapted).double().eval(), make_encoded("ner")
    calls = []
    with row_gradients(adapted) as run:
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
        with row_gradients(adapted) as run:
            run(batches_of(rows, 999)[0], lambda name, gradient, seen=seen: seen.update({name: gradient}))
        idle = [name for name in seen if "idle" in name]
        assert len(idle) == 2
        assert all(seen[name].shape[0] == len(rows) and not seen[name].any() for name in idle)


def test_what_cannot_be_told_apart_by_row_is_refused():
    adapted = adapted_model(targets=("q_proj", "lm_head"))
    with row_gradients(adapted) as run, pytest.raises(ModelError, match="lm_head"):
        run(batches_of(make_encoded(), 999)[0], lambda *_: None)
    adapted = adapted_model("ner")
    layer = adapted.get_base_model().bert.encoder.layer[0].attention.self.query
    inner = layer.forward

    with row_gradients(adapted) as run:
        inner = layer.forward
        layer.forward = lambda x: inner(x.mean(0, keepdim=True)).expand(len(x), -1, -1)
        with pytest.raises(ModelError, match="told apart"):
            run(batches_of(make_encoded("ner"), 999)[0], lambda *_: None)
        run(batches_of(make_encoded("ner"), 1)[0], lambda *_: None)
        layer.forward = inner


def test_the_model_is_as_before_afterwards_even_after_an_error():
    adapted, rows = adapted_model(dropout=0.1), make_encoded()
    adapted.train()
    before = read_state(adapted)

    def stop(*_):
        raise RuntimeError("stop here")

    with row_gradients(adapted) as run:
        run(batches_of(rows, 999)[0], lambda *_: None)
        assert all(one.grad is None for one in parameters(adapted).values()), "gradients were left behind"
    with pytest.raises(RuntimeError, match="stop here"), row_gradients(adapted) as run:
        run(batches_of(rows, 999)[0], stop)
    assert adapted.training
    assert not any("forward" in layer.__dict__ for layer in adapted.modules()), "a layer kept its replaced forward"
    assert all(torch.equal(value, before[name]) for name, value in read_state(adapted).items())


def test_a_loss_that_is_no_number_is_said():
    adapted = adapted_model()
    with torch.no_grad():
        next(iter(parameters(adapted).values())).fill_(float("nan"))
    with row_gradients(adapted) as run, pytest.raises(NumericError, match="not a finite number"):
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
    wanted = torch.tensor(matrices.sjlt(11, size, seed, nonzeros), dtype=torch.float64)
    found = matrix_of(Projection(size, seed, "sjlt", nonzeros), 11)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=0)
    assert ((found != 0).sum(1) == nonzeros).all()


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


@pytest.mark.parametrize("kind", ["rademacher", "sjlt"])
def test_the_error_of_a_projection_falls_as_one_over_the_root_of_d(kind):
    """Johnson-Lindenstrauss: inner products of unit vectors, 4 matrices a size."""
    torch.manual_seed(0)
    vectors = nn.functional.normalize(torch.randn(40, 500, dtype=torch.float64))
    exact, sizes, errors = vectors @ vectors.T, [32, 128, 512, 2048], []
    for size in sizes:
        off = []
        for seed in range(4):
            features = torch.zeros(40, size, dtype=torch.float64)
            add_projected(features, vectors, start=0, projection=Projection(size, seed, kind, 8))
            off.append((features @ features.T - exact).square().mean())
        errors.append(float(torch.stack(off).mean().sqrt()))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.1), f"errors {errors}"
    assert errors[0] * 32**0.5 == pytest.approx(1.0, abs=0.25), f"rms error times sqrt(d) is {errors[0] * 32**0.5:.2f}"


def test_sizes_that_cannot_be_are_refused():
    for settings in ({"size": 0}, {"size": 10, "kind": "sjlt", "nonzeros": 4}):
        with pytest.raises(ConfigError, match="allowed"):
            Projection(**settings)


# Adam's direction and moments


def test_adam_direction_by_hand():
    g = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    m, v = torch.tensor([1.0], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64)
    wanted = [[(0.9 + 0.2) / (3.996 + 0.004 + 1e-8) ** 0.5], [0.9 / (3.996 + 1e-8) ** 0.5]]
    assert adam_direction(g, m, v).tolist() == [pytest.approx(row, rel=1e-12) for row in wanted]
    assert (g.tolist(), m.item(), v.item()) == ([[2.0], [0.0]], 1.0, 4.0), "gradient or moments were changed"
    zero = torch.zeros(1, dtype=torch.float64)
    tiny = adam_direction(torch.full((1, 1), 1e-3, dtype=torch.float64), zero, zero).item()
    assert tiny == pytest.approx(1e-4 / (1e-9 + 1e-8) ** 0.5, rel=1e-12), "eps stands outside the root"


@pytest.mark.parametrize("task", ["instruction", "ner"])
def test_moments_go_to_the_parameters_that_they_belong_to(task):
    adapted, rows = adapted_model(task, dtype=torch.float32), make_encoded(task)
    optimizer = make_optimizer(adapted, "carry")
    train_epoch(
        adapted, rows, order=np.arange(len(rows)), optimizer=optimizer, rate=lambda _: 1e-3, batch_size=2, batch_tokens=99,
        seed=0,
    )  # fmt: skip
    found = moments_by_name(adapted, moments_of(optimizer))
    assert list(found) == list(parameters(adapted))
    for name, parameter in parameters(adapted).items():
        live = optimizer.state[parameter]
        assert torch.equal(found[name][0], live["exp_avg"]), name
        assert torch.equal(found[name][1], live["exp_avg_sq"]), name
        assert found[name][1].any(), f"{name} has no moments, so the comparison is empty"
    with pytest.raises(ModelError, match="0 of the model's"):
        moments_by_name(adapted, moments_of(make_optimizer(adapted, "sgd")))
    with pytest.raises(ModelError, match="trained parameters"):
        moments_by_name(adapted_model(task, rank=1), moments_of(optimizer))


# LESS and TracIn


SUBTASKS = [0, 1, 1, 0, 2, 1]
D = 24


def random_checkpoints(adapted: Any) -> list[Checkpoint]:
    """Two states with moments of about the size of the gradients."""
    made = []
    for k, rate in enumerate((3e-2, 1e-2)):
        shake(adapted, 10 + k)
        draw = torch.Generator().manual_seed(k)
        moments = {
            name: (0.1 * torch.randn(one.shape, generator=draw), 0.01 * torch.rand(one.shape, generator=draw))
            for name, one in parameters(adapted).items()
        }
        made.append(Checkpoint(read_state(adapted), rate, moments))
    return made


def setting(task: str = "instruction") -> tuple[Any, list[Checkpoint], Encoded, Encoded]:
    targets = ("q_proj", "v_proj") if task == "instruction" else ("query",)
    adapted = adapted_model(task, rank=1, targets=targets)
    pool = make_encoded(task, (4, 8, 3, 11, 2, 6, 8), seed=3)
    return adapted, random_checkpoints(adapted), pool, make_encoded(task, seed=4)


def literal(adapted: Any, checkpoints: list[Checkpoint], rows: Encoded) -> np.ndarray:
    found = []
    for checkpoint in checkpoints:
        write_state(adapted, checkpoint.state)
        found.append(one_by_one(adapted, rows))
    return np.stack(found)


def flat_moments(checkpoints: list[Checkpoint], which: int) -> np.ndarray:
    return np.stack([
        torch.cat([pair[which].flatten() for pair in checkpoint.moments.values()]).double().numpy()
        for checkpoint in checkpoints
    ])  # fmt: skip


def less_of(adapted, checkpoints, pool, target, *, projection=None, batch_tokens=40, subtasks=SUBTASKS):
    projection = projection or Projection(D, 5)
    targets = less_targets(
        adapted, checkpoints, target, subtasks=subtasks, projection=projection, batch_tokens=batch_tokens
    )
    return less_scores(adapted, checkpoints, targets, pool, projection=projection, batch_tokens=batch_tokens)


@pytest.mark.parametrize("kind", ["rademacher", "sjlt"])
@pytest.mark.parametrize("task", TASKS)
def test_less_is_the_literal_one(task, kind):
    adapted, checkpoints, pool, target = setting(task)
    matrix = {"rademacher": matrices.rademacher, "sjlt": lambda *args: matrices.sjlt(*args, 8)}[kind]
    whole = [literal(adapted, checkpoints, rows) for rows in (pool, target)]
    moments = [flat_moments(checkpoints, which) for which in (0, 1)]
    rates = [checkpoint.rate for checkpoint in checkpoints]
    wanted = oracle.less(*whole, *moments, np.array(matrix(whole[0].shape[2], D, 5)), rates, SUBTASKS)
    found = less_of(adapted, checkpoints, pool, target, projection=Projection(D, 5, kind, 8))
    assert np.std(wanted) > 0.01, "all rows score alike here, so the comparison is empty"
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_tracin_is_the_sum_of_dot_products(task):
    adapted, checkpoints, pool, target = setting(task)
    rates = [checkpoint.rate for checkpoint in checkpoints]
    whole = [literal(adapted, checkpoints, rows) for rows in (pool, target)]
    wanted = np.array(oracle.tracin(*whole, rates))
    targets = tracin_targets(adapted, checkpoints, target, batch_tokens=30)
    found = tracin_scores(adapted, checkpoints, targets, pool, batch_tokens=30)
    assert gap(found, wanted) < 1e-6
    projection = Projection(D, 5)
    matrix = np.array(matrices.rademacher(whole[0].shape[2], D, 5))
    means = projected_targets(adapted, checkpoints, target, projection=projection, batch_tokens=30)
    found = projected_scores(adapted, checkpoints, means, pool, projection=projection, batch_tokens=30)
    assert gap(found, np.array(oracle.tracin(*(one @ matrix for one in whole), rates))) < 1e-6


def test_tracin_is_what_a_small_step_does():
    """One step of SGD on a row lowers the target's mean loss by rate times the products; the rest falls as rate^2."""
    adapted, checkpoints, pool, target = setting("ner")  # float64 throughout: Llama's norms are fp32
    state, gaps = checkpoints[0].state, []
    gradient = literal(adapted, checkpoints[:1], pool)[0, 3]
    for rate in (1e-3, 5e-4):
        one = Checkpoint(state, rate)
        means = tracin_targets(adapted, [one], target, batch_tokens=99)
        score = tracin_scores(adapted, [one], means, pool, batch_tokens=99)[3]
        step = {name: torch.from_numpy(rate * gradient[place]) for name, place in places(adapted).items()}
        stepped = {name: value - step[name].reshape(value.shape) for name, value in state.items()}
        losses = []
        with row_gradients(adapted) as run:
            for each in (state, stepped):
                write_state(adapted, each)
                losses.append(float(run(batches_of(target, 999)[0], lambda *_: None).mean()))
        gaps.append(abs(losses[0] - losses[1] - score))
    assert gaps[0] < abs(score), "the step is too large for a first order"
    assert np.log2(gaps[0] / gaps[1]) == pytest.approx(2.0, abs=0.2), f"gaps {gaps}: the score is not the first order"


def test_scores_depend_on_neither_batch_nor_order_nor_neighbours():
    adapted, checkpoints, pool, target = setting()
    wanted = less_of(adapted, checkpoints, pool, target)
    for batch_tokens in (1, 17, 999):
        np.testing.assert_allclose(
            less_of(adapted, checkpoints, pool, target, batch_tokens=batch_tokens), wanted, atol=1e-6
        )
    order = np.random.default_rng(0).permutation(len(pool))
    np.testing.assert_allclose(less_of(adapted, checkpoints, pool.take(order), target), wanted[order], atol=1e-6)
    np.testing.assert_allclose(less_of(adapted, checkpoints, pool.take([2, 3]), target), wanted[[2, 3]], atol=1e-6)
    order = np.random.default_rng(1).permutation(len(target))
    moved = less_of(adapted, checkpoints, pool, target.take(order), subtasks=np.array(SUBTASKS)[order])
    np.testing.assert_allclose(moved, wanted, atol=1e-6)


def test_rows_without_a_scored_token_have_no_score_and_do_not_count():
    adapted, checkpoints, pool, target = setting()
    holed = [Encoded(one.ids, one.labels.copy(), one.offsets, one.sizes, one.lost) for one in (pool, target)]
    for one in holed:
        one.labels[one.offsets[1] : one.offsets[2]] = IGNORED
    kept = [0, 2, 3, 4, 5]
    subtasks = [0, 9, 1, 0, 2, 1]
    found = less_of(adapted, checkpoints, holed[0], holed[1], subtasks=[0, 1, 1, 0, 2, 1])
    wanted = less_of(adapted, checkpoints, pool, target.take(kept), subtasks=[subtasks[row] for row in kept])
    assert np.isnan(found[1])
    np.testing.assert_allclose(np.delete(found, 1), np.delete(wanted, 1), atol=1e-6)
    mean = tracin_targets(adapted, checkpoints, holed[1], batch_tokens=99)
    alone = tracin_targets(adapted, checkpoints, target.take(kept), batch_tokens=99)
    assert gap(*(torch.cat([one.flatten() for one in each[0].values()]).numpy() for each in (mean, alone))) < 1e-6
    for subtasks in ([0, 1, 2, 0, 2, 2], [0, 3, 1, 0, 3, 1], [0]):
        with pytest.raises(DataError, match="sub-task"):
            less_of(adapted, checkpoints, pool, holed[1], subtasks=subtasks)
    with pytest.raises(DataError, match="no row of the target"):
        tracin_targets(adapted, checkpoints, holed[1].take([1]), batch_tokens=99)
    assert np.isnan(less_of(adapted, checkpoints, holed[0].take([1]), target)).all()


def test_what_does_not_belong_together_is_refused():
    adapted, checkpoints, pool, target = setting()
    plain = [Checkpoint(one.state, one.rate) for one in checkpoints]
    with pytest.raises(ModelError, match="moments"):
        less_of(adapted, plain, pool, target)
    still = [Checkpoint(one.state, 0.0, one.moments) for one in checkpoints]
    with pytest.raises(ConfigError, match="learning rates"):
        less_of(adapted, still, pool, target)
    with pytest.raises(ConfigError, match="2 checkpoints"):
        tracin_scores(adapted, checkpoints, [{}], pool, batch_tokens=99)
    moments = dict(list(checkpoints[0].moments.items())[1:])
    with row_gradients(adapted) as run, pytest.raises(ModelError, match="do not fit"):
        projected(adapted, run, batches_of(pool, 999)[0], Projection(8), moments)


def test_rates_rise_then_fall_to_zero():
    rates = linear_rates(1.0, epochs=2, steps=5, warmup=0.2)
    assert rates.flatten().tolist() == pytest.approx([0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_less_finds_rows_like_the_target_after_its_warm_up():
    """Pool rows that repeat a target row score higher than rows of other tokens."""
    adapted = shake(adapted_model(dtype=torch.float32), std=0.05)
    target, others = make_encoded(seed=8), make_encoded(seed=9)
    pool = Encoded.concatenate([target, others])
    settings = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 4, "batch_tokens": 99, "seed": 1}
    start = read_state(adapted)
    checkpoints = warm_up(adapted, pool, **settings)
    assert checkpoints[0].rate > checkpoints[1].rate > 0
    assert checkpoints[0].rate == pytest.approx(float(linear_rates(1e-3, epochs=2, steps=3)[0].mean()))
    states = [start, *(one.state for one in checkpoints)]
    assert all(any(not torch.equal(one[n], two[n]) for n in one) for one, two in itertools.pairwise(states))
    write_state(adapted, start)
    again = warm_up(adapted, pool, **settings)
    assert all(torch.equal(again[1].state[name], value) for name, value in checkpoints[1].state.items())
    scores = less_of(adapted, checkpoints, pool, target, projection=Projection(256), subtasks=np.arange(len(target)))
    assert np.abs(scores).max() <= 1 + 1e-6
    assert scores[: len(target)].mean() > scores[len(target) :].mean() + 0.1, f"scores {scores.round(2)}"


# The store


def features_of(start: int, stop: int) -> torch.Tensor:
    return torch.arange(start, stop)[:, None] / 7 + torch.arange(4) / 100


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_gradients import features_of
from tov.baselines.store import store_features
def make(start, stop):
    if start == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return features_of(start, stop)
store_features(Path({folder!r}), 10, make, shard_rows=3, fingerprint="f")
"""


def test_a_killed_store_goes_on_from_its_last_shard(tmp_path):
    options = {"shard_rows": 3, "fingerprint": "f"}
    store_features(tmp_path / "whole", 10, features_of, **options)
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "killed"))
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert ended.returncode == -signal.SIGKILL
    assert sorted(files_of(tmp_path / "killed")) == [shard_file(tmp_path, start).name for start in (0, 3)]
    made = []

    def make(start, stop):
        made.append(start)
        return features_of(start, stop)

    store_features(tmp_path / "killed", 10, make, **options)
    assert made == [6, 9], "finished shards were made again, or missing ones not"
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_is_stored_is_read_again(tmp_path, dtype):
    store_features(tmp_path, 10, features_of, shard_rows=4, fingerprint="f", dtype=dtype)
    parts = dict(read_features(tmp_path, 10, fingerprint="f"))
    assert list(parts) == [0, 4, 8]
    assert torch.equal(torch.cat(list(parts.values())), features_of(0, 10).to(dtype))
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size - 10 * row_bytes(4, dtype) < 3 * 200, "a row takes more than is said"


def test_the_store_refuses_what_is_not_its_own(tmp_path):
    store_features(tmp_path, 10, features_of, shard_rows=4, fingerprint="f")
    with pytest.raises(RunError, match="another run"):
        store_features(tmp_path, 10, features_of, shard_rows=4, fingerprint="g")
    with pytest.raises(RunError, match="another run"):
        list(read_features(tmp_path, 10, fingerprint="g"))
    shard_file(tmp_path, 4).write_bytes(shard_file(tmp_path, 4).read_bytes()[:-3])
    with pytest.raises(RunError, match="is broken"):
        store_features(tmp_path, 10, features_of, shard_rows=4, fingerprint="f")
    shard_file(tmp_path, 4).unlink()
    with pytest.raises(RunError, match="lacks the features of row 4"):
        list(read_features(tmp_path, 10, fingerprint="f"))
    with pytest.raises(NumericError, match="fp32"):
        store_features(tmp_path / "large", 3, lambda *_: torch.full((3, 4), 1e6), shard_rows=4, fingerprint="f")
    assert not list((tmp_path / "large").glob("*")), "a shard of infinities was written"
    with pytest.raises(ConfigError, match="float16"):
        store_features(tmp_path, 3, features_of, shard_rows=4, fingerprint="f", dtype=torch.bfloat16)
