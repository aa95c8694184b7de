"""Export: a run's chosen rows in the form of a trainer, with the configuration that reads them and a card that says whence.

Trains and loads nothing. Reads the run alone: pool and target need not be there any more.
"""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tov.config import records
from tov.config.records import ExportConfig
from tov.config.settings import Settings, build
from tov.errors import ConfigError, DataError, ModelError, RunError
from tov.files import atomic, write_text
from tov.model.load import resolve
from tov.objects.mirror import named
from tov.progress import counted
from tov.runs.folder import Run, run_folder, work_on
from tov.runs.made import CONFIG
from tov.runs.manifest import ModelRecord, read_manifest
from tov.sinks import line
from tov.tasks import TASKS
from tov.text.chat import PLAIN_TEMPLATE
from tov.trainers import TRAINERS
from tov.trainers.base import TITLES, Facts, Trainer
from tov.trainers.card import Origin, bare, card
from tov.trainers.rows import read_chosen
from tov.verbs import training_file
from tov.verbs.asked import chosen_for
from tov.verbs.result import Result
from tov.verbs.training_file import open_choice

CARD = "README.md"
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""Files in which a model may have a chat template."""


@dataclass(frozen=True)
class Exported(Result):
    """A finished export."""

    @property
    def files(self) -> list[Path]:
        """Those that were written for the trainer, with the card."""
        return [self.folder / name for name in self.summary["files"]]

    def __str__(self) -> str:
        """What the command prints: rows, what was left out, notes, files, and how to use them."""
        facts = self.summary
        lines = [f"{facts['rows']:,} of {facts['chosen']:,} chosen rows for {facts['title']}"]
        lines += [f"  {counted(count, 'rows')} left out: {line(reason)}" for reason, count in facts["left_out"].items()]
        lines += [
            f"  columns left out of {line(source)}: {line(', '.join(names))}"
            for source, names in facts["columns_left_out"].items()
        ]
        lines += [f"note: {line(one)}" for one in facts["notes"]]
        lines += ["", *(line(file) for file in self.files), ""]
        folder = shlex.quote(str(self.folder / facts["in"]))
        return "\n".join([*lines, f"    cd {line(folder)}", *(f"    {one}" for one in facts["use"])])


def export(from_run: str | os.PathLike[str], *, to: str, out: str | Path, **settings: Any) -> Exported:
    """Writes the chosen rows of a run for a trainer, with the configuration that reads them and a card.

    The same call again returns the finished export.

    Args:
        from_run: folder of a `select` (or `select --from`) run (or its result).
        to: trl, axolotl, llamafactory, unsloth or hub.
        out: the new run folder, which holds the files.
        **settings: any other setting of `tov export --help`, with underscores.

    Raises:
        TovError: one of its six kinds; the text says what to do.
    """
    return run_export(
        build(ExportConfig, {"from_run": os.fspath(from_run), "to": to, "out": out and str(out), **settings})
    )


def run_export(config: ExportConfig) -> Exported:
    """`export` from a record of settings."""
    _check_kind(TRAINERS[config.to], config.kind)
    origin = open_choice(config.from_run)
    made = {name: origin.manifest.files.get(name) for name in (training_file.FILE, training_file.LINES)}
    identity = {
        "settings": config.of("export"), "chosen": made, "scores": origin.stamp, "seed": origin.manifest.seed,
        "chosen_for": chosen_for(origin),
    }  # fmt: skip
    with work_on(
        run_folder(config.out, identity), command="export", identity=identity, force=config.force, tells=not config.quiet,
        settings=config.shown(), reads=origin.reads,
    ) as run:  # fmt: skip
        if not run.finished:
            run.note(origin={"run": named(origin.folder.absolute())}, seed=origin.manifest.seed)
            _write(run, origin, config)
            run.finish()
        else:
            for name in run.manifest.files:
                run.check_file(name)
    return Exported(run)


def _write(run: Run, origin: Run, config: ExportConfig) -> None:
    """The files of the trainer, and the card."""
    trainer = TRAINERS[config.to]
    facts = _facts(origin)
    chosen, unseen = read_chosen(origin, origin.folder / training_file.LINES, training_file.our_columns(), facts.task)
    kinds = [facts.task.kind(one.row) for one in chosen]
    kept = _kept(Counter(kinds), trainer, config.kind)
    rows = [one for one, kind in zip(chosen, kinds, strict=True) if kind in kept]
    written = trainer.write(rows, kept[0], facts)
    written.notes += _of_the_model(trainer, facts)
    for name, content in written.files.items():
        _put(run.folder / trainer.folder / name, content)
    other = Counter(kind for kind in kinds if kind not in kept)
    left_columns: Mapping[str, Sequence[str]] = {} if trainer.several else unseen
    taken = Counter(facts.task.kind(one.row) for one in written.rows)
    pattern = "data/train-*.parquet" if trainer.several else None
    text = card(_origin(origin, len(chosen)), written, trainer, taken, other, left_columns, pattern)
    write_text(run.folder / trainer.folder / CARD, text)
    places = [str(Path(trainer.folder) / name) for name in (*written.files, CARD)]
    left_out = {**written.left_out, **{f"they are {TITLES.get(kind, kind)}": count for kind, count in other.items()}}
    run.note(summary={
        "to": config.to, "title": trainer.title, "kinds": dict(taken), "rows": len(written.rows), "chosen": len(chosen),
        "left_out": left_out, "columns_left_out": dict(left_columns), "notes": written.notes, "files": places,
        "in": trainer.folder, "use": written.use,
    })  # fmt: skip


def _of_the_model(trainer: Trainer, facts: Facts) -> list[str]:
    """What is to be said of how a trainer's files name and open the model."""
    notes = []
    if trainer.names_model and Path(facts.model).is_dir():
        notes.append(
            f"the model is named by its folder on this machine; on another one give {trainer.names_model} anew"
        )
    if trainer.names_model and facts.device_map and not trainer.spreads_model:
        notes.append(
            f"the model was spread over the GPUs to score (--device-map {facts.device_map}); {trainer.title} places it by "
            "its own settings"
        )
    return notes


def _put(place: Path, content: str | Path) -> None:
    """A text, or a copy of a file, whole or not at all."""
    if isinstance(content, str):
        return write_text(place, content)
    with atomic(place) as temporary:
        temporary.write_bytes(content.read_bytes())


def _check_kind(trainer: Trainer, asked: str | None) -> None:
    """Raises ConfigError if a kind is asked for of a trainer that takes rows of every kind."""
    if asked and trainer.several:
        raise ConfigError(
            f"--kind {asked} has no effect with --to {trainer.name}, which takes rows of every kind as they are.",
            fix="Leave --kind out.",
        )


def _kept(found: Counter[str], trainer: Trainer, asked: str | None) -> list[str]:
    """The kinds of rows that are written.

    Raises:
        DataError: the trainer does not take a kind, or several kinds at once, or there are no rows of the one asked for.
    """
    said = ", ".join(f"{count:,} {TITLES.get(kind, kind)}" for kind, count in found.most_common())
    kept = [kind for kind in found if asked in (None, kind)]
    if not kept:
        raise DataError(f"The run has no {TITLES.get(str(asked), asked)}: it has {said}.", fix="Leave --kind out.")
    refused = [kind for kind in kept if kind not in trainer.kinds]
    if refused and not trainer.several:
        others = [name for name, one in TRAINERS.items() if set(kept) <= {*one.kinds}]
        able = next((kind for kind in kept if kind in trainer.kinds), None)
        raise DataError(
            f"{trainer.title} cannot take {TITLES.get(refused[0], refused[0])} (the run has {said}).",
            allowed=", ".join(TITLES[kind] for kind in trainer.kinds),
            fix=(f"Leave them out, counted: --kind {able}. Or export" if able else "Export")
            + f" for another: --to {' or '.join(others or ['hub'])}",
        )
    if len(kept) > 1 and not trainer.several:
        raise DataError(
            f"The run has rows of several kinds ({said}), but {trainer.title} trains on one kind at a time.",
            allowed=", ".join(kept),
            fix=f"Export each by itself: --kind {kept[0]}. The others are left out and counted.",
        )
    return kept


def _facts(origin: Run) -> Facts:
    model = origin.manifest.to_train
    if model is None or model.task not in TASKS:
        raise RunError(
            f"{origin.folder} does not say which model and task its rows were chosen for.", fix="Select again."
        )
    task, settings = TASKS[model.task], model.settings
    name = _source(model)
    template = None if task.new_head or _has_template(name, settings.get("revision")) is not False else PLAIN_TEMPLATE
    rank = int(settings.get("lora_r") or task.defaults.lora_r)
    return Facts(
        model=name, revision=settings.get("revision"), template=template, task=task, labels=tuple(model.labels),
        max_length=model.max_length, rate=task.defaults.train_learning_rate, lora_r=rank,
        lora_alpha=float(settings.get("lora_alpha") or 2 * rank), seed=(origin.manifest.seed or 0) % 2**32,
        selected=origin.folder / training_file.FILE, device_map=settings.get("device_map"),
        bits=4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None,
    )  # fmt: skip


def _source(model: ModelRecord) -> str:
    """What transformers loads; the name itself where the model is not here."""
    try:
        return resolve(model.name)
    except ModelError:
        return model.name


def _has_template(model: str, revision: str | None) -> bool | None:
    """Whether a model has a chat template, by its files in its folder or in the Hub's cache; None where they are not here."""
    from huggingface_hub import try_to_load_from_cache

    if Path(model).is_dir():
        there = [file for name in TEMPLATES if (file := Path(model) / name).is_file()]
    else:
        cached = [try_to_load_from_cache(model, name, revision=revision) for name in TEMPLATES]
        there = [Path(one) for one in cached if isinstance(one, str)]
        if not there:
            return None
    return any(file.suffix == ".jinja" or bool(_settings(file).get("chat_template")) for file in there)


def _settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _origin(origin: Run, chosen: int) -> Origin:
    scores = origin.manifest.origin.scores
    scored = read_manifest(Path(scores).parent) if scores else origin.manifest
    commands = [_command(origin.folder, origin.manifest.command)]
    commands += [_command(Path(scores).parent, scored.command)] if scores else []
    return Origin(origin.manifest, scored, [one for one in commands if one], chosen)


_RECORDS: dict[str, type[Settings]] = {
    "select": records.SelectConfig, "select --from": records.ReselectConfig, "score": records.ScoreConfig,
}  # fmt: skip
"""The commands that a run with scores or chosen rows is made by."""


def _command(folder: Path, command: str) -> str:
    """The command that made a run, with the settings that are not the defaults; files are named without their folders."""
    record, file = _RECORDS.get(command), folder / CONFIG
    found = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None
    if record is None or not isinstance(found, Mapping):
        return ""
    words = ["tov", command.partition(" ")[0]]
    for name, field in record.model_fields.items():
        value = found.get(name)
        if name in ("out", "label_map") or value is None or value == field.default or value == [] or value == {}:
            continue
        flag = "from" if name == "from_run" else name.replace("_", "-")
        words.append(f"--no-{flag}" if value is False else f"--{flag}")
        words += [] if isinstance(value, bool) else [shlex.quote(one) for one in _said(value)]
    return " ".join(words)


def _said(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{name}={one}" for name, one in value.items()]
    return [bare(str(one)) for one in (value if isinstance(value, list) else [value])]
