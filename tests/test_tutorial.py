"""The tutorial's commands, in its order, on its rows: each ends well, and prints what the page shows of it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import run_commands
from conftest import skip_without

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
NUMBER = re.compile(r"[-+]?\d[\d,.]*(?:e-?\d+)?")
ROUNDED = (
    "tov chose",
    "By score.",
    "[CLS]",
    "gonzalez",
    "net[",
    '{"text": "Applicant',
    "- random rows:",
    "twenty shares",
)
"""How lines begin that say which rows came out on top: other processors round differently."""


def fenced(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """Commands of each block of commands, and the lines of the output that stands behind it."""
    blocks = re.findall(r"^```(sh|text)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    for (kind, commands), (next_kind, output) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind == "sh":
            yield commands.splitlines(), output.splitlines() if next_kind == "text" else []


def plain(line: str) -> str:
    """A line without its numbers, times and the width of its columns."""
    line = NUMBER.sub("#", line)
    return re.sub(r"\s*-{2,}:?|\s+", " ", re.sub(r"(?:# ?[mh] ?)+#s", "#s", line)).strip()


def shown(lines: list[str]) -> list[str]:
    """What the page shows and every machine prints, up to where the page has cut it."""
    kept = [line for line in lines if line.strip() not in ("", "...") and not line.strip().startswith(ROUNDED)]
    return [plain(line.partition("...")[0]) for line in kept]


@pytest.fixture
def folder(tmp_path: Path, minilm: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that holds the clone."""
    skip_without("faker", install="pip install 'tov[demo]'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tov").symlink_to(ROOT, target_is_directory=True)
    return tmp_path


@pytest.mark.slow
@pytest.mark.model
def test_the_tutorial_runs_and_prints_what_it_shows(folder: Path) -> None:
    steps = [step for step in fenced(PAGE.read_text(encoding="utf-8")) if not step[0][0].startswith("pip ")]
    words = {line: shlex.split(line) for commands, _ in steps for line in commands}
    printed = {line: run(words[line]) for line in words if line.startswith("python ")}
    of_tov = [line for line in words if line.startswith("tov ")]
    assert len(of_tov) == 11
    for line, ended in zip(of_tov, run_commands([words[line][1:] for line in of_tov]), strict=True):
        assert ended.code == 0, f"{line}\n{ended.err}"
        printed[line] = ended.out + ended.err
    printed |= {line: run(words[line]) for line in words if line.startswith("head ")}
    assert printed.keys() == words.keys(), "the page has another kind of command"
    for commands, lines in steps:
        found = plain("\n".join(printed[line] for line in commands))
        missing = [line for line in shown(lines) if line not in found]
        assert not missing, f"{commands}: not printed:\n" + "\n".join(missing)


def run(words: list[str]) -> str:
    words = [sys.executable, *words[1:]] if words[0] == "python" else words
    ended = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_most_of_what_the_page_shows_is_held_against_what_is_printed() -> None:
    steps = list(fenced(PAGE.read_text(encoding="utf-8")))
    lines = [line for _, output in steps for line in output if line.strip() not in ("", "...")]
    held = [line for _, output in steps for line in shown(output)]
    assert len(held) > 40
    assert len(held) >= 0.8 * len(lines)
    assert "tov | # | # | # | #s | # GB | # MB" in plain(
        "| tov    |  21,750 |  3,860 |    6.9 |  1m 17s | 1.29 GB | 5.43 MB |"
    )
