"""Masks on a grid from outlines: where the ice is, and where the ground stands still.

Vector data are reprojected to the grid and rasterised by cell centres, so a mask belongs to exactly one grid and
`correct.stable_ground` can insist on it.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import odc.geo.xr  # noqa: F401, .odc of arrays
import pyogrio
import pyproj
import rasterio.errors
import rasterio.features
import rioxarray
import shapely
import xarray as xr
from odc.geo.geobox import GeoBox

from . import grid as grids
from .aoi import resolve_aoi
from .errors import MaskError, ParameterError

REFERENCE_CHIP = 320.0
"""Side of a chip of 32 px of 10 m [m]: the default distance between ice and stable ground."""


def outlines(
    source: Any,
    grid: xr.Dataset | xr.DataArray | GeoBox,
    *,
    crs: Any = None,
    buffer: float = 0.0,
    all_touched: bool = False,
) -> xr.DataArray:
    """Rasterise polygons on a grid.

    Parameters
    ----------
    source : path, GeoDataFrame, GeoSeries or anything of `aoi.resolve_aoi`
        Vector file (GeoPackage, Shapefile, GeoJSON, OGR_GMT, ...), a table, an RGI id, a geometry in longitude and
        latitude. Closed lines count as polygons, because OGR_GMT files hold their rings as lines.
    grid : xr.Dataset, xr.DataArray or GeoBox
        Cube, velocity, series, mask, or a grid.
    crs : optional
        Coordinate system of a source that does not name its own.
    buffer : float
        Grow (or, negative, shrink) the polygons by so much [m]; the grid must then be in metres.
    all_touched : bool
        Every cell that a polygon touches, instead of those whose centre is inside.

    Returns
    -------
    xr.DataArray
        bool (y, x), True inside, with the coordinates and the mapping of the grid.

    Raises
    ------
    MaskError
        The source has no coordinate system, no polygon, or none on the grid.
    ParameterError
        A buffer on a grid in degrees.

    Examples
    --------
    >>> from affine import Affine
    >>> box = GeoBox((4, 4), Affine(10, 0, 600000, 0, -10, 5000040), "EPSG:32632")
    >>> square = gpd.GeoSeries([shapely.box(600000, 5000000, 600020, 5000020)], crs="EPSG:32632")
    >>> outlines(square, box).values.astype(int)
    array([[0, 0, 0, 0],
           [0, 0, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 0, 0]])
    """
    geobox = grid if isinstance(grid, GeoBox) else grids.geobox_of(grid)
    target = pyproj.CRS.from_user_input(str(geobox.crs))
    name = str(source) if isinstance(source, str | PathLike) else f"outlines ({type(source).__name__})"
    shapes = _read(source, name, crs).to_crs(target)
    polygons = _polygons(shapes, name)
    if buffer:
        if not target.is_projected:
            fix = "use a projected grid"
            raise ParameterError("buffer", rule="needs a grid in metres", value=target.name, fix=fix)
        polygons = [shape for shape in shapely.buffer(shapely.make_valid(polygons), buffer) if not shape.is_empty]
    burnt = np.zeros(tuple(geobox.shape), np.uint8)
    if len(polygons):
        rasterio.features.rasterize(polygons, out=burnt, transform=geobox.affine, all_touched=all_touched)
    if not burnt.any():
        fix = "check the coordinate system and the area"
        raise MaskError(name, rule="no polygon covers a cell of the grid", value=f"{len(polygons)} polygons", fix=fix)
    return _mask(burnt.astype(bool), geobox, "inside the outlines")


def ice(source: Any, grid: xr.Dataset | xr.DataArray | GeoBox, *, crs: Any = None, buffer: float = 0.0) -> xr.DataArray:
    """Glacier ice: `outlines` under the name of what it is.

    Examples
    --------
    >>> from affine import Affine
    >>> box = GeoBox((4, 4), Affine(10, 0, 600000, 0, -10, 5000040), "EPSG:32632")
    >>> glacier = gpd.GeoSeries([shapely.box(600000, 5000000, 600020, 5000020)], crs="EPSG:32632")
    >>> int(ice(glacier, box).sum()), int(ice(glacier, box, buffer=10.0).sum())
    (4, 9)
    """
    mask = outlines(source, grid, crs=crs, buffer=buffer)
    mask.name, mask.attrs["long_name"] = "ice", "glacier ice"
    return mask


def stable(
    grid: xr.Dataset | xr.DataArray | GeoBox,
    *,
    ice: Any = None,
    rock: Any = None,
    water: Any = None,
    crs: Any = None,
    buffer: float = REFERENCE_CHIP,
    dem: Any = None,
    max_slope: float = 30.0,
) -> xr.DataArray:
    """Ground that does not move: rock, or everything off the ice, less water and steep slopes.

    Parameters
    ----------
    grid : xr.Dataset, xr.DataArray or GeoBox
    ice, rock, water : optional
        Sources as in `outlines`; at least ice or rock. With rock, only rock counts as stable.
    crs : optional
        Coordinate system of sources that do not name their own.
    buffer : float
        Distance kept from the ice [m]. 320: one chip of 32 px of 10 m. Half of it keeps ice out of the chip, the
        other half allows for ice that has advanced or was drawn too small. Water is buffered by half of it, because
        shores are drawn better.
    dem : optional
        Elevations as in `slope`. Ground steeper than `max_slope`, or without an elevation, is then not stable.
    max_slope : float
        Steepest slope that holds still [degrees]. 30: near the angle at which scree rests and shadows fall.

    Returns
    -------
    xr.DataArray
        bool (y, x), True on stable ground.

    Raises
    ------
    ParameterError
        Neither ice nor rock.
    MaskError
        No stable ground left; or outlines that miss the grid, so that everything would be stable.

    Examples
    --------
    >>> from affine import Affine
    >>> box = GeoBox((4, 4), Affine(10, 0, 600000, 0, -10, 5000040), "EPSG:32632")
    >>> glacier = gpd.GeoSeries([shapely.box(600000, 5000000, 600020, 5000020)], crs="EPSG:32632")
    >>> int(stable(box, ice=glacier, buffer=10.0).sum())
    7
    """
    if ice is None and rock is None:
        fix = "give ice=<outlines> (file, table or RGI id) or rock=<polygons>"
        raise ParameterError("stable", rule="ground is stable only in relation to ice or rock outlines", fix=fix)
    geobox = grid if isinstance(grid, GeoBox) else grids.geobox_of(grid)
    still = np.ones(tuple(geobox.shape), bool)
    if rock is not None:
        still &= outlines(rock, geobox, crs=crs).values
    if ice is not None:
        still &= ~outlines(ice, geobox, crs=crs, buffer=buffer).values
    if water is not None:
        still &= ~outlines(water, geobox, crs=crs, buffer=buffer / 2).values
    if dem is not None:
        # Where nothing is known, nothing is stable: no elevation compares as false.
        still &= slope(dem, geobox).values <= max_slope
    if not still.any():
        rule = "the masks cover everything: no stable ground is left"
        raise MaskError("stable", rule=rule, value=f"buffer {buffer:g} m", fix="use a larger area or a smaller buffer")
    mask = _mask(still, geobox, "stable ground")
    mask.name = "stable"
    return mask


def slope(dem: Any, grid: xr.Dataset | xr.DataArray | GeoBox) -> xr.DataArray:
    """Slope of the ground [degrees] on a grid.

    Parameters
    ----------
    dem : path or xr.DataArray
        Elevations [m] as a raster file, or (y, x) with a coordinate system; resampled to the grid (bilinear).
    grid : xr.Dataset, xr.DataArray or GeoBox
        In metres.

    Returns
    -------
    xr.DataArray
        float32 (y, x), NaN without an elevation.

    Raises
    ------
    MaskError
        The raster cannot be read, or has no coordinate system.
    ParameterError
        The grid is not in metres.

    Examples
    --------
    >>> from affine import Affine
    >>> box = GeoBox((4, 4), Affine(10, 0, 600000, 0, -10, 5000040), "EPSG:32632")
    >>> place = {**grids.coordinates(box), "spatial_ref": grids.mapping(box)}
    >>> ramp = xr.DataArray(np.tile(10.0 * np.arange(4), (4, 1)), place, ("y", "x"))
    >>> float(slope(ramp, box)[1, 1])
    45.0
    """
    geobox = grid if isinstance(grid, GeoBox) else grids.geobox_of(grid)
    target = pyproj.CRS.from_user_input(str(geobox.crs))
    if not target.is_projected:
        raise ParameterError("grid", rule="must be in metres", value=target.name, fix="use a projected grid")
    try:
        heights: Any = dem if isinstance(dem, xr.DataArray) else rioxarray.open_rasterio(dem, masked=True)
    except rasterio.errors.RasterioIOError as error:
        raise MaskError(str(dem), rule="must be a raster file", value=error, fix="use GeoTIFF") from error
    if heights.odc.crs is None:
        raise MaskError("dem", rule="has no coordinate system", fix="dem.rio.write_crs('EPSG:...')")
    heights = heights.squeeze(drop=True).astype(np.float32)
    placed = heights.odc.reproject(geobox, resampling="bilinear", dst_nodata=np.nan)
    rise = np.gradient(placed.values, abs(geobox.resolution.y), abs(geobox.resolution.x))
    steepness = np.degrees(np.arctan(np.hypot(*rise))).astype(np.float32)
    out = _mask(steepness, geobox, "slope of the ground")
    out.attrs["units"] = "degree"
    return out


def _read(source: Any, name: str, crs: Any) -> gpd.GeoSeries:
    """The geometries of a source, with their coordinate system."""
    if isinstance(source, gpd.GeoDataFrame | gpd.GeoSeries):
        shapes = source.geometry
    elif isinstance(source, str | PathLike) and Path(source).exists():
        try:
            shapes = gpd.read_file(source).geometry
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
            raise MaskError(name, rule="must be a vector file", value=error, fix="use GeoPackage") from error
    else:
        shapes = gpd.GeoSeries([resolve_aoi(source)], crs="EPSG:4326")
    if shapes.crs is None:
        if crs is None:
            raise MaskError(name, rule="has no coordinate system", fix="give crs=, for example crs='EPSG:32607'")
        shapes = shapes.set_crs(crs)
    return shapes


def _polygons(shapes: gpd.GeoSeries, name: str) -> Sequence[Any]:
    """Polygons and closed lines; anything else is refused rather than rasterised as a line."""
    parts = [g for g in shapes.explode(index_parts=False) if g is not None and not g.is_empty]
    polygons = [shapely.Polygon(g) if g.geom_type in ("LineString", "LinearRing") and g.is_closed else g for g in parts]
    wrong = sorted({g.geom_type for g in polygons if g.geom_type != "Polygon"})
    if wrong:
        raise MaskError(name, rule="must hold polygons or closed lines", value=", ".join(wrong), fix="close the lines")
    if not polygons:
        raise MaskError(name, rule="holds no polygon", value=0, fix="use another file")
    return polygons


def _mask(values: Any, geobox: GeoBox, long_name: str) -> xr.DataArray:
    coords = {**grids.coordinates(geobox), "mapping": grids.mapping(geobox)}
    return xr.DataArray(values, coords, ("y", "x"), attrs={"long_name": long_name, "grid_mapping": "mapping"})
