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
from tov.runs.environment import peak_memory
from tov.text.batches import collate, plan
from tov.text.encode import Encoded
from tov.training.loop import make_optimizer, moments_of, train_epoch

SECONDS = 4.0
"""That a kind of pass is timed for, at least `STEPS` steps of an optimizer or `PASSES` batches."""
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
    """

    rows: float
    forward: float
    training: float | None = None
    by_row: float | None = None
    noise: float | None = None


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
        measured: rates by adapter, kind and batch size.
        seconds: that the measuring took.
        cpu_seconds: that the processor worked on it, all threads together; fewer where other programs had their turn.
    """

    spec: ModelSpec
    opened: Opened
    rows: Encoded
    rows_per_second: float
    batch_tokens: int
    shard_rows: int
    measured: dict[Any, float] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def rates(self, stages: Sequence[Stage], record: Any) -> Rates:
        """The rates that these stages need.

        Args:
            stages: of a method.
            record: with the settings of its adapter, `batch_size`, and `gradient_type` if it has one.
        """
        begun, rows = (time.perf_counter(), time.process_time()), int(getattr(record, "batch_size", None) or 16)
        forward = self._once(record, ("forward",), self._forward) if _any(stages) else 0.0
        training = by_row = None
        if _any(stages, by_row=False):
            training = self._once(record, ("training", rows), lambda opened: self._training(opened, rows))
        if _any(stages, by_row=True):
            adam = getattr(record, "gradient_type", "sgd") == "adam"
            by_row = self._once(record, ("by_row", adam), lambda opened: self._by_row(opened, adam))
        noisy = any(stage.noise_rows for stage in stages)
        noise = self._once(record, ("noise",), self._noise) if noisy else None
        self.seconds += time.perf_counter() - begun[0]
        self.cpu_seconds += time.process_time() - begun[1]
        return Rates(self.rows_per_second, forward, training, by_row, noise)

    def _once(self, record: Any, kind: tuple[Any, ...], measure: Callable[[Opened], float]) -> float:
        lora = Lora.of(record)
        key = (lora, *kind)
        if key not in self.measured:
            opened = self.opened if lora == self.spec.lora else replace(self.spec, lora=lora).open()
            self.measured[key] = measure(opened)
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
    """Counts tokens and seconds from the end of the first pass on, until `SECONDS` have gone and so many passes are made."""

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
        if self.passes > self.least and self.taken >= SECONDS:
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


def memory_of(opened: Opened, trained: int, resident: int | None) -> dict[str, int | None]:
    """Bytes of the run on its device: weights, optimizer state, what passes took beside the weights, freed memory that a long
    run keeps (`SPARE`), and the peak of all.

    On CUDA the peak is the allocator's, elsewhere the process's resident memory, in which the libraries count.

    Args:
        opened: the model.
        trained: parameters that the method trains.
        resident: memory of the process before the passes; None where the system does not tell.
    """
    device = opened.loaded.device
    weights = sum(weight.nbytes for weight in opened.adapted.parameters())
    cuda = device.type == "cuda"
    peak, before = (torch.cuda.max_memory_allocated(device), weights) if cuda else (peak_memory(), resident)
    passes = None if peak is None or before is None else max(0, peak - before)
    spare = SPARE if device.type == "cpu" and sys.platform.startswith("linux") else 0
    whole = None if peak is None else peak + spare
    return {"weights": weights, "optimizer": MOMENTS * trained, "passes": passes, "spare": spare, "peak": whole}
