"""Where `ogive.search` gets its candidates: STAC APIs, static catalogs, files, folders, items in memory.

Each reader returns at least the items that match; `ogive.search` applies the filters to all of them alike. A source
filters only to send less: an API by area, dates, collection and cloud, a stac-geoparquet file by area and dates.

What a source says is not believed further than it must be: an address leads to no other host and to no file of this
machine, a catalogue on disk to nothing outside its folder, and a file of items names images in its folder or in the
one that the user gives (SECURITY.md).
"""

import json
import logging
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pystac
import requests
import shapely
from pystac.stac_io import DefaultStacIO
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from shapely.geometry import mapping
from shapely.geometry.base import BaseGeometry
from urllib3.util import Retry

from . import _access, _odata, catalog
from ._trust import is_web, local_path, redact, understood, without_secrets
from .errors import ItemError, OgiveError, SearchError

ADDRESSES = ("http://", "https://")
PAGE = 100
"""Items asked for in one page: the largest number that every endpoint of `catalogs/stac.yaml` accepts."""
BACKOFF = 0.5
"""Waiting time of the retries [s]: 0, 1, 2, 4, 8."""
VERTICES = 500
"""An area with more vertices is sent to an API as its convex hull: outlines of large glaciers exceed request limits."""
# Both print every address that they ask for, and one of them the headers too.
for _name in ("urllib3.connectionpool", "urllib3.util.retry", "pystac_client.stac_api_io"):
    logging.getLogger(_name).addFilter(redact)


@dataclass(frozen=True)
class Query:
    """What is wanted; None = no limit. `files` is the folder that a file of items may name images in."""

    region: BaseGeometry | None
    interval: tuple[datetime | None, datetime | None]
    sensor: str | None
    levels: tuple[str, ...]
    max_cloud: float | None
    files: Path | None = None


def read(source: Any, query: Query) -> tuple[list[pystac.Item], str]:
    """The candidates of a source, and what to call it in a message.

    Raises
    ------
    SearchError
        The source does not exist, does not answer, or holds no STAC items.
    """
    if isinstance(source, str) and source in catalog.endpoints():
        return _remote(catalog.endpoints()[source].url, query), source
    if isinstance(source, str) and source.startswith(ADDRESSES):
        return _remote(source, query), without_secrets(source)
    if isinstance(source, str | Path):
        try:
            return _local(Path(source), query), str(source)
        except OSError as error:
            raise SearchError(f"source {source!s:.200}", rule="must be readable", value=error) from error
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


class _HostIO(StacApiIO):
    """Asks one host only, whatever its links and redirections say."""

    def __init__(self, url: str, retry: Retry) -> None:
        super().__init__(max_retries=retry, timeout=60)
        self.host = urlsplit(url).netloc.rpartition("@")[2].lower()
        self.session.hooks["response"].append(self._stay)

    def request(self, href: str, *args: Any, **kwargs: Any) -> str:
        """The answer of an address of this host."""
        self._check(href)
        return super().request(href, *args, **kwargs)

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        """The document at an address; never a file of this machine."""
        if isinstance(source, str):
            self._check(source)
        return super().read_text(source, *args, **kwargs)

    def _stay(self, response: requests.Response, **_: Any) -> None:
        if response.is_redirect:
            self._check(urljoin(response.url, response.headers["location"]))

    def _check(self, href: str) -> None:
        address = urlsplit(href)
        if address.scheme not in ("http", "https") or address.netloc.rpartition("@")[2].lower() != self.host:
            raise SearchError(
                f"source at {self.host}", rule="must not lead to another host or to a file",
                value=without_secrets(href), fix="name that address as the source, if you trust it",
            )  # fmt: skip


class _StaticIO(DefaultStacIO):
    """Reads static catalogues with the client of APIs, whose own objects insist on an API behind them."""

    def __init__(self, web: _HostIO) -> None:
        super().__init__()
        self.web = web

    def read_text_from_href(self, href: str) -> str:
        """The document at an address."""
        return self.web.read_text(href)


class _FolderIO(DefaultStacIO):
    """Reads a catalogue on disk, and nothing outside its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def read_text_from_href(self, href: str) -> str:
        """The document at a path."""
        if is_web(href) or not local_path(href).resolve().is_relative_to(self.folder):
            raise SearchError(
                f"catalogue in {self.folder}", rule="must not lead out of its folder", value=without_secrets(href),
                fix="name that place as the source, if you trust it",
            )  # fmt: skip
        return super().read_text_from_href(href)


def _remote(url: str, query: Query) -> list[pystac.Item]:
    # 429 and 5xx pass after a while; POST is repeated as well, because a search changes nothing.
    retry = Retry(total=5, backoff_factor=BACKOFF, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None)
    shown = without_secrets(url)
    try:
        stac_io = _HostIO(url, retry)
    except ValueError as error:
        raise SearchError(f"source {shown}", rule="must be an address", fix="check the spelling") from error
    try:
        doc = json.loads(stac_io.read_text(url))
        with understood(f"source {shown}", SearchError):
            if isinstance(doc, dict) and "conformsTo" in doc:
                found, endpoint = _api(Client.open(url, stac_io=stac_io), url, query), _endpoint(url)
                if endpoint is not None and endpoint.signer is not None:
                    for item in found:
                        item.properties[_access.PROPERTY] = endpoint.signer
            elif isinstance(doc, dict) and doc.get("type") in ("Catalog", "Collection"):
                kind = pystac.Catalog if doc["type"] == "Catalog" else pystac.Collection
                found = list(kind.from_file(url, stac_io=_StaticIO(stac_io)).get_items(recursive=True))
            else:
                found = _items(doc, shown)
            return [_absolute(item, url, None) for item in found]
    except OgiveError:
        raise
    except (APIError, requests.RequestException, ValueError, RecursionError) as error:
        raise SearchError(
            f"source {shown}",
            rule="must answer with STAC after at most 5 retries",
            value=f"{type(error).__name__}: {without_secrets(str(error))}",
            fix="check the address and the network; `stac.yaml` lists known endpoints",
        ) from (error if shown == url else None)  # the error below ours would print what ours leaves out
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
    endpoint = _endpoint(url)
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
            f"source {without_secrets(url)}",
            rule=f"must have a collection of {query.sensor or 'a known sensor'}",
            value=f"levels {sorted(there)}" if there else "no known collection",
            fix="choose another endpoint or sensor",
        )
    return chosen


def _endpoint(url: str) -> catalog.Endpoint | None:
    """The endpoint of `catalogs/stac.yaml` with this address."""
    return next((e for e in catalog.endpoints().values() if e.url.rstrip("/") == url.rstrip("/")), None)


def _local(path: Path, query: Query) -> list[pystac.Item]:
    if path.is_dir():
        entry = next((path / name for name in ("catalog.json", "collection.json") if (path / name).is_file()), None)
        if entry:
            return _local(entry, query)
        found = [item for file in sorted(path.rglob("*.*json")) for item in _file(file, False, query.files or path)]
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
    return _parquet(path, query) if path.suffix in (".parquet", ".geoparquet") else _file(path, True, query.files)


def _file(path: Path, strict: bool, files: Path | None = None) -> list[pystac.Item]:
    try:
        doc = json.loads(path.read_text())
    except (ValueError, RecursionError, OSError) as error:
        raise SearchError(
            f"source {path}", rule="must be JSON", value=error, fix="remove or repair the file"
        ) from error
    home = path.resolve()
    with understood(f"source {path}", SearchError):
        kind = doc.get("type") if isinstance(doc, dict) else None
        if strict and kind in ("Catalog", "Collection"):
            opened = pystac.Catalog if kind == "Catalog" else pystac.Collection
            root = opened.from_file(path, stac_io=_FolderIO(home.parent))
            return [
                _absolute(item, item.get_self_href() or str(home), files or home.parent)
                for item in root.get_items(recursive=True)
            ]
        # A folder may hold other JSON beside the items; a file that the user names may not.
        if not (strict or any(_features(doc)) or _odata.is_odata(doc)):
            return []
        return [_absolute(item, str(home), files or home.parent) for item in _items(doc, str(home))]


def _items(doc: Any, name: str) -> list[pystac.Item]:
    found = _odata.items_of(doc) if _odata.is_odata(doc) else [pystac.Item.from_dict(d) for d in _features(doc)]
    if not found:
        raise SearchError(
            f"source {name}", rule="must hold STAC items", value="none", fix="give items, not outlines or a collection"
        )
    return found


def _features(doc: Any) -> Iterator[dict[str, Any]]:
    """The STAC items in a document: an item, a FeatureCollection, or a list of either (recorded pages)."""
    if isinstance(doc, list):
        for part in doc:
            yield from _features(part)
    elif isinstance(doc, dict) and doc.get("type") == "FeatureCollection":
        yield from _features(doc.get("features", []))
    elif isinstance(doc, dict) and doc.get("type") == "Feature" and "stac_version" in doc:
        yield doc


def _absolute(item: pystac.Item, home: str, files: Path | None) -> pystac.Item:
    """Asset paths relative to the item (or to where it came from) -> absolute, so that the item can travel.

    Raises
    ------
    ItemError
        An asset that is a file of this machine, and not in the folder `files`; None: from elsewhere, so in no folder.
    """
    own = item.get_self_href()
    # An item that says that it comes from elsewhere is one from elsewhere, also in a file.
    base, files = (own, None) if own and is_web(own) else (home, files)
    for key, asset in item.assets.items():
        href = asset.href if isinstance(asset.href, str) else ""
        if ":" not in href.partition("/")[0] and not href.startswith("/"):
            asset.href = href = urljoin(base, href) if is_web(base) else str(local_path(base).parent / href)
        if is_web(href) or (":" in href.partition("/")[0] and href[:5].lower() != "file:"):
            continue  # what kinds of addresses are read at all is up to `open_cube`
        if files is None or not local_path(href).resolve().is_relative_to(files.resolve()):
            raise ItemError(
                f"item {item.id!r}, asset {key!r}",
                rule="names a file of this machine, and comes from elsewhere" if files is None
                else f"names a file outside {files}",
                value=href, fix="leave the item out" if files is None else "say files=<folder of the images>",
            )  # fmt: skip
    return item


def _parquet(path: Path, query: Query) -> list[pystac.Item]:
    try:
        import pyarrow
        import pyarrow.compute as pc
        import pyarrow.dataset as ds
        import rustac
    except ModuleNotFoundError as error:
        raise SearchError(
            f"source {path}", rule="needs rustac and pyarrow", value=error, fix='pip install "ogive[search]"'
        ) from error
    try:
        dataset = ds.dataset(path)
        table = dataset.to_table(filter=_where(dataset.schema.names, query, pc))
    except (pyarrow.ArrowException, OSError) as error:
        raise SearchError(
            f"source {path}", rule="must be stac-geoparquet", value=error, fix="write it again"
        ) from error
    if not table.num_rows:
        return []
    with understood(f"source {path}", SearchError):
        home = path.resolve()
        found = _items(rustac.from_arrow(table), str(path))
        return [_absolute(item, str(home), query.files or home.parent) for item in found]


def _where(columns: list[str], query: Query, pc: Any) -> Any:
    """Area and dates as a condition on the columns of a table; None where everything is wanted."""
    tests = []
    if query.region is not None and "bbox" in columns:
        west, south, east, north = query.region.bounds
        tests += [pc.field("bbox", "xmin") <= east, pc.field("bbox", "xmax") >= west]
        tests += [pc.field("bbox", "ymin") <= north, pc.field("bbox", "ymax") >= south]
    start, end = query.interval
    tests += [pc.field("datetime") >= start] if start else []
    tests += [pc.field("datetime") <= end] if end else []
    return reduce(operator.and_, tests) if tests else None
