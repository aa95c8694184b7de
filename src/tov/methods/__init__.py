"""The methods that rows can be chosen by: one row of one table each; a new one joins by its row alone.

A method says how a score table is filled and which numbers of it rank the rows; how many are taken from where is a rule of its
own (`tov.selection`). Must not know how any method works.
"""

from tov.methods.arms import Arm, parse_arm, with_rule
from tov.methods.rankings import gain
from tov.methods.table import METHODS, Method, find_method

__all__ = ["METHODS", "Arm", "Method", "find_method", "gain", "parse_arm", "with_rule"]
