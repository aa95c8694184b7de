"""Flags and settings: a flag is made from each setting of the records in `tov.config`; what was typed becomes settings again.

Knows click and the records; must not know what a verb does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from tov.cli.completion import OF_SETTING, OPEN_LIST, argument
from tov.config.settings import EVERY_SOURCE, Settings, declared_by, no_setting
from tov.config.yaml_files import line_of, read_yaml
from tov.errors import ConfigError

_FLAGS = {"json_output": "json", "from_run": "from"}
GROUPS = {
    "fit": "Data, model and fit (a change makes another run)", "scan": "Scoring the pool",
    "choice": "Choosing rows (with --from, no row is scored again)", "pilots": "Pilots of --method auto",
    "training": "Final training",
    "trials": "Trials of the comparison (more can be added later)",
    "export": "What is exported, and for whom", "output": "Output",
}  # fmt: skip


class _Command(click.Command):
    """A command whose list options take several values (`--pool a b c`) and whose help is grouped by stage."""

    def __init__(self, groups: dict[str, str], lists: set[str], **options: Any) -> None:
        super().__init__(**options)
        self.groups, self.lists = groups, lists

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:
            ctx.meta[OPEN_LIST] = self._open_list(ctx, args)
        return super().parse_args(ctx, spread(args, self.lists))

    def _open_list(self, ctx: click.Context, args: list[str]) -> click.Parameter | None:
        """The option whose values stand at the end, if it takes several."""
        last = next((arg for arg in reversed(args) if arg.startswith("-")), "")
        return next((one for one in self.get_params(ctx) if last in self.lists and last in one.opts), None)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[Any]]:
        """One more value of a list, or flags."""
        listed = ctx.meta.get(OPEN_LIST)
        if listed and not incomplete.startswith("-"):
            return list(listed.shell_complete(ctx, incomplete))
        return super().shell_complete(ctx, incomplete)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for stage, title in GROUPS.items():
            rows = [
                record
                for option in self.get_params(ctx)
                if self.groups.get(option.name or "") == stage and (record := option.get_help_record(ctx))
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class _OfRows(click.Command):
    """A command of row_ids, none of which is negative: not a place counted from the end, and no flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        negative = next((arg for arg in args if re.fullmatch(r"-\d+", arg)), None)
        if negative and not ctx.resilient_parsing:
            raise ConfigError(
                f"There is no row {negative}: a row_id is a row's place in the pool, counted from 0.", allowed="0, 1, 2, ...",
                fix="Take a row_id from the report, or tov_row_id from selected.jsonl.",
            )  # fmt: skip
        return super().parse_args(ctx, args)


def spread(args: list[str], lists: set[str]) -> list[str]:
    """`--pool a b` as `--pool a --pool b`, for the options in `lists`."""
    out: list[str] = []
    current = None
    for arg in args:
        if arg.startswith("-"):
            current = arg if arg in lists else None
            out.append(arg)
        elif current and out[-1] != current:
            out += [current, arg]
        else:
            out.append(arg)
    return out


def command(
    verb: str,
    records: Sequence[type[Settings]],
    *,
    callback: Callable[..., None],
    help: str,
    more: Sequence[click.Option] = (),
) -> click.Command:
    """A command with a flag for each setting of the records, and a YAML file of settings as its argument.

    Args:
        verb: its name.
        records: what it can be given.
        callback: gets the file's name as `config`, and every flag.
        help: in a line.
        more: flags of its own that take several values and say which trials are run.
    """
    found: dict[str, tuple[click.Option, str]] = {}
    for record in records:
        for name in record.model_fields:
            found.setdefault(name, (_option(record, name), declared_by(record, name).invalidates))
    found |= {option.name or "": (option, "trials") for option in more}
    options = [option for option, _ in found.values()]
    config = click.Argument(["config"], required=False, metavar="[CONFIG.yaml]", shell_complete=argument)
    return _Command(
        {name: stage for name, (_, stage) in found.items()}, {option.opts[0] for option in options if option.multiple},
        name=verb, params=[config, *options],
        callback=callback, help=help,
    )  # fmt: skip


def positional(
    verb: str, record: type[Settings], places: Sequence[tuple[str, str, int]], *, callback: Callable[..., None], help: str
) -> click.Command:  # fmt: skip
    """A command some of whose settings are told by their place.

    Args:
        verb: its name.
        record: its settings.
        places: setting, how the usage line has it, how many values (-1: any number, at least one).
        callback: gets every setting.
        help: in a line.
    """
    named = {name for name, _, _ in places}
    arguments = [
        click.Argument([name], nargs=count, metavar=shown, required=True, type=int if name == "rows" else str)
        for name, shown, count in places
    ]
    options = [_option(record, name) for name in record.model_fields if name not in named]
    kind = _OfRows if "rows" in named else click.Command
    return kind(verb, params=[*arguments, *options], callback=callback, help=help)


def flag_of(name: str) -> str:
    """`--from` for `from_run`."""
    return f"--{_FLAGS.get(name, name).replace('_', '-')}"


def _option(record: type[Settings], name: str) -> click.Option:
    """A flag for one setting. Its own default is "not given"; the record's default is only shown."""
    field = record.model_fields[name]
    kind: Any = field.annotation
    members = [member for member in get_args(kind) if member is not type(None)]
    if get_origin(kind) is not Literal and type(None) in get_args(kind):
        kind = members[0]
    default = None if field.is_required() else field.default
    help = f"{field.description}{_shown_default(default)}"
    flag = flag_of(name)
    if kind is bool:
        toggled = f"{flag}/--no-{flag[2:]}" if default else flag
        return click.Option([toggled, name], default=None, is_flag=True, help=help)
    if get_origin(kind) is Literal:
        return click.Option([flag, name], type=click.Choice(get_args(kind)), help=help)
    declared = declared_by(record, name)
    if declared.choices:
        return click.Option([flag, name], type=click.Choice(list(declared.choices())), help=help)
    if declared.file:
        return click.Option([flag, name], type=str, metavar="FILE", help=help, shell_complete=OF_SETTING.get(name))
    many = get_origin(kind) in (tuple, dict)
    return click.Option(
        [flag, name], type=kind if kind in (int, float) else str, multiple=many, metavar="TEXT..." if many else None,
        help=help, shell_complete=OF_SETTING.get(name),
    )  # fmt: skip


def _shown_default(default: Any) -> str:
    if default is None or default in ({}, ()):
        return ""
    if isinstance(default, bool):
        return f"  [{'on' if default else 'off'}]"
    return f"  [{' '.join(default) if isinstance(default, tuple) else default}]"


def gather(config: str | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Settings from the YAML file, overridden by the flags that were given."""
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    if isinstance(given.get("columns"), tuple):
        pairs = [one.partition("=") for one in given["columns"]]
        if any(not theirs for _, _, theirs in pairs):
            raise ConfigError(
                f"--columns got {' '.join(given['columns'])}.",
                allowed="pairs OURS=YOURS, e.g. prompt=question",
                fix="Write an equals sign in each pair.",
            )
        given["columns"] = _each_once("columns", given["columns"], [(ours, theirs) for ours, _, theirs in pairs])
    if isinstance(given.get("source_cap"), tuple):
        given["source_cap"] = _caps(given["source_cap"])
    settings = read_yaml(Path(config)) if config else {}
    for name, short in _FLAGS.items():
        if short in settings:
            settings[name] = settings.pop(short)
    unknown = next((key for key in settings if key not in flags), None)
    if config and unknown is not None:
        verb = click.get_current_context().info_name or ""
        raise no_setting(unknown, flags, verb, f"{config}{line_of(unknown, Path(config))}")
    refuse_consent(config, settings)
    return {**settings, **given}


def refuse_consent(file: str | None, settings: Mapping[str, Any]) -> None:
    """A settings file may be another's, and must not have code run for the user.

    Raises:
        ConfigError: it says that a model's code, or a metric's, is to be run.
    """
    for name, code in (("trust_remote_code", "a model's"), ("metric", "a metric's")):
        if settings.get(name) not in (None, False):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{file} sets {name}, but no file can allow {code} code for you.",
                fix=f"Take the line out, and if you trust {code} code, give {flag} with the command.",
            )


def _caps(words: tuple[str, ...]) -> dict[str, str]:
    """`0.3` is for every source, `web=0.3` for one."""
    pairs = [(name or EVERY_SOURCE, cap) for name, _, cap in (word.rpartition("=") for word in words)]
    return _each_once("source_cap", words, pairs)


def _each_once(name: str, words: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The pairs as a mapping. Raises ConfigError where the last of two would win."""
    if len(mapped := dict(pairs)) < len(pairs):
        what, each = ("source", "SOURCE=SHARE") if name == "source_cap" else ("column", "OURS=YOURS")
        raise ConfigError(
            f"{flag_of(name)} '{' '.join(words)}' names a {what} twice.",
            allowed=f"{each}, one for a {what}" + "; a number alone is for every other source" * (what == "source"),
            fix="Give it once.",
        )
    return mapped
