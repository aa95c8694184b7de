"""Makes docs/errors.md from the code: every error that src/tov raises, in its own words.

    python docs/errors_page.py > docs/errors.md

The source is read, never run: each call of an error class is found, and its texts are spelled out. A value becomes a word in
capitals, a part that is not always there stands in brackets. Knows how tov writes its errors; must not know which there are.
"""

from __future__ import annotations

import ast
import errno
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeGuard

from tov import errors
from tov.errors import USER_ERROR, TovError, explain

SOURCE = Path(errors.__file__).parent
TITLES = {
    "ConfigError": "Settings",
    "DataError": "Data",
    "BadRow": "Rows that cannot be used",
    "ModelError": "Models",
    "RunError": "Run folders",
    "StorageError": "Disks",
    "NumericError": "Numbers",
}
"""Class -> what the user was busy with, in the order of a run."""
KINDS = {name: getattr(errors, name, None) for name in TITLES}
HEAD = """# Errors

Every error says what was got, what is allowed and what to do. `make docs` writes this page from the code. CAPITALS stand for
what is yours, [brackets] for words that are not always there, a bar between words for one of the two.

Exit codes: 0 done, 1 the run failed (disk, memory, numbers), 2 the input is wrong, 130 interrupted. In Python the same errors
are `tov.ConfigError`, `DataError`, `ModelError`, `RunError`, `StorageError` and `NumericError`, all of them `tov.TovError`. A
flag that is unknown or of the wrong kind is answered in the words of the library of the command line, click.
"""
ROW = """A `DataError` that begins with `FILE, row NUMBER:`, with the advice to correct the row; `--on-bad-row skip` counts
and skips such rows of the pool."""
SYSTEM = """## What the system says

| what happened | exit code | tov says | do |
| --- | --- | --- | --- |
"""
EVENTS: dict[str, BaseException] = {
    "a folder or file may not be written": OSError(errno.EACCES, "Permission denied", "PATH"),
    "a name is too long": OSError(errno.ENAMETOOLONG, "File name too long", "PATH"),
    "links lead in a circle": OSError(errno.ELOOP, "Too many levels of symbolic links", "PATH"),
    "a disk is full": OSError(errno.ENOSPC, "No space left on device", "PATH"),
    "a file may not become larger": OSError(errno.EFBIG, "File too large", "PATH"),
    "too many files are open": OSError(errno.EMFILE, "Too many open files", "PATH"),
    "a disk fails": OSError(errno.EIO, "Input/output error", "PATH"),
    "the memory is full": MemoryError(),
    "Ctrl-C": KeyboardInterrupt(),
}
DROPPED = ("did_you_mean", "_near", "format")
"""Functions whose text, a guess at what was meant, is left out."""
PLAIN = {
    "ABLE": "NUMBER", "ARG": "COMMAND", "BASE": "NUMBER", "BUILDERS": "SUFFIXES", "CAP": "SHARE",
    "CLASH": "SETTING", "COLNO": "COLUMN",
    "EMPTY": "PATH", "ENTRY": "NAME", "EXTRA": "FLAG", "FAULT": "ERROR", "FIX": "", "FOUND": "VALUE", "FULL": "TEXT",
    "GIVEN": "VALUE",
    "LATE": "SETTING", "LEAST-ROWS": "NUMBER", "LINENO": "LINE", "LOST": "NUMBER", "MODEL-FIELDS": "SETTINGS", "MOST": "NUMBER",
    "MSG": "ERROR", "NEAR": "", "ODD": "NAME", "ONE": "VALUE", "PLAIN": "NUMBER", "RECORD": "MODEL", "RESOLVED": "METHOD",
    "SAID": "ERROR",
    "SELF": "VALUE", "SHOWN": "TEXT", "TAKEN": "COLUMN", "THEIR": "YOURS", "TOTAL": "NUMBER", "TWICE": "NAME",
    "UNMATCHED": "OURS=YOURS", "USABLE": "NUMBER", "WHY-A-MODEL": "",
}  # fmt: skip
"""Names of variables that say nothing to a user, in capitals, and what is said for them."""


@dataclass(frozen=True)
class Entry:
    """One error as the page has it.

    Attributes:
        kind: name of its class.
        place: module below src/tov, `data/sources`.
        line: of the call.
        problem: what tov says.
        allowed: what would have been right, or "".
        fix: what to do next, or "".
    """

    kind: str
    place: str
    line: int
    problem: str
    allowed: str
    fix: str

    @property
    def repeats(self) -> bool:
        """Whether it passes on another error's text with other advice."""
        return self.problem.endswith("PROBLEM")


class _Module:
    """A source file, with what is needed to spell out a text in it."""

    def __init__(self, file: Path) -> None:
        self.tree = ast.parse(file.read_text(encoding="utf-8"))
        self.place = file.relative_to(SOURCE).with_suffix("").as_posix()
        functions = [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)]
        self.functions = {node.name: node for node in functions}
        self.calls = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        self.around = {id(inner): outer for outer in functions for inner in ast.walk(outer)}  # the innermost comes last

    def entries(self) -> Iterator[Entry]:
        for call in self.calls:
            kind = call.func.id if isinstance(call.func, ast.Name) else ""
            if kind in TITLES and call.args:
                named = {word.arg: word.value for word in call.keywords}
                if len(call.args) > 1:
                    named["fix"] = call.args[1]
                problem, allowed, fix = call.args[0], named.get("allowed"), named.get("fix")
                yield Entry(kind, self.place, call.lineno, *map(self.whole, (problem, allowed, fix)))

    def whole(self, node: ast.expr | None) -> str:
        """A text that may come in several versions, one a line."""
        return "\n".join(dict.fromkeys(filter(None, self.versions(node, 0)))) if node else ""

    def versions(self, node: ast.expr, depth: int) -> list[str]:
        if depth > 3:
            return [hole(node)]
        if isinstance(node, ast.IfExp):
            return [text for one in (node.body, node.orelse) for text in self.versions(one, depth + 1)]
        if isinstance(node, ast.Name):
            found = self.origins(node)
            return [text for one in found for text in self.versions(one, depth + 1)] if found else [hole(node)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.functions:
            returned = [one.value for one in ast.walk(self.functions[node.func.id]) if isinstance(one, ast.Return)]
            return [text for one in returned if one for text in self.versions(one, depth + 1)]
        if isinstance(node, ast.BinOp) and isinstance(node.left, ast.Call):  # a joined list, and a full stop
            return [f"{text}{self.words(node.right)}" for text in self.versions(node.left, depth)]
        if _is_join(node) and isinstance(node.args[0], ast.GeneratorExp) and isinstance(node.args[0].elt, ast.Call):
            return self.versions(node.args[0].elt, depth)
        return [self.words(node)]

    def origins(self, name: ast.Name) -> list[ast.expr]:
        """The texts that a variable may hold: assigned to it, or passed as a parameter within the module."""
        function = self.around.get(id(name))
        if function and name.id in _loop_variables(function):
            return []
        if function and name.id in _parameters(function):
            return self.passed(function, name.id)
        for nodes in (ast.walk(function) if function else (), self.tree.body):
            assigned = [node for node in nodes if isinstance(node, ast.Assign)]
            found = [value for node in assigned for value in _values_of(node, name.id) if _is_text(value)]
            if found:
                return found
        return []

    def passed(self, function: ast.FunctionDef, parameter: str) -> list[ast.expr]:
        """What the module's own calls give a parameter without a default; nothing, unless all of it is text."""
        found, at = list[ast.expr](), list(_parameters(function)).index(parameter)
        for call in self.calls:
            if isinstance(call.func, ast.Name) and call.func.id == function.name:
                found += [word.value for word in call.keywords if word.arg == parameter]
                found += call.args[at : at + 1]
        return found if all(map(_is_text, found)) and not _parameters(function)[parameter] else []

    def listed(self, name: str) -> str:
        """The words of a constant that is a mapping or a sequence of them; "" if the module has none of that name."""
        for node in self.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(one, ast.Name) and one.id == name for one in targets):
                value = getattr(node, "value", None)
                words = value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [])
                constants = [str(one.value) for one in words if isinstance(one, ast.Constant)]
                return ", ".join(constants) if len(constants) == len(words) else ""
        return ""

    def added(self, node: ast.expr) -> str:
        """A text that stands behind another; one that is multiplied by a condition is not always there."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return _either(self.words(node.left), "")
        return self.words(node)

    def words(self, node: ast.expr) -> str:
        """A text in one version."""
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(self.words(part) for part in node.values)
        if isinstance(node, ast.FormattedValue):
            return self.words(node.value)
        if isinstance(node, ast.IfExp):
            return _either(self.words(node.body), self.words(node.orelse))
        if isinstance(node, ast.BinOp) and (_is_text(node.left) or _is_text(node.right)):
            if isinstance(node.op, ast.Mult):
                return _either(self.words(node.left), "")
            return self.words(node.left) + self.added(node.right)
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            return next((text for text in map(self.words, node.values) if text), "")
        if isinstance(node, ast.BoolOp):
            return ""
        if isinstance(node, ast.Name) and (found := self.origins(node)):
            return reduce(_either, dict.fromkeys(map(self.words, found)))
        if _is_join(node):
            between = self.words(node.func.value)
            one = node.args[0].elt if isinstance(node.args[0], (ast.GeneratorExp, ast.ListComp)) else node.args[0]
            if isinstance(one, ast.Name) and (listed := self.listed(one.id)):
                return listed
            parts = one.elts if isinstance(one, ast.List) else [one]
            return between.join(self.words(part.value if isinstance(part, ast.Starred) else part) for part in parts)
        return self.words(node.elt) if isinstance(node, ast.ListComp) and _is_text(node.elt) else hole(node)


def _values_of(node: ast.Assign, name: str) -> Iterator[ast.expr]:
    """What an assignment gives a name, also one of several names."""
    for target in node.targets:
        pairs: list[tuple[ast.expr, ast.expr]] = [(target, node.value)]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=False))
        yield from (value for one, value in pairs if isinstance(one, ast.Name) and one.id == name)


def _loop_variables(function: ast.FunctionDef) -> set[str]:
    loops = [node.target for node in ast.walk(function) if isinstance(node, ast.For)]
    return {one.id for target in loops for one in ast.walk(target) if isinstance(one, ast.Name)}


def _parameters(function: ast.FunctionDef) -> dict[str, bool]:
    """Parameters in order, and whether they have a default."""
    given = function.args
    first = [one.arg for one in (*given.posonlyargs, *given.args)]
    defaults = [False] * (len(first) - len(given.defaults)) + [True] * len(given.defaults)
    keywords = {one.arg: default is not None for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)}
    return {**dict(zip(first, defaults, strict=True)), **keywords}


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    if isinstance(node, ast.BinOp):
        return _is_text(node.left)
    if isinstance(node, ast.Name):
        return node.id.isupper() and node.id.startswith("_")
    if isinstance(node, ast.ListComp):
        return _is_text(node.elt)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_join(node: ast.expr) -> TypeGuard[Any]:
    """Whether this is `"...".join(...)`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "join"


def _either(one: str, other: str) -> str:
    """Brackets around two texts of which one is there, or around one that may be."""
    return f"[{one}|{other}]" if one and other else f"[{one or other}]" if one or other else ""


def hole(node: ast.expr) -> str:
    """The word in capitals for a value; behind a counted one, what is counted."""
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    if isinstance(inner, ast.Call) and ast.unparse(inner.func) == "counted" and isinstance(inner.args[1], ast.Constant):
        return f"{hole(inner.args[0])} {inner.args[1].value}"
    word = _named(node).strip("_").upper().replace("_", "-")
    return PLAIN.get(word, word)


def _named(node: ast.expr) -> str:
    """The name that says most about what a value is."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        of = _named(node.value) if node.attr in ("name", "location", "suffix", "type") else "self"
        return {"location": "source", "__name__": "type"}.get(node.attr, node.attr if of == "self" else of)
    if isinstance(node, ast.Subscript):
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            return node.slice.value
        whole = _named(node.value)
        return "number" if whole == "shape" else whole if isinstance(node.slice, ast.Slice) else whole.removesuffix("s")
    if isinstance(node, ast.Call):
        return _named_call(node)
    if isinstance(node, (ast.GeneratorExp, ast.ListComp)):
        return _named(node.generators[0].iter)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)) and isinstance(node.right, ast.Constant):
        return _named(node.left)
    inner = {ast.IfExp: "body", ast.Starred: "value", ast.FormattedValue: "value"}.get(type(node))
    return _named(getattr(node, inner)) if inner else "number"


def _named_call(node: ast.Call) -> str:
    method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    name = method or ast.unparse(node.func)
    if name in DROPPED:
        return ""
    if name in ("len", "int", "sum", "min", "max"):
        return "number"
    if method in ("replace", "sum", "items", "lower", "template"):
        return _named(node.func.value) if isinstance(node.func, ast.Attribute) else ""
    known = {
        "kind_of": "kind",
        "named_kind": "kind",
        "where": "file and row",
        "differences": "differences",
        "listed": "labels",
        "titles": "tasks",
        "_flag": "flag",
    }
    return known.get(name) or (_named(node.args[0]) if node.args else "value")


def entries() -> list[Entry]:
    """Every error in the source, in the order of files and lines."""
    return [entry for file in sorted(SOURCE.rglob("*.py")) for entry in sorted(_Module(file).entries(), key=_line)]


def _line(entry: Entry) -> int:
    return entry.line


def page(found: Sequence[Entry]) -> str:
    """The page in Markdown."""
    parts = [HEAD]
    for kind, title in TITLES.items():
        mine = dict.fromkeys(
            (entry.place.partition("/")[0], entry.problem, entry.allowed, entry.fix)
            for entry in found
            if entry.kind == kind and not entry.repeats
        )
        parts.append(f"## {title}\n\n{_lead(kind)}\n")
        columns = ("where", "tov says", "allowed", "do")
        rows = [columns, ("---",) * 4, *(tuple(map(_cell, row)) for row in mine)]
        if kind == "BadRow":
            rows = [(where, said, fix) for where, said, _, fix in rows]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
    return "\n".join([*parts, SYSTEM + "".join(_event(what, error) for what, error in EVENTS.items())])


def _event(what: str, error: BaseException) -> str:
    explained = explain(error)
    assert explained
    said, _, fix = explained[0].partition("\n  do: ")
    return f"| {what} | {explained[1]} | {_cell(said)} | {_cell(fix)} |\n"


def _lead(kind: str) -> str:
    error = KINDS[kind]
    if error is None:
        return ROW
    assert issubclass(error, TovError)
    code = "" if error.exit_code == USER_ERROR else f", exit code {error.exit_code}"
    return f"`{kind}`{code}: {inspect.getdoc(error)}"


def _cell(text: str) -> str:
    """The text with nothing in it that Markdown would take for a sign of its own."""
    return re.sub(r"([|<*`])", r"\\\1", text.strip()).replace("\n", "<br>")


if __name__ == "__main__":
    print(page(entries()), end="")
