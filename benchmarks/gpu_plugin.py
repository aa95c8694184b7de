"""A plugin for pytest: the file $TOV_TEST_RESULTS holds what every finished test found, also when the tests are killed.

It also gives back the GPUs that conftest.py hides from tests: it is loaded before, and no test has been collected yet.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FOUND: list[dict[str, Any]] = []
HIDING = "CUDA_VISIBLE_DEVICES"
VISIBLE = os.environ.get(HIDING)


def pytest_configure() -> None:
    if VISIBLE is None:
        os.environ.pop(HIDING, None)
    else:
        os.environ[HIDING] = VISIBLE


def pytest_runtest_logreport(report: Any) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    said = str(report.longrepr[-1]) if report.skipped else report.longreprtext[-2000:]
    FOUND.append({
        "test": report.nodeid.rpartition("::")[2], "outcome": report.outcome, "seconds": round(report.duration, 2),
        "measured": dict(report.user_properties), "said": said,
    })  # fmt: skip
    file = Path(os.environ["TOV_TEST_RESULTS"])
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(FOUND, indent=2))
    os.replace(temporary, file)
