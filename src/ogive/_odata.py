"""Copernicus Data Space answers in OData, not STAC; this makes STAC items of its Sentinel-2 products.

An OData product is a whole SAFE folder: it has no band assets, so these items serve for planning (dates, tiles,
orbits, clouds, pairs), and `catalog.band_asset` says so. For pixels search the endpoint `cdse` instead.
"""

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pystac
import shapely
from shapely.geometry import mapping, shape

from .errors import SearchError

_NAME = re.compile(r"S2([A-D])_MSI(L\w\w)_\d{8}T\d{6}_N(\d{2})(\d{2})_R(\d{3})_T(\d{2})([C-X])([A-Z]{2})_")


def is_odata(doc: Any) -> bool:
    """True for an OData answer: a dict with a list `value` of products."""
    return isinstance(doc, Mapping) and "@odata.context" in doc and isinstance(doc.get("value"), list)


def items_of(doc: Mapping[str, Any]) -> list[pystac.Item]:
    """STAC items of an OData answer (`Products?$expand=Attributes`).

    Raises
    ------
    SearchError
        A product is not Sentinel-2 MSI.
    """
    return [_item(product) for product in doc["value"]]


def _item(product: Mapping[str, Any]) -> pystac.Item:
    name = str(product["Name"]).removesuffix(".SAFE")
    match = _NAME.match(name)
    if not match:
        raise SearchError(
            f"OData product {name!r}", rule="must be a Sentinel-2 MSI product", fix="restrict the query to SENTINEL-2"
        )
    unit, level, major, minor, orbit, zone, latitude_band, square = match.groups()
    attributes = {a["Name"]: a["Value"] for a in product.get("Attributes", [])}
    tile = f"{zone}{latitude_band}{square}"
    properties = {
        "platform": f"sentinel-2{unit.lower()}",
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "sat:relative_orbit": int(orbit),
        "grid:code": f"MGRS-{tile}",
        # A tile of the Sentinel-2 grid is always in the UTM zone that its name gives; bands N to X are north.
        "proj:code": f"EPSG:{(32600 if latitude_band >= 'N' else 32700) + int(zone)}",
        "s2:mgrs_tile": tile,
        "s2:processing_baseline": f"{major}.{minor}",
        "s2:product_uri": str(product["Name"]),
    }
    if "cloudCover" in attributes:
        properties["eo:cloud_cover"] = float(attributes["cloudCover"])
    geometry = shape(product["GeoFootprint"])
    start = pd.Timestamp(product["ContentDate"]["Start"]).to_pydatetime()
    collection = f"sentinel-2-{level.lower()}"
    item = pystac.Item(
        name, mapping(geometry), list(shapely.bounds(geometry)), start, properties, collection=collection
    )
    href = "s3://" + str(product["S3Path"]).lstrip("/")
    item.add_asset("product", pystac.Asset(href, title="SAFE folder", roles=["metadata"]))
    return item
