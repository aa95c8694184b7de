"""What grows with the pool: seconds and peak memory of reading, planning, tokenising and choosing, and bytes a row.

    python benchmarks/size.py [--rows 10000 100000 1000000] [--formats jsonl parquet] [--out benchmarks/size-cpu.json]
    git worktree add /tmp/before COMMIT && python benchmarks/size.py --src /tmp/before/src      # the same of another commit

Pools are synthetic, and each measurement is a process of its own: its wall time with all imports, and the peak of its resident
memory, in which the kernel counts the pages of the pool's files that it has mapped.

- `index`: the pool is opened and indexed (parsed, checked, hashed). Rows are short questions and answers.
- `plan`: `tov plan --no-probe` on the same rows.
- `tokenise`: indexed, then shards from all over the pool made tokens of, about `--tokenised` rows of them, by the model's
  tokenizer and chat template.
- `select`: a whole `tov select --method random`. Its rows are the same texts without a chat template, which costs more than
  all else.
- `again`: the same command on the finished run.
- `stopped`: the same command that dies when half of its shards are there.
- `resumed`: the same command again, up to the first shard that is to be scored; `read` is what the pool takes of it.
- `resumed anew`: likewise, where the run has kept no index of its pool, as before it kept one.
- `bytes a row`: of the run folder; and of a score table with ToV's 18 numbers a row, whose last bits are random.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reselect import commit, write_scores

MODEL, TARGETS, CHOSEN, SHARD_ROWS = "smollm2-135m", 64, 100, 2048

DEFAULT_EPOCHS = 2
"""Of ToV: a mean and two epochs, of six numbers each."""
PARTS = ["index", "plan", "tokenise", "table", "select", "resumed"]


def texts(rows: int) -> Iterator[tuple[str, str]]:
    """Questions and answers, no two of which are the same."""
    subjects = ["apples", "horses", "letters", "rivers", "engines", "windows", "numbers", "teachers"]
    for row in range(rows):
        subject = subjects[row % 8]
        yield f"I have {row} {subject} and give half away. How many are left?", f"{row - row // 2} {subject} are left."


def write_pool(folder: Path, rows: int, form: str) -> None:
    """`talk` has questions and answers, `text` both in one; the target is of the same kind."""
    folder.mkdir(parents=True)
    for name, columns in (("talk", ("prompt", "completion")), ("text", ("text",))):
        made = (dict(zip(columns, pair if len(columns) > 1 else [" ".join(pair)], strict=True)) for pair in texts(rows))
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in made)
        with (
            open(folder / f"{name}.jsonl", encoding="utf-8") as file,
            open(folder / f"{name}-target.jsonl", "w") as target,
        ):
            target.writelines(line.replace("half", "two") for line, _ in zip(file, range(TARGETS), strict=False))
        if form == "parquet":
            import pyarrow.json
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.json.read_json(folder / f"{name}.jsonl"), folder / f"{name}.parquet")


def words(command: str, pool: Path, out: Path) -> list[str]:
    """The flags of a selection or its plan."""
    target = pool.with_name(f"{pool.stem}-target.jsonl")
    given = [
        "--model",
        MODEL,
        "--pool",
        str(pool),
        "--target",
        str(target),
        "--n",
        str(CHOSEN),
        "--out",
        str(out),
        "--quiet",
    ]
    return [command, *given, *(["--no-probe"] if command == "plan" else ["--method", "random", "--explain-rows", "0"])]


def measured(kind: str, src: Path | None, *given: str) -> dict[str, Any]:
    """Of a process of its own: seconds with imports, peak MiB, and what it tells."""
    environment = {**os.environ, **({"PYTHONPATH": str(src)} if src else {})}
    with tempfile.NamedTemporaryFile("r", suffix=".json") as told:
        start = time.perf_counter()
        command = [sys.executable, __file__, "--child", kind, told.name, *given]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        found = {"seconds": round(seconds, 2), **json.load(told)}
    print(kind, *given[:2], found, file=sys.stderr, flush=True)
    return found


def child(kind: str, told: Path, given: list[str]) -> None:
    """The other end."""
    begun = time.perf_counter()
    kinds = {
        "index": index, "tokenise": tokenise, "tov": command_line, "stopped": stopped, "resumed": resumed,
        "bytes": table_bytes,
    }  # fmt: skip
    found = kinds[kind](*given)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    told.write_text(
        json.dumps({**found, "without_imports": round(time.perf_counter() - begun, 2), "peak_mib": peak >> 10})
    )
    os._exit(0)  # what a run that was stopped half-way would tidy up is not measured


def opened(pool: str) -> Any:
    """The settings, the pool, its index."""
    from tov.config.records import SelectConfig
    from tov.config.settings import build
    from tov.data.pool import index_rows
    from tov.inputs.read import open_rows

    given = {"model": MODEL, "pool": [pool], "target": [pool], "n": 1, "out": "run"}
    config = build(SelectConfig, given).for_task("instruction")
    rows = open_rows([pool], config)
    return config, rows, index_rows(rows)


def index(pool: str) -> dict[str, Any]:
    """Opened and indexed."""
    return {"rows": len(opened(pool)[1])}


def tokenise(pool: str, most: str) -> dict[str, Any]:
    """Shards from all over the pool, as tokens."""
    import numpy as np

    from tov.engine.models import ModelSpec
    from tov.scores.shard import ShardReader

    config, rows, found = opened(pool)
    reader = ShardReader(rows, found, np.zeros(len(rows), np.uint8), ModelSpec.of(config).encoder(), SHARD_ROWS)
    bounds, begun, done, tokens = list(reader.bounds()), time.perf_counter(), 0, 0
    for start, stop in bounds[:: max(1, len(rows) // int(most))]:
        tokens, done = tokens + reader.read(start, stop).tokens, done + stop - start
    return {"tokenised": done, "tokens": tokens, "rows_per_second": round(done / (time.perf_counter() - begun))}


def command_line(*given: str) -> dict[str, Any]:
    """A command of tov."""
    from tov.cli.main import main as tov

    try:
        tov(list(given))
    except SystemExit as stop:
        if stop.code:
            raise
    return {}


class There(BaseException):
    """The moment at which a command is stopped."""


def stopped(most: str, *given: str) -> dict[str, Any]:
    """A command that dies when so many of its shards are there."""
    from tov.scores.store import ShardStore

    write, done = ShardStore.write, 0

    def counted(store: Any, *shard: Any) -> None:
        nonlocal done
        if done == int(most):
            raise There
        write(store, *shard)
        done += 1

    ShardStore.write = counted  # type: ignore[method-assign]
    return until_there(*given)


def resumed(*given: str) -> dict[str, Any]:
    """A command up to the first shard that it reads, and the seconds that it takes for its pool."""
    import tov.inputs.named
    from tov.scores.shard import ShardReader

    seconds, read_pool = 0.0, tov.inputs.named.read_pool

    def timed(*inputs: Any, **settings: Any) -> Any:
        nonlocal seconds
        begun = time.perf_counter()
        rows = read_pool(*inputs, **settings)
        seconds = round(time.perf_counter() - begun, 3)
        return rows

    def read(*_: Any) -> Any:
        raise There

    tov.inputs.named.read_pool = timed
    ShardReader.read = read  # type: ignore[method-assign]
    return {**until_there(*given), "read": seconds}


def until_there(*given: str) -> dict[str, Any]:
    """A command that is to be stopped."""
    try:
        command_line(*given)
    except There:
        return {}
    raise RuntimeError("the run had nothing to resume")


def table_bytes(pool: str, work: str) -> dict[str, Any]:
    """Bytes a row of ToV's score table."""
    import numpy as np

    from tov.scores.shard import ShardReader
    from tov.scores.store import ShardStore

    _, rows, found = opened(pool)
    encode: Any = None  # no row is read
    store = ShardStore(Path(work) / "table", "size")
    reader = ShardReader(rows, found, np.zeros(len(rows), np.uint8), encode, SHARD_ROWS)
    write_scores(store, reader, np.sort(found.content[::1000]), DEFAULT_EPOCHS)
    size = bytes_in(store.folder)
    shutil.rmtree(store.folder)
    return {"bytes_a_row": round(size / len(rows), 1)}


def bytes_in(folder: Path) -> int:
    """Of all files below it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def of_pool(work: Path, rows: int, form: str, args: argparse.Namespace) -> dict[str, Any]:
    """All measurements on a pool of so many rows."""
    folder, src = work / f"{form}-{rows}", args.src
    write_pool(folder, rows, form)
    time.sleep(2.5)  # a file that has just been written has no stamp
    talk, text, run = folder / f"talk.{form}", folder / f"text.{form}", folder / "run"
    found: dict[str, Any] = {"rows": rows, "format": form, "pool_bytes": talk.stat().st_size}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "index": lambda: measured("index", src, str(talk)),
        "plan": lambda: measured("tov", src, *words("plan", talk, run)),
        "tokenise": lambda: measured("tokenise", src, str(talk), str(args.tokenised)),
        "table": lambda: measured("bytes", src, str(talk), str(folder)),
    }
    found |= {name: measure() for name, measure in parts.items() if name in args.parts}
    if rows <= args.selected and "select" in args.parts:
        found["select"] = measured("tov", src, *words("select", text, run))
        found["select"]["bytes_a_row"] = round(bytes_in(run) / rows, 1)
        found["again"] = measured("tov", src, *words("select", text, run))
    if rows <= args.selected and "resumed" in args.parts:
        half = folder / "half"
        found["stopped"] = measured("stopped", src, str(-(-rows // SHARD_ROWS) // 2), *words("select", text, half))
        found["kept_bytes_a_row"] = round(sum(file.stat().st_size for file in half.glob(".index.*")) / rows, 1)
        found["resumed"] = measured("resumed", src, *words("select", text, half))
        for file in half.glob(".index.*"):
            file.unlink()
        found["resumed anew"] = measured("resumed", src, *words("select", text, half))
    shutil.rmtree(folder)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--formats", nargs="+", choices=["jsonl", "parquet"], default=["jsonl", "parquet"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured")
    parser.add_argument("--tokenised", type=int, default=8_192, help="rows of each pool that are made tokens of")
    parser.add_argument("--selected", type=int, default=1_000_000, help="rows of the largest pool that is chosen from")
    parser.add_argument("--src", type=Path, help="src/ of a checkout to measure in place of this one")
    parser.add_argument("--work", type=Path, help="where pools and runs are made; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="file for the result, added to one of this commit")
    args = parser.parse_args()
    from tov.runs.environment import hardware

    found: dict[str, Any] = {"commit": commit(args.src or Path(__file__).parent), "hardware": hardware(), "pools": []}
    if args.out and args.out.exists():
        there = json.loads(args.out.read_text("utf-8"))
        same = all(there[name] == found[name] for name in ("commit", "hardware"))
        found |= {name: value for name, value in there.items() if name == "before" or same}
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        os.environ["HF_DATASETS_CACHE"] = str(Path(name) / "cache")
        for form in args.formats:
            for rows in args.rows:
                found["pools"].append(of_pool(Path(name), rows, form, args))
                if args.out:
                    args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
