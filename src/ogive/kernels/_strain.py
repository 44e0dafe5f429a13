"""How the displacement varies around a cell: velocity gradient and curvature from its neighbours."""

from typing import Any

import numpy as np
from numba import njit

from .subpixel import JIT

HALF = 2
"""Neighbours on each side: 5 x 5."""
MIN_NEIGHBOURS = 8
"""Least number of the 25 behind a plane."""
MIN_SPREAD = 4.0
"""Least spread of those neighbours across their narrower direction [cells² of the pattern]: two adjacent rows of five
have 2.5, three rows of three 6."""
SWEEPS = 4
"""Times the neighbours are corrected for their own strain; each leaves about a fifth of the error."""


@njit(**JIT)
def stride(chip: Any, step: Any) -> Any:
    """Spacing of the neighbours [cells]: the five span one chip."""
    return max(1, (chip + 2 * step) // (4 * step))


@njit(**JIT)
def surface(field: Any, known: Any, leverage: Any, i: Any, j: Any, space: Any, step: Any) -> Any:
    """Velocity gradient and second derivatives of the displacement at cell (i, j).

    A neighbour's displacement is that of its centre plus what its own strain adds; that is taken off with the gradient
    found so far, and the surface fitted again. So no neighbour's neighbours are needed.

    Parameters
    ----------
    field : (2, ny, nx) float64
        Registered dy, dx [px].
    known : (ny, nx) bool
        Cells that count.
    leverage : (2, 4, ny, nx) float32
        What each element of the gradient adds to dy, dx [px per px/px].
    i, j, space, step : int
        Cell, spacing of the neighbours [cells], grid step [px].

    Returns
    -------
    e : four floats
        ddx/dx, ddx/dy, ddy/dx, ddy/dy [px/px]; NaN where too few neighbours say it.
    bend : six floats
        ddx/dxx, dxy, dyy, ddy/dxx, dxy, dyy [1/px]; NaN where one of the 25 neighbours is missing.
    """
    _, ny, nx = field.shape
    width = float(space * step)
    exx = exy = eyx = eyy = 0.0
    uxx = uxy = uyy = vxx = vxy = vyy = 0.0
    none, flat = (np.nan, np.nan, np.nan, np.nan), (np.nan, np.nan, np.nan, np.nan, np.nan, np.nan)
    n = 0
    for _ in range(SWEEPS):
        n = sk = sm = skk = skm = smm = 0
        v = vk = vm = u = uk = um = 0.0
        qvkk = qvkm = qvmm = qukk = qukm = qumm = 0.0
        for k in range(-HALF, HALF + 1):
            for m in range(-HALF, HALF + 1):
                y, x = i + space * k, j + space * m
                if y < 0 or x < 0 or y >= ny or x >= nx or not known[y, x]:
                    continue
                a, b = exx + (uxx * m + uxy * k) * width, exy + (uxy * m + uyy * k) * width
                c, d = eyx + (vxx * m + vxy * k) * width, eyy + (vxy * m + vyy * k) * width
                dy = field[0, y, x] - (
                    a * leverage[0, 0, y, x]
                    + b * leverage[0, 1, y, x]
                    + c * leverage[0, 2, y, x]
                    + d * leverage[0, 3, y, x]
                )
                dx = field[1, y, x] - (
                    a * leverage[1, 0, y, x]
                    + b * leverage[1, 1, y, x]
                    + c * leverage[1, 2, y, x]
                    + d * leverage[1, 3, y, x]
                )
                n += 1
                sk += k
                sm += m
                skk += k * k
                skm += k * m
                smm += m * m
                v += dy
                vk += dy * k
                vm += dy * m
                u += dx
                uk += dx * k
                um += dx * m
                qvkk += dy * (k * k - 2)
                qvkm += dy * (k * m)
                qvmm += dy * (m * m - 2)
                qukk += dx * (k * k - 2)
                qukm += dx * (k * m)
                qumm += dx * (m * m - 2)
        if n < MIN_NEIGHBOURS:
            return none, flat
        kk, km, mm = skk - sk * sk / n, skm - sk * sm / n, smm - sm * sm / n
        det = kk * mm - km * km
        if det < MIN_SPREAD * (kk + mm):
            return none, flat
        vk, vm, uk, um = vk - v * sk / n, vm - v * sm / n, uk - u * sk / n, um - u * sm / n
        det *= width
        exx, exy = (kk * um - km * uk) / det, (mm * uk - km * um) / det
        eyx, eyy = (kk * vm - km * vk) / det, (mm * vk - km * vm) / det
        if n == (2 * HALF + 1) ** 2:
            # Over all 25, k² - 2, m² - 2 and k m are orthogonal to planes and to each other.
            uxx, uxy, uyy = qumm / (35 * width * width), qukm / (100 * width * width), qukk / (35 * width * width)
            vxx, vxy, vyy = qvmm / (35 * width * width), qvkm / (100 * width * width), qvkk / (35 * width * width)
    if n < (2 * HALF + 1) ** 2:
        return (exx, exy, eyx, eyy), flat
    return (exx, exy, eyx, eyy), (uxx, uxy, uyy, vxx, vxy, vyy)


@njit(**JIT)
def scatter(field: Any, leverage: Any, i: Any, j: Any, space: Any, step: Any, e: Any, bend: Any, half: Any) -> Any:
    """Mean squares by which the neighbours up to `half` away are off the surface `(e, bend)`: (dy, dx) [px²].

    Arguments as of `surface`, which found all 25 of them and gave the surface.
    """
    width = float(space * step)
    cells = (2 * half + 1) ** 2
    # All 25 have six numbers fitted to them; the nine in the middle little more than their mean.
    free = cells - (6 if half == HALF else 1)
    sy = sx = syy = sxx = 0.0
    for k in range(-half, half + 1):
        for m in range(-half, half + 1):
            y, x, v, u = i + space * k, j + space * m, k * width, m * width
            a, b = e[0] + bend[0] * u + bend[1] * v, e[1] + bend[1] * u + bend[2] * v
            c, d = e[2] + bend[3] * u + bend[4] * v, e[3] + bend[4] * u + bend[5] * v
            dy = field[0, y, x] - (
                a * leverage[0, 0, y, x]
                + b * leverage[0, 1, y, x]
                + c * leverage[0, 2, y, x]
                + d * leverage[0, 3, y, x]
            )
            dx = field[1, y, x] - (
                a * leverage[1, 0, y, x]
                + b * leverage[1, 1, y, x]
                + c * leverage[1, 2, y, x]
                + d * leverage[1, 3, y, x]
            )
            # Half of the gradient here and half of that in the middle: the surface less its value in the middle.
            dy -= 0.5 * ((c + e[2]) * u + (d + e[3]) * v)
            dx -= 0.5 * ((a + e[0]) * u + (b + e[1]) * v)
            sy += dy
            sx += dx
            syy += dy * dy
            sxx += dx * dx
    return (syy - sy * sy / cells) / free, (sxx - sx * sx / cells) / free
