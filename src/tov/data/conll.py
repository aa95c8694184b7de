"""CoNLL files: a word a line, its tag in the last column, an empty line after a sentence. Read into `tokens` and `ner_tags`.

Two or more columns parted by white space or tabs, as in CoNLL-2003; lines that begin with -DOCSTART- and comments (`# ...`
where the last column is no tag) are left out. What the tags are worth is checked later, with those of all other formats.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from tov.data.text_files import decode_line, open_bytes
from tov.errors import DataError
from tov.files import content_digest

SUFFIXES = (".conll", ".conllu", ".iob", ".iob2", ".bio", ".bioes")
_TAG = re.compile(r"O|[BIESLU]-\S+")
_SNIFFED = 50
"""Lines that tell whether a .txt or .tsv file is one of these."""


def is_conll(path: Path) -> bool:
    """Whether a .txt or .tsv file holds a word and a tag on each of its first lines."""
    try:
        with open_bytes(path) as raw, io.BufferedReader(raw) as file:  # type: ignore[type-var]
            lines = [file.readline() for _ in range(_SNIFFED)]
        columns = [line.decode("utf-8").split() for line in lines if line.strip()]
    except (UnicodeDecodeError, OSError):
        return False
    columns = [fields for fields in columns if fields[0] not in ("-DOCSTART-", "#")]
    return bool(columns) and all(len(fields) >= 2 and _TAG.fullmatch(fields[-1]) for fields in columns)


def load_conll(paths: Sequence[Path]) -> datasets.Dataset:
    """The sentences of CoNLL files.

    Raises:
        DataError: a line has one column or is not UTF-8, with its file and line.
    """
    texts = datasets.List(datasets.Value("string"))
    features = datasets.Features({"tokens": texts, "ner_tags": texts})
    names = tuple(str(path) for path in paths)
    stamps = tuple(map(content_digest, paths))
    at = tuple(_word_column(path) for path in paths)
    dataset: datasets.Dataset = datasets.Dataset.from_generator(
        sentences, features=features, gen_kwargs={"paths": names, "word_columns": at, "stamps": stamps}
    )
    return dataset


def sentences(paths: Sequence[str], word_columns: Sequence[int], stamps: Any = None) -> Iterator[dict[str, list[str]]]:
    """Each sentence's words and tags; `stamps` only tells `datasets` that a file has changed."""
    for path, at in zip(map(Path, paths), word_columns, strict=True):
        words: list[str] = []
        tags: list[str] = []
        for _, columns in _lines(path):
            if columns:
                words.append(columns[at])
                tags.append(columns[-1])
            elif words:
                yield {"tokens": words, "ner_tags": tags}
                words, tags = [], []
        if words:
            yield {"tokens": words, "ner_tags": tags}


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, its columns; none between sentences) of the lines that count."""
    with open_bytes(path) as raw, io.BufferedReader(raw) as file:  # type: ignore[type-var]
        for number, line in enumerate(file, 1):
            columns = decode_line(line, path, number).removeprefix("\ufeff" if number == 1 else "").split()
            comment = columns and columns[0].startswith("#") and not _TAG.fullmatch(columns[-1])
            if comment or (columns and columns[0] == "-DOCSTART-"):
                continue
            yield number, columns


def _word_column(path: Path) -> int:
    """0; or 1 in a file whose first column counts the words of each sentence, from 0 or from 1."""
    counted, place, start = True, 0, -1
    for number, columns in _lines(path):
        if len(columns) == 1:
            raise DataError(
                f"{path}:{number}: the line has one column, {columns[0][:60]!r}, and so no tag.",
                allowed="a word, a space or tab, and its tag in the last column; an empty line after a sentence",
                fix="Correct the line.",
            )
        if columns and start < 0:
            start = 0 if columns[0] == "0" else 1
        counted = counted and (not columns or (len(columns) >= 3 and columns[0] == str(start + place)))
        place = place + 1 if columns else 0
    return int(counted and start >= 0)
