"""Progress on a terminal as a bar, elsewhere as plain lines; both with rate and time left. Speaks rows and tokens."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO


class Progress(Protocol):
    """What a long loop reports to."""

    def advance(self, rows: int, tokens: int = 0) -> None:
        """`rows` more are done; `tokens` went through the model for them."""


class Silent:
    """Reports nothing."""

    def advance(self, rows: int, tokens: int = 0) -> None:
        """Does nothing."""


class _Lines:
    """One plain line at most every `every` seconds."""

    def __init__(self, label: str, total: int, out: TextIO, every: float) -> None:
        self.label, self.total, self.out, self.every = label, total, out, every
        self.rows = self.tokens = 0
        self.start = self.last = time.monotonic()

    def advance(self, rows: int, tokens: int = 0) -> None:
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            print(f"  {describe(self.label, self.rows, self.total, self.tokens, now - self.start)}", file=self.out)


class _Bar:
    """A bar by rich."""

    def __init__(self, update: object, label: str, total: int) -> None:
        self.update, self.label, self.total = update, label, total
        self.rows = self.tokens = 0
        self.start = time.monotonic()

    def advance(self, rows: int, tokens: int = 0) -> None:
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens
        text = describe(self.label, self.rows, self.total, self.tokens, time.monotonic() - self.start)
        self.update(self.rows, text)  # type: ignore[operator]


def describe(label: str, rows: int, total: int, tokens: int, seconds: float) -> str:
    """`scan: 2,048 / 10,000 rows, 3,120 tokens/s, 1m 20s left`."""
    seconds = max(seconds, 1e-9)
    left = (total - rows) * seconds / rows if rows else float("nan")
    rate = f", {tokens / seconds:,.0f} tokens/s" if tokens else ""
    eta = f", {duration(left)} left" if rows and rows < total else ""
    return f"{label}: {rows:,} / {total:,} rows{rate}{eta}"


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
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"


@contextmanager
def track(label: str, total: int, *, quiet: bool = False, every: float = 10.0) -> Iterator[Progress]:
    """A progress report to standard error for the length of a `with` block."""
    if quiet:
        yield Silent()
    elif not sys.stderr.isatty():
        yield _Lines(label, total, sys.stderr, every)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        bar = RichProgress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True)
        with bar:
            task = bar.add_task(label, total=total)
            yield _Bar(lambda rows, text: bar.update(task, completed=rows, description=text), label, total)
