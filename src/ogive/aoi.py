"""The area of interest: whatever the user has in hand -> one shapely geometry in longitude and latitude.

A glacier is named by its id in the Randolph Glacier Inventory and looked up in an outline file on disk; everything
else is a box, GeoJSON, a vector file, or an object that already is a geometry.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyogrio
import shapely
import yaml
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from ._intake import catalog_folder
from ._trust import understood
from .errors import SearchError

_VECTOR_FILES = (".gpkg", ".shp", ".geojson", ".json", ".fgb")


def resolve_aoi(aoi: Any, outlines: Any = None) -> BaseGeometry:
    """Turn any description of an area into a geometry in EPSG:4326 (longitude, latitude).

    Parameters
    ----------
    aoi : sequence of 4 floats, str, Path, dict, geometry or GeoDataFrame
        - box (west, south, east, north) [degrees]; west > east crosses the antimeridian;
        - RGI id, e.g. ``RGI60-11.03643`` or ``RGI2000-v7.0-G-11-01706``;
        - GeoJSON, as dict or text;
        - path of a vector file (GeoJSON, GeoPackage, Shapefile), all its features together;
        - shapely geometry, or any object with `__geo_interface__` (longitude, latitude);
        - GeoDataFrame or GeoSeries in any coordinate system.
    outlines : path or GeoDataFrame, optional
        Where RGI ids are looked up: a vector file, a folder of them, or a table. Default: the path in
        `catalogs/products.yaml`.

    Returns
    -------
    shapely geometry
        Valid, not empty, two-dimensional.

    Raises
    ------
    SearchError
        The area cannot be understood, is empty, or lies outside the range of longitude and latitude; the RGI id or
        its file does not exist.

    Examples
    --------
    >>> resolve_aoi((10.7, 46.7, 10.9, 46.9)).bounds
    (10.7, 46.7, 10.9, 46.9)
    """
    try:
        with understood("aoi", SearchError):
            return _resolve(aoi, outlines)
    except OSError as error:
        raise SearchError("aoi", rule="must be a file that can be read", value=error, fix="check the path") from error


def read_aoi(text: str) -> Any:
    """What was typed, as `resolve_aoi` takes it: two numbers are a point, four a box, all else an RGI id or a file.

    Around a point (longitude, latitude) it is a square of 10 km.

    Examples
    --------
    >>> read_aoi("10.7, 46.7, 10.9, 46.9"), read_aoi(" RGI60-11.03643 ")
    ((10.7, 46.7, 10.9, 46.9), 'RGI60-11.03643')
    >>> [round(degrees, 3) for degrees in read_aoi("8.03 46.5")]
    [7.965, 46.455, 8.095, 46.545]
    """
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        return text.strip()
    if len(numbers) != 2:
        return tuple(numbers) if numbers else text.strip()
    lon, lat = numbers
    _check_range((lon, lat, lon, lat), "point")
    north = _AROUND / _DEGREE
    east = min(180.0, north / max(math.cos(math.radians(lat)), 1e-3))
    return lon - east, lat - north, lon + east, lat + north


_AROUND, _DEGREE = 5.0, 111.2
"""Half the side of the square around a point, and a degree of latitude [km]."""


def _resolve(aoi: Any, outlines: Any) -> BaseGeometry:
    if isinstance(aoi, gpd.GeoDataFrame | gpd.GeoSeries):
        return _checked(_lonlat(aoi, "aoi"))
    if isinstance(aoi, Path) or (isinstance(aoi, str) and not aoi.lstrip().startswith("{")):
        if str(aoi).upper().startswith("RGI") and not Path(aoi).exists():
            return _checked(_rgi_outline(str(aoi).strip(), outlines))
        return _checked(_lonlat(_read_vector(Path(aoi)), str(aoi)))
    if isinstance(aoi, str | Mapping):
        return _checked(_geojson(aoi))
    if isinstance(aoi, BaseGeometry):
        return _checked(aoi)
    if hasattr(aoi, "__geo_interface__"):
        return _checked(_geojson(aoi.__geo_interface__))
    if isinstance(aoi, Sequence) and len(aoi) == 4:
        return _checked(_box(aoi))
    raise SearchError(
        "aoi",
        rule="must be a box (west, south, east, north), GeoJSON, a vector file, a geometry or an RGI id",
        value=repr(aoi),
        fix="see ogive.aoi.resolve_aoi",
    )


def _box(values: Sequence[Any]) -> BaseGeometry:
    try:
        west, south, east, north = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise SearchError("aoi box", rule="must be four numbers", value=tuple(values), fix="give degrees") from error
    bounds = (west, south, east, north)
    if not all(map(math.isfinite, bounds)):
        raise SearchError("aoi box", rule="must be finite", value=bounds, fix="give (west, south, east, north)")
    _check_range(bounds, "aoi box")
    if south >= north or west == east:
        raise SearchError(
            "aoi box", rule="must have an area, south below north", value=bounds, fix="give (west, south, east, north)"
        )
    if west > east:
        return shapely.union_all([shapely.box(west, south, 180.0, north), shapely.box(-180.0, south, east, north)])
    return shapely.box(*bounds)


def _check_range(bounds: Sequence[float], what: str) -> None:
    west, south, east, north = bounds
    if max(map(abs, bounds)) > 360.0:
        raise SearchError(
            what,
            rule="must be in degrees; these look like metres of a map projection",
            value=tuple(bounds),
            fix="pass a GeoDataFrame or GeoSeries with its crs, it is reprojected",
        )
    if max(abs(south), abs(north)) > 90.0 or max(abs(west), abs(east)) > 180.0:
        raise SearchError(
            what,
            rule="longitude must be within -180..180 and latitude within -90..90",
            value=tuple(bounds),
            fix="longitude comes first: (west, south, east, north)",
        )


def _checked(geometry: BaseGeometry | None) -> BaseGeometry:
    if geometry is None or geometry.is_empty:
        raise SearchError("aoi", rule="must not be empty", fix="check the file or the selection that it comes from")
    _check_range(geometry.bounds, "aoi")
    flat = shapely.force_2d(geometry)
    return flat if flat.is_valid else shapely.make_valid(flat)


def _geojson(source: str | Mapping[str, Any]) -> BaseGeometry:
    try:
        doc = json.loads(source) if isinstance(source, str) else source
        if doc["type"] == "FeatureCollection":
            parts = [shape(feature["geometry"]) for feature in doc["features"] if feature["geometry"]]
            return shapely.union_all([part if part.is_valid else shapely.make_valid(part) for part in parts])
        return shape(dict(doc["geometry"] if doc["type"] == "Feature" else doc))
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.GEOSException) as error:
        raise SearchError(
            "aoi", rule="must be valid GeoJSON", value=f"{error}", fix="check it at geojson.io"
        ) from error


def _read_vector(path: Path) -> gpd.GeoDataFrame:
    if not path.exists():
        raise SearchError(
            f"aoi {str(path)!r}", rule="is neither an RGI id nor an existing file", fix="check the path or the id"
        )
    try:
        return gpd.read_file(path)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise SearchError(
            f"aoi {str(path)!r}", rule="must be a vector file", value=error, fix="use GeoPackage"
        ) from error


def _lonlat(frame: gpd.GeoDataFrame | gpd.GeoSeries, what: str) -> BaseGeometry:
    if frame.crs is None:
        raise SearchError(what, rule="needs a coordinate system", fix='set it with set_crs("EPSG:...")')
    geometry = frame.geometry[~(frame.geometry.isna() | frame.geometry.is_empty)]
    geometry = geometry.to_crs(4326)
    united: BaseGeometry = geometry.make_valid().union_all()
    return united


def _rgi_outline(rgi_id: str, outlines: Any) -> BaseGeometry:
    products = yaml.safe_load((catalog_folder() / "products.yaml").read_text())
    versions = [(key, data["metadata"]) for key, data in products["data"].items() if "id_pattern" in data["metadata"]]
    known = [(key, meta) for key, meta in versions if re.fullmatch(meta["id_pattern"], rgi_id)]
    if not known:
        raise SearchError(
            f"aoi {rgi_id!r}",
            rule="must be an RGI id or an existing file",
            fix="write RGI60-11.03643 (6.0) or RGI2000-v7.0-G-11-01706 (7.0)",
        )
    key, meta = known[0]
    column = meta["id_column"]
    if isinstance(outlines, gpd.GeoDataFrame):
        if column not in outlines:
            raise SearchError("outlines", rule=f"need the column {column!r} of {meta['title']}", value=list(outlines))
        found, ids, where = outlines[outlines[column] == rgi_id], list(outlines[column]), "outlines"
    else:
        default = products["user_parameters"][f"{key.removesuffix('-file')}_path"]
        found, ids, where = _look_up(rgi_id, column, Path(outlines or default).expanduser(), meta["title"])
    if not len(found):
        near = sorted(ids, key=lambda other: _id_distance(rgi_id, other))[:1]
        raise SearchError(
            f"aoi {rgi_id!r}",
            rule=f"must be among the {len(ids)} outlines of {where}",
            value=f"nearest id {near[0]}" if near else "no id of this version",
            fix="check the id and its region, or pass another file with outlines=",
        )
    return _lonlat(found, where)


def _id_distance(rgi_id: str, other: str) -> tuple[bool, int]:
    """Ids of one region come first, then the nearest number: neighbours in number are mostly neighbours on the map."""
    number = other[-5:]
    return other[:-5] != rgi_id[:-5], abs(int(number) - int(rgi_id[-5:])) if number.isdigit() else 100_000


def _look_up(rgi_id: str, column: str, path: Path, title: str) -> tuple[gpd.GeoDataFrame, list[str], str]:
    """Read one outline from a file or a folder of files, without reading the others' geometry."""
    if not path.exists():
        raise SearchError(
            f"outlines {str(path)!r}",
            rule=f"must be a vector file (or a folder of them) of {title}",
            fix="download it from NSIDC, then pass outlines= or set the path in catalogs/products.yaml",
        )
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix.lower() in _VECTOR_FILES)
    ids: list[str] = []
    for file in files:
        if column not in pyogrio.read_info(file)["fields"]:
            continue
        # The id was checked against its pattern, so it can stand in a query.
        found = gpd.read_file(file, where=f"\"{column}\" = '{rgi_id}'")
        if len(found):
            return found, [], str(file)
        ids += pyogrio.read_dataframe(file, columns=[column], read_geometry=False)[column].tolist()
    if not ids:
        raise SearchError(
            f"outlines {str(path)!r}",
            rule=f"need the column {column!r} of {title}",
            value=f"{len(files)} vector files without it",
            fix="use the RGI version of the id",
        )
    return gpd.GeoDataFrame(), ids, str(path)
