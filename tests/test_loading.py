"""Large models: spread over devices, in 4 or 8 bits. Numbers are peft's own there; where it cannot be done, that is said first.

Spread here means that accelerate's hooks are on every part, all on the CPU. bitsandbytes, where installed, computes there too.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tov
from adapted import gap, in_batches, make_encoded, one_by_one, shake
from conftest import skip_without
from oracle.gradients import row_loss
from tiny import make_rows, tiny_model_folder
from tov.config.records import SelectConfig
from tov.config.settings import build
from tov.errors import ConfigError
from tov.methods.tov.scan import scan_rows
from tov.model.adapters import attach, read_state
from tov.model.kernels.joined import scanning
from tov.model.kernels.lowrank import plain_layers
from tov.model.load import load_model
from tov.model.loading import DENSE, Loading
from tov.model.logloss import row_logprobs
from tov.tasks import TASKS
from tov.text.batches import collate
from tov.training.loop import make_optimizer, train_epoch

PARTS = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1", "model.norm", "lm_head")
KINDS = {"dense": DENSE, "spread": DENSE, "4 bits": Loading(4), "8 bits": Loading(8)}
MOST = {"dense": 1e-5, "spread": 1e-5, "4 bits": 1e-4, "8 bits": 0.05}
"""Nats a token, or tenths of the largest gradient. In 8 bits the rows of a batch decide which columns are rounded."""
GIVEN: dict[str, Any] = {"model": "m", "pool": ["p"], "target": ["t"], "n": 1, "out": "auto"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose widths are multiples of the block of 64 weights that share a scale."""
    return tiny_model_folder(tmp_path_factory.mktemp("blocks"), hidden_size=64, intermediate_size=128)


@pytest.fixture(params=KINDS)
def large(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Any]:
    """A kind, and such a model under an adapter whose B is not zero."""
    kind = request.param
    if KINDS[kind].bits:
        skip_without("bitsandbytes", install="pip install 'tov[quantised]'")
    given = {"task": TASKS["instruction"], "dtype": "fp32", "device": "cpu"}
    model = load_model(str(folder), **given, loading=KINDS[kind]).model
    if kind == "spread":
        from accelerate import dispatch_model

        model = dispatch_model(model, dict.fromkeys(PARTS, "cpu"), force_hooks=True)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # a kernel of CPUs alone, in bf16 and without gradients
            module.support_avx512bf16_for_cpu = False
    adapted = attach(model, rank=4, alpha=6.0, dropout=0.0, targets=("all-linear",), seed=0).eval()
    assert bool(plain_layers(adapted)) == (kind == "dense")
    return kind, shake(adapted, std=0.05)


def test_log_losses_are_those_of_rows_alone(large: tuple[str, Any]) -> None:
    kind, adapted = large
    rows = make_encoded()
    with torch.no_grad():
        alone = [float(row_loss(adapted, *(part.tolist() for part in rows.row(row)))) for row in range(len(rows))]
    batch = collate(rows, np.arange(len(rows)))
    with scanning(adapted):
        logp = row_logprobs(adapted.get_base_model(), batch).split(rows.scored_counts.tolist())
    assert [-float(one.mean()) for one in logp] == pytest.approx(alone, abs=MOST[kind])
    hooked = [module for module in adapted.modules() if "_hf_hook" in vars(module)]
    assert bool(hooked) == (kind == "spread")
    assert all("forward" in vars(module) for module in hooked), "a hook is gone"
    with torch.no_grad():  # what it was before the scan
        assert float(row_loss(adapted, *(part.tolist() for part in rows.row(1)))) == pytest.approx(alone[1], abs=1e-6)


def test_gradients_and_a_step_are_those_of_rows_alone(large: tuple[str, Any]) -> None:
    kind, adapted = large
    rows, start = make_encoded(), read_state(adapted)
    wanted = one_by_one(adapted, rows)
    assert gap(in_batches(adapted, rows), wanted) < 10 * MOST[kind]
    order, optimizer = np.arange(len(rows)), make_optimizer(adapted, "sgd")
    train_epoch(
        adapted, rows, order=order, optimizer=optimizer, rate=lambda step: 0.01, batch_size=len(rows), batch_tokens=10_000,
        seed=0,
    )  # fmt: skip
    moved = torch.cat([(start[name] - value).flatten() for name, value in read_state(adapted).items()]).numpy()
    assert gap(moved, 0.01 * wanted.mean(0)) < max(10 * MOST[kind], 1e-3)


def test_equal_states_score_exactly_0(large: tuple[str, Any]) -> None:
    _, adapted = large
    state = read_state(adapted)
    other = {name: value + 0.02 for name, value in state.items()}
    with scanning(adapted) as set_state:
        pairs = [(1, state, state), (2, state, other)]
        scanned = scan_rows(adapted.get_base_model(), set_state, make_encoded(), pairs, batch_tokens=30)
    same, differing = (np.abs(epoch["score_abs"]) for epoch in scanned.epochs)
    assert not same.any()
    assert differing.min() > 0


# Whose numbers are whose


def test_a_model_in_4_bits_is_another_one() -> None:
    weights = "0123456789abcdef"
    prints = {DENSE.fingerprint(weights)}
    assert prints == {weights}, "runs of other versions go on"
    for other in (Loading(4), Loading(8), Loading(None, "auto"), Loading(4, "auto")):
        prints.add(other.fingerprint(weights))
    assert len(prints) == 5


def test_settings_say_how_it_is_loaded_and_are_no_part_of_other_runs() -> None:
    plain = build(SelectConfig, GIVEN)
    assert Loading.of(plain) == DENSE
    assert not {"device_map", "load_in_4bit", "load_in_8bit"} & plain.of("fit").keys()
    large = build(SelectConfig, {**GIVEN, "load_in_8bit": True, "device_map": "auto"})
    assert Loading.of(large) == Loading(8, "auto")
    assert {"device_map", "load_in_8bit"} <= large.of("fit").keys()


# Refusals


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "contradict each other"),
        ({"device_map": "auto", "device": "cuda:1"}, "--device cuda:1 names one GPU"),
        ({"device_map": "auto", "devices": "0,1"}, "--devices 0,1 names one GPU"),
        ({"device_map": "everywhere"}, "auto"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(SelectConfig, {**GIVEN, **given})


@pytest.mark.parametrize("given", [{"load_in_4bit": True}, {"load_in_8bit": True}, {"device_map": "auto"}])
def test_without_a_gpu_that_is_said_before_the_pool_is_read(
    given: dict[str, Any], tmp_path: Path, tiny_folder: Path
) -> None:
    (tmp_path / "pool.jsonl").write_text("this is no JSON")
    with pytest.raises(ConfigError) as told:
        tov.select(
            model=str(tiny_folder), pool=tmp_path / "pool.jsonl", target=make_rows(4), n=2, out=tmp_path / "run", quiet=True,
            device="cpu", **given,
        )  # fmt: skip
    assert "needs a CUDA GPU, but the device is cpu" in str(told.value)
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_missing_is_named() -> None:
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(
        ConfigError, match=r"(?s)--load-in-4bit needs the package bitsandbytes.*pip install 'tov\[quantised\]'"
    ):
        Loading(4).check(torch.device("cuda"), new_head=False)


def test_classifiers_are_refused() -> None:
    with pytest.raises(ConfigError, match="--load-in-8bit is for causal language models"):
        Loading(8).check(torch.device("cuda"), new_head=True)
