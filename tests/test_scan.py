"""Scanning: what must not matter does not, the signs are right, and a killed run ends with the same files."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tov
from chaos import kill_for_real
from faults import killed
from oracle import scores as oracle
from oracle.logloss import token_logprobs as one_at_a_time
from tiny import make_rows, tiny_llama, tiny_tokenizer, write_jsonl
from tov.errors import NumericError
from tov.methods.tov.scan import MEASURES, noise_floor, scan_rows
from tov.model.adapters import attach, parameters, read_state, write_state
from tov.model.kernels.attention import end_to_end
from tov.model.kernels.joined import scanning
from tov.model.logloss import row_logprobs
from tov.tasks.instruction import Conversation, encode
from tov.text.batches import fill
from tov.text.encode import IGNORED, Encoded

ROWS = 10
ROUNDING = 1e-5
"""Nats a token: what fp32 may lose when rows share other batches."""


def encoded_rows(longest: int = 12) -> Encoded:
    """Rows of many lengths; one has no scored token."""
    rows = [
        Conversation(({"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}))
        for row in make_rows(ROWS - 1, seed=4, longest=longest)
    ]
    empty = Conversation(({"role": "user", "content": "no answer"}, {"role": "assistant", "content": " "}))
    return encode(tiny_tokenizer(), [*rows[:4], empty, *rows[4:]], max_length=128)


@functools.cache
def subject():
    """(adapted model, rows, base state, target state); the states differ by about as much as a target epoch makes."""
    adapted = attach(tiny_llama(), rank=2, alpha=4.0, dropout=0.1, targets=("all-linear",), seed=0).eval()
    torch.manual_seed(0)
    for parameter in parameters(adapted).values():
        nn.init.normal_(parameter, std=0.1)
    base = read_state(adapted)
    return adapted, encoded_rows(), base, {name: value + 0.02 * torch.randn_like(value) for name, value in base.items()}


@functools.cache
def twin() -> dict[str, np.ndarray]:
    """Every measure of every row, one row and one token at a time, with peft's own forward pass."""
    adapted, rows, base, target = subject()
    states = []
    for state in (base, target):
        write_state(adapted, state)
        parts = [rows.row(row) for row in range(ROWS)]
        states.append([one_at_a_time(adapted, ids.tolist(), (labels != IGNORED).tolist()) for ids, labels in parts])
    measures = {name: np.full(ROWS, np.nan) for name in MEASURES}
    for row, (before, after) in enumerate(zip(*states, strict=True)):
        if before:
            for name, value in oracle.row_scores(before, after).items():
                measures[f"score_{name}"][row] = value
            measures["loss_base"][row], measures["loss_target"][row] = (-sum(one) / len(one) for one in (before, after))
            measures["uncertainty"][row] = oracle.uncertainty(before)
    return measures


def scan(rows: Encoded, *, batch_tokens: int = 256, pairs=None, embedded=None):
    adapted, _, base, target = subject()
    with scanning(adapted) as set_state:
        chosen = pairs or [(1, base, target)]
        model = adapted.get_base_model()
        return scan_rows(model, set_state, rows, chosen, batch_tokens=batch_tokens, embedded=embedded)


def assert_is_twin(measures: dict[str, np.ndarray], order, cause: str) -> None:
    for name in MEASURES:
        gap = np.abs(measures[name] - twin()[name][list(order)])
        assert np.array_equal(np.isnan(measures[name]), np.isnan(twin()[name][list(order)])), (
            f"{name}: rows without a score"
        )
        assert np.nanmax(gap, initial=0.0) < ROUNDING, f"{name} is {np.nanmax(gap):.2g} off: {cause}"


@settings(max_examples=25)
@given(st.permutations(range(ROWS)), st.integers(1, ROWS), st.sampled_from([1, 50, 100, 1000, 100_000]))
def test_row_order_company_and_batch_size_change_nothing(order, count, batch_tokens):
    """Any rows, in any order, in batches of any size, give what each row gives alone, token by token."""
    chosen = order[:count]
    scanned = scan(subject()[1].take(chosen), batch_tokens=batch_tokens)
    assert_is_twin(scanned.epochs[0], chosen, "a row is put in another's place, or padding or a neighbour leaks in")


@settings(max_examples=10)
@given(st.integers(1, ROWS + 1))
def test_shard_size_changes_nothing(shard_rows):
    parts = [
        scan(subject()[1].take(range(start, min(start + shard_rows, ROWS)))) for start in range(0, ROWS, shard_rows)
    ]
    together = {name: np.concatenate([part.epochs[0][name] for part in parts]) for name in MEASURES}
    assert_is_twin(together, range(ROWS), f"shards of {shard_rows} rows")


def test_the_signs():
    measures = scan(subject()[1]).epochs[0]
    fall = measures["loss_base"] - measures["loss_target"]
    assert np.nanmax(np.abs(fall)) > 1e-3, "the two states hardly differ, so the comparison is empty"
    assert np.allclose(measures["score_identity"], fall, atol=1e-12, equal_nan=True), "Eq. 6: loss(base) - loss(target)"
    gap = measures["score_abs"] - (2 * measures["score_positive"] - measures["score_identity"])
    assert np.nanmax(np.abs(gap)) < 1e-12, "abs = 2 positive - identity: F must be taken of each token"


def test_every_epoch_has_its_own_measures():
    _, rows, base, target = subject()
    scanned = scan(rows, pairs=[(1, base, target), (2, target, base), (3, base, base)])
    one, two, three = (epoch["score_identity"] for epoch in scanned.epochs)
    assert np.allclose(one, -two, atol=1e-12, equal_nan=True), "exchanging the states must turn the sign"
    assert not np.nansum(np.abs(three)), "identical states must score exactly 0"
    assert scanned.passed == 6 * int(rows.lengths[rows.scored_counts > 0].sum()), "tokens passed: six scans of the rows"


def test_a_row_without_scored_tokens_has_no_score_and_is_counted():
    rows = subject()[1]
    scanned = scan(rows)
    assert rows.sizes[4] == 0, "the empty answer has scored tokens"
    assert all(np.isnan(scanned.epochs[0][name][4]) for name in MEASURES), (
        "a row without scored tokens must be NaN, not 0"
    )
    assert np.isfinite(scanned.epochs[0]["score_abs"]).sum() == ROWS - 1


def test_rows_of_nothing_at_all_are_scanned_in_peace():
    _, rows, _, _ = subject()
    scanned = scan(rows.take([4]))
    assert np.isnan(scanned.epochs[0]["score_abs"]).all(), "a shard without scored tokens"
    assert scanned.passed == 0, "a row without scored tokens must not go through the model"
    assert len(scan(rows.take([])).epochs[0]["score_abs"]) == 0, "an empty shard"


def test_a_state_that_is_no_number_is_an_error():
    _, rows, base, _ = subject()
    broken = {name: torch.full_like(value, float("nan")) for name, value in base.items()}
    with pytest.raises(NumericError, match="not a finite number"):
        scan(rows, pairs=[(1, base, broken)])


def too_small(monkeypatch: pytest.MonkeyPatch, most: int, *, from_pass: int = 0) -> list[int]:
    """A memory that holds passes of at most so many tokens, from some pass on; gives the sizes of those that did not fit."""
    refused, made = list[int](), 0

    def logprobs(model, batch, **options):
        nonlocal made
        if batch.ids.size > most and made >= from_pass:
            refused.append(batch.ids.size)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        made += 1
        return row_logprobs(model, batch, **options)

    monkeypatch.setattr("tov.methods.tov.scan.row_logprobs", logprobs)
    return refused


@pytest.mark.slow
def test_a_batch_that_does_not_fit_in_memory_is_halved_and_scores_stay(monkeypatch):
    refused = too_small(monkeypatch, 60)
    scanned = scan(subject()[1])
    assert refused
    assert max(refused) > 120, "some halves had to be halved again"
    assert_is_twin(scanned.columns, range(ROWS), "halved batches")
    _, rows, base, target = subject()
    tried = len(refused)
    scan(rows, pairs=[(1, base, target), (2, base, target)])
    assert len(refused) == 2 * tried, "what did not fit once was tried again in a later pass"


@pytest.mark.slow
def test_both_states_walk_one_layout_even_if_memory_ends_between_them(monkeypatch):
    _, rows, base, _ = subject()
    refused = too_small(
        monkeypatch, 60, from_pass=1
    )  # the one batch of the base pass fits, that of the target's no more
    scanned = scan(rows, batch_tokens=4096, pairs=[(1, base, base)])
    assert refused
    scored = rows.scored_counts > 0
    assert (scanned.columns["score_identity"][scored] == 0).all(), "the same weights gave two numbers"


def test_one_row_that_does_not_fit_is_an_error(monkeypatch):
    too_small(monkeypatch, 5)
    with pytest.raises(torch.OutOfMemoryError):
        scan(subject()[1])


def floor_of(dtype: torch.dtype, batch_tokens: int) -> dict[str, float]:
    """The noise floor of rows that share batches of at most so many tokens, against each row alone."""
    adapted = attach(tiny_llama(dtype=dtype), rank=2, alpha=4.0, dropout=0.0, targets=("all-linear",), seed=0)
    with scanning(adapted) as set_state:
        rows, state = encoded_rows(longest=60), read_state(adapted)
        return noise_floor(adapted.get_base_model(), set_state, rows, state, batch_tokens=batch_tokens)


def test_the_noise_floor_is_the_difference_between_two_layouts(monkeypatch):
    """Hardware need not round at all, so errors of known size are added: +-0.3 a token in turn and -0.1, in company only."""

    def with_errors(model, batch):
        logp = row_logprobs(model, batch)
        if len(batch.rows) == 1:
            return logp
        counts = (batch.labels != IGNORED).sum(1)
        return logp + torch.cat([0.3 * (-1.0) ** torch.arange(int(count)) - 0.1 for count in counts])

    monkeypatch.setattr("tov.methods.tov.scan.row_logprobs", with_errors)
    rows = encoded_rows(longest=60)
    counts = rows.scored_counts[rows.scored_counts > 0]
    found = floor_of(torch.float64, batch_tokens=100_000)
    errors = [0.3 * (-1.0) ** np.arange(count) - 0.1 for count in counts]
    assert found == pytest.approx({
        "token_rms": np.sqrt(np.mean(np.concatenate(errors) ** 2)),
        "row_rms": np.sqrt(np.mean([one.mean() ** 2 for one in errors])),
    }, rel=1e-4), "root mean squares over tokens, and over rows of their token means"  # fmt: skip
    assert floor_of(torch.float64, batch_tokens=1) == {"token_rms": 0.0, "row_rms": 0.0}, "each row alone, twice"


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, ROUNDING), (torch.bfloat16, 0.5)], ids=["fp32", "bf16"])
def test_two_layouts_of_a_tiny_model_differ_by_no_more_than_rounding(dtype, most):
    """bf16 rounds at 1 in 256, and layouts may order the sums; some hardware rounds both layouts alike."""
    for name, value in floor_of(dtype, batch_tokens=1000).items():
        assert 0 <= value < most, f"{name} is {value:.2g} nat"


# A whole run, by its files.

SETTINGS = {"n": 20, "dtype": "fp32", "base_size": 8, "epochs": 2, "lora_r": 2, "seed": 3}


def run(out: Path, model: Path, pool: Path, target: Path, **given):
    return tov.select(
        model=str(model), pool=str(pool), target=str(target), out=out, quiet=True, **{**SETTINGS, **given}
    )


def column(picked, name: str) -> np.ndarray:
    return np.array(picked.scores[name].to_pylist(), float)


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"shard_rows": 7}, {"batch_tokens": 40}, {"batch_tokens": 10_000, "shard_rows": 1}])
def test_a_runs_scores_do_not_depend_on_shards_or_batches(given, tmp_path, tiny_folder, tiny_pool, tiny_target):
    one, two = (
        run(tmp_path / name, tiny_folder, tiny_pool, tiny_target, **extra) for name, extra in (("a", {}), ("b", given))
    )
    for name in MEASURES:
        gap = np.abs(column(one, name) - column(two, name)).max()
        assert gap < ROUNDING, f"{name} moved by {gap:.2g} under {given}"
    best = [
        np.array(made.dataset["tov_score"][:])[np.array(made.dataset["tov_reason"][:]) == "score"]
        for made in (one, two)
    ]
    np.testing.assert_allclose(*best, atol=ROUNDING, err_msg=f"better or worse rows are chosen under {given}")


def test_the_order_of_the_pool_changes_no_rows_score(tmp_path, tiny_folder, tiny_target):
    """The stored path of one run scores the same rows in another order."""
    rows = make_rows(24, seed=1)
    order = np.random.default_rng(0).permutation(24)
    first = run(tmp_path / "a", tiny_folder, write_jsonl(tmp_path / "pool.jsonl", rows), tiny_target, n=10)
    second = tov.score(first, str(write_jsonl(tmp_path / "other.jsonl", [rows[place] for place in order])), quiet=True,
                       out=tmp_path / "b", shard_rows=5)  # fmt: skip
    for name in MEASURES:
        gap = np.abs(column(second, name) - column(first, name)[order]).max()
        assert gap < ROUNDING, f"{name} moved by {gap:.2g} in another order"
    for name in ("tokens", "hash", "in_base"):
        assert second.scores[name].to_pylist() == first.scores[name].take(order).to_pylist(), (
            f"{name} depends on the order"
        )


def test_the_score_table_tells_all(tmp_path, tiny_folder, tiny_target):
    rows = [*make_rows(20, seed=1), {"prompt": "no answer", "completion": ""}]
    picked = run(
        tmp_path / "run", tiny_folder, write_jsonl(tmp_path / "p.jsonl", rows), tiny_target, n=10, shard_rows=8
    )
    table = picked.scores
    assert len(list((tmp_path / "run" / "scores").glob("*.parquet"))) == 3, "21 rows are three shards of 8"
    assert table["row_id"].to_pylist() == list(range(21)), "row_id is the position in the pool"
    assert sum(table["in_base"].to_pylist()) == 8, "the base set is marked"
    assert table["excluded"][20].as_py() == "no scored tokens", "the reader must learn why a row has no score"
    assert np.isnan(table["score_positive"][20].as_py()), "a row without an answer has no score"
    assert picked.summary["scores"]["left_out"] == {"no scored tokens": 1}, "rows without a score are counted"
    for name in MEASURES:
        epochs = (column(picked, f"{name}_1") + column(picked, f"{name}_2")) / 2
        assert np.allclose(column(picked, name), epochs, atol=1e-5, equal_nan=True), (
            f"{name} is not the mean of its epochs"
        )


# A run killed at any moment and started again.


def command(model: Path, pool: Path, target: Path, out: Path) -> list[str]:
    flags = [part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return [
        "select", "--model", str(model), "--pool", str(pool), "--target", str(target), "--out", str(out), "--shard-rows", "2",
        "--quiet", *flags,
    ]  # fmt: skip


def result_files(out: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in (
            *sorted((out / "scores").iterdir()),
            *sorted(out.glob("path/**/*.safetensors")),
            out / "selected.jsonl",
        )
    }


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_killed_run_goes_on_and_ends_with_the_same_files(tmp_path, tiny_folder, tiny_pool, tiny_target):
    """Killed while fitting, before the first shard, in the middle (really: half a file stays behind), and near the end."""
    expected = result_files(run(tmp_path / "whole", tiny_folder, tiny_pool, tiny_target, shard_rows=2).folder)
    out, left = tmp_path / "killed", []
    for naming in ("epoch-1/target", "rows-000000000000", "rows-000000000020", "rows-000000000038"):
        if naming == "rows-000000000020":
            kill_for_real(command(tiny_folder, tiny_pool, tiny_target, out), naming=naming)
            assert [file.name for file in out.rglob("*.tmp")], (
                "a real kill should leave half a file: the test tests less"
            )
        else:
            with killed(naming=naming):
                run(out, tiny_folder, tiny_pool, tiny_target, shard_rows=2)
        left.append(len(list((out / "scores").glob("rows-*.parquet"))))
    assert left == [0, 0, 10, 19], "finished shards were lost"
    run(out, tiny_folder, tiny_pool, tiny_target, shard_rows=2)
    found = result_files(out)
    assert set(found) == set(expected), f"other files: {set(found) ^ set(expected)}"
    assert found == expected, f"differ after being killed: {[name for name in found if found[name] != expected[name]]}"
    assert not list(out.rglob("*.tmp")), "half-written files were left behind"


@pytest.mark.slow
def test_a_missing_shard_is_scanned_again_and_no_other(tmp_path, tiny_folder, tiny_pool, tiny_target):
    """What is there is not touched: only the row blocks without a file go through the model."""
    whole = run(tmp_path / "run", tiny_folder, tiny_pool, tiny_target, shard_rows=10)
    files = sorted((whole.folder / "scores").iterdir())
    before = [file.read_bytes() for file in files]
    stamps = [file.stat().st_mtime_ns for file in files]
    files[2].unlink()
    (whole.folder / "manifest.json").write_text(
        (whole.folder / "manifest.json").read_text().replace('"status": "finished"', '"status": "running"')
    )
    run(tmp_path / "run", tiny_folder, tiny_pool, tiny_target, shard_rows=10)
    assert [file.read_bytes() for file in files] == before, "a shard scanned again has other bytes"
    touched = [file.stat().st_mtime_ns != stamp for file, stamp in zip(files, stamps, strict=True)]
    assert touched == [False, False, True, False], f"shards written again: {touched}"


@pytest.mark.slow
def test_tokens_that_passed_before_a_kill_are_counted(tmp_path, tiny_folder, tiny_pool, tiny_target):
    """Those of the shards that a killed scan left, once each."""
    whole = run(tmp_path / "whole", tiny_folder, tiny_pool, tiny_target, shard_rows=10)
    with killed(function="tov.scores.store.ShardStore.write", call=3):
        run(tmp_path / "run", tiny_folder, tiny_pool, tiny_target, shard_rows=10)
    again = run(tmp_path / "run", tiny_folder, tiny_pool, tiny_target, shard_rows=10)
    expected, found = (made.manifest.scoring.tokens_passed for made in (whole, again))
    assert expected < found <= 2 * expected, "the shard that passed and was not written has passed twice"
    assert again.manifest.cost["tokens_forward"] > whole.manifest.cost["tokens_forward"]


def test_a_shard_of_another_run_is_refused(tmp_path, tiny_folder, tiny_pool, tiny_target):
    whole = run(tmp_path / "run", tiny_folder, tiny_pool, tiny_target, shard_rows=20)
    file = sorted((whole.folder / "scores").iterdir())[1]
    pq.write_table(pq.read_table(file).replace_schema_metadata({b"tov_fingerprint": b"another"}), file)
    manifest = whole.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"status": "finished"', '"status": "running"'))
    with pytest.raises(tov.RunError, match="another run"):
        run(tmp_path / "run", tiny_folder, tiny_pool, tiny_target, shard_rows=20)


@pytest.mark.parametrize(("batch_tokens", "halved"), [(1, False), (120, False), (100_000, False), (100_000, True)])
def test_rows_end_to_end_are_scanned_as_rows_alone(batch_tokens, halved, monkeypatch):
    """As on a GPU in half precision, where a kernel walks the rows; here a loop does."""
    embedded = np.random.default_rng(0).normal(size=(3, subject()[0].config.hidden_size))
    padded = scan(subject()[1], embedded=embedded)
    monkeypatch.setattr("tov.model.kernels.joined.for_scans", end_to_end)
    passed, refused = [], []

    def once_too_large(model, batch, **options):
        if halved and len(batch.rows) > 3:
            refused.append(batch)
            raise torch.OutOfMemoryError("CUDA out of memory")
        passed.append(batch)
        return row_logprobs(model, batch, **options)

    monkeypatch.setattr("tov.methods.tov.scan.row_logprobs", once_too_large)
    scanned = scan(subject()[1], batch_tokens=batch_tokens, embedded=embedded)
    assert_is_twin(scanned.columns, range(ROWS), "rows end to end")
    np.testing.assert_allclose(scanned.nearness, padded.nearness, atol=1e-5)
    several = [batch for batch in passed if len(batch.rows) > 1]
    assert all(batch.end_to_end and len(batch.ids) == 1 for batch in several)
    assert bool(several) == (batch_tokens > 1), f"rows a batch: {[len(batch.rows) for batch in passed]}"
    assert bool(refused) == halved, "the largest batch is passed in halves"


def test_batches_of_rows_end_to_end_hold_as_many_as_fit():
    draw = np.random.default_rng(3)
    lengths, wanted = draw.integers(1, 60, 200), draw.random(200) < 0.9
    groups = fill(lengths, wanted, 128)
    assert sorted(np.concatenate(groups).tolist()) == np.flatnonzero(wanted).tolist()
    sums = [int(lengths[group].sum()) for group in groups]
    assert max(sums) <= 128
    for group, total in zip(groups[1:], sums[:-1], strict=True):
        assert total + lengths[group[0]] > 128, "the next row had room"
