"""Makes docs/cli.md from the commands of click: every verb, its arguments and its flags, in the words of `--help`.

    python docs/cli_page.py > docs/cli.md

Nothing is run. Knows how click holds a flag; must not know which there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import click

from tov.cli.flags import GROUPS
from tov.cli.main import VERBS, tov

HEAD = """# Command line

`make docs` writes this page from the commands themselves. `tov VERB --help` prints the same. The default of a flag stands in
brackets at the end of its line. A flag that takes several values takes them one after another: `--pool a.jsonl b.jsonl`.

A verb that takes `CONFIG.yaml` reads its settings from that file, with underscores for hyphens. A flag beats a line of the
file. Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted ([errors](errors.md)).

| verb | what it does |
| --- | --- |
"""


def page() -> str:
    """The whole page."""
    commands = {name: command for name in VERBS if (command := tov.get_command(click.Context(tov), name))}
    overview = "".join(f"| [`tov {name}`](#tov-{name}) | {VERBS[name].help} |\n" for name in commands)
    return HEAD + overview + "".join(map(section, commands.values()))


def section(command: click.Command) -> str:
    """A verb: its help, its usage, a table for each group of its flags."""
    parts = [f"\n## tov {command.name}\n\n{VERBS[str(command.name)].help}\n\n    {usage(command)}\n"]
    parts += [table(title, options) for title, options in grouped(command)]
    return "".join(parts)


def usage(command: click.Command) -> str:
    """The line that says what may stand where."""
    return " ".join(["tov", str(command.name), "[FLAGS]", *filter(None, map(place, command.params))])


def place(param: click.Parameter) -> str:
    """An argument as the usage line has it; "" for a flag."""
    if not isinstance(param, click.Argument):
        return ""
    if param.metavar:
        return param.metavar
    return f"[{'|'.join(param.type.choices)}]" if isinstance(param.type, click.Choice) else str(param.name).upper()


def grouped(command: click.Command) -> Iterator[tuple[str, list[click.Option]]]:
    """Title and flags of each group of the help, in its order; flags without a group have no title."""
    options = [param for param in command.params if isinstance(param, click.Option) and not param.hidden]
    groups: dict[str, str] = getattr(command, "groups", {})
    for stage, title in ({} if not groups else GROUPS).items():
        if found := [one for one in options if groups.get(one.name or "") == stage]:
            yield title, found
    if rest := [one for one in options if groups.get(one.name or "") not in GROUPS]:
        yield "", rest


def table(title: str, options: Sequence[click.Option]) -> str:
    lines = "".join(f"| {flags(one)} | {values(one)} | {cell(one.help or '')} |\n" for one in options)
    head = f"\n**{title}**\n" if title else ""
    return f"{head}\n| flag | value | meaning |\n| --- | --- | --- |\n{lines}"


def flags(option: click.Option) -> str:
    return ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])


def values(option: click.Option) -> str:
    """What may follow the flag; "" for a switch."""
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return ", ".join(f"`{one}`" for one in option.type.choices)
    return str(option.metavar or option.type.name.upper())


def cell(text: str) -> str:
    """Help as the cell of a table, on one line."""
    return re.sub(r"\s+", " ", text).replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*").strip()


if __name__ == "__main__":
    print(page(), end="")
