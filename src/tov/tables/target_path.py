"""The score table of the target path: two states of a short training on the target alone, two forward passes over the pool."""

from __future__ import annotations

from pathlib import Path

from tov.baselines.target_path import LEARNING_RATE, depth_for, endpoint_drop, fit_target_path
from tov.model.adapters import load, save
from tov.progress import Progress
from tov.seeds import derive
from tov.tables.ahead import Facts, Stage
from tov.tables.work import LORA, Work

FIRST, LAST = "first", "last"


def fill(work: Work) -> None:
    """`score_target_path` = (l_1 - l_T) / l_1, and the two log-losses. The states are kept as PEFT adapters."""
    options = work.options
    opened = work.open(**{name: getattr(options, name) for name in LORA})
    batch_tokens = work.batch_tokens(opened)
    target, _ = work.encode_target(opened.encode)
    epochs = options.epochs or depth_for(len(target))
    rate = options.learning_rate or LEARNING_RATE[work.settings.task]

    def make(folder: Path, progress: Progress) -> None:
        states = fit_target_path(
            opened.adapted, target, epochs=epochs, learning_rate=rate, batch_size=options.batch_size,
            batch_tokens=batch_tokens, seed=derive(work.settings.seed, "target path"), progress=progress,
        )  # fmt: skip
        for name, state in zip((FIRST, LAST), states, strict=True):
            save(opened.adapted, state, folder / name)
        tokens = epochs * int(target.lengths.sum())
        work.spent("fit", (tokens, tokens))

    key = {
        **options.model_dump(mode="json"),
        "epochs": epochs,
        "learning_rate": rate,
        "target": work.target[1].fingerprint,
    }
    folder = work.part("fit", key, opened, make, rows=epochs * len(target))
    work.note(f"target path: {epochs} epochs at a rate of {rate:g}")
    states = load(folder / FIRST), load(folder / LAST)
    stream = work.stream(opened.encode, key, opened)
    work.fill(
        stream, lambda shard: endpoint_drop(opened.adapted, states, shard.encoded, batch_tokens=batch_tokens),
        opened=opened, passes=(2, 0),
    )  # fmt: skip


def ahead(facts: Facts) -> list[Stage]:
    """A training on the target, then two passes over the pool."""
    tokens = (facts.options.epochs or depth_for(facts.target_rows)) * facts.target_tokens
    kept = 2 * 4 * facts.trained(facts.options)
    return [Stage("fit", tokens, tokens, kept), Stage("scan", 2 * facts.tokens, 0, facts.table(3))]
