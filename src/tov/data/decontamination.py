"""Which pool rows may not be chosen, and why: leaks from the target, repeats, unreadable rows. Pure NumPy on hashes."""

from __future__ import annotations

import numpy as np

from tov.data.pool import Index

USABLE, IN_TARGET, DUPLICATE, UNREADABLE, NO_TOKENS, IN_TEST, NOT_GOLD, NEAR_TEST, REFUSED, NOT_SCORED = range(10)
REASONS = (
    "", "prompt in target", "repeat of an earlier row", "unreadable", "no scored tokens", "prompt in test",
    "marked as not right", "near duplicate of the test", "refused by the model's template", "not scored",
)  # fmt: skip
"""The words for the codes above; they stand in the score table's column `excluded`."""
KEPT_APART = (UNREADABLE, REFUSED, NOT_SCORED)
"""Of rows that something is wrong with; their reason goes on behind a colon."""


def left_out(codes: np.ndarray, pool: Index) -> str:
    """`3 prompt in target, 1 unreadable (no assistant turn)`: how many rows may not be chosen, and why."""
    parts = []
    for code, reason in enumerate(REASONS):
        count = int((codes == code).sum())
        if code != USABLE and count:
            first = f" (the first: row_id {min(pool.bad)}, {pool.bad[min(pool.bad)]})" if code == UNREADABLE else ""
            parts.append(f"{count:,} {reason}{first}")
    return ", ".join(parts)


def exclusions(
    pool: Index, target_prompts: np.ndarray, *, decontaminate: bool, test_prompts: np.ndarray | None = None
) -> np.ndarray:
    """(N,) uint8 code of every pool row.

    A row is excluded if its prompt (case and white space ignored) is a prompt of the test; under decontamination also if it is
    one of the target, or if an earlier pool row has the same conversation.

    Args:
        pool: hashes of the pool's rows.
        target_prompts: (M,) uint64 prompt hashes of the target.
        decontaminate: whether leaks from the target and repeats are excluded.
        test_prompts: uint64 prompt hashes of the test, if there is one.
    """
    codes = np.zeros(len(pool.content), np.uint8)
    if decontaminate:
        first = np.zeros(len(codes), bool)
        first[np.unique(pool.content, return_index=True)[1]] = True
        codes[~first] = DUPLICATE
        codes[np.isin(pool.prompt, target_prompts)] = IN_TARGET
    if test_prompts is not None:
        codes[np.isin(pool.prompt, test_prompts)] = IN_TEST
    codes[list(pool.bad)] = UNREADABLE
    codes[list(pool.not_gold)] = NOT_GOLD
    return codes
