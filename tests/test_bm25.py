"""BM25: words of any language, scores against a loop and against bm25s, round robin, and what must not matter."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tov
from oracle import bm25 as oracle
from oracle.round_robin import round_robin
from tov.errors import ConfigError, DataError, RunError
from tov.files import digest
from tov.methods import bm25
from tov.methods.bm25 import Pool, add_up, best_rows, count_words, index_shard, queries_of, read_index, words_of
from tov.scores.store import ShardStore

HOW: dict[str, Any] = {"k1": 1.5, "b": 0.75}
WORDS = ["the", "The", "cat", "Ünï", "数据", "a_b", "!?", "don't", "7", "--"]
texts = st.lists(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), min_size=1, max_size=9)
POOL = [
    "Water boils at a hundred degrees.", "How many apples has Ann if she buys three apples?", "the cat sat on the mat",
    "The capital of France is Paris.", "Count the apples, then the pears, then the apples again.", "...", "",
    "北京是中国的首都。", "the cat sat on the mat", "Ann has three cats and one dog", "Boil water, then count to a hundred.",
    "¿Cuál es la capital de Francia?", "中国的首都在哪里？", "the the the", "A dog and a cat",
]  # fmt: skip
TARGET = ["How many apples does Ann buy?", "中国的首都", "What is the capital of Francia?"]


def matrix(pool: list[str], target: list[str], **how: float) -> np.ndarray:
    """(N, M) scores of texts."""
    split = [words_of(text) for text in target]
    vocabulary = {word: number for number, word in enumerate(sorted(set().union(*map(set, split))))}
    counts, queries = count_words(pool, vocabulary), count_words(target, vocabulary)
    frequency = np.bincount(counts.words.indices, minlength=len(vocabulary))
    whole = Pool(len(pool), int(counts.lengths.sum()), frequency)
    how = {**HOW, **how}
    blocks = bm25.scored_blocks(counts, queries_of(queries, whole, **how), whole, **how)
    return np.concatenate([block.toarray() for block in blocks])


def some_texts(rows: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [
        " ".join(f"w{word}" for word in (80 * random.random(random.integers(1, 30)) ** 2).astype(int))
        for _ in range(rows)
    ]


# Words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's  3.14, e-mail!", ["the", "cat", "s", "3", "14", "e", "mail"]),
        ("max_len = maxLen", ["max", "len", "maxlen"]),
        ("L’homme qu'il a vu à l'été", ["l", "homme", "qu", "il", "a", "vu", "à", "l", "été"]),
        ("STRASSE, Straße; e\u0301t\u00e9", ["strasse", "strasse", "été"]),
        ("Ｗｉｄｅ", ["wide"]),
        ("我爱北京。Python3很好", ["我爱", "爱北", "北京", "python3", "很好"]),
        ("水 と 火", ["水", "と", "火"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("Привет, мир", ["привет", "мир"]),
        ("?! … 🙂 --", []),
        ("", []),
    ],
)  # fmt: skip
def test_words_of_a_text_in_any_language(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    "text", ["เมืองหลวงของประเทศไทยคือกรุงเทพ", "数据选择方法", "ខ្ញុំស្រលាញ់ភាសា", "東京は日本の首都です"]
)
def test_a_script_without_spaces_is_not_one_word(text: str) -> None:
    words = words_of(text)
    assert len(words) > len(text) / 4, words
    assert max(map(len, words)) <= 10
    assert set(words_of(text[: len(text) // 2])) & set(words), "a part of a text has nothing in common with the whole"


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_plain_letters_have_a_shorter_way_to_the_same_words(text: str) -> None:
    assert words_of(text) == words_of(f"{text} é")[:-1]


# Scores


@settings(deadline=None)
@given(texts, texts, st.sampled_from([0.0, 0.9, 1.5, 100.0]), st.sampled_from([0.0, 0.4, 1.0]))
def test_scores_are_those_of_a_loop_over_every_word(pool: list[str], target: list[str], k1: float, b: float) -> None:
    pool, target = [*pool, "the"], [text for text in target if words_of(text)] or ["cat"]
    expected = oracle.scores([words_of(text) for text in pool], [words_of(text) for text in target], k1, b)
    np.testing.assert_allclose(matrix(pool, target, k1=k1, b=b), expected, rtol=1e-12, atol=1e-15)


def test_scores_are_those_of_bm25s() -> None:
    """Its variant `lucene`; a query's scores differ by one factor, what the query's own text has."""
    theirs = pytest.importorskip("bm25s", reason="pip install bm25s")
    pool, target = some_texts(200, 1), some_texts(12, 2)
    index = theirs.BM25(method="lucene", dtype="float64", **HOW)
    index.index([words_of(text) for text in pool], show_progress=False)
    found = matrix(pool, target)
    for query, text in enumerate(target):
        wanted = index.get_scores(words_of(text))
        own = oracle.raw(words_of(text), words_of(text), [words_of(row) for row in pool],
                         sum(len(words_of(row)) for row in pool) / len(pool), **HOW)  # fmt: skip
        np.testing.assert_allclose(found[:, query] * own, wanted, rtol=1e-6, atol=1e-9)


def test_a_copy_has_1_and_what_shares_no_word_0() -> None:
    found = matrix([*POOL, *TARGET], TARGET)
    np.testing.assert_allclose(np.diag(found[len(POOL) :]), 1, rtol=1e-12)
    assert (found[[5, 6]] == 0).all(), "rows without a word"
    long = " ".join([*POOL[:5], *TARGET[:1]])
    short, lengthy = matrix(POOL, [TARGET[0], long]).max(0)
    assert 0 < lengthy < 1, "undivided, the long query's scores would be several times the short one's"
    assert 0 < short < 1


def test_neither_block_nor_order_changes_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, target = some_texts(60, 3), some_texts(7, 4)
    whole = matrix(pool, target)
    order = np.random.default_rng(0).permutation(len(pool))
    assert np.array_equal(matrix([pool[at] for at in order], target), whole[order]), "another order of the pool"
    assert np.array_equal(matrix(pool, target[::-1]), whole[:, ::-1]), "another order of the target"
    monkeypatch.setattr(bm25, "CELLS", 20)
    assert np.array_equal(matrix(pool, target), whole), "two rows at a time"


# An index on disk


def write_index(folder: Path, pool: list[str], target: list[str], shard_rows: int) -> None:
    vocabulary = {word: at for at, word in enumerate(sorted({word for text in target for word in words_of(text)}))}
    shards, starts = ShardStore(folder / "shards", "stamp"), range(0, len(pool), shard_rows)
    for start in starts:
        counts = count_words(pool[start : start + shard_rows], vocabulary)
        shards.write(start, index_shard(counts, np.arange(len(counts.lengths)), len(counts.lengths)))
    add_up(folder, shards, starts, count_words(target, vocabulary), rows=len(pool))


@pytest.mark.parametrize("k", [1, 4, 11, 13])
@pytest.mark.parametrize("cells", [1, 10, 10**6])
def test_the_best_rows_are_those_of_a_sorted_list(k: int, cells: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(bm25, "CELLS", cells)
    write_index(tmp_path, POOL, TARGET, 4)
    usable = np.ones(len(POOL), bool)
    usable[[1, 4]] = False
    scores = matrix(POOL, TARGET)
    ids, values = best_rows(read_index(tmp_path), k, usable, **HOW)
    enough = (usable & (scores > 0).any(1)).sum() >= k
    for query in range(len(TARGET)):
        order = sorted(np.flatnonzero(usable), key=lambda row: (-scores[row, query], row))
        wanted = [row for row in order if not enough or scores[row, query] > 0][:k]
        assert ids[query].tolist() == wanted, "not the best, or ties not by row_id"
        assert values[query].tolist() == scores[wanted, query].tolist()


def test_memory_does_not_grow_with_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bm25, "CELLS", 500)
    peaks, target = [], some_texts(5, 8)
    for turn, rows in enumerate((200, 200, 3200)):  # the first call fills caches
        write_index(tmp_path / str(turn), some_texts(rows, 7), target, 100)
        tracemalloc.start()
        index, usable = read_index(tmp_path / str(turn)), np.ones(rows, bool)
        best_rows(index, 10, usable, **HOW)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1] + 40 * 3000, (
        f"sixteen times the rows took {peaks[2] / peaks[1]:.1f} times the memory"
    )


# Selections


def asked(texts: list[str]) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


def select(folder: Path, model: Path, pool: list[str] = POOL, target: list[str] = TARGET, **changed: Any) -> Any:
    given: dict[str, Any] = {
        "method": "bm25", "n": 8, "shard_rows": 4, "decontaminate": False, "on_bad_row": "skip", "quiet": True, "device": "cpu",
        "dtype": "fp32", "max_length": 200,
    }  # fmt: skip
    return tov.select(model=str(model), pool=asked(pool), target=asked(target), out=folder, **{**given, **changed})


def test_a_selection_is_a_loop_s(tiny_folder: Path, tmp_path: Path) -> None:
    """The column is the best score over target rows; the rows are taken in turn, ties by row_id."""
    pool = [text for text in POOL if text]
    one = select(tmp_path / "run", tiny_folder, pool, [*TARGET, "?!"])
    assert "1 target rows have no word and were left out" in one.manifest.notes
    split = [words_of(text) for text in pool]
    scores = oracle.scores(split, [words_of(text) for text in TARGET])
    found = one.scores["score_bm25"].to_numpy()
    np.testing.assert_allclose(found, [max(row) for row in scores], rtol=1e-6)
    assert found[2] == found[7], "the same row twice"
    none = [[value or np.nan for value in row] for row in scores]
    wanted = round_robin(none, 8, [True] * len(pool), list(range(len(pool))))
    assert list(one.dataset["tov_row_id"]) == wanted
    assert one.manifest.cost["tokens_forward"] == 0
    assert list(one.manifest.artifacts) == ["index"]


def test_a_stored_index_is_chosen_from_again(tiny_folder: Path, tmp_path: Path) -> None:
    one = select(tmp_path / "run", tiny_folder)
    rows = list(one.dataset["tov_row_id"])
    fewer = tov.reselect(one.folder, n=5, out=tmp_path / "fewer", pool=asked(POOL))
    assert list(fewer.dataset["tov_row_id"]) == rows[:5]
    best = tov.reselect(one.folder, n=5, rule="score-only", out=tmp_path / "best", pool=asked(POOL))
    scored = np.nan_to_num(one.scores["score_bm25"].to_numpy(), nan=-1)
    assert list(best.dataset["tov_row_id"]) == np.argsort(-scored, kind="stable")[:5].tolist()
    saturated = select(tmp_path / "k1", tiny_folder, method="bm25/k1=0/b=0")
    again = tov.reselect(saturated.folder, n=8, out=tmp_path / "again", pool=asked(POOL))
    assert list(again.dataset["tov_row_id"]) == list(saturated.dataset["tov_row_id"]), "its own options, again"
    moved = Path(shutil.move(one.folder, tmp_path / "moved"))
    assert list(tov.reselect(moved, n=8, out=tmp_path / "m", pool=asked(POOL)).dataset["tov_row_id"]) == rows
    index = moved / one.manifest.artifacts["index"] / "index.npz"
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(RunError, match=r"(?s)index in .* cannot be read.*--force"):
        tov.reselect(moved, n=7, out=tmp_path / "broken", pool=asked(POOL))


def test_a_row_that_shares_no_word_is_taken_only_where_the_others_do_not_do(tiny_folder: Path, tmp_path: Path) -> None:
    pool, target = ["one two", "blue sky", "red", "two", "green"], ["one two", "three"]
    assert list(select(tmp_path / "two", tiny_folder, pool, target, n=2).dataset["tov_row_id"]) == [0, 3]
    assert list(select(tmp_path / "all", tiny_folder, pool, target, n=5).dataset["tov_row_id"]) == [0, 1, 3, 2, 4]


def test_the_order_of_the_pool_does_not_matter(tiny_folder: Path, tmp_path: Path) -> None:
    """But for ties, of which these rows have none that decide."""
    pool = list(dict.fromkeys(text for text in POOL if words_of(text)))
    order = np.random.default_rng(1).permutation(len(pool))
    one, other = (
        select(tmp_path / "one", tiny_folder, pool),
        select(tmp_path / "two", tiny_folder, [pool[at] for at in order]),
    )
    assert np.array_equal(other.scores["score_bm25"].to_numpy(), one.scores["score_bm25"].to_numpy()[order])
    assert [order[row] for row in other.dataset["tov_row_id"]] == list(one.dataset["tov_row_id"])
    sharded = select(tmp_path / "shards", tiny_folder, pool, shard_rows=2048)
    assert np.array_equal(sharded.scores["score_bm25"].to_numpy(), one.scores["score_bm25"].to_numpy())


def test_excluded_rows_count_for_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    """With decontamination the pool is as if repeats were not there: neither N, nor df, nor the mean length has them."""
    unique = list(dict.fromkeys(text for text in POOL if text))
    one = select(tmp_path / "one", tiny_folder, [text for text in POOL if text], decontaminate=True)
    other = select(tmp_path / "two", tiny_folder, unique)
    found = one.scores["score_bm25"].to_numpy()
    assert np.isnan(found).sum() == 1
    assert np.array_equal(found[~np.isnan(found)], other.scores["score_bm25"].to_numpy())


@pytest.mark.slow
def test_variants_of_bm25_share_their_index(tiny_folder: Path, tmp_path: Path) -> None:
    test = asked(["How many dogs?", "Where is Paris?"])
    compared = tov.compare(
        model=str(tiny_folder), pool=asked([text for text in POOL if text]), target=asked(TARGET), test=test,
        methods=["bm25", "bm25/k1=0", "bm25/b=0/score-only"], sizes=[5], seeds=1, train_rows=5, max_length=200, device="cpu",
        dtype="fp32", quiet=True, out=tmp_path / "run", decontaminate=False,
    )  # fmt: skip
    assert {one["status"] for one in compared.trials} == {"done"}
    assert len(list(compared.folder.glob("scores/*/artifacts/index-*"))) == 1
    alone = select(tmp_path / "alone", tiny_folder, [text for text in POOL if text], method="bm25/k1=0", n=5)
    [trial] = [one for one in compared.trials if one["variant"] == "bm25/k1=0"]
    assert trial["rows_fingerprint"] == digest([int(row) for row in alone.dataset["tov_row_id"]])


def test_what_cannot_be_scored_is_said(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="text of the target holds no word"):
        select(tmp_path / "a", tiny_folder, target=["?!", "..."])
    with pytest.raises(DataError, match="text of the pool holds no word"):
        select(tmp_path / "b", tiny_folder, pool=["?!", "...", "--"], n=2)
    for option, says in (("k1=-1", "k1 got -1"), ("b=1.5", "b got 1.5")):
        with pytest.raises(ConfigError, match=says):
            select(tmp_path / "c", tiny_folder, method=f"bm25/{option}")
    with pytest.raises(ConfigError, match="no option of bm25"):
        select(tmp_path / "c", tiny_folder, method="bm25/k2=1")
