"""Symmetric positive definite band matrices, compiled: factorise, solve, quadratic form of the inverse.

`band[i, k]` holds H[i, i + k]: the upper half, row by row, half-bandwidth `band.shape[1] - 1`. After `factorise` the
first column holds D and the rest the rows of L transposed (H = L D L^T). All inner loops run over contiguous memory
with unsigned indices, because the wrap-around test of signed ones stops the compiler from vectorising.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
"""What may be reordered. NaN keeps its meaning: validity is tested with it."""

_U0, _U1 = np.uintp(0), np.uintp(1)


@njit(nogil=True, cache=True, fastmath=FASTMATH)
def factorise(band: NDArray[np.float64]) -> float:
    """H = L D L^T in place.

    Parameters
    ----------
    band : (n, p + 1) float64

    Returns
    -------
    float
        log det H, or NaN where H is not positive definite.

    Examples
    --------
    >>> h = np.array([[4.0, 2.0], [3.0, 0.0]])
    >>> round(float(np.exp(factorise(h))), 9)
    8.0
    """
    n, width = np.uintp(band.shape[0]), np.uintp(band.shape[1])
    log_det = 0.0
    for i in range(n):
        pivot = band[i, _U0]
        if not pivot > 0.0:
            return np.nan
        log_det += np.log(pivot)
        reach = min(width, n - i)
        inverse = 1.0 / pivot
        for k in range(_U1, reach):
            factor = band[i, k] * inverse
            if factor != 0.0:
                for q in range(reach - k):
                    band[i + k, q] -= factor * band[i, k + q]
        for k in range(_U1, reach):
            band[i, k] *= inverse
    return log_det


@njit(nogil=True, cache=True, fastmath=FASTMATH)
def forward(band: NDArray[np.float64], b: NDArray[np.float64], first: int) -> None:
    """L^-1 b in place; `b` is zero before row `first`."""
    n, width = np.uintp(band.shape[0]), np.uintp(band.shape[1])
    for i in range(np.uintp(first), n):
        value = b[i]
        for k in range(_U1, min(width, n - i)):
            b[i + k] -= band[i, k] * value


@njit(nogil=True, cache=True, fastmath=FASTMATH)
def solve(band: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    """H^-1 b in place, from the factorised band.

    Parameters
    ----------
    band : (n, p + 1) float64
        As `factorise` leaves it.
    b : (n,) float64

    Examples
    --------
    >>> h, b = np.array([[4.0, 2.0], [3.0, 0.0]]), np.array([8.0, 8.0])
    >>> _ = factorise(h)
    >>> solve(h, b)
    >>> b.tolist()
    [1.0, 2.0]
    """
    forward(band, b, 0)
    n, width = np.uintp(band.shape[0]), np.uintp(band.shape[1])
    for back in range(n):
        i = n - _U1 - back
        value = b[i] / band[i, _U0]
        for k in range(_U1, min(width, n - i)):
            value -= band[i, k] * b[i + k]
        b[i] = value


@njit(nogil=True, cache=True, fastmath=FASTMATH)
def inverse_form(band: NDArray[np.float64], g: NDArray[np.float64], first: int) -> float:
    """g^T H^-1 g from the factorised band; overwrites `g`, which is zero before row `first`.

    One forward substitution: with H = L D L^T it is the sum of (L^-1 g)_i^2 / D_i. Exact however far apart the
    non-zeros of g are, where the band of the inverse alone would miss covariances.

    Examples
    --------
    >>> h = np.array([[4.0, 2.0], [3.0, 0.0]])
    >>> _ = factorise(h)
    >>> inverse_form(h, np.array([1.0, 0.0]), 0)
    0.375
    """
    forward(band, g, first)
    total = 0.0
    for i in range(np.uintp(first), np.uintp(band.shape[0])):
        total += g[i] * g[i] / band[i, _U0]
    return total
