"""Noise for seeded draws without repeats. Pure NumPy.

The n largest of `log w_i + G_i`, G_i independent standard Gumbel noise, are n distinct rows, drawn one after another with
probability proportional to weight among those left, in the order of drawing; so the first k of them are the draw of k.

Source: Vieira 2014; Kool, van Hoof and Welling 2019, arXiv 1903.06059; used by DSIR, arXiv 2302.03169.
"""

from __future__ import annotations

import numpy as np

from tov.seeds import generator


def gumbel_noise(rows: int, seed: int) -> np.ndarray:
    """(rows,) independent standard Gumbel noise, tied to the row_id: a row keeps its noise whichever others may be drawn."""
    return generator(seed, "gumbel top-k").gumbel(size=rows)
