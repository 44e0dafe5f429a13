"""NCC with a vector for every pixel: whole rows are multiplied, and summed over the chips by doubling.

With a step of one pixel, neighbouring chips share all but a row or a column and blocks are single pixels. So there are
none: for one displacement the two images are multiplied, and the products summed down the columns and then along the
rows. A sum over 2 k or 2 k + 1 pixels is two sums over k and perhaps a pixel: a chip 31 px wide takes four steps each
way, which never leave the registers (`_simd`). No order depends on where a tile starts, so any tiling gives the same
bits.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ._geometry import Scene
from ._ncc_numba import CLEAN, U
from ._peaks import peaks
from ._simd import LANES, TURN, column_sums, lead, row_correlations
from .subpixel import JIT

_TILE_BYTES = 8_000_000
"""All correlations of a tile: the cache is still faster than the memory, and of a lower tile more is overlap."""
_TILE_POINTS = 176
"""Points along a row of a tile, about: beside a chip of 33 px a sixth of the products is overlap."""


def search_dense(first: Scene, second: Scene, kind: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Search the CLEAN points of a grid of step 1; (sizes, 8, ny, nx) as in `_search`, of no meaning elsewhere."""
    g = first.geometry
    sizes, ny, nx = kind.shape
    out = np.full((sizes, 8, ny, nx), np.nan, np.float32)
    for m, chip in enumerate(g.chips):
        before = lead(chip)
        # An odd number of vectors: rows a power of two apart would compete for the same lines of the cache.
        points = (-(-(before + min(_TILE_POINTS, nx)) // LANES) | 1) * LANES - before
        rows = int(np.clip(_TILE_BYTES // (4 * (2 * g.search + 1) ** 2 * points), 16, 64))
        rows += -(rows + chip - 1) % TURN
        # Tables begin at the first place that any chip may be searched at.
        tables = second.tables[m, :, 0, 0, g.first(chip) - g.origin :, g.first(chip) - g.origin :]
        _search(
            first.image, second.image, (g.first(chip), g.search, before), (0,) * chip, first.points(m, (ny, nx)),
            tables, kind[m] == CLEAN, (rows, points), out[m : m + 1],
        )  # fmt: skip
    return out


@njit(**JIT)
def _search(
    a: Any, b: Any, geometry: Any, chip: Any, points1: Any, tables2: Any, wanted: Any, tile: Any, out: Any
) -> Any:  # fmt: skip
    """Search the tiles that have a wanted point.

    Parameters
    ----------
    a, b : (h, w) float32
        Images 1 and 2.
    geometry : (int, int, int)
        First pixel of the first chip, search half-width [px], `lead` of the chip.
    chip : tuple
        As long as the chips are wide, a constant for the compiler.
    points1 : (2, ny, nx) float32
        `tables` of image 1 at the points.
    tables2 : (2, J, I) float32
        `tables` of image 2, from the first point at the first displacement on.
    wanted : (ny, nx) bool
    tile : (int, int)
        Rows of points, which with a chip less one are a multiple of TURN, and points along a row, a multiple of LANES.
    out : (1, 8, ny, nx) float32
    """
    start, radius, before = geometry
    rows, points = tile
    ny, nx = wanted.shape
    size, columns, reach = 2 * radius + 1, before + points, points + 2 * radius
    length, skip = columns + 2 * radius, before - (len(chip) - 1)
    deep, high = rows + len(chip) - 1, rows + 2 * radius
    one, two = np.empty(deep * columns, np.float32), np.empty((deep + 2 * radius) * length, np.float32)
    level1, level2 = np.empty(2 * rows * points, np.float32), np.empty(2 * high * reach, np.float32)
    work = np.zeros(int(np.log2(len(chip))) * LANES * (deep + len(chip)), np.float32)
    sums = np.zeros((TURN + rows) * columns, np.float32)
    c = np.empty(size * size * rows * points, np.float32)
    everywhere, origin = np.zeros((4, 0, 0), np.int32), (-float(radius), -float(radius))
    for y in range(0, ny, rows):
        for x in range(0, nx, points):
            here = wanted[y : y + rows, x : x + points]
            if not here.any():
                continue
            _cut(a, start + y, start + x, columns, skip, one)
            _cut(b, start - radius + y, start - radius + x, length, skip, two)
            for k in range(2):
                _cut(points1[k], y, x, points, 0, level1[k * rows * points : (k + 1) * rows * points])
                _cut(tables2[k], y, x, reach, 0, level2[k * high * reach : (k + 1) * high * reach])
            for d in range(size * size):
                dy, dx = d // size, d % size
                _sums(one, two, U(dy * length + dx), U(length), chip, U(deep), U(columns), work, sums)
                _surface(
                    sums, chip, U(columns), level1, level2, U(dy * reach + dx), U(reach), U(rows), U(points), c,
                    U(d * points), U(size * size * points),
                )  # fmt: skip
            found = out[:, :, y : y + rows, x : x + points]
            for row in range(here.shape[0]):
                peaks(c, U(row * size * size * points), size, points, False, everywhere, origin, found, 0, row)


@njit(**JIT)
def _cut(image: Any, y: Any, x: Any, columns: Any, skip: Any, out: Any) -> Any:
    """A part of an image, flat, from (y, x), in each row behind `skip` columns; 0 there and beyond the image."""
    out[:] = 0
    n = min(columns - skip, image.shape[1] - x)
    for row in range(min(out.size // columns, image.shape[0] - y)):
        to = row * columns + skip
        out[to : to + n] = image[y + row, x : x + n]


@njit(**JIT)
def _sums(
    one: Any, two: Any, shift: Any, length: Any, chip: Any, deep: Any, columns: Any, work: Any, sums: Any
) -> Any:  # fmt: skip
    """Products of a tile at one displacement, `shift` in image 2, summed down the chips, from row TURN of `sums` on."""
    for x in range(U(0), columns, U(LANES)):
        column_sums(
            one, x, columns, two, shift + x, length, deep // U(TURN), work, chip, sums, U(TURN) * columns + x, columns
        )


@njit(**JIT)
def _surface(
    sums: Any, chip: Any, columns: Any, level1: Any, level2: Any, shift: Any, reach: Any, rows: Any, points: Any,
    c: Any, to: Any, pitch: Any,
) -> Any:  # fmt: skip
    """Correlations of a tile at one displacement, `shift` in the tables of image 2, into c[to + row * pitch + x]."""
    gap1, gap2 = U(level1.size // 2), U(level2.size // 2)
    for y in range(rows):
        row_correlations(
            sums, (U(TURN) + y) * columns, chip, level1, y * points, gap1, level2, shift + y * reach, gap2, c,
            to + y * pitch, points // U(LANES),
        )  # fmt: skip
