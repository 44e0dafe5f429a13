"""`itslive_cubes`: which published ITS_LIVE datacubes lie over an area. Their table comes with the catalogs."""

from pathlib import Path
from typing import Any

import geopandas as gpd

from ._intake import open_catalog
from .aoi import resolve_aoi
from .errors import SearchError

_WHOLE = "EPSG:6933"
"""Equal areas, for shares of an area."""


def itslive_cubes(aoi: Any, *, table: str | Path | None = None, outlines: Any = None) -> gpd.GeoDataFrame:
    """The ITS_LIVE datacubes that overlap an area.

    Parameters
    ----------
    aoi, outlines
        As in `ogive.search`.
    table : path or URL, optional
        GeoJSON of the footprints; default: the published one, which `catalogs/products.yaml` names.

    Returns
    -------
    geopandas.GeoDataFrame
        One row for each cube, the one that covers most of the area first: `zarr_url`, what `ogive.open_velocity`
        takes; `epsg` [int]; `share` of the area inside the cube [1]; the footprint (EPSG:4326).

    Raises
    ------
    SearchError
        The area cannot be understood, or the table cannot be read or lacks `zarr_url` or the code of the projection.

    Examples
    --------
    >>> import tempfile
    >>> from shapely import box
    >>> footprints = gpd.GeoDataFrame(
    ...     {"zarr_url": ["http://a/west.zarr", "http://a/east.zarr"], "epsg": 32632},
    ...     geometry=[box(10, 46, 11, 47), box(11, 46, 12, 47)], crs=4326,
    ... )
    >>> with tempfile.NamedTemporaryFile(suffix=".geojson") as file:
    ...     footprints.to_file(file.name)
    ...     itslive_cubes((10.9, 46.5, 11.3, 46.6), table=file.name)[["zarr_url", "share"]].round(2).values.tolist()
    [['http://a/east.zarr', 0.75], ['http://a/west.zarr', 0.25]]
    """
    area = resolve_aoi(aoi, outlines)
    given = {} if table is None else {"itslive_url": str(table)}
    entry = open_catalog("products", **given)["itslive-cubes"]
    try:
        found = entry.read()
    except Exception as error:  # whatever GDAL or the connection says
        raise SearchError("ITS_LIVE cubes", rule="must be a GeoJSON that can be read", value=error) from error
    # The table exists with column names of ten letters, too, as a shapefile leaves them.
    codes = [name for name in ("epsg", "data_epsg") if name in found]
    if "zarr_url" not in found or not codes:
        value = ", ".join(map(str, found.columns))
        raise SearchError("ITS_LIVE cubes", rule="must have the columns zarr_url and epsg or data_epsg", value=value)
    made = [name for name in found if str(name).startswith("datacube_e")]
    if made:
        found = found[found[made[0]] == 1]
    found = found[found.intersects(area)]
    place = gpd.GeoSeries([area], crs=4326).to_crs(_WHOLE).iloc[0]
    inside = found.geometry.to_crs(_WHOLE).intersection(place)
    share = inside.area / place.area if place.area > 0 else inside.area + 1.0  # a point or a line is inside or not
    epsg = found[codes[0]].astype(str).str.removeprefix("EPSG:").astype(int)
    out = gpd.GeoDataFrame({"zarr_url": found["zarr_url"], "epsg": epsg, "share": share}, geometry=found.geometry)
    return out.sort_values(["share", "zarr_url"], ascending=[False, True], ignore_index=True)


__all__ = ["itslive_cubes"]
