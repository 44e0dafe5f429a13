"""What a dense field is worth at each cell: correlation, data behind it, error, flags."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ._flow_field import RIM
from ._flow_solver import agreement
from .subpixel import JIT

WINDOW = 24
"""Width of the window in which a vector is judged [px]."""
PLANES = 8
"""Planes of `evidence`."""
BLOCK = 6
"""Width of the blocks whose sums of slope times residual are taken for independent [px]."""
SPREAD = 3.0
"""Error of a vector by that of its blocks' sums, from synthetic glaciers: the field has fitted part of what it errs by,
and what is wrong over more than a block no block shows. 3.0, 2.8 and 3.3 at the three levels of `flow_pairs`."""
INTERPOLATION = 0.01
"""Error of sampling image 2 between its pixels [px]."""
WIDEST = 64
"""Effective resolution beyond which a vector is smoothness alone [px]."""
F = np.float32
Planes = NDArray[np.float32]


@njit(**JIT)
def evidence(
    one: Any, rise: Any, known: Any, two: Any, seen: Any, flow: Any, limit: Any, fall: Any, spare: Any
) -> Any:  # fmt: skip
    """At every pixel but the outermost `spare`: products ab, aa, bb of the features; weighted squares yy, yx, xx of the
    slopes; weighted slopes times residual y, x."""
    h, w = known.shape
    out = np.zeros((PLANES, h, w), np.float32)
    for y in range(spare, h - spare):
        for x in range(spare, w - spare):
            v, u = flow[0, y + RIM, x + RIM], flow[1, y + RIM, x + RIM]
            v, u = min(max(v, -limit), limit), min(max(u, -limit), limit)
            there, products, rr, squares, slopes = agreement(one, rise, known, two, seen, y, x, v, u)
            if there:
                out[0, y, x], out[1, y, x], out[2, y, x] = products
                weight = F(1) / np.sqrt(F(1) + rr * fall)
                for c in range(3):
                    out[3 + c, y, x] = weight * squares[c]
                for c in range(2):
                    out[6 + c, y, x] = weight * slopes[c]
    return out


@njit(**JIT)
def windows(planes: Any, first: Any, step: Any, width: Any, block: Any, shape: Any) -> Any:
    """Sums over the windows of all cells, and of products of their blocks' sums of the last two planes (yy, yx, xx)."""
    ny, nx = shape
    out = np.zeros((PLANES + 3, ny, nx), np.float32)
    sums = np.zeros(PLANES, np.float32)
    for i in range(ny):
        for j in range(nx):
            for y in range(first + step * i, first + step * i + width, block):
                for x in range(first + step * j, first + step * j + width, block):
                    for c in range(PLANES):
                        total = F(0)
                        for v in range(y, min(y + block, first + step * i + width)):
                            for u in range(x, min(x + block, first + step * j + width)):
                                total += planes[c, v, u]
                        sums[c] = total
                        out[c, i, j] += total
                    out[PLANES, i, j] += sums[PLANES - 2] * sums[PLANES - 2]
                    out[PLANES + 1, i, j] += sums[PLANES - 2] * sums[PLANES - 1]
                    out[PLANES + 2, i, j] += sums[PLANES - 1] * sums[PLANES - 1]
    return out


class Shares:
    """Shares of True in squares of a mask."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
        self.table[1:, 1:] = mask.cumsum(0, np.int32).cumsum(1, np.int32)

    def __call__(self, y: NDArray[np.int64], x: NDArray[np.int64], width: int) -> Planes:
        """In squares of that width that begin at (y, x); both broadcast."""
        t, v, u = self.table, y + width, x + width
        return np.asarray((t[v, u] - t[y, u] - t[v, x] + t[y, x]) / F(width * width), np.float32)

    def beside(self, y: NDArray[np.int64], x: NDArray[np.int64], width: int) -> Planes:
        """The least of nine squares up to a pixel from there."""
        around = [self(y + j, x + i, width) for j in (-1, 0, 1) for i in (-1, 0, 1)]
        return np.asarray(np.min(around, axis=0), np.float32)


def centres(flow: Planes, first: int, step: int, shape: tuple[int, int]) -> Planes:
    """The field at the centres of the cells (2, ny, nx): a pixel, or the mean of the four round it."""
    y, x = (first + RIM + (step - 1) // 2 + step * np.arange(n) for n in shape)
    more = (step + 1) % 2
    rows = flow[:, y] + flow[:, y + more]
    return np.asarray(F(0.25) * (rows[:, :, x] + rows[:, :, x + more]), np.float32)


def with_errors(found: dict[str, Any], sigma: Planes, first: int, step: int) -> dict[str, Any]:
    """Vectors with the errors of a network, a field like the displacements, instead of the data's own."""
    for name, error in zip(("dy", "dx"), centres(sigma, first, step, found["dy"].shape)):
        found[f"{name}_error"] = np.where(np.isfinite(found[f"{name}_error"]), error, F(np.nan))
    return found


def resolution(sums: Planes, width: int, alpha: np.float32) -> Planes:
    """Effective resolution of vectors [px]: four times the smoothing length sqrt(alpha / j), within two of which lies
    72 % of what makes a vector; j is the data's hold on its weaker direction."""
    yy, yx, xx = (plane / F(width * width) for plane in sums[3:6])
    # The smaller eigenvalue as a quotient: the difference of two large numbers would be rounding.
    larger = F(0.5) * ((yy + xx) + np.sqrt((yy - xx) ** 2 + F(4) * yx * yx))
    weaker = (yy * xx - yx * yx) / np.where(larger > 0, larger, F(1))
    return np.asarray(F(4) * np.sqrt(alpha / np.maximum(weaker, F(1e-6))), np.float32)


def errors(sums: Planes) -> Planes:
    """1 sigma of dy and dx [px]: the sandwich H^-1 V H^-1 of slopes H and of the blocks' sums of slope times residual V
    (Liang & Zeger, 1986, doi:10.1093/biomet/73.1.13), times SPREAD; NaN where the data do not hold a vector."""
    yy, yx, xx = sums[3:6].astype(np.float64)
    vyy, vyx, vxx = sums[PLANES:].astype(np.float64)
    det = yy * xx - yx * yx
    iyy, iyx, ixx = np.array([xx, -yx, yy]) / np.where(det > 0, det, np.nan)
    variances = [a * a * vyy + 2 * a * b * vyx + b * b * vxx for a, b in ((iyy, iyx), (iyx, ixx))]
    return np.asarray(np.sqrt(SPREAD**2 * np.maximum(variances, 0) + INTERPOLATION**2), np.float32)
