"""From turns to text and the spans of it that the assistant wrote. Works for any chat template.

Three ways, in this order, and never a substring search nor a silent all-ones mask:
1. the template's own generation mask, where it marks `{% generation %}` (done in `tov.text.masks`);
2. incremental rendering: a turn's span starts where the generation prompt ends, if the template has one, and is otherwise what
   changes in the whole rendering when only that turn's content changes; it ends with the end-of-turn token.
Anything else is an error that shows the rendered text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tov.errors import DataError, ModelError

Message = dict[str, Any]
"""A turn: `role`, `content` and, of an assistant, maybe `tool_calls`."""
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "### {{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{{ (eos_token or '') if message['role'] == 'assistant' else '' }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""The format for base models, which have no chat template: `### User:`, the turn, `### Assistant:`, the turn, EOS."""


@dataclass(frozen=True)
class Rendered:
    """A row as text.

    Attributes:
        text: what the tokenizer gets (special tokens included).
        spans: character ranges that are scored.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


def has_generation_mask(tokenizer: Any) -> bool:
    """Whether the template marks the assistant's text itself."""
    template = tokenizer.chat_template
    return isinstance(template, str) and "{% generation" in template.replace("{%-", "{%")


def prepare(tokenizer: Any) -> Any:
    """Gives a tokenizer without a chat template the plain format; returns the tokenizer.

    Raises:
        ModelError: it has several templates and no default one.
    """
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    elif isinstance(tokenizer.chat_template, dict) and "default" in tokenizer.chat_template:
        tokenizer.chat_template = tokenizer.chat_template["default"]
    elif not isinstance(tokenizer.chat_template, str):
        raise ModelError(
            "The tokenizer has several chat templates and no default one.",
            fix="Set tokenizer.chat_template to one of them.",
        )
    return tokenizer


def is_answer(message: Message) -> bool:
    """Whether a turn is an assistant's that says or calls anything."""
    return message["role"] == "assistant" and bool(message["content"].strip() or message.get("tool_calls"))


def render_bare(tokenizer: Any, text: str) -> Rendered:
    """A text without a chat template, between BOS and EOS; all of it is scored."""
    whole, start = (tokenizer.bos_token or "") + text + (tokenizer.eos_token or ""), len(tokenizer.bos_token or "")
    return Rendered(whole, ((start, len(whole)),) if text.strip() else ())


def render(tokenizer: Any, messages: Sequence[Message]) -> Rendered:
    """The text of a conversation's turns, and the assistant's spans.

    Raises:
        DataError: the template refuses the turns, or the spans cannot be told; the rendered text is shown.
    """
    full = apply(tokenizer, messages)
    spans = [
        _span(tokenizer, messages, position, full) for position, message in enumerate(messages) if is_answer(message)
    ]
    if any(before[1] > after[0] for before, after in itertools.pairwise(spans)):
        raise _cannot_tell(full, 0)
    return Rendered(full, tuple(spans))


def apply(tokenizer: Any, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
    """The template's text for these turns."""
    try:
        return str(
            tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation_prompt)
        )
    except Exception as error:  # Jinja templates raise what they like
        roles = ", ".join(str(message["role"]) for message in messages)
        raise DataError(
            f"The model's chat template refuses a row with turns {roles}: {error}",
            fix="Reorder or merge the turns, or use a model whose template takes them.",
        ) from error


def _span(tokenizer: Any, messages: Sequence[Message], position: int, full: str) -> tuple[int, int]:
    """What changes in the whole rendering when only this turn's content changes, with its end-of-turn token."""
    if messages[position].get("tool_calls"):
        return _added(tokenizer, messages, position, full)
    head, tail = _around(tokenizer, messages, position, full)
    bare = apply(tokenizer, messages[:position]) if position else ""
    prompted = apply(tokenizer, messages[:position], generation_prompt=True) if position else ""
    stop = len(full) - len(tail)
    if prompted != bare and full.startswith(prompted):
        start = len(
            prompted
        )  # what stands between the prompt and the content (a reasoning block) the model writes itself
    elif full.startswith(head):
        between = full[len(bare) : len(head)] if position and full.startswith(bare) else head
        start = (
            len(head) if between.strip() else len(head) - len(between)
        )  # white space alone is part of the first word
    else:
        raise _cannot_tell(full, position)
    if start > stop or not full.endswith(tail):
        raise _cannot_tell(full, position)
    closing = _end_of_turn(tokenizer).match(full, stop)
    return start, closing.end() if closing else stop


def _around(tokenizer: Any, messages: Sequence[Message], position: int, full: str) -> tuple[str, str]:
    """What the template writes before and after a turn's content: what two renderings that differ in it have in common."""
    one, two = (
        apply(tokenizer, [*messages[:position], {**messages[position], "content": mark}, *messages[position + 1 :]])
        for mark in "xy"
    )
    if one == two:
        raise _cannot_tell(full, position)
    head = _common_prefix(one, two)
    tail = _common_prefix(one[len(head) :][::-1], two[len(head) :][::-1])[::-1]
    return head, tail


def _end_of_turn(tokenizer: Any) -> re.Pattern[str]:
    """The first special token after the content: that the model must write too, what follows it no model generates."""
    special = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return re.compile(rf"\s*(?:{'|'.join(sorted(special, key=len, reverse=True))})" if special else r"(?!)")


def _added(tokenizer: Any, messages: Sequence[Message], position: int, full: str) -> tuple[int, int]:
    """All that the template adds with a turn: for tool calls, which stand elsewhere than in the content."""
    before = apply(tokenizer, messages[:position], generation_prompt=True) if position else ""
    through = apply(tokenizer, messages[: position + 1])
    if full.startswith(before) and full.startswith(through) and len(through) > len(before):
        return len(before), len(through)
    raise _cannot_tell(full, position)


def _common_prefix(one: str, two: str) -> str:
    length = next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return one[:length]


def _cannot_tell(full: str, position: int) -> DataError:
    return DataError(
        f"tov cannot tell which part of the rendered text is assistant turn {position + 1}:\n{full[:2000]}",
        fix="Add {% generation %} and {% endgeneration %} around the assistant's text in the tokenizer's chat template.",
    )
