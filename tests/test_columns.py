"""`--columns`: each name that a layout reads is that of one of the user's columns, whatever the others are called."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest

from tiny import write_jsonl
from tov.data import pool as pools
from tov.data.cells import BadRow
from tov.data.pool import Pool
from tov.data.rows import content_hash
from tov.errors import DataError
from tov.tasks import TASKS, all_layouts
from tov.tasks.classification import Labelled
from tov.trainers.rows import _pool, _scored

open_pool = partial(pools.open_pool, layouts=all_layouts())
SYSTEM, ASK, ANSWER = ("system", "S"), ("user", "Q"), ("assistant", "A")


def only_row(pool: Pool) -> Any:
    (row,) = pool.rows(0, 1)
    return row


def turns(pool: Pool) -> list[tuple[str, str]]:
    row = only_row(pool)
    assert not isinstance(row, BadRow), str(row)
    return [(message["role"], message["content"]) for message in row.messages]


CASES: list[Any] = [
    ({"input": "Q", "output": "A"}, {"instruction": "input"}, [ASK, ANSWER]),
    ({"system": "Q", "output": "A"}, {"instruction": "system"}, [ASK, ANSWER]),
    ({"label": "Q", "completion": "A"}, {"prompt": "label"}, [ASK, ANSWER]),
    ({"prompt": "A", "completion": "Q"}, {"prompt": "completion", "completion": "prompt"}, [ASK, ANSWER]),
    (
        {"instruction": "S", "input": "Q", "output": "A"},
        {"instruction": "input", "system": "instruction"},
        [SYSTEM, ASK, ANSWER],
    ),
    ({"text": "Q", "reply": "A", "system": "S"}, {"prompt": "text", "completion": "reply"}, [SYSTEM, ASK, ANSWER]),
    ({"prompt": "Q", "completion": "A", "system": "S"}, {"system": "system"}, [SYSTEM, ASK, ANSWER]),
    ({"prompt": "Q", "completion": "A", "label": "maths"}, {"other": "label"}, [ASK, ANSWER]),
]


@pytest.mark.parametrize(("row", "columns", "expected"), CASES)
@pytest.mark.parametrize("reverse", [False, True], ids=["", "the other order"])
@pytest.mark.parametrize("parquet", [False, True], ids=["JSON", "Parquet"])
def test_a_column_is_read_under_its_new_name_alone(
    row: dict[str, str], columns: dict[str, str], expected: list[Any], reverse: bool, parquet: bool, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    if parquet:
        path = tmp_path / "a.parquet"
        datasets.Dataset.from_list([row]).to_parquet(path)
    columns = dict(reversed(columns.items())) if reverse else columns
    pool = open_pool([str(path)], columns=columns)
    assert turns(pool) == expected
    assert pool.original(0) == row, "a mapping must not change the original row"


@pytest.mark.parametrize(("row", "columns", "expected"), CASES)
def test_a_chosen_row_is_recovered_by_the_same_mapping(
    row: dict[str, str], columns: dict[str, str], expected: list[Any]
) -> None:
    task, wanted = TASKS["instruction"], content_hash(only_row(open_pool([[row]], columns=columns)))
    (found,) = _scored(_pool([row], columns, task), [row], columns, task, [wanted])
    assert found is not None
    assert found.question == [content for role, content in expected if role == "user"]


def test_text_and_label_can_be_swapped() -> None:
    pool = open_pool([[{"text": "HUM", "label": "Who?"}]], columns={"text": "label", "label": "text"})
    assert only_row(pool) == Labelled("Who?", "HUM")


def test_a_row_without_the_mapped_column_is_not_read_by_half() -> None:
    """In a swap, `text` is the label; it is not also the text where a row has no other."""
    pool = open_pool([[{"text": "HUM", "label": "Who?"}, {"text": "NUM"}]], columns={"text": "label", "label": "text"})
    assert [type(row) for row in pool.rows(0, 2)] == [Labelled, BadRow]


def test_the_layout_is_that_of_the_new_names() -> None:
    """`label` is no label once it holds the entities; what is left of prompt and completion is no pair."""
    row = {"text": "Ann", "label": [[0, 3, "PER"]]}
    assert open_pool([[row]], columns={"entities": "label"}).task == "ner"
    with pytest.raises(DataError, match=r"the columns prompt, system \(after --columns\) are no layout"):
        open_pool([[{"prompt": "Q", "completion": "A"}]], columns={"system": "completion"})


def test_a_column_that_another_stands_for_is_named_as_unseen() -> None:
    rows = [{"instruction": "I", "input": "Q", "output": "A"}]
    assert open_pool([rows], columns={"instruction": "input"}).unseen() == {"memory": ["instruction"]}
    assert open_pool([rows], columns={"instruction": "input", "system": "instruction"}).unseen() == {}


def test_ids_are_not_named_by_the_names_of_another_column() -> None:
    feature = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["NUM", "HUM"]),
            "coarse": datasets.ClassLabel(names=["a", "b"]),
            "fine": datasets.Value("int64"),
        }
    )
    table = datasets.Dataset.from_dict({"text": ["x"], "label": [0], "coarse": [1], "fine": [1]}, features=feature)
    read = {
        name: only_row(open_pool([table], columns=columns)).label
        for name, columns in {
            "fine": {"label": "fine"}, "coarse": {"label": "coarse"}, "label": {}, "elsewhere": {"label": "class"},
        }.items()
    }  # fmt: skip
    assert read == {"fine": "1", "coarse": "b", "label": "NUM", "elsewhere": "NUM"}
