"""The settings of `tov export`."""

from __future__ import annotations

from typing import Literal

from tov.config.place import PlaceSettings
from tov.config.settings import setting


class ExportConfig(PlaceSettings):
    """Settings of `tov export`."""

    from_run: str = setting("export", "run whose chosen rows are exported", min_length=1, named=True)
    to: Literal["trl", "axolotl", "llamafactory", "unsloth", "hub"] = setting(
        "export", "what the rows are written for: a trainer, or a data set of the Hugging Face Hub (hub)"
    )
    kind: Literal["conversations", "pairs", "text"] | None = setting(
        "export", "of rows of several kinds, the one that is written; the others are left out and counted", None
    )
