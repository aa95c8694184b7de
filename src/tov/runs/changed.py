"""What is told of a folder that holds another run than the one asked for: settings, content, and the files that changed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tov.errors import RunError
from tov.files import content_digest, stamp_of
from tov.objects.mirror import named
from tov.runs.made import CONFIG
from tov.runs.manifest import InputsRecord, Manifest

MOST = 10
"""Files that are named."""
DIGITS = 8
"""Of a SHA-256 that is shown."""
READS_ALL = ("select", "score", "fit")
"""Commands whose record of inputs has every file that they read rows from."""


def another_run(
    folder: Path, manifest: Manifest, differs: Sequence[str], command: str, reads: Sequence[Path] = (), model: str = ""
) -> RunError:
    """What to raise where a folder holds another run.

    Args:
        folder: of the run.
        manifest: of the run.
        differs: the lines on what its identity has other than the one asked for.
        command: that was given.
        reads: what the command reads.
        model: as the command names it.
    """
    if manifest.command != command:
        differs = [f"command: {manifest.command} -> {command}"]
    lines = [_with_model(one, folder, model) for one in differs]
    content = [one for one in differs if ".fingerprint: " in one or ".excluded: " in one]
    files = changed_files(manifest.inputs, reads if manifest.command in READS_ALL else ()) if content else []
    lines += files
    nothing_else = bool(files) and not any(one.startswith(("settings.", "model", "command")) for one in differs)
    anew = command == manifest.command == "select" and manifest.status == "finished" and not files
    fix = "Choose another --out, or overwrite the run with --force."
    return RunError(
        f"{named(folder)} holds another run. It differs in:\n" + "\n".join(f"    {one}" for one in lines),
        fix="To go on with that run, put its files back as they were. " * nothing_else + fix
        + " To choose anew from its scores, use select --from." * anew,
    )  # fmt: skip


def _with_model(text: str, folder: Path, model: str) -> str:
    """The line on the content of a model with the names that it has."""
    if not text.startswith("model: ") or not model:
        return text
    settings: Any = None
    with suppress(OSError, ValueError, yaml.YAMLError):
        settings = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    then = settings.get("model") if isinstance(settings, dict) else None  # many commands take it from another run
    names = f"of {model}" if then in (None, model) else f"of {then} -> of {model}"
    return text.replace("(content of its files)", f"(content of its files: {names})")


def changed_files(record: InputsRecord, reads: Sequence[Path] = ()) -> list[str]:
    """A line for each input file that is not what it was, `FILE: then -> now`; the first of many.

    Args:
        record: of the inputs then.
        reads: the files that are read now, where that is known; then also those that only one of the two reads are told.
    """
    lines = [*_changed(record)]
    now = {os.path.abspath(path) for path in reads if path.is_file()}
    if now and record.files:  # none are recorded where an input was in memory or on the Hub
        there = [name for name in record.files if os.path.exists(name) and not _in_folder_of(name, now, record)]
        lines += [f"{name}: read -> not read" for name in there if name not in now]
        lines += [f"{name}: not read -> read" for name in sorted(now - record.files.keys())]
    more = len(lines) - MOST
    return [*lines[:MOST], *([f"and {more:,} files more"] if more > 0 else [])]


def _in_folder_of(name: str, now: Collection[str], record: InputsRecord) -> bool:
    """Whether a file lies in a folder that was named as a whole and still is read: it may never have had rows."""
    named = {one.rpartition("=")[2] for one in [*(record.pool or ()), *(record.target or ())]}
    folders = {Path(place) for one in named for place in (one, one.rpartition(":")[0]) if os.path.isdir(place)}
    return any(folder in Path(name).parents and any(folder in Path(one).parents for one in now) for folder in folders)


def _changed(record: InputsRecord) -> Iterator[str]:
    for name, digest in record.files.items():
        path, stamp = Path(name), record.stamps.get(name)
        try:
            if stamp and stamp == stamp_of(path):
                continue
            size, now = path.stat().st_size, content_digest(path)
        except OSError:
            yield f"{name}: there -> cannot be read now"
            continue
        if now != digest:
            was = f"{stamp[0]:,} bytes, " if stamp else ""
            yield f"{name}: {was}SHA-256 {digest[:DIGITS]} -> {size:,} bytes, SHA-256 {now[:DIGITS]}"
