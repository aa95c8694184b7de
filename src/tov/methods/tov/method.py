"""Train on Validation: fit the path, scan the pool through it, rank by what the target's epochs gain (Algorithm 1).

`PathMethod` is what ToV shares with the measures that are free in its scan (`tov.methods.uncertainty`): they fit and
scan alike and differ in what they rank by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa

from tov.config.choice import RuleSettings
from tov.data.rows import hexes
from tov.engine.models import Models, ModelSpec, Opened, auto_batch_tokens
from tov.errors import RunError
from tov.inputs.draw import draw_rows
from tov.inputs.read import reading_notes
from tov.methods.base import NOISE_ROWS, Method, PoolStats, Scorer, Stage, TokenGains, column_of
from tov.methods.shared.embeddings import embed_rows
from tov.methods.shared.percentiles import percentiles
from tov.methods.tov.fit import Schedule, base_size_for, fit, schedule_for
from tov.methods.tov.path import StoredPath, base_groups, epochs_again, finish, open_path, save_embeddings, save_step
from tov.methods.tov.scan import MEASURES, NEARNESS, explain_rows, noise_floor, scan_targets
from tov.methods.tov.scoring import normalized
from tov.methods.tov.variants import VARIANTS, same_for_all, shared_base
from tov.methods.work import Work
from tov.model.adapters import State, load, write_state
from tov.model.kernels.joined import scanning
from tov.objects.mirror import local, named
from tov.progress import Progress, counted
from tov.scores.shard import Shard
from tov.scores.table import Columns, column_name, usable_in
from tov.seeds import generator
from tov.text.encode import Encoded

FIT = "fit"
"""The artifact, and the stage, of the fitted path; it lies in the run's own `path/`."""


@dataclass(frozen=True, kw_only=True)
class PathScorer(Scorer):
    """Scans shards with the states of a stored path.

    Attributes:
        path: the folder of the stored path.
        amplify: c of theta_bas + c (theta_val - theta_bas).
        batch_tokens: most tokens in a batch.
    """

    path: str
    amplify: float
    batch_tokens: int

    @contextmanager
    def open(self, models: Models) -> Iterator[Callable[[Shard], Columns]]:
        """As of `Scorer.open`: every measure of `MEASURES`, the mean over epochs under its name, of epoch k under `NAME_k`;
        and the nearness, if the path has the target's embeddings."""
        with self.open_together(models, {"": self}) as score_targets:
            yield lambda shard: score_targets(shard)[""]

    @classmethod
    @contextmanager
    def open_together(
        cls, models: Models, scorers: Mapping[str, Scorer]
    ) -> Iterator[Callable[[Shard], Mapping[str, Columns]]]:
        """As of `Scorer.open_together`; a base state that targets have in common is passed once."""
        paths, ours = dict[str, StoredPath](), cast("Mapping[str, PathScorer]", scorers)
        for name, one in ours.items():
            opened, paths[name] = _opened(models, one.model, one.path)
        first, walks = next(iter(ours.values())), _passes(paths)
        epochs, model = epochs_again(paths, first.amplify), opened.adapted.get_base_model()
        embedded = {name: path.embeddings for name, path in paths.items()}
        near = {name: one for name, one in embedded.items() if one is not None}
        with scanning(opened.adapted) as set_state:

            def score(shard: Shard) -> Mapping[str, Columns]:
                scanned = scan_targets(
                    model, set_state, shard.encoded, epochs(), names=list(scorers), batch_tokens=first.batch_tokens,
                    embedded=near, walks=walks,
                )  # fmt: skip
                return {name: one.columns for name, one in scanned.items()}

            yield score

    @classmethod
    def passes_together(cls, scorers: Sequence[Scorer]) -> tuple[int, int]:
        """A pass a target and epoch, and one for each base state."""
        if len(scorers) == 1:
            return scorers[0].passes
        return _passes(
            {str(place): open_path(local(one.path)) for place, one in enumerate(cast("Sequence[PathScorer]", scorers))}
        ), 0

    def noise_floor(self, models: Models, rows: Encoded) -> dict[str, float]:
        """As of `Scorer.noise_floor`, under the first base state."""
        opened, stored = _opened(models, self.model, self.path)
        model, state = opened.adapted.get_base_model(), stored.state(1, "base")
        with scanning(opened.adapted) as set_state:
            return noise_floor(model, set_state, rows, state, batch_tokens=self.batch_tokens)

    def explain(self, models: Models, rows: Encoded) -> TokenGains:
        """As of `Scorer.explain`: gains under the amplified step; the target rows that `nearness` finds nearest."""
        opened, stored = _opened(models, self.model, self.path)
        with scanning(opened.adapted) as set_state:
            return explain_rows(
                opened.adapted.get_base_model(), set_state, rows, stored.pairs(self.amplify), batch_tokens=self.batch_tokens,
                embedded=stored.embeddings,
            )  # fmt: skip


def _passes(paths: Mapping[str, StoredPath]) -> int:
    return sum(len(paths) + len(groups) for groups in base_groups(paths))


def _opened(models: Models, spec: ModelSpec | None, path: str) -> tuple[Opened, StoredPath]:
    assert spec
    stored = open_path(local(path))
    expected = stored.expected
    opened = models.open(spec, expected)
    expected.check(spec.name, fingerprint=opened.loaded.fingerprint, tokenizer=opened.loaded.tokenizer_fingerprint)
    return opened, stored


class PathMethod(Method):
    """A method that ranks by what a scan with ToV's path measures."""

    needs = "path"
    passes = "2 a scoring epoch, forward"
    uses: ClassVar[frozenset[str]] = frozenset({"path", "clusters"})
    table = "tov"
    rule = "score+random"
    bins = 10
    unit = "nats a token"

    def base_size(self, settings: Any, usable: int) -> int:
        """|U|."""
        return base_size_for(settings, usable)

    def prepare(self, work: Work) -> Scorer:
        """Fits the path, or takes the one that is there."""
        opened, settings = work.open(), work.settings
        schedule = schedule_for(settings, self.base_size(settings, int(work.rows.usable.sum())))
        steps = VARIANTS[settings.path_variant](schedule.epochs)
        total = sum(schedule.base_size if step.data == "base" else len(work.target) for step in steps)
        folder = work.artifact(
            FIT, [work.target.index.fingerprint], opened, lambda folder, progress: _fit(work, opened, folder, progress),
            rows=total, place=work.run.folder / column_name("path", work.name),
        )  # fmt: skip
        stored = open_path(folder)
        for note in stored.manifest["notes"]:
            work.note(note)
        return path_scorer(stored, opened, settings.model_copy(update={"batch_tokens": work.batch_tokens(opened)}))

    def reuse(self, artifacts: Mapping[str, Path], settings: Any, models: Models) -> Scorer | None:
        """The stored path scores any pool."""
        stored = open_path(artifacts[FIT])
        labels = tuple(stored.manifest["labels"])
        opened, _ = _opened(models, ModelSpec.of(settings, labels), str(artifacts[FIT]))
        return path_scorer(stored, opened, settings)

    def shared(self, stats: PoolStats) -> list[Stage]:
        """Base epochs that no target has a part in, and passes with the states that they end in."""
        settings = stats.settings
        schedule = schedule_for(settings, base_size_for(settings, stats.usable))
        steps = VARIANTS[settings.path_variant](schedule.epochs)
        trained = len(shared_base(steps, carry=settings.target_optimizer == "carry")) * stats.drawn(schedule.base_size)
        passed = len(same_for_all(steps))
        return [
            Stage(FIT, trained, trained, 0),
            Stage("scan", passed * stats.tokens, 0, stats.table(0), noise_rows=NOISE_ROWS),
        ]

    def cost(self, stats: PoolStats) -> list[Stage]:
        """The steps of the variant on base set and target, then two passes over the pool an epoch."""
        schedule = schedule_for(stats.settings, base_size_for(stats.settings, stats.usable))
        epochs, base = schedule.epochs, stats.drawn(schedule.base_size)
        trained = sum(
            base if step.data == "base" else stats.target_tokens
            for step in VARIANTS[stats.settings.path_variant](epochs)
        )
        columns = len(MEASURES) * (epochs + 1) + 1
        kept = 2 * epochs * 4 * stats.trained(stats.settings) + 2 * stats.width * stats.target_rows
        return [
            Stage(FIT, trained + stats.target_tokens, trained, kept),
            Stage("scan", 2 * epochs * stats.tokens, 0, stats.table(columns), noise_rows=NOISE_ROWS),
        ]


class Tov(PathMethod):
    """ToV itself."""

    name = "tov"
    summary = "rows whose log-loss falls when the model is fine-tuned on the target"
    uses: ClassVar[frozenset[str]] = frozenset({"path", "gain", "clusters"})
    source = "Jain, Montanari, Sasoglu 2025, arXiv 2510.00386 (ICLR 2026)"
    differs = (
        "the paper leaves open the optimizer, its learning rates and its moments in the target epochs (docs/defaults.md has "
        "our choice); the target's step may be amplified; there are at most 2 scoring epochs"
    )

    def columns(self, settings: RuleSettings, available: Sequence[str]) -> Sequence[str]:
        """F's column, the log-loss where it divides, and what has a weight beside the score."""
        divisor = ("loss_base",) if settings.normalize == "initial-loss" else ()
        return f"score_{settings.transform}", *divisor, *_weights(settings)

    def rank(self, scores: pa.Table, settings: RuleSettings) -> np.ndarray:
        """(N,) the score under the settings' F and normaliser; beside other measures with a weight, a mean of percentiles.

        Percentiles are among the rows that may be chosen by score, so that measures of equal weight have an equal say.
        """
        values = column_of(scores, f"score_{settings.transform}")
        if settings.normalize == "initial-loss":
            values = normalized(values, column_of(scores, "loss_base"))
        weights = _weights(settings)
        if not weights:
            return values
        if NEARNESS in weights and NEARNESS not in scores.column_names:
            raise RunError(
                "--nearness weighs the column nearness, which these scores do not have: their path was fitted by tov 0.1.0.",
                fix="Leave --nearness out, or fit and score again (tov select --force).",
            )
        weighed = [(1 - sum(weights.values()), values), *((weights[name], column_of(scores, name)) for name in weights)]
        free = usable_in(scores) & ~scores["in_base"].to_numpy() & np.isfinite([one for _, one in weighed]).all(0)
        return np.sum([weight * percentiles(one, free) for weight, one in weighed], axis=0)


def _weights(settings: RuleSettings) -> dict[str, float]:
    """Column -> its weight beside the score, of those that have one."""
    return {name: weight for name in (NEARNESS, "uncertainty") if (weight := getattr(settings, name))}


def path_scorer(stored: StoredPath, opened: Opened, settings: Any) -> PathScorer:
    """The scorer of a stored path.

    Args:
        stored: the path.
        opened: the model that it was fitted on.
        settings: of the scan: `amplify`, `batch_tokens`.
    """
    manifest, loaded, amplify = stored.manifest, opened.loaded, float(settings.amplify)
    return PathScorer(
        model=opened.spec, passes=(2 * stored.epochs, 0), key=stored.fingerprint,
        base=tuple(int(value, 16) for value in manifest["base"]["content"]),
        about=f"|U| = {counted(manifest['base_size'], 'base rows')}, M = {counted(manifest['target']['rows'], 'target rows')}, "
        f"L = {stored.epochs} scoring epochs, {loaded.dtype} on {loaded.device}, "
        f"the target's step amplified {amplify:g} times",
        path=named(stored.folder), amplify=amplify,
        batch_tokens=int(settings.batch_tokens or auto_batch_tokens(loaded.device)),
    )  # fmt: skip


def _base_of_others(work: Work, epochs: int) -> dict[str, State]:
    """State's name -> state: those of another target's path of this run that are the same for any target."""
    settings, others = work.settings, work.of_others(FIT)
    steps = VARIANTS[settings.path_variant](epochs)
    same = shared_base(steps, carry=settings.target_optimizer == "carry") if others else set()
    other = open_path(others[0]) if same else None
    return {step.result: other.state(step.epoch, "base") for step in steps if other and step.result in same}


@dataclass(frozen=True)
class Fitting:
    """The files of a path, to be made where the engine makes them (`tov.engine.base.Making`).

    Attributes:
        model: in whose initial state the path begins.
        base: the base rows.
        target: the target rows.
        settings: of the path.
        schedule: its sizes and rates.
        known: states that need not be trained, by name.
        batch_tokens: most tokens in a batch of forward passes.
    """

    model: ModelSpec
    base: Encoded
    target: Encoded
    settings: Any
    schedule: Schedule
    known: Mapping[str, State]
    batch_tokens: int

    def make(self, models: Models, folder: Path, progress: Progress) -> list[dict[str, Any]]:
        """Trains the path and embeds the target; returns the log of `tov.methods.tov.fit.fit`."""
        adapted = models.open(self.model).adapted
        log = fit(
            adapted, base=self.base, target=self.target, settings=self.settings, schedule=self.schedule, progress=progress,
            keep=lambda step, state: save_step(adapted, folder, step, state),
            known=lambda step: self.known.get(step.result),
        )  # fmt: skip
        write_state(adapted, load(folder / "epoch-1" / "base"))
        save_embeddings(folder, embed_rows(adapted, self.target, batch_tokens=self.batch_tokens, half_way=True))
        return log


def _fit(work: Work, opened: Opened, folder: Path, progress: Progress) -> None:
    """Trains the path anew and stores it."""
    settings, rows, index = work.settings, work.rows, work.target.index
    target, _ = work.encode_target(opened.encode)
    schedule = schedule_for(settings, base_size_for(settings, int(rows.usable.sum())))
    base_ids, base = draw_rows(rows, schedule.base_size, generator(settings.seed, "base set"), opened.encode)
    if len(base_ids) < schedule.base_size:
        schedule = schedule_for(settings, len(base_ids))
    known = _base_of_others(work, schedule.epochs)
    fitting = Fitting(work.spec(), base, target, settings, schedule, known, work.batch_tokens(opened))
    log = work.engine.make(fitting, folder, progress)
    lost = len(work.target) - len(target)
    notes = [
        *schedule.notes,
        *([f"{lost:,} target rows have no scored token within --max-length and were left out"] if lost else []),
        *reading_notes(target=work.target, pool=rows),
    ]
    finish(folder, {
        "format": 1,
        "model": settings.model, "model_fingerprint": opened.loaded.fingerprint,
        "tokenizer_fingerprint": opened.loaded.tokenizer_fingerprint, "dtype": opened.loaded.dtype,
        "task": settings.task, "labels": list(opened.loaded.labels),
        "max_length": opened.encode.max_length, "epochs": schedule.epochs, "base_size": schedule.base_size,
        "rates": schedule.rates, "settings": settings.of("fit", named=True), "log": log, "notes": notes,
        "base": {"rows": [int(row) for row in base_ids], "content": hexes(rows.index.content[base_ids])},
        "target": {"rows": len(target), "prompt": hexes(index.prompt)},
    })  # fmt: skip
    trained = sum(entry["tokens"] for entry in log)
    work.spend(FIT, trained + int(target.lengths.sum()), trained)
