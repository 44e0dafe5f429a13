"""The whole-pixel search on the CPU: one window for all points, a window round a prior of each point, or a stack.

Every function returns (sizes, 8, ny, nx) float32 for each chip size: dy, dx, corr, second peak, mean |r|, rim, refined,
share searched (`_ncc_numba.match`), with the quadric's sub-pixel peak.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _ncc_numba
from ._geometry import Geometry, Scene
from ._ncc_dense import search_dense
from ._ncc_fft import search_fft
from ._ncc_numba import EMPTY, MASKED
from ._simd import LANES

log = logging.getLogger("ogive")
_CACHE_BYTES = 8_000_000
"""Working set of one strip of points. Strips that fit the second-level cache are too narrow for a wide search: they
make the blocks at their edges twice."""
_TILE = (32, 64)
"""Points of a tile with a common window, before it is cut because its points want different ones."""
_SCATTERED = 0.15
"""Share of masked points beyond which all are searched together: tiles overlap. The bits are the same either way."""
EVERYWHERE = np.zeros((4, 0, 0), np.int32)
"""No limits of single points."""
Kinds = NDArray[np.uint8]


def strips(geometry: Geometry, radius: int, nx: int) -> Iterator[slice]:
    """Columns of points that are searched together."""
    per_point = 4 * (2 * radius + 1) ** 2 * (int(geometry.counts[-1]) * (geometry.step // geometry.block) + 1)
    wide = max(LANES, _CACHE_BYTES // per_point)
    for x in range(0, nx, wide):
        yield slice(x, min(nx, x + wide))


def pair_arguments(
    first: Scene, second: Scene, kind: Kinds, rows: slice, columns: slice, corner: tuple[int, int], radius: int
) -> Any:
    """What the compiled search wants to know of one pair: images, places, layout, tables, classes of a tile of points.

    `corner` is the first displacement (y, x) [px].
    """
    g = first.geometry
    y, x = (g.origin + s.start * g.step for s in (rows, columns))
    shape = (kind.shape[1], kind.shape[2])
    if (kind[:, rows, columns] == MASKED).any():
        height, width = ((s.stop - s.start - 1) * g.step + g.chips[-1] for s in (rows, columns))
        a = first.planes(y, x, height, width)
        b = second.planes(y + corner[0], x + corner[1], height + 2 * radius, width + 2 * radius)
        place = (0, 0, 0)
    else:
        a, b, pitch = first.plain, second.plain, first.plain.shape[3]
        place = (y * pitch + (x + first.before) // g.block, (y + corner[0]) * pitch, x + first.before + corner[1])
    points = np.stack([first.points(m, shape)[:, rows, columns] for m in range(len(g.chips))])
    # Tables begin at the first place that any point may search.
    tables = [(g.first(c) - g.origin + g.search + np.array(corner)) for c in g.chips]
    origins = np.array(tables) + g.step * np.array([rows.start, columns.start])
    layout = (*_strides(a), *_strides(b), a[0].size, b[0].size)
    return (
        a.reshape(-1), b.reshape(-1), place, layout, points, second.tables, origins,
        np.ascontiguousarray(kind[:, rows, columns]),
    )  # fmt: skip


def _strides(planes: NDArray[np.float32]) -> tuple[int, int]:
    """Distances between phases and between rows."""
    return planes.shape[2] * planes.shape[3], planes.shape[3]


def constants(geometry: Geometry, radius: int, nx: int) -> Any:
    """Geometry, block and displacements of one pass, as the compiled search wants them."""
    w = geometry.block
    stride = geometry.step // w
    columns = -(-((nx - 1) * stride + int(geometry.counts[-1])) // LANES) * LANES
    # A whole number of blocks near eight displacements: the sixteen then fit the registers.
    group = (0,) * (w * max(1, 8 // w))
    return (radius, geometry.step, stride, columns), (0,) * w, group


def search_tile(
    first: Scene, second: Scene, kind: Kinds, least: NDArray[np.float64], rows: slice, columns: slice,
    offset: tuple[int, int], radius: int, limits: NDArray[np.int32],
) -> NDArray[np.float32]:  # fmt: skip
    """Search a tile of points within `radius` of a common offset [px]."""
    corner = (offset[0] - radius, offset[1] - radius)
    a, b, place, layout, points, tables, origins, kinds = pair_arguments(
        first, second, kind, rows, columns, corner, radius
    )
    about, block, group = constants(first.geometry, radius, kinds.shape[2])
    out = np.empty((kinds.shape[0], 8, *kinds.shape[1:]), np.float32)
    _ncc_numba.match(
        a, b, place, layout, about, first.geometry.counts, points, tables, origins, kinds, least, limits,
        (float(corner[0]), float(corner[1])), block, group, (0,), out,
    )  # fmt: skip
    return out


def search_window(first: Scene, second: Scene, kind: Kinds, least: NDArray[np.float64]) -> NDArray[np.float32]:
    """Search all points within the geometry's search of no displacement, with the engine that suits the grid."""
    geometry = first.geometry
    engine, masked = engine_of(geometry), kind == MASKED
    if engine == "blocks" and masked.any(0).mean() > _SCATTERED:
        return _blocks(first, second, kind, least)
    clean = np.where(masked, np.uint8(EMPTY), kind)
    if engine == "blocks":
        found = _blocks(first, second, clean, least)
    else:
        found = (search_dense if engine == "dense" else search_fft)(first, second, clean)
    if masked.any():
        # The six sums of masked points are left to the blocks, in tiles, so that the other points cost nothing more.
        none = np.zeros((2, *kind.shape[1:]), np.int64)
        rest = search_centred(first, second, np.where(masked, kind, np.uint8(EMPTY)), least, none, geometry.search)
        np.copyto(found, rest, where=masked[:, None])
    return found


def engine_of(geometry: Geometry) -> str:
    """The engine that is the fastest for a geometry, by its parameters alone: "blocks", "dense" or "fft".

    The number of points plays no part, so that no tiling can change the engine, and with it the last bits. Times were
    measured on one core with AVX-512 (chips of 32 and 64 px, steps of 8 to 64 px, searches of 8 to 32 px); they hold
    within a third, and engines whose times are so close are equally good.
    """
    if geometry.step == 1:
        return "dense"
    chips, step, w = geometry.chips, geometry.step, geometry.block
    displacements = (2 * geometry.search + 1) ** 2
    # Nanoseconds for a point: tables of all pixels; products of those under a chip; sums of blocks, and peaks.
    blocks = 34.0 * step**2 * len(chips)
    blocks += displacements * (0.035 * step * min(step, chips[-1]) + 0.1 * step * chips[-1] / w**2 + len(chips))
    transforms = sum(16 * (chip + 2 * geometry.search) ** 2 for chip in chips)
    engine = "fft" if transforms < blocks else "blocks"
    log.debug(
        "chips %s, step %d, search %d: %s (about %.0f us a point by blocks, %.0f us by transforms)",
        chips, step, geometry.search, engine, blocks / 1000, transforms / 1000,
    )  # fmt: skip
    return engine


def _blocks(first: Scene, second: Scene, kind: Kinds, least: NDArray[np.float64]) -> NDArray[np.float32]:
    """Search all points by sums of blocks."""
    radius = first.geometry.search
    parts = [
        search_tile(first, second, kind, least, slice(0, kind.shape[1]), columns, (0, 0), radius, EVERYWHERE)
        for columns in strips(first.geometry, radius, kind.shape[2])
    ]
    return np.concatenate(parts, axis=3)


def search_stack(
    pairs: Sequence[tuple[Scene, Scene]], kinds: Sequence[Kinds], least: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Search the mean surface of several pairs."""
    geometry = pairs[0][0].geometry
    sizes, ny, nx = kinds[0].shape
    radius = geometry.search
    parts = []
    for columns in strips(geometry, radius, nx):
        arguments = [
            pair_arguments(*pair, kind, slice(0, ny), columns, (-radius, -radius), radius)
            for pair, kind in zip(pairs, kinds, strict=True)
        ]
        out = np.empty((sizes, 8, ny, columns.stop - columns.start), np.float32)
        about, block, group = constants(geometry, radius, out.shape[3])
        _ncc_numba.match_stack(
            arguments, about, geometry.counts, least, (-float(radius), -float(radius)), block, group, out
        )
        parts.append(out)
    return np.concatenate(parts, axis=3)


def search_centred(
    first: Scene, second: Scene, kind: Kinds, least: NDArray[np.float64], prior: NDArray[np.int64], limit: int
) -> NDArray[np.float32]:
    """Search each point within `limit` of its own prior (2, ny, nx) [whole px].

    Points are searched in tiles with a common window, which holds the windows of all of them; a tile whose points
    disagree is cut. What a point may not have is left out before the peak is looked for, so that its answer is that of
    its own window.
    """
    out = np.full((kind.shape[0], 8, *kind.shape[1:]), np.nan, np.float32)
    wanted = (kind != EMPTY).any(0)
    for rows, columns, offset, radius in _tiles(prior, wanted, limit, first.geometry.search):
        limits = EVERYWHERE
        if radius > limit:
            part = prior[:, rows, columns] - np.array(offset)[:, None, None] + radius
            # Points of no interest may lie far away: any window will do.
            part = np.clip(part, limit, 2 * radius - limit)
            limits = np.stack([part[0] - limit, part[0] + limit, part[1] - limit, part[1] + limit]).astype(np.int32)
        out[:, :, rows, columns] = search_tile(first, second, kind, least, rows, columns, offset, radius, limits)
    return out


def _tiles(
    prior: NDArray[np.int64], wanted: NDArray[np.bool_], limit: int, most: int
) -> Iterator[tuple[slice, slice, tuple[int, int], int]]:
    """Rows, columns, common offset and radius of tiles that cover all wanted points, none beyond `most` px."""
    ny, nx = wanted.shape
    todo = [
        (slice(y, min(ny, y + _TILE[0])), slice(x, min(nx, x + _TILE[1])))
        for y in range(0, ny, _TILE[0])
        for x in range(0, nx, _TILE[1])
    ]
    while todo:
        rows, columns = todo.pop()
        inside = wanted[rows, columns]
        if not inside.any():
            continue
        y, x = np.nonzero(inside)
        rows = slice(rows.start + int(y.min()), rows.start + int(y.max()) + 1)
        columns = slice(columns.start + int(x.min()), columns.start + int(x.max()) + 1)
        inside = wanted[rows, columns]
        values = prior[:, rows, columns][:, inside]
        low, high = values.min(1), values.max(1)
        offset = (low + high) // 2
        radius = int((high - offset).max()) + limit
        # The wider axis sets the radius; along the other the window must not leave what was read.
        offset = offset.clip(radius - most, most - radius)
        height, width = inside.shape
        # Twice the radius is four times the products; a tile of few columns wastes lanes.
        if radius > 2 * limit and max(height, width) > 4:
            if height >= width:
                middle = rows.start + height // 2
                todo += [(slice(rows.start, middle), columns), (slice(middle, rows.stop), columns)]
            else:
                middle = columns.start + width // 2
                todo += [(rows, slice(columns.start, middle)), (rows, slice(middle, columns.stop))]
            continue
        yield rows, columns, (int(offset[0]), int(offset[1])), radius
