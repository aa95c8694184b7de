"""The stages of a run, each from records to records: read, fit, scan. Each is skipped where its files are there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from tov.config import DataSettings, PathSettings
from tov.data.cells import BadRow
from tov.data.guard import DUPLICATE, IN_TARGET, USABLE, exclusions, left_out
from tov.data.labels import LabelMap, agreed_labels
from tov.data.pool import Index, Pool, index_rows, open_pool
from tov.data.rows import Row
from tov.data.sources import Input
from tov.errors import DataError, ModelError
from tov.files import digest
from tov.model.adapters import attach
from tov.model.joined import scanning
from tov.model.load import LARGEST_DEFAULT, Loaded, load_config, load_model, load_tokenizer, longest
from tov.model.logloss import check_head, head_of
from tov.path.fit import Schedule, base_size_for, fit, schedule_for
from tov.path.store import StoredPath, clear, finish, open_path, save_step
from tov.path.variants import VARIANTS
from tov.progress import track
from tov.run import Run
from tov.scan.scan import Job, noise_floor, scan_pool
from tov.seeds import derive, generator
from tov.text.encode import Encoded, Encoder

CPU_BATCH_TOKENS, BATCH_TOKENS = 2048, 16_384
"""Tokens in a scan batch where --batch-tokens is not given: what stays in a CPU's cache (docs/speed.md); elsewhere more."""
SCAN_SETTINGS = ("batch_tokens", "shard_rows", "amplify")
"""Settings of a scan, which a new pool's scan takes over from the run."""
NOISE_ROWS = 32
"""Rows on which the noise floor is measured."""


@dataclass(frozen=True)
class Rows:
    """A pool as read: its rows, their hashes, and which may be chosen.

    Attributes:
        pool: the rows.
        index: their hashes.
        excluded: (N,) codes of `tov.data.guard`.
    """

    pool: Pool
    index: Index
    excluded: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """(N,) bool, as far as text alone tells (a row may yet turn out to have no scored token)."""
        return self.excluded == USABLE

    @property
    def excluded_fingerprint(self) -> str:
        """16 hex digits of which rows may not be chosen."""
        return hashlib.sha256(self.excluded.tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Opened:
    """A model with an adapter on it, and what turns rows into its tokens."""

    loaded: Loaded
    adapted: Any
    encode: Encoder


def open_rows(inputs: Sequence[Input], settings: DataSettings) -> Pool:
    """Inputs as one pool, read as the settings say."""
    return open_pool(
        inputs, columns=settings.columns, task=settings.task, label_map=LabelMap.of_settings(settings.label_map or {}),
        repair_bio=settings.repair_bio,
    )  # fmt: skip


def read_target(inputs: Sequence[Input], settings: DataSettings, *, role: str = "target") -> tuple[Pool, Index]:
    """The target (or the test); every row must be usable."""
    target = open_rows(inputs, settings)
    return target, index_rows(target, role=role)


def read_pool(inputs: Sequence[Input], settings: DataSettings, target_prompts: np.ndarray, *, leak_guard: bool) -> Rows:
    """The pool, with leaks, repeats and unreadable rows marked."""
    pool = open_rows(inputs, settings)
    index = index_rows(pool, bad_rows=settings.bad_rows)
    return Rows(pool, index, exclusions(index, target_prompts, leak_guard=leak_guard))


def check_n(n: int, rows: Rows, flag: str = "--n") -> None:
    """Raises DataError, with what was left out and why, if fewer than n rows may be chosen."""
    usable = int(rows.usable.sum())
    if n > usable:
        guarded = np.isin(rows.excluded, (IN_TARGET, DUPLICATE)).any()
        reasons = left_out(rows.excluded, rows.index)
        raise DataError(
            f"{flag} {n:,} rows wanted, but the pool has {usable:,} usable rows of {len(rows.pool):,}"
            + (f"; left out: {reasons}" if reasons else ""),
            fix=f"lower {flag} or add rows"
            + ("; --no-leak-guard allows rows of the target, and repeats" if guarded else ""),
        )


def labels_of(rows: Rows, target: tuple[Pool, Index], settings: DataSettings) -> tuple[str, ...]:
    """What the model's head must tell apart, in order: BIO2 tags or labels; nothing for instruction tuning.

    Raises:
        DataError: target and pool have different labels, or there is but one.
    """
    if rows.pool.task == "instruction":
        return ()
    names = [source.name for source in rows.pool.sources]
    found = agreed_labels(
        target[1].labels, rows.index.labels, names, LabelMap.of_settings(settings.label_map or {}), task=rows.pool.task
    )
    if rows.pool.task == "ner":
        return ("O", *(f"{place}-{kind}" for kind in found for place in "BI"))
    return found


def open_model(settings: PathSettings, labels: tuple[str, ...] = ()) -> Opened:
    """Loads the model, attaches the seeded adapter and checks that its log-loss can be had exactly.

    Args:
        settings: with the task named.
        labels: from `labels_of`.
    """
    assert settings.task
    assert settings.lora_rank
    loaded = load_model(
        settings.model, task=settings.task, labels=labels, dtype=settings.dtype, device=settings.device,
        revision=settings.revision, trust_remote_code=settings.trust_remote_code, seed=derive(settings.seed, "head"),
    )  # fmt: skip
    max_length = _max_length(settings, longest(loaded.model.config, loaded.tokenizer))
    adapted = attach(
        loaded.model, rank=settings.lora_rank, alpha=settings.lora_alpha, dropout=settings.lora_dropout,
        targets=settings.lora_targets, seed=derive(settings.seed, "adapter"), task=settings.task, trained=loaded.head,
    )  # fmt: skip
    if settings.task == "instruction":
        causal = adapted.get_base_model()
        vocabulary = min(1000, head_of(causal).weight.shape[0])
        probe = torch.arange(2 * 16, device=loaded.device).reshape(2, 16) % vocabulary
        with torch.inference_mode():
            check_head(causal, head_of(causal), probe)
    return Opened(loaded, adapted, Encoder(loaded.tokenizer, max_length, loaded.labels))


def open_encoder(settings: PathSettings, labels: tuple[str, ...] = ()) -> Encoder:
    """What turns rows into the model's tokens, as of `open_model`, without the model.

    Args:
        settings: with the task named.
        labels: from `labels_of`.
    """
    here: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    tokenizer = load_tokenizer(settings.model, task=settings.task or "", **here)
    return Encoder(tokenizer, _max_length(settings, longest(load_config(settings.model, **here), tokenizer)), labels)


def _max_length(settings: PathSettings, limit: int | None) -> int:
    if limit and settings.max_length and settings.max_length > limit:
        raise ModelError(
            f"--max-length {settings.max_length} is more than {settings.model} takes",
            allowed=f"at most {limit}",
            fix=f"give --max-length {limit} or less",
        )
    return settings.max_length or min(LARGEST_DEFAULT, limit or LARGEST_DEFAULT)


def fit_stage(
    run: Run, rows: Rows, target: tuple[Pool, Index], settings: PathSettings, opened: Opened, *, quiet: bool
) -> StoredPath:
    """The fitted path of a run, from its folder or anew."""
    if (run.path / "manifest.json").exists():
        return open_path(run.path)
    with run.stage("fit"):
        encoded, lost = encode_target(target[0], opened)
        schedule = schedule_for(settings, base_size_for(settings, int(rows.usable.sum())))
        base_ids, base = draw_rows(rows, schedule.base_size, generator(settings.seed, "base set"), opened)
        if len(base_ids) < schedule.base_size:
            schedule = schedule_for(settings, len(base_ids))
        clear(run.path)
        stored = _fit(run, rows, target[1], settings, opened, schedule, base_ids, base, encoded, quiet=quiet)
    notes = [
        *schedule.notes,
        *([f"{lost:,} target rows have no scored token within --max-length and were left out"] if lost else []),
        *repair_notes(target=target[1], pool=rows.index),
    ]
    run.note(notes=notes)
    return stored


def repair_notes(**indices: Index) -> list[str]:
    """What --repair-bio changed, a line for each of the named indices that it changed."""
    return [
        f"--repair-bio made the tags of {index.repaired:,} {name} rows BIO2"
        for name, index in indices.items()
        if index.repaired
    ]


def _fit(
    run: Run, rows: Rows, target: Index, settings: PathSettings, opened: Opened, schedule: Schedule, base_ids: np.ndarray,
    base: Encoded, encoded: Encoded, *, quiet: bool,
) -> StoredPath:  # fmt: skip
    steps = VARIANTS[settings.variant](schedule.epochs)
    total = sum(len(base) if step.data == "base" else len(encoded) for step in steps)
    with track("fit", total, quiet=quiet) as progress:
        log = fit(
            opened.adapted, base=base, target=encoded, settings=settings, schedule=schedule, progress=progress,
            keep=lambda step, state: save_step(opened.adapted, run.path, step, state),
        )  # fmt: skip
    return finish(run.path, {
        "format": 1,
        "model": settings.model, "model_fingerprint": opened.loaded.fingerprint, "dtype": opened.loaded.dtype,
        "task": settings.task, "labels": list(opened.loaded.labels),
        "max_length": opened.encode.max_length, "epochs": schedule.epochs, "base_size": schedule.base_size,
        "rates": schedule.rates, "settings": settings.of_stage("path"), "log": log,
        "base": {"rows": [int(row) for row in base_ids], "content": hexes(rows.index.content[base_ids])},
        "target": {"rows": len(encoded), "prompt": hexes(target.prompt)},
    })  # fmt: skip


def encode_target(target: Pool, opened: Opened, *, role: str = "target") -> tuple[Encoded, int]:
    """The rows of the target (or the test) that have a scored token, and how many have none."""
    encoded, kept = encode_scored(target, opened.encode, role=role)
    return encoded, len(target) - len(kept)


def encode_scored(target: Pool, encode: Encoder, *, role: str = "target") -> tuple[Encoded, np.ndarray]:
    """The rows of the target (or the test) that have a scored token, and their row_ids.

    Raises:
        DataError: none has.
    """
    encoded = encode(usable_rows(target.rows(0, len(target))))
    kept = np.flatnonzero(encoded.scored_counts > 0)
    if not len(kept):
        raise DataError(
            f"none of the {len(target):,} {role} rows has a scored token within {encode.max_length} tokens",
            fix=f"raise --max-length, or check that the {role}'s answers are not empty",
        )
    return encoded.take(kept), kept


def usable_rows(rows: Iterable[Row | BadRow]) -> list[Row]:
    """Those that could be read."""
    return [row for row in rows if not isinstance(row, BadRow)]


def draw_rows(rows: Rows, size: int, random: np.random.Generator, opened: Opened) -> tuple[np.ndarray, Encoded]:
    """Rows drawn uniformly without repeats from the usable rows that have a scored token; from one seed the fewer are the
    first of the more.

    Returns:
        (size,) row ids in the order drawn, and the rows encoded; fewer only if the pool has no more.
    """
    candidates = random.permutation(np.flatnonzero(rows.usable))
    ids: list[int] = []
    parts: list[Encoded] = []
    for start in range(0, len(candidates), max(size, 1)):
        block = candidates[start : start + size]
        encoded = opened.encode(usable_rows(rows.pool.at(block)))
        good = np.flatnonzero(encoded.scored_counts > 0)[: size - len(ids)]
        ids += block[good].tolist()
        parts.append(encoded.take(good))
        if len(ids) >= size:
            break
    if not ids:
        raise DataError(
            f"no usable pool row has a scored token within {opened.encode.max_length} tokens",
            fix="raise --max-length, or check that the pool's answers are not empty",
        )
    return np.array(ids, np.int64), Encoded.concatenate(parts)


def scan_stage(
    run: Run,
    rows: Rows,
    stored: StoredPath,
    opened: Opened,
    *,
    batch_tokens: int | None,
    shard_rows: int,
    amplify: float,
    quiet: bool,
) -> None:
    """Fills the run's `scores/`."""
    if stored.manifest["model_fingerprint"] != opened.loaded.fingerprint:
        raise ModelError(
            f"the model '{stored.manifest['model']}' is no longer the one that the path was fitted on",
            fix="put the old weights back, or fit again (--force)",
        )
    loaded, base = opened.loaded, unhex(stored.manifest["base"]["content"])
    batch_tokens = batch_tokens or auto_batch_tokens(loaded.device)
    job = Job(
        pool=rows.pool, index=rows.index, excluded=rows.excluded, in_base=np.isin(rows.index.content, base),
        pairs=partial(stored.pairs, amplify), epochs=stored.epochs, encode=opened.encode,
        batch_tokens=batch_tokens, shard_rows=shard_rows,
        fingerprint=digest(
            [stored.fingerprint, rows.index.fingerprint, rows.excluded_fingerprint, batch_tokens, shard_rows, amplify]
        ),
    )  # fmt: skip
    with run.stage("scan"), track("scan", len(rows.pool), quiet=quiet) as progress:
        if "noise_floor" not in run.manifest:
            run.note(noise_floor=_noise(job, opened))
        scan_pool(job, opened.adapted, run.scores, progress, told=lambda tokens: run.spend("scan", tokens))
    run.note(
        scan={"fingerprint": job.fingerprint, "tokens_passed": run.manifest.get("spent", {}).get("scan", [0])[0]},
        path={
            "task": stored.manifest["task"], "fingerprint": stored.fingerprint,
            "epochs": stored.epochs, "base_rows": stored.manifest["base_size"],
            "target_rows": stored.manifest["target"]["rows"], "dtype": loaded.dtype, "device": str(loaded.device),
            "amplify": amplify, "model_fingerprint": loaded.fingerprint,
        },
    )  # fmt: skip


def _noise(job: Job, opened: Opened) -> dict[str, float]:
    picked = np.flatnonzero(job.excluded == USABLE)
    picked = np.sort(generator(0, "noise floor").choice(picked, min(NOISE_ROWS, len(picked)), replace=False))
    encoded = job.encode(usable_rows(job.pool.at(picked)))
    encoded = encoded.take(np.flatnonzero(encoded.scored_counts > 0))
    if not len(encoded):
        return {}
    with scanning(opened.adapted) as set_state:
        model, state = opened.adapted.get_base_model(), next(iter(job.pairs()))[1]
        return noise_floor(model, set_state, encoded, state, batch_tokens=job.batch_tokens)


def auto_batch_tokens(device: torch.device) -> int:
    """Tokens in a batch of forward passes where none were asked for."""
    return CPU_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS


def hexes(hashes: np.ndarray) -> list[str]:
    """Hashes as the score table writes them."""
    return [f"{int(value):016x}" for value in hashes]


def unhex(values: Sequence[str]) -> np.ndarray:
    """The inverse of `hexes`."""
    return np.array([int(value, 16) for value in values], np.uint64)
