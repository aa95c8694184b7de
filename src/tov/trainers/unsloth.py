"""Unsloth: its SFTTrainer takes the rows of TRL's, and masks prompts as TRL does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tov.tasks.instruction import Conversation
from tov.trainers.base import DATA, Chosen, Facts, Trainer, Written, fitted, json_lines
from tov.trainers.scripts import UNSLOTH
from tov.trainers.trl import SCRIPT, conversation, filled_in, notes_on, template_file, with_settings
from tov.trainers.turns import bare_text


class Unsloth(Trainer):
    """Conversations and text."""

    name = "unsloth"
    title = "Unsloth"
    names_model = "`--model` of `train.py`"
    kinds = ("conversations", "text")

    def write(self, rows: Sequence[Chosen], kind: str, facts: Facts) -> Written:
        """A script and the rows."""
        taken, formed, left_out = fitted(rows, bare_text if kind == "text" else _conversation, self.title)
        formed = with_settings(formed)
        files = {
            DATA: json_lines(formed),
            SCRIPT: filled_in(UNSLOTH, formed, facts, facts.rate),
            **template_file(facts, formed),
        }
        notes = notes_on(taken, formed, kind)
        return Written(
            files, taken, left_out, notes,
            ["pip install unsloth 'datasets>=4.8'", f"python {SCRIPT} --max-steps 2  # a try", f"python {SCRIPT}"],
        )  # fmt: skip


def _conversation(row: Conversation) -> list[dict[str, Any]]:
    """As TRL has it, but with tools as a list, which is handed to the template as it is."""
    tools = {"tools": list(row.context.tools)} if row.context.tools else {}
    return [{**columns, **tools} for columns in conversation(row)]
