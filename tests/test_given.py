"""What a user gives is taken as it stands, or refused with words: by flags, in Python and in a settings file alike."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tov
from tiny import make_rows, write_jsonl
from tov.cli import demo
from tov.cli.main import main
from tov.config.records import CompareConfig, SelectConfig
from tov.config.settings import build
from tov.errors import ConfigError, RunError
from tov.selection.choose import quotas_for


def refused(words: list[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that refuses what it was given."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    said = capsys.readouterr().err
    assert end.value.code == 2, said
    return said


@pytest.mark.parametrize(
    "words",
    [
        ["--source-cap", "p1=0.2", "p1=0.9"],
        ["--source-cap", "0.2", "0.5"],
        ["--columns", "prompt=question", "prompt=task"],
    ],
)
def test_a_name_given_twice_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(["select", *words], capsys)
    assert f"{words[0]} '{' '.join(words[1:])}' names a" in said
    assert "twice" in said


@pytest.mark.parametrize("verb", ["train", "export"])
def test_a_run_named_twice_is_refused(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"tov {verb} got two runs: A, and --from B" in refused([verb, "A", "--from", "B", "--out", "E"], capsys)


def test_one_row_may_be_inspected_by_its_number(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):  # the number is taken, and only then the run looked for
        tov.inspect(tmp_path, 5)


def test_methods_to_plan_may_be_one_text() -> None:
    with pytest.raises(ConfigError, match=r"--method tov/abs stands beside --methods bm25,random\."):
        tov.plan(model="m", pool="p", target="t", methods="bm25,random", method="tov/abs")


def test_no_run_folder_is_named_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nowhere: Any = None
    for call in (partial(tov.reselect, n=4), tov.train, partial(tov.export, to="trl")):
        with pytest.raises(ConfigError, match="--out got None"):
            call(tmp_path, out=nowhere)


NOWHERE = "~no-such-user-here/x"


@pytest.mark.parametrize(
    "words",
    [
        ["select", "--model", "m", "--pool", "p", "--target", "t", "--n", "4", "--out", NOWHERE],
        ["select", "--model", "smollm2-135m", "--pool", NOWHERE, "--target", NOWHERE, "--n", "4", "--out", "run"],
        ["fit", "--model", NOWHERE, "--pool", "{rows}", "--target", "{rows}", "--out", "run"],
        ["compare", "{grid}", "--out", NOWHERE],
        ["report", NOWHERE],
        ["report", "run", "--out", NOWHERE],
        ["inspect", NOWHERE, "3"],
        ["demo", "--out", NOWHERE],
    ],
    ids=["out", "data", "model", "grid", "report", "page", "run", "demo"],
)
def test_the_home_of_nobody_is_refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, grid = write_jsonl(tmp_path / "rows.jsonl", make_rows(9)), tmp_path / "grid.yaml"
    grid.write_text("model: m\npool: p\ntarget: t\ntest: u\nsizes: 4\nexperiments: {A: {}}\n", encoding="utf-8")
    said = refused([word.format(rows=rows, grid=grid) for word in words], capsys)
    assert "'~no-such-user-here' is no user's home folder here" in said


@pytest.mark.parametrize("verb", [["inspect", "{run}", "3"], ["train", "--from", "{run}", "--out", "out"]])
def test_a_run_at_home_is_found(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    said = refused([word.format(run="~/run") for word in verb], capsys)
    assert f"{tmp_path / 'run'} holds no run" in said


def test_a_demo_goes_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert demo._places(".") == (tmp_path / "here", tmp_path / "here-data")
    assert demo._places("runs/demo") == (Path("runs/demo"), Path("runs/demo-data"))
    assert "--out s3://b/x is a URL" in refused(["demo", "--out", "s3://b/x"], capsys)


ASKED = {"model": "m", "pool": "p", "target": "t"}


def test_numbers_are_taken_where_a_flag_takes_their_words() -> None:
    config = build(SelectConfig, {**ASKED, "n": 4, "out": "o", "columns": {"tokens": 2, "ner_tags": "3"}, "devices": 0})
    assert config.columns == {"tokens": "2", "ner_tags": "3"}
    assert config.devices == ("0",)
    for name, wrong in (("columns", {"tokens": True}), ("devices", True), ("devices", -1)):
        with pytest.raises(ConfigError, match=f"--{name}"):
            build(SelectConfig, {**ASKED, "n": 4, "out": "o", name: wrong})


def test_a_size_written_in_two_ways_is_one() -> None:
    assert build(CompareConfig, {**ASKED, "out": "o", "sizes": (8, 8.0, "+8", "16,08")}).sizes == (8, 16)


def test_caps_of_a_large_choice_are_exact() -> None:
    quotas = quotas_for(np.array([0, 1]), ("a", "b"), {"a": 0.57, "b": 0.43}, 100_000_000)
    assert quotas is not None
    assert quotas.left.tolist() == [57_000_000, 43_000_000]
