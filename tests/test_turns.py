"""Turns as users write them: what the model is given, what is scored, what is refused, and which rows are the same."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tiny import CHATML, tiny_tokenizer
from tov.data.cells import BadRow
from tov.data.rows import content_hash, prompt_hash
from tov.data.written import JsonLines
from tov.errors import DataError
from tov.tasks.instruction import (
    Conversation,
    encode,
    from_alpaca,
    from_messages,
    from_prompt_completion,
    from_sharegpt,
)
from tov.text.chat import prepare
from tov.text.spans import render


def user(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def said(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def read(*turns: dict[str, Any], **beside: Any) -> Conversation:
    return from_messages({"messages": list(turns), **beside})


def calling(arguments: Any, **more: Any) -> dict[str, Any]:
    return said(
        None, tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": arguments}}], **more
    )


TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}


def scored(row: Conversation, template: str | None = CHATML) -> list[str]:
    rendered = render(prepare(tiny_tokenizer(chat_template=template)), row.messages, row.context, unscored=row.unscored)
    return [rendered.text[start:stop] for start, stop in rendered.spans]


# Which turns are scored


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"training": False}, {"train_on_turn": False}])
def test_a_turn_can_be_seen_and_not_scored(flag: dict[str, Any]) -> None:
    row = read(user("a"), said("first", **flag), user("b"), said("second"))
    assert scored(row) == ["second<|im_end|>"]
    assert row.messages[1] == said("first"), "a flag must not reach the template"


@pytest.mark.parametrize("flag", [{}, {"weight": 1}, {"weight": None}, {"train": True}, {"weight": 1, "train": True}])
def test_a_turn_is_scored_otherwise(flag: dict[str, Any]) -> None:
    assert scored(read(user("a"), said("first", **flag))) == ["first<|im_end|>"]


def test_flags_stand_in_sharegpt_too() -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0}, {"from": "gpt", "value": "c"}]
    assert scored(from_sharegpt({"conversations": turns})) == ["c<|im_end|>"]


def test_a_row_without_a_scored_turn_has_no_scored_token() -> None:
    encoded = encode(tiny_tokenizer(), [read(user("a"), said("b", weight=0))], max_length=64)
    assert encoded.scored_counts.tolist() == [0]


def test_a_prompt_of_turns_is_seen_and_not_scored() -> None:
    row = from_prompt_completion({"prompt": [user("a"), said("before"), user("b")], "completion": [said("after")]})
    assert scored(row) == ["after<|im_end|>"], "TRL trains on the completion only"


# What the template is given


def test_the_plain_format_shows_all_that_a_row_has() -> None:
    result = {"role": "tool", "content": "rain"}
    row = read(
        {"role": "developer", "content": "Be brief."}, user("Weather?"), calling('{"city": "Oslo"}', reasoning="hm"),
        result, said("It rains."), tools=[TOOL], documents=[{"text": "a document"}],
    )  # fmt: skip
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert scored(row, None) == [f"<think>\nhm\n</think>\n\n{call}<|im_end|>", "It rains.<|im_end|>"]
    rendered = render(prepare(tiny_tokenizer(chat_template=None)), row.messages, row.context)
    assert not rendered.left_out
    for text in ("### Developer:\nBe brief.", "### Tool:\nrain", '"description": "d"', "a document"):
        assert text in rendered.text


def test_settings_of_the_template_are_given_to_it() -> None:
    template = CHATML + "{% if loud %}LOUD{% endif %}"
    row = read(user("a"), said("b"), chat_template_kwargs='{"loud": true}')
    assert render(prepare(tiny_tokenizer(chat_template=template)), row.messages, row.context).text.endswith("LOUD")


@pytest.mark.parametrize(
    "tools", [[TOOL], '[{"name": "weather", "parameters": {}}]', [{"name": "f", "input_schema": {}}]]
)
def test_what_a_template_leaves_out_and_is_not_scored_is_counted(tools: Any) -> None:
    rows = [read(user("a"), said("b"), tools=tools), read(user("a"), said("b"))]
    encoded = encode(tiny_tokenizer(), rows, max_length=64)
    assert encoded.left_out_kinds() == {"tools": 1}
    assert encoded.take([1]).left_out_kinds() == {}
    [note] = encoded.left_out_notes("target")
    assert note == "in 1 target row the model's chat template leaves out: tools"


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (calling({"city": "Oslo"}), "its call of weather.*key tool_calls"),
        (said("b", reasoning_content="because"), "its reasoning.*key reasoning_content"),
        (said("b", weight=1, thinking="because"), "its reasoning"),
    ],
)
def test_what_a_template_leaves_out_and_is_scored_is_an_error(turn: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=f"(?s)turn 2.*begins 'Why'.*{words}"):
        scored(read(user("Why"), turn))


JOINED = CHATML.replace(
    "message['content']",
    "message['content'] + (message.tool_calls[0].function.name + message.tool_calls[0].function.arguments "
    "if message.tool_calls else '')",
)
REPR = CHATML.replace(
    "message['content']",
    "(message['content'] ~ (message.tool_calls[0].function.name ~ message.tool_calls[0].function.arguments "
    "if message.tool_calls else ''))",
)


@pytest.mark.parametrize("template", [JOINED, REPR])
@pytest.mark.parametrize("arguments", [{"city": "Oslo", "when": None}, '{"city":"Oslo","when":null}'])
def test_a_template_that_wants_arguments_as_text_gets_json(template: str, arguments: Any) -> None:
    row = read(user("a"), calling(arguments))
    assert scored(row, template) == ['weather{"city": "Oslo", "when": null}<|im_end|>']


# Other forms of turns


def test_anthropics_parts_are_turns() -> None:
    asked = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Let me look."},
             {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": None}}]  # fmt: skip
    told = [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
            {"type": "text", "text": "So?"}]  # fmt: skip
    row = read(user("a"), said(asked), user(told), said("It rains."), system="Be brief.")
    assert [(turn["role"], turn["content"]) for turn in row.messages] == [
        ("system", "Be brief."), ("user", "a"), ("assistant", "Let me look."), ("tool", "rain"), ("user", "So?"),
        ("assistant", "It rains."),
    ]  # fmt: skip
    assert row.messages[2]["reasoning_content"] == "hm"
    assert row.messages[2]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": None}}
    assert row.messages[3]["tool_call_id"] == "t1"


def test_llama_factorys_calls_are_calls() -> None:
    turns = [
        {"from": "human", "value": "a"}, {"from": "function_call", "value": '{"name": "weather", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "rain"}, {"from": "gpt", "value": "It rains."},
    ]  # fmt: skip
    row = from_sharegpt({"conversations": turns, "tools": '[{"name": "weather", "description": "d"}]', "system": "s"})
    assert [turn["role"] for turn in row.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert row.messages[2]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"x": 1}}
    assert row.context.tools[0]["function"]["name"] == "weather"


def test_history_of_alpaca_stands_before_and_is_scored() -> None:
    row = from_alpaca({"instruction": "b", "input": "", "output": "2", "history": [["a", "1"]], "system": "s"})
    assert [turn["content"] for turn in row.messages] == ["s", "a", "1", "b", "2"]
    assert scored(row) == ["1<|im_end|>", "2<|im_end|>"]


# Refusals


REFUSED = {
    "half a weight": ([user("a"), said("b", weight=0.5)], {}, r"turn 2 has weight 0\.5, but it must be 0 or 1"),
    "a weight as text": ([user("a"), said("b", weight="1")], {}, "must be 0 or 1"),
    "a scored user": ([user("a", train=True), said("b")], {}, "only the assistant's turns are scored"),
    "flags at odds": ([user("a"), said("b", weight=1, train=False)], {}, "contradict"),
    "parts of a turn": ([user("a"), said("b", train_detail=[{"begin_offset": 0}])], {}, "train_detail"),
    "arguments that are no JSON": ([user("a"), calling("{city")], {}, r"turn 2 .*arguments is text that is no JSON"),
    "arguments that are a list": ([user("a"), calling("[1]")], {}, "must be an object"),
    "a call without a name": ([user("a"), said("", tool_calls=[{"function": {}}])], {}, "has no name"),
    "an image": ([user([{"type": "image_url", "image_url": {}}]), said("b")], {}, "part of type 'image_url'"),
    "text after a call": (
        [user("a"), said([{"type": "tool_use", "name": "f", "input": {}}, {"type": "text", "text": "b"}])], {}, "in the order",
    ),
    "tools that are no list": ([user("a"), said("b")], {"tools": 5}, "tools is an int"),
    "tools that are no JSON": ([user("a"), said("b")], {"tools": "weather"}, "tools is text that is no JSON"),
    "a setting of tov's": ([user("a"), said("b")], {"chat_template_kwargs": {"tokenize": True}}, "tov sets itself"),
    "types that are no text": ([user([{"type": ["text"], "text": "x"}]), said("b")], {}, r"part of type \['text'\]"),
    "types that are objects": ([user("a"), said([{"type": {}, "text": "x"}])], {}, "part of type {}"),
    "half a character in tools": ([user("a"), said("b")], {"tools": '[{"name": "\\ud83d"}]'}, r"surrogate \\ud83d"),
    "half a character as a key": ([user("a"), calling('{"\\ud83d": 1}')], {}, r"turn 2 .*arguments .*half a character"),
    "two systems": ([{"role": "system", "content": "s"}, user("a"), said("b")], {"system": "t"}, "of other words"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused(name: str) -> None:
    turns, beside, words = REFUSED[name]
    with pytest.raises(BadRow, match=words):
        read(*turns, **beside)


# Which rows are the same


PLAIN = read(user("a"), said("b"))
DIFFERENT = {
    "reasoning": read(user("a"), said("b", reasoning_content="c")),
    "tools": read(user("a"), said("b"), tools=[TOOL]),
    "documents": read(user("a"), said("b"), documents=[{"text": "d"}]),
    "settings": read(user("a"), said("b"), chat_template_kwargs={"enable_thinking": False}),
    "flag": read(user("a"), said("b", weight=0)),
    "name": read(user("a", name="bob"), said("b")),
    "call": read(user("a"), calling({"city": "Oslo"}) | {"content": "b"}),
    "a null in a call": read(user("a"), calling({"city": "Oslo", "when": None}) | {"content": "b"}),
    "history": from_alpaca({"instruction": "a", "output": "b", "history": [["x", "y"]]}),
}
SAME = {
    "metadata": read(user("a", id=3, timestamp="now"), said("b", meta={"x": 1}), id=7, source="web"),
    "absent": read(user("a", name=None), said("b", tool_calls=None, weight=None), tools=None, documents=[]),
    "another layout": from_alpaca({"instruction": "a", "input": "", "output": "b", "history": []}),
    "another name of a role": read({"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}),
}


def test_rows_that_differ_in_what_the_model_sees_are_no_repeats() -> None:
    hashes = {name: content_hash(row) for name, row in {"plain": PLAIN, **DIFFERENT}.items()}
    assert len(set(hashes.values())) == len(hashes), hashes


@pytest.mark.parametrize("name", SAME)
def test_rows_that_differ_in_nothing_that_the_model_sees_are_repeats(name: str) -> None:
    assert content_hash(SAME[name]) == content_hash(PLAIN)


def test_arguments_as_text_or_object_in_any_order_are_the_same_call() -> None:
    rows = (read(user("a"), calling(given)) for given in ({"x": 1, "y": None}, {"y": None, "x": 1}, '{"y":null,"x":1}'))
    assert len({content_hash(row) for row in rows}) == 1


UNLIKE_JSON = (
    datetime.datetime(2020, 1, 2, 3, 4), datetime.date(2020, 1, 2), datetime.time(3, 4), datetime.timedelta(days=1),
    decimal.Decimal("1.50"), b"\x00\xff", uuid.UUID(int=7), {"b", "a"}, np.float32(0.5), np.int64(3), np.array([1, 2]),
    np.datetime64("2020-01-02"), np.datetime64("NaT"), pd.Timestamp("2020-01-02"), pd.NaT, pd.NA,
)  # fmt: skip
"""What Parquet files and rows in memory hold and JSON lacks."""


@pytest.mark.parametrize("value", UNLIKE_JSON, ids=lambda value: type(value).__name__)
def test_a_row_that_is_read_back_from_json_lines_is_the_same(value: Any) -> None:
    row = {"messages": [user("a"), calling({"when": value})], "documents": [{"title": "x", "when": [value]}]}
    written = json.loads(JsonLines().line(row))
    assert content_hash(from_messages(written)) == content_hash(from_messages(row))


@pytest.mark.parametrize("name", ["tools", "documents", "history"])
def test_a_question_is_another_with_other_tools_or_turns_before(name: str) -> None:
    assert prompt_hash(DIFFERENT[name]) != prompt_hash(PLAIN)


@pytest.mark.parametrize("name", ["reasoning", "flag", "settings", "call"])
def test_a_question_does_not_depend_on_its_answer(name: str) -> None:
    assert prompt_hash(DIFFERENT[name]) == prompt_hash(PLAIN)


# Forms of others that say the same in another way


@pytest.mark.parametrize("key", ["parameters", "input", "args", "kwargs"])
def test_arguments_under_another_key_are_not_lost(key: str) -> None:
    call = {"function": {"name": "weather", key: {"city": "Oslo"}}}
    with pytest.raises(BadRow, match=f"has {key}, but no arguments"):
        read(user("q"), said(None, tool_calls=[call]))


def test_the_loss_flag_of_ms_swift_and_xtuner_is_read() -> None:
    assert scored(read(user("a"), said("first", loss=False), user("b"), said("second", loss=True))) == [
        "second<|im_end|>"
    ]


@pytest.mark.parametrize("turn", [said("a", masked=True), said("a", loss_mask=0), said("a", tools=[TOOL])])
def test_keys_of_a_turn_that_other_trainers_heed_are_not_passed_over(turn: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match=r"turn 2 .*has (masked|loss_mask|tools)"):
        read(user("q"), turn)


def test_turns_may_be_json_text() -> None:
    turns = [user("q"), said("a")]
    assert from_messages({"messages": json.dumps(turns)}) == from_messages({"messages": turns})
    with pytest.raises(BadRow, match="text that is no JSON"):
        from_messages({"messages": str(turns)})


NESTED = {"tools": '[{"a": %s}]', "documents": '[{"a": %s}]', "chat_template_kwargs": '{"a": [%s]}'}
"""JSON text in a cell -> with two levels of its own."""


@pytest.mark.parametrize("key", NESTED)
def test_json_text_is_no_deeper_than_a_row(key: str) -> None:
    deepest = read(user("a"), said("b"), **{key: NESTED[key] % ("[" * 98 + "]" * 98)})
    assert content_hash(deepest) != content_hash(PLAIN)
    for levels in (99, 900, 5000):
        with pytest.raises(BadRow, match=f"{key} is JSON text nested over 100 levels deep"):
            read(user("a"), said("b"), **{key: NESTED[key] % ("[" * levels + "]" * levels)})
    with pytest.raises(BadRow, match=f"{key} is JSON text nested"):
        read(user("a"), said("b"), **{key: "[" * 5000})


@pytest.mark.parametrize("key", NESTED)
def test_json_text_may_be_a_value_by_itself(key: str) -> None:
    assert read(user("a"), said("b"), **{key: "null"}) == PLAIN
    for value in ("5", "true", '"x"'):
        with pytest.raises(BadRow, match=key):
            read(user("a"), said("b"), **{key: value})


def test_json_text_of_turns_holds_whole_characters() -> None:
    assert from_messages({"messages": json.dumps([user("q"), said("\U0001f600")])}).answer == "\U0001f600"
    with pytest.raises(BadRow, match=r"list of turns .*half a character, the lone surrogate \\ud83d"):
        from_messages({"messages": json.dumps([user("q"), said("half \ud83d emoji")])})


@pytest.mark.parametrize("key", ['k"q', "k\\q", "k\nq", "k\u00e9q"])
def test_a_key_of_a_call_may_need_an_escape(key: str) -> None:
    call = json.dumps({"name": "weather", "arguments": {key: {key: 1}}}, ensure_ascii=False)
    row = read(user("a"), calling({key: {key: 1}}))
    assert scored(row, None) == [f"<tool_call>\n{call}\n</tool_call><|im_end|>"]


def test_turns_may_mix_the_keys_of_two_forms() -> None:
    turns = [{"from": "user", "content": "q"}, {"from": "assistant", "content": "a"}]
    assert from_sharegpt({"conversations": turns}).messages == (user("q"), said("a"))
    assert read(user("q"), said([], tool_calls=[{"function": {"name": "f"}}])).messages[1]["content"] == ""


def test_an_alpaca_row_without_instruction_asks_its_input() -> None:
    assert from_alpaca({"instruction": "", "input": "good day", "output": "x"}).messages[0] == user("good day")


def test_what_pandas_has_for_a_missing_value_is_named() -> None:
    with pytest.raises(BadRow, match="input is NaN"):
        from_alpaca({"instruction": "a", "input": float("nan"), "output": "x"})
