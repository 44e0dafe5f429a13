"""Fusion: velocities of several sources as one, for one inversion over all their pairs.

Pairs are never averaged. They are put on one grid, their vectors turned into its directions, and stacked along
`mid_date` with a coordinate `source`; the inversion then weights each pair and scales the errors of each source.
"""

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import pyproj
import scipy.sparse
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from . import flags, grid, provenance
from .errors import ParameterError
from .export import map_at

_AXES = ("mid_date", "y", "x")
_BLOCK_BYTES = 64 * 2**20
"""One velocity component of a block."""
_CODES = tuple(f"{kind}_img{k}" for kind in ("mission", "satellite", "sensor") for k in (1, 2))
_IDS = ("image_id1", "image_id2")
_DATES = ("acquisition_date_img1", "acquisition_date_img2", "date_center")


def fuse(
    velocities: Sequence[xr.Dataset], *, names: Sequence[str] | None = None, like: xr.Dataset | GeoBox | None = None
) -> xr.Dataset:
    """Several velocities as one on one grid, lazily.

    On another grid a cell takes the mean of the source's cells in it where these are smaller, else the nearest one;
    errors stay those of one source vector, because neighbouring cells share their image chips. In another coordinate
    system vectors are turned and scaled by the Jacobian of the projection at each cell: grid north differs, and so does
    the length of a metre on the map.

    Parameters
    ----------
    velocities : sequence of xr.Dataset
        With `vx_error`, `vy_error` on mid_date or on (mid_date, y, x).
    names : sequence of str, optional
        The sources. Default: the coordinate `source` of each, "ogive" where it has none.
    like : xr.Dataset or GeoBox, optional
        The grid of the result; default that of the first.

    Returns
    -------
    xr.Dataset
        velocity with `vx`, `vy`, `v`, `flag`, errors, dates, codes, image ids, `source`; `pair_id` is counted anew.
        Cells that a source does not cover are NaN with flag OUTSIDE.

    Raises
    ------
    ParameterError
        No velocity, a series, no errors, or names that do not match.

    Notes
    -----
    Same grid: the values of the input, bit by bit.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> own, _ = velocity_cube("100")
    >>> both = fuse([own, own.isel(mid_date=slice(20))], names=["ogive", "ITS_LIVE"])
    >>> dict(both.sizes), np.unique(both["source"]).tolist()
    ({'mid_date': 120, 'y': 12, 'x': 12}, ['ITS_LIVE', 'ogive'])
    """
    velocities = list(velocities)
    if not velocities or (names is not None and len(names) != len(velocities)):
        rule = "needs at least one velocity, and as many names as velocities"
        raise ParameterError("velocities", rule=rule, value=(len(velocities), names))
    for k, velocity in enumerate(velocities):
        missing = [n for n in ("vx", "vy", "vx_error", "vy_error", *_DATES[:2]) if n not in velocity.variables]
        if missing or "mid_date" not in velocity.dims:
            fix = "pass what open_velocity gives; a series cannot be fused"
            raise ParameterError(f"velocities[{k}]", rule=f"is no velocity with errors: it lacks {missing}", fix=fix)
    box = like if isinstance(like, GeoBox) else grid.geobox_of(velocities[0] if like is None else like)
    total = sum(v.sizes["mid_date"] for v in velocities)
    chunks = _chunks(velocities[0], box, total)
    spread = any(v[f"{c}_error"].ndim == 3 for v in velocities for c in ("vx", "vy"))
    parts = []
    for k, velocity in enumerate(velocities):
        placed = _placed(velocity, box, chunks, spread)
        given = velocity["source"].values if "source" in velocity.coords else np.array("ogive")
        source = np.array(names[k]) if names is not None else given
        source = np.broadcast_to(source.astype(object), velocity.sizes["mid_date"])
        placed = placed.assign_coords(source=("mid_date", source.copy()))
        parts.append(placed)
    # By position: the labels of mid_date are neither unique nor sorted.
    out = xr.concat(parts, "mid_date", data_vars="all", coords="all", compat="override", join="override")
    out = out.assign({n: v.chunk({"mid_date": -1}) for n, v in out.variables.items() if v.chunks is not None})
    out = out.assign_coords(grid.coordinates(box) | {"mapping": grid.mapping(box)})
    out["pair_id"] = ("mid_date", np.arange(total))
    out = out.set_coords("pair_id")
    out.attrs = {
        "Conventions": "CF-1.11",
        "title": "Glacier surface velocity of image pairs, several sources",
        "kind": "velocity",
        "schema_version": grid.SCHEMA_VERSION,
        "year_length_days": grid.YEAR_DAYS,
    }
    origins = [provenance.read(v) for v in velocities]
    return provenance.record(out, "fuse", names=None if names is None else list(names), sources=origins)


def regrid(velocity: xr.Dataset, like: xr.Dataset | GeoBox, *, when: int | None = None) -> xr.Dataset:
    """One map of a velocity or series on the grid of another, in memory: to subtract one from the other.

    Cells and directions as in `fuse`: means of smaller cells or the nearest larger one, vectors turned into the
    directions of the other projection.

    Parameters
    ----------
    velocity : xr.Dataset
        velocity, series or single map.
    like : xr.Dataset or GeoBox
        The other grid.
    when : int, optional
        Position in time; None: components are medians over time.

    Returns
    -------
    xr.Dataset
        `vx`, `vy`, `v` (y, x) [meter/year]; NaN where the grids do not meet.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> own, _ = velocity_cube("100")
    >>> dict(regrid(own, grid.coarsen(grid.geobox_of(own), 2), when=0).sizes)
    {'y': 6, 'x': 6}
    """
    maps = map_at(velocity, ["vx", "vy", "v"], when=when)
    own, box = grid.geobox_of(maps), like if isinstance(like, GeoBox) else grid.geobox_of(like)
    if own == box:
        return maps
    weights, (height, width) = Weights(own, box), map(int, box.shape)
    placed = {c: weights.apply(_lazy(maps[c].expand_dims("mid_date")), ((height,), (width,))) for c in ("vx", "vy")}
    if own.crs != box.crs:
        nothing = {c: xr.Variable("mid_date", np.zeros(1)) for c in placed}
        placed, _ = _turned(placed, nothing, own, box)
    place = {**grid.coordinates(box), "mapping": grid.mapping(box)}
    out = xr.Dataset({c: m.transpose(*_AXES)[0].astype(np.float32) for c, m in placed.items()}, place).compute()
    return out.assign(v=np.hypot(out["vx"], out["vy"]))


def _chunks(first: xr.Dataset, box: GeoBox, pairs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Spatial chunks of the result: those of the first source, unless all pairs of one take too much memory."""
    sizes = {d: n[0] for d, n in first["vx"].chunksizes.items()} or {"y": 64, "x": 64}
    side = max(1, int((_BLOCK_BYTES / (4 * max(pairs, 1))) ** 0.5))
    steps = tuple(min(sizes[d], side) for d in ("y", "x"))
    y, x = da.core.normalize_chunks(steps, tuple(map(int, box.shape)))
    return y, x


def _placed(velocity: xr.Dataset, box: GeoBox, chunks: tuple[Any, Any], spread: bool) -> xr.Dataset:
    """One source on the grid, with the variables of the result."""
    whole = {"mid_date": -1}
    own = grid.geobox_of(velocity)
    count = velocity.sizes["mid_date"]
    maps = {c: _lazy(velocity[c]).chunk(whole) for c in ("vx", "vy")}
    flag = _lazy(velocity["flag"]).chunk(whole) if "flag" in velocity else None
    errors = {c: velocity[f"{c}_error"].variable for c in ("vx", "vy")}
    if own != box:
        weights = Weights(own, box)
        maps = {c: weights.apply(m, chunks) for c, m in maps.items()}
        covered = weights.covered
        errors = {c: weights.apply(_lazy(velocity[f"{c}_error"]).chunk(whole), chunks) if e.ndim == 3 else e
                  for c, e in errors.items()}  # fmt: skip
        flag = None
        if own.crs != box.crs:
            maps, errors = _turned(maps, errors, own, box)
    else:
        covered = np.ones(tuple(box.shape), np.bool_)
    here = dict(zip(("y", "x"), chunks))
    maps = {c: m.transpose(*_AXES).chunk({"mid_date": -1, **here}) for c, m in maps.items()}
    if flag is None:
        gone = maps["vx"].isnull() | maps["vy"].isnull()
        reason = xr.Variable(("y", "x"), np.where(covered, flags.NO_DATA, flags.OUTSIDE).astype(np.uint16)).chunk(here)
        flag = (gone * reason).transpose(*_AXES)
    if spread:
        wide = xr.Variable(_AXES, da.zeros((count, *box.shape), np.float32, chunks=(count, *chunks)))
        errors = {c: (wide + e).transpose(*_AXES).chunk({"mid_date": -1, **here}) for c, e in errors.items()}
    one, two = (velocity[n].values.astype("M8[ns]") for n in _DATES[:2])
    centre = velocity["date_center"].values if "date_center" in velocity.variables else one + (two - one) // 2
    rate = {"units": "meter/year", "grid_mapping": "mapping"}
    speed = (maps["vx"] ** 2 + maps["vy"] ** 2) ** 0.5
    per_pair = {
        "mid_date": velocity["mid_date"].values if "mid_date" in velocity.coords else centre,
        **dict(zip(_DATES, (one, two, centre))),
        "date_dt": ((two - one) / np.timedelta64(1, "D")).astype(np.float32),
        **{n: _codes(velocity, n, count) for n in _CODES},
    }
    return xr.Dataset(
        {
            **{n: m.astype(np.float32) for n, m in {**maps, "v": speed}.items()},
            "flag": flag.transpose(*_AXES).chunk({"mid_date": -1, **here}),
            **{f"{c}_error": e.astype(np.float32) for c, e in errors.items()},
            **{n: ("mid_date", _ids(velocity, n, count)) for n in _IDS},
        },
        {n: ("mid_date", v) for n, v in per_pair.items()},
    ).map(lambda v: v if v.dtype == object else v.assign_attrs(flags.attributes() if v.name == "flag" else rate))


def _lazy(array: xr.DataArray | xr.Variable) -> xr.Variable:
    variable = array.variable if isinstance(array, xr.DataArray) else array
    return variable if variable.chunks is not None else variable.chunk()


def _codes(velocity: xr.Dataset, name: str, count: int) -> NDArray[Any]:
    given = velocity[name].values if name in velocity.variables else np.full(count, "")
    return given.astype(object).astype(str).astype(object)


def _ids(velocity: xr.Dataset, name: str, count: int) -> da.Array:
    """Image ids, lazy, because those of large cubes take long to read."""
    given = velocity[name].data if name in velocity.variables else np.full(count, "", object)
    ids: da.Array = da.asarray(given, chunks=(count,)).astype(object).rechunk(-1)
    return ids


def _turned(
    maps: dict[str, xr.Variable], errors: dict[str, xr.Variable], own: GeoBox, box: GeoBox
) -> tuple[dict[str, xr.Variable], dict[str, xr.Variable]]:
    """Vectors and errors in the directions of another projection."""
    turn = jacobian(own, box)
    (a, b), (c, d) = (tuple(xr.Variable(("y", "x"), part) for part in row) for row in turn)
    vx, vy = maps["vx"], maps["vy"]
    if errors["vx"].ndim == 1:
        # One number for a pair: turned as at the middle of the grid.
        middle = turn[:, :, box.shape.y // 2, box.shape.x // 2]
        (a2, b2), (c2, d2) = middle**2
    else:
        a2, b2, c2, d2 = a**2, b**2, c**2, d**2
    ex, ey = errors["vx"] ** 2, errors["vy"] ** 2
    return (
        {"vx": a * vx + b * vy, "vy": c * vx + d * vy},
        {"vx": (a2 * ex + b2 * ey) ** 0.5, "vy": (c2 * ex + d2 * ey) ** 0.5},
    )


def jacobian(own: GeoBox, box: GeoBox) -> NDArray[np.float32]:
    """How a displacement on the map of `own` looks on the map of `box`: (2, 2, y, x), at the cells of `box`.

    Examples
    --------
    >>> from affine import Affine
    >>> utm = GeoBox((2, 2), Affine(100, 0, 500000, 0, -100, 7000000), "EPSG:32606")
    >>> polar = GeoBox((1, 1), Affine(120, 0, -3.11e6, 0, -120, 6.6e5), "EPSG:3413")
    >>> turn = jacobian(utm, polar)[:, :, 0, 0]
    >>> float(np.degrees(np.arctan2(turn[1, 0], turn[0, 0])).round(1))
    -102.0
    """
    x, y = _centres(box)
    back = pyproj.Transformer.from_crs(str(box.crs), str(own.crs), always_xy=True)
    forth = pyproj.Transformer.from_crs(str(own.crs), str(box.crs), always_xy=True)
    u, v = back.transform(x, y)
    step = abs(own.affine.a) / 2
    columns = []
    for du, dv in ((step, 0.0), (0.0, step)):
        ahead, behind = forth.transform(u + du, v + dv), forth.transform(u - du, v - dv)
        columns.append([(p - q) / (2 * step) for p, q in zip(ahead, behind)])
    turn: NDArray[np.float32] = np.array(columns).transpose(1, 0, 2, 3).astype(np.float32)
    return turn


def _centres(box: GeoBox) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of all cell centres, (y, x) each."""
    axes = grid.coordinates(box)
    x, y = np.meshgrid(axes["x"].values, axes["y"].values)
    return x, y


def _cells(box: GeoBox, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of the cells that hold these places, also beyond the grid."""
    a = box.affine
    row, column = ((y - a.f) / a.e, (x - a.c) / a.a)
    return np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)


class Weights:
    """Which cells of one grid make a cell of another.

    Parameters
    ----------
    own, box : GeoBox
        From, to.

    Examples
    --------
    >>> from affine import Affine
    >>> fine = GeoBox((4, 4), Affine(50, 0, 0, 0, -50, 200), "EPSG:32632")
    >>> coarse = GeoBox((2, 2), Affine(100, 0, 0, 0, -100, 200), "EPSG:32632")
    >>> weights = Weights(fine, coarse)
    >>> weights.target.tolist()[:5], weights.covered.all().item()
    ([0, 0, 1, 1, 0], True)
    """

    def __init__(self, own: GeoBox, box: GeoBox) -> None:
        self.shape, self.size = tuple(map(int, box.shape)), tuple(map(int, own.shape))
        turn = pyproj.Transformer.from_crs(str(own.crs), str(box.crs), always_xy=True)
        if abs(own.affine.determinant) < 0.75 * abs(box.affine.determinant):
            x, y = turn.transform(*_centres(own))
            row, column = _cells(box, x, y)
            inside = (row >= 0) & (row < self.shape[0]) & (column >= 0) & (column < self.shape[1])
            self.source = np.flatnonzero(inside)
            self.target = (row * self.shape[1] + column)[inside]
        else:
            x, y = turn.transform(*_centres(box), direction="INVERSE")
            row, column = _cells(own, x, y)
            inside = (row >= 0) & (row < self.size[0]) & (column >= 0) & (column < self.size[1])
            self.source = (row * self.size[1] + column)[inside]
            self.target = np.flatnonzero(inside)
        self.covered = np.zeros(self.shape, bool)
        self.covered.flat[self.target] = True

    def apply(self, maps: xr.Variable, chunks: tuple[tuple[int, ...], tuple[int, ...]]) -> xr.Variable:
        """Maps (pairs, y, x) on the other grid: means of what is there, NaN where nothing is."""
        source = maps.transpose(*_AXES).data
        edges = [np.cumsum((0, *c)) for c in source.chunks[1:]]
        ends = [np.cumsum((0, *c)) for c in chunks]
        rows, columns = np.divmod(self.target, self.shape[1])
        tile = np.searchsorted(ends[0], rows, "right") - 1
        tile = tile * len(chunks[1]) + np.searchsorted(ends[1], columns, "right") - 1
        # Stable: a mean adds its cells in the same order whatever the tiles.
        order = np.argsort(tile, kind="stable")
        bounds = np.searchsorted(tile[order], np.arange(len(chunks[0]) * len(chunks[1]) + 1))
        name = f"placed-{tokenize(source.name, self.source, self.target, chunks)}"
        layer: dict[Any, Any] = {}
        for i, height in enumerate(chunks[0]):
            for j, width in enumerate(chunks[1]):
                k = i * len(chunks[1]) + j
                pick = order[bounds[k] : bounds[k + 1]]
                target = (rows[pick] - ends[0][i]) * width + columns[pick] - ends[1][j]
                layer[name, 0, i, j] = self._task(source, edges, pick, (target, (height, width)))
        graph = HighLevelGraph.from_collections(name, layer, dependencies=[source])
        meta = np.empty((0, 0, 0), np.float32)
        return xr.Variable(_AXES, da.Array(graph, name, (source.chunks[0], *chunks), meta=meta))

    def _task(self, source: da.Array, edges: list[Any], pick: Any, tile: tuple[Any, tuple[int, int]]) -> Any:
        """The task of one tile: the blocks it needs, and which of their cells go where."""
        target, shape = tile
        if not pick.size:
            return (_nothing, source.shape[0], shape)
        at = np.divmod(self.source[pick], self.size[1])
        spans = [(int(np.searchsorted(e, p.min(), "right")) - 1, int(np.searchsorted(e, p.max(), "right")))
                 for e, p in zip(edges, at)]  # fmt: skip
        (top, bottom), (left, right) = spans
        keys = [[(source.name, 0, r, c) for c in range(left, right)] for r in range(top, bottom)]
        width = int(edges[1][right] - edges[1][left])
        local = (at[0] - edges[0][top]) * width + at[1] - edges[1][left]
        return (_gathered, keys, local, target, shape)


def _nothing(pairs: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.full((pairs, *shape), np.nan, np.float32)


def _gathered(blocks: Any, source: Any, target: Any, shape: tuple[int, int]) -> NDArray[np.float32]:
    """One tile from the blocks that it needs."""
    # Only the cells that are used: a window of large blocks may hold many others.
    values = np.block(blocks).reshape(len(blocks[0][0]), -1)[:, source].T
    cells = shape[0] * shape[1]
    if len(np.unique(target)) == len(target):
        out = np.full((cells, values.shape[1]), np.nan, np.float32)
        out[target] = values
    else:
        matrix = scipy.sparse.csr_array((np.ones(len(target)), (target, np.arange(len(target)))), (cells, len(target)))
        good = np.isfinite(values)
        count = matrix @ good.astype(np.float64)
        total = matrix @ np.where(good, values, 0).astype(np.float64)
        out = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
    return np.ascontiguousarray(out.T).reshape(-1, *shape)
