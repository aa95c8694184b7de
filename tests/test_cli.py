"""The command line and the Python front door, end to end on a tiny model: what they print, write, resume and refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml

import tov
from tiny import make_rows, tiny_model_folder, write_jsonl
from tov.cli.flags import spread
from tov.cli.main import main
from tov.config.gate import GateSettings
from tov.config.records import FitConfig, PlanConfig, ReselectConfig, ScoreConfig, SelectConfig
from tov.config.settings import NOT_KEPT
from tov.errors import note_interrupts
from tov.scores.store import ShardStore
from tov.tasks import TASKS

HEAVY = ("torch", "transformers", "datasets", "pydantic", "numpy", "peft", "pyarrow", "rich")
SMALL = {
    "max_length": 96,
    "epochs": 1,
    "base_size": 8,
    "lora_r": 2,
    "shard_rows": 8,
    "device": "cpu",
    "dtype": "fp32",
}
FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
POOL_ROWS = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two pools, a target and one finished run."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_model_folder(folder)
    rows = make_rows(POOL_ROWS)
    write_jsonl(folder / "red.jsonl", [{**row, "note": f"r{at}"} for at, row in enumerate(rows[:25])])
    write_jsonl(folder / "blue.jsonl", rows[25:])
    write_jsonl(folder / "new.jsonl", make_rows(20, seed=5))
    write_jsonl(folder / "target.jsonl", make_rows(6, seed=9))
    assert exit_code(*select_args(folder, folder / "done")) == 0, "the run on which these tests stand failed"
    return folder


def select_args(place: Path, out: Path, *more: str, n: int = 10) -> list[str]:
    pools = [str(place / "red.jsonl"), str(place / "blue.jsonl")]
    return [
        "select", "--model", str(place / "tiny-model"), "--pool", *pools, "--target", str(place / "target.jsonl"),
        "--n", str(n), "--out", str(out), *FLAGS, *more,
    ]  # fmt: skip


def exit_code(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    return int(ended.value.code or 0)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def manifest(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in manifest.json: no strict JSON reader takes it")

    return dict(json.loads((folder / "manifest.json").read_text(), parse_constant=refuse))


def selected(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "selected.jsonl").read_text(encoding="utf-8").splitlines()]


def events(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout


# Help


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["-h"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys, tov.cli.main\n"
        f"try: tov.cli.main.main({args})\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    )
    assert python(code).endswith("LOADED []\n"), "tov --help must be instant: import the library where it is used"


def test_import_tov_imports_nothing_heavy() -> None:
    assert python(f"import sys, tov; print([name for name in {HEAVY} if name in sys.modules])") == "[]\n"


def test_help_of_a_verb_imports_no_model_library() -> None:
    code = (
        "import sys, tov.cli.main\n"
        "try: tov.cli.main.main(['select', '--help'])\n"
        "except SystemExit: pass\n"
        "print('LOADED', [name for name in ('torch', 'transformers', 'datasets', 'peft') if name in sys.modules])"
    )
    assert python(code).endswith("LOADED []\n")


def test_python_m_tov_lists_the_verbs() -> None:
    done = subprocess.run([sys.executable, "-m", "tov", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in ("demo", "select", "plan", "score", "fit"))


def help_of(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert exit_code(verb, "--help") == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("verb", "record"),
    [
        ("plan", PlanConfig),
        ("select", SelectConfig),
        ("select", ReselectConfig),
        ("score", ScoreConfig),
        ("fit", FitConfig),
    ],
)
def test_every_setting_has_a_flag_and_its_help(verb: str, record: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(verb, capsys)
    for name, field in record.model_fields.items():
        flag = {"json_output": "--json", "from_run": "--from"}.get(name, f"--{name.replace('_', '-')}")
        assert f" {flag} " in f" {shown} ".replace(" / ", " "), f"{record.__name__}.{name} has no flag"
        if not (verb == "select" and name in ("seed", "method")):
            assert " ".join(field.description.split()) in shown, f"--{name} shows no help"


def test_every_default_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of("select", capsys)
    for name, field in SelectConfig.model_fields.items():
        if field.is_required() or field.default is None or field.default == {}:
            continue
        words = {True: "on", False: "off"}.get(field.default) if isinstance(field.default, bool) else field.default
        words = " ".join(words) if isinstance(words, tuple) else words
        assert f"{' '.join(field.description.split())} [{words}]" in shown, (
            f"--{name} does not show its default {words}"
        )


def test_a_switch_that_is_on_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--no-decontaminate" in help_of("select", capsys)


# Arguments


def test_several_values_after_one_flag() -> None:
    lists = {"--pool", "--target"}
    assert spread(["--pool", "a", "b", "--n", "3"], lists) == ["--pool", "a", "--pool", "b", "--n", "3"]
    assert spread(["--pool", "a", "--pool", "b"], lists) == ["--pool", "a", "--pool", "b"]
    assert spread(["c.yaml", "--n", "3", "--target", "a", "b", "c"], lists) == [
        "c.yaml", "--n", "3", "--target", "a", "--target", "b", "--target", "c",
    ]  # fmt: skip
    assert spread(["--n", "3", "c.yaml"], lists) == ["--n", "3", "c.yaml"]


def test_two_pools_are_two_sources(place: Path) -> None:
    sources = [row["source"] for row in manifest(place / "done")["summary"]["choice"]["composition"]]
    assert sources == ["red", "blue"]


def yaml_file(path: Path, settings: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_flags_override_the_yaml_file(place: Path, tmp_path: Path) -> None:
    settings = {
        **SMALL, "model": str(place / "tiny-model"), "pool": [str(place / "red.jsonl"), str(place / "blue.jsonl")],
        "target": str(place / "target.jsonl"), "n": 12, "out": str(tmp_path / "run"), "lora-alpha": 4,
    }  # fmt: skip
    config = yaml_file(tmp_path / "config.yaml", settings)
    assert exit_code("select", config, "--n", "6", "--pool", str(place / "red.jsonl")) == 0
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["n"] == len(selected(tmp_path / "run")) == 6, "--n must win over the file"
    assert kept["pool"] == [str(place / "red.jsonl")], "--pool must replace the file's pools, not add to them"
    assert kept["lora_alpha"] == 4, "keys with dashes are keys"


def test_a_run_s_own_config_gives_the_same_run(place: Path) -> None:
    before = contents(place / "done")
    assert exit_code("select", place / "done" / "config.yaml") == 0
    assert contents(place / "done") == before, "config.yaml must describe the run that it lies in"


def test_columns_may_be_mapped_for_the_pool_alone(place: Path, tmp_path: Path) -> None:
    rows = [{"question": row["prompt"], "answer": row["completion"]} for row in make_rows(POOL_ROWS)]
    pool = write_jsonl(tmp_path / "asked.jsonl", rows)
    args = [
        "select", "--model", place / "tiny-model", "--pool", pool, "--target", place / "target.jsonl", "--n", "6",
        "--out", tmp_path / "run", "--columns", "prompt=question", "completion=answer", *FLAGS,
    ]  # fmt: skip
    assert exit_code(*args) == 0, "a target whose columns are right already needs no mapping"


@pytest.mark.parametrize(("args", "words"), [
    (["selekt"], ["selekt", "did you mean 'select'"]),
    (["select", "--modle", "x"], ["--modle", "--model"]),
])  # fmt: skip
def test_typing_mistakes_are_named(args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*args) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message


def test_an_unknown_yaml_key_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("select", yaml_file(tmp_path / "c.yaml", {"lerning_rate": 1})) == 2
    assert "did you mean 'learning_rate'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "advice"),
    [
        (["select", "--page", "false"], "Write --no-page alone."),
        (["select", "--page=no"], "Write --no-page alone."),
        (["select", "--no-page", "true"], "Write --no-page alone."),
        (["plan", "--n", "3", "--page", "Yes"], "Write --page alone."),
        (["compare", "--quiet", "off"], "Leave --quiet out"),
        (["inspect", "run", "3", "--json", "on"], "Write --json alone."),
        (["demo", "--force", "true"], "Write --force alone."),
    ],
)
def test_a_truth_value_behind_a_switch_is_told(
    args: list[str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*args) == 2
    message = capsys.readouterr().err
    assert "takes no value" in message
    assert advice in message


def test_a_run_may_have_the_name_of_a_truth_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "on").mkdir()
    assert exit_code("report", "--json", "on") != 0
    assert "takes no value" not in capsys.readouterr().err


# What is printed


def test_tov_alone_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    """On standard output, exit code 0, as pip does; git, too, prints it there."""
    assert exit_code("--help") == 0
    wanted = capsys.readouterr().out
    assert exit_code() == 0
    found = capsys.readouterr()
    assert (found.out, found.err) == (wanted, "")


def test_json_output_is_json_and_nothing_else(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*select_args(place, place / "done", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "finished"
    assert told["folder"] == str(place / "done")
    assert told["summary"]["choice"]["n"] == 10


def test_quiet_says_nothing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("select", "--from", place / "done", "--n", "4", "--out", tmp_path / "q", "--quiet") == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_a_finished_run_tells_where_its_rows_are(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*select_args(place, place / "done")) == 0
    out = capsys.readouterr().out
    assert str(place / "done" / "selected.jsonl") in out
    assert "red" in out
    assert "blue" in out


# The run folder


def test_the_run_folder_holds_what_was_promised(place: Path) -> None:
    names = {path.name for path in (place / "done").iterdir()}
    assert names - {".lock"} == {
        "manifest.json", "config.yaml", "path", "scores", "selected.jsonl", "selected.parquet", "summary.md", "events.jsonl",
        "shown.json", "report.html",
    }, "a file is missing, or something was left behind"  # fmt: skip
    assert (place / "done" / "path" / "epoch-1" / "target" / "adapter_model.safetensors").exists()
    assert len(list((place / "done" / "scores").glob("*.parquet"))) == POOL_ROWS // SMALL["shard_rows"]
    assert not list((place / "done").rglob("*.pkl")) + list((place / "done").rglob("*.bin")), "no pickle anywhere"


def test_the_manifest_says_what_the_numbers_were_made_from(place: Path) -> None:
    facts = manifest(place / "done")
    assert facts["status"] == "finished"
    assert facts["seed"] == 0
    assert facts["identity"]["settings"]["learning_rate"] == TASKS["instruction"].defaults.learning_rate
    assert facts["identity"]["pool"]["sources"] == {"red": 25, "blue": 15}
    assert facts["identity"]["pool"]["fingerprint"] != facts["identity"]["targets"]["target"]["fingerprint"]
    assert set(facts["timings"]) == {"fit", "scan", "select", "explain"}
    assert facts["versions"]["tov"] == tov.__version__
    assert facts["versions"]["torch"]
    assert facts["hardware"]["cores"] == os.cpu_count()
    assert facts["format"] == 2
    assert facts["model"]["fingerprint"]
    assert manifest(place / "done" / "path")["epochs"] == 1
    assert facts["artifacts"] == {"fit": "path"}
    assert facts["scoring"]["tokens_passed"] > 0
    assert facts["scoring"]["complete"]
    assert set(facts["scoring"]["noise_floor"]) == {"token_rms", "row_rms"}
    assert "pool" not in facts["identity"]["settings"], "where rows were read from does not decide the files"


def test_config_holds_every_setting(place: Path) -> None:
    kept = yaml.safe_load((place / "done" / "config.yaml").read_text())
    of_auto = set(GateSettings.model_fields)  # without effect here
    assert set(kept) == set(SelectConfig.model_fields) - NOT_KEPT - of_auto
    assert kept["n"] == 10


def test_events_tell_the_story(place: Path) -> None:
    assert events(place / "done") == [
        "started", "fit started", "fit finished", "scan started", "scan finished", "select started", "select finished",
        "explain started", "explain finished", "finished",
    ]  # fmt: skip


def test_the_summary_has_its_parts(place: Path) -> None:
    text = (place / "done" / "summary.md").read_text(encoding="utf-8")
    for part in ("## Where the rows come from", "## Lengths", "## Scores", "## Left out", "## Time", "## Made with"):
        assert part in text
    assert "| red " in text
    assert "Noise floor" in text
    assert "nan" not in text.lower().split(), "a number that is not there is shown as a dash"


def test_selected_rows_are_the_users_rows(place: Path) -> None:
    pool = [json.loads(line) for name in ("red", "blue") for line in (place / f"{name}.jsonl").read_text().splitlines()]
    rows = selected(place / "done")
    assert len({row["tov_row_id"] for row in rows}) == 10, "n distinct rows"
    for row in rows:
        ours = {key: row.pop(key) for key in ("tov_row_id", "tov_source", "tov_score", "tov_reason")}
        assert row == pool[ours["tov_row_id"]], "a user's row was changed, or its row_id is another row's"
        assert ours["tov_source"] == ("red" if ours["tov_row_id"] < 25 else "blue")
        assert ours["tov_reason"] in ("score", "random")
    assert [
        row["tov_row_id"]
        for row in datasets.Dataset.from_parquet(
            str(place / "done" / "selected.parquet"), cache_dir=str(place / "cache")
        )
    ] == [row["tov_row_id"] for row in selected(place / "done")]


# Again, anew, on


def test_a_finished_run_given_again_changes_nothing_and_needs_no_model(place: Path, tmp_path: Path) -> None:
    before = contents(place / "done")
    hidden = tmp_path / "hidden"
    shutil.move(place / "tiny-model", hidden)
    try:
        assert exit_code(*select_args(place, place / "done")) == 0, "a finished run must return at once"
    finally:
        shutil.move(hidden, place / "tiny-model")
    assert contents(place / "done") == before, "a finished run was touched"


def test_where_the_pool_lies_does_not_matter_what_is_in_it_does(place: Path, tmp_path: Path) -> None:
    for name in ("red.jsonl", "blue.jsonl", "target.jsonl"):
        shutil.copy(place / name, tmp_path / name)
    shutil.copytree(place / "done", tmp_path / "done")
    args = [
        arg.replace(str(place), str(tmp_path)) if arg.endswith(".jsonl") else arg
        for arg in select_args(place, tmp_path / "done")
    ]
    assert exit_code(*args) == 0, "the same rows at another place are the same pool"
    write_jsonl(tmp_path / "blue.jsonl", make_rows(15, seed=77))
    assert exit_code(*args) == 2, "other rows under the same name are another pool"


def test_another_run_is_refused_and_force_overwrites_it(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "done", tmp_path / "run")
    before = contents(tmp_path / "run")
    args = select_args(place, tmp_path / "run", "--seed", "3")
    assert exit_code(*args) == 2
    assert "seed: 0 -> 3" in capsys.readouterr().err
    assert contents(tmp_path / "run") == before, "a refused command must not touch the folder"
    assert exit_code(*args, "--force") == 0
    assert manifest(tmp_path / "run")["seed"] == 3
    assert events(tmp_path / "run").count("started") == 1, "--force starts from nothing"


def test_force_never_destroys_the_run_that_is_read(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "done", tmp_path / "run")
    before = contents(tmp_path / "run" / "scores") | contents(tmp_path / "run" / "path")
    code = exit_code("select", "--from", tmp_path / "run", "--n", "4", "--out", tmp_path / "run", "--force")
    assert code == 2, "--from and --out are one folder: --force would delete the scores that it reads"
    assert contents(tmp_path / "run" / "scores") | contents(tmp_path / "run" / "path") == before
    code = exit_code(
        "score", "--from", tmp_path / "run", "--pool", place / "new.jsonl", "--out", tmp_path / "run", "--force"
    )
    assert code == 2
    assert contents(tmp_path / "run" / "scores") | contents(tmp_path / "run" / "path") == before


def test_a_run_goes_on_from_its_last_shard(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "done", run)
    for name in ("selected.jsonl", "selected.parquet", "summary.md"):
        (run / name).unlink()
    shards = sorted((run / "scores").glob("*.parquet"))
    for shard in shards[2:]:
        shard.unlink()
    (run / "scores" / ".rows-000000000016.parquet.99.tmp").write_bytes(b"half")
    facts = manifest(run)
    (run / "manifest.json").write_text(json.dumps({**facts, "status": "running"}))
    kept = {path.name: path.stat().st_mtime_ns for path in shards[:2]} | {
        "path": (run / "path" / "manifest.json").stat().st_mtime_ns
    }
    assert exit_code(*select_args(place, run)) == 0
    again = {path.name: path.stat().st_mtime_ns for path in shards[:2]} | {
        "path": (run / "path" / "manifest.json").stat().st_mtime_ns
    }
    assert again == kept, "finished shards or the path were made again"
    assert "resumed" in events(run)
    for path in (*sorted((place / "done" / "scores").iterdir()), place / "done" / "selected.jsonl"):
        assert (run / path.relative_to(place / "done")).read_bytes() == path.read_bytes(), (
            f"{path.name} differs after a resume"
        )
    assert not list(run.rglob("*.tmp")), "a killed process' half-written files must be swept"


def test_interrupt_gives_130_and_the_run_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while the third shard of five is written."""
    run, write, begun = tmp_path / "run", ShardStore.write, []

    def interrupted(store: ShardStore, start: int, table: Any) -> None:
        begun.append(start)
        if len(begun) == 3:
            signal.raise_signal(signal.SIGINT)
        write(store, start, table)

    heeding = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ShardStore, "write", interrupted)
            assert exit_code(*select_args(place, run)) == 130
    finally:
        note_interrupts()
        signal.signal(signal.SIGINT, heeding)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "same command" in said, "the message must say how to go on"
    assert len(list((run / "scores").iterdir())) == 2, "what was finished is kept, and nothing half-written"
    assert manifest(run)["status"] == "running"
    assert exit_code(*select_args(place, run)) == 0
    assert selected(run) == selected(place / "done"), "an interrupted run must end with the same files"


# From one run to the next


def test_reselecting_scans_nothing(place: Path, tmp_path: Path) -> None:
    before = contents(place / "done")
    assert (
        exit_code(
            "select",
            "--from",
            place / "done",
            "--n",
            "4",
            "--rule",
            "score-only",
            "--bins",
            "2",
            "--out",
            tmp_path / "b",
        )
        == 0
    )
    rows = selected(tmp_path / "b")
    assert len(rows) == 4
    assert {row["tov_reason"] for row in rows} == {"score"}
    assert not (tmp_path / "b" / "scores").exists()
    assert "scan started" not in events(tmp_path / "b")
    assert contents(place / "done") == before, "the run that was read was changed"


def test_reselecting_the_same_gives_the_same_rows(place: Path, tmp_path: Path) -> None:
    assert exit_code("select", "--from", place / "done", "--n", "10", "--out", tmp_path / "b") == 0
    assert selected(tmp_path / "b") == selected(place / "done")
    assert exit_code("select", "--from", tmp_path / "b", "--n", "10", "--out", tmp_path / "c") == 0, (
        "a reselection of a reselection"
    )
    assert selected(tmp_path / "c") == selected(place / "done")


def test_the_seed_of_a_reselection_moves_only_the_random_half(place: Path, tmp_path: Path) -> None:
    assert exit_code("select", "--from", place / "done", "--n", "10", "--seed", "5", "--out", tmp_path / "b") == 0
    one, two = selected(place / "done"), selected(tmp_path / "b")
    assert one[:5] == two[:5]
    assert one[5:] != two[5:], "the seed does not reach the random half"


def test_scoring_a_new_pool_and_choosing_from_it(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("score", "--from", place / "done", "--pool", place / "new.jsonl", "--out", tmp_path / "s") == 0
    assert "tov select --from" in capsys.readouterr().out, "say what to type next"
    assert "fit started" not in events(tmp_path / "s")
    assert (
        exit_code("select", "--from", tmp_path / "s", "--n", "5", "--rule", "score-only", "--out", tmp_path / "t") == 0
    )
    new = [json.loads(line) for line in (place / "new.jsonl").read_text().splitlines()]
    for row in selected(tmp_path / "t"):
        assert {"prompt": row["prompt"], "completion": row["completion"]} == new[row["tov_row_id"]]
        assert row["tov_source"] == "new"


def assert_same_scores(one: Any, two: Any, why: str) -> None:
    assert one.column_names == two.column_names
    for name in (
        "hash",
        "tokens",
        "in_base",
        "score_identity",
        "score_abs",
        "score_positive",
        "loss_base",
        "uncertainty",
    ):
        np.testing.assert_array_equal(one[name].to_numpy(), two[name].to_numpy(), err_msg=f"{name}: {why}")


def test_scoring_the_same_pool_gives_the_same_scores(place: Path, tmp_path: Path) -> None:
    pools = [str(place / "red.jsonl"), str(place / "blue.jsonl")]
    scored = tov.score(place / "done", pools, out=tmp_path / "s", quiet=True)
    done = select_again(place)
    assert_same_scores(scored.scores, done.scores, "the stored path is not the path that was scanned")


def select_again(place: Path) -> tov.Picked:
    return tov.select(
        model=str(place / "tiny-model"), pool=[str(place / "red.jsonl"), str(place / "blue.jsonl")],
        target=str(place / "target.jsonl"), n=10, out=place / "done", quiet=True, **SMALL,
    )  # fmt: skip


def test_fit_then_score_equals_select(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = select_args(place, tmp_path / "f")
    args = ["fit", *args[1:]]
    for flag in ("--n", "--shard-rows"):
        at = args.index(flag)
        del args[at : at + 2]
    assert exit_code(*args) == 0
    assert "tov score --from" in capsys.readouterr().out
    pools = [str(place / "red.jsonl"), str(place / "blue.jsonl")]
    scored = tov.score(tmp_path / "f", pools, out=tmp_path / "s", quiet=True, shard_rows=SMALL["shard_rows"])
    assert_same_scores(
        scored.scores, select_again(place).scores, "fit and select fit different paths from the same settings"
    )


# The Python front door


def test_dir_lists_the_front_door_and_no_more() -> None:
    assert dir(tov) == [
        "Compared", "ConfigError", "DataError", "Exported", "Inspected", "ModelError", "NumericError", "Picked", "Plan",
        "Reported", "Result", "RunError", "StorageError", "TovError", "Trained", "__version__", "compare", "export", "fit",
        "inspect", "plan", "report", "reselect", "score", "select", "train",
    ]  # fmt: skip
    assert all(getattr(tov, name) is not None for name in dir(tov))
    with pytest.raises(AttributeError, match="selekt"):
        tov.selekt  # noqa: B018


def test_in_memory_datasets_all_the_way(place: Path, tmp_path: Path) -> None:
    rows = make_rows(POOL_ROWS)
    pool = datasets.Dataset.from_list([{**row, "label": at} for at, row in enumerate(rows)])
    picked = tov.select(
        model=str(place / "tiny-model"),
        pool=pool,
        target=make_rows(6, seed=9),
        n=10,
        out=tmp_path / "a",
        quiet=True,
        **SMALL,
    )
    assert isinstance(picked, tov.Picked)
    assert picked.dataset.column_names == [
        "prompt",
        "completion",
        "label",
        "tov_row_id",
        "tov_source",
        "tov_score",
        "tov_reason",
    ]
    assert picked.dataset["label"][:] == picked.dataset["tov_row_id"][:], (
        "row_id must be the position in the pool as given"
    )
    assert picked.scores["row_id"].to_pylist() == list(range(POOL_ROWS))
    files = select_again(place)
    assert picked.dataset["prompt"][:] == files.dataset["prompt"][:], (
        "the same rows in memory and in files, another choice"
    )
    with pytest.raises(tov.ConfigError, match="in memory"):
        tov.reselect(tmp_path / "a", n=4, out=tmp_path / "b")
    again = tov.reselect(tmp_path / "a", n=4, out=tmp_path / "b", pool=pool, quiet=True)
    assert len(again.dataset) == 4
    scored = tov.score(picked, make_rows(12, seed=4), out=tmp_path / "c", quiet=True)
    assert len(scored.scores) == 12
    fitted = tov.fit(
        str(place / "tiny-model"),
        make_rows(6, seed=9),
        pool=pool,
        out=tmp_path / "d",
        quiet=True,
        **without(SMALL, "shard_rows"),
    )
    assert fitted.path.fingerprint == picked.path.fingerprint, "fit and select disagree on the path"


def without(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


def test_without_a_folder_the_run_is_named_by_what_it_is(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        picked = tov.select(
            model=str(place / "tiny-model"), pool=make_rows(24), target=make_rows(6, seed=9), n=6, quiet=True, **SMALL
        )
    assert picked.folder.parent == Path("tov-runs")
    assert len(list(Path("tov-runs").iterdir())) == 1, "the same call must find its own run"


def test_errors_are_also_the_builtin_ones_a_caller_expects(place: Path) -> None:
    with pytest.raises(ValueError, match="There is no setting 'epoch'") as caught:
        tov.select(model="x", pool="x", target="x", n=1, epoch=1)
    assert isinstance(caught.value, tov.TovError)
    assert "did you mean 'epochs'?" in str(caught.value)


def test_a_key_of_a_settings_file_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("model: minilm\n# a comment\n'batchsize': 3\n")
    with pytest.raises(SystemExit) as stop:
        main(["select", str(file), "--n", "3"])
    assert stop.value.code == 2
    assert f"{file}, line 3: There is no setting 'batchsize' (did you mean 'batch_size'?)." in capsys.readouterr().err


def test_of_many_settings_only_the_nearest_are_named() -> None:
    with pytest.raises(tov.ConfigError) as caught:
        tov.select(model="m", pool="p", target="t", n=1, lora_rank=3)
    assert "lora_r, lora_alpha" in caught.value.allowed
    assert len(caught.value.allowed.split(", ")) == 6, "five, and that there are more"
    assert "tov select --help" in caught.value.fix


@pytest.mark.parametrize("words", [["-1"], ["3", "-12", "--json"]])
def test_a_negative_row_is_no_flag(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "runs/a", *words])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"There is no row {next(word for word in words if word[1:].isdecimal() and word[0] == '-')}: " in said
    assert "counted from 0" in said
