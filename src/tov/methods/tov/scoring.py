"""From per-token log-probabilities to a row's score. The sign of a score is fixed here and nowhere else. Pure NumPy.

The gain of token t between the base state and the target state of one epoch is
`Delta_t = log p_t(theta_val_k) - log p_t(theta_bas_k)` in nats; up is better. Eq. 6 of Jain, Montanari and Sasoglu (2025)
scores a row by the fall of its token-mean log-loss, `l(theta_bas) - l(theta_val)`, which is the mean gain.
One text of the method writes loss after minus loss before; we follow Eq. 6.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tov.losses import row_means

TRANSFORM_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda gain: gain,
    "abs": np.abs,
    "positive": lambda gain: np.maximum(gain, 0.0),
}
"""F of Algorithm 1: max improvement, max absolute change, max positive improvement. Applied to each token."""


def row_scores(base: np.ndarray, target: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of one epoch: `{"identity": (rows,), "abs": (rows,), "positive": (rows,)}` in nats a token.

    Args:
        base: (T_total,) log p_t under the base state.
        target: (T_total,) log p_t under the target state, same tokens.
        offsets: (rows + 1,) where each row starts.
    """
    gain = target.astype(np.float64) - base.astype(np.float64)
    return {name: row_means(transform(gain), offsets) for name, transform in TRANSFORM_FUNCTIONS.items()}


def uncertainty(logp: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(rows,) max-uncertainty score: token mean of log[p (1 - p)], largest at p = 1/2.

    At p = 1 (to fp32 rounding) log(1 - p) is taken at the smallest gap that fp32 can tell, 2**-24, so that it stays finite.
    """
    logp = logp.astype(np.float64)
    gap = np.maximum(-np.expm1(np.minimum(logp, 0.0)), 2.0**-24)
    return row_means(logp + np.log(gap), offsets)


LOSS_FLOOR = 0.1
"""Smallest log-loss, in nats a token, that a score is divided by: below it a row is known already and rounding decides."""


def normalized(scores: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """(rows,) scores over the log-loss before the target epoch: the relative drop, as the target path ranks rows by.

    Raw gains are larger where there is more to gain; a target of low log-loss (worked sums, say) is then outranked by any
    row of high log-loss that moves a little. Source: arXiv 2605.09404, (l_1 - l_T) / l_1. Differs: the divisor is the mean
    over epochs of the loss under the base state, at least `LOSS_FLOOR`.

    Args:
        scores: (rows,) nats a token.
        loss: (rows,) nats a token.
    """
    return scores / np.maximum(loss, LOSS_FLOOR)
