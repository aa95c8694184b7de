"""Answers that a causal model writes by itself, by transformers' own generation. Greedy, so that a seed has no part in it.

An answer ends where the chat template ends a turn, which the generation settings of base models do not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from tov.data.rows import Row
from tov.model.load import longest
from tov.text.chat import Context, Message
from tov.text.encode import Encoder
from tov.text.spans import render_prompt

BATCH_ROWS = 16
NEW_TOKENS = 256
"""Most tokens of an answer."""


class Asked(Row, Protocol):
    """A row of a task whose answers can be generated (`Task.generates`)."""

    @property
    def prompt(self) -> Sequence[Message]:
        """The turns before the answer; none where there is nothing to ask."""

    @property
    def context(self) -> Context:
        """What the chat template is given beside the turns."""

    @property
    def answer(self) -> str:
        """The reference."""


@torch.inference_mode()
def answers(adapted: Any, encode: Encoder, rows: Sequence[Asked]) -> list[str]:
    """What the model answers to each row's prompt.

    Args:
        adapted: a PeftModel of a causal model.
        encode: has its tokenizer, with a chat template, and the tokens that a prompt may have, less what the model cannot take
            beside an answer; of a longer one the end is kept.
        rows: what is asked.
    """
    was_training, tokenizer = adapted.training, encode.tokenizer
    limit = longest(adapted.get_base_model().config, tokenizer)
    new = min(NEW_TOKENS, max(1, limit // 2)) if limit else NEW_TOKENS
    max_length = min(encode.max_length, max(1, limit - new)) if limit else encode.max_length
    adapted.eval()
    try:
        prompts = [render_prompt(tokenizer, row.prompt, row.context) for row in rows]
        starts, ends = range(0, len(prompts), BATCH_ROWS), _ends(adapted, encode, rows)
        batches = (prompts[at : at + BATCH_ROWS] for at in starts)
        return [text for batch in batches for text in _batch(adapted, tokenizer, batch, max_length, new, ends)]
    finally:
        adapted.train(was_training)


def _ends(adapted: Any, encode: Encoder, rows: Sequence[Asked]) -> list[int]:
    """Tokens that end an answer: the model's and the tokenizer's own, and the special one that ends a row's last turn."""
    tokenizer, known = encode.tokenizer, adapted.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}
    encoded = replace(encode, max_length=10**9)(rows[:1])
    scored = encoded.ids[encoded.scored]
    if len(scored) and int(scored[-1]) in tokenizer.all_special_ids:
        ends.add(int(scored[-1]))
    return sorted(end for end in ends if end is not None)


def _batch(
    adapted: Any, tokenizer: Any, prompts: Sequence[str], max_length: int, new: int, ends: list[int]
) -> list[str]:  # fmt: skip
    prompt_ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"][-max_length:] for prompt in prompts]
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    width, device = max(map(len, prompt_ids)), next(adapted.parameters()).device
    ids = torch.tensor([[padding] * (width - len(row)) + row for row in prompt_ids], device=device)
    filled = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompt_ids], device=device)
    generated = adapted.generate(
        input_ids=ids, attention_mask=filled, do_sample=False, max_new_tokens=new, pad_token_id=padding,
        eos_token_id=ends or None, temperature=None, top_p=None, top_k=None,
    )  # fmt: skip
    return list(tokenizer.batch_decode(generated[:, width:], skip_special_tokens=True))
