"""Tiny models, tokenizers and pools, built on the spot: a whole run on them takes about a second."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.normalizers import BertNormalizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 300
"""Rows of a tiny model's head: the tokenizer's 259 tokens and some that no text has, as real models have them."""
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(*, chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token a byte, plus ChatML's special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    made.chat_template = chat_template
    return made


def tiny_llama(
    *, dtype: torch.dtype = torch.float32, seed: int = 0, vocabulary: int = VOCABULARY, **config: Any
) -> LlamaForCausalLM:
    """A random Llama of 2 layers and width 32, in evaluation mode; weights are wide enough for its losses to differ."""
    settings = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, **config,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**settings)).to(dtype).eval()


def tiny_model_folder(
    tmp_path: Path, *, seed: int = 0, chat_template: str | None = CHATML, name: str = "tiny-model", **config: Any
) -> Path:
    """A folder that `tov.select(model=...)` takes: a tiny random Llama and its tokenizer."""
    folder = Path(tmp_path) / name
    tiny_llama(seed=seed, **config).save_pretrained(folder)
    tiny_tokenizer(chat_template=chat_template).save_pretrained(folder)
    return folder


def tiny_encoder_folder(tmp_path: Path, *, seed: int = 0, name: str = "tiny-encoder", **config: Any) -> Path:
    """A random BERT of 2 layers and width 32 without a head, and a tokenizer of letters with [CLS] and [SEP]."""
    signs = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *signs, *(f"##{sign}" for sign in signs)]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    settings = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 0, **config,
    }  # fmt: skip
    folder = Path(tmp_path) / name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(BertConfig(**settings)).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=128,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make_rows(count: int, *, seed: int = 0, shortest: int = 1, longest: int = 20) -> list[dict[str, str]]:
    """Distinct prompt + completion rows; answers of `shortest` to `longest` letters."""
    draw = random.Random(seed)
    return [
        {
            "prompt": f"q{seed}.{number} " + _letters(draw, draw.randint(1, 12)),
            "completion": _letters(draw, draw.randint(shortest, longest)),
        }
        for number in range(count)
    ]


def _letters(draw: random.Random, count: int) -> str:
    return "".join(draw.choice("abcdefghij klmnop") for _ in range(count - 1)) + draw.choice("xyz")
