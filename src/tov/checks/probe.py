"""How fast and how large a run will be: forward and backward passes timed for some seconds, on rows of its own pool.

Knows a model and rows as tokens; must not know a method's name. Rates are tokens a second, padding not counted, as in `Stage`.
Nothing is trained: the learning rate of every step is 0. The first pass of each kind is a warm-up and is not counted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from tov.engine.models import Lora, ModelSpec, Opened
from tov.methods.base import NOISE_ROWS, Stage
from tov.methods.shared.gradients import moments_by_name, products
from tov.methods.tov.scan import noise_floor
from tov.model.adapters import parameters, read_state
from tov.model.gradients import per_example_gradients
from tov.model.kernels.joined import scanning
from tov.model.kernels.memory import KEPT
from tov.model.logloss import row_logprobs
from tov.progress import Silent
from tov.runs.environment import forget_peak, peak_memory, resident_memory
from tov.text.batches import collate, plan
from tov.text.encode import Encoded
from tov.training.loop import make_optimizer, moments_of, train_epoch

SECONDS = 4.0
"""That a kind of pass is timed for, at least `STEPS` steps of an optimizer or `PASSES` batches."""
LONGEST = 20.0
"""Seconds after which a kind of pass has been timed for long enough, however few passes were made."""
STEPS, PASSES = 3, 6
SCAN = "scan"
"""The stage in which every pool row is made tokens of."""
SPARE = KEPT // 2
"""Bytes of freed memory that a long run on a CPU keeps and a short probe does not: it may keep twice as many. Measured: 0.4 GB
(MiniLM, 3,000 rows) and 0.9 GB (SmolLM2-135M, 600 rows)."""
MOMENTS = 8
"""Bytes of AdamW's two fp32 moments of a parameter."""


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        rows: a second, made tokens of.
        forward: tokens a second that pass forward in a scan.
        training: tokens a second that pass forward and backward in steps of an optimizer; None if that was not measured.
        by_row: likewise where each row's gradient is taken and compared; None if that was not measured.
        noise: rows a second of the noise floor, each passed in a batch and alone; None if that was not measured.
        room: bytes that the passes took at most beside what was there before them; None where the system does not tell.
    """

    rows: float
    forward: float
    training: float | None = None
    by_row: float | None = None
    noise: float | None = None
    room: int | None = None


def seconds_of(stage: Stage, rates: Rates, rows: float) -> float | None:
    """Seconds of a stage; None where nothing that was measured says how long it takes.

    What passes forward alone takes its tokens over the forward rate, what passes backward too its tokens over the rate of
    that pass. The scan also makes tokens of every row, and may measure the noise floor. Text that no model reads has no
    seconds.

    Args:
        stage: its tokens.
        rates: as measured.
        rows: of the pool that the scan reads.
    """
    reading = rows / rates.rows if stage.name == SCAN else 0.0
    if not stage.forward:
        return reading if stage.name == SCAN else None
    backward = rates.by_row if stage.by_row else rates.training
    if stage.backward and backward is None:
        return None
    both = stage.backward / backward if backward else 0.0
    reading += min(stage.noise_rows, rows) / rates.noise if rates.noise else 0.0
    return reading + (stage.forward - stage.backward) / rates.forward + both


@dataclass
class Probe:
    """Measures on rows of a pool, each kind of pass and adapter once.

    Attributes:
        spec: the model that the run opens.
        opened: the same, opened.
        rows: of the pool, drawn at random, those with a scored token.
        rows_per_second: made tokens of.
        batch_tokens: most tokens in a batch of a scan.
        shard_rows: rows whose batches are planned together.
        measured: rates, and bytes that the passes took, by adapter, kind and batch size.
        seconds: that the measuring took.
        cpu_seconds: that the processor worked on it, all threads together; fewer where other programs had their turn.
    """

    spec: ModelSpec
    opened: Opened
    rows: Encoded
    rows_per_second: float
    batch_tokens: int
    shard_rows: int
    measured: dict[Any, tuple[float, int | None]] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def rates(self, stages: Sequence[Stage], record: Any) -> Rates:
        """The rates that these stages need.

        Args:
            stages: of a method.
            record: with the settings of its adapter, `batch_size`, and `gradient_type` if it has one.
        """
        begun, rows = (time.perf_counter(), time.process_time()), int(getattr(record, "batch_size", None) or 16)
        adam = getattr(record, "gradient_type", "sgd") == "adam"
        kinds = {
            "forward": (_any(stages), (), self._forward),
            "training": (_any(stages, by_row=False), (rows,), lambda opened: self._training(opened, rows)),
            "by_row": (_any(stages, by_row=True), (adam,), lambda opened: self._by_row(opened, adam)),
            "noise": (any(stage.noise_rows for stage in stages), (), self._noise),
        }
        found = {
            name: self._once(record, (name, *of), measure) for name, (needed, of, measure) in kinds.items() if needed
        }
        self.seconds += time.perf_counter() - begun[0]
        self.cpu_seconds += time.process_time() - begun[1]
        rooms = [room for _, room in found.values()]
        return Rates(
            self.rows_per_second, **{"forward": 0.0, **{name: rate for name, (rate, _) in found.items()}},
            room=None if None in rooms else max((room for room in rooms if room is not None), default=0),
        )  # fmt: skip

    def _once(self, record: Any, kind: tuple[Any, ...], measure: Callable[[Opened], float]) -> tuple[float, int | None]:
        lora = Lora.of(record)
        key = (lora, *kind)
        if key not in self.measured:
            opened = self.opened if lora == self.spec.lora else replace(self.spec, lora=lora).open()
            room = _Room(opened.loaded.device)
            self.measured[key] = measure(opened), room.taken
        return self.measured[key]

    @property
    def _groups(self) -> list[np.ndarray]:
        """Batches of a shard, in an order whose every beginning is spread over short and long rows."""
        lengths = self.rows.lengths[: self.shard_rows]
        groups = plan(lengths, np.ones(len(lengths), bool), self.batch_tokens)
        return [groups[place] for place in _spread(len(groups))]

    def _forward(self, opened: Opened) -> float:
        model = opened.adapted.get_base_model()
        with scanning(opened.adapted):
            return self._rate(opened, lambda group: row_logprobs(model, collate(self.rows, group)))

    def _noise(self, opened: Opened) -> float:
        """Rows a second; a run's rows are no warmer: each has a length of its own."""
        rows, state = self.rows.take(np.arange(min(NOISE_ROWS // 4, len(self.rows)))), read_state(opened.adapted)
        with scanning(opened.adapted) as set_state:
            begun = time.perf_counter()
            noise_floor(opened.adapted.get_base_model(), set_state, rows, state, batch_tokens=self.batch_tokens)
            return len(rows) / (time.perf_counter() - begun)

    def _training(self, opened: Opened, batch_size: int) -> float:
        clock = _Clock(opened.loaded.device, STEPS)
        order = np.resize(np.arange(len(self.rows)), max(len(self.rows), (STEPS + 1) * batch_size))
        with suppress(_Enough):
            train_epoch(
                opened.adapted, self.rows, order=order, optimizer=make_optimizer(opened.adapted, "carry"),
                rate=lambda _: 0.0, batch_size=batch_size, batch_tokens=2048, seed=0, progress=clock,
            )  # fmt: skip
        return clock.tokens / clock.taken

    def _by_row(self, opened: Opened, adam: bool) -> float:
        adapted, device = opened.adapted, opened.loaded.device
        live = parameters(adapted)
        vector = torch.zeros(1, sum(one.numel() for one in live.values()), device=device)
        moments = _moments(adapted, live) if adam else None
        with per_example_gradients(adapted) as run:
            return self._rate(
                opened, lambda group: products(adapted, run, collate(self.rows, group), vector, moments, unit=True)
            )

    def _rate(self, opened: Opened, work: Callable[[np.ndarray], Any]) -> float:
        """Tokens a second of passes over batches, each twice: a shape's first pass takes longer, and a run has several."""
        clock, groups = _Clock(opened.loaded.device, PASSES), self._groups
        with suppress(_Enough):
            for group in [groups[-1], *(one for one in groups for _ in range(2))]:
                work(group)
                clock.advance(len(group), int(self.rows.lengths[group].sum()))
        return clock.tokens / clock.taken


class _Enough(Exception):
    """The time is over."""


class _Clock(Silent):
    """Counts tokens and seconds after the first pass, until `SECONDS` have gone and so many passes are made, or `LONGEST`."""

    def __init__(self, device: torch.device, least: int) -> None:
        self.device, self.least = device, least
        self.passes, self.tokens, self.taken, self.begun = 0, 0, 0.0, 0.0

    def advance(self, rows: int, tokens: int = 0, *, found: bool = False) -> None:
        """A pass is done. Raises _Enough when the time is over."""
        if self.device.type == "cuda":  # GPUs work on while Python goes on
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        now = time.perf_counter()
        if not self.passes:
            self.begun = now
        else:
            self.tokens, self.taken = self.tokens + tokens, now - self.begun
        self.passes += 1
        if (self.passes > 1 and self.taken >= LONGEST) or (self.passes > self.least and self.taken >= SECONDS):
            raise _Enough


def _any(stages: Sequence[Stage], by_row: bool | None = None) -> bool:
    """Whether a stage passes tokens; or passes some backward, in this way."""
    if by_row is None:
        return any(stage.forward for stage in stages)
    return any(stage.backward and stage.by_row == by_row for stage in stages)


def _spread(count: int) -> list[int]:
    """0 .. count - 1 in the order of their bits read backwards: every beginning is spread over all."""
    bits = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda number: f"{number:0{bits}b}"[::-1])


def _moments(adapted: Any, live: dict[str, Any]) -> Any:
    """Adam's moments after a step without a gradient."""
    optimizer = make_optimizer(adapted, "carry")
    for parameter in live.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in live.values():
        parameter.grad = None
    return moments_by_name(adapted, moments_of(optimizer))


class _Room:
    """Memory of a device that is taken from now on: on CUDA the allocator's, elsewhere that of the process."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device if device.type == "cuda" else None
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.cuda)
            self.before: int | None = torch.cuda.memory_allocated(self.cuda)
        else:
            self.before = resident_memory() if forget_peak() else None

    @property
    def taken(self) -> int | None:
        """Bytes at most; None where the system does not tell."""
        peak = torch.cuda.max_memory_allocated(self.cuda) if self.cuda else peak_memory()
        return None if peak is None or self.before is None else max(0, peak - self.before)


def memory_of(opened: Opened, trained: int, room: int | None, resident: int | None) -> dict[str, int | None]:
    """Bytes of the run on its device: weights, optimizer state, what passes took beside the weights, freed memory that a long
    run keeps (`SPARE`), and the peak of all.

    On a GPU the peak counts its own memory, elsewhere the process's, in which the libraries count.

    Args:
        opened: the model.
        trained: parameters that the method trains.
        room: that its passes took.
        resident: memory of the process before the passes; None where the system does not tell.
    """
    device = opened.loaded.device
    weights = sum(weight.nbytes for weight in opened.adapted.parameters())
    before = weights if device.type == "cuda" else resident
    spare = SPARE if device.type == "cpu" and sys.platform.startswith("linux") else 0
    whole = None if room is None or before is None else before + room + spare
    return {"weights": weights, "optimizer": MOMENTS * trained, "passes": room, "spare": spare, "peak": whole}
