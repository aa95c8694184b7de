"""Numbers of a score table and of a choice from it, against twins that count row by row; and what is read for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracle import summary as oracle
from tov.config.choice import RuleSettings
from tov.config.records import ReselectConfig
from tov.config.settings import build
from tov.errors import RunError
from tov.methods import Method
from tov.methods.choice import choose_rows, columns_for
from tov.methods.registry import find_method
from tov.reports.numbers import choice_facts, facts_read, score_facts
from tov.runs.folder import Run
from tov.runs.manifest import Manifest
from tov.scores.store import CODED, ShardStore, columns_in, read_hashes, read_table
from tov.scores.table import coded, usable_in
from tov.selection.choose import choose, quotas_for

REASONS = ("", "", "", "repeat of an earlier row", "unreadable: no turn", "unreadable: no text", "no scored tokens")
SCORES = ("score_identity", "score_positive")
NUMBERS = (*SCORES, "loss_base", "score_identity_1", "score_identity_2", "loss_base_1", "loss_base_2", "score_less:a")


def a_table(size: int, random: np.random.Generator) -> dict[str, list]:
    """Columns of a score table: sources in any order, few lengths, scores with ties and without some."""
    table = {
        "row_id": list(range(size)), "source": random.choice(["web", "a", "maths"], size).tolist(),
        "hash": [f"{number:016x}" for number in random.integers(0, 2**63, size).tolist()],
        "tokens": random.integers(0, 9, size).tolist(), "lost": random.integers(0, 3, size).tolist(),
        "in_base": (random.random(size) < 0.2).tolist(), "excluded": random.choice(REASONS, size).tolist(),
    }  # fmt: skip
    for name in NUMBERS:
        values = np.where(random.random(size) < 0.3, 0.5, random.normal(size=size)).astype(np.float32)
        values[random.random(size) < 0.2] = np.nan
        table[name] = list(values)
    return table


def in_shards(table: dict[str, list], rows: int, *, dictionaries: bool) -> pa.Table:
    """As read from shards of so many rows, each with dictionaries of its own; or with plain texts."""
    parts = []
    for start in range(0, len(table["row_id"]), rows):
        part = pa.table({name: pa.array(values[start : start + rows]) for name, values in table.items()})
        for name in CODED if dictionaries else ():
            part = part.set_column(part.column_names.index(name), name, part[name].dictionary_encode())
        parts.append(part)
    return pa.concat_tables(parts)


def write(folder: Path, table: dict[str, list], rows: int) -> Path:
    """The table as shards of so many rows."""
    for start in range(0, len(table["row_id"]), rows):
        part = {name: values[start : start + rows] for name, values in table.items()}
        kinds = {"row_id": pa.int64(), "tokens": pa.int32(), "lost": pa.int32(), **dict.fromkeys(NUMBERS, pa.float32())}
        arrays = {name: pa.array(values, kinds.get(name)) for name, values in part.items()}
        ShardStore(folder, "f").write(start, pa.table(arrays))
    return folder


def as_rows(table: dict[str, list]) -> list[dict]:
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


@given(st.integers(1, 50), st.integers(0, 2**32), st.integers(1, 20), st.booleans())
def test_the_numbers_of_a_report_are_those_that_are_counted_row_by_row(size, seed, shard_rows, dictionaries):
    random = np.random.default_rng(seed)
    table = a_table(size, random)
    scores, rows = in_shards(table, shard_rows, dictionaries=dictionaries), as_rows(table)
    assert score_facts(scores) == oracle.score_facts(rows, list(SCORES))
    assert list(score_facts(scores)["left_out"]) == sorted(score_facts(scores)["left_out"]), "reasons are not sorted"
    able = [row_id for row_id, row in enumerate(rows) if not row["excluded"]]
    chosen = random.permutation(able)[: random.integers(0, len(able) + 1)].astype(np.int64)
    reasons = random.choice(["score", "random"], len(chosen))
    values = np.array(table["score_positive"], np.float64)
    found = choice_facts(scores, chosen, reasons, values)
    wanted = oracle.choice_facts(rows, chosen.tolist(), reasons.tolist(), values.tolist())
    means = [
        [np.nan if (mean := source.pop("mean_score")) is None else mean for source in facts["composition"]]
        for facts in (found, wanted)
    ]
    np.testing.assert_allclose(*means, rtol=1e-12, err_msg="the mean score of a source")
    assert found == wanted


@given(st.integers(1, 50), st.integers(0, 2**32), st.integers(1, 20), st.sampled_from([{}, {"web": 0.5}, {"*": 0.4}]))
def test_a_choice_from_a_table_is_that_from_plain_lists(size, seed, shard_rows, caps):
    table = a_table(size, np.random.default_rng(seed))
    able = [not reason for reason in table["excluded"]]
    names = sorted(set(table["source"]))
    caps, n = {name: cap for name, cap in caps.items() if name in ("*", *names)}, max(1, sum(able) // 3)
    config = build(ReselectConfig, {
        "from_run": "r", "out": "o", "n": n, "rule": "score+random", "bins": 3, "normalize": "none", "source_cap": caps,
    })  # fmt: skip
    values = np.array(table["score_positive"], np.float64)
    quotas = quotas_for(np.array([names.index(name) for name in table["source"]]), names, caps, n)
    plain = {
        "scores": values, "tokens": np.array(table["tokens"]), "in_base": np.array(table["in_base"]),
        "usable": np.array(able), "n": n, "rule": "score+random", "bins": 3, "seed": 7, "quotas": quotas,
    }  # fmt: skip
    if sum(able) < n or (quotas and quotas.of(np.flatnonzero(able)) < n):
        return
    scores = in_shards(table, shard_rows, dictionaries=True)
    run = Run(Path(), Manifest(command="select", started="", identity={}))
    choice, ranked = choose_rows(find_method("tov"), config, scores, run, n=n, seed=7)
    wanted = choose(**plain)
    assert choice.row_ids.tolist() == wanted.row_ids.tolist()
    assert choice.notes == wanted.notes
    np.testing.assert_array_equal(ranked, values)


def test_texts_that_repeat_are_read_as_codes_of_one_dictionary(tmp_path: Path) -> None:
    table = a_table(50, np.random.default_rng(0))
    scores = read_table(write(tmp_path, table, 7), 50)
    for name in CODED:
        assert pa.types.is_dictionary(scores[name].type), f"{name} is a text a row"
        assert scores[name].to_pylist() == table[name]
        codes, texts = coded(scores[name])
        assert [texts[code] for code in codes] == table[name]
        assert texts == list(dict.fromkeys(table[name])), "texts must come in the order in which rows have them first"
    assert usable_in(scores).tolist() == [not reason for reason in table["excluded"]]
    again = read_table(write(tmp_path / "other", table, 20))
    assert again.select(CODED).equals(scores.select(CODED)), "the size of shards changes the table"


def test_columns_that_are_not_asked_for_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, a_table(30, np.random.default_rng(1)), 7)
    whole = read_table(tmp_path)
    assert whole.column_names == columns_in(tmp_path)
    asked = ["tokens", "source", "score_less:a"]
    part = read_table(tmp_path, columns=[*asked, "no such column"])
    assert part.column_names == asked
    assert all(str(part[name]) == str(whole[name]) for name in asked), "other values"
    facts = whole.select(facts_read(whole.column_names))
    assert {"score_identity_1", "score_less:a", "hash"}.isdisjoint(facts.column_names), "more is read than is told"
    assert score_facts(facts) == score_facts(whole)


@pytest.mark.parametrize("name", ["tov", "highest-loss", "lowest-loss"])
def test_a_ranking_needs_no_more_than_it_says(tmp_path: Path, name: str) -> None:
    write(tmp_path, a_table(30, np.random.default_rng(2)), 7)
    config = build(ReselectConfig, {
        "from_run": "r", "out": "o", "n": 1, "rule": "score-only", "bins": 1, "normalize": "initial-loss",
    })  # fmt: skip
    method = find_method(name)
    whole, part = read_table(tmp_path), read_table(tmp_path, 30, columns_for(method, config, tmp_path))
    assert set(part.column_names) < set(whole.column_names), "the whole table is read"
    np.testing.assert_array_equal(method.rank(part, config), method.rank(whole, config))


def test_a_ranking_that_does_not_say_what_it_reads_is_given_all(tmp_path: Path) -> None:
    write(tmp_path, a_table(30, np.random.default_rng(3)), 7)
    config = build(ReselectConfig, {"from_run": "r", "out": "o", "n": 1, "rule": "score-only", "bins": 1})

    class Own(Method):
        name, summary = "own", "own"

        def rank(self, scores: pa.Table, settings: RuleSettings) -> np.ndarray:
            return scores["score_identity_1"].to_numpy()

    columns = columns_for(Own(), config, tmp_path)
    assert set(columns_in(tmp_path)) - set(columns) == {"row_id", "hash", "lost"}, "what no score depends on"
    assert len(Own().rank(read_table(tmp_path, 30, columns), config)) == 30


@given(st.lists(st.integers(0, 29), max_size=40), st.integers(1, 12))
def test_hashes_of_any_rows_in_any_order(tmp_path, row_ids, shard_rows):
    table, folder = a_table(30, np.random.default_rng(4)), tmp_path / str(shard_rows)
    if not folder.exists():
        write(folder, table, shard_rows)
    assert read_hashes(folder, np.array(row_ids, np.int64)) == [table["hash"][row] for row in row_ids]


@pytest.mark.parametrize("lost", [0, 10, 20])
def test_a_lost_shard_is_told_whichever_it_is(tmp_path, lost):
    write(tmp_path, a_table(30, np.random.default_rng(4)), 10)
    next(tmp_path.glob(f"rows-*{lost:02}.parquet")).unlink()
    with pytest.raises(RunError, match=f"lacks the scores of row_id {lost} to"):
        read_hashes(tmp_path, np.array([lost + 3, 15], np.int64) if lost != 10 else np.array([13], np.int64))
