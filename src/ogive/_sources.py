"""Where `ogive.search` gets its candidates: STAC APIs, static catalogs, files, folders, items in memory.

Each reader returns at least the items that match; `ogive.search` applies the filters to all of them alike. A source
filters only to send less: an API by area, dates, collection and cloud, a stac-geoparquet file by area and dates.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pystac
import requests
import shapely
from pystac.stac_io import DefaultStacIO
from pystac.utils import is_absolute_href, make_absolute_href
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from shapely.geometry import mapping
from shapely.geometry.base import BaseGeometry
from urllib3.util import Retry

from . import _odata, catalog
from .errors import SearchError

PAGE = 100
"""Items asked for in one page: the largest number that every endpoint of `catalogs/stac.yaml` accepts."""
BACKOFF = 0.5
"""Waiting time of the retries [s]: 0, 1, 2, 4, 8."""
VERTICES = 500
"""An area with more vertices is sent to an API as its convex hull: outlines of large glaciers exceed request limits."""


@dataclass(frozen=True)
class Query:
    """What is wanted; None = no limit."""

    region: BaseGeometry | None
    interval: tuple[datetime | None, datetime | None]
    sensor: str | None
    levels: tuple[str, ...]
    max_cloud: float | None


def read(source: Any, query: Query) -> tuple[list[pystac.Item], str]:
    """The candidates of a source, and what to call it in a message.

    Raises
    ------
    SearchError
        The source does not exist, does not answer, or holds no STAC items.
    """
    if isinstance(source, str) and source in catalog.endpoints():
        endpoint = catalog.endpoints()[source]
        return _remote(endpoint.url, query), source
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return _remote(source, query), source
    if isinstance(source, str | Path):
        return _local(Path(source), query), str(source)
    if isinstance(source, pystac.Catalog):
        return list(source.get_items(recursive=True)), f"catalog {source.id!r}"
    if isinstance(source, Iterable):
        items = list(source)
        wrong = next((item for item in items if not isinstance(item, pystac.Item)), None)
        if wrong is None:
            return items, f"{len(items)} items"
        raise SearchError(
            "source", rule="must hold pystac.Item objects", value=type(wrong).__name__, fix="convert them"
        )
    raise SearchError(
        "source", rule="must be an endpoint, an address, a path or items", value=repr(source), fix="name one"
    )


class _StaticIO(DefaultStacIO):
    """Reads static catalogs with the retries of the API client, whose own objects insist on an API behind them."""

    def __init__(self, web: StacApiIO) -> None:
        super().__init__()
        self.web = web

    def read_text_from_href(self, href: str) -> str:
        """The document at an address."""
        return self.web.read_text(href)


def _remote(url: str, query: Query) -> list[pystac.Item]:
    # 429 and 5xx pass after a while; POST is repeated as well, because a search changes nothing.
    retry = Retry(total=5, backoff_factor=BACKOFF, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None)
    stac_io = StacApiIO(max_retries=retry, timeout=60)
    try:
        doc = json.loads(stac_io.read_text(url))
        if "conformsTo" in doc:
            return _api(Client.open(url, stac_io=stac_io), url, query)
        if doc.get("type") in ("Catalog", "Collection"):
            kind = pystac.Catalog if doc["type"] == "Catalog" else pystac.Collection
            found = kind.from_file(url, stac_io=_StaticIO(stac_io))
            return [_absolute(item, url) for item in found.get_items(recursive=True)]
        return _items(doc, url)
    except (APIError, requests.RequestException, pystac.STACError, json.JSONDecodeError) as error:
        raise SearchError(
            f"source {url}",
            rule="must answer with STAC after at most 5 retries",
            value=f"{type(error).__name__}: {error}",
            fix="check the address and the network; `stac.yaml` lists known endpoints",
        ) from error
    finally:
        stac_io.session.close()


def _api(client: Client, url: str, query: Query) -> list[pystac.Item]:
    start, end = (time.isoformat().replace("+00:00", "Z") if time else ".." for time in query.interval)
    wanted: dict[str, Any] = {"collections": _collections(client, url, query), "limit": PAGE}
    if query.interval != (None, None):
        wanted["datetime"] = f"{start}/{end}"
    if query.region is not None:
        many = shapely.get_num_coordinates(query.region) > VERTICES
        wanted["intersects"] = mapping(query.region.convex_hull if many else query.region)
    if query.max_cloud is not None and client.conforms_to("QUERY"):
        wanted["query"] = {"eo:cloud_cover": {"lte": query.max_cloud}}
    return list(client.search(**wanted).items())


def _collections(client: Client, url: str, query: Query) -> list[str]:
    """The collections of an endpoint to search: for a sensor its preferred level there, for a level that level.

    Both levels of one sensor would give every scene twice.
    """
    endpoint = next((e for e in catalog.endpoints().values() if e.url.rstrip("/") == url.rstrip("/")), None)
    if endpoint:
        there = {level: [name] for level, name in endpoint.collections.items()}
    else:
        names = {collection.id for collection in client.get_collections()}
        products = [product for sensor in catalog.sensors().values() for product in sensor.products]
        there = {p.name: sorted(names & set(p.collections)) for p in products if names & set(p.collections)}
    chosen: list[str] = []
    for sensor in catalog.sensors().values():
        levels = [p.name for p in sensor.products if p.name in query.levels and p.name in there]
        chosen += there[levels[0]] if levels else []
    if not chosen:
        raise SearchError(
            f"source {url}",
            rule=f"must have a collection of {query.sensor or 'a known sensor'}",
            value=f"levels {sorted(there)}" if there else "no known collection",
            fix="choose another endpoint or sensor",
        )
    return chosen


def _local(path: Path, query: Query) -> list[pystac.Item]:
    if path.is_dir():
        entry = next((path / name for name in ("catalog.json", "collection.json") if (path / name).is_file()), None)
        if entry:
            return _local(entry, query)
        found = [item for file in sorted(path.rglob("*.*json")) for item in _file(file, strict=False)]
        if not found:
            raise SearchError(
                f"source {path}",
                rule="must hold STAC items (.json, .geojson)",
                value="a folder without any",
                fix="make items of image files with ogive.local_items",
            )
        return found
    if not path.is_file():
        raise SearchError(
            f"source {str(path)!r}",
            rule=f"must be an endpoint ({', '.join(catalog.endpoints())}), an address or an existing path",
            fix="check the spelling",
        )
    return _parquet(path, query) if path.suffix in (".parquet", ".geoparquet") else _file(path, strict=True)


def _file(path: Path, strict: bool) -> list[pystac.Item]:
    try:
        doc = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SearchError(
            f"source {path}", rule="must be JSON", value=error, fix="remove or repair the file"
        ) from error
    kind = doc.get("type") if isinstance(doc, dict) else None
    if strict and kind in ("Catalog", "Collection"):
        root = pystac.Catalog.from_file(path) if kind == "Catalog" else pystac.Collection.from_file(path)
        return [_absolute(item, str(path.resolve())) for item in root.get_items(recursive=True)]
    # A folder may hold other JSON beside the items; a file that the user names may not.
    return _items(doc, str(path.resolve())) if strict or list(_features(doc)) or _odata.is_odata(doc) else []


def _items(doc: Any, href: str) -> list[pystac.Item]:
    found = _odata.items_of(doc) if _odata.is_odata(doc) else [pystac.Item.from_dict(d) for d in _features(doc)]
    if not found:
        raise SearchError(
            f"source {href}", rule="must hold STAC items", value="none", fix="give items, not outlines or a collection"
        )
    return [_absolute(item, href) for item in found]


def _features(doc: Any) -> Iterator[dict[str, Any]]:
    """The STAC items in a document: an item, a FeatureCollection, or a list of either (recorded pages)."""
    if isinstance(doc, list):
        for part in doc:
            yield from _features(part)
    elif isinstance(doc, dict) and doc.get("type") == "FeatureCollection":
        yield from _features(doc.get("features", []))
    elif isinstance(doc, dict) and doc.get("type") == "Feature" and "stac_version" in doc:
        yield doc


def _absolute(item: pystac.Item, href: str) -> pystac.Item:
    """Asset paths relative to the item (or to the file that it came from) -> absolute, so that the item can travel."""
    base = item.get_self_href() or href
    for asset in item.assets.values():
        if not is_absolute_href(asset.href):
            asset.href = make_absolute_href(asset.href, base, start_is_dir=False)
    return item


def _parquet(path: Path, query: Query) -> list[pystac.Item]:
    try:
        import pyarrow.compute as pc
        import pyarrow.dataset as ds
        import rustac
    except ModuleNotFoundError as error:
        raise SearchError(
            f"source {path}", rule="needs rustac and pyarrow", value=error, fix='pip install "ogive[search]"'
        ) from error
    dataset = ds.dataset(path)
    tests = []
    if query.region is not None and "bbox" in dataset.schema.names:
        west, south, east, north = query.region.bounds
        tests += [pc.field("bbox", "xmin") <= east, pc.field("bbox", "xmax") >= west]
        tests += [pc.field("bbox", "ymin") <= north, pc.field("bbox", "ymax") >= south]
    start, end = query.interval
    tests += [pc.field("datetime") >= start] if start else []
    tests += [pc.field("datetime") <= end] if end else []
    where = None
    for test in tests:
        where = test if where is None else where & test
    table = dataset.to_table(filter=where)
    return _items(rustac.from_arrow(table), str(path.resolve())) if table.num_rows else []
