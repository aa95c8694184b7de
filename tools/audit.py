"""Looks the pinned versions up in the list of known faults, by pip-audit; without a way to the list it says so and passes.

python tools/audit.py constraints.txt
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROBE, WHOLE = 20, 300
"""Seconds for one package, which shows whether the list can be reached, and for all."""


def audited(requirements: Path, seconds: float) -> list[dict[str, Any]]:
    """Each package with its `vulns`, or with a `skip_reason`; nothing where the list cannot be reached."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps", "--disable-pip"]
    command += ["--timeout", "5", "--progress-spinner", "off", "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        return list(json.loads(done.stdout)["dependencies"])
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return []


def main(pins: Path) -> int:
    lines = [line for line in pins.read_text(encoding="utf-8").splitlines() if "==" in line and line[0] != "#"]
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one.txt"
        one.write_text(f"{lines[0]}\n", encoding="utf-8")
        reached = any("vulns" in package for package in audited(one, PROBE))
    looked_up = [package for package in audited(pins, WHOLE) if "vulns" in package] if reached else []
    if not looked_up:
        print("pip-audit was skipped: the list of known faults is out of reach.")
        return 0
    faults = [(package["name"], package["version"], fault["id"]) for package in looked_up for fault in package["vulns"]]
    for name, version, fault in faults:
        print(f"{name} {version} has a known fault: {fault}")
    print(f"pip-audit: {len(looked_up)} of {len(lines)} pinned packages looked up, {len(faults)} known faults.")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
