"""A disk that fills up at any write: a sentence, no traceback, and with room the same command ends with the same files.

Really full is a small tmpfs, where this process may mount one. Everywhere, from the k-th operation on nothing can be created.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chaos import Ended
from scene import Scene

ALL = os.environ.get("TOV_CHAOS") == "all"
PAGE = 4096
"""A tmpfs is as large as so many of these."""
SIZES = {"select": 2, "less": 1, "from": 3, "score": 1, "train": 1, "compare": 1}
"""Commands, and at how many sizes of the disk, and operations, each is tried in the suite."""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a process that has imported torch does not fork"
)


def mount(place: Path, options: str) -> bool:
    """Whether a tmpfs could be mounted there."""
    try:
        return not subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tov", place], capture_output=True).returncode
    except FileNotFoundError:
        return False


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """A disk of so many bytes; skips where none can be mounted."""
    if not mount(place, f"size={size}"):
        pytest.skip("this process may not mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def said_wrong(ended: Ended) -> str:
    """What is wrong with the way a command ended on a full disk."""
    if ended.code == 0:
        return ""
    if ended.code != 1 or not ended.explained:
        return f"ended with {ended.code}: {ended.said[-1500:]}"
    full = "disk is full" in ended.said or "No space left" in ended.said
    return "" if full else f"does not say that the disk is full: {ended.said[-1500:]}"


def some(count: int, of: int) -> list[int]:
    """All numbers from 1, or so many of them, evenly."""
    return list(range(1, of + 1)) if ALL else [1 + (2 * at + 1) * of // (2 * count) for at in range(count)]


@pytest.mark.slow
@pytest.mark.timeout(7200 if ALL else 600)
@pytest.mark.parametrize("name", SIZES)
def test_on_a_small_disk(name: str, scene: Scene) -> None:
    """Of every size in pages up to what it takes (and a little more, for what is written beside the old)."""
    most, faults, full = sum(-(-size // PAGE) for size in scene.whole(name).sizes), [], 0
    scene.clear()
    for size in some(SIZES[name], most + 1):
        with small_disk(scene.place, size * PAGE):
            ended = scene.run(name)
            full += ended.code == 1
            kept = scene.shards()
            wrong = said_wrong(ended)
            assert mount(scene.place, "remount,size=64m"), "the disk could not be made larger"
            again = scene.run(name)
            wrong = wrong or (again.said if again.code else scene.differs(name))
            lost = [one for one, written in kept.items() if scene.shards().get(one) != written]
            if wrong or lost:
                faults.append(f"{size} pages: {wrong or f'made again: {lost}'}")
    assert full, "the disk was never full: the test tests nothing"
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.timeout(7200 if ALL else 600)
@pytest.mark.parametrize("name", SIZES)
def test_from_an_operation_on_nothing_can_be_created(name: str, scene: Scene) -> None:
    operations, faults, full = scene.whole(name).ended.operations, [], 0
    for at in some(SIZES[name], len(operations)):
        scene.clear()
        ended = scene.run(name, kind="fill", at=at)
        full += ended.code == 1
        wrong = said_wrong(ended)
        again = scene.run(name)
        wrong = wrong or (again.said if again.code else scene.differs(name))
        if wrong:
            faults.append(f"from operation {at} on ({operations[at - 1]}): {wrong}")
    assert full, "the disk was never full: the test tests nothing"
    assert not faults, "\n".join(faults)
