"""CoNLL files: a word a line with its tag, an empty line after a sentence. Read into `tokens` and `ner_tags`.

Columns are parted by tabs in a file that has tabs, and by ASCII spaces in any other. No other white space parts them, so a word
may hold a no-break space. Left out: lines that begin with -DOCSTART-, comments, and the multiword ranges (`3-4`) and empty
nodes (`8.1`) of CoNLL-U. What the tags are worth is checked later, with those of all other formats.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa

from tov.data.text_files import decode_line, head, unpacked
from tov.errors import DataError

SUFFIXES = (".conll", ".conllu", ".iob", ".iob2", ".bio", ".bioes")
WORDS, TAGS = "tokens", "ner_tags"
_TAG = re.compile(r"O|[BIESLUMW]-\S+")
_NEARLY_TAG = re.compile(r"O|[BIESLUMW][-_]\S+|\S+[-_][BIESLUMW]", re.IGNORECASE)
"""Also `b-per`, `B_PER` and `PER-B`: such a file is a CoNLL file, and the error about its tags comes with its rows."""
_LINE_END = re.compile(r"\r*\n|\r")
_DOCUMENT = re.compile(r"[ \t]*(?:\d+[ \t]+)?-DOCSTART-(?:[ \t(]|$)", re.IGNORECASE)
_NO_WORD = re.compile(r"\d+[-.]\d+")
_CHUNKS = frozenset(
    {
        "ADJP",
        "ADVP",
        "CONJP",
        "INTJ",
        "LST",
        "NP",
        "PP",
        "PRT",
        "SBAR",
        "UCP",
        "VP",
        "ADJC",
        "ADVC",
        "CONJC",
        "NC",
        "PC",
        "VC",
    }
)
"""Kinds of syntactic chunks in CoNLL-2003, English and German: tags of a layer that is not one of entities."""
_SNIFFED_BYTES = 1 << 14
_BLOCK = 10_000
"""Sentences in a record batch."""
_ENOUGH = 10
"""Words from which on it is no accident that each of them holds a space."""


@dataclass(frozen=True)
class _Line:
    """A line that may hold a word (or a comment, where it begins with #), or the end of a sentence.

    Attributes:
        number: from 1.
        columns: none at the end of a sentence.
    """

    number: int
    columns: list[str]

    @property
    def hashed(self) -> bool:
        """Whether it begins with #: a comment, or the word `#`, or a word like `#NLProc`."""
        return bool(self.columns) and self.columns[0].startswith("#")


@dataclass(frozen=True)
class _Form:
    """How the lines of one file are read.

    Attributes:
        width: columns that most lines have.
        exact: whether every line must have so many, as the tag is in the last; else enough for word and tag to be there.
        counted: whether the first column counts the words.
        word: place of the word's column, from 0.
        tag: place of the tag's.
        tags: the tags of all lines that do not begin with #.
    """

    width: int
    exact: bool
    counted: bool
    word: int
    tag: int
    tags: frozenset[str] = frozenset()

    def fits(self, columns: Sequence[str]) -> bool:
        """Whether a line has the columns that are wanted."""
        return len(columns) == self.width if self.exact else len(columns) > max(self.word, self.tag)

    def holds_tag(self, columns: Sequence[str]) -> bool:
        """Whether a line that fits has what looks like a tag, or is one elsewhere."""
        return bool(_TAG.fullmatch(columns[self.tag])) or columns[self.tag] in self.tags


def column_numbers(columns: Mapping[str, str]) -> dict[str, int]:
    """The columns that `--columns` names by number, as in tokens=2 ner_tags=3: our name -> place, from 0.

    Raises:
        DataError: 0, or the same number twice.
    """
    named = {ours: columns[ours] for ours in (WORDS, TAGS) if columns.get(ours, "").isdecimal()}
    for ours, number in named.items():
        if int(number) == 0 or list(named.values()).count(number) > 1:
            problem = "is no column" if int(number) == 0 else "is named for word and tag alike"
            raise DataError(
                f"--columns {ours}={number}: column {number} of a CoNLL file {problem}.",
                allowed="two different numbers, counted from 1",
                fix=f"Name the word's column and the tag's, for example: --columns {WORDS}=2 {TAGS}=3",
            )
    return {ours: int(number) - 1 for ours, number in named.items()}


def is_conll(path: Path, columns: Mapping[str, str] | None = None) -> bool:
    """Whether a .txt or .tsv file holds a word and a tag on each of its first lines, or is UTF-16 (reading it says so)."""
    at = column_numbers(columns or {}).get(TAGS, -1)
    try:
        data = head(path, _SNIFFED_BYTES)
    except OSError:  # reading it says so
        return False
    if _wide_encoding(data):
        return True
    texts = _LINE_END.split(data.decode("utf-8", "replace").removeprefix("\ufeff"))
    lines = _split(texts[:-1] if len(data) == _SNIFFED_BYTES else texts)  # the last line may have been cut
    rows = [line.columns for line in lines if line.columns]
    words = [row for row in rows if not row[0].startswith("#")] or rows
    return bool(words) and all(len(row) > max(at, 1) and _NEARLY_TAG.fullmatch(row[at]) for row in words)


def load_conll(paths: Sequence[Path], columns: Mapping[str, str] | None = None) -> datasets.Dataset:
    """The sentences of CoNLL files, in memory.

    Args:
        paths: the files.
        columns: what `--columns` names; numbers under `tokens` and `ner_tags` are those of the word's column and the tag's.
            By default the word is in the first column (the second, where the first counts the words), the tag in the last.

    Raises:
        DataError: a line has too few columns or too many, tags could be in several columns, or the file is not UTF-8; with
            file and line.
    """
    numbers = column_numbers(columns or {})
    schema = pa.schema([(name, pa.list_(pa.string())) for name in (WORDS, TAGS)])
    batches = []
    for path in paths:
        sentences = _sentences(path, numbers)
        while block := list(islice(sentences, _BLOCK)):
            batches.append(pa.RecordBatch.from_pylist(block, schema))
    return datasets.Dataset(pa.Table.from_batches(batches, schema))


def _sentences(path: Path, numbers: Mapping[str, int]) -> Iterator[dict[str, list[str]]]:
    """Each sentence's words and tags."""
    lines = _split(_texts(path))
    form = _form(lines, path, numbers)
    words: list[str] = []
    tags: list[str] = []
    for line in lines:
        if not line.columns:
            if words:
                yield {WORDS: words, TAGS: tags}
            words, tags = [], []
        elif _holds_word(line, form, path, starts=not words):
            words.append(line.columns[form.word])
            tags.append(line.columns[form.tag])
    if words:
        yield {WORDS: words, TAGS: tags}


def _texts(path: Path) -> list[str]:
    """The lines of a file, whatever ends them.

    Raises:
        DataError: it is not UTF-8.
    """
    data = b"".join(unpacked(path))
    encoding = _wide_encoding(data)
    if encoding:
        raise DataError(
            f"{path}:1: the file is {encoding.upper()}, not UTF-8.",
            fix=f"Convert the file: iconv -f {encoding} -t utf-8 {path.name} > utf8-{path.name}",
        )
    try:
        return _LINE_END.split(data.decode("utf-8").removeprefix("\ufeff"))
    except UnicodeDecodeError:
        for number, line in enumerate(re.split(_LINE_END.pattern.encode(), data), 1):
            decode_line(line, path, number)
        raise


def _wide_encoding(data: bytes) -> str:
    """utf-32 or utf-16 (with the order of its bytes, where no mark at the start says it), or nothing."""
    if data[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "utf-32"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    # Without the mark: each ASCII character has a zero byte beside it, always on the same side.
    start = data[:1000]
    even, odd = start[::2].count(0), start[1::2].count(0)
    if 4 * max(even, odd) < len(start) or min(even, odd) > 0:
        return ""
    return "utf-16le" if odd else "utf-16be" if even else ""


def _split(texts: Sequence[str]) -> list[_Line]:
    """Lines as columns, parted by tabs if a line of words has one; what ends a sentence has none."""
    ends = [not text.strip(" \t") or bool(_DOCUMENT.match(text)) for text in texts]
    held = [text.strip(" \t") for text, end in zip(texts, ends, strict=True) if not end]
    tabs = any("\t" in text for text in [text for text in held if text[0] != "#"] or held)
    lines = []
    for number, (text, end) in enumerate(zip(texts, ends, strict=True), 1):
        if end:
            columns = []
        elif tabs:
            columns = [cell.strip(" ") for cell in text.rstrip(" \t").split("\t")]
        else:
            columns = [cell for cell in text.split(" ") if cell]
        lines.append(_Line(number, columns))
    return lines


def _form(lines: Sequence[_Line], path: Path, numbers: Mapping[str, int]) -> _Form:
    """How a file is read, decided by all of its lines."""
    held = [line for line in lines if line.columns]
    rows = [line for line in held if not line.hashed] or held
    if not rows:
        return _Form(0, False, False, 0, 0)
    width = Counter(len(line.columns) for line in rows).most_common(1)[0][0]
    counted = width >= 3 and numbers.get(WORDS) != 0 and _counts(lines, path, sure=WORDS in numbers)
    word = numbers.get(WORDS, int(counted))
    form = _Form(width, TAGS not in numbers, counted, word, numbers.get(TAGS, width - 1))
    if numbers:
        _check_numbers(rows, form, path)
    _check_words(rows, form, path)
    if TAGS not in numbers:
        _check_one_layer(rows, form, path)
    tags = frozenset(line.columns[form.tag] for line in rows if form.fits(line.columns))
    return _Form(width, form.exact, counted, word, form.tag, tags)


def _check_numbers(rows: Sequence[_Line], form: _Form, path: Path) -> None:
    """The word's column is one that lines have, and not the tag's: where one is named, the other is where it always is."""
    line = next(line for line in rows if len(line.columns) == form.width)
    if form.exact and form.word >= form.width:
        raise _wrong_width(line, form, path) if form.width == 1 else _no_column(line, form, path)
    if form.word == form.tag and form.width > 1:
        raise DataError(
            f"{path}:{line.number}: column {form.word + 1} would be the word's and the tag's.",
            allowed="a column for each",
            fix=f"Name both, counted from 1, for example: --columns {WORDS}=1 {TAGS}=2",
        )


def _counts(lines: Sequence[_Line], path: Path, *, sure: bool) -> bool:
    """Whether the first column counts the words, of each sentence or of the file.

    Raises:
        DataError: it does on most lines, not on all, and `sure` says that no word is in it.
    """
    right, wrong, last, starts = 0, None, -1, True
    for line in lines:
        if not line.columns or line.hashed:
            starts = starts or not line.columns
            continue
        first = line.columns[0]
        if _NO_WORD.fullmatch(first):
            continue
        follows = first.isdecimal() and (int(first) == last + 1 or (starts and int(first) in (0, 1)))
        right += follows
        wrong = wrong or (None if follows else line)
        last, starts = int(first) if first.isdecimal() else last + 1, False
    misses = sum(bool(line.columns) and not line.hashed for line in lines) - right
    if not right or misses > right:
        return False
    if wrong and not sure:
        raise DataError(
            f"{path}:{wrong.number}: the first column counts the words of other lines, but is {wrong.columns[0][:60]!r} here.",
            fix=f"Correct the line, or name the columns, counted from 1: --columns {WORDS}=2 {TAGS}=3",
        )
    return True


def _check_words(rows: Sequence[_Line], form: _Form, path: Path) -> None:
    """Words that all hold a space are several columns, parted by spaces in a file with a tab before the tag."""
    words = [line.columns[form.word] for line in rows if form.fits(line.columns)]
    if len(words) >= _ENOUGH and all(" " in word for word in words):
        raise DataError(
            f"{path}:{rows[0].number}: each word of the file holds a space, the first is {words[0][:60]!r}.",
            allowed="columns parted by tabs alone, or by spaces alone",
            fix="Write a tab between all columns.",
        )


def _check_one_layer(rows: Sequence[_Line], form: _Form, path: Path) -> None:
    """Tags beside the last column (an outer and an inner layer) leave open which are meant; syntactic chunks do not."""
    others = [place for place in range(form.width - 1) if place != form.word]
    for line in rows:
        others = [place for place in others if place < len(line.columns) and _TAG.fullmatch(line.columns[place])]
    kinds = {place: {line.columns[place][2:] for line in rows} - {""} for place in others}
    layers = [place for place in others if kinds[place] and not kinds[place] <= _CHUNKS]
    if not layers:
        return
    first = layers[0]
    line = next(line for line in rows if line.columns[first] != "O")
    raise DataError(
        f"{path}:{line.number}: column {first + 1} holds tags ({line.columns[first]}), and the last column, {form.width}, was "
        f"to hold them ({line.columns[-1]}): it is open which are meant.",
        allowed=f"{TAGS}=" + f" or {TAGS}=".join(str(place + 1) for place in (*layers, form.width - 1)),
        fix=f"Name the word's column and the tag's, counted from 1: --columns {WORDS}={form.word + 1} {TAGS}={first + 1}",
    )


def _holds_word(line: _Line, form: _Form, path: Path, *, starts: bool) -> bool:
    """Whether a line holds a word and a tag; a comment, a range and an empty node do not.

    Raises:
        DataError: the line has too few columns, or too many.
    """
    columns = line.columns
    if form.counted and (line.hashed or _NO_WORD.fullmatch(columns[0])):
        return False
    if form.fits(columns):
        return not (line.hashed and starts) or form.holds_tag(columns)
    # A word of a hashtag with a space in it, `#one day B-EVENT`, is not taken for a comment.
    if line.hashed and starts and (columns[0] == "#" or not _TAG.fullmatch(columns[-1])):
        return False
    raise _wrong_width(line, form, path)


def _wrong_width(line: _Line, form: _Form, path: Path) -> DataError:
    columns = line.columns
    place = f"{path}:{line.number}"
    if len(columns) == 1:
        return DataError(
            f"{place}: the line has one column, {columns[0][:60]!r}, and so no tag.",
            allowed="a word, a tab or spaces, and its tag in the last column; an empty line after a sentence",
            fix="Correct the line. Columns are parted by tabs, in a file that has tabs.",
        )
    if form.exact:
        return DataError(
            f"{place}: the line has {len(columns)} columns, but most lines have {form.width}.",
            allowed="the same number of columns on all lines, with the tag in the last",
            fix="Correct the line (a word that holds spaces needs tabs between the columns of the file), or name the word's "
            f"column and the tag's, counted from 1: --columns {WORDS}={form.word + 1} {TAGS}={form.width}",
        )
    return _no_column(line, form, path)


def _no_column(line: _Line, form: _Form, path: Path) -> DataError:
    columns = line.columns
    return DataError(
        f"{path}:{line.number}: the line has {len(columns)} columns, so there is no column {max(form.word, form.tag) + 1}.",
        allowed=f"the word in column {form.word + 1}, its tag in column {form.tag + 1}",
        fix=f"Correct the line, or the numbers, counted from 1: --columns {WORDS}={form.word + 1} {TAGS}={form.tag + 1}",
    )
