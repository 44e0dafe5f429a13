"""What RAFT's update sees of the images: correlations of each cell's features with those round where the flow leads.

RAFT correlates every cell of image 1 with every position of image 2 and looks its pyramid up where the flow leads. What
is never looked up need not be computed: here a correlation is computed when it is looked up, so that memory does not
grow with the square of the window, and no tile has to be cut.
"""

from typing import Any

import numpy as np
from numba import njit

from .subpixel import JIT

CELL = 4
"""Width of a cell [px]; features have half of it."""
RADIUS = 3
"""Positions looked up on each side of the flow, at each level."""
SPACINGS = (2, 4, 8)
"""Their distance at each level [px]."""
SCALES = (0.05, 0.2, 0.2)
"""What their correlations are multiplied by."""
SEEN = len(SPACINGS) * (2 * RADIUS + 1) ** 2
"""Correlations of a cell."""
FARTHEST = SPACINGS[-1] * (RADIUS + 1) + CELL
"""A correlation depends on features so far from where the flow leads [px]."""
F = np.float32
NODES = 2 * RADIUS + 2
"""Positions correlated along y and x, between which is looked up."""


@njit(**JIT)
def pooled(features: Any) -> Any:
    """Means of 2 x 2: the features of cells."""
    channels, h, w = features.shape
    out = np.empty((channels, h // 2, w // 2), np.float32)
    for c in range(channels):
        for y in range(h // 2):
            for x in range(w // 2):
                one = features[c, 2 * y, 2 * x] + features[c, 2 * y, 2 * x + 1]
                two = features[c, 2 * y + 1, 2 * x] + features[c, 2 * y + 1, 2 * x + 1]
                out[c, y, x] = F(0.25) * (one + two)
    return out


@njit(**JIT)
def smoothed(features: Any) -> Any:
    """Binomial means (1, 2, 1) along y and x; beyond the array is zero."""
    channels, h, w = features.shape
    out = np.zeros(features.shape, np.float32)
    row = np.zeros(w + 2, np.float32)
    for c in range(channels):
        for y in range(h):
            for x in range(w):
                above = features[c, y - 1, x] if y > 0 else F(0)
                below = features[c, y + 1, x] if y < h - 1 else F(0)
                row[x + 1] = (above + below) + F(2) * features[c, y, x]
            for x in range(w):
                out[c, y, x] = F(1 / 16) * ((row[x] + row[x + 2]) + F(2) * row[x + 1])
    return out


@njit(**JIT)
def lookup(fine: Any, fine2: Any, cells: Any, cells2: Any, coarse2: Any, flow: Any, first: Any) -> Any:
    """Correlations (SEEN, ny, nx) of cells, at each level row by row.

    Parameters
    ----------
    fine, fine2 : (channels, 2 h, 2 w) float32
        Features of both images at half the width of a cell.
    cells, cells2, coarse2 : (channels, h, w) float32
        Those of cells, and the smoothed ones of image 2.
    flow : (2, ny, nx) float32
        Displacements of some cells [px].
    first : int
        The first of these, along y and x.
    """
    _, h, w = flow.shape
    size = (2 * RADIUS + 1) ** 2
    out, nodes = np.empty((SEEN, h, w), np.float32), np.empty((NODES, NODES), np.float32)
    for i in range(h):
        for j in range(w):
            k, m = first + i, first + j
            for level in range(len(SPACINGS)):
                # Of the displacement alone: the position in the window would round otherwise in another window.
                dy, dx = flow[0, i, j] / F(SPACINGS[level]), flow[1, i, j] / F(SPACINGS[level])
                fy, fx = np.floor(dy), np.floor(dx)
                v, u = int(fy) - RADIUS, int(fx) - RADIUS
                nodes[:] = F(0)
                if level == 0:
                    for y in range(2 * k, 2 * k + 2):
                        for x in range(2 * m, 2 * m + 2):
                            _correlate(fine, y, x, fine2, y + v, x + u, 1, nodes)
                elif level == 1:
                    _correlate(cells, k, m, cells2, k + v, m + u, 1, nodes)
                else:
                    _correlate(cells, k, m, coarse2, k + 2 * v, m + 2 * u, 2, nodes)
                _between(nodes, dy - fy, dx - fx, F(SCALES[level]), out[level * size : (level + 1) * size, i, j])
    return out


@njit(**JIT)
def _correlate(one: Any, y: Any, x: Any, two: Any, v: Any, u: Any, apart: Any, nodes: Any) -> Any:
    """Add the products of the features at (y, x) with those at the nodes, of which (v, u) is the first."""
    channels, h, w = two.shape
    last = apart * (NODES - 1)
    if apart == 1 and v >= 0 and u >= 0 and v + last < h and u + last < w:
        for c in range(channels):
            value = one[c, y, x]
            for a in range(NODES):
                for b in range(NODES):
                    nodes[a, b] += value * two[c, v + a, u + b]
        return
    for c in range(channels):
        value = one[c, y, x]
        for a in range(NODES):
            k = v + apart * a
            if 0 <= k < h:
                for b in range(NODES):
                    m = u + apart * b
                    if 0 <= m < w:
                        nodes[a, b] += value * two[c, k, m]


@njit(**JIT)
def _between(nodes: Any, fy: Any, fx: Any, scale: Any, out: Any) -> Any:
    """Linear between four nodes each, row by row."""
    for a in range(NODES - 1):
        for b in range(NODES - 1):
            one = nodes[a, b] + fx * (nodes[a, b + 1] - nodes[a, b])
            two = nodes[a + 1, b] + fx * (nodes[a + 1, b + 1] - nodes[a + 1, b])
            out[a * (NODES - 1) + b] = scale * (one + fy * (two - one))
