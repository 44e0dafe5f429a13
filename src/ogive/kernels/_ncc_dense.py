"""NCC with a vector for every pixel: whole rows are multiplied, and summed over the chips by doubling.

With a step of one pixel, neighbouring chips share all but a row or a column and blocks are single pixels. So there are
none: for one displacement the two images are multiplied, and the products summed down the columns and then along the
rows. A sum over 2 k or 2 k + 1 pixels is two sums over k and perhaps a pixel: a chip 31 px wide takes four steps each
way. No order depends on where a tile starts, so any tiling gives the same bits.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ._geometry import Scene
from ._ncc_numba import CLEAN, U, add, clean
from ._peaks import peaks
from .subpixel import JIT

_TILE_BYTES = 8_000_000
"""All correlations of a tile: the cache is still faster than the memory, and of a lower tile more is overlap."""
_TILE_POINTS = 160
"""Points along a row of a tile, about: beside a chip of 32 px a sixth of the products is overlap."""
_UNIT = 64
"""Rows of a tile are a multiple of this many pixels long, four registers: the loops have no remainder. An odd multiple,
since rows a power of two apart would compete for the same lines of the cache."""


def search_dense(first: Scene, second: Scene, kind: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Search the CLEAN points of a grid of step 1; (sizes, 8, ny, nx) as in `_search`, of no meaning elsewhere."""
    g = first.geometry
    sizes, ny, nx = kind.shape
    out = np.full((sizes, 8, ny, nx), np.nan, np.float32)
    for m, chip in enumerate(g.chips):
        columns = (-(-(chip - 1 + min(_TILE_POINTS, nx)) // _UNIT) | 1) * _UNIT
        rows = int(np.clip(_TILE_BYTES // (4 * (2 * g.search + 1) ** 2 * columns), 16, 64))
        # Tables begin at the first place that any chip may be searched at.
        tables = second.tables[m, :, 0, 0, g.first(chip) - g.origin :, g.first(chip) - g.origin :]
        _search(
            first.image, second.image, (g.first(chip), chip, g.search), first.points(m, (ny, nx)), tables,
            kind[m] == CLEAN, (rows, columns), out[m : m + 1],
        )  # fmt: skip
    return out


@njit(**JIT)
def _search(
    a: Any, b: Any, geometry: Any, points1: Any, tables2: Any, wanted: Any, tile: Any, out: Any
) -> Any:  # fmt: skip
    """Search the tiles that have a wanted point.

    Parameters
    ----------
    a, b : (h, w) float32
        Images 1 and 2.
    geometry : (int, int, int)
        First pixel of the first chip, width of the chips, search half-width [px].
    points1 : (2, ny, nx) float32
        `tables` of image 1 at the points.
    tables2 : (2, J, I) float32
        `tables` of image 2, from the first point at the first displacement on.
    wanted : (ny, nx) bool
    tile : (int, int)
        Rows of points, and pixels along a row.
    out : (1, 8, ny, nx) float32
    """
    start, chip, radius = geometry
    rows, columns = tile
    ny, nx = wanted.shape
    size, length = 2 * radius + 1, columns + 2 * radius
    deep, high = rows + chip - 1, rows + 2 * radius
    one, two = np.empty(deep * columns, np.float32), np.empty((deep + 2 * radius) * length, np.float32)
    level1, level2 = np.empty(2 * rows * columns, np.float32), np.empty(2 * high * length, np.float32)
    work = np.zeros(5 * (deep + 1) * columns, np.float32)
    c = np.empty(size * size * rows * columns, np.float32)
    everywhere, origin = np.zeros((4, 0, 0), np.int32), (-float(radius), -float(radius))
    for y in range(0, ny, rows):
        for x in range(0, nx, columns - chip + 1):
            here = wanted[y : y + rows, x : x + columns - chip + 1]
            if not here.any():
                continue
            _cut(a, start + y, start + x, columns, one)
            _cut(b, start - radius + y, start - radius + x, length, two)
            for k in range(2):
                _cut(points1[k], y, x, columns, level1[k * rows * columns : (k + 1) * rows * columns])
                _cut(tables2[k], y, x, length, level2[k * high * length : (k + 1) * high * length])
            for d in range(size * size):
                _surface(
                    one, two, U(d // size * length + d % size), U(length), level1, U(rows * columns), level2,
                    U(high * length), chip, U(rows), U(columns), work, c, U(d * columns), U(size * size * columns),
                )  # fmt: skip
            found = out[:, :, y : y + rows, x : x + columns - chip + 1]
            for row in range(here.shape[0]):
                peaks(c, U(row * size * size * columns), size, columns, False, everywhere, origin, found, 0, row)


@njit(**JIT)
def _cut(image: Any, y: Any, x: Any, columns: Any, out: Any) -> Any:
    """A part of an image, flat, from (y, x); 0 beyond the image."""
    out[:] = 0
    n = min(columns, image.shape[1] - x)
    for row in range(min(out.size // columns, image.shape[0] - y)):
        out[row * columns : row * columns + n] = image[y + row, x : x + n]


@njit(**JIT)
def _multiply(a: Any, at_a: Any, b: Any, at_b: Any, x: Any, to: Any, n: Any) -> Any:
    """x[to] = a[at_a] * b[at_b], n values."""
    for i in range(U(n)):
        x[to + i] = a[at_a + i] * b[at_b + i]


@njit(**JIT)
def _add_three(x: Any, one: Any, two: Any, three: Any, to: Any, n: Any) -> Any:
    """x[to] = x[one] + x[two] + x[three], n values."""
    for i in range(U(n)):
        x[to + i] = x[one + i] + x[two + i] + x[three + i]


@njit(**JIT)
def _sum(x: Any, at: Any, stride: Any, chip: Any, n: Any, to: Any, spare: Any) -> Any:
    """Sums of `chip` values that lie `stride` apart, from n places on; returns where in x they are, to or spare."""
    level = 0
    while chip >> (level + 1):
        level += 1
    here = at
    while level:
        half, level = chip >> level, level - 1
        width = chip >> level
        # As many as the wider sums to come look back on.
        count = n + U(chip - width) * stride
        if width % 2:
            _add_three(x, here, here + U(half) * stride, at + U(width - 1) * stride, to, count)
        else:
            add(x, here, here + U(half) * stride, to, count)
        here, to, spare = to, spare, to
    return here


@njit(**JIT)
def _surface(
    one: Any, two: Any, shift: Any, length: Any, level1: Any, gap1: Any, level2: Any, gap2: Any, chip: Any, rows: Any,
    columns: Any, work: Any, c: Any, to: Any, pitch: Any,
) -> Any:  # fmt: skip
    """Correlations of a tile at one displacement, `shift` in image 2 and its tables, into c[to + row * pitch + x]."""
    deep = rows + U(chip - 1)
    for y in range(deep):
        _multiply(one, y * columns, two, shift + y * length, work, y * columns, columns)
    # A row to spare: sums along the last one read beyond its end, where no point is.
    area, n = (deep + U(1)) * columns, rows * columns
    down = _sum(work, U(0), columns, chip, n, area, U(2) * area)
    along = _sum(work, down, U(1), chip, n, U(3) * area, U(4) * area)
    for y in range(rows):
        clean(
            work, along + y * columns, level1, y * columns, gap1, level2, shift + y * length, gap2, c, to + y * pitch,
            columns,
        )  # fmt: skip
