"""The contract of a method: how it scores the rows of a pool for a target, and what it says of itself.

A method is one subclass of `Method` in one file: its options, what it reads, what it costs, how it prepares, what
scores a shard, and what rows are ranked by. Everything else (files, resume, engines, rules, comparison, plan,
documents) reads this contract and knows no method. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from tov.config.choice import Rule, RuleSettings
from tov.config.settings import Settings
from tov.errors import ConfigError, RunError
from tov.selection.choose import Best

if TYPE_CHECKING:
    from tov.engine.models import Models, ModelSpec
    from tov.inputs.read import Indexed
    from tov.methods.work import Work
    from tov.scores.shard import Shard
    from tov.scores.table import Columns
    from tov.text.encode import Encoded

Need = Literal["path", "forward", "gradients", "embeddings", "text", "pilots"]
NEEDS = {
    "path": "a path fitted on pool and target, forward passes over the pool",
    "forward": "forward passes over the pool",
    "gradients": "forward and backward passes over the pool",
    "embeddings": "hidden states of the pool's rows",
    "text": "the pool's text, no model",
    "pilots": "pilot trainings on rows of a part of the pool, then what the method taken needs",
}
READ_A_MODEL = frozenset({"path", "forward", "gradients", "embeddings"})
"""Needs of methods whose scores are a model's."""
NOISE_ROWS = 32
"""Rows on which the noise floor is measured."""
CLUSTERS = "clusters"
"""The artifact, and the stage, of a target that is split (`tov.methods.clusters`)."""
LEAST_ROWS = 8
"""Rows that a cluster of a target has at least."""
FIXED_BYTES, COLUMN_BYTES = 14, 5
"""Bytes that a row of the score table takes on disk at most: the hash and its like, and a score (measured: 3.6)."""


@dataclass(frozen=True)
class PoolStats:
    """What is known of a run before it is made, for `Method.cost`.

    Attributes:
        settings: of the run, with the task named.
        options: the method's own, or None.
        rows: rows of the pool, also those that may not be chosen.
        usable: rows of the pool that may be chosen, as far as text tells.
        scored: of those, the rows that have a scored token.
        tokens: of the scored rows together.
        target_rows: rows of the target that have a scored token.
        target_tokens: of those together.
        width: of the model's hidden states.
        trained: how many parameters are trained under the LoRA settings of a record (`settings`, or the method's options), a
            new head's among them.
        targets: of several targets, rows and tokens of each; `cost_of` asks about one after the other.
    """

    settings: Any
    options: Any
    rows: int
    usable: int
    scored: float
    tokens: float
    target_rows: int
    target_tokens: int
    width: int
    trained: Callable[[Any], int]
    targets: tuple[tuple[int, int], ...] = ()

    def drawn(self, rows: int) -> float:
        """Tokens of so many scored rows drawn at random."""
        return rows * self.tokens / max(self.scored, 1)

    def table(self, columns: int) -> float:
        """Bytes of the score table with so many columns of scores."""
        return self.rows * (FIXED_BYTES + columns * COLUMN_BYTES)


@dataclass(frozen=True)
class Stage:
    """A stage of a run, named as in its manifest.

    Attributes:
        name: of the stage.
        forward: tokens that pass the model forward, padding not counted.
        backward: of those, the ones that also pass backward.
        kept: bytes that stay on disk; None where nobody knows.
        noise_rows: rows on which the noise floor is measured too (`Scorer.noise_floor`); their tokens are not counted.
        by_row: whether what passes backward gives each row's gradient for itself, which takes longer than a training step.
    """

    name: str
    forward: float = 0
    backward: float = 0
    kept: float | None = 0
    by_row: bool = False
    noise_rows: int = 0


@dataclass(frozen=True)
class TokenGains:
    """What a scorer says of single tokens: S scored ones of some rows, row by row.

    Attributes:
        loss: (S,) log-loss in nats before the target's step.
        gain: (S,) by how much that step lowers it, in nats.
        nearest: (rows, k) numbers of the target rows that a row is nearest to, nearest first; None where nothing was compared.
        cosines: (rows, k) of those.
    """

    loss: np.ndarray
    gain: np.ndarray
    nearest: np.ndarray | None = None
    cosines: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """What a prepared method gives: a description that any process can open, and that then scores shards.

    A subclass is a frozen dataclass of settings, small numbers and folders of finished artifacts, and overrides `open`.
    It must be picklable: an engine sends it to its workers.

    Attributes:
        model: the model that it opens; None for a method that needs none.
        passes: how often a row's tokens go through the model for its scores, forward and backward.
        key: what the scores depend on beside model, settings, options, pool, target and artifacts.
        base: uint64 content hashes of the base set U: rows that were trained on and are not taken by score.
        about: a sentence on what the scores were made with, for the report.
    """

    model: ModelSpec | None = None
    passes: tuple[int, int] = (0, 0)
    key: Any = None
    base: tuple[int, ...] = ()
    about: str = ""

    def open(self, models: Models) -> AbstractContextManager[Callable[[Shard], Columns]]:
        """A block in which shards are scored: what is needed is read once a process. Yields the function from a shard
        to columns.

        Write it as a generator under `contextlib.contextmanager`. The function returns `{column: (rows,) float}` for
        `shard.rows`, NaN for a row without a score; larger is better where the column is a score. It may be called with
        shards in any order, and must give the same numbers in every process.
        """
        raise NotImplementedError

    @classmethod
    @contextmanager
    def open_together(
        cls, models: Models, scorers: Mapping[str, Scorer]
    ) -> Iterator[Callable[[Shard], Mapping[str, Columns]]]:
        """Likewise for several targets: a function from a shard to each target's columns.

        One after another, each opened for itself, as they share the model. Override it, and `passes_together`, where targets
        share passes.

        Args:
            models: of this process.
            scorers: target's name -> its scorer; all of this class.
        """

        def score(shard: Shard) -> Mapping[str, Columns]:
            columns = {}
            for name, scorer in scorers.items():
                with scorer.open(models) as score_shard:
                    columns[name] = score_shard(shard)
            return columns

        yield score

    @classmethod
    def passes_together(cls, scorers: Sequence[Scorer]) -> tuple[int, int]:
        """How often a row's tokens go through the model for all of these, forward and backward."""
        return sum(one.passes[0] for one in scorers), sum(one.passes[1] for one in scorers)

    def noise_floor(self, models: Models, rows: Encoded) -> dict[str, float]:
        """What rounding alone does to this method's log-losses, in nats; empty for a method that compares none.

        Args:
            models: of this process.
            rows: some rows of the pool, each with a scored token.
        """
        return {}

    def explain(self, models: Models, rows: Encoded) -> TokenGains | None:
        """What each scored token gains, for a reader who asks why; None for a method that says nothing of tokens.

        Args:
            models: of this process.
            rows: some rows, each with a scored token.
        """
        return None


class Method:
    """A way to choose rows.

    Subclass it, say what is true of the method in the attributes, and implement `prepare`. Override `rank` where rows are not
    ranked by the column `score_NAME`, `cost` so that `tov plan` can tell what a run takes, and `by_target` if there is
    a score for each target row.

    Attributes:
        name: as `--method` and `--methods` call it.
        summary: one phrase: which rows it chooses.
        takes: its rows in a comparison: the best by `rank`, any at random, all, none (no training), or what
            pilots decide for.
        needs: what it makes of the pool, a word of `NEEDS`.
        passes: how often the pool passes the model, and which way, in words.
        stored: bytes that it keeps on disk a pool row, beside the score table's, in words.
        options: the record of its own options; None where it has none.
        uses: groups of settings of the run that it reads beside those that every method does (`tov.config.settings.Declared`).
        table: the kind of score table that it ranks; methods of one kind rank each other's. By default its own name.
        rule: its default rule.
        bins: its default number of length bins.
        of_pool: whether a row's score depends on the other rows of the pool, so that a sample cannot be scored by itself.
        round_robin: whether it has a score for each target row or sub-task, and so `by_target`.
        unit: what its score is measured in.
        source: citation.
        differs: where we leave the source.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    takes: ClassVar[Literal["best", "random", "all", "none", "pilots"]] = "best"
    needs: ClassVar[Need | None] = None
    passes: ClassVar[str] = ""
    stored: ClassVar[str] = ""
    options: ClassVar[type[Settings] | None] = None
    uses: ClassVar[frozenset[str]] = frozenset()
    table: ClassVar[str] = ""
    rule: ClassVar[Rule] = "score-only"
    bins: ClassVar[int] = 1
    of_pool: ClassVar[bool] = False
    round_robin: ClassVar[bool] = False
    unit: ClassVar[str] = ""
    source: ClassVar[str] = ""
    differs: ClassVar[str] = ""

    @property
    def column(self) -> str:
        """The column that rows are ranked by."""
        return f"score_{self.name.replace('-', '_')}"

    @property
    def reads(self) -> frozenset[str]:
        """Groups of settings of the run that it reads: `uses`, and `model` where its scores are a model's."""
        return self.uses | ({"model"} if self.needs in READ_A_MODEL else frozenset())

    @property
    def ranks(self) -> bool:
        """Whether `tov select` can choose by it: it scores rows, or decides what does."""
        return self.takes in ("best", "random", "pilots")

    def resolve(self, options: Any, n: int) -> Any:
        """The options, with those left open that depend on how many rows are to be chosen."""
        return options

    def check(self, options: Any, settings: Any, target: Indexed) -> None:
        """Raises, before anything is scored, where options, settings and target do not go together.

        Raises:
            TovError: says which, and what to do.
        """

    def check_turns(self, options: Any, target: Indexed) -> None:
        """Raises, before anything is scored, where a run's only target has no lists that could take turns (round-robin).

        Raises:
            TovError: says why, and what to do.
        """

    def base_size(self, settings: Any, usable: int) -> int:
        """Rows of the base set, which are not taken by score, out of so many usable ones."""
        return 0

    def cost(self, stats: PoolStats) -> list[Stage] | None:
        """The stages of a run: tokens forward and backward, bytes kept. None where it cannot be told."""
        return None

    def shared(self, stats: PoolStats) -> list[Stage]:
        """What of `cost` each further target of a run is spared, as it shares it with the first one."""
        return [Stage("scan", kept=stats.table(0))]

    def prepare(self, work: Work) -> Scorer:
        """Does what comes before scoring (fits, warms up, embeds), as artifacts that outlive a kill, and describes the scorer.

        Called again after a kill, it finds finished artifacts and ends with an equal scorer.

        Args:
            work: pool, target, settings, options, the model on demand, artifacts (`tov.methods.work.Work`).

        Raises:
            TovError: says what to do.
        """
        raise NotImplementedError

    def reuse(self, artifacts: Mapping[str, Path], settings: Any, models: Models) -> Scorer | None:
        """A scorer of another pool from what `prepare` has left for this one; None where that is of no use for another pool.

        Args:
            artifacts: name -> folder.
            settings: of the run that prepared, with those of the new scan.
            models: opens the model.

        Raises:
            TovError: an artifact or the model is not what it was.
        """
        return None

    def columns(self, settings: RuleSettings, available: Sequence[str]) -> Sequence[str]:
        """The columns that `rank` and `by_target` read; unless a method says so, all where one of the two is its own.

        Args:
            settings: of the choice.
            available: the measures that the table has.
        """
        kind = type(self)
        return (self.column,) if (kind.rank, kind.by_target) == (Method.rank, Method.by_target) else available

    def rank(self, scores: pa.Table, settings: RuleSettings) -> np.ndarray:
        """(N,) float64 that rows are ranked by, larger is better, NaN for none.

        Args:
            scores: one target's score table.
            settings: of the choice.
        """
        return column_of(scores, self.column)

    def by_target(self, scores: pa.Table, artifacts: Mapping[str, Path], options: Mapping[str, Any]) -> Best | None:
        """Each target row's (or sub-task's) best rows, for the rule round-robin; only where `round_robin` is true.

        None where the target has no such lists: among several targets it takes turns as a whole.

        Args:
            scores: one target's score table.
            artifacts: name -> folder of what `prepare` has left.
            options: the method's own, as the manifest has them.
        """
        raise NotImplementedError


def no_turns() -> ConfigError:
    """What a target alone is told that has but one list of rows."""
    return ConfigError(
        "The rule round-robin needs several sub-tasks, but the target has only one.",
        fix="Name a column of sub-tasks, less/subtask_column=COLUMN, or use score-only.",
    )


def column_of(scores: pa.Table, name: str) -> np.ndarray:
    """(N,) float64 of a column of the score table.

    Raises:
        RunError: it is not there.
    """
    if name not in scores.column_names:
        raise RunError(f"The scores have no column {name}.", fix="Give the command that scores again, with --force.")
    return scores[name].to_numpy().astype(np.float64)
