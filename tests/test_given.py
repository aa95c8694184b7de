"""What a user gives is taken as it stands, or refused with words: by flags, in Python and in a settings file alike."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tov
from tov.cli.main import main
from tov.errors import ConfigError, RunError


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
    assert f"{words[0]} '{' '.join(words[1:])}' names a" in said and "twice" in said


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
