"""What the operating system refuses, really: permissions, disks, memory, streams. Never a traceback, and always what to do.

Permissions do not bind root, so those commands run without its privileges where the tests are root.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tiny import make_rows, write_jsonl
from tov.errors import DataError, StorageError, explain, of_system
from tov.files import atomic, atomic_folder
from tov.system import caches, fault_of

TOV = (sys.executable, "-m", "tov")


def paths() -> str:
    return os.pathsep.join([str(Path(__file__).parent), *sys.path])


def told(command: str, **environment: str) -> tuple[int, str, str]:
    """How a line of the shell ended in which `tov` stands for the command."""
    tov = " ".join(TOV)
    ended = subprocess.run(
        ["bash", "-c", f"tov() {{ {tov} \"$@\"; }}; {command}"], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": paths(), **environment}, errors="surrogateescape",
    )  # fmt: skip
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "Exception ignored" not in ended.stderr, ended.stderr
    return ended.returncode, ended.stdout, ended.stderr


# Streams


@pytest.mark.slow
@pytest.mark.parametrize("words", ["methods", "--help"])
def test_a_full_standard_output_is_told(words: str) -> None:
    code, _, err = told(f"tov {words} > /dev/full")
    assert code == 1
    assert "The result could not be printed: No space left on device (standard output)." in err


@pytest.mark.slow
def test_a_reader_that_has_left_and_closed_streams_are_no_errors() -> None:
    code, out, err = told(
        "tov methods | head -1; echo ${PIPESTATUS[0]}; tov --help | head -1; echo ${PIPESTATUS[0]};"
        " tov select --help >&-; echo $?;"
        " tov selcet <&- 2>&-; echo $?; tov selcet 2> /dev/full; echo $?"
    )
    assert not code
    assert not err
    first, zero, usage, again, closed, *wrong = out.splitlines()
    assert first.startswith("tov ")
    assert usage.startswith("Usage: tov")
    assert (zero, again, closed) == ("0", "0", "0")
    assert wrong == ["2", "2"]


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ("tov 'r\u00fcckw\u00e4rts \u4f60'", {"PYTHONIOENCODING": "latin-1"}),
        ("tov 'r\u00fcckw\u00e4rts \u4f60'", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ("tov select --help", {"PYTHONIOENCODING": "ascii"}),
    ],
    ids=["latin-1", "C", "ascii"],
)
def test_a_narrow_encoding_loses_nothing(command: str, environment: dict[str, str]) -> None:
    code, out, err = told(command, **environment)
    if "help" in command:
        assert "--trust-remote-code" in out
    else:
        assert (code, "There is no command" in err) == (2, True)
        assert "\\u4f60" in err or "\\udc" in err, "what it cannot show is an escape"


# Files and folders


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """How commands ended that were given what may not be read or written, or is no file, by a name."""
    top = tmp_path_factory.mktemp("refused")
    shutil.copytree(tiny_folder, top / "model")
    good = {
        "model": top / "model",
        "pool": top / "pool.jsonl",
        "target": top / "target.jsonl",
        "out": top / "outs" / "a",
    }
    write_jsonl(good["pool"], make_rows(20))
    write_jsonl(good["target"], make_rows(4, seed=9))
    (top / "outs").mkdir()
    asked: dict[str, list[str]] = {}

    def ask(name: str, **instead: Any) -> None:
        flags = {**good, "n": 4, **instead}
        words = [str(part) for key, value in flags.items() for part in (f"--{key.replace('_', '-')}", value)]
        asked[name] = ["select", *words, "--max-length", "64", "--device", "cpu"]

    closed = [top / name for name in ("no.jsonl", "no.csv", "no.txt", "no.jsonl.gz", "no.yaml")]
    for file in closed:
        file.write_bytes(gzip.compress(b"{}") if file.suffix == ".gz" else b"a O\n")
        ask(file.name, **({"label_map": file} if file.suffix == ".yaml" else {"pool": file}))
    ask("target", target=top / "no.jsonl")
    folders = {"shut": 0o000, "not listed": 0o311, "not entered": 0o444}
    for name in folders:
        (top / name).mkdir()
        shutil.copy(good["pool"], top / name)
        closed.append(top / name)
        ask(name, pool=top / name)
    ask("glob", pool=top / "not listed" / "*.jsonl")
    (top / "part" / "shut").mkdir(parents=True)
    shutil.copy(good["pool"], top / "part")
    closed.append(top / "part" / "shut")
    ask("part", pool=top / "part")
    model = Path(shutil.copytree(tiny_folder, top / "own"))
    closed.append(model / "model.safetensors")
    ask("weights", model=model)
    (top / "readable").mkdir()
    (top / "readable").chmod(0o555)
    ask("out", out=top / "readable" / "run")
    ask("out shut", out=top / "shut" / "run")
    ask("out is a file", out=good["pool"])
    (top / "round.jsonl").symlink_to(top / "round.jsonl")
    ask("round", pool=top / "round.jsonl")
    (top / "nowhere.jsonl").symlink_to("gone")
    ask("nowhere", pool=top / "nowhere.jsonl")
    os.mkfifo(top / "pipe.jsonl")
    ask("pipe", pool=top / "pipe.jsonl")
    os.mkfifo(top / "pipe.gguf")
    ask("pipe as model", model=top / "pipe.gguf")
    ask("device", pool="/dev/zero")
    ask("long", pool="x" * 300 + ".jsonl")
    ask("long out", out=top / ("x" * 300))
    ask("bytes", pool=top / "n\udcff.jsonl")
    ask("zero", out="a\0b")
    ask("empty", pool="")
    with socket.socket(socket.AF_UNIX) as opened:
        place = os.getcwd()
        os.chdir(top)  # the name of a socket is short
        opened.bind("socket.jsonl")
        os.chdir(place)
        ask("socket", pool=top / "socket.jsonl")
        for path in reversed(closed):
            path.chmod(folders.get(path.name, 0))
        yield dict(zip(asked, bound(list(asked.values())), strict=True))
    for path in closed:
        path.chmod(0o755)


def bound(commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Runs commands one after another under permissions that bind, also root; skips where that cannot be."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"] if os.getuid() == 0 else []
    if drop and not shutil.which("setpriv"):
        pytest.skip("there is no setpriv, and permissions do not bind root")
    ended = subprocess.run(
        [*drop, sys.executable, "-c", "from commands import really; really()"], input=json.dumps(["", commands]),
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": paths(), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert not ended.returncode, ended.stderr
    return list(json.loads(ended.stdout.splitlines()[-1]))


READ = "You may not read this file"
SAYS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("no.jsonl", "no.csv", "no.txt", "no.jsonl.gz", "no.yaml"), ("Permission denied: ", READ)),
    "target": ("no.jsonl", READ),
    "shut": ("shut", "lets nobody in"), "not entered": ("not entered", "lets nobody in"),
    "not listed": ("not listed", "You may not read this folder"), "glob": ("not listed", "You may not read this folder"),
    "part": ("part/shut", "You may not read this folder"),
    "weights": ("model.safetensors", READ),
    "out": ("readable/run", "You may not write there: choose another --out"), "out shut": ("shut", "lets nobody in"),
    "out is a file": ("is a file, but must be a folder", "Choose another --out"),
    "round": ("is a link that leads in a circle",), "nowhere": ("is a link that leads nowhere",),
    "pipe": ("pipe.jsonl is a pipe",), "pipe as model": ("pipe.gguf is a pipe",), "device": ("/dev/zero is a device",),
    "socket": ("is a socket",), "long": ("File name too long", "shorter"), "long out": ("File name too long", "shorter"),
    "bytes": ("--pool got", "not UTF-8"), "zero": ("--out got", "zero byte"), "empty": ("--pool got '', which is empty",),
}  # fmt: skip


@pytest.mark.parametrize("name", SAYS)
def test_what_may_not_be_read_or_is_no_file_is_told(refused: dict[str, dict[str, Any]], name: str) -> None:
    ended = refused[name]
    assert ended["code"] == 2, ended["err"]
    assert "Traceback" not in ended["err"]
    for words in SAYS[name]:
        assert words in ended["err"]


def test_every_refusal_has_its_words(refused: dict[str, dict[str, Any]]) -> None:
    assert set(refused) == set(SAYS)


# Caches, disks, memory


def test_a_cache_is_named_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "data"))
    monkeypatch.setenv("TOV_CACHE", str(tmp_path / "models"))
    assert caches()["TOV_CACHE"] == tmp_path / "models"
    for name, place in (("HF_DATASETS_CACHE", "data"), ("TOV_CACHE", "models")):
        for number, code in ((errno.EACCES, 2), (errno.EROFS, 2), (errno.ENOSPC, 1)):
            said = explain(OSError(number, os.strerror(number), str(tmp_path / place / "x")))
            assert said is not None
            assert said[1] == code
            assert f"set {name}" in said[0]
            assert "--out" not in said[0]


@pytest.mark.parametrize(
    ("behind", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left"),
        (OSError(errno.EMFILE, "Too many open files", "x"), 1, "ulimit -n"),
        (OSError(errno.EFBIG, "File too large"), 1, "ulimit -f"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "The memory is full"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            1,
            "memory",
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), 1, "memory"),
        (RuntimeError("std::bad_alloc"), 1, "The memory is full"),
        (ImportError("libx.so: failed to map segment from shared object"), 1, "The memory is full"),
        (Exception("No space left on device (os error 28)"), 1, "No space left"),
    ],
)
def test_what_is_behind_an_error_of_a_library_is_told(behind: Exception, code: int, words: str) -> None:
    assert explain(behind) == explain(wrapped(behind)), "however deep it lies"
    said = explain(wrapped(behind))
    assert said is not None
    assert words in said[0]
    assert "suffix" not in said[0]
    assert said[1] == code


def wrapped(behind: Exception) -> Exception:
    try:
        try:
            raise behind
        except Exception as error:
            raise KeyError("of a library") from error
    except Exception as error:
        return error


def test_our_own_faults_and_vanished_files_are_not_taken_for_the_system_s() -> None:
    assert explain(KeyError("x")) is None
    assert explain(wrapped(FileNotFoundError(errno.ENOENT, "No such file", "/gone"))) is None
    assert fault_of(ValueError("a row")) is None
    assert isinstance(of_system(wrapped(PermissionError(13, "no", "/x")), "x cannot be read", DataError), DataError)


def test_memory_that_ends_is_told() -> None:
    code, _, err = told("ulimit -v 400000; tov plan --model m --pool p --target t")
    assert (code, "The memory is full." in err) == (1, True), err


def test_a_file_that_may_not_grow_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"No file may become as large here: .*x\.json"), atomic(tmp_path / "x.json"):
        raise OSError(errno.EFBIG, "File too large")
    assert not list(tmp_path.iterdir())


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    """Also where a library writes them for their owner alone, as safetensors does."""
    for mask in (0o022, 0o027, 0o077):
        before = os.umask(mask)
        try:
            with atomic(tmp_path / "file") as temporary:
                save_file({"a": torch.zeros(2)}, str(temporary))
            with atomic_folder(tmp_path / f"folder-{mask}") as temporary:
                save_file({"a": torch.zeros(2)}, str(temporary / "adapter_model.safetensors"))
                (temporary / "inner").mkdir()
        finally:
            os.umask(before)
        files = (tmp_path / "file", tmp_path / f"folder-{mask}" / "adapter_model.safetensors")
        assert [stat.S_IMODE(one.stat().st_mode) for one in files] == [0o666 & ~mask] * 2
        assert stat.S_IMODE((tmp_path / f"folder-{mask}" / "inner").stat().st_mode) == 0o777 & ~mask
