"""Log p of one sentence's tags or one text's label, with transformers and peft alone and a float64 softmax."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def tag_logprobs(model: Any, tokenizer: Any, words: list[str], tags: list[str]) -> list[float]:
    """log p of each word's tag, read at the word's first sub-token.

    Args:
        model: a token classification model, adapted or not, in evaluation mode; its config names the labels.
        tokenizer: of the model.
        words: of one sentence that fits the model.
        tags: of the words.
    """
    ids, first = [tokenizer.cls_token_id], []
    for word in words:
        first.append(len(ids))
        ids += tokenizer(word, add_special_tokens=False)["input_ids"]
    logits = model(input_ids=torch.tensor([[*ids, tokenizer.sep_token_id]])).logits[0].double()
    found = []
    for place, tag in zip(first, tags, strict=True):
        found.append(float(logits[place].log_softmax(0)[model.config.label2id[tag]]))
    return found


@torch.no_grad()
def label_logprob(model: Any, tokenizer: Any, text: str, label: str) -> list[float]:
    """log p of a text's label, as a list of one."""
    logits = model(**tokenizer(text, return_tensors="pt")).logits[0].double()
    return [float(logits.log_softmax(0)[model.config.label2id[label]])]
