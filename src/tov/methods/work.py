"""What a method is given to prepare with: pool, target, settings, the model, and artifacts that survive a kill.

Times, tokens and bytes are noted here, so that every method's cost is told alike. Must not know any method.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tov.engine.base import Engine, ShardTask
from tov.engine.batch_size import recorded_batch_tokens
from tov.engine.fill import fill
from tov.engine.models import Lora, Models, ModelSpec, Opened, auto_batch_tokens
from tov.errors import ModelError, RunError
from tov.files import checksum, digest, read_sealed, sweep_temporaries, write_sealed
from tov.inputs.draw import encode_scored
from tov.inputs.read import Indexed, PoolRows
from tov.methods.base import Method
from tov.methods.spec import read_by
from tov.model.consent import Expected
from tov.objects.mirror import relative
from tov.progress import Progress, counted, track
from tov.runs.folder import Run
from tov.runs.made import UNLISTED
from tov.runs.manifest import ModelRecord
from tov.scores.shard import ShardReader
from tov.scores.store import ShardStore, features_table
from tov.scores.table import column_name
from tov.text.encode import Encoded, Encoder

ARTIFACT = "artifact.json"
"""Says that an artifact is whole, what it was made from, what making it took, and its files with their checksums."""


@dataclass(frozen=True)
class Work:
    """One target's score table to prepare.

    Attributes:
        run: whose manifest takes notes.
        name: of the target.
        rows: the pool, from which rows to train on are drawn.
        target: the target.
        settings: of the run, with the task named: model, seed, lengths, batches.
        method: whose work it is.
        options: the method's own options; None where it has none.
        labels: of a classifier.
        artifacts: folder of what outlives a kill, and may be shared with other tables.
        models: opens models, and keeps the last one.
        engine: computes what a method makes of every pool row, and makes files by its `make`.
        quiet: no progress.
        noted: lines of the report so far.
        sample: the rows that are scored, where they are not the whole pool.
        alone: whether the run has no other target, and was not asked for clusters of it.
    """

    run: Run
    name: str
    rows: PoolRows
    target: Indexed
    settings: Any
    method: Method
    options: Any
    labels: tuple[str, ...]
    artifacts: Path
    models: Models
    engine: Engine
    quiet: bool = False
    noted: list[str] = field(default_factory=list)
    sample: PoolRows | None = None
    alone: bool = True

    @property
    def scored(self) -> PoolRows:
        """The rows that are scored."""
        return self.sample or self.rows

    def of(self, name: str, target: Indexed) -> Work:
        """The work for another target of the run."""
        return replace(self, name=name, target=target, noted=[])

    def spec(self, lora: Any = None) -> ModelSpec:
        """The run's model, with another adapter if a record of LoRA settings is given."""
        spec = ModelSpec.of(self.settings, self.labels)
        return replace(spec, lora=Lora.of(lora)) if lora is not None else spec

    def open(self, lora: Any = None) -> Opened:
        """The model in its initial state (pretrained weights, adapter of no effect, seeded head).

        Raises:
            ModelError: it is not the one that an earlier call of this run opened: other weights, or `auto` means
                another dtype here.
        """
        opened = self.models.open(self.spec(lora), expected_by(self.run))
        record = model_record(opened, self.settings)
        note_model(self.run, record)
        return opened

    def encoder(self) -> Encoder:
        """What turns rows into the model's tokens, for methods that need no model."""
        return self.spec().encoder()

    def encode_target(self, encode: Encoder) -> tuple[Encoded, np.ndarray]:
        """The target's rows that have a scored token, and their row_ids; a note says if any has none."""
        encoded, row_ids = encode_scored(self.target.pool, encode)
        lost = len(self.target) - len(row_ids)
        self.note(f"{lost:,} target rows have no scored token within --max-length and were left out" if lost else "")
        for note in encoded.left_out_notes("target"):
            self.note(note)
        return encoded, row_ids

    def batch_tokens(self, opened: Opened) -> int:
        """Tokens in a batch."""
        return batch_tokens_of(self.run, self.settings, opened)

    def about(self, opened: Opened | None = None) -> str:
        """For the report: how many target rows there are, and the model that was read, if one was."""
        on = f", {opened.loaded.dtype} on {opened.loaded.device}" if opened else ""
        return f"M = {counted(len(self.target), 'target rows')}{on}"

    def note(self, text: str) -> None:
        """A line of the report; once, and not if it is empty."""
        if text:
            self.noted.append(text)
        self.run.note_line(text)

    def spend(self, stage: str, forward: int, backward: int = 0) -> None:
        """Adds to the tokens of a stage of this target's."""
        self.run.spend(column_name(stage, self.name), forward, backward)

    def made_from(self, opened: Opened | None) -> dict[str, Any]:
        """What every artifact depends on: settings that the method reads, pool, model."""
        settings = read_by(self.settings, self.method, "fit", "scan")
        return {
            # Of a split target each part is a target of its own, and what is made without one is made for all.
            "settings": {
                name: value for name, value in settings.items() if name not in ("shard_rows", "target_clusters")
            },
            "pool": [self.rows.index.fingerprint, self.rows.excluded_fingerprint],
            **({"sample": self.sample.index.fingerprint} if self.sample else {}),
            "model": [*opened.fingerprint, self.batch_tokens(opened)] if opened else None,
        }

    def artifact(
        self, name: str, key: Any, opened: Opened | None, make: Callable[[Path, Progress], None], *, rows: int,
        place: Path | None = None,
    ) -> Path:  # fmt: skip
        """The folder of an artifact, made if it is not whole yet.

        Args:
            name: of the artifact and of its stage.
            key: what it depends on, beside `made_from`.
            opened: the model that it is made with; None for none.
            make: fills the folder, and tells `spend` of its tokens; killed and called again, it goes on with or replaces what
                it finds there.
            rows: that pass, for the progress.
            place: its folder; by default one among the shared artifacts that is named by what it is made from.
        """
        name = column_name(name, self.name)
        made_from = {**self.made_from(opened), "key": key}
        folder = place or self.artifacts / f"{name}-{digest(made_from)}"
        whole = folder / ARTIFACT
        if not whole.exists() or read_sealed(whole)["made_from"] != _as_json(made_from):
            folder.mkdir(parents=True, exist_ok=True)
            # It may lie outside the run, and another run may be writing there.
            sweep_temporaries(folder, older_than=3600)
            before = len(self.noted)
            with self.run.stage(name), track(name, rows, quiet=self.quiet) as progress:
                make(folder, progress)
            spent, seconds = self.run.manifest.spent.get(name, (0, 0)), self.run.manifest.timings[name]
            files = {str(file.relative_to(folder)): checksum(file) for file in _kept_in(folder)}
            write_sealed(whole, {
                "made_from": made_from, "seconds": seconds, "spent": list(spent), "notes": self.noted[before:],
                "files": files,
            })  # fmt: skip
        record = read_sealed(whole)
        _check_files(folder, record)
        for note in record.get("notes", ()):  # made now or before a kill, here or by another run
            self.note(note)
        # Whoever made it, its cost is part of this table's.
        manifest = self.run.manifest
        self.run.note(
            artifacts={**manifest.artifacts, name: relative(folder, self.run.folder)},
            timings={**manifest.timings, name: record["seconds"]},
            spent={**manifest.spent, name: tuple(record["spent"])},
        )
        return folder

    def of_others(self, name: str) -> list[Path]:
        """The folders in which finished artifacts of this name lie that other targets of the run have."""
        here = self.run.artifacts.items()
        return [
            folder for full, folder in here if full.partition("@")[0] == name and full != column_name(name, self.name)
        ]

    def like_of_others(self, name: str, key: list[Any], opened: Opened | None) -> Path | None:
        """The folder of another target's artifact that is whole, and was made from the same but for the target.

        Args:
            name: of the artifact.
            key: what it depends on beside the target, which stands before that in its own key.
            opened: the model that it is made with; None for none.
        """
        wanted = _as_json({**self.made_from(opened), "key": key})
        for folder in self.of_others(name):
            record = read_sealed(folder / ARTIFACT) if (folder / ARTIFACT).exists() else None
            if record and {**record["made_from"], "key": record["made_from"]["key"][1:]} == wanted:
                with suppress(RunError):  # a file that has changed is nobody's source
                    _check_files(folder, record)
                    return folder
        return None

    def reader(self, encode: Encoder) -> ShardReader:
        """Reads the rows that are scored shard by shard."""
        rows = self.scored
        return ShardReader(rows.pool, rows.index, rows.excluded, encode, self.settings.shard_rows, rows.skip)

    def store_features(
        self, folder: Path, encode: Encoder, task: ShardTask[np.ndarray], progress: Progress, *, stage: str,
        passes: tuple[int, int], dtype: Any = np.float16,
    ) -> ShardStore:  # fmt: skip
        """Numbers of every pool row, kept shard by shard; shards that are there are left alone.

        Args:
            folder: of the shards, in an artifact's folder, whose name says what they are made from.
            encode: rows to tokens.
            task: (rows, d) features of a shard's rows, NaN for a row without any.
            progress: told of rows.
            stage: whose tokens they are.
            passes: how often a row's tokens go through the model, forward and backward.
            dtype: fp16 or fp32.
        """
        store = self.feature_store(folder, stage=stage)

        def passed(shard: Any) -> int:
            forward, backward = (times * shard.tokens for times in passes)
            if forward:
                self.spend(stage, forward, backward)
            return int(forward)

        fill(
            store, self.reader(encode), task, lambda shard, rows: features_table(shard.spread(rows).astype(dtype)),
            self.engine, progress=progress, passed=passed,
        )  # fmt: skip
        return store

    def feature_store(self, folder: Path, *, stage: str) -> ShardStore:
        """The store of `store_features` in a folder of an artifact, whose name says what it is made from."""
        return ShardStore(folder, digest([folder.parent.name, folder.name, self.settings.shard_rows, stage]))


def _kept_in(folder: Path) -> list[Path]:
    """The files of an artifact; shards have checksums of their own."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not UNLISTED.fullmatch(file.name)]
    return [file for file in files if file.name != ARTIFACT]


def _check_files(folder: Path, record: dict[str, Any]) -> None:
    """Raises RunError if a file of an artifact is not the one that was made."""
    for name, made in record.get("files", {}).items():
        file = folder / name
        if not file.exists() or checksum(file) != made:
            raise RunError(
                f"{file} is {'not the file that was made' if file.exists() else 'not there'}.",
                fix=f"Delete the folder {folder}, then give the same command again: it makes it anew.",
            )


def model_record(opened: Opened, settings: Any) -> ModelRecord:
    """What a run remembers of an opened model."""
    loaded = opened.loaded
    return ModelRecord(
        batch_tokens=recorded_batch_tokens(opened),
        name=settings.model, task=opened.spec.task, labels=list(loaded.labels), max_length=opened.encode.max_length,
        fingerprint=loaded.fingerprint, tokenizer=loaded.tokenizer_fingerprint, dtype=loaded.dtype, device=str(loaded.device),
        settings=settings.of("fit", named=True),
    )  # fmt: skip


def batch_tokens_of(run: Run, settings: Any, opened: Opened) -> int:
    """Tokens in a batch of the run's: as asked for, as recorded, or the constant of the device."""
    return int(settings.batch_tokens or recorded_in(run) or auto_batch_tokens(opened.loaded.device))


def recorded_in(run: Run) -> int | None:
    """Tokens in a batch as the run's first call has found them for its GPU; scores of other layouts are not mixed with its."""
    return run.manifest.model.batch_tokens if run.manifest.model else None


def expected_by(run: Run, whose: str = "", anew: str = "start over with --force") -> Expected | None:
    """The model of a run, against which one is held before it is opened; None where the run has none yet.

    Args:
        run: that the model is of.
        whose: ends the sentence "is no longer the one ...".
        anew: what to do if its files are gone.
    """
    return expected_of(run.manifest.model, whose or f"that {run.folder} was begun with", anew)


def expected_of(was: ModelRecord | None, whose: str, anew: str) -> Expected | None:
    """As `expected_by`, of a record."""
    if was is None or was.fingerprint is None:
        return None
    return Expected(was.fingerprint, was.tokenizer, whose, anew)


def note_model(run: Run, record: ModelRecord) -> None:
    """Remembers the model of a run.

    Raises:
        ModelError: an earlier call of the run had other weights, another tokenizer, dtype or kind of device: numbers made by
            both must not stand in one table.
    """
    was = run.manifest.model
    if was is None or was.fingerprint is None:
        run.note(model=record)
        return
    pairs = {
        "weights": (was.fingerprint, record.fingerprint),
        "tokenizer or chat template": (was.tokenizer or record.tokenizer, record.tokenizer),
        "dtype": (was.dtype, record.dtype),
        "device": ((was.device or "").partition(":")[0], (record.device or "").partition(":")[0]),
    }
    changed = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in pairs.items() if old != new)
    if changed:
        raise ModelError(
            f"The model '{record.name}' is no longer the one that {run.folder} was begun with: {changed}.",
            fix="Go on with the old model on a machine like the first, or start over with --force, naming --dtype.",
        )


def _as_json(value: Any) -> Any:
    """A value as it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=str))
