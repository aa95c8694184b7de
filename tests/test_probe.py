"""The measured part of `tov plan`: seconds follow from tokens and rates, weights stay, memory and disk are what a run has."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tov
from test_methods import PLAIN, VARIANTS, inputs, select
from tov.checks import probe as probing
from tov.checks.probe import Probe, Rates, seconds_of
from tov.cli.demo_data import read_topics
from tov.engine.models import Lora, ModelSpec
from tov.methods.base import Stage
from tov.model.adapters import read_state
from tov.verbs import plan as planning

RATES = Rates(rows=50.0, forward=100.0, training=20.0, by_row=10.0, noise=8.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few passes a kind: what they take is not looked at."""
    monkeypatch.setattr(probing, "SECONDS", 0.0)


def plan(model: Path, methods: list[str], **changed: Any) -> Any:
    return tov.plan(model=str(model), methods=methods, **{**inputs(), **PLAIN, "quiet": True, **changed})


@pytest.mark.parametrize(
    ("stage", "seconds"),
    [
        (Stage("fit", 1000, 400), 600 / 100 + 400 / 20),
        (Stage("gradients", 400, 400, by_row=True), 400 / 10),
        (Stage("scan", 1000), 1000 / 100 + 200 / 50),
        (Stage("scan", 1000, noise_rows=32), 1000 / 100 + 200 / 50 + 32 / 8),
        (Stage("scan"), 200 / 50),
        (Stage("index"), None),
    ],
)
def test_seconds_are_tokens_over_rates(stage: Stage, seconds: float | None) -> None:
    assert seconds_of(stage, RATES, rows=200) == seconds


def test_a_rate_that_was_not_measured_gives_no_seconds() -> None:
    unknown = Rates(rows=50.0, forward=100.0)
    assert seconds_of(Stage("fit", 10, 10), unknown, 0) is None
    assert seconds_of(Stage("fit", 10, 0), unknown, 0) == 0.1


def test_a_plan_s_seconds_are_those_of_its_rates(tiny_folder: Path) -> None:
    facts = plan(tiny_folder, ["tov/epochs=1/base_size=8", VARIANTS["less"]]).facts
    for method in facts["methods"]:
        rates = Rates(**method["rates"])
        assert rates.forward > 0
        assert rates.training
        for name, stage in method["stages"].items():
            by_row = "less" in method["method"] and name in ("target", "gradients", "scan")
            noise_rows = 32 if "tov" in method["method"] and name == "scan" else 0
            expected = seconds_of(
                Stage(name, **stage, by_row=by_row, noise_rows=noise_rows), rates, facts["pool"]["usable"]
            )
            assert method["stage_seconds"][name] == pytest.approx(expected, rel=0.02), name  # counts are rounded
        whole = facts["probe"]["reading"] + facts["probe"]["opening"] + sum(method["stage_seconds"].values())
        assert method["seconds"] == pytest.approx(whole)
    tov_rates, less_rates = (method["rates"] for method in facts["methods"])
    assert tov_rates["by_row"] is None
    assert less_rates["by_row"] > 0


def test_text_that_no_model_reads_has_no_time(tiny_folder: Path) -> None:
    planned = plan(tiny_folder, ["tov", "bm25", "random"])
    _, bm25, random = planned.facts["methods"]
    assert bm25["seconds"] is None
    assert random["seconds"] > 0
    assert next(line for line in str(planned).splitlines() if line.startswith("| bm25")).count("?") == 1


def test_without_a_probe_nothing_is_timed(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probe, "rates", None)
    planned = plan(tiny_folder, ["tov"], probe=False)
    assert planned.facts["probe"] is None
    assert planned.facts["methods"][0]["seconds"] is None
    assert "Nothing was run." in str(planned)


def test_too_little_memory_is_a_warning_and_the_rest_stands(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Probe, "_training", full)
    planned = plan(tiny_folder, ["tov"])
    assert planned.facts["warnings"][0] == planning.OUT_OF_MEMORY
    assert planned.facts["methods"][0]["forward"] > 0
    assert planned.facts["methods"][0]["seconds"] is None


@pytest.mark.parametrize("kind", ["forward", "training", "by_row"])
def test_a_probe_changes_no_weight_and_leaves_no_gradient(kind: str, tiny_folder: Path) -> None:
    lora = Lora(2, 8.0, 0.0, ("all-linear",))
    spec = ModelSpec(str(tiny_folder), "instruction", (), 0, lora, 64, "fp32", "cpu")
    opened = spec.open()
    rows = opened.encode(tov_rows(tiny_folder))
    before, frozen = read_state(opened.adapted), [one.clone() for one in opened.adapted.parameters()]
    measure = Probe(spec, opened, rows, 1.0, 256, 16)
    rate = {"forward": measure._forward, "training": lambda one: measure._training(one, 4)}
    assert (rate[kind](opened) if kind in rate else measure._by_row(opened, True)) > 0
    after = read_state(opened.adapted)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(*pair) for pair in zip(frozen, opened.adapted.parameters(), strict=True))
    assert all(one.grad is None for one in opened.adapted.parameters())


def tov_rows(model: Path) -> list[Any]:
    """Real questions and answers, read as rows."""
    from tov.data.pool import open_pool
    from tov.inputs.read import usable_rows
    from tov.tasks import all_layouts

    given = [{key: row[key] for key in ("prompt", "completion")} for row in read_topics()["science"][:24]]
    return usable_rows(open_pool([given], layouts=all_layouts()).rows(0, len(given)))


def test_every_beginning_of_the_batches_is_spread() -> None:
    order = probing._spread(21)
    assert sorted(order) == list(range(21))
    for first in (4, 8):
        places = np.sort(order[:first])
        assert np.diff([*places, 21]).max() <= 2 * 21 / first


@pytest.mark.slow
def test_memory_and_disk_are_those_of_the_run(tmp_path: Path, tiny_folder: Path) -> None:
    method = plan(tiny_folder, ["tov/epochs=1/base_size=8"], n=8).facts["methods"][0]
    memory = method["memory"]
    assert memory["weights"] > memory["optimizer"] > 0
    assert memory["peak"] > memory["weights"]
    run = select(tmp_path / "run", tiny_folder, "tov/epochs=1/base_size=8")
    files = sum((run.folder / f"selected.{kind}").stat().st_size for kind in ("jsonl", "parquet"))
    # Parquet's head, which no row pays for, is most of so small a file.
    assert method["training_file"] == pytest.approx(files, abs=8000)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not forget a peak")
def test_a_method_is_not_charged_for_the_memory_of_the_one_before_it() -> None:
    taken = []
    for size in (300, 30):
        room = probing._Room(torch.device("cpu"))
        with mmap.mmap(-1, size * 2**20) as held:  # no allocator keeps it for later
            held[:: mmap.PAGESIZE] = b"1" * (len(held) // mmap.PAGESIZE)
            taken.append(room.taken / 2**20)
    assert taken == [pytest.approx(300, abs=20), pytest.approx(30, abs=20)]


def test_a_slow_model_is_not_timed_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "LONGEST", 0.0)
    clock = probing._Clock(torch.device("cpu"), least=100)
    clock.advance(1, 10)
    with pytest.raises(probing._Enough):
        clock.advance(1, 10)
    assert clock.passes == 2
    assert clock.tokens == 10
