"""The command line: the verbs, what each runs and prints. Their flags are made by `tov.cli.flags`.

Imports nothing heavy until a verb runs: `tov --help` must be instant.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tov.errors import DONE, ConfigError, did_you_mean, explain, note_interrupts

if TYPE_CHECKING:
    from tov.config.settings import Settings
    from tov.verbs.result import Result

VERBS = {
    "demo": "Choose rows from a small real pool with a small real model, offline. Start here.",
    "select": "Choose the rows of a pool that help a target most, and write a training file.",
    "plan": "Check the model, data and settings of tov select and estimate its cost, without running it.",
    "score": "Score a new pool with the stored path of an earlier run.",
    "fit": "Fit and store a path without scanning a pool.",
    "train": "Train the final model on the chosen rows of a run, and test it.",
    "compare": "Train on the rows that each method chooses, and measure the gain over random rows.",
    "methods": "List the methods that choose rows, or describe one of them.",
}


class _Verbs(click.Group):
    """Knows the verbs' names without importing what they do."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _command(cmd_name) if cmd_name in VERBS else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise ConfigError(
                f"There is no command '{args[0]}'{did_you_mean(args[0], VERBS)}.",
                allowed=", ".join(VERBS),
                fix="Run tov --help to see what each command does.",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tov", message="%(package)s %(version)s")
def tov() -> None:
    """Choose the training rows that help your target most, and measure by how much.

    tov fine-tunes briefly on a few examples of what you care about, scans a large pool forward-only, and takes the rows whose
    log-loss moved (Train on Validation, arXiv 2510.00386).
    """


def _command(verb: str) -> click.Command:
    if verb == "demo":
        return click.Command(verb, params=_demo_options(), callback=_demo, help=VERBS[verb])
    if verb == "methods":
        return click.Command(verb, params=_methods_options(), callback=_methods, help=VERBS[verb])
    from tov.cli.flags import command
    from tov.config.records import (
        CompareConfig,
        FitConfig,
        PlanConfig,
        ReselectConfig,
        ScoreConfig,
        SelectConfig,
        TrainConfig,
    )

    records: dict[str, tuple[type[Settings], ...]] = {
        "select": (SelectConfig, ReselectConfig), "plan": (PlanConfig,), "score": (ScoreConfig,), "fit": (FitConfig,),
        "train": (TrainConfig,), "compare": (CompareConfig,),
    }  # fmt: skip
    runners: dict[str, Callable[..., None]] = {
        "select": _select, "plan": _plan, "score": _score, "fit": _fit, "train": _train, "compare": _compare,
    }  # fmt: skip
    only = click.Option(
        ["--only"], multiple=True, metavar="NAME...", help="experiments of the grid file to run; default: all"
    )
    return command(
        verb, records[verb], callback=runners[verb], help=VERBS[verb], more=[only] if verb == "compare" else []
    )


def _select(config: str | None, **flags: Any) -> None:
    from tov.cli.flags import flag_of, gather
    from tov.config.records import ReselectConfig, SelectConfig
    from tov.config.settings import build

    settings = gather(config, flags)
    if "from_run" in settings:
        extra = [
            name for name in settings if name not in ReselectConfig.model_fields and name in SelectConfig.model_fields
        ]
        if extra:
            raise ConfigError(
                f"{flag_of(extra[0])} cannot take effect with --from, because the scores are there already.",
                allowed=", ".join(flag_of(name) for name in ReselectConfig.model_fields),
                fix="Leave it out, or leave --from out to score anew.",
            )
        record: Any = build(ReselectConfig, settings)
    else:
        record = build(SelectConfig, settings)
    from tov.verbs.select import run_reselect, run_select

    result = run_reselect(record) if "from_run" in settings else run_select(record)
    _tell(result, record)


def _plan(config: str | None, **flags: Any) -> None:
    from tov.cli.flags import gather
    from tov.config.records import PlanConfig
    from tov.config.settings import build

    record = build(PlanConfig, gather(config, flags))
    from tov.verbs.plan import run_plan

    planned = run_plan(record)
    if record.json_output:
        print(json.dumps(planned.facts, ensure_ascii=False))
    elif not record.quiet:
        print(planned)


def _score(config: str | None, **flags: Any) -> None:
    from tov.cli.flags import gather
    from tov.config.records import ScoreConfig
    from tov.config.settings import build

    record = build(ScoreConfig, gather(config, flags))
    from tov.verbs.score import run_score

    _tell(run_score(record), record)


def _fit(config: str | None, **flags: Any) -> None:
    from tov.cli.flags import gather
    from tov.config.records import FitConfig
    from tov.config.settings import build

    record = build(FitConfig, gather(config, flags))
    from tov.verbs.score import run_fit

    _tell(run_fit(record), record)


def _train(config: str | None, **flags: Any) -> None:
    from tov.cli.flags import gather
    from tov.config.records import TrainConfig
    from tov.config.settings import build

    if config and Path(config).suffix not in (".yaml", ".yml"):  # tov train RUN
        config, flags["from_run"] = None, config
    record = build(TrainConfig, gather(config, flags))
    from tov.verbs.train import describe, run_train

    trained = run_train(record)
    if record.json_output:
        print(json.dumps({"folder": str(trained.folder), "summary": trained.summary}))
    elif not record.quiet:
        print(describe(trained))


def _compare(config: str | None, only: tuple[str, ...] = (), **flags: Any) -> None:
    from tov.cli.flags import gather
    from tov.comparison.grid import is_grid, read_grid

    if config and is_grid(Path(config)):
        grid, given = read_grid(Path(config), only), gather(None, flags)
        from tov.verbs.compare import run_grid

        report, results = run_grid(grid, given)
        if given.get("json_output"):
            print(json.dumps({"folder": given["out"], "results": results}))
        elif not given.get("quiet"):
            print(report)
        return
    if only:
        raise ConfigError(
            "--only picks experiments of a grid file, but no grid file was named.",
            fix="Name it: tov compare GRID.yaml --only NAME",
        )
    given = gather(config, flags)
    from tov.verbs.compare import compare_config, run_compare

    record = compare_config(given)
    compared = run_compare(record)
    if record.json_output:
        print(json.dumps({"folder": str(compared.folder), "results": compared.results}))
    elif not record.quiet:
        print(compared.report)
        print(f"report: {compared.folder / 'report.md'}, with the figures gain.svg and loss.svg")


def _demo_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--task"], type=click.Choice(["instruction", "ner"]), default="instruction", show_default=True,
            help="task: instruction tuning (SmolLM2-135M) or named entities (MiniLM)",
        ),
        click.Option(["--out"], help="run folder  [runs/demo, or runs/demo-TASK]"),
        click.Option(["--force"], is_flag=True, help="delete what --out holds, and start again"),
    ]  # fmt: skip


def _demo(task: str, out: str | None, force: bool) -> None:
    from tov.cli import demo

    demo.run_demo(out, task=task, force=force)


def _methods_options() -> list[click.Parameter]:
    return [
        click.Argument(["name"], required=False, metavar="[METHOD]"),
        click.Option(["--json", "json_output"], is_flag=True, help="print the result as JSON"),
        click.Option(["--markdown"], is_flag=True, help="print all methods and their options as docs/methods.md"),
    ]


def _methods(name: str | None, json_output: bool, markdown: bool) -> None:
    from tov.methods import page

    if markdown:
        print(page.whole_page(), end="")
    elif json_output:
        print(json.dumps(page.records(name), ensure_ascii=False))
    else:
        print(page.one_method(name) if name else page.overview())


def _tell(result: Result, record: Any) -> None:
    """What a finished command prints: a table and what to do next, or JSON."""
    from tov.report.summary import composition_table

    summary = result.summary
    if record.json_output:
        kept = {key: getattr(result.manifest, key) for key in ("status", "summary", "timings")}
        print(json.dumps({"folder": str(result.folder), **kept}))
        return
    if record.quiet:
        return
    if "choice" in summary:
        print(composition_table(summary["choice"]))
        for note in summary["notes"]:
            print(f"note: {note}")
        print(f"\n{summary['choice']['n']:,} rows in {result.folder / 'selected.jsonl'} (and .parquet)")
        print(f"report: {result.folder / 'summary.md'}")
        return
    if "scores" in summary:
        facts = summary["scores"]
        print(f"{facts['usable']:,} of {facts['rows']:,} rows scored; report: {result.folder / 'summary.md'}")
        for reason, count in facts["left_out"].items():
            print(f"  {count:,} rows without a score: {reason}")
        print(f"choose from them: tov select --from {result.folder} --n 1000 --out OUT")
        return
    print(f"path of {summary['epochs']} epochs in {result.folder / 'path'}")
    print(f"score a pool with it: tov score --from {result.folder} --pool POOL --out OUT")


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
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


def main(args: list[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 1 the run failed, 2 the user's input is wrong, 130 interrupted."""
    _settle_libraries()
    note_interrupts()
    try:
        tov.main(args=args, prog_name="tov", standalone_mode=False)
        code = DONE
    except click.ClickException as error:
        ctx = getattr(error, "ctx", None)
        print(
            f"error: {error.format_message()}\n  do: Run {ctx.command_path if ctx else 'tov'} --help to see the flags.",
            file=sys.stderr,
        )
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = _say(KeyboardInterrupt())
    except Exception as error:
        code = _say(error)
    sys.exit(code)


def _say(error: BaseException) -> int:
    explained = explain(error)
    if explained is None:
        raise error
    print(explained[0], file=sys.stderr)
    return explained[1]
