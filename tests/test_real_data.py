"""Real instruction files with the real tokenizer: what is scored is what the assistants said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tov.data.pool import index_rows, open_pool
from tov.tasks import TASKS, all_layouts
from tov.tasks.instruction import Conversation, encode
from tov.text.encode import IGNORED

ROWS = 40


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.model
def test_every_source_scores_its_answers_and_nothing_else(shared_data: Path, smollm2: str) -> None:
    from tov.model.load import load_tokenizer

    tokenizer = load_tokenizer(smollm2, task=TASKS["instruction"])
    pool = open_pool(
        [str(path) for path in sorted((shared_data / "instruct").glob("*.parquet"))], layouts=all_layouts()
    )
    for start, source in zip(pool.starts, pool.sources, strict=False):
        rows = [row for row in pool.rows(int(start), int(start) + ROWS) if isinstance(row, Conversation)]
        assert len(rows) == ROWS, f"{source.name}: rows were not read as conversations"
        encoded = encode(tokenizer, rows, max_length=10_000)
        for place, row in enumerate(rows):
            ids, labels = encoded.row(place)
            wanted = "".join(turn["content"] + "<|im_end|>" for turn in row.messages if turn["role"] == "assistant")
            assert tokenizer.decode(ids[labels != IGNORED]) == wanted, (
                f"{source.name}, row {place + 1}: the mask is off"
            )


@pytest.mark.slow
@pytest.mark.data
def test_matched_prompts_are_found_across_files(shared_data: Path) -> None:
    """alpaca_gpt4 and alpaca_gpt35 share 979 prompts (data README), whatever their answers."""
    prints = [
        np.unique(
            index_rows(open_pool([str(shared_data / "instruct" / f"{name}.parquet")], layouts=all_layouts())).prompt
        )
        for name in ("alpaca_gpt4", "alpaca_gpt35")
    ]
    shared = len(np.intersect1d(*prints))
    assert shared == 979, f"{shared} shared prompts: the prompt hash is too strict or too loose"
