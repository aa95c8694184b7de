"""Pages and `tov inspect`: what is stored to be shown, what stands on a page, and that user text does no harm there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tov
from tiny import make_rows, tiny_tokenizer, write_jsonl
from tov.cli.main import main
from tov.config.page import InspectConfig
from tov.config.records import DataSettings, SelectConfig
from tov.config.settings import build
from tov.engine.models import ModelSpec
from tov.errors import ConfigError, RunError
from tov.inputs.named import pool_again
from tov.inputs.read import read_target, usable_rows
from tov.methods.shared.embeddings import embed_rows
from tov.reports.html.charts import gain_bars
from tov.reports.html.comparison import verdict
from tov.reports.summary import lengths_line
from tov.runs.folder import open_run
from tov.scores.store import read_hashes, read_rows, read_table
from tov.text.pieces import pieces
from tov.verbs import shown as shown_rows
from tov.verbs.inspect import _explain
from tov.verbs.report import report

EVIL = [
    "</script><script>document.title='owned'</script>",
    "<svg onload=\"document.title='owned'\"><img src=x onerror=\"document.title='owned'\">",
    "<!--<script>\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd & &amp; {{ page }} ]]>",
    "word" * 25_000,
]


def rows_with(texts: list[str]) -> list[dict[str, Any]]:
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": text[:200]}] for text in texts]
    return [{"messages": one} for one in turns]


@pytest.fixture(scope="module")
def picked(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Any:
    """A selection from two sources, one of them with rows that would do harm; tests must not change it."""
    place = tmp_path_factory.mktemp("page")
    pool = place / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in make_rows(60, seed=1)), "utf-8")
    evil = place / "<img src=x onerror=alert(1)>.jsonl"
    evil.write_text("".join(json.dumps(row) + "\n" for row in rows_with(EVIL)), "utf-8")
    target = place / "target.jsonl"
    target.write_text("".join(json.dumps(row) + "\n" for row in make_rows(6, seed=2)), "utf-8")
    return tov.select(
        model=str(tiny_folder), pool=[str(pool), str(evil)], target=str(target), n=20, out=place / "run", base_size=8,
        epochs=2, max_length=96, dtype="fp32", device="cpu", bins=3, quiet=True,
    )  # fmt: skip


def shown_of(run: Any) -> dict[str, Any]:
    found = shown_rows.read(open_run(run.folder))
    assert found
    return found


# What is stored


def test_the_rows_shown_are_the_chosen_ones_and_the_best_of_the_others(picked: Any) -> None:
    shown, scores = shown_of(picked), picked.scores
    rows, chosen = shown["rows"], set(picked.dataset["tov_row_id"])
    by_group: dict[str, set[int]] = {}
    for row_id, group in zip(rows["id"], rows["group"], strict=True):
        by_group.setdefault(group, set()).add(row_id)
    assert by_group["by score"] | by_group["at random"] == chosen
    assert not by_group["below the cut"] & chosen
    values = scores["score_positive"].to_numpy()
    base = scores["in_base"].to_numpy()
    usable = np.array([not reason for reason in scores["excluded"].to_pylist()])
    eligible = np.flatnonzero(usable & ~base & np.isfinite(values))
    others = set(eligible.tolist()) - chosen
    assert by_group["below the cut"] == others, "all are shown of so small a pool"
    for row_id, rank, score in zip(rows["id"], rows["rank"], rows["score"], strict=True):
        if row_id in eligible:
            assert rank == 1 + int((values[eligible] > values[row_id]).sum())
            assert score == pytest.approx(values[row_id], rel=1e-4)
    assert shown["raw"], "ranked by a gain in nats"


def test_tokens_add_up_to_the_scores_of_the_table(picked: Any) -> None:
    """The mean gain of a row's tokens is its score without F; their mean loss is the table's."""
    shown, table = shown_of(picked), picked.scores.to_pylist()
    assert len(shown["explained"]) >= 16
    for row_id, one in shown["explained"].items():
        losses, gains = (np.array([token[at] for token in one["tokens"] if token[1] is not None]) for at in (1, 2))
        row = table[int(row_id)]
        assert len(gains) == row["tokens"]
        assert gains.mean() == pytest.approx(row["score_identity"], rel=1e-3, abs=2e-6)
        assert losses.mean() == pytest.approx(row["loss_base"], rel=1e-3)
        assert one["near"][0][1] == pytest.approx(row["nearness"], abs=1e-4)
        assert all(str(place) in shown["target"] for place, _ in one["near"])


def test_the_text_of_tokens_is_the_rows_text(picked: Any) -> None:
    shown, rows = shown_of(picked), pool_again(open_run(picked.folder), None, len(picked.scores))
    for row_id, one in shown["explained"].items():
        said = "".join(token[0] for token in one["tokens"])
        [row] = usable_rows(rows.at([int(row_id)]))
        assert row.text.split("\n")[0][:40] in said


def test_pieces_join_to_the_text_whatever_the_bytes() -> None:
    tokenizer = tiny_tokenizer()
    for text in ("Hello wörld — 日本語 🙂🙂\n\ttab", "\u05e9\u05dc\u05d5\u05dd </script>", "a"):
        ids = tokenizer(text)["input_ids"]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert len(pieces(tokenizer, ids)) == len(ids)


def test_rows_of_the_table_are_read_alone(picked: Any) -> None:
    run = open_run(picked.folder)
    wanted = np.array([5, 63, 0, 17])
    whole = read_table(run.scores)
    some = read_rows(run.scores, wanted)
    assert str(some.to_pylist()) == str([whole.to_pylist()[row] for row in wanted]), "NaN is unequal to itself"
    assert read_hashes(run.scores, wanted) == [whole["hash"][int(row)].as_py() for row in wanted]
    assert read_hashes(run.scores, np.array([], np.int64)) == []


def test_explain_rows_zero_passes_nothing_and_says_so(tmp_path: Path, tiny_folder: Path) -> None:
    given = {
        "model": str(tiny_folder), "pool": make_rows(20, seed=1), "target": make_rows(4, seed=2), "n": 6, "base_size": 4,
        "epochs": 1, "max_length": 64, "quiet": True,
    }  # fmt: skip
    run = tov.select(**given, out=tmp_path / "a", explain_rows=0)
    assert shown_of(run)["explained"] == {}
    assert shown_of(run)["unexplained"] == "no row was to be explained"
    plain = {name: value for name, value in given.items() if name not in ("base_size", "epochs")}
    run = tov.select(**plain, out=tmp_path / "b", method="dsir", page=False)
    assert shown_of(run)["unexplained"] == "dsir says nothing of single tokens"
    assert not (run.folder / "report.html").exists()
    again = report(run)
    assert again.file == run.folder / "report.html"
    assert (open_run(run.folder).is_whole(), "report.html" in open_run(run.folder).manifest.files) == (True, True)


def test_a_finished_run_gets_the_page_that_is_asked_for_later(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "model": str(tiny_folder), "pool": make_rows(20, seed=1), "target": make_rows(4, seed=2), "n": 6, "method": "dsir",
        "max_length": 64, "quiet": True,
    }  # fmt: skip
    run = tov.select(**given, out=tmp_path / "a", page=False)
    before = run.manifest.files
    assert f"page: tov report {tmp_path / 'a'}" in run._repr_html_(), "there is none yet"
    assert not (tov.select(**given, out=tmp_path / "a").folder / "report.html").exists()
    again = tov.select(**{**given, "quiet": False}, out=tmp_path / "a", page=True, explain_rows=3)
    assert (again.folder / "report.html").exists()
    assert again.manifest.files.keys() - before.keys() == {"report.html"}
    assert open_run(run.folder).is_whole()
    assert "--explain-rows measured nothing" in capsys.readouterr().err
    fewer = {"n": 3, "pool": given["pool"], "out": tmp_path / "b", "quiet": True}
    other = tov.reselect(run, **fewer, page=False)
    chosen_again = tov.reselect(run, **fewer, page=True).folder / "report.html"
    assert f"page: {chosen_again}" in other._repr_html_()
    assert "tov compare --from" in (again.folder / "report.html").read_text("utf-8")
    assert "tov compare --from" not in chosen_again.read_text("utf-8"), "it takes no run of select --from"
    assert "config.yaml" not in (again.folder / "report.html").read_text("utf-8"), "its inputs were in memory"
    beside = report(run, other)
    assert beside.file == run.folder / "beside-b.html"
    assert "beside-b.html" in open_run(run.folder).manifest.files


def test_a_page_named_by_another_way_to_its_folder_is_the_runs_own(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_rows(20, seed=1)
    run = tov.select(
        model=str(tiny_folder), pool=pool, target=make_rows(4, seed=2), n=6, method="dsir", max_length=64, quiet=True,
        out=tmp_path / "a",
    )  # fmt: skip
    tov.reselect(run, n=3, pool=pool, out=tmp_path / "b", quiet=True)
    monkeypatch.chdir(tmp_path)
    report("a", out=tmp_path / "a" / "report.html")
    assert open_run(run.folder).is_whole()
    monkeypatch.chdir(tmp_path / "b")
    assert report("../a", ".").file.name == "beside-b.html"
    monkeypatch.chdir(tmp_path / "a")
    beside = report(".", "../b").file.read_text("utf-8")
    assert "b shares 3 of its 3 rows with a" in beside, "a folder has its name also where it is called `.`"


def test_repeats_are_rows_of_their_own_beside_another_run(tmp_path: Path, tiny_folder: Path) -> None:
    pool = make_rows(12, seed=1)
    given = {
        "model": str(tiny_folder), "pool": [*pool, *pool[:4]], "target": make_rows(4, seed=2), "method": "random",
        "decontaminate": False, "max_length": 64, "quiet": True, "page": True,
    }  # fmt: skip
    one = tov.select(**given, n=16, out=tmp_path / "a")
    two = tov.select(**given, n=12, out=tmp_path / "b")
    text = report(one, two).file.read_text("utf-8")
    assert "b shares 12 of its 12 rows with a" in text


def test_a_choice_made_again_takes_over_the_tokens(picked: Any, tmp_path: Path) -> None:
    again = tov.reselect(picked, n=10, rule="score-only", out=tmp_path / "again", quiet=True)
    before, now = shown_of(picked)["explained"], shown_of(again)["explained"]
    assert now
    assert all(before[row_id] == one for row_id, one in now.items())


# Pages


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script id="page-data" type="application/json">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert found
    return json.loads(found[1])


def test_a_page_is_one_file_that_asks_for_nothing(picked: Any) -> None:
    text = re.sub(r"(<script[^>]*>).*?</script>", r"\1", (picked.folder / "report.html").read_text("utf-8"), flags=re.S)
    assert "default-src 'none'" in text
    assert not re.findall(r"<(?:link|iframe|object|embed|form|base)\b", text)
    assert not re.findall(r"<(?:script|img)[^>]* src=", text)
    assert "@import" not in text
    assert '<html lang="en">' in text


def test_user_text_is_data_on_a_page_and_never_markup(picked: Any) -> None:
    text = (picked.folder / "report.html").read_text("utf-8")
    assert "<script>document.title" not in text
    assert "<svg onload" not in text
    assert "<img src=x" not in text
    said = [part[1] for parts in data_of(picked.folder / "report.html")["rows"]["rows"]["parts"] for part in parts]
    assert any("</script><script>" in one for one in said), "it is there, as it was"
    assert max(map(len, said)) < 5000, "a text of 100,000 characters is cut"


def test_a_page_begins_with_the_verdict_and_says_what_has_not_been_measured(picked: Any) -> None:
    text = (picked.folder / "report.html").read_text("utf-8")
    usable = picked.summary["scores"]["usable"]
    sources = set(picked.dataset["tov_source"])
    whence = "all from pool." if sources == {"pool"} else "most often from pool ("
    assert f"tov chose 20 of {usable} usable rows (10 by score, 10 at random), {whence}" in text
    assert "tov compare --from" in text
    order = ["composition", "scores", "lengths", "points", "rows", "cost", "again"]
    places = [text.index(f'<section id="{name}"') for name in order]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([10] * 10, "The groups are tenths of the pool, to within rows of one length."),
        ([9] * 8 + [18], "these are 9 groups of 9 to 18 rows, not tenths of the pool"),
        ([8, *[10] * 8, 18], "these are 10 groups of 8 to 18 rows, not tenths"),
        ([7], "There are too few lengths for tenths of the pool: one group has all 7 rows."),
    ],
)
def test_groups_of_lengths_are_said_to_be_what_they_are(sizes: list[int], said: str) -> None:
    assert said in lengths_line([{"pool": size} for size in sizes])


def test_a_pool_of_few_lengths(tiny_folder: Path, tmp_path: Path) -> None:
    """All rows have one of five lengths, so a tenth of the pool is no group of the chart."""
    pool = [{"prompt": f"{at:04}", "completion": "abcde"[: 1 + at % 5]} for at in range(40)]
    picked = tov.select(
        model=str(tiny_folder), pool=pool, target=make_rows(6, seed=2), n=10, out=tmp_path / "run", base_size=8, epochs=1,
        max_length=96, dtype="fp32", device="cpu", bins=5, quiet=True, decontaminate=False,
    )  # fmt: skip
    page, summary = ((picked.folder / name).read_text("utf-8") for name in ("report.html", "summary.md"))
    rows = picked.summary["choice"]["lengths"]
    assert len(rows) < 10
    alone = [str(row["from"]) for row in rows if row["from"] == row["to"]]
    assert alone
    for length in alone:
        assert f'<th scope="row" dir="auto">{length}</th>' in page
        assert re.search(rf"^\| {length} +\|", summary, re.M)
    assert lengths_line(rows) in page
    assert lengths_line(rows) in summary
    assert "<p>The rule has 5 bins of equally many rows by length; each gives 1 row by score.</p>" in page
    assert f"<p>The bars of the chart are other groups. {lengths_line(rows)}</p>" in page
    assert "(5 by score, 5 at random), all from memory." in page, "one source has no share"


def test_two_selections_side_by_side(picked: Any, tmp_path: Path) -> None:
    other = tov.reselect(picked, n=12, rule="score-only", out=tmp_path / "other", quiet=True)
    page = report(picked, other, out=tmp_path / "pair.html")
    first, second = (set(run.dataset["tov_row_id"]) for run in (picked, other))
    assert f"shares {len(first & second)} of its 12 rows" in page.verdict
    rows = data_of(page.file)["rows"]["rows"]
    by_group = {name: set() for name in rows["group"]}
    for row_id, group in zip(rows["id"], rows["group"], strict=True):
        by_group[group].add(row_id)
    assert by_group["only in the first"] == first - second
    assert by_group.get("only in the second", set()) == second - first
    text = page.file.read_text("utf-8")
    assert '<caption class="sr">Rows that only one of the two selections has: gained and lost</caption>' in text
    assert "just below the cut" not in text
    assert "The chosen rows are in selected.jsonl of each run." in text


@pytest.mark.slow
def test_a_comparison_has_a_page(tmp_path: Path, tiny_folder: Path) -> None:
    done = tov.compare(
        model=str(tiny_folder), pool=make_rows(40, seed=1), target=make_rows(8, seed=2), test=make_rows(8, seed=3),
        methods=["random", "dsir"], sizes=[8], seeds=2, train_rows=16, max_length=64, quiet=True, out=tmp_path / "run",
    )  # fmt: skip
    text = (done.folder / "report.html").read_text("utf-8")
    assert "dsir" in text
    assert "selected.jsonl" not in text, "a comparison has no such file"
    assert "<p>Charts need JavaScript; everything else of the page is above.</p>" in text
    gains = data_of(done.folder / "report.html")["charts"]["gains-8"]["data"]
    variant = next(one for one in done.results["sizes"][0]["variants"] if one["variant"] == "dsir")
    assert gains[0]["text"].startswith(f"{variant['gain']['mean']:+.1f}")
    (done.folder / "results.json").write_text('{"sizes": [], "notes": []}')
    with pytest.raises(RunError, match="lack something that their page shows"):
        report(done.folder)


def test_golden_results_of_a_grid_have_a_page(tmp_path: Path) -> None:
    """Of version 0.1.0, whose names differ."""
    results = Path(__file__).parents[1] / "docs" / "results" / "ner-quick"
    page = report(results, out=tmp_path / "grid.html")
    assert re.search(r"In \d+ of \d\d cells", page.verdict)
    assert "NER-E1" in page.file.read_text("utf-8")


def test_the_first_sentence_of_a_comparison() -> None:
    def results(mean: float, low: float | None, seeds: Any = (0, 1)) -> dict[str, Any]:
        gain = {"mean": mean, "low": low, "high": None if low is None else mean + 1}
        one = {"variant": "tov", "role": "variant", "gain": gain, "paired": seeds, "equivalent": None}
        return {"sizes": [{"n": 512, "variants": [one]}]}

    assert "better than random rows." in verdict(results(5.0, 2.0))
    assert verdict(results(9.9, None, [0])).startswith(
        "At 512 rows tov did best: over 1 seed its rows were +9.9 % (of the test log-loss) better than random rows, a single"
    )
    assert "it may be luck" in verdict(results(5.0, -2.0))
    assert "a single draw" in verdict(results(5.0, None))
    assert "No variant was better than random rows" in verdict(results(-5.0, -8.0))
    assert verdict({"sizes": []}) == "No variant has a finished trial beside random rows yet."


def test_a_bar_beyond_the_edge_is_drawn_there() -> None:
    bars = gain_bars(
        [
            ("a", {"mean": 8.0, "low": 1.0, "high": 15.0}, ""),
            ("b", {"mean": -300.0, "low": -700.0, "high": 20.0}, ""),
            ("c", {"mean": 3.0, "low": None, "high": None}, ""),
        ],
        "a",
    )
    assert [(one["mean"], one["low"], one["high"], one["cut"]) for one in bars] == [
        (8, 1, 15, False), (-50, -50, 20, True), (3, 3, 3, False),
    ]  # fmt: skip
    assert [one["role"] for one in bars] == ["chosen", "other", "other"]


def test_what_has_no_page_is_told(picked: Any, tmp_path: Path, tiny_folder: Path, capsys: Any) -> None:
    with pytest.raises(RunError, match="holds no run"):
        report(tmp_path)
    with pytest.raises(SystemExit):
        main(["report", "a", "b", "c"])
    assert "tov report got 3 runs" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is a folder"):
        report(picked, out=tmp_path)
    fitted = tov.fit(
        str(tiny_folder), make_rows(4, seed=2), pool=make_rows(12, seed=1), out=tmp_path / "fit", base_size=4, epochs=1,
        max_length=64, quiet=True,
    )  # fmt: skip
    with pytest.raises(RunError, match="a run of tov fit, which has no page"):
        report(fitted)


# Inspect


def test_a_row_is_shown_as_the_table_has_it(picked: Any, capsys: Any) -> None:
    row = int(picked.dataset["tov_row_id"][0])
    main_says(["inspect", str(picked.folder), str(row), "--json"])
    [record] = json.loads(capsys.readouterr().out)["rows"]
    assert record["scores"]["score_positive"] == picked.scores["score_positive"][row].as_py()
    assert (record["group"], record["rank"]) == ("by score", 1)
    assert record["tokens"] == shown_of(picked)["explained"][str(row)]["tokens"]
    assert record["near"][0]["parts"]
    main_says(["inspect", str(picked.folder), str(row)])
    out = capsys.readouterr().out
    assert f"row {row} of pool" in out
    assert "near target row" in out


def test_a_row_that_was_not_stored_is_measured_by_the_model(picked: Any) -> None:
    stored = shown_of(picked)["explained"]
    row = next(
        row for row in range(len(picked.scores)) if str(row) not in stored and picked.scores["tokens"][row].as_py()
    )
    [one] = tov.inspect(picked, [row]).rows
    gains = np.array([token[2] for token in one["tokens"] if token[2] is not None])
    assert gains.mean() == pytest.approx(one["scores"]["score_identity"], rel=1e-3, abs=2e-6)
    assert tov.inspect(picked, [row], tokens=False).rows[0]["tokens"] is None


def test_inspect_measures_what_the_run_has_stored(picked: Any) -> None:
    """The pass at the end of a run and one made later give the same numbers."""
    run, shown = open_run(picked.folder), shown_of(picked)
    row_ids = np.array([int(row) for row in list(shown["explained"])[:4]])
    again = {**shown, "explained": {}, "target": {}}
    config = build(InspectConfig, {"from_run": str(picked.folder), "rows": tuple(row_ids.tolist()), "device": "cpu"})
    _explain(run, config, pool_again(run, None, len(picked.scores)), row_ids, again)
    for row in row_ids:
        before, now = (
            np.array([token[2] or 0.0 for token in one["explained"][str(row)]["tokens"]]) for one in (shown, again)
        )
        assert np.allclose(before, now, atol=2e-6)


def test_no_such_row(picked: Any) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no row 64 in the pool.*0 to 63"):
        tov.inspect(picked, [64])
    with pytest.raises(ConfigError, match="no row -1"):
        tov.inspect(picked, [-1])


def main_says(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0


# What was said wrongly


def test_a_page_takes_the_place_of_nothing_else(picked: Any, tmp_path: Path) -> None:
    theirs = write_jsonl(tmp_path / "target.jsonl", make_rows(3, seed=2))
    before = theirs.read_bytes()
    for place in (theirs, picked.folder / "manifest.json", picked.folder / "selected.jsonl"):
        with pytest.raises(ConfigError, match="is there, and is no page of tov"):
            report(picked, out=place)
    assert theirs.read_bytes() == before
    assert open_run(picked.folder).is_whole()
    page = report(picked, out=tmp_path / "page.html").file
    assert report(picked, out=page).file == page, "a page may be written again"


def test_rows_that_there_cannot_be_are_refused(picked: Any) -> None:
    for row in (10_000, 10**30):
        with pytest.raises(ConfigError, match=f"There is no row {row:,}"):
            tov.inspect(picked, [row])


def test_a_device_that_there_cannot_be_is_refused(picked: Any) -> None:
    with pytest.raises(ConfigError, match="There is no device 'foo'"):
        tov.inspect(picked, [0], device="foo")


def test_missing_neighbours_are_told_with_the_reason(tmp_path: Path, tiny_folder: Path) -> None:
    target = write_jsonl(tmp_path / "target.jsonl", make_rows(4, seed=2))
    pool = write_jsonl(tmp_path / "pool.jsonl", make_rows(20, seed=1))
    run = tov.select(
        model=str(tiny_folder), pool=pool, target=target, n=6, base_size=4, epochs=1, max_length=64, explain_rows=0, quiet=True,
        out=tmp_path / "run",
    )  # fmt: skip
    with_them = tov.inspect(run, [3])
    assert with_them.rows[0]["near"]
    assert (with_them.unexplained, with_them.far) == ("", "")
    without = tov.inspect(run, [3], tokens=False)
    assert "--no-tokens leaves out" in str(without)
    target.unlink()
    gone = tov.inspect(run, [3])
    assert gone.rows[0]["tokens"]
    assert not gone.rows[0]["near"]
    assert "No nearest target rows: the files of the run's target are gone, or have changed." in str(gone)


def test_what_has_no_page_is_called_what_it_is(picked: Any, tmp_path: Path, tiny_folder: Path) -> None:
    given = {"model": str(tiny_folder), "pool": make_rows(20, seed=1), "target": make_rows(4, seed=2), "quiet": True}
    fitted = tov.fit(**given, base_size=4, epochs=1, max_length=64, out=tmp_path / "fit")
    with pytest.raises(RunError, match="is a run of tov fit, which has no scores of rows"):
        tov.inspect(fitted.folder, [1])
    compared = tov.compare(
        **given, test=make_rows(4, seed=5), methods=["random"], sizes=[4], seeds=1, train_rows=8, max_length=64,
        out=tmp_path / "compared",
    )  # fmt: skip
    with pytest.raises(RunError, match="is a comparison, and only two selections can stand side by side"):
        report(picked, compared.folder)
    (compared.folder / "results.json").unlink()
    with pytest.raises(RunError, match=r"is a comparison without its results.json") as told:
        report(compared.folder)
    assert "--report-only" in told.value.fix
    with pytest.raises(RunError) as told:
        report(tmp_path)
    assert told.value.fix == "Name the --out of a selection, a comparison or a grid."


def test_names_on_the_terminal_are_those_that_flags_take(tmp_path: Path, tiny_folder: Path) -> None:
    names = ["a <b> `d`", "e|f"]
    files = [write_jsonl(tmp_path / f"{name}.jsonl", make_rows(10, seed=len(name))) for name in names]
    out = tmp_path / "two words"
    run = tov.select(
        model=str(tiny_folder), pool=files,
        target=make_rows(4, seed=7), n=6, method="dsir", max_length=64, quiet=True, out=out,
    )  # fmt: skip
    said = str(run)
    assert all(name in said for name in names)
    assert f"tov report '{out}' --open" in said
    assert "--n 10 --out" in (out / "report.html").read_text("utf-8"), "half of the usable rows, not 1,000"


@pytest.mark.parametrize("method", ["rds", "less", "dsir"])
def test_methods_that_say_nothing_of_tokens_have_the_nearest_target_rows(
    method: str, tmp_path: Path, tiny_folder: Path
) -> None:
    pool, target = make_rows(20, seed=1), make_rows(5, seed=2)
    run = tov.select(
        model=str(tiny_folder),
        pool=pool,
        target=target,
        n=6,
        method=method,
        max_length=64,
        quiet=True,
        out=tmp_path / "run",
    )
    shown = shown_of(run)
    assert shown["unexplained"] == f"{method} says nothing of single tokens"
    if method == "dsir":
        assert not shown["explained"], "a method that reads no model opens none"
        return
    assert shown["explained"]
    loaded = ModelSpec.of(
        build(SelectConfig, {"model": str(tiny_folder), "pool": ["-"], "target": ["-"], "n": 1, "out": "-", "max_length": 64})
        .for_task("instruction")
    ).open()  # fmt: skip
    indexed = [read_target([one], build(DataSettings, {})) for one in (pool, target)]
    mine, theirs = (
        embed_rows(loaded.adapted, loaded.encode(one.rows), batch_tokens=64, half_way=True) for one in indexed
    )
    for row_id, one in shown["explained"].items():
        assert one["tokens"] is None
        cosines = theirs @ mine[int(row_id)]
        assert [place for place, _ in one["near"]] == np.argsort(-cosines, kind="stable")[:3].tolist()
        assert [cosine for _, cosine in one["near"]] == pytest.approx(sorted(cosines, reverse=True)[:3], abs=1e-4)
        assert all(str(place) in shown["target"] for place, _ in one["near"])
    said = str(tov.inspect(run, [int(next(iter(shown["explained"])))], pool=pool))
    assert "near target row" in said
    assert data_of(run.folder / "report.html")["rows"]["explained"] == shown["explained"]
