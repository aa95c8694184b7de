"""The commonest mistakes, found before a run: one sentence each that says what was seen and what to do.

Looks at pool and target as rows and as tokens; must not know methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tov.checks.apart import few_target, percent
from tov.config.settings import EVERY_SOURCE
from tov.data.near import Near, question_text
from tov.inputs.read import Indexed, PoolRows, target_of_row
from tov.tasks import TASKS
from tov.text.chat import PLAIN_TEMPLATE
from tov.text.encode import Encoded, Encoder

MUCH = 0.05
"""Share of the pool's rows that are without a scored token, or cut, from which on it is said."""
DOMINATES = 0.8
"""Share of the usable rows that one of several sources has, from which on it is said."""
FOUND = 0.1
"""Share of the target's prompts that are in the pool, from which on the one looks like a part of the other."""


@dataclass(frozen=True)
class Before:
    """What is looked at.

    Attributes:
        pool: the rows to choose from.
        target: the examples.
        sampled: (rows,) row_ids of usable pool rows.
        encoded: the same as tokens.
        target_encoded: the target's rows that have a scored token.
        target_ids: (rows of these,) their row_ids.
        encode: that made them tokens.
        limit: tokens that the model takes in a row; None where nothing says.
        settings: of the run.
    """

    pool: PoolRows
    target: Indexed
    sampled: np.ndarray
    encoded: Encoded
    target_encoded: Encoded
    target_ids: np.ndarray
    encode: Encoder
    limit: int | None
    settings: Any

    @property
    def cut(self) -> np.ndarray:
        """(rows,) bool, sampled rows that `--max-length` cuts."""
        return self.encoded.lost > 0


def warnings_before(seen: Before) -> list[str]:
    """A sentence for each mistake that pool and target look like."""
    found = (_unscored, _unscored_target, _target_in_pool, _dominating, _no_template, _few, _cut)
    return [sentence for look in found for sentence in look(seen)]


def _unscored(seen: Before) -> Iterator[str]:
    without = seen.encoded.scored_counts == 0
    share = float(without.mean()) if len(without) else 0.0
    if share >= MUCH:
        cut = (without & seen.cut).sum() > without.sum() / 2
        do = (
            _raise_length(seen)
            if cut
            else "Check that their answers are not empty, and that --columns names the answer."
        )
        yield f"{percent(share)} of the pool's rows have no scored token, so they cannot be chosen. {do}"


def _unscored_target(seen: Before) -> Iterator[str]:
    without = len(seen.target) - len(seen.target_encoded)
    if without:
        yield (
            f"{without:,} of {len(seen.target):,} target rows have no scored token within {seen.encode.max_length:,} tokens, "
            "so nothing is learnt from them. Raise --max-length, or check that their answers are not empty."
        )


def _target_in_pool(seen: Before) -> Iterator[str]:
    prompts = seen.target.index.prompt
    inside = int(np.isin(prompts, seen.pool.index.prompt).sum())
    if inside and not seen.settings.decontaminate:
        yield (
            f"{inside:,} of {len(prompts):,} target rows have their prompt in the pool, and --no-decontaminate lets such rows "
            "be chosen: a method then finds the target itself. Leave --no-decontaminate out."
        )
    elif inside >= FOUND * len(prompts):
        yield (
            f"{inside:,} of {len(prompts):,} target rows have their prompt in the pool. Those pool rows are left out. If the "
            "target was drawn from the pool, take it out of the pool's files, and keep test rows out of both."
        )
    yield from _near(seen)


def _near(seen: Before) -> Iterator[str]:
    rows = seen.pool.pool.at(seen.sampled)
    exact = np.isin(seen.pool.index.prompt[seen.sampled], seen.target.index.prompt)
    near = Near(list(map(question_text, seen.target.rows))).of(map(question_text, rows)) >= 0
    count = int((near & ~exact).sum())
    if count:
        some = "of the pool's rows" if len(rows) == seen.pool.usable.sum() else f"of {len(rows):,} pool rows looked at"
        yield (
            f"{count:,} {some} nearly repeat the prompt of a target row, which decontamination does not see. Take them out of "
            "the pool if they are copies."
        )


def _dominating(seen: Before) -> Iterator[str]:
    pool, usable = seen.pool.pool, np.flatnonzero(seen.pool.usable)
    if len(pool.sources) < 2 or not len(usable):
        return
    counts = np.bincount(pool.source_index(usable), minlength=len(pool.sources))
    most, share = pool.sources[int(counts.argmax())].name, float(counts.max() / counts.sum())
    if share > DOMINATES and not {most, EVERY_SOURCE} & seen.settings.source_cap.keys():
        yield (
            f"{percent(share)} of the usable rows are from the source {most}, and so will be most of those taken at random. "
            f"--source-cap {most}=0.5 lets at most half of the chosen rows be from it."
        )


def _no_template(seen: Before) -> Iterator[str]:
    tokenizer = seen.encode.tokenizer
    if getattr(tokenizer, "chat_template", None) == PLAIN_TEMPLATE and not _bare(seen):
        yield (
            "The model's tokenizer has no chat template, so turns are written as '### User:' and '### Assistant:'. That suits "
            "a base model. For a chat model, name its instruct version, or set tokenizer.chat_template and save it."
        )


def _bare(seen: Before) -> bool:
    """Whether rows are no talks: texts alone, sentences, labels."""
    return not TASKS[seen.target.task].generates or all(getattr(row, "plain", False) for row in seen.target.rows)


def _few(seen: Before) -> list[str]:
    names, of_row = target_of_row(seen.target)
    counts = np.bincount(of_row[seen.target_ids], minlength=len(names))
    return few_target(dict(zip(names, counts.tolist(), strict=True)))


def _cut(seen: Before) -> Iterator[str]:
    share = float(seen.cut.mean()) if len(seen.cut) else 0.0
    if share >= MUCH:
        lost = int(seen.encoded.lost[seen.cut].sum()) / max(1, int(seen.encoded.lost.sum() + seen.encoded.sizes.sum()))
        unit = TASKS[seen.target.task].length
        yield (
            f"{percent(share)} of the pool's rows are longer than {seen.encode.max_length:,} tokens and are cut at the end, "
            f"which loses {percent(lost)} of all {unit}. {_raise_length(seen)}"
        )


def _raise_length(seen: Before) -> str:
    if seen.limit and seen.limit <= seen.encode.max_length:
        return "The model takes no longer rows: split long rows, or take another model."
    most = f" (the model takes {seen.limit:,})" if seen.limit else ""
    return f"Raise --max-length{most}, or split long rows."
