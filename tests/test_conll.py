"""CoNLL files: which columns are read, what parts them, what is left out, and what is refused with its line."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tiny import write_jsonl
from tov.data import pool as pools
from tov.data.conll import load_conll
from tov.data.pool import check_mapping, index_rows
from tov.errors import DataError
from tov.tasks import all_layouts

open_pool = partial(pools.open_pool, layouts=all_layouts())
GERMEVAL = {"tokens": "2", "ner_tags": "3"}


def read(path: Path, content: str | bytes, **columns: str) -> list[tuple[list[str], list[str]]]:
    """Words and tags of each sentence of a file with this content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    pool = open_pool([str(path)], columns=columns)
    check_mapping(columns, pool)
    return [(row["tokens"], row["ner_tags"]) for row in pool.originals(range(len(pool)))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.conll"


@pytest.mark.parametrize(
    "word", ["New York", "10\u00a0000", "東京\u3000都", "a\u2028b", "a\u0085b", "a\x0bb", "a\u2009b"]
)
def test_a_tab_parts_words_and_nothing_inside_a_word_does(word: str, path: Path) -> None:
    assert read(path, f"{word}\tB-X\nb\tO\n\n") == [([word, "b"], ["B-X", "O"])]
    if " " not in word:
        assert read(path, f"{word}  B-X\nb O\n") == [([word, "b"], ["B-X", "O"])], "a run of spaces parts columns too"


def test_spaces_around_a_cell_and_tabs_after_the_last_are_no_content(path: Path) -> None:
    assert read(path, "a \t O\t\nb\tB-X \n\t\t\nc\tO\n") == [(["a", "b"], ["O", "B-X"]), (["c"], ["O"])]


def test_columns_parted_by_spaces_and_a_tab_are_refused(path: Path) -> None:
    with pytest.raises(DataError, match=r"a.conll:1: each word of the file holds a space, the first is 'EU NNP I-NP'"):
        read(path, "EU NNP I-NP\tB-ORG\n" * 12)
    with pytest.raises(DataError, match=r"a.conll:2: the line has one column, 'b O'(.|\n)*parted by tabs"):
        read(path, "a\tO\nb O\n")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"], ids=["LF", "CRLF", "CR", "CRCRLF"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "BOM"])
def test_any_line_end_will_do(end: str, mark: str, path: Path) -> None:
    content = mark + end.join(["Ada B-PER", "met O", "", "Rome B-LOC", ""])
    assert read(path, content) == [(["Ada", "met"], ["B-PER", "O"]), (["Rome"], ["B-LOC"])]
    assert read(path.with_suffix(".txt"), content) == read(path, content)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a.tsv"])
def test_a_wide_encoding_is_told(encoding: str, name: str, tmp_path: Path) -> None:
    said = encoding[:6].upper()
    with pytest.raises(DataError, match=rf"{name}:1: the file is {said}.*not UTF-8(.|\n)*iconv -f {said.lower()}"):
        read(tmp_path / name, "Ada\tB-PER\nmet\tO\n".encode(encoding))


def test_a_text_file_in_latin_1_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.txt:2: byte 0xe9 at column 2 is not UTF-8"):
        read(tmp_path / "a.txt", "Ada B-PER\nRémy B-PER\n".encode("latin-1"))


CONLLU = """\
# newdoc
# sent_id = 1
# text = Im Haus wohnt O
1-2\tIm\t_\t_
1\tin\tADP\tO
2\tdem\tDET\tO
3\tHaus\tNOUN\tB-LOC
3.1\twohnt\tVERB\tO
4\tnicht\tPART\tO

#
# sent_id = 2
1\t#\tSYM\tO
2\t2-3\tNUM\tO
"""


def test_comments_ranges_and_empty_nodes_of_conllu_are_left_out(path: Path) -> None:
    assert read(path, CONLLU) == [
        (["in", "dem", "Haus", "nicht"], ["O", "O", "B-LOC", "O"]),
        (["#", "2-3"], ["O", "O"]),
    ]
    assert read(path, CONLLU, tokens="2", ner_tags="4") == read(path, CONLLU)


def test_a_comment_and_a_word_that_begin_alike_are_told_apart(path: Path) -> None:
    content = "# text = a O\n#\n#nlp\n# O\n#NLProc B-X\nis O\n\n# id\nb O\n"
    assert read(path, content) == [(["#", "#NLProc", "is"], ["O", "B-X", "O"]), (["b"], ["O"])]
    named = "# 0\na 0\nb 1\n"
    assert read(path, named)[0] == (["#", "a", "b"], ["0", "0", "1"]), "a tag by id, which other words have too"


def test_a_line_that_begins_with_a_hash_is_no_comment_where_a_word_would_be_lost(path: Path) -> None:
    with pytest.raises(DataError, match=r"a.conll:1: the line has 3 columns, but most lines have 2"):
        read(path, "#one day B-X\na O\nb O\n")
    with pytest.raises(DataError, match=r"a.conll:2: the line has 3 columns, but most lines have 2"):
        read(path, "a O\n# 1 O\nb O\n")


@pytest.mark.parametrize(
    "line", ["-DOCSTART- -X- -X- O", "-DOCSTART- O", "-DOCSTART-", "-DOCSTART-\tO", "-DOCSTART- (12)", " -docstart- O"]
)
def test_a_document_starts_a_sentence_and_is_no_word(line: str, path: Path) -> None:
    assert read(path, f"{line}\n\na B-X\nb O\n{line}\nc O\n") == [(["a", "b"], ["B-X", "O"]), (["c"], ["O"])]


def test_a_line_with_other_columns_than_most_is_refused(path: Path) -> None:
    with pytest.raises(DataError, match=r"a.conll:3: the line has 3 columns, but most lines have 2(.|\n)*tabs"):
        read(path, "a O\n\nNew York B-LOC\nb O\n")
    with pytest.raises(DataError, match=r"a.conll:2: the line has one column"):
        read(path, "a NN O\nb\nc NN O\n")


def test_a_named_tag_column_may_stand_in_ragged_lines(path: Path) -> None:
    content = "a O x\nb B-X\nc O x y z\n"
    assert read(path, content, ner_tags="2") == [(["a", "b", "c"], ["O", "B-X", "O"])]
    with pytest.raises(DataError, match=r"a.conll:2: the line has 2 columns, so there is no column 3(.|\n)*from 1"):
        read(path, content, ner_tags="3")


GERMEVAL_FILE = """\
#\thttp://de.wikipedia.org/wiki/Manfred_Korfmann\t[2009-10-17]
1\tAufgrund\tO\tO
2\tNew\tB-ORG\tB-LOC
3\tYorks\tI-ORG\tO

#\tn-tv.de vom 26.02.2005 [2005-02-26]\t
1\tWien\tB-LOC\tO
"""


def test_two_layers_of_tags_must_be_told_apart(path: Path) -> None:
    with pytest.raises(DataError, match=r"a.conll:3: column 3 holds tags \(B-ORG\)") as caught:
        read(path, GERMEVAL_FILE)
    assert "ner_tags=3 or ner_tags=4" in str(caught.value)
    assert "--columns tokens=2 ner_tags=3" in str(caught.value), "the remedy can be pasted"
    outer = [(["Aufgrund", "New", "Yorks"], ["O", "B-ORG", "I-ORG"]), (["Wien"], ["B-LOC"])]
    assert read(path, GERMEVAL_FILE, **GERMEVAL) == outer
    assert read(path.with_suffix(".tsv"), GERMEVAL_FILE, **GERMEVAL) == outer
    inner = read(path, GERMEVAL_FILE, ner_tags="4")
    assert inner[0][1] == ["O", "B-LOC", "O"], "the word's column is found without its number"


def test_tags_in_another_column_than_the_last_are_pointed_at(path: Path) -> None:
    content = "1\tAda\tB-PER\t-\tannotator\n2\tmet\tO\t-\tannotator\n"
    with pytest.raises(DataError, match=r"column 3 holds tags(.|\n)*--columns tokens=2 ner_tags=3"):
        read(path, content)
    assert read(path, content, ner_tags="3") == [(["Ada", "met"], ["B-PER", "O"])]


def test_syntactic_chunks_are_no_layer_of_entities(path: Path) -> None:
    assert read(path, "U.N. NNP I-NP B-ORG\nsays VBZ B-VP O\n")[0][1] == ["B-ORG", "O"]
    assert read(path, "U.N. O B-ORG\nsays O O\n")[0][1] == ["B-ORG", "O"], "a column without an entity is none either"


def test_a_first_column_that_counts_is_told_from_words_that_are_numbers(path: Path) -> None:
    counted = "0\ta\tO\n1\tb\tO\n\n0\tc\tO\n"
    assert [words for words, _ in read(path, counted)] == [["a", "b"], ["c"]]
    through = "1\ta\tO\n2\tb\tO\n\n3\tc\tO\n"
    assert [words for words, _ in read(path, through)] == [["a", "b"], ["c"]], "counted through the file"
    numbers = "3 CD O\n1 CD O\nwon VB O\n7 CD O\n"
    assert read(path, numbers)[0][0] == ["3", "1", "won", "7"]
    gap = "1\ta\tO\n2\tb\tO\n4\tc\tO\n5\td\tO\n"
    with pytest.raises(DataError, match=r"a.conll:3: the first column counts(.|\n)*'4' here(.|\n)*--columns tokens=2"):
        read(path, gap)
    assert read(path, gap, tokens="2")[0][0] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"tokens": "0"}, "--columns tokens=0: column 0 of a CoNLL file is no column"),
        ({"tokens": "2", "ner_tags": "2"}, "is named for word and tag alike"),
        ({"tokens": "word"}, "there is no column 'word'"),
        ({"prompt": "2"}, "there is no column '2'"),
        ({"tokens": "5"}, r"a.conll:1: the line has 3 columns, so there is no column 5(.|\n)*tokens=5 ner_tags=3"),
        ({"tokens": "5", "ner_tags": "3"}, "a.conll:1: the line has 3 columns, so there is no column 5"),
        ({"tokens": "3"}, "a.conll:1: column 3 would be the word's and the tag's"),
        ({"ner_tags": "1"}, "a.conll:1: column 1 would be the word's and the tag's"),
    ],
)
def test_numbers_that_mean_no_column_are_refused(columns: dict[str, str], said: str, path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read(path, "a x O\n", **columns)


def test_numbers_for_a_file_of_one_column_are_refused(path: Path) -> None:
    with pytest.raises(DataError, match=r"a.conll:1: the line has one column, 'a', and so no tag"):
        read(path, "a\nb\n", tokens="5")


def test_numbers_are_for_conll_files_and_leave_other_inputs_alone(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text(GERMEVAL_FILE)
    rows = write_jsonl(tmp_path / "b.jsonl", [{"tokens": ["x"], "ner_tags": ["O"]}])
    pool = open_pool([str(tmp_path / "a.conll"), str(rows)], columns=GERMEVAL)
    check_mapping(GERMEVAL, pool)
    assert [list(row.words) for row in pool.rows(0, 3)] == [["Aufgrund", "New", "Yorks"], ["Wien"], ["x"]]
    with pytest.raises(DataError, match="there is no column '2'"):
        check_mapping(GERMEVAL, open_pool([str(rows)], columns=GERMEVAL))


@pytest.mark.parametrize("tag", ["b-per", "B_PER", "PER-B"])
def test_a_text_file_with_tags_of_another_shape_says_which_shape_is_wanted(tag: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"Ada {tag}\nmet O\n")
    with pytest.raises(DataError, match=rf"a.txt, row 1: word 1 'Ada' has the tag '{tag}', but must have O, B-TYPE"):
        index_rows(open_pool([str(tmp_path / "a.txt")]))


def test_rows_are_held_in_memory(path: Path) -> None:
    read(path, "a O\n")
    table = load_conll([path], {})
    assert table.cache_files == []
    assert str(table.features.arrow_schema.field("tokens").type).startswith("list<")
