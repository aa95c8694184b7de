"""Writes the rows of docs/tutorial.md into the folder `my`: a pool of five files, a target and a test.

    python rows.py

Each line is a sentence with its entities. The sentences are those of `tov demo --task ner`, made by the package faker. They
are the same at every call.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tov.cli.demo_data import TARGET_STYLE, read_styles

TARGET_ROWS, TEST_ROWS, POOL_ROWS = 32, 40, 40


def main(folder: Path = Path("my")) -> None:
    (folder / "pool").mkdir(parents=True, exist_ok=True)
    for style, rows in read_styles(TARGET_ROWS + TEST_ROWS + POOL_ROWS).items():
        if style == TARGET_STYLE:
            write(folder / "target.jsonl", rows[:TARGET_ROWS])
            write(folder / "test.jsonl", rows[TARGET_ROWS : TARGET_ROWS + TEST_ROWS])
        write(folder / "pool" / f"{style}.jsonl", rows[-POOL_ROWS:])


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{file}: {len(rows)} rows")


if __name__ == "__main__":
    main()
