"""presidio_synth with a column `template`, so that no template is in target, test and pool at once.

    python experiments/templates.py DATA OUT        # reads DATA/ner/presidio_synth.parquet, writes OUT/presidio_synth.parquet

Its `split` is file:template_id, but the two files that it was made from share templates, under the same number and under
others. Rows are of one template here if they are linked by a number or by their text with entities masked (case ignored).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def masked(row: dict[str, Any]) -> str:
    """The words of a sentence, lower-cased, each entity as one `<>`."""
    words = [
        "<>" if tag != "O" else word.lower()
        for word, tag in zip(row["tokens"], row["ner_tags"], strict=True)
        if not tag.startswith("I-")
    ]
    return " ".join(words)


def templates(rows: list[dict[str, Any]]) -> list[str]:
    """Each row's template, named by the first number met in it."""
    root: dict[str, str] = {}

    def find(key: str) -> str:
        while root.setdefault(key, key) != key:
            key = root[key]
        return key

    for row in rows:
        number, text = find("number " + row["split"].rpartition(":")[2]), find("text " + masked(row))
        if number != text:
            root[text] = number
    return [find("number " + row["split"].rpartition(":")[2]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    table = pq.read_table(args.data / "ner" / "presidio_synth.parquet")
    found = templates(table.to_pylist())
    args.out.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.append_column("template", pa.array(found)), args.out / "presidio_synth.parquet")
    print(f"{len(found):,} rows, {len(set(found)):,} templates: {args.out / 'presidio_synth.parquet'}")


if __name__ == "__main__":
    main()
