"""Token ids as the pieces of text that they stand for, for a reader. Must not know rows, models or scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_TOKENS = 8
"""Tokens that make one character at most; bytes that are no text stay as the replacement character."""
BROKEN = "\ufffd"


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """A piece of text for each token; together they are the row's text.

    A character of several tokens stands at the last of them, and the others are empty. A token is decoded beside the one before
    it, because many tokenizers leave out the space in front of a text's first token.

    Args:
        tokenizer: of the model.
        ids: (T,) of one row.
    """

    def text(part: Sequence[int]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    found, start = [""] * len(ids), 0
    for stop in range(1, len(ids) + 1):
        before = max(start - 1, 0)
        lead, whole = text(ids[before:start]) if start else "", text(ids[before:stop])
        piece = whole[len(lead) :] if whole.startswith(lead) else text(ids[start:stop])
        if piece.endswith(BROKEN) and stop - start < MOST_TOKENS and stop < len(ids):
            continue
        found[stop - 1], start = piece, stop
    return found
