"""The inputs of the golden runs: pools, targets, tests and tiny models, the same to the last bit on every machine.

Everything is drawn by Python's own `random.Random`, whose streams never change, so no library's version is part of the inputs.
Between them the pools have every kind of row: several sources and layouts, a prompt of the target, a repeat, an unreadable
row, one whose answer is cut in part, one of whose answer nothing is left.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tiny import tiny_encoder_folder, tiny_model_folder, write_jsonl

LETTERS = "abcdefghijklmnop"
LONGEST = 96
"""Tokens a row may have; the pool's longest rows have more."""


def instruction_rows(folder: Path) -> dict[str, Any]:
    """Files of an instruction-tuning pool (three sources, 90 rows), a target of two sources (12) and a test (7)."""
    draw = random.Random("instruction")
    target, liked = [_pair(draw, "abcdef") for _ in range(7)], [_chat(draw, "abcdef") for _ in range(5)]
    test = [_pair(draw, "abcdef") for _ in range(7)]
    web = [_pair(draw, LETTERS) for _ in range(40)]
    web[5] = {"prompt": target[1]["prompt"], "completion": "of the target"}
    web[9] = {"prompt": "nothing to learn", "completion": ""}
    web[14] = {"prompt": _word(draw, LETTERS, 2 * LONGEST), "completion": "cut away"}
    web[15] = {"prompt": "long", "completion": _word(draw, LETTERS, LONGEST)}
    web[20] = {"prompt": test[2]["prompt"], "completion": "of the test"}
    chat = [_chat(draw, "abcdef" if at % 3 else LETTERS) for at in range(30)]
    chat[7] = {"messages": _turns(web[3]["prompt"], web[3]["completion"])}
    chat[9] = {"messages": [{"role": "user", "content": "unreadable: nobody answers"}]}
    notes = [{"text": _word(draw, LETTERS, draw.randint(4, 40))} for _ in range(20)]
    notes[11] = dict(notes[2])
    files = {"pool": {"web": web, "chat": chat, "notes": notes}, "target": {"asked": target, "liked": liked}}
    return {
        "test": _write(folder, "test", {"test": test}),
        **{role: _write(folder, role, files[role]) for role in files},
    }


def ner_rows(folder: Path) -> dict[str, Any]:
    """Files of a pool of sentences with named entities (JSONL and CoNLL, 65 rows) and a target (10)."""
    draw = random.Random("ner")
    target = [_sentence(draw) for _ in range(10)]
    tweets, news = [_sentence(draw) for _ in range(40)], [_sentence(draw) for _ in range(25)]
    tweets[4] = dict(target[3])
    tweets[8] = {"tokens": ["one", "word"], "ner_tags": ["O"]}
    tweets[12] = _sentence(draw, words=30)
    news[6] = dict(tweets[2])
    conll = "\n".join(
        "".join(f"{word} {tag}\n" for word, tag in zip(row["tokens"], row["ner_tags"], strict=True)) for row in news
    )
    found = {"target": _write(folder, "target", {"target": target}), "pool": _write(folder, "pool", {"tweets": tweets})}
    (folder / "pool" / "news.conll").write_text(conll, encoding="utf-8")
    return {**found, "pool": [*found["pool"], str(folder / "pool" / "news.conll")]}


def language_model(folder: Path, **config: Any) -> str:
    """A model folder of `tests/tiny.py` with weights that no processor rounds."""
    return str(_exact(tiny_model_folder(folder, name="language-model", **config)))


def encoder(folder: Path) -> str:
    """An encoder folder of `tests/tiny.py`, likewise."""
    return str(_exact(tiny_encoder_folder(folder, name="encoder")))


def _exact(folder: Path) -> Path:
    """The folder with every matrix drawn anew as multiples of 1/1024; torch's own normal numbers differ by processor."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in sorted(weights):
        draw, old = random.Random(name), weights[name]
        if old.dim() > 1:  # biases and norms are zeros and ones
            drawn = torch.tensor([draw.randint(-358, 358) for _ in range(old.numel())], dtype=torch.float32)
            weights[name] = (drawn / 1024).reshape(old.shape)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def _write(folder: Path, role: str, files: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [str(write_jsonl(folder / role / f"{name}.jsonl", rows)) for name, rows in files.items()]


def _word(draw: random.Random, letters: str, length: int) -> str:
    return "".join(draw.choice(letters + " ") for _ in range(length - 1)) + draw.choice("xyz")


def _pair(draw: random.Random, letters: str) -> dict[str, Any]:
    return {
        "prompt": _word(draw, letters, draw.randint(6, 16)),
        "completion": _word(draw, letters, draw.randint(2, 30)),
    }


def _turns(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _chat(draw: random.Random, letters: str) -> dict[str, Any]:
    first = _turns(_word(draw, letters, draw.randint(6, 12)), _word(draw, letters, draw.randint(2, 12)))
    more = draw.choice([0, 0, 1])
    second = _turns(_word(draw, letters, 5), _word(draw, letters, draw.randint(2, 8))) if more else []
    return {"messages": [*first, *second]}


def _sentence(draw: random.Random, words: int = 0) -> dict[str, Any]:
    """Words in lower case, with a person and at times a place of two words among them."""
    tokens = [_word(draw, LETTERS, draw.randint(2, 5)).replace(" ", "e") for _ in range(words or draw.randint(3, 9))]
    tags = ["O"] * len(tokens)
    at = draw.randrange(len(tokens) - 1)
    if draw.random() < 0.5:
        tags[at : at + 2] = ["B-LOC", "I-LOC"]
    else:
        tags[at] = "B-PER"
    return {"tokens": tokens, "ner_tags": tags}
