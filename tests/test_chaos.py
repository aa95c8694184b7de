"""Every command, killed at its file operations, in its writes and at random moments: the same command ends with the same files.

In the suite each verb is killed at a few operations of different kinds. `make chaos` (TOV_CHAOS=all) takes every single one,
30 random moments, and prints a table.
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from scene import Scene

ALL = os.environ.get("TOV_CHAOS") == "all"
MOMENTS = 30 if ALL else 1
"""Random moments a verb."""
VERBS = {"select": 3, "less": 2, "rds": 1, "from": 12, "fit": 1, "score": 2, "train": 3, "compare": 2}
"""Commands, and at how many operations each is killed in the suite, by each kind of fault in turn."""
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a process that has imported torch does not fork"
)


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, Counter[str]]]:
    """Counts by verb and kind of fault, printed at the end by `make chaos`."""
    counts: dict[str, Counter[str]] = {}
    yield counts
    columns = ("commands", "killed", "equal", "differ", "errors")
    lines = [
        ["verb and fault", *columns],
        *([name, *(str(count[one]) for one in columns)] for name, count in counts.items()),
    ]
    if ALL:
        print("\n" + "\n".join("  ".join(cell.rjust(10) for cell in [line[0].ljust(16), *line[1:]]) for line in lines))


def strikes(scene: Scene, name: str) -> Iterator[dict[str, Any]]:
    """Kinds of fault and the operations that they strike: all, or some of as many different kinds as there are."""
    operations = scene.whole(name).ended.operations
    if ALL:
        yield from ({"kind": kind, "at": at + 1} for at in range(len(operations)) for kind in ("kill", "tear"))
        return
    kinds = [re.sub(r"[0-9a-f]{8,}|\d+", "#", one) for one in operations]
    first = [at for at, kind in enumerate(kinds) if kinds.index(kind) == at]
    count = VERBS[name]
    for number in range(count):
        place = first[(2 * number + 1) * len(first) // (2 * count)]
        again = [at for at, kind in enumerate(kinds) if kind == kinds[place]]  # a shard in the middle, say
        yield {"kind": ("kill", "tear")[number % 2], "at": again[len(again) // 2] + 1}


def judged(counts: Counter[str], found: str) -> str:
    """What is wrong; counted."""
    counts["errors" if found.startswith("ended with") else "differ" if found else "equal"] += 1
    return found


@pytest.mark.timeout(7200 if ALL else 600)
@pytest.mark.parametrize("name", VERBS)
def test_killed_it_ends_with_the_same_files(name: str, scene: Scene, table: dict[str, Counter[str]]) -> None:
    faults = []
    for strike in strikes(scene, name):
        counts = table.setdefault(f"{name} {strike['kind']}", Counter())
        struck, found = scene.disturbed(name, [strike])
        counts.update(commands=1, killed=struck[0].killed)
        assert struck[0].killed or strike["kind"] == "tear", f"it was not killed: the test tests nothing\n{struck[0]}"
        if new := judged(counts, found):
            faults.append(f"{strike['kind']} at operation {strike['at']} ({struck[0].at}): {new}")
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.timeout(7200 if ALL else 600)
@pytest.mark.parametrize("name", ["select", "less", "score", "train", "compare"] if ALL else ["select", "compare"])
def test_killed_at_any_moment_it_ends_with_the_same_files(
    name: str, scene: Scene, table: dict[str, Counter[str]]
) -> None:
    """By a share of the time that it takes undisturbed, which may be any moment on a busy machine."""
    faults, draw, counts = [], random.Random(name), table.setdefault(f"{name} moments", Counter())
    for _ in range(MOMENTS):
        share = draw.random()
        struck, found = scene.disturbed(name, [{"seconds": share * scene.whole(name).ended.seconds}])
        counts.update(commands=1, killed=struck[0].killed)
        if new := judged(counts, found):
            faults.append(f"after {share:.3f} of its time: {new}")
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.timeout(7200 if ALL else 600)
@pytest.mark.parametrize("name", ["select", "from", "train", "compare"] if ALL else ["from", "select"])
def test_killed_again_while_it_goes_on(name: str, scene: Scene, table: dict[str, Counter[str]]) -> None:
    """Twice or three times; the later kills strike what the first has left to do."""
    faults, draw, counts = [], random.Random(name), table.setdefault(f"{name} again", Counter())
    for _ in range(20 if ALL else 1):
        left = len(scene.whole(name).ended.operations)
        plan = [
            {"kind": draw.choice(("kill", "tear")), "at": draw.randint(12, max(12, left // part))} for part in (1, 2, 3)
        ]
        struck, found = scene.disturbed(name, plan)
        counts.update(commands=len(plan), killed=sum(one.killed for one in struck))
        assert struck[0].killed
        if new := judged(counts, found):
            faults.append(f"{[(one.at, one.code) for one in struck]}: {new}")
    assert not faults, "\n".join(faults)


def test_killed_before_its_settings_are_written_down(scene: Scene) -> None:
    operations = scene.whole("from").ended.operations
    [at] = [
        at for at, one in enumerate(operations, 1) if one.startswith("open /run/.config.yaml") and one.endswith(".tmp")
    ][:1]
    assert scene.disturbed("from", [{"kind": "kill", "at": at}])[1] == ""


def test_killed_within_a_line_of_its_log(scene: Scene) -> None:
    operations = scene.whole("from").ended.operations
    at = max(at for at, one in enumerate(operations, 1) if one == "open /run/events.jsonl")
    assert scene.disturbed("from", [{"kind": "tear", "at": at}])[1] == ""


@pytest.mark.slow
@pytest.mark.timeout(7200 if ALL else 600)
@pytest.mark.parametrize("name", ["from", "select", "train"] if ALL else ["from", "train"])
def test_killed_under_force_the_old_run_or_the_new_one_is_whole(name: str, scene: Scene) -> None:
    """Seen by the next command: what is in --out is finished, and is the old run or the new one to the byte."""
    operations = scene.whole(name).ended.operations
    other = {"from": ("--seed", 1), "select": ("--seed", 1), "train": ("--seed", 1)}[name]
    faults = []
    for at in range(2, len(operations) + 12, 1 if ALL else max(1, len(operations) // 3)):
        scene.clear()
        assert scene.run(name, *other).code == 0
        old = scene.settled()
        struck = scene.run(name, "--force", kind="kill", at=at)
        if not struck.killed:
            break
        if scene.missing_from(old) and scene.missing_from(scene.whole(name).files):
            faults.append(f"at operation {at} ({struck.at}): neither is whole")
        if name != "train":
            read = scene.server.run("select", "--from", scene.place / "run", "--n", 4, "--quiet", "--out",
                                    scene.place / "read", below=scene.place)  # fmt: skip
            if read.code:
                faults.append(f"at operation {at} ({struck.at}): {read.said}")
            scene.drop("read")
        again = scene.run(name, "--force")
        if again.code or (found := scene.differs(name)):
            faults.append(f"at operation {at} ({struck.at}), given again: {again.said or found}")
    assert not faults, "\n".join(faults)
