"""The path: its variants as data, its states bit for bit, its rates and its failures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import tov
from tiny import make_rows, tiny_llama, tiny_model_folder, tiny_tokenizer, write_jsonl
from tov.config.records import PathSettings
from tov.config.settings import build
from tov.errors import NumericError
from tov.methods.tov.fit import base_size_for, fit, schedule_for
from tov.methods.tov.path import open_path
from tov.methods.tov.variants import START, VARIANTS, Step
from tov.model.adapters import attach, load, parameters
from tov.tasks.instruction import Conversation, encode
from tov.text.encode import IGNORED

TABLES = {
    "interleaved": [
        (1, "base", START, "base-1"), (1, "target", "base-1", "target-1"),
        (2, "base", "target-1", "base-2"), (2, "target", "base-2", "target-2"),
    ],
    "parallel": [
        (1, "base", START, "base-1"), (1, "target", "base-1", "target-1"),
        (2, "base", "base-1", "base-2"), (2, "target", "base-2", "target-2"),
    ],
    "paired": [
        (1, "base", START, "base-1"), (1, "base", START, "mixed-1"), (1, "target", "mixed-1", "target-1"),
        (2, "base", "base-1", "base-2"), (2, "base", "target-1", "mixed-2"), (2, "target", "mixed-2", "target-2"),
    ],
}  # fmt: skip
OPTIMIZERS = ("fresh", "carry", "sgd")


def settings_of(**given) -> PathSettings:
    settings = build(PathSettings, {"model": "-", "pool": "-", "target": "-", "batch_size": 4, "epochs": 2, **given})
    return settings.for_task("instruction")


def encoded(count: int, seed: int):
    rows = [
        Conversation(({"role": "assistant", "content": row["completion"]},), plain=True)
        for row in make_rows(count, seed=seed)
    ]
    return encode(tiny_tokenizer(), rows, max_length=64)


def walk(
    settings: PathSettings, *, base_rows: int = 10, target_seed: int = 2, batch_tokens: int = 2048, dtype=torch.float32
):
    """{state name: parameters} of a path over some base rows and 6 target rows, and its log."""
    adapted = attach(
        tiny_llama(dtype=dtype), rank=2, alpha=4.0, dropout=settings.lora_dropout, targets=("all-linear",), seed=0
    )
    if dtype == torch.float64:
        adapted.double()
    kept: dict[str, dict] = {}
    log = fit(
        adapted, base=encoded(base_rows, 1), target=encoded(6, target_seed), settings=settings,
        schedule=schedule_for(settings, base_rows), keep=lambda step, state: kept.update({step.result: state}),
        batch_tokens=batch_tokens,
    )  # fmt: skip
    return kept, log


def same(one, two) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_variants_are_these_steps(variant):
    assert list(VARIANTS[variant](2)) == [Step(*row) for row in TABLES[variant]], f"{variant} starts from other states"


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("epochs", [1, 3])
def test_every_step_starts_from_a_state_that_is_there(variant, epochs):
    there = {START}
    for step in VARIANTS[variant](epochs):
        assert step.source in there, f"{step.result} starts from {step.source}, which no step made"
        there.add(step.result)
    missing = {f"{name}-{k}" for name in ("base", "target") for k in range(1, epochs + 1)} - there
    assert not missing, f"the scan would miss {missing}"


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_epoch_keeps_a_base_and_a_target_state(variant, optimizer):
    kept, log = walk(settings_of(path_variant=variant, target_optimizer=optimizer))
    assert set(kept) == {"base-1", "target-1", "base-2", "target-2"}, f"kept {sorted(kept)}"
    assert not same(kept["base-2"], kept["target-2"]), "the target epoch moved nothing"
    assert [entry["to"] for entry in log] == [step.result for step in VARIANTS[variant](2)], "the log misses a step"
    again, _ = walk(settings_of(path_variant=variant, target_optimizer=optimizer))
    assert all(same(kept[name], again[name]) for name in kept), "the same seed gave another path"


@pytest.mark.parametrize("variant", ["parallel", "paired"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_base_trajectory_never_sees_the_target(variant, optimizer, monkeypatch):
    """Neither its weights nor its optimizer moments: it equals one without target epochs, bit for bit."""
    kept, _ = walk(settings_of(path_variant=variant, target_optimizer=optimizer))
    monkeypatch.setitem(
        VARIANTS, variant, lambda _: (Step(1, "base", START, "base-1"), Step(2, "base", "base-1", "base-2"))
    )
    alone, _ = walk(settings_of(path_variant=variant, target_optimizer=optimizer))
    assert same(kept["base-1"], alone["base-1"]), "the first base epoch depends on the target"
    assert same(kept["base-2"], alone["base-2"]), "the target epoch leaks into the base trajectory's weights or moments"


def test_interleaved_lets_the_target_into_the_base_trajectory():
    one, _ = walk(settings_of())
    other, _ = walk(settings_of(), target_seed=3)
    assert same(one["base-1"], other["base-1"]), "the first base epoch depends on the target"
    assert not same(one["base-2"], other["base-2"]), "the second base epoch must start from theta_val_1"


def test_the_seed_reaches_the_order_of_rows():
    one, two = (walk(settings_of(seed=seed))[0] for seed in (0, 1))
    assert not same(one["base-1"], two["base-1"]), "the seed does not change the order of the rows"


def test_the_seed_reaches_dropout():
    """A base set of one row has one order, so nothing but dropout can differ."""
    one, again, two, none = (
        walk(settings_of(seed=seed, lora_dropout=dropout), base_rows=1)[0]["base-1"]
        for seed, dropout in ((0, 0.5), (0, 0.5), (1, 0.5), (0, 0.0))
    )
    assert not same(one, none), "lora_dropout takes no effect"
    assert same(one, again), "dropout is not seeded"
    assert not same(one, two), "the seed does not reach dropout"


def test_fitting_leaves_the_users_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    walk(settings_of(lora_dropout=0.1))
    assert torch.equal(torch.rand(3), expected), "fitting draws from or reseeds the process's own generator"


def moved(states, k: int) -> float:
    """The largest change of a parameter in target epoch k."""
    return max(float((states[f"target-{k}"][name] - value).abs().max()) for name, value in states[f"base-{k}"].items())


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_target_rate_is_eps_times_the_epochs_mean_base_rate(schedule):
    """The first step of AdamW from zero moments moves a parameter by the rate itself."""
    settings = settings_of(
        lr_scheduler_type=schedule, learning_rate=1e-2, target_learning_rate_ratio=0.25, batch_size=8
    )
    kept, _ = walk(settings)
    rates = {"linear": [8.75e-3, 3.75e-3], "constant": [1e-2, 1e-2]}[schedule]  # 2 steps an epoch: 1, .75, .5, .25
    assert schedule_for(settings, 10).rates == pytest.approx(rates), "mean base rates of the epochs"
    for k, rate in enumerate(rates, 1):
        assert moved(kept, k) == pytest.approx(0.25 * rate, rel=1e-3), f"epoch {k}: not eps times the mean base rate"


def test_sgd_moves_the_target_state_by_its_own_rate():
    small, large = (
        moved(walk(settings_of(target_optimizer="sgd", target_sgd_learning_rate=rate, batch_size=8))[0], 1)
        for rate in (0.01, 0.02)
    )
    assert large == pytest.approx(2 * small, rel=1e-3), "one SGD step must be proportional to target_sgd_learning_rate"


def test_the_base_rate_moves_the_base_state():
    kept, _ = walk(settings_of(learning_rate=1e-2, batch_size=16, epochs=1))
    widest = max(float(value.abs().max()) for name, value in kept["base-1"].items() if "lora_B" in name)
    assert widest == pytest.approx(1e-2, rel=1e-3), "B starts at 0 and the first AdamW step is the rate itself"


@pytest.mark.parametrize(
    ("base_size", "epochs", "noted"),
    [(4096, 2, True), (16384, 1, False), (8192, 2, False), (12_000, 1, True), (100_000, 1, True), (1024, 2, True)],
)
def test_scoring_epochs_follow_the_rule(base_size, epochs, noted):
    """L = 16*1024 / |U|, rounded, at least 1 and at most 2."""
    schedule = schedule_for(settings_of(epochs=None, batch_size=16), base_size)
    assert schedule.epochs == len(schedule.rates) == epochs, f"|U| = {base_size} gave L = {schedule.epochs}"
    assert bool(schedule.notes) == noted, f"rounding must be said, and only then: {schedule.notes}"


def test_epochs_as_given_are_not_rounded():
    schedule = schedule_for(settings_of(epochs=7), 4096)
    assert (schedule.epochs, schedule.notes) == (7, ()), "the user's --epochs was changed"


@pytest.mark.parametrize(
    ("given", "usable", "size"), [(None, 100_000, 4096), (None, 800, 200), (None, 3, 1), (50, 800, 50), (50, 20, 20)]
)
def test_base_size_follows_the_rule(given, usable, size):
    assert base_size_for(settings_of(base_size=given), usable) == size, (
        "4096, at most a quarter; never more than there are"
    )


def test_divergence_is_an_error_that_says_what_to_lower():
    with pytest.raises(NumericError, match="--learning-rate"):
        walk(settings_of(learning_rate=1e30, lr_scheduler_type="constant"))


def test_the_size_of_a_micro_batch_changes_only_rounding():
    """Rows of one step are split to save memory; their gradients must add up to the same step."""
    # SGD for the target, since AdamW would turn a gradient's rounding near zero into a whole step.
    settings = settings_of(target_optimizer="sgd", batch_size=16, epochs=1)
    whole, whole_log = walk(settings, batch_tokens=100_000, dtype=torch.float64)
    parts, parts_log = walk(settings, batch_tokens=1, dtype=torch.float64)
    for one, two in zip(whole_log, parts_log, strict=True):
        assert one["log_loss"] == pytest.approx(two["log_loss"], rel=1e-6), "the loss depends on the split"
    steps = ({name: run["target-1"][name] - run["base-1"][name] for name in run["base-1"]} for run in (whole, parts))
    one, two = (torch.cat([step.flatten() for step in run.values()]) for run in steps)
    gap = float((one - two).norm() / one.norm())
    assert gap < 1e-3, f"the step differs by {gap:.2g} of itself: rows are weighted by their part of the split"


def test_a_step_weighs_rows_and_not_tokens():
    """The loss is the mean over rows of token-mean losses, so a long row counts as much as a short one."""
    _, log = walk(settings_of(batch_size=16, epochs=1))
    rows, model = encoded(10, 1), tiny_llama()
    each = []
    for ids, wanted in (rows.row(place) for place in range(len(rows))):
        with torch.no_grad():
            logp = model(input_ids=torch.tensor(ids[None]).long()).logits[0, :-1].log_softmax(-1)
        labels = torch.tensor(ids[1:]).long()
        each.append(-float(logp.gather(1, labels[:, None])[:, 0][torch.tensor(wanted[1:] != IGNORED)].mean()))
    assert log[0]["log_loss"] == pytest.approx(sum(each) / len(each), rel=1e-5), (
        "not the row mean of token means (Eq. 7)"
    )


def fit_run(folder: Path, tmp: Path, model: Path, **settings) -> Path:
    pool, target = (
        write_jsonl(tmp / "pool.jsonl", make_rows(24, seed=1)),
        write_jsonl(tmp / "t.jsonl", make_rows(5, seed=2)),
    )
    tov.fit(
        str(model), str(target), pool=str(pool), out=folder, quiet=True,
        **{"dtype": "fp32", "base_size": 8, "epochs": 2, "lora_r": 2, **settings},
    )  # fmt: skip
    return folder / "path"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))}


def test_the_same_seed_stores_the_same_bytes(tmp_path, tiny_folder):
    one, two = (contents(fit_run(tmp_path / name, tmp_path, tiny_folder)) for name in ("one", "two"))
    assert len(one) == 4, f"stored {sorted(one)}"
    assert one == two, "the same command stored another path: an unseeded choice, or a set's order"
    other = contents(fit_run(tmp_path / "other", tmp_path, tiny_folder, seed=1))
    assert not set(one.values()) & set(other.values()), "the seed does not reach the stored states"


def test_stored_adapters_open_in_peft_as_they_are(tmp_path, tiny_folder):
    path = fit_run(tmp_path / "run", tmp_path, tiny_folder)
    stored = open_path(path)
    assert stored.epochs == 2, "the manifest's number of epochs"
    for epoch, which in ((1, "base"), (2, "target")):
        folder = path / f"epoch-{epoch}" / which
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), folder, is_trainable=True)
        state = load(folder)
        live = parameters(model)
        assert set(live) == set(state), "peft finds other parameters than were stored"
        assert all(torch.equal(live[name], state[name]) for name in state), f"{folder} loads with other numbers"


def test_adapters_are_fp32_on_a_bf16_model(tmp_path, tiny_folder):
    """In bf16 a rate of 1e-5 would move almost no parameter."""
    path = fit_run(tmp_path / "run", tmp_path, tiny_folder, dtype="bf16", learning_rate=1e-5)
    base, target = (load(path / "epoch-1" / which) for which in ("base", "target"))
    assert {value.dtype for value in base.values()} == {torch.float32}, "adapter parameters must be fp32"
    still = [float((base[name] == target[name]).float().mean()) for name in base if "lora_B" in name]
    assert max(still) < 0.2, f"{max(still):.0%} of a B never moved at a tenth of 1e-5"


def test_a_model_without_a_chat_template_is_fitted_too(tmp_path):
    model = tiny_model_folder(tmp_path, chat_template=None)
    assert len(contents(fit_run(tmp_path / "run", tmp_path, model))) == 4, "the plain format for base models"
