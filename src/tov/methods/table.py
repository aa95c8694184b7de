"""The table of methods: one row each, and all that commands, comparison and documents say of a method is read off its row.

A third party adds a row by an entry point of the group `tov.methods`, whose name is the method's and whose value is a `Method`.
Imports nothing heavy: the function that fills a score table is named, and imported when it is first called.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from tov.config import Rule, RuleSettings
from tov.errors import ConfigError, did_you_mean
from tov.methods.rankings import Ranking, column, end_state, gain
from tov.methods.settings import (
    DsirSettings,
    EmbeddingSettings,
    LessSettings,
    TargetPathSettings,
    TracinSettings,
    TsdsSettings,
)
from tov.settings import Settings

GROUP = "tov.methods"
"""Entry points that are methods."""
PATH = "tov.tables.path:fill"
"""The function that fits ToV's path and scans the pool with it."""
Need = Literal["path", "forward", "gradients", "embeddings", "text"]
NEEDS = {
    "path": "a path fitted on pool and target, forward passes over the pool",
    "forward": "forward passes over the pool",
    "gradients": "forward and backward passes over the pool",
    "embeddings": "hidden states of the pool's rows",
    "text": "the pool's text, no model",
}
Best = Callable[[int, np.ndarray], tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]
"""(k, (N,) bool usable) -> for each target row (or sub-task) the row_ids and scores of its k best usable rows, best first."""


@dataclass(frozen=True)
class Method:
    """A way to choose rows.

    Attributes:
        name: as `--method` and `--methods` call it.
        summary: one phrase.
        takes: its rows: the best by `ranking`, any at random, all, or none (no training).
        needs: what it makes of the pool, a word of `NEEDS`.
        passes: how often the pool passes, and which way.
        stored: bytes that it keeps on disk a pool row, beside the score table's.
        function: `module:name` of a function, or a function, that fills the score table; it is given a `tov.tables.work.Work`.
        ranking: (N,) numbers from a score table, larger is better, NaN for none; a column's name stands for the column.
        candidates: `module:name` of a function, or a function, from (run folder, score table) to `Best`: what the rule
            round-robin goes by; None where a row has but one score.
        ahead: `module:name` of a function, or a function, from `tov.tables.ahead.Facts` to the stages of a run, for `tov plan`;
            None where it cannot say.
        check: `module:name` of a function, or a function, that raises, before anything is scored, where its own options, the
            settings and the target do not go together; None where nothing can be wrong.
        settings: its own options; None where it has none (those of the path's methods are settings of the run).
        options: settings of the run that change it.
        rule: its default rule.
        bins: its default number of length bins.
        unit: what its score is measured in.
        source: citation.
        differs: where we leave the source.
    """

    name: str
    summary: str
    takes: Literal["best", "random", "all", "none"] = "best"
    needs: Need | None = None
    passes: str = ""
    stored: str = ""
    function: str | Callable[[Any], None] = ""
    ranking: Ranking | str | None = None
    candidates: str | Callable[[Path, pa.Table], Best] | None = None
    ahead: str | Callable[[Any], Any] | None = None
    check: str | Callable[[Any, Any, Any], None] | None = None
    settings: type[Settings] | None = None
    options: tuple[str, ...] = ()
    rule: Rule = "score-only"
    bins: int = 1
    unit: str = ""
    source: str = ""
    differs: str = ""

    @property
    def of_path(self) -> bool:
        """Whether it ranks by what ToV's scan measures."""
        return self.function == PATH

    def rank(self, scores: pa.Table, settings: RuleSettings) -> np.ndarray:
        """(N,) float64 larger is better, NaN for none."""
        ranking = column(self.ranking) if isinstance(self.ranking, str) else self.ranking
        assert ranking
        return ranking(scores, settings)


def imported(named: str | Callable[..., Any], what: str) -> Callable[..., Any]:
    """A function by `module:name`; a function as it is.

    Raises:
        ConfigError: there is none.
    """
    if callable(named):
        return named
    module, _, name = named.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{what} names the function '{named}', which cannot be imported: {error}") from error
    return found


_PATH_PASSES, _SOURCE = "2 a scoring epoch, forward", "Jain, Montanari, Sasoglu 2025, arXiv 2510.00386"
_END: dict[str, Any] = {
    "needs": "path", "passes": _PATH_PASSES, "function": PATH, "ahead": "tov.tables.path:ahead", "rule": "score+random",
    "bins": 10,
}  # fmt: skip
_GRADIENTS: dict[str, Any] = {
    "needs": "gradients", "passes": "1 a checkpoint (4), forward and backward",
    "stored": "0 (once, 12 bytes a trained parameter and checkpoint)", "ahead": "tov.tables.gradients:ahead",
}  # fmt: skip
_EMBEDDED: dict[str, Any] = {
    "needs": "embeddings", "passes": "1, forward", "stored": "2 bytes x the model's width (SmolLM2-135M: 1,152)",
    "candidates": "tov.tables.embeddings:candidates", "ahead": "tov.tables.embeddings:ahead",
    "check": "tov.tables.embeddings:check",
}  # fmt: skip
BUILT_IN: tuple[Method, ...] = (
    Method(
        "tov", "rows whose log-loss falls when the model is tuned on the target", ranking=gain,
        options=("transform", "normalize"), unit="nats a token", source=f"{_SOURCE} (ICLR 2026)",
        differs="optimizer, rates and the moments of the target epoch are not in the paper: docs/defaults.md; the target's "
        "step may be amplified; at most 4 scoring epochs", **_END,
    ),
    Method(
        "less", "rows whose Adam step points the way of the target's gradient", function="tov.tables.gradients:less",
        check="tov.tables.gradients:check", ranking="score_less",
        candidates="tov.tables.gradients:by_subtask", settings=LessSettings, unit="cosine",
        source="Xia et al. 2024, arXiv 2402.04333",
        differs="cosines of whole gradients by default (projection=rademacher: the authors' 8,192 dimensions); gradients in "
        "batches; adapter and moments in fp32; gradients are stored only if asked for (store=FOLDER: 2 bytes x DIMENSION a row "
        "and checkpoint); a new head has a higher rate and smaller batches; "
        "warm-up rows may be chosen, as with the authors",
        **_GRADIENTS,
    ),
    Method(
        "tracin", "rows whose gradient step lowers the target's log-loss, to first order",
        function="tov.tables.gradients:tracin", ranking="score_tracin", settings=TracinSettings,
        unit="nats a token", source="Pruthi et al. 2020, arXiv 2002.08484",
        differs="the mean over the target's rows, not the sum; gradients of an adapter; LESS's warm-up gives the checkpoints",
        **_GRADIENTS,
    ),
    Method(
        "dsir", "rows whose words and word pairs are likelier in the target than in the pool", needs="text",
        passes="2, of text", function="tov.tables.text:dsir", ahead="tov.tables.text:ahead", ranking="score_dsir",
        settings=DsirSettings, rule="sample", unit="nats (log importance weight)", source="Xie et al. 2023, arXiv 2302.03169",
        differs="short rows are kept (min_tokens=100 is the authors'); pool counts are of the whole usable pool; bigrams are "
        "hashed otherwise (hashing=sha256 is the authors')",
    ),
    Method(
        "tsds", "rows near the target by optimal transport, fewer of what repeats itself",
        function="tov.tables.embeddings:tsds", ranking="score_tsds", settings=TsdsSettings, rule="sample",
        unit="nats (log probability)", source="Liu et al. 2024, arXiv 2410.11303",
        differs="search is exact; drawn without repeats; sigma is measured on the pool (sigma=0.75 is the authors'); as many "
        "rows as are to be chosen have a probability; embeddings are those of the model being tuned, as of rds", **_EMBEDDED,
    ),
    Method(
        "rds", "RDS+: rows near a target row in the model's own hidden states", function="tov.tables.embeddings:rds",
        ranking="score_rds", settings=EmbeddingSettings, rule="round-robin", unit="cosine",
        source="Ivison et al. 2025, arXiv 2503.01807",
        differs="embeddings are of the rows as the model is given them, special tokens included", **_EMBEDDED,
    ),
    Method(
        "target-path", "rows whose log-loss falls, in proportion, along a short training on the target alone", needs="forward",
        passes="2, forward", function="tov.tables.target_path:fill", ahead="tov.tables.target_path:ahead",
        ranking="score_target_path", settings=TargetPathSettings, unit="share of the log-loss",
        source="target path (TACS), arXiv 2605.09404",
        differs="depth by a rule of ours, rate constant: the authors' choice of depth is not in the texts that we follow",
    ),
    Method(
        "uncertainty", "rows of which the base state is least sure: mean log[p (1 - p)]", ranking=end_state("uncertainty"),
        unit="nats a token", source="max-uncertainty of arXiv 2510.00386", **_END,
    ),
    Method(
        "highest-loss", "rows of the highest log-loss under the base state", ranking=end_state("loss_base"),
        unit="nats a token", **_END,
    ),
    Method(
        "lowest-loss", "rows of the lowest log-loss under the base state", ranking=end_state("loss_base", sign=-1.0),
        unit="nats a token", **_END,
    ),
    Method("random", "rows drawn uniformly", "random"),
    Method("full", "every usable row of the pool", "all"),
    Method("zero-shot", "no training", "none"),
)  # fmt: skip
METHODS = {method.name: method for method in BUILT_IN}
"""Name -> method, of those in the box."""


def plug_ins() -> dict[str, importlib.metadata.EntryPoint]:
    """Name -> entry point, of those that other packages bring; none is loaded."""
    return {one.name: one for one in importlib.metadata.entry_points(group=GROUP)}


def find_method(name: str, *, flag: str = "--methods") -> Method:
    """The method of this name.

    Args:
        name: of the box or of a plug-in.
        flag: where it was named.

    Raises:
        ConfigError: there is none, or its plug-in is broken.
    """
    others = plug_ins()
    if name in others:
        return load_plug_in(others[name])
    if name not in METHODS:
        known = [*METHODS, *others]
        raise ConfigError(f"{flag}: no method '{name}'{did_you_mean(name, known)}", allowed=", ".join(known))
    return METHODS[name]


def load_plug_in(entry: importlib.metadata.EntryPoint) -> Method:
    """A method that another package brings.

    Raises:
        ConfigError: it cannot be imported, is no usable row of the table, or has the name of another.
    """
    package = entry.dist.name if entry.dist else "an unknown package"
    what, fix = f"the method '{entry.name}' of the package {package}", f"update or uninstall {package}"
    try:
        found = entry.load()
    except Exception as error:
        raise ConfigError(f"{what} cannot be imported: {type(error).__name__}: {error}", fix=fix) from error
    if not isinstance(found, Method):
        raise ConfigError(f"{what} is {type(found).__name__}, should be a tov.methods.Method", fix=fix)
    wrong = {
        f"is called '{found.name}'": found.name != entry.name,
        "has the name of a method that tov has": entry.name in METHODS,
        "has a name with a comma, a slash or a space": any(sign in found.name for sign in ",/ "),
        "has no function": not found.function,
        "has no ranking": found.ranking is None,
    }
    for said, so in wrong.items():
        if so:
            raise ConfigError(f"{what} {said}", fix=fix)
    return found
