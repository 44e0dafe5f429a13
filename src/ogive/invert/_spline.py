"""Cubic splines, compiled: values, and how a value depends on those at the nodes.

Third derivatives are continuous at the second node and the last but one ("not a knot"). With m the second derivatives
and h the spacing, m[0] = (1 + q) m[1] - q m[2] with q = h[0] / h[1], and its mirror image, are put into the
tridiagonal system of the others. Four nodes at least.
"""

from typing import Any

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def factorise_spline(x: Any, spline: Any) -> Any:
    """Tridiagonal factors of the second derivatives m of a spline: rows L, 1 / D, U at its inner nodes, and 6 / h.

    Parameters
    ----------
    x : (n,) float64
        Nodes, increasing.
    spline : (4, n) float64
        Filled.
    """
    n = x.size
    lower, inverse, upper, slope = spline
    for i in range(n - 1):
        slope[i] = 6.0 / (x[i + 1] - x[i])
    for i in range(1, n - 1):
        before, after = x[i] - x[i - 1], x[i + 1] - x[i]
        lower[i], inverse[i], upper[i] = before, 2.0 * (before + after), after
    q, r = _end_ratios(x)
    inverse[1] += (1.0 + q) * lower[1]
    upper[1] -= q * lower[1]
    inverse[n - 2] += (1.0 + r) * upper[n - 2]
    lower[n - 2] -= r * upper[n - 2]
    inverse[1] = 1.0 / inverse[1]
    for i in range(2, n - 1):
        lower[i] *= inverse[i - 1]
        inverse[i] = 1.0 / (inverse[i] - lower[i] * upper[i - 1])


@njit(nogil=True, cache=True)
def _end_ratios(x: Any) -> Any:
    n = x.size
    return (x[1] - x[0]) / (x[2] - x[1]), (x[n - 1] - x[n - 2]) / (x[n - 2] - x[n - 3])


@njit(nogil=True, cache=True)
def bends(x: Any, spline: Any, y: Any, m: Any) -> Any:
    """Second derivatives at the nodes."""
    n = x.size
    lower, inverse, upper, slope = spline
    q, r = _end_ratios(x)
    for i in range(1, n - 1):
        m[i] = slope[i] * (y[i + 1] - y[i]) - slope[i - 1] * (y[i] - y[i - 1])
        if i > 1:
            m[i] -= lower[i] * m[i - 1]
    m[n - 2] *= inverse[n - 2]
    for back in range(3, n):
        i = n - back
        m[i] = (m[i] - upper[i] * m[i + 1]) * inverse[i]
    m[0] = (1.0 + q) * m[1] - q * m[2]
    m[n - 1] = (1.0 + r) * m[n - 2] - r * m[n - 3]


@njit(nogil=True, cache=True)
def _basis(x: Any, i: Any, at: Any) -> Any:
    """Weights of both values and both second derivatives of the segment i at a place."""
    h = x[i + 1] - x[i]
    b = (at - x[i]) / h
    a = 1.0 - b
    return a, b, (a**3 - a) * h * h / 6.0, (b**3 - b) * h * h / 6.0


@njit(nogil=True, cache=True)
def value(x: Any, y: Any, m: Any, i: Any, at: Any) -> Any:
    """The spline at a place in segment i."""
    a, b, c, d = _basis(x, i, at)
    return a * y[i] + b * y[i + 1] + c * m[i] + d * m[i + 1]


@njit(nogil=True, cache=True)
def row_of_window(spline: Any, window: Any, z: Any, g: Any) -> Any:
    """Coefficients of a window's displacement on P, through the transposed spline."""
    x, (lower, inverse, upper, slope) = spline
    n = x.size
    z[:], g[:] = 0.0, 0.0
    for side in range(2):
        sign = 2.0 * side - 1.0
        i = np.searchsorted(x[1:-1], window[side], "right")
        a, b, c, d = _basis(x, i, window[side])
        g[i] += sign * a
        g[i + 1] += sign * b
        z[i] += sign * c
        z[i + 1] += sign * d
    q, r = _end_ratios(x)
    z[1] += (1.0 + q) * z[0]
    z[2] -= q * z[0]
    z[n - 2] += (1.0 + r) * z[n - 1]
    z[n - 3] -= r * z[n - 1]
    z[1] *= inverse[1]
    for i in range(2, n - 1):
        z[i] = (z[i] - upper[i - 1] * z[i - 1]) * inverse[i]
    for back in range(3, n):
        i = n - back
        z[i] -= lower[i + 1] * z[i + 1]
    z[0] = z[n - 1] = 0.0
    for i in range(n - 1):
        bend = slope[i] * (z[i + 1] - z[i])
        g[i] += bend
        g[i + 1] -= bend
