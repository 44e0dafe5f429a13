"""Validation: numbers that say how good a velocity is, against still ground, truth, stakes, GPS, pairs left out.

Small functions; reports and notebooks put them together. Components are compared wherever both sides have them: the
speed of a noisy vector is biased high.
"""

from ._gps import gps
from ._hold_out import pairs_hold_out
from ._maps import map_scores, stake_scores, stake_table
from ._scores import against_truth, nmad, static_ground
from ._stakes import read_stakes, stakes, summary

__all__ = [
    "against_truth", "gps", "map_scores", "nmad", "pairs_hold_out", "read_stakes", "stake_scores", "stake_table",
    "stakes", "static_ground", "summary",
]  # fmt: skip
