"""The yardstick of the benchmark and our LESS give the same scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from less_as_published import features, scores, store
from test_gradient_methods import SUBTASKS, less_of, setting
from tov.baselines.projection import Projection


@pytest.mark.parametrize("task", ["instruction", "ner"])
def test_less_as_published_scores_as_ours(task, tmp_path):
    """Float64; the stored features are fp16, which a score feels in the fourth digit."""
    adapted, checkpoints, pool, target = setting(task)
    projection = Projection(96, 5)
    wanted = less_of(adapted, checkpoints, pool, target, projection=projection)
    seconds: dict[str, float] = {}
    how = {"projection": projection, "seconds": seconds}
    made = [
        [features(adapted, checkpoint, rows, adam=adam, **how).double() for checkpoint in checkpoints]
        for rows, adam in ((pool, True), (target, False))
    ]
    rates = [checkpoint.rate for checkpoint in checkpoints]
    assert np.std(wanted) > 0.01, "all rows score alike here, so the comparison is empty"
    np.testing.assert_allclose(scores(*made, rates, SUBTASKS), wanted, rtol=0, atol=1e-6)
    assert set(seconds) == {"gradients", "signs", "projection"}
    stored = [[], []]
    for side, parts in zip(stored, made, strict=True):
        for k, part in enumerate(parts):
            size = store(tmp_path / f"{k}.npy", part)
            assert size - part.numel() * 2 < 200, "a row takes more than 2 bytes a number"
            side.append(torch.from_numpy(np.load(tmp_path / f"{k}.npy")))
    np.testing.assert_allclose(scores(*stored, rates, SUBTASKS), wanted, rtol=0, atol=1e-3)
