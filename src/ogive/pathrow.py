"""Which scenes of Landsat and Sentinel-2 can show a place: WRS-2 path and row, MGRS tile. No network, no table.

Landsat: the Worldwide Reference System 2 follows from the orbit alone, 233 paths of 248 rows in 16 days. Sentinel-2: a
tile is a square of 100 km of the military grid, made 109.8 km wide to the east and to the south, on multiples of 60 m.
"""

import math
from collections import Counter
from functools import cache
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray

from .errors import ParameterError

_ELLIPSOID = pyproj.Geod(ellps="WGS84")
_PATHS, _ROWS = 233, 248
_INCLINATION, _PATH_1 = math.radians(98.2), -64.6
"""Of the orbit; and the longitude [degrees] at which path 1 crosses the equator southwards, at row 60."""
_DAYTIME = np.array([247, 248, *range(1, 123)])
"""Rows of the southward half of the orbit, which the sun lights."""
_HALF_LENGTH, _HALF_WIDTH = 97.5, 94.5
"""Of a scene of Landsat 8 or 9 about its centre, along and across the track [km]."""
_SQUARE, _TILE, _STEP = 100_000, 109_800, 60


def query_pathrow(lon: float, lat: float) -> gpd.GeoDataFrame:
    """The Landsat scenes and Sentinel-2 tiles that cover a point.

    Parameters
    ----------
    lon, lat : float
        [degrees].

    Returns
    -------
    geopandas.GeoDataFrame
        One row for each scene of WRS-2 by day and for each tile, those first in which the point lies farthest inside:
        `sensor` (`landsat`, `sentinel-2`), `name` as `scene_table` has it in `relative_orbit` (`138041`) or the tile
        (`32TMS`), `path`, `row`, `inside` (distance of the point from the edge [km]) and the nominal footprint
        (EPSG:4326; beyond 180 degrees where it crosses the date line).

    Raises
    ------
    ParameterError
        No point of the Earth.

    Notes
    -----
    Landsat flies up to 5 km beside its nominal path, so within 5 km of an edge one scene shows the point and the next
    may not. Of 94 scenes of Landsat 8 and 9, from 43 degrees north to 81 south, the centres lay within 1.4 km of these
    along the track and 4.2 km across it. Scenes of Landsat 4 and 5 are sheared, by 10 km at their corners; Landsat 7
    left its paths in 2022, by up to 100 km. Tiles are those of the published grid, to the metre; but where the edge of
    a zone leaves only a sliver of a square, that grid may have no tile. Sentinel-2 has none beyond 84 degrees north.

    Examples
    --------
    >>> found = query_pathrow(8.03, 46.5)
    >>> found["name"].tolist()
    ['195028', '194028', '32TMS']
    """
    if not (math.isfinite(lon) and math.isfinite(lat) and -180 <= lon <= 360 and -90 <= lat <= 90):
        raise ParameterError("lon, lat", rule="must be degrees, longitude first", value=(lon, lat), fix="(8.03, 46.50)")
    lon = (lon + 180) % 360 - 180
    rows = [*_wrs2(lon, lat), *_tiles(lon, lat)]
    columns = ["sensor", "name", "path", "row", "inside", "geometry"]
    table = pd.DataFrame(rows, columns=columns).astype({"path": "Int64", "row": "Int64", "inside": float})
    table = table.sort_values(["sensor", "inside"], ascending=[True, False], ignore_index=True)
    return gpd.GeoDataFrame(table, geometry="geometry", crs=4326)


def wrs2_centre(path: Any, row: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longitude and latitude [degrees] of the nominal centre of WRS-2 scenes.

    Examples
    --------
    >>> [round(float(k), 2) for k in wrs2_centre(1, 60)], [round(float(k), 2) for k in wrs2_centre(138, 41)]
    ([-64.6, -0.0], [89.88, 27.43])
    """
    along = 2 * np.pi * (np.asarray(row, np.float64) - 60) / _ROWS
    sphere = -np.arcsin(math.sin(_INCLINATION) * np.sin(along))
    # While the satellite flies a row, the Earth turns under it: once in 16 days for each of the 233 orbits.
    turned = np.degrees(along) * 16 / _PATHS
    from_node = np.degrees(np.arctan2(math.cos(_INCLINATION) * np.sin(along), np.cos(along)))
    lon = _PATH_1 - (np.asarray(path, np.float64) - 1) * 360 / _PATHS + from_node - turned
    lat = np.degrees(np.arctan(np.tan(sphere) / (1 - _ELLIPSOID.es)))
    return (lon + 180) % 360 - 180, lat


@cache
def _centres() -> tuple[NDArray[Any], ...]:
    """Path, row, longitude, latitude and direction of flight of all daytime scenes."""
    path, row = (k.ravel() for k in np.meshgrid(np.arange(1, _PATHS + 1), _DAYTIME, indexing="ij"))
    lon, lat = wrs2_centre(path, row)
    heading, _, _ = _ELLIPSOID.inv(lon, lat, *wrs2_centre(path, row + 0.05))
    return path, row, lon, lat, np.asarray(heading)


def _wrs2(lon: float, lat: float) -> list[tuple[Any, ...]]:
    path, row, at_lon, at_lat, heading = _centres()
    near = np.abs(at_lat - lat) < 2
    path, row, at_lon, at_lat, heading = (k[near] for k in (path, row, at_lon, at_lat, heading))
    azimuth, _, distance = _ELLIPSOID.inv(at_lon, at_lat, np.full(at_lon.shape, lon), np.full(at_lat.shape, lat))
    angle = np.radians(azimuth - heading)
    along, across = distance / 1000 * np.cos(angle), distance / 1000 * np.sin(angle)
    inside = np.minimum(_HALF_LENGTH - np.abs(along), _HALF_WIDTH - np.abs(across))
    found = np.flatnonzero(inside >= 0)
    frames = [_frame(at_lon[k], at_lat[k], heading[k]) for k in found]
    return [
        ("landsat", f"{path[k]:03}{row[k]:03}", path[k], row[k], inside[k], frame)
        for k, frame in zip(found, frames, strict=True)
    ]


def _frame(lon: float, lat: float, heading: float) -> shapely.Polygon:
    """The nominal outline of a scene."""
    corners = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)]) * (_HALF_LENGTH, _HALF_WIDTH)
    azimuth = heading + np.degrees(np.arctan2(corners[:, 1], corners[:, 0]))
    distance = 1000 * np.hypot(*corners.T)
    x, y, _ = _ELLIPSOID.fwd(np.full(4, lon), np.full(4, lat), azimuth, distance)
    return _whole(np.asarray(x), np.asarray(y))


def _whole(x: NDArray[np.float64], y: NDArray[np.float64]) -> shapely.Polygon:
    """A polygon that is not torn apart by the date line."""
    return shapely.Polygon(np.stack([x[0] + (x - x[0] + 180) % 360 - 180, y], -1))


def tile_bounds(zone: int, north: bool, square: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, bottom, right, top of the Sentinel-2 tile of a 100 km square, in the coordinates of its UTM zone [m].

    Parameters
    ----------
    zone : int
    north : bool
        Whether the zone is that of the northern half of the Earth.
    square : (int, int)
        Northing and easting of its corner in the south-west [100 km].

    Examples
    --------
    >>> tile_bounds(32, True, (51, 4))
    (399960.0, 5090220.0, 509760.0, 5200020.0)
    """
    # Multiples of 60 m, so that pixels of 10, 20 and 60 m share their edges; northings counted from the equator.
    equator = 0 if north else 10_000_000
    left = square[1] * _SQUARE // _STEP * _STEP
    top = -(-((square[0] + 1) * _SQUARE - equator) // _STEP) * _STEP + equator
    return float(left), float(top - _TILE), float(left + _TILE), float(top)


def _tiles(lon: float, lat: float) -> list[tuple[Any, ...]]:
    if not -80 <= lat < 84:
        return []
    own, north, found = int((lon + 180) // 6) + 1, lat >= 0, []
    for zone in sorted({(own - 1 + k) % 60 + 1 for k in (-1, 0, 1)}):
        utm = _utm(zone, north)
        x, y = utm.transform(lon, lat)
        if not (0 <= x < 1_000_000 and math.isfinite(y)):
            continue
        # A tile reaches into the squares east and south of its own, and up to one step of 60 m beyond the others.
        last_x, last_y = int((x + _STEP) // _SQUARE), int((y - _STEP) // _SQUARE)
        for square in ((n, e) for n in (last_y, last_y + 1) for e in (last_x - 1, last_x)):
            left, bottom, right, top = bounds = tile_bounds(zone, north, square)
            inside = min(x - left, right - x, y - bottom, top - y)
            name = tile_name(zone, north, square) if inside >= 0 else None
            if name is not None:
                ring = np.array(shapely.box(*bounds).exterior.coords)
                lonlat = utm.transform(ring[:, 0], ring[:, 1], direction="INVERSE")
                found.append(("sentinel-2", name, pd.NA, pd.NA, inside / 1000, _whole(*map(np.asarray, lonlat))))
    return found


@cache
def _utm(zone: int, north: bool) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(4326, (32600 if north else 32700) + zone, always_xy=True)


@cache
def tile_name(zone: int, north: bool, square: tuple[int, int]) -> str | None:
    """The name of the tile of a 100 km square; None where no part of the square lies in the zone.

    Where a square lies in two bands of latitude, the tile has the letter of the larger part.

    Examples
    --------
    >>> tile_name(32, True, (51, 4)), tile_name(32, True, (51, 8))
    ('32TMS', None)
    """
    import mgrs

    grid = np.linspace(2500, _SQUARE - 2500, 20)
    x, y = (k.ravel() for k in np.meshgrid(square[1] * _SQUARE + grid, square[0] * _SQUARE + grid))
    lon, lat = _utm(zone, north).transform(x, y, direction="INVERSE")
    real, grid_names = np.isfinite(lon) & (lat > -80) & (lat < 84), mgrs.MGRS()
    named = (grid_names.toMGRS(b, a, MGRSPrecision=0) for a, b in zip(lon[real], lat[real], strict=True))
    mine = Counter(name for name in named if int(name[:2]) == zone)
    return mine.most_common(1)[0][0] if mine else None
