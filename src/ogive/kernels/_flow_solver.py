"""The equations of dense flow, and their relaxation.

Strict arithmetic, and no order of pixels: a value depends on pixels at fixed distances only. Fields carry a pixel more
on each side (`RIM`), which repeats the outermost one.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ._flow_field import RIM, rim
from .subpixel import JIT

F, U = np.float32, np.uint64
LARGEST = 0.98
"""Largest eigenvalue of Jacobi's method that is reckoned with: that of a smoothing length of 3.5 px. More speeds up
what is smoother, which the start knows already, and slows down the rest."""


def accelerations(steps: int) -> NDArray[np.float32]:
    """Chebyshev's factors for so many steps (Golub & Varga, 1961).

    Examples
    --------
    >>> accelerations(4).round(3).tolist()
    [1.0, 1.9240000247955322, 1.8580000400543213, 1.805999994277954]
    """
    factors = [1.0, 1 / (1 - LARGEST**2 / 2)]
    while len(factors) < steps:
        factors.append(1 / (1 - LARGEST**2 * factors[-1] / 4))
    return np.array(factors[:steps], np.float32)


@njit(**JIT)
def _taps(t: Any) -> Any:
    """Weights of cubic convolution (Keys, 1981) at t of 0 ... 1, and their derivatives."""
    t2 = t * t
    t3 = t2 * t
    return (
        F(-0.5) * t3 + t2 - F(0.5) * t, F(1.5) * t3 - F(2.5) * t2 + F(1),
        F(-1.5) * t3 + F(2) * t2 + F(0.5) * t, F(0.5) * t3 - F(0.5) * t2,
        F(-1.5) * t2 + F(2) * t - F(0.5), F(4.5) * t2 - F(5) * t,
        F(-4.5) * t2 + F(4) * t + F(0.5), F(1.5) * t2 - t,
    )  # fmt: skip


@njit(**JIT)
def _line(plane: Any, y: Any, x: Any, u: Any) -> Any:
    """A row's value and derivative at the taps u after (y, x)."""
    a, b, c, d = plane[y, x - 1], plane[y, x], plane[y, x + 1], plane[y, x + 2]
    return u[0] * a + u[1] * b + u[2] * c + u[3] * d, u[4] * a + u[5] * b + u[6] * c + u[7] * d


@njit(**JIT)
def sample(plane: Any, y: Any, x: Any, v: Any, u: Any) -> Any:
    """Value, derivative along y and along x of a plane; v, u are the taps of the position after (y, x)."""
    a, ax = _line(plane, y - 1, x, u)
    b, bx = _line(plane, y, x, u)
    c, cx = _line(plane, y + 1, x, u)
    d, dx = _line(plane, y + 2, x, u)
    value = v[0] * a + v[1] * b + v[2] * c + v[3] * d
    return value, v[4] * a + v[5] * b + v[6] * c + v[7] * d, v[0] * ax + v[1] * bx + v[2] * cx + v[3] * dx


@njit(**JIT)
def agreement(one: Any, rise: Any, known: Any, two: Any, seen: Any, y: Any, x: Any, v: Any, u: Any) -> Any:
    """Image 1 at (y, x) beside image 2 at (y + v, x + u): whether both are known, then sums over their planes.

    These are the products ab, aa, bb; the residual's square rr; squares of the mean slopes of both yy, yx, xx; slopes
    times residual yr, xr.
    """
    ab = aa = bb = rr = yy = yx = xx = yr = xr = F(0)
    # Of the displacement alone: the position in the window would round otherwise in another window.
    fy, fx = np.floor(v), np.floor(u)
    iy, ix = y + int(fy), x + int(fx)
    h, w = known.shape
    there = known[y, x] and 0 <= iy < h and 0 <= ix < w and seen[iy, ix]
    if there:
        ty, tx = _taps(v - fy), _taps(u - fx)
        for c in range(len(one)):
            a = one[c, y, x]
            b, sy, sx = sample(two[c], iy, ix, ty, tx)
            r, sy, sx = b - a, F(0.5) * (rise[2 * c, y, x] + sy), F(0.5) * (rise[2 * c + 1, y, x] + sx)
            ab, aa, bb, rr = ab + a * b, aa + a * a, bb + b * b, rr + r * r
            yy, yx, xx = yy + sy * sy, yx + sy * sx, xx + sx * sx
            yr, xr = yr + sy * r, xr + sx * r
    return there, (ab, aa, bb), rr, (yy, yx, xx), (yr, xr)


@njit(**JIT)
def linearise(
    one: Any, rise: Any, known: Any, two: Any, seen: Any, flow: Any, limit: Any, softness: Any, alpha: Any, out: Any
) -> Any:  # fmt: skip
    """The relaxation step at the present flow: d = out[3:5] + [[out[0], out[1]], [out[1], out[2]]] (sum of neighbours).

    `softness` is the residual beyond which the weight falls (Charbonnier); infinite: none does.
    """
    h, w = known.shape
    four = F(4) * alpha
    for y in range(h):
        for x in range(w):
            v, u = flow[0, y + RIM, x + RIM], flow[1, y + RIM, x + RIM]
            v, u = min(max(v, -limit), limit), min(max(u, -limit), limit)
            _, _, rr, (yy, yx, xx), (yr, xr) = agreement(one, rise, known, two, seen, y, x, v, u)
            weight = F(1) / np.sqrt(F(1) + rr * softness)
            yy, yx, xx = weight * yy, weight * yx, weight * xx
            by, bx = yy * v + yx * u - weight * yr, yx * v + xx * u - weight * xr
            yy, xx = yy + four, xx + four
            over = F(1) / (yy * xx - yx * yx)
            out[0, y, x], out[1, y, x], out[2, y, x] = alpha * xx * over, -alpha * yx * over, alpha * yy * over
            out[3, y, x], out[4, y, x] = (xx * by - yx * bx) * over, (yy * bx - yx * by) * over


@njit(**JIT)
def _sums(up: Any, mid: Any, low: Any, out: Any) -> Any:
    """Sums of the four neighbours along a row."""
    for x in range(U(out.size)):
        out[x] = (up[x + U(1)] + low[x + U(1)]) + (mid[x] + mid[x + U(2)])


@njit(**JIT)
def _step(own: Any, other: Any, p: Any, q: Any, c: Any, omega: Any, out: Any) -> Any:
    """One component, pushed on by omega beyond what it was two steps ago (`out`)."""
    for x in range(U(own.size)):
        new = c[x] + (p[x] * own[x] + q[x] * other[x])
        out[x + U(1)] = omega * (new - out[x + U(1)]) + out[x + U(1)]


@njit(**JIT)
def relax(flow: Any, before: Any, system: Any, omegas: Any) -> Any:
    """Chebyshev's semi-iteration of Jacobi's method, a step for each of `omegas`; returns flow and the step before it.

    Each step carries what is known a pixel further, and no order of pixels enters.
    """
    _, h, w = system.shape
    sums = np.empty((2, w), np.float32)
    for omega in omegas:
        for y in range(h):
            for c in range(2):
                _sums(flow[c, y], flow[c, y + 1], flow[c, y + 2], sums[c])
            row = system[:, y]
            _step(sums[0], sums[1], row[0], row[1], row[3], omega, before[0, y + 1])
            _step(sums[1], sums[0], row[2], row[1], row[4], omega, before[1, y + 1])
        rim(before)
        flow, before = before, flow
    return flow, before
