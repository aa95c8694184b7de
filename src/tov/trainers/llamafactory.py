"""LLaMA-Factory: ShareGPT's turns for conversations and pairs, `text` for its pre-training stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import yaml

from tov.sinks import json_text
from tov.tasks.instruction import Conversation
from tov.text.chat import Message
from tov.trainers.base import DATA, Chosen, Facts, NotTaken, Trainer, Written, fitted, json_lines, whole_alpha
from tov.trainers.turns import LINE_BREAK, answers, bare_text, learnt, no_context, pair, tools_of

NAME, INFO, CONFIG = "tov", "dataset_info.json", "llamafactory.yaml"
SPEAKERS = {"user": "human", "tool": "observation", "assistant": "gpt"}
TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip


class LlamaFactory(Trainer):
    """Conversations in which both sides take turns, pairs, text."""

    name = "llamafactory"
    title = "LLaMA-Factory"
    names_model = "`model_name_or_path` in `llamafactory.yaml`"
    kinds = ("conversations", "pairs", "text")

    def write(self, rows: Sequence[Chosen], kind: str, facts: Facts) -> Written:
        """A description of the data, a configuration and the rows."""
        last = kind == "conversations" and _last_alone(rows)
        forms: dict[str, Callable[[Any], Mapping[str, Any]]] = {
            "conversations": partial(_conversation, last=last), "pairs": _pair, "text": bare_text,
        }  # fmt: skip
        taken, formed, left_out = fitted(rows, forms[kind], self.title)
        config = yaml.safe_dump(_config(kind, facts, last=last), sort_keys=False, allow_unicode=True, width=128)
        info = json.dumps({NAME: _info(kind)}, indent=2) + "\n"
        files: dict[str, Any] = {DATA: json_lines(formed), INFO: info, CONFIG: config}
        use = ["pip install llamafactory" + " bitsandbytes" * bool(facts.bits), f"llamafactory-cli train {CONFIG}"]
        return Written(files, taken, left_out, _notes(kind, formed, facts), use)


def _last_alone(rows: Sequence[Chosen]) -> bool:
    """Whether more rows learn their last answer alone than all of theirs: LLaMA-Factory has one rule for all."""
    kept = {"all": 0, "last": 0}
    for chosen in rows:
        try:
            turns, places = learnt(chosen.row)
        except NotTaken:
            continue
        kept["all"] += places == answers(turns)
        kept["last"] += places == answers(turns)[-1:]
    return kept["last"] > kept["all"]


def _conversation(row: Conversation, *, last: bool) -> dict[str, Any]:
    no_context(row)
    turns, places = learnt(row)
    if places != answers(turns)[-1 if last else 0 :]:
        raise NotTaken(
            "earlier answers are to be learnt too, but LLaMA-Factory is told to learn the last one alone, as fits most rows"
            if last
            else "some answers are not to be learnt, but LLaMA-Factory is told to learn all, as fits most rows"
        )
    return _shared(turns, row)


def _shared(messages: Sequence[Message], row: Conversation) -> dict[str, Any]:
    """The turns in ShareGPT's form, with system and tools beside them."""
    system = ""
    if messages and messages[0]["role"] == "system":
        system, messages = messages[0]["content"], messages[1:]
    turns = [_turn(message) for message in messages]
    asking = [turn["from"] in ("human", "observation") for turn in turns]
    if asking != [place % 2 == 0 for place in range(len(turns))]:
        raise NotTaken("the two sides do not take turns, the user first")
    return {"conversations": turns, "system": system, "tools": "", **tools_of(row)}


def _turn(message: Message) -> dict[str, str]:
    role, said, thought = message["role"], message["content"], message.get("reasoning_content")
    if role not in SPEAKERS:
        raise NotTaken(
            f"a turn of role {role} is not the first" if role == "system" else f"LLaMA-Factory knows no {role} turn"
        )
    before = f"<think>\n{thought}\n</think>\n\n" if thought else ""
    if not message.get("tool_calls"):
        return {"from": SPEAKERS[role], "value": before + said}
    if said.strip():
        raise NotTaken("something is said beside a call")
    calls = [{name: call["function"][name] for name in ("name", "arguments")} for call in message["tool_calls"]]
    return {"from": "function_call", "value": before + json_text(calls if len(calls) > 1 else calls[0])}


def _pair(row: Conversation) -> dict[str, Any]:
    no_context(row)
    prompt, chosen, rejected = pair(row)
    return {**_shared(prompt, row), "chosen": _turn(chosen), "rejected": _turn(rejected)}


def _info(kind: str) -> dict[str, Any]:
    """What `dataset_info.json` says of the rows."""
    if kind == "text":
        return {"file_name": DATA, "columns": {"prompt": "text"}}
    columns = {"messages": "conversations", "system": "system", "tools": "tools"}
    if kind == "pairs":
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    return {
        "file_name": DATA, "formatting": "sharegpt", **({"ranking": True} if kind == "pairs" else {}),
        "columns": columns, "tags": TAGS,
    }  # fmt: skip


def _config(kind: str, facts: Facts, *, last: bool) -> dict[str, Any]:
    """What `llamafactory-cli train` reads; without `template` it takes the tokenizer's own."""
    stage = {"conversations": "sft", "pairs": "dpo", "text": "pt"}[kind]
    of_kind: dict[str, Any] = {"packing": False} if kind == "text" else {"pref_beta": 0.1} if kind == "pairs" else {}
    if facts.template is not None and kind != "text":
        of_kind["template"] = "default"
    if last:
        of_kind["mask_history"] = True
    return {
        "model_name_or_path": facts.model, **({"model_revision": facts.revision} if facts.revision else {}),
        **_bits(facts.bits), "stage": stage, "do_train": True, "finetuning_type": "lora", "lora_rank": facts.lora_r,
        "lora_alpha": whole_alpha(facts, LlamaFactory.title), "lora_target": "all", "dataset_dir": ".", "dataset": NAME,
        "cutoff_len": facts.max_length, **of_kind, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4,
        "learning_rate": 1e-5 if kind == "pairs" else facts.rate, "num_train_epochs": 1.0,
        "lr_scheduler_type": "linear", "seed": facts.seed, "report_to": "none", "output_dir": "model",
    }  # fmt: skip


def _bits(bits: int | None) -> dict[str, Any]:
    """Of the weights that scored."""
    of_four = {"quantization_type": "nf4", "double_quantization": False} if bits == 4 else {}
    return {"quantization_bit": bits, **of_four} if bits else {}


def _notes(kind: str, formed: Sequence[Mapping[str, Any]], facts: Facts) -> list[str]:
    """In what LLaMA-Factory differs from what was scored."""
    if kind == "text":
        return []
    notes = [LINE_BREAK]
    if facts.template is not None:
        notes.append(
            "the model has no chat template, and LLaMA-Factory does not know the format that stands in for it: the YAML "
            "names its template 'default'"
        )
    turns = [turn for row in formed for turn in row["conversations"]]
    if any(row["tools"] for row in formed) or any(turn["from"] in ("function_call", "observation") for turn in turns):
        notes.append(
            "tools and calls get LLaMA-Factory's default format, which is no model's own, unless its own template is named as "
            "template: in the YAML"
        )
    return notes
