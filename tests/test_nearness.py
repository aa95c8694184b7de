"""Nearness in passing: the scan's own hidden states give each row's cosine to the target, and move no score."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig

import tov
from golden.records import HERE
from golden.rows import encoder, ner_rows
from golden.runs import ROOT, move
from test_scan import subject
from tiny import make_rows, tiny_tokenizer
from tov.errors import ConfigError, RunError
from tov.methods.shared.embeddings import _layer_half_way, embed_rows
from tov.methods.shared.neighbours import best_cosine
from tov.methods.shared.percentiles import percentiles
from tov.methods.tov.path import EMBEDDINGS, open_path
from tov.methods.tov.scan import MEASURES, scan_rows
from tov.model.adapters import write_state
from tov.model.kernels.joined import scanning
from tov.tasks.instruction import Conversation, encode

POOL, TARGET = make_rows(40, seed=1), make_rows(6, seed=2)
SMALL = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
CLOSE = 1e-3
"""What a cosine may lose by embeddings in fp16."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Any:
    return tov.select(
        model=str(tiny_folder), pool=POOL, target=TARGET, n=8, base_size=8, epochs=2, max_length=64, shard_rows=16,
        rule="score-only", bins=1, quiet=True, out=tmp_path_factory.mktemp("nearness") / "run",
    )  # fmt: skip


@pytest.mark.parametrize("batch_tokens", [1, 50, 1000])
def test_no_score_moves_by_a_bit_and_nearness_is_that_of_a_pass_of_its_own(batch_tokens: int) -> None:
    adapted, rows, base, after = subject()
    write_state(adapted, base)
    embedded = embed_rows(adapted, rows, batch_tokens=100, half_way=True)
    assert np.nanmax(np.abs(embedded - embed_rows(adapted, rows, batch_tokens=100))) > 0.1, "the last layer is another"
    near_to = embedded[[0, 7]]
    with scanning(adapted) as set_state:
        model, pairs = adapted.get_base_model(), [(1, base, after), (2, after, base)]
        plain = scan_rows(model, set_state, rows, pairs, batch_tokens=batch_tokens)
        told = scan_rows(model, set_state, rows, pairs, batch_tokens=batch_tokens, embedded=near_to)
    for one, other in zip(plain.epochs, told.epochs, strict=True):
        for name in MEASURES:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert told.nearness is not None
    np.testing.assert_allclose(told.nearness, best_cosine(embedded, near_to), atol=1e-5)
    assert np.isnan(told.nearness).tolist() == [row == 4 for row in range(len(rows))], "row 4 has no scored token"
    assert told.nearness[[0, 7]] == pytest.approx([1, 1], abs=1e-5)
    assert plain.nearness is None
    assert "nearness" not in plain.columns


def alone(folder: Path, state: Path, rows: list[dict[str, str]]) -> np.ndarray:
    """(rows, D) float64 of length 1, a row at a time with peft's own forward pass, after the first of two layers."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(state)).eval().get_base_model()
    chats = [
        Conversation(({"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}))
        for row in rows
    ]
    encoded = encode(tiny_tokenizer(), chats, max_length=64)
    sums = []
    for row in range(len(rows)):
        ids = torch.from_numpy(encoded.row(row)[0].astype(np.int64))
        with torch.no_grad():
            hidden = model.model(input_ids=ids[None], output_hidden_states=True).hidden_states[1][0].double().numpy()
        sums.append((np.arange(1, len(ids) + 1)[:, None] * hidden).sum(0))
    return np.array([one / np.linalg.norm(one) for one in sums])


@pytest.mark.slow
def test_the_column_is_the_largest_cosine_under_the_first_base_state(run: Any, tiny_folder: Path) -> None:
    states = run.folder / "path" / "epoch-1" / "base", run.folder / "path" / "epoch-2" / "base"
    first, second = ((alone(tiny_folder, one, POOL) @ alone(tiny_folder, one, TARGET).T).max(1) for one in states)
    found = run.scores["nearness"].to_numpy()
    np.testing.assert_allclose(found, first, atol=CLOSE)
    assert np.abs(found - second).max() > 2 * CLOSE, "the states hardly differ, so the comparison is empty"


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (LlamaConfig(**SMALL, num_hidden_layers=5), "layers.1"),
        (BertConfig(**SMALL, num_hidden_layers=1), "encoder.layer.0"),
        (GPT2Config(vocab_size=9, n_embd=8, n_head=2, n_layer=4), "h.1"),
    ],
)
def test_half_of_the_layers_of_a_model(config: Any, layers: str) -> None:
    model = AutoModel.from_config(config)
    assert _layer_half_way(model) == [model.get_submodule(layers)]


def test_a_model_without_a_list_of_layers_is_taken_at_its_end() -> None:
    assert _layer_half_way(torch.nn.Sequential(torch.nn.Linear(2, 2))) == []


def test_a_classifier_has_it_too(tmp_path: Path) -> None:
    rows = ner_rows(tmp_path / "ner")
    picked = tov.select(
        model=encoder(tmp_path), pool=[*rows["pool"]], target=rows["target"], n=4, base_size=8, epochs=1, max_length=64,
        on_bad_row="skip", decontaminate=False, quiet=True, out=tmp_path / "run",
    )  # fmt: skip
    scored = np.isfinite(picked.scores["score_positive"].to_numpy())
    near = picked.scores["nearness"].to_numpy()
    assert (np.isfinite(near) == scored).all()
    assert near[scored].max() == pytest.approx(1, abs=CLOSE), "the pool holds rows of the target"
    assert near[scored].min() < 0.99


def test_a_new_pool_is_compared_with_the_stored_target(run: Any, tmp_path: Path) -> None:
    scored = tov.score(run.folder, [*TARGET, *POOL[:6]], out=tmp_path / "scored", quiet=True, device="cpu")
    near = scored.scores["nearness"].to_numpy()
    np.testing.assert_allclose(near[6:], run.scores["nearness"].to_numpy()[:6], atol=CLOSE)
    assert len(open_path(run.folder / "path").embeddings) == len(TARGET)


# The choice


def test_percentiles_are_among_some_rows_and_ties_share_theirs() -> None:
    values = np.array([3.0, 1.0, 1.0, 2.0, np.nan, 9.0])
    among = np.array([True, True, True, True, False, False])
    found = percentiles(values, among)
    np.testing.assert_allclose(found, [7 / 8, 2 / 8, 2 / 8, 5 / 8, np.nan, 1.0])
    assert np.isnan(percentiles(values, np.zeros(6, bool))).sum() == 1, "no row is counted"


def test_the_weights_of_score_nearness_and_uncertainty(run: Any, tmp_path: Path) -> None:
    table = run.scores.to_pandas()
    free = table[~table.in_base & (table.excluded == "")]
    rank = {name: free[name].rank() for name in ("score_positive", "nearness", "uncertainty")}
    for near, unsure in ((0.0, 0.0), (0.25, 0.0), (1.0, 0.0), (0.0, 0.5), (0.25, 0.375)):
        whole = near * rank["nearness"] + unsure * rank["uncertainty"] + (1 - near - unsure) * rank["score_positive"]
        wanted = whole.sort_values(ascending=False, kind="stable").index[:8]
        weights = {"nearness": near, "uncertainty": unsure}
        picked = tov.reselect(run, n=8, **weights, out=tmp_path / f"{near}-{unsure}", pool=POOL, quiet=True)
        assert list(picked.dataset["tov_row_id"]) == list(wanted), weights
    again = tov.reselect(tmp_path / "0.25-0.0", n=9, out=tmp_path / "again", pool=POOL, quiet=True)
    assert again.manifest.identity["settings"]["nearness"] == 0.25, "taken over from the choice gone out from"
    said = tov.reselect(run, n=8, method="tov/nearness=0.25", out=tmp_path / "variant", pool=POOL, quiet=True)
    assert list(said.dataset["tov_row_id"]) == list(again.dataset["tov_row_id"])[:8]


def test_a_weight_that_cannot_take_effect_is_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nearness"):
        tov.reselect(run, n=8, nearness=1.5, out=tmp_path / "a", pool=POOL)
    with pytest.raises(ConfigError, match=r"--nearness 0\.6 and --uncertainty 0\.5 are more than 1 together"):
        tov.reselect(run, n=8, nearness=0.6, uncertainty=0.5, out=tmp_path / "a", pool=POOL)
    with pytest.raises(ConfigError, match="--nearness has no effect with --method uncertainty"):
        tov.reselect(run, n=8, nearness=0.5, method="uncertainty", out=tmp_path / "b", pool=POOL)


def test_scores_of_a_path_without_embeddings_have_no_column_and_say_so(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(HERE / "run-0.1.0", tmp_path / "copy"))
    move(copy, ROOT, copy)
    scored = tov.score(copy / "select-tov", make_rows(9, seed=4), out=tmp_path / "scored", device="cpu", quiet=True)
    assert "nearness" not in scored.scores.column_names
    for name, of in (("old", (copy / "select-tov", None)), ("new", (scored, make_rows(9, seed=4)))):
        with pytest.raises(RunError, match="column nearness, which these scores do not have") as caught:
            tov.reselect(of[0], n=4, nearness=0.5, out=tmp_path / name, pool=of[1], quiet=True)
        assert "--nearness" in caught.value.fix


def test_changed_embeddings_are_refused(run: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.folder / "path", tmp_path / "path"))
    file = folder / EMBEDDINGS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunError, match=r"target\.npy is not the file that was fitted"):
        open_path(folder)


def test_a_plan_foretells_the_tokens_of_the_fit(run: Any, tiny_folder: Path) -> None:
    planned = tov.plan(
        model=str(tiny_folder),
        pool=POOL,
        target=TARGET,
        base_size=8,
        epochs=2,
        max_length=64,
        methods=["tov"],
        probe=False,
    )
    foretold = planned.facts["methods"][0]["stages"]
    target = planned.facts["target"]["tokens"]
    forward, backward = run.manifest.spent["fit"]
    assert forward - backward == target, "the target passes once more, for its embeddings"
    assert foretold["fit"]["forward"] - foretold["fit"]["backward"] == target
