"""What a method is given to fill a score table with: rows, target, settings, the model, and folders that survive a kill.

A method makes *parts* (a warm-up, embeddings: whole or made again, shared by the methods that make the same) and then *fills*
the table shard by shard. Times, tokens and bytes are noted here, so that every method's cost is told alike. Must not know any
method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any

import numpy as np

from tov.data.pool import Index, Pool
from tov.errors import NumericError
from tov.files import digest, read_json, sweep_temporaries, write_json
from tov.methods.arms import PATH_ONLY, Arm
from tov.methods.table import imported
from tov.progress import Progress, track
from tov.run import Run
from tov.scan.stream import Shard, Stream
from tov.scan.stream import fill as fill_shards
from tov.settings import Settings
from tov.stages import Opened, Rows, auto_batch_tokens, encode_scored, open_encoder, repair_notes
from tov.text.encode import Encoded, Encoder

Tokens = tuple[int, int]
"""Tokens that went forward, and backward, through the model; padding not counted."""
LORA = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")
"""Settings of an adapter. Those of the run are the final training's alone where the method is off the path."""
NAMED = ("pool", "target", "test", "from_run", "method")
"""Settings that say where rows lie; what they are is told by fingerprints. The method is told by its row."""


@dataclass(frozen=True)
class Work:
    """One score table to fill.

    Attributes:
        run: whose `scores/` is filled; its manifest takes notes.
        rows: the pool.
        target: the target.
        settings: with the task named: model, seed, lengths, batches.
        arm: the method.
        options: the method's own options; None where it has none.
        labels: of a classifier.
        parts: folder of what outlives a kill, and may be shared with other tables.
        open_with: the model under these settings, in its initial state.
        quiet: no progress.
    """

    run: Run
    rows: Rows
    target: tuple[Pool, Index]
    settings: Any
    arm: Arm
    options: Any
    labels: tuple[str, ...]
    parts: Path
    open_with: Callable[[Any], Opened]
    quiet: bool = False

    def open(self, **changed: Any) -> Opened:
        """The model in its initial state (pretrained weights, adapter of no effect, seeded head); settings may be others."""
        return self.open_with(self.settings.model_copy(update=changed))

    def encoder(self) -> Encoder:
        """What turns rows into the model's tokens, for methods that need no model."""
        return open_encoder(self.settings, self.labels)

    def encode_target(self, encode: Encoder) -> tuple[Encoded, np.ndarray]:
        """The target's rows that have a scored token, and their row_ids; a note says if any has none."""
        encoded, kept = encode_scored(self.target[0], encode)
        lost = len(self.target[0]) - len(kept)
        self.note(f"{lost:,} target rows have no scored token within --max-length and were left out" if lost else "")
        return encoded, kept

    def batch_tokens(self, opened: Opened) -> int:
        """Tokens in a batch."""
        return int(self.settings.batch_tokens or auto_batch_tokens(opened.loaded.device))

    def note(self, text: str) -> None:
        """A line of the report; once, and not if it is empty."""
        notes = self.run.manifest.get("notes", [])
        if text and text not in notes:
            self.run.note(notes=[*notes, text])

    def spent(self, stage: str, tokens: Tokens) -> None:
        """Adds to the tokens of a stage."""
        self.run.spend(stage, *tokens)

    def made_from(self, opened: Opened | None) -> dict[str, Any]:
        """What every part and shard depends on."""
        settings = {name: value for name, value in effective_settings(self.settings).items() if name != "shard_rows"}
        loaded = opened.loaded if opened else None
        return {
            "settings": settings,
            "pool": [self.rows.index.fingerprint, self.rows.excluded_fingerprint],
            "model": [loaded.fingerprint, loaded.dtype, self.batch_tokens(opened)] if loaded and opened else None,
        }

    def part(
        self, name: str, key: Any, opened: Opened | None, make: Callable[[Path, Progress], None], *, rows: int
    ) -> Path:
        """The folder of a part, made if it is not whole yet.

        Args:
            name: of the part and of its stage.
            key: what it depends on, beside `made_from`.
            opened: the model that it is made with; None for none.
            make: fills the folder, and tells `spent` of its tokens; killed and called again, it goes on with or replaces what
                it finds there.
            rows: that pass, for the progress.
        """
        made_from = {**self.made_from(opened), "key": key}
        folder = self.parts / f"{name}-{digest(made_from)}"
        manifest = folder / "manifest.json"
        if not manifest.exists():
            folder.mkdir(parents=True, exist_ok=True)
            sweep_temporaries(
                folder, older_than=3600
            )  # it may lie outside the run, and another run may be writing there
            with self.run.stage(name), track(name, rows, quiet=self.quiet) as progress:
                make(folder, progress)
            spent = self.run.manifest.get("spent", {}).get(name, (0, 0))
            write_json(
                manifest, {"made_from": made_from, "seconds": self.run.manifest["timings"][name], "spent": spent}
            )
        made = read_json(manifest)
        # Whoever made it, its cost is part of this table's.
        timings, others = self.run.manifest.get("timings", {}), self.run.manifest.get("spent", {})
        self.run.note(
            parts={**self.run.manifest.get("parts", {}), name: relpath(folder, self.run.folder)},
            timings={**timings, name: made["seconds"]},
            spent={**others, name: made["spent"]},
        )
        return folder

    def stream(self, encode: Encoder, key: Any, opened: Opened | None = None) -> Stream:
        """The pool for `fill`, or for a part that is made shard by shard.

        Args:
            encode: rows to tokens.
            key: what a shard depends on, beside `made_from`, the method and its options.
            opened: the model that it is made with.
        """
        made = [self.made_from(opened), self.settings.shard_rows, self.arm.method.name, dumped(self.options), key]
        return Stream(
            pool=self.rows.pool, index=self.rows.index, excluded=self.rows.excluded,
            in_base=np.zeros(len(self.rows.pool), bool), encode=encode, shard_rows=self.settings.shard_rows,
            fingerprint=digest(made),
        )  # fmt: skip

    def fill(
        self,
        stream: Stream,
        score: Callable[[Shard], Mapping[str, np.ndarray]],
        *,
        opened: Opened | None = None,
        passes: Tokens = (0, 0),
    ) -> None:
        """Fills the score table: (rows,) numbers a column of every shard that is not there yet.

        Args:
            stream: from `stream`.
            score: of a shard's rows; NaN for a row without a score.
            opened: the model that the scores are made with.
            passes: passes of a row's tokens through the model, forward and backward.
        """

        def counted(shard: Shard) -> tuple[Mapping[str, np.ndarray], int]:
            columns, tokens = score(shard), tokens_of(shard.encoded)
            self.spent("scan", (passes[0] * tokens, passes[1] * tokens))
            return columns, passes[0] * tokens

        with self.run.stage("scan"), track("scan", len(self.rows.pool), quiet=self.quiet) as progress:
            fill_shards(stream, self.run.scores, counted, progress)
        loaded, method = opened.loaded if opened else None, self.arm.method
        self.run.note(
            scan={"fingerprint": stream.fingerprint, "tokens_passed": self.run.manifest["spent"]["scan"][0]},
            method={
                "name": method.name, "options": dumped(self.options), "unit": method.unit, "task": self.settings.task,
                "target_rows": len(self.target[0]), "dtype": loaded.dtype if loaded else None,
                "device": str(loaded.device) if loaded else None,
            },
            model={
                "fingerprint": stream.fingerprint, "model_fingerprint": loaded.fingerprint if loaded else None,
                "settings": self.settings.of_stage("path"), "labels": list(loaded.labels if loaded else self.labels),
                "max_length": stream.encode.max_length, "task": self.settings.task,
            },
        )  # fmt: skip
        for note in repair_notes(target=self.target[1], pool=self.rows.index):
            self.note(note)


def effective_settings(settings: Settings) -> dict[str, Any]:
    """The settings of a run on which a score table off the path depends."""
    kept = settings.of_stage("path", "scan")
    return {name: value for name, value in kept.items() if name not in (*PATH_ONLY, *LORA, *NAMED)}


def settled(arm: Arm, most: int) -> Any:
    """The method's own options; `least_rows` left open means as many as are to be chosen."""
    if getattr(arm.own, "least_rows", 0) is None:
        assert arm.own
        return arm.own.model_copy(update={"least_rows": most})
    return arm.own


def fill_table(work: Work) -> None:
    """Fills the table by the method's function.

    Raises:
        TovError: as the method's function says.
    """
    try:
        imported(work.arm.method.function, f"the method '{work.arm.method.name}'")(work)
    except NumericError as error:
        raise NumericError(error.problem, allowed=error.allowed, fix=_of_method(error.fix, work.arm)) from None


def _of_method(fix: str, arm: Arm) -> str:
    """Advice on a training's settings, in the words of a method that has its own."""
    for name in ("learning_rate", *LORA):
        if hasattr(arm.own, name):
            fix = fix.replace(f"--{name.replace('_', '-')}", f"{arm.method.name}/{name}")
    return fix


def tokens_of(rows: Encoded) -> int:
    """Tokens of the rows that go through a model: those of rows with a scored token."""
    return int(rows.lengths[rows.scored_counts > 0].sum())


def cost_of(run: Run) -> dict[str, Any]:
    """Seconds, tokens and bytes that a filled table took, with its parts."""
    folders = [run.path, run.scores, *(run.folder / part for part in run.manifest.get("parts", {}).values())]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    spent = list(run.manifest.get("spent", {}).values())
    return {
        "seconds": round(sum(run.manifest["timings"].values()), 3),
        "tokens_forward": sum(tokens[0] for tokens in spent),
        "tokens_backward": sum(tokens[1] for tokens in spent),
        "bytes": sum(file.stat().st_size for file in files),
    }


def dumped(options: Any) -> dict[str, Any]:
    """A method's own options as JSON has them."""
    return dict(options.model_dump(mode="json")) if options else {}
