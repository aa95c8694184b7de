"""The options of each method that has its own, once: kind, bounds, default and help. `METHOD/OPTION=VALUE` sets one.

Defaults are those of the method's authors; where they are not, the row of the table of methods says so. Must not know how a
method uses them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tov.settings import Settings


def option(help: str, default: Any, **bounds: Any) -> Any:
    """A field of a record of options."""
    return Field(default, description=help, **bounds)


RANK, ALPHA = "LoRA rank", "LoRA alpha (the adapter is scaled by alpha / rank)"
TARGETS = "modules that get an adapter, joined by +; attention: query, key, value and output; all-linear"


class LoraSettings(Settings):
    """The adapter that a method trains; the final training has its own (`--lora-rank` and its like)."""

    lora_rank: int = option(RANK, 128, ge=1)
    lora_alpha: float = option(ALPHA, 512.0, gt=0)
    lora_dropout: float = option("dropout on LoRA inputs while training", 0.1, ge=0, lt=1)
    lora_targets: tuple[str, ...] = option(TARGETS, ("attention",), min_length=1)

    @field_validator("lora_targets", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        return tuple(part for part in value.split("+") if part) if isinstance(value, str) else value


class WarmUpSettings(LoraSettings):
    """The warm-up whose checkpoints gradients are taken at."""

    warm_up_share: float = option(
        "share of the usable pool rows, drawn uniformly, in the warm-up set; at least one batch", 0.05, gt=0, le=1
    )
    epochs: int = option("epochs of the warm-up; each leaves a checkpoint", 4, ge=1)
    learning_rate: float | None = option(
        "peak rate of the warm-up (AdamW, 3 % rise, linear decay to 0); default: 2e-5, for a new head (named entities, "
        "classification) 2e-3", None, gt=0,
    )  # fmt: skip
    batch_size: int | None = option("rows in one step of the warm-up; default: 128, for a new head 16", None, ge=1)


class ProjectedSettings(WarmUpSettings):
    """A random projection of gradients, or none."""

    dimension: int | None = option(
        "numbers that a gradient is projected to; default: whole gradients are compared, or 8192 where a projection or a store "
        "is named",
        None, ge=1,
    )  # fmt: skip
    projection: Literal["sjlt", "rademacher"] = option(
        "sparse (NONZEROS entries a parameter) or dense (DIMENSION entries a parameter)", "sjlt"
    )
    nonzeros: int = option("entries a parameter of the sparse projection; a divisor of DIMENSION", 1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        named = (
            isinstance(given, dict) and "dimension" not in given and {"projection", "nonzeros", "store"} & set(given)
        )
        return {**given, "dimension": 8192} if named else given

    @model_validator(mode="after")
    def _divides(self) -> ProjectedSettings:
        if self.dimension and self.projection == "sjlt" and self.dimension % self.nonzeros:
            raise ValueError(f"nonzeros={self.nonzeros} is no divisor of dimension={self.dimension}")
        if self.projection == "rademacher" and self.nonzeros > 1:
            raise ValueError(f"nonzeros={self.nonzeros} is of projection=sjlt; a rademacher matrix has no zeros")
        return self


class LessSettings(ProjectedSettings):
    """Options of LESS."""

    form: Literal["adam", "sgd"] = option("pool rows as Adam would step on them, or by their plain gradient", "adam")
    subtask_column: str | None = option(
        "column of the target whose values are its sub-tasks; default: each source of the target is one", None
    )
    store: str | None = option(
        "folder where warm-up and projected gradients of the pool are kept (fp16) and found again, whatever the target; "
        "written last; default: no gradient is kept", None, min_length=1,
    )  # fmt: skip


class TracinSettings(ProjectedSettings):
    """Options of TracIn."""


class DsirSettings(Settings):
    """Options of DSIR."""

    over: Literal["sum", "mean"] = option("a row's weight: sum or mean over its n-grams", "sum")
    tokens: Literal["wordpunct", "whitespace", "model"] = option(
        "what n-grams are of: lower-cased words and runs of marks, words as they are, or the model's own tokens",
        "wordpunct",
    )
    buckets: int = option("buckets that n-grams are hashed into", 10_000, ge=1)
    hashing: Literal["mixed", "sha256"] = option("of bigrams: fast, or that of the authors' package", "mixed")
    min_tokens: int = option("rows of fewer tokens have no weight (the authors: 100)", 1, ge=1)


class EmbeddingSettings(Settings):
    """Options of RDS+, and of TSDS too."""

    encoder: str | None = option(
        "sentence encoder that embeds the rows' text (a model of sentence-transformers: folder, Hub id or minilm), written "
        "last; default: the hidden states of the model being tuned", None, min_length=1,
    )  # fmt: skip


class TsdsSettings(EmbeddingSettings):
    """Options of TSDS."""

    alpha: float = option("weight of nearness against spread", 0.5, ge=0, le=1)
    c: float = option("C, the distance that alpha = 0.5 trades for one step of spread", 5.0, gt=0)
    sigma: float | None = option(
        "kernel width of the density (the authors: 0.75), 0 for none; default: the median distance of pool rows to their "
        "nearest other row", None, ge=0,
    )  # fmt: skip
    neighbours: int | None = option(
        "K, pool rows a target row; default: min(5000, N/10), or least_rows where those are too few rows", None, ge=1
    )
    density_neighbours: int | None = option("rows in a density; default: min(1000, N/10)", None, ge=1)
    least_rows: int | None = option(
        "rows that must have a probability; default: as many as are to be chosen", None, ge=0
    )
    backend: Literal["numpy", "faiss"] = option("of the exact search", "numpy")

    @model_validator(mode="after")
    def _counted(self) -> TsdsSettings:
        if self.sigma == 0 and self.density_neighbours is not None:
            raise ValueError(f"density_neighbours={self.density_neighbours} without a density: sigma is 0")
        return self


class TargetPathSettings(LoraSettings):
    """Options of the target path."""

    lora_rank: int = option(RANK, 1, ge=1)
    lora_alpha: float = option(ALPHA, 4.0, gt=0)
    lora_targets: tuple[str, ...] = option(TARGETS, ("all-linear",), min_length=1)
    epochs: int | None = option(
        "depth, epochs on the target; default: 2048 rows in all, from 2 to 64 epochs", None, ge=2
    )
    learning_rate: float | None = option(
        "rate (AdamW, constant); default: 5e-5, for a new head (named entities, classification) 1e-3", None, gt=0
    )
    batch_size: int = option("rows in one step", 16, ge=1)
