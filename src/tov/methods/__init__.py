"""The methods that rows can be chosen by: one contract (`base`), one file a method, one orchestration (`score_pool`).

A method says how a pool is scored and which numbers rank the rows; how many are taken from where is a rule of its own
(`tov.selection`).
"""

from tov.methods.base import Method, PoolStats, Scorer, Stage

__all__ = ["Method", "PoolStats", "Scorer", "Stage"]
