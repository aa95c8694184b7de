"""benchmarks/gpu.sh, walked through on a CPU with tiny models: what would fail on the day that a GPU is at hand fails here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ["tests", "scan", "fit", "shape", "compare"]


def run(out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable}
    words = [str(ROOT / "benchmarks" / "gpu.sh"), "--dry-run", *flags]
    return subprocess.run(words, env=environment, capture_output=True, text=True)


def read(out: Path, name: str):
    if name in ("scan", "fit", "shape"):
        return read(out, "speed")[name]
    return json.loads((out / f"{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a minute where nothing else runs
def test_a_dry_run_leaves_every_parts_results(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(out, "--total", "1700", "--limit", *(f"{part}=1600" for part in ("start", *PARTS)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(part["name"], part["status"]) for part in read(out, "run")["parts"]] == [
        (part, "done") for part in ("start", *PARTS)
    ]
    found = {one["test"].partition("[")[0]: one for one in read(out, "tests") if one["outcome"] == "passed"}
    assert found["test_scores_in_fp32_are_the_cpus"]["measured"]
    assert "test_equal_states_score_exactly_0" in found
    for part, ratio in (("scan", "scan_over"), ("fit", "over")):
        assert [one["task"] for one in read(out, part)] == ["instruction", "ner"]
        assert all(value > 0 for one in read(out, part) for value in one[ratio].values())
    compared = read(out, "compare")
    # Random at 4, 8 and 16 rows, and eight methods at 8.
    assert compared["trials"] == {experiment: {"done": 11} for experiment in ("IT-E2", "IT-E4")}
    shape = read(out, "shape")
    assert all(shape["scan_over"][name] > 0 for name in ("bare, ideal batches", "usual loop"))
    assert shape["of_matmul_peak"] > 0
    assert "IT-E4" in compared["report"]
    with tarfile.open(out / "compare.tgz") as tar:
        names = tar.getnames()
    assert "compare/seed-0/IT-E2/trials.jsonl" in names
    assert not [name for name in names if name.endswith((".parquet", ".safetensors"))]
    pilots = [name for name in names if "/scores/" in name and name.endswith("trials.jsonl")]
    assert len(pilots) == 2, f"without its pilots, auto begins again in the next call: {pilots}"
    summary = (out / "summary.md").read_text()
    assert all(f"## {part}" in summary for part in PARTS)
    files = [file for file in out.rglob("*") if file.is_file()]
    assert len(files) <= 8, f"no more than eight files come back from a lent machine: {files}"


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a minute where nothing else runs
def test_a_part_over_its_limit_does_not_stop_the_next(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(out, "--parts", "scan,tests", "--total", "1700", "--limit", "start=1600", "scan=1", "tests=1")
    assert done.returncode == 1, done.stdout + done.stderr
    parts = {part["name"]: part["status"] for part in read(out, "run")["parts"]}
    assert parts == {"start": "done", "scan": "over its time limit", "tests": "over its time limit"}
    assert read(out, "scan")["status"] == read(out, "tests")["status"] == "over its time limit"


def test_the_seeds_of_an_experiment_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole trials of each, also again, and of seeds that have begun alone."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    for seed, lines in ((0, "a\n"), (1, "b\nc\n"), (2, None)):
        folder = tmp_path / f"seed-{seed}" / "E"
        (folder / "scores").mkdir(parents=True)
        (folder / "manifest.json").write_text(str(seed))
        if lines:
            (folder / "trials.jsonl").write_text(lines)
    for _ in range(2):
        gpu.join_seeds(tmp_path, ["E", "not begun"])
    joined = tmp_path / gpu.JOINED / "E"
    assert (joined / "trials.jsonl").read_text() == "a\nb\nc\n"
    assert sorted(file.name for file in joined.iterdir()) == ["manifest.json", "trials.jsonl"]


def test_what_is_missing_is_said_at_once(tmp_path: Path) -> None:
    """Without site-packages nothing is installed; the script must say so and not fall over an import."""
    words = [sys.executable, "-S", "-E", str(ROOT / "benchmarks" / "gpu.py"), "--dry-run"]
    done = subprocess.run(words, env={**os.environ, "OUT": str(tmp_path / "out")}, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "missing here: accelerate, click, datasets" in done.stdout
    assert read(tmp_path / "out", "run")["parts"][0]["status"] == "failed"
