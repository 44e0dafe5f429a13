"""What each scene shows of the glacier, from one small read: cloud, snow and usable shares over the ice; thumbnails.

The cloud cover that a provider states is that of the whole scene, of ten thousand square kilometres. Whether the
glacier lies under it is seen here, in the quality band through its overviews.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pystac
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox
from shapely.geometry.base import BaseGeometry

from . import catalog, masks, quality
from ._access import Sign
from ._read import Reader, note
from .aoi import resolve_aoi
from .cube import open_cube
from .errors import ParameterError, ReadError, SearchError

_MERCATOR = 85.0
"""Latitude at which maps of the web end [degrees]."""


def scene_cover(
    items: Iterable[pystac.Item], ice: Any, *, pixels: int = 256, loader: str | Reader = "odc",
    sign: Sign | str | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Shares of the glacier that each scene shows, shows cloudy, and shows snowy; one small read for each scene.

    Parameters
    ----------
    items : iterable of pystac.Item
    ice : path, GeoDataFrame, or anything that `search` takes as an area
        Outlines of the ice, or an area of interest.
    pixels : int
        Along the longer side of the area, at most; never finer than the quality band itself.
    loader, sign
        As in `open_cube`.

    Returns
    -------
    pandas.DataFrame
        One row for each scene by date, index = its id. Shares of the ice, 0 ... 1: `valid` (the scene has pixels
        there), `cloud` (cloud or cirrus), `shadow`, `snow` (what the product calls snow or ice), `usable` (may take
        part in matching). NaN where the scene has no quality band, or cannot be read for good, with a warning.

    Raises
    ------
    SearchError
        No items, or the area cannot be understood.
    MaskError
        The outlines hold no polygon.
    ReadError
        A scene cannot be read now.
    """
    rows = dict(each_cover(items, ice, pixels=pixels, loader=loader, sign=sign))
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(SHARES)).rename_axis("id")


def each_cover(
    items: Iterable[pystac.Item], ice: Any, *, pixels: int = 256, loader: str | Reader = "odc",
    sign: Sign | str | None = None,
) -> Iterator[tuple[str, dict[str, float]]]:  # fmt: skip
    """The rows of `scene_cover` one after the other, as they are read."""
    ordered = list(items)
    if not ordered:
        raise SearchError("items", rule="must hold at least one scene", value=0, fix="widen the search")
    area = resolve_aoi(ice)
    # One read each, on a grid of the scene's own system: scenes of two zones need no common one.
    for item in sorted(ordered, key=lambda item: (str(item.datetime), item.id)):
        if catalog.mask_asset(item) is None:
            yield item.id, dict.fromkeys(SHARES, math.nan)
            continue
        grid = _grid(area, catalog.scene_geobox(item, str(catalog.mask_asset(item))), pixels)
        # Cells count by their centres, except where the ice is hardly wider than one.
        on_ice = masks.outlines(area, grid, all_touched=min(grid.shape) < 8).values
        yield item.id, _shares(item, grid, on_ice, loader, sign)


def _shares(
    item: pystac.Item, grid: GeoBox, on_ice: Any, loader: str | Reader, sign: Sign | str | None
) -> dict[str, float]:
    try:
        scene = open_cube([item], grid=grid, loader=loader, sign=sign)
        bits = scene["mask"].isel(time=0).values[on_ice]
    except ReadError as error:
        if not error.permanent:
            raise
        note(error)
        return dict.fromkeys(SHARES, math.nan)
    return shares(bits)


def ice_within(outlines: Any, aoi: Any) -> BaseGeometry:
    """The part of the ice that lies in an area; the area itself where there are no outlines, or none of them in it.

    Parameters
    ----------
    outlines : path, GeoDataFrame or None
    aoi : as in `search`

    Examples
    --------
    >>> from shapely.geometry import box
    >>> ice = gpd.GeoDataFrame(geometry=[box(0, 0, 2, 2)], crs=4326)
    >>> ice_within(ice, (1, 1, 3, 3)).bounds, ice_within(None, (1, 1, 3, 3)).bounds
    ((1.0, 1.0, 2.0, 2.0), (1.0, 1.0, 3.0, 3.0))
    """
    area = resolve_aoi(aoi)
    if outlines is None:
        return area
    inside = resolve_aoi(Path(outlines) if isinstance(outlines, str) else outlines).intersection(area)
    return area if inside.area == 0 else inside


def shares(bits: Any) -> dict[str, float]:
    """Shares of mask bits, as in `scene_cover`.

    Parameters
    ----------
    bits : uint8 array, any shape
        Of `ogive.quality`.

    Examples
    --------
    >>> import numpy as np
    >>> shares(np.array([quality.CLOUD, quality.SNOW, 0, quality.NO_DATA], np.uint8))
    {'valid': 0.75, 'cloud': 0.25, 'shadow': 0.0, 'snow': 0.25, 'usable': 0.5}
    """
    return {
        "valid": float(((bits & quality.NO_DATA) == 0).mean()),
        **{name: float(((bits & wanted) != 0).mean()) for name, wanted in _BITS.items()},
        "usable": float(quality.usable(bits).mean()),
    }


_BITS = {"cloud": quality.CLOUD | quality.CIRRUS, "shadow": quality.SHADOW, "snow": quality.SNOW}
SHARES = ("valid", *_BITS, "usable")


def _grid(area: BaseGeometry, native: GeoBox, pixels: int) -> GeoBox:
    """A coarse grid over the area, in the system of a scene."""
    box = gpd.GeoSeries([area], crs=4326).to_crs(str(native.crs)).iloc[0].bounds
    size = max(box[2] - box[0], box[3] - box[1])
    # At least twice the native pixel: grids that almost coincide with a scene's are refused.
    resolution = max(size / pixels, 2 * abs(native.resolution.x))
    return GeoBox.from_bbox(BoundingBox(box[0], box[1], box[2], box[3], native.crs), resolution=resolution, tight=False)


def thumbnails(
    items: Iterable[pystac.Item], aoi: Any, *, band: Any = None, pixels: int = 256, loader: str | Reader = "odc",
    sign: Sign | str | None = None,
) -> xr.Dataset:  # fmt: skip
    """Small pictures of scenes in the projection of web maps (EPSG:3857): a lazy cube, one read for each scene.

    Parameters
    ----------
    items, band, loader, sign
        As in `open_cube`.
    aoi : as in `search`
    pixels : int
        Along the longer side.

    Raises
    ------
    ParameterError
        The area reaches beyond 85 degrees, where web maps end.
    """
    bounds = resolve_aoi(aoi).bounds
    if max(abs(bounds[1]), abs(bounds[3])) > _MERCATOR:
        raise ParameterError("aoi", rule=f"must lie within {_MERCATOR:.0f} degrees of latitude for a web map")
    box = gpd.GeoSeries([resolve_aoi(aoi)], crs=4326).to_crs(3857).iloc[0].bounds
    resolution = max(box[2] - box[0], box[3] - box[1]) / pixels
    grid = GeoBox.from_bbox(BoundingBox(box[0], box[1], box[2], box[3], "EPSG:3857"), resolution=resolution, tight=True)
    return open_cube(items, band, grid=grid, loader=loader, resampling="nearest", sign=sign)
