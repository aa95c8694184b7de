"""What a chat template is given, and the text that it makes: turns, tools, documents and the template's own settings.

Which parts of that text are scored is `tov.text.spans`'s. Must not know rows, tokens or scores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tov.errors import DataError, ModelError
from tov.text.limit import TooLong, limited

MOST_SECONDS = 20.0
"""That a template may take for a row; real ones take a thousandth of it."""
Message = dict[str, Any]
"""A turn: `role`, `content` and, of an assistant, maybe `reasoning_content` and `tool_calls`."""
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% if tools %}### Tools:\n{{ tools | tojson }}\n\n{% endif %}"
    "{% if documents %}### Documents:\n{{ documents | tojson }}\n\n{% endif %}"
    "{% for message in messages %}"
    "### {{ message['role'] | capitalize }}:\n"
    "{% if message['reasoning_content'] %}{{ '<think>\n' + message['reasoning_content'] + '\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\n' if message['content'] or not loop.first else '' }}"
    "{{ '<tool_call>\n' + (call['function'] | tojson) + '\n</tool_call>' }}"
    "{% endfor %}"
    "{{ (eos_token or '') if message['role'] == 'assistant' else '' }}{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""The format for base models, which have no chat template: `### User:`, the turn, `### Assistant:`, the turn, EOS."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys under which templates look for an assistant's reasoning; ours is the first."""


@dataclass(frozen=True)
class Context:
    """What a template is given beside the turns.

    Attributes:
        tools: functions that may be called, in OpenAI's form.
        documents: texts to answer from.
        settings: the template's own, such as `enable_thinking`.
    """

    tools: tuple[Any, ...] = ()
    documents: tuple[Any, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


NOTHING = Context()
"""The context of most rows."""


@dataclass(frozen=True)
class Form:
    """How turns are written for a template: what one takes for granted, another refuses.

    Attributes:
        parts: contents are lists of text parts, as templates of models that see pictures have them.
        strings: arguments of a call are JSON texts, for templates that join texts.
        none: a turn that only calls has no content, rather than an empty one.
    """

    parts: bool = False
    strings: bool = False
    none: bool = False


PLAINEST = Form()
"""The form that most templates take."""
FORMS = tuple(
    Form(parts, strings, none) for parts in (False, True) for none in (False, True) for strings in (False, True)
)
"""In the order in which they are tried; without calls the last two differ in nothing."""

_WITH_NONE = (
    "{% set all = namespace(turns=[]) %}"
    "{% for turn in messages %}"
    "{% set all.turns = all.turns + [turn if 'content' in turn else dict(turn, content=none)] %}"
    "{% endfor %}"
    "{% set messages = all.turns %}{{ '' }}"
)
"""Before a template: a turn without content has content none, which transformers takes away and some templates ask for."""


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
    """Whether a turn is an assistant's that says, thinks or calls anything."""
    said = str(message["content"]).strip() or str(message.get("reasoning_content") or "").strip()
    return message["role"] == "assistant" and bool(said or message.get("tool_calls"))


def forms_for(messages: Sequence[Message]) -> tuple[Form, ...]:
    """The ways to write these turns that differ."""
    if any(message.get("tool_calls") for message in messages):
        return FORMS
    return tuple(form for form in FORMS if not (form.strings or form.none))


class RefusedTurns(DataError):
    """The template does not take these turns, in the form in which they were written."""


def apply(
    tokenizer: Any,
    messages: Sequence[Message],
    context: Context = NOTHING,
    *,
    form: Form = PLAINEST,
    template: str | None = None,
    generation_prompt: bool = False,
) -> str:
    """The template's text for these turns.

    Args:
        tokenizer: as `prepare` returned it.
        messages: the turns.
        context: what the template is given beside them.
        form: how they are written.
        template: another than the tokenizer's own.
        generation_prompt: whether the header of an answer to come follows.

    Raises:
        RefusedTurns: the template refuses them, or shows parts as Python or JSON has them.
        ModelError: the template has not ended after `MOST_SECONDS`.
    """
    extra: dict[str, Any] = dict(context.settings)
    extra |= {"tools": list(context.tools)} if context.tools else {}
    extra |= {"documents": list(context.documents)} if context.documents else {}
    if form.none:
        template = _WITH_NONE + (template or tokenizer.chat_template)
    extra |= {"chat_template": template} if template else {}
    written = [write(tokenizer, message, form) for message in messages]

    def render() -> str:
        return str(
            tokenizer.apply_chat_template(written, tokenize=False, add_generation_prompt=generation_prompt, **extra)
        )

    try:
        text = limited(render, MOST_SECONDS)
    except TooLong:
        raise ModelError(
            f"The model's chat template has not ended after {MOST_SECONDS:g} s, for a row with {len(messages)} turns"
            f"{begins(messages)}: it has a loop that never ends.",
            allowed=f"templates that take less than {MOST_SECONDS:g} s a row",
            fix="Correct the loop in the tokenizer's chat template, or use another model.",
        ) from None
    except Exception as error:  # Jinja templates raise what they like
        raise _refused(messages, str(error)) from error
    if form.parts and any(mark in text and not any(mark in turn["content"] for turn in messages) for mark in _RAW_PART):
        raise _refused(messages, "it takes no contents in parts")
    return text


_RAW_PART = ("'type': 'text'", '"type": "text"')


def _refused(messages: Sequence[Message], why: str) -> RefusedTurns:
    roles = ", ".join(str(message["role"]) for message in messages)
    error = DataError(
        f"The model's chat template refuses a row with turns {roles}{begins(messages)}: {why}",
        fix="Reorder or merge the turns, or use a model whose template takes them.",
    )
    return RefusedTurns(error.problem, fix=error.fix)


def write(tokenizer: Any, message: Message, form: Form) -> Message:
    """A turn as the template wants it: reasoning under the key that it reads, calls and content in a form."""
    written = dict(message)
    if "reasoning_content" in message:
        written[_reasoning_key(str(tokenizer.chat_template))] = written.pop("reasoning_content")
    if form.strings and message.get("tool_calls"):
        written["tool_calls"] = [_with_text_arguments(call) for call in message["tool_calls"]]
    if form.none and message.get("tool_calls") and not message["content"].strip():
        del written["content"]
    elif form.parts:
        written["content"] = [{"type": "text", "text": message["content"]}]
    return written


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _reasoning_key(template: str) -> str:
    """The first of `REASONING` that the template reads of a turn."""
    for key in REASONING:
        if re.search(rf"""\.{key}\b|\[\s*['"]{key}['"]|\(\s*['"]{key}['"]|['"]{key}['"] in """, template):
            return key
    return REASONING[0]


def begins(messages: Sequence[Message]) -> str:
    """By what a user finds a row: how its first question begins."""
    text = next((str(message["content"]) for message in messages if message["role"] == "user"), "")
    text = " ".join(text.split())
    return f" (its question begins {text[:60]!r})" if text else ""
