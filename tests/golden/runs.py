"""The golden runs: their settings, and what is recorded of each.

The tables at the top alone name settings; the records, and so the golden files, hold none, so that a setting may be renamed.
Knows the public functions of `tov` only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import tov
from golden.records import comparable
from golden.rows import LONGEST, encoder, instruction_rows, language_model, ner_rows

ALWAYS: dict[str, Any] = {"dtype": "fp32", "device": "cpu", "quiet": True}
OF_DATA: dict[str, dict[str, Any]] = {
    "instruction": {"max_length": LONGEST, "on_bad_row": "skip", "seed": 3},
    "ner": {"max_length": 64, "on_bad_row": "skip", "seed": 5},
}
PATH: dict[str, Any] = {"base_size": 16, "epochs": 2, "lora_r": 4, "batch_size": 8}
LESS = "less/lora_r=2/lora_alpha=8/batch_size=8/epochs=2"
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "instruction-tov": ("instruction", {**PATH, "n": 20, "shard_rows": 32}),
    "ner-tov": ("ner", {**PATH, "n": 16, "bins": 4, "shard_rows": 32}),
    "instruction-less": ("instruction", {"method": LESS, "n": 20, "source_cap": {"web": 0.4}}),
    "instruction-rds": ("instruction", {"method": "rds", "n": 20, "shard_rows": 32}),
    "instruction-bm25": ("instruction", {"method": "bm25", "n": 20, "shard_rows": 32}),
    "ner-random": ("ner", {"method": "random", "n": 16}),
}
"""Name of a run -> its data, and the settings that `tov.select` is given."""
COMPARE: dict[str, Any] = {
    "methods": ["tov", "random", "rds", "uncertainty"], "sizes": [12], "seeds": 2, "train_rows": 48, **PATH,
}  # fmt: skip
NEWER = ["length"]
"""Columns of the score table that are newer than the records; `tests/test_budget.py` holds them."""
ROOT = Path("/golden")
"""Where the paths in kept run folders point: nowhere."""
PLANNED = ["tov", "less", "rds", "dsir", "bm25", "random"]
SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
                         "num_key_value_heads": 1, "vocab_size": 264, "tie_word_embeddings": True}  # fmt: skip
"""The model of the kept run folders, whose weights are kept too (transformers names these settings)."""
KEPT_PATH: dict[str, Any] = {"base_size": 10, "epochs": 1, "lora_r": 1, "max_length": LONGEST, "on_bad_row": "skip"}
KEPT: dict[str, dict[str, Any]] = {
    "select-tov": {**KEPT_PATH, "n": 10, "bins": 3},
    "select-less": {"method": LESS.replace("rank=2", "rank=1"), "n": 10, "max_length": LONGEST, "on_bad_row": "skip"},
}
"""Name of a kept run folder -> what made it."""
KEPT_COMPARE: dict[str, Any] = {
    "methods": ["tov", "random", "zero-shot"], "sizes": [8], "seeds": 2, "train_rows": 32, **KEPT_PATH,
}  # fmt: skip
ANEW: dict[str, dict[str, Any]] = {"select-tov": {"n": 16}, "select-less": {"n": 16, "source_cap": {"web": 0.5}}}
"""Name of a kept run folder -> how rows are chosen again from its scores."""
TRAIN_ANEW: dict[str, Any] = {"num_train_epochs": 1, "device": "cpu", "quiet": True}


def make_all(folder: Path) -> dict[str, Any]:
    """Name -> record of every golden run; tables of scores as pyarrow tables.

    Args:
        folder: an empty one, where inputs and runs go.
    """
    inputs = {"instruction": instruction_rows(folder / "instruction"), "ner": ner_rows(folder / "ner")}
    models = {"instruction": language_model(folder), "ner": encoder(folder)}
    found: dict[str, Any] = {}
    for name, (data, settings) in RUNS.items():
        given = {role: inputs[data][role] for role in ("pool", "target")}
        found[name] = of_selection(
            tov.select(model=models[data], out=folder / "runs" / name, **given, **ALWAYS, **OF_DATA[data], **settings)
        )
    for data in inputs:
        given = {role: inputs[data][role] for role in ("pool", "target")}
        planned = tov.plan(model=models[data], methods=PLANNED, probe=False, **given, **ALWAYS, **OF_DATA[data], **PATH)
        found[f"{data}-plan"] = of_plan(planned)
    found["instruction-compare"] = of_comparison(
        tov.compare(
            model=models["instruction"], out=folder / "runs" / "compare", **inputs["instruction"], **ALWAYS,
            **OF_DATA["instruction"], **COMPARE,
        )
    )  # fmt: skip
    return found


def of_selection(picked: Any) -> dict[str, Any]:
    """A selection's score table and its chosen rows in their order; floats as hex, so that JSON keeps every bit."""
    rows, file = picked.dataset, (picked.folder / "selected.jsonl").read_bytes()
    plain = [
        {key: value for key, value in json.loads(line).items() if key != "tov_score"} for line in file.splitlines()
    ]
    return {
        "scores": comparable(picked.scores.drop_columns(NEWER).combine_chunks().replace_schema_metadata(None)),
        "selected": {
            "row_ids": list(rows["tov_row_id"]), "reasons": list(rows["tov_reason"]), "sources": list(rows["tov_source"]),
            "scores": [None if score is None else score.hex() for score in rows["tov_score"]],
        },
        "sha256": hashlib.sha256(file).hexdigest(),
        "sha256_without_scores": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest(),
    }  # fmt: skip


def of_plan(planned: Any) -> dict[str, Any]:
    """A plan's counts; of a stage, whose name may change, tokens forward and backward."""
    facts = planned.facts
    of_target = facts["examples"]["target"]
    example = {"tokens": of_target["tokens"], "scored": of_target["scored"], "text": of_target["scored_text"]}
    parts = {
        "pool": ("rows", "usable", "sources", "tokens", "scored_tokens", "without_scored_token", "cut"),
        "target": ("rows", "usable", "tokens"),
        "model": ("parameters", "bytes", "trained"),
    }
    methods = {
        one["method"]: {
            **{name: one[name] for name in ("forward", "backward", "passes", "bytes")},
            "stages": [[stage["forward"], stage["backward"]] for stage in one["stages"].values()],
        }
        for one in facts["methods"]
    }
    told = {part: {name: facts[part][name] for name in names} for part, names in parts.items()}
    return {**told, "example": example, "methods": methods}


def of_comparison(compared: Any) -> dict[str, Any]:
    """A comparison's trials: what was chosen, and the test's log-loss as hex."""
    trials = [
        {
            "method": one["variant"], "n": one["n"], "seed": one["seed"], "status": one["status"],
            "rows": one.get("rows_fingerprint"), "sources": one["chosen"], "by_score": one["by_score"],
            "steps": one["train"] and one["train"]["steps"], "loss": one["loss"].hex(),
        }
        for one in sorted(compared.trials, key=lambda one: (one["seed"], one["variant"], one["n"]))
    ]  # fmt: skip
    return {"trials": trials}


def of_report(results: dict[str, Any]) -> list[list[Any]]:
    """A comparison's numbers, a line a size and method: n, name, mean log-loss, mean gain in % and its interval."""
    return [
        [size["n"], one["variant"], one["loss"]["mean"], *(one["gain"][end] for end in ("mean", "low", "high"))]
        for size in results["sizes"]
        for one in size["variants"]
    ]


def run_folders(folder: Path) -> None:
    """Fills an empty folder with inputs, a model and run folders, as small as can be used by later commands."""
    inputs, model = instruction_rows(folder), language_model(folder, **SMALL)
    rows = {role: inputs[role] for role in ("pool", "target")}
    for name, settings in KEPT.items():
        tov.select(model=model, out=folder / name, **rows, **ALWAYS, **settings)
    tov.compare(model=model, out=folder / "compare", **inputs, **ALWAYS, **KEPT_COMPARE)
    for spare in ("select-less/artifacts", "compare/scores", "compare/gain.svg", "compare/loss.svg"):
        found = folder / spare
        shutil.rmtree(found) if found.is_dir() else found.unlink()
    (folder / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n", encoding="utf-8")
    move(folder, folder, ROOT)


def move(folder: Path, was: Path, now: Path) -> None:
    """Makes every path below `was` one below `now`, in all text files of a folder."""
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".yaml", ".md"):
            text = file.read_text(encoding="utf-8")
            if f"{was}/" in text:
                file.write_text(text.replace(f"{was}/", f"{now}/"), encoding="utf-8")


def use_folders(kept: Path, copy: Path) -> dict[str, Any]:
    """What today's commands make of kept run folders: choose again, score another pool, train, report.

    Args:
        kept: a folder made by `run_folders`; it is only read.
        copy: where it is copied to, with its paths made to point there.

    Returns:
        Row ids chosen, in order; the report's numbers; rows and steps of a training.
    """
    shutil.copytree(kept, copy)
    move(copy, ROOT, copy)
    found: dict[str, Any] = {}
    for name, how in ANEW.items():
        picked = tov.reselect(copy / name, out=copy / f"{name}-again", quiet=True, **how)
        found[name] = list(picked.dataset["tov_row_id"])
    inputs = json.loads((copy / "inputs.json").read_text())
    others = [*inputs["test"], inputs["pool"][-1]]
    scored = tov.score(copy / "select-tov", others, out=copy / "scored", device="cpu", quiet=True)
    found["scored"] = list(tov.reselect(scored, n=8, out=copy / "scored-chosen", quiet=True).dataset["tov_row_id"])
    compared = tov.compare(
        model=str(copy / "language-model"),
        out=copy / "compare",
        report_only=True,
        **inputs,
        **ALWAYS,
        **KEPT_COMPARE,
        near_duplicates="keep",  # 0.1.0 knew no other way
    )
    found["compare"] = of_report(compared.results)
    trained = tov.train(copy / "select-tov", test=inputs["test"], out=copy / "trained", **TRAIN_ANEW)
    found["trained"] = {"rows": trained.summary["rows"], "steps": trained.summary["steps"]}
    return found
