"""STAC items of rendered scenes, with the fields that Earth Search and the USGS give theirs."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
import pyproj
import pystac
import shapely
import shapely.geometry
from odc.geo.geobox import GeoBox
from pystac.utils import str_to_datetime

from .plan import OFFSET_DATE, PATH_ROW, TILE, ScenePlan

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_EXTENSION = "https://stac-extensions.github.io/{}/schema.json"
_BASELINES = ((OFFSET_DATE, "03.01"), (np.datetime64("2022-12-06", "ns"), "04.00"))
LANDSAT_SCALE, LANDSAT_OFFSET = 2e-5, -0.1
"""Collection 2 Level 1: digital number to top-of-atmosphere reflectance without sun correction."""


def processing_baseline(time: np.datetime64) -> str:
    """Processing baseline of a Sentinel-2 scene.

    Examples
    --------
    >>> processing_baseline(np.datetime64("2021-07-01")), processing_baseline(np.datetime64("2022-07-01"))
    ('03.01', '04.00')
    """
    return next((name for before, name in _BASELINES if time < before), "05.09")


def make_item(
    plan: ScenePlan,
    assets: Mapping[str, tuple[str, GeoBox]],
    *,
    cloud_cover: float,
    sun: tuple[float, float],
) -> pystac.Item:
    """One item.

    Parameters
    ----------
    plan : ScenePlan
    assets : mapping
        Asset key → (href, grid); the image comes first.
    cloud_cover : float
        Share of the valid pixels under cloud [percent].
    sun : (float, float)
        Azimuth and elevation [degrees].

    Returns
    -------
    pystac.Item, unsigned, in the collection `sentinel-2-l2a` or `landsat-c2-l1`.
    """
    grid = next(iter(assets.values()))[1]
    to_degrees = pyproj.Transformer.from_crs(str(grid.crs), "EPSG:4326", always_xy=True)
    box = grid.boundingbox
    corners = shapely.box(box.left, box.bottom, box.right, box.top)
    footprint = shapely.transform(corners, lambda xy: np.stack(to_degrees.transform(xy[:, 0], xy[:, 1]), axis=1))
    sentinel = plan.sensor == "sentinel-2"
    properties = {
        "platform": plan.platform,
        "instruments": ["msi"] if sentinel else ["oli", "tirs"],
        "gsd": grid.resolution.x,
        "eo:cloud_cover": round(cloud_cover, 4),
        "proj:code": str(grid.crs),
        "view:sun_azimuth": round(sun[0], 6),
        "view:sun_elevation": round(sun[1], 6),
        "view:off_nadir": 0,
        **(_sentinel2(plan) if sentinel else _landsat(plan, cloud_cover)),
    }
    names = ["projection/v2.0.0", "eo/v1.1.0", "view/v1.0.0", "raster/v1.1.0"]
    names += ["sat/v1.0.0", "grid/v1.1.0", "mgrs/v1.0.0"] if sentinel else []
    extensions = [_EXTENSION.format(n) for n in names]
    if not sentinel:
        extensions.append("https://landsat.usgs.gov/stac/landsat-extension/v1.1.1/schema.json")
    item = pystac.Item(
        plan.id,
        geometry=shapely.geometry.mapping(footprint),
        bbox=list(footprint.bounds),
        datetime=str_to_datetime(f"{plan.time.astype('datetime64[ms]')}Z"),
        properties=properties,
        stac_extensions=extensions,
        collection="sentinel-2-l2a" if sentinel else "landsat-c2-l1",
    )
    for key, (href, where) in assets.items():
        item.add_asset(key, _asset(key, href, where, after_offset=bool(plan.time >= OFFSET_DATE)))
    return item


def _sentinel2(plan: ScenePlan) -> dict[str, Any]:
    return {
        "constellation": "sentinel-2",
        "sat:relative_orbit": plan.orbit,
        "sat:orbit_state": "descending",
        "grid:code": f"MGRS-{TILE}",
        "mgrs:utm_zone": int(TILE[:2]),
        "mgrs:latitude_band": TILE[2],
        "mgrs:grid_square": TILE[3:],
        "s2:mgrs_tile": TILE,
        "s2:processing_baseline": processing_baseline(plan.time),
        "s2:product_type": "S2MSI2A",
        "s2:sequence": "0",
    }


def _landsat(plan: ScenePlan, cloud_cover: float) -> dict[str, Any]:
    path, row = PATH_ROW
    number = plan.platform[-1]
    moment = plan.time.astype("datetime64[D]")
    of_year = int((moment - moment.astype("datetime64[Y]")).astype(int)) + 1
    return {
        "constellation": "landsat",
        "landsat:wrs_type": "2",
        "landsat:wrs_path": path,
        "landsat:wrs_row": row,
        "landsat:scene_id": f"LC{number}{path}{row}{str(moment)[:4]}{of_year:03d}LGN00",
        "landsat:correction": "L1TP",
        "landsat:collection_number": "02",
        "landsat:collection_category": "T1",
        "landsat:cloud_cover_land": round(cloud_cover, 2),
    }


_BANDS: dict[str, dict[str, Any]] = {
    "nir": {"title": "NIR 1 (band 8) - 10m", "name": "B08", "common_name": "nir", "center_wavelength": 0.842},
    "red": {"title": "Red (band 4) - 10m", "name": "B04", "common_name": "red", "center_wavelength": 0.665},
    "pan": {"title": "Panchromatic Band (B8)", "name": "B8", "common_name": "pan", "center_wavelength": 0.59},
    "scl": {"title": "Scene classification map (SCL)"},
    "qa_pixel": {"title": "Pixel Quality Assessment Band"},
}


def _asset(key: str, href: str, box: GeoBox, *, after_offset: bool) -> pystac.Asset:
    band = dict(_BANDS[key])
    title, image = band.pop("title"), key in ("nir", "red", "pan")
    raster: dict[str, Any] = {
        "data_type": "uint8" if key == "scl" else "uint16",
        "spatial_resolution": box.resolution.x,
    }
    raster["nodata"] = 1 if key == "qa_pixel" else 0  # an empty quality pixel has bit 0 set
    if key in ("nir", "red"):
        raster |= {"scale": 0.0001, "offset": -0.1 if after_offset else 0.0}
    elif key == "pan":
        raster |= {"scale": LANDSAT_SCALE, "offset": LANDSAT_OFFSET}
    fields: dict[str, Any] = {
        "gsd": box.resolution.x,
        "proj:shape": [int(n) for n in box.shape],
        "proj:transform": [float(v) for v in tuple(box.affine)[:6]],
        "raster:bands": [raster],
    }
    if image:
        fields["eo:bands"] = [band]
    roles = ["data", "reflectance"] if image else ["data"]
    return pystac.Asset(href, title=title, media_type=COG, roles=roles, extra_fields=fields)


def collections() -> list[pystac.Collection]:
    """The two collections, without items.

    Examples
    --------
    >>> [c.id for c in collections()]
    ['sentinel-2-l2a', 'landsat-c2-l1']
    """
    # Both are narrowed once the items are in.
    world: list[list[float | int]] = [[-180, -90, 180, 90]]
    always: list[list[datetime | None]] = [[None, None]]
    extent = pystac.Extent(pystac.SpatialExtent(world), pystac.TemporalExtent(always))
    texts = {
        "sentinel-2-l2a": "Synthetic scenes in the layout of Sentinel-2 Level-2A",
        "landsat-c2-l1": "Synthetic scenes in the layout of Landsat Collection 2 Level-1",
    }
    return [pystac.Collection(k, v, extent, license="CC0-1.0") for k, v in texts.items()]
