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
    from tov.errors import ConfigError, DataError, ModelError, NumericError, RunError, StorageError, TovError
    from tov.verbs.compare import Compared, compare
    from tov.verbs.export import Exported, export
    from tov.verbs.inspect import Inspected, inspect
    from tov.verbs.plan import Plan, plan
    from tov.verbs.report import Reported, report
    from tov.verbs.result import Picked, Result
    from tov.verbs.score import fit, score
    from tov.verbs.select import reselect, select
    from tov.verbs.train import Trained, train

__version__ = "0.2.0"

_HOME = {
    **dict.fromkeys(("select", "reselect"), "tov.verbs.select"),
    **dict.fromkeys(("score", "fit"), "tov.verbs.score"),
    **dict.fromkeys(("Picked", "Result"), "tov.verbs.result"),
    **dict.fromkeys(("compare", "Compared"), "tov.verbs.compare"),
    **dict.fromkeys(("train", "Trained"), "tov.verbs.train"),
    **dict.fromkeys(("plan", "Plan"), "tov.verbs.plan"),
    **dict.fromkeys(("report", "Reported"), "tov.verbs.report"),
    **dict.fromkeys(("inspect", "Inspected"), "tov.verbs.inspect"),
    **dict.fromkeys(("export", "Exported"), "tov.verbs.export"),
    **dict.fromkeys(
        ("TovError", "ConfigError", "DataError", "ModelError", "NumericError", "RunError", "StorageError"), "tov.errors"
    ),
}
__all__ = [
    "Compared", "ConfigError", "DataError", "Exported", "Inspected", "ModelError", "NumericError", "Picked", "Plan", "Reported",
    "Result", "RunError", "StorageError", "TovError", "Trained", "compare", "export", "fit", "inspect", "plan", "report",
    "reselect", "score", "select", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tov' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
