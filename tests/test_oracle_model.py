"""On a real model: every score again, one row and one token at a time, with nothing but transformers and peft.

`TOV_ORACLE_ROWS=50` scores more rows.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import tov
from oracle import scores as oracle
from oracle.logloss import token_logprobs
from tiny import write_jsonl
from tov.model.load import resolve

ROWS = int(os.environ.get("TOV_ORACLE_ROWS", "8"))
MOST = 1e-4
"""Nats a token."""
WORDS = ["red", "green", "blue", "seven", "eleven", "river", "stone", "apple", "paper", "cloud"]


def conversation(number: int, *, target: bool = False) -> dict[str, list[dict[str, str]]]:
    """A short row; its own system turn keeps the template from adding its long one."""
    one, two = WORDS[number % 10], WORDS[(number // 10 + 3) % 10]
    answers = (f"{one}, {two}", f"I say {one}.", "No.", f"{two} and {one}, {number} times.")
    asked, answer = (f"{number} + 3?", f"It is {number + 3}.") if target else (f"{one} {number}?", answers[number % 4])
    roles = ("system", "user", "assistant")
    return {
        "messages": [{"role": role, "content": text} for role, text in zip(roles, ("Hi", asked, answer), strict=True)]
    }


def tokens_of(tokenizer, row) -> tuple[list[int], list[bool]]:
    """The row's tokens, and which of them are the answer: all after the prompt, up to the end-of-turn token."""
    turns = row["messages"]
    ids = list(tokenizer.apply_chat_template(turns)["input_ids"])
    prompt = len(tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True)["input_ids"])
    end = prompt + ids[prompt:].index(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    return ids[: end + 1], [place >= prompt for place in range(end + 1)]


def log_p_of(path: Path, name: str, rows, amplify: tuple[float, ...]) -> list[list[list[float]]]:
    """Log p of each row's answer under the stored `base` adapter, then under base + a (target - base) for each a."""
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, path / "base", adapter_name="base").eval()
    adapted.load_adapter(path / "target", adapter_name="target")
    parameters = dict(adapted.named_parameters())
    moved = {label: parameter.data.clone() for label, parameter in parameters.items() if ".target." in label}
    adapted.set_adapter("base")
    found = [[token_logprobs(adapted.eval(), ids, scored) for ids, scored in rows]]
    adapted.set_adapter("target")
    for a in amplify:
        for label, target in moved.items():
            start = parameters[label.replace(".target.", ".base.")].data
            parameters[label].data = start + a * (target - start)
        found.append([token_logprobs(adapted.eval(), ids, scored) for ids, scored in rows])
    return found


@pytest.mark.model
@pytest.mark.slow
def test_scores_equal_those_computed_one_token_at_a_time(smollm2, tmp_path):
    """Of a selection, and of its path's scan of the same pool at four times the step."""
    rows = [conversation(number) for number in range(ROWS)]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    target = write_jsonl(tmp_path / "target.jsonl", [conversation(number, target=True) for number in range(4)])
    picked = tov.select(
        model=smollm2, pool=str(pool), target=str(target), n=4, out=tmp_path / "run", dtype="fp32", device="cpu",
        base_size=ROWS // 2, epochs=1, max_length=60, amplify=1.0, quiet=True,
    )  # fmt: skip
    farther = tov.score(picked, str(pool), out=tmp_path / "farther", amplify=4.0, quiet=True)
    name = resolve(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(name)
    encoded = [tokens_of(tokenizer, row) for row in rows]
    assert max(len(ids) for ids, _ in encoded) <= 60, "the rows of this test must fit --max-length"
    base, *targets = log_p_of(tmp_path / "run" / "path" / "epoch-1", name, encoded, (1.0, 4.0))
    for run, target, amplify in zip((picked, farther), targets, (1.0, 4.0), strict=True):
        table = run.scores.to_pylist()
        assert max(abs(row["score_identity"]) for row in table) > 10 * MOST, "the scores are too small to be compared"
        largest = 0.0
        for row, before, after in zip(table, base, target, strict=True):
            assert row["tokens"] == len(before), f"row {row['row_id']}: other tokens are scored than the assistant's"
            expected = {f"score_{name}": value for name, value in oracle.row_scores(before, after).items()}
            expected["loss_base"], expected["loss_target"] = -sum(before) / len(before), -sum(after) / len(after)
            for measure, value in expected.items():
                gap = abs(row[measure] - value)
                largest = max(largest, gap)
                assert gap < MOST, (
                    f"row {row['row_id']}: {measure} is {row[measure]:.6f}, one token at a time {value:.6f}"
                )
        print(f"amplify {amplify:g}, {ROWS} rows: largest difference {largest:.2g} nat a token")
