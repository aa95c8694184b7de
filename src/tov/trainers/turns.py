"""Conversations in the forms that trainers share: turns with roles, and a prompt with what is to be learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tov.sinks import json_text
from tov.tasks.instruction import Conversation
from tov.text.chat import Message, is_answer
from tov.trainers.base import Chosen, NotTaken

DOCUMENTS = "documents stand beside the turns"
SETTINGS = "chat_template_kwargs stand beside the turns"
LINE_BREAK = (
    "what the chat template writes behind an end of turn (a line break, in most) is learnt too; tov does not score it"
)
REASONING = "reasoning stands under reasoning_content; a template that looks for it elsewhere does not show it"


def learnt(row: Conversation) -> tuple[list[Message], list[int]]:
    """The turns up to the last that is scored (those behind it change nothing that is learnt), and the places of the scored.

    Raises:
        NotTaken: there are none.
    """
    places = [at for at, turn in enumerate(row.messages) if at not in row.unscored and is_answer(turn)]
    if not places:
        raise NotTaken("no turn says anything that is to be learnt")
    return [dict(turn) for turn in row.messages[: places[-1] + 1]], places


def answers(turns: Sequence[Message]) -> list[int]:
    """The places of the assistant's turns."""
    return [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]


def by_answer(row: Conversation) -> list[tuple[list[Message], Message]]:
    """Each answer that is learnt, behind all turns before it: what a trainer learns that masks a prompt and nothing else.

    Raises:
        NotTaken: there is none, or nothing stands before one.
    """
    turns, places = learnt(row)
    if not places[0]:
        raise NotTaken("nothing stands before the answer")
    return [(turns[:place], turns[place]) for place in places]


def pair(row: Conversation) -> tuple[list[Message], Message, Message]:
    """The turns that both answers follow, the chosen answer and the rejected one.

    Raises:
        NotTaken: an answer has several turns.
    """
    assert row.rejected
    turns, places = learnt(row)
    prompt, chosen = turns[: places[0]], turns[places[0] :]
    rejected = [dict(turn) for turn in row.rejected.messages[len(prompt) :]]
    if not prompt or len(chosen) != 1 or len(rejected) != 1 or list(row.rejected.messages[: len(prompt)]) != prompt:
        raise NotTaken("one of the two answers has several turns")
    return prompt, chosen[0], rejected[0]


def no_context(row: Conversation, *, tools: bool = True, settings: bool = False) -> None:
    """Raises NotTaken if the row has something beside its turns that the trainer does not hand to the chat template.

    Args:
        row: of which it is asked.
        tools: whether the trainer hands on tools.
        settings: likewise `chat_template_kwargs`.
    """
    if row.context.documents:
        raise NotTaken(DOCUMENTS)
    if row.context.settings and not settings:
        raise NotTaken(SETTINGS)
    if row.context.tools and not tools:
        raise NotTaken("tools stand beside the turns")


def bare_text(row: Conversation) -> dict[str, Any]:
    """A text, to which the trainer adds the token that ends it."""
    return {"text": row.answer}


def tools_of(row: Conversation) -> dict[str, Any]:
    """The tools as JSON text, where there are any: what every reader of tables takes for one type, whatever their keys."""
    return {"tools": json_text(row.context.tools)} if row.context.tools else {}


def reasoning_notes(taken: Sequence[Chosen]) -> list[str]:
    """What is said where a turn has reasoning."""
    return [REASONING] if has([chosen.row for chosen in taken], "reasoning_content") else []


def has(rows: Sequence[Any], key: str) -> bool:
    """Whether a turn of a conversation has a key."""
    return any(key in turn for row in rows for turn in row.messages)
