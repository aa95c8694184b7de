"""The yardstick of the benchmark and our LESS give the same scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from less_as_published import features, scores, store
from test_gradient_methods import SUBTASKS, less_of, setting
from tov.methods.shared.projection import Projection


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


def test_the_benchmark_scales_each_stage_by_what_it_passes():
    """ToV's base set and epochs by its rules; LESS's warm-up by its share; published LESS by rows of pool and target."""
    from argparse import Namespace

    from methods import PUBLISHED, passes, ratios, summary, table, with_published

    assert passes("instruction", "tov", "fit", 20_000, 256, small=False) == 2 * (4096 + 256)
    assert passes("ner", "tov", "fit", 1000, 100, small=True) == 2 * (250 + 100)
    assert passes("instruction", "less", "warm-up", 64, 8, small=True) == 16
    assert passes("instruction", "less", "warm-up", 20_000, 256, small=False) == 1000
    assert passes("ner", "target-path", "fit", 1000, 256, small=False) == 8 * 256
    args = Namespace(task="ner", target_rows=100, scale_rows=20_000, scale_target=256)
    cost = {"peak_mib": 9, "pool_bytes": 100_000, "fixed_bytes": 7}
    tov = [{"stages": {"fit": seconds, "scan": 10.0}, **cost} for seconds in (3.0, 5.0, 4.0)]
    less = [{"stages": {"warm-up": 1.0, "target": 1.0, "scan": 8.0}, **cost}]
    made = {name: summary(runs, args, name, 1000) for name, runs in (("tov", tov), ("less", less))}
    assert made["tov"]["seconds"] == 14.0
    assert made["tov"]["scaled_stages"] == {"fit": round(4 * (2 * (4096 + 256)) / (2 * 350), 1), "scan": 200.0}
    found = {"seconds_a_row_and_checkpoint": {"all": 0.5, "gradients": 0.1}, "peak_mib": 1, "bytes_a_row": 65_536}
    with_published(made, found, args, 1000)
    assert made[PUBLISHED]["seconds"] == 1.0 + 4 * 0.5 * 1100
    over = ratios(made)
    assert over[PUBLISHED]["bytes_a_row"] == 655.36
    assert over[PUBLISHED]["seconds_without_projection"] == pytest.approx((1 + 4 * 0.1 * 1100) / 14, abs=0.01)
    lines = table(
        {"task": "ner", "methods": made, "over_tov": over, "scaled_to": {"rows": args.scale_rows, "target_rows": 256}}
    )
    assert len(lines.splitlines()) == 5
