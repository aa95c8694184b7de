"""From a file's row to a conversation. Knows column layouts; must not know models, tokenizers or files.

A layout is a row of one table: the columns that it needs and a function from a row to a `Conversation`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tov.errors import kind_of

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """What the model sees of a row: turns, of which the assistant's are scored.

    `plain` marks bare text (one assistant turn, no chat template, every token scored).
    """

    messages: tuple[Message, ...]
    plain: bool = False

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last assistant turn."""
        return self.messages[:-1]

    @property
    def has_answer(self) -> bool:
        """Whether any assistant turn says or calls anything."""
        turns = (message for message in self.messages if message["role"] == "assistant")
        return any(turn["content"].strip() or turn.get("tool_calls") for turn in turns)

    @property
    def answer(self) -> str:
        """The last assistant turn."""
        return str(self.messages[-1].get("content") or "")


class BadRow(ValueError):
    """A row that is no conversation; the text says why."""


@dataclass(frozen=True)
class Layout:
    """A column layout."""

    name: str
    columns: tuple[str, ...]
    convert: Callable[[Mapping[str, Any]], Conversation]


SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bot": "assistant", "bing": "assistant", "bard": "assistant", "system": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
ROLES = ("system", "developer", "user", "assistant", "tool")


def _text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value)
    raise BadRow(f"{what} is {_kind(value)}, should be text")


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _kind(value: Any) -> str:
    return "missing" if value is None else kind_of(value)


def _message(message: Any, position: int) -> Message:
    if not isinstance(message, Mapping):
        raise BadRow(f"turn {position} is {_kind(message)}, should have role and content")
    role = message.get("role")
    if role not in ROLES:
        raise BadRow(f"turn {position} has role {role!r}, allowed: {', '.join(ROLES)}")
    kept = {key: value for key, value in message.items() if value is not None}
    if "content" not in kept and kept.get("tool_calls"):
        return {**kept, "content": ""}
    return {**kept, "content": _text(kept.get("content"), f"turn {position} ({role}): content")}


def _turns(messages: Any) -> tuple[Message, ...]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BadRow(f"the list of turns is {'empty' if messages == [] else _kind(messages)}")
    turns = tuple(_message(message, position) for position, message in enumerate(messages, 1))
    # A trailing user turn has no answer to score and no effect on the answers before it.
    while turns and turns[-1]["role"] != "assistant":
        turns = turns[:-1]
    if not turns:
        raise BadRow("no assistant turn")
    return turns


def _from_messages(row: Mapping[str, Any]) -> Conversation:
    return Conversation(_turns(row["messages"]))


def _from_sharegpt(row: Mapping[str, Any]) -> Conversation:
    turns = row["conversations"]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise BadRow(f"conversations is {_kind(turns)}, should be a list of turns")
    messages: list[Any] = []
    if row.get("system"):
        messages.append({"role": "system", "content": row["system"]})
    for position, turn in enumerate(turns, 1):
        if isinstance(turn, Mapping) and turn.get("from") is not None:
            role = SHAREGPT_ROLES.get(str(turn["from"]))
            if role is None:
                raise BadRow(f"turn {position} is from {turn['from']!r}, allowed: {', '.join(SHAREGPT_ROLES)}")
            turn = {"role": role, "content": turn.get("value")}
        messages.append(turn)
    return Conversation(_turns(messages))


def _pair(prompt: str, answer: str, system: Any = None) -> Conversation:
    first = [{"role": "system", "content": _text(system, "system")}] if system else []
    turns = (*first, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Conversation(turns)


def _from_prompt_completion(row: Mapping[str, Any]) -> Conversation:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return Conversation(_turns([*prompt, *completion]))
    return _pair(_text(prompt, "prompt"), _text(completion, "completion"), row.get("system"))


def _from_alpaca(row: Mapping[str, Any]) -> Conversation:
    prompt, extra = _text(row["instruction"], "instruction"), row.get("input")
    if extra:
        prompt = f"{prompt}\n\n{_text(extra, 'input')}"
    return _pair(prompt, _text(row["output"], "output"), row.get("system"))


def _from_text(row: Mapping[str, Any]) -> Conversation:
    return Conversation(({"role": "assistant", "content": _text(row["text"], "text")},), plain=True)


LAYOUTS: tuple[Layout, ...] = (
    Layout("messages", ("messages",), _from_messages),
    Layout("sharegpt", ("conversations",), _from_sharegpt),
    Layout("prompt+completion", ("prompt", "completion"), _from_prompt_completion),
    Layout("alpaca", ("instruction", "output"), _from_alpaca),
    Layout("text", ("text",), _from_text),
)
"""Tried in this order: the first whose columns are all there is taken."""


def layout_of(columns: Sequence[str]) -> Layout | None:
    """The layout of a file with these columns, or None."""
    return next((layout for layout in LAYOUTS if set(layout.columns) <= set(columns)), None)


def _hash(value: Any) -> int:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def content_hash(row: Conversation) -> int:
    """64-bit hash of the roles, contents and tool calls: equal for equal conversations, whatever file format they came in."""
    return _hash([[message["role"], message["content"], *_calls(message)] for message in row.messages])


def _calls(message: Message) -> list[Any]:
    return [_settled(message["tool_calls"])] if message.get("tool_calls") else []


def _settled(value: Any) -> Any:
    """Without the nulls that Arrow adds and in one order of keys, which differ between file formats."""
    if isinstance(value, Mapping):
        return {key: _settled(value[key]) for key in sorted(value) if value[key] is not None}
    return [_settled(entry) for entry in value] if isinstance(value, list) else value


def prompt_hash(row: Conversation) -> int:
    """64-bit hash of everything before the last assistant turn, ignoring case and white space.

    System turns count only where there is nothing else; bare text stands for itself.
    """
    turns = [message for message in row.prompt if message["role"] not in ("system", "developer")] or row.messages
    return _hash([" ".join(str(message["content"]).lower().split()) for message in turns])
