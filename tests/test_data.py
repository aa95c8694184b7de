"""Reading: every format and layout becomes the same conversations, and the rows that come out are the rows that went in."""

from __future__ import annotations

import gzip
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tov.config.records import SelectConfig
from tov.config.settings import build
from tov.data import pool as pools
from tov.data.cells import BadRow
from tov.data.decontamination import DUPLICATE, IN_TARGET, UNREADABLE, USABLE, exclusions
from tov.data.pool import Pool, index_rows
from tov.data.rows import content_hash, prompt_hash
from tov.data.sources import local_files
from tov.errors import DataError
from tov.tasks import all_layouts
from tov.tasks.instruction import Conversation
from tov.verbs.training_file import check_writable, read_selected, write_selected

open_pool = partial(pools.open_pool, layouts=all_layouts())

PAIRS = [
    {"prompt": "What is 2 + 2?", "completion": "Four."},
    {"prompt": "Wie heißt du?", "completion": "Ich heiße Tov — 你好 🙂"},
    {"prompt": 'Quote: "a, b"\nand a line', "completion": "Tab\there"},
]
MESSAGES = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
    for row in PAIRS
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what `datasets` converts out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def conversations(pool: Pool) -> list[Conversation]:
    rows = list(pool.rows(0, len(pool)))
    bad = [row for row in rows if isinstance(row, BadRow)]
    assert not bad, f"rows that are conversations came as unreadable: {bad}"
    return [row for row in rows if isinstance(row, Conversation)]


def turns(row: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row.messages]


def read_one(tmp_path: Path, row: dict[str, Any], **options: Any) -> Conversation:
    return conversations(open_pool([str(lines(tmp_path / "one.jsonl", [row]))], **options))[0]


# Formats


def as_jsonl(folder: Path) -> str:
    return str(lines(folder / "rows.jsonl", PAIRS))


def as_ndjson(folder: Path) -> str:
    return str(lines(folder / "rows.ndjson", PAIRS))


def as_jsonl_gz(folder: Path) -> str:
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines(folder / "plain.jsonl", PAIRS).read_bytes()))
    return str(path)


def as_json_array(folder: Path) -> str:
    path = folder / "rows.json"
    path.write_text(json.dumps(PAIRS, indent=1, ensure_ascii=False), encoding="utf-8")
    return str(path)


def as_json_lines_called_json(folder: Path) -> str:
    return str(lines(folder / "rows.json", PAIRS))


def as_parquet(folder: Path) -> str:
    pq.write_table(pa.Table.from_pylist(PAIRS), folder / "rows.parquet")
    return str(folder / "rows.parquet")


def as_arrow_stream(folder: Path) -> str:
    table = pa.Table.from_pylist(PAIRS)
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return str(folder / "rows.arrow")


def as_arrow_file(folder: Path) -> str:
    table = pa.Table.from_pylist(PAIRS)
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return str(folder / "rows.arrow")


def as_csv(folder: Path) -> str:
    datasets.Dataset.from_list(PAIRS).to_pandas().to_csv(folder / "rows.csv", index=False)
    return str(folder / "rows.csv")


def as_tsv(folder: Path) -> str:
    datasets.Dataset.from_list(PAIRS).to_pandas().to_csv(folder / "rows.tsv", index=False, sep="\t")
    return str(folder / "rows.tsv")


def as_saved_dataset(folder: Path) -> str:
    datasets.Dataset.from_list(PAIRS).save_to_disk(folder / "saved")
    return str(folder / "saved")


def as_saved_dict(folder: Path) -> str:
    rows = datasets.Dataset.from_list(PAIRS)
    datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(folder / "splits")
    return f"{folder / 'splits'}:train"


def as_saved_dict_of_one(folder: Path) -> str:
    datasets.DatasetDict(train=datasets.Dataset.from_list(PAIRS)).save_to_disk(folder / "splits")
    return str(folder / "splits")


def as_folder(folder: Path) -> str:
    lines(folder / "many" / "a.jsonl", PAIRS[:1])
    lines(folder / "many" / "deep" / "b.jsonl", PAIRS[1:])
    (folder / "many" / "README.md").write_text("not data")
    return str(folder / "many")


def as_named_glob(folder: Path) -> str:
    lines(folder / "part-0.jsonl", PAIRS[:2])
    lines(folder / "part-1.jsonl", PAIRS[2:])
    return f"mine={folder}/part-*.jsonl"


def as_dataset(folder: Path) -> datasets.Dataset:
    return datasets.Dataset.from_list(PAIRS)


def as_list(folder: Path) -> list[dict[str, str]]:
    return [dict(row) for row in PAIRS]


FORMATS = [
    as_jsonl, as_ndjson, as_jsonl_gz, as_json_array, as_json_lines_called_json, as_parquet, as_arrow_stream, as_arrow_file,
    as_csv, as_tsv, as_saved_dataset, as_saved_dict, as_saved_dict_of_one, as_folder, as_named_glob, as_dataset, as_list,
]  # fmt: skip


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_conversations(write: Any, tmp_path: Path) -> None:
    pool = open_pool([write(tmp_path)])
    expected = [[("user", row["prompt"]), ("assistant", row["completion"])] for row in PAIRS]
    assert [turns(row) for row in conversations(pool)] == expected, "text changed, or rows moved, while reading"
    assert len(pool.sources) == 1, "one input must be one source"
    reference = open_pool([PAIRS])
    assert index_rows(pool).content.tolist() == index_rows(reference).content.tolist(), "hash depends on the format"
    assert index_rows(pool).fingerprint == index_rows(reference).fingerprint


def test_hash_of_messages_equals_hash_of_pairs() -> None:
    one, two = index_rows(open_pool([PAIRS])), index_rows(open_pool([MESSAGES]))
    assert one.content.tolist() == two.content.tolist(), "the hash must be of the conversation, not of the columns"
    assert one.prompt.tolist() == two.prompt.tolist()


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize(
    "answers", [["42", "7"], ["007", "010"], ["NA", "None"], ["null", "NaN"], ["True", "False"], ["1.50", "2"]]
)
def test_csv_answers_stay_the_text_that_they_are(suffix: str, answers: list[str], tmp_path: Path) -> None:
    comma = {"csv": ",", "tsv": "\t"}[suffix]
    path = tmp_path / f"rows.{suffix}"
    path.write_text(
        "".join(f"{a}{comma}{b}\n" for a, b in [("prompt", "completion"), ("p", answers[0]), ("q", answers[1])])
    )
    assert [row.answer for row in conversations(open_pool([str(path)]))] == answers, (
        "the CSV reader guessed a type for a text column; layout columns of a CSV are text"
    )


@pytest.mark.parametrize("answers", [["2024-01-31", "2024-02-01"], ["2024-01-31T10:00:00Z", "2024-02-01 10:00:00"]])
def test_json_answers_that_look_like_dates_stay_text(answers: list[str], tmp_path: Path) -> None:
    rows = [{"prompt": "When?", "completion": answer, "at": answer} for answer in answers]
    pool = open_pool([str(lines(tmp_path / "dates.jsonl", rows))])
    assert [row.answer for row in conversations(pool)] == answers, "the JSON reader turned text into timestamps"
    assert [pool.original(row_id)["at"] for row_id in range(2)] == answers, "a column that looks like dates was changed"


def test_json_text_that_looks_like_dates_stays_text_deep_inside_and_over_files(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {**PAIRS[0], "meta": {"at": ["2024-01-31", "2024-02-01"], "big": 2**53 + 1}},
        {"prompt": "When?", "completion": "2024-01-31", "meta": {"at": None, "big": 1}, "late": "2024-01-31"},
    ]
    # Alone the second file's answers all look like dates; the first file's do not.
    lines(tmp_path / "a.jsonl", rows[:1])
    lines(tmp_path / "b.jsonl", rows[1:])
    pool = open_pool([f"all={tmp_path}/*.jsonl"])
    assert [row.answer for row in conversations(pool)] == ["Four.", "2024-01-31"]
    written = write(pool, tmp_path / "out", [0, 1])
    assert without_ours(written[0]) == rows[0], "a key that the row lacks was added, or a date changed"
    assert without_ours(written[1]) == rows[1], "selected.jsonl changed a date"


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="this version of datasets has no columns of several types")
def test_dates_beside_a_column_of_several_types(tmp_path: Path) -> None:
    rows = [{**PAIRS[0], "at": "2024-01-31", "meta": 3}, {**PAIRS[1], "at": "2024-02-01", "meta": "x"}]
    pool = open_pool([str(lines(tmp_path / "rows.jsonl", rows))])
    assert [pool.original(row_id) for row_id in range(2)] == rows


def test_json_dates_are_read_from_compressed_files(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "2024-01-31"}\n{"text": "2024-02-01"}'))
    assert [row.answer for row in conversations(open_pool([str(path)]))] == ["2024-01-31", "2024-02-01"]


def test_a_changed_json_file_with_dates_is_read_again(tmp_path: Path) -> None:
    path = lines(tmp_path / "dates.jsonl", [{"text": "2024-01-31"}])
    open_pool([str(path)])
    lines(path, [{"text": "2024-01-30"}])
    assert conversations(open_pool([str(path)]))[0].answer == "2024-01-30", "a stale copy from the cache was used"


SAME_SIZE = {
    "rows.jsonl": ('{"prompt": "p", "completion": "abc"}\n', '{"prompt": "p", "completion": "abd"}\n'),
    "dates.jsonl": ('{"prompt": "p", "completion": "2024-01-31"}\n', '{"prompt": "p", "completion": "2024-01-30"}\n'),
    "rows.csv": ("prompt,completion\np,a\n", "prompt,completion\np,b\n"),
    "rows.conll": ("Ada B-PER\n", "Ada B-LOC\n"),
}


@pytest.mark.parametrize("name", SAME_SIZE)
def test_other_content_under_the_same_size_and_time_is_read_again(tmp_path: Path, name: str) -> None:
    path, (was, now) = tmp_path / name, SAME_SIZE[name]
    path.write_text(was)
    times = path.stat()
    before = open_pool([str(path)]).original(0)
    path.write_text(now)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert open_pool([str(path)]).original(0) != before, "a stale copy from the cache was used"


def test_csv_with_an_index_column_and_empty_cells(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",prompt,completion,input\n0,p,yes,\n1,q,,x\n", encoding="utf-8-sig")
    pool = open_pool([str(path)])
    assert [row.answer for row in conversations(pool)] == ["yes", ""]
    assert pool.original(0) == {"Unnamed: 0": "0", "prompt": "p", "completion": "yes", "input": ""}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.csv": "prompt,completion\np,a\n", "b.csv": "prompt,completion,id\np,a,1\n"}, "b.csv has the columns"),
        ({"a.csv": "prompt,completion,prompt\np,a,b\n"}, "two columns 'prompt'"),
    ],
)
def test_csv_columns_that_cannot_be_one_table_are_refused(files: dict[str, str], words: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        open_pool([f"all={tmp_path}/*.csv"])


# Sources and row ids


def test_row_id_is_the_position_in_the_order_given(tmp_path: Path) -> None:
    second, first = lines(tmp_path / "b.jsonl", PAIRS[:2]), lines(tmp_path / "a.jsonl", PAIRS[2:])
    pool = open_pool([str(second), str(first)])
    assert [row["prompt"] for row in map(pool.original, range(3))] == [row["prompt"] for row in PAIRS]
    assert pool.source_names(np.arange(3)) == ["b", "b", "a"], "sources were sorted, or the boundary is off by one"
    assert pool.where(0).endswith("b.jsonl, row 1")
    assert pool.where(2).endswith("a.jsonl, row 1"), "a row's place in its own file is counted from 1"


def test_reading_across_sources_in_pieces_equals_reading_at_once() -> None:
    pool = open_pool([[{"prompt": f"{source} {row}", "completion": "x"} for row in range(5)] for source in range(4)])
    whole = [turns(row) for row in conversations(pool)]
    for size in (1, 3, 7, 20):
        pieces = [row for start in range(0, 20, size) for row in pool.rows(start, min(start + size, 20))]
        assert [turns(row) for row in pieces] == whole, f"blocks of {size} rows lose or repeat rows at a source's edge"
    ids = [19, 0, 7, 7, 5]
    assert [turns(row) for row in pool.at(ids)] == [whole[at] for at in ids]


def test_a_bare_glob_gives_one_source_a_file_in_sorted_order(tmp_path: Path) -> None:
    for name in ("beta", "alpha", "gamma"):
        lines(tmp_path / f"{name}.jsonl", PAIRS[:1])
    assert [source.name for source in open_pool([f"{tmp_path}/*.jsonl"]).sources] == ["alpha", "beta", "gamma"]


def test_a_recursive_glob_and_a_folder_see_the_same_rows(tmp_path: Path) -> None:
    folder = as_folder(tmp_path)
    one, two = open_pool([folder]), open_pool([f"all={folder}/**/*.jsonl"])
    assert index_rows(one).content.tolist() == index_rows(two).content.tolist()
    assert [source.name for source in two.sources] == ["all"]


def test_sources_of_one_name_are_made_distinct(tmp_path: Path) -> None:
    same = [str(lines(tmp_path / folder / "data.jsonl", PAIRS[:1])) for folder in ("x", "y", "z")]
    names = [source.name for source in open_pool([*same, f"data-2={same[0]}"]).sources]
    assert names[:3] == ["data", "data-2", "data-3"]
    assert len(set(names)) == 4, f"two sources share a name: {names}"


def test_a_source_can_be_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "data.jsonl", PAIRS)
    assert open_pool([f"wiki={path}"]).sources[0].name == "wiki"


def test_a_file_name_with_an_equals_sign_is_a_file(tmp_path: Path) -> None:
    path = lines(tmp_path / "lang=en.jsonl", PAIRS)
    assert len(open_pool([str(path)])) == len(PAIRS)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("data/pol.jsonl", "data/pool.jsonl"), ("dat/pol.jsonl", "data/pool.jsonl"), ("data/pol", "data/pool"),
        ("dat/pool", "data/pool"),
    ],
)  # fmt: skip
def test_a_mistyped_path_names_the_one_that_was_meant(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it might be the id of a Hub dataset, and where the mistake is in a folder's name."""
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "data" / "pool" / "a.jsonl", PAIRS)
    lines(tmp_path / "data" / "pool.jsonl", PAIRS)
    with pytest.raises(DataError, match=f"did you mean '{meant}'"):
        open_pool([given])


def test_path_objects_and_home_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = lines(tmp_path / "data.jsonl", PAIRS)
    assert len(open_pool([path])) == len(open_pool(["~/data.jsonl"])) == len(PAIRS)
    datasets.DatasetDict({"a": datasets.Dataset.from_list(PAIRS)}).save_to_disk(str(tmp_path / "saved"))
    saved = tmp_path / "saved" / "dataset_dict.json"
    for place, file in {"~/dat*.jsonl": path, "all=~/dat*.jsonl": path, "~/saved:a": saved}.items():
        assert len(open_pool([place])) == len(PAIRS)
        assert Path(file) in (local_files([place]) or []), f"{place} is not found again"
    (tmp_path / "map.yaml").write_text("person: PER")
    given = {"model": "m", "pool": ["p"], "target": ["t"], "n": 1, "out": "run"}
    assert build(SelectConfig, given | {"label_map": "~/map.yaml"}).label_map == {"person": "PER"}


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = lines(tmp_path / "data.jsonl", PAIRS)
    open_pool([str(path)])
    lines(path, PAIRS[:1])
    assert len(open_pool([str(path)])) == 1, "a stale copy from the cache was used"


def test_rows_in_memory_whose_columns_have_no_text_for_a_name_are_refused() -> None:
    with pytest.raises(DataError, match=r"row 2: the column 1 is named by an int(.|\n)*names that are text"):
        open_pool([[{"text": "a"}, {1: "a", "text": "b"}]])


# Layouts


def test_prompt_and_completion_as_message_lists(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Hello."}],
    }
    assert turns(read_one(tmp_path, row)) == [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello.")]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"input": "to French: cat"}, "Translate\n\nto French: cat"),
        ({"input": ""}, "Translate"),
        ({}, "Translate"),
        ({"input": None}, "Translate"),
    ],
)
def test_alpaca_with_and_without_input(extra: dict[str, Any], expected: str, tmp_path: Path) -> None:
    row = read_one(tmp_path, {"instruction": "Translate", **extra, "output": "chat"})
    assert turns(row) == [("user", expected), ("assistant", "chat")]


def test_sharegpt_from_and_value_with_system(tmp_path: Path) -> None:
    row = {
        "system": "You are kind.",
        "conversations": [
            {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "Bye"}, {"from": "gpt", "value": "Ciao"},
        ],
    }  # fmt: skip
    assert turns(read_one(tmp_path, row)) == [
        ("system", "You are kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao"),
    ]  # fmt: skip


def test_sharegpt_with_role_and_content(tmp_path: Path) -> None:
    row = {"conversations": MESSAGES[0]["messages"]}
    assert turns(read_one(tmp_path, row)) == [("user", PAIRS[0]["prompt"]), ("assistant", PAIRS[0]["completion"])]


def test_plain_text_is_one_scored_turn(tmp_path: Path) -> None:
    row = read_one(tmp_path, {"text": "Once upon a time."})
    assert row.plain, "bare text must be marked, or it gets a chat template"
    assert turns(row) == [("assistant", "Once upon a time.")]


def test_text_beside_messages_is_not_the_layout(tmp_path: Path) -> None:
    assert not read_one(tmp_path, {**MESSAGES[0], "text": "rendered"}).plain


@pytest.mark.parametrize(
    "columns", [{"prompt": "question", "completion": "answer"}, {"instruction": "question", "output": "answer"}]
)
def test_columns_can_be_mapped(columns: dict[str, str], tmp_path: Path) -> None:
    row = read_one(tmp_path, {"question": "Why?", "answer": "Because.", "n": 1}, columns=columns)
    assert turns(row) == [("user", "Why?"), ("assistant", "Because.")]


def test_a_mapping_is_for_the_sources_that_have_the_column(tmp_path: Path) -> None:
    mapped = str(lines(tmp_path / "mapped.jsonl", [{"question": "Why?", "answer": "Because."}]))
    plain = str(lines(tmp_path / "plain.jsonl", PAIRS[:1]))
    pool = open_pool([mapped, plain], columns={"prompt": "question", "completion": "answer"})
    assert [row.answer for row in conversations(pool)] == ["Because.", "Four."]
    assert set(pool.original(0)) == {"question", "answer"}, "a mapping must not add columns to the original row"


def test_multi_turn_with_a_system_turn_and_a_trailing_user_turn() -> None:
    messages = [
        {"role": "system", "content": "S"}, {"role": "user", "content": "1"}, {"role": "assistant", "content": "a"},
        {"role": "user", "content": "2"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "3"},
    ]  # fmt: skip
    row = conversations(open_pool([[{"messages": messages}]]))[0]
    assert len(row.messages) == 5, "a trailing user turn has no answer and must be dropped"
    assert row.answer == "b"
    assert [message["content"] for message in row.prompt] == ["S", "1", "a", "2"]


def test_content_as_text_parts_is_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": parts}]}
    assert turns(read_one(tmp_path, row)) == [("user", "Hello"), ("assistant", "Hello")]


def tool_row(city: str) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city})}}
    return {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
    }


def test_tool_calls_without_content_are_answers(tmp_path: Path) -> None:
    row = read_one(tmp_path, tool_row("Oslo"))
    assert row.messages[1]["tool_calls"][0]["function"]["name"] == "weather"
    assert row.messages[1]["content"] == ""
    assert "tool_calls" not in row.messages[0], "null fields that Arrow adds must not reach the template"


def test_rows_that_differ_in_a_tool_call_are_not_repeats(tmp_path: Path) -> None:
    pool = open_pool([str(lines(tmp_path / "tools.jsonl", [tool_row("Oslo"), tool_row("Rome")]))])
    one, two = (content_hash(row) for row in conversations(pool))
    assert one != two, "tool calls are part of the answer: rows that differ in them would be dropped as repeats"


def test_the_hash_of_a_tool_call_does_not_depend_on_the_file_format(tmp_path: Path) -> None:
    rows = [tool_row("Oslo"), MESSAGES[0]]
    call = rows[0]["messages"][1]["tool_calls"][0]
    call["id"] = "c1"
    turned = dict(reversed(call.items()))
    again = [{"messages": [rows[0]["messages"][0], {**rows[0]["messages"][1], "tool_calls": [turned]}]}, MESSAGES[0]]
    datasets.Dataset.from_list(again).to_parquet(tmp_path / "rows.parquet")
    one = index_rows(open_pool([str(lines(tmp_path / "rows.jsonl", rows))]))
    two = index_rows(open_pool([str(tmp_path / "rows.parquet")]))
    assert one.content.tolist() == two.content.tolist()


# Hashes and decontamination


def hash_of(prompt: str, answer: str = "a", system: str | None = None) -> int:
    first = ({"role": "system", "content": system},) if system else ()
    return prompt_hash(
        Conversation((*first, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}))
    )


def test_prompt_hash_ignores_case_white_space_answer_and_system() -> None:
    assert (
        hash_of("What  is\n2?")
        == hash_of(" what is 2? ")
        == hash_of("WHAT IS 2?", "other")
        == hash_of("What is 2?", system="S")
    )
    assert hash_of("What is 2?") != hash_of("What is 3?")


def test_prompt_hash_of_a_longer_conversation_differs() -> None:
    first = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})
    longer = Conversation((*first, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}))
    assert prompt_hash(Conversation(first)) != prompt_hash(longer)


def test_leak_guard_excludes_target_prompts_and_exact_repeats() -> None:
    pool = open_pool([[
        {"prompt": "a", "completion": "1"}, {"prompt": "b", "completion": "2"}, {"prompt": "a", "completion": "1"},
        {"prompt": "b", "completion": "3"}, {"prompt": " SECRET  question", "completion": "4"},
        {"prompt": "c", "completion": "5"},
    ]])  # fmt: skip
    target = index_rows(open_pool([[{"prompt": "Secret question", "completion": "other answer"}]]))
    index = index_rows(pool)
    codes = exclusions(index, target.prompt, decontaminate=True)
    assert codes.tolist() == [USABLE, USABLE, DUPLICATE, USABLE, IN_TARGET, USABLE], (
        "the first of equal rows stays; an equal prompt with another answer is no repeat; target prompts go"
    )
    assert not exclusions(index, target.prompt, decontaminate=False).any(), "--no-decontaminate must keep every row"


def test_leak_guard_off_still_excludes_unreadable_rows() -> None:
    pool = open_pool([[{"prompt": "a", "completion": "1"}, {"prompt": "b", "completion": None}]])
    index = index_rows(pool, on_bad_row="skip")
    assert exclusions(index, np.empty(0, np.uint64), decontaminate=False).tolist() == [USABLE, UNREADABLE]


def test_unreadable_rows_are_not_repeats_of_each_other() -> None:
    pool = open_pool(
        [[{"prompt": "a", "completion": None}, {"prompt": "b", "completion": None}, {"prompt": "c", "completion": "x"}]]
    )
    codes = exclusions(index_rows(pool, on_bad_row="skip"), np.zeros(1, np.uint64), decontaminate=True)
    assert codes.tolist() == [UNREADABLE, UNREADABLE, USABLE]


# Bad rows and bad columns


def turn(role: str, content: str | None) -> dict[str, Any]:
    return {"role": role, "content": content}


BAD_ROWS = {
    "missing answer": ([turn("user", "x"), turn("assistant", None)], "content is missing"),
    "unknown role": ([turn("robot", "x"), turn("assistant", "y")], "'robot'"),
    "no assistant": ([turn("user", "x"), turn("user", "y")], "no assistant turn"),
    "no turns": ([], "empty"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_an_error_with_its_place_or_skipped_and_said(name: str, tmp_path: Path) -> None:
    messages, words = BAD_ROWS[name]
    pool = open_pool([str(lines(tmp_path / "pool.jsonl", [MESSAGES[0], {"messages": messages}, MESSAGES[1]]))])
    with pytest.raises(DataError, match=r"pool\.jsonl, row 2") as caught:
        index_rows(pool)
    assert words in str(caught.value)
    assert "--on-bad-row skip" in str(caught.value), "the message must say how to go on"
    index = index_rows(pool, on_bad_row="skip")
    assert list(index.bad) == [1]
    assert words in index.bad[1]


@pytest.mark.parametrize("odd", [3, [1, 2], {"a": {"b": 1}}, 2**70, True])
def test_a_column_of_several_types_is_written_as_it_is(odd: Any, tmp_path: Path) -> None:
    """In Parquet, where a column has one type, as JSON text, which is said."""
    one = lines(tmp_path / "one.jsonl", [{**PAIRS[0], "meta": "text"}])
    two = lines(tmp_path / "two.jsonl", [{**PAIRS[1], "meta": odd}, PAIRS[2]])
    pool = open_pool([str(one), str(two)])
    notes = write_selected(tmp_path, pool, np.arange(3), np.array(["score"] * 3), np.ones(3))
    written = [json.loads(line) for line in (tmp_path / "selected.jsonl").read_text().splitlines()]
    assert [row.get("meta", "absent") for row in written] == ["text", odd, "absent"]
    cells = read_selected(tmp_path)["meta"]
    assert [None if cell is None else json.loads(cell) for cell in cells] == ["text", odd, None]
    assert notes == ["selected.parquet: meta as JSON text, because no one type holds all of its values"]


def test_our_own_columns_in_the_pool_are_refused() -> None:
    with pytest.raises(DataError, match="tov_score"):
        check_writable(open_pool([[{**PAIRS[0], "tov_score": 1.0}]]))


# Out


RICH = [
    {
        **PAIRS[0],
        "id": 2**53 + 1,
        "tags": ["a", "b"],
        "meta": {"lang": "en", "deep": {"n": 1}},
        "flag": True,
        "none": None,
        "w": 0.12345678901234567,
    },
    {**PAIRS[1], "id": -5, "tags": [], "meta": {"lang": None, "deep": {"n": 2}}, "flag": None, "none": None, "w": None},
    {**PAIRS[2], "id": 0, "tags": None, "meta": None, "flag": False, "none": None, "w": 1e-300},
]


def write(pool: Pool, folder: Path, row_ids: list[int], scores: list[float] | None = None) -> list[dict[str, Any]]:
    values = np.array(scores or [0.5] * len(row_ids), np.float32)
    write_selected(folder, pool, np.array(row_ids), np.array(["score"] * len(row_ids)), values)
    return [json.loads(line) for line in (folder / "selected.jsonl").read_text(encoding="utf-8").splitlines()]


def without_ours(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("tov_")}


def rich_array(folder: Path) -> str:
    (folder / "rich.json").write_text(json.dumps(RICH), encoding="utf-8")
    return str(folder / "rich.json")


def rich_parquet(folder: Path) -> str:
    datasets.Dataset.from_list(RICH).to_parquet(folder / "rich.parquet")
    return str(folder / "rich.parquet")


RICH_INPUTS = {
    "jsonl": lambda folder: str(lines(folder / "rich.jsonl", RICH)),
    "json array": rich_array,
    "parquet": rich_parquet,
    "list": lambda folder: RICH,
    "dataset": lambda folder: datasets.Dataset.from_list(RICH),
}


@pytest.mark.parametrize("kind", RICH_INPUTS)
def test_original_columns_are_untouched(kind: str, tmp_path: Path) -> None:
    pool = open_pool([RICH_INPUTS[kind](tmp_path)])
    rows = write(pool, tmp_path, [2, 0, 1])
    assert [without_ours(row) for row in rows] == [RICH[2], RICH[0], RICH[1]], "selected.jsonl changed a row"
    assert [list(row)[-4:] for row in rows] == [["tov_row_id", "tov_source", "tov_score", "tov_reason"]] * 3
    assert [row["tov_row_id"] for row in rows] == [2, 0, 1]
    assert [without_ours(row) for row in read_selected(tmp_path).to_list()] == [RICH[2], RICH[0], RICH[1]], (
        "selected.parquet changed a row"
    )


def test_sources_with_different_columns_share_one_parquet_file(tmp_path: Path) -> None:
    pool = open_pool([RICH, MESSAGES, [{**PAIRS[0], "id": 7}]])
    rows = write(pool, tmp_path, [4, 0, 6])
    assert without_ours(rows[0]) == MESSAGES[1], "selected.jsonl must hold the columns of the row's own source only"
    assert without_ours(rows[1]) == RICH[0]
    assert without_ours(rows[2]) == {**PAIRS[0], "id": 7}
    table = read_selected(tmp_path)
    assert set(table.column_names) >= {"messages", "id", "meta", "tov_row_id"}
    assert table["messages"][0] == MESSAGES[1]["messages"]
    assert table["messages"][1] is None
    assert table["id"][1:] == [2**53 + 1, 7]


def test_a_row_without_a_score_has_null_not_nan(tmp_path: Path) -> None:
    rows = write(open_pool([PAIRS]), tmp_path, [0, 1], [0.25, float("nan")])
    assert [row["tov_score"] for row in rows] == [0.25, None]
    assert "NaN" not in (tmp_path / "selected.jsonl").read_text(), "NaN is not JSON: other readers refuse the file"
    assert read_selected(tmp_path)["tov_score"][:] == [0.25, None]


def test_a_field_that_other_rows_have_is_at_most_null(tmp_path: Path) -> None:
    rows = [tool_row("Oslo"), MESSAGES[0]]
    written = write(open_pool([str(lines(tmp_path / "mixed.jsonl", rows))]), tmp_path, [1, 0])
    shown = [{key: value for key, value in turn.items() if value is not None} for turn in written[0]["messages"]]
    assert shown == MESSAGES[0]["messages"]


def test_selected_rows_can_be_the_next_target(tmp_path: Path) -> None:
    pool = open_pool([PAIRS])
    write(pool, tmp_path, [1, 2])
    for name in ("selected.jsonl", "selected.parquet"):
        again = conversations(open_pool([str(tmp_path / name)]))
        assert [turns(row) for row in again] == [turns(row) for row in conversations(pool)[1:]], name


# Forms of LLaMA-Factory and Axolotl

TALK = [{"from": "human", "value": "q"}]
RANKED: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "Translate", "input": "good day", "chosen": "bonjour", "rejected": "hallo"},
    "history": {
        "instruction": "Translate", "input": "good day", "chosen": "bonjour", "rejected": "hallo", "history": [["a", "b"]],
    },
    "sharegpt": {
        "conversations": TALK, "chosen": {"from": "gpt", "value": "bonjour"}, "rejected": {"from": "gpt", "value": "hallo"},
    },
    "messages": {
        "messages": [{"role": "user", "content": "q"}],
        "chosen": {"role": "assistant", "content": "bonjour"}, "rejected": {"role": "assistant", "content": "hallo"},
    },
    "prompt": {
        "prompt": TALK, "chosen": [{"from": "gpt", "value": "bonjour"}], "rejected": [{"from": "gpt", "value": "hallo"}],
    },
}  # fmt: skip


@pytest.mark.parametrize("form", RANKED)
def test_pairs_of_other_trainers_are_read_with_all_of_their_question(form: str) -> None:
    row = conversations(open_pool([[RANKED[form]]]))[0]
    assert row.answer == "bonjour"
    assert row.rejected is not None
    assert row.rejected.answer == "hallo"
    asked = [message["content"] for message in row.prompt]
    wanted = ["Translate\n\ngood day"] if "instruction" in RANKED[form] else ["q"]
    assert asked == (["a", "b", *wanted] if form == "history" else wanted)
    assert row.rejected.prompt == row.prompt


@pytest.mark.parametrize("prompt", ["q", "", [], None])
def test_a_pair_of_turns_stands_behind_the_first_turns_that_there_are(prompt: Any) -> None:
    pair = {name: RANKED["messages"][name] for name in ("chosen", "rejected")}
    talk = {"messages": [{"role": "user", "content": "told"}]}
    for beside, asked in ((talk, "told"), ({"prompt": "only"}, "only")):
        (row,) = conversations(open_pool([[{**pair, "prompt": prompt, **beside}]]))
        assert [message["content"] for message in row.prompt] == [asked]
    with pytest.raises(DataError, match=r"a turn each, and there are no turns before them(.|\n)*`conversations`"):
        index_rows(open_pool([[{**pair, "prompt": None}]]))


@pytest.mark.parametrize("tag", [False, "false", True, None])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [*TALK, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "output": "a"},
        {"prompt": "q", "completion": "a"},
    ],
)
def test_an_answer_that_kto_tag_says_is_not_wanted_is_left_out(row: dict[str, Any], tag: Any) -> None:
    pool = open_pool([[{**row, "kto_tag": tag}, row]])
    index = index_rows(pool)
    assert index.rejected == (str(tag).lower() == "false")
    assert "kto_tag" not in pool.unseen().get("memory", [])


def test_rows_of_another_layout_than_their_source_are_told_apart(tmp_path: Path) -> None:
    rows = [
        {"instruction": "q", "output": "a"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ]
    said = r"mixed.jsonl, row 1: the list of turns is missing\.(.|\n)*columns of alpaca(.|\n)*read as messages"
    with pytest.raises(DataError, match=said):
        index_rows(open_pool([str(lines(tmp_path / "mixed.jsonl", rows))]))
    for empty in ({"prompt": "q", "completion": None, "id": 1}, {"prompt": None, "completion": None, "id": 1}):
        null = [empty, {"prompt": "q", "completion": "a", "id": 2}]
        with pytest.raises(DataError) as failed:
            index_rows(open_pool([str(lines(tmp_path / "null.jsonl", null))]))
        assert "is read as" not in str(failed.value)


@pytest.mark.parametrize(("file", "name"), [("v1.0.jsonl", "v1.0"), ("wiki.en.jsonl.gz", "wiki.en"), ("A.JSONL", "A")])
def test_a_source_has_the_name_of_its_file_without_the_format(file: str, name: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", PAIRS)
    other = tmp_path / file
    other.write_bytes(gzip.compress(path.read_bytes()) if file.endswith(".gz") else path.read_bytes())
    assert open_pool([str(other)]).sources[0].name == name
