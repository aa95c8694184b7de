"""Foreign text stays text: in Markdown, on a terminal, in JSON, in a picture, in code that is printed."""

from __future__ import annotations

import ast
import json
import re
import shutil
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from test_comparison import random_trials, summary, trial
from tiny import make_rows, write_jsonl
from tov.cli.main import main
from tov.errors import ConfigError, explain
from tov.progress import tell, track
from tov.reports.comparison import comparison_markdown, grid_markdown
from tov.reports.figures import curve_picture, gain_picture
from tov.reports.summary import table
from tov.sinks import cell, code, json_line, line, markdown, note, picture, terminal

EVIL = (
    "a|b", "<script>alert(1)</script>", "x\x1b[2J\x1b]0;t\x07", "two\nlines", "\r| forged |", "$\\frac{$", "[red]", "![i](http://x)",
    "`code`", "``", "\\|", "\\", "&lt;b&gt;", "**b**", "\u202egnp.exe", "\u2066\u200b", "\x85\x9b31m", "_under_", "-->", "]]>",
    "\udcff", "| - |", "#", "",
)  # fmt: skip
NAME = "|<script>\x1b[31m$\\frac{$\n[red]`\u202e"
"""One name with all of it."""
TEXTS = st.one_of(
    st.sampled_from(EVIL), st.text(st.characters(codec=None), max_size=30), st.lists(st.sampled_from(EVIL)).map("".join)
)


def harmless(text: str, *, lines: bool = False) -> bool:
    """Whether no character of it moves a cursor, turns the writing or is half a character."""
    kinds = {unicodedata.category(sign) for sign in text if not (lines and sign == "\n")}
    turns = set("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    return not kinds & {"Cc", "Cs", "Zl", "Zp"} and not turns & set(text)


def cells_of(row: str) -> list[str]:
    """The cells of a line of a Markdown table, as GitHub parts them."""
    return re.split(r"(?<!\\)\|", row)[1:-1]


@given(TEXTS)
def test_nothing_leaves_its_line(text: str) -> None:
    for sink in (line, markdown, code, cell, note, picture):
        assert harmless(sink(text)), sink
    assert harmless(terminal(text).replace("\t", ""), lines=True)
    assert line(line(text)) == line(text)
    assert json.loads(json_line({"a": text})) == {"a": text}
    assert json_line(text).isascii()


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_a_table_has_as_many_cells_as_it_was_given(rows: list[tuple[str, str]]) -> None:
    for sink in (markdown, code, str):
        made = table(["a", "b"], [[sink(one) for one in row] for row in rows])
        lines = made.split("\n")
        assert len(lines) == len(rows) + 2
        if sink is not str:
            assert {len(cells_of(one)) for one in lines} == {2}


@given(TEXTS)
def test_markdown_holds_no_tag_link_or_formula(text: str) -> None:
    for shown in (markdown(text), note(text)):
        assert not re.search(r"<[\w/!?]", shown)
        assert not re.search(r"(?<!\\)(\\\\)*\]\(", shown)
        assert not re.search(r"(?<!\\)\$", shown.replace("\\\\", ""))
    inside = code(text)
    fence = re.match("`+", inside)
    assert fence
    assert inside.endswith(fence[0])
    assert fence[0] not in re.findall("`+", inside[len(fence[0]) : -len(fence[0])])


def test_ordinary_names_stay_as_they_are() -> None:
    for name in (
        "pool-1.jsonl",
        "my_pool_2",
        "tov/amplify=1",
        "Zoë 你好 👩\u200d🔬",
        "a.b",
        "runs/a b",
        "x (1), 100 %",
    ):
        assert markdown(name) == note(name) == line(name) == picture(name) == name
        assert code(name) == f"`{name}`"


# The reports


def test_the_report_of_a_comparison_and_its_pictures_take_any_name(tmp_path: Path) -> None:
    names = [f"m{NAME}", "$\\frac{$", "_hidden", "--><script>"]
    trials = [
        trial(name, 100, seed, 2.0 + seed / 10, chosen={NAME: 60, "a|b": 40}) for name in names for seed in range(3)
    ]
    results = summary(random_trials(), trials)
    results["notes"].append(f"a note on {NAME}")
    report = comparison_markdown(results, {"pool": NAME, "model": NAME}) + grid_markdown({NAME: results})
    assert harmless(report, lines=True)
    assert "<script" not in report
    for block in re.findall(r"(?:^\|.*\n?)+", report, re.MULTILINE):
        assert len({len(cells_of(row)) for row in block.strip().split("\n")}) == 1, block
    for draw in (gain_picture, curve_picture):
        file = draw(results, tmp_path / f"{draw.__name__}.svg")
        ElementTree.parse(file)
        assert harmless(file.read_text(encoding="utf-8"), lines=True)
        draw(results, tmp_path / f"{draw.__name__}.png")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[Path, str]:
    """The folder of a selection from a pool whose name is all of it, and what the command printed."""
    folder = tmp_path_factory.mktemp("hostile")
    name = NAME.replace("/", "-")
    rows = [{**row, "completion": row["completion"] + NAME} for row in make_rows(20)]
    write_jsonl(folder / f"{name}.jsonl", rows)
    write_jsonl(folder / "target.jsonl", make_rows(4, seed=9))
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    out = StringIO()
    words = [
        "select",
        "--model",
        str(tiny_folder),
        "--pool",
        str(folder / f"{name}.jsonl"),
        "--n",
        "4",
        "--method",
        "dsir",
    ]
    words += ["--target", str(folder / "target.jsonl"), "--out", str(folder / f"run{name}"), "--max-length", "200"]
    with redirect_stdout(out), redirect_stderr(out), pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code, out.getvalue()
    return folder / f"run{name}", out.getvalue()


def test_a_run_with_such_names_prints_and_reports_them_as_text(hostile: tuple[Path, str]) -> None:
    run, printed = hostile
    report = (run / "summary.md").read_text(encoding="utf-8")
    for text in (printed, report):
        assert harmless(text, lines=True)
        assert "\\x1b[31m" in text or "\\x1b\\[31m" in text, "it is to be seen"
    assert "<script" not in report
    assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["inputs"]["pool"][0].endswith(
        f"{NAME}.jsonl"
    )


def test_an_error_shows_a_name_and_does_not_obey_it() -> None:
    said = explain(
        ConfigError("There is no 'x\x1b[2J\nerror: all is well\n  do: rm -rf ~'.", fix="Name another\n\x9b2J.")
    )
    assert said is not None
    assert harmless(said[0], lines=True)
    assert [one for one in said[0].split("\n") if not one.startswith("    ")] == [
        "error: There is no 'x\\x1b[2J", "  do: Name another"
    ]  # fmt: skip


def test_progress_shows_names_without_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with track(f"scan@[red]{NAME}", 10) as progress:
        progress.advance(10)
    tell(f"seed 0 {NAME}")
    console = Console(force_terminal=True, width=200)
    monkeypatch.setattr("rich.console.Console", lambda **_: console)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with track("[bold]scan[/nothing]\x1b[2J", 10) as progress:
        progress.advance(10)
    captured = capsys.readouterr()
    assert "[bold]scan[/nothing]\\x1b[2J" in captured.out
    assert "\x1b[2J\x1b" not in captured.out
    assert "seed 0" in captured.err
    assert "\\x1b[31m" in captured.err


# A received folder


def test_a_manifest_does_not_say_where_to_write(hostile: tuple[Path, str], tmp_path: Path, tiny_folder: Path) -> None:
    run, _ = hostile
    received = Path(shutil.copytree(run, tmp_path / "received"))
    facts = json.loads((received / "manifest.json").read_text(encoding="utf-8"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    facts |= {"status": "running", "origin": {"scores": str(elsewhere)}, "artifacts": {"x": "../../../elsewhere"}}
    facts["scoring"]["complete"] = False
    (received / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")
    pool, target = facts["inputs"]["pool"][0], facts["inputs"]["target"][0]
    words = ["select", "--model", str(tiny_folder), "--pool", pool, "--target", target, "--n", "4", "--method", "dsir"]
    with pytest.raises(SystemExit):
        main([*words, "--out", str(received), "--max-length", "200"])
    assert not list(elsewhere.iterdir())


def test_what_is_printed_to_be_run_is_made_of_our_words_alone(tmp_path: Path) -> None:
    from tov.reports.training import printed
    from tov.runs.manifest import Manifest

    facts = {
        "losses": [1.0], "rows": 1, "epochs": 1, "steps": 1, "tokens": 1, "seconds": 1.0, "test": None, "notes": [NAME],
    }  # fmt: skip
    trained = {
        "task": "instruction", "model": "m'); import os; os.system('x'); ('", "labels": [],
        "load": {"revision": "r", "x=__import__('os').system('x'), y": 1, "trust_remote_code": True},
    }  # fmt: skip
    made = Manifest(command="train", started="", identity={}, summary=facts, trained=trained)
    for trusted in (False, True):
        text = printed(made, tmp_path / f"run{NAME}", trusted=trusted)
        assert harmless(text, lines=True)
        code_lines = "\n".join(one.strip() for one in text.split("\n") if one.startswith("    "))
        calls = [node for node in ast.walk(ast.parse(code_lines)) if isinstance(node, ast.Call)]
        assert len(calls) == 2
        assert {word.arg for call in calls for word in call.keywords} == {"revision", *["trust_remote_code"] * trusted}
