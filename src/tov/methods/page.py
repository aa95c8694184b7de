"""The registry of methods as text, JSON and a page of the documents. Reads the table; says nothing that is not in it."""

from __future__ import annotations

import textwrap
from typing import Any, Literal, get_args, get_origin

from tov.config.settings import declared_by
from tov.errors import ConfigError
from tov.methods.base import NEEDS, Method
from tov.methods.registry import built_in, find_method, load_plug_in, package_of, plug_ins
from tov.methods.spec import settings_of_run
from tov.sinks import line

HEAD = """\
# Methods

These are the methods of `tov select --method` and of `tov compare --methods`. `make docs` writes this page from the registry of
methods. `tov methods` prints the same list, with the methods of other installed packages.

A method scores every row of the pool, and a *rule* then chooses rows. A method with options is a *variant*: `METHOD/OPTION`,
with more options after further slashes. An option is `SETTING=VALUE` (`less/dim=512`), or a value alone where that names the
setting (`less/sgd`). `tov methods less` lists the options of `less`.
"""
RULES = """\
## Rules

Any rule can use the score of any method. `tov select` has `--rule`, `--bins` and `--source-cap`; with `--from` no row is scored
again. A variant has them as options (`less/score+random/bins=10`, `tov/source_cap=0.3`). The default is the method's own rule,
and with `--from` the rule of the run.

| rule | chooses |
|---|---|
| `score+random` | half of the rows by score, half uniformly at random from U (from the whole pool, where a method has no U) |
| `score-only` | all rows by score |
| `sample` | a draw without repeats, with probability proportional to exp(score), for scores that are log-weights |
| `round-robin` | each target row (LESS: each sub-task) in turn takes its best free row; for `less`, `bm25`, `rds`, `tsds` |

- `--bins B` sets B length bins of equal capacity, each with the same quota of rows (not for `round-robin`).
- `--source-cap 0.3` limits every source to that share of the chosen rows; `--source-cap web=0.2 books=0.5` limits these two.
  What a full source would have given goes to the next best rows of the other sources.
- `--tokens 2M` in place of `--n` takes rows until the next one does not fit; `--share web=0.3` has 30 % come from this source
  ([which tokens, and how exactly](choose.md#a-budget-of-tokens-and-shares-of-sources)).
- A row without a score is never taken by score. No row is taken twice. Equal seeds choose equal rows.
"""
PLUG_INS = """\
## Your own

A package adds a method by one file and an entry point of the group `tov.methods`. The method then has the same options, rules,
files, resume, engines, plan and comparison as the built-in ones. [docs/own-method.md](own-method.md) shows a complete one.
"""


def overview() -> str:
    """What each method chooses, needs and costs, and its source, those of plug-ins too; of a broken plug-in its fault."""
    methods, broken = _all()
    width = max(len(name) for name in [*methods, *broken]) + 2
    lines, indent = list[str](), " " * width
    for name, method in methods.items():
        passes = method.passes and f"passes: {method.passes}"
        stored = method.stored and f"stored per row: {method.stored}"
        facts = "; ".join(fact for fact in (method.needs, passes, stored, method.source) if fact)
        lines.append(f"{line(name):{width}}{line(method.summary)}")
        lines += textwrap.wrap(facts, 110, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    lines += [f"{name:{width}}broken: {' '.join(fault.split())}" for name, fault in broken.items()]
    return "\n".join(
        [*lines, "", "tov methods METHOD describes one method and its options; docs/methods.md describes all."]
    )


def one_method(name: str) -> str:
    """All of one method.

    Raises:
        ConfigError: no such method.
    """
    method = find_method(name, flag="tov methods")
    facts = [f"{label}: {value}" for label, value in _facts(method)]
    text = [f"{method.name}: {method.summary}", *facts]
    options = [f"{name}{f' [{default}]' if default else ''}  {help}" for name, default, help in _options(method)]
    lines = [textwrap.fill(one, 110, subsequent_indent="  ") for one in text]
    lines += ["options:"] * bool(options)
    lines += [textwrap.fill(one, 110, initial_indent="  ", subsequent_indent="      ") for one in options]
    return "\n".join(lines)


def records(name: str | None = None) -> Any:
    """The table, or one row of it, ready for JSON."""
    if name:
        return _record(find_method(name, flag="tov methods"))
    methods, broken = _all()
    entries = plug_ins()
    told = [{"name": name, "package": package_of(entries[name]), "broken": fault} for name, fault in broken.items()]
    return [*map(_record, methods.values()), *told]


def whole_page() -> str:
    """docs/methods.md: the methods in the box."""
    header = [
        "| method | chooses | needs | passes over the pool | stored per pool row | rule |",
        "|---|---|---|---|---|---|",
    ]
    cells = [
        (
            f"[`{method.name}`](#{method.name})",
            method.summary,
            method.needs or "nothing",
            method.passes or "0",
            method.stored or "0",
            _rule(method),
        )
        for method in built_in().values()
    ]
    rows = [f"| {' | '.join(row)} |" for row in cells]
    parts = [HEAD, "\n".join([*header, *rows]) + "\n", RULES, "## One by one\n"]
    return "\n".join([*parts, *map(_section, built_in().values()), PLUG_INS])


def _section(method: Method) -> str:
    facts = "\n".join(f"- {label}: {value}" for label, value in _facts(method))
    rows = [f"| `{name}` | {default} | {help} |" for name, default, help in _options(method)]
    table = "\n".join(["| option | default | meaning |", "|---|---|---|", *rows]) if rows else ""
    parts = [f"### {method.name}", method.summary[0].upper() + method.summary[1:] + ".", facts, table]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(method: Method) -> list[tuple[str, str]]:
    facts = [
        ("needs", NEEDS.get(method.needs or "", "")), ("passes over the pool", method.passes),
        ("stored per pool row, beside the score table", method.stored), ("score", method.unit), ("rule", _rule(method)),
        ("source", method.source), ("differs", method.differs),
    ]  # fmt: skip
    names = [name for record, name in settings_of_run(method) if declared_by(record, name).used_by != ("rule",)]
    if names and method.takes in ("best", "pilots"):
        facts.append(("options", f"{', '.join(names)} (settings of the run)"))
    return [(label, value) for label, value in facts if value]


def _rule(method: Method) -> str:
    if not method.ranks:
        return ""
    if method.takes == "pilots":
        return "that of the candidate taken"
    return f"{method.rule}{f', {method.bins} length bins' if method.bins > 1 else ''}"


def _options(method: Method) -> list[tuple[str, str, str]]:
    """Name, default and help of each option of its own."""
    fields = method.options.model_fields if method.options else {}
    return [(name, _shown(field.default), _help(field)) for name, field in fields.items()]


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return "+".join(default)
    return "" if default is None else f"{default:g}" if isinstance(default, float) else str(default)


def _help(field: Any) -> str:
    words = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    shown = all(word in str(field.description) for word in words)
    return str(field.description) if shown else f"{', '.join(words)}: {field.description}"


def _all() -> tuple[dict[str, Method], dict[str, str]]:
    """Methods by name, and what is wrong with the plug-ins that are none."""
    methods, broken = built_in(), dict[str, str]()
    for name, entry in plug_ins().items():
        try:
            methods[name] = load_plug_in(entry)
        except ConfigError as error:
            broken[name] = error.problem
    return methods, broken


def _record(method: Method) -> dict[str, Any]:
    fields = ("name", "summary", "takes", "needs", "passes", "stored", "rule", "bins", "unit", "source", "differs")
    options = {
        name: {"default": field.default, "help": field.description}
        for name, field in (method.options.model_fields.items() if method.options else ())
    }
    return {**{name: getattr(method, name) for name in fields}, "options": options}
