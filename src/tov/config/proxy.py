"""The settings of a proxy, a small model that scores the rows in place of the one that they are chosen for."""

from __future__ import annotations

from pydantic import model_validator

from tov.config.settings import Settings, setting
from tov.errors import ConfigError

SAMPLE = 256
"""Rows that both models score, where --proxy-sample is not given."""


class ProxySettings(Settings):
    """Of methods that read a model."""

    proxy_model: str | None = setting(
        "scan",
        "proxy, a smaller model that scores the rows in place of --model, for which they are still chosen, and which is "
        "trained on them: Hub id, local folder, .gguf file or alias",
        None, min_length=1, named=True, used_by=("model",),
    )  # fmt: skip
    proxy_sample: int = setting(
        "scan",
        "rows of the pool, drawn at random, that --model scores too, so that the agreement of proxy and model is measured; "
        "0: not measured",
        SAMPLE, ge=0, used_by=("model",), unless=SAMPLE,
    )  # fmt: skip

    @model_validator(mode="after")
    def _of_a_proxy(self) -> ProxySettings:
        if self.proxy_model is None and self.proxy_sample != SAMPLE:
            raise ConfigError(
                "--proxy-sample has no effect without --proxy-model.", fix="Name a --proxy-model, or leave it out."
            )
        return self
