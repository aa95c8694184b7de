"""`tov doctor`: looks at environment, devices, packages and cache, tries the kernels, and says what to do. Writes nothing."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tov.checks.machine import Check, of_cache, of_devices, of_environment, of_hub, of_packages
from tov.errors import DONE
from tov.progress import counted
from tov.sinks import line
from tov.system import FAILED

WIDTH = 110
"""Columns of the table where no terminal says how wide it is."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        checks: a line each.
    """

    checks: tuple[Check, ...]

    @property
    def record(self) -> dict[str, Any]:
        """What the command prints with --json."""
        return {"faults": self.faults, "checks": [asdict(check) for check in self.checks]}

    @property
    def faults(self) -> int:
        """How many checks found a fault."""
        return sum(check.state == "fault" for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0, or 1 if there is a fault."""
        return FAILED if self.faults else DONE

    def __str__(self) -> str:
        return _table(self.checks)


def doctor(*, online: bool = False) -> Diagnosis:
    """Looks at everything.

    Args:
        online: whether the Hub may be tried.
    """
    looks = (of_environment, of_devices, of_precision, of_packages, of_cache)
    return Diagnosis((*(check for look in looks for check in look()), of_hub(online=online)))


def of_precision() -> Iterator[Check]:
    """The kernels in each dtype on the device that `auto` takes."""
    from tov.checks.precision import precision_of
    from tov.model.load import DTYPES, pick_device

    device = pick_device("auto")
    for dtype in DTYPES:
        try:
            found = precision_of(dtype, device)
        except Exception as error:  # whatever a driver or a kernel says: it is the fault that is looked for
            do = "Use --device cpu, and install the build of torch that fits this machine's driver."
            yield Check(f"precision {dtype}", "fault", f"{type(error).__name__}: {error}", do)
            continue
        faults = found.faults(dtype)
        says = (
            f"error of a log-loss {found.head:.1g} nat by the head, {found.model:.1g} by a pass; noise floor "
            f"{found.floor:.1g}; fused adapter beside peft {found.gradients:.1g}"
        )
        other = "fp32" if dtype == "bf16" else "cpu"
        do = f"Use --{'dtype' if dtype == 'bf16' else 'device'} {other}, and report this line to the project."
        state: Any = "fault" if faults else "ok"
        yield Check(f"precision {dtype}", state, "; ".join(faults) or says, do if faults else "", asdict(found))


def _table(checks: tuple[Check, ...]) -> str:
    """A line a check, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="")
    for name, share in (("", 0), ("check", 0), ("found", 3), ("do", 2)):
        table.add_column(name, ratio=share or None, no_wrap=not share, overflow="fold")
    for check in checks:
        table.add_row(*(Text(line(cell)) for cell in (check.state, check.name, check.says, check.do)))
    written, width = io.StringIO(), shutil.get_terminal_size((WIDTH, 24)).columns
    Console(file=written, width=width, color_system=None).print(table)
    counts = Counter(check.state for check in checks)
    lines = [text.rstrip() for text in written.getvalue().splitlines()]
    told = [counted(counts[kind], f"{kind}s") for kind in ("note", "fault")]
    return "\n".join([*lines, "", f"{counts['ok']} ok, {', '.join(told)}"])
