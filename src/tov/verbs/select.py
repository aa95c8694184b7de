"""`tov select`: pool and target in, training file out; and `tov select --from`, which chooses again from stored scores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tov.comparison.gate import check_variant, decide
from tov.config.choice import RuleSettings, SelectionSettings
from tov.config.records import ReselectConfig, SelectConfig
from tov.config.settings import build
from tov.data.pool import Pool, files_of
from tov.data.sources import Input
from tov.engine.choose import check_here
from tov.engine.models import Models, ModelSpec
from tov.errors import RunError
from tov.files import checksum, write_text
from tov.inputs.amount import Amount, amount_of, lengths_of
from tov.inputs.named import (
    Inputs,
    check_pool_unchanged,
    check_unchanged,
    list_inputs,
    name_inputs,
    pool_again,
    read_inputs,
    remember,
    remember_in,
    unchanged_run,
)
from tov.inputs.read import Indexed, PoolRows, check_n
from tov.methods.auto import PILOTS
from tov.methods.choice import check_again, check_tokens, choose_rows, columns_for
from tov.methods.costs import clusters_asked
from tov.methods.score_pool import score_pool
from tov.methods.spec import Variant, has_no_effect, reselect_settings, select_settings, settings_for, with_effect
from tov.objects.mirror import named
from tov.progress import tell
from tov.reports.numbers import amount_facts, choice_facts, clusters_facts, facts_read, score_facts
from tov.reports.proxy import proxy_notes, proxy_warnings
from tov.reports.summary import gate_verdict, summary_markdown
from tov.runs.folder import Run, open_run, run_folder, work_on
from tov.runs.found import say_finished
from tov.runs.made import alone_in
from tov.runs.manifest import InputsRecord
from tov.scores.store import columns_in, read_hashes, read_table, rows_in
from tov.tasks import TASKS
from tov.verbs import quarantine, training_file
from tov.verbs import shown as shown_rows
from tov.verbs.asked import chosen_for, is_asked_for, select_identity
from tov.verbs.explain import default_explained, explain, to_explain
from tov.verbs.looked import Seen, look_at, note_target, see_target, target_again
from tov.verbs.proxy import (
    by_proxy,
    check_other,
    check_proxy,
    count_sample,
    proxy_facts,
    score_sample,
)
from tov.verbs.report import write_missing, write_page
from tov.verbs.result import Picked
from tov.verbs.shown import Ranked

DECIDED_BEFORE = "that was decided when the scores were made, but this choice from them is by "


def select(
    *, model: str | None = None, pool: Inputs | None = None, target: Inputs | None = None, n: int | None = None,
    out: str | Path | None = None, from_run: str | os.PathLike[str] | None = None, **settings: Any,
) -> Picked:  # fmt: skip
    """Fits the path, scans the pool, chooses rows and writes the run folder; with `from_run` only chooses.

    The same call again returns the finished run, or goes on where it was interrupted.

    Args:
        model: Hub id, local folder, .gguf file or alias.
        pool: rows to choose from: path(s), glob(s), Hub id(s), `datasets.Dataset`(s) or a list of rows.
        target: examples of what is wanted, likewise.
        n: rows to choose; or name `tokens`, a budget of tokens (2_000_000 or "2M").
        out: run folder; default `tov-runs/<fingerprint>`.
        from_run: a run (or its result) whose scores are used: as `reselect`.
        **settings: any other setting of `tov select --help`, with underscores.

    Returns:
        The selection: `.dataset` (goes into TRL's SFTTrainer), `.scores`, `.summary`, `.folder`.

    Raises:
        TovError: one of its six kinds; the text says what to do.
    """
    if from_run is not None:
        named = {name: value for name, value in (("model", model), ("target", target)) if value is not None}
        return reselect(from_run, n=n, out=out or "auto", pool=pool, **named, **settings)
    inputs = {name: list_inputs(value) for name, value in (("pool", pool), ("target", target)) if value is not None}
    record = {name: name_inputs(value) for name, value in inputs.items()}
    arguments = {
        **({"model": model} if model is not None else {}),
        **record,
        **({"n": n} if n is not None else {}),
        "out": str(out or "auto"),
        **settings,
    }
    return run_select(build(SelectConfig, arguments), inputs.get("pool"), inputs.get("target"))


def run_select(
    config: SelectConfig, pools: Sequence[Input] | None = None, targets: Sequence[Input] | None = None
) -> Picked:
    """`select` from a record of settings; inputs in memory are passed beside it."""
    config, variant = select_settings(config)
    check_proxy(config, variant)
    pools, targets = pools or config.pool, targets or config.target
    done = None if config.force else unchanged_run(config.out, command="select", pool=pools, target=targets)
    if done and is_asked_for(done, config, variant):
        training_file.check_selected(done)
        if not config.quiet:
            say_finished(done.folder)
        return _shown_too(done, config)
    check_other(config)
    check_here(config, reads_model="model" in variant.method.reads or variant.method.takes == "pilots")
    config, target, rows, labels = read_inputs(config, pools, targets, out=config.out)
    training_file.check_writable(rows.pool)
    amount = _amount(by_proxy(config), variant, rows, target, labels)
    identity = select_identity(config, variant, rows, target)
    shown = {
        name: value for name, value in config.shown().items() if not has_no_effect(SelectConfig, name, variant.method)
    }
    with work_on(
        run_folder(config.out, identity), command="select", identity=identity, force=config.force, tells=not config.quiet,
        settings=shown,
        reads=[*files_of(rows.pool), *files_of(target.pool)],
    ) as run:  # fmt: skip
        if not run.finished:
            run.note(inputs=remember_in(run, rows, config, pool=pools, target=targets), seed=config.seed)
            if variant.method.takes == "pilots":
                config, variant = _decided(run, rows, target, config, labels, amount)
            target_seen, models = see_target(target, by_proxy(config), labels), Models()
            score_sample(run, rows, target, config, variant, n=amount.prepared, labels=labels)
            config = by_proxy(config)
            score_pool(
                run, rows, target, config, variant, n=amount.prepared, labels=labels, models=models,
                quiet=config.quiet,
            )  # fmt: skip
            count_sample(run)
            note_target(run, target_seen[1])
            ranked = _choose_and_write(run, rows.pool, variant, config, config.seed, target_seen)
            _show(run, ranked, variant, config, config.seed, models, target)
            _finish(run, config.page)
            return Picked(run)
        _keep_up(run, rows.pool, remember(config, pool=pools, target=targets))
    return _shown_too(run, config)


def _shown_too(done: Run, config: SelectConfig | ReselectConfig) -> Picked:
    """A finished run, with its page if one is asked for by name."""
    if config.page and "page" in config.model_fields_set:
        done = replace(write_missing(done), found=done.found)
    if isinstance(config, SelectConfig) and config.explain_rows is not None and not config.quiet:
        tell(
            "The run was finished before, so --explain-rows measured nothing: tov inspect shows the tokens of any row."
        )
    return Picked(done)


def _amount(config: SelectConfig, variant: Variant, rows: PoolRows, target: Indexed, labels: tuple[str, ...]) -> Amount:
    """How much is asked for, which can be chosen as far as is known before anything is scored."""
    check_n(config.n or 1, rows)
    encode = ModelSpec.of(config, labels).encoder() if config.tokens else None
    amount = amount_of(config, rows, lengths_of(rows, encode, config.seed) if encode else None)
    check_variant(variant, config, rows, target, amount.least, amount.flag)
    if encode:
        check_tokens(config, rows, target, amount, encode, config.seed)
    return amount


def _decided(
    run: Run, rows: PoolRows, target: Indexed, config: SelectConfig, labels: tuple[str, ...], amount: Amount
) -> tuple[SelectConfig, Variant]:
    """The settings and the method that the pilots decide for."""
    with run.stage(PILOTS):
        decided = decide(run.folder / "gate", rows, target, config, n=amount.rows, labels=labels)
    cost, config = decided.record["cost"], settings_for(config, decided.variant)
    run.note(
        gate={**decided.record, "settings": with_effect(config, decided.variant.method, "choice")},
        spent={**run.manifest.spent, PILOTS: (cost["tokens_forward"], cost["tokens_backward"])},
    )
    run.note_line(decided.record["verdict"])
    if config.target_clusters and clusters_asked(decided.variant.method, config) is None:
        run.note_line(f"the target was not split into clusters: {decided.variant.name} knows rows by no model")
    return config, decided.variant


def _keep_up(run: Run, pool: Pool, inputs: InputsRecord) -> None:
    """The scores stand, as the model sees the same rows; the files written are of the rows as they are today."""
    with alone_in(run.folder):
        training_file.check_selected(run)
        written = training_file.write_again(run.folder, pool)
        if written is not None:
            run.event("rows written again")
            note = "columns that the model does not see have changed: the files hold the rows as they are now"
            notes = [*run.manifest.summary["notes"], note, *written]
            run.note(inputs=inputs, summary={**run.manifest.summary, "notes": notes})
            write_text(run.folder / "summary.md", summary_markdown(run.manifest))
            made = (training_file.FILE, training_file.LINES, "summary.md")
            run.note(files={**run.manifest.files, **{name: checksum(run.folder / name) for name in made}})


def reselect(
    from_run: str | os.PathLike[str],
    *,
    n: int | None = None,
    out: str | Path,
    pool: Inputs | None = None,
    **settings: Any,
) -> Picked:
    """Chooses again from a finished run's scores; nothing is scanned.

    Args:
        from_run: folder of a `select` or `score` run (or its result).
        n: rows to choose; or name `tokens`, a budget of tokens.
        out: the new run folder.
        pool: the run's pool, needed only if it was in memory.
        **settings: `method`, `transform`, `normalize`, `rule`, `bins`, `source_cap`, `seed`, by default as in the run;
            `tokens`, `share`, `force`, `quiet`.
    """
    amount = {"n": n} if n is not None else {}
    config = build(ReselectConfig, {"from_run": os.fspath(from_run), **amount, "out": out and str(out), **settings})
    return run_reselect(config, list_inputs(pool) if pool is not None else None)


def run_reselect(config: ReselectConfig, pools: Sequence[Input] | None = None) -> Picked:
    """`reselect` from a record of settings."""
    origin = open_run(config.from_run)
    scoring, chosen = origin.manifest.scoring, origin.manifest.identity
    if scoring is None or not scoring.complete:
        raise RunError(f"{config.from_run} has no complete scores yet.", fix="Finish it first: give its command again.")
    chosen_by, chosen_method = chosen.get("settings", {}), chosen.get("method", scoring.method)
    if chosen_method == "auto":
        assert origin.manifest.gate
        chosen_by, chosen_method = origin.manifest.gate["settings"], scoring.method
    config, variant = reselect_settings(config, scoring.method, chosen_by, chosen_method, len(origin.manifest.targets))
    if not has_no_effect(ReselectConfig, "normalize", variant.method):
        assert origin.manifest.model
        normalize = config.normalize or TASKS[origin.manifest.model.task].defaults.normalize
        config = config.model_copy(update={"normalize": normalize})
    pool = pool_again(origin, pools, scoring.rows or rows_in(origin.scores))
    check_pool_unchanged(origin, pools, pool)
    check_again(config, pool, origin.scores, origin.manifest.targets)
    seed = config.seed if config.seed is not None else origin.manifest.seed or 0
    settings = with_effect(config, variant.method, "choice")
    identity = {
        "method": variant.method.name,
        "options": scoring.options,
        "settings": {**settings, "seed": seed},
        "scores": scoring.fingerprint,
        "chosen_for": chosen_for(origin),
    }
    with work_on(
        run_folder(config.out, identity), command="select --from", identity=identity, settings=config.shown(),
        force=config.force, tells=not config.quiet,
        reads=[*origin.reads, *files_of(pool)],
    ) as run:  # fmt: skip
        if not run.finished:
            fields = ("inputs", "targets", "model", "chosen_for", "scoring", "artifacts")
            run.note(
                origin={"scores": named(origin.scores.absolute())},
                seed=seed,
                **_gate_again(origin, variant, settings),
                **{name: getattr(origin.manifest, name) for name in fields},
            )
            ranked = _choose_and_write(run, pool, variant, config, seed, target_again(origin, seed), origin)
            _show_again(run, ranked, seed, origin)
            _finish(run, config.page)
            return Picked(run)
    return _shown_too(run, config)


def _gate_again(origin: Run, variant: Variant, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `auto` has decided for, and notes: both say so where this choice from its scores is by something else."""
    before, notes = origin.manifest.gate, origin.manifest.notes
    if before is None:
        return {"gate": None, "notes": notes}
    assert origin.manifest.scoring
    gate, method = {name: value for name, value in before.items() if name != "here"}, variant.method.name
    ways = [name for name in RuleSettings.model_fields if name != "source_cap"]
    other = [name for name in ways if settings.get(name) != gate["settings"].get(name)]
    if method != origin.manifest.scoring.method:
        gate["here"] = DECIDED_BEFORE + method
    elif other:
        gate["here"] = DECIDED_BEFORE + f"{method} with " + ", ".join(f"{name} {settings.get(name)}" for name in other)
    return {"gate": gate, "notes": [gate_verdict(gate) if one == gate_verdict(before) else one for one in notes]}


def _choose_and_write(
    run: Run,
    pool: Pool,
    variant: Variant,
    config: SelectionSettings,
    seed: int,
    target: Seen | None,
    origin: Run | None = None,
) -> Ranked:
    """Of the run's scores: the choice, the training file, a look at it, the numbers of the summary.

    `origin` is the run whose scores they are, with the very rows of this pool; without one the scan may have taken hours since
    the rows were read, and the chosen ones are looked at again.
    """
    of_scores = origin.manifest.summary.get("scores") if origin else None
    with run.stage("select"):
        targets = list(run.manifest.targets)
        columns = columns_for(variant.method, config, run.scores, targets=targets)
        columns += [name for name in shown_rows.loss_columns(columns_in(run.scores)) if name not in columns]
        scores = read_table(run.scores, len(pool), columns, run.stamp)
        choice, values = choose_rows(variant.method, config, scores, run, targets=targets, seed=seed)
        if origin is None:
            check_unchanged(pool, choice.row_ids, read_hashes(run.scores, choice.row_ids, run.stamp))
        written = training_file.write_selected(
            run.folder, pool, choice.row_ids, choice.reasons, values[choice.row_ids], choice.targets
        )
        if origin is None and getattr(config, "on_bad_row", "") == quarantine.MODE:
            written += quarantine.write_quarantine(run.folder, pool, scores)
        checks = look_at(run, pool, scores, choice.row_ids, target, seed)
        proxy = proxy_facts(run, variant.method, config)
        told = [note for facts in proxy.values() for note in proxy_notes(facts)]
        doubts = [warning for facts in proxy.values() for warning in proxy_warnings(facts)]
        checks = checks.model_copy(update={"warnings": [*checks.warnings, *doubts]})
    run.note(checks=checks, summary={
        "choice": {
            **choice_facts(scores, choice.row_ids, choice.reasons, values, choice.targets),
            **amount_facts(scores, choice.row_ids, config.tokens, config.share, choice.targets),
        },
        "scores": of_scores or facts_of(run),
        **clusters_facts(run.manifest.targets),
        **proxy,
        "notes": [*told, *run.manifest.notes, *choice.notes, *checks.warnings, *written],
    })  # fmt: skip
    return Ranked(pool, scores, values, choice, config)


def _show(
    run: Run, ranked: Ranked, variant: Variant, config: SelectConfig, seed: int, models: Models, target: Indexed
) -> None:  # fmt: skip
    """Stores what a reader is shown, with what single tokens gain: one more pass over few rows."""
    with run.stage("explain"):
        shown = shown_rows.show(run, ranked, seed)
        most = config.explain_rows
        row_ids = to_explain(shown, default_explained(shown["eligible"]) if most is None else most)
        explain(
            shown,
            row_ids,
            pool=ranked.pool,
            method=variant.method,
            run=run,
            settings=config,
            models=models,
            target=target,
        )
        models.close()
        shown_rows.write(run, shown)


def _show_again(run: Run, ranked: Ranked, seed: int, origin: Run) -> None:
    """As `_show`, with the tokens that the run before has looked at: nothing passes the model."""
    shown, before = shown_rows.show(run, ranked, seed), shown_rows.read(origin)
    if before:
        there = {str(row_id) for row_id in shown["rows"]["id"]}
        shown["explained"] = {row_id: one for row_id, one in before["explained"].items() if row_id in there}
        shown |= {name: before[name] for name in ("target", "unexplained")}
    shown_rows.write(run, shown)


def _finish(run: Run, page: bool) -> None:
    """The summary and the page, and the run is complete."""
    write_text(run.folder / "summary.md", summary_markdown(run.manifest))
    if page:
        write_page(run)
    run.finish()


def facts_of(run: Run) -> dict[str, Any]:
    """Facts of a run's whole score table, from the columns that they are of."""
    columns = facts_read(columns_in(run.scores))
    return score_facts(read_table(run.scores, columns=columns, fingerprint=run.stamp))
