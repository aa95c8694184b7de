"""Who works in a run folder at a URL: an object `.lease-N`, made under the condition that it is not there.

Its holder renews it. One that was not renewed for `LEASE` seconds is over, and who comes next makes `.lease-(N+1)`; so is one
whose process is gone from this machine. Clocks of two machines may differ by `SKEW` seconds.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tov.errors import RunError
from tov.objects.stores import listed, tried

LEASE, RENEW, SKEW = 90.0, 20.0, 30.0
"""Seconds that a lease holds without being renewed; between two renewals; and by which two clocks may differ."""
LEASES = re.compile(r"\.lease-(\d+)")


def at_work(url: str, who: str) -> RunError:
    """What is said where another process works in a run."""
    return RunError(f"Another process is at work in {url} ({who}).", fix="Wait for it, or choose another --out.")


@dataclass
class Lease:
    """The right to work in a folder of a store.

    Attributes:
        fs: the store.
        root: the folder in it.
        url: what its user calls it.
        lost: why it is another's now; "" while it is held.
        id: of this holder.
    """

    fs: Any
    root: str
    url: str
    lost: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _place: str = field(init=False, default="", repr=False)
    _renewed: float = field(init=False, default=0.0, repr=False)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Holds the lease for the block, renewed by a thread.

        Raises:
            RunError: another process holds it.
            StorageError: the store cannot be read or written.
        """
        place, over = self._acquire(), threading.Event()
        self._place, self._renewed = place, time.time()
        thread = threading.Thread(target=self._keep, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            if not self.lost:
                with suppress(Exception):
                    self.fs.rm_file(place)

    def check(self) -> None:
        """Raises RunError if another process has taken it over; one that has slept for longer than the lease looks first."""
        if not self.lost and self._place and time.time() - self._renewed > LEASE:
            self._renew()
        if self.lost:
            raise at_work(self.url, self.lost)

    def _leases(self) -> dict[int, str]:
        found: list[str] = listed(self.fs, self.url, lambda: self.fs.ls(self.root, detail=False), [])
        names = ((LEASES.fullmatch(path.rpartition("/")[2]), path) for path in found)
        return {int(match[1]): path for match, path in names if match}

    def _acquire(self) -> str:
        leases = self._leases()
        last = max(leases, default=0)
        if leases and (who := self._holder(leases[last])):
            raise at_work(self.url, who)
        place = f"{self.root}/.lease-{last + 1}"
        try:
            tried("written", self.url, lambda: self.fs.pipe_file(place, self._content(), mode="create"))
        except FileExistsError:
            mine = self._read(place)
            if not mine or mine["id"] != self.id:  # a try that failed may have made it all the same
                raise at_work(self.url, "it came first") from None
        for number, older in leases.items():
            if number <= last:
                with suppress(Exception):
                    self.fs.rm_file(older)
        return place

    def _holder(self, place: str) -> str:
        """Who holds a lease; "" if it is over."""
        lease = self._read(place)
        if lease is None:
            return ""
        mine = lease["host"] == socket.gethostname() and lease["machine"] == _machine()
        if mine and not _alive(lease["process"]):
            return ""
        left = lease["until"] + SKEW - time.time()
        return (
            f"{lease['host']}, process {lease['process']}; its lease ends in {left:.0f} s at the latest"
            if left > 0
            else ""
        )

    def _read(self, place: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(tried("read", self.url, lambda: self.fs.cat_file(place))))
        except (FileNotFoundError, ValueError):
            return None

    def _content(self) -> bytes:
        lease = {"id": self.id, "host": socket.gethostname(), "machine": _machine(), "process": os.getpid(),
                 "until": time.time() + LEASE}  # fmt: skip
        return json.dumps(lease).encode()

    def _keep(self, over: threading.Event) -> None:
        while not self.lost and not over.wait(RENEW):
            self._renew()

    def _renew(self) -> None:
        """Renews the lease if it is still this holder's: who took over may have ended since, and taken its own away."""
        number = int(self._place.rpartition("-")[2])
        try:
            newer, mine = max(self._leases(), default=0) > number, self._read(self._place)
            if newer or not mine or mine["id"] != self.id:
                self.lost = "it has taken over, as this one's lease had ended"
                return
            self.fs.pipe_file(self._place, self._content())
            self._renewed = time.time()
        except Exception:  # tried again at the next turn, while the lease holds
            if time.time() - self._renewed > LEASE:
                self.lost = "the lease could not be renewed"


def _machine() -> str:
    """What tells this start of this machine from another of the same name."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
