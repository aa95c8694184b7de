"""A plan as text: what the data are, a row as the model sees it, what each method takes, warnings. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tov.progress import counted, duration, file_size
from tov.reports.summary import table
from tov.sinks import line, markdown
from tov.tasks import TASKS

BACKWARD = 2
"""Forward passes that a backward pass counts as: it multiplies by the weights and by what they were given."""
HEADS = ("method", "tokens forward", "tokens backward", "passes", "time", "memory", "on disk")


def plan_text(facts: dict[str, Any]) -> str:
    """A plan's facts for a terminal: data, costs and warnings first, then a row of each as the model sees it."""
    lines = [f"{name:8}{line(text)}" for name, text in _data(facts).items()]
    examples = [_example(role, one) for role, one in facts["examples"].items()]
    said = [f"{kind}: {line(text)}" for kind in ("warning", "note") for text in facts[f"{kind}s"]]
    return "\n".join([*lines, "", *_costs(facts), "", *said, *[""] * bool(said), *examples]).rstrip("\n")


def _data(facts: dict[str, Any]) -> dict[str, str]:
    pool, target, model = (facts[name] for name in ("pool", "target", "model"))
    sources = ", ".join(f"{line(name)} {count:,}" for name, count in pool["sources"].items())
    has = "has" if target["usable"] == 1 else "have"
    return {
        "pool": f"{counted(pool['rows'], 'rows')} ({sources}), {pool['usable']:,} may be chosen"
        + (f"; left out: {pool['left_out']}" if pool["left_out"] else ""),
        "": f"{pool['tokens']:,} tokens in those, {pool['scored_tokens']:,} of them scored; cut at "
        f"{counted(model['max_length'], 'tokens')}: {counted(pool['cut'], 'rows')}"
        + (f", which lose {pool['cut_off']:,} {TASKS[model['task']].length}" if pool["cut_off"] else "")
        + f"; without a scored token: {pool['without_scored_token']:,}"
        + (f" (estimated from {counted(pool['sampled'], 'rows')})" if pool["sampled"] else ""),
        "target": f"{target['usable']:,} of {counted(target['rows'], 'rows')}{_each(target['targets'])} {has} a scored token, "
        f"{target['tokens']:,} tokens",
        "model": _model(model),
        **({"choice": _choice(facts["choice"])} if facts["choice"] else {}),
    }


def _model(model: dict[str, Any]) -> str:
    if model["parameters"] is None:
        return f"{line(model['name'])}: its tokenizer and chat template alone are read; no row passes it, so it was not loaded"
    return (
        f"{line(model['name'])} on {model['device']}: {model['parameters']:,} parameters in {model['dtype']}, "
        f"{file_size(model['bytes'])}; {model['trained']:,} are trained"
    )


def _choice(choice: dict[str, Any]) -> str:
    about = {name: "about " * (choice["estimated"] == name) for name in ("rows", "tokens")}
    rows, tokens = (f"{about[name]}{counted(choice[name], name)}" for name in ("rows", "tokens"))
    return f"{rows} of {tokens}, where the chosen rows are as long as the pool's"


def _example(role: str, one: dict[str, Any]) -> str:
    shown = "\n".join(f"    {line(text)}" for text in one["text"].split("\n"))
    return (
        f"{role} row as the model sees it ({line(one['row'])}): {one['scored']:,} of {one['tokens']:,} tokens are scored, "
        f"in [[ ]]\n{shown}\n"
    )


def _costs(facts: dict[str, Any]) -> list[str]:
    """The table of methods, the stages of each, and what the numbers mean."""
    methods, probe = facts["methods"], facts["probe"]
    lines = [table(list(HEADS), [_row(method) for method in methods]), ""]
    lines += [f"{line(method['method'])}: {_stages(method)}" for method in methods if method["seconds"] is not None]
    legend = f"passes: over the pool, forward; a backward pass counts as {BACKWARD}."
    if probe is None:
        return [*lines, f"{legend} Nothing was run."]
    return [
        *lines, f"{legend} Time and memory: from passes that were timed for {duration(probe['seconds'])} on this machine; "
        "?: no model passes, and text was not timed. No file was written.",
    ]  # fmt: skip


def _row(method: dict[str, Any]) -> list[str]:
    memory = method["memory"] and method["memory"]["peak"]
    disk = None if method["bytes"] is None else method["bytes"] + (method["training_file"] or 0)
    return [
        markdown(method["method"]),
        *(_or_unknown(method[name], "{:,}".format) for name in ("forward", "backward")),
        _or_unknown(method["passes"], "{:.1f}".format),
        _or_unknown(method["seconds"], duration),
        *(_or_unknown(size, file_size) for size in (memory, disk)),
    ]


def _or_unknown(value: Any, shown: Any) -> str:
    return "?" if value is None else shown(value)


def _stages(method: dict[str, Any]) -> str:
    """`fit 2m 10s at 1,200 tokens/s, scan 3m 20s ...`"""
    stages = ", ".join(f"{name} {duration(seconds)}" for name, seconds in method["stage_seconds"].items())
    rates = {"forward": "forward", "training": "training", "by_row": "each row's gradient"}
    speeds = [f"{method['rates'][key]:,.0f} {name}" for key, name in rates.items() if method["rates"][key]]
    memory = method["memory"]
    sizes = [
        f"{name} {file_size(memory[name])}" for name in ("weights", "optimizer", "passes", "spare") if memory[name]
    ]
    return f"{stages}; tokens a second: {', '.join(speeds) or 'none'}; memory: {', '.join(sizes)}"


def _each(targets: Mapping[str, int]) -> str:
    """Of several targets, the rows of each."""
    return f" ({', '.join(f'{line(name)} {rows:,}' for name, rows in targets.items())})" if len(targets) > 1 else ""
