"""The table of methods as text, JSON and a page of the documents. Reads the table; says nothing that is not in it."""

from __future__ import annotations

import textwrap
from typing import Any, Literal, get_args, get_origin

from tov.errors import ConfigError
from tov.methods.arms import RULE, settings_of_run
from tov.methods.table import METHODS, NEEDS, Method, find_method, load_plug_in, plug_ins

HEAD = """\
# Methods

What `tov select --method` and the arms of `tov compare --methods` may be. This page is made from the table of methods
(`make docs`); `tov methods` prints the same, with the methods of other packages that are installed here.

A method scores every row of the pool; a *rule* then chooses. Write `METHOD/OPTION/...`: an option is a value that names its
setting (`less/sgd`), or `SETTING=VALUE` (`less/dimension=512/sgd`). `tov methods less` lists the options of one.
"""
RULES = """\
## Rules

Any score can be given to any rule: `--rule`, `--bins` and `--source-cap` of `tov select`, also with `--from` (nothing is scored
again), or options of an arm (`less/score+random/bins=10`, `tov/source_cap=0.3`). Where none is given, it is the method's own
(with `--from` the run's).

| rule | chooses |
|---|---|
| `score+random` | half by score, half uniformly: from the base set, where the method has one, else from the whole pool |
| `score-only` | all by score |
| `sample` | without repeats, with probability proportional to exp(score) among the rows left: for scores that are log-weights |
| `round-robin` | each target row (LESS: each sub-task) in turn takes its best row still free; for `less`, `rds` and `tsds` |

- `--bins B`: the same number of rows from each of B equal-capacity bins of length (not for `round-robin`).
- `--source-cap 0.3`: at most that share of the chosen rows from any one source; `--source-cap web=0.2 books=0.5` from these;
  what a full source would have given goes to the next best rows of the others.
- Rows without a score are never taken by score; no row is taken twice; equal seeds choose equal rows.
"""
PLUG_INS = """\
## Your own

A package adds a method by an entry point of the group `tov.methods`; from then on it has the same options, rules, files,
resume and comparison as those in the box.

    # pyproject.toml of your package
    [project.entry-points."tov.methods"]
    longest = "my_package:LONGEST"

    # my_package.py
    from tov.methods import Method

    def fill(work):
        encode = work.encoder()                       # or: opened = work.open(); opened.adapted, opened.encode
        stream = work.stream(encode, key="1")         # whatever else the scores depend on
        work.fill(stream, lambda shard: {"score_longest": shard.encoded.lengths.astype(float)})

    LONGEST = Method("longest", "the longest rows", function=fill, ranking="score_longest", unit="tokens")

`work` (`tov.tables.work.Work`) has the pool, the target, the settings, the model on demand, and folders that survive a kill. A
score is asked for a shard of rows at a time; what is excluded, resumed and written is tov's business. Larger is better; NaN is
no score. `ahead=` names a function from what is known of pool and target (`tov.tables.ahead.Facts`) to the stages of a run, for
`tov plan`; `check=` one that is given options, settings and target, and raises before anything is scored. A record of settings
(`settings=`, a subclass of `tov.settings.Settings`) gives it options of its own: `work.options`.
"""


def overview() -> str:
    """What each method chooses, needs and costs, and its source, those of plug-ins too; of a broken plug-in its fault."""
    found, broken = _all()
    width = max(len(name) for name in [*found, *broken]) + 2
    lines, indent = list[str](), " " * width
    for name, method in found.items():
        passes = method.passes and f"passes: {method.passes}"
        stored = method.stored and f"stored a row: {method.stored}"
        facts = "; ".join(fact for fact in (method.needs, passes, stored, method.source) if fact)
        lines.append(f"{name:{width}}{method.summary}")
        lines += textwrap.wrap(facts, 110, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    lines += [f"{name:{width}}broken: {' '.join(fault.split())}" for name, fault in broken.items()]
    return "\n".join(
        [*lines, "", "tov methods METHOD tells options and deviations of one; docs/methods.md has them all."]
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
    lines = [textwrap.fill(line, 110, subsequent_indent="  ") for line in text]
    lines += ["options:"] * bool(options)
    lines += [textwrap.fill(line, 110, initial_indent="  ", subsequent_indent="      ") for line in options]
    return "\n".join(lines)


def records(name: str | None = None) -> Any:
    """The table, or one row of it, ready for JSON."""
    if name:
        return _record(find_method(name, flag="tov methods"))
    found, broken = _all()
    return [*map(_record, found.values()), *({"name": one, "broken": fault} for one, fault in broken.items())]


def whole_page() -> str:
    """docs/methods.md: the methods in the box."""
    header = [
        "| method | chooses | needs | passes over the pool | stored a pool row | rule |",
        "|---|---|---|---|---|---|",
    ]
    cells = [
        (
            f"[`{one.name}`](#{one.name})",
            one.summary,
            one.needs or "nothing",
            one.passes or "0",
            one.stored or "0",
            _rule(one),
        )
        for one in METHODS.values()
    ]
    rows = [f"| {' | '.join(row)} |" for row in cells]
    parts = [HEAD, "\n".join([*header, *rows]) + "\n", RULES, "## One by one\n"]
    return "\n".join([*parts, *map(_section, METHODS.values()), PLUG_INS])


def _section(method: Method) -> str:
    facts = "\n".join(f"- {label}: {value}" for label, value in _facts(method))
    rows = [f"| `{name}` | {default} | {help} |" for name, default, help in _options(method)]
    table = "\n".join(["| option | default | |", "|---|---|---|", *rows]) if rows else ""
    parts = [f"### {method.name}", method.summary[0].upper() + method.summary[1:] + ".", facts, table]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(method: Method) -> list[tuple[str, str]]:
    facts = [
        ("needs", NEEDS.get(method.needs or "", "")), ("passes over the pool", method.passes),
        ("stored a pool row, beside the score table", method.stored), ("score", method.unit), ("rule", _rule(method)),
        ("source", method.source), ("differs", method.differs),
    ]  # fmt: skip
    if method.of_path:
        names = [name for _, names in settings_of_run(method) for name in names if name not in RULE]
        facts.append(("options", f"{', '.join(names)}: settings of the run"))
    return [(label, value) for label, value in facts if value]


def _rule(method: Method) -> str:
    if method.takes != "best":
        return ""
    return f"{method.rule}{f', {method.bins} length bins' if method.bins > 1 else ''}"


def _options(method: Method) -> list[tuple[str, str, str]]:
    """Name, default and help of each option of its own."""
    fields = method.settings.model_fields if method.settings else {}
    return [(name, _shown(field.default), _help(field)) for name, field in fields.items()]


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return "+".join(default)
    return "" if default is None else f"{default:g}" if isinstance(default, float) else str(default)


def _help(field: Any) -> str:
    words = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return f"{', '.join(words)}: {field.description}" if words else str(field.description)


def _all() -> tuple[dict[str, Method], dict[str, str]]:
    """Methods by name, and what is wrong with the plug-ins that are none."""
    found, broken = dict(METHODS), dict[str, str]()
    for name, entry in plug_ins().items():
        try:
            found[name] = load_plug_in(entry)
        except ConfigError as error:
            broken[name] = error.problem
    return found, broken


def _record(method: Method) -> dict[str, Any]:
    kept = ("name", "summary", "takes", "needs", "passes", "stored", "rule", "bins", "unit", "source", "differs")
    options = {
        name: {"default": field.default, "help": field.description}
        for name, field in (method.settings.model_fields.items() if method.settings else ())
    }
    return {**{name: getattr(method, name) for name in kept}, "options": options}
