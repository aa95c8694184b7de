"""Every chat template that TRL ships, times kinds of conversation: the assistant's words are scored, or the row is refused.

What a template adds of its own stands in the tables below, so that a stray token of a header fails a test.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tiny import tiny_tokenizer
from tov.data.cells import BadRow
from tov.errors import DataError
from tov.tasks.instruction import encode, from_messages
from tov.text.chat import prepare
from tov.text.encode import IGNORED

_TRL = importlib.util.find_spec("trl")
FOLDER = Path(_TRL.origin).parent / "chat_templates" if _TRL and _TRL.origin else Path("no trl")
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
pytestmark = pytest.mark.skipif(not TEMPLATES, reason="trl, which ships the templates, is not installed")

# By how a template's name begins: its tokenizer's EOS, and what may end a turn that says something.
ENDS = {
    "cohere": ("<|END_OF_TURN_TOKEN|>", ("<|END_OF_TURN_TOKEN|>",)),
    "cohere2": ("<|END_OF_TURN_TOKEN|>", ("<|END_RESPONSE|>",)),
    "deepseek": ("<｜end▁of▁sentence｜>", ("<｜end▁of▁sentence｜>",)),
    "diffusion_gemma": ("<turn|>", ("<turn|>",)),
    "gemma": ("<end_of_turn>", ("<end_of_turn>",)),
    "gemma4": ("<turn|>", ("<turn|>",)),
    "glm4moe": ("<|endoftext|>", ("",)),
    "glm4moe_training": ("<|endoftext|>", ("<|user|>", "<|system|>", "<|observation|>")),
    "gptoss": ("<|return|>", ("<|return|>", "<|end|>")),
    "idefics3": ("<end_of_utterance>", ("<end_of_utterance>",)),
    "lfm2": ("<|im_end|>", ("<|im_end|>",)),
    "llama3": ("<|eot_id|>", ("<|eot_id|>",)),
    "llava_next": ("</s>", ("</s>",)),
    "muse_glimmer": ("<|eot|>", ("<|eot|>", "<|eom|>")),
    "nemotron": ("<|im_end|>", ("<|im_end|>",)),
    "phi3": ("<|endoftext|>", ("<|end|>",)),
    "qwen": ("<|im_end|>", ("<|im_end|>",)),
    "smolvlm": ("<end_of_utterance>", ("<end_of_utterance>",)),
}
# What a template writes before the words and the model too (or what its own {% generation %} marks).
BEFORE = {
    "gptoss": r"(<\|start\|>assistant)?<\|channel\|>final<\|message\|>",
    "muse_glimmer": r"(<\|start\|>assistant)? to=user<\|message\|>",
    "deepseek_r1_distill_training": "<｜Assistant｜>",
    "deepseekv3_training": "<｜Assistant｜>",
}
THOUGHT = r"\s*(<think>\s*)?(</think>)?\s*"
CALLERS = (
    "qwen",
    "gemma4",
    "diffusion",
    "deepseek",
    "glm",
    "gptoss",
    "lfm2_v2",
    "llama3_1",
    "llama3_2",
    "nemotron",
    "muse",
)
NO_CALLS = ("qwen2_5_vl", "lfm2_training")
SPECIAL = re.compile(
    r"<\|[A-Za-z_0-9]+\|>|<｜[^｜>]+｜>|<(?:start|end)_of_\w+>|<\|?turn\|?>|<\|?tool_(?:call|response)\|?>|<\|?channel\|?>"
)


def user(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def said(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def calling(*arguments: Any, text: str | None = None, **more: Any) -> dict[str, Any]:
    calls = [
        {"id": f"abcdefgh{at}", "type": "function", "function": {"name": "heron", "arguments": given}}
        for at, given in enumerate(arguments)
    ]
    return said(text, tool_calls=calls, **more)


RESULT = {"role": "tool", "content": "ferret rain", "tool_call_id": "abcdefgh0", "name": "heron"}
TOOLS = [
    {"type": "function", "function": {
        "name": "heron", "description": "Weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "where"}}},
    }}
]  # fmt: skip
NESTED = {"place": {"name": "Tromsø 🙂", "codes": [1, None, 12345678901234567890123]}, "none": None, "sure": True}
ASIDE = ("zebra", "walrus", "ferret", "ocelot", "Weather of a place")
"""Words of those who are no assistant: none may be scored."""
SYSTEM = {"role": "system", "content": "walrus rules"}
KINDS: dict[str, list[dict[str, Any]]] = {
    "single": [user("zebra?"), said("Good day")],
    "system": [SYSTEM, user("zebra?"), said("Good day")],
    "multi": [user("zebra?"), said("Good day"), user("zebra two"), said("More words")],
    "developer": [{"role": "developer", "content": "ocelot"}, user("zebra?"), said("Good day")],
    "empty": [user("zebra?"), said("")],
    "spaces": [user("zebra?"), said("  Good day \n")],
    "unicode": [user("zebra 你好 🙂?"), said("Ça va — 你好 🙂")],
    "looks like special tokens": [user("zebra?"), said("<|im_start|>user\nHi<|im_end|> <|user|> [INST] <end_of_turn> so")],
    "looks like roles": [user("assistant: zebra"), said("user: Hi\nassistant: Yes\n### User:\nso")],
    "inline reasoning": [user("zebra?"), said("<think>\nhmm so\n</think>\n\nGood day")],
    "reasoning": [user("zebra?"), said("Good day", reasoning_content="hmm so")],
    "reasoning of two": [user("zebra?"), said("Good day", reasoning="hmm"), user("zebra"), said("Fine words", thinking="ah")],
    "call": [user("zebra?"), calling({"place": "Oslo"})],
    "call as text": [user("zebra?"), calling('{"place": "Oslo"}')],
    "two calls": [user("zebra?"), calling({"place": "Oslo"}, {"place": "Rome"})],
    "text beside a call": [user("zebra?"), calling({"place": "Oslo"}, text="Let me look.")],
    "nested arguments": [user("zebra?"), calling(NESTED)],
    "no arguments": [user("zebra?"), calling({})],
    "result": [user("zebra?"), calling({"place": "Oslo"}), RESULT, said("It rains.")],
    "result and reasoning": [
        user("zebra?"), calling({"place": "Oslo"}, reasoning_content="must look"), RESULT,
        said("It rains.", reasoning_content="so rain"),
    ],
    "result, then more": [user("zebra?"), calling({"place": "Oslo"}), RESULT, said("It rains."), user("zebra"), said("Bye")],
    "two answers": [user("zebra?"), said("Good day"), said("Fine words")],
    "system in the middle": [user("zebra?"), said("Good day"), SYSTEM, user("zebra"), said("Fine words")],
    "weight 0": [user("zebra?"), said("Good day", weight=0), user("zebra"), said("Fine words")],
    "name": [user("zebra?", name="bob"), said("Good day")],
    "parts": [user([{"type": "text", "text": "zebra"}]), said([{"type": "text", "text": t} for t in ("Good", " day")])],
    "the assistant opens": [said("Hello"), user("zebra?"), said("Good day")],
    "an open tag": [user("zebra?"), said("<think>never closed")],
    "two results": [user("zebra?"), calling({"place": "Oslo"}, {"place": "Rome"}), RESULT, RESULT, said("It rains.")],
    "prompt is the answer": [user("Good day"), said("Good day")],
}  # fmt: skip
ALWAYS = ("single", "multi", "spaces", "unicode", "looks like special tokens", "looks like roles", "weight 0", "name",
          "parts", "prompt is the answer", "empty")  # fmt: skip
"""No template may refuse these."""


def longest(table: dict[str, Any], name: str, default: Any = None) -> Any:
    return next((table[key] for key in sorted(table, key=len, reverse=True) if name.startswith(key)), default)


@cache
def tokenizer_of(name: str) -> Any:
    made, template = tiny_tokenizer(), (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    eos = longest(ENDS, name)[0]
    made.add_special_tokens({"additional_special_tokens": sorted({*SPECIAL.findall(template), eos})})
    made.eos_token, made.chat_template = eos, template
    made.bos_token = "<bos>" if "bos_token" in template else None
    return prepare(made)


def scored_text(name: str, messages: list[dict[str, Any]]) -> str:
    """What is scored of a row, all turns one after another."""
    tools = {"tools": TOOLS} if any("tool_calls" in turn for turn in messages) else {}
    tokenizer = tokenizer_of(name)
    ids, labels = encode(tokenizer, [from_messages({"messages": messages, **tools})], max_length=100_000).row(0)
    return str(tokenizer.decode(ids[labels != IGNORED], clean_up_tokenization_spaces=False))


def scored_or_refused(name: str, messages: list[dict[str, Any]]) -> tuple[str | None, str]:
    """What is scored, or why the row is refused."""
    try:
        return scored_text(name, messages), ""
    except (DataError, BadRow) as error:
        return None, str(error)


def text_of(turn: dict[str, Any]) -> str:
    content = turn["content"] or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_scored_is_what_the_assistant_says(name: str, kind: str) -> None:
    messages = KINDS[kind]
    scored, refusal = scored_or_refused(name, messages)
    if scored is None:
        assert kind not in ALWAYS, f"{name} refuses {kind}: {refusal}"
        assert kind != "call" or not name.startswith(CALLERS) or name.startswith(NO_CALLS), refusal
        assert "chat template" in refusal, "a refusal must name its cause"
        return
    answers = [turn for turn in messages if turn["role"] == "assistant" and turn.get("weight") != 0]
    plain = not any(key in turn for turn in answers for key in ("tool_calls", "reasoning", "reasoning_content"))
    assert not any(word in scored for word in ASIDE), f"others' words are scored: {scored!r}"
    assert not scored.endswith("\n"), f"what follows the end of the turn is scored: {scored!r}"
    if kind == "empty":
        assert scored == "", "an end-of-turn token alone is no answer"
    elif plain and kind not in ("inline reasoning", "two answers"):
        assert re.fullmatch(pattern(name, answers), scored), f"{scored!r} is not the answers and their ends"
    else:
        check_parts(scored, answers)


def pattern(name: str, answers: list[dict[str, Any]]) -> str:
    """The words of the turns, each with what the template writes around it."""
    ends = "|".join(map(re.escape, longest(ENDS, name)[1]))
    turns = (rf"{THOUGHT}\s*{re.escape(text_of(turn).strip())}\s*({ends})" for turn in answers)
    return "".join(longest(BEFORE, name, "") + turn for turn in turns)


def check_parts(scored: str, answers: list[dict[str, Any]]) -> None:
    """Words, names, values and the last turn's thoughts stand in what is scored, in the order of the turns."""
    at = 0
    for turn in answers:
        for piece in text_of(turn).replace("<think>", "</think>").split("</think>"):
            assert piece.strip() in scored[at:], f"{piece!r} is not scored, or out of order: {scored!r}"
        thought = turn.get("reasoning_content") or turn.get("thinking")
        if thought and turn is answers[-1]:
            assert thought in scored[at:], f"the thought {thought!r} is not scored: {scored!r}"
        calls = [call["function"]["arguments"] for call in turn.get("tool_calls", ())]
        assert scored.count("heron") >= len(calls), f"a call is not scored: {scored!r}"
        for arguments in calls:
            assert '\\"place' not in scored, f"arguments are encoded twice: {scored!r}"
            if "place" in arguments:
                assert any(place in scored[at:] for place in ("Oslo", "Tromsø 🙂")), scored
        at = max(at, scored.find(text_of(turn).strip()))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversations_own_text_is_what_the_model_sees(name: str) -> None:
    tokenizer = tokenizer_of(name)
    row = from_messages({"messages": KINDS["multi"]})
    ids, _ = encode(tokenizer, [row], max_length=100_000).row(0)
    if name.startswith(("idefics", "smolvlm", "llava")):
        pytest.skip("takes contents in parts only")
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(list(row.messages), tokenize=False)


MARKED = [name for name in TEMPLATES if "generation %}" in (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", MARKED)
def test_what_a_template_marks_is_scored_up_to_the_end_of_the_turn(name: str) -> None:
    """As TRL scores it, but for what stands behind an end-of-turn token."""
    if name.startswith(("idefics", "smolvlm", "llava")):
        pytest.skip("takes contents in parts only")
    tokenizer, messages = tokenizer_of(name), KINDS["single"]
    marked = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(marked["input_ids"], marked["assistant_masks"], strict=True)
    by_trl = tokenizer.decode([token for token, scored in pairs if scored])
    scored = scored_text(name, messages)
    assert by_trl.startswith(scored), f"TRL scores {by_trl!r}, tov {scored!r}"
    assert scored.endswith(longest(ENDS, name)[1]), scored
