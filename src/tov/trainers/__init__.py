"""Chosen rows in the forms of trainers, each with the configuration that reads them.

A trainer is a file of this room: a `Trainer` (`tov.trainers.base`) that says which kinds of rows it takes and turns them into
files. Nothing elsewhere asks which one it is. No trainer's own package is imported.
"""

from __future__ import annotations

from tov.trainers.axolotl import Axolotl
from tov.trainers.base import Trainer
from tov.trainers.hub import Hub
from tov.trainers.llamafactory import LlamaFactory
from tov.trainers.trl import Trl
from tov.trainers.unsloth import Unsloth

TRAINERS: dict[str, Trainer] = {
    trainer.name: trainer for trainer in (Trl(), Axolotl(), LlamaFactory(), Unsloth(), Hub())
}
"""By the names that `--to` takes."""
