"""From the turns that users write, in the forms of OpenAI, Anthropic, ShareGPT and those who train on them, to ours.

A turn of ours has `role`, `content`, and where the row has them `reasoning_content`, `tool_calls`, `tool_call_id`, `name`. No
other key reaches a chat template, so that what a row is hashed by is what a model sees. Whether a turn is scored stands beside.
Null means that a key is absent, but in a call's arguments and in tools, where it is a value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tov.data.cells import BadRow, as_text, named_kind
from tov.data.nesting import MOST_NESTED, half_character, nested_too_deeply
from tov.text.chat import REASONING, Context, Message

ROLES = {
    "system": "system", "developer": "developer", "user": "user", "assistant": "assistant", "tool": "tool",
    "human": "user", "gpt": "assistant", "model": "assistant", "function": "tool", "ipython": "tool",
    "observation": "tool", "function_call": "assistant",
}  # fmt: skip
"""What a turn's role means, wherever it stands."""
SPEAKERS = ROLES | {
    "chatgpt": "assistant", "bot": "assistant", "bing": "assistant", "bard": "assistant", "function_response": "tool",
}  # fmt: skip
"""What ShareGPT's `from` means."""
FLAGS = ("weight", "train", "training", "train_on_turn", "loss")
"""Keys of a turn that say whether it is scored: OpenAI's, those of axolotl, and that of ms-swift and XTuner."""
MASKS = ("masked", "mask", "loss_mask")
"""Keys of a turn that other trainers read in other ways, so that what they ask for is not guessed at."""
ARGUMENTS = ("parameters", "input", "args", "kwargs", "params")
"""Keys under which others than OpenAI have the arguments of a call."""
DETAILS = ("train_detail", "training_detail")
"""Keys of axolotl's by which parts of a turn are trained on."""
_OWN = (
    "messages", "conversation", "tools", "documents", "chat_template", "tokenize", "add_generation_prompt",
    "continue_final_message", "return_dict", "return_tensors", "return_assistant_tokens_mask", "tokenizer_kwargs",
    "padding", "truncation", "max_length",
)  # fmt: skip
"""Settings of a rendering that are not the row's to say."""

Turns = tuple[tuple[Message, ...], frozenset[int]]
"""Turns, and the places of the assistant's that are not scored."""


def read_turns(messages: Any, system: Any = None, *, asked: int = 0) -> Turns:
    """The turns of a list, up to the last of an assistant's: one behind it has no answer and no effect on those before.

    Args:
        messages: as the row has them.
        system: what stands beside them under `system`.
        asked: so many of them are the prompt, of which nothing is scored.

    Raises:
        BadRow: they cannot be read, or no assistant speaks.
    """
    messages = as_json(messages, "the list of turns")
    if not isinstance(messages, Sequence) or not messages:
        raise BadRow(f"the list of turns is {'empty' if messages == [] else named_kind(messages)}")
    turns: list[Message] = []
    unscored = set()
    for position, message in enumerate(messages, 1):
        read, scored = _read(message, position)
        scored = scored and position > asked
        unscored |= {len(turns) + at for at, turn in enumerate(read) if turn["role"] == "assistant" and not scored}
        turns += read
    first = _system(system, turns)
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise BadRow("no assistant turn")
    return (*first, *turns), frozenset(place + len(first) for place in unscored if place < len(turns))


def _system(system: Any, turns: Sequence[Message]) -> list[Message]:
    """The turn that stands beside the others, if it does."""
    if not system:
        return []
    content = as_text(system, "system")
    told = [turn["content"] for turn in turns if turn["role"] == "system"]
    if not told:
        return [{"role": "system", "content": content}]
    if told[0] == content:
        return []
    raise BadRow("the row has a key 'system' and a turn of role 'system' of other words", "Delete one of the two.")


def _read(message: Any, position: int) -> tuple[list[Message], bool]:
    """The turns that a user's turn is (results of tools have a turn each), and whether it is scored."""
    if not isinstance(message, Mapping):
        raise BadRow(f"turn {position} is {named_kind(message)}, but must have role and content")
    given = {key: value for key, value in message.items() if value is not None}
    role = _role(given, position)
    scored = _scored(given, role, position)
    where = f"turn {position} ({role})"
    if "role" not in given:
        given["content"] = given.get("value", given.get("content"))
    if "function_call" in (given.get("from"), given.get("role")):
        given |= _called(given.get("content"), where)
    if given.get("tools"):
        raise BadRow(
            f"{where} has tools, but a chat template is given those of the whole row",
            "Move them to the row's key 'tools'.",
        )
    given["role"] = role
    read = _of_parts(given, role, where) if isinstance(given.get("content"), list) else [given]
    return [_turn(turn, turn["role"], where) for turn in read], scored


def _role(given: Mapping[str, Any], position: int) -> str:
    key, known = ("from", SPEAKERS) if given.get("from") is not None and "role" not in given else ("role", ROLES)
    role = known.get(str(given.get(key)))
    if role is None and key == "from":
        raise BadRow(f"turn {position} is from {given['from']!r}, who is none of {', '.join(known)}")
    if role is None:
        raise BadRow(f"turn {position} has role {given.get('role')!r}, which is none of {', '.join(known)}")
    return role


def _scored(given: Mapping[str, Any], role: str, position: int) -> bool:
    """Whether a turn's flags let it be scored."""
    for key in DETAILS:
        if given.get(key):
            raise BadRow(
                f"turn {position} has {key}, by which parts of a turn are trained on; tov scores whole turns",
                f"Delete {key}, or split the turn.",
            )
    masks = [key for key in MASKS if key in given]
    if masks:
        raise BadRow(
            f"turn {position} has {masks[0]}, which trainers read in different ways",
            f'Write "train": true or false in place of {masks[0]}, or delete it.',
        )
    flags = {key: given[key] for key in FLAGS if key in given}
    for key, value in flags.items():
        if value not in (0, 1) or not isinstance(value, bool | int | float):
            allowed = "0 or 1" if key == "weight" else "true or false"
            raise BadRow(
                f"turn {position} has {key} {json.dumps(value, default=str)}, but it must be {allowed}",
                f"Set {key} to {allowed}, or delete it.",
            )
    if len({bool(value) for value in flags.values()}) > 1:
        raise BadRow(f"turn {position} has {' and '.join(flags)}, which contradict each other", "Keep one of them.")
    asked = any(flags.values())
    if asked and role != "assistant":
        raise BadRow(
            f"turn {position} ({role}) has {next(iter(flags))} {json.dumps(next(iter(flags.values())))}, but only the "
            "assistant's turns are scored",
            "Delete the key, or set it to 0 or false.",
        )
    return asked or not flags


def _turn(given: Mapping[str, Any], role: str, where: str) -> Message:
    """A turn of ours."""
    turn: Message = {"role": role}
    calls = _calls(given, where) if role == "assistant" else []
    thought = _reasoning(given, where) if role == "assistant" else ""
    content = given.get("content")
    turn["content"] = "" if content in (None, []) and (calls or thought) else as_text(content, f"{where}: content")
    if thought:
        turn["reasoning_content"] = thought
    if calls:
        turn["tool_calls"] = calls
    for key in ("name", "tool_call_id"):
        if key in given:
            turn[key] = as_text(given[key], f"{where}: {key}")
    return turn


def _reasoning(given: Mapping[str, Any], where: str) -> str:
    """What an assistant thinks, under whatever key."""
    texts = {key: as_text(given[key], f"{where}: {key}") for key in REASONING if given.get(key)}
    if len(set(texts.values())) > 1:
        raise BadRow(f"{where} has {' and '.join(texts)} of different words", "Keep one of them.")
    return next(iter(texts.values()), "")


# Calls of tools


def _calls(given: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """An assistant's calls, in OpenAI's form with arguments as a mapping."""
    calls = as_json(given.get("tool_calls"), f"{where}: tool_calls") or []
    if not isinstance(calls, list):
        raise BadRow(f"{where}: tool_calls is {named_kind(calls)}, but must be a list")
    if given.get("function_call"):
        calls = [*calls, {"function": as_json(given["function_call"], f"{where}: function_call")}]
    return [_call(call, f"{where}: call {number}") for number, call in enumerate(calls, 1)]


def _call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise BadRow(f"{where} is {named_kind(call)}, but must have a name and arguments")
    function = call.get("function", call)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise BadRow(f"{where} has no name", 'Write it as {"function": {"name": ..., "arguments": {...}}}.')
    other = next((key for key in ARGUMENTS if function.get(key)), None)
    arguments = function.get("arguments")
    if other and arguments is None:
        raise BadRow(f"{where} ({name}) has {other}, but no arguments", f"Rename {other} to arguments.")
    arguments = {} if arguments in (None, "") else as_json(arguments, f"{where} ({name}): arguments")
    if not isinstance(arguments, Mapping):
        raise BadRow(f"{where} ({name}): arguments is {named_kind(arguments)}, but must be an object")
    known = {"id": call["id"]} if call.get("id") is not None else {}
    return {**known, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def as_json(value: Any, what: str) -> Any:
    """A value, read if it is JSON text.

    Raises:
        BadRow: it is text that is no JSON, or that spells what no row may hold.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        read = json.loads(value)
        deep = nested_too_deeply(read)
    except RecursionError:
        deep = True
    except ValueError as error:
        raise BadRow(
            f"{what} is text that is no JSON ({error}): {value[:60]!r}", "Correct it, or delete the key."
        ) from None
    if deep:
        raise BadRow(f"{what} is JSON text nested over {MOST_NESTED} levels deep", "Flatten it, or delete the row.")
    if (half := half_character(read)) is not None:  # the check of the row cannot see it: JSON text escapes it
        raise BadRow(
            f"{what} is JSON text that holds half a character, the lone surrogate \\u{half:04x}",
            "Correct it: a text was cut in the middle of a character, or two texts were joined there.",
        )
    return read


def _called(text: Any, where: str) -> dict[str, Any]:
    """The turn that LlamaFactory's `function_call` is: a call or a list of them as JSON, after what was thought."""
    thought, tag, rest = as_text(text, where).rpartition("</think>")
    calls = as_json(rest, f"{where}: the call")
    calls = calls if isinstance(calls, list) else [calls]
    said = {"reasoning_content": thought.replace("<think>", "", 1).strip("\n")} if tag and thought else {}
    return {**said, "content": "", "tool_calls": calls}


# Contents in parts, as OpenAI and Anthropic have them


def _of_parts(given: Mapping[str, Any], role: str, where: str) -> list[Mapping[str, Any]]:
    """The turns that a list of parts is: results first, each a turn of a tool's, then what is left."""
    kinds = [part.get("type") if isinstance(part, Mapping) else None for part in given["content"]]
    if None in kinds or all(kind == "text" for kind in kinds):
        return [given]
    _check_order(kinds, where)
    parts = list(zip(kinds, given["content"], strict=True))
    turns: list[Mapping[str, Any]] = [_result(part, where) for kind, part in parts if kind == "tool_result"]
    thoughts = [as_text(part.get("thinking"), f"{where}: thinking") for kind, part in parts if kind == "thinking"]
    texts = [part for kind, part in parts if kind == "text"]
    calls = [
        {"id": part.get("id"), "function": {"name": part.get("name"), "arguments": part.get("input")}}
        for kind, part in parts
        if kind == "tool_use"
    ]
    if texts or thoughts or calls:
        rest = {**given, "content": as_text(texts, where) if texts else ""}
        rest |= {"reasoning_content": "\n".join(thoughts)} if thoughts else {}
        turns.append(rest | ({"tool_calls": calls} if calls else {}))
    return turns


_ORDER = {"user": ("tool_result", "text"), "assistant": ("thinking", "text", "tool_use")}
"""The parts of a turn that are read, in the order in which they must stand."""


def _check_order(kinds: Sequence[Any], where: str) -> None:
    """Raises BadRow for a part that is no text, and for an order that a turn of ours cannot keep."""
    order = next((kinds for role, kinds in _ORDER.items() if f"({role})" in where), ("text",))
    for kind in kinds:
        if kind not in order:
            raise BadRow(
                f"{where}: content has a part of type {kind!r}, but is read only of {', '.join(order)}",
                "Delete the part or the row, or leave such rows out by --on-bad-row skip.",
            )
    places = [order.index(kind) for kind in kinds]
    if places != sorted(places):
        raise BadRow(
            f"{where}: content has parts in the order {', '.join(map(str, kinds))}, which a chat template cannot keep",
            f"Split the turn, so that each has {', then '.join(order)}.",
        )


def _result(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    content = part.get("content")
    text = "" if content in (None, []) else as_text(content, f"{where}: tool_result")
    known = {"tool_call_id": part["tool_use_id"]} if part.get("tool_use_id") else {}
    return {"role": "tool", "content": text, **known}


# What stands beside the turns


def read_context(row: Mapping[str, Any]) -> Context:
    """Tools, documents and settings of the chat template.

    Raises:
        BadRow: they cannot be read.
    """
    tools = [*_list(row, "tools"), *_list(row, "functions")]
    settings = as_json(row.get("chat_template_kwargs"), "chat_template_kwargs") or {}
    if not isinstance(settings, Mapping):
        raise BadRow(f"chat_template_kwargs is {named_kind(settings)}, but must be an object")
    settings = {key: value for key, value in settings.items() if value is not None}
    taken = [key for key in settings if key in _OWN]
    if taken:
        raise BadRow(f"chat_template_kwargs has {', '.join(taken)}, which tov sets itself", "Delete it.")
    return Context(tuple(map(_tool, tools)), tuple(_list(row, "documents")), settings)


def _list(row: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = as_json(row.get(key), key) or []
    wanted = "must be a list of objects, or such a list as JSON text"
    if not isinstance(value, list | tuple):
        raise BadRow(f"{key} is {named_kind(value)}, but {wanted}")
    for number, entry in enumerate(value, 1):
        if not isinstance(entry, Mapping):
            raise BadRow(f"{key}: entry {number} is {named_kind(entry)}, but {key} {wanted}")
    return value


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool in OpenAI's form, which templates look for; Anthropic's and the bare ones of ShareGPT have a form of their own."""
    if "function" in tool or "name" not in tool:
        return dict(tool)
    function = {key: value for key, value in tool.items() if key not in ("input_schema", "type", "cache_control")}
    schema = {"parameters": tool["input_schema"]} if "input_schema" in tool else {}
    return {"type": "function", "function": {**function, **schema}}


def history(row: Mapping[str, Any]) -> Iterator[Message]:
    """Alpaca's turns before, pairs of question and answer; the answers are scored, as LlamaFactory does.

    Raises:
        BadRow: they are no pairs of texts.
    """
    pairs = as_json(row.get("history"), "history") or []
    if not isinstance(pairs, list):
        raise BadRow(f"history is {named_kind(pairs)}, but must be a list of pairs of question and answer")
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow(f"history, entry {number} is no pair of question and answer")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            yield {"role": role, "content": as_text(text, f"history, entry {number} ({role})")}
