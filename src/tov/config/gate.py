"""The settings of `auto`, which decides between methods by pilot trainings."""

from __future__ import annotations

from typing import Literal

from tov.config.settings import Settings, setting

CANDIDATES = (
    "tov", "tov/score-only", "tov/nearness=0.5/score-only", "tov/nearness=0.333/uncertainty=0.333/score-only", "uncertainty",
    "rds", "tsds", "bm25",
)  # fmt: skip
"""What `auto` decides between, beside random rows."""
WHOLE_ANSWER = r"(?s)^.*$"
OWN_METRIC = (
    "your own metric, MODULE:FUNCTION, of two lists, references and predictions (answers, labels, or lists of tags), "
    "larger is better"
)


class GateSettings(Settings):
    """How `auto` decides: candidates, pilots and judge."""

    candidates: tuple[str, ...] = setting(
        "pilots",
        "variants that auto decides between, with options after slashes; random rows always stand beside them",
        CANDIDATES,
        min_length=1,
        used_by=("gate",),
    )
    pilot_rows: int = setting(
        "pilots", "maximum rows that a candidate chooses in a pilot of auto", 512, ge=16, used_by=("gate",)
    )
    pilot_train_rows: int | None = setting(
        "pilots", "maximum rows passed in the training of a pilot of auto; auto: 1024, or 2048 for a new head (ner, "
        "classification)", None, ge=1, used_by=("gate",),
    )  # fmt: skip
    pilot_folds: int = setting(
        "pilots", "folds of the target; each is held out from all scoring in one pilot of auto", 3, ge=2, used_by=("gate",),
    )  # fmt: skip
    judge: Literal["loss", "metric"] | None = setting(
        "pilots",
        "what auto judges the pilots by: the loss or the metric of the task on the rows held out; auto: the metric, but "
        "the loss where answers would have to be generated",
        None,
        used_by=("gate",),
    )
    answer_pattern: str = setting(
        "pilots",
        "regular expression whose last match is compared between reference and answer, where auto judges by the metric",
        WHOLE_ANSWER,
        used_by=("gate",),
        unless=WHOLE_ANSWER,
    )
    group_by: str | None = setting(
        "pilots", "column whose equal values stay in one fold of the target, as equal prompts do", None, used_by=("gate",),
        unless=None,
    )  # fmt: skip
    metric: str | None = setting(
        "pilots", OWN_METRIC + "; auto judges by it", None, used_by=("gate",), unless=None,
    )  # fmt: skip
