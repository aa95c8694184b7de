"""Every setting, once: its name, kind, bounds, default, help and what depends on it.

Command-line flags, YAML keys, Python arguments and the reference page are all made from these records, so a
default is written nowhere else. A setting's *stage* says what changes when it changes: `path` (the fitted path and
all after it), `scan` (scores and all after them), `selection` (the chosen rows only), `training` (models trained on
them), `trials` (which trials a comparison has), `place` (nothing).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from tov.settings import Settings, setting
from tov.yaml_files import LabelMapping

Task = Literal["instruction", "ner", "classification"]
TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "instruction": {
        "lora_rank": 16,
        "learning_rate": 5e-4,
        "eps": 0.1,
        "amplify": 4.0,
        "normalize": "none",
        "train_learning_rate": 5e-4,
    },
    "ner": {
        "lora_rank": 8,
        "learning_rate": 2e-3,
        "eps": 1.0,
        "amplify": 1.0,
        "normalize": "none",
        "train_learning_rate": 2e-3,
    },
    "classification": {
        "lora_rank": 8,
        "learning_rate": 2e-3,
        "eps": 1.0,
        "amplify": 1.0,
        "normalize": "initial-loss",
        "train_learning_rate": 2e-3,
    },
}
"""What `auto` means for each task; docs/defaults.md has the tables that decided."""
TRANSFORMS = ("identity", "abs", "positive")
Transform = Literal["identity", "abs", "positive"]
Normalize = Literal["none", "initial-loss"]
Rule = Literal["score+random", "score-only", "sample", "round-robin"]
Variant = Literal["interleaved", "parallel", "paired"]
ValOptimizer = Literal["fresh", "carry", "sgd"]


def _by_task(name: str) -> str:
    values = {task: values[name] for task, values in TASK_DEFAULTS.items()}
    return ", ".join(
        f"{value:g} {task}" if isinstance(value, float) else f"{value} {task}" for task, value in values.items()
    )


class DataSettings(Settings):
    """How rows are read and encoded."""

    task: Task | None = setting(
        "path", "instruction, ner (tokens + tags) or classification (text + label); auto: by the target's columns", None
    )
    max_length: int | None = setting(
        "path", "tokens a row may have; longer rows are cut at the end; auto: 1024, or what the model takes", None, ge=2
    )
    label_map: LabelMapping | None = setting(
        "path",
        "YAML file of labels, 'THEIRS: OURS' or 'SOURCE: {THEIRS: OURS}'; O drops an entity type",
        None,
        file=True,
    )
    repair_bio: bool = setting("path", "make tags BIO2 that are IOB1, BIOES or BILOU, and count the rows", False)
    columns: dict[str, str] = setting("path", "your column names for ours, e.g. prompt=question completion=answer", {})
    bad_rows: Literal["error", "skip"] = setting(
        "path", "a pool row that cannot be used: stop, or skip and count it", "error"
    )


class ScanSettings(DataSettings):
    """How the pool is scanned."""

    batch_tokens: int | None = setting(
        "scan", "tokens in one scan batch, padding included; auto: 2048 on a CPU, 16384 elsewhere", None, ge=1
    )
    amplify: float | None = setting(
        "scan",
        "compare theta_bas with theta_bas + c (theta_val - theta_bas): lifts the gain over bf16 rounding; "
        f"auto: {_by_task('amplify')}",
        None,
        gt=0,
    )
    shard_rows: int = setting("scan", "pool rows in one score shard; a killed run loses at most one", 2048, ge=1)


class PlaceSettings(Settings):
    """Where results go and how they are told."""

    out: str = setting("place", "the run folder to make, or to go on with", min_length=1)
    force: bool = setting("place", "overwrite what --out holds", False)
    json_output: bool = setting("place", "print a machine-readable result", False)
    quiet: bool = setting("place", "no progress and no table", False)

    def shown(self) -> dict[str, Any]:
        """The settings that `config.yaml` holds: all but how this call behaves."""
        return self.model_dump(mode="json", exclude={"force", "json_output", "quiet", "report_only"})


class PathSettings(DataSettings):
    """How the path is fitted: model, base set, target, training (methods: Jain, Montanari, Sasoglu 2025, Alg. 1)."""

    def for_task(self: P, task: str) -> P:
        """The same settings with the task named and its defaults where none was given."""
        auto = {name: value for name, value in TASK_DEFAULTS[task].items() if getattr(self, name, value) is None}
        return self.model_copy(update={"task": task, **auto})

    model: str = setting("path", "Hub id, local folder, .gguf file, or the alias smollm2-135m or minilm", min_length=1)
    target: tuple[str, ...] = setting("path", "examples of what you care about: files, globs or Hub ids", min_length=1)
    pool: tuple[str, ...] = setting("path", "rows to choose from: files, globs, folders or Hub ids", min_length=1)
    revision: str | None = setting("path", "model revision on the Hub", None)
    trust_remote_code: bool = setting("path", "run code that a Hub model brings", False)
    dtype: Literal["auto", "fp32", "bf16"] = setting(
        "path", "dtype of the frozen weights; auto: bf16 where the hardware multiplies it, else fp32", "auto"
    )
    device: str = setting("path", "auto, cpu, cuda, cuda:1, mps", "auto")
    seed: int = setting("path", "seed of every random choice", 0, ge=0)
    leak_guard: bool = setting(
        "path", "keep pool rows whose prompt is in the target, and exact repeats, from being chosen", True
    )
    base_size: int | None = setting(
        "path", "rows in the base set U; auto: 4096, at most a quarter of the pool", None, ge=1
    )
    epochs: int | None = setting(
        "path",
        "scoring epochs L, each two passes over the pool; auto: 16*1024/|U| rounded, at most 4",
        None,
        ge=1,
    )
    variant: Variant = setting("path", "which state each epoch starts from", "interleaved")
    learning_rate: float | None = setting(
        "path", f"rate of the base epochs (AdamW); auto: {_by_task('learning_rate')}", None, gt=0
    )
    schedule: Literal["linear", "constant"] = setting("path", "decay of the base rate over all base steps", "linear")
    eps: float | None = setting(
        "path", f"the target epoch's rate over its base epoch's mean rate; auto: {_by_task('eps')}", None, gt=0
    )
    val_optimizer: ValOptimizer = setting(
        "path", "optimizer of the target epoch: AdamW from zero moments, with the base's moments, or plain SGD", "fresh"
    )
    sgd_learning_rate: float = setting("path", "rate of the target epoch under val_optimizer sgd", 0.05, gt=0)
    batch_size: int = setting("path", "rows in one optimizer step", 16, ge=1)
    lora_rank: int | None = setting("path", f"LoRA rank; auto: {_by_task('lora_rank')}", None, ge=1)
    lora_alpha: float = setting("path", "LoRA alpha (the adapter is scaled by alpha / rank)", 32.0, gt=0)
    lora_dropout: float = setting("path", "dropout on LoRA inputs while fitting", 0.0, ge=0, lt=1)
    lora_targets: tuple[str, ...] = setting("path", "modules that get an adapter", ("all-linear",), min_length=1)


class RuleSettings(Settings):
    """How a score becomes a choice."""

    transform: Transform = setting("selection", "F on each token's gain before the mean", "positive")
    normalize: Normalize | None = setting(
        "selection",
        f"divide a row's score by its log-loss under the base state (relative improvement); auto: {_by_task('normalize')}",
        None,
    )
    rule: Rule | None = setting(
        "selection",
        "half by score and half random; all by score; drawn with probability proportional to exp(score); or each target row "
        "(sub-task) in turn its best row still free; auto: the method's own (tov: score+random)",
        None,
    )
    bins: int | None = setting(
        "selection",
        "equal-capacity bins by scored tokens, each gives the same number; auto: the method's own (tov: 10)",
        None,
        ge=1,
    )
    source_cap: dict[str, Annotated[float, Field(gt=0, le=1)]] = setting(
        "selection",
        "largest share of the chosen rows from any one source, e.g. 0.3, or from these: web=0.2 books=0.5",
        {},
    )


class SelectionSettings(RuleSettings):
    """How many rows are chosen from scores, and how."""

    n: int = setting("selection", "rows to choose", ge=1)


class TrainingSettings(Settings):
    """The final training, on chosen rows, from the pretrained weights; LoRA as in the path."""

    train_rows: int = setting(
        "training", "rows passed in the whole training: epochs are this over n, rounded, at least 1", 16 * 1024, ge=1
    )
    train_epochs: int | None = setting("training", "epochs of the final training; auto: by --train-rows", None, ge=1)
    train_learning_rate: float | None = setting(
        "training",
        f"rate of the final training (AdamW, linear decay to 0); auto: {_by_task('train_learning_rate')}",
        None,
        gt=0,
    )
    train_batch_size: int = setting("training", "rows in one step of the final training", 16, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        if self.train_epochs and self.train_rows != type(self).model_fields["train_rows"].default:
            raise ValueError("--train-epochs and --train-rows: say one")
        return self


METHOD = (
    "how rows are scored, OPTIONS after slashes: tov, less/dimension=512, dsir, ...; 'tov methods' has all; with --from one "
    "that ranks by the scores that are there (uncertainty by those of tov), by default the run's"
)
P = TypeVar("P", bound=PathSettings)


class FitConfig(PathSettings, PlaceSettings):
    """Settings of `tov fit`."""


class SelectConfig(SelectionSettings, PathSettings, ScanSettings, PlaceSettings):
    """Settings of `tov select`."""

    method: str = setting("scan", METHOD, "tov")


class PlanConfig(SelectConfig):
    """Settings of `tov plan`: those of `tov select`, of which nothing is run."""

    n: int | None = setting("selection", "rows to choose, to be checked", None, ge=1)  # type: ignore[assignment]
    out: str = setting(
        "place",
        "the run folder meant; whether it is free is checked (with --n also whether the run in it is this one)",
        "auto",
        min_length=1,
    )
    methods: tuple[str, ...] = setting("scan", "several methods side by side, in place of --method", ())


class ReselectConfig(SelectionSettings, PlaceSettings):
    """Settings of `tov select --from`."""

    from_run: str = setting("selection", "a finished run whose scores are used", min_length=1)
    method: str | None = setting("selection", METHOD, None)
    seed: int | None = setting("selection", "seed of the random half; default: the run's", None, ge=0)


class ScoreConfig(PlaceSettings):
    """Settings of `tov score`."""

    from_run: str = setting("path", "a run (or fit) whose stored path is used", min_length=1)
    pool: tuple[str, ...] = setting("path", "the new pool", min_length=1)
    label_map: LabelMapping | None = setting("path", "label map of the new pool; default: the run's", None, file=True)
    repair_bio: bool | None = setting("path", "make the new pool's tags BIO2; default: as the run", None)
    device: str = setting("scan", "auto, cpu, cuda, cuda:1, mps", "auto")
    batch_tokens: int | None = setting("scan", "tokens in one scan batch; default: the run's", None, ge=1)
    shard_rows: int | None = setting("scan", "pool rows in one score shard; default: the run's", None, ge=1)
    amplify: float | None = setting("scan", "factor on the target's step; default: the run's", None, gt=0)


class TrainConfig(TrainingSettings, PlaceSettings):
    """Settings of `tov train`."""

    from_run: str = setting("training", "the run whose chosen rows are trained on", min_length=1)
    test: tuple[str, ...] = setting("training", "held-out rows like the target: log-loss before and after", ())
    trainer: Literal["tov", "trl"] = setting("training", "our loop, or TRL's SFTTrainer (instruction tuning)", "tov")
    seed: int | None = setting(
        "training", "seed of a new adapter and head, data order and dropout; default: the run's", None, ge=0
    )
    device: str = setting("training", "auto, cpu, cuda, cuda:1, mps", "auto")


class CompareConfig(TrainingSettings, RuleSettings, PathSettings, ScanSettings, PlaceSettings):
    """Settings of `tov compare`."""

    from_run: str | None = setting("path", "a run whose settings and inputs are compared", None, min_length=1)
    test: tuple[str, ...] = setting("path", "held-out rows like the target; or say --test-rows", ())
    test_rows: int | None = setting("path", "rows of the target held out as the test, drawn by the seed", None, ge=1)
    target_rows: int | None = setting("path", "rows of the target used as the target, drawn by the seed", None, ge=1)
    pool_rows: int | None = setting("path", "rows of each pool source used, drawn by the seed", None, ge=1)
    group_by: str | None = setting(
        "path", "column whose values are not parted between target, test and pool (beside the prompt)", None
    )
    methods: tuple[str, ...] = setting(
        "trials",
        "what is compared, OPTIONS after slashes: tov,tov/abs,tov/paired/score-only,tov/eps=1,random,uncertainty,...",
        ("tov", "random", "uncertainty", "zero-shot"),
        min_length=1,
    )
    sizes: tuple[int, ...] = setting("trials", "rows to choose, one comparison each", min_length=1)
    seeds: int = setting("trials", "seeds, counted up from --seed; each is shared by all methods", 5, ge=1)
    exact_match: int = setting(
        "training", "test rows for which an answer is generated and compared (instruction tuning; slow)", 0, ge=0
    )
    answer_pattern: str = setting(
        "training", "regular expression; its last match in the reference and in the answer are compared", r"(?s)^.*$"
    )
    report_only: bool = setting(
        "place", "run nothing: the report of the trials that are finished, also while another process runs more", False
    )

    @model_validator(mode="after")
    def _keeps_what_it_reports(self) -> CompareConfig:
        if self.report_only and self.force:
            raise ValueError("--report-only needs the trials that --force would delete: leave one of them out")
        return self

    @field_validator("sizes")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 2:
            raise ValueError("sizes of at least 2 rows")
        return tuple(sorted(value))
