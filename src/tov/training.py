"""The final training: chosen rows, from the pretrained weights, by the run's LoRA settings, in our loop or in TRL's.

Steps no optimizer itself.

Source: Jain, Montanari and Sasoglu (2025), the training after the selection: 16*1024/n epochs, so that every n costs the same
number of steps; linear decay is their likely schedule. Differs: n above the budget still gets one whole epoch.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from tov.config import TrainingSettings
from tov.errors import ConfigError, ModelError, NumericError
from tov.model.train import make_optimizer, train_epoch
from tov.progress import Progress
from tov.seeds import derive, generator
from tov.text.encode import Encoded


@dataclass(frozen=True)
class TrainingLog:
    """What a training cost and how its loss went.

    Attributes:
        losses: mean training log-loss of each epoch, nats a token.
        steps: optimizer steps.
        tokens: tokens passed forward and backward, padding not counted.
        seconds: wall time.
    """

    losses: tuple[float, ...]
    steps: int
    tokens: int
    seconds: float

    @property
    def diverged(self) -> bool | None:
        """Whether the last epoch's loss is above the first's: the rate is too high for these rows. None for one epoch."""
        return self.losses[-1] > self.losses[0] if len(self.losses) > 1 else None

    def facts(self) -> dict[str, Any]:
        """For a trial's record."""
        return {**asdict(self), "losses": list(self.losses), "diverged": self.diverged}


def epochs_for(settings: TrainingSettings, rows: int) -> int:
    """Epochs over so many rows: as given, else --train-rows over n, rounded, at least 1."""
    return settings.train_epochs or max(1, round(settings.train_rows / rows))


def train(
    adapted: Any,
    rows: Encoded,
    settings: TrainingSettings,
    *,
    seed: int,
    progress: Progress | None = None,
    batch_tokens: int = 2048,
) -> TrainingLog:
    """Trains the adapter (and a new head) from its present state.

    Args:
        adapted: a PeftModel.
        rows: (n rows) encoded; each has a scored token.
        settings: with the learning rate named.
        seed: of the order of rows and of dropout; the same seed and n, the same positions in the same batches.
        progress: told of rows done.
        batch_tokens: tokens of a part of a step.

    Raises:
        NumericError: training diverged to a loss that is no number.
    """
    assert settings.train_learning_rate
    peak, epochs = settings.train_learning_rate, epochs_for(settings, len(rows))
    per_epoch = math.ceil(len(rows) / settings.train_batch_size)
    optimizer, losses, start = make_optimizer(adapted, "fresh"), [], time.monotonic()
    for epoch in range(epochs):
        done = epoch * per_epoch

        def rate(step: int, done: int = done) -> float:
            return peak * (1.0 - (done + step) / (epochs * per_epoch))

        try:
            losses.append(train_epoch(
                adapted, rows, order=generator(seed, "training order", epoch).permutation(len(rows)), optimizer=optimizer,
                rate=rate, batch_size=settings.train_batch_size, batch_tokens=batch_tokens,
                seed=derive(seed, "training dropout", epoch), progress=progress,
            ))  # fmt: skip
        except NumericError as error:
            raise NumericError(error.problem, fix="lower --train-learning-rate") from None
    seconds = round(time.monotonic() - start, 3)
    return TrainingLog(tuple(losses), epochs * per_epoch, epochs * int(rows.lengths.sum()), seconds)


def train_by_trl(
    adapted: Any,
    tokenizer: Any,
    rows: Encoded,
    settings: TrainingSettings,
    *,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> TrainingLog:
    """Trains the adapter of a causal model with TRL's SFTTrainer, which leaves the model's forward changed.

    Differs from `train`: a step's loss is the mean over the batch's scored tokens, not over rows of each row's mean (Eq. 7), so
    long answers weigh more; the order of rows is TRL's; logits are of the model's own dtype; activations are recomputed.

    Args:
        adapted: a PeftModel.
        tokenizer: its tokenizer; TRL only pads with it.
        rows: (n rows) encoded; each has a scored token.
        settings: with the learning rate named.
        seed: of the order of rows and of dropout.
        folder: TRL's output folder.
        progress: told of rows done.

    Raises:
        ConfigError: TRL does not take the model or the machine as it is.
        ModelError: the installed TRL makes other labels of our rows.
        NumericError: training diverged to a loss that is no number.
    """
    from transformers import TrainerCallback

    class _Tell(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if progress:
                progress.advance(settings.train_batch_size, round(settings.train_batch_size * rows.lengths.mean()))

    made, start = trl_trainer(adapted, tokenizer, rows, settings, seed=seed, folder=folder), time.monotonic()
    made.add_callback(_Tell())
    made.train()
    losses = tuple(float(entry["loss"]) for entry in made.state.log_history if "loss" in entry)
    if not all(map(math.isfinite, losses)):
        raise NumericError("training diverged: the log-loss is not a finite number", fix="lower --train-learning-rate")
    seconds, tokens = round(time.monotonic() - start, 3), epochs_for(settings, len(rows)) * int(rows.lengths.sum())
    return TrainingLog(losses, int(made.state.global_step), tokens, seconds)


def trl_trainer(
    adapted: Any, tokenizer: Any, rows: Encoded, settings: TrainingSettings, *, seed: int, folder: Path
) -> Any:
    """TRL's SFTTrainer with our epochs, batches, rate and linear decay, AdamW without weight decay, and no clipping."""
    import trl
    from transformers.trainer_callback import PrinterCallback

    device = next(adapted.parameters()).device
    try:
        config = trl.SFTConfig(
            output_dir=str(folder), num_train_epochs=epochs_for(settings, len(rows)), seed=seed % 2**32,
            per_device_train_batch_size=settings.train_batch_size, learning_rate=settings.train_learning_rate,
            lr_scheduler_type="linear", warmup_steps=0, optim="adamw_torch", weight_decay=0.0, max_grad_norm=0.0,
            bf16=False, fp16=False, use_cpu=device.type == "cpu", dataloader_pin_memory=device.type == "cuda",
            completion_only_loss=True, packing=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True},
            logging_strategy="epoch", logging_nan_inf_filter=False, save_strategy="no", report_to="none",
            disable_tqdm=True,
        )  # fmt: skip
        made = trl.SFTTrainer(model=adapted, args=config, train_dataset=trl_dataset(rows), processing_class=tokenizer)
    except ValueError as error:
        raise ConfigError(f"TRL refuses: {error}", fix="do as it says, or use --trainer tov") from None
    if (config.device.type, config.device.index or 0) != (device.type, device.index or 0):
        raise ConfigError(
            f"TRL trains on {config.device}, not on {device}",
            fix="name the GPU by CUDA_VISIBLE_DEVICES, without --device",
        )
    made.remove_callback(PrinterCallback)
    _check_trl_labels(made, rows)
    return made


def trl_dataset(rows: Encoded) -> datasets.Dataset:
    """(rows) exactly our tokens and labels; older versions of TRL make the labels from the mask."""
    pairs = [rows.row(index) for index in range(len(rows))]
    return datasets.Dataset.from_dict({
        "input_ids": [ids.tolist() for ids, _ in pairs],
        "labels": [labels.tolist() for _, labels in pairs],
        "completion_mask": [(labels == ids).astype(int).tolist() for ids, labels in pairs],
    })  # fmt: skip


def _check_trl_labels(made: Any, rows: Encoded) -> None:
    for index in range(len(rows)):
        batch = made.data_collator([made.train_dataset[index]])
        for ours, name in zip(rows.row(index), ("input_ids", "labels"), strict=True):
            if not np.array_equal(batch[name][0].numpy(), ours):
                raise ModelError(
                    f"the installed TRL makes other {name} of row {index + 1} than tov does",
                    fix="pip install -U trl, or use --trainer tov",
                )
