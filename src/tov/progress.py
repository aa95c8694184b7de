"""Progress on a terminal or in a notebook as a bar, elsewhere as plain lines; with rate and time left. Speaks rows and tokens.

What is reported are rows that are done and kept. A shard may take half an hour, so what walks through a part of the rows
(`each`) is heard too, wherever it is called from.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Protocol, TextIO, TypeVar

from tov.sinks import line, terminal

T = TypeVar("T")
EVERY = 10.0
"""Seconds between two plain lines."""
EVERY_SHOWN = 0.5
"""Seconds between two changes of a bar in a notebook."""
_heard: ContextVar[Callable[[float], None]] = ContextVar("heard", default=lambda share: None)


class Progress(Protocol):
    """What a long loop reports to."""

    def advance(self, rows: int, tokens: int = 0, *, found: bool = False) -> None:
        """`rows` more are done; `tokens` went through the model for them; `found` if an earlier call had left them."""

    def within(self, rows: float) -> None:
        """So many of the rows that the next `advance` will tell of are as good as done."""


class Silent:
    """Reports nothing."""

    def advance(self, rows: int, tokens: int = 0, *, found: bool = False) -> None:
        """Does nothing."""

    def within(self, rows: float) -> None:
        """Does nothing."""


class _Report:
    """Shows a text and the rows behind it."""

    def __init__(self, label: str, total: int, show: Callable[[float, str], None]) -> None:
        self.label, self.total, self.show = label, total, show
        self.rows = self.tokens = self.found = 0
        self.start = time.monotonic()

    def advance(self, rows: int, tokens: int = 0, *, found: bool = False) -> None:
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens
        self.found += rows * found
        self.within(0)

    def within(self, rows: float) -> None:
        fresh, seconds = self.rows - self.found, time.monotonic() - self.start
        tokens = self.tokens * (fresh + rows) / fresh if fresh else 0.0  # of the part under way nobody has told yet
        text = describe(self.label, self.rows + rows, self.total, tokens, seconds, found=self.found)
        self.show(self.rows + rows, text)


def _lines(out: TextIO) -> Callable[[float, str], None]:
    """One plain line at most every so many seconds."""
    last = time.monotonic()

    def show(rows: float, text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            tell(f"  {text}", out)

    return show


def in_notebook() -> bool:
    """Whether this runs in a kernel of Jupyter, whose cells show HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def _displayed(total: int) -> Callable[[float, str], None]:
    """A bar in the cell's output, changed in place, at most twice a second."""
    from html import escape
    from importlib import import_module

    handle, last, there = import_module("IPython.display").DisplayHandle(), 0.0, False  # only a notebook has it

    def show(rows: float, text: str) -> None:
        nonlocal last, there
        if time.monotonic() - last < EVERY_SHOWN and rows < total:
            return
        bar = f'<progress value="{rows:.0f}" max="{total}" aria-label="{escape(text)}"></progress> {escape(text)}'
        bundle = {"text/plain": text, "text/html": bar}
        (handle.update if there else handle.display)(bundle, raw=True)
        last, there = time.monotonic(), True

    return show


def tell(text: str, out: TextIO | None = None) -> None:
    """A line for whoever watches; that nobody can read it stops nothing."""
    with suppress(OSError, ValueError):
        print(terminal(text), file=out or sys.stderr, flush=True)


def describe(label: str, rows: float, total: int, tokens: float, seconds: float, *, found: int = 0) -> str:
    """`scan: 2,048 / 10,000 rows, 3,120 tokens/s, 1m 20s left`; rows that were `found` took no time."""
    seconds, fresh = max(seconds, 1e-9), rows - found
    rate = f", {tokens / seconds:,.0f} tokens/s" if tokens else ""
    eta = f", {duration((total - rows) * seconds / fresh)} left" if fresh and rows < total else ""
    return f"{label}: {int(rows):,} / {total:,} rows{rate}{eta}"


def counted(count: int, things: str) -> str:
    """`1 row`, `2,000 rows`: a number of things, whose name is given in the plural."""
    return f"{count:,} {things.removesuffix('s') if count == 1 else things}"


def duration(seconds: float) -> str:
    """`45s`, `3m 05s`, `2h 10m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def file_size(count: float) -> str:
    """`98 B`, `3.21 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.0f} TB" if count >= 99.5 else f"{count:.3g} TB"


@contextmanager
def track(label: str, total: int, *, quiet: bool = False) -> Iterator[Progress]:
    """A progress report to standard error for the length of a `with` block."""
    if quiet or sys.stderr is None:
        yield Silent()
    elif in_notebook():
        yield _Report(label, total, _displayed(total))
    elif not sys.stderr.isatty():
        yield _Report(label, total, _lines(sys.stderr))
    else:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        bar = RichProgress(
            BarColumn(), TextColumn("{task.description}", markup=False), console=Console(stderr=True), transient=True
        )
        with bar:
            task = bar.add_task(line(label), total=total)
            yield _Report(label, total, lambda rows, text: bar.update(task, completed=rows, description=line(text)))


@contextmanager
def part(progress: Progress, rows: int) -> Iterator[None]:
    """Within the block what `each` walks through are these rows, of which the next `advance` will tell."""
    before = _heard.set(lambda share: progress.within(share * rows))
    try:
        yield
    finally:
        _heard.reset(before)


def heard(share: float) -> None:
    """So much of the part that the caller works on is done: for whoever listens."""
    _heard.get()(share)


def each(items: Sequence[T], walk: int = 0, walks: int = 1) -> Iterator[T]:
    """The items one by one; how far they are is heard by the part that they belong to.

    Args:
        items: of the whole part.
        walk: which walk over the part this is, from 0.
        walks: how many there will be.
    """
    for done, item in enumerate(items, 1):
        yield item
        heard((walk + done / len(items)) / walks)
