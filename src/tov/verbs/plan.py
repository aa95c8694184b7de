"""`tov plan`: reads pool, target and model, checks rows, masks and settings, times some passes, and tells what a selection will
take. Trains nothing and writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch

from tov.checks.probe import Probe, Rates, memory_of, seconds_of
from tov.comparison.gate import check_variant
from tov.comparison.split import folds_of
from tov.config.records import PlanConfig, SelectConfig
from tov.config.settings import build
from tov.data.sources import Input
from tov.engine.batch_size import recorded_batch_tokens
from tov.engine.models import Lora, ModelSpec, Opened, auto_batch_tokens
from tov.errors import ConfigError
from tov.inputs.amount import Amount, Lengths, amount_of
from tov.inputs.named import Inputs, list_inputs, name_inputs, read_inputs
from tov.inputs.read import Indexed, PoolRows, check_n, target_of_row
from tov.methods.auto import PILOTS
from tov.methods.base import PoolStats, Stage
from tov.methods.choice import check_tokens
from tov.methods.costs import cost_of, kept_by
from tov.methods.spec import Variant, has_no_effect, parse_variant, select_settings
from tov.model.load import located
from tov.progress import tell
from tov.reports.plan import BACKWARD, plan_text
from tov.runs.environment import resident_memory
from tov.runs.folder import run_folder, watch_run
from tov.runs.made import SAMPLED, check_place
from tov.runs.manifest import FILE
from tov.seeds import generator
from tov.verbs.asked import select_identity
from tov.verbs.planned import ReadForPlan, count_trained, data_facts, encoded_for_plan, said_of
from tov.verbs.proxy import by_model, by_proxy, check_other, check_proxy, sample_size
from tov.verbs.training_file import bytes_a_row, check_writable


@dataclass(frozen=True)
class Plan:
    """What a selection will take.

    Attributes:
        facts: `pool`, `target`, `model`, `examples`, `choice`, `probe`, `methods`, `warnings`, `notes`; counts of rows and
            tokens, bytes, seconds.
    """

    facts: dict[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """What the command prints with --json."""
        return self.facts

    def __str__(self) -> str:
        return plan_text(self.facts)


def plan(
    *,
    model: str,
    pool: Inputs,
    target: Inputs,
    n: int | None = None,
    methods: str | Sequence[str] = (),
    **settings: Any,
) -> Plan:
    """What `select` would take with each of the methods: seconds, memory, tokens that pass the model, bytes that stay.

    The model is loaded and the target and up to 4,096 rows of the pool are made tokens of, so whatever is wrong with the model,
    the data, their masks or the settings is said now, by the same errors as `select`'s. Some passes over rows of the pool are
    timed, unless `probe=False`.

    Args:
        model: Hub id, local folder, .gguf file or alias.
        pool: rows to choose from, as `select` takes them.
        target: examples of what is wanted, likewise.
        n: rows to choose, to be checked; or name `tokens`, a budget of tokens.
        methods: several to plan side by side, in place of `method`, each as `tov select --method` takes it; also "bm25,random".
        **settings: any other setting of `tov plan --help`, with underscores.

    Raises:
        TovError: one of its six kinds; the text says what to do.
    """
    pools, targets = list_inputs(pool), list_inputs(target)
    asked = methods if isinstance(methods, str) else tuple(methods)
    arguments = {"model": model, "pool": name_inputs(pools), "target": name_inputs(targets), "methods": asked}
    return run_plan(build(PlanConfig, {**arguments, "n": n, **settings}), pools, targets)


def run_plan(config: PlanConfig, pools: Sequence[Input] | None = None, targets: Sequence[Input] | None = None) -> Plan:
    """`plan` from a record of settings; inputs in memory are passed beside it."""
    if config.methods and config.method != "tov":
        raise ConfigError(
            f"--method {config.method} stands beside --methods {','.join(config.methods)}.",
            allowed="one of the two",
            fix="Use --methods alone.",
        )
    chosen = [_select(config, method) for method in config.methods or (config.method,)]
    for settings, variant in chosen:
        if not variant.method.ranks:
            raise ConfigError(f"{variant.name} scores nothing, so there is nothing to plan.", fix="Leave it out.")
        if variant.method.takes == "pilots" and not (config.n or config.tokens):
            raise ConfigError(
                "--n is missing: the cost of auto's pilots depends on it.",
                fix="Give the rows to choose, or --tokens, the tokens to choose.",
            )
        if variant.method.takes == "pilots" and config.proxy_model:
            raise ConfigError(
                "--proxy-model has no effect with auto, which decides by the model.", fix="Plan it alone."
            )
        if len(chosen) == 1 or not variant.method.of_pool:
            check_proxy(settings, variant)
            check_other(settings)
    lead = next((settings for settings, _ in chosen if settings.proxy_model), chosen[0][0])
    passes = any("model" in variant.method.reads or variant.method.takes == "pilots" for _, variant in chosen)
    read = _read(by_proxy(lead), config, pools, targets, passes)
    lengths = Lengths.of(read.encoded, read.usable)
    amount = amount_of(config, read.rows, lengths) if config.n or config.tokens else None
    costs, probe, troubles = _costs(read, chosen, config, amount)
    if amount:
        check_tokens(config, read.rows, read.target, amount, read.encode, read.settings.seed)
    file, tokens = amount and round(amount.rows * bytes_a_row(read.rows.pool)), read.tokens
    facts = {**data_facts(read), "choice": _choice(amount, lengths) if amount else None, "probe": probe}
    facts |= said_of(read, troubles, max((one.target_clusters or 0 for one, _ in chosen), default=0))
    if lead.proxy_model:
        facts["notes"].insert(0, OF_PROXY.format(proxy=lead.proxy_model, model=lead.model))
        if any(sample_size(settings, variant.method, read.usable) for settings, variant in chosen):
            target, rows, labels = read.target, read.rows, read.labels
            del read  # with the proxy: two models may not fit in memory
            read = _by_the_model(lead, target, rows, labels, passes)
            costs = list(map(_with_sample, costs, _costs(read, chosen, config, amount, sample=True)[0]))
    methods = [
        {**_of_method(variant, stages, tokens), **time_of, "training_file": file}
        for (_, variant), (stages, time_of) in zip(chosen, costs, strict=True)
    ]
    facts["warnings"] += [warning for method in methods for warning in _dear_pilots(method["stages"] or {})]
    return Plan({**facts, "methods": methods})


def _dear_pilots(stages: dict[str, dict[str, int]]) -> list[str]:
    """The warning that pilots cost more than what they decide about, as in a small pool."""
    cost = {name: one["forward"] + BACKWARD * one["backward"] for name, one in stages.items()}
    pilots = cost.pop(PILOTS, 0)
    scoring = sum(cost.values())
    if pilots < DEAR * max(scoring, 1):
        return []
    return [
        f"The pilots of auto cost {pilots / max(scoring, 1):,.0f} times what it costs to score this pool ({pilots:,} and "
        f"{scoring:,} tokens, a backward pass counted as {BACKWARD}). Name a method instead, e.g. --method tov, or fewer "
        "--candidates."
    ]


def _choice(amount: Amount, lengths: Lengths) -> dict[str, Any]:
    """Rows and tokens of the choice, one of the two estimated for rows as long as the pool's."""
    if amount.tokens:
        return {"rows": amount.rows, "tokens": amount.tokens, "estimated": "rows"}
    return {"rows": amount.rows, "tokens": round(amount.rows * lengths.mean), "estimated": "tokens"}


Cost: TypeAlias = tuple[list[Stage] | None, dict[str, Any]]
"""A method's stages, None where none are told; and its seconds, rates and memory."""
OF_PROXY = (
    "the proxy {proxy} scores the rows in place of {model}: the tokens here are the proxy's, but for those of the stage "
    f"{SAMPLED}, which pass {{model}}"
)
DEAR = 2
"""Times the cost of scoring, from which on it is said what pilots cost."""
NOT_TIMED: dict[str, Any] = dict.fromkeys(("seconds", "stage_seconds", "rates", "memory"))
"""What is told of a method's time without a probe."""


def _costs(
    read: ReadForPlan,
    chosen: Sequence[tuple[SelectConfig, Variant]],
    config: PlanConfig,
    amount: Amount | None,
    *,
    sample: bool = False,
) -> tuple[list[Cost], dict[str, Any] | None, list[str]]:
    """What each method costs, what the probe took, and what went wrong; or what the sample costs that the model scores too."""
    trained = _counter(read.spec, read.opened) if read.opened else _none_trained
    priced = [
        _priced(config, settings, variant, read, trained, len(chosen) == 1, amount, sample)
        for settings, variant in chosen
    ]
    timed, probe, troubles = dict[int, dict[str, Any]](), None, list[str]()
    if config.probe and read.opened and read.scored.any():
        rows = min(config.proxy_sample, read.usable) if sample else read.usable
        timed, probe, troubles = _timed(read, read.opened, priced, trained, config.quiet, rows)
    return [(stages, timed.get(at, NOT_TIMED)) for at, (stages, _) in enumerate(priced)], probe, troubles


def _by_the_model(
    settings: SelectConfig, target: Indexed, rows: PoolRows, labels: tuple[str, ...], passes: bool
) -> ReadForPlan:
    """What was read for the proxy, as tokens of the model itself, opened."""
    settings = by_model(settings).for_task(target.task).model_copy(update={"model": located(settings.model)})
    return encoded_for_plan(settings, target, rows, labels, reading=0.0, passes=passes)


def _with_sample(cost: Cost, of_sample: Cost) -> Cost:
    """A method's cost with that of the sample as one more stage."""
    (stages, told), (more, also) = cost, of_sample
    if stages is None or more is None:
        return cost
    sample = Stage(SAMPLED, sum(one.forward for one in more), sum(one.backward for one in more), kept_by(more))
    if told["memory"] is None or also["memory"] is None:
        return [sample, *stages], NOT_TIMED
    known = None not in (told["seconds"], also["seconds"])
    return [sample, *stages], {
        "seconds": told["seconds"] + also["seconds"] if known else None,
        "stage_seconds": {SAMPLED: also["seconds"], **told["stage_seconds"]},
        "rates": told["rates"],
        "memory": max(told["memory"], also["memory"], key=lambda memory: memory["peak"] or 0),
    }


def _read(
    settings: SelectConfig,
    config: PlanConfig,
    pools: Sequence[Input] | None,
    targets: Sequence[Input] | None,
    passes: bool,
) -> ReadForPlan:
    begun = time.perf_counter()
    settings, target, rows, labels = read_inputs(settings, pools or config.pool, targets or config.target)
    check_writable(rows.pool)
    check_n(config.n or 1, rows)
    return encoded_for_plan(settings, target, rows, labels, reading=time.perf_counter() - begun, passes=passes)


def _priced(
    config: PlanConfig,
    settings: SelectConfig,
    variant: Variant,
    read: ReadForPlan,
    trained: Callable[[Any], int],
    alone: bool,
    amount: Amount | None,
    sample: bool,
) -> tuple[list[Stage] | None, Any]:
    """A method's stages, or those of the sample, and the record with its adapter's settings; what a run would refuse is
    refused.
    """
    sampled = sample_size(settings, variant.method, read.usable)
    settings = settings.for_task(read.target.task)
    if sample and not sampled:
        return None, settings
    n, prepared, flag = (amount.least, amount.prepared, amount.flag) if amount else (None, read.usable, "--n")
    if not sample:
        check_variant(variant, settings, read.rows, read.target, n, flag)
    if alone and not sample:  # of several, no folder is meant
        _check_place(config, settings, variant, read.rows, read.target)
    options = variant.method.resolve(variant.options, prepared)
    stats = PoolStats(
        settings=_as_run(settings, variant, read.target, amount),
        options=options, rows=len(read.rows.pool), usable=read.usable,
        scored=read.times * int(read.scored.sum()), tokens=read.tokens, target_rows=len(read.wanted),
        target_tokens=int(read.wanted.lengths.sum()),
        width=read.width, trained=trained,
        targets=_each_target(read),
    )  # fmt: skip
    if sample:  # what is trained before is trained as for the whole pool
        part = sampled / max(read.usable, 1)
        stats = replace(stats, rows=sampled, scored=stats.scored * part, tokens=stats.tokens * part)
    return cost_of(variant.method, stats), options if hasattr(options, "lora_r") else settings


def _as_run(settings: SelectConfig, variant: Variant, target: Indexed, amount: Amount | None) -> SelectConfig:
    """The settings that stages are counted by: the rows of a budget of tokens, and as many folds as the target allows."""
    sizes: dict[str, Any] = {"n": amount.rows, "tokens": None} if amount else {}
    if variant.method.takes == "pilots":
        sizes["pilot_folds"] = len(folds_of(target, settings.group_by, settings.pilot_folds, settings.seed))
    return settings.model_copy(update=sizes)


def _each_target(read: ReadForPlan) -> tuple[tuple[int, int], ...]:
    """Of each target, its rows that have a scored token, and their tokens."""
    of_row = target_of_row(read.target)[1][read.wanted_ids]
    parts = (of_row == target for target in np.unique(of_row))
    return tuple((int(mine.sum()), int(read.wanted.lengths[mine].sum())) for mine in parts)


def _timed(
    read: ReadForPlan,
    opened: Opened,
    priced: Sequence[tuple[list[Stage] | None, Any]],
    trained: Callable[[Any], int],
    quiet: bool,
    rows: int,
) -> tuple[dict[int, dict[str, Any]], dict[str, Any], list[str]]:
    """Seconds and memory of each method by its number, what the probe took, and what went wrong."""
    device, resident = opened.loaded.device, resident_memory()
    if not quiet:
        tell(f"timing some passes on {device} (--no-probe leaves that out)")
    batch_tokens = int(read.settings.batch_tokens or recorded_batch_tokens(opened) or auto_batch_tokens(device))
    encoded = read.encoded.take(generator(read.settings.seed, "probe").permutation(np.flatnonzero(read.scored)))
    probe = Probe(read.spec, opened, encoded, len(read.encoded) / read.encoding, batch_tokens, read.settings.shard_rows)
    timed, troubles = dict[int, dict[str, Any]](), list[str]()
    try:
        for at, (stages, record) in enumerate(priced):
            if stages is not None:
                rates = probe.rates(stages, record)
                memory = memory_of(opened, trained(record), rates.room, resident)
                timed[at] = _time_of(read, stages, rates, memory, rows)
    except (MemoryError, torch.OutOfMemoryError):
        troubles.append(OUT_OF_MEMORY)
    took = {"seconds": probe.seconds, "cpu_seconds": probe.cpu_seconds}
    return timed, {**took, "reading": read.reading, "opening": read.opening}, troubles


def _time_of(
    read: ReadForPlan, stages: list[Stage], rates: Rates, memory: dict[str, int | None], rows: int
) -> dict[str, Any]:
    """Seconds in all and of each stage, where so many rows are scored."""
    seconds = {stage.name: seconds_of(stage, rates, rows) for stage in stages}
    known = [one for one in seconds.values() if one is not None]
    return {
        "seconds": read.reading + read.opening + sum(known) if len(known) == len(seconds) else None,
        "stage_seconds": seconds, "rates": asdict(rates), "memory": memory,
    }  # fmt: skip


OUT_OF_MEMORY = (
    "The memory is too small for the passes of this run. Lower --batch-tokens, --batch-size or --max-length, or take a "
    "smaller model or another --device."
)


def _select(config: PlanConfig, method: str) -> tuple[SelectConfig, Variant]:
    """The settings of the selection meant; of several methods each has those that take effect with it."""
    several, kind = len(config.methods) > 1, parse_variant(method).method
    settings = {
        name: getattr(config, name)
        for name in config.model_fields_set
        if name in SelectConfig.model_fields and not (several and has_no_effect(SelectConfig, name, kind))
    }
    amount = {} if config.tokens else {"n": config.n or 1}
    return select_settings(build(SelectConfig, {**settings, **amount, "out": config.out, "method": method}))


def _check_place(config: PlanConfig, settings: SelectConfig, variant: Variant, rows: PoolRows, target: Indexed) -> None:
    """Raises RunError if --out holds another run than the one meant, and --force is not given, or files that are no run."""
    identity = select_identity(settings, variant, rows, target)
    folder = run_folder(config.out, identity)
    check_place(folder, force=config.force)
    if (folder / FILE).exists() and (config.n or config.tokens) and not config.force:
        watch_run(folder, command="select", identity=identity)


def _counter(spec: ModelSpec, opened: Opened) -> Callable[[Any], int]:
    """Counts the parameters that are trained under the LoRA settings of a record, by attaching such an adapter; each once."""
    counts = {spec.lora: count_trained(opened.adapted)}

    def trained(record: Any) -> int:
        lora = Lora.of(record)
        if lora not in counts:
            counts[lora] = count_trained(replace(spec, lora=lora).open().adapted)
        return counts[lora]

    return trained


def _none_trained(record: Any) -> int:
    """Of methods that read text alone."""
    return 0


def _of_method(variant: Variant, stages: list[Stage] | None, tokens: float) -> dict[str, Any]:
    if stages is None:
        return {"method": variant.name, **dict.fromkeys(("stages", "forward", "backward", "passes", "bytes"))}
    forward, backward = sum(stage.forward for stage in stages), sum(stage.backward for stage in stages)
    kept = kept_by(stages)
    return {
        "method": variant.name,
        "stages": {
            stage.name: {"forward": round(stage.forward), "backward": round(stage.backward)} for stage in stages
        },
        "forward": round(forward),
        "backward": round(backward),
        "passes": (forward + BACKWARD * backward) / tokens if tokens else None,
        "bytes": None if kept is None else round(kept),
    }
