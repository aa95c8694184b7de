"""`tov doctor` on this machine: what it says is so, and what is broken on purpose is a fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tov.checks import machine, precision
from tov.checks.machine import Check, instruction_sets, known_faults, memory, numbers, of_cache, of_hub, of_packages
from tov.checks.precision import precision_of
from tov.cli.main import main
from tov.verbs.doctor import Diagnosis, doctor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    return doctor()


def by_name(checks: Any) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.mark.slow
def test_every_line_has_a_state_and_every_one_that_is_not_ok_says_what_to_do(found: Diagnosis) -> None:
    assert {check.state for check in found.checks} <= {"ok", "note", "fault"}
    for check in found.checks:
        assert check.says, check.name
        assert bool(check.do) == (check.state != "ok"), check
    assert not found.faults, [check for check in found.checks if check.state == "fault"]
    assert found.exit_code == 0


def test_the_lines_are_what_the_machine_is(found: Diagnosis) -> None:
    checks = by_name(found.checks)
    assert checks["python"].says == ".".join(map(str, sys.version_info[:3]))
    assert "auto is cpu" in checks["device"].says
    assert checks["dtype"].says.startswith("auto is fp32: bf16 is slower here"), "tests run without AMX"
    assert checks["hub"].says == "not tried; --online tries it"
    total, free = memory()
    assert total
    assert free is None or 0 < free <= total
    assert checks["precision fp32"].facts["head"] < 1e-5


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux lists the instruction sets")
def test_instruction_sets_are_those_of_the_processor() -> None:
    text, has = Path("/proc/cpuinfo").read_text(), set(instruction_sets())
    assert ("avx2" in text.split()) == ("AVX2" in has)
    assert ("amx_bf16" in text.split()) == ("AMX bf16" in has)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_sound_kernel_passes_and_a_broken_one_is_a_fault(
    dtype: str, found: Diagnosis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sound one is what doctor() has tried: where bf16 is slow, that takes seconds."""
    sound = precision.Precision(**by_name(found.checks)[f"precision {dtype}"].facts)
    assert sound.faults(dtype) == []
    right = precision.token_logprobs
    monkeypatch.setattr(precision, "token_logprobs", lambda *given: right(*given) * 1.001)
    assert any("given hidden states" in fault for fault in precision_of(dtype, CPU).faults(dtype))


def test_a_wrong_gradient_of_the_adapter_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from tov.model.kernels import lowrank

    right = lowrank._TrainedLinear.backward

    def wrong(ctx: Any, upstream: Any) -> Any:
        to_x, to_down, *rest = right(ctx, upstream)
        return to_x, -to_down, *rest

    monkeypatch.setattr(lowrank._TrainedLinear, "backward", staticmethod(wrong))
    assert any("gradients of the fused adapter" in fault for fault in precision_of("fp32", CPU).faults("fp32"))


def test_a_number_that_is_none_is_a_fault() -> None:
    nothing = precision.Precision(head=float("nan"), model=0.0, floor=0.0, scan=0.0, gradients=0.0)
    assert len(nothing.faults("fp32")) == 1


def test_versions_with_known_faults_are_named_with_their_source() -> None:
    sound = {"torch": "2.13.0+cpu"}
    assert [check.state for check in known_faults(sound, "cpu")] == ["ok"]
    [old] = known_faults({"torch": "2.5.1"}, "cpu")
    assert old.state == "fault"
    assert "CVE-2025-32434" in old.says
    assert old.do == "pip install 'torch>=2.6'"
    assert [check.state for check in known_faults({"torch": "2.8.0"}, "cpu")] == ["ok"]
    assert [check.do for check in known_faults({"torch": "2.8.0"}, "mps")] == ["pip install 'torch>=2.12'"]
    assert [check.state for check in known_faults({"torch": "2.12.0"}, "mps")] == ["ok"]
    assert numbers("2.13.0+cpu") == (2, 13)
    assert numbers("2.10") > numbers("2.9.1")


def test_what_is_not_installed_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    installed = importlib.metadata.version

    def without(name: str) -> str:
        if name in ("trl", "peft"):
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    checks = by_name(of_packages())
    assert checks["extra trl"].state == "note"
    assert checks["extra trl"].do.startswith("pip install 'trl>=")
    assert checks["packages"].state == "fault"
    assert "peft is not installed" in checks["packages"].says


def test_the_cache_is_measured_and_must_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOV_CACHE", str(tmp_path / "cache"))
    assert "0 B in it" in by_name(of_cache())["cache"].says
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file").write_bytes(b"x" * 2000)
    assert "2 kB in it" in by_name(of_cache())["cache"].says
    if os.geteuid():  # root may write anywhere
        (tmp_path / "cache").chmod(0o500)
        assert by_name(of_cache())["cache"].state == "fault"


def test_the_hub_is_asked_only_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert of_hub(online=False).state == "ok"
    closed = of_hub(online=True)
    assert closed.state == "note"
    assert "does not answer" in closed.says


def _one_fault() -> Iterator[Check]:
    yield Check("arithmetic", "fault", "2 + 2 is 5", "Buy another machine.")


def test_the_command_ends_with_1_at_a_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tov.verbs import doctor as verb

    for name in ("of_environment", "of_devices", "of_packages", "of_cache"):
        monkeypatch.setattr(verb, name, lambda: iter(()))
    monkeypatch.setattr(verb, "of_precision", _one_fault)
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *more])
        assert ended.value.code == 1
        shown = capsys.readouterr().out
        if more:
            assert json.loads(shown)["checks"][0]["do"] == "Buy another machine."
        else:
            assert "fault arithmetic" in " ".join(shown.split())
            assert "1 ok, 0 notes, 1 fault" in shown


@pytest.mark.slow
def test_the_command_runs_as_a_user_gives_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tov", "doctor", "--json"], capture_output=True, text=True, cwd=tmp_path, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = [check["name"] for check in json.loads(done.stdout)["checks"]]
    assert {"processor", "memory", "disk here", "dtype", "precision bf16", "known faults", "cache", "hub"} <= set(names)
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


def test_extras_of_the_package_are_those_looked_at() -> None:
    import importlib.metadata

    named = {machine._parsed(one)[2] for one in importlib.metadata.requires("tov") or []}
    assert named - {"", "docs", "test", "lint"} == set(machine.EXTRAS)
