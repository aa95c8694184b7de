"""Masks: under every chat template, what is scored is what the assistant wrote and its end-of-turn token, no more, no less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from tov.errors import DataError, ModelError
from tov.model.load import load_tokenizer
from tov.tasks import TASKS
from tov.tasks.instruction import Conversation, encode
from tov.text.chat import prepare
from tov.text.encode import IGNORED, Encoded
from tov.text.spans import render

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_WITHOUT_PROMPT = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{%- else %}"
    "{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}{%- for message in messages %}"
    "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) "
    "or (message.role == 'assistant' and not message.tool_calls) %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in loop_messages %}{%- if message['role'] == 'user' %}"
    "{%- if loop.last and system_message is defined %}"
    "{{- '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}{%- else %}"
    "{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}{%- elif message['role'] == 'assistant' %}"
    "{{- ' ' + message['content'] + eos_token}}{%- endif %}{%- endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
    "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (
    "{%- set ns = namespace(last=-1) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{%- set content = message.content %}{%- if message.role == 'assistant' %}{%- set reasoning = '' %}"
    "{%- if '</think>' in content %}"
    "{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or reasoning) %}"
    "{{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}{%- else %}"
    "{{- '<|im_start|>' + message.role + '\n' + content }}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{%- for message in messages %}{%- if message['role'] == 'system' %}{{ message['content'] }}"
    "{%- elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor %}{% if add_generation_prompt %}"
    "{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """A template with its tokenizer's special tokens and what it makes of an assistant's text."""

    template: str | None
    specials: tuple[str, ...]
    eos: str
    bos: str | None = None
    shown: Callable[[str], str] = lambda answer: answer
    last: Callable[[str], str] | None = None
    system: bool = True
    spaces: bool = False  # SentencePiece-like tokens, "▁word"
    declared: bool = True  # whether all special tokens are named in the tokenizer, not only bos and eos


IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
PHI = ("<|end|>", "<|user|>", "<|system|>", "<|assistant|>")
CASES = {
    "chatml": Case(CHATML, IM, "<|im_end|>", shown="{}<|im_end|>".format),
    "chatml without a generation prompt": Case(CHATML_WITHOUT_PROMPT, IM, "<|im_end|>", shown="{}<|im_end|>".format),
    "smollm2": Case(SMOLLM2, IM, "<|im_end|>", shown="{}<|im_end|>".format),
    "qwen2.5": Case(QWEN25, IM, "<|im_end|>", shown="{}<|im_end|>".format),
    "qwen2.5 base, other eos": Case(QWEN25, IM, "<|endoftext|>", shown="{}<|im_end|>".format, declared=False),
    "llama-3": Case(
        LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>", "<|begin_of_text|>",
        shown="{}<|eot_id|>".format,
    ),
    "llama-2": Case(LLAMA2, (), "</s>", "<s>", shown=" {} </s>".format, spaces=True),
    "llama-2, byte-level": Case(LLAMA2, (), "</s>", "<s>", shown=" {} </s>".format),
    "mistral": Case(MISTRAL, ("[INST]", "[/INST]"), "</s>", "<s>", shown=" {}</s>".format, spaces=True, system=False),
    "gemma": Case(
        GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>", shown="{}<end_of_turn>".format, system=False
    ),
    "phi-3": Case(PHI3, PHI, "<|endoftext|>", shown="{}<|end|>".format),
    "phi-3, undeclared specials": Case(PHI3, PHI, "<|endoftext|>", shown="{}<|end|>".format, declared=False),
    "zephyr": Case(ZEPHYR, (), "</s>", "<s>", shown="{}</s>".format),
    "generation mask": Case(MARKED, IM, "<|im_end|>", shown="{}<|im_end|>".format),
    # Qwen3 opens the last answer with a reasoning block that the model generates itself, so it belongs to the answer.
    "qwen3": Case(QWEN3, IM, "<|im_end|>", shown="{}<|im_end|>".format, last="<think>\n\n</think>\n\n{}<|im_end|>".format),
    "deepseek": Case(
        DEEPSEEK, ("<｜User｜>", "<｜Assistant｜>"), "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>",
        shown="{}<｜end▁of▁sentence｜>".format,
    ),
    "base model": Case(None, (), "<|endoftext|>", shown="{}<|endoftext|>".format),
    "base model with bos": Case(None, (), "</s>", "<s>", shown="{}</s>".format),
}  # fmt: skip

CORPUS = [
    "Say Yes. Yes. Hello there, what is the answer? The answer is 42.\n\nuser assistant system model",
    "[INST] q [/INST] <<SYS>>",
]


@cache
def trained(spaces: bool, specials: tuple[str, ...]) -> str:
    """A BPE tokenizer with real merges, as JSON: byte-level, or with a `▁` before words as SentencePiece has."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=spaces, unk_token="<unk>" if spaces else None))
    if spaces:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()]
        )
        alphabet = sorted({letter for text in CORPUS for letter in text})
        extra = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet, extra = pre_tokenizers.ByteLevel.alphabet(), []
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, special_tokens=extra, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(specials))
    return str(tokenizer.to_str())


def tokenizer_of(case: Case) -> Any:
    specials = tuple(dict.fromkeys([*case.specials, case.eos, *([case.bos] if case.bos else [])]))
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained(case.spaces, specials)), eos_token=case.eos, bos_token=case.bos,
        additional_special_tokens=list(case.specials) if case.declared else [],
    )  # fmt: skip
    made.chat_template = case.template
    return prepare(made)


def chat(*turns: str, system: str | None = None) -> Conversation:
    """A conversation; the user speaks first, then turns alternate."""
    first = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return Conversation((*first, *({"role": roles[at % 2], "content": text} for at, text in enumerate(turns))))


def scored_runs(tokenizer: Any, encoded: Encoded, row: int = 0) -> list[str]:
    """The texts of the unbroken stretches of scored tokens."""
    ids, labels = encoded.row(row)
    scored = labels != IGNORED
    edges = np.flatnonzero(np.diff(np.concatenate([[0], scored.astype(int), [0]])))
    return [
        tokenizer.decode(ids[start:stop], clean_up_tokenization_spaces=False) for start, stop in edges.reshape(-1, 2)
    ]


def expected(case: Case, row: Conversation) -> list[str]:
    answers = [(at, str(turn["content"])) for at, turn in enumerate(row.messages) if turn["role"] == "assistant"]
    final = len(row.messages) - 1
    return [(case.last if case.last and at == final else case.shown)(answer) for at, answer in answers]


# Every answer stands in a question too, and is repeated: a substring search would mark the wrong place.
ROWS = {
    "single": chat("Say Yes.", "Yes."),
    "multi": chat("Say Yes.", "Yes.", "Say Yes. Again: Yes.", "Yes.", "What is 42?", "The answer is 42.\n\nYes."),
    "system": chat("Say Yes.", "Yes.", "Why?", "Hello there", system="Yes. The answer is Yes."),
    "markup": chat("Give a table", "<table>\n  <b>Yes.</b>"),
    "unicode": chat("你好 🙂?", "Ça va — 你好 🙂"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ROWS)
def test_scored_tokens_are_the_assistants(name: str, kind: str) -> None:
    case, row = CASES[name], ROWS[kind]
    if kind == "system" and not case.system:
        pytest.skip("the template takes no system turn, or moves it (its own test is below)")
    tokenizer = tokenizer_of(case)
    runs = scored_runs(tokenizer, encode(tokenizer, [row], max_length=4096))
    wanted = expected(case, row)
    if case.spaces:  # their decoder drops the space before a text's first word
        runs, wanted = [run.strip() for run in runs], [text.strip() for text in wanted]
    assert runs == wanted, f"the mask is wrong in:\n{render(tokenizer, row.messages).text}"


@pytest.mark.parametrize("name", CASES)
def test_rows_encoded_together_equal_rows_encoded_alone(name: str) -> None:
    tokenizer = tokenizer_of(CASES[name])
    rows = [ROWS["single"], chat("What?", "Hello there"), ROWS["unicode"]]
    together = encode(tokenizer, rows, max_length=4096)
    for at, row in enumerate(rows):
        alone = encode(tokenizer, [row], max_length=4096)
        for one, two in zip(together.row(at), alone.row(0), strict=True):
            np.testing.assert_array_equal(one, two, err_msg=f"row {at}: neighbours change a row's tokens or mask")


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_the_template(name: str) -> None:
    tokenizer = tokenizer_of(CASES[name])
    ids, _ = encode(tokenizer, [ROWS["single"]], max_length=4096).row(0)
    direct = tokenizer.apply_chat_template(list(ROWS["single"].messages), tokenize=True, return_dict=True)["input_ids"]
    assert ids.tolist() == list(direct), "BOS twice, or other tokens than the model sees in use"


# Templates that refuse, rewrite or hide


@pytest.mark.parametrize(
    "template",
    [
        GEMMA,
        GEMMA.replace("{{ '<start_of_turn>' + role", "{% generation %}{% endgeneration %}{{ '<start_of_turn>' + role"),
    ],
)
def test_a_template_that_takes_no_system_turn_says_so(template: str) -> None:
    case = CASES["gemma"]
    tokenizer = tokenizer_of(Case(template, case.specials, case.eos, case.bos))
    with pytest.raises(DataError, match="System role not supported") as caught:
        encode(tokenizer, [chat("a", "b", system="S")], max_length=64)
    assert "system, user, assistant" in str(caught.value), "the message must name the row's turns"
    assert "do:" in str(caught.value)


def test_mistral_moves_the_system_turn_into_the_last_question() -> None:
    case = CASES["mistral"]
    tokenizer = tokenizer_of(case)
    row = chat("Say Yes.", "Yes.", system="The answer")
    runs = scored_runs(tokenizer, encode(tokenizer, [row], max_length=4096))
    assert [run.strip() for run in runs] == ["Yes.</s>"]


def test_reasoning_that_the_template_drops_from_earlier_turns() -> None:
    case = CASES["qwen3"]
    tokenizer = tokenizer_of(case)
    row = chat("Say Yes.", "<think>\nhm\n</think>\n\nYes.", "Why?", "<think>\nah\n</think>\n\nHello")
    runs = scored_runs(tokenizer, encode(tokenizer, [row], max_length=4096))
    assert runs == ["Yes.<|im_end|>", "<think>\nah\n</think>\n\nHello<|im_end|>"], (
        "an earlier turn is scored as the template shows it, without the reasoning that it drops"
    )


def test_reasoning_of_the_last_turn_that_the_template_drops_is_an_error() -> None:
    tokenizer = tokenizer_of(CASES["deepseek"])
    row = chat("Say Yes.", "<think>hm</think>Yes.", "Why?", "<think>ah</think>Hello")
    with pytest.raises(DataError, match=r"leaves out what turn 4 .* is scored by: its reasoning"):
        encode(tokenizer, [row], max_length=4096)


def test_a_conversation_that_the_assistant_opens() -> None:
    tokenizer = tokenizer_of(CASES["chatml"])
    row = Conversation(({"role": "assistant", "content": "Hello"}, *chat("Hi", "Yes.").messages))
    assert scored_runs(tokenizer, encode(tokenizer, [row], max_length=4096)) == ["Hello<|im_end|>", "Yes.<|im_end|>"], (
        "the header of an opening assistant turn is the template's, not the assistant's"
    )


def test_two_assistant_turns_in_a_row() -> None:
    tokenizer = tokenizer_of(CASES["chatml"])
    row = Conversation((*chat("Hi", "Yes.").messages, {"role": "assistant", "content": "Hello"}))
    assert scored_runs(tokenizer, encode(tokenizer, [row], max_length=4096)) == ["Yes.<|im_end|>", "Hello<|im_end|>"]


def test_white_space_of_an_answer_is_the_answers() -> None:
    tokenizer = tokenizer_of(CASES["chatml"])
    row = chat("Hi", "  Yes.\n", "Again", "\n Hello \n\n")
    runs = scored_runs(tokenizer, encode(tokenizer, [row], max_length=4096))
    assert runs == ["  Yes.\n<|im_end|>", "\n Hello \n\n<|im_end|>"]


HOPELESS = {
    "last turn first": "{% for message in messages | reverse %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}",
    "assistant left out": (
        "{% for message in messages %}{% if message['role'] != 'assistant' %}{{ message['content'] }}{% endif %}{% endfor %}"
    ),
    "answer not shown": "{% for message in messages %}{{ message['role'] }}: {{ message['content'] | length }}\n{% endfor %}",
}


@pytest.mark.parametrize("name", HOPELESS)
def test_a_hopeless_template_is_an_error_that_shows_the_text(name: str) -> None:
    tokenizer = tokenizer_of(Case(HOPELESS[name], (), "</s>"))
    row = chat("What is 42?", "Yes.", "Why?", "Hello")
    text = tokenizer.apply_chat_template(list(row.messages), tokenize=False)
    with pytest.raises(DataError) as caught:
        encode(tokenizer, [row], max_length=4096)
    assert text.strip()[:40] in str(caught.value).replace("\n    ", "\n"), (
        "the user must see the rendered text to find the fault"
    )
    assert "{% generation %}" in str(caught.value), "the message must say how to repair the template"


@pytest.mark.parametrize(
    "broken",
    [
        MARKED.replace("== 'assistant'", "== 'model'"),
        CHATML.replace("{% for", "{% generation %}{% endgeneration %}{% for", 1),
    ],
    ids=["for another role", "around nothing"],
)
def test_a_generation_mask_that_marks_nothing_is_an_error(broken: str) -> None:
    tokenizer = tokenizer_of(Case(broken, IM, "<|im_end|>"))
    with pytest.raises(DataError, match="marks no assistant token") as caught:
        encode(tokenizer, [chat("Hi", "Yes.")], max_length=64)
    assert "Yes." in str(caught.value)


def test_several_templates_without_a_default_are_refused() -> None:
    tokenizer = tokenizer_of(CASES["chatml"])
    tokenizer.chat_template = {"tool_use": CHATML, "rag": CHATML}
    with pytest.raises(ModelError, match="several chat templates"):
        prepare(tokenizer)


def test_a_dictionary_of_templates_uses_its_default() -> None:
    tokenizer = tokenizer_of(CASES["chatml"])
    tokenizer.chat_template = {"default": CHATML, "rag": ZEPHYR}
    assert scored_runs(prepare(tokenizer), encode(tokenizer, [ROWS["single"]], max_length=64)) == ["Yes.<|im_end|>"]


# Plain text, empty answers, truncation


def test_plain_text_is_scored_but_for_its_first_token() -> None:
    tokenizer = tokenizer_of(CASES["base model"])
    row = Conversation(({"role": "assistant", "content": "Hello there, Yes."},), plain=True)
    ids, labels = encode(tokenizer, [row], max_length=64).row(0)
    scored = labels != IGNORED
    assert not scored[0], "nothing predicts the first token"
    assert scored[1:].all()
    assert tokenizer.decode(ids) == "Hello there, Yes.<|endoftext|>"


def test_plain_text_after_bos_is_scored_whole() -> None:
    tokenizer = tokenizer_of(CASES["base model with bos"])
    row = Conversation(({"role": "assistant", "content": "Hello there"},), plain=True)
    assert scored_runs(tokenizer, encode(tokenizer, [row], max_length=64)) == ["Hello there</s>"]


def test_plain_text_under_a_template_with_a_generation_mask() -> None:
    tokenizer = tokenizer_of(CASES["generation mask"])
    rows = [Conversation(({"role": "assistant", "content": "Hello there"},), plain=True), ROWS["single"]]
    encoded = encode(tokenizer, rows, max_length=64)
    assert tokenizer.decode(encoded.row(0)[0]) == "Hello there<|im_end|>", "bare text gets no template"
    assert scored_runs(tokenizer, encoded, 1) == ["Yes.<|im_end|>"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_answer_has_no_scored_token(name: str, empty: str) -> None:
    tokenizer = tokenizer_of(CASES[name])
    encoded = encode(tokenizer, [chat("Hi", empty)], max_length=64)
    assert encoded.scored_counts.tolist() == [0], "an end-of-turn token alone is no answer"


def test_an_empty_turn_among_others_is_left_out() -> None:
    tokenizer = tokenizer_of(CASES["chatml"])
    runs = scored_runs(tokenizer, encode(tokenizer, [chat("Hi", "", "Again", "Yes.")], max_length=64))
    assert runs == ["Yes.<|im_end|>"]


@pytest.mark.parametrize("name", ["chatml", "generation mask", "llama-2", "base model"])
def test_truncation_cuts_the_end_and_nothing_else(name: str) -> None:
    tokenizer = tokenizer_of(CASES[name])
    ids, labels = encode(tokenizer, [ROWS["multi"]], max_length=4096).row(0)
    for length in range(1, len(ids) + 1):
        cut = encode(tokenizer, [ROWS["multi"]], max_length=length)
        np.testing.assert_array_equal(cut.row(0)[0], ids[:length])
        np.testing.assert_array_equal(cut.row(0)[1], labels[:length])
        assert cut.lost[0] == (labels[length:] != IGNORED).sum(), f"{length} of {len(ids)} tokens"


def test_a_row_whose_answer_is_cut_away_has_no_scored_token() -> None:
    tokenizer = tokenizer_of(CASES["chatml"])
    encoded = encode(tokenizer, [chat("Say " * 50, "Yes."), ROWS["single"]], max_length=40)
    assert encoded.scored_counts[0] == 0
    assert encoded.scored_counts[1] > 0
    assert encoded.lost[0] > 0
    assert encoded.lost[1] == 0
    assert encoded.lengths.max() <= 40


@pytest.mark.parametrize("name", CASES)
def test_the_first_token_is_never_scored(name: str) -> None:
    tokenizer = tokenizer_of(CASES[name])
    plain = Conversation(({"role": "assistant", "content": "Yes."},), plain=True)
    for row in (ROWS["single"], plain):
        assert not encode(tokenizer, [row], max_length=64).scored[0]


def test_what_is_known_of_one_template_is_not_taken_for_another() -> None:
    """What holds for every row of a template is found once; a tokenizer may get another template."""
    tokenizer = tokenizer_of(CASES["chatml"])
    chatml = tokenizer.chat_template
    only_opened = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"
    rows = [ROWS["multi"]]
    alone = {}
    for template in (chatml, only_opened):
        fresh = tokenizer_of(CASES["chatml"])
        fresh.chat_template = template
        alone[template] = scored_runs(fresh, encode(fresh, rows, max_length=4096))
    assert alone[chatml] != alone[only_opened]
    for template in (only_opened, chatml, only_opened):
        tokenizer.chat_template = template
        assert scored_runs(tokenizer, encode(tokenizer, rows, max_length=4096)) == alone[template]


def test_no_rows_give_an_empty_shard() -> None:
    encoded = encode(tokenizer_of(CASES["chatml"]), [], max_length=64)
    assert len(encoded) == 0
    assert encoded.scored_counts.tolist() == []


def test_taking_and_joining_rows_keeps_them() -> None:
    tokenizer = tokenizer_of(CASES["chatml"])
    encoded = encode(tokenizer, [ROWS["single"], ROWS["multi"], ROWS["unicode"]], max_length=64)
    again = Encoded.concatenate([encoded.take([2]), encoded.take([]), encoded.take([0, 1])])
    for place, row in enumerate([2, 0, 1]):
        for one, two in zip(again.row(place), encoded.row(row), strict=True):
            np.testing.assert_array_equal(one, two)


# Tokenizers that cannot tell where a token came from


def slow_tokenizer(template: str | None) -> Any:
    tokenizer = ByT5Tokenizer(extra_ids=0, additional_special_tokens=list(IM))
    tokenizer.chat_template = template
    return prepare(tokenizer)


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["spans", "generation mask"])
@pytest.mark.parametrize("kind", ["single", "multi", "system", "unicode"])
def test_slow_tokenizers_get_the_same_mask(template: str, kind: str) -> None:
    tokenizer = slow_tokenizer(template)
    assert not tokenizer.is_fast, "this test is for tokenizers written in Python"
    row = ROWS[kind]
    bare = [
        run.replace("<|im_end|>", "").strip("\n")
        for run in scored_runs(tokenizer, encode(tokenizer, [row], max_length=4096))
    ]
    assert bare == [turn["content"] for turn in row.messages if turn["role"] == "assistant"]


def test_slow_tokenizers_leave_out_the_newline_after_the_end_of_turn() -> None:
    tokenizer = slow_tokenizer(CHATML)
    assert scored_runs(tokenizer, encode(tokenizer, [ROWS["single"]], max_length=4096)) == ["Yes.<|im_end|>"], (
        "fast and slow tokenizers must score the same tokens"
    )


# The real thing


@pytest.fixture(scope="module")
def real(smollm2: str) -> Any:
    return load_tokenizer(smollm2, task=TASKS["instruction"])


@pytest.mark.model
@pytest.mark.parametrize("kind", ROWS)
def test_smollm2_scores_the_answers(real: Any, kind: str) -> None:
    row = ROWS[kind]
    runs = scored_runs(real, encode(real, [row], max_length=1024))
    assert runs == [f"{turn['content']}<|im_end|>" for turn in row.messages if turn["role"] == "assistant"]


@pytest.mark.model
def test_smollm2_has_its_default_system_prompt(real: Any) -> None:
    ids, _ = encode(real, [ROWS["single"]], max_length=1024).row(0)
    assert real.decode(ids).startswith("<|im_start|>system\n"), "the model's own template must be used"
    assert ids.tolist().count(real.convert_tokens_to_ids("<|im_start|>")) == 3
