"""LESS, TracIn and stored features, each against a slow twin; and what must not matter."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapted import TASKS, adapted_model, gap, make_encoded, one_by_one, shake
from faults import killed
from oracle import less as oracle
from oracle import projection as matrices
from tov.engine.fill import fill
from tov.engine.local import LocalEngine
from tov.errors import ConfigError, DataError, ModelError, NumericError, RunError
from tov.methods.less import epoch_weights, in_form
from tov.methods.shared.gradients import Checkpoint, adam_direction, moments_by_name, projected
from tov.methods.shared.influence import influence, target_means
from tov.methods.shared.projection import Projection
from tov.methods.shared.warm_up import linear_rates, warm_up
from tov.model.adapters import parameters, read_state, write_state
from tov.model.gradients import per_example_gradients, places
from tov.progress import Silent
from tov.scores.shard import Shard
from tov.scores.store import ShardStore, features_of, features_table
from tov.text.batches import batches_of
from tov.text.encode import IGNORED, Encoded
from tov.training.loop import make_optimizer, moments_of, train_epoch

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


@pytest.mark.parametrize("numbers", [1, 15, 1 << 18])
def test_adam_direction_of_rows_does_not_depend_on_how_many_go_at_once(monkeypatch, numbers):
    monkeypatch.setattr("tov.methods.shared.gradients.CACHED_NUMBERS", numbers)
    draw = torch.Generator().manual_seed(0)
    g, m, v = (torch.rand(shape, generator=draw, dtype=torch.float64) for shape in ((5, 2, 3), (2, 3), (2, 3)))
    wanted = (0.9 * m + 0.1 * g) / (0.999 * v + 0.001 * g**2 + 1e-8).sqrt()
    torch.testing.assert_close(adam_direction(g, m, v), wanted, rtol=1e-12, atol=0)
    assert adam_direction(g[:0], m, v).shape == (0, 2, 3)


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
RADEMACHER = Projection(D, 5)


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


def less_of(adapted, checkpoints, pool, target, *, projection=RADEMACHER, batch_tokens=40, subtasks=SUBTASKS):
    how = {"unit": True, "projection": projection, "batch_tokens": batch_tokens}
    targets = target_means(adapted, checkpoints, target, subtasks=subtasks, **how)
    checkpoints = in_form(checkpoints, "adam")
    return influence(adapted, checkpoints, epoch_weights(checkpoints), targets, pool, **how).max(1)


def tracin_targets(adapted, checkpoints, target, *, projection=None, batch_tokens=30):
    return target_means(adapted, checkpoints, target, unit=False, projection=projection, batch_tokens=batch_tokens)


def tracin_scores(adapted, checkpoints, targets, pool, *, projection=None, batch_tokens=30):
    plain, rates = in_form(checkpoints, "sgd"), [checkpoint.rate for checkpoint in checkpoints]
    how = {"unit": False, "projection": projection, "batch_tokens": batch_tokens}
    return influence(adapted, plain, rates, targets, pool, **how)[:, 0]


@pytest.mark.parametrize("kind", ["rademacher", "sjlt", "none"])
@pytest.mark.parametrize("task", TASKS)
def test_less_is_the_literal_one(task, kind, monkeypatch):
    """ "none": the exact form; its target rows are held two at a time here."""
    adapted, checkpoints, pool, target = setting(task)
    matrix = {
        "rademacher": matrices.rademacher, "sjlt": lambda *args: matrices.sjlt(*args, 8), "none": lambda size, *_: np.eye(size)
    }[kind]  # fmt: skip
    whole = [literal(adapted, checkpoints, rows) for rows in (pool, target)]
    moments = [flat_moments(checkpoints, which) for which in (0, 1)]
    rates = [checkpoint.rate for checkpoint in checkpoints]
    wanted = oracle.less(*whole, *moments, np.array(matrix(whole[0].shape[2], D, 5)), rates, SUBTASKS)
    projection = None if kind == "none" else Projection(D, 5, kind, 8)
    monkeypatch.setattr("tov.methods.shared.influence.HELD_NUMBERS", 2 * whole[0].shape[2])
    found = less_of(adapted, checkpoints, pool, target, projection=projection)
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
    means = tracin_targets(adapted, checkpoints, target, projection=projection)
    found = tracin_scores(adapted, checkpoints, means, pool, projection=projection)
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
        with per_example_gradients(adapted) as run:
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
    assert gap(*(each[0].numpy() for each in (mean, alone))) < 1e-6
    for subtasks in ([0, 1, 2, 0, 2, 2], [0, 3, 1, 0, 3, 1], [0]):
        with pytest.raises(DataError, match="sub-task"):
            less_of(adapted, checkpoints, pool, holed[1], subtasks=subtasks)
    with pytest.raises(DataError, match="No row of the target"):
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
        tracin_scores(adapted, checkpoints, [torch.zeros(1, 1)], pool, batch_tokens=99)
    moments = dict(list(checkpoints[0].moments.items())[1:])
    with per_example_gradients(adapted) as run, pytest.raises(ModelError, match="do not fit"):
        projected(adapted, run, batches_of(pool, 999)[0], Projection(8), moments)


def test_rates_rise_then_fall_to_zero():
    rates = linear_rates(1.0, epochs=2, steps=5, warmup=0.2)
    assert rates.flatten().tolist() == pytest.approx([0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert linear_rates(1.0, epochs=1, steps=1).tolist() == [[1.0]], "one step at a rate of 0 would weigh nothing"


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


def test_warm_up_goes_down_one_slope_with_new_order_and_dropout_each_epoch(monkeypatch):
    adapted, rows, calls = adapted_model(dtype=torch.float32, dropout=0.1), make_encoded(), []

    def spy(*args, **options):
        calls.append(options)
        return train_epoch(*args, **options)

    monkeypatch.setattr("tov.methods.shared.warm_up.train_epoch", spy)
    warm_up(adapted, rows, epochs=3, learning_rate=1e-3, batch_size=4, batch_tokens=99, seed=1)
    rates = [[call["rate"](step) for step in range(2)] for call in calls]
    assert np.array_equal(rates, linear_rates(1e-3, epochs=3, steps=2)), "the slope begins anew, or is another"
    assert len({call["seed"] for call in calls}) == len({tuple(call["order"]) for call in calls}) == 3
    assert len({id(call["optimizer"]) for call in calls}) == 1, "the moments begin anew"


# The store


def numbers(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop)[:, None] / 7 + np.arange(4) / 100


@dataclass
class Numbers:
    """As a reader of 10 rows and as the task on them; it remembers which shards were made.

    Attributes:
        shard_rows: rows a shard.
        dtype: fp16 or fp32.
        made: first rows of the shards.
    """

    shard_rows: int = 4
    dtype: Any = np.float16
    made: list[int] = field(default_factory=list)

    def bounds(self) -> Iterator[tuple[int, int]]:
        return ((start, min(start + self.shard_rows, 10)) for start in range(0, 10, self.shard_rows))

    def read(self, start: int, stop: int) -> Shard:
        return Shard(start, stop, [], np.arange(stop - start), make_encoded().take([]))

    @contextmanager
    def open(self, models: Any) -> Iterator[Any]:
        def make(shard: Shard) -> np.ndarray:
            self.made.append(shard.start)
            return numbers(shard.start, shard.stop).astype(self.dtype)

        yield make

    def fill(self, folder: Path, fingerprint: str = "f") -> ShardStore:
        """Makes what is missing of the features in a folder."""
        store = ShardStore(folder, fingerprint)
        fill(store, self, self, lambda _, rows: features_table(rows), LocalEngine(), progress=Silent())
        return store


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_killed_store_goes_on_from_its_last_shard(tmp_path):
    Numbers(3).fill(tmp_path / "whole")
    with killed(function="tov.scores.store.ShardStore.write", call=3):
        Numbers(3).fill(tmp_path / "killed")
    assert sorted(files_of(tmp_path / "killed")) == [f"rows-{start:012d}.parquet" for start in (0, 3)]
    again = Numbers(3)
    again.fill(tmp_path / "killed")
    assert again.made == [6, 9], "finished shards were made again, or missing ones not"
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_stored_is_read_again(tmp_path, dtype):
    store = Numbers(dtype=dtype).fill(tmp_path)
    parts = [features_of(store.read(start)) for start in (0, 4, 8)]
    assert [len(part) for part in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(parts), numbers(0, 10).astype(dtype), strict=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_stored_row_takes_two_or_four_bytes_a_number(tmp_path, dtype):
    features = np.random.default_rng(0).normal(size=(200, 64)).astype(dtype)
    features[7] = np.nan
    store = ShardStore(tmp_path, "f")
    store.write(0, features_table(features))
    np.testing.assert_array_equal(features_of(store.read(0)), features, strict=True)
    assert store.file(0).stat().st_size < features.nbytes * 1.1, "a row takes more than is said"


def test_the_store_refuses_what_is_not_its_own(tmp_path):
    store = Numbers().fill(tmp_path)
    with pytest.raises(RunError, match="another run"):
        Numbers().fill(tmp_path, "g")
    with pytest.raises(RunError, match="another run"):
        ShardStore(tmp_path, "g").read(4)
    store.file(4).write_bytes(store.file(4).read_bytes()[:-3])
    with pytest.raises(RunError, match="is broken"):
        Numbers().fill(tmp_path)
    with pytest.raises(RunError, match="is broken"):
        store.read(4)
    store.file(4).unlink()
    with pytest.raises(RunError, match="lacks the shard of row 4"):
        store.read(4)
    with pytest.raises(NumericError, match="fp32"), np.errstate(over="ignore"):
        features_table(np.full((3, 4), 1e6).astype(np.float16))


def test_a_shard_that_could_not_be_finished_is_not_there(tmp_path, monkeypatch):
    def half(_, file, **options):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", half)
        with pytest.raises(KeyboardInterrupt):
            Numbers().fill(tmp_path)
    assert not list(tmp_path.iterdir())
