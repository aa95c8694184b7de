"""`tov compare` from settings to a folder: trials, numbers, tables, pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tov.comparison.grid import Grid
from tov.comparison.records import read_results, read_trials
from tov.comparison.split import Data, read_data
from tov.comparison.statistics import summarize
from tov.comparison.trials import run_trials
from tov.comparison.variants import check_settings, rule_of, variants_of
from tov.config.gate import GateSettings
from tov.config.presets import derived_by, named_by
from tov.config.records import CompareConfig
from tov.config.settings import build
from tov.data.pool import check_mapping, files_of
from tov.data.sources import Input
from tov.engine.choose import check_here
from tov.errors import ConfigError, RunError
from tov.files import write_json, write_text
from tov.inputs.named import Inputs, list_inputs, model_identity, name_inputs, pool_identity
from tov.methods.registry import find_method
from tov.methods.spec import parse_variant
from tov.methods.work import expected_of
from tov.model.consent import Expected
from tov.model.load import check_loading, located
from tov.model.loading import Loading
from tov.objects.mirror import joined, named
from tov.objects.stores import at_home, is_url
from tov.progress import tell
from tov.reports import comparison as compare_report
from tov.runs.folder import Run, open_run, run_folder, watch_run, work_on
from tov.runs.manifest import Manifest, differences
from tov.sinks import line
from tov.tasks import TASKS
from tov.verbs.report import write_grid, write_results

RULED = ("best", "pilots")
"""Methods whose trials depend on a rule."""


@dataclass(frozen=True)
class Compared:
    """A finished comparison.

    Attributes:
        folder: its folder: `trials.jsonl`, `results.json`, `report.md`, `gain.svg`, `loss.svg`.
        manifest: what `manifest.json` says.
        results: the numbers of the report (`tov.comparison.statistics.summarize`).
        found: what the folder held of it: nothing, unfinished or finished.
    """

    folder: Path
    manifest: Manifest
    results: dict[str, Any]
    found: str = "nothing"

    @cached_property
    def trials(self) -> list[dict[str, Any]]:
        """One record a trial, in the order in which they were run."""
        return read_trials(self.folder / "trials.jsonl")

    @property
    def report(self) -> str:
        """The report in Markdown."""
        return (self.folder / "report.md").read_text(encoding="utf-8")

    @property
    def record(self) -> dict[str, Any]:
        """What the command prints with --json."""
        return {"folder": named(self.folder), "results": self.results, "found": self.found}

    def __str__(self) -> str:
        """What the command prints."""
        return f"{self.report}\nreport: {line(joined(named(self.folder), 'report.md'))}, with the figures gain.svg and loss.svg"

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, the variants, and where the page is."""
        from tov.reports.html.card import comparison_card, page_of

        return comparison_card(self.results, page_of(self.folder, named(self.folder)))


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
    listed = {name: list_inputs(value) for name, value in inputs.items() if value is not None}
    arguments = {
        "sizes": sizes,
        "out": str(out or "auto"),
        **settings,
        **{name: name_inputs(several) for name, several in listed.items()},
    }
    arguments |= {
        name: os.fspath(value) for name, value in (("model", model), ("from_run", from_run)) if value is not None
    }
    return run_compare(compare_config(arguments), **listed)


def compare_config(arguments: Mapping[str, Any]) -> CompareConfig:
    """The record of a comparison; under `from_run` what is not given is the run's.

    Raises:
        ConfigError: a setting is unknown or wrong.
        RunError: no such run.
    """
    arguments = {
        {"from": "from_run", "json": "json_output"}.get(name, name): value for name, value in arguments.items()
    }
    if not arguments.get("from_run"):
        return build(CompareConfig, arguments)
    origin = open_run(str(arguments["from_run"]))
    config = build(CompareConfig, {**_of_run(origin, arguments), **arguments})
    own = {"rule", "bins"} & set(arguments)
    return config if own else config.model_copy(update={"methods": _as_chosen(config.methods, origin)})


def _as_chosen(methods: Sequence[str], origin: Run) -> tuple[str, ...]:
    """The variants, with the rule of a run in that of its method, where it is another than the method's; others keep theirs."""
    identity = origin.manifest.identity
    if identity.get("method") == "auto" and origin.manifest.gate:
        chosen = origin.manifest.gate["chosen"]
        return tuple(dict.fromkeys(chosen if name == chosen.partition("/")[0] else name for name in methods))
    scored_by = origin.manifest.scoring.method if origin.manifest.scoring else "tov"
    method, settings = find_method(scored_by), identity.get("settings", {})
    rule, bins = settings.get("rule") or method.rule, settings.get("bins") or method.bins
    named = method.name + f"/{rule}" * (rule != method.rule) + f"/bins={bins}" * (bins != method.bins)
    return tuple(named if name == method.name and method.takes == "best" else name for name in methods)


def _of_run(origin: Run, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run but for its rule, its pool and target by their absolute paths."""
    folder, manifest = origin.folder, origin.manifest
    if manifest.command not in ("select", "fit") or manifest.to_train is None:
        raise RunError(
            f"{folder} is a run of tov {manifest.command}, whose settings are not those of a comparison.",
            allowed="a run of tov select or tov fit", fix="Name the run that scored the rows, or model, pool and target.",
        )  # fmt: skip
    scan = manifest.scoring.settings if manifest.scoring else {}
    settings = {**manifest.to_train.settings, **manifest.identity.get("settings", {}), **scan}
    replaced = {"rule", "bins", *GateSettings.model_fields, *named_by(arguments.get("preset"))}
    replaced |= derived_by(settings)
    settings = {name: value for name, value in settings.items() if name not in replaced}
    for name in ("pool", "target"):
        if name not in arguments:
            settings[name] = getattr(manifest.inputs, name)
            if not settings[name]:
                raise ConfigError(
                    f"The {name} of {folder} was in memory, so it cannot be read again.",
                    fix=f"Pass it again: tov.compare(..., {name}=...)",
                )
    return {name: value for name, value in settings.items() if name in CompareConfig.model_fields and value is not None}


def run_compare(
    config: CompareConfig,
    *,
    pool: Sequence[Input] | None = None,
    target: Sequence[Input] | None = None,
    test: Sequence[Input] | None = None,
) -> Compared:
    """`compare` from a record of settings; inputs in memory are passed beside it."""
    if not config.report_only:
        check_here(config)
        check_loading(Loading.of(config), config.device, new_head=False)
    data = read_data(config, pool or config.pool, target or config.target, test or config.test)
    config = config.for_task(data.target.task).model_copy(update={"model": located(config.model)})
    check_mapping(config.columns, data.pool.pool, data.target.pool)
    check_settings(config)
    identity = _identity(config, data)
    folder = run_folder(config.out, identity)
    reads = [path for read in (data.pool, data.target, data.test) if read for path in files_of(read.pool)]
    reads += open_run(config.from_run).reads if config.from_run else []
    if config.report_only:
        return _compared(watch_run(folder, command="compare", identity=identity), data, config)
    with work_on(
        folder,
        command="compare",
        identity=identity,
        settings=config.shown(),
        force=config.force,
        tells=not config.quiet,
        reads=reads,
        adds=True,
    ) as run:
        return _compared(run, data, config)


def _compared(run: Run, data: Data, config: CompareConfig) -> Compared:
    folder, rules = run.folder, _check_rules(run, config)
    if not config.report_only:
        run.note(comparison={**(run.manifest.comparison or {}), "rules": rules})
    records, notes = run_trials(run, data, config, _expected(config))
    task = TASKS[config.task or ""]
    metric = (config.metric or task.metric) if not task.generates or config.exact_match else None
    results = summarize(records, sizes=config.sizes, metric=metric)
    results["notes"] = [*notes, *results["notes"]]
    results["auto"] = [
        {"variant": one["variant"], "n": one["n"], "seed": one["seed"], **one["gate"]}
        for one in records
        if "gate" in one
    ]
    write_json(folder / "results.json", results)
    write_text(folder / "report.md", compare_report.comparison_markdown(results, _about(config, run.manifest, data)))
    from tov.reports import figures  # matplotlib takes half a second to import

    figures.gain_picture(results, folder / "gain.svg")
    figures.curve_picture(results, folder / "loss.svg")
    if config.page:
        write_results(folder, results, run.manifest, run.place)
    if not config.report_only:
        asked = {"methods": list(config.methods), "sizes": list(config.sizes), "seeds": config.seeds}
        run.note(comparison={"rules": rules, "asked": asked})
        run.finish()
    return Compared(run.folder, run.manifest, results, run.found)


def _expected(config: CompareConfig) -> Expected | None:
    """The model of the run that the comparison goes out from, unless another is named."""
    if not config.from_run:
        return None
    origin = open_run(config.from_run)
    record = origin.manifest.to_train
    same = record and record.name == config.model
    anew = "name the model with --model and leave --from out"
    return expected_of(record, f"that the rows of {origin.folder} were chosen with", anew) if same else None


def _check_rules(run: Run, config: CompareConfig) -> dict[str, Any]:
    """Trials of a variant are comparable only under one rule, which its own options, --rule and --bins decide.

    Returns:
        The rules of all variants trained so far or asked for now.

    Raises:
        RunError: an earlier call had other ones.
    """
    now = {variant.name: rule_of(config, variant) for variant in variants_of(config) if variant.method.takes in RULED}
    was = (run.manifest.comparison or {}).get("rules", {})
    changed = differences(
        {name: was[name] for name in now if name in was}, {name: now[name] for name in was if name in now}
    )
    if changed:
        raise RunError(
            f"{run.folder} has trials of other rules: {', '.join(changed)}.",
            fix="Give --rule and --bins as before, name the rule with the method (dsir/score-only), or choose another --out.",
        )
    return {**was, **now}


def run_grid(grid: Grid, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Runs a grid's experiments one after another, each in a folder of its name under `out`.

    Args:
        grid: from `read_grid`.
        arguments: settings that override the file's; `out` is the folder of all.

    Returns:
        The joint report, and each experiment's results by its name: those of this call, and of others that `out` holds.

    Raises:
        TovError: an experiment's settings or data are wrong; those before it stay, and the same call goes on from there.
    """
    if "out" not in arguments:
        raise ConfigError("--out is missing.", fix="Name the folder of the whole grid, e.g. --out runs/grid.")
    if is_url(arguments["out"]):
        raise ConfigError(
            f"--out {arguments['out']}: the folder of a grid must be a local one.",
            fix="Name a local folder. A comparison that is no grid can be at a URL.",
        )
    out = at_home(arguments["out"])
    configs = {name: compare_config(grid.settings_of(name, arguments, str(out))) for name in grid.experiments}
    for config in configs.values():
        if config.task:
            check_settings(config.for_task(config.task))
        else:  # defaults, and so which variants are the same, go by the task, which the data will tell
            for name in config.methods:
                parse_variant(name)
    for name, config in configs.items():
        if config.report_only and not (out / name / "manifest.json").exists():
            tell(f"{name}: nothing has been run yet")
            continue
        if not config.quiet:
            tell(f"== {name}")
        run_compare(config)
    results = {path.parent.name: read_results(path) for path in sorted(out.glob("*/results.json"))}
    if not results:
        raise RunError(f"{out} holds no experiment of the grid.", fix="Give the command without --report-only.")
    report = compare_report.grid_markdown(results)
    write_text(out / "report.md", report)
    write_json(out / "results.json", results)
    if all(config.page for config in configs.values()):
        write_grid(out, results)
    return report, results


def _about(config: CompareConfig, manifest: Manifest, data: Data) -> dict[str, Any]:
    """What stands at the head of a report."""
    versions, hardware = manifest.versions, manifest.hardware
    wanted = config.target_rows or ("the other" if config.test_rows else "all")
    return {
        "model": config.model,
        "task": config.task,
        "pool": ", ".join(source.name for source in data.pool.pool.sources)
        + (f" (at most {config.pool_rows:,} rows each)" if config.pool_rows else f" ({len(data.pool.pool):,} rows)"),
        "target": f"{', '.join(source.name for source in data.target.pool.sources)} ({wanted} rows)",
        "test": f"{config.test_rows or len(data.test or data.target):,} rows",
        "training": f"{config.num_train_epochs or f'{config.train_rows:,} / n'} epochs, rate {config.train_learning_rate:g}, "
        f"batches of {config.train_batch_size}, LoRA rank {config.lora_r}, alpha {config.lora_alpha:g}",
        "seeds": f"{config.seed} to {config.seed + config.seeds - 1}" if config.seeds > 1 else config.seed,
        "made with": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "on": f"{hardware['cpu']}, {hardware['threads']} threads" + "".join(f", {gpu}" for gpu in hardware["gpus"]),
    }


def _identity(config: CompareConfig, data: Data) -> dict[str, Any]:
    """What every trial depends on. Which trials there are may change: they are added."""
    settings, tov = config.of("fit", "scan", "choice", "training"), find_method("tov")
    # What tov takes where nothing is given; the other methods' own rules are told by the variants, see `_check_rules`.
    settings |= {"rule": settings["rule"] or tov.rule, "bins": settings["bins"] or tov.bins}
    reads = {"pool": data.pool, "target": data.target, "test": data.test}
    return {
        "settings": settings,
        "model": model_identity(config),
        **{name: pool_identity(read.pool, read.index) for name, read in reads.items() if read},
    }
