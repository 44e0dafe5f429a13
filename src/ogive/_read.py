"""Reading pixels: the one seam between ogive and files.

A `Reader` turns an asset and a window (a GeoBox) into a float32 array, NaN where there is no data. `OdcReader` (the
default) and `StackstacReader` give identical pixels on congruent grids; `ogive.testing.readers.FakeReader` needs none.
`read` wraps any of them: it signs the URL at read time (a token never reaches a graph, a store or a log), tries again
with growing pauses, and turns every failure into a `ReadError` that names scene, URL, window and cause. An I/O error
never becomes nodata.
"""

import datetime as dt
import logging
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.request import urlopen

import numpy as np
import pystac
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT

from . import options
from ._access import Sign, s3_settings
from ._trust import assert_image, redact, without_secrets
from .errors import GridError, ReadError

log = logging.getLogger("ogive")

GDAL_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif,.TIF,.tiff,.jp2,.img",
    # GDAL remembers that a URL failed, and what came of it; without this a second attempt would not ask again.
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/",
    # A tile index that is read bit by bit ends at a short answer without an error: its tiles would be "no data".
    "GTIFF_USE_DEFER_STRILE_LOADING": "NO",
}
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


# Loaders silence it themselves, but `warnings` cannot do that for one of several threads.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning, module=r"rasterio\.warp")


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

        related = relation(window, asset.geobox)  # almost equal grids are refused before a file is opened
        assert_image(asset.href)
        if related == "resample" and _untagged(asset.href):
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

        related = relation(window, asset.geobox)  # almost equal grids are refused before a file is opened
        assert_image(asset.href)
        if related == "resample" and _untagged(asset.href):
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

    A file that no attempt could read is fetched whole and read here: what a broken connection spoils is read at last,
    and what cannot be read even so is damaged.

    Raises
    ------
    ReadError
        After the last attempt; names scene, URL (without its query), window and cause, and whether it is `permanent`.
    """
    if not _touch(asset.geobox, window):
        return np.full(window.shape, np.nan, np.float32)
    settings = options.current()
    for attempt in range(1, settings.attempts + 1):
        try:
            # Signed anew for every attempt: the usual reason to fail half-way is a token that has run out.
            with _signed(asset, sign) as signed:
                return reader.read(signed, window, resampling)
        except GridError:
            raise
        except _FAILURES as error:
            failure = _failure(error, asset, window, sign)
            hopeless = failure.permanent or isinstance(error, ValueError)
        # Never chained: the signed address would be printed below ours, and GDAL's exceptions do not pickle.
        if hopeless:
            raise failure
        if attempt == settings.attempts:
            return _read_whole(reader, asset, window, resampling, sign, failure)
        _pause(asset, attempt)
    raise AssertionError("unreachable")


_FAILURES = (OSError, RuntimeError, ValueError, RasterioError)


def _read_whole(
    reader: Reader, asset: Asset, window: GeoBox, resampling: str, sign: Sign | None, failure: ReadError
) -> NDArray[np.float32]:
    """Read a copy of the whole file; if that fails too, or no copy is to be had, raise the failure."""
    attempts = options.current().attempts
    with tempfile.TemporaryDirectory(prefix="ogive-") as folder:
        copy = Path(folder) / Path(asset.url).name
        for attempt in range(1, attempts + 1):
            try:
                with _signed(asset, sign) as signed:
                    _fetch(signed.href, copy, s3_settings() | getattr(sign, "settings", {}))
                break
            except (OSError, HTTPException, ImportError) as error:
                failure.permanent = getattr(error, "code", None) in _GONE
                passing = "://" in asset.href and not failure.permanent and not isinstance(error, ImportError)
            if attempt == attempts or not passing:
                raise failure
            _pause(asset, attempt)
        log.warning("scene %s: read from a copy of the whole file", asset.scene)
        try:
            return reader.read(replace(asset, href=str(copy)), window, resampling)
        except _FAILURES as error:
            failure = _failure(error, asset, window, sign)
            failure.permanent = not isinstance(error, ValueError)
        raise failure


def _pause(asset: Asset, attempt: int) -> None:
    settings = options.current()
    pause = settings.backoff * 2 ** (attempt - 1)
    text = "scene %s: attempt %d of %d failed, next in %.1f s"
    log.warning(text, asset.scene, attempt, settings.attempts, pause)
    time.sleep(pause)


@contextmanager
def _signed(asset: Asset, sign: Sign | None) -> Iterator[Asset]:
    """The asset with a readable address, and GDAL told how to read it."""
    settings = options.current()
    http = {
        "GDAL_HTTP_TIMEOUT": str(settings.timeout),
        "GDAL_HTTP_CONNECTTIMEOUT": str(min(20.0, settings.timeout)),
        "GDAL_HTTP_MAX_RETRY": str(settings.attempts - 1),
        "GDAL_HTTP_RETRY_DELAY": str(settings.backoff),
    }
    signed = asset if sign is None else replace(asset, href=sign(asset.href))
    with rasterio.Env(**{**GDAL_OPTIONS, **http, **s3_settings(), **getattr(sign, "settings", {})}):
        yield signed


def _failure(error: Exception, asset: Asset, window: GeoBox, sign: Sign | None) -> ReadError:
    """What failed, in words; permanent where asking again cannot help."""
    causes: list[str] = []
    link: BaseException | None = error
    while link is not None:
        text = without_secrets(str(link))
        causes += [] if any(text in known for known in causes) else [text]
        link = link.__cause__
    cause = ": ".join(causes)
    return ReadError(
        f"scene {asset.scene}", rule="its pixels must be readable",
        value=f"{asset.url}, window {_text(window)}: {type(error).__name__}: {cause}",
        fix="check the address, the file and the access rights, then run the same line again",
        scene=asset.scene, url=asset.url, window=_text(window), permanent=_final(cause, asset, sign is not None),
    )  # fmt: skip


_GONE = (404, 410)
_REFUSED = (401, 403)


def _final(cause: str, asset: Asset, signs: bool) -> bool:
    """A missing file stays missing; asking again only wastes minutes on a large cube.

    A refusal is final only where nothing is signed: object stores answer 401 or 403 to a token that has run out, and
    S3 to credentials that have.
    """
    status = re.search(r"HTTP response code: (\d+)", cause)
    if status:
        refused = int(status[1]) in _REFUSED and not signs and not asset.href.startswith("s3://")
        return int(status[1]) in _GONE or refused
    return "No such file" in cause if "://" not in asset.href else "The specified key does not exist" in cause


def _fetch(href: str, path: Path, settings: Mapping[str, str]) -> None:
    """Copy a whole file of the disk, the web or S3, and make sure that it is whole."""
    if "://" not in href:
        shutil.copyfile(href, path)
        return
    if href.startswith("s3://"):
        from obstore.exceptions import BaseError

        try:
            stream, length = _open_s3(href, settings)
            with path.open("wb") as file:
                for part in stream:
                    file.write(part)
        except BaseError as error:
            raise ConnectionError(type(error).__name__) from error
    else:
        with urlopen(href, timeout=options.current().timeout) as answer, path.open("wb") as file:
            shutil.copyfileobj(answer, file)
            length = int(answer.headers["Content-Length"] or -1)
    if path.stat().st_size != length:
        raise ConnectionError(f"{path.stat().st_size} of {length} bytes came")


def _open_s3(href: str, settings: Mapping[str, str]) -> tuple[Iterable[Any], int]:
    """The bytes of an object, as obstore reads it under GDAL's settings, and their number."""
    from obstore.store import S3Store

    bucket, _, key = href.removeprefix("s3://").partition("/")
    how: dict[str, Any] = {"retry_config": {"max_retries": 0}}
    if "AWS_S3_ENDPOINT" in settings:
        plain = settings["AWS_HTTPS"] == "NO"
        how |= {
            "endpoint": f"{'http' if plain else 'https'}://{settings['AWS_S3_ENDPOINT']}",
            "virtual_hosted_style_request": settings["AWS_VIRTUAL_HOSTING"] != "FALSE",
            "client_options": {"allow_http": plain},
        }
    if os.environ.get("AWS_NO_SIGN_REQUEST", "NO").upper() in ("YES", "TRUE", "1"):
        how["skip_signature"] = True
    if "AWS_REQUEST_PAYER" in settings or "AWS_REQUEST_PAYER" in os.environ:
        how["request_payer"] = True
    answer = S3Store(bucket, **how).get(key)
    return answer.stream(), int(answer.meta["size"])


_notes: ContextVar[list[dict[str, str]] | None] = ContextVar("ogive_notes", default=None)
_warned: set[str] = set()


@contextmanager
def noting() -> Iterator[list[dict[str, str]]]:
    """Collect what `note` is told in this context.

    Examples
    --------
    >>> with noting() as notes:
    ...     note(ReadError("scene a", scene="a", url="a.tif", permanent=True))
    >>> notes
    [{'scene': 'a', 'url': 'a.tif', 'window': '', 'error': 'scene a'}]
    """
    notes: list[dict[str, str]] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def note(error: ReadError) -> None:
    """Put an unreadable scene on record: in the notes of `noting`, and once per scene in the log."""
    notes = _notes.get()
    if notes is not None:
        notes.append({"scene": error.scene, "url": error.url, "window": error.window, "error": str(error)})
    if error.url not in _warned:
        _warned.add(error.url)
        log.warning("scene %s is unreadable, its pairs are flagged: %s", error.scene, error)


_LOADERS = ("odc.loader._rio", "stackstac.timer", *(f"rasterio.{k}" for k in ("_base", "_env", "_err", "_io", "_warp")))
for _name in _LOADERS:
    logging.getLogger(_name).addFilter(redact)


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
