"""From correlation peaks to flags, and from chip sizes to one vector: pure functions on arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import flags
from .._neighbours import REJECTED, agreement
from ._ncc_numba import EMPTY

MIN_VALID = 0.5
"""Least share of a chip's pixels that must be valid, in image 1 and, at each displacement, in both images."""
MIN_SEARCHED = 0.5
"""Least share of the displacements that must have so many pixels. On the synthetic glacier, 43 % of the matches whose
place in image 2 is mostly masked are gross errors, 0.7 % of the others."""


def judged(
    found: NDArray[np.float32], kind: NDArray[np.uint8], min_correlation: float, max_peak_ratio: float
) -> dict[str, NDArray[Any]]:
    """Displacements, quality and flags of every chip size.

    Parameters
    ----------
    found : (sizes, 8, ny, nx) float32
        dy, dx, corr, second peak, mean |r|, rim, refined, share searched.
    kind : (sizes, ny, nx) uint8
        CLEAN, MASKED or EMPTY.
    min_correlation, max_peak_ratio : float

    Returns
    -------
    dict of (sizes, ny, nx) arrays
        `dy`, `dx`, `corr`, `snr`, `peak_ratio`, `flag`.
    """
    dy, dx, corr, second_peak, mean, rim, refined, searched = found.swapaxes(0, 1)
    empty = kind == EMPTY
    # Where most displacements have no common pixels the true one may hide under the mask: no answer is better.
    none = ~empty & ((corr <= -1.5) | (searched < MIN_SEARCHED))
    flat = ~empty & ~none & (mean <= 0)
    matched = ~(empty | none | flat)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(corr > 0, np.maximum(second_peak, 0) / corr, np.float32(1)).astype(np.float32)
        snr = np.where(mean > 0, corr / mean, np.float32(0)).astype(np.float32)
    flag = np.zeros(kind.shape, np.uint16)
    flag[empty | none] |= flags.NO_DATA
    flag[flat] |= flags.FLAT
    flag[matched & (rim > 0)] |= flags.RIM
    flag[matched & (corr < min_correlation)] |= flags.LOW_CORRELATION
    flag[matched & (ratio > max_peak_ratio)] |= flags.AMBIGUOUS
    flag[matched & (rim == 0) & (refined == 0)] |= flags.NOT_REFINED
    nan = np.float32(np.nan)
    return {
        "dy": dy,
        "dx": dx,
        "corr": np.where(matched, corr, nan),
        "snr": np.where(matched, snr, nan),
        "peak_ratio": np.where(matched, ratio, nan),
        "flag": flag,
    }


def choose(table: dict[str, NDArray[Any]], strides: Sequence[int], tolerance: float) -> NDArray[np.int64]:
    """For each cell the smallest chip whose vector passes and agrees with its neighbours; the largest where none does.

    Adds NEIGHBOURS to the flags of those that pass and do not agree. `strides` are the distances of neighbours of each
    size [cells], `tolerance` how much they may differ [px].
    """
    index = np.full(table["flag"].shape[1:], -1, np.int64)
    for m, stride in enumerate(strides):
        good = ~flags.invalid(table["flag"][m])
        dy, dx = (np.where(good, table[name][m], np.float32(np.nan)) for name in ("dy", "dx"))
        lonely = good & (agreement(dy, dx, stride, tolerance) == REJECTED)
        table["flag"][m][lonely] |= flags.NEIGHBOURS
        index[(index < 0) & good & ~lonely] = m
    index[index < 0] = len(strides) - 1
    return index


def median_of_nine(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Median of the values in 3 x 3 cells; NaN where there is none."""
    padded = np.pad(field, 1, constant_values=np.nan)
    nine = [padded[j : j + field.shape[0], i : i + field.shape[1]] for j in range(3) for i in range(3)]
    ordered = np.sort(np.stack(nine), axis=0)  # NaN last
    count = np.isfinite(ordered).sum(0)
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0)[None] // 2, 0)[0]
    return np.where(count > 0, middle, np.float32(np.nan))
