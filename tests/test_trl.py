"""What tov chose goes into TRL's trainer as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

import tov
from tiny import make_rows

trl = pytest.importorskip("trl", reason="trl is not installed (pip install 'tov[trl]')")


@pytest.mark.parametrize("layout", ["messages", "prompt+completion"])
def test_the_chosen_rows_train_in_sft_trainer(tmp_path: Path, tiny_folder: Path, layout: str) -> None:
    rows = make_rows(24)
    if layout == "messages":
        rows = [
            {
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["completion"]},
                ]
            }
            for row in rows
        ]
    picked = tov.select(
        model=str(tiny_folder), pool=rows[4:], target=rows[:4], n=8, epochs=1, base_size=8, max_length=64,
        out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    settings = trl.SFTConfig(
        output_dir=str(tmp_path / "trained"), max_steps=1, per_device_train_batch_size=4, use_cpu=True, report_to="none",
        bf16=False, max_length=64, disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = trl.SFTTrainer(model=str(tiny_folder), args=settings, train_dataset=picked.dataset)
    loss = trainer.train().training_loss
    assert 0 < loss < 20, f"the trainer took the rows but learnt from nothing (loss {loss})"
