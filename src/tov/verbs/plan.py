"""`tov plan`: reads pool, target and model, checks rows, masks and settings, and tells what a selection will take. Trains and
scans nothing and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tov.comparison.gate import check_variant
from tov.config.records import PlanConfig, SelectConfig
from tov.config.settings import build
from tov.data.decontamination import left_out
from tov.data.pool import Pool
from tov.data.sources import Input
from tov.engine.models import Lora, ModelSpec, Opened
from tov.errors import ConfigError
from tov.inputs.amount import Amount, Lengths, amount_of
from tov.inputs.draw import encode_scored, sample_rows
from tov.inputs.named import Inputs, list_inputs, name_inputs, read_inputs
from tov.inputs.read import Indexed, PoolRows, check_n, reading_notes
from tov.methods.base import PoolStats, Stage
from tov.methods.choice import check_tokens
from tov.methods.spec import Variant, has_no_effect, parse_variant, select_settings
from tov.progress import file_size
from tov.report.summary import table
from tov.runs.folder import check_place, run_folder, watch_run
from tov.runs.manifest import FILE
from tov.sinks import line, markdown
from tov.tasks import TASKS
from tov.text.encode import IGNORED, Encoded
from tov.verbs.select import select_identity
from tov.verbs.training_file import check_writable

BACKWARD = 2
"""Forward passes that a backward pass counts as: it multiplies by the weights and by what they were given."""
SHOWN = 160
"""Characters of the example."""
SHOWN_COLUMNS = 8
"""Columns of a source that a note lists."""


@dataclass(frozen=True)
class Plan:
    """What a selection will take.

    Attributes:
        facts: `pool`, `target`, `model`, `example`, `methods`, `choice`; counts of rows and tokens, bytes.
    """

    facts: dict[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """What the command prints with --json."""
        return self.facts

    def __str__(self) -> str:
        return _text(self.facts)


def plan(
    *,
    model: str,
    pool: Inputs,
    target: Inputs,
    n: int | None = None,
    methods: Sequence[str] = ("tov",),
    **settings: Any,
) -> Plan:
    """What `select` would take with each of the methods: tokens that pass the model, bytes that stay; nothing is run.

    The model is loaded and the target and up to 4,096 rows of the pool are made tokens of, so whatever is wrong with the model,
    the data, their masks or the settings is said now, by the same errors as `select`'s.

    Args:
        model: Hub id, local folder, .gguf file or alias.
        pool: rows to choose from, as `select` takes them.
        target: examples of what is wanted, likewise.
        n: rows to choose, to be checked; or name `tokens`, a budget of tokens.
        methods: as `tov select --method` takes them.
        **settings: any other setting of `tov plan --help`, with underscores.

    Raises:
        TovError: one of its six kinds; the text says what to do.
    """
    pools, targets = list_inputs(pool), list_inputs(target)
    arguments = {"model": model, "pool": name_inputs(pools), "target": name_inputs(targets), "methods": tuple(methods)}
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
    for _, variant in chosen:
        if not variant.method.ranks:
            raise ConfigError(f"{variant.name} scores nothing, so there is nothing to plan.", fix="Leave it out.")
        if variant.method.takes == "pilots" and not (config.n or config.tokens):
            raise ConfigError(
                "--n is missing: the cost of auto's pilots depends on it.",
                fix="Give the rows to choose, or --tokens, the tokens to choose.",
            )
    first, target, rows, labels = read_inputs(chosen[0][0], pools or config.pool, targets or config.target)
    check_writable(rows.pool)
    check_n(config.n or 1, rows)
    spec = ModelSpec.of(first, labels)
    opened = spec.open()
    encoded, drawn = sample_rows(rows, opened.encode, first.seed)
    scored = encoded.scored_counts > 0
    # A row within the limit can lose words too: those that the tokenizer makes nothing of.
    cut = (encoded.lost > 0) & (encoded.lengths >= opened.encode.max_length)
    wanted, _ = encode_scored(target.pool, opened.encode)
    usable = int(rows.usable.sum())
    times = usable / max(len(encoded), 1)
    tokens = times * int(encoded.lengths[scored].sum())
    lengths = Lengths.of(encoded, usable)
    amount = amount_of(config, rows, lengths) if config.n or config.tokens else None
    n, prepared, flag = (amount.least, amount.prepared, amount.flag) if amount else (None, usable, "--n")
    trained, methods = _counter(spec, opened), []
    for settings, variant in chosen:
        settings = settings.for_task(target.task)
        check_variant(variant, settings, rows, target, n, flag)
        if len(chosen) == 1:  # of several, no folder is meant
            _check_place(config, settings, variant, rows, target)
        stats = PoolStats(
            settings=settings.model_copy(update={"n": amount.rows, "tokens": None}) if amount else settings,
            options=variant.method.resolve(variant.options, prepared),
            rows=len(rows.pool), usable=usable,
            scored=times * int(scored.sum()), tokens=tokens, target_rows=len(wanted),
            target_tokens=int(wanted.lengths.sum()), width=opened.loaded.model.config.get_text_config().hidden_size,
            trained=trained,
        )  # fmt: skip
        methods.append(_of_method(variant, variant.method.cost(stats), tokens))
    if amount:
        check_tokens(config, rows, amount, opened.encode, first.seed)
    sources, counts = np.unique(rows.pool.source_names(np.arange(len(rows.pool))), return_counts=True)
    return Plan({
        "pool": {
            "rows": len(rows.pool), "usable": usable, "left_out": left_out(rows.excluded, rows.index),
            "sources": dict(zip(sources.tolist(), counts.tolist(), strict=True)), "tokens": round(tokens),
            "scored_tokens": round(times * int(encoded.scored.sum())), "sampled": drawn,
            "without_scored_token": round(times * int((~scored).sum())), "cut": round(times * int(cut.sum())),
            "cut_off": round(times * int(encoded.lost[cut].sum())),
            "template_leaves_out": {kind: round(times * count) for kind, count in encoded.left_out_kinds().items()},
        },
        "target": {"rows": len(target), "usable": len(wanted), "tokens": int(wanted.lengths.sum())},
        "model": {
            "name": first.model, "task": first.task, "device": str(opened.loaded.device), "dtype": opened.loaded.dtype,
            "parameters": sum(weight.numel() for weight in opened.adapted.parameters() if not weight.requires_grad),
            "bytes": sum(weight.nbytes for weight in opened.adapted.parameters() if not weight.requires_grad),
            "trained": trained(first), "max_length": opened.encode.max_length,
        },
        "example": _example(wanted, opened), "methods": methods,
        "choice": _choice(amount, lengths) if amount else None,
        "notes": [
            *_unseen(target=target.pool, pool=rows.pool), *reading_notes(target=target, pool=rows),
            *_of_template(rows, encoded, times),
        ],
    })  # fmt: skip


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


def _unseen(**pools: Pool) -> list[str]:
    """Columns that are kept in the training file, and are no part of what the model reads: a line a source."""
    notes = []
    for role, pool in pools.items():
        for name, columns in pool.unseen().items():
            more = f" and {len(columns) - SHOWN_COLUMNS} more" * (len(columns) > SHOWN_COLUMNS)
            shown = ", ".join(columns[:SHOWN_COLUMNS]) + more
            notes.append(f"{role} {name}: the model does not see the columns {shown}; --columns says which is which")
    return notes


def _of_template(rows: PoolRows, encoded: Encoded, times: float) -> list[str]:
    """What the model's chat template does not show of the pool: parts that are not scored, and under skip whole rows."""
    kinds = {kind: round(times * count) for kind, count in encoded.left_out_kinds().items()}
    notes = [f"the model's chat template leaves out the {kind} of {count:,} pool rows" for kind, count in kinds.items()]
    refused = round(times * int((encoded.lengths == 0).sum())) if rows.skip else 0
    return notes + [f"the model's chat template refuses {refused:,} pool rows, which have no scored token"] * bool(
        refused
    )


def _counter(spec: ModelSpec, opened: Opened) -> Callable[[Any], int]:
    """Counts the parameters that are trained under the LoRA settings of a record, by attaching such an adapter; each once."""

    def count(adapted: torch.nn.Module) -> int:
        return sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)

    counts = {spec.lora: count(opened.adapted)}

    def trained(record: Any) -> int:
        lora = Lora.of(record)
        if lora not in counts:
            counts[lora] = count(replace(spec, lora=lora).open().adapted)
        return counts[lora]

    return trained


def _of_method(variant: Variant, stages: list[Stage] | None, tokens: float) -> dict[str, Any]:
    if stages is None:
        return {
            "method": variant.name,
            "stages": None,
            "forward": None,
            "backward": None,
            "passes": None,
            "bytes": None,
        }
    forward, backward = sum(stage.forward for stage in stages), sum(stage.backward for stage in stages)
    sizes = [stage.kept for stage in stages]
    return {
        "method": variant.name,
        "stages": {
            stage.name: {"forward": round(stage.forward), "backward": round(stage.backward)} for stage in stages
        },
        "forward": round(forward),
        "backward": round(backward),
        "passes": (forward + BACKWARD * backward) / tokens if tokens else None,
        "bytes": None if None in sizes else round(sum(size for size in sizes if size is not None)),
    }


def _choice(amount: Amount, lengths: Lengths) -> dict[str, Any]:
    """Rows and tokens of the choice, one of the two estimated for rows as long as the pool's."""
    if amount.tokens:
        return {"rows": amount.rows, "tokens": amount.tokens, "estimated": "rows"}
    return {"rows": amount.rows, "tokens": round(amount.rows * lengths.mean), "estimated": "tokens"}


def _example(target: Encoded, opened: Opened) -> dict[str, Any]:
    """What of the target's first row is scored."""
    ids, labels = target.row(0)
    scored = labels[labels != IGNORED].tolist()
    of_task = opened.encode.labels
    text = " ".join(of_task[label] for label in scored) if of_task else opened.loaded.tokenizer.decode(scored)
    return {"tokens": len(ids), "scored": len(scored), "text": text}


def _text(facts: dict[str, Any]) -> str:
    pool, target, model, example = (facts[name] for name in ("pool", "target", "model", "example"))
    sources = ", ".join(f"{line(name)} {count:,}" for name, count in pool["sources"].items())
    head = {
        "pool": f"{pool['rows']:,} rows ({sources}), {pool['usable']:,} may be chosen"
        + (f"; left out: {pool['left_out']}" if pool["left_out"] else ""),
        "": f"{pool['tokens']:,} tokens in those, {pool['scored_tokens']:,} of them scored; cut at "
        f"{model['max_length']:,} tokens: {pool['cut']:,} rows"
        + (f", which lose {pool['cut_off']:,} {TASKS[model['task']].length}" if pool["cut_off"] else "")
        + f"; without a scored token: {pool['without_scored_token']:,}"
        + (f" (estimated from {pool['sampled']:,} rows)" if pool["sampled"] else ""),
        "target": f"{target['usable']:,} of {target['rows']:,} rows have a scored token, {target['tokens']:,} tokens",
        "model": f"{line(model['name'])} on {model['device']}: {model['parameters']:,} parameters in {model['dtype']}, "
        f"{file_size(model['bytes'])}; {model['trained']:,} are trained",
        "scored": f"of the target's first row {example['scored']:,} of {example['tokens']:,} tokens: "
        f"{_shortened(example['text'])}",
    }
    if choice := facts["choice"]:
        about = {name: "about " * (choice["estimated"] == name) for name in ("rows", "tokens")}
        head["choice"] = f"{about['rows']}{choice['rows']:,} rows of {about['tokens']}{choice['tokens']:,} tokens, " + (
            "where the chosen rows are as long as the pool's"
        )
    rows = [
        [
            markdown(method["method"]),
            *(f"{method[name]:,}" if method[name] is not None else "?" for name in ("forward", "backward")),
            f"{method['passes']:.1f}" if method["passes"] is not None else "?",
            file_size(method["bytes"]) if method["bytes"] is not None else "?",
        ]
        for method in facts["methods"]
    ]
    shown = table(["method", "tokens forward", "tokens backward", "passes", "on disk"], rows)
    lines = [f"{name:8}{line(text)}" for name, text in head.items()]
    legend = f"passes: over the pool, forward; a backward pass counts as {BACKWARD}. Nothing was run."
    notes = [f"note: {line(note)}" for note in facts["notes"]]
    return "\n".join([*lines, *notes, "", shown, "", legend])


def _shortened(text: str) -> str:
    half = SHOWN // 2
    return repr(text if len(text) <= SHOWN else f"{text[:half]} ... {text[-half:]}")
