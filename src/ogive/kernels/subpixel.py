"""The sub-pixel position of a correlation peak."""

from typing import Any

import numpy as np
from numba import njit

JIT: dict[str, Any] = {"error_model": "numpy", "boundscheck": False, "nogil": True, "cache": True}
"""Options of the numba functions that take part in matching: strict arithmetic. With relaxed arithmetic the vectorised
body and the remainder of a loop round differently, and a value would depend on where its tile starts."""


@njit(**JIT)
def level(r: Any) -> Any:
    """What the quadric is fitted to: the logarithm of a correlation, because a Gaussian peak is then a paraboloid.

    On truth pairs the error of 32 px chips falls from .022 to .016 px, and the bias towards whole pixels from .026 to
    .006 px. Correlations below 0.1 count as 0.1.
    """
    return np.log(max(float(r), 0.1))


@njit(**JIT)
def quadric(r: Any, centre: Any, row: Any) -> Any:
    """Extremum of the least-squares quadric through the 3x3 values around a peak.

    `r` is one correlation surface, flat; `centre` the index of the peak, `row` the distance between rows. Returns
    `(dy, dx, ok)`: the offset of the maximum from the whole-pixel peak [px]; `ok` is False, with a zero offset, where
    the quadric has no maximum within one pixel.
    """
    gx = gy = hxx = hyy = hxy = 0.0
    for j in range(-1, 2):
        for i in range(-1, 2):
            value = float(r[centre + j * row + i])
            gx += i * value
            gy += j * value
            hxy += i * j * value
            hxx += (i * i - 2.0 / 3.0) * value
            hyy += (j * j - 2.0 / 3.0) * value
    gx /= 6.0
    gy /= 6.0
    hxy /= 4.0
    determinant = hxx * hyy - hxy * hxy
    if not (hxx < 0.0 and determinant > 0.0):
        return 0.0, 0.0, False
    dx = -(hyy * gx - hxy * gy) / determinant
    dy = -(hxx * gy - hxy * gx) / determinant
    if abs(dx) > 1.0 or abs(dy) > 1.0:
        return 0.0, 0.0, False
    return dy, dx, True
