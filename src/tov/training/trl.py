"""The final training by TRL's SFTTrainer, on exactly our tokens and labels."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from tov.config.records import TrainingSettings
from tov.errors import ConfigError, ModelError, NumericError
from tov.progress import Progress
from tov.text.encode import Encoded
from tov.training.final import TrainingLog, epochs_for


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

    trainer, start = trl_trainer(adapted, tokenizer, rows, settings, seed=seed, folder=folder), time.monotonic()
    trainer.add_callback(_Tell())
    trainer.train()
    losses = tuple(float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    if not all(map(math.isfinite, losses)):
        raise NumericError(
            "Training diverged: the log-loss is not a finite number.", fix="Lower --train-learning-rate."
        )
    seconds, tokens = round(time.monotonic() - start, 3), epochs_for(settings, len(rows)) * int(rows.lengths.sum())
    return TrainingLog(losses, int(trainer.state.global_step), tokens, seconds)


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
        trainer = trl.SFTTrainer(
            model=adapted, args=config, train_dataset=trl_dataset(rows), processing_class=tokenizer
        )
    except ValueError as error:
        raise ConfigError(f"TRL refuses these settings: {error}", fix="Do as it says, or use --trainer tov.") from None
    if (config.device.type, config.device.index or 0) != (device.type, device.index or 0):
        raise ConfigError(
            f"TRL trains on {config.device}, but --device asks for {device}.",
            fix="Name the GPU by CUDA_VISIBLE_DEVICES, and leave --device out.",
        )
    trainer.remove_callback(PrinterCallback)
    _check_trl_labels(trainer, rows)
    return trainer


def trl_dataset(rows: Encoded) -> datasets.Dataset:
    """(rows) exactly our tokens and labels; older versions of TRL make the labels from the mask."""
    pairs = [rows.row(index) for index in range(len(rows))]
    return datasets.Dataset.from_dict({
        "input_ids": [ids.tolist() for ids, _ in pairs],
        "labels": [labels.tolist() for _, labels in pairs],
        "completion_mask": [(labels == ids).astype(int).tolist() for ids, labels in pairs],
    })  # fmt: skip


def _check_trl_labels(trainer: Any, rows: Encoded) -> None:
    for index in range(len(rows)):
        batch = trainer.data_collator([trainer.train_dataset[index]])
        for ours, name in zip(rows.row(index), ("input_ids", "labels"), strict=True):
            if not np.array_equal(batch[name][0].numpy(), ours):
                raise ModelError(
                    f"The installed TRL makes other {name} of row {index + 1} than tov does.",
                    fix="Upgrade it with pip install -U trl, or use --trainer tov.",
                )
