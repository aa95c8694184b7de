"""What the shell completes: names of methods, presets and models, files, folders; and the script that a shell is given.

Runs at every press of Tab, so it imports no model library. Must not know what a verb does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from tov.cli.streams import say

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]
OPEN_LIST = "tov.open list"
"""In a context's `meta`: the option that takes the values at the end of what was typed (`--pool a b`)."""
SHELLS = {
    "bash": 'add this line to ~/.bashrc:  eval "$(tov completion bash)"',
    "zsh": 'add this line to ~/.zshrc, after compinit:  eval "$(tov completion zsh)"',
    "fish": "give this command once:  tov completion fish > ~/.config/fish/completions/tov.fish",
}
"""Shell -> how its user installs the script."""


def methods(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Names of methods; in a list with commas, of its last entry."""
    from tov.methods.registry import KINDS, plug_ins

    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(f"{before}{comma}{name}") for name in (*KINDS, *plug_ins()) if name.startswith(last)]


def presets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Names of presets."""
    from tov.config.presets import PRESETS

    return [CompletionItem(name) for name in PRESETS if name.startswith(incomplete)]


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Aliases of models; files where none begins so."""
    from tov.model.builtin import ALIASES

    aliases = [name for name in ALIASES if name.startswith(incomplete)]
    return [*map(CompletionItem, aliases)] or files(ctx, param, incomplete)


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Files and folders, which the shell itself knows."""
    return [CompletionItem(incomplete, type="file")]


def folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Folders alone."""
    return [CompletionItem(incomplete, type="dir")]


OF_SETTING: dict[str, Complete] = {
    "method": methods, "methods": methods, "candidates": methods, "preset": presets, "model": models, "pool": files,
    "target": files, "test": files, "label_map": files, "out": folders, "from_run": folders,
}  # fmt: skip
"""Setting -> what completes its value, beside those that have a list of choices."""


def argument(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """A value without a flag: one more of the list before it, else the file of settings."""
    listed = ctx.meta.get(OPEN_LIST)
    return listed.shell_complete(ctx, incomplete) if listed else files(ctx, param, incomplete)


def completion_command(name: str, help: str) -> click.Command:
    """`tov completion SHELL`."""
    lines = "\b\n" + "\n".join(f"{shell:4} {how}" for shell, how in SHELLS.items())  # \b: click breaks no line of these
    return click.Command(
        name, params=[click.Argument(["shell"], type=click.Choice(list(SHELLS)))], callback=_print, help=f"{help}\n\n{lines}",
        short_help=help,
    )  # fmt: skip


def _print(shell: str) -> None:
    """The script, with a line on how to install it, which the shell takes for a comment."""
    kind = get_completion_class(shell)
    assert kind
    script: Any = kind(click.get_current_context().find_root().command, {}, "tov", "_TOV_COMPLETE")
    say(f"# To have it always, {SHELLS[shell]}\n{script.source_template % script.source_vars()}", end="")
