"""TRL: SFTTrainer for conversations and text, DPOTrainer for pairs; transformers' Trainer for what has a head of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tov.tasks.instruction import Conversation
from tov.trainers.base import DATA, Chosen, Facts, Form, Trainer, Written, filled, fitted, json_lines
from tov.trainers.scripts import DENSE, DPO, HEAD, IMPORTED, LARGE, PLAIN, SFT, TAGGER
from tov.trainers.turns import LINE_BREAK, bare_text, by_answer, has, no_context, pair, reasoning_notes, tools_of

SCRIPT, TEMPLATE = "train.py", "chat_template.jinja"
DPO_RATE = 1e-5
"""TRL's own default, ten times as high because an adapter is trained; tov has not measured it."""


class Trl(Trainer):
    """Every kind, by the trainer that is made for it."""

    name = "trl"
    title = "TRL"
    names_model = "`--model` of `train.py`"
    spreads_model = True

    def write(self, rows: Sequence[Chosen], kind: str, facts: Facts) -> Written:
        """A script and the rows."""
        if kind in ("ner", "classification"):
            return _with_head(rows, kind, facts)
        forms: dict[str, Form] = {"conversations": conversation, "pairs": _pair, "text": bare_text}
        taken, formed, left_out = fitted(rows, forms[kind], self.title)
        formed = with_settings(formed)
        script, rate = (DPO, DPO_RATE) if kind == "pairs" else (SFT, facts.rate)
        notes = notes_on(taken, formed, kind)
        # Older versions pad the arguments of calls, and the properties of tools, with nulls.
        datasets = " 'datasets>=4.8'" if kind != "text" and _with_tools(taken) else ""
        install = f"pip install 'trl>=1.0' peft{datasets}" + " bitsandbytes" * bool(facts.bits)
        return Written(
            {DATA: json_lines(formed), SCRIPT: filled_in(script, formed, facts, rate), **template_file(facts, formed)},
            taken, left_out, notes,
            [install, f"python {SCRIPT} --max-steps 2  # a try", f"python {SCRIPT}"],
        )  # fmt: skip


def _with_tools(taken: Sequence[Chosen]) -> bool:
    rows = [chosen.row for chosen in taken]
    return has(rows, "tool_calls") or any(row.context.tools for row in rows)


def conversation(row: Conversation) -> list[dict[str, Any]]:
    """`prompt` and `completion` as turns, for each answer: TRL masks the first, whatever the chat template."""
    no_context(row, settings=True)
    return [{"prompt": before, "completion": [answer], **_context(row)} for before, answer in by_answer(row)]


def _pair(row: Conversation) -> dict[str, Any]:
    no_context(row, settings=True)
    prompt, chosen, rejected = pair(row)
    return {"prompt": prompt, "chosen": [chosen], "rejected": [rejected], **_context(row)}


def _context(row: Conversation) -> dict[str, Any]:
    settings = {"chat_template_kwargs": dict(row.context.settings)} if row.context.settings else {}
    return {**tools_of(row), **settings}


def with_settings(formed: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with settings of the template in each, if one has any: TRL unpacks them of every row."""
    if not any("chat_template_kwargs" in row for row in formed):
        return list(formed)
    return [{"chat_template_kwargs": {}, **row} for row in formed]


def filled_in(script: str, formed: Sequence[Mapping[str, Any]], facts: Facts, rate: float) -> str:
    """A script of SFTTrainer or DPOTrainer."""
    script = script if template_file(facts, formed) else script.replace(PLAIN, "")
    return filled(_opened_alike(script, facts), rate=rate, **_values(facts))


def _values(facts: Facts) -> dict[str, Any]:
    """What every script is given, but for the rate."""
    names = ("model", "revision", "max_length", "seed", "lora_r", "lora_alpha")
    return {name: getattr(facts, name) for name in names} | {"four": facts.bits == 4, "eight": facts.bits == 8}


def _opened_alike(script: str, facts: Facts) -> str:
    """A script that opens the model in the bits, and over the GPUs, in which the rows were scored."""
    of_bits = {
        4: 'BitsAndBytesConfig(\n                load_in_4bit=True, bnb_4bit_quant_type="nf4", '
        "bnb_4bit_compute_dtype=torch.bfloat16\n            )",
        8: "BitsAndBytesConfig(load_in_8bit=True)",
    }
    lines = [f'            "quantization_config": {of_bits[facts.bits]},\n'] if facts.bits else []
    lines += [f'            "device_map": {facts.device_map!r},\n'] if facts.device_map else []
    if not lines:
        return script
    if facts.bits:
        script = script.replace(IMPORTED, "from transformers import AutoTokenizer, BitsAndBytesConfig\n")
    return script.replace(DENSE, LARGE.replace("@opened@", "".join(lines)))


def template_file(facts: Facts, formed: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The format of tov for a model without a chat template, where rows are turns."""
    return {} if facts.template is None or "text" in formed[0] else {TEMPLATE: facts.template}


def notes_on(taken: Sequence[Chosen], formed: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    """In what TRL differs from what was scored."""
    if kind == "text":
        return []
    notes = [LINE_BREAK]
    if len(formed) > len(taken):
        several = len(
            {row["tov_row_id"] for row, after in pairwise(formed) if row["tov_row_id"] == after["tov_row_id"]}
        )
        notes.append(
            f"{several:,} rows have several answers to learn, and are written once for each, behind all turns before it: "
            f"{len(formed):,} lines in all"
        )
    return notes + reasoning_notes(taken)


def _with_head(rows: Sequence[Chosen], kind: str, facts: Facts) -> Written:
    """A classifier of words or of texts: labels by name, whose order in the script is the run's."""
    if kind == "ner":
        formed: list[dict[str, Any]] = [{"tokens": list(one.row.words), "ner_tags": list(one.row.tags)} for one in rows]
    else:
        formed = [{"text": one.row.text, "label": one.row.label} for one in rows]
    formed = [
        {**row, "tov_row_id": one.row_id, "tov_source": one.source} for row, one in zip(formed, rows, strict=True)
    ]
    values = {"labels": list(facts.labels), "rate": facts.rate, **_values(facts)}
    script = filled(TAGGER if kind == "ner" else HEAD, **values)
    use = ["pip install transformers datasets peft", f"python {SCRIPT} --max-steps 2  # a try", f"python {SCRIPT}"]
    return Written({DATA: json_lines(formed), SCRIPT: script}, list(rows), use=use)
