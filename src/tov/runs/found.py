"""What a command says of a run that it finds in its folder: finished, or not yet."""

from __future__ import annotations

import math
from pathlib import Path

from tov.objects.mirror import named
from tov.progress import counted, tell
from tov.runs.made import TABLES
from tov.runs.manifest import Manifest

BEGUN_AGAIN = ("train", "export")
"""Commands that keep nothing of a run that is not whole."""
SCORE = ("select", "score")
"""Commands that fill shards of their own."""
TRIALS = "trials.jsonl"


def say_finished(folder: Path) -> None:
    """For whoever watches: the run was there."""
    tell(f"The run in {named(folder)} is finished: nothing was computed anew.")


def say_found(folder: Path, manifest: Manifest) -> None:
    """For whoever watches: how far the run is that is gone on with, or returned."""
    command, place = manifest.command, named(folder)
    if command == "compare":
        tell(f"Going on with {place}: {_trials(folder)} are there.")
    elif manifest.status == "finished":
        say_finished(folder)
    elif command in BEGUN_AGAIN:
        tell(f"The run in {place} is not whole: it is made anew.")
    else:
        tell(f"Going on with {place}{_shards(folder, manifest)}.")


def _shards(folder: Path, manifest: Manifest) -> str:
    scoring = manifest.scoring
    if manifest.command not in SCORE:
        return ""
    if scoring is None or "shard_rows" not in scoring.settings:
        return ": no shard is there yet"
    whole = math.ceil(scoring.rows / scoring.settings["shard_rows"])
    there = len(list((folder / TABLES).glob("rows-*.parquet")))
    return f": {there:,} of {whole:,} shards are there"


def _trials(folder: Path) -> str:
    file = folder / TRIALS
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return counted(len(lines), "trials")
