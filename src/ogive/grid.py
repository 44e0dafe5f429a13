"""Grids are values: `odc.geo.GeoBox` in, `odc.geo.GeoBox` out.

The cube, the velocity and every window of them is a GeoBox; coordinates and the CF `mapping` variable are made from
it here and nowhere else. y comes before x, y descends, coordinates are pixel *centres*.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyproj
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from .errors import GridError

YEAR_DAYS = 365.0
"""Length of the year in "meter/year" [days]; one constant for the whole package, stored as `year_length_days`."""
SCHEMA_VERSION = 2
"""Version of the layout of the stores; raised with every change that an older reader would misread."""


def coarsen(geobox: GeoBox, step: int) -> GeoBox:
    """The grid of step x step pixel cells, anchored to the first pixel; incomplete cells are left out.

    Examples
    --------
    >>> grid = GeoBox((100, 84), Affine(10, 0, 600000, 0, -10, 5000000), "EPSG:32632")
    >>> coarsen(grid, 8).shape, coarsen(grid, 8).resolution.x
    (Shape2d(x=10, y=12), 80.0)
    """
    height, width = (int(n) // step for n in geobox.shape)
    return GeoBox((height, width), geobox.affine * Affine.scale(step), geobox.crs)


def coordinates(geobox: GeoBox) -> dict[str, xr.Variable]:
    """`y` and `x` variables [m], pixel centres, with CF attributes."""
    height, width = geobox.shape
    a = geobox.affine
    if a.b or a.d:
        raise GridError("grid", rule="must not be rotated", value=tuple(a)[:6], fix="use a north-up grid")
    y = a.f + a.e * (np.arange(height) + 0.5)
    x = a.c + a.a * (np.arange(width) + 0.5)
    attrs = {"units": "metre", "axis": "Y", "standard_name": "projection_y_coordinate"}
    return {
        "y": xr.Variable("y", y, attrs),
        "x": xr.Variable("x", x, {**attrs, "axis": "X", "standard_name": "projection_x_coordinate"}),
    }


def mapping(geobox: GeoBox) -> xr.Variable:
    """The CF grid mapping variable, with the extra attributes that ITS_LIVE, TICOI and GDAL read.

    Written anew after every spatial operation, because clipping through other libraries drops half of it.
    """
    crs = pyproj.CRS.from_user_input(str(geobox.crs))
    attrs: dict[str, Any] = {k: v for k, v in crs.to_cf().items() if isinstance(v, str | int | float)}
    wkt = crs.to_wkt("WKT1_GDAL")
    a = geobox.affine
    attrs |= {
        "spatial_ref": wkt,
        "crs_wkt": wkt,
        "proj4text": _proj4(crs),
        "GeoTransform": f"{a.c!r} {a.a!r} {a.b!r} {a.f!r} {a.d!r} {a.e!r}",
    }
    if crs.to_epsg():
        attrs["spatial_epsg"] = crs.to_epsg()
    if crs.utm_zone:
        attrs["utm_zone_number"] = int(crs.utm_zone[:-1])
    return xr.Variable((), np.int32(0), attrs)


def _proj4(crs: pyproj.CRS) -> str:
    import warnings

    with warnings.catch_warnings():  # pyproj warns that PROJ.4 strings lose detail; TICOI reads nothing else
        warnings.simplefilter("ignore", UserWarning)
        return crs.to_proj4()


def geobox_of(obj: xr.Dataset | xr.DataArray) -> GeoBox:
    """The grid of a cube, a velocity, a series or a mask, from its own coordinates and grid mapping.

    Raises
    ------
    GridError
        No `y`/`x` coordinates, no coordinate system, or coordinates that are not evenly spaced.
    """
    for name in ("y", "x"):
        if name not in obj.coords or obj[name].size < 1:
            raise GridError("dataset", rule=f"needs a coordinate {name!r}", fix="open it with ogive.open_velocity")
    variable = next((obj.coords[n] for n in ("mapping", "spatial_ref") if n in obj.coords), None)
    if variable is None and isinstance(obj, xr.Dataset):
        variable = next((obj[n] for n in ("mapping", "spatial_ref") if n in obj), None)
    wkt = None if variable is None else variable.attrs.get("crs_wkt") or variable.attrs.get("spatial_ref")
    if variable is None or not wkt:
        raise GridError("dataset", rule="needs a grid mapping variable with crs_wkt", fix="add ogive.grid.mapping(...)")
    text = str(variable.attrs.get("GeoTransform", ""))
    c, a, _, f, _, e = (float(t) for t in text.split()) if text else (np.nan,) * 6
    steps = {}
    for name, given in (("y", e), ("x", a)):
        values = obj[name].values.astype(float)
        step = float(values[-1] - values[0]) / (values.size - 1) if values.size > 1 else given
        if values.size > 1 and np.abs(np.diff(values) - step).max() > 1e-6 * abs(step):
            raise GridError(f"coordinate {name!r}", rule="must be evenly spaced", fix="select whole slices only")
        # Keep the exact figure of the file: a spacing recovered by subtraction carries rounding noise.
        steps[name] = given if np.isclose(step, given, rtol=1e-9) else step
    left, top = float(obj["x"][0]) - steps["x"] / 2, float(obj["y"][0]) - steps["y"] / 2
    left, top = (
        (c if np.isclose(left, c, rtol=0, atol=1e-6) else left),
        (f if np.isclose(top, f, rtol=0, atol=1e-6) else top),
    )
    epsg = variable.attrs.get("spatial_epsg")
    crs = f"EPSG:{int(epsg)}" if epsg else wkt
    return GeoBox((obj.sizes["y"], obj.sizes["x"]), Affine(steps["x"], 0, left, 0, steps["y"], top), crs)


def points_on(points: Mapping[str, tuple[float, float]], own: GeoBox, other: GeoBox) -> dict[str, tuple[float, float]]:
    """Named points of one grid in the coordinate system of another.

    Examples
    --------
    >>> utm = GeoBox((2, 2), Affine(100, 0, 500000, 0, -100, 7000000), "EPSG:32606")
    >>> x, y = points_on({"a": (500000.0, 7000000.0)}, utm, GeoBox((2, 2), utm.affine, "EPSG:4326"))["a"]
    >>> round(x, 6), round(y, 3)
    (-147.0, 63.129)
    """
    if own.crs == other.crs:
        return dict(points)
    turn = pyproj.Transformer.from_crs(str(own.crs), str(other.crs), always_xy=True)
    return {name: tuple(map(float, turn.transform(*point))) for name, point in points.items()}  # type: ignore[misc]


def pair_days(velocity: xr.Dataset) -> xr.DataArray:
    """Days that a displacement took, on mid_date: between the images, or the mean of the pairs of a stack.

    Examples
    --------
    >>> dates = {f"acquisition_date_img{k}": ("mid_date", np.array([d], "M8[ns]")) for k, d in
    ...          ((1, "2020-01-01"), (2, "2020-01-13"))}
    >>> pair_days(xr.Dataset(dates)).values.tolist()
    [12.0]
    """
    if "stack_count" in velocity:
        return velocity["date_dt"].astype(np.float64)
    span = velocity["acquisition_date_img2"] - velocity["acquisition_date_img1"]
    return span / np.timedelta64(86400, "s")
