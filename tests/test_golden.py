"""The golden files: today's code gives the same scores and rows, and can still use the run folders of earlier versions.

`python tests/golden/make.py --check` demands more of the machine that made them: equality to the last bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from golden.records import HERE, differences, load, provenance
from golden.runs import PLANNED, RUNS, make_all, use_folders

TOLERANCE = 2e-5
"""Of scores and losses, absolute, in nats or as a cosine. Between SSE, AVX2 and AVX-512 kernels of torch, MKL and oneDNN they
differ by at most 1.9e-6 (rds, whose embeddings are rounded to fp16), else 1.2e-6: about two units in the last place of a loss
of 7 nats. One thread or two make no difference. Gains are 4e-4 to 1.4 nats, and no row that was chosen by its score is nearer
than 1.6e-4 to one of its length bin that was not, here or in the comparison."""
KEPT = sorted(HERE.glob("run-*"))


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All golden runs, made by today's code; in one thread, as tiny matrices on busy cores need."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return make_all(tmp_path_factory.mktemp("golden"))
    finally:
        torch.set_num_threads(threads)


def elsewhere() -> str:
    """What is other than where the files were made; for messages."""
    return "; ".join(
        ["made otherwise:", *differences(json.loads((HERE / "provenance.json").read_text()), provenance())]
    )


@pytest.mark.parametrize("name", RUNS)
def test_scores_are_as_they_were(name: str, now: dict[str, Any]) -> None:
    was, found = load(name)["scores"], now[name]["scores"]
    assert found.schema == was.schema
    for column in was.column_names:
        if pa.types.is_floating(was.schema.field(column).type):
            pair = found[column].to_numpy(), was[column].to_numpy()
            np.testing.assert_allclose(*pair, rtol=0, atol=TOLERANCE, err_msg=f"{column}; {elsewhere()}")
        else:
            assert found[column].to_pylist() == was[column].to_pylist(), column


@pytest.mark.parametrize("name", RUNS)
def test_the_same_rows_are_chosen_but_for_ties_within_rounding(name: str, now: dict[str, Any]) -> None:
    was, found = load(name), now[name]
    told = same_choice(was["selected"], found["selected"])
    assert not told, f"{told}; {elsewhere()}"
    if was["selected"]["row_ids"] == found["selected"]["row_ids"]:
        assert was["sha256_without_scores"] == found["sha256_without_scores"], "the rows in selected.jsonl"


def same_choice(was: dict[str, Any], now: dict[str, Any]) -> str:
    """What is wrong with a choice; nothing if the rows are the same but for rows whose scores are as good as equal."""
    if was["reasons"] != now["reasons"]:
        return f"reasons {was['reasons']} -> {now['reasons']}"
    places = range(len(was["reasons"]))
    by_chance = [at for at in places if was["reasons"][at] == "random"]
    if [was["row_ids"][at] for at in by_chance] != [now["row_ids"][at] for at in by_chance]:
        return "other rows by chance"
    scores = [{row: float.fromhex(score) for row, score in zip(one["row_ids"], one["scores"], strict=True)}
              for one in (was, now)]  # fmt: skip
    left, come = (sorted(a[row] for row in a.keys() - b.keys()) for a, b in (scores, scores[::-1]))
    if any(abs(a - b) > TOLERANCE for a, b in zip(left, come, strict=True)):
        return f"rows of scores {left} gave way to rows of scores {come}"
    order = [(scores[0][a], scores[1][b]) for a, b in zip(was["row_ids"], now["row_ids"], strict=True)]
    return "" if all(abs(a - b) <= TOLERANCE for a, b in order) else "another order"


def test_a_choice_of_other_rows_is_told() -> None:
    was = {"row_ids": [4, 2, 7], "reasons": ["score", "score", "random"], "scores": [x.hex() for x in (0.5, 0.25, 0.1)]}
    assert same_choice(was, was) == ""
    near = {**was, "row_ids": [4, 3, 7], "scores": [x.hex() for x in (0.5, 0.25 + TOLERANCE / 2, 0.1)]}
    assert same_choice(was, near) == ""
    assert "gave way" in same_choice(was, {**near, "scores": [x.hex() for x in (0.5, 0.25 + 2 * TOLERANCE, 0.1)]})
    assert "by chance" in same_choice(was, {**was, "row_ids": [4, 2, 8]})
    swapped = {**was, "row_ids": [2, 4, 7], "scores": [x.hex() for x in (0.25, 0.5, 0.1)]}
    assert same_choice(was, swapped) == "another order"
    assert "reasons" in same_choice(was, {**was, "reasons": ["score", "random", "random"]})


@pytest.mark.parametrize("data", ["instruction", "ner"])
def test_plans_foretell_the_same_numbers(data: str, now: dict[str, Any]) -> None:
    was, found = load(f"{data}-plan"), now[f"{data}-plan"]
    assert list(found["methods"]) == PLANNED
    assert not differences(was, found)


def test_trials_choose_the_same_rows_and_end_at_the_same_loss(now: dict[str, Any]) -> None:
    was, found = (
        {(one["method"], one["n"], one["seed"]): dict(one) for one in record["trials"]}
        for record in (load("instruction-compare"), now["instruction-compare"])
    )
    assert was.keys() == found.keys()
    for key, one in was.items():
        pair = [float.fromhex(trial.pop("loss")) for trial in (found[key], one)]
        assert found[key] == one, f"{key}; {elsewhere()}"
        assert pair[0] == pytest.approx(pair[1], rel=0, abs=TOLERANCE), f"{key}; {elsewhere()}"


def test_the_record_of_a_run_has_every_kind_of_row(now: dict[str, Any]) -> None:
    """What the golden pools are for: were a kind of row gone, its column would pin nothing."""
    for name in RUNS:
        table = now[name]["scores"]
        reasons = {reason.partition(":")[0] for reason in table["excluded"].to_pylist()}
        assert {"", "prompt in target", "repeat of an earlier row", "unreadable"} <= reasons
        assert max(table["lost"].to_pylist()) > 0
        assert len(set(table["source"].to_pylist())) > 1
        assert any(table["in_base"].to_pylist()) == name.endswith("tov")


def test_a_change_in_the_last_bit_is_told() -> None:
    table = pa.table({"score": pa.array([1.0, float("nan")], pa.float32()), "source": ["a", "b"]})
    assert differences({"scores": table}, {"scores": table}) == []
    moved = table.set_column(0, "score", pa.array([np.nextafter(np.float32(1), np.float32(2)), np.nan], pa.float32()))
    [told] = differences({"scores": table}, {"scores": moved})
    assert "floats differ in 1 of 2 rows" in told
    assert differences({"a": [1, 2]}, {"a": [1, 3]}) == ["/a/1: 2 -> 3"]


@pytest.mark.parametrize("kept", KEPT, ids=lambda folder: folder.name)
def test_run_folders_of_earlier_versions_serve(kept: Path, tmp_path: Path) -> None:
    """Chosen again, the stored path on another pool, a training, a comparison reported again."""
    was, found = json.loads((kept / "expected.json").read_text()), use_folders(kept, tmp_path / "copy")
    for old, new in zip(was.pop("compare"), found.pop("compare"), strict=True):
        assert new[:2] == old[:2]
        numbers = [[np.nan if number is None else number for number in line[2:]] for line in (new, old)]
        np.testing.assert_allclose(*numbers, rtol=1e-9, err_msg=old[1])
    assert found == was


def test_there_are_run_folders_of_an_earlier_version() -> None:
    assert "run-0.1.0" in [folder.name for folder in KEPT]
    assert sum(file.stat().st_size for folder in KEPT for file in folder.rglob("*") if file.is_file()) < 300_000
