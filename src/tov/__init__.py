"""tov: picks, out of a large mixed pool, the training rows that help your target most (Train on Validation).

    import tov
    picked = tov.select(model="smollm2-135m", pool="pool.jsonl", target="target.jsonl", n=1000)
    SFTTrainer(train_dataset=picked.dataset, ...)

The front door is lazy: names are imported when first used, so `import tov` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tov.api import Picked, Result, fit, reselect, score, select
    from tov.comparison.run import Compared, compare
    from tov.errors import ConfigError, DataError, ModelError, NumericError, RunError, StorageError, TovError
    from tov.final import Trained, train
    from tov.planning import Plan, plan

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(("select", "reselect", "score", "fit", "Picked", "Result"), "tov.api"),
    **dict.fromkeys(("compare", "Compared"), "tov.comparison.run"),
    **dict.fromkeys(("train", "Trained"), "tov.final"),
    **dict.fromkeys(("plan", "Plan"), "tov.planning"),
    **dict.fromkeys(
        ("TovError", "ConfigError", "DataError", "ModelError", "NumericError", "RunError", "StorageError"), "tov.errors"
    ),
}
__all__ = [
    "Compared", "ConfigError", "DataError", "ModelError", "NumericError", "Picked", "Plan", "Result", "RunError",
    "StorageError", "TovError", "Trained", "compare", "fit", "plan", "reselect", "score", "select", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tov' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
