"""The command line: the verbs, what each runs and prints. Their flags are made by `tov.cli.flags`.

Imports nothing heavy until a verb runs: `tov --help` must be instant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from tov.cli.streams import close, complain, not_printed, say, settle
from tov.errors import DONE, ConfigError, TovError, did_you_mean, explain, note_interrupts
from tov.sinks import json_line

if TYPE_CHECKING:
    from tov.comparison.grid import Grid
    from tov.config.settings import Settings


class Verb(NamedTuple):
    """A command: its help, the records that its flags fill, and what runs it, as `module:function`.

    Records are of `tov.config.records`, or named `module:name`.
    """

    help: str
    records: tuple[str, ...] = ()
    runs: str = ""


VERBS = {
    "demo": Verb("Choose rows from a small real pool with a small real model, offline. Start here."),
    "select": Verb(
        "Choose the rows of a pool that help a target most, and write a training file.",
        ("SelectConfig", "ReselectConfig"), "tov.verbs.select:run_select",
    ),
    "plan": Verb(
        "Check the model, data and settings of tov select and estimate its cost, without running it.",
        ("PlanConfig",), "tov.verbs.plan:run_plan",
    ),
    "score": Verb("Score a new pool with the stored path of an earlier run.", ("ScoreConfig",), "tov.verbs.score:run_score"),
    "fit": Verb("Fit and store a path without scanning a pool.", ("FitConfig",), "tov.verbs.score:run_fit"),
    "train": Verb(
        "Train the final model on the chosen rows of a run, and test it.", ("TrainConfig",), "tov.verbs.train:run_train"
    ),
    "compare": Verb(
        "Train on the rows that each method chooses, and measure the gain over random rows.",
        ("CompareConfig",), "tov.verbs.compare:run_compare",
    ),
    "report": Verb(
        "Write the HTML page of a run, a comparison or a grid, or of two selections side by side.",
        ("tov.config.page:ReportConfig",), "tov.verbs.report:run_report",
    ),
    "inspect": Verb(
        "Show rows of a run: text, scores, what each token gains, the nearest target rows.",
        ("tov.config.page:InspectConfig",), "tov.verbs.inspect:run_inspect",
    ),
    "export": Verb(
        "Write the chosen rows of a run for a trainer, with the configuration that reads them.",
        ("ExportConfig",), "tov.verbs.export:run_export",
    ),
    "methods": Verb("List the methods that choose rows, or describe one of them."),
    "doctor": Verb("Check this machine, its packages and tov's own arithmetic, and say what to do."),
    "completion": Verb("Print the script that lets bash, zsh or fish complete tov's commands, flags and values."),
}  # fmt: skip


POSITIONAL: dict[str, tuple[tuple[str, str, int], ...]] = {
    "report": (("runs", "RUN [RUN2]", -1),),
    "inspect": (("from_run", "RUN", 1), ("rows", "ROW...", -1)),
}
"""Verbs whose settings stand by their place, and in no file: setting, how the usage line has it, how many."""


YES, NO = ("true", "yes", "on"), ("false", "no", "off")


def _check_switches(params: Sequence[click.Parameter], args: Sequence[str]) -> None:
    """Raises ConfigError if a flag that takes no value has `true`, `false` or the like behind it."""
    switches = {
        flag: one
        for one in params
        if isinstance(one, click.Option) and one.is_flag
        for flag in (*one.opts, *one.secondary_opts)
    }
    pairs = [*pairwise(args), *(arg.split("=", 1) for arg in args if "=" in arg)]
    for flag, word in pairs:
        if flag not in switches or word.lower() not in (*YES, *NO) or Path(word).exists():
            continue
        switch = switches[flag]
        on = (flag in switch.opts) == (word.lower() in YES)
        ways = switch.opts if on else switch.secondary_opts
        raise ConfigError(
            f"{flag} takes no value, but '{word}' stands behind it.",
            fix=f"Write {ways[0]} alone." if ways else f"Leave {flag} out: without it, this is off.",
        )


class _Verbs(click.Group):
    """Knows the verbs' names without importing what they do."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _command(cmd_name) if cmd_name in VERBS else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise ConfigError(
                f"There is no command '{args[0]}'{did_you_mean(args[0], VERBS)}.",
                allowed=", ".join(VERBS),
                fix="Run tov --help to see what each command does.",
            )
        name, found, rest = super().resolve_command(ctx, args)
        if found and not ctx.resilient_parsing:
            _check_switches(found.get_params(ctx), rest)
        return name, found, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@click.group(cls=_Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tov", message="%(package)s %(version)s")
@click.pass_context
def tov(ctx: click.Context) -> None:
    """Choose the training rows that help your target most, and measure by how much.

    tov fine-tunes briefly on a few examples of what you care about, scans a large pool forward-only, and takes the rows whose
    log-loss moved (Train on Validation, arXiv 2510.00386).
    """
    if ctx.invoked_subcommand is None:
        say(ctx.get_help())


def _command(name: str) -> click.Command:
    verb = VERBS[name]
    own: dict[str, tuple[Any, Any]] = {
        "demo": (_demo_options, _demo), "methods": (_methods_options, _methods), "doctor": (_doctor_options, _doctor),
    }  # fmt: skip
    if name in own:
        options, callback = own[name]
        return click.Command(name, params=options(), callback=callback, help=verb.help)
    if name == "completion":
        from tov.cli.completion import completion_command

        return completion_command(name, verb.help)
    from tov.cli.flags import command

    only = click.Option(
        ["--only"], multiple=True, metavar="NAME...", help="experiments of the grid file to run; default: all"
    )
    if name in POSITIONAL:
        from tov.cli.flags import positional

        return positional(
            name, _record(verb.records[0]), POSITIONAL[name], callback=partial(_work, name, None), help=verb.help
        )
    callback = {"select": _select, "compare": _compare}.get(
        name, partial(_of_run if name in ("train", "export") else _work, name)
    )
    more = [only] if name == "compare" else []
    return command(name, [_record(one) for one in verb.records], callback=callback, help=verb.help, more=more)


def _record(name: str) -> type[Settings]:
    module, _, record = name.rpartition(":")
    return getattr(import_module(module or "tov.config.records"), record)


def _work(name: str, config: str | None, **flags: Any) -> None:
    """From the file and the flags to what the verb prints."""
    from tov.cli.flags import gather

    _run(VERBS[name].runs, VERBS[name].records[0], gather(config, flags))


def _run(runs: str, record: str, settings: dict[str, Any]) -> None:
    from tov.config.settings import build

    filled: Any = build(_record(record), settings)  # a wrong setting is told before torch is imported
    module, _, function = runs.partition(":")
    result = getattr(import_module(module), function)(filled)
    _tell(result, result.record, filled.json_output, filled.quiet)


def _tell(text: Any, record: Any, as_json: bool | None, quiet: bool | None) -> None:
    if as_json:
        say(json_line(record))
    elif not quiet:
        say(text)


def _select(config: str | None, **flags: Any) -> None:
    from tov.cli.flags import flag_of, gather

    settings = gather(config, flags)
    if "from_run" not in settings:
        return _run(VERBS["select"].runs, "SelectConfig", settings)
    known = _record("ReselectConfig").model_fields
    extra = [name for name in settings if name not in known and name in _record("SelectConfig").model_fields]
    if extra:
        raise ConfigError(
            f"{flag_of(extra[0])} cannot take effect with --from, because the scores are there already.",
            allowed=", ".join(flag_of(name) for name in known),
            fix="Leave it out, or leave --from out to score anew.",
        )
    return _run("tov.verbs.select:run_reselect", "ReselectConfig", settings)


def _of_run(name: str, config: str | None, **flags: Any) -> None:
    if config and Path(config).suffix not in (".yaml", ".yml"):  # tov train RUN
        if flags["from_run"] is not None:
            raise ConfigError(
                f"tov {name} got two runs: {config}, and --from {flags['from_run']}.",
                allowed="one run",
                fix="Leave one out.",
            )
        config, flags["from_run"] = None, config
    _work(name, config, **flags)


def _compare(config: str | None, only: tuple[str, ...] = (), **flags: Any) -> None:
    from tov.cli.flags import gather, refuse_consent
    from tov.comparison.grid import is_grid, read_grid

    if config and is_grid(Path(config)):
        grid, given = read_grid(Path(config), only), gather(None, flags)
        for settings in (grid.common, *grid.experiments.values()):
            refuse_consent(config, settings)
        from tov.verbs.compare import run_grid

        report, results = run_grid(grid, given)
        return _tell(report, {"folder": given["out"], "results": results}, *_all_say(grid, given))
    if only:
        raise ConfigError(
            "--only picks experiments of a grid file, but no grid file was named.",
            fix="Name it: tov compare GRID.yaml --only NAME",
        )
    from tov.verbs.compare import compare_config, run_compare

    record = compare_config(gather(config, flags))
    compared = run_compare(record)
    return _tell(compared, compared.record, record.json_output, record.quiet)


def _all_say(grid: Grid, given: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the joint report is printed as JSON, and whether it is not printed: where every experiment says so."""
    from tov.config.place import PlaceSettings
    from tov.config.settings import build

    settings = [grid.settings_of(name, given, given["out"]) for name in grid.experiments]
    known = {"out": "out", "json": "json_output", "json_output": "json_output", "quiet": "quiet"}
    places = [build(PlaceSettings, {known[name]: one[name] for name in known if name in one}) for one in settings]
    return all(place.json_output for place in places), all(place.quiet for place in places)


def _demo_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--task"], type=click.Choice(["instruction", "ner"]), default="instruction", show_default=True,
            help="task: instruction tuning (SmolLM2-135M) or named entities (MiniLM)",
        ),
        click.Option(["--out"], help="run folder  [runs/demo, or runs/demo-TASK]"),
        click.Option(["--force"], is_flag=True, help="make the run anew; when finished, it replaces what --out holds"),
    ]  # fmt: skip


def _demo(task: str, out: str | None, force: bool) -> None:
    from tov.cli import demo

    demo.run_demo(out, task=task, force=force)


def _methods_options() -> list[click.Parameter]:
    from tov.cli.completion import methods as complete_methods

    return [
        click.Argument(["name"], required=False, metavar="[METHOD]", shell_complete=complete_methods),
        click.Option(["--json", "json_output"], is_flag=True, help="print the result as JSON"),
        click.Option(["--markdown"], is_flag=True, help="print all methods and their options as docs/methods.md"),
    ]


def _methods(name: str | None, json_output: bool, markdown: bool) -> None:
    from tov.methods import page

    if markdown:
        say(page.whole_page(), end="")
    elif json_output:
        say(json_line(page.records(name)))
    else:
        say(page.one_method(name) if name else page.overview())


def _doctor_options() -> list[click.Parameter]:
    return [
        click.Option(["--online"], is_flag=True, help="also try whether the Hugging Face Hub answers"),
        click.Option(["--json", "json_output"], is_flag=True, help="print the result as JSON"),
    ]


def _doctor(online: bool, json_output: bool) -> None:
    from tov.verbs.doctor import doctor

    found = doctor(online=online)
    _tell(found, found.record, json_output, quiet=False)
    click.get_current_context().exit(found.exit_code)


def _settle_libraries() -> None:
    """Third parties' bars and warnings would drown our own lines; whoever wants them sets TOV_VERBOSE=1."""
    if os.environ.get("TOV_VERBOSE"):
        return
    import logging
    import warnings

    # `datasets` logs what it also raises; the level for when it is imported, and for when it has been.
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


def main(args: list[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 1 the run failed, 2 the user's input is wrong, 130 interrupted."""
    settle()
    _settle_libraries()
    note_interrupts()
    code = _answered(lambda: _command_line(args))
    sys.exit(_answered(close) or code)


def _answered(work: Callable[[], int | None]) -> int:
    """The exit code of what is done; what goes wrong is said."""
    try:
        return work() or DONE
    except click.ClickException as error:
        ctx = getattr(error, "ctx", None)
        complain(
            f"error: {error.format_message()}\n  do: Run {ctx.command_path if ctx else 'tov'} --help to see the flags."
        )
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _say(KeyboardInterrupt())
    except Exception as error:
        return _say(error)


def _command_line(args: list[str] | None) -> int | None:
    """The exit code that a command asks for, if it does."""
    try:
        code = tov.main(args=args, prog_name="tov", standalone_mode=False)
        return code if isinstance(code, int) else None
    except TovError:
        raise
    except OSError as error:
        if not not_printed(error):
            raise
    return None


def _say(error: BaseException) -> int:
    explained = explain(error)
    if explained is None:
        raise error
    complain(explained[0])
    return explained[1]
