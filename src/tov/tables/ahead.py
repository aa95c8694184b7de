"""What filling a score table will take, told before anything is trained or scanned.

Each method's own function says it, beside the one that fills: from what is known of pool and target to the stages of the run.
Must not know any method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tov.methods.arms import Arm
from tov.methods.table import imported

FIXED_BYTES, COLUMN_BYTES = 14, 5
"""Bytes that a row of the score table takes on disk: all but the scores (its hash above all), and a score; both measured."""


@dataclass(frozen=True)
class Facts:
    """What is known before a run.

    Attributes:
        settings: of the run, with the task named.
        options: the method's own, or None.
        rows: rows of the pool, also those that may not be chosen.
        usable: rows of the pool that may be chosen, as far as text tells.
        scored: of those, the rows that have a scored token.
        tokens: of the scored rows together.
        target_rows: rows of the target that have a scored token.
        target_tokens: of those together.
        width: of the model's hidden states.
        trained: how many parameters are trained under the LoRA settings of a record (`settings`, or the method's options), a
            new head's among them.
    """

    settings: Any
    options: Any
    rows: int
    usable: int
    scored: float
    tokens: float
    target_rows: int
    target_tokens: int
    width: int
    trained: Callable[[Any], int]

    def drawn(self, rows: int) -> float:
        """Tokens of so many scored rows drawn at random."""
        return rows * self.tokens / max(self.scored, 1)

    def table(self, columns: int) -> float:
        """Bytes of the score table with so many columns of scores."""
        return self.rows * (FIXED_BYTES + columns * COLUMN_BYTES)


@dataclass(frozen=True)
class Stage:
    """A stage of a run, named as in its manifest.

    Attributes:
        forward: tokens that pass the model forward, padding not counted.
        backward: of those, the ones that also pass backward.
        kept: bytes that stay on disk; None where nobody knows.
    """

    name: str
    forward: float = 0
    backward: float = 0
    kept: float | None = 0


def stages_of(arm: Arm, facts: Facts) -> list[Stage] | None:
    """The stages of a run by this method; None where it does not tell.

    Raises:
        TovError: as the method's function says.
    """
    if not arm.method.ahead:
        return None
    found: list[Stage] = imported(arm.method.ahead, f"the method '{arm.method.name}'")(facts)
    return found
