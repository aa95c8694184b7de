"""Files by chance, right and spoiled: read to what was written, or refused in words; never a crash, a hang or a full memory.

`TOV_FUZZ_ROWS=10000 pytest tests/test_fuzz.py -s` tries so many a family and prints what became of them. What was found so is
in `tests/corpus`, a folder a family, and read each time.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="the children that may die need POSIX")
if not Path("/proc/self/statm").exists():
    pytest.skip("the memory of a child is bounded by what /proc says", allow_module_level=True)

from fuzz_families import FAMILIES, Files, case_of, read_files
from fuzzing import READ, outcomes

CORPUS = Path(__file__).parent / "corpus"
FOUND = [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in sorted(CORPUS.glob("*/*"))]


@pytest.mark.parametrize("name", FAMILIES)
def test_files_by_chance(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    count = int(os.environ.get("TOV_FUZZ_ROWS", family.many))
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    found = outcomes(case_of(family, tmp_path), range(count))
    print(f"\n{name}: {count:,} files: {dict(Counter(one.kind for one in found))}")
    bad = [f"{number}: {one.kind} {one.what}" for number, one in enumerate(found) if not one.good]
    refused = [f"{number}: {one.what}" for number, one in enumerate(found) if number % 2 == 0 and one.kind != READ]
    assert not bad, "\n".join(bad[:20])
    assert not refused, "good files were refused:\n" + "\n".join(refused[:20])


@pytest.mark.parametrize("path", FOUND)
def test_what_was_found_once_is_answered(path: Path, tmp_path: Path) -> None:
    family = FAMILIES[path.parent.name]
    files: Files = {file.name: file.read_bytes() for file in (path.iterdir() if path.is_dir() else [path])}
    (found,) = outcomes(lambda files: repr(read_files(family, files, tmp_path))[:100], [files])
    assert found.good, found.what
