"""What a plan reads: pool, target and model, opened; and what it tells of them."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from tov.checks.before import Before, warnings_before
from tov.config.records import SelectConfig
from tov.data.decontamination import left_out
from tov.data.pool import Pool
from tov.engine.models import ModelSpec, Opened
from tov.inputs.draw import encode_scored, sample_rows
from tov.inputs.read import Indexed, PoolRows, label_map_notes, reading_notes, targets_of
from tov.model.load import longest
from tov.text.encode import IGNORED, Encoded, Encoder, left_out_note
from tov.text.example import marked, parts

SHOWN_COLUMNS = 8
"""Columns of a source that a note lists."""


@dataclass(frozen=True)
class ReadForPlan:
    """What a plan has read and opened, and how long that took.

    Attributes:
        settings: of the run, with the task named.
        target: the examples.
        rows: the pool.
        labels: of a classifier.
        opened: the model; None where no method planned reads one.
        encode: makes tokens of rows.
        limit: tokens that the model takes in a row; None where nothing says.
        width: of its hidden states.
        sampled: row_ids of usable pool rows that are made tokens of.
        encoded: the same as tokens.
        wanted: the target's rows that have a scored token.
        wanted_ids: their row_ids.
        reading, opening, encoding: seconds.
    """

    settings: SelectConfig
    target: Indexed
    rows: PoolRows
    labels: tuple[str, ...]
    opened: Opened | None
    encode: Encoder
    limit: int | None
    width: int
    sampled: np.ndarray
    encoded: Encoded
    wanted: Encoded
    wanted_ids: np.ndarray
    reading: float
    opening: float
    encoding: float

    @property
    def usable(self) -> int:
        """Pool rows that may be chosen."""
        return int(self.rows.usable.sum())

    @property
    def times(self) -> float:
        """How many rows of the pool one that was sampled stands for."""
        return self.usable / max(len(self.encoded), 1)

    @property
    def scored(self) -> np.ndarray:
        """(sampled rows,) bool, those with a scored token."""
        return self.encoded.scored_counts > 0

    @property
    def tokens(self) -> float:
        """Of the pool's scored rows."""
        return self.times * int(self.encoded.lengths[self.scored].sum())

    @property
    def seen(self) -> Before:
        """What mistakes are looked for in."""
        return Before(
            self.rows, self.target, self.sampled, self.encoded, self.wanted, self.wanted_ids, self.encode, self.limit,
            self.settings,
        )  # fmt: skip

    @property
    def spec(self) -> ModelSpec:
        """The model that the run opens."""
        return ModelSpec.of(self.settings, self.labels)


def encoded_for_plan(
    settings: SelectConfig,
    target: Indexed,
    rows: PoolRows,
    labels: tuple[str, ...],
    *,
    reading: float,
    passes: bool = True,
) -> ReadForPlan:
    """What was read in so many seconds as tokens of the settings' model; it is opened where rows pass it."""
    clock, spec = [time.perf_counter()], ModelSpec.of(settings, labels)
    opened = spec.open() if passes else None
    encode = opened.encode if opened else spec.encoder()
    model = opened.loaded.model.config if opened else spec.config()
    clock.append(time.perf_counter())
    sampled, encoded = sample_rows(rows, encode, settings.seed)
    clock.append(time.perf_counter())
    opening, encoding = np.diff(clock).tolist()
    wanted, wanted_ids = encode_scored(target.pool, encode)
    width, limit = model.get_text_config().hidden_size, longest(model, encode.tokenizer)
    return ReadForPlan(
        settings,
        target,
        rows,
        labels,
        opened,
        encode,
        limit,
        width,
        sampled,
        encoded,
        wanted,
        wanted_ids,
        reading,
        opening,
        encoding,
    )


def data_facts(read: ReadForPlan) -> dict[str, Any]:
    """What pool, target and model are, and a row of each as the model sees it."""
    rows, encoded, times, cut = read.rows, read.encoded, read.times, read.seen.cut
    sources, counts = np.unique(rows.pool.source_names(np.arange(len(rows.pool))), return_counts=True)
    return {
        "pool": {
            "rows": len(rows.pool), "usable": read.usable, "left_out": left_out(rows.excluded, rows.index),
            "sources": dict(zip(sources.tolist(), counts.tolist(), strict=True)), "tokens": round(read.tokens),
            "scored_tokens": round(times * int(encoded.scored.sum())),
            "sampled": len(encoded) if len(encoded) < read.usable else None,
            "without_scored_token": round(times * int((~read.scored).sum())), "cut": round(times * int(cut.sum())),
            "cut_off": round(times * int(encoded.lost[cut].sum())),
            "template_leaves_out": {kind: round(times * count) for kind, count in encoded.left_out_kinds().items()},
        },
        "target": {
            "rows": len(read.target), "usable": len(read.wanted), "tokens": int(read.wanted.lengths.sum()),
            "targets": {name: len(one) for name, one in targets_of(read.target).items()},
        },
        "model": {
            "name": read.settings.model, "task": read.settings.task, **_weights(read.opened),
            "max_length": read.encode.max_length,
        },
        "examples": _examples(read),
    }  # fmt: skip


def _weights(opened: Opened | None) -> dict[str, Any]:
    """Device and sizes of a model; nothing of one that is not opened."""
    if opened is None:
        return dict.fromkeys(("device", "dtype", "parameters", "bytes", "trained"))
    frozen = [weight for weight in opened.adapted.parameters() if not weight.requires_grad]
    return {
        "device": str(opened.loaded.device), "dtype": opened.loaded.dtype,
        "parameters": sum(_numbers(weight) for weight in frozen), "bytes": sum(weight.nbytes for weight in frozen),
        "trained": count_trained(opened.adapted),
    }  # fmt: skip


def _numbers(weight: Any) -> int:
    """Of a frozen weight; a byte of one in 4 bits holds two."""
    return int(weight.numel()) * (2 if str(weight.dtype) == "torch.uint8" else 1)


def _examples(read: ReadForPlan) -> dict[str, Any]:
    """The first usable row of pool and target that has a scored token, as the model sees it."""
    found = {"target": _example(read.wanted, 0, read.encode, read.target.pool.where(int(read.wanted_ids[0])))}
    if read.scored.any():
        first = int(read.scored.argmax())
        place = read.rows.pool.where(int(read.sampled[first]))
        found = {"pool": _example(read.encoded, first, read.encode, place), **found}
    return found


def _example(rows: Encoded, index: int, encode: Encoder, place: str) -> dict[str, Any]:
    """A row, part by part, and what of it is scored."""
    tokenizer, names = encode.tokenizer, encode.labels
    of_row, labels = parts(rows, index, tokenizer, names), rows.row(index)[1]
    scored = labels[labels != IGNORED].tolist()
    return {
        "row": place, "tokens": int(rows.lengths[index]), "scored": int(rows.scored_counts[index]),
        "scored_text": " ".join(names[label] for label in scored) if names else tokenizer.decode(scored),
        "parts": [asdict(part) for part in of_row], "text": marked(of_row),
    }  # fmt: skip


SPLIT = "the run splits the target into {} clusters, or fewer; the costs are of that many equal parts"


def said_of(read: ReadForPlan, troubles: list[str], clusters: int) -> dict[str, list[str]]:
    """Warnings, each with what to do, and notes; the target is to be split into so many clusters, if any."""
    notes = [
        *_unseen(target=read.target.pool, pool=read.rows.pool), *reading_notes(target=read.target, pool=read.rows),
        *label_map_notes(read.settings, target=read.target, pool=read.rows),
        *_of_template(read.rows, read.encoded, read.times),
        *([SPLIT.format(clusters)] if clusters else []),
    ]  # fmt: skip
    return {"warnings": [*troubles, *warnings_before(read.seen)], "notes": notes}


def _unseen(**pools: Pool) -> list[str]:
    """Columns that are kept in the training file, and are no part of what the model reads: a line a source."""
    notes = []
    for role, pool in pools.items():
        for name, columns in pool.unseen().items():
            more = f" and {len(columns) - SHOWN_COLUMNS} more" * (len(columns) > SHOWN_COLUMNS)
            shown = ", ".join(columns[:SHOWN_COLUMNS]) + more
            of = role if role == name else f"{role} {name}"
            notes.append(f"{of}: the model does not see the columns {shown}; --columns says which columns it sees")
    return notes


def _of_template(rows: PoolRows, encoded: Encoded, times: float) -> list[str]:
    """What the model's chat template does not show of the pool: parts that are not scored, and under skip whole rows."""
    kinds = {kind: round(times * count) for kind, count in encoded.left_out_kinds().items()}
    notes = [left_out_note(kind, count, "pool") for kind, count in kinds.items()]
    refused = round(times * int((encoded.lengths == 0).sum())) if rows.skip else 0
    return notes + [f"the model's chat template refuses {refused:,} pool rows, which have no scored token"] * bool(
        refused
    )


def count_trained(adapted: torch.nn.Module) -> int:
    """Parameters that are trained."""
    return sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
