"""Embeddings of rows and the target path, each against a slow twin; and what must not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adapted import TASKS, adapted_model, make_encoded, shake
from oracle import embed as oracle
from tov.errors import ConfigError, DataError, NumericError
from tov.methods.shared.embeddings import embed_rows
from tov.methods.target_path import depth_for, endpoint_drop, fit_target_path
from tov.model.adapters import State, parameters, read_state, write_state
from tov.model.kernels.joined import scanning
from tov.text.encode import IGNORED, Encoded
from tov.training.loop import train_epoch


def holed(rows: Encoded, row: int) -> Encoded:
    """The same rows, one of them without a scored token."""
    labels = rows.labels.copy()
    labels[rows.offsets[row] : rows.offsets[row + 1]] = IGNORED
    return Encoded(rows.ids, labels, rows.offsets, rows.sizes, rows.lost)


# Embeddings


def one_by_one(adapted: Any, rows: Encoded) -> np.ndarray:
    return np.stack([oracle.embedding(adapted, rows.row(row)[0].tolist()).numpy() for row in range(len(rows))])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch_tokens", [1, 20, 999])
def test_embeddings_are_the_weighted_mean_of_the_row_alone(task, batch_tokens):
    adapted, rows = adapted_model(task), make_encoded(task)
    wanted = one_by_one(adapted, rows)
    found = embed_rows(adapted, rows, batch_tokens=batch_tokens)
    assert found.dtype == np.float32
    assert np.std(wanted @ wanted.T) > 0.01, "all rows lie alike here, so the comparison is empty"
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6, err_msg="padding, a weight, or a row's place")
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)


def test_embeddings_see_the_adapter_as_it_stands():
    adapted, rows = adapted_model(), make_encoded()
    before = embed_rows(adapted, rows, batch_tokens=99)
    shake(adapted, seed=5)
    after = embed_rows(adapted, rows, batch_tokens=99)
    np.testing.assert_allclose(after, one_by_one(adapted, rows), atol=1e-6)
    assert np.abs(after - before).max() > 0.01


@pytest.mark.parametrize("task", TASKS)
def test_bf16_embeddings_are_fp32_and_near(task):
    rows = make_encoded(task)
    found = embed_rows(adapted_model(task, dtype=torch.bfloat16), rows, batch_tokens=20)
    assert ((found * one_by_one(adapted_model(task), rows)).sum(1) > 0.98).all()
    rounded = torch.from_numpy(found).bfloat16().float().numpy()
    assert (rounded == found).mean() < 0.2, "the mean was taken in bf16"


def test_rows_without_a_token_or_a_scored_one_have_no_embedding():
    adapted, rows = adapted_model("ner"), make_encoded("ner")
    wanted = embed_rows(adapted, rows, batch_tokens=20)
    found = embed_rows(adapted, holed(rows, 1), batch_tokens=20)
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(np.delete(found, 1, 0), np.delete(wanted, 1, 0), atol=1e-6)
    offsets = np.insert(rows.offsets, 3, rows.offsets[3])
    empty = Encoded(rows.ids, rows.labels, offsets, np.insert(rows.sizes, 3, 0), np.insert(rows.lost, 3, 0))
    found = embed_rows(adapted, empty, batch_tokens=20)
    assert np.isnan(found[3]).all()
    np.testing.assert_allclose(np.delete(found, 3, 0), wanted, atol=1e-6)
    assert embed_rows(adapted, rows.take([]), batch_tokens=20).shape == (0, 16)


def test_an_embedding_that_is_no_number_is_said():
    adapted = shake(adapted_model(), std=float("inf"))
    with pytest.raises(NumericError, match="embedding"):
        embed_rows(adapted, make_encoded(), batch_tokens=99)


# The target path


SETTINGS = {"learning_rate": 1e-2, "batch_size": 4, "batch_tokens": 40, "seed": 3}


def by_torch(adapted: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state by torch's names."""
    names = {id(parameter): name for name, parameter in adapted.named_parameters()}
    return {names[id(parameter)]: state[name] for name, parameter in parameters(adapted).items()}


def drop_of(adapted: Any, states: tuple[State, State], rows: Encoded, batch_tokens: int) -> dict[str, np.ndarray]:
    with scanning(adapted) as set_state:
        return endpoint_drop(adapted.get_base_model(), set_state, states, rows, batch_tokens=batch_tokens)


@pytest.mark.parametrize("task", TASKS)
def test_the_drop_is_that_of_the_row_alone(task):
    adapted, pool, target = adapted_model(task), make_encoded(task, seed=3), make_encoded(task, seed=4)
    states = fit_target_path(adapted, target, epochs=3, **SETTINGS)
    found = drop_of(adapted, states, pool, batch_tokens=30)["score_target_path"]
    ends = [by_torch(adapted, state) for state in states]
    wanted = [
        oracle.endpoint_drop(adapted, ends, *(part.tolist() for part in pool.row(row))) for row in range(len(pool))
    ]
    assert np.std(wanted) > 0.01, "all rows score alike here, so the comparison is empty"
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_the_path_is_epochs_on_the_target_with_one_optimizer(monkeypatch):
    """The first state is that after one epoch, the last that after all; order and dropout are new each epoch."""
    adapted, target, calls = adapted_model(dropout=0.1), make_encoded(), []

    def spy(*args, **options):
        done = train_epoch(*args, **options)
        calls.append({**options, "state": read_state(adapted)})
        return done

    monkeypatch.setattr("tov.methods.target_path.train_epoch", spy)
    start = read_state(adapted)
    states = fit_target_path(adapted, target, epochs=3, **SETTINGS)
    assert len(calls) == 3
    for state, call in zip(states, (calls[0], calls[-1]), strict=True):
        assert all(torch.equal(value, call["state"][name]) for name, value in state.items())
    assert len({id(call["optimizer"]) for call in calls}) == 1, "the moments begin anew"
    assert len({call["seed"] for call in calls}) == len({tuple(call["order"]) for call in calls}) == 3
    assert {call["rate"](step) for call in calls for step in range(2)} == {1e-2}
    write_state(adapted, start)
    again = fit_target_path(adapted, target, epochs=3, **SETTINGS)
    assert all(torch.equal(value, again[1][name]) for name, value in states[1].items()), "the seed does not decide all"
    write_state(adapted, start)
    other = fit_target_path(adapted, target, epochs=3, **{**SETTINGS, "seed": 4})
    assert any(not torch.equal(value, other[1][name]) for name, value in states[1].items()), "the seed does nothing"


@pytest.mark.parametrize("task", ["ner", "classification"])
def test_a_new_head_is_trained_along_the_path(task):
    adapted = adapted_model(task)
    start = read_state(adapted)
    for state in fit_target_path(adapted, make_encoded(task), epochs=2, **SETTINGS):
        moved = [name for name in state if "classifier" in name and not torch.equal(state[name], start[name])]
        assert len(moved) == 2, "the head stood still"


def test_rows_of_the_target_drop_further_than_others():
    adapted = shake(adapted_model(dtype=torch.float32), std=0.05)
    target, others = make_encoded(seed=8), make_encoded(seed=9)
    states = fit_target_path(adapted, target, epochs=8, **SETTINGS)
    drops = drop_of(adapted, states, Encoded.concatenate([target, others]), batch_tokens=99)
    score = drops["score_target_path"]
    assert score.max() <= 1
    assert score[: len(target)].mean() > score[len(target) :].mean() + 0.1, f"scores {score.round(2)}"


def test_what_must_not_matter_to_a_drop():
    adapted, pool = adapted_model("ner"), make_encoded("ner", seed=3)
    states = fit_target_path(adapted, make_encoded("ner", seed=4), epochs=2, **SETTINGS)
    wanted = drop_of(adapted, states, pool, batch_tokens=30)["score_target_path"]
    order = np.random.default_rng(0).permutation(len(pool))
    for batch_tokens in (1, 999):
        found = drop_of(adapted, states, pool.take(order), batch_tokens=batch_tokens)["score_target_path"]
        np.testing.assert_allclose(found, wanted[order], atol=1e-9)
    assert not drop_of(adapted, (states[0], states[0]), pool, batch_tokens=30)["score_target_path"].any()
    found = drop_of(adapted, states, holed(pool, 1), batch_tokens=30)
    assert all(np.isnan(values[1]) for values in found.values())
    np.testing.assert_allclose(np.delete(found["score_target_path"], 1), np.delete(wanted, 1), atol=1e-9)


def test_rows_without_a_scored_token_are_no_part_of_the_path():
    target, paths = make_encoded(), []
    for rows in (holed(target, 1), target.take([0, 2, 3, 4, 5])):
        adapted = adapted_model()
        paths.append(fit_target_path(adapted, rows, epochs=2, **{**SETTINGS, "batch_size": 9})[1])
    assert all(torch.allclose(value, paths[1][name], atol=1e-9) for name, value in paths[0].items())
    with pytest.raises(DataError, match="No row of the target"):
        fit_target_path(adapted_model(), holed(target, 1).take([1]), epochs=2, **SETTINGS)


def test_depths_and_rates_that_cannot_be_are_refused():
    for settings in ({"epochs": 1}, {"epochs": 2, "learning_rate": 0.0}):
        with pytest.raises(ConfigError, match="allowed"):
            fit_target_path(adapted_model(), make_encoded(), **{**SETTINGS, **settings})


def test_the_depth_passes_as_many_rows_whatever_the_target_has():
    assert [depth_for(rows) for rows in (1, 32, 64, 256, 1000, 10**6)] == [64, 64, 32, 8, 2, 2]
