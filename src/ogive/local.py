"""Image files on disk -> STAC items, so that they enter the same pipeline as scenes of an archive.

Two kinds of folder are understood:

- Landsat bands (GeoTIFF) beside their `*_MTL.txt` (Collection 1, Collection 2, pre-collection). The files may be cut
  out or renamed at the end (`..._B8_yahtse.TIF`): what counts is that the name begins as the MTL says.
- single Sentinel-2 bands whose name carries platform, time and tile: `S2A_20160608T153121_T33UUU`.

Grid and coordinate system come from the file headers, everything else from the MTL or the name. No pixel is read.
"""

import json
import re
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas as gpd
import pystac
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from shapely.geometry import mapping

from . import catalog
from ._trust import unsigned
from .errors import ItemError, SearchError

_EXTENSIONS = [
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("projection/v2.0.0", "eo/v1.1.0", "view/v1.0.0", "raster/v1.1.0")
]
_IMAGES = (".tif", ".tiff", ".jp2")
_LANDSAT = re.compile(r"L[COTEM]\d{2}[_\d]", re.IGNORECASE)
_SENTINEL2 = re.compile(r"S2([A-D])_(?:MSI(L\w\w)_)?(\d{8}T\d{6})_(?:\w*_)?T(\d{2}[C-X][A-Z]{2})")
_SPELLING = {"CLOUD_COVER": "eo:cloud_cover", "CLOUD_COVER_LAND": "landsat:cloud_cover_land"} | {
    "SUN_AZIMUTH": "view:sun_azimuth",
    "SUN_ELEVATION": "view:sun_elevation",
}


def local_items(folder: str | Path, *, band: str = "nir", relative_orbit: int | None = None) -> pystac.ItemCollection:
    """Make STAC items of the image files in a folder (its subfolders included).

    Parameters
    ----------
    folder : str or Path
    band : str
        Common band name of the Sentinel-2 files, whose names do not always say it.
    relative_orbit : int, optional
        Relative orbit of the Sentinel-2 files, if their names do not carry it (`_R042_`). Without it `relative_orbit`
        is unknown.

    Returns
    -------
    pystac.ItemCollection
        Sorted by date and id. Assets are keyed by common band name, with absolute paths, `proj:code`, `proj:shape`
        and `proj:transform`; Landsat bands carry the reflectance scale of their MTL in `raster:bands`.

    Raises
    ------
    SearchError
        No such folder, or no image file that can be understood.
    ItemError
        A Landsat image without MTL, an MTL without image or without a needed field, a file without coordinate system.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SearchError(f"folder {str(folder)!r}", rule="must exist", fix="check the path")
    images = sorted(path for path in root.rglob("*") if path.suffix.lower() in _IMAGES)
    items = []
    for mtl in sorted(path for path in root.rglob("*") if path.name.upper().endswith("_MTL.TXT")):
        prefix = mtl.name[: -len("_MTL.txt")].upper()
        scene = [path for path in images if path.parent == mtl.parent and path.name.upper().startswith(prefix)]
        items.append(_landsat_item(mtl, scene))
        images = [path for path in images if path not in scene]
    for path in images:
        if _SENTINEL2.search(path.name):
            items.append(_sentinel2_item(path, band, relative_orbit))
        elif _LANDSAT.match(path.name):
            raise ItemError(
                f"file {path}", rule="needs its *_MTL.txt beside it", fix="copy it from the Landsat product"
            )
    if not items:
        raise SearchError(
            f"folder {str(root)!r}",
            rule="must hold Landsat images with *_MTL.txt, or Sentinel-2 images named S2A_YYYYMMDDTHHMMSS_Txxxxx",
            value=f"{len(images)} other images",
            fix="add the MTL file or rename the images",
        )
    items.sort(key=lambda item: (item.datetime, item.id))
    return pystac.ItemCollection(items, clone_items=False)


def write_items(items: pystac.ItemCollection, path: str | Path) -> Path:
    """Save items as one GeoJSON file that `ogive.search(source=path)` reads back; signatures are left out.

    Parameters
    ----------
    items : ItemCollection or iterable of items
    path : str or Path
        Written whole or not at all.

    Returns
    -------
    Path
    """
    target = Path(path)
    doc: dict[str, Any] = {
        "type": "FeatureCollection",
        "features": [item.to_dict(transform_hrefs=False) for item in items],
    }
    for feature in doc["features"]:
        for part in (*feature["assets"].values(), *feature["links"]):
            part["href"] = unsigned(part["href"])
    scratch = target.with_name(target.name + ".part")
    scratch.write_text(json.dumps(doc))
    return scratch.replace(target)


def read_mtl(path: str | Path) -> dict[str, str]:
    """The fields of a Landsat MTL file, whatever its groups are called.

    Level-2 files repeat the Level-1 fields further down under the same names; the first one is that of the product.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "X_MTL.txt"
    >>> _ = file.write_text('GROUP = A\\n  SUN_AZIMUTH = 159.6\\n  SPACECRAFT_ID = "LANDSAT_8"\\nEND_GROUP = A\\nEND')
    >>> read_mtl(file)
    {'SUN_AZIMUTH': '159.6', 'SPACECRAFT_ID': 'LANDSAT_8'}
    """
    fields: dict[str, str] = {}
    for line in Path(path).read_text().splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals and key not in ("GROUP", "END_GROUP"):
            fields.setdefault(key, value.strip('"'))
    return fields


def _landsat_item(mtl: Path, images: list[Path]) -> pystac.Item:
    fields = read_mtl(mtl)
    needed = ("SPACECRAFT_ID", "SENSOR_ID", "DATE_ACQUIRED", "WRS_PATH", "WRS_ROW")
    missing = [name for name in needed if name not in fields]
    if missing:
        raise ItemError(f"file {mtl}", rule=f"must hold {', '.join(missing)}", fix="use the MTL of the Landsat product")
    platform = fields["SPACECRAFT_ID"].lower().replace("_", "-")
    known = catalog.sensors()["landsat"].platforms
    if platform not in known or "MSS" in fields["SENSOR_ID"]:
        value = f"{platform} {fields['SENSOR_ID']}"
        raise ItemError(
            f"file {mtl}", rule=f"must be TM, ETM+ or OLI of {list(known)}", value=value, fix="leave it out"
        )
    assets = _landsat_assets(fields, images, known[platform].bands)
    if not assets:
        raise ItemError(
            f"file {mtl}",
            rule="needs an image of one of its bands (FILE_NAME_BAND_*) beside it",
            value=[path.name for path in images] or "no image of this scene",
            fix="copy the band files beside it, keeping the beginning of their names",
        )
    properties: dict[str, Any] = {
        "platform": platform,
        "instruments": fields["SENSOR_ID"].lower().split("_"),
        "constellation": "landsat",
        "landsat:wrs_path": f"{int(fields['WRS_PATH']):03d}",
        "landsat:wrs_row": f"{int(fields['WRS_ROW']):03d}",
    }
    # Before Collection 1 there was no number.
    if "COLLECTION_NUMBER" in fields:
        properties["landsat:collection_number"] = fields["COLLECTION_NUMBER"].zfill(2)
    # -1 means that it was not computed.
    properties |= {new: float(fields[old]) for old, new in _SPELLING.items() if old in fields and fields[old] != "-1"}
    time = fields.get("SCENE_CENTER_TIME", "00:00:00Z").rstrip("Z")[:15]
    date = datetime.fromisoformat(f"{fields['DATE_ACQUIRED']}T{time}").replace(tzinfo=UTC)
    name = fields.get("LANDSAT_PRODUCT_ID") or fields.get("LANDSAT_SCENE_ID") or mtl.name[: -len("_MTL.txt")]
    level = "landsat-c2-l2" if "_L2" in name else "landsat-c2-l1" if "_02_" in name else "landsat-c1-l1"
    return _item(name, date, properties, assets, level)


def _landsat_assets(
    fields: Mapping[str, str], images: list[Path], bands: Mapping[str, tuple[str, ...]]
) -> dict[str, pystac.Asset]:
    names = {key: name for name, keys in bands.items() for key in keys}
    assets = {}
    for field, file in fields.items():
        number = field.removeprefix("FILE_NAME_BAND_")
        name = "qa_pixel" if field == "FILE_NAME_QUALITY_L1_PIXEL" else names.get(f"B{number}")
        if not field.startswith("FILE_NAME_") or name is None:
            continue
        # Not followed by a digit, or band 1 would also find band 10.
        pattern = re.compile(re.escape(Path(file).stem) + r"(?!\d)", re.IGNORECASE)
        path = next((image for image in images if pattern.match(image.stem)), None)
        if path:
            extra: dict[str, Any] = {}
            if f"REFLECTANCE_MULT_BAND_{number}" in fields:
                scale, offset = (float(fields[f"REFLECTANCE_{part}_BAND_{number}"]) for part in ("MULT", "ADD"))
                extra["raster:bands"] = [{"scale": scale, "offset": offset}]
            assets[name] = _asset(path, extra)
    return assets


def _sentinel2_item(path: Path, band: str, relative_orbit: int | None) -> pystac.Item:
    match = _SENTINEL2.search(path.name)
    assert match is not None  # the caller has looked
    unit, level, date, tile = match.groups()
    properties: dict[str, Any] = {
        "platform": f"sentinel-2{unit.lower()}",
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "grid:code": f"MGRS-{tile}",
        "s2:product_uri": path.name,
    }
    if relative_orbit is not None:
        properties["sat:relative_orbit"] = relative_orbit
    time = datetime.strptime(date, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    assets = {band: _asset(path, {})}
    return _item(path.stem, time, properties, assets, f"sentinel-2-{(level or 'l1c').lower()}")


def _asset(path: Path, extra: dict[str, Any]) -> pystac.Asset:
    """An asset with the grid of its file; the header is read, no pixel."""
    try:
        with warnings.catch_warnings():  # a file without georeference is an error below, with a better message
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as file:
                crs, shape, transform = file.crs, file.shape, file.transform
    except RasterioIOError as error:
        raise ItemError(f"file {path}", rule="must be an image", value=error, fix="copy the file again") from error
    if crs is None or transform.is_identity:
        raise ItemError(
            f"file {path}",
            rule="needs a coordinate system and a transform",
            value=crs or "none",
            fix="use gdal_edit -a_srs",
        )
    code = crs.to_epsg()
    projection = {"proj:code": f"EPSG:{code}"} if code else {"proj:code": None, "proj:wkt2": crs.to_wkt()}
    grid = {"proj:shape": list(shape), "proj:transform": list(transform)[:6]}
    kind = pystac.MediaType.JPEG2000 if path.suffix.lower() == ".jp2" else pystac.MediaType.GEOTIFF
    return pystac.Asset(str(path.resolve()), media_type=kind, roles=["data"], extra_fields=projection | grid | extra)


def _item(
    name: str, date: datetime, properties: dict[str, Any], assets: dict[str, pystac.Asset], collection: str
) -> pystac.Item:
    first = next(iter(assets.values())).extra_fields
    grid = GeoBox(
        tuple(first["proj:shape"]),
        rasterio.Affine(*first["proj:transform"]),
        first["proj:code"] or first["proj:wkt2"],
    )
    footprint = gpd.GeoSeries([grid.extent.geom], crs=str(grid.crs)).to_crs(4326).iloc[0]
    properties |= {key: first[key] for key in ("proj:code", "proj:wkt2") if key in first}
    return pystac.Item(
        name,
        mapping(footprint),
        list(footprint.bounds),
        date,
        properties,
        stac_extensions=list(_EXTENSIONS),
        assets=assets,
        collection=collection,
    )
