"""Reading pixels: the one seam between ogive and files.

A `Reader` turns an asset and a window (a GeoBox) into a float32 array, NaN where there is no data. `OdcReader` (the
default) and `StackstacReader` give identical pixels on congruent grids; `ogive.testing.readers.FakeReader` needs none.
`read` wraps any of them: it signs the URL at read time (a token never reaches a graph, a store or a log), tries again
with growing pauses, and turns every failure into a `ReadError` that names scene, URL, window and cause. An I/O error
never becomes nodata.
"""

import datetime as dt
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pystac
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from . import options
from .errors import GridError, ReadError

log = logging.getLogger("ogive")

GDAL_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif,.TIF,.tiff,.jp2,.img",
    # GDAL remembers that a URL failed; without this a second attempt would not ask again.
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
}
Sign = Callable[[str], str]
"""Turns a bare URL into one that may be read, at read time."""
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Asset:
    """One file of one scene: where it is and the pixel grid it has; small enough to travel with every task."""

    scene: str
    href: str
    geobox: GeoBox

    @property
    def url(self) -> str:
        """The address without its query, which may carry a signature."""
        return self.href.split("?")[0]


class Reader(Protocol):
    """Reads one window of one asset."""

    def read(self, asset: Asset, window: GeoBox, resampling: str) -> NDArray[np.float32]:
        """Pixels on the window's grid, raw values of the file, NaN where it has none."""


@dataclass(frozen=True)
class OdcReader:
    """The default loader: odc-stac, eager, one window at a time."""

    def read(self, asset: Asset, window: GeoBox, resampling: str) -> NDArray[np.float32]:
        """Paste where the grids are congruent, else resample (see `relation`)."""
        import odc.stac

        if relation(window, asset.geobox) == "resample" and _untagged(asset.href):
            return _warp_untagged(asset, window, resampling)
        loaded = odc.stac.load(
            [_item(asset)], bands=["data"], geobox=window, dtype="float32", nodata=float("nan"),
            resampling=resampling, fail_on_error=True, groupby="id",
        )  # fmt: skip
        return np.asarray(loaded["data"].values[0], np.float32)


@dataclass(frozen=True)
class StackstacReader:
    """The second loader: stackstac, kept to check the first. Needs the extra `ogive[stackstac]`."""

    def read(self, asset: Asset, window: GeoBox, resampling: str) -> NDArray[np.float32]:
        """The same window through stackstac, with every default stated that would shift or hide something."""
        import stackstac

        if relation(window, asset.geobox) == "resample" and _untagged(asset.href):
            return _warp_untagged(asset, window, resampling)
        item = _item(asset).to_dict(include_self_link=False, transform_hrefs=False)
        # stackstac 0.5.1 knows proj:epsg only; pystac has rewritten it to proj:code.
        item["properties"]["proj:epsg"] = _epsg(window)
        item["assets"]["data"]["proj:epsg"] = _epsg(asset.geobox)
        stack = stackstac.stack(
            [item], assets=["data"], epsg=_epsg(window), resolution=abs(window.resolution.x),
            bounds=tuple(window.boundingbox), snap_bounds=False, xy_coords="center", rescale=False, dtype="float32",
            fill_value=np.float32("nan"), resampling=Resampling[resampling], errors_as_nodata=(),
            properties=False, band_coords=False,
        )  # fmt: skip
        return np.asarray(stack.data.compute(scheduler="synchronous")[0, 0], np.float32)


READERS: dict[str, Callable[[], Reader]] = {"odc": OdcReader, "stackstac": StackstacReader}


def relation(grid: GeoBox, scene: GeoBox, tolerance: float = 1e-3) -> str:
    """How a scene's pixels lie in a grid: "congruent" (the same pixels) or "resample".

    The zone between is refused: a loader pastes pixels that are shifted by less than 0.05 px or differ by less than
    1e-3 in size, and the image keeps that error without a word (odc-loader 0.6.5, measured).

    Raises
    ------
    GridError
        Grids that differ by too little to be resampled and too much to be equal.

    Examples
    --------
    >>> from affine import Affine
    >>> grid = GeoBox((100, 100), Affine(10, 0, 600000, 0, -10, 5000000), "EPSG:32632")
    >>> coarser = GeoBox((9, 9), grid.affine * Affine.scale(1.5), grid.crs)
    >>> relation(grid[10:50, 20:60], grid), relation(coarser, grid)
    ('congruent', 'resample')
    """
    if scene.crs != grid.crs:
        return "resample"
    a = ~grid.affine @ scene.affine
    scale = max(abs(a.a - 1), abs(a.e - 1))
    shift = max(abs(a.c - round(a.c)), abs(a.f - round(a.f)))
    if max(abs(a.b), abs(a.d)) > 1e-9 or scale >= 1e-3:
        return "resample"
    if scale < 1e-9 and shift <= tolerance:
        return "congruent"
    if scale > 1e-9 or shift < 0.05:
        raise GridError(
            "grid", rule="a scene's pixels must coincide with the grid's, or differ enough to be resampled",
            value=f"shift {shift:.4f} px, pixel size {scale:.1e} off", fix="take the grid from the scene (grid=None)",
        )  # fmt: skip
    return "resample"


def read(
    reader: Reader, asset: Asset, window: GeoBox, resampling: str, sign: Sign | None = None
) -> NDArray[np.float32]:
    """Read a window, try again, and say what failed.

    Raises
    ------
    ReadError
        After the last attempt; names scene, URL (without its query), window and cause.
    """
    if not _touch(asset.geobox, window):
        return np.full(window.shape, np.nan, np.float32)
    settings = options.current()
    for attempt in range(1, settings.attempts + 1):
        signed = asset
        try:
            # Signed anew for every attempt: the usual reason to fail half-way is a token that has run out.
            if sign is not None:
                signed = replace(asset, href=sign(asset.href))
            with rasterio.Env(**GDAL_OPTIONS, GDAL_HTTP_TIMEOUT=str(max(1, round(settings.timeout)))):
                return reader.read(signed, window, resampling)
        except GridError:
            raise
        except (OSError, RuntimeError, ValueError, RasterioError) as error:
            cause = _unsigned(str(error).replace(signed.href, asset.url))
            if attempt == settings.attempts or isinstance(error, ValueError) or _final(cause, sign is not None):
                # A chained exception would print the signed address below ours.
                secret = sign is not None or asset.href != asset.url
                raise ReadError(
                    f"scene {asset.scene}", rule="its pixels must be readable",
                    value=f"{asset.url}, window {_text(window)}: {type(error).__name__}: {cause}",
                    fix="check the address, the file and the access rights, then run the same line again",
                ) from (None if secret else error)  # fmt: skip
            pause = settings.backoff * 2 ** (attempt - 1)
            log.warning(
                "scene %s: attempt %d of %d failed, next in %.1f s", asset.scene, attempt, settings.attempts, pause
            )
            time.sleep(pause)
    raise AssertionError("unreachable")


def _final(cause: str, signs: bool) -> bool:
    """A missing file stays missing; asking again only wastes minutes on a large cube.

    A refusal is final only where nothing is signed: object stores answer 401 or 403 to a token that has run out.
    """
    status = re.search(r"HTTP response code: (\d+)", cause)
    if status:
        return status[1] in ("404", "410") or (status[1] in ("401", "403") and not signs)
    return "No such file" in cause or "not recognized as being in a supported" in cause


def _unsigned(text: str) -> str:
    """A message without the queries of its addresses."""
    return re.sub(r"\?[^\s'\"]*", "", text)


def _redact(record: logging.LogRecord) -> bool:
    """Take the signature out of what the loaders log about an address."""
    record.msg, record.args = _unsigned(record.getMessage()), None
    return True


_LOADERS = ("odc.loader._rio", "stackstac.timer", *(f"rasterio.{k}" for k in ("_base", "_env", "_err", "_io", "_warp")))
for _name in _LOADERS:
    logging.getLogger(_name).addFilter(_redact)


def _touch(scene: GeoBox, window: GeoBox) -> bool:
    """Whether a scene reaches into a window; if not there is nothing to open."""
    return bool(scene.extent.to_crs(str(window.crs)).intersects(window.pad(2).extent))


def _text(window: GeoBox) -> str:
    (height, width), box = window.shape, window.boundingbox
    return f"{height} x {width} px at x {box.left:.0f}-{box.right:.0f}, y {box.bottom:.0f}-{box.top:.0f}"


def _epsg(geobox: GeoBox) -> int | None:
    return None if geobox.crs is None else geobox.crs.epsg


def _item(asset: Asset) -> pystac.Item:
    """A minimal STAC item of one asset, all that the loaders need."""
    box = asset.geobox.geographic_extent
    item = pystac.Item(
        id=asset.scene, geometry=box.json, bbox=list(box.boundingbox), properties={},
        datetime=_EPOCH, stac_extensions=["https://stac-extensions.github.io/projection/v2.0.0/schema.json"],
    )  # fmt: skip
    fields: dict[str, Any] = {
        "proj:code": f"EPSG:{_epsg(asset.geobox)}",
        "proj:shape": list(asset.geobox.shape),
        "proj:transform": list(asset.geobox.affine)[:6],
    }
    item.add_asset("data", pystac.Asset(asset.href, media_type="image/tiff; application=geotiff", extra_fields=fields))
    item.properties["proj:code"] = fields["proj:code"]
    return item


def _untagged(href: str) -> bool:
    """True where a file names no nodata value; its zeros would bleed into their neighbours when resampled."""
    with rasterio.open(href) as source:
        return source.nodata is None


def _warp_untagged(asset: Asset, window: GeoBox, resampling: str) -> NDArray[np.float32]:
    """Resample a file without a nodata tag, taking 0 as no data (both Sentinel-2 and Landsat mean it so)."""
    with (
        rasterio.open(asset.href) as source,
        WarpedVRT(
            source, crs=str(window.crs), transform=window.affine, height=window.shape[0], width=window.shape[1],
            resampling=Resampling[resampling], src_nodata=0, nodata=np.nan, dtype="float32",
        ) as vrt,
    ):  # fmt: skip
        return np.asarray(vrt.read(1), np.float32)
