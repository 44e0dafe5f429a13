"""Reading correlation surfaces: peak, second peak, mean, rim, and the place below the pixel; a row of points at a time.

Surfaces are flat, c[displacement, point], so that every loop runs along the points.
"""

from typing import Any

import numpy as np
from numba import njit

from . import subpixel
from .subpixel import JIT, quadric

U = np.uint64
F = np.float32
NOTHING = F(-2)
"""Correlation of a displacement that has too few common pixels, or that the point may not have."""


@njit(**JIT)
def highest(c: Any, at: Any, best: Any, arg: Any, total: Any, n: Any, d: Any) -> Any:
    """Follow the highest value, its displacement and the sum of |r|, one displacement."""
    for i in range(U(n)):
        r = c[at + i]
        better = r > best[i]
        best[i] = r if better else best[i]
        arg[i] = d if better else arg[i]
        total[i] += abs(r) if r > F(-1.5) else F(0)


@njit(**JIT)
def counted(c: Any, at: Any, count: Any, n: Any) -> Any:
    """Count the displacements that have a value, one displacement."""
    for i in range(U(n)):
        count[i] += F(1) if c[at + i] > F(-1.5) else F(0)


@njit(**JIT)
def runner_up(c: Any, at: Any, second: Any, py: Any, px: Any, n: Any, oy: Any, ox: Any) -> Any:
    """Follow the highest value outside of a 5 x 5 box round the peak, one displacement."""
    for i in range(U(n)):
        far = max(abs(py[i] - oy), abs(px[i] - ox)) > F(2)
        r = c[at + i] if far else NOTHING
        second[i] = max(second[i], r)


@njit(**JIT)
def peaks(
    c: Any, at: Any, size: Any, columns: Any, gaps: Any, limits: Any, origin: Any, out: Any, chip: Any, row: Any
) -> Any:  # fmt: skip
    """Read the surfaces c[at + displacement * columns + point] of one row; fills out[chip, 0 ... 7, row].

    `gaps`: some values may be NOTHING. `limits` and `origin` as in `match`.
    """
    n = out.shape[3]
    best, arg = np.full(n, NOTHING), np.zeros(n, np.int32)
    total, second = np.zeros(n, np.float32), np.full(n, NOTHING)
    count = np.full(n, F(0) if gaps else F(size * size))
    for d in range(size * size):
        highest(c, at + U(d * columns), best, arg, total, n, np.int32(d))
        if gaps:
            counted(c, at + U(d * columns), count, n)
    py, px = np.empty(n, np.float32), np.empty(n, np.float32)
    for i in range(n):
        py[i], px[i] = F(arg[i] // size), F(arg[i] % size)
    for oy in range(size):
        for ox in range(size):
            runner_up(c, at + U((oy * size + ox) * columns), second, py, px, n, F(oy), F(ox))
    nine = np.empty(9)
    for i in range(n):
        oy, ox = arg[i] // size, arg[i] % size
        rim = oy == 0 or ox == 0 or oy == size - 1 or ox == size - 1
        dy, dx, refined = 0.0, 0.0, False
        if not rim:
            whole = True
            for j in range(-1, 2):
                for k in range(-1, 2):
                    r = c[at + U((arg[i] + j * size + k) * columns + i)]
                    nine[4 + 3 * j + k] = subpixel.level(r)
                    whole = whole and r > F(-1.5)
            if whole:
                dy, dx, refined = quadric(nine, 4, 3)
            else:  # beside displacements that the point may not have: the rim of what could be searched
                rim = True
        out[chip, 0, row, i] = origin[0] + oy + dy
        out[chip, 1, row, i] = origin[1] + ox + dx
        out[chip, 2, row, i] = best[i]
        out[chip, 3, row, i] = second[i]
        out[chip, 4, row, i] = total[i] / max(count[i], F(1))
        out[chip, 5, row, i] = rim
        out[chip, 6, row, i] = refined
        window = size * size
        if limits.size:
            window = (limits[1, row, i] - limits[0, row, i] + 1) * (limits[3, row, i] - limits[2, row, i] + 1)
        out[chip, 7, row, i] = count[i] / F(window)
