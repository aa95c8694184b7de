"""Where in a rendered conversation a turn of an assistant's may stand: starts and ends, the surest first.

A turn starts where the generation prompt ends, if the template has one that the text goes on from, and is otherwise what
changes in the whole text when only that turn changes. It ends with the end-of-turn token. There is no search for the answer.
Whether a place holds what the turn says is not known here (`tov.text.spans`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from tov.errors import DataError
from tov.text.chat import NOTHING, Context, Form, Message, apply

T = TypeVar("T")
Span = tuple[int, int]
PROBE = "\ue000"
"""A private letter, which no text has."""


@dataclass(frozen=True)
class Talk:
    """A conversation under a template, in the form in which its turns are written, and its text."""

    tokenizer: Any
    messages: tuple[Message, ...]
    context: Context
    form: Form
    text: str = ""
    arounds: dict[int, tuple[str, str] | None] = field(init=False, default_factory=dict, repr=False, compare=False)
    """What `_around` has found; each of its answers takes two renderings, and is asked for again and again."""

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        return apply(self.tokenizer, messages, self.context, form=self.form, generation_prompt=generation_prompt)

    def with_turn(self, position: int, **changes: Any) -> str:
        """The text with one turn changed; a key that is set to None is taken away."""
        turn = {**self.messages[position], **changes}
        turn = {key: value for key, value in turn.items() if value is not None}
        return self.render([*self.messages[:position], turn, *self.messages[position + 1 :]])


def candidates(talk: Talk, position: int) -> Iterator[Span]:
    """Spans that a turn may have, the surest first."""
    start = _start(talk, position)
    if start is None:
        return
    bound = _bound(talk, position, start)
    tag = re.search(r"<think>\s*\Z", talk.text[:start])
    # A template may open the reasoning in its prompt, and this turn's words may themselves begin so.
    for begin in [start, *([tag.start()] if tag else [])]:
        for stop in _stops(talk, position, begin, bound):
            if begin < stop <= bound:
                yield begin, stop


def _start(talk: Talk, position: int) -> int | None:
    """Where the generation prompt ends, as far as the text goes on from it; else where the turn's words begin."""
    text, before = talk.text, talk.messages[:position]
    bare = _or_empty(talk, before)
    prompted = _or_empty(talk, before, generation_prompt=True)
    usual = _of_template(_usual_prompt, talk)
    if text.startswith(prompted) and prompted != bare:
        return len(prompted)  # what follows it (a reasoning block) the model writes itself
    if text.startswith(bare) and prompted == bare and usual and position:
        return len(bare) + (len(usual) if text.startswith(usual, len(bare)) else 0)  # an answer that goes on at once
    around = _around(talk, position)
    if around is None:
        return None
    head = around[0]
    shared = _common_prefix(prompted, head)
    if prompted != bare and text.startswith(shared) and len(shared) > len(_common_prefix(bare, head)):
        return len(shared)
    if head.endswith("<think>") and "<think>" not in talk.tokenizer.chat_template:
        head = head.removesuffix("<think>")  # of the turn itself
    if not text.startswith(head):
        return None
    prompt_end = head.rfind(usual) + len(usual)
    if usual.strip() and usual in head and prompt_end > _words_end(talk, position - 1):
        return prompt_end
    between = text[len(bare) : len(head)] if position and text.startswith(bare) else head
    # White space alone is part of the first word.
    return len(head) if between.strip() else len(head) - len(between)


def _of_template(ask: Callable[[Talk], T], talk: Talk) -> T:
    """What a question that no turn of the talk has a part in comes to: asked once a template, not once a row."""
    if talk.context != NOTHING:
        return ask(talk)
    answer: T = _known(ask, talk.tokenizer, talk.tokenizer.chat_template, talk.form)
    return answer


@lru_cache(maxsize=64)
def _known(ask: Callable[[Talk], Any], tokenizer: Any, template: str, form: Form) -> Any:
    return ask(Talk(tokenizer, (), NOTHING, form))


def _usual_prompt(talk: Talk) -> str:
    """What the template writes for an answer to come after a question; nothing where it knows of no such prompt."""
    question = [{"role": "user", "content": "q"}]
    bare = _or_empty(talk, question)
    prompted = _or_empty(talk, question, generation_prompt=True)
    return prompted[len(_common_prefix(bare, prompted)) :]


def _words_end(talk: Talk, position: int) -> int:
    """Where a turn's words end in the text; its end where that cannot be told."""
    if position < 0:
        return 0
    around = _around(talk, position)
    return len(talk.text) - len(around[1]) if around and talk.text.endswith(around[1]) else len(talk.text)


def _or_empty(talk: Talk, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
    """The text of the first turns, or none where the template takes no such beginning."""
    try:
        return talk.render(messages, generation_prompt=generation_prompt) if messages else ""
    except DataError:
        return ""


def _around(talk: Talk, position: int) -> tuple[str, str] | None:
    """What stands before and behind a turn's words: what two texts have in common where it says another word only.

    Calls are taken away, for they have a form that words may not replace; None where the template takes no such turns.
    """
    if position not in talk.arounds:
        talk.arounds[position] = _rendered_around(talk, position)
    return talk.arounds[position]


def _rendered_around(talk: Talk, position: int) -> tuple[str, str] | None:
    message = talk.messages[position]
    changes: dict[str, Any] = {"tool_calls": None} if message.get("tool_calls") else {}
    try:
        one, two = (talk.with_turn(position, **changes, **_said(message, mark)) for mark in "xy")
    except DataError:
        return None
    if one == two:
        return None
    head = _common_prefix(one, two)
    tail = _common_prefix(one[len(head) :][::-1], two[len(head) :][::-1])[::-1]
    return head, tail


def _said(message: Message, mark: str) -> dict[str, str]:
    """A turn's words and thoughts, each replaced by a mark; tags that a template looks for stay."""
    before, opened, _ = message["content"].partition("<think>")
    words = mark
    if "</think>" in message["content"]:
        words = f"{mark if before.strip() else ''}{opened}{mark}</think>{mark}"
    return {"content": words} | ({"reasoning_content": mark} if message.get("reasoning_content") else {})


def _stops(talk: Talk, position: int, start: int, bound: int) -> Iterator[int]:
    """Where a turn may end, the surest first: what follows another word also follows it; what its own text ends with when the
    talk ends there; a special token before the next turn."""
    text, special = talk.text, _special(talk.tokenizer)
    around = _around(talk, position)
    if around is not None and text.endswith(around[1]):
        yield _closed(talk, len(text) - len(around[1]), bound)
    through = _common_prefix(_or_empty(talk, talk.messages[: position + 1]), text)
    ends = [found.end() for found in special.finditer(text, start, len(through))]
    yield from ends[-1:]
    if text[: len(through)].startswith(text[:start]):
        yield len(through.rstrip())
    yield from (found.end() for found in special.finditer(text, start, bound))


def _closed(talk: Talk, stop: int, bound: int) -> int:
    """With the end-of-turn token: what a model must write too. A token that only opens the next turn is none."""
    closing = _special(talk.tokenizer, space=True).match(talk.text, stop)
    if closing is None or closing.end() > bound:
        return stop
    return closing.end() if len(talk.text) == closing.end() or _of_template(_closes_turns, talk) else stop


def _closes_turns(talk: Talk) -> bool:
    """Whether a special token follows the last turn of a talk, so that one behind an earlier turn is the turn's own."""
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": PROBE}]
    try:
        text = talk.render(messages)
    except DataError:
        return True
    return PROBE not in text or bool(_special(talk.tokenizer, space=True).match(text, text.rfind(PROBE) + 1))


def _bound(talk: Talk, position: int, start: int) -> int:
    """Where the words of a turn behind this one begin, which no span may reach; the end of the text where none can be told."""
    for following in range(position + 1, len(talk.messages)):
        around = _around(talk, following) if talk.messages[following]["content"].strip() else None
        if around is not None and talk.text.startswith(around[0]) and len(around[0]) > start:
            return len(around[0])
    return len(talk.text)


@lru_cache(maxsize=8)
def _special(tokenizer: Any, *, space: bool = False) -> re.Pattern[str]:
    """A special token, after white space if so asked."""
    special = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    one = "|".join(sorted(special, key=len, reverse=True))
    before = r"\s*" if space else ""
    return re.compile(rf"{before}(?:{one})" if special else r"(?!)")


def _common_prefix(one: str, two: str) -> str:
    """By halves: comparing slices takes a thousandth of what comparing letters one by one does."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle - 1
    return one[:low]
