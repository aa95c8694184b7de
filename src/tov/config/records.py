"""Every setting, once: its name, kind, bounds, default, help and what depends on it.

Command-line flags, YAML keys, Python arguments and the reference page are all made from these records, so a
default is written nowhere else. Each setting declares what it invalidates and what reads it (`tov.config.settings.Declared`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import field_validator, model_validator

from tov.config.choice import RuleSettings, SelectionSettings
from tov.config.engine import EngineSettings
from tov.config.export import ExportConfig as ExportConfig
from tov.config.gate import OWN_METRIC, WHOLE_ANSWER, GateSettings
from tov.config.loading import LoadingSettings
from tov.config.page import ExplainSettings, PageSettings
from tov.config.place import PlaceSettings
from tov.config.presets import by_task, filled, known_preset
from tov.config.proxy import ProxySettings
from tov.config.settings import Settings, consent, setting
from tov.config.yaml_files import LabelMapping
from tov.errors import ConfigError
from tov.tasks import TASKS

PathVariant = Literal["interleaved", "parallel", "paired"]
TargetOptimizer = Literal["fresh", "carry", "sgd"]


def _tasks() -> str:
    """`instruction, ner (tokens + tags) or ...`: the tasks, each with the columns that show it."""
    *most, last = (f"{task.name} ({task.hint})" if task.hint else task.name for task in TASKS.values())
    return f"{', '.join(most)} or {last}"


ON_BAD_ROW = "action on an unusable pool row: stop with an error, or skip and count the row"


class DataSettings(Settings):
    """How rows are read and encoded."""

    task: str | None = setting(
        "fit", f"task: {_tasks()}; auto: decided by the target's columns", None, choices=lambda: tuple(TASKS)
    )
    max_length: int | None = setting(
        "fit",
        "maximum tokens in a row; longer rows are cut at the end; auto: 1024, or less where the model allows less",
        None,
        ge=2,
    )
    label_map: LabelMapping | None = setting(
        "fit",
        "YAML file that renames labels, 'THEIRS: OURS' or 'SOURCE: {THEIRS: OURS}'; O drops an entity type",
        None,
        file=True,
    )
    repair_bio: bool = setting(
        "fit", "convert IOB1, BIOES, BILOU and BMES tags to BIO2, and count the converted rows", False
    )
    columns: dict[str, str] = setting(
        "fit",
        "your names of columns, e.g. prompt=question completion=answer; of a CoNLL file their numbers: tokens=2 ner_tags=3",
        {},
    )
    on_bad_row: Literal["error", "skip", "quarantine"] = setting(
        "fit",
        f"{ON_BAD_ROW}; quarantine: also write it to quarantine.jsonl, with place and reason",
        "error",
    )  # fmt: skip

    @field_validator("columns", mode="before")
    @classmethod
    def _numbers_as_text(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {ours: str(theirs) if type(theirs) is int else theirs for ours, theirs in value.items()}

    @field_validator("task")
    @classmethod
    def _registered(cls, value: str | None) -> str | None:
        if value is not None and value not in TASKS:
            *most, last = map(repr, TASKS)
            raise ValueError(f"{', '.join(most)} or {last}")
        return value


class ScanSettings(Settings):
    """How the pool is scanned."""

    batch_tokens: int | None = setting(
        "scan",
        "maximum tokens in a scan batch, padding included; auto: 2048 on a CPU, on CUDA 2048 to 32768 by the memory that the "
        "model leaves, 16384 elsewhere",
        None,
        ge=1,
    )
    amplify: float | None = setting(
        "scan",
        "factor c on the target's step: the scan compares theta_bas with theta_bas + c (theta_val - theta_bas), "
        f"which lifts the gain above bf16 rounding; auto: {by_task('amplify')}", None, gt=0, used_by=("path", "gain"),
    )  # fmt: skip
    shard_rows: int = setting("scan", "pool rows in a score shard; an interrupted run loses at most one", 2048, ge=1)
    score: Literal["chosen", "margin"] = setting(
        "scan", "score of a preference pair: its chosen answer's, or by how much that exceeds the rejected one's (margin)",
        "chosen", used_by=("gain",), unless="chosen",
    )  # fmt: skip


class PathSettings(LoadingSettings, DataSettings):
    """How the path is fitted: model, base set, target, training (methods: Jain, Montanari, Sasoglu 2025, Alg. 1)."""

    def for_task(self: P, task: str) -> P:
        """The same settings with the task named; what was not given is the preset's or the task's, and still open to change."""
        values = filled(self, task, asdict(TASKS[task].defaults))
        return self.model_construct(self.model_fields_set | {"task"}, **values)

    _known_preset = field_validator("preset")(known_preset)
    preset: str | None = setting(
        "fit",
        "bundle of settings, each of which another flag or line overrides: the settings of the paper (paper)",
        None, used_by=("path", "training"), unless=None,
    )  # fmt: skip

    model: str = setting(
        "fit",
        "model that the rows are for: Hub id, local folder, .gguf file, or the alias smollm2-135m or minilm; of methods that "
        "read text alone (bm25, random) only its tokenizer and chat template are read, which tell a row's tokens",
        min_length=1,
        named=True,
    )
    target: tuple[str, ...] = setting(
        "fit",
        "target, the examples of what you care about: files, globs, URLs or Hub ids; those under different names (maths=FILE "
        "code=FILE) are targets of their own, each with its share of the rows",
        min_length=1,
        named=True,
    )
    target_clusters: int | None = setting(
        "fit",
        "clusters that the one target is split into by k-means on embeddings of its rows; each is then a target of its own, "
        "whose part of the choice is as large as its part of the target's rows", None, ge=2, used_by=("clusters",), unless=None,
    )  # fmt: skip
    pool: tuple[str, ...] = setting(
        "fit", "pool, the rows to choose from: files, globs, folders, URLs or Hub ids", min_length=1, named=True
    )
    revision: str | None = setting("fit", "revision of the model on the Hub", None)
    trust_remote_code: bool = consent()
    dtype: Literal["auto", "fp32", "bf16"] = setting(
        "fit",
        "dtype of the frozen weights; auto: bf16 where the hardware multiplies in bf16, else fp32",
        "auto",
        variant=True,
    )
    device: str = setting("fit", "device: auto, cpu, cuda, cuda:1 or mps", "auto")
    seed: int = setting("fit", "seed of all random choices", 0, ge=0)
    decontaminate: bool = setting(
        "fit", "exclude pool rows whose prompt is in the target, and exact repeats within the pool", True
    )
    base_size: int | None = setting(
        "fit", "rows in the base set U; auto: 4096, but at most a quarter of the pool", None, ge=1, used_by=("path",)
    )
    epochs: int | None = setting(
        "fit",
        "scoring epochs L, each with two passes over the pool; auto: 16*1024/|U|, rounded, at most 2", None, ge=1,
        used_by=("path",),
    )  # fmt: skip
    path_variant: PathVariant = setting(
        "fit", "variant of the path: the state that each epoch starts from", "interleaved", used_by=("path",)
    )
    learning_rate: float | None = setting(
        "fit",
        f"learning rate of the base epochs (AdamW); auto: {by_task('learning_rate')}", None, gt=0, used_by=("path",),
    )  # fmt: skip
    lr_scheduler_type: Literal["linear", "constant"] = setting(
        "fit", "learning-rate schedule over all steps of the base epochs", "linear", used_by=("path",)
    )
    target_learning_rate_ratio: float | None = setting(
        "fit",
        "learning rate of a target epoch over its base epoch's mean learning rate; "
        f"auto: {by_task('target_learning_rate_ratio')}", None, gt=0, used_by=("path",),
    )  # fmt: skip
    target_optimizer: TargetOptimizer = setting(
        "fit", "target optimizer: AdamW with zero moments (fresh) or with the base epoch's (carry), or plain SGD (sgd)",
        "fresh", used_by=("path",),
    )  # fmt: skip
    target_sgd_learning_rate: float = setting(
        "fit", "learning rate of a target epoch under --target-optimizer sgd", 0.05, gt=0, used_by=("path",)
    )
    batch_size: int = setting("fit", "rows in an optimizer step of the path", 16, ge=1, used_by=("path",))
    lora_r: int | None = setting(
        "fit", f"LoRA rank; auto: {by_task('lora_r')}", None, ge=1, used_by=("path", "training")
    )
    lora_alpha: float = setting(
        "fit", "LoRA alpha; the adapter is scaled by alpha / rank", 32.0, gt=0, used_by=("path", "training")
    )
    lora_dropout: float = setting(
        "fit", "dropout on LoRA inputs during training", 0.0, ge=0, lt=1, used_by=("path", "training")
    )
    lora_target_modules: tuple[str, ...] = setting(
        "fit", "modules with a LoRA adapter", ("all-linear",), min_length=1, used_by=("path", "training")
    )


class TrainingSettings(Settings):
    """The final training, on chosen rows, from the pretrained weights; LoRA as in the path."""

    train_rows: int = setting(
        "training", "rows passed in the final training; its epochs are this over n, rounded, at least 1", 16 * 1024, ge=1,
    )  # fmt: skip
    num_train_epochs: int | None = setting(
        "training", "epochs of the final training; auto: derived from --train-rows", None, ge=1
    )
    train_learning_rate: float | None = setting(
        "training",
        f"learning rate of the final training (AdamW, linear decay to 0); auto: {by_task('train_learning_rate')}",
        None,
        gt=0,
    )
    train_batch_size: int = setting("training", "rows in an optimizer step of the final training", 16, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        if self.num_train_epochs and self.train_rows != type(self).model_fields["train_rows"].default:
            raise ConfigError(
                "--num-train-epochs and --train-rows both say how long to train.", fix="Give one of the two."
            )
        return self


METHOD = (
    "method that scores the rows, with options after slashes (less/dim=512); 'tov methods' lists the methods; with --from, a "
    "method that ranks by the stored scores (uncertainty by those of tov), by default the run's method"
)
P = TypeVar("P", bound=PathSettings)


class FitConfig(PathSettings, PlaceSettings):
    """Settings of `tov fit`."""

    on_bad_row: Literal["error", "skip"] = setting("fit", ON_BAD_ROW, "error")


class SelectConfig(
    SelectionSettings,
    PathSettings,
    ScanSettings,
    ProxySettings,
    GateSettings,
    ExplainSettings,
    EngineSettings,
    PlaceSettings,
):
    """Settings of `tov select`."""

    method: str = setting("scan", METHOD, "tov", named=True)


class PlanConfig(SelectConfig):
    """Settings of `tov plan`: those of `tov select`, of which nothing is run."""

    amount_needed: ClassVar[bool] = False
    n: int | None = setting("choice", "number of rows to choose, which the plan checks", None, ge=1, unless=None)
    out: str = setting(
        "output",
        "run folder of the planned run; the plan checks that it is free, or (with --n) that it holds this run",
        "auto",
        min_length=1,
    )
    methods: tuple[str, ...] = setting("scan", "methods to plan side by side, in place of --method", ())
    probe: bool = setting("output", "time some passes, to tell the run's seconds and memory", True)


class ReselectConfig(SelectionSettings, PageSettings, PlaceSettings):
    """Settings of `tov select --from`."""

    from_run: str = setting("choice", "finished run whose scores are reused", min_length=1, named=True)
    method: str | None = setting("choice", METHOD, None, named=True)
    seed: int | None = setting("choice", "seed of all random choices; default: the run's seed", None, ge=0)


class ScoreConfig(EngineSettings, PlaceSettings):
    """Settings of `tov score`."""

    from_run: str = setting("fit", "run of tov select or tov fit whose stored path is used", min_length=1, named=True)
    pool: tuple[str, ...] = setting("fit", "new pool: files, globs, folders or Hub ids", min_length=1, named=True)
    trust_remote_code: bool = consent()
    label_map: LabelMapping | None = setting("fit", "label map of the new pool; default: the run's", None, file=True)
    repair_bio: bool | None = setting("fit", "convert the new pool's tags to BIO2; default: the run's setting", None)
    device: str = setting("scan", "device: auto, cpu, cuda, cuda:1 or mps", "auto")
    batch_tokens: int | None = setting("scan", "maximum tokens in a scan batch; default: the run's setting", None, ge=1)
    shard_rows: int | None = setting("scan", "pool rows in a score shard; default: the run's setting", None, ge=1)
    amplify: float | None = setting(
        "scan", "factor on the target's step; default: the run's factor", None, gt=0, used_by=("path", "gain")
    )
    score: Literal["chosen", "margin"] | None = setting(
        "scan", "score of a preference pair; default: as in the run", None, used_by=("gain",)
    )


class TrainConfig(TrainingSettings, PlaceSettings):
    """Settings of `tov train`."""

    from_run: str = setting("training", "run whose chosen rows the model is trained on", min_length=1, named=True)
    test: tuple[str, ...] = setting(
        "training", "test, held-out rows like the target, for a test before and after the training", (), named=True
    )
    trust_remote_code: bool = consent()
    trainer: Literal["tov", "trl"] = setting(
        "training", "training loop: tov's own, or TRL's SFTTrainer (instruction tuning)", "tov"
    )
    seed: int | None = setting(
        "training",
        "seed of the initial adapter and head, the data order and dropout; default: the run's seed",
        None,
        ge=0,
    )
    device: str = setting("training", "device: auto, cpu, cuda, cuda:1 or mps", "auto")


class CompareConfig(
    TrainingSettings,
    RuleSettings,
    PathSettings,
    ScanSettings,
    GateSettings,
    PageSettings,
    EngineSettings,
    PlaceSettings,
):
    """Settings of `tov compare`."""

    from_run: str | None = setting(
        "fit", "run whose model, inputs and settings the comparison uses", None, min_length=1, named=True
    )
    on_bad_row: Literal["error", "skip"] = setting("fit", ON_BAD_ROW, "error")
    test: tuple[str, ...] = setting(
        "fit", "test, held-out rows like the target; --test-rows draws it from the target instead", (), named=True
    )
    test_rows: int | None = setting("fit", "target rows that are held out as the test, drawn by the seed", None, ge=1)
    target_rows: int | None = setting("fit", "target rows that are used as the target, drawn by the seed", None, ge=1)
    pool_rows: int | None = setting("fit", "rows that are used of each pool source, drawn by the seed", None, ge=1)
    group_by: str | None = setting(
        "fit",
        "column whose equal values stay on one side of the split into target, test and pool, as equal prompts do",
        None,
    )
    near_duplicates: Literal["exclude", "keep"] = setting(
        "fit", "action on target and pool rows that are near duplicates of a test row: exclude, or keep", "exclude",
        unless="keep",
    )  # fmt: skip
    methods: tuple[str, ...] = setting(
        "trials",
        "variants to compare: methods with options after slashes (tov,tov/abs,tov/paired/score-only,tov/amplify=1,random)",
        ("tov", "random", "uncertainty", "zero-shot"),
        min_length=1,
    )
    sizes: tuple[int, ...] = setting("trials", "numbers of rows to choose; each is compared by itself", min_length=1)
    seeds: int = setting("trials", "number of seeds, counted up from --seed; all variants share each seed", 5, ge=1)
    exact_match: int = setting(
        "training", "test rows whose answer is generated and compared with the reference (instruction tuning; slow)", 0, ge=0
    )  # fmt: skip
    answer_pattern: str = setting(
        "training", "regular expression whose last match is compared between reference and answer", WHOLE_ANSWER
    )
    metric: str | None = setting(
        "training", f"{OWN_METRIC}; answers are generated where --exact-match says of how many rows", None, unless=None
    )
    report_only: bool = setting("output", "report the finished trials and run none, also while others are run", False)

    @model_validator(mode="after")
    def _keeps_what_it_reports(self) -> CompareConfig:
        if self.report_only and self.force:
            raise ConfigError(
                "--report-only needs the trials that --force would delete.", fix="Leave one of the two out."
            )
        return self

    @field_validator("sizes")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 2:
            raise ValueError("sizes of at least 2 rows")
        return tuple(sorted(set(value)))
