"""The tasks, one file each, and their registry. To add one: write its file after `tov.tasks.base`, list it below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tov.data.rows import Layout
from tov.errors import ConfigError
from tov.tasks.base import Task
from tov.tasks.classification import Classification
from tov.tasks.instruction import Instruction
from tov.tasks.ner import NamedEntities

__all__ = ["TASKS", "Task", "all_layouts", "register", "titles"]

TASKS: dict[str, Task[Any]] = {}
"""By name, in the order in which messages list them."""


def register(task: Task[Any]) -> None:
    """Adds a task; from then on its rows are read, its name is a value of `--task`, and every command takes it.

    Raises:
        ConfigError: a member is missing, or the name is another task's.
    """
    lacking = [member for member in Task.__annotations__ if not hasattr(task, member)]
    if lacking:
        raise ConfigError(
            f"The task {type(task).__name__} does not say its {', '.join(lacking)}.", fix="See tov.tasks.base.Task."
        )
    if task.name in TASKS:
        raise ConfigError(f"Two tasks are called '{task.name}'.", fix="Give one another name.")
    TASKS[task.name] = task


def all_layouts() -> tuple[Layout, ...]:
    """The layouts of all tasks in the order in which they are tried."""
    return tuple(sorted((layout for task in TASKS.values() for layout in task.layouts), key=lambda layout: layout.last))


def titles(which: Callable[[Task[Any]], bool]) -> str:
    """The tasks of which something is true, as a message lists them."""
    return ", ".join(task.title for task in TASKS.values() if which(task))


for _task in (Instruction(), NamedEntities(), Classification()):
    register(_task)
