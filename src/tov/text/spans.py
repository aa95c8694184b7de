"""From turns to text and the spans of it that are scored: an assistant's words, thoughts and calls, and the end of its turn.

Where a turn may stand is `tov.text.places`'s. What the turn says must stand there (`tov.text.shown`), or the row is refused.
Nothing behind the end-of-turn token is scored. Where a template marks `{% generation %}`, what it marks is scored up to there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tov.errors import DataError
from tov.text.chat import NOTHING, Context, Message, RefusedTurns, apply, begins, forms_for, is_answer
from tov.text.places import Span, Talk, candidates
from tov.text.shown import EARLIER_REASONING, OF_TURNS, UNSCORED, Lack, lacks, left_out_beside

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
    partial: list[Rendered] = []
    for form in forms_for(messages):
        try:
            rendered = _rendered(Talk(tokenizer, tuple(messages), context, form), unscored)
        except DataError as error:
            errors.append(error)
            continue
        if not rendered.left_out & OF_TURNS:
            return rendered
        partial.append(rendered)
    if partial:
        return min(partial, key=lambda rendered: len(rendered.left_out & OF_TURNS))
    raise min(errors, key=_says_less)


def _says_less(error: DataError) -> tuple[bool, bool, int]:
    """That the template takes one form, and leaves something out, says more than that it refuses another."""
    count = error.count if isinstance(error, _LeftOut) else 0
    return isinstance(error, RefusedTurns), not count, count


def render_prompt(tokenizer: Any, messages: Sequence[Message], context: Context = NOTHING) -> str:
    """The text of a conversation that the assistant is to go on with, with the header of its answer.

    Raises:
        DataError: the template refuses the turns.
    """
    texts: list[str] = []
    errors: list[DataError] = []
    for form in forms_for(messages):
        try:
            texts.append(apply(tokenizer, messages, context, form=form, generation_prompt=True))
        except DataError as error:
            errors.append(error)
            continue
        said = [message for message in messages if is_answer(message)]
        if not any(lack.kind != "reasoning" for message in said for lack in lacks(texts[-1], message)):
            return texts[-1]
    if not texts:
        raise errors[0]
    return texts[0]


def _rendered(talk: Talk, unscored: frozenset[int]) -> Rendered:
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
        left_out |= {EARLIER_REASONING}
    if any(lacks(talk.text, talk.messages[at]) for at in unscored):
        left_out |= {UNSCORED}
    return Rendered(talk.text, tuple(spans), frozenset(left_out))


def _without(talk: Talk) -> dict[str, bool]:
    """Of what the template is given beside the turns: whether its text would be another without."""
    context = talk.context
    bare = {
        "tools": replace(context, tools=()),
        "documents": replace(context, documents=()),
        "settings": replace(context, settings={}),
    }
    # A setting may have effect on nothing but the prompt, from which on an answer is scored.
    prompts = {"tools": [False], "documents": [False], "settings": [False, True]}
    return {
        name: any(
            _or_nothing(talk, prompt) != _or_nothing(replace(talk, context=one), prompt) for prompt in prompts[name]
        )
        for name, one in bare.items()
        if one != context
    }


def _or_nothing(talk: Talk, generation_prompt: bool) -> str | None:
    """The text, that of the last prompt if so asked, or None where the template refuses."""
    messages = talk.messages[:-1] if generation_prompt else talk.messages
    try:
        return talk.render(messages, generation_prompt=generation_prompt) if messages else None
    except DataError:
        return None


def _located(talk: Talk, position: int) -> tuple[Span, list[Lack]]:
    """The span of an assistant's turn, and what of an earlier turn's reasoning the template drops from it.

    Raises:
        DataError: there is no span that holds all that the turn says.
    """
    last = position == max(at for at, message in enumerate(talk.messages) if is_answer(message))
    message = talk.messages[position]
    best: list[Lack] = []
    for start, stop in candidates(talk, position):
        lacking = lacks(talk.text[start:stop], message)
        faults = [lack for lack in lacking if last or lack.kind != "reasoning"]
        if not faults:
            return (start, stop), lacking
        best = faults if not best or len(faults) < len(best) else best
    nowhere = lacks(talk.text, message)
    told = best or [lack for lack in nowhere if lack.kind != "content"]
    raise _left_out(talk, position, told) if nowhere and told else _cannot_tell(talk, position)


# Templates that mark the assistant's text themselves


def has_generation_mask(tokenizer: Any) -> bool:
    """Whether the template marks the assistant's text itself."""
    return isinstance(tokenizer.chat_template, str) and bool(re.search(r"{%-?\s*generation\b", tokenizer.chat_template))


def _as_marked(talk: Talk, places: Sequence[int], spans: Sequence[Span]) -> list[Span]:
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


def _marked(talk: Talk) -> list[Span] | None:
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
    """The template leaves out what is to be scored.

    Args:
        error: what is said.
        count: parts that are left out.
    """

    def __init__(self, error: DataError, count: int) -> None:
        super().__init__(error.problem, fix=error.fix)
        self.count = count


def _cannot_tell(talk: Talk, position: int) -> DataError:
    return DataError(
        f"tov cannot tell which part of the rendered text is assistant turn {position + 1}:\n{talk.text[:2000]}",
        fix="Add {% generation %} and {% endgeneration %} around the assistant's text in the tokenizer's chat template.",
    )


def _left_out(talk: Talk, position: int, lacking: Sequence[Lack]) -> _LeftOut:
    what = ", ".join(dict.fromkeys(lack.what for lack in lacking))
    keys = ", ".join(dict.fromkeys(lack.key for lack in lacking))
    error = DataError(
        f"The model's chat template leaves out what turn {position + 1}{begins(talk.messages)} is scored by: {what}. "
        f"It makes this of the row:\n{talk.text[:2000]}",
        fix=f"Use a model, or a chat template, that shows it, or delete the key {keys} from the row, or set "
        '"weight": 0 on the turn, which is then seen but not scored.',
    )
    return _LeftOut(error, len(lacking))
