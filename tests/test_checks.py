"""What is looked at before training: facts of rows, warnings true and absent, the run folder, choosing again, comparisons."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tov
from tiny import make_rows, tiny_encoder_folder, write_jsonl
from tov.checks.apart import APART, far, repeat_warnings, warnings
from tov.checks.facts import LOOKED_AT, drawn, facts, script, share_over
from tov.comparison.records import read_trials
from tov.errors import RunError
from tov.runs.manifest import ChecksRecord, Repeats, RowsFacts
from tov.tasks import TASKS
from tov.tasks.classification import Labelled
from tov.tasks.ner import Tagged

BARE = "have no entity"


def sentence(words: str, **tags: str) -> Tagged:
    parts = tuple(words.split())
    return Tagged(parts, tuple(tags.get(word, "O") for word in parts))


def seen(looked_at: int, lengths: range | None = None, **shares: float) -> RowsFacts:
    named = {name.replace("_", " "): share for name, share in shares.items()}
    of_lengths = [] if lengths is None else np.linspace(lengths.start, lengths.stop, 51).astype(int).tolist()
    return RowsFacts(rows=looked_at, looked_at=looked_at, shares=named, lengths=of_lengths)


# Facts


def test_sentences_are_counted_by_their_entity_types() -> None:
    rows = [
        sentence("Ann met Bo in Oslo", Ann="B-PER", Bo="B-PER", Oslo="B-LOC"),
        sentence("it rains"),
        sentence("Ann", Ann="B-PER"),
    ]
    found = facts(rows, TASKS["ner"], sizes=np.array([5, 2, 1]))
    assert found.shares == pytest.approx({
        BARE: 1 / 3, "have the entity type PER": 2 / 3, "have the entity type LOC": 1 / 3, "are mostly in Latin letters": 1,
    })  # fmt: skip
    assert (found.rows, found.looked_at, found.lengths[0], found.lengths[25], found.lengths[50]) == (3, 3, 1, 2, 5)
    assert share_over(found, 2) == pytest.approx(1 / 3, abs=0.02)


def test_texts_are_counted_by_their_label() -> None:
    found = facts([Labelled("one", "spam"), Labelled("two", "ham")], TASKS["classification"], sizes=None, of=9)
    assert {name: share for name, share in found.shares.items() if "label" in name} == {
        "have the label spam": 0.5,
        "have the label ham": 0.5,
    }
    assert (found.rows, found.looked_at, found.lengths) == (9, 2, [])
    assert share_over(found, 1) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Plain words, naïve façade", "Latin"), ("Где находится Oslo?", "Cyrillic"), ("今天天气很好 today", "CJK"),
        ("ここはどこですか", "Hiragana"), ("مرحبا بالعالم", "Arabic"), ("שלום", "Hebrew"), ("नमस्ते दुनिया", "Devanagari"),
        ("안녕하세요", "Hangul"), ("Καλημέρα", "Greek"), ("สวัสดีชาวโลก", "Thai"), ("12 + 30 = 42 🙂", ""), ("", ""),
    ],
)  # fmt: skip
def test_scripts(text: str, name: str) -> None:
    assert script(text) == name


def test_rows_looked_at_are_those_of_the_seed_and_bounded() -> None:
    rows = np.arange(3 * LOOKED_AT)
    first = drawn(rows, 1)
    assert len(first) == len(set(first.tolist())) == LOOKED_AT
    assert drawn(rows, 1).tolist() == first.tolist()
    assert drawn(rows, 2).tolist() != first.tolist()
    assert sorted(drawn(rows[:5], 0).tolist()) == [0, 1, 2, 3, 4]


# The rule


def test_the_sentence_and_its_absence() -> None:
    pool, target = seen(2000, have_no_entity=0.22), seen(256, have_no_entity=0.30)
    [warning] = warnings(seen(512, have_no_entity=0.91), pool, target, "words")
    assert warning == "91 % of the chosen rows have no entity, but 22 % of the pool and 30 % of the target."
    for share in (0.2, 0.22, 0.26, 0.30, 0.38, 0.14):
        assert not warnings(seen(512, have_no_entity=share), pool, target, "words"), share
    assert warnings(seen(512, have_no_entity=0.05), pool, target, "words"), "on the other side too"


def test_a_choice_that_is_like_either_is_not_warned_of() -> None:
    pool, target = seen(2000, have_no_entity=0.2), seen(256, have_no_entity=0.9)
    for share in (0.2, 0.5, 0.9, 0.95):
        assert not warnings(seen(512, have_no_entity=share), pool, target, "words"), share


def test_a_trait_that_only_the_chosen_rows_have_and_one_that_they_lack() -> None:
    pool, target = seen(2000, are_mostly_in_Latin_letters=1.0), seen(64, are_mostly_in_Latin_letters=1.0)
    chosen = seen(100, are_mostly_in_Latin_letters=0.4, are_mostly_in_CJK_letters=0.6)
    assert warnings(chosen, pool, target, "scored tokens") == [
        "40 % of the chosen rows are mostly in Latin letters, but 100 % of the pool and 100 % of the target.",
        "60 % of the chosen rows are mostly in CJK letters, but 0 % of the pool and 0 % of the target.",
    ]


def test_lengths_are_held_against_the_middle_of_the_pool() -> None:
    pool, target = seen(2000, range(0, 100)), seen(64, range(10, 90))
    assert not warnings(seen(100, range(0, 100)), pool, target, "scored tokens")
    [longer] = warnings(seen(100, range(60, 100)), pool, target, "scored tokens")
    assert re.fullmatch(r"100 % of the chosen rows are longer than 50 scored tokens, but 49 % of .*target\.", longer)
    [shorter] = warnings(seen(100, range(1, 20)), pool, target, "words")
    assert shorter.startswith("0 % of the chosen rows are longer than 50 words")
    assert not warnings(seen(100, range(60, 100)), pool, seen(64), "words"), "a target of unknown lengths"


@pytest.mark.parametrize("n", [16, 32, 128, 512])
@pytest.mark.parametrize("target_rows", [32, 256])
def test_random_rows_are_almost_never_warned_of(n: int, target_rows: int) -> None:
    """Twelve traits, target and pool of one kind or two: over 200 draws each at most 2 % are warned of."""
    draw = np.random.default_rng(0)
    for apart in (0.0, 0.3):
        of_pool = draw.uniform(0, 1, 12)
        of_target, warned = np.clip(of_pool + draw.uniform(-apart, apart, 12), 0, 1), 0
        for _ in range(200):
            chosen, pool = (
                seen(size, **{f"t{at}": draw.binomial(size, p) / size for at, p in enumerate(of_pool)})
                for size in (n, 2000)
            )
            target = seen(
                target_rows, **{f"t{at}": draw.binomial(target_rows, p) / target_rows for at, p in enumerate(of_target)}
            )
            warned += bool(warnings(chosen, pool, target, "words"))
        assert warned <= 4, apart


def test_few_rows_need_a_larger_gap() -> None:
    assert far((0.5, 512), (0.3, 2000), (0.3, 512))
    assert not far((0.5, 16), (0.3, 2000), (0.3, 512))
    assert not far((0.29 + APART, 10**6), (0.3, 10**6), (0.3, 10**6)), "and many rows at least this one"


def test_rows_that_are_found_again() -> None:
    told = repeat_warnings({
        "chosen": Repeats(exact=10, near=30, of=100), "pool": Repeats(exact=1, near=2, of=100),
        "target": Repeats(exact=0, near=3, of=100), "test": Repeats(exact=0, near=0, of=100),
    })  # fmt: skip
    assert told == [
        "40 % of the chosen rows nearly repeat another one, but 3 % of as many random rows of the pool.",
        "3 of 100 chosen rows have the prompt of a target row, or nearly.",
    ]
    assert not repeat_warnings({name: Repeats(exact=0, near=9, of=100) for name in ("chosen", "pool")})
    fewer = {"chosen": Repeats(exact=0, near=1, of=100), "pool": Repeats(exact=50, near=0, of=100)}
    assert not repeat_warnings(fewer), "a choice that repeats itself less than the pool is no fault"


# Runs

TEXT = "A train leaves the station at noon with forty people on board; how many seats are still free"


def test_a_selection_says_what_is_seen_and_so_does_a_choice_from_its_scores(tmp_path: Path, tiny_folder: Path) -> None:
    """All chosen rows are of one long family, which nearly is the target's; the rest of the pool is short and otherwise."""
    family = [
        {"prompt": TEXT.replace("forty", str(count)), "completion": f"{count} и ещё {'да' * 9}"}
        for count in range(40, 70)
    ]
    pool = write_jsonl(tmp_path / "pool.jsonl", [*make_rows(60, seed=1), *family])
    target = write_jsonl(tmp_path / "target.jsonl", [*make_rows(20, seed=2), {"prompt": TEXT, "completion": "x"}])
    given: dict[str, Any] = {"max_length": 256, "device": "cpu", "dtype": "fp32", "quiet": True}
    picked = tov.select(
        model=str(tiny_folder), pool=str(pool), target=str(target), n=25, method="rds/score-only", out=tmp_path / "a", **given,
    )  # fmt: skip
    checks = picked.manifest.checks
    assert checks
    assert checks.rows.keys() == {"chosen", "pool", "target"}
    assert [checks.rows[name].rows for name in ("chosen", "pool", "target")] == [25, 90, 21]
    assert checks.repeats["target"].of == 25
    _same_as_slow(picked, checks, pool, target)
    for warning in checks.warnings:
        assert warning in picked.summary["notes"]
        assert warning in (picked.folder / "summary.md").read_text(encoding="utf-8")
        assert warning in str(picked)
        assert warning in picked.record["summary"]["notes"]

    again = tov.reselect(picked, n=25, out=tmp_path / "b", quiet=True)
    assert again.manifest.checks == checks
    target.unlink()
    without = tov.reselect(picked, n=25, out=tmp_path / "c", quiet=True).manifest.checks
    assert without
    assert without.rows == checks.rows, "what was seen of the target is remembered"
    assert "target" not in without.repeats, "but its rows are gone"


def _same_as_slow(picked: Any, checks: ChecksRecord, pool: Path, target: Path) -> None:
    """The counts, by Python's own sets."""
    from oracle.near import first_near, plain

    rows, targets = ([json.loads(line) for line in file.read_text().splitlines()] for file in (pool, target))
    chosen = [plain(rows[row_id]["prompt"]) for row_id in picked.dataset["tov_row_id"]]
    near = first_near([plain(one["prompt"]) for one in targets], chosen, 0.8)
    assert checks.repeats["target"].near + checks.repeats["target"].exact == sum(one >= 0 for one in near)


def test_a_look_at_a_run_of_before_there_were_any(
    tmp_path: Path, tiny_folder: Path, tiny_pool: Path, tiny_target: Path
) -> None:
    picked = tov.select(
        model=str(tiny_folder), pool=str(tiny_pool), target=str(tiny_target), n=6, method="dsir", max_length=64, device="cpu",
        dtype="fp32", quiet=True, out=tmp_path / "a",
    )  # fmt: skip
    file = picked.folder / "manifest.json"
    raw = json.loads(file.read_text())
    raw = {name: value for name, value in raw.items() if name not in ("checks", "checksum")}
    del raw["targets"]["target"]["facts"]
    file.write_text(json.dumps(raw, indent=1))
    checks = tov.reselect(picked.folder, n=6, out=tmp_path / "b", quiet=True).manifest.checks
    assert checks
    assert checks.rows["target"].shares
    assert not checks.rows["target"].lengths, "the target's tokens are not had again"


def test_a_path_on_another_pool_remembers_the_target(tmp_path: Path, tiny_folder: Path) -> None:
    given: dict[str, Any] = {
        "max_length": 64,
        "device": "cpu",
        "dtype": "fp32",
        "base_size": 8,
        "epochs": 1,
        "quiet": True,
    }
    target = make_rows(6, seed=2)
    fit = tov.fit(str(tiny_folder), target, pool=make_rows(30, seed=1), out=tmp_path / "fit", **given)
    scored = tov.score(fit, make_rows(40, seed=4), out=tmp_path / "scored", device="cpu", quiet=True)
    chosen = tov.reselect(scored, n=8, pool=make_rows(40, seed=4), out=tmp_path / "chosen", quiet=True).manifest.checks
    assert chosen
    assert chosen.rows["target"].rows == 6
    assert chosen.rows["target"].lengths


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder_folder(tmp_path_factory.mktemp("encoder"), num_hidden_layers=1)


def tagged(count: int, seed: int, bare: float) -> list[dict[str, Any]]:
    """Sentences of letters, a share of them without an entity."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        words = ["".join(draw.choice("abcdefgh") for _ in range(4)) for _ in range(8)]
        tags = ["O"] * 8 if number < bare * count else ["B-PER", *["O"] * 7]
        rows.append({"tokens": words, "ner_tags": tags})
    return rows


def compared(folder: Path, encoder: Path, **more: Any) -> Any:
    given = {
        "model": str(encoder), "pool": tagged(120, 1, 0.2), "target": tagged(40, 2, 0.2), "test": tagged(20, 3, 0.2),
        "methods": ["random", "lowest-loss", "zero-shot"], "sizes": [24], "seeds": 2, "base_size": 16, "epochs": 1,
        "max_length": 64, "train_rows": 24, "device": "cpu", "dtype": "fp32", "quiet": True, "out": folder, **more,
    }  # fmt: skip
    return tov.compare(**given)


@pytest.mark.slow
def test_a_trial_holds_what_was_seen_of_its_rows(tmp_path: Path, encoder: Path) -> None:
    result = compared(tmp_path / "run", encoder)
    trained = [one for one in result.trials if one["n"]]
    for one in trained:
        checks = ChecksRecord.model_validate(one["checks"])
        assert checks.rows["chosen"].rows == one["n"]
        assert checks.rows["pool"].shares[BARE] == pytest.approx(0.2)
        assert checks.repeats["test"] == Repeats(exact=0, near=0, of=one["n"])
        expected = 1 - checks.rows["chosen"].shares.get("have the entity type PER", 0)
        assert checks.rows["chosen"].shares.get(BARE, 0) == pytest.approx(expected)
        if one["variant"] == "random":
            assert not checks.warnings
    assert all("checks" not in one for one in result.trials if not one["n"]), "zero-shot has no rows"
    told = [note for note in result.results["notes"] if "of 2 seeds: " in note]
    warned = [(one["variant"], warning) for one in trained for warning in one["checks"]["warnings"]]
    assert bool(told) == bool(warned)
    seeds = {one["seed"]: one["checks"]["rows"]["pool"] for one in trained}
    assert len(seeds) == 2

    # A trial that is made again is the same, and one whose checks are of another shape is refused with its line.
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    file = tmp_path / "again" / "trials.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n")
    compared(tmp_path / "again", encoder)
    assert _checks(file) == _checks(tmp_path / "run" / "trials.jsonl")
    broken = json.loads(lines[0])
    broken["checks"]["rows"] = 3
    file.write_text(json.dumps(broken) + "\n")
    with pytest.raises(RunError, match=r"trials\.jsonl:1 is broken: as a record of a trial: checks\.rows"):
        read_trials(file)


def _checks(file: Path) -> dict[Any, Any]:
    return {(one["variant"], one["n"], one["seed"]): one.get("checks") for one in read_trials(file)}


def test_a_choice_of_rows_without_entities_is_told_in_the_report(tmp_path: Path, encoder: Path) -> None:
    """Every row by a cap on sources: the bare ones are a source of their own, and no other may be chosen."""
    pool = {"bare": tagged(60, 1, 1.0), "full": tagged(60, 4, 0.0)}
    files = [str(write_jsonl(tmp_path / f"{name}.jsonl", rows)) for name, rows in pool.items()]
    result = compared(
        tmp_path / "run", encoder, pool=files, methods=["random", "lowest-loss/score-only"], sizes=[20],
        source_cap={"full": 0.01}, seeds=1,
    )  # fmt: skip
    [told] = [note for note in result.results["notes"] if BARE in note]
    assert told.startswith(
        "lowest-loss/score-only, 20 rows, 1 of 1 seeds: 100 % of the chosen rows have no entity, but 50 %"
    )
    assert told in result.report
    assert not [note for note in result.results["notes"] if note.startswith("random,")]


@pytest.mark.slow
def test_rows_of_the_test_that_are_kept_are_told(tmp_path: Path, encoder: Path) -> None:
    pool, test = tagged(40, 1, 0.2), tagged(20, 3, 0.2)
    for place, one in enumerate(test):
        pool[place] = {**one, "tokens": [*one["tokens"], "end"], "ner_tags": [*one["ner_tags"], "O"]}
    both = [
        compared(
            tmp_path / how,
            encoder,
            pool=pool,
            test=test,
            methods=["random", "full"],
            sizes=[12],
            seeds=1,
            near_duplicates=how,
        )
        for how in ("keep", "exclude")
    ]
    [full] = [one for one in both[0].trials if one["variant"] == "full"]
    assert full["checks"]["repeats"]["test"] == {"exact": 0, "near": 20, "of": 40}
    assert any(
        "20 of 40 chosen rows have the prompt of a test row, or nearly." in note for note in both[0].results["notes"]
    )
    [full] = [one for one in both[1].trials if one["variant"] == "full"]
    assert full["n"] == 20
    assert any("20 pool rows are near duplicates of a test row" in note for note in both[1].results["notes"])
