"""Why rows: what their single tokens gain, and the target rows that they are nearest to. One more pass over few rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tov.data.pool import Pool
from tov.engine.models import Models, ModelSpec, Opened, auto_batch_tokens
from tov.errors import TovError
from tov.inputs.draw import encode_scored
from tov.inputs.read import Indexed, usable_rows
from tov.methods.base import Method, TokenGains
from tov.methods.clusters import targets_now
from tov.methods.shared.embeddings import embed_rows
from tov.methods.shared.neighbours import Neighbours, nearest
from tov.methods.tov.scan import NEAREST
from tov.runs.folder import Run
from tov.scores.table import DEFAULT_TARGET, artifacts_of
from tov.text.encode import IGNORED, Encoded
from tov.text.pieces import pieces
from tov.verbs.shown import BELOW, BY_CHANCE, CHOSEN, numbers, texts

READ_NO_MODEL = ("text", "pilots")
"""Needs of methods that open no model of their own: none is opened to explain what they did."""


def default_explained(usable: int) -> int:
    """Rows whose tokens are looked at when the run ends, where the user does not say: a small part of the scan's cost."""
    return min(100, max(16, usable // 20), usable)


def to_explain(shown: dict[str, Any], most: int) -> np.ndarray:
    """The rows whose tokens are looked at: half of them the best ones, the others just below the cut and drawn at random."""
    by_group: dict[str, list[int]] = {}
    for row_id, group in zip(shown["rows"]["id"], shown["rows"]["group"], strict=True):
        by_group.setdefault(group, []).append(row_id)
    below, chance = by_group.get(BELOW, []), by_group.get(BY_CHANCE, [])
    picked = [*below[: most // 3], *chance[: most // 6]]
    return np.array([*by_group.get(CHOSEN, [])[: most - len(picked)], *picked], np.int64)


def explain(
    shown: dict[str, Any], row_ids: np.ndarray, *, pool: Pool, method: Method, run: Run, settings: Any, models: Models,
    target: Indexed | None,
) -> None:  # fmt: skip
    """Adds what single tokens of some rows gain, and the target rows that those are nearest to.

    A method that says nothing of tokens has the nearest rows alone: by the largest cosine of half-way embeddings under the
    model that it has read, as for ToV. Where something cannot be had, `unexplained` says why; a selection is no worse for it.

    Args:
        shown: of `tov.verbs.shown.show`; changed in place.
        row_ids: of the rows.
        pool: has them.
        method: that scored them.
        run: with its artifacts.
        settings: of the run.
        models: opens the model, and keeps it.
        target: its rows, if they are at hand.
    """
    if not len(row_ids):
        shown["unexplained"] = "no row was to be explained"
        return
    try:
        for name, mine in _by_target(shown, row_ids, run):
            _explain(shown, mine, name, pool, method, run, settings, models, target)
    except TovError as error:
        shown["unexplained"] = error.problem
    except (MemoryError, torch.OutOfMemoryError):
        shown["unexplained"] = "the memory is too small for another pass"


def _by_target(shown: Mapping[str, Any], row_ids: np.ndarray, run: Run) -> Iterator[tuple[str, np.ndarray]]:
    """Each target and the rows that it is asked about: those chosen for it; of rows chosen for none, the first target is."""
    names = list(run.manifest.targets) or [DEFAULT_TARGET]
    whose = dict(zip(shown["rows"]["id"], shown["rows"].get("target", ()), strict=False))
    places = np.array([max(whose.get(row, 0), 0) for row in row_ids.tolist()], np.int64)
    for place in np.unique(places).tolist():
        yield names[place], row_ids[places == place]


def _explain(
    shown: dict[str, Any], row_ids: np.ndarray, name: str, pool: Pool, method: Method, run: Run, settings: Any,
    models: Models, targets: Indexed | None,
) -> None:  # fmt: skip
    target = targets_now(run, targets)[name] if targets is not None else None
    called = name if len(run.manifest.targets) > 1 else ""
    scorer = method.reuse(artifacts_of(run.artifacts, name), settings, models)
    spec = scorer.model if scorer else None
    if spec is None and method.needs not in READ_NO_MODEL and target is not None and run.manifest.model:
        # Any adapter that has not been trained leaves the model as it is: one that is open need not be opened again.
        spec = next(iter(models.opened), None) or ModelSpec.of(settings, tuple(run.manifest.model.labels))
    if spec is None:
        shown["unexplained"] = f"{method.name} says nothing of single tokens"
        return
    opened = models.open(spec)
    encoded = opened.encode(usable_rows(pool.at(row_ids)))
    able = np.flatnonzero(encoded.scored_counts > 0)
    encoded, row_ids = encoded.take(able), row_ids[able]
    gains = scorer.explain(models, encoded) if scorer and len(able) else None
    with_tokens, near = gains is not None, np.empty(0, np.int64)
    if gains is None:
        shown["unexplained"] = f"{method.name} says nothing of single tokens"
        if target is None or not len(able):
            return
        gains = TokenGains(np.empty(0), np.empty(0))
    if target is None:
        gains = replace(gains, nearest=None, cosines=None)  # nobody can tell their numbers, nor what they say
    else:
        wanted, compared = encode_scored(target.pool, opened.encode, role="target")  # the others have no embedding
        if not with_tokens:
            found = _nearest(opened, encoded, wanted, settings)
            gains = replace(gains, nearest=found.row_ids, cosines=found.values)
        if gains.nearest is not None:
            places = compared[gains.nearest]
            gains, near = replace(gains, nearest=places), np.unique(places)
        keys = (_key(place, called) for place in near.tolist())
        shown["target"] |= {str(key): parts for key, parts in zip(keys, texts(target.pool, near), strict=True)}
    shown["explained"] |= explained(
        row_ids, encoded, gains, opened.encode.tokenizer, opened.encode.labels, with_tokens=with_tokens, called=called
    )


def _key(place: int, called: str) -> int | str:
    """What a target row is called: its number, of several targets with the target's name before it."""
    return f"{called} {place}" if called else place


def _nearest(opened: Opened, rows: Encoded, target: Encoded, settings: Any) -> Neighbours:
    """The target rows nearest to each row, by half-way embeddings."""
    most = int(getattr(settings, "batch_tokens", None) or auto_batch_tokens(opened.loaded.device))
    mine, theirs = (embed_rows(opened.adapted, one, batch_tokens=most, half_way=True) for one in (rows, target))
    return nearest(mine, theirs, min(NEAREST, len(theirs)))


def explained(
    row_ids: np.ndarray,
    encoded: Encoded,
    gains: TokenGains,
    tokenizer: Any,
    labels: Sequence[str],
    *,
    with_tokens: bool,
    called: str = "",
) -> dict[str, Any]:
    """Of each row: its tokens (text, log-loss, gain, label; nulls where none is scored) or None, and nearest target rows; of
    several targets also which one (`called`) was asked about.
    """
    starts = np.concatenate([[0], np.cumsum(encoded.scored_counts)])

    def tokens(place: int) -> list[list[Any]]:
        ids, marks = encoded.row(place)
        scored, part = marks != IGNORED, slice(starts[place], starts[place + 1])
        loss, gain = np.full((2, len(ids)), np.nan)
        loss[scored], gain[scored] = gains.loss[part], gains.gain[part]
        names = [labels[mark] if labels and mark >= 0 else None for mark in marks.tolist()]
        told = zip(pieces(tokenizer, ids.tolist()), numbers(loss), numbers(gain), names, strict=True)
        return [list(one) for one in told]

    def near(place: int) -> list[list[Any]]:
        if gains.nearest is None or gains.cosines is None:
            return []
        keys = [_key(row, called) for row in gains.nearest[place].tolist()]
        return [list(one) for one in zip(keys, numbers(gains.cosines[place]), strict=True)]

    return {
        str(row_id): {
            "tokens": tokens(place) if with_tokens else None,
            "near": near(place),
            **({"for": called} if called else {}),
        }
        for place, row_id in enumerate(row_ids.tolist())
    }
