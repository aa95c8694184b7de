"""`tov compare` from settings to a folder: trials, numbers, tables, pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tov import compare_report
from tov.comparison.arms import arms_of, check_settings, rule_of
from tov.comparison.grid import Grid
from tov.comparison.records import read_trials
from tov.comparison.split import Data, read_data
from tov.comparison.statistics import summarize
from tov.comparison.trials import run_trials
from tov.config import CompareConfig
from tov.data.pool import Index, Pool, check_mapping, files_of
from tov.data.sources import Input
from tov.errors import ConfigError, RunError
from tov.files import read_json, write_json, write_text
from tov.inputs import Inputs, list_inputs, name_inputs, read_by
from tov.methods import METHODS, find_method, parse_arm
from tov.metrics import NAMES
from tov.path.store import open_path
from tov.run import Run, at_work, differences, open_run, run_folder, start_run, watch_run
from tov.settings import build
from tov.tables.work import NAMED


@dataclass(frozen=True)
class Compared:
    """A finished comparison.

    Attributes:
        folder: its folder: `trials.jsonl`, `results.json`, `report.md`, `gain.svg`, `loss.svg`.
        manifest: what `manifest.json` says.
        results: the numbers of the report (`tov.comparison.statistics.summarize`).
    """

    folder: Path
    manifest: dict[str, Any]
    results: dict[str, Any]

    @cached_property
    def trials(self) -> list[dict[str, Any]]:
        """One record a trial, in the order in which they were run."""
        return read_trials(self.folder / "trials.jsonl")

    @property
    def report(self) -> str:
        """The report in Markdown."""
        return (self.folder / "report.md").read_text(encoding="utf-8")


def compare(
    *,
    sizes: int | Sequence[int],
    test: Inputs | None = None,
    from_run: str | os.PathLike[str] | None = None,
    model: str | None = None,
    pool: Inputs | None = None,
    target: Inputs | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> Compared:
    """Trains on what each method chooses, tests, and says how much better than random it was.

    The same call again returns the finished comparison, or goes on where it was interrupted; more methods, sizes or seeds are
    added to what is there.

    Args:
        sizes: rows to choose.
        test: held-out rows like the target; or `test_rows`.
        from_run: a run (or its result) whose model, pool, target and settings are taken.
        model: Hub id, local folder, .gguf file or alias.
        pool: rows to choose from.
        target: examples of what is wanted.
        out: the comparison's folder; default `tov-runs/<fingerprint>`.
        **settings: any other setting of `tov compare --help`.

    Raises:
        TovError: one of its six kinds; the text says what to do. A trial that fails is a line of the report, not an error.
    """
    inputs = {"pool": pool, "target": target, "test": test}
    listed = {name: list_inputs(given) for name, given in inputs.items() if given is not None}
    given = {
        "sizes": sizes,
        "out": str(out or "auto"),
        **settings,
        **{name: name_inputs(one) for name, one in listed.items()},
    }
    given |= {name: os.fspath(value) for name, value in (("model", model), ("from_run", from_run)) if value is not None}
    return run_compare(compare_config(given), **listed)


def compare_config(given: Mapping[str, Any]) -> CompareConfig:
    """The record of a comparison; under `from_run` what is not given is the run's.

    Raises:
        ConfigError: a setting is unknown or wrong.
        RunError: no such run.
    """
    given = {{"from": "from_run", "json": "json_output"}.get(name, name): value for name, value in given.items()}
    if not given.get("from_run"):
        return build(CompareConfig, given)
    origin = open_run(str(given["from_run"]))
    config = build(CompareConfig, {**_of_run(origin, given), **given})
    own = {"rule", "bins"} & set(given)
    return config if own else config.model_copy(update={"methods": _as_chosen(config.methods, origin)})


def _as_chosen(methods: Sequence[str], origin: Run) -> tuple[str, ...]:
    """The arms, with the rule of a run in the arm of its method, where it is another than the method's; others keep theirs."""
    method, settings = (
        find_method(origin.manifest.get("scored_by", "tov")),
        origin.manifest["identity"].get("settings", {}),
    )
    rule, bins = settings.get("rule") or method.rule, settings.get("bins") or method.bins
    named = method.name + f"/{rule}" * (rule != method.rule) + f"/bins={bins}" * (bins != method.bins)
    return tuple(named if one == method.name else one for one in methods)


def _of_run(origin: Run, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run but for its rule, its pool and target by their absolute paths."""
    folder, fitted = origin.folder, (origin.path / "manifest.json").exists()
    if not fitted and "method" not in origin.manifest:
        raise RunError(f"{folder} holds no fitted path", fix="name the --out of a tov select or tov fit")
    identity, scan = origin.manifest["identity"].get("settings", {}), origin.manifest.get("scan_settings", {})
    found = {**(open_path(origin.path).manifest["settings"] if fitted else {}), **identity, **scan}
    found = {name: value for name, value in found.items() if name not in ("rule", "bins")}
    for name in ("pool", "target"):
        if name not in given:
            found[name] = origin.manifest["inputs"].get(name)
            if not found[name]:
                raise ConfigError(
                    f"the {name} of {folder} was in memory", fix=f"pass it again: tov.compare(..., {name}=...)"
                )
    return {name: value for name, value in found.items() if name in CompareConfig.model_fields and value is not None}


def run_compare(
    config: CompareConfig,
    *,
    pool: Sequence[Input] | None = None,
    target: Sequence[Input] | None = None,
    test: Sequence[Input] | None = None,
) -> Compared:
    """`compare` from a record of settings; inputs in memory are passed beside it."""
    data = read_data(config, pool or config.pool, target or config.target, test or config.test)
    config = config.for_task(data.target[0].task)
    check_mapping(config.columns, data.pool[0], data.target[0])
    check_settings(config)
    identity = _identity(config, data)
    folder = run_folder(config.out, identity)
    reads = [path for read in (data.pool, data.target, data.test) if read for path in files_of(read[0])]
    reads += read_by(open_run(config.from_run)) if config.from_run else []
    if config.report_only:
        run = watch_run(folder, command="compare", identity=identity)
    else:
        run = start_run(
            folder, command="compare", identity=identity, settings=config.shown(), force=config.force, reads=reads
        )
    rules = _check_rules(run, config)
    with nullcontext() if config.report_only else at_work(run):
        return _compared(run, data, config, rules)


def _compared(run: Run, data: Data, config: CompareConfig, rules: dict[str, Any]) -> Compared:
    folder = run.folder
    if not config.report_only:
        run.note(rules=rules)
    records, notes = run_trials(run, data, config)
    metric = NAMES[config.task or "instruction"] if config.task != "instruction" or config.exact_match else None
    results = summarize(records, sizes=config.sizes, metric=metric)
    results["notes"] = [*notes, *results["notes"]]
    write_json(folder / "results.json", results)
    write_text(folder / "report.md", compare_report.comparison_markdown(results, _about(config, run.manifest, data)))
    from tov import pictures  # matplotlib takes half a second to import

    pictures.gain_picture(results, folder / "gain.svg")
    pictures.curve_picture(results, folder / "loss.svg")
    if not config.report_only:
        run.note(asked={"methods": list(config.methods), "sizes": list(config.sizes), "seeds": config.seeds})
        run.finish()
    return Compared(folder, run.manifest, results)


def _check_rules(run: Run, config: CompareConfig) -> dict[str, Any]:
    """Trials of an arm are comparable only under one rule, which its own options, --rule and --bins decide.

    Returns:
        The rules of all arms trained so far or asked for now.

    Raises:
        RunError: an earlier call had other ones.
    """
    now = {arm.name: rule_of(config, arm) for arm in arms_of(config) if arm.method.takes == "best"}
    was = run.manifest.get("rules", {})
    changed = differences(
        {name: was[name] for name in now if name in was}, {name: now[name] for name in was if name in now}
    )
    if changed:
        raise RunError(
            f"{run.folder} has trials of other rules: {', '.join(changed)}",
            fix="give --rule and --bins as before, name the rule in the arm (dsir/score-only), or choose another --out",
        )
    return {**was, **now}


def run_grid(grid: Grid, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Runs a grid's experiments one after another, each in a folder of its name under `out`.

    Args:
        grid: from `read_grid`.
        given: settings that override the file's; `out` is the folder of all.

    Returns:
        The joint report, and each experiment's results by its name: those of this call, and of others that `out` holds.

    Raises:
        TovError: an experiment's settings or data are wrong; those before it stay, and the same call goes on from there.
    """
    if "out" not in given:
        raise ConfigError("--out is missing", fix="name the folder of the whole grid, e.g. --out runs/grid")
    out = Path(given["out"]).expanduser()
    configs = {name: compare_config(grid.settings_of(name, given, str(out))) for name in grid.experiments}
    for config in configs.values():
        if config.task:
            check_settings(config.for_task(config.task))
        else:  # defaults, and so which arms are the same, go by the task, which the data will tell
            for name in config.methods:
                parse_arm(name)
    for name, config in configs.items():
        if config.report_only and not (out / name / "manifest.json").exists():
            print(f"{name}: nothing has been run yet", file=sys.stderr)
            continue
        if not config.quiet:
            print(f"== {name}", file=sys.stderr)
        run_compare(config)
    found = {path.parent.name: read_json(path) for path in sorted(out.glob("*/results.json"))}
    if not found:
        raise RunError(f"{out} holds no experiment of the grid", fix="give the command without --report-only")
    report = compare_report.grid_markdown(found)
    write_text(out / "report.md", report)
    write_json(out / "results.json", found)
    return report, found


def _about(config: CompareConfig, manifest: Mapping[str, Any], data: Data) -> dict[str, Any]:
    """What stands at the head of a report."""
    versions, hardware = manifest["versions"], manifest["hardware"]
    wanted = config.target_rows or ("the other" if config.test_rows else "all")
    return {
        "model": config.model,
        "task": config.task,
        "pool": ", ".join(source.name for source in data.pool[0].sources)
        + (f" (at most {config.pool_rows:,} rows each)" if config.pool_rows else f" ({len(data.pool[0]):,} rows)"),
        "target": f"{', '.join(source.name for source in data.target[0].sources)} ({wanted} rows)",
        "test": f"{config.test_rows or len((data.test or data.target)[0]):,} rows",
        "training": f"{config.train_epochs or f'{config.train_rows:,} / n'} epochs, rate {config.train_learning_rate:g}, "
        f"batches of {config.train_batch_size}, LoRA rank {config.lora_rank}, alpha {config.lora_alpha:g}",
        "seeds": f"{config.seed} to {config.seed + config.seeds - 1}",
        "made with": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "on": f"{hardware['cpu']}, {hardware['threads']} threads" + "".join(f", {gpu}" for gpu in hardware["gpus"]),
    }


def _identity(config: CompareConfig, data: Data) -> dict[str, Any]:
    """What every trial depends on. Which trials there are may change: they are added."""
    kept = config.of_stage("path", "scan", "selection", "training")
    settings = {name: value for name, value in kept.items() if name not in NAMED}
    # What tov takes where nothing is given; the other methods' own rules are told by the arms, see `_check_rules`.
    settings |= {"rule": settings["rule"] or METHODS["tov"].rule, "bins": settings["bins"] or METHODS["tov"].bins}
    reads = {"pool": data.pool, "target": data.target, "test": data.test}
    return {
        "settings": settings,
        **{name: _fingerprint(read) for name, read in reads.items() if read},
    }


def _fingerprint(read: tuple[Pool, Index]) -> dict[str, Any]:
    return {
        "sources": {source.name: len(source.table) for source in read[0].sources},
        "fingerprint": read[1].fingerprint,
    }
