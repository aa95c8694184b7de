"""Sentences and labelled texts: every layout gives the same words and tags, and what is wrong with a row is said."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny import write_jsonl
from tov.config.records import DataSettings
from tov.config.settings import build
from tov.data import pool as pools
from tov.data.cells import BadRow, NotGold
from tov.data.decontamination import NOT_GOLD, USABLE, exclusions, left_out
from tov.data.labels import LabelMap, Reading
from tov.data.pool import index_rows
from tov.errors import DataError
from tov.inputs.read import Indexed, read_target, reading_notes
from tov.tasks import TASKS, all_layouts
from tov.tasks.classification import Labelled, from_label
from tov.tasks.ner import Tagged, from_spans, from_tags

open_pool = partial(pools.open_pool, layouts=all_layouts())

WORDS, TAGS = (
    ["Ada", "Lovelace", "met", "Babbage", "in", "London", "."],
    ["B-PER", "I-PER", "O", "B-PER", "O", "B-LOC", "O"],
)
IDS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def rows_of(inputs: list[Any], **options: Any) -> list[Any]:
    pool = open_pool(inputs, **options)
    return list(pool.rows(0, len(pool)))


def conll(lines: list[str], path: Path) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_every_layout_gives_the_same_sentence(tmp_path: Path) -> None:
    """Strings, ids with names, spans and CoNLL files of two, four and counted columns."""
    text = "Ada Lovelace met Babbage in London."
    spans = [(0, 12, "PER"), (17, 24, "PER"), (28, 34, "LOC")]
    feature = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=IDS))}
    )
    ids = datasets.Dataset.from_dict(
        {"tokens": [WORDS], "ner_tags": [[IDS.index(tag) for tag in TAGS]]}, features=feature
    )
    pairs = list(zip(WORDS, TAGS, strict=True))
    inputs: dict[str, Any] = {
        "tokens+ner_tags": str(write_jsonl(tmp_path / "a.jsonl", [{"tokens": WORDS, "ner_tags": TAGS}])),
        "tokens+labels": str(write_jsonl(tmp_path / "b.jsonl", [{"tokens": WORDS, "labels": TAGS}])),
        "spans": str(
            write_jsonl(
                tmp_path / "c.jsonl",
                [{"text": text, "entities": [{"start": a, "end": b, "label": c} for a, b, c in spans]}],
            )
        ),
        "ids with names": ids,
        "two columns": conll([f"{word} {tag}" for word, tag in pairs], tmp_path / "d.conll"),
        "four columns": conll(
            ["-DOCSTART- -X- -X- O", "", *(f"{word} NN I-NP {tag}" for word, tag in pairs)], tmp_path / "train.txt"
        ),
        "tabs and comments": conll(
            ["# sent_id = 1", *(f"{place}\t{word}\t{tag}" for place, (word, tag) in enumerate(pairs))],
            tmp_path / "e.conllu",
        ),
    }
    for name, one in inputs.items():
        assert rows_of([one]) == [Tagged(tuple(WORDS), tuple(TAGS))], name


def test_sentences_of_a_conll_file_are_parted_by_empty_lines(tmp_path: Path) -> None:
    lines = ["-DOCSTART- O", "", "# O", "1 O", "", "", "Rome B-LOC", "-DOCSTART- O", "", "x O"]
    rows = rows_of([conll(lines, tmp_path / "a.conll")])
    assert [row.words for row in rows] == [("#", "1"), ("Rome",), ("x",)], (
        "a word '#' is no comment, a number no counter"
    )


def test_a_conll_file_may_have_a_bom_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_bytes("\ufeffRome B-LOC\r\n\r\nx O\r\n".encode())
    assert [row.words for row in rows_of([str(tmp_path / "a.conll")])] == [("Rome",), ("x",)]


@pytest.mark.parametrize(
    ("tags", "repaired"),
    [
        (["I-PER", "I-PER", "O"], ["B-PER", "I-PER", "O"]),
        (["B-PER", "I-LOC", "I-LOC"], ["B-PER", "B-LOC", "I-LOC"]),
        (["B-PER", "E-PER", "S-LOC"], ["B-PER", "I-PER", "B-LOC"]),
        (["B-PER", "L-PER", "U-LOC"], ["B-PER", "I-PER", "B-LOC"]),
        (["I-PER", "O", "I-PER"], ["B-PER", "O", "B-PER"]),
        (["B-PER", "M-PER", "E-PER"], ["B-PER", "I-PER", "I-PER"]),
        (["S-PER", "S-PER", "W-PER"], ["B-PER", "B-PER", "B-PER"]),
        (["E-PER", "I-PER", "E-PER"], ["B-PER", "B-PER", "I-PER"]),
    ],
    ids=["IOB1", "another type", "BIOES", "BILOU", "after O", "BMES", "single", "after an end"],
)
def test_tags_are_made_bio2_only_when_asked(tags: list[str], repaired: list[str]) -> None:
    row = {"tokens": ["a", "b", "c"], "ner_tags": tags}
    with pytest.raises(BadRow) as caught:
        from_tags(row, Reading())
    assert "--repair-bio" in caught.value.fix
    made = from_tags(row, Reading(repair=True))
    assert list(made.tags) == repaired
    assert made.repaired
    assert not from_tags({**row, "ner_tags": repaired}, Reading(repair=True)).repaired, "right tags are no repair"


@given(
    st.lists(
        st.sampled_from(["O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "L-B", "U-B", "M-B"]), min_size=1, max_size=12
    )
)
def test_repaired_tags_are_bio2_and_keep_every_word_and_type(tags: list[str]) -> None:
    made = from_tags({"tokens": ["w"] * len(tags), "ner_tags": tags}, Reading(repair=True)).tags
    assert [tag[2:] for tag in made] == [tag[2:] for tag in tags]
    assert from_tags({"tokens": ["w"] * len(tags), "ner_tags": list(made)}, Reading()).tags == made


@pytest.mark.parametrize(
    ("tag", "remedy"),
    [
        ("b-per", "write B-per, or --label-map with 'b-per: B-per'."),
        ("B_PER", "write B-PER"),
        ("PER-B", "write B-PER"),
        ("e-PER", "write E-PER, or --label-map with 'e-PER: E-PER', and --repair-bio"),
        ("o", "'o: O'"),
        ("PER", "'PER: I-PER', and --repair-bio"),
        ("E-PER", "--repair-bio"),
        ("7", "'3: B-PER'"),
    ],
)
def test_a_tag_of_another_shape_is_answered_with_how_to_write_it(tag: str, remedy: str) -> None:
    with pytest.raises(BadRow, match=rf"word 2 'b' has the tag '{tag}', but must have O, B-TYPE or I-TYPE") as caught:
        from_tags({"tokens": ["a", "b"], "ner_tags": ["O", tag]}, Reading())
    assert remedy in caught.value.fix


def test_bare_types_are_read_by_the_label_map_that_the_error_names() -> None:
    reading = Reading(mapping={"PER": "I-PER", "LOC": "I-LOC"}, repair=True)
    row = {"tokens": ["a", "b", "c", "d"], "ner_tags": ["PER", "PER", "LOC", "O"]}
    assert from_tags(row, reading).tags == ("B-PER", "I-PER", "B-LOC", "O")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": [], "ner_tags": []}, "no words"),
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "2 tokens, but 1 ner_tags"),
        ({"tokens": ["a", " "], "ner_tags": ["O", "O"]}, "word 2 is empty"),
        ({"tokens": ["a", None], "ner_tags": ["O", "O"]}, "word 2 is missing"),
        ({"tokens": "a b", "ner_tags": ["O", "O"]}, "tokens is a str, but must be a list"),
        ({"tokens": ["a"], "ner_tags": ["PER"]}, "word 1 'a' has the tag 'PER'"),
        ({"tokens": ["a"], "ner_tags": [3]}, "the tag '3'"),
        ({"tokens": ["a"], "ner_tags": [None]}, "ner_tags holds missing"),
        ({"tokens": ["a"], "ner_tags": ["I-PER"]}, "I-PER after O"),
    ],
)
def test_a_sentence_that_cannot_be_used_says_why(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow, match=said):
        from_tags(row, Reading())


@pytest.mark.parametrize(
    ("entities", "said"),
    [
        ([{"start": 0, "end": 40, "label": "X"}], "entity 1 is at 0:40, but the text has 9 characters"),
        ([{"start": 3, "end": 3, "label": "X"}], "entity 1 is at 3:3"),
        ([{"start": 0, "end": 3, "label": "X"}, {"start": 2, "end": 4, "label": "Y"}], "0:3 and 2:4 overlap"),
        ([{"start": 4, "end": 5, "label": "X"}], "holds no word"),
        ([{"start": 5, "end": 2, "label": "X"}], "entity 1 is at 5:2"),
        ([{"start": -2, "end": 2, "label": "X"}], "entity 1 is at -2:2"),
        ([{"start": 0.0, "end": 2.0, "label": "X"}], "entity 1 has a float for its start"),
        ([{"start": 0, "end": None, "label": "X"}], "entity 1 has missing for its end"),
        ([{"start": 0, "label": "X"}], "must have start, end and label"),
        ([{"start": 0, "end": 2, "label": 7}], "an int for a label"),
        (None, "entities is missing"),
        ({"start": 0, "end": 4, "label": "LOC"}, "an object whose start is an int, but must be a list of entities"),
        ({"start": [0], "end": None, "label": ["LOC"]}, "an object whose end is missing"),
        ({"start": [0], "end": [4, 5], "label": ["LOC"]}, "different lengths .1 of start, 2 of end, 1 of label."),
    ],
)
def test_spans_that_cannot_be_used_say_why(entities: Any, said: str) -> None:
    with pytest.raises(BadRow, match=said):
        from_spans({"text": "some text", "entities": entities}, Reading())


def test_a_type_that_is_named_o_is_a_type() -> None:
    """As with P, L and O; only what a label map maps to O is left out."""
    row = {"tokens": ["Anna", "joined", "Acme", "Corp"], "ner_tags": ["B-P", "O", "B-O", "I-O"]}
    assert from_tags(row, Reading()).tags == ("B-P", "O", "B-O", "I-O")
    assert from_tags(row, Reading()).labels == {"P", "O"}
    assert from_tags(row, Reading(mapping={"O": "ORG"})).tags == ("B-P", "O", "B-ORG", "I-ORG")
    assert from_tags(row, Reading(mapping={"P": "O"})).tags == ("O", "O", "B-O", "I-O")
    spans = {"text": "Acme hires", "entities": [[0, 4, "O"]]}
    assert from_spans(spans, Reading()).tags == ("B-O", "O")
    columns = {"start": [0], "end": [4], "label": ["O"]}
    assert from_spans({**spans, "entities": columns}, Reading()).tags == ("B-O", "O")


@given(st.text("ab .,'é", min_size=1, max_size=30), st.data())
def test_spans_become_tags_that_give_the_spans_back(text: str, data: st.DataObject) -> None:
    edges = sorted(set(data.draw(st.lists(st.integers(0, len(text)), max_size=6))))
    spans = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False) if text[a:b].strip()]
    row = {"text": text, "entities": [{"start": a, "end": b, "label": "X"} for a, b in spans]}
    if not text.strip():
        return
    made = from_spans(row, Reading())
    assert "".join(made.words) == "".join(text.split()), "a word is lost or doubled"
    inside = ["".join(text[a:b].split()) for a, b in spans]
    found: list[str] = []
    for word, tag in zip(made.words, made.tags, strict=True):
        if tag == "B-X":
            found.append(word)
        elif tag == "I-X":
            found[-1] += word
    assert found == inside


@pytest.mark.parametrize(
    ("text", "name", "tags"),
    [
        ("राम दिल्ली में", "दिल्ली", ["O", "B-X", "O"]),
        ("ไปที่กรุงเทพฯ", "กรุงเทพ", ["O"] * 3 + ["B-X"] + ["I-X"] * 5 + ["O"]),
        ("彼は東京に", "東京", ["O", "O", "B-X", "I-X", "O"]),
        ("Zoe\u0308 lacht", "Zoe\u0308", ["B-X", "O"]),
    ],
    ids=["Hindi", "Thai", "Japanese", "decomposed"],
)
def test_no_word_is_cut_by_a_span_in_any_script(text: str, name: str, tags: list[str]) -> None:
    start = text.index(name)
    row = {"text": text, "entities": [{"start": start, "end": start + len(name), "label": "X"}]}
    made = from_spans(row, Reading())
    assert list(made.tags) == tags
    assert (made.spans, made.cuts) == (1, ())


def spanned(count: int, cut: int, path: Path) -> str:
    """Rows of one span each, the last of which end inside a word."""
    rows = [
        {
            "text": f"{at} Rome fell",
            "entities": [{"start": len(str(at)) + 1, "end": end + len(str(at)), "label": "LOC"}],
        }
        for at in range(count)
        for end in [5 if at < count - cut else 3]
    ]
    return str(write_jsonl(path, rows))


def test_spans_that_cut_words_are_counted_and_many_are_refused(tmp_path: Path) -> None:
    pool = open_pool([spanned(100, 3, tmp_path / "few.jsonl")])
    few = index_rows(pool)
    assert few.cut_spans == 3
    assert reading_notes(pool=Indexed(pool, few)) == [
        "3 entities of pool rows begin or end inside a word, which was cut there"
    ]
    assert index_rows(open_pool([spanned(4, 1, tmp_path / "one.jsonl")])).cut_spans == 1, "one is no habit"
    said = r"many.jsonl, row 97: the LOC at 3:5, 'Ro', cuts 'Rome'. So it is with 4 of the source's 100 entities"
    for action in ("error", "skip"):
        with pytest.raises(DataError, match=said) as caught:
            index_rows(open_pool([spanned(100, 4, tmp_path / "many.jsonl")]), on_bad_row=action)
        assert "not bytes" in str(caught.value)


def prodigy(answers: list[str | None], path: Path) -> str:
    rows = [
        {"text": f"{at} Rome", "spans": [{"start": 2, "end": 6, "label": "LOC"}], "answer": answer}
        for at, answer in enumerate(answers)
    ]
    return str(write_jsonl(path, rows))


def test_rows_that_an_annotator_rejected_are_left_out_and_counted(tmp_path: Path) -> None:
    path = prodigy(["accept", "reject", "ignore", None], tmp_path / "a.jsonl")
    pool = open_pool([path], columns={"entities": "spans"})
    index = index_rows(pool)
    assert (index.not_gold, index.rejected, index.bad) == ({1, 2}, 2, {})
    codes = exclusions(index, np.empty(0, np.uint64), decontaminate=True)
    assert codes.tolist() == [USABLE, NOT_GOLD, NOT_GOLD, USABLE]
    assert left_out(codes, index) == "2 marked as not right"
    assert reading_notes(pool=Indexed(pool, index)) == [
        "2 pool rows say that they are not right (answer reject or ignore, label or kto_tag false) and were left out"
    ]
    part = index.subset(np.array([2, 3]))
    assert part.not_gold == {0}
    settings = build(DataSettings, {"columns": {"entities": "spans"}})
    target = read_target([path], settings)
    assert [row.words[0] for row in target.rows] == ["0", "3"]
    assert len(target) == 2, "row numbers of the target are those of its gold rows"
    assert target.index.rejected == 2
    with pytest.raises(DataError, match="All 1 rows of the target say that they are not right"):
        read_target([prodigy(["reject"], tmp_path / "b.jsonl")], settings)


def test_an_answer_that_is_the_label_is_no_verdict_on_it() -> None:
    with pytest.raises(NotGold, match="its answer is reject"):
        from_label({"text": "a", "label": "SPAM", "answer": "reject"}, Reading())
    assert from_label({"text": "a", "label": "reject", "answer": "reject"}, Reading()).label == "reject"
    assert from_label({"text": "a", "label": "x", "answer": ["reject"]}, Reading()).label == "x"


def test_a_label_map_renames_and_drops_by_source(tmp_path: Path) -> None:
    one = write_jsonl(
        tmp_path / "one.jsonl", [{"tokens": ["a", "b", "c"], "ner_tags": ["B-person", "I-person", "B-misc"]}]
    )
    two = write_jsonl(tmp_path / "two.jsonl", [{"tokens": ["a", "b", "c"], "ner_tags": ["B-misc", "O", "B-PER"]}])
    label_map = LabelMap.of_settings({"misc": "O", "one": {"person": "PER"}})
    rows = rows_of([str(one), str(two)], label_map=label_map)
    assert [row.tags for row in rows] == [("B-PER", "I-PER", "O"), ("O", "O", "B-PER")]


def test_a_label_map_names_ids(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "one.jsonl", [{"tokens": ["a", "b", "c"], "ner_tags": [1, 2, 0]}])
    label_map = LabelMap.of_settings({"0": "O", "1": "B-PER", "2": "I-PER"})
    assert rows_of([str(path)], label_map=label_map)[0].tags == ("B-PER", "I-PER", "O")


@pytest.mark.parametrize(
    ("target", "pool", "label_map", "said"),
    [
        ({"PER", "LOC"}, {"PER"}, {}, "only in the target: LOC"),
        ({"PER"}, {"PER", "MISC"}, {}, "only in the pool: MISC"),
        ({"PER"}, {"PER", "MISC"}, {"MISC": "MISC"}, ""),
        ({"PER", "LOC"}, {"PER"}, {"LOC": "LOC"}, ""),
        ({"PER"}, {"PER"}, {}, ""),
        (set(), set(), {}, "No row of target or pool has an entity"),
    ],
)
def test_label_sets_must_agree(target: set[str], pool: set[str], label_map: dict[str, str], said: str) -> None:
    given = ([frozenset(target)], [frozenset(pool)], ["pool"], LabelMap.of_settings(label_map))
    if not said:
        head = TASKS["ner"].head_labels(*given)
        assert head[0] == "O"
        assert TASKS["ner"].row_labels(head) == target | pool
        assert len(head) == 1 + 2 * len(target | pool), "a B- and an I- for each type"
        return
    with pytest.raises(DataError, match=said) as caught:
        TASKS["ner"].head_labels(*given)
    if target:
        assert f"target: {', '.join(sorted(target))}" in str(caught.value), "both sets must be listed"
        assert ", ".join(sorted(pool)) in str(caught.value)


def test_labelled_texts(tmp_path: Path) -> None:
    feature = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    named = datasets.Dataset.from_dict({"text": ["Fine."], "label": [1]}, features=feature)
    assert rows_of([named]) == [Labelled("Fine.", "good")]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "Fine.", "label": "good"}])
    assert rows_of([str(path)]) == [Labelled("Fine.", "good")]
    assert from_label({"text": "Fine.", "label": 4}, Reading()) == Labelled("Fine.", "4")
    for row, said in (({"text": " ", "label": 1}, "the text is empty"), ({"text": "a", "label": 0.5}, "a float"),
                      ({"text": "a", "label": None}, "missing"), ({"text": "a", "label": ""}, "label is empty")):  # fmt: skip
        with pytest.raises(BadRow, match=said):
            from_label(row, Reading())
    with pytest.raises(BadRow, match="the id -1, but the dataset has names for 0 to 1"):
        from_label({"text": "a", "label": -1}, Reading(names=("bad", "good")))


def test_the_task_is_read_off_the_columns_or_forced(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [{"text": "Fine.", "label": "good"}]))
    assert open_pool([path]).task == "classification"
    assert open_pool([path], task="instruction").task == "instruction", "bare text, for whoever says so"
    with pytest.raises(DataError, match=r"no layout that tov knows for ner(.|\n)*text \+ entities"):
        open_pool([path], task="ner")
    both = [path, str(write_jsonl(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}]))]
    with pytest.raises(DataError, match=r"they are one for instruction: prompt \+ completion"):
        open_pool(both)


def test_one_pass_finds_labels_repairs_and_repeats(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["a"], "ner_tags": ["I-PER"]}, {"tokens": ["a"], "ner_tags": ["B-PER"]},
        {"tokens": ["A"], "ner_tags": ["B-LOC"]}, {"tokens": [], "ner_tags": []},
    ]  # fmt: skip
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    index = index_rows(open_pool([path], repair_bio=True), on_bad_row="skip")
    assert index.labels == (frozenset({"PER", "LOC"}),)
    assert index.repaired == 1
    assert index.bad == {3: "the row has no words"}
    assert index.content[0] == index.content[1], "the same words and tags, as read"
    assert index.content[1] != index.content[2]
    assert index.prompt[1] == index.prompt[2], "the same words but for case, whatever their tags"
    with pytest.raises(DataError, match=r"a.jsonl, row 1: word 1 'a' has I-PER after O(.|\n)*--repair-bio"):
        index_rows(open_pool([path]))


def test_broken_conll_lines_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.conll:3: the line has one column, 'Rome'"):
        open_pool([conll(["a O", "", "Rome"], tmp_path / "a.conll")])
    (tmp_path / "b.conll").write_bytes(b"a O\nR\xe9my B-PER\n")
    with pytest.raises(DataError, match=r"b.conll:2: byte 0xe9 at column 2 is not UTF-8"):
        open_pool([str(tmp_path / "b.conll")])
    with pytest.raises(DataError, match="no CoNLL file"):
        open_pool([conll(["Some text without tags."], tmp_path / "c.txt")])


def test_rows_of_a_changed_file_are_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    assert rows_of([conll(["a O"], path)])[0].words == ("a",)
    assert rows_of([conll(["b O", "c B-X"], path)])[0].words == ("b", "c")
    assert json.dumps(rows_of([str(path)])[0].content) == '[["b", "c"], ["O", "B-X"]]'


@pytest.mark.parametrize(
    "entities",
    [
        [[0, 3, "PER"], [13, 17, "LOC"]],
        [{"id": 7, "start_offset": 0, "end_offset": 3, "label": "PER"}, {"start_offset": 13, "end_offset": 17, "label": "LOC"}],
    ],
    ids=["spacy", "doccano"],
)  # fmt: skip
def test_spans_of_spacy_and_doccano_are_read(entities: list[Any]) -> None:
    row = {"text": "Ann lives in Oslo", "label": entities}
    (read,) = rows_of([[row]], columns={"entities": "label"}, task="ner")
    assert read.tags == ("B-PER", "O", "O", "B-LOC")
    with pytest.raises(DataError, match="--columns entities=label"):
        index_rows(open_pool([[row]]))
