"""Why the score means anything: the order of the error of Eq. 4, and the score against true retraining."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tiny import VOCABULARY, tiny_llama
from tov.losses import log_loss
from tov.methods.tov.scan import scan_rows
from tov.methods.tov.scoring import row_scores
from tov.methods.tov.variants import START, VARIANTS
from tov.model.adapters import attach, parameters, read_state, write_state
from tov.model.kernels.joined import scanning
from tov.text.encode import IGNORED, Encoded
from tov.training.loop import make_optimizer, train_epoch

RATES = np.array([0.08, 0.04, 0.02, 0.01])


def slope(rates: np.ndarray, gaps: list[float]) -> float:
    return float(np.polyfit(np.log(rates), np.log(gaps), 1)[0])


def small_net():
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)
    return torch.nn.Sequential(*layers).double()


def example(seed: int):
    torch.manual_seed(seed)
    return torch.randn(3, 6, dtype=torch.float64), torch.randint(0, 5, (3,))


def loss_after_a_step_on(example_x, rate: float, example_z) -> float:
    """l(theta_x, z): the loss of z after one gradient step on x."""
    net, (inputs, labels) = small_net(), example_x
    torch.nn.functional.cross_entropy(net(inputs), labels).backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= rate * parameter.grad
        return float(torch.nn.functional.cross_entropy(net(example_z[0]), example_z[1]))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_two_sides_of_eq_4_differ_by_the_square_of_the_step(seed):
    """[l(z) - l(z after a step on x)] - [l(x) - l(x after a step on z)] in a small float64 net."""
    x, z = example(10 * seed), example(10 * seed + 1)
    at_x, at_z = (loss_after_a_step_on(one, 0.0, one) for one in (x, z))
    gaps = [
        abs((at_z - loss_after_a_step_on(x, rate, z)) - (at_x - loss_after_a_step_on(z, rate, x))) for rate in RATES
    ]
    order = slope(RATES, gaps)
    assert 1.9 < order < 2.1, f"the gap falls as eta^{order:.2f}: a sign or a side of Eq. 4 is exchanged if it is 1"


def one_row(seed: int) -> Encoded:
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, 14).astype(np.int32)
    labels = np.where(np.arange(14) > 4, ids, IGNORED)
    return Encoded(ids, labels, np.array([0, 14]), sizes=np.array([9]), lost=np.array([0]))


def gain_of(scored: Encoded, trained: Encoded, rate: float) -> float:
    """score_identity of one row after one SGD step on the other, all by tov's own code on a float64 Llama."""
    adapted = attach(tiny_llama(dtype=torch.float64), rank=2, alpha=2.0, dropout=0.0, targets=("all-linear",), seed=0)
    torch.manual_seed(0)
    for parameter in parameters(adapted.double()).values():
        torch.nn.init.normal_(parameter, std=0.1)
    before = read_state(adapted)
    train_epoch(
        adapted, trained, order=[0], optimizer=make_optimizer(adapted, "sgd"), rate=lambda _: rate, batch_size=1,
        batch_tokens=64, seed=0,
    )  # fmt: skip
    after = read_state(adapted)
    with scanning(adapted) as set_state:
        pairs = [(1, before, after)]
        scanned = scan_rows(adapted.get_base_model(), set_state, scored, pairs, batch_tokens=64)
    write_state(adapted, before)
    return float(scanned.epochs[0]["score_identity"][0])


def test_eq_4_holds_through_training_and_scanning():
    """The same order of error with tov's optimizer step, adapter, scan and sign."""
    x, z = one_row(1), one_row(2)
    gains = [(gain_of(z, x, rate), gain_of(x, z, rate)) for rate in RATES]
    order = slope(RATES, [abs(one - other) for one, other in gains])
    assert 1.9 < order < 2.1, (
        f"the gap falls as eta^{order:.2f}: either the step is not eta times the gradient of what is scored, or the score "
        f"is not the fall of the log-loss; gains {gains}"
    )


# Proposition 1 on logistic regression: theta (D,), rows (D,) with labels of +-1.


def losses(theta: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, -labels * (rows @ theta))


def descend(theta: np.ndarray, rows: np.ndarray, labels: np.ndarray, rate: float) -> np.ndarray:
    """One epoch: one step on the sum of the rows' losses."""
    return theta + rate * (rows * (labels / (1 + np.exp(labels * (rows @ theta))))[:, None]).sum(0)


def tov_scores(pool, base, target, *, rate: float, epochs: int, variant: str) -> np.ndarray:
    """The mean over epochs of score_identity, walking the variant's own table of steps."""
    states = {START: np.zeros(pool[0].shape[1])}
    for step in VARIANTS[variant](epochs):
        data, scale = (base, 1.0) if step.data == "base" else (target, 0.1)
        states[step.result] = descend(states[step.source], *data, rate * scale)
    offsets = np.arange(len(pool[1]) + 1)
    each = [
        row_scores(-losses(states[f"base-{k}"], *pool), -losses(states[f"target-{k}"], *pool), offsets)["identity"]
        for k in range(1, epochs + 1)
    ]
    return np.mean(each, axis=0)


def leave_in_effects(pool, base, target, *, rate: float, epochs: int) -> np.ndarray:
    """How much lower the target's loss is when a row is trained on beside the base set: retrained for every row."""

    def target_loss(rows: np.ndarray, labels: np.ndarray) -> float:
        theta = np.zeros(rows.shape[1])
        for _ in range(epochs):
            theta = descend(theta, rows, labels, rate)
        return float(losses(theta, *target).mean())

    without = target_loss(*base)
    together = (
        (np.vstack([base[0], row]), np.append(base[1], label)) for row, label in zip(pool[0], pool[1], strict=True)
    )
    return np.array([without - target_loss(*both) for both in together])


def labelled(count: int, seed: int):
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(count, 5))
    return rows, np.where(rows @ [1.0, -1.0, 0.5, 0.0, 0.0] + 0.5 * draw.normal(size=count) > 0, 1.0, -1.0)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_the_score_tends_to_the_true_effect_of_training_on_a_row(variant):
    pool, base, target = labelled(60, 1), labelled(20, 2), labelled(8, 3)
    correlations = []
    for rate in (0.5, 0.1, 0.02, 0.004):
        scores = tov_scores(pool, base, target, rate=rate, epochs=3, variant=variant)
        effects = leave_in_effects(pool, base, target, rate=rate, epochs=3)
        correlations.append(float(np.corrcoef(scores, effects)[0, 1]))
    assert correlations[-1] > 0.99, f"correlation with retraining is {correlations} as the step shrinks: the sign, or F"
    assert correlations[0] < correlations[1] < correlations[-1], f"it does not rise as the step shrinks: {correlations}"


def test_the_score_is_the_fall_of_the_log_loss():
    base, target, offsets = np.log([0.2, 0.5]), np.log([0.4, 0.25]), np.array([0, 1, 2])
    score = row_scores(base, target, offsets)["identity"]
    assert np.allclose(score, log_loss(base, offsets) - log_loss(target, offsets)), "the sign of Eq. 6 is turned round"
    assert score[0] > 0 > score[1], "a row that became likelier must score above 0"
