"""The one way to a filled score table, for every method: prepare for each target, then score the pool shard by shard by
an engine.

Used by `tov select`, `tov score` and `tov compare`. Must not know any method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tov.config.records import ScanSettings
from tov.engine.base import Engine
from tov.engine.choose import engine_of
from tov.engine.fill import fill
from tov.engine.models import Models, ModelSpec
from tov.errors import NumericError, RunError
from tov.files import digest
from tov.inputs.read import Indexed, PoolRows, label_map_notes, reading_notes, usable_rows
from tov.methods.base import NOISE_ROWS, Method, Scorer
from tov.methods.clusters import records_of, split_target
from tov.methods.costs import clusters_asked
from tov.methods.shared.options import LoraOptions
from tov.methods.spec import Variant, dumped, kind_of_table, read_by
from tov.methods.work import Work, recorded_in
from tov.model.load import tokenizer_fingerprint
from tov.progress import track
from tov.runs.folder import Run
from tov.runs.manifest import ModelRecord, ScoringRecord
from tov.scores.shard import Shard, ShardReader
from tov.scores.store import ShardStore, columns_in
from tov.scores.table import DEFAULT_TARGET, FIXED, Columns, column_name, shard_table
from tov.seeds import generator
from tov.text.encode import Encoder

SCAN = "scan"
"""The stage in which the pool is scored."""


@dataclass(frozen=True)
class Prepared:
    """A pool, and for each target what scores it.

    Attributes:
        run: whose `scores/` is filled.
        rows: the pool.
        settings: of the run.
        method: that prepared the scorers.
        options: the method's own, resolved.
        labels: of a classifier.
        scorers: target's name -> scorer.
        made_from: what the scores depend on beside the pool and what the scorers say.
    """

    run: Run
    rows: PoolRows
    settings: Any
    method: Method
    options: Any
    labels: tuple[str, ...]
    scorers: Mapping[str, Scorer]
    made_from: Any


def score_pool(
    run: Run, rows: PoolRows, target: Indexed, settings: Any, variant: Variant, *, n: int,
    labels: tuple[str, ...], models: Models | None = None, artifacts: Path | None = None, quiet: bool = False,
    sample: PoolRows | None = None,
) -> None:  # fmt: skip
    """Fills the score table of a run by a method.

    Args:
        run: whose `scores/` is filled, and whose manifest takes notes.
        rows: the pool.
        target: its rows; of several targets those of all, and the columns of each are its own.
        settings: of the run, with the task named.
        variant: the method and its options.
        n: the most rows that are to be chosen.
        labels: of a classifier.
        models: keeps the model for what comes after; by default it is let go.
        artifacts: folder of artifacts that may be shared with other tables; by default `artifacts/` in the run's own.
        quiet: no progress.
        sample: the rows of the pool that are scored; by default all. What is trained before is trained as for all.

    Raises:
        TovError: as the method says.
    """
    with _in_its_words(variant), ExitStack() as stack:
        models = models or stack.enter_context(closing(Models()))
        engine, options = engine_of(settings, models), variant.method.resolve(variant.options, n)
        work = Work(
            run=run, name=DEFAULT_TARGET, rows=rows, target=target, settings=settings, method=variant.method, options=options,
            labels=labels, artifacts=artifacts or run.folder / "artifacts", models=models, engine=engine, quiet=quiet,
            sample=sample,
        )  # fmt: skip
        clusters = clusters_asked(variant.method, settings)
        targets = split_target(work, clusters)
        work = replace(work, alone=len(targets) == 1 and not clusters)
        scorers = {name: variant.method.prepare(work.of(name, one)) for name, one in targets.items()}
        run.note(targets=records_of(run, targets))
        made_from = [
            {name: one.index.fingerprint for name, one in targets.items()},
            read_by(settings, variant.method, "fit", "scan"),
            sorted(path.name for path in run.artifacts.values()),
        ]
        prepared = Prepared(run, sample or rows, settings, variant.method, options, labels, scorers, made_from)
        fill_table(prepared, models, engine, quiet=quiet)
        for one in targets.values():  # what is said of one is of all: they were read together
            for note in reading_notes(target=one, pool=rows):
                run.note_line(note)
        for note in label_map_notes(settings, target=target, pool=rows):
            run.note_line(note)
        run.note(cost=_cost(run))


def fill_table(prepared: Prepared, models: Models, engine: Engine, *, quiet: bool = False) -> None:
    """Scores every shard that is not there yet, and notes what the table is.

    Raises:
        RunError: a shard was made from something else.
        TovError: as the scorers say.
    """
    run, scorers = prepared.run, prepared.scorers
    encode, model = _encoder_and_model(prepared, models)
    rows, margin = prepared.rows, read_by(prepared.settings, prepared.method, "scan").get("score") == "margin"
    reader = ShardReader(
        rows.pool, rows.index, rows.excluded, encode, prepared.settings.shard_rows, rows.skip, pairs=margin
    )  # fmt: skip
    made_from = {
        "columns": FIXED,
        "method": kind_of_table(prepared.method),
        "options": dumped(prepared.options),
        "from": prepared.made_from,
        "keys": {name: scorer.key for name, scorer in scorers.items()},
        "pool": [prepared.rows.index.fingerprint, prepared.rows.excluded_fingerprint, reader.shard_rows],
        "model": model,
    }
    # Not `run.scores`: where a manifest says that scores are is never written to.
    store = ShardStore(run.folder / "scores", digest(made_from))
    base = np.array(sorted({one for scorer in scorers.values() for one in scorer.base}), np.uint64)
    passes = type(next(iter(scorers.values()))).passes_together(list(scorers.values()))

    def passed(shard: Shard) -> int:
        run.spend(SCAN, passes[0] * shard.tokens, passes[1] * shard.tokens)
        for kind in shard.encoded.left_out_kinds():
            run.note_line(
                f"in some pool rows the model's chat template leaves out: {kind} (`tov plan` says in how many)"
            )
        if rows.skip and not shard.encoded.lengths.all():
            run.note_line("pool rows that the model's chat template refuses have no scored token")
        return passes[0] * shard.tokens

    def not_scored(shard: Shard, why: str) -> pa.Table:
        if not any(store.folder.glob("*.parquet")):
            raise RunError(
                f"No shard of the pool could be scored: {why}.", fix="Mend that, and give the command again."
            )
        names = [name for name in columns_in(store.folder) if name not in FIXED]
        return shard_table(reader, shard, {name: np.full(len(shard.rows), np.nan) for name in names}, base, why)

    of_all = _AllTargets(dict(scorers))
    scorer = _Margin(of_all) if margin else of_all
    with run.stage(SCAN), track(SCAN, len(reader.pool), quiet=quiet) as progress:
        noise = run.manifest.scoring.noise_floor if run.manifest.scoring else None
        if noise is None:
            noise = _noise_floor(reader, scorers, models)
        run.note(scoring=_record(prepared, store.fingerprint, noise))
        fill(
            store, reader, scorer, lambda shard, columns: shard_table(reader, shard, columns, base),
            engine, progress=progress, passed=passed,
            given_up=not_scored if getattr(prepared.settings, "on_bad_row", "") == "quarantine" else None,
        )  # fmt: skip
    run.note(scoring=_record(prepared, store.fingerprint, noise, complete=True))
    if run.manifest.model is None:
        run.note(model=_model_without_weights(prepared, encode.max_length))


def _encoder_and_model(prepared: Prepared, models: Models) -> tuple[Encoder, list[Any]]:
    """What makes tokens, and what scores depend on of model and batches. Holds no model, so that an engine can let it go."""
    spec = next(iter(prepared.scorers.values())).model
    if spec is None:
        encode = ModelSpec.of(prepared.settings, prepared.labels).encoder()
        return encode, [tokenizer_fingerprint(encode.tokenizer), encode.max_length]
    opened = models.open(spec)
    return opened.encode, [*opened.fingerprint, prepared.settings.batch_tokens or recorded_in(prepared.run)]


@dataclass(frozen=True)
class _AllTargets:
    """Every target's columns of a shard.

    Attributes:
        scorers: target's name -> scorer.
    """

    scorers: dict[str, Scorer]

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], Columns]]:
        first, *others = self.scorers.items()
        if not others:
            with first[1].open(models) as score_shard:
                yield lambda shard: _named(score_shard(shard), first[0])
            return
        with type(first[1]).open_together(models, self.scorers) as score_targets:
            yield lambda shard: {
                name: values
                for target, columns in score_targets(shard).items()
                for name, values in _named(columns, target).items()
            }


@dataclass(frozen=True)
class _Margin:
    """How much more the chosen answers gain than the rejected ones; what is no score is the chosen answers'.

    Attributes:
        of: scores rows.
    """

    of: _AllTargets

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], Columns]]:
        with self.of.open(models) as score_shard:

            def score(shard: Shard) -> Columns:
                assert shard.rejected
                chosen, rejected = score_shard(shard), score_shard(shard.rejected)
                return {
                    name: values - rejected[name] if name.startswith("score_") else values
                    for name, values in chosen.items()
                }

            yield score


def _named(columns: Columns, target: str) -> dict[str, np.ndarray]:
    return {column_name(name, target): values for name, values in columns.items()}


def _noise_floor(reader: ShardReader, scorers: Mapping[str, Scorer], models: Models) -> dict[str, float]:
    """Of the first target's scorer: the floor is the model's, not the target's."""
    scorer = next(iter(scorers.values()))
    if type(scorer).noise_floor is Scorer.noise_floor:
        return {}
    usable = np.flatnonzero(reader.excluded == 0)
    picked = np.sort(generator(0, "noise floor").choice(usable, min(NOISE_ROWS, len(usable)), replace=False))
    encoded = reader.encoded(usable_rows(reader.pool.at(picked)), picked)
    encoded = encoded.take(np.flatnonzero(encoded.scored_counts > 0))
    return scorer.noise_floor(models, encoded) if len(encoded) else {}


def _record(prepared: Prepared, fingerprint: str, noise: dict[str, float], *, complete: bool = False) -> ScoringRecord:
    scan = {name: getattr(prepared.settings, name) for name in ScanSettings.model_fields}
    return ScoringRecord(
        method=prepared.method.name, options=dumped(prepared.options),
        settings=scan, fingerprint=fingerprint, unit=prepared.method.unit,
        about=_about(prepared.scorers),
        noise_floor=noise, rows=len(prepared.rows.pool), complete=complete,
        tokens_passed=prepared.run.manifest.spent.get(SCAN, (0, 0))[0],
    )  # fmt: skip


def _about(scorers: Mapping[str, Scorer]) -> str:
    """What the scores were made with; what is true of several targets is said once."""
    names = dict[str, list[str]]()
    for name, scorer in scorers.items():
        names.setdefault(scorer.about, []).append(name)
    if len(names) == 1:
        return next(iter(names)) + (f" (each of {', '.join(scorers)})" if len(scorers) > 1 else "")
    return "; ".join(f"{', '.join(mine)}: {about}" for about, mine in names.items())


def _model_without_weights(prepared: Prepared, max_length: int) -> ModelRecord:
    settings = prepared.settings
    return ModelRecord(
        name=settings.model, task=settings.task, labels=list(prepared.labels), max_length=max_length,
        settings=settings.of("fit", named=True),
    )  # fmt: skip


@contextmanager
def _in_its_words(variant: Variant) -> Iterator[None]:
    """Advice on a training's settings, in the words of a method that has its own."""
    try:
        yield
    except NumericError as error:
        fix = error.fix
        for name in ("learning_rate", *LoraOptions.model_fields):
            if hasattr(variant.options, name):
                fix = fix.replace(f"--{name.replace('_', '-')}", f"{variant.method.name}/{name}")
        raise NumericError(error.problem, allowed=error.allowed, fix=fix) from None


def _cost(run: Run) -> dict[str, Any]:
    """Seconds, tokens and bytes that a filled table took, with its artifacts."""
    folders = [run.scores, *run.artifacts.values()]
    files = [file.stat() for folder in folders for file in folder.rglob("*") if file.is_file()]
    spent = list(run.manifest.spent.values())
    return {
        "seconds": round(sum(run.manifest.timings.values()), 3),
        "tokens_forward": sum(tokens[0] for tokens in spent),
        "tokens_backward": sum(tokens[1] for tokens in spent),
        "bytes": sum({(one.st_dev, one.st_ino): one.st_size for one in files}.values()),  # a file of two names is one
    }
