"""What a run's numbers were made with and on: versions, commit, processor, GPUs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PACKAGES = ("tov", "torch", "transformers", "peft", "datasets", "pyarrow", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    by_package = {"python": platform.python_version()}
    commit = _commit()
    if commit:
        by_package["commit"] = commit
    for name in PACKAGES:
        try:
            by_package[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            by_package[name] = "not installed"
    return by_package


def _commit() -> str | None:
    """What `git describe` says of the checkout that tov runs from, if it does."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    with suppress(OSError):
        completed = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
        return completed.stdout.strip() or None
    return None


def hardware() -> dict[str, Any]:
    """What the numbers were made on."""
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def peak_memory() -> int | None:
    """Bytes of memory that this process has held at most, or since `forget_peak`; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return 1024 * int(Path("/proc/self/status").read_text(encoding="ascii").split("VmHWM:")[1].split()[0])
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def forget_peak() -> bool:
    """Makes `peak_memory` count from now on; False where the system cannot, which is anywhere but on Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return True
    return False


def resident_memory() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def now() -> str:
    """UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
