"""Flow lines through the mean field, and what a store holds along a line through time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import shapely
import xarray as xr
from numba import njit
from numpy.typing import NDArray

from . import flags, grid
from .errors import ParameterError
from .export import locate, map_at, time_dimension

Float = NDArray[np.float64]


def flowline(
    velocity: xr.Dataset, x: float, y: float, *, when: int | None = None, upstream: float | None = None,
    downstream: float | None = None, step: float | None = None, slowest: float = 1.0,
) -> pd.DataFrame:  # fmt: skip
    """The flow line through a place, traced up and down through one map or the median over time.

    Fourth-order Runge-Kutta along the direction of the velocity, with components interpolated bilinearly between the
    centres of valid cells. A line ends at the rim of what is valid, where the ice is slower than `slowest`, or after
    the given way.

    Parameters
    ----------
    velocity : xr.Dataset
        velocity, series or single map; for large stores take their `overview`.
    x, y : float
        Map coordinates [m].
    when : int, optional
        Position in time; None: components are medians over time.
    upstream, downstream : float, optional
        Longest way in each direction [m]; default twice the diagonal of the grid.
    step : float, optional
        Distance between points [m]; default half a cell.
    slowest : float
        Speed below which there is no direction to follow [meter/year].

    Returns
    -------
    DataFrame
        From the highest to the lowest point: `distance` [m] along the line, 0 at the place, negative upstream; `x`,
        `y` [m]; `vx`, `vy`, `v` [meter/year].

    Raises
    ------
    ParameterError
        The place is off the grid, has no velocity or ice that is too slow; a step or way that is not positive.

    Examples
    --------
    >>> from affine import Affine
    >>> from odc.geo.geobox import GeoBox
    >>> box = GeoBox((20, 30), Affine(100, 0, 5e5, 0, -100, 5e6), "EPSG:32632")
    >>> field = xr.DataArray(np.full((20, 30), 40.0), dims=("y", "x"))
    >>> east = xr.Dataset({"vx": field, "vy": 0 * field}, {**grid.coordinates(box), "mapping": grid.mapping(box)})
    >>> line = flowline(east, 501020, 4999000, downstream=500)
    >>> line["distance"].iloc[[0, -1]].tolist(), line[["x", "y"]].iloc[-1].tolist()
    ([-950.0, 500.0], [501520.0, 4999000.0])
    """
    maps = map_at(velocity, ["vx", "vy"], when=when)
    geobox = grid.geobox_of(maps)
    a = geobox.affine
    longest = 2 * float(np.hypot(geobox.shape.y * a.e, geobox.shape.x * a.a))
    step = min(abs(a.a), abs(a.e)) / 2 if step is None else step
    ways = [longest if way is None else way for way in (upstream, downstream)]
    if step <= 0 or min(ways) < 0:
        raise ParameterError("step, upstream and downstream", rule="must be positive", value=(step, *ways))
    locate(maps, {"the start": (x, y)})
    # A click on a centre is one, whatever the rounding: its neighbours, which may be missing, have no part in it.
    column, row = (round(float(place) - 0.5, 6) for place in ~a @ (x, y))
    # Rows grow southwards: the components in cells for each metre on the map.
    vx, vy = (maps[c].values.astype(np.float64) for c in ("vx", "vy"))
    field = np.stack([vy / a.e, vx / a.a, vx, vy])
    sides = [
        _trace(field, row, column, sign * step, slowest, int(way / step + 1e-9) + 1)
        for sign, way in zip((-1.0, 1.0), ways)
    ]
    if not len(sides[1]):
        fix = "click on valid ice, or lower slowest"
        raise ParameterError(
            "x, y", rule=f"must lie where ice flows faster than {slowest:g} m/yr", value=(x, y), fix=fix
        )
    points = np.concatenate([sides[0][:0:-1], sides[1]])
    distance = step * np.arange(1 - len(sides[0]), len(sides[1]))
    x_line, y_line = a.c + a.a * (points[:, 1] + 0.5), a.f + a.e * (points[:, 0] + 0.5)
    vx, vy = (sample_bilinear(values, points[:, 0], points[:, 1]) for values in (vx, vy))
    return pd.DataFrame({"distance": distance, "x": x_line, "y": y_line, "vx": vx, "vy": vy, "v": np.hypot(vx, vy)})


@njit(error_model="numpy", boundscheck=False, nogil=True, cache=True)
def _trace(field: Float, row: float, column: float, step: float, slowest: float, count: int) -> Float:
    """Points (n, 2) of a line in rows and columns, the first one included; a negative step goes upstream."""
    out = np.empty((count, 2))
    here, slope = np.array([row, column]), np.zeros((4, 2))
    reach = np.array([0.0, 0.5, 0.5, 1.0])
    for n in range(count):
        for k in range(4):
            ahead = here + reach[k] * step * slope[k - 1]
            if not _direction(field, ahead, slowest, slope[k]):
                # The place itself is valid, the way on is not.
                if k > 0:
                    out[n] = here
                return out[: n + (k > 0)]
        out[n] = here
        here = here + step * (slope[0] + 2 * slope[1] + 2 * slope[2] + slope[3]) / 6
    return out


@njit(error_model="numpy", boundscheck=False, nogil=True, cache=True)
def _direction(field: Float, at: Float, slowest: float, out: Float) -> bool:
    """Rows and columns for each metre of way, into `out`; False where there is no direction."""
    height, width = field.shape[1:]
    if not (0 <= at[0] <= height - 1 and 0 <= at[1] <= width - 1):
        return False
    top, left = min(int(at[0]), height - 2), min(int(at[1]), width - 2)
    down, right = at[0] - top, at[1] - left
    total = np.zeros(4)
    for i in range(2):
        for j in range(2):
            weight = (down if i else 1 - down) * (right if j else 1 - right)
            if weight > 0:
                total += weight * field[:, top + i, left + j]
    speed = np.hypot(total[2], total[3])
    if not speed >= slowest or speed == 0:
        return False
    out[:] = total[:2] / speed
    return True


def sample_bilinear(values: NDArray[Any], row: NDArray[Any], column: NDArray[Any]) -> Float:
    """Values between pixel centres; NaN outside and where a pixel that contributes is NaN.

    Parameters
    ----------
    values : array (y, x)
    row, column : float array (n,)
        Positions in pixel centres: 0 = centre of the first pixel.

    Examples
    --------
    >>> sample_bilinear(np.array([[0.0, 2.0], [np.nan, 4.0]]), np.array([0.0, 0.5]), np.array([0.5, 1.0])).tolist()
    [1.0, 3.0]
    """
    height, width = values.shape
    inside = (row >= 0) & (row <= height - 1) & (column >= 0) & (column <= width - 1)
    r, c = np.where(inside, row, 0.0), np.where(inside, column, 0.0)
    r0, c0 = np.floor(r).astype(int), np.floor(c).astype(int)
    total = np.zeros(r.shape)
    for dr in (0, 1):
        for dc in (0, 1):
            weight = np.abs(1 - dr - (r - r0)) * np.abs(1 - dc - (c - c0))
            pixel = values[np.minimum(r0 + dr, height - 1), np.minimum(c0 + dc, width - 1)]
            # A neighbour with weight 0 must not make the sum NaN.
            total += np.where(weight > 0, weight * pixel, 0.0)
    return np.where(inside, total, np.nan)


def along(
    velocity: xr.Dataset, line: shapely.LineString | Sequence[tuple[float, float]] | pd.DataFrame, *,
    spacing: float | None = None,
) -> xr.Dataset:  # fmt: skip
    """A velocity or series along a line through time: the values of the cells that the line crosses, none in between.

    Parameters
    ----------
    velocity : xr.Dataset
        With `vx`, `vy` along (mid_date or time, y, x); lazy ones are read where the line is.
    line : LineString, sequence of (x, y) or DataFrame
        In the coordinate system of the grid [m]; of a table of `flowline` the distances are kept.
    spacing : float, optional
        Distance between samples [m]; default one cell.

    Returns
    -------
    xr.Dataset
        dims (time or mid_date, distance), in memory: `vx`, `vy`, `v` [meter/year], `v_error` where the source has it,
        NaN where the flag says invalid; `flag`; `x`, `y` of the samples.

    Raises
    ------
    ParameterError
        A line without length or one that leaves the grid, a spacing that is not positive, no time.

    Examples
    --------
    >>> from ogive.testing.velocity_cubes import velocity_cube
    >>> velocity, _ = velocity_cube("100")
    >>> x, y = velocity["x"].values, velocity["y"].values
    >>> dict(along(velocity, [(x[0], y[0]), (x[5], y[0])]).sizes)
    {'mid_date': 100, 'distance': 6}
    """
    time, geobox = time_dimension(velocity), grid.geobox_of(velocity)
    if time is None:
        raise ParameterError("velocity", rule="must have a time dimension", fix="use view.speed_profile for one map")
    start = float(line["distance"].iloc[0]) if isinstance(line, pd.DataFrame) else 0.0
    places = line[["x", "y"]].to_numpy() if isinstance(line, pd.DataFrame) else line
    curve = places if isinstance(places, shapely.LineString) else shapely.LineString(places)
    spacing = abs(geobox.resolution.x) if spacing is None else spacing
    if spacing <= 0 or curve.length <= 0:
        raise ParameterError("line and spacing", rule="must have a length above 0", value=(curve.length, spacing))
    # A whole number of steps, forgiving the rounding of a line that ends on one.
    distance = spacing * np.arange(int(curve.length / spacing + 1e-6) + 1)
    x, y = shapely.get_coordinates(shapely.line_interpolate_point(curve, distance)).T
    rows, columns = locate(velocity, {f"{d:.0f} m": at for d, at in zip(distance, zip(x, y))})
    names = [n for n in ("vx", "vy", "v_error", "flag") if n in velocity and time in velocity[n].dims]
    names = [n for n in names if velocity[n].ndim == 3]
    box = {"y": slice(rows.min(), rows.max() + 1), "x": slice(columns.min(), columns.max() + 1)}
    window = velocity[names].isel(box)
    at = {
        "y": xr.DataArray(rows - rows.min(), dims="distance"),
        "x": xr.DataArray(columns - columns.min(), dims="distance"),
    }
    out = window.isel(at).compute().transpose(time, "distance").drop_vars(["y", "x"])
    if "flag" in out:
        valid = ~flags.invalid(out["flag"])
        out = out.assign({n: out[n].where(valid) for n in names if n != "flag"})
    out["v"] = np.hypot(out["vx"], out["vy"])
    kept = [n for n in ("time_bnds", "acquisition_date_img1", "acquisition_date_img2") if n in velocity.variables]
    return out.assign_coords(
        {n: velocity[n] for n in kept}
        | {"distance": ("distance", start + distance, {"units": "metre"}), "x": ("distance", x), "y": ("distance", y)}
    )
