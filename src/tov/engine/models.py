"""A model described, and opened: weights, a seeded adapter, and what turns rows into its tokens.

A description (`ModelSpec`) can be sent anywhere and opened there to the same initial state. Whoever opens models keeps
the last one (`Models`), because loading takes longer than most of what is done with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tov.config.records import PathSettings
from tov.errors import ModelError
from tov.model.adapters import State, attach, read_state, write_state
from tov.model.consent import Expected
from tov.model.load import (
    LARGEST_DEFAULT,
    Loaded,
    check_loading,
    load_config,
    load_model,
    load_tokenizer,
    longest,
    pick_device,
    pick_dtype,
)
from tov.model.loading import DENSE, Loading
from tov.model.logloss import check_head, head_of
from tov.seeds import derive
from tov.tasks import TASKS
from tov.text.encode import Encoder

CPU_BATCH_TOKENS, BATCH_TOKENS = 2048, 16_384
"""Tokens in a batch where --batch-tokens is not given: what stays in a CPU's cache (docs/speed.md); elsewhere more."""


@dataclass(frozen=True)
class Lora:
    """An adapter: rank r, scaled by alpha / r, dropout on its inputs, and the modules that get one."""

    lora_r: int
    lora_alpha: float
    lora_dropout: float
    lora_target_modules: tuple[str, ...]

    @staticmethod
    def of(settings: Any) -> Lora:
        """The adapter that a record of settings, or of a method's options, describes."""
        return Lora(settings.lora_r, settings.lora_alpha, settings.lora_dropout, tuple(settings.lora_target_modules))


@dataclass(frozen=True)
class ModelSpec:
    """All that a model's initial state and its tokens depend on.

    Attributes:
        name: alias, GGUF file, folder or Hub id.
        task: its name.
        labels: of a classifier.
        seed: of a run; a new head and the adapter derive theirs from it.
        lora: the adapter.
        max_length: tokens a row may have; None for 1,024 or what the model takes.
        dtype: fp32, bf16 or auto.
        device: torch's name or auto.
        revision: on the Hub.
        trust_remote_code: whether a model may bring its own code.
        loading: how a large model is opened.
    """

    name: str
    task: str
    labels: tuple[str, ...]
    seed: int
    lora: Lora
    max_length: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    loading: Loading = DENSE

    @staticmethod
    def of(settings: PathSettings, labels: tuple[str, ...] = ()) -> ModelSpec:
        """The model of a record of settings, with the task named; labels from `tov.data.labels`."""
        assert settings.task
        assert settings.lora_r
        return ModelSpec(
            settings.model, settings.task, labels, settings.seed, Lora.of(settings), settings.max_length, settings.dtype,
            settings.device, settings.revision, settings.trust_remote_code, Loading.of(settings),
        )  # fmt: skip

    def resolved(self) -> ModelSpec:
        """The same with dtype and device named, as they are on this machine.

        Raises:
            ConfigError: no such device here.
        """
        device = pick_device(self.device)
        return replace(self, device=str(device), dtype=pick_dtype(self.dtype, device))

    def config(self) -> Any:
        """The model's configuration; its weights are not read."""
        return load_config(self.name, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def encoder(self) -> Encoder:
        """What turns rows into the model's tokens, without the model.

        Raises:
            ModelError: no tokenizer, or `max_length` is more than the model takes.
        """
        here: dict[str, Any] = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        tokenizer = load_tokenizer(self.name, task=TASKS[self.task], **here)
        limit = longest(self.config(), tokenizer)
        return Encoder(TASKS[self.task].encode, tokenizer, self._length(limit), self.labels)

    def open(self, expected: Expected | None = None) -> Opened:
        """Loads the model, attaches the seeded adapter and checks that its log-loss can be had exactly.

        Args:
            expected: the model that it must be.

        Raises:
            ModelError: not found, not for the task, not as expected, or `max_length` is more than it takes.
            ConfigError: the device is not here, or not one that `loading` needs, or no module gets an adapter.
        """
        task = TASKS[self.task]
        check_loading(self.loading, self.device, new_head=task.new_head)
        loaded = load_model(
            self.name, task=task, labels=self.labels, dtype=self.dtype, device=self.device, revision=self.revision,
            trust_remote_code=self.trust_remote_code, seed=derive(self.seed, "head"),
            expected=expected, loading=self.loading,
        )  # fmt: skip
        max_length = self._length(longest(loaded.model.config, loaded.tokenizer))
        lora = self.lora
        adapted = attach(
            loaded.model, rank=lora.lora_r, alpha=lora.lora_alpha, dropout=lora.lora_dropout, targets=lora.lora_target_modules,
            seed=derive(self.seed, "adapter"), task_type=task.peft_type, trained=loaded.head,
        )  # fmt: skip
        if not task.new_head:
            causal = adapted.get_base_model()
            vocabulary = min(1000, head_of(causal).weight.shape[0])
            probe = torch.arange(2 * 16, device=loaded.device).reshape(2, 16) % vocabulary
            with torch.inference_mode():
                check_head(causal, head_of(causal), probe)
        return Opened(
            self.resolved(), loaded, adapted, Encoder(task.encode, loaded.tokenizer, max_length, loaded.labels)
        )

    def _length(self, limit: int | None) -> int:
        if limit and self.max_length and self.max_length > limit:
            raise ModelError(
                f"--max-length {self.max_length} is more than {self.name} takes.",
                allowed=f"at most {limit}",
                fix=f"Give --max-length {limit} or less.",
            )
        return self.max_length or min(LARGEST_DEFAULT, limit or LARGEST_DEFAULT)


@dataclass(frozen=True)
class Opened:
    """A model with an adapter on it.

    Attributes:
        spec: what it was opened from, dtype and device named.
        loaded: the frozen model, its tokenizer, labels and fingerprint.
        adapted: the PeftModel.
        encode: rows to tokens.
    """

    spec: ModelSpec
    loaded: Loaded
    adapted: Any
    encode: Encoder

    @property
    def fingerprint(self) -> list[Any]:
        """What numbers made by this model depend on beside the adapter's state: weights, tokens, dtype, device, length."""
        loaded = self.loaded
        return [
            loaded.fingerprint, loaded.tokenizer_fingerprint, loaded.dtype, loaded.device.type, self.encode.max_length
        ]  # fmt: skip


@dataclass
class Models:
    """Opens models, and keeps the last one.

    Attributes:
        opened: the model and its initial state, by its description; at most one.
        fingerprints: of every model that was opened, by its description as it was given, and with device and dtype named.
    """

    opened: dict[ModelSpec, tuple[Opened, State]] = field(default_factory=dict)
    fingerprints: dict[ModelSpec, list[Any]] = field(default_factory=dict)

    def open(self, spec: ModelSpec, expected: Expected | None = None) -> Opened:
        """The model in its initial state: pretrained weights, adapter of no effect, seeded head. Errors: `ModelSpec.open`."""
        given, spec = spec, spec.resolved()
        if spec not in self.opened:
            self.opened.clear()  # two models may not fit in memory
            opened = spec.open(expected)
            self.opened[spec] = opened, read_state(opened.adapted)
        opened, start = self.opened[spec]
        # Under both: a task may be sent with either, and a worker is asked for the one that it opens.
        self.fingerprints[given] = self.fingerprints[spec] = opened.fingerprint
        write_state(opened.adapted, start)
        return opened

    def close(self) -> None:
        """Lets the model go."""
        self.opened.clear()


def auto_batch_tokens(device: torch.device) -> int:
    """Tokens in a batch of forward passes where none were asked for."""
    return CPU_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS
