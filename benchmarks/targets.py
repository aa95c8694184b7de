"""What several targets in one run cost, over a run each: seconds and tokens of fit and scan.

    python benchmarks/targets.py --data DATA [--rows 2000] [--repeats 3] [--out benchmarks/targets-cpu.json]

DATA is a folder with ner/*.parquet. The pool is so many sentences of wikineural_en, the targets are 100 sentences each of
wikigold, conll2003 and wikineural_es, the model is MiniLM. Each run is a process of its own; runs together and apart take
turns, all within one call. With K targets, `parallel` passes (K + 1) / 2K of what K runs pass; `interleaved` shares the
base passes of the first epoch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from engines import draw
from scan import made_with
from tov.files import write_json

POOL, TARGETS = "ner/wikineural_en", ("wikigold", "conll2003", "wikineural_es")
VARIANTS = ("parallel", "interleaved")


def run(folder: Path, out: Path, targets: tuple[str, ...], variant: str) -> dict[str, float]:
    """Seconds and tokens of a run's fit and scan."""
    named = [f"{name}={folder / name}.parquet" for name in targets]
    command = [
        sys.executable, "-m", "tov", "select", "--model", "minilm", "--pool", folder / "pool.parquet", "--target", *named,
        "--n", "300", "--path-variant", variant, "--explain-rows", "0", "--no-page", "--quiet", "--out", out,
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    stages = [stage for stage in manifest["timings"] if stage.partition("@")[0] in ("fit", "scan")]
    return {
        "seconds": sum(manifest["timings"][stage] for stage in stages),
        "fit": sum(manifest["timings"][stage] for stage in stages if stage != "scan"),
        "scan": manifest["timings"]["scan"],
        "tokens": sum(sum(manifest["spent"][stage]) for stage in stages),
        "scanned": manifest["spent"]["scan"][0],
    }


def over(together: list[dict[str, float]], apart: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the repeats of together / apart."""
    return {
        key: statistics.median(
            one[key] / sum(run[key] for run in runs) for one, runs in zip(together, apart, strict=True)
        )
        for key in together[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(args.data / POOL, args.rows, folder / "pool.parquet")
        for target in TARGETS:
            draw(args.data / "ner" / target, 100, folder / f"{target}.parquet")
        for variant in VARIANTS:
            apart, together = list[list[dict[str, float]]](), {2: list[Any](), 3: list[Any]()}
            for repeat in range(args.repeats):
                apart.append([run(folder, folder / f"{variant}-{repeat}-{one}", (one,), variant) for one in TARGETS])
                for count, runs in together.items():
                    runs.append(run(folder, folder / f"{variant}-{repeat}-{count}", TARGETS[:count], variant))
                    print(variant, count, runs[-1], file=sys.stderr, flush=True)
            found[variant] = {
                count: over(runs, [mine[:count] for mine in apart]) for count, runs in together.items()
            } | {"apart": apart, "together": together}
    result = {"rows": args.rows, "over_apart": found, **made_with()}
    if args.out:
        write_json(args.out, result)
    print(json.dumps({variant: {key: one[key] for key in (2, 3)} for variant, one in found.items()}, indent=2))


if __name__ == "__main__":
    main()
