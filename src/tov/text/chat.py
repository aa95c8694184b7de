"""From a conversation to text and the spans of it that the assistant wrote. Works for any chat template.

Three ways, in this order, and never a substring search nor a silent all-ones mask:
1. the template's own generation mask, where it marks `{% generation %}` (done in `tov.text.encode`);
2. incremental prefix rendering: what the template adds when an assistant turn is added is that turn's span;
3. where a template rewrites earlier turns (drops their reasoning, say), the turn is compared at its exact place.
Anything else is an error that shows the rendered text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tov.data.rows import Conversation, Message
from tov.errors import DataError

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


def render(tokenizer: Any, row: Conversation) -> Rendered:
    """A row's text and assistant spans.

    Raises:
        DataError: the template refuses the row, or the spans cannot be told; the rendered text is shown.
    """
    if row.plain:
        text = (tokenizer.bos_token or "") + row.answer + (tokenizer.eos_token or "")
        return Rendered(text, ((len(tokenizer.bos_token or ""), len(text)),) if row.answer.strip() else ())
    full = apply(tokenizer, row.messages)
    spans = []
    for position, message in enumerate(row.messages):
        if message["role"] == "assistant" and (message["content"].strip() or message.get("tool_calls")):
            spans.append(_span(tokenizer, row.messages, position, full))
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
            f"the model's chat template refuses a row with turns {roles}: {error}",
            fix="reorder or merge the turns, or use a model whose template takes them",
        ) from error


def _span(tokenizer: Any, messages: Sequence[Message], position: int, full: str) -> tuple[int, int]:
    before = apply(tokenizer, messages[:position], generation_prompt=True) if position else ""
    if not full.startswith(before):
        # Some templates open the answer (an empty reasoning block, say) only when they prompt for one.
        before = _opening(tokenizer, messages, position, before, full)
    if position == len(messages) - 1:
        return len(before), len(full)
    through = apply(tokenizer, messages[: position + 1])
    if full.startswith(through) and len(through) > len(before):
        return len(before), len(through)
    content, closing = str(messages[position]["content"]), _closing(tokenizer, messages, position)
    for shown in (content, content.strip()):
        if full.startswith(shown + closing, len(before)):
            return len(before), len(before) + len(shown + closing)
    raise _cannot_tell(full, position)


def _opening(tokenizer: Any, messages: Sequence[Message], position: int, prompted: str, full: str) -> str:
    """The text up to the assistant's turn, when the generation prompt is not how the template opens a past turn."""
    bare = apply(tokenizer, messages[:position])
    header = prompted[len(bare) :] if prompted.startswith(bare) else ""
    common = _common_prefix(header, full[len(bare) :]) if full.startswith(bare) else ""
    if not common.strip():
        raise _cannot_tell(full, position)
    return bare + common


def _closing(tokenizer: Any, messages: Sequence[Message], position: int) -> str:
    """What the template writes after an assistant's content: the common end of two renderings that differ in it."""
    one, two = (
        apply(tokenizer, [*messages[:position], {**messages[position], "content": content}]) for content in ("x", "y")
    )
    return _common_prefix(one[::-1], two[::-1])[::-1]


def _common_prefix(one: str, two: str) -> str:
    length = next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return one[:length]


def _cannot_tell(full: str, position: int) -> DataError:
    return DataError(
        f"cannot tell which part of the rendered text is assistant turn {position + 1}:\n{full[:2000]}",
        fix="add {% generation %} ... {% endgeneration %} around the assistant's text in the tokenizer's chat template",
    )
