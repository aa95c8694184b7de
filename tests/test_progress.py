"""What a user is told while a long stage runs: all along, not only when a shard is done."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import tov
from test_methods import PLAIN, VARIANTS, inputs
from tov import progress

ALL = {"tov": "tov/epochs=2/base_size=8", **VARIANTS}


def rows_told(said: str, stage: str) -> list[int]:
    """The rows done in each line of a stage."""
    return [int(rows) for rows in re.findall(rf"^  {stage}: (\d+) / \d+ rows", said, re.MULTILINE)]


def told(folder: Path, model: Path, capsys: pytest.CaptureFixture[str], **settings: Any) -> str:
    tov.select(model=str(model), out=folder, **{**inputs(), **PLAIN, "n": 8, **settings})
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("dsir", "bm25")])
def test_a_shard_under_way_is_told(
    name: str, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(tmp_path / "run", tiny_folder, capsys, method=ALL[name], batch_tokens=64)
    rows = rows_told(said, "embed" if "embed" in said else "scan")
    assert rows == sorted(rows)
    assert rows[-1] == 40, "every row of the pool is told of in the end"
    between = {one for one in rows if 0 < one < 40}
    assert len(between) > 5, f"one shard, of which nothing was told until its end: {rows}"
    if name in ("less", "tracin"):
        assert len(rows_told(said, "target")) > 1


def test_rows_that_an_earlier_call_left_do_not_make_the_rest_look_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    report = progress._Report("scan", 100, lambda rows, text: shown.append(text))
    now += 10.0
    report.advance(80, found=True)
    assert shown[-1] == "scan: 80 / 100 rows"
    with progress.part(report, 10):
        walk = progress.each(["a", "b"])
        assert [next(walk), next(walk)] == ["a", "b"]
    assert shown[-1] == "scan: 85 / 100 rows, 30s left"
    report.advance(10, 500)
    assert shown[-1] == "scan: 90 / 100 rows, 50 tokens/s, 10s left"
    report.within(5)
    assert shown[-1] == "scan: 95 / 100 rows, 75 tokens/s, 3s left"


def test_a_part_is_heard_by_its_own_report_alone() -> None:
    shares: list[float] = []

    class Listener(progress.Silent):
        def within(self, rows: float) -> None:
            shares.append(rows)

    list(progress.each([1, 2]))
    with progress.part(Listener(), 8):
        for walk in range(2):
            assert list(progress.each([1, 2], walk, 2)) == [1, 2]
    list(progress.each([1, 2]))
    assert shares == [2.0, 4.0, 6.0, 8.0]
