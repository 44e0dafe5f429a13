"""Displacement fields between grids: from cells to pixels, from coarse pixels to fine ones.

Fields (2, h + 2, w + 2) hold dy and dx and carry a pixel more on each side (`RIM`), which repeats the outermost one.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .subpixel import JIT

F = np.float32
RIM = 1
ENOUGH = 3
"""Vectors whose median is taken for their neighbourhood."""


@njit(**JIT)
def rim(flow: Any) -> Any:
    """Repeat the outermost pixels."""
    flow[:, 0], flow[:, -1] = flow[:, 1], flow[:, -2]
    flow[:, :, 0], flow[:, :, -1] = flow[:, :, 1], flow[:, :, -2]


def inner(flow: NDArray[np.float32], margin: int) -> NDArray[np.float32]:
    """The field of a window that has so many pixels less on each side; beyond it stands what was there."""
    return np.ascontiguousarray(flow[:, margin : flow.shape[1] - margin, margin : flow.shape[2] - margin])


@njit(**JIT)
def doubled(flow: Any) -> Any:
    """The flow at half the pixel size: between its four nearest pixels, and twice as large."""
    _, h, w = flow.shape
    h, w = h - 2 * RIM, w - 2 * RIM
    out = np.empty((2, 2 * h + 2 * RIM, 2 * w + 2 * RIM), np.float32)
    far, near = F(0.25), F(0.75)
    for c in range(2):
        for y in range(2 * h):
            j = y // 2 + RIM
            k = j + 2 * (y % 2) - 1
            for x in range(2 * w):
                i = x // 2 + RIM
                m = i + 2 * (x % 2) - 1
                one = near * flow[c, j, i] + far * flow[c, j, m]
                two = near * flow[c, k, i] + far * flow[c, k, m]
                out[c, y + RIM, x + RIM] = F(2) * (near * one + far * two)
    rim(out)
    return out


@njit(**JIT)
def mended(cells: Any, reach: Any) -> Any:
    """Median of the vectors in 5 x 5 cells; where these are too few, the mean of those `reach` cells around; or 0."""
    _, ny, nx = cells.shape
    out, values = np.zeros(cells.shape, np.float32), np.empty((2, 25), np.float32)
    for i in range(ny):
        for j in range(nx):
            n = 0
            for k in range(max(i - 2, 0), min(i + 3, ny)):
                for m in range(max(j - 2, 0), min(j + 3, nx)):
                    if np.isfinite(cells[0, k, m]):
                        values[0, n], values[1, n] = cells[0, k, m], cells[1, k, m]
                        n += 1
            if n >= ENOUGH:
                for c in range(2):
                    out[c, i, j] = _middle(np.sort(values[c, :n]))
                continue
            n, one, two = 0, F(0), F(0)
            for k in range(max(i - reach, 0), min(i + reach + 1, ny)):
                for m in range(max(j - reach, 0), min(j + reach + 1, nx)):
                    if np.isfinite(cells[0, k, m]):
                        one += cells[0, k, m]
                        two += cells[1, k, m]
                        n += 1
            if n:
                out[0, i, j], out[1, i, j] = one / F(n), two / F(n)
    return out


@njit(**JIT)
def _middle(ordered: Any) -> Any:
    n = ordered.size
    return F(0.5) * (ordered[(n - 1) // 2] + ordered[n // 2])


@njit(**JIT)
def spread(cells: Any, first: Any, step: Any, pixel: Any, shape: Any) -> Any:
    """A field of pixels so large, in their own unit, between the cells; the first cell begins at fine pixel `first`."""
    _, ny, nx = cells.shape
    h, w = shape
    out = np.empty((2, h + 2 * RIM, w + 2 * RIM), np.float32)
    for y in range(h):
        # Twice the distance of the centres, so that it is a whole number whatever the window.
        i, v = divmod(pixel * (2 * y + 1) - 2 * first - step, 2 * step)
        i0, i1 = min(max(i, 0), ny - 1), min(max(i + 1, 0), ny - 1)
        fy = F(v) / F(2 * step)
        for x in range(w):
            j, u = divmod(pixel * (2 * x + 1) - 2 * first - step, 2 * step)
            j0, j1 = min(max(j, 0), nx - 1), min(max(j + 1, 0), nx - 1)
            fx = F(u) / F(2 * step)
            for c in range(2):
                one = cells[c, i0, j0] + fx * (cells[c, i0, j1] - cells[c, i0, j0])
                two = cells[c, i1, j0] + fx * (cells[c, i1, j1] - cells[c, i1, j0])
                out[c, y + RIM, x + RIM] = (one + fy * (two - one)) / F(pixel)
    rim(out)
    return out
