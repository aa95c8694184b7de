"""Near duplicates: every pair against a slow twin, short rows, scripts, templates, and the split of a comparison."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle.near as twin
from tiny import make_rows, write_jsonl
from tov.comparison.split import Split, make_split, read_data
from tov.config.records import CompareConfig
from tov.config.settings import build
from tov.data import near
from tov.data.near import NEAR, Near, plain
from tov.errors import DataError

TEXT = "A train leaves the station at noon with forty people on board; how many seats are still free"


def edited(draw: random.Random, text: str, words: list[str]) -> str:
    parts = text.split()
    for _ in range(draw.randint(0, 3)):
        parts[draw.randrange(len(parts))] = draw.choice(words)
    return " ".join(parts)


@pytest.mark.parametrize("alphabet", ["abcdefgh", "абвгдежз", "天地人你我他好学", "aé𝒳🙂ñßøł"])
def test_every_pair_is_found_and_no_other(alphabet: str) -> None:
    draw = random.Random(alphabet)
    words = ["".join(draw.choice(alphabet) for _ in range(draw.randint(2, 7))) for _ in range(60)]
    texts = [plain(" ".join(draw.choice(words) for _ in range(draw.randint(2, 25)))) for _ in range(80)]
    pairs = [plain(edited(draw, draw.choice([one for one in texts if one]), words)) for _ in range(150)]
    others = [*pairs, *(plain(" ".join(draw.choice(words) for _ in range(9))) for _ in range(50))]
    expected = twin.first_near(texts, others, NEAR)
    assert 20 < sum(one >= 0 for one in expected) < 190, "both kinds are there"
    assert Near(texts).of(others).tolist() == expected
    first = twin.first_near(texts, texts, NEAR)
    assert Near(texts).repeats().tolist() == [0 <= one < at for at, one in enumerate(first)]


@given(st.lists(st.text(alphabet="ab c", max_size=60), max_size=12), st.lists(st.text(alphabet="ab c", max_size=60)))
def test_texts_of_few_letters_that_repeat_themselves(texts: list[str], others: list[str]) -> None:
    texts, others = list(map(plain, texts)), list(map(plain, others))
    assert Near(texts).of(others).tolist() == twin.first_near(texts, others, NEAR)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    words = TEXT.split()
    texts = [plain(edited(draw, TEXT, words)) for _ in range(40)]
    whole = Near(texts[:20]).of(texts)
    assert (whole >= 0).any()
    assert (whole < 0).any()
    monkeypatch.setattr(near, "PAIRS", 3)
    assert Near(texts[:20]).of(texts).tolist() == whole.tolist()


def test_case_and_punctuation_do_not_count_and_a_word_of_a_long_text_neither() -> None:
    other = TEXT.upper().replace(" ", ",  ") + "?!"
    assert plain(other) == plain(TEXT)
    changed = TEXT.replace("forty", "fifty")
    assert Near([plain(TEXT)]).of([plain(changed), plain(TEXT[::-1])]).tolist() == [0, -1]


@pytest.mark.parametrize("short", ["Yes, I do.", "What is it?", "Thank you very much!", "Go on, please", ""])
def test_short_rows_are_near_to_nothing_not_even_to_themselves(short: str) -> None:
    assert plain(short) == ""
    assert Near([plain(short)]).of([plain(short)]).tolist() == [-1]


def test_no_texts_at_all() -> None:
    assert Near([]).of([plain(TEXT)]).tolist() == [-1]
    assert Near([plain(TEXT)]).of([]).tolist() == []
    assert Near([]).repeats().tolist() == []


# The split


def row(prompt: str, answer: str = "none") -> dict[str, str]:
    return {"prompt": prompt, "completion": answer}


def split(pool: Any, target: Any, test: Any, seed: int = 0, **more: Any) -> Split:
    given = {"model": "-", "pool": ("-",), "target": ("-",), "sizes": [2], "out": "-", "task": "instruction", **more}
    config = build(CompareConfig, given | ({"test": ("-",)} if test else {}))
    return make_split(read_data(config, [pool], [target], [test] if test else ()), config, seed)


POOL = [*make_rows(30, seed=1, shortest=3), row(TEXT.replace("forty", "fifty")), row("Thank you very much!!")]
TARGET = [*make_rows(8, seed=2), row(TEXT.replace("noon", "nine"))]
TEST = [*make_rows(4, seed=3), row(TEXT), row("thank you, very much")]


def test_near_duplicates_of_the_test_are_neither_pool_nor_target() -> None:
    found = split(POOL, TARGET, TEST)
    assert [place for place, code in enumerate(found.rows.excluded) if code] == [30], "and no short one"
    assert len(found.target) == 8
    assert any("1 pool rows are near duplicates of a test row" in note for note in found.notes)
    assert any("1 target rows are near duplicates of a test row" in note for note in found.notes)


def test_they_are_kept_if_asked_for_and_all_is_as_without_them() -> None:
    found = split(POOL, TARGET, TEST, near_duplicates="keep")
    assert not found.rows.excluded.any()
    assert len(found.target) == 9
    assert not found.notes
    plain_rows = split(POOL[:30], TARGET[:8], TEST, near_duplicates="keep")
    guarded = split(POOL[:30], TARGET[:8], TEST)
    assert guarded.rows.index.fingerprint == plain_rows.rows.index.fingerprint
    assert guarded.rows.excluded_fingerprint == plain_rows.rows.excluded_fingerprint
    assert guarded.target.index.fingerprint == plain_rows.target.index.fingerprint


@pytest.mark.parametrize("seed", range(4))
def test_of_a_drawn_pool_each_gives_way_to_the_next_row_and_no_other_changes(seed: int) -> None:
    near_rows = [row(TEXT.replace("forty", f"{count}")) for count in range(40, 52)]
    pool = [*make_rows(60, seed=1), *near_rows]
    kept, guarded = (split(pool, TARGET, TEST, seed, pool_rows=30, near_duplicates=how) for how in ("keep", "exclude"))
    before, after = ({one.prompt[0]["content"] for one in found.rows.rows} for found in (kept, guarded))  # type: ignore[attr-defined]
    lost = before - after
    assert lost == {one["prompt"] for one in near_rows} & before
    assert lost, "a seed that draws none shows nothing"
    assert len(after) == len(before) == 30
    assert (
        any(f"{len(lost)} pool rows are near duplicates" in note for note in guarded.notes) or len(after - before) > 0
    )
    assert not guarded.rows.excluded.any()


@pytest.mark.parametrize("seed", range(4))
def test_a_test_drawn_from_the_target_leaves_nothing_near_in_it(seed: int) -> None:
    family = [row(TEXT.replace("forty", f"{count}")) for count in range(40, 60)]
    found = split(POOL, [*make_rows(20, seed=2), *family], None, seed, test_rows=10, target_rows=8)
    texts = [near.question_text(one) for one in found.test.rows]
    assert any(texts), "the test holds some of the family"
    assert (Near(texts).of(map(near.question_text, found.target.rows)) < 0).all()
    assert len(found.target) == 8


def test_a_target_that_is_nearly_the_test_is_refused() -> None:
    with pytest.raises(DataError, match="or nearly"):
        split(POOL, [row(TEXT.replace("noon", "nine"))], TEST)


def test_the_same_template_with_other_names_is_no_near_duplicate_of_a_sentence(tmp_path: Path) -> None:
    """What a generator of sentences makes: few words of its own, and names that differ."""
    draw = random.Random(0)
    names = ["".join(draw.choice("abcdefghijklmnoprstuv") for _ in range(draw.randint(5, 9))) for _ in range(400)]
    made = [
        f"{draw.choice(names)} {draw.choice(names)} lives in {draw.choice(names)} with {draw.choice(names)}"
        for _ in names
    ]
    file = write_jsonl(tmp_path / "pool.jsonl", [{"prompt": one, "completion": "x"} for one in made])
    found = split(str(file), TARGET, [row(one) for one in made[:50]])
    assert (found.rows.excluded[50:] > 0).sum() == 0
