"""README.md of an export: where its rows come from, by what they were chosen, what was left out. Also the Hub's data set card.

It may be published, so it names files without their folders.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tov.data.formats import BUILDERS
from tov.progress import counted
from tov.reports.summary import table, versions_line
from tov.runs.manifest import Manifest
from tov.sinks import code, note
from tov.trainers.base import TITLES, Chosen, Trainer, Written

LICENCES = (
    "The licences of the sources remain in force for their rows. tov does not know them: look them up before you train on the "
    "rows, publish them or pass them on, and name them here."
)
_LOAD = """```python
datasets.load_dataset("YOUR-NAME/YOUR-DATASET", split="train")
```

`tov_row_id` is a row's place in the pool, `tov_source` its source, `tov_score` what chose it (null where it has none) and
`tov_reason` whether it was chosen by score or at random. `tov_label`, or `tov_tokens` and `tov_tags`, stand where labels were
read otherwise than the sources have them (ids, a label map, spans). All other columns are the sources' own."""
CATEGORIES = {"ner": "token-classification", "classification": "text-classification"}
_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))


@dataclass(frozen=True)
class Origin:
    """The run that the rows are from.

    Attributes:
        manifest: its own.
        scored: that of the run whose scores it has chosen from; its own where it has scored itself.
        commands: that made it and, where it has not scored itself, the scores, with their settings.
        chosen: how many rows it chose.
    """

    manifest: Manifest
    scored: Manifest
    commands: Sequence[str]
    chosen: int


def card(
    origin: Origin, written: Written, trainer: Trainer, kinds: Counter[str], other: Counter[str],
    unseen: Mapping[str, Sequence[str]], pattern: str | None,
) -> str:  # fmt: skip
    """The text of README.md.

    Args:
        origin: the run.
        written: what is written for the trainer.
        trainer: for whom.
        kinds: kind -> rows that are written.
        other: kind -> rows that are not, because they are of another kind.
        unseen: source -> columns that the model did not see; none where they are kept.
        pattern: of the data files, for the Hub's front matter, or None.
    """
    what = " and ".join(f"{count:,} {TITLES.get(kind, kind)}" for kind, count in kinds.items())
    parts = [
        *([_front(kinds, pattern)] if pattern else []),
        "# Chosen rows" if pattern else f"# Chosen rows for {trainer.title}",
        f"{what}, chosen by [tov](https://arxiv.org/abs/2510.00386) for what they help a target.",
        "## Use", _LOAD if pattern else "```\n" + "\n".join(written.use) + "\n```",
        "## Where they come from", _made(origin),
        table(["source", "rows", "share"], _by_source(written.rows)),
        "## What was left out", _left_out(origin, written, other, unseen),
        *(["## Otherwise than scored", _listed(written.notes)] if written.notes else []),
        "## Licences", LICENCES,
        "## Made with", versions_line(origin.manifest),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _front(kinds: Counter[str], pattern: str) -> str:
    """The metadata that the Hub reads; without a licence, which it is not tov's to say."""
    size = next((name for most, name in _SIZES if kinds.total() < most), "n>10M")
    facts = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": pattern}]}],
        "size_categories": [size],
        "task_categories": sorted({CATEGORIES.get(kind, "text-generation") for kind in kinds}),
        "tags": ["data-selection", "tov"],
    }
    return "---\n" + yaml.safe_dump(facts, sort_keys=False) + "---"


def _made(origin: Origin) -> str:
    """Command, method, model, fingerprints, seed, date."""
    manifest, scored = origin.manifest, origin.scored
    model, scoring = scored.model or manifest.model, scored.scoring or manifest.scoring
    whence = ("chosen by", "from the scores of")
    lines = [f"{which}: {code(one)}" for which, one in zip(whence, origin.commands, strict=False)]
    if scoring:
        options = ", ".join(f"{name}={value}" for name, value in scoring.options.items())
        lines.append(f"method: {code(scoring.method)}{f' ({note(options)})' if options else ''}; {note(scoring.about)}")
    if model:
        known = f"; fingerprint of its weights {code(model.fingerprint)}"
        weights = known if model.fingerprint else "; the method read none of its weights"
        tokenizer = f"; of its tokenizer and chat template {code(model.tokenizer)}" if model.tokenizer else ""
        lines.append(f"model: {code(bare(model.name))}{weights}{tokenizer}; at most {model.max_length} tokens a row")
    if scored.chosen_for:
        lines.append(f"chosen for the model {code(bare(scored.chosen_for.name))}, of which the model above is a proxy")
    pool = scored.identity.get("pool")
    if isinstance(pool, Mapping):
        sources = ", ".join(f"{name} ({count:,} rows)" for name, count in dict(pool.get("sources", {})).items())
        lines.append(f"pool: {note(sources)}; fingerprint {code(pool.get('fingerprint'))}")
    lines += [
        f"target{'' if name == 'target' else f' {note(name)}'}: {one.rows:,} rows; fingerprint {code(one.fingerprint)}"
        for name, one in manifest.targets.items()
    ]
    lines += [f"file {code(bare(path))}: SHA-256 {code(sha)}" for path, sha in manifest.inputs.files.items()]
    lines.append(f"seed {manifest.seed}; {(manifest.finished or manifest.started)[:10]} (UTC)")
    return _listed(lines)


DATA_FILE = re.compile(rf"({'|'.join(map(re.escape, (*BUILDERS, '.gguf')))})(\.(gz|bz2|xz|zst))?$")
"""The end of the name of a file, which no Hub id has."""


def bare(location: str) -> str:
    """A path without its folders; a Hub id or an alias as it is."""
    name, equals, rest = location.partition("=")  # NAME=FILE; a path may have an = of its own
    if not equals or "/" in name or _is_path(name):
        name, equals, rest = "", "", location
    return f"{name}{equals}{Path(rest).name}" if _is_path(rest) else location


def _is_path(text: str) -> bool:
    return os.path.isabs(text) or text.startswith((".", "~")) or "://" in text or bool(DATA_FILE.search(text))


def _by_source(rows: Sequence[Chosen]) -> list[list[str]]:
    counts = Counter(row.source for row in rows)
    return [[note(name), f"{count:,}", f"{count / len(rows):.1%}"] for name, count in counts.most_common()]


def _left_out(origin: Origin, written: Written, other: Counter[str], unseen: Mapping[str, Sequence[str]]) -> str:
    lines = [f"{counted(count, 'rows')}: {reason}" for reason, count in written.left_out.most_common()]
    lines += [f"{counted(count, 'rows')}: they are {TITLES.get(kind, kind)}" for kind, count in other.items()]
    if not lines:
        lines = [f"no row: all {origin.chosen:,} chosen rows are here"]
    lines += [
        f"columns that the model does not see, of {note(source)}: {note(', '.join(names))} (selected.jsonl of the run has them)"
        for source, names in unseen.items()
    ]
    return _listed(lines)


def _listed(lines: Sequence[Any]) -> str:
    return "\n".join(f"- {one}" for one in lines)
