"""Whether a text shows what a turn says, and what of a row it shows nothing of. Knows turns, not templates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tov.text.chat import Context, Message

EARLIER_REASONING = "reasoning of earlier turns"
UNSCORED = "parts of unscored turns"
KINDS = (
    "tools", "documents", "chat_template_kwargs", "system turns", "developer turns", "user turns", "tool results",
    EARLIER_REASONING, UNSCORED,
)  # fmt: skip
"""What a template may leave out of a row without a word, none of it scored; `Encoded.left_out` has a bit for each."""
_ROLES = {"system": "system turns", "developer": "developer turns", "user": "user turns", "tool": "tool results"}
OF_TURNS = frozenset({*_ROLES.values(), UNSCORED})
"""Those that may be shown where turns are written in another form."""
_CONTEXT = {"tools": "tools", "documents": "documents", "settings": "chat_template_kwargs"}


@dataclass(frozen=True)
class Lack:
    """Something that a turn says and a text does not show.

    Attributes:
        kind: content, reasoning or call.
        what: in words.
        key: of the turn.
    """

    kind: str
    what: str
    key: str


def lacks(text: str, message: Message) -> list[Lack]:
    """What a turn says and the text does not show: its reasoning, its words, its calls' names and arguments."""
    thought, content = _thought_and_words(text, message)
    names = [str(call["function"]["name"]) for call in message.get("tool_calls", ())]
    found: list[Lack] = []
    said = [content, *names]
    if thought.strip():
        if _shown(text, thought, [thought, *said]):
            said.append(thought)
        else:
            key = "reasoning_content" if message.get("reasoning_content") else "content (between <think> and </think>)"
            found.append(Lack("reasoning", "its reasoning", key))
    if not _shown(text, content, said):
        found.append(Lack("content", "its text", "content"))
    for call in message.get("tool_calls", ()):
        found.extend(_lacks_call(text, call["function"], said))
    return found


def _thought_and_words(text: str, message: Message) -> tuple[str, str]:
    """An assistant's reasoning and the rest; tags in the content part them where the text has not the content whole."""
    content, thought = str(message["content"]), str(message.get("reasoning_content") or "")
    if thought or "</think>" not in content or _count(text, content):
        return thought, content
    before, _, after = content.rpartition("</think>")
    return before.rpartition("<think>")[2], after


def _lacks_call(text: str, function: Mapping[str, Any], said: Sequence[str]) -> Iterator[Lack]:
    name, arguments = str(function["name"]), function["arguments"]
    if not _shown(text, name, said):
        yield Lack("call", f"its call of {name}", "tool_calls")
        return
    for key, value in arguments.items():
        if not _count(text, key) or not all(_count(text, leaf) for leaf in _leaves(value)):
            yield Lack("call", f"argument {key} of its call of {name}", "tool_calls")
    for mapping in _mappings(arguments):
        as_json = {json.dumps(mapping, ensure_ascii=escaped) for escaped in (True, False)}
        if str(mapping) in text and not any(way in text for way in as_json):
            yield Lack("call", f"the arguments of its call of {name} as JSON (it has Python's {mapping})", "tool_calls")


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """All mappings in an argument that have entries."""
    if isinstance(value, Mapping):
        yield from [value] if value else []
        for entry in value.values():
            yield from _mappings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _mappings(entry)


def _leaves(value: Any) -> Iterator[Any]:
    """All keys and plain values in an argument."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield key
            yield from _leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value


def _shown(text: str, piece: str, said: Sequence[str]) -> bool:
    """Whether a text has a piece, as often as all that is said has it."""
    piece = piece.strip()
    return not piece or _count(text, piece) >= sum(other.count(piece) for other in said)


def _count(text: str, value: Any) -> int:
    """How often a value stands in a text, as text, JSON or Python has it."""
    if not isinstance(value, str):
        return max(text.count(json.dumps(value)), text.count(str(value)))
    value = value.strip()
    python = value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    ways = {value, python, *(json.dumps(value, ensure_ascii=escaped)[1:-1] for escaped in (True, False))}
    return max(text.count(way) for way in ways) if value else 1


def left_out_beside(messages: Sequence[Message], context: Context, text: str, changed: Mapping[str, bool]) -> set[str]:
    """Kinds of what a text shows nothing of, beside the assistant's turns.

    Args:
        messages: the turns.
        context: what the template was given beside them.
        text: what it made of them.
        changed: of `tools`, `documents` and `settings`, whether the text would be another without.
    """
    turns = {
        _ROLES[message["role"]]
        for message in messages
        if message["role"] in _ROLES and not _count(text, message["content"])
    }
    return turns | {kind for name, kind in _CONTEXT.items() if getattr(context, name) and not changed[name]}
