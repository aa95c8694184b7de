"""What the documents show runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import errors_page

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.slow
def test_the_python_page_runs_as_it_stands(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    [code] = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    assert "smollm2-135m" in code
    names: dict[str, object] = {}
    exec(compile(code.replace("smollm2-135m", str(tiny_folder)), "docs/python.md", "exec"), names)
    picked, fewer, compared = (names[name] for name in ("picked", "fewer", "compared"))
    assert len(picked.dataset) == 16  # type: ignore[attr-defined]
    assert len(fewer.dataset) == 8  # type: ignore[attr-defined]
    assert "| rds " in compared.report  # type: ignore[attr-defined]
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {"a", "a8", "b", "path", "c", "export", "model"}


def test_the_tree_of_rooms_has_every_room_from_the_top_down() -> None:
    tree = re.findall(r"^      (\w+)/ ", (DOCS / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    source = DOCS.parent / "src" / "tov"
    assert set(tree) == {folder.name for folder in source.iterdir() if (folder / "__init__.py").is_file()}
    settings = (DOCS.parent / "pyproject.toml").read_text(encoding="utf-8")
    layers = re.findall(r'^    "(\w+)",$', settings.partition("layers = [")[2].partition("]")[0], re.MULTILINE)
    assert tree == [layer for layer in layers if layer in tree], "in the order that the contract of imports has"


def test_the_page_of_errors_is_what_the_code_says() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert page == errors_page.page(errors_page.entries()), "make docs writes it anew"


@pytest.mark.slow
def test_every_error_is_a_sentence_and_says_what_to_do() -> None:
    """A capital, a flag or a name first; last a full stop, a command, or another's words after a colon."""
    first, last = re.compile(r"[A-Z\[/'-]|tov |\w+_\w+ |\w+="), re.compile(r"\.[])]?$|: ?\S.*$|:$|[A-Z]$", re.DOTALL)
    for entry in errors_page.entries():
        where = f"src/tov/{entry.place}.py, line {entry.line}"
        if entry.kind == "BadRow":  # a clause that follows the row's place; what to do is said where it is met
            assert not entry.problem.endswith("."), where
            continue
        assert entry.fix or entry.repeats, f"{where}: no word on what to do"
        for version in filter(None, [*entry.problem.split("\n")[:1], *entry.fix.splitlines()]):
            assert first.match(version), f"{where} begins like a note, not like a sentence: {version}"
            assert entry.repeats or last.search(version), f"{where} ends in the middle: {version}"


def test_the_page_spells_out_what_the_code_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "door.py").write_text(
        """
KINDS = ("oak", "pine")
_LATER = "Come later."
def _shut(name, *, fix):
    return RunError(f"The door {name!r} is shut{' tight' * (name == 1)}.", allowed=", ".join(KINDS), fix=fix)
def knock(door_count, early):
    if door_count > len(KINDS):
        raise ConfigError(f"{door_count:,} doors, {door_count - 1} too many.", fix="Take one off." if early else _LATER)
    raise _shut(door_count, fix=_LATER)
def again(error):
    raise DataError(error.problem, fix="Ring.")
""",
        encoding="utf-8",
    )
    monkeypatch.setattr(errors_page, "SOURCE", tmp_path)
    shut, many, again = errors_page.entries()
    assert (shut.kind, shut.place, shut.problem) == ("RunError", "room/door", "The door NAME is shut[ tight].")
    assert (shut.allowed, shut.fix) == ("oak, pine", "Come later.")
    assert many.problem == "DOOR-COUNT doors, DOOR-COUNT too many."
    assert many.fix == "Take one off.\nCome later.", "both, a line each"
    assert again.repeats
    rows = [line for line in errors_page.page([shut, many, again]).splitlines() if line.startswith("| room")]
    assert len(rows) == 2, "an error that another passes on stands on the page once"


def test_the_page_of_auto_explains_its_words_before_it_uses_them() -> None:
    text = (DOCS / "auto.md").read_text(encoding="utf-8")
    for word in ("candidate", "fold", "pilot", "judge", "gain", "error"):
        explained = re.search(rf"^- .*\*{word}\*|^  .*\*{word}\*", text, re.M)
        assert explained, word
        assert not re.search(rf"\b{word}s?\b", text[: text.index("## The words of this page")]), word
