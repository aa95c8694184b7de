"""Seconds by part and peak memory of `tov select --from RUN` on a large pool, beside those of an earlier commit.

    python benchmarks/reselect.py [--rows 10000000] [--n 100000] [--work FOLDER] [--out benchmarks/reselect-cpu.json]
    git worktree add /tmp/before COMMIT && python benchmarks/reselect.py --before /tmp/before/src     # with the ratio

The run is synthetic, but written as tov writes one: `shard_table` in shards of 2,048 rows, a manifest (which the earlier commit
must be able to read), ToV's 30 numbers a row (four scoring epochs and their mean). The pool is Parquet files of short questions
and answers, one a source; the content hashes are those of its rows. `select --from` digests the files, and looks at rows only
where one has changed. `datasets` reads the files into its cache when a pool is first opened, which a run that scored the pool
has done: those seconds are told under `made`, and are not part of the rest.

Each choice is the command in a process of its own: wall time with all imports, CPU time, and the peak of its resident memory,
in which the kernel counts the pages of the pool's memory map that were touched. The ratio is from --before-rows rows with both
codes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from tov.scores.shard import ShardReader
    from tov.scores.store import ShardStore

SOURCES = {
    "web": 0.4,
    "forum": 0.2,
    "code": 0.15,
    "maths": 0.1,
    "news": 0.06,
    "books": 0.05,
    "chat": 0.03,
    "poems": 0.01,
}
EPOCHS, SHARD_ROWS, BASE_SHARE, REPEATED, WITHOUT_TOKENS = 4, 2048, 1e-3, 0.03, 0.001
PARTS = {
    "open pool": ("tov.verbs.select.pool_again",),
    "start run": ("tov.runs.folder._own",),
    "read scores": ("tov.verbs.select.read_table",),
    "choose": ("tov.verbs.select.choose_rows",),
    "read hashes of the chosen": ("tov.verbs.select.read_hashes",),
    "check rows": ("tov.verbs.select.check_unchanged", "tov.verbs.select.check_pool_unchanged"),
    "write rows": ("tov.verbs.training_file.write_selected",),
    "numbers of the choice": ("tov.verbs.select.choice_facts",),
}
"""Part -> the functions whose seconds it is, whichever of them there are; what is left is imports and the manifest."""


# The run


def write_pool(folder: Path, rows: int) -> list[str]:
    """A Parquet file a source; no two rows are the same."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    files, start = [], 0
    for (name, share), last in zip(SOURCES.items(), [*[False] * (len(SOURCES) - 1), True], strict=True):
        stop = rows if last else start + int(share * rows)
        number = pc.cast(pa.array(np.arange(start, stop)), pa.string())
        half = pc.cast(pa.array(np.arange(start, stop) // 2), pa.string())
        table = pa.table({
            "prompt": pc.binary_join_element_wise("What is half of ", number, "?", ""),
            "completion": pc.binary_join_element_wise("It is ", half, ", rounded down.", ""),
        })  # fmt: skip
        files.append(str(folder / f"{name}.parquet"))
        pq.write_table(table, files[-1], compression="zstd", row_group_size=100_000)
        start = stop
    return files


def write_scores(store: ShardStore, reader: ShardReader, base: np.ndarray, epochs_scored: int) -> None:
    """The score table of a pool: gains and losses of a plausible size, some rows without a scored token."""
    import numpy as np

    from tov.data.decontamination import USABLE
    from tov.methods.tov.scan import MEASURES, columns_of
    from tov.scores.shard import Shard
    from tov.scores.table import shard_table
    from tov.text.encode import Encoded

    for start, stop in reader.bounds():
        draw, places = np.random.default_rng(start), np.flatnonzero(reader.excluded[start:stop] == USABLE)
        size = len(places)
        tokens = np.maximum(1, draw.lognormal(4.0, 1.0, size).astype(np.int32))
        scored = np.where(draw.random(size) < WITHOUT_TOKENS, 0, tokens)
        epochs = []
        for _ in range(epochs_scored):
            loss = draw.gamma(4.0, 0.5, size)
            gain, spread = draw.normal(0.05, 0.2, size), draw.gamma(2.0, 0.05, size)
            measures = (gain, np.abs(gain) + spread, np.maximum(gain, 0) + spread / 2, loss, loss - gain, -loss)
            epochs.append(dict(zip(MEASURES, measures, strict=True)))
        lost, none = np.where(tokens > 500, tokens - 500, 0), np.empty(0, np.int32)  # no token is looked at
        shard = Shard(start, stop, [], places, Encoded(none, none, np.cumsum([0, *(tokens + 20)]), scored, lost))
        store.write(start, shard_table(reader, shard, columns_of(epochs), base))


def make_run(folder: Path, rows: int) -> dict[str, Any]:
    """Pool, cache and finished run below `folder`, unless they are there; what making them took, in seconds."""
    facts = folder / "made.json"
    if facts.exists():
        return dict(json.loads(facts.read_text()))
    import numpy as np

    from tov.config.records import SelectConfig
    from tov.config.settings import build
    from tov.data.decontamination import DUPLICATE, USABLE
    from tov.data.pool import index_rows
    from tov.inputs.named import pool_identity, remember
    from tov.inputs.read import open_rows
    from tov.methods.spec import select_settings, with_effect
    from tov.runs.folder import work_on
    from tov.runs.manifest import ModelRecord, ScoringRecord, TargetRecord
    from tov.scores.shard import ShardReader
    from tov.scores.store import ShardStore
    from tov.verbs.select import facts_of

    seconds = dict[str, tuple[float, float]]()
    files, targets = write_pool(folder / "pool", rows), write_pool(folder / "target", 200)[:1]
    given = {"model": "m", "pool": files, "target": targets, "n": 1, "out": str(folder / "run")}
    config, variant = select_settings(build(SelectConfig, given))
    config = config.for_task("instruction")
    with timed(seconds, "preparation of the pool"):
        pool = open_rows(files, config)
    with timed(seconds, "hashes of all rows"):
        index = index_rows(pool)
    draw, fingerprint = np.random.default_rng(0), "synthetic"
    wanted = index_rows(open_rows(targets, config), role="target")
    target = TargetRecord(rows=len(wanted.content), fingerprint=wanted.fingerprint)
    excluded = np.where(draw.random(rows) < REPEATED, DUPLICATE, USABLE).astype(np.uint8)
    base = np.sort(draw.choice(index.content[excluded == USABLE], max(1, int(BASE_SHARE * rows)), replace=False))
    identity = {
        "method": "tov", "options": {}, "settings": with_effect(config, variant.method, "fit", "scan", "choice"),
        "pool": pool_identity(pool, index), "targets": {"target": target.model_dump(include={"rows", "fingerprint"})},
    }  # fmt: skip
    with work_on(folder / "run", command="select", identity=identity, settings=config.shown()) as run:
        with timed(seconds, "score table"):
            encode: Any = None  # no row is read
            reader = ShardReader(pool, index, excluded, encode, SHARD_ROWS)
            write_scores(ShardStore(run.scores, fingerprint), reader, base, EPOCHS)
        with timed(seconds, "numbers of the scores"):
            summary = {"scores": facts_of(run)}
        run.note(
            inputs=remember(config, pool=files, target=targets), seed=0, summary=summary,
            targets={"target": target},
            model=ModelRecord(name="m", task="instruction", max_length=1024),
            scoring=ScoringRecord(method="tov", fingerprint=fingerprint, unit="nats a token", rows=rows, complete=True),
        )  # fmt: skip
        run.finish()
        size = sum(file.stat().st_size for file in run.scores.iterdir())
    made = {"rows": rows, "seconds": {name: value[0] for name, value in seconds.items()}, "score_bytes": size}
    facts.write_text(json.dumps(made))
    return made


@contextmanager
def timed(seconds: dict[str, tuple[float, float]], name: str) -> Iterator[None]:
    """Puts the wall and the CPU seconds of a block into `seconds[name]`."""
    start = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        seconds[name] = round(time.perf_counter() - start[0], 2), round(time.process_time() - start[1], 2)


# The choice


def choose_again(folder: Path, n: int, src: Path | None, caps: list[str]) -> dict[str, Any]:
    """`tov select --from` in a process of its own, with the tov of `src` if given: seconds by part, peak MiB."""
    out, told = folder / "again", folder / "again.json"
    words = ["select", "--from", str(folder / "run"), "--n", str(n), "--out", str(out), "--force", "--quiet"]
    words += ["--source-cap", *caps] * bool(caps)
    environment = {**os.environ, **({"PYTHONPATH": str(src)} if src else {})}
    start = time.perf_counter()
    command = [sys.executable, __file__, "--child", str(told), *words]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    found = json.loads(told.read_text())
    rest = [
        round(all_ - sum(of), 2)
        for all_, of in zip((wall, found["cpu"]), zip(*found["parts"].values(), strict=True), strict=True)
    ]
    return {
        "seconds": round(wall, 2), "cpu_seconds": found["cpu"], "peak_mib": found["peak_mib"],
        "parts": {
            name: {"seconds": wall, "cpu_seconds": cpu}
            for name, (wall, cpu) in {**found["parts"], "imports and the rest": rest}.items()
        },
    }  # fmt: skip


def child(told: Path, words: list[str]) -> None:
    """The other end: the command line with its parts timed."""
    import importlib
    from unittest import mock

    from tov.cli.main import main as tov

    parts = dict[str, tuple[float, float]]()

    def measured(name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with timed(parts, name):
            return function(*args, **options)

    for name, functions in PARTS.items():
        for place, _, function in (path.rpartition(".") for path in functions):
            module = importlib.import_module(place)
            if hasattr(module, function):
                mock.patch.object(module, function, partial(measured, name, getattr(module, function))).start()
    try:
        tov(words)
    except SystemExit as stop:
        if stop.code:
            raise
    # Of this process alone: the peak that getrusage tells is at least that of the process that started it.
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    told.write_text(json.dumps({"parts": parts, "cpu": round(time.process_time(), 2), "peak_mib": peak // 1024}))


def compared(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The command on `rows` rows, and, with the code before, on `before_rows`."""
    made = prepared(work, args.rows)
    result: dict[str, Any] = {
        "what": "select --from", "rows": args.rows, "n": args.n, "shard_rows": SHARD_ROWS, "sources": len(SOURCES),
        "columns": 7 + 6 * (EPOCHS + 1), "made": made, "now": choose_again(work / str(args.rows), args.n, None, args.caps),
    }  # fmt: skip
    if args.before:
        rows, n = args.before_rows, args.n * args.before_rows // args.rows
        prepared(work, rows)
        before, now = (choose_again(work / str(rows), n, src, args.caps) for src in (args.before, None))
        result["against"] = {
            "commit": commit(args.before), "rows": rows, "n": n, "before": before, "now": now,
            "seconds_ratio": round(before["seconds"] / now["seconds"], 2),
            "cpu_ratio": round(before["cpu_seconds"] / now["cpu_seconds"], 2),
            "peak_ratio": round(before["peak_mib"] / now["peak_mib"], 2),
        }  # fmt: skip
    return result


def prepared(work: Path, rows: int) -> dict[str, Any]:
    """`make_run` in a process of its own, so that its memory is not held while the choice is made."""
    folder = work / str(rows)
    subprocess.run([sys.executable, __file__, "--make", str(folder), "--rows", str(rows)], check=True)
    return dict(json.loads((folder / "made.json").read_text()))


def commit(folder: Path) -> str:
    """What `git describe` says of a checkout."""
    words = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True).stdout.strip()


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--caps", nargs="*", default=[], help="as --source-cap of tov select")
    parser.add_argument("--before", type=Path, help="src/ of a checkout to compare with")
    parser.add_argument("--before-rows", type=int, default=1_000_000)
    parser.add_argument(
        "--work", type=Path, help="where the runs are made and kept (2.5 GB at 10^7 rows); default: nowhere"
    )
    parser.add_argument("--out", type=Path, help="file for the result")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_run(args.make, args.rows)
        return
    from tov.runs.environment import hardware

    with tempfile.TemporaryDirectory() as name:
        work = args.work or Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(work / "cache")
        result = compared(args, work)
    result |= {"commit": commit(Path(__file__).parent), "hardware": hardware(), "python": platform.python_version()}
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
