"""Registration of one chip with six parameters: displacement and velocity gradient (Baker & Matthews, 2004)."""

from typing import Any

import numpy as np
from numba import njit

from ._icgn import (
    CHIP,
    GX,
    GXX,
    GXY,
    GY,
    GYX,
    GYY,
    MOVE,
    PAD,
    STILL,
    STRAIGHT,
    STRETCH,
    TOLERANCE,
    UNKNOWN,
    A,
    U,
    W,
    X,
    Y,
    dot,
    fits,
    products,
    residual,
    step,
    stretch,
    template,
    warp,
    weigh,
)  # fmt: skip

SMALLEST = 24
"""Least chip width that carries six parameters [px]; below, noise decides the strain."""
ITERATIONS = 10
BASIS = (GY, GYX, GYY, GX, GXX, GXY)
"""Planes of the derivatives by dy, ddy/dx, ddy/dy, dx, ddx/dx, ddx/dy."""


@njit(**CHIP)
def times_offset(n: Any, work: Any, gradient: Any, mean: Any, offset: Any, out: Any, count: Any) -> Any:
    """Plane `out` = gradient times offset from the centre, less its mean."""
    s = np.float32(0)
    for q in range(U(n)):
        value = (work[gradient, q] + work[W, q] * mean) * work[offset, q]
        work[out, q] = value
        s += value
    s /= count
    for q in range(U(n)):
        work[out, q] -= s * work[W, q]


@njit(**CHIP)
def solve(h: Any, r: Any) -> Any:
    """Solve h p = r in place by the Cholesky factor in the lower triangle of `h`."""
    for i in range(6):
        for j in range(i):
            r[i] -= h[i, j] * r[j]
        r[i] /= h[i, i]
    for i in range(5, -1, -1):
        for j in range(i + 1, 6):
            r[i] -= h[j, i] * r[j]
        r[i] /= h[i, i]


@njit(**CHIP)
def factorise(h: Any) -> Any:
    """Cholesky factor of a 6 x 6 matrix, in its lower triangle; False if it is not positive definite."""
    for i in range(6):
        for j in range(i + 1):
            s = h[i, j]
            for k in range(j):
                s -= h[i, k] * h[j, k]
            if i == j:
                if not s > 1e-9 * h[i, i]:
                    return False
                h[i, i] = np.sqrt(s)
            else:
                h[i, j] = s / h[j, j]
    return True


@njit(**CHIP)
def growth(about: Any, h: Any, r: Any) -> Any:
    """Variances of dy and dx with six parameters (factor in `h`) per variance with two."""
    r[:] = 0.0
    r[0] = 1.0
    solve(h, r)
    y = r[0]
    r[:] = 0.0
    r[3] = 1.0
    solve(h, r)
    _, _, hyy, hyx, hxx, _, _, _, _ = about
    det = hyy * hxx - hyx * hyx
    return y * det / hxx, r[3] * det / hyy


@njit(**CHIP)
def icgn_affine(
    first: Any, second: Any, valid1: Any, valid2: Any, shape: Any, y0: Any, x0: Any, chip: Any, dy: Any, dx: Any,
    work: Any, h: Any, r: Any,
) -> Any:  # fmt: skip
    """Displacement and velocity gradient of one chip, from the translation: `(dy, dx, e, corr, about, growth)`.

    Arguments as of `icgn`; `h` (6, 6) and `r` (6) float64 for passing use. `about` is what `template` returns, `growth`
    by what the fitted strain multiplies the variances of dy and dx: much if the valid half of a chip is on one side of
    its centre; 0 if there is no solution.
    """
    start_y, start_x = dy, dx
    n = chip * (chip + PAD)
    if not fits(shape, y0, x0, chip, dy, dx, STILL):
        return dy, dx, STILL, 0.0, UNKNOWN, (0.0, 0.0)
    if valid1 is not None:
        weigh(valid1, valid2, shape[1], y0, x0, chip, dy, dx, STILL, work)
    about = template(first, shape[1], y0, x0, chip, work)
    times_offset(n, work, GY, about[7], X, GYX, about[0])
    times_offset(n, work, GY, about[7], Y, GYY, about[0])
    times_offset(n, work, GX, about[8], X, GXX, about[0])
    times_offset(n, work, GX, about[8], Y, GXY, about[0])
    for i in range(6):
        for j in range(i + 1):
            h[i, j] = dot(n, work, BASIS[i], BASIS[j])
    if not factorise(h):
        return dy, dx, STILL, 0.0, UNKNOWN, (0.0, 0.0)
    e = STILL
    for _ in range(ITERATIONS):
        if not warp(second, shape, y0, x0, chip, dy, dx, e, work):
            break
        sums = products(n, work)
        _, _, corr = step(about, sums)
        if not corr >= -1.001:
            break
        residual(chip, about, sums, np.float32(0), np.float32(0), STILL, STRAIGHT, work)
        for i in range(6):
            r[i] = dot(n, work, BASIS[i], A)
        solve(h, r)
        # W <- W P^-1, with W = 1 + e and P = 1 + the step.
        det = (1.0 + r[4]) * (1.0 + r[2]) - r[5] * r[1]
        ixx, ixy, iyx, iyy = (1.0 + r[2]) / det, -r[5] / det, -r[1] / det, (1.0 + r[4]) / det
        wxx, wxy, wyx, wyy = 1.0 + e[0], e[1], e[2], 1.0 + e[3]
        e = (
            np.float32(wxx * ixx + wxy * iyx - 1.0), np.float32(wxx * ixy + wxy * iyy),
            np.float32(wyx * ixx + wyy * iyx), np.float32(wyx * ixy + wyy * iyy - 1.0),
        )  # fmt: skip
        dy -= (1.0 + e[3]) * r[0] + e[2] * r[3]
        dx -= e[1] * r[0] + (1.0 + e[0]) * r[3]
        if not (abs(dy - start_y) <= MOVE and abs(dx - start_x) <= MOVE and max(stretch(chip, e)) <= STRETCH):
            break
        if r[0] * r[0] + r[3] * r[3] < TOLERANCE:
            return dy, dx, e, float(corr), about, growth(about, h, r)
    return start_y, start_x, STILL, 0.0, UNKNOWN, (0.0, 0.0)
