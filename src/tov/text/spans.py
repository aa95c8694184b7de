"""From turns to text and the spans of it that are scored: an assistant's words, thoughts and calls, and the end of its turn.

A span is never found by a search for the answer. It starts where the generation prompt ends, if the template has one that the
text goes on from, and is otherwise what changes in the whole text when only that turn changes. It ends with the end-of-turn
token, and nothing behind that is scored. Of a template that marks `{% generation %}`, what it marks is scored up to there.

Whatever way it was found: what the turn says must stand in it (`tov.text.shown`), or the row is refused.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tov.errors import DataError
from tov.text.chat import NOTHING, Context, Form, Message, apply, begins, forms_for, is_answer
from tov.text.shown import Lack, lacks, left_out_beside

Span = tuple[int, int]
_OPEN, _CLOSE = "\ue000", "\ue001"
"""Stand for {% generation %} and {% endgeneration %}; private letters that no text has."""


@dataclass(frozen=True)
class Rendered:
    """A row as text.

    Attributes:
        text: what the tokenizer gets (special tokens included).
        spans: character ranges that are scored.
        left_out: kinds of what the row has and the text has not, none of it scored.
    """

    text: str
    spans: tuple[Span, ...]
    left_out: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Talk:
    """A conversation under a template, in the form in which its turns are written, and its text."""

    tokenizer: Any
    messages: tuple[Message, ...]
    context: Context
    form: Form
    text: str = ""

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        return apply(self.tokenizer, messages, self.context, form=self.form, generation_prompt=generation_prompt)

    def with_turn(self, position: int, **changes: Any) -> str:
        """The text with one turn changed; a key that is set to None is taken away."""
        turn = {**self.messages[position], **changes}
        turn = {key: value for key, value in turn.items() if value is not None}
        return self.render([*self.messages[:position], turn, *self.messages[position + 1 :]])


def render_bare(tokenizer: Any, text: str) -> Rendered:
    """A text without a chat template, between BOS and EOS; all of it is scored."""
    whole, start = (tokenizer.bos_token or "") + text + (tokenizer.eos_token or ""), len(tokenizer.bos_token or "")
    return Rendered(whole, ((start, len(whole)),) if text.strip() else ())


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    context: Context = NOTHING,
    *,
    unscored: frozenset[int] = frozenset(),
) -> Rendered:
    """The text of a conversation, and what of it is scored.

    Args:
        tokenizer: as `tov.text.chat.prepare` returned it.
        messages: the turns.
        context: what the template is given beside them.
        unscored: places of the assistant's turns that are seen but not scored.

    Raises:
        DataError: the template refuses the turns, leaves out what is to be scored, or the spans cannot be told; the rendered
            text is shown.
    """
    errors: list[DataError] = []
    for form in forms_for(messages):
        try:
            return _rendered(_Talk(tokenizer, tuple(messages), context, form), unscored)
        except DataError as error:
            errors.append(error)
    # That the template takes one form, and leaves something out, says more than that it refuses another.
    left_out = [error for error in errors if isinstance(error, _LeftOut)]
    raise min(left_out, key=lambda error: error.count) if left_out else errors[0]


def _rendered(talk: _Talk, unscored: frozenset[int]) -> Rendered:
    talk = replace(talk, text=talk.render(talk.messages))
    left_out = left_out_beside(talk.messages, talk.context, talk.text, _without(talk))
    places = [at for at, message in enumerate(talk.messages) if is_answer(message) and at not in unscored]
    found = [_located(talk, at) for at in places]
    spans = [span for span, _ in found]
    if any(before[1] > after[0] for before, after in itertools.pairwise(spans)):
        raise _cannot_tell(talk, places[0])
    if has_generation_mask(talk.tokenizer) and places:
        spans = _as_marked(talk, places, spans)
    if any(lack.kind == "reasoning" for _, lacking in found for lack in lacking):
        left_out |= {"reasoning of earlier turns"}
    if any(lacks(talk.text, talk.messages[at]) for at in unscored):
        left_out |= {"parts of turns that are not scored"}
    return Rendered(talk.text, tuple(spans), frozenset(left_out))


def _without(talk: _Talk) -> dict[str, bool]:
    """Of what the template is given beside the turns: whether its text would be another without."""
    context, changed = talk.context, {}
    for name, empty in (("tools", ()), ("documents", ()), ("settings", {})):
        if getattr(context, name):
            bare = replace(talk, context=replace(context, **{name: empty}))
            changed[name] = any(
                _or_nothing(talk, prompt) != _or_nothing(bare, prompt)
                for prompt in ([False, True] if name == "settings" else [False])
            )
    return changed


def _or_nothing(talk: _Talk, generation_prompt: bool) -> str | None:
    """The text, that of the last prompt if so asked, or None where the template refuses."""
    messages = talk.messages[:-1] if generation_prompt else talk.messages
    try:
        return talk.render(messages, generation_prompt=generation_prompt) if messages else None
    except DataError:
        return None


def _located(talk: _Talk, position: int) -> tuple[Span, list[Lack]]:
    """The span of an assistant's turn, and what of an earlier turn's reasoning the template drops from it.

    Raises:
        DataError: there is no span that holds all that the turn says.
    """
    last = position == max(at for at, message in enumerate(talk.messages) if is_answer(message))
    best: list[Lack] | None = None
    for start, stop in _candidates(talk, position):
        lacking = lacks(talk.text[start:stop], talk.messages[position])
        faults = [lack for lack in lacking if last or lack.kind != "reasoning"]
        if not faults:
            return (start, stop), lacking
        best = faults if best is None or len(faults) < len(best) else best
    if best is None or not lacks(talk.text, talk.messages[position]):
        raise _cannot_tell(talk, position)
    raise _left_out(talk, position, best)


def _candidates(talk: _Talk, position: int) -> Iterator[Span]:
    """Spans that a turn may have, the surest first."""
    start = _start(talk, position)
    if start is None:
        return
    bound = _bound(talk, position, start)
    for stop in _stops(talk, position, start, bound):
        if start < stop <= bound:
            yield start, stop


def _start(talk: _Talk, position: int) -> int | None:
    """Where the generation prompt ends, as far as the text goes on from it; else where the turn's words begin."""
    text, before = talk.text, talk.messages[:position]
    bare = _or_empty(talk, before)
    prompted = _or_empty(talk, before, generation_prompt=True)
    usual = _usual_prompt(talk)
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


def _usual_prompt(talk: _Talk) -> str:
    """What the template writes for an answer to come after a question; nothing where it knows of no such prompt."""
    question = [{"role": "user", "content": "q"}]
    bare = _or_empty(talk, question)
    prompted = _or_empty(talk, question, generation_prompt=True)
    return prompted[len(_common_prefix(bare, prompted)) :]


def _words_end(talk: _Talk, position: int) -> int:
    """Where a turn's words end in the text; its end where that cannot be told."""
    around = _around(talk, position) if position >= 0 else None
    return len(talk.text) - len(around[1]) if around and talk.text.endswith(around[1]) else len(talk.text)


def _or_empty(talk: _Talk, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
    """The text of the first turns, or none where the template takes no such beginning."""
    try:
        return talk.render(messages, generation_prompt=generation_prompt) if messages else ""
    except DataError:
        return ""


def _around(talk: _Talk, position: int) -> tuple[str, str] | None:
    """What stands before and behind a turn's words: what two texts have in common where it says another word only.

    Calls are taken away, for they have a form that words may not replace; None where the template takes no such turns.
    """
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
    said = {"content": re.sub(r"(?s)(<think>|^).*(</think>).*", rf"\1{mark}\2{mark}", message["content"])}
    if said["content"] == message["content"]:
        said["content"] = mark
    if message.get("reasoning_content"):
        said["reasoning_content"] = mark
    return said


def _stops(talk: _Talk, position: int, start: int, bound: int) -> Iterator[int]:
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


def _closed(talk: _Talk, stop: int, bound: int) -> int:
    """With the end-of-turn token: what a model must write too. A token that only opens the next turn is none."""
    closing = _special(talk.tokenizer, space=True).match(talk.text, stop)
    if closing is None or closing.end() > bound:
        return stop
    return closing.end() if len(talk.text) == closing.end() or _closes_turns(talk) else stop


def _closes_turns(talk: _Talk) -> bool:
    """Whether a special token follows the last turn of a talk, so that one behind an earlier turn is the turn's own."""
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": _OPEN}]
    try:
        text = talk.render(messages)
    except DataError:
        return True
    return _OPEN not in text or bool(_special(talk.tokenizer, space=True).match(text, text.rfind(_OPEN) + 1))


def _bound(talk: _Talk, position: int, start: int) -> int:
    """Where the words of a turn behind this one begin, which no span may reach; the end of the text where none can be told."""
    for following in range(position + 1, len(talk.messages)):
        around = _around(talk, following) if talk.messages[following]["content"].strip() else None
        if around is not None and talk.text.startswith(around[0]) and len(around[0]) > start:
            return len(around[0])
    return len(talk.text)


def _special(tokenizer: Any, *, space: bool = False) -> re.Pattern[str]:
    """A special token, after white space if so asked."""
    special = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    one = "|".join(sorted(special, key=len, reverse=True))
    before = r"\s*" if space else ""
    return re.compile(rf"{before}(?:{one})" if special else r"(?!)")


def _common_prefix(one: str, two: str) -> str:
    length = next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return one[:length]


# Templates that mark the assistant's text themselves


def has_generation_mask(tokenizer: Any) -> bool:
    """Whether the template marks the assistant's text itself."""
    return isinstance(tokenizer.chat_template, str) and bool(re.search(r"{%-?\s*generation\b", tokenizer.chat_template))


def _as_marked(talk: _Talk, places: Sequence[int], spans: Sequence[Span]) -> list[Span]:
    """What the template marks of the turns that have these spans, up to their ends.

    Raises:
        DataError: it marks nothing of a turn that is scored.
    """
    marked, scored = _marked(talk), list[Span]()
    if marked is None:
        return list(spans)
    for position, (start, stop) in zip(places, spans, strict=True):
        before = scored[-1][1] if scored else 0
        own = [(max(one, before), min(two, stop)) for one, two in marked if one < stop and two > start]
        if not any(talk.text[one:two].strip() for one, two in own):
            raise DataError(
                f"The chat template marks no assistant token of turn {position + 1}{begins(talk.messages)}, which has an "
                f"answer:\n{talk.text[:2000]}",
                fix="Correct {% generation %} in the tokenizer's chat template.",
            )
        scored += [*own[:-1], (own[-1][0], stop)]
    return _joined(scored)


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Spans of which no two touch."""
    joined: list[Span] = []
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def _marked(talk: _Talk) -> list[Span] | None:
    """The ranges that the template marks; None where marking them in another way changes the text."""
    begin, end = (rf"{{%(-?)\s*{name}\s*(-?)%}}" for name in ("generation", "endgeneration"))
    # Two conditions, so that what strips white space before or behind a mark still does.
    template = re.sub(begin, rf"{{%\1 if true %}}{_OPEN}{{% if true \2%}}", talk.tokenizer.chat_template)
    template = re.sub(end, rf"{{%\1 endif %}}{_CLOSE}{{% endif \2%}}", template)
    text = apply(talk.tokenizer, talk.messages, talk.context, form=talk.form, template=template)
    ranges, clean, opened = list[Span](), 0, 0
    for piece in re.split(f"([{_OPEN}{_CLOSE}])", text):
        if piece == _OPEN:
            opened = clean
        elif piece == _CLOSE:
            ranges.append((opened, clean))
        else:
            clean += len(piece)
    if text.replace(_OPEN, "").replace(_CLOSE, "") != talk.text:
        return None
    return [(start, stop) for start, stop in ranges if stop > start]


# Errors


class _LeftOut(DataError):
    """The template leaves out what is to be scored; `count` parts of it."""

    count = 0


def _cannot_tell(talk: _Talk, position: int) -> DataError:
    return DataError(
        f"tov cannot tell which part of the rendered text is assistant turn {position + 1}:\n{talk.text[:2000]}",
        fix="Add {% generation %} and {% endgeneration %} around the assistant's text in the tokenizer's chat template.",
    )


def _left_out(talk: _Talk, position: int, lacking: Sequence[Lack]) -> _LeftOut:
    what = ", ".join(dict.fromkeys(lack.what for lack in lacking))
    keys = ", ".join(dict.fromkeys(lack.key for lack in lacking))
    error = _LeftOut(
        f"The model's chat template leaves out what turn {position + 1}{begins(talk.messages)} is scored by: {what}. "
        f"It makes this of the row:\n{talk.text[:2000]}",
        fix=f"Use a model, or a chat template, that shows it, or delete the key {keys} from the row, or set "
        '"weight": 0 on the turn, which is then seen but not scored.',
    )
    error.count = len(lacking)
    return error
