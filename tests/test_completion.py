"""Completion in real shells: the script of `tov completion` is sourced, Tab's function called, and what it offers read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tov.config.presets import PRESETS
from tov.methods.registry import KINDS, built_in
from tov.model.builtin import ALIASES

BASH = """
set -o nounset 2>/dev/null; set +o nounset
eval "$(tov completion bash)"
compopt() { local IFS=" "; echo "COMPOPT $*"; }
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_tov_completion tov
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which `tov` is this one."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "tov"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tov "$@"\n')
    script.chmod(0o755)
    return os.pathsep.join([str(folder), os.environ["PATH"]])


def environment(path: str) -> dict[str, str]:
    return {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}


def offered(path: str, *words: str, folder: Path | None = None) -> set[str]:
    """What bash offers after these words, of which the last is not finished."""
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", "tov", *words], capture_output=True, text=True, env=environment(path),
        cwd=folder, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return set(done.stdout.splitlines()) - {""}


needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")


@needs_bash
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["se"], {"select"}),
        (["do"], {"doctor"}),
        (["select", "--metho"], {"--method"}),
        (["select", "--method", ""], set(KINDS)),
        (["plan", "--methods", "tov", "le"], {"less"}),
        (["compare", "--methods", "tov,le"], {"tov,less"}),
        (["select", "--preset", ""], set(PRESETS)),
        (["select", "--model", ""], set(ALIASES)),
        (["select", "--rule", "score"], {"score+random", "score-only"}),
        (["select", "--task", "n"], {"ner"}),
        (["methods", "ds"], {"dsir"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["select", "--model", "./x"], {"COMPOPT -o default"}),
        (["select", "--pool", "a", ""], {"COMPOPT -o default"}),
        (["train", ""], {"COMPOPT -o default"}),
        (["train", "--out", ""], {"COMPOPT -o dirnames"}),
        (["nothing", "--x"], set()),
    ],
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_bash_offers(words: list[str], expected: set[str], path: str) -> None:
    assert offered(path, *words) == expected


@needs_bash
def test_every_verb_and_every_flag_is_offered(path: str) -> None:
    from tov.cli.main import VERBS
    from tov.config.records import PlanConfig

    assert offered(path, "") == set(VERBS)
    flags = offered(path, "plan", "--")
    named = {"json_output": "--json", "label_map": "--label-map"}
    assert {named.get(name, f"--{name.replace('_', '-')}") for name in PlanConfig.model_fields} <= flags


def test_names_of_methods_are_those_that_there_are() -> None:
    assert [*KINDS] == [*built_in()]


def test_completion_imports_no_model_library(path: str) -> None:
    code = (
        "import sys\nfrom tov.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'peft') if name in sys.modules])"
    )
    given = {"_TOV_COMPLETE": "bash_complete", "COMP_WORDS": "tov select --method t", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**environment(path), **given}, timeout=60
    )
    assert done.stdout.splitlines() == ["plain,tov", "plain,tracin", "plain,tsds", "plain,target-path", "[]"], (
        done.stderr
    )


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_their_script(shell: str, path: str) -> None:
    script = subprocess.run(
        ["tov", "completion", shell], capture_output=True, text=True, env=environment(path), check=True
    )
    assert script.stdout.startswith("# To have it always, ")
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n"], input=script.stdout, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_shell_that_is_not_known_is_refused(path: str) -> None:
    done = subprocess.run(["tov", "completion", "tcsh"], capture_output=True, text=True, env=environment(path))
    assert done.returncode == 2
    assert "'bash', 'zsh', 'fish'" in done.stderr
