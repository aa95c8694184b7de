"""A notebook in a real Jupyter kernel: results show themselves, progress is a bar."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import skip_without
from tiny import make_rows


@pytest.fixture
def outputs(tmp_path: Path, tiny_folder: Path) -> list[list[dict[str, Any]]]:
    """Of each cell."""
    skip_without("nbclient", "ipykernel", install="pip install nbclient ipykernel")
    import nbformat
    from nbclient import NotebookClient

    rows = {"pool": make_rows(24, seed=1), "target": make_rows(4, seed=2)}
    given = {
        "model": str(tiny_folder),
        "n": 8,
        "base_size": 4,
        "epochs": 1,
        "max_length": 64,
        "out": str(tmp_path / "<b>run"),
    }
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    cells = [
        f"import json, tov\nrows = json.load(open({str(tmp_path / 'rows.json')!r}))",
        f"picked = tov.select(**rows, **{given!r})",
        "picked",
        "type(picked.to_pandas()).__name__, len(picked.to_pandas()), str(picked.report().file)",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(book, timeout=300, kernel_name="python3").execute()
    return [cell.outputs for cell in book.cells]


@pytest.mark.slow
def test_a_result_shows_itself_and_progress_is_a_bar(outputs: list[list[dict[str, Any]]], tmp_path: Path) -> None:
    shown = [one["data"]["text/html"] for one in outputs[1] if one["output_type"] == "display_data"]
    assert any(one.startswith("<progress") and "scan: 24 / 24 rows" in one for one in shown), outputs[1]
    [card] = [one["data"]["text/html"] for one in outputs[2]]
    assert "tov chose 8 of" in card
    assert "<table>" in card
    assert "<b>run" not in card, "a name is text"
    assert "&lt;b&gt;run" in card
    [told] = [one["data"]["text/plain"] for one in outputs[3]]
    kind, rows, page = ast.literal_eval(told)
    assert (kind, rows) == ("DataFrame", 8)
    assert Path(page).exists()
