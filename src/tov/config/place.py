"""The settings of every verb: where its results go, and what it prints."""

from __future__ import annotations

from typing import Any

from tov.config.settings import NOT_KEPT, Settings, setting


class PlaceSettings(Settings):
    """Where results go and what is printed."""

    out: str = setting("output", "run folder; an interrupted run in it is resumed", min_length=1)
    force: bool = setting("output", "make the run anew; when finished, it replaces what --out holds", False)
    json_output: bool = setting("output", "print the result as JSON", False)
    quiet: bool = setting("output", "print no progress and no result", False)

    def shown(self) -> dict[str, Any]:
        """The settings that `config.yaml` holds: all but how this call behaves."""
        return self.model_dump(mode="json", exclude=NOT_KEPT)
