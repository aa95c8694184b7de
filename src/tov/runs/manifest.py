"""`manifest.json`, typed and versioned: one shape for every command and every method.

Every reader goes through `read_manifest`, which also reads the format of version 0.1.0 (`tov.runs.format1`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tov.errors import RunError
from tov.files import read_sealed, write_sealed
from tov.runs.format1 import upgraded

FORMAT = 2
FILE = "manifest.json"
CONSENT = "trust_remote_code"
"""A setting that is never taken from a run: it says what its maker allowed, and not what the reader does."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class InputsRecord(_Record):
    """What a later command needs to read the inputs again.

    Attributes:
        pool, target, test: absolute paths, globs or Hub ids; None for one that was in memory or was not given.
        files: absolute path -> SHA-256 of the file, of every file that they were read from.
        stamps: absolute path -> what tells unread that a file is the same (`tov.files.stamp_of`), of those that have it.
        reading: the settings of reading (`tov.config.records.DataSettings`).
    """

    pool: list[str] | None = None
    target: list[str] | None = None
    test: list[str] | None = None
    files: dict[str, str] = {}
    stamps: dict[str, list[int]] = {}
    reading: dict[str, Any] = {}


class RowsFacts(_Record):
    """What was seen of chosen rows, a pool or a target, before any training (`tov.checks`).

    Attributes:
        rows: how many there are.
        looked_at: of how many the rest is: all, or as many as are drawn at most.
        shares: the end of a sentence on a row ("have no entity") -> share of the rows, from 0 to 1, of which it is true.
        lengths: 51 quantiles of the rows' lengths, 0, 2, 4, ... 100 %, in the unit of the task; empty where they are not known.
        by_target: of several targets together, `looked_at` of each by itself, by its name; empty elsewhere.
    """

    rows: int
    looked_at: int
    shares: dict[str, float] = {}
    lengths: list[int] = []
    by_target: dict[str, int] = {}


class Repeats(_Record):
    """How many of some rows are found again among others.

    Attributes:
        exact: have the prompt of one of them.
        near: nearly (`tov.data.near`).
        of: how many were looked at.
    """

    exact: int
    near: int
    of: int


class ChecksRecord(_Record):
    """What was seen when the chosen rows were looked at beside pool and target.

    Attributes:
        rows: of `chosen`, `pool` and, where it is known, `target`.
        repeats: of the chosen rows in `chosen` (an earlier one), in `target` and `test` where those are at hand; and of as many
            random rows of the `pool` in themselves.
        warnings: one sentence each.
    """

    rows: dict[str, RowsFacts]
    repeats: dict[str, Repeats] = {}
    warnings: list[str] = []


class TargetRecord(_Record):
    """A named target, or a cluster of the one target.

    Attributes:
        rows: how many it has.
        fingerprint: of their content.
        facts: what was seen of them (of several targets, of all together).
        weight: of a cluster, the rows by which its part of the choice is measured: those that have a scored token.
        excerpts: of a cluster, how its most central rows begin.
    """

    rows: int
    fingerprint: str
    facts: RowsFacts | None = None
    weight: int | None = None
    excerpts: list[str] = []


class ModelRecord(_Record):
    """The model that rows were chosen with, as far as the method needed it.

    Attributes:
        name: alias, GGUF file, folder or Hub id.
        task: of `tov.config.records.Task`.
        labels: of a classifier, by id.
        max_length: tokens a row may have.
        fingerprint: of configuration and weights; None where only the tokenizer was needed.
        tokenizer: fingerprint of tokenizer and chat template; None in older runs.
        dtype: fp32 or bf16; None likewise.
        device: where it was; None likewise.
        batch_tokens: tokens in a batch where none were asked for, of a GPU; None elsewhere, and in older runs.
        settings: those of the run that a training on its rows takes over (`tov.config.records.PathSettings`).
    """

    name: str
    task: str
    labels: list[str] = []
    max_length: int
    fingerprint: str | None = None
    tokenizer: str | None = None
    dtype: str | None = None
    device: str | None = None
    batch_tokens: int | None = None
    settings: dict[str, Any] = {}

    def is_called(self, name: str) -> bool:
        """Whether a user's name of a model, or of its folder, is this one's."""
        return self.name in (name, os.path.abspath(os.path.expanduser(name)))


class ScoringRecord(_Record):
    """How the score table was filled.

    Attributes:
        method: its name.
        options: its own options, those left open resolved.
        settings: of the scan (`tov.config.records.ScanSettings`), as they were given.
        fingerprint: of everything that the scores depend on; it stands in every shard.
        unit: of the scores.
        about: a sentence on what they were made with, for the report.
        noise_floor: `token_rms`, `row_rms`: what rounding alone does to a log-loss, in nats; None where nothing was compared.
        tokens_passed: tokens that went forward through the model over the pool.
        rows: of the pool; 0 where that was not told.
        complete: whether every row has been scored.
    """

    method: str
    options: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    fingerprint: str
    unit: str = ""
    about: str = ""
    noise_floor: dict[str, float] | None = None
    tokens_passed: int = 0
    rows: int = 0
    complete: bool = False


class OriginRecord(_Record):
    """What this run goes out from: a `run`, or the folder of another run's `scores`."""

    run: str | None = None
    scores: str | None = None


class Manifest(_Record):
    """What `manifest.json` says.

    Attributes:
        format: of this file.
        command: that made the run.
        folder: where the run lay when this was written; paths that are gone since are looked for where they lay from there.
        status: running, failed (the same command goes on), finished.
        started, finished: UTC.
        identity: settings and fingerprints on which the run's files depend; a command goes on with a run of the same identity.
        seed: of every random choice.
        inputs: what was read.
        targets: by name; most runs have one, called `target`.
        model: that rows were scored, or trained, with.
        chosen_for: the model that they were chosen for, where its proxy has scored them.
        scoring: how the score table was filled, here or where it was taken from.
        artifacts: name -> folder, relative to that of the run that was scored, of what was prepared before scoring.
        origin: other runs that this one goes out from.
        trained: of `tov train`: how the trained model is loaded.
        comparison: of `tov compare`: rules of its variants, and what was asked last; of pilots: what they have decided for.
        gate: what `auto` has decided for, and why (`tov.comparison.gate.Decided`); `here` says by what else a choice from its
            scores was made.
        versions: of Python and packages.
        hardware: what it ran on.
        timings: seconds by stage, over interruptions.
        spent: tokens forward and backward by stage.
        cost: of filling the score table, in all.
        notes: lines of the report.
        summary: the numbers of the report.
        checks: of a selection, what was seen of the chosen rows.
        files: path in the folder -> XXH3 of the file, of all files that the run has made but this one and shards, which have
            checksums of their own, and logs; empty until it is finished. Nothing else is ever removed.
    """

    format: Literal[2] = 2
    command: str
    folder: str | None = None
    status: Literal["running", "failed", "finished"] = "running"
    started: str
    finished: str | None = None
    identity: dict[str, Any]
    seed: int | None = None
    inputs: InputsRecord = Field(default_factory=InputsRecord)
    targets: dict[str, TargetRecord] = {}
    model: ModelRecord | None = None
    scoring: ScoringRecord | None = None
    artifacts: dict[str, str] = {}
    origin: OriginRecord = Field(default_factory=OriginRecord)
    trained: dict[str, Any] | None = None
    comparison: dict[str, Any] | None = None
    gate: dict[str, Any] | None = None
    chosen_for: ModelRecord | None = None
    versions: dict[str, str] = {}
    hardware: dict[str, Any] = {}
    timings: dict[str, float] = {}
    spent: dict[str, tuple[int, int]] = {}
    cost: dict[str, Any] | None = None
    notes: list[str] = []
    summary: dict[str, Any] = {}
    checks: ChecksRecord | None = None
    files: dict[str, str] = {}

    @property
    def to_train(self) -> ModelRecord | None:
        """The model that the rows were chosen for."""
        return self.chosen_for or self.model

    def write(self, folder: Path) -> None:
        """Writes `manifest.json` atomically."""
        write_sealed(folder / FILE, self.model_dump(mode="json", exclude_none=True))


def _without_consent(value: Any) -> Any:
    """The value without the setting, wherever a manifest may have it."""
    if isinstance(value, dict):
        return {name: _without_consent(inner) for name, inner in value.items() if name != CONSENT}
    return value


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run folder, with paths as they are today where folders have moved together.

    Raises:
        RunError: it is broken, or of a later version of tov.
    """
    file = folder / FILE
    raw = read_sealed(file)
    anew = "Put it back from a copy, or choose another --out."
    if not isinstance(raw, dict) or "format" not in raw or not isinstance(raw.get("identity"), dict):
        raise RunError(f"{file} is no manifest of tov.", fix=anew)
    if raw.get("format") == 1:
        raw = upgraded(raw, folder)
    raw = _without_consent(raw)
    if raw.get("format") != FORMAT:
        raise RunError(
            f"{file} has format {raw.get('format')!r}.", allowed=f"1 and {FORMAT}", fix="Update tov: pip install -U tov"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RunError(f"{file} is broken: {place}: {first['msg']}", fix=anew) from None
    _find_again(manifest, folder)
    return manifest


def _find_again(manifest: Manifest, folder: Path) -> None:
    """Paths that are gone, but are there when they are taken from where the run lies now."""
    here = os.path.abspath(folder)
    if manifest.folder is None or manifest.folder == here:
        return

    def today(path: str) -> str:
        """Of a path, or of an input `NAME=PATH`."""
        name, equals, named = path.rpartition("=") if not os.path.isabs(path) else ("", "", path)
        if not os.path.isabs(named) or os.path.exists(named):
            return path
        moved = os.path.normpath(os.path.join(here, os.path.relpath(named, manifest.folder)))
        # Of a pattern, the folder that stands before its first wildcard is looked for.
        return name + equals + moved if os.path.exists(moved.partition("*")[0].rpartition("/")[0]) else path

    inputs, origin = manifest.inputs, manifest.origin
    for role in ("pool", "target", "test"):
        several = getattr(inputs, role)
        setattr(inputs, role, [today(one) for one in several] if several else several)
    inputs.files = {today(path): sha for path, sha in inputs.files.items()}
    origin.run, origin.scores = (path and today(path) for path in (origin.run, origin.scores))
    for model in (manifest.model, manifest.chosen_for):
        if model is not None:
            model.name = today(model.name)
            model.settings = {
                **model.settings,
                **({"model": today(model.settings["model"])} if "model" in model.settings else {}),
            }
    if origin.scores is None:  # else they are where those of the run that was scored are
        for name, path in manifest.artifacts.items():
            if path.startswith("..") and not os.path.exists(os.path.join(here, path)):
                manifest.artifacts[name] = os.path.relpath(os.path.join(manifest.folder, path), here)
    manifest.folder = here


def differences(was: Mapping[str, Any], is_now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`name: then -> now` for every leaf that differs."""
    lines = []
    for name in [*was, *(name for name in is_now if name not in was)]:
        old, new = was.get(name), is_now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {old} -> {new}")
    return lines
