"""What this machine and its packages are, and what is wrong with them. A check is a line: ok, note or fault, and what to do.

A fault keeps tov from working, or makes its numbers wrong. A note is something missing or small that a user may want to know.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tov.errors import TovError
from tov.model.builtin import ALIASES, packaged_file
from tov.objects.stores import cache_home
from tov.progress import file_size
from tov.runs.environment import hardware, versions

State = Literal["ok", "note", "fault"]
LITTLE_MEMORY, LITTLE_DISK = 2e9, 1e9
"""Bytes free under which a note is made: SmolLM2-135M takes 1.5 GB to scan; its converted copy and a path 0.7 GB on disk."""
OLDEST_PYTHON = (3, 10)
EXTRAS = {
    "trl": "tov train --trainer trl", "encoder": "rds/encoder=minilm", "faiss": "tsds/backend=faiss", "demo": "tov demo",
    "ray": "--engine ray", "s3": "s3:// URLs", "quantised": "--device-map, --load-in-4bit and --load-in-8bit",
}  # fmt: skip
"""Extra -> what it is for."""
KNOWN_FAULTS = (
    (
        "torch",
        (2, 8),
        (2, 12),
        "mps",
        "attention on MPS can be wrong where its inputs are views (pytorch/pytorch#181133)",
    ),
    ("torch", (0,), (2, 6), "", "torch.load runs code of a weights file even with weights_only (CVE-2025-32434)"),
)
"""Package, first version with the fault, first without, device ("" for any), and the fault with its source."""
INSTRUCTIONS = {
    "AVX2": ("avx2",), "AVX-512": ("avx512f",), "AVX-512 bf16": ("avx512_bf16",), "AMX bf16": ("amx_bf16",),
    "NEON": ("asimd", "neon"), "SVE": ("sve",), "bf16": ("bf16",),
}  # fmt: skip
"""Instruction sets, and the flags of /proc/cpuinfo that mean them."""


@dataclass(frozen=True)
class Check:
    """One line.

    Attributes:
        name: what was looked at.
        state: ok, note or fault.
        says: what was found.
        do: what to do; "" where nothing is.
        facts: the same as numbers, for programs.
    """

    name: str
    state: State
    says: str
    do: str = ""
    facts: Any = None


def of_environment() -> Iterator[Check]:
    """Python, tov, system, processor, memory, disk."""
    found = versions()
    new = sys.version_info[:2] >= OLDEST_PYTHON
    yield Check(
        "python", "ok" if new else "fault", found["python"], "" if new else "Install Python 3.10 or newer.", sys.executable
    )  # fmt: skip
    yield Check("tov", "ok", " ".join([found["tov"], *([found["commit"]] if "commit" in found else [])]), "", found)
    yield Check("system", "ok", platform.platform())
    yield _processor()
    yield _memory()
    yield _disk("disk here", Path.cwd(), "Give --out on a disk with more room.")


def _processor() -> Check:
    import torch

    here, sets = hardware(), instruction_sets()
    threads, cores = (
        here["threads"],
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else here["cores"],
    )
    says = f"{here['cpu']}; {threads} of {cores} cores used; {', '.join(sets) or 'instruction sets unknown'}"
    capability = torch.backends.cpu.get_cpu_capability()
    facts = {"sets": sets, "threads": threads, "cores": cores, "torch": capability}
    if threads < cores:
        return Check("processor", "note", says, f"Set OMP_NUM_THREADS={cores} if the machine is yours alone.", facts)
    return Check("processor", "ok", says, "", facts)


def instruction_sets() -> list[str]:
    """Those of `INSTRUCTIONS` that the processor has, as Linux tells; elsewhere what torch was built to use."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        import torch

        return [torch.backends.cpu.get_cpu_capability()]
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = set(match[1].split()) if match else set()
    return [name for name, any_of in INSTRUCTIONS.items() if flags & set(any_of)]


def _memory() -> Check:
    total, free = memory()
    if total is None or free is None:
        return Check(
            "memory", "note", "the system does not tell", "See that 2 GB are free for a model of 135M weights."
        )
    says, facts = f"{file_size(free)} free of {file_size(total)}", {"free": free, "total": total}
    if free < LITTLE_MEMORY:
        return Check("memory", "note", says, "Close other programs, or lower --batch-tokens.", facts)
    return Check("memory", "ok", says, "", facts)


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory in all, and those that can be had now; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), None
    except (AttributeError, ValueError, OSError):
        return None, None


def _disk(name: str, folder: Path, do: str) -> Check:
    """Free bytes at a folder, or at the nearest one above it that is there, and whether files can be made in it."""
    place = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(place).free
    facts = {"folder": str(folder), "free": free, "writable": _writable(place)}
    says = f"{folder}, {file_size(free)} free"
    if not facts["writable"]:
        return Check(name, "fault", f"{says}, and files cannot be made there", do, facts)
    return Check(name, "note" if free < LITTLE_DISK else "ok", says, do if free < LITTLE_DISK else "", facts)


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def of_devices() -> Iterator[Check]:
    """GPUs, and what `auto` takes for the device and the dtype, with the reason."""
    import torch

    from tov.model.load import pick_device, pick_dtype

    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield Check(f"cuda:{number}", "ok", f"{about.name}, {file_size(about.total_memory)}", "", about.total_memory)
    if torch.backends.mps.is_available():
        yield Check("mps", "ok", "Apple GPU; it shares the machine's memory")
    device = pick_device("auto")
    dtype = pick_dtype("auto", device)
    yield Check("device", "ok", f"auto is {device}" + "; there is no GPU that torch sees" * (device.type == "cpu"))
    yield Check("dtype", "ok", f"auto is {dtype}: {_why(dtype, device.type)}", "", dtype)


def _why(dtype: str, device: str) -> str:
    if device == "mps":
        return "fp32 is what MPS is used with"
    what = "the processor has AMX tiles" if device == "cpu" else "the GPU has bf16 units"
    if dtype == "bf16":
        return f"{what}, so bf16 is multiplied natively"
    return f"bf16 is slower here, because {what.replace('has', 'has no')}"


def of_packages() -> Iterator[Check]:
    """Versions against tov's lower bounds and against known faults; optional extras."""
    required = [_parsed(one) for one in importlib.metadata.requires("tov") or []]
    old = [
        f"{name} {_version(name) or 'is not installed'} (needs {bound})"
        for name, bound, extra in required
        if not extra and not _enough(name, bound)
    ]
    names = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "peft", "datasets"))
    do = "Install them anew: pip install --upgrade tov"
    yield Check("packages", "fault" if old else "ok", "; ".join(old) or names, do if old else "")
    yield from known_faults({name: _version(name) or "0" for name, *_ in KNOWN_FAULTS}, _device_type())
    for extra, use in EXTRAS.items():
        missing = [(name, bound) for name, bound, of in required if of == extra and not _enough(name, bound)]
        install = " ".join(f"'{name}>={bound}'" for name, bound in missing)
        says = f"for {use}: " + (", ".join(name for name, _ in missing) + " not installed" if missing else "installed")
        yield Check(f"extra {extra}", "note" if missing else "ok", says, f"pip install {install}" if missing else "")


def known_faults(installed: dict[str, str], device: str) -> Iterator[Check]:
    """A line for each known fault of the installed versions; one that says that there is none."""
    found = [
        Check("known faults", "fault", f"{name} {installed[name]}: {fault}", f"pip install '{name}>={_dotted(fixed)}'")
        for name, first, fixed, only, fault in KNOWN_FAULTS
        if first <= numbers(installed[name]) < fixed and only in ("", device)
    ]
    yield from found or [Check("known faults", "ok", "none of the installed versions has one that tov knows of")]


def _device_type() -> str:
    from tov.model.load import pick_device

    return pick_device("auto").type


def _parsed(requirement: str) -> tuple[str, str, str]:
    """(name, lower bound, extra) of a line like `trl>=0.20; extra == 'trl'`."""
    match = re.match(r"([\w.-]+)(?:>=([\w.]+))?(?:.*extra == ['\"]([\w-]+)['\"])?", requirement)
    assert match, requirement
    return match[1], match[2] or "0", match[3] or ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _enough(name: str, bound: str) -> bool:
    version = _version(name)
    return version is not None and numbers(version) >= numbers(bound)


def numbers(version: str) -> tuple[int, ...]:
    """(2, 13, 0) of `2.13.0+cpu`; what follows the numbers is left out, and so are zeros at the end."""
    found = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]  # type: ignore[index]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def of_cache() -> Iterator[Check]:
    """The folder of converted models, and which models of the aliases are at hand."""
    folder = cache_home()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    found = _disk("cache", folder, "Set TOV_CACHE to a folder on another disk.")
    yield Check(
        found.name, found.state, f"{found.says}; {file_size(size)} in it", found.do, {**found.facts, "size": size}
    )
    for alias in ALIASES:
        try:
            yield Check(f"model {alias}", "ok", "installed", "", str(packaged_file(alias)))
        except TovError as error:
            yield Check(f"model {alias}", "note", error.problem, error.fix)


def of_hub(*, online: bool) -> Check:
    """Whether the Hub answers; it is not asked unless `online`."""
    if not online:
        return Check("hub", "ok", "not tried; --online tries it")
    import urllib.error
    import urllib.request

    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError as error:  # it answered
        return Check("hub", "ok", f"{address} answers ({error.code})")
    except (OSError, ValueError) as error:
        do = "Name models and data by folders, or set HF_ENDPOINT to a mirror."
        return Check("hub", "note", f"{address} does not answer: {error}", do)
    offline = " (but HF_HUB_OFFLINE is set, so it is not used)" * (
        os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    )
    return Check("hub", "ok", f"{address} answers{offline}")
