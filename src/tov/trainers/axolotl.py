"""Axolotl: turns for its chat_template strategy, pairs for its DPO, text for its completion strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tov.sinks import json_text
from tov.tasks.instruction import Conversation
from tov.text.chat import Message
from tov.trainers.base import DATA, Chosen, Facts, NotTaken, Trainer, Written, fitted, json_lines, whole_alpha
from tov.trainers.turns import answers, bare_text, learnt, no_context, pair, reasoning_notes, tools_of

CONFIG = "axolotl.yaml"
TRAINED = "train"
"""The key of a turn that says whether it is learnt."""


class Axolotl(Trainer):
    """Conversations with every mask of tov's, pairs, text."""

    name = "axolotl"
    title = "Axolotl"
    names_model = "`base_model` in `axolotl.yaml`"
    kinds = ("conversations", "pairs", "text")

    def write(self, rows: Sequence[Chosen], kind: str, facts: Facts) -> Written:
        """A configuration and the rows."""
        form = {"conversations": _conversation, "pairs": _pair, "text": bare_text}[kind]
        taken, formed, left_out = fitted(rows, form, self.title)
        config = _config(kind, formed, facts)
        notes = []
        if kind == "text":
            notes.append("a text over sequence_len is cut into several; tov scored its first tokens alone")
        notes += reasoning_notes(taken)
        text = yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=128)
        use = ["pip install axolotl", f"axolotl preprocess {CONFIG}", f"axolotl train {CONFIG}"]
        return Written({DATA: json_lines(formed), CONFIG: text}, taken, left_out, notes, use)


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines line by line."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _conversation(row: Conversation) -> dict[str, Any]:
    no_context(row)
    turns, places = learnt(row)
    unscored = {at: {TRAINED: False} for at in answers(turns) if at not in places}
    kept = [{**_turn(turn), **unscored.get(at, {})} for at, turn in enumerate(turns)]
    return {"messages": kept, **tools_of(row)}


def _turn(message: Message) -> dict[str, Any]:
    """A turn with arguments of calls as text, which Axolotl reads: objects would be padded to the keys of all rows."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = [
        {**call, "function": {**call["function"], "arguments": json_text(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _pair(row: Conversation) -> dict[str, Any]:
    no_context(row, tools=False)
    prompt, chosen, rejected = pair(row)
    if any(set(turn) - {"role", "content"} for turn in (*prompt, chosen, rejected)):
        raise NotTaken("turns of a pair have more than role and content")
    return {"messages": prompt, "chosen": chosen, "rejected": rejected}


_BITS: dict[int | None, dict[str, Any]] = {
    None: {"adapter": "lora"},
    8: {"load_in_8bit": True, "adapter": "lora"},
    4: {"load_in_4bit": True, "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}, "adapter": "qlora"},
}
"""By the bits of the weights that scored. Axolotl would quantise the scales of 4 bits too, which tov does not."""


def _config(kind: str, formed: Sequence[Mapping[str, Any]], facts: Facts) -> dict[str, Any]:
    """What `axolotl train` reads; paths are from the folder that it is started in."""
    source: dict[str, Any] = {"path": DATA, "ds_type": "json", "split": "train"}
    turns = {"field_messages": "messages", "message_property_mappings": {"role": "role", "content": "content"}}
    if kind == "text":
        source |= {"type": "completion", "field": "text"}
    elif kind == "pairs":
        source |= {"type": "chat_template.default", **turns, "field_chosen": "chosen", "field_rejected": "rejected"}
    else:
        source |= {"type": "chat_template", **turns, "roles_to_train": ["assistant"], "train_on_eos": "turn"}
        if any(TRAINED in turn for row in formed for turn in row["messages"]):
            source["message_field_training"] = TRAINED
    template = {"chat_template": "tokenizer_default"}
    if facts.template is not None:
        template = {"chat_template": "jinja", "chat_template_jinja": facts.template}
    source |= {} if kind == "text" else template
    return {
        "base_model": facts.model, **({"revision_of_model": facts.revision} if facts.revision else {}),
        **({"rl": "dpo"} if kind == "pairs" else {}), "datasets": [source],
        "train_on_inputs": False, "sequence_len": facts.max_length, "sample_packing": False, **_BITS[facts.bits],
        "lora_r": facts.lora_r, "lora_alpha": whole_alpha(facts, Axolotl.title), "lora_target_linear": True, "num_epochs": 1,
        "micro_batch_size": 4, "gradient_accumulation_steps": 4, "optimizer": "adamw_torch", "lr_scheduler": "linear",
        "learning_rate": 1e-5 if kind == "pairs" else facts.rate, "seed": facts.seed, "output_dir": "./model",
    }  # fmt: skip
