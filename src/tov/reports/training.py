"""The report of a training, and what the command prints: reads the manifest and renders it.

A manifest may be another's: what it says becomes text, and never code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tov.progress import counted, duration
from tov.reports.summary import note_list, table, versions_line
from tov.runs.manifest import Manifest
from tov.sinks import code, line, note
from tov.tasks import TASKS

SHOWN_EPOCHS = 16
"""Epochs whose training log-loss the report shows."""


def printed(manifest: Manifest, folder: Path, *, trusted: bool) -> str:
    """Rows, losses, test before and after, where the adapter is and how to load it, notes.

    Args:
        manifest: of the training.
        folder: of the training.
        trusted: whether the user of this call allows the model's own code.
    """
    facts, unit = manifest.summary, _unit(manifest)
    first, *rest = facts["losses"]
    lines = [f"trained on {_what(facts)}: log-loss {_fall(first, rest[-1]) if rest else f'{first:.4f}'} nats a {unit}"]
    lines += [f"test ({facts['test']['rows']:,} rows): {one}" for one in _test_lines(facts, unit)]
    lines += [f"note: {line(one)}" for one in facts["notes"]]
    snippet = (f"    {one}" for one in _snippet(manifest, folder, trusted))
    return "\n".join(
        [*lines, "", f"adapter: {line(folder / 'adapter')}", *snippet, "", f"report: {line(folder / 'summary.md')}"]
    )


def training_markdown(manifest: Manifest, folder: Path, *, trusted: bool) -> str:
    """The text of `summary.md`."""
    facts, base, unit = manifest.summary, manifest.trained or {}, _unit(manifest)
    shown = np.unique(np.linspace(1, facts["epochs"], SHOWN_EPOCHS).round().astype(int))
    epochs = [[str(epoch), f"{facts['losses'][epoch - 1]:.4f}"] for epoch in shown]
    parts = [
        "# tov train",
        f"- run: {code(manifest.origin.run)}\n- model: {code(base['model'])}\n- trainer: {code(facts['trainer'])}, rate "
        f"`{facts['learning_rate']:g}`, batches of {facts['batch_size']} rows, seed {manifest.seed}",
        f"## Training\n\n{_what(facts)}.",
        table(["epoch", f"log-loss, nats a {unit}"], epochs),
    ]
    if facts["test"]:
        parts += [f"## Test, {facts['test']['rows']:,} rows", "\n".join(f"- {one}" for one in _test_lines(facts, unit))]
    if facts["notes"]:
        parts += ["## Notes", note_list(facts["notes"])]
    snippet = "\n".join(["```python", *_snippet(manifest, folder, trusted), "```"])
    parts += ["## Use it", snippet, "## Made with", versions_line(manifest)]
    return "\n\n".join(parts) + "\n"


def _unit(manifest: Manifest) -> str:
    return TASKS[(manifest.trained or {})["task"]].unit


def _what(facts: dict[str, Any]) -> str:
    return (
        f"{facts['rows']:,} rows, {counted(facts['epochs'], 'epochs')}, {facts['steps']:,} steps, "
        f"{facts['tokens']:,} tokens "
        f"in {duration(facts['seconds'])}"
    )


def _fall(before: float, after: float) -> str:
    """`1.2345 -> 1.1000 (-10.9 %)`."""
    change = f" ({100 * (after - before) / before:+.1f} %)" if before else ""
    return f"{before:.4f} -> {after:.4f}{change}"


def _test_lines(facts: dict[str, Any], unit: str) -> list[str]:
    test = facts["test"]
    if test is None:
        return []
    lines = [f"log-loss {_fall(test['loss_before'], test['loss_after'])} nats a {unit}"]
    if test["metric"]:
        lines.append(f"{note(test['metric'])} {test['metric_before']:.3f} -> {test['metric_after']:.3f}")
    return lines


def _snippet(manifest: Manifest, folder: Path, trusted: bool) -> list[str]:
    """Four lines of Python that load the trained model."""
    base = manifest.trained or {}
    labels = {number: str(label) for number, label in enumerate(base["labels"])}
    # Only these: any other name in a manifest that somebody else has made would become code.
    options = {"revision": _text(base["load"].get("revision")), "trust_remote_code": trusted, "id2label": labels}
    more = "".join(f", {name}={value!r}" for name, value in options.items() if value)
    auto = TASKS[base["task"]].auto_model
    return [
        "from peft import PeftModel",
        f"from transformers import {auto}",
        f"model = {auto}.from_pretrained({str(base['model'])!r}{more})",
        f"model = PeftModel.from_pretrained(model, {str((folder / 'adapter').absolute())!r})",
    ]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
