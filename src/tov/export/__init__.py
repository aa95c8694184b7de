"""Chosen rows in the forms of trainers, each with the configuration that reads them.

A trainer is a file of this room: a `Trainer` (`tov.export.base`) that says which kinds of rows it takes and turns them into files.
Trainers are data to the verb: nothing elsewhere asks which one it is. No trainer is imported here.
"""

from __future__ import annotations

from tov.export.axolotl import Axolotl
from tov.export.base import Trainer
from tov.export.hub import Hub
from tov.export.llamafactory import LlamaFactory
from tov.export.trl import Trl
from tov.export.unsloth import Unsloth

TRAINERS: dict[str, Trainer] = {
    trainer.name: trainer for trainer in (Trl(), Axolotl(), LlamaFactory(), Unsloth(), Hub())
}
"""By the names that `--to` takes."""
