"""A selection whose rows a proxy scores: with which settings, how far it agrees with the model on a sample, what is said of it.

The run is a run with the proxy as its model; its manifest names the model that the rows are chosen for (`chosen_for`). The
sample is scored by that model in a run of its own inside it, prepared as for the whole pool.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from tov.comparison.agreement import Agreement, agreement
from tov.config.choice import RuleSettings
from tov.config.proxy import SAMPLE, ProxySettings
from tov.config.records import SelectConfig
from tov.engine.models import ModelSpec
from tov.errors import ConfigError, ModelError
from tov.files import digest
from tov.inputs.draw import drawing_order
from tov.inputs.read import Indexed, PoolRows
from tov.methods.base import Method
from tov.methods.choice import columns_for
from tov.methods.score_pool import score_pool
from tov.methods.spec import Variant
from tov.model.load import content_of, located
from tov.runs.folder import Run, work_on
from tov.runs.made import SAMPLED
from tov.runs.manifest import FILE, ModelRecord, read_manifest
from tov.scores.store import read_rows, read_table
from tov.scores.table import of_target, usable_in
from tov.seeds import generator

P = TypeVar("P", bound=ProxySettings)
SAMPLE_SHARD = 32
"""Rows of a shard of the sample: of one that is set aside as a whole for a bad row, few others go with it."""


def by_model(config: P) -> P:
    """The settings without a proxy: `--model` scores."""
    return config.model_copy(update={"proxy_model": None, "proxy_sample": SAMPLE})


def by_proxy(config: P) -> P:
    """The settings that the pool is scored with: the proxy is the model, if there is one; `--revision` is not the proxy's."""
    if config.proxy_model is None:
        return config
    return by_model(config).model_copy(update={"model": located(config.proxy_model), "revision": None})


def proxy_identity(config: ProxySettings) -> dict[str, str]:
    """What a run's identity says of its proxy: its content; nothing where there is none."""
    return {"proxy": content_of(config.proxy_model)} if config.proxy_model else {}


def proxy_asked(done: Run, config: ProxySettings) -> dict[str, str]:
    """As `proxy_identity`, for a finished run; a proxy that is gone is taken for the run's if it is called so."""
    try:
        return proxy_identity(config)
    except ModelError:
        record = done.manifest.model if done.manifest.chosen_for else None
        if record and record.is_called(config.proxy_model or ""):
            return {"proxy": str(done.manifest.identity.get("proxy"))}
        raise


def check_proxy(config: SelectConfig, variant: Variant) -> None:
    """Before anything is read.

    Raises:
        ConfigError: the method is told to read an encoder in place of the model, or the agreement cannot be measured.
    """
    if config.proxy_model is None:
        return
    if getattr(variant.options, "encoder", None):
        raise ConfigError(
            f"--proxy-model has no effect with --method {variant.name}, which embeds by an encoder of its own.",
            fix="Leave --proxy-model out: the encoder costs what it costs.",
        )
    if variant.method.of_pool and config.proxy_sample != SAMPLE:
        raise ConfigError(
            f"--proxy-sample has no effect with --method {variant.name}, whose score of a row depends on the whole pool.",
            fix="Leave --proxy-sample out: the agreement is not measured.",
        )
    if config.target_clusters and config.proxy_sample and not variant.method.of_pool:
        raise ConfigError(
            f"--target-clusters {config.target_clusters} are other clusters to the model than to its proxy, so their agreement "
            "cannot be measured.",
            fix="Give --proxy-sample 0, or leave --target-clusters out.",
        )


def check_other(config: SelectConfig) -> None:
    """Raises ConfigError if the proxy is the model itself, ModelError if one of them is not there."""
    if config.proxy_model and content_of(config.model, revision=config.revision) == content_of(config.proxy_model):
        raise ConfigError("--proxy-model is the same model as --model.", fix="Name a smaller one, or leave it out.")


def sample_size(config: ProxySettings, method: Method, usable: int) -> int:
    """How many of so many usable rows both models score."""
    return 0 if method.of_pool or config.proxy_model is None else min(config.proxy_sample, usable)


def score_sample(
    run: Run, rows: PoolRows, target: Indexed, config: SelectConfig, variant: Variant, *, n: int, labels: tuple[str, ...]
) -> None:  # fmt: skip
    """Notes the model that the rows are chosen for; has it score the sample first, in a run inside this one.

    Raises:
        TovError: as of `score_pool`.
    """
    if config.proxy_model is None:
        return
    settings, size = by_model(config), sample_size(config, variant.method, int(rows.usable.sum()))
    settings = settings.model_copy(update={"shard_rows": min(settings.shard_rows, SAMPLE_SHARD)})
    if not size:
        length = ModelSpec.of(settings, labels).encoder().max_length
        run.note(chosen_for=ModelRecord(
            name=settings.model, task=settings.task or "", labels=list(labels), max_length=length,
            settings=settings.of("fit", named=True),
        ))  # fmt: skip
        return
    row_ids = np.sort(drawing_order(rows, generator(config.seed, SAMPLED))[:size])
    identity, sample = {"of": digest(run.manifest.identity), "rows": digest(row_ids.tolist())}, rows.subset(row_ids)
    with (
        run.stage(SAMPLED),
        work_on(run.folder / SAMPLED, command=SAMPLED, identity=identity, settings=settings.shown()) as inner,
    ):
        if not inner.finished:
            score_pool(inner, rows, target, settings, variant, n=n, labels=labels, quiet=config.quiet, sample=sample)
            inner.note(summary={"row_ids": row_ids.tolist()})
            inner.finish()
    spent = np.sum(list(inner.manifest.spent.values()), axis=0).tolist()
    for note in inner.manifest.notes:
        run.note_line(f"of the sample that {settings.model} scores: {note}")
    run.note(chosen_for=inner.manifest.model, spent={**run.manifest.spent, SAMPLED: tuple(spent)})


def count_sample(run: Run) -> None:
    """Adds the bytes of the sample's scores and of what they were made with to the cost of the run."""
    if (run.folder / SAMPLED / FILE).exists() and run.manifest.cost:
        size = (read_manifest(run.folder / SAMPLED).cost or {})["bytes"]
        run.note(cost={**run.manifest.cost, "bytes": run.manifest.cost["bytes"] + size})


def sampled_agreement(run: Run, method: Method, settings: RuleSettings) -> dict[str, Agreement]:
    """Target's name -> how far proxy and model agree in what the settings rank by, on the sampled rows that could be taken by
    score. Nothing where no sample of this pool was scored, or it is not at hand.
    """
    place = run.scores.parent / SAMPLED
    if not (place / FILE).exists():
        return {}
    inner, targets = read_manifest(place), list(run.manifest.targets)
    assert inner.scoring
    folders = {run.scores: run.stamp, place / "scores": inner.scoring.fingerprint}
    row_ids = np.array(inner.summary["row_ids"], np.int64)
    columns = [columns_for(method, settings, folder, targets=targets) for folder in folders]
    ours = read_rows(run.scores, row_ids, columns[0], run.stamp)
    theirs = read_table(place / "scores", len(row_ids), columns[1], inner.scoring.fingerprint)
    tables = (ours, theirs)
    free = np.all([usable_in(one) & ~one["in_base"].to_numpy() for one in tables], axis=0)
    return {
        name: agreement(*(np.where(free, method.rank(of_target(one, name), settings), np.nan) for one in tables))
        for name in targets
    }


def proxy_facts(run: Run, method: Method, settings: RuleSettings) -> dict[str, Any]:
    """Of a run that a proxy has scored, for its summary: both names, the proxy's `max_length`, `agreement` by target."""
    manifest = run.manifest
    if manifest.chosen_for is None or manifest.model is None:
        return {}
    found = {name: asdict(one) for name, one in sampled_agreement(run, method, settings).items()}
    return {"proxy": {
        "proxy": manifest.model.name, "model": manifest.chosen_for.name, "max_length": manifest.model.max_length,
        "agreement": found,
    }}  # fmt: skip
