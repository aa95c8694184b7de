"""What the documents show runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


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
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {"a", "a8", "b", "path", "c", "model"}
