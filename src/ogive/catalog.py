"""What an item *is*: its sensor, bands, grid, orbit, radiometry. And the catalogs: sensors, endpoints, products.

Providers describe the same scene in different words. The words are in `catalogs/sensors/*.yaml`, one file for each
sensor; the functions here look them up, so that the rest of the package never asks which provider an item came from.
No function here opens a file of pixels or a network connection. `open_catalog`, which is what `ogive.catalog(...)`
calls, and the intake readers that the catalogs name (`ogive.catalog:StacItems` ...) come from `_intake.py`.
"""

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import pystac
import yaml
from affine import Affine
from odc.geo.geobox import GeoBox

from ._intake import Mosaic as Mosaic
from ._intake import StacCube as StacCube
from ._intake import StacItems as StacItems
from ._intake import Velocity as Velocity
from ._intake import catalog_folder
from ._intake import open_catalog as open_catalog
from .errors import ItemError

LARGEST = 1_000_000
"""Pixels along a side; the largest scenes have some ten thousand, and a wrong number must not fill the memory."""
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_]*:[0-9A-Za-z_.]+")
# Only what defines a system by itself: PROJ also takes names of files, and grids of shifts are files.
_WKT = re.compile(r"(?!.*(?:BOUNDCRS|EXTENSION|grids))(?:PROJ|GEOG|GEOD)(?:CRS|CS)\[.*", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Product:
    """One level of a sensor: its collections and its default radiometry, reflectance = scale * DN + offset."""

    name: str
    collections: tuple[str, ...]
    id: str
    scale: float
    offset: float
    platforms: tuple[str, ...] = ()
    """Platforms that `scale` and `offset` hold for; empty = all. Others keep their DN."""


@dataclass(frozen=True)
class Platform:
    """One satellite: ITS_LIVE mission, satellite and sensor codes, and asset keys of each common band name."""

    codes: tuple[str, str, str]
    bands: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Sensor:
    """One file of `catalogs/sensors`.

    Attributes
    ----------
    products : levels, the preferred one first.
    platforms : platform (`sentinel-2a`, `landsat-8`) -> codes and bands.
    id, id_platform : pattern of item ids; its group, appended to `id_platform`, is the platform.
    id_sensor_code : pattern of item ids whose group replaces the platform's ITS_LIVE sensor code.
    default_bands : common names of the band to match, the first that is present wins.
    mask_assets, mask_decoder : asset keys of the pixel quality layer; how `ogive.masks` reads it.
    pixel_size : common name -> pixel size [m], for bands that the item's own proj:* fields do not describe.
    trust_raster_bands : whether scale and offset in `raster:bands` win over the product's.
    baseline_offset : offset that came with a processing baseline: `from`, `since`, `offset`, `applied`; or None.
    baseline_fields, orbit_fields, product_name_fields : properties to look in, in this order.
    baseline_pattern, orbit_pattern, orbit_prefix : how to find the same in the id or in the product name.
    """

    name: str
    title: str
    products: tuple[Product, ...]
    platforms: Mapping[str, Platform]
    bands: Mapping[str, tuple[str, ...]]
    constellations: tuple[str, ...]
    id: str
    id_platform: str
    default_bands: tuple[str, ...]
    mask_assets: tuple[str, ...]
    mask_decoder: str
    pixel_size: Mapping[str, float]
    trust_raster_bands: bool
    baseline_offset: Mapping[str, Any] | None
    baseline_fields: tuple[str, ...]
    baseline_pattern: str
    orbit_fields: tuple[str, ...]
    orbit_pattern: str
    orbit_prefix: str
    product_name_fields: tuple[str, ...]
    id_sensor_code: str = ""


@dataclass(frozen=True)
class Endpoint:
    """A STAC API of `catalogs/stac.yaml`: level -> collection of this endpoint, and the name of its signer."""

    name: str
    url: str
    collections: Mapping[str, str]
    signer: str | None


@cache
def sensors() -> dict[str, Sensor]:
    """All sensors, by name.

    Examples
    --------
    >>> sorted(sensors())
    ['landsat', 'sentinel-2']
    """
    found = (
        _sensor(yaml.safe_load(path.read_text())) for path in sorted((catalog_folder() / "sensors").glob("*.yaml"))
    )
    return {sensor.name: sensor for sensor in found}


def _sensor(doc: dict[str, Any]) -> Sensor:
    tuples = {k: tuple(v) for k, v in doc.items() if isinstance(v, list)}
    products = []
    for name, fields in doc["products"].items():
        lists = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
        products.append(Product(name=name, **{**fields, **lists}))
    platforms = {
        name: Platform(tuple(fields["codes"]), {band: tuple(keys) for band, keys in fields["bands"].items()})
        for name, fields in doc["platforms"].items()
    }
    bands = {band: tuple(keys) for band, keys in doc["bands"].items()}
    return Sensor(**{**doc, **tuples, "products": tuple(products), "platforms": platforms, "bands": bands})


@cache
def endpoints() -> dict[str, Endpoint]:
    """The STAC endpoints of `catalogs/stac.yaml`, by name.

    Examples
    --------
    >>> endpoints()["earth-search"].collections["sentinel-2-l2a"]
    'sentinel-2-l2a'
    """
    doc = yaml.safe_load((catalog_folder() / "stac.yaml").read_text())
    found = {}
    for name in doc["aliases"]:
        data = doc["data"][f"{name}-api"]
        found[name] = Endpoint(name, data["kwargs"]["url"], **data["metadata"])
    return found


@cache
def signers() -> dict[str, dict[str, Any]]:
    """What `catalogs/stac.yaml` says of each signer, by name.

    Examples
    --------
    >>> signers()["usgs"]["kind"]
    's3'
    """
    doc = yaml.safe_load((catalog_folder() / "stac.yaml").read_text())
    named: dict[str, dict[str, Any]] = doc["metadata"]["signers"]
    return named


def sensor_of(item: pystac.Item) -> Sensor:
    """The sensor of an item: by collection, else platform, else constellation, else the pattern of its id.

    Raises
    ------
    ItemError
        No sensor of `catalogs/sensors` answers to the item.

    Examples
    --------
    >>> from datetime import datetime
    >>> item = pystac.Item("LC08_L1TP_138041_20240128_20240207_02_T1", None, None, datetime(2024, 1, 28), {})
    >>> sensor_of(item).name
    'landsat'
    """
    collection, properties = _collection(item), item.properties
    platform = _canonical(properties.get("platform") or properties.get("eo:platform"))
    constellation = _canonical(properties.get("constellation"))
    known = list(sensors().values())
    tests: tuple[Callable[[Sensor], bool], ...] = (
        lambda s: any(collection in product.collections for product in s.products),
        lambda s: platform in s.platforms,
        lambda s: constellation in s.constellations,
        # An id says little; it only counts where the item does not name another platform.
        lambda s: not platform and not constellation and bool(re.match(s.id, item.id)),
    )
    for test in tests:
        for sensor in known:
            if test(sensor):
                return sensor
    value = f"collection {collection!r}, platform {platform!r}"
    raise ItemError(
        f"item {item.id!r}",
        rule=f"must be of a known sensor ({', '.join(sensors())})",
        value=value,
        fix="add catalogs/sensors/<name>.yaml for its sensor",
    )


def product_of(item: pystac.Item) -> Product:
    """The processing level of an item: by collection, else by id or product name.

    Raises
    ------
    ItemError
        Unknown sensor, or a level that the sensor's file does not describe.
    """
    sensor, collection = sensor_of(item), _collection(item)
    for product in sensor.products:
        if collection in product.collections:
            return product
    for product in sensor.products:
        if any(re.search(product.id, text) for text in _names(item, sensor)):
            return product
    raise ItemError(
        f"item {item.id!r}",
        rule=f"must be one of {[p.name for p in sensor.products]}",
        value=collection or "no collection",
        fix="set its collection to one of them",
    )


def platform_of(item: pystac.Item) -> str:
    """The platform in one spelling: `sentinel-2a`, `landsat-8`.

    Raises
    ------
    ItemError
        Neither a field nor the id names a platform of the sensor.
    """
    sensor = sensor_of(item)
    platform = _canonical(item.properties.get("platform") or item.properties.get("eo:platform"))
    if platform not in sensor.platforms:
        match = re.match(sensor.id, item.id)
        platform = f"{sensor.id_platform}{match[1].lower()}" if match else platform
    if platform not in sensor.platforms:
        raise ItemError(
            f"item {item.id!r}, field 'platform'",
            rule=f"must be one of {sorted(sensor.platforms)}",
            value=platform or "nothing",
            fix="set the platform of the item",
        )
    return platform


def band_asset(item: pystac.Item, band: str | None = None) -> str:
    """The asset key of a band.

    Parameters
    ----------
    item : pystac.Item
    band : str, optional
        Common name (`nir`, `pan`, `red` ...) or an asset key of the provider. None = the band that is best matched:
        `nir` for Sentinel-2; for Landsat `pan` (15 m) where there is one, else `nir`.

    Raises
    ------
    ItemError
        The item has no such band; the message lists the bands that it has.
    """
    table = _bands(item)
    for name in (band,) if band else sensor_of(item).default_bands:
        for key in table.get(name, (name,)):
            if key in item.assets:
                return key
        for key, asset in item.assets.items():
            if _common_names(asset) in ([name], [f"{name}08"]):
                return key
    present = [name for name, keys in table.items() if any(key in item.assets for key in keys)]
    raise ItemError(
        f"item {item.id!r}",
        rule=f"has no band {band or sensor_of(item).default_bands[-1]!r}",
        value=f"bands {present}, assets {list(item.assets)}",
        fix="choose one of these with band=",
    )


def mask_asset(item: pystac.Item) -> str | None:
    """The asset key of the pixel quality layer that `sensor_of(item).mask_decoder` reads; None if there is none."""
    return next((key for key in sensor_of(item).mask_assets if key in item.assets), None)


def scale_offset(item: pystac.Item, asset: str) -> tuple[float, float]:
    """Scale and offset of an asset: value = scale * DN + offset, reflectance for the bands of the sensor.

    Landsat: `raster:bands` of the asset where they give a reflectance, else the fixed scale of Collection 2; DN
    (1, 0) where neither does, as for Level-1 TM and ETM+. Sentinel-2: the rule of the processing baseline, *not*
    `raster:bands`, which contradict the pixels on two of three providers; items that say that the offset is already
    applied have none. An item without a baseline is judged by its date. Assets that are no band of the sensor
    (masks, temperatures) follow their `raster:bands`, else (1, 0).

    Raises
    ------
    ItemError
        No such asset.
    """
    _check_asset(item, asset)
    sensor, declared = sensor_of(item), _raster_fields(item.assets[asset])
    is_band = any(asset in keys for keys in _bands(item).values())
    if declared and (not is_band or (sensor.trust_raster_bands and "watt" not in str(declared.get("unit", "")))):
        return float(declared["scale"]), float(declared.get("offset") or 0.0)
    if not is_band:
        return 1.0, 0.0
    product = product_of(item)
    if product.platforms and platform_of(item) not in product.platforms:
        return 1.0, 0.0
    return product.scale, product.offset + _baseline_offset(item, sensor)


def _baseline_offset(item: pystac.Item, sensor: Sensor) -> float:
    rule = sensor.baseline_offset
    if rule is None or any(str(item.properties.get(field)).lower() == "true" for field in rule["applied"]):
        return 0.0
    baseline = processing_baseline(item)
    if baseline:
        return float(rule["offset"]) if baseline >= rule["from"] else 0.0
    when = item.datetime or item.common_metadata.start_datetime
    return float(rule["offset"]) if when and when.date().isoformat() >= rule["since"] else 0.0


def scene_geobox(item: pystac.Item, asset: str) -> GeoBox:
    """The pixel grid of one asset from `proj:transform`, `proj:shape` and `proj:code`; no file is opened.

    Fields of the asset win over those of the item.

    Raises
    ------
    ItemError
        No such asset, a field is missing, or the item's fields describe bands of another pixel size.
    """
    _check_asset(item, asset)
    own, common = item.assets[asset].extra_fields, item.properties
    fields: dict[str, Any] = {name: own.get(name) or common.get(name) for name in ("proj:transform", "proj:shape")}
    fields["proj:code"] = _crs(own) or _crs(common)
    missing = [name for name, value in fields.items() if not value]
    if missing:
        raise ItemError(
            f"item {item.id!r}, asset {asset!r}",
            rule=f"needs {', '.join(missing)} to know its grid without opening the file",
            fix="search a provider that gives the STAC projection extension, or use ogive.local_items for your files",
        )
    what = f"item {item.id!r}, asset {asset!r}"
    transform = Affine(*map(float, fields["proj:transform"][:6]))
    if not all(map(math.isfinite, transform)) or transform.is_degenerate:
        raise ItemError(what, rule="needs a proj:transform with pixels of some size", value=tuple(transform)[:6])
    size = next((m for band, m in sensor_of(item).pixel_size.items() if asset in _bands(item).get(band, ())), None)
    if size and "proj:transform" not in own and not math.isclose(abs(transform.a), size):
        raise ItemError(
            f"item {item.id!r}, asset {asset!r}",
            rule=f"needs a proj:transform of its own, because its pixels are {size:g} m",
            value=f"{abs(transform.a):g} m in the item's",
            fix="add proj:transform and proj:shape to the asset",
        )
    height, width = (int(n) for n in fields["proj:shape"])
    if not (0 < height <= LARGEST and 0 < width <= LARGEST):
        raise ItemError(what, rule=f"needs a proj:shape of 1 to {LARGEST} pixels a side", value=(height, width))
    crs = str(fields["proj:code"])
    if not (_CODE.fullmatch(crs) or _WKT.fullmatch(crs)):
        raise ItemError(what, rule="needs a code (EPSG:32632) or plain WKT as its coordinate system", value=crs[:200])
    return GeoBox((height, width), transform, crs)


def _crs(fields: Mapping[str, Any]) -> str | None:
    if fields.get("proj:code"):
        return str(fields["proj:code"])
    if fields.get("proj:epsg"):
        return f"EPSG:{fields['proj:epsg']}"
    return fields.get("proj:wkt2") or None


def epsg_of(item: pystac.Item) -> int | None:
    """The EPSG code of an item, or of its default band; None where it names no code."""
    places: list[Mapping[str, Any]] = [item.properties, *(asset.extra_fields for asset in item.assets.values())]
    code = next((crs for crs in map(_crs, places) if crs), "")
    return int(code.split(":")[1]) if code.upper().startswith("EPSG:") else None


def relative_orbit(item: pystac.Item) -> str:
    """The repeated ground track: `R042` for Sentinel-2, path and row `138041` for Landsat; "" where unknown.

    Two scenes of one relative orbit share their viewing geometry, so the terrain shifts them by the same amount.
    """
    sensor = sensor_of(item)
    values = [item.properties.get(field) for field in sensor.orbit_fields]
    if all(value is not None for value in values):
        return sensor.orbit_prefix + "".join(f"{int(str(value)):03d}" for value in values)
    for text in _names(item, sensor):
        match = re.search(sensor.orbit_pattern, text)
        if match:
            return sensor.orbit_prefix + "".join(group for group in match.groups() if group)
    return ""


def codes(item: pystac.Item) -> tuple[str, str, str]:
    """ITS_LIVE mission, satellite and sensor codes, e.g. ('S', '2A', 'MSI') or ('L', '8', 'C').

    Use mission and satellite together to tell platforms apart: 'C' is Landsat 8/9 here and a radar elsewhere.
    """
    sensor = sensor_of(item)
    mission, satellite, instrument = sensor.platforms[platform_of(item)].codes
    match = re.match(sensor.id_sensor_code, item.id) if sensor.id_sensor_code else None
    return mission, satellite, match[1] if match else instrument


def processing_baseline(item: pystac.Item) -> str:
    """Processing baseline (Sentinel-2: `05.10`) or collection number (Landsat: `02`); "" where unknown."""
    sensor = sensor_of(item)
    for field in sensor.baseline_fields:
        if item.properties.get(field):
            return str(item.properties[field])
    for text in _names(item, sensor) if sensor.baseline_pattern else ():
        match = re.search(sensor.baseline_pattern, text)
        if match:
            return ".".join(match.groups())
    return ""


def sun_angles(item: pystac.Item) -> tuple[float, float]:
    """Sun azimuth (clockwise from north) and elevation [degrees]; NaN where the item does not say."""
    p = item.properties
    azimuth = _number(p, "view:sun_azimuth", "s2:mean_solar_azimuth", "eo:sun_azimuth")
    elevation = _number(p, "view:sun_elevation", "eo:sun_elevation")
    return azimuth, elevation if math.isfinite(elevation) else 90.0 - _number(p, "s2:mean_solar_zenith")


def cloud_cover(item: pystac.Item, land: bool = False) -> float:
    """Cloud cover of the scene, or of its land (Landsat only) [percent]; NaN where unknown (Landsat writes -1)."""
    value = _number(item.properties, "landsat:cloud_cover_land" if land else "eo:cloud_cover")
    return value if value >= 0 else math.nan


def _number(properties: Mapping[str, Any], *names: str) -> float:
    return next((float(properties[name]) for name in names if properties.get(name) is not None), math.nan)


def _canonical(text: Any) -> str:
    return re.sub(r"[_ ]", "-", str(text or "").strip().lower())


def _collection(item: pystac.Item) -> str:
    return str(item.collection_id or item.properties.get("collection") or "")


def _names(item: pystac.Item, sensor: Sensor) -> list[str]:
    """The id and the product names, where level, orbit and baseline are spelled out."""
    fields = (item.properties.get(field) for field in sensor.product_name_fields)
    return [item.id, *(str(field) for field in fields if field)]


def _bands(item: pystac.Item) -> Mapping[str, tuple[str, ...]]:
    """Common name -> asset keys. By platform: `B5` is near infrared on Landsat 8, shortwave on Landsat 7."""
    sensor = sensor_of(item)
    return sensor.bands or sensor.platforms[platform_of(item)].bands


def _common_names(asset: pystac.Asset) -> list[str]:
    bands = asset.extra_fields.get("eo:bands") or asset.extra_fields.get("bands") or []
    # Some old items list band *numbers* here.
    return [b.get("common_name") or b.get("eo:common_name") or "" for b in bands if isinstance(b, Mapping)]


def _raster_fields(asset: pystac.Asset) -> dict[str, Any]:
    """Scale, offset and unit of the raster extension, from its three places; empty without a scale."""
    own = asset.extra_fields
    places = [*(own.get("raster:bands") or [])[:1], *(own.get("bands") or [])[:1], own]
    for place in places:
        fields = {k.removeprefix("raster:"): v for k, v in place.items()} if isinstance(place, Mapping) else {}
        if fields.get("scale"):
            return fields
    return {}


def _check_asset(item: pystac.Item, asset: str) -> None:
    if asset not in item.assets:
        raise ItemError(
            f"item {item.id!r}", rule="must have the asset", value=asset, fix=f"choose one of {list(item.assets)}"
        )


class _Catalogs(ModuleType):
    """`ogive.catalog(...)` opens catalogs, and `ogive.catalog.sensors()` and all the rest stay where they are."""

    def __call__(self, *name_or_path: Any, **parameters: Any) -> Any:
        """See `open_catalog`."""
        return open_catalog(*name_or_path, **parameters)


sys.modules[__name__].__class__ = _Catalogs
