"""What a user gives is taken as it stands, or refused with words: by flags, in Python and in a settings file alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from tov.cli.main import main


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
