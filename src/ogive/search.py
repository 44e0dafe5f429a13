"""Find scenes: any source of STAC items -> one `pystac.ItemCollection`.

    source ─► candidates (what it holds) ─► filters (area, dates, sensor, cloud) ─► no duplicates ─► by date ─► limit

An API, a static catalog, a file, a folder and a list of items all pass the same filters here, even where the source
has filtered already: so that the same scenes in another place give the same collection.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pystac
import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from . import catalog
from ._trust import understood
from .aoi import resolve_aoi
from .errors import ItemError, ParameterError, SearchError

if TYPE_CHECKING:
    from ._sources import Query

log = logging.getLogger("ogive")


def search(
    aoi: Any,
    datetime: Any = None,
    *,
    sensor: str | None = None,
    max_cloud: float | None = None,
    source: Any = "earth-search",
    limit: int | None = None,
    outlines: Any = None,
    files: str | Path | None = None,
) -> pystac.ItemCollection:
    """Search scenes over an area.

    Parameters
    ----------
    aoi : box, GeoJSON, path, geometry, RGI id, or None
        See `ogive.aoi.resolve_aoi`; None = everywhere. Scenes whose footprint touches it are found.
    datetime : str, datetime or pair of them, optional
        As in STAC: ``"2020-06/2022-10"``, ``"2021"``, ``"2021-07-01/.."``; both ends are included.
    sensor : str, optional
        Sensor (`sentinel-2`, `landsat`: its first level that is there) or level (`sentinel-2-l2a`,
        `sentinel-2-l1c`, `landsat-c2-l1`, `landsat-c2-l2`). None = every sensor that ogive knows.
    max_cloud : float, optional
        Largest cloud cover of the scene [percent]; scenes that do not state it are left out.
    source : str, Path, ItemCollection or iterable of items
        Name of an endpoint of `catalogs/stac.yaml`; address of a STAC API; path or address of a static catalog
        (catalog.json, collection.json); file of items (.json, .geojson, or stac-geoparquet .parquet); folder of them.
    limit : int, optional
        Keep the first ones by date. All pages are read nevertheless, so that "first" does not depend on the source.
    outlines : path or GeoDataFrame, optional
        Where RGI ids are looked up.
    files : str or Path, optional
        The folder that a file of items may name images in, its subfolders included. Default: the folder of that file.

    Returns
    -------
    pystac.ItemCollection
        Unsigned, sorted by date and id, every id once.

    Raises
    ------
    SearchError
        The source cannot be read, or nothing is left; the message says which filter removed how many.
    ParameterError
        `max_cloud`, `limit`, `sensor` or `datetime` are not possible values.
    ItemError
        An item has a field that cannot be understood, or names a file of this machine that it may not (SECURITY.md).

    Examples
    --------
    >>> from datetime import UTC, datetime
    >>> square = {"type": "Polygon", "coordinates": [[[10, 46], [11, 46], [11, 47], [10, 47], [10, 46]]]}
    >>> items = [
    ...     pystac.Item(f"S2A_32TPS_202107{day:02}_0_L2A", square, None, datetime(2021, 7, day, tzinfo=UTC), {})
    ...     for day in (20, 5)
    ... ]
    >>> [item.id for item in search((10.7, 46.7, 10.9, 46.9), "2021-07", source=items)]
    ['S2A_32TPS_20210705_0_L2A', 'S2A_32TPS_20210720_0_L2A']
    """
    if max_cloud is not None and not 0 <= max_cloud <= 100:
        raise ParameterError("max_cloud", rule="must be within 0..100 percent", value=max_cloud, fix="use 60")
    if limit is not None and limit < 1:
        raise ParameterError("limit", rule="must be at least 1", value=limit, fix="leave it out for all scenes")
    levels = _levels(sensor)
    region = None if aoi is None else resolve_aoi(aoi, outlines)
    from . import _sources  # pystac-client takes seconds to load where schemas of Jupyter are installed

    query = _sources.Query(
        region, _interval(datetime), sensor, levels, max_cloud, None if files is None else Path(files)
    )
    candidates, name = _sources.read(source, query)
    kept, removed = _filter(candidates, query)
    kept.sort(key=_order)
    if not kept:
        counts = ", ".join(f"{count} by {reason}" for reason, count in removed.most_common())
        raise SearchError(
            f"search in {name}",
            rule="no scene is left",
            value=f"{len(candidates)} candidates; removed {counts}" if candidates else "no candidate in the source",
            fix="widen the filter that removed most" if candidates else "check area, dates and source",
        )
    log.info("search in %s: %d scenes of %d candidates", name, len(kept), len(candidates))
    return pystac.ItemCollection(kept[:limit], clone_items=False)


def scene_table(items: Iterable[pystac.Item], aoi: Any = None) -> pd.DataFrame:
    """One row per scene, to look at what was found before any pixel is read.

    Parameters
    ----------
    items : ItemCollection or iterable of items
    aoi : as in `search`, optional

    Returns
    -------
    pandas.DataFrame
        `id`, `datetime` (UTC), `sensor`, `platform`, `relative_orbit`, `sun_azimuth`, `sun_elevation` [degrees],
        `cloud_cover`, `cloud_cover_land` [percent], `overlap` (share of the area of interest inside the footprint,
        0..1, in a local equal-area projection; NaN without `aoi`), `processing_baseline`, `epsg`.

    Raises
    ------
    ItemError
        An item of an unknown sensor, or without a date.
    """
    region = None if aoi is None else resolve_aoi(aoi)
    rows = []
    footprints = []
    for item in items:
        with understood(f"item {item.id!r:.80}"):
            rows.append(_row(item))
            footprints.append(None if region is None else _footprint(item))
    columns = ["id", "datetime", "sensor", "platform", "relative_orbit", "sun_azimuth", "sun_elevation"]
    columns += ["cloud_cover", "cloud_cover_land", "processing_baseline", "epsg"]
    table = pd.DataFrame(rows, columns=columns).astype({"datetime": "datetime64[ns]", "epsg": "Int64"})
    overlap = np.full(len(table), np.nan) if region is None else _overlap(footprints, region)
    table.insert(columns.index("processing_baseline"), "overlap", overlap)
    return table


def _row(item: pystac.Item) -> dict[str, Any]:
    azimuth, elevation = catalog.sun_angles(item)
    return {
        "id": item.id,
        "datetime": pd.Timestamp(_date(item)).tz_convert(None),
        "sensor": catalog.sensor_of(item).name,
        "platform": catalog.platform_of(item),
        "relative_orbit": catalog.relative_orbit(item),
        "sun_azimuth": azimuth,
        "sun_elevation": elevation,
        "cloud_cover": catalog.cloud_cover(item),
        "cloud_cover_land": catalog.cloud_cover(item, land=True),
        "processing_baseline": catalog.processing_baseline(item),
        "epsg": catalog.epsg_of(item),
    }


def _levels(sensor: str | None) -> tuple[str, ...]:
    """The levels that a sensor or level name stands for, the preferred one first."""
    known = catalog.sensors()
    if sensor is None:
        return tuple(product.name for found in known.values() for product in found.products)
    if sensor in known:
        return tuple(product.name for product in known[sensor].products)
    levels = [p.name for found in known.values() for p in found.products if sensor == p.name or sensor in p.collections]
    if not levels:
        names = [*known, *(product.name for found in known.values() for product in found.products)]
        raise ParameterError("sensor", rule=f"must be one of {names}", value=sensor, fix="choose one of them")
    return tuple(levels)


def _interval(value: Any) -> tuple[datetime | None, datetime | None]:
    """First and last moment, parsed by pystac-client itself, so that every source understands the same text."""
    if value is None:
        return None, None
    from pystac_client import ItemSearch

    try:
        text = ItemSearch("https://stac.invalid", datetime=value).get_parameters()["datetime"]
    except Exception as error:  # pystac-client raises plain Exception
        raise ParameterError("datetime", rule=str(error), value=value, fix='write "2020-06/2022-10"') from error
    start, _, end = text.partition("/")
    first, last = (None if part in ("", "..") else datetime.fromisoformat(part) for part in (start, end or start))
    if first and last and first > last:
        raise ParameterError("datetime", rule="must start before it ends", value=value, fix="swap the two dates")
    return first, last


def _filter(items: Iterable[pystac.Item], query: "Query") -> tuple[list[pystac.Item], Counter[str]]:
    """Apply every filter to every item; count what each one removed."""
    removed: Counter[str] = Counter()
    kept: dict[str, pystac.Item] = {}
    for item in items:
        with understood(f"item {item.id!r:.80}"):
            reason = _reason(item, query)
        if reason:
            removed[reason] += 1
        elif item.id in kept:
            removed["duplicate id"] += 1
            # A reprocessed item keeps its id at some providers: the latest update wins, whatever the order.
            kept[item.id] = max(kept[item.id], item, key=lambda i: str(i.properties.get("updated", "")))
        else:
            kept[item.id] = item
    if removed["unknown sensor"] > 0:
        log.warning("search: %d items of a sensor that ogive does not know are left out", removed["unknown sensor"])
    chosen = _one_level(list(kept.values()))
    removed["other level of the sensor"] = len(kept) - len(chosen)
    return chosen, +removed


def _one_level(items: list[pystac.Item]) -> list[pystac.Item]:
    """Where several levels of a sensor are there and none is asked for, keep the preferred one.

    An API is asked for one level only; in a file that holds two, every scene would be there twice.
    """
    levels = []
    for item in items:
        try:
            levels.append(catalog.product_of(item).name)
        except ItemError:  # of a level that no file describes: a level of its own
            levels.append("")
    preferred = set()
    for sensor in catalog.sensors().values():
        names = [product.name for product in sensor.products if product.name in levels]
        preferred |= set(names[:1])
    return [item for item, level in zip(items, levels, strict=True) if not level or level in preferred]


def _reason(item: pystac.Item, query: "Query") -> str:
    """Why an item is not wanted; "" if it is."""
    if not isinstance(item.id, str):
        raise ItemError("item", rule="must have a text as its id", value=repr(item.id)[:80])
    try:
        sensor = catalog.sensor_of(item)
        level = catalog.product_of(item).name if query.sensor and query.sensor != sensor.name else None
    except ItemError:
        return "unknown sensor"
    if (level or sensor.products[0].name) not in query.levels:
        return "sensor"
    first, last = query.interval
    date = _date(item)
    if (first and date < first) or (last and date > last):
        return "datetime"
    if query.max_cloud is not None:
        cloud = catalog.cloud_cover(item)
        if not cloud <= query.max_cloud:
            return "cloud cover" if np.isfinite(cloud) else "unknown cloud cover"
    if query.region is not None:
        footprint = _footprint(item)
        if footprint is None or not footprint.intersects(query.region):
            return "area of interest"
    return ""


def _order(item: pystac.Item) -> tuple[datetime, str]:
    return _date(item), item.id


def _date(item: pystac.Item) -> datetime:
    date = item.datetime or item.common_metadata.start_datetime
    if date is None:
        raise ItemError(f"item {item.id!r}", rule="needs a date", fix="set its datetime or start_datetime")
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _footprint(item: pystac.Item) -> BaseGeometry | None:
    if item.geometry is None:
        # A box has four numbers, or six with heights in between.
        if item.bbox is None:
            return None
        west, south, east, north = (item.bbox[i] for i in ((0, 1, 3, 4) if len(item.bbox) == 6 else (0, 1, 2, 3)))
        return shapely.box(west, south, east, north)
    geometry = shape(item.geometry)
    return geometry if geometry.is_valid else shapely.make_valid(geometry)


def _overlap(footprints: list[BaseGeometry | None], region: BaseGeometry) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Share of the region inside each footprint, shape (footprints,), in an equal-area projection around the region."""
    centre = region.representative_point()
    crs = f"+proj=laea +lat_0={centre.y} +lon_0={centre.x} +datum=WGS84 +units=m"
    share = np.zeros(len(footprints))
    # Far footprints are not projected: on the other side of the Earth the projection has no finite coordinates.
    near = [i for i, footprint in enumerate(footprints) if footprint is not None and footprint.intersects(region)]
    local = gpd.GeoSeries([region, *(footprints[i] for i in near)], crs=4326).to_crs(crs)
    area = local.iloc[0].area
    for i, footprint in zip(near, local.iloc[1:].make_valid(), strict=True):
        share[i] = min(1.0, footprint.intersection(local.iloc[0]).area / area) if area > 0 else 1.0
    return share
