"""Preference pairs: read in the forms of TRL and its data sets, scored by the chosen answer or by a margin, kept whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tov
from tiny import make_rows
from tov.data.cells import BadRow, NotGold
from tov.data.pool import index_rows, open_pool
from tov.errors import ConfigError, DataError
from tov.scores.table import usable_in
from tov.tasks import all_layouts
from tov.tasks.instruction import Conversation, from_preference, from_prompt_completion


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASK, GOOD, BAD = turn("user", "Two and two?"), turn("assistant", "Four."), turn("assistant", "Five.")
FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "Two and two?", "chosen": "Four.", "rejected": "Five."},
    "turns": {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
    "turns that begin with the prompt": {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    "the prompt beside turns that begin with it": {"prompt": "Two and two?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    "the prompt's turns beside turns that begin with it": {"prompt": [ASK], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_pairs_are_the_same_in_every_form(form: str) -> None:
    row = from_preference(FORMS[form])
    assert row.messages == (ASK, GOOD)
    assert row.rejected is not None
    assert row.rejected.messages == (ASK, BAD)
    assert row.content == from_preference(FORMS["texts"]).content


def test_answers_in_the_prompt_are_seen_and_not_scored() -> None:
    talk = [turn("system", "Add."), turn("user", "One and one?"), turn("assistant", "Two."), ASK]
    row = from_preference({"chosen": [*talk, GOOD], "rejected": [*talk, BAD]})
    assert row.messages == (*talk, GOOD)
    assert row.unscored == {2}
    same = from_preference({"chosen": [ASK, GOOD], "rejected": [ASK, GOOD]})
    assert same.messages == (ASK, GOOD), "two equal answers are answers, not the prompt"


@pytest.mark.parametrize(("row", "words"), [
    ({"chosen": "Human: a", "rejected": "Human: b"}, "no prompt that they answer"),
    ({"chosen": [ASK, GOOD], "rejected": [turn("user", "?"), BAD]}, "do not begin with the same turns"),
    ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected is missing"),
    ({"prompt": "a", "chosen": 3, "rejected": "b"}, "chosen is an int"),
])  # fmt: skip
def test_what_is_no_pair_is_refused(row: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRow, match=words):
        from_preference(row)


def test_pairs_that_differ_in_the_rejected_answer_are_no_repeats() -> None:
    rows = [FORMS["texts"], {**FORMS["texts"], "rejected": "Six."}, FORMS["turns"]]
    index = index_rows(open_pool([rows], layouts=all_layouts()))
    assert len(set(index.content.tolist())) == 2
    assert len(set(index.prompt.tolist())) == 1


@pytest.mark.parametrize("label", [False, "false", "False", " FALSE ", np.bool_(False)])
def test_a_completion_that_is_not_wanted_is_left_out(label: Any) -> None:
    with pytest.raises(NotGold, match="its label is false"):
        from_prompt_completion({"prompt": "a", "completion": "b", "label": label})


@pytest.mark.parametrize(
    "label", [True, "True", 1, 0, 7, "0", "maths", "", None, float("nan"), np.array([0, 1]), [False]]
)
def test_a_completion_whose_label_says_nothing_against_it_is_read(label: Any) -> None:
    """A number or a word may be a class's: no row is left out for it."""
    assert isinstance(from_prompt_completion({"prompt": "a", "completion": "b", "label": label}), Conversation)


def test_csv_files_say_which_completions_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion,label\nq,a,True\nq,b,False\nq,c,\nq,d,TRUE\n")
    assert index_rows(open_pool([str(tmp_path / "a.csv")], layouts=all_layouts())).not_gold == {1}


def test_a_text_that_an_annotator_rejected_is_left_out() -> None:
    """Prodigy's rows without spans have the columns of bare text."""
    pool = open_pool(
        [[{"text": "Ann", "spans": [], "answer": answer} for answer in ("accept", "reject")]], layouts=all_layouts()
    )
    assert index_rows(pool).not_gold == {1}


def pairs(count: int) -> list[dict[str, Any]]:
    chosen, rejected = make_rows(count, seed=1), make_rows(count, seed=5)
    return [
        {"prompt": one["prompt"], "chosen": one["completion"], "rejected": other["completion"], "id": number}
        for number, (one, other) in enumerate(zip(chosen, rejected, strict=True))
    ]


SMALL: dict[str, Any] = {
    "target": make_rows(6, seed=2), "n": 6, "base_size": 8, "epochs": 1, "max_length": 64, "dtype": "fp32", "device": "cpu",
    "quiet": True,
}  # fmt: skip


@pytest.mark.slow
def test_a_margin_is_the_difference_of_two_scans(tmp_path: Path, tiny_folder: Path) -> None:
    """Of the chosen and of the rejected answers with the same path; rows keep both answers."""
    rows = pairs(30)
    run = tov.select(model=str(tiny_folder), pool=rows, out=tmp_path / "margin", score="margin", **SMALL)
    sides = {
        side: tov.score(run, [{"prompt": row["prompt"], "completion": row[side]} for row in rows], out=tmp_path / side,
                        score="chosen", quiet=True).scores
        for side in ("chosen", "rejected")
    }  # fmt: skip
    usable = usable_in(run.scores)
    for name in ("score_identity", "score_positive"):
        found, one, other = (table[name].to_numpy()[usable] for table in (run.scores, *sides.values()))
        np.testing.assert_allclose(found, one - other, atol=2e-6)
        assert np.abs(other).max() > 1e-4, "the rejected answers do not move: the test tests nothing"
    np.testing.assert_allclose(
        run.scores["loss_base"].to_numpy()[usable], sides["chosen"]["loss_base"].to_numpy()[usable], atol=1e-6
    )
    assert [dict(row, **{}) for row in run.dataset.select_columns(["prompt", "chosen", "rejected", "id"])] == [
        rows[row_id] for row_id in run.dataset["tov_row_id"]
    ]
    again = tov.score(run, rows, out=tmp_path / "again", quiet=True).scores
    found, then = (table["score_identity"].to_numpy()[usable] for table in (again, run.scores))
    np.testing.assert_array_equal(found, then, "a later scoring is by the run's margin")


def test_the_chosen_answer_is_scored_by_default(tmp_path: Path, tiny_folder: Path) -> None:
    rows = pairs(20)
    run = tov.select(model=str(tiny_folder), pool=rows, out=tmp_path / "run", **SMALL)
    single = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    alone = tov.score(run, single, out=tmp_path / "alone", quiet=True)
    usable = usable_in(run.scores)
    np.testing.assert_allclose(
        alone.scores["score_identity"].to_numpy()[usable], run.scores["score_identity"].to_numpy()[usable], atol=2e-6
    )


def test_a_pair_of_which_one_answer_is_cut_has_no_margin(tmp_path: Path, tiny_folder: Path) -> None:
    rows = pairs(20)
    rows[3]["rejected"] = ""
    run = tov.select(model=str(tiny_folder), pool=rows, out=tmp_path / "run", score="margin", **SMALL)
    assert run.scores["excluded"].to_pylist()[3] == "no scored tokens"
    assert 3 not in run.dataset["tov_row_id"]


def test_a_margin_needs_pairs(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="--score margin is for preference pairs"):
        tov.select(model=str(tiny_folder), pool=make_rows(20), out=tmp_path / "run", score="margin", **SMALL)
    off_path = {name: value for name, value in SMALL.items() if name not in ("base_size", "epochs")} | {
        "method": "dsir"
    }
    with pytest.raises(ConfigError, match=r"score"):
        tov.select(model=str(tiny_folder), pool=pairs(20), out=tmp_path / "run", score="margin", **off_path)


def test_a_row_that_the_template_refuses_is_named_or_skipped(tmp_path: Path, tiny_folder: Path) -> None:
    """Found when the row is made tokens of, after all rows have been read."""
    rows = [{"messages": [turn("user", row["prompt"]), turn("assistant", row["completion"])]} for row in make_rows(20)]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    rows[11]["messages"][1] = {"role": "assistant", "content": "", "tool_calls": [call]}  # type: ignore[assignment]
    with pytest.raises(DataError, match=r"<list of 20 rows>, row 12: "):
        tov.select(model=str(tiny_folder), pool=rows, out=tmp_path / "run", **SMALL)
    run = tov.select(model=str(tiny_folder), pool=rows, out=tmp_path / "skipped", on_bad_row="skip", **SMALL)
    said = run.scores["excluded"].to_pylist()[11]
    assert said.startswith("refused by the model's template: The model's chat template leaves out what turn 2 (")
    assert said.endswith("is scored by: its call of add")
    assert run.summary["scores"]["left_out"] == {"refused by the model's template": 1}
    assert any("chat template refuses" in note for note in run.summary["notes"])
