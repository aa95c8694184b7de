"""Conversations: from a file's row to turns, of which the assistant's are scored. Must not know models, tokenizers or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tov.data.cells import BadRow, as_text, named_kind

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

    @property
    def content(self) -> list[Any]:
        """All that the model sees: roles, contents and tool calls, whatever file format they came in."""
        return [[message["role"], message["content"], *_calls(message)] for message in self.messages]

    @property
    def question(self) -> list[str]:
        """Everything before the last assistant turn; system turns count only where there is nothing else.

        Bare text stands for itself.
        """
        turns = [message for message in self.prompt if message["role"] not in ("system", "developer")] or self.messages
        return [str(message["content"]) for message in turns]

    @property
    def labels(self) -> set[str]:
        """None: what is predicted is text."""
        return set()


def _calls(message: Message) -> list[Any]:
    return [_settled(message["tool_calls"])] if message.get("tool_calls") else []


def _settled(value: Any) -> Any:
    """Without the nulls that Arrow adds and in one order of keys, which differ between file formats."""
    if isinstance(value, Mapping):
        return {key: _settled(value[key]) for key in sorted(value) if value[key] is not None}
    return [_settled(entry) for entry in value] if isinstance(value, list) else value


SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bot": "assistant", "bing": "assistant", "bard": "assistant", "system": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
ROLES = ("system", "developer", "user", "assistant", "tool")


def _message(message: Any, position: int) -> Message:
    if not isinstance(message, Mapping):
        raise BadRow(f"turn {position} is {named_kind(message)}, should have role and content")
    role = message.get("role")
    if role not in ROLES:
        raise BadRow(f"turn {position} has role {role!r}, allowed: {', '.join(ROLES)}")
    kept = {key: value for key, value in message.items() if value is not None}
    if "content" not in kept and kept.get("tool_calls"):
        return {**kept, "content": ""}
    return {**kept, "content": as_text(kept.get("content"), f"turn {position} ({role}): content")}


def _turns(messages: Any) -> tuple[Message, ...]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BadRow(f"the list of turns is {'empty' if messages == [] else named_kind(messages)}")
    turns = tuple(_message(message, position) for position, message in enumerate(messages, 1))
    # A trailing user turn has no answer to score and no effect on the answers before it.
    while turns and turns[-1]["role"] != "assistant":
        turns = turns[:-1]
    if not turns:
        raise BadRow("no assistant turn")
    return turns


def from_messages(row: Mapping[str, Any]) -> Conversation:
    """OpenAI's and TRL's `messages`."""
    return Conversation(_turns(row["messages"]))


def from_sharegpt(row: Mapping[str, Any]) -> Conversation:
    """`conversations` of ShareGPT: from/value, or role/content."""
    turns = row["conversations"]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise BadRow(f"conversations is {named_kind(turns)}, should be a list of turns")
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
    first = [{"role": "system", "content": as_text(system, "system")}] if system else []
    turns = (*first, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Conversation(turns)


def from_prompt_completion(row: Mapping[str, Any]) -> Conversation:
    """Two texts, or two lists of turns."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return Conversation(_turns([*prompt, *completion]))
    return _pair(as_text(prompt, "prompt"), as_text(completion, "completion"), row.get("system"))


def from_alpaca(row: Mapping[str, Any]) -> Conversation:
    """`instruction`, `input`, `output`."""
    prompt, extra = as_text(row["instruction"], "instruction"), row.get("input")
    if extra:
        prompt = f"{prompt}\n\n{as_text(extra, 'input')}"
    return _pair(prompt, as_text(row["output"], "output"), row.get("system"))


def from_text(row: Mapping[str, Any]) -> Conversation:
    """Bare text, every token of which is scored."""
    return Conversation(({"role": "assistant", "content": as_text(row["text"], "text")},), plain=True)
