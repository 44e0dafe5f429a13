"""What the network of `flow_net` is shown: how well the images agree round a displacement field, in cells of 4 x 4 px.

All is summed over the usable pixels of a cell, in fixed order, and no figure of a tile enters: a value depends on
pixels at fixed distances only. The network itself adds nothing that is not linear in position, so it never learns where
in an image it is, nor how far the ice has moved: it sees what is left.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ._flow_field import RIM
from ._flow_judge import evidence
from ._flow_solver import _taps, sample
from .subpixel import JIT

CELL = 4
"""Width of a cell [px]."""
SHIFTS = 2
"""Image 2 is also compared up to so many pixels beside the field [px]."""
BOXES = (1, 3)
"""Steps of Gauss and Newton are taken over so many cells on each side."""
AROUND = 3
"""Of the field itself the network sees what differs from the mean of so many cells on each side."""
EVIDENCE = 8
"""Channels that are those of `_flow_judge.evidence`."""
SHARE = EVIDENCE + (2 * SHIFTS + 1) ** 2 - 1
"""The channel that says how many pixels of a cell are usable; before it come the shifts."""
CHANNELS = SHARE + 1 + 2 * len(BOXES) + 2
REACH = CELL * max(*BOXES, AROUND) + CELL + SHIFTS + 1
"""A cell of the volume depends on the field so far away [px]."""
F = np.float32


def volume(one: Any, two: Any, flow: NDArray[np.float32], limit: np.float32, fall: np.float32) -> NDArray[np.float32]:
    """The channels (CHANNELS, h / 4, w / 4) of two levels (h, w) at a field (2, h + 2, w + 2).

    In this order: correlations and squares ab, aa, bb, weighted squares of slopes yy, yx, xx, weighted slopes times
    residual y, x, all as in `_flow_judge.evidence`; correlations beside the field, row by row, without the middle one;
    share of usable pixels; steps of Gauss and Newton (y, x) over each of `BOXES`; the field less its mean (y, x).
    """
    planes = evidence(one.planes, one.rise, one.known, two.planes, two.seen, flow, limit, fall, 0)
    moved = _warped(two.planes, two.seen, flow, limit)
    h, w = (n // CELL for n in one.known.shape)
    out = np.zeros((CHANNELS, h, w), np.float32)
    _cells(planes, one.planes, one.known, moved, out)
    _newton(out)
    _relative(flow, out[-2:])
    return out


@njit(**JIT)
def _warped(planes: Any, seen: Any, flow: Any, limit: Any) -> Any:
    """The planes of image 2 where the field leads, and 1 where that is usable (planes + 1, h, w)."""
    n, h, w = planes.shape
    out = np.zeros((n + 1, h, w), np.float32)
    for y in range(h):
        for x in range(w):
            v, u = flow[0, y + RIM, x + RIM], flow[1, y + RIM, x + RIM]
            v, u = min(max(v, -limit), limit), min(max(u, -limit), limit)
            fy, fx = np.floor(v), np.floor(u)
            iy, ix = y + int(fy), x + int(fx)
            if 0 <= iy < h and 0 <= ix < w and seen[iy, ix]:
                ty, tx = _taps(v - fy), _taps(u - fx)
                for c in range(n):
                    out[c, y, x] = sample(planes[c], iy, ix, ty, tx)[0]
                out[n, y, x] = F(1)
    return out


@njit(**JIT)
def _cells(planes: Any, one: Any, known: Any, moved: Any, out: Any) -> Any:
    """Means over the usable pixels of each cell: evidence, correlations beside the field, share."""
    _, ny, nx = out.shape
    n, h, w = one.shape
    size = 2 * SHIFTS + 1
    middle, row = size * size // 2, np.empty(w, np.float32)
    for i in range(ny):
        for y in range(CELL * i, CELL * i + CELL):
            for x in range(w):
                row[x] = moved[n, y, x] if known[y, x] else F(0)
            _gather(row, out[SHARE, i])
            for c in range(EVIDENCE):
                _gather(planes[c, y], out[c, i])
            for s in range(size * size):
                v, u = y + s // size - SHIFTS, s % size - SHIFTS
                if s == middle or v < 0 or v >= h:
                    continue
                row[:] = F(0)
                for c in range(n):
                    for x in range(max(0, -u), min(w, w - u)):
                        row[x] += one[c, y, x] * moved[c, v, x + u]
                _gather(row, out[EVIDENCE + s - (1 if s > middle else 0), i])
        for j in range(nx):
            over = F(1) / max(out[SHARE, i, j], F(1))
            for c in range(SHARE):
                out[c, i, j] *= over
            out[SHARE, i, j] *= F(1 / CELL**2)


@njit(**JIT)
def _gather(row: Any, out: Any) -> Any:
    """Add four neighbours to each cell of a row."""
    for j in range(out.size):
        x = CELL * j
        out[j] += (row[x] + row[x + 1]) + (row[x + 2] + row[x + 3])


@njit(**JIT)
def _newton(out: Any) -> Any:
    """Displacements that minimise the linearised residual within boxes of cells, at most 1 px."""
    _, ny, nx = out.shape
    sums = np.zeros(5, np.float32)
    for k in range(len(BOXES)):
        reach = BOXES[k]
        for i in range(ny):
            for j in range(nx):
                sums[:] = F(0)
                # Without any texture: no step.
                sums[0] = sums[2] = F(0.05)
                for y in range(max(i - reach, 0), min(i + reach + 1, ny)):
                    for x in range(max(j - reach, 0), min(j + reach + 1, nx)):
                        for c in range(5):
                            sums[c] += out[SHARE, y, x] * out[3 + c, y, x]
                over = F(1) / (sums[0] * sums[2] - sums[1] * sums[1])
                v = (sums[1] * sums[4] - sums[2] * sums[3]) * over
                u = (sums[1] * sums[3] - sums[0] * sums[4]) * over
                at = SHARE + 1 + 2 * k
                out[at, i, j], out[at + 1, i, j] = min(max(v, F(-1)), F(1)), min(max(u, F(-1)), F(1))


@njit(**JIT)
def _relative(flow: Any, out: Any) -> Any:
    """The field at the cells, less its mean over the cells around."""
    _, ny, nx = out.shape
    cells = np.zeros(out.shape, np.float32)
    for c in range(2):
        for i in range(ny):
            for y in range(CELL * i, CELL * i + CELL):
                _gather(flow[c, y + RIM, RIM:], cells[c, i])
        for i in range(ny):
            for j in range(nx):
                total, n = F(0), 0
                for y in range(max(i - AROUND, 0), min(i + AROUND + 1, ny)):
                    for x in range(max(j - AROUND, 0), min(j + AROUND + 1, nx)):
                        total += cells[c, y, x]
                        n += 1
                out[c, i, j] = F(1 / CELL**2) * (cells[c, i, j] - total / F(n))
