"""`--on-bad-row quarantine`: rows that cannot be used are left out, counted, and listed with place and reason; none is lost."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import tov
from tiny import make_rows, write_jsonl
from tov.data.pool import open_pool
from tov.engine.local import LocalEngine
from tov.errors import ConfigError, DataError
from tov.methods import score_pool as scoring
from tov.runs.folder import open_run
from tov.scores.shard import Shard
from tov.tasks import all_layouts
from tov.verbs.quarantine import write_quarantine

BAD = {3: {"messages": []}, 7: {"messages": [{"role": "robot", "content": "beep"}]}}


def turns(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    }


@pytest.fixture
def given(tmp_path: Path, tiny_folder: Path) -> dict[str, Any]:
    rows = [BAD.get(number, turns(row)) for number, row in enumerate(make_rows(20, seed=1))]
    return {
        "model": str(tiny_folder), "pool": write_jsonl(tmp_path / "pool.jsonl", rows), "target": make_rows(4, seed=2), "n": 6,
        "max_length": 64, "epochs": 1, "base_size": 4, "shard_rows": 5, "out": tmp_path / "run", "quiet": True,
    }  # fmt: skip


def listed(run: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "quarantine.jsonl").read_text("utf-8").splitlines()]


def test_unreadable_rows_are_listed_as_they_stand(given: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"pool.jsonl, row 4"):
        tov.select(**given)
    run = tov.select(**given, on_bad_row="quarantine")
    found = listed(run)
    assert [(one["row_id"], one["source"], one["row"]) for one in found] == [
        (number, "pool", row) for number, row in BAD.items()
    ]
    assert [one["place"].rpartition("/")[2] for one in found] == ["pool.jsonl, row 4", "pool.jsonl, row 8"]
    assert all(one["reason"].startswith("unreadable: ") for one in found)
    assert run.summary["scores"]["left_out"] == {"unreadable": 2}
    [first] = [
        note for note in run.summary["notes"] if note.startswith("2 pool rows could not be read and were left out")
    ]
    assert f"the first is {found[0]['place']}: " in first
    assert "2 rows that could not be used are in quarantine.jsonl, with place and reason" in run.summary["notes"]
    assert "quarantine.jsonl" in open_run(run.folder).manifest.files
    scored = tov.score(run, given["pool"], out=given["out"].with_name("scored"), quiet=True)
    assert listed(scored) == found, "a pool that is scored later has its own list"


def test_unreadable_rows_are_json_whatever_they_hold(tmp_path: Path) -> None:
    """In the forms of `selected.jsonl`; what JSON has no form for is text."""
    odd = {"messages": [], "x": float("nan"), "b": b"\x00\xff", "when": datetime.date(2024, 1, 31)}
    rows = [odd, *map(turns, make_rows(1)), {"messages": [{"role": "robot", ("a", 1): "beep"}]}]
    excluded = pa.array(["unreadable: no turn", "", "unreadable: a role"])
    write_quarantine(tmp_path, open_pool([rows], layouts=all_layouts()), pa.table({"excluded": excluded}))
    text = (tmp_path / "quarantine.jsonl").read_text("utf-8")
    found = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [one["row_id"] for one in found] == [0, 2]
    assert found[0]["row"] == {"messages": [], "x": None, "b": "AP8=", "when": "2024-01-31"}
    assert found[1]["row"] == repr(rows[2])


@pytest.mark.slow
def test_skipped_rows_are_scored_around_alike(given: dict[str, Any]) -> None:
    one = tov.select(**given, on_bad_row="quarantine")
    other = tov.select(**{**given, "out": given["out"].with_name("other")}, on_bad_row="skip")
    assert one.scores.to_pandas().equals(other.scores.to_pandas())
    assert not (other.folder / "quarantine.jsonl").exists()


def test_a_pool_without_bad_rows_has_an_empty_list(given: dict[str, Any]) -> None:
    run = tov.select(**{**given, "pool": make_rows(20, seed=1)}, on_bad_row="quarantine")
    assert listed(run) == []
    assert not [note for note in run.summary["notes"] if "quarantine" in note]


class Lossy(LocalEngine):
    """Computes all shards but one, which no worker can."""

    def map(  # type: ignore[override]
        self, task: Any, shards: Iterable[Shard], done: Callable[[Shard, Any], None], progress: Any, given_up: Any = None,
    ) -> None:  # fmt: skip
        if type(task).__name__ not in ("_AllTargets", "_Margin"):
            return super().map(task, shards, done, progress)
        lost: list[Shard] = []
        kept = (shard for shard in shards if shard.start != 10 or lost.append(shard))
        super().map(task, kept, done, progress)
        for shard in lost:
            given_up(shard, "failed on 3 workers: RuntimeError: CUDA error")
        return None


def test_rows_that_no_worker_could_score_are_listed_too(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "engine_of", lambda settings, models: Lossy(models))
    run = tov.select(**given, on_bad_row="quarantine")
    reasons = {one["row_id"]: one["reason"] for one in listed(run)}
    assert reasons.keys() == {3, 7, *range(10, 15)}
    assert all(reasons[row] == "not scored: failed on 3 workers: RuntimeError: CUDA error" for row in range(10, 15))
    assert run.summary["scores"]["left_out"] == {"not scored": 5, "unreadable": 2}
    table = run.scores.to_pylist()
    assert [row["row_id"] for row in table] == list(range(20))
    assert all(
        (row["score_identity"] is None or row["score_identity"] != row["score_identity"]) for row in table[10:15]
    )
    chosen = {
        json.loads(line)["tov_row_id"] for line in (run.folder / "selected.jsonl").read_text("utf-8").splitlines()
    }
    assert not chosen & reasons.keys()


@pytest.mark.parametrize("verb", ["fit", "compare"])
def test_commands_without_a_table_of_rows_refuse_the_list(verb: str, given: dict[str, Any]) -> None:
    given = {name: given[name] for name in ("model", "pool", "target", "out", "quiet")}
    more = {"test": make_rows(4, seed=5), "sizes": [4], "methods": ["random"]} if verb == "compare" else {}
    with pytest.raises(ConfigError, match="on-bad-row"):
        getattr(tov, verb)(**given, **more, on_bad_row="quarantine")
