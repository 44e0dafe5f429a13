"""STAC items to one lazy cube: `open_cube(items)` builds grid and coordinates, and reads nothing.

    items ─► one Asset per scene and band (href + pixel grid, from proj:* fields)
          ─► one explicit GeoBox, taken from a scene's own pixels
          ─► SceneStack: an array that is read window by window when it is indexed

A window of the cube is one read per scene. Nothing is a Dask array: `blocks.map_overlapping` indexes the cube inside
its tasks, so a halo is simply a larger read window. `cube.chunk(...)` turns it into a Dask cube where that is wanted.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pystac
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from xarray.backends.common import BackendArray
from xarray.core import indexing

from . import _access, catalog, quality
from . import grid as grids
from ._access import Sign
from ._read import READERS, Asset, Reader, note, read, relation
from ._trust import check_href, is_web, understood
from .aoi import resolve_aoi
from .errors import GridError, ItemError, ParameterError, ReadError, SearchError

log = logging.getLogger("ogive")


@dataclass(frozen=True)
class Band:
    """Where the pixels of a band are and what they mean: value = scale * DN + offset, DN 0 = no data."""

    asset: Asset
    scale: float
    offset: float


@dataclass(frozen=True)
class Scene:
    """What is read of one scene."""

    bands: tuple[Band, ...]
    mask: Asset | None
    decoder: str
    sign: Sign | None


class SceneStack(BackendArray):
    """A (time, y, x) or (time, band, y, x) array that reads exactly the window it is asked for.

    Parameters
    ----------
    scenes : tuple of Scene
    geobox : GeoBox
        The cube's grid.
    kind : {"image", "mask"}
        float32 values with NaN, or uint8 mask bits, which have no bands.
    """

    def __init__(self, scenes: tuple[Scene, ...], geobox: GeoBox, kind: str, reader: Reader, resampling: str) -> None:
        self.scenes, self.geobox, self.kind = scenes, geobox, kind
        self.reader, self.resampling = reader, resampling
        bands = len(scenes[0].bands) if kind == "image" else 1
        self.shape = (len(scenes), *((bands,) if bands > 1 else ()), *geobox.shape)
        self.dtype = np.dtype(np.float32 if kind == "image" else np.uint8)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Read what xarray's indexer asks for."""
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._get)

    def _get(self, key: tuple[int | slice | NDArray[np.int64], ...]) -> NDArray[Any]:
        # Outer indexing: a list of times reads these scenes only; a whole number drops its axis.
        axes = [np.arange(n)[k] for k, n in zip(key, self.shape, strict=True)]
        times, *chosen, rows, columns = (np.atleast_1d(axis) for axis in axes)
        bands = chosen[0] if chosen else np.array([0])
        out = np.empty((times.size, bands.size, rows.size, columns.size), self.dtype)
        if out.size:
            y, x = rows.min(), columns.min()
            window = self.geobox[y : rows.max() + 1, x : columns.max() + 1]
            for k, i in enumerate(times):
                for m, band in enumerate(bands):
                    out[k, m] = self._window(self.scenes[i], band, window)[np.ix_(rows - y, columns - x)]
        return out.reshape(tuple(n for axis in axes for n in axis.shape))

    def _window(self, scene: Scene, number: int, window: GeoBox) -> NDArray[Any]:
        if self.kind == "mask":
            if scene.mask is None:
                return np.zeros(window.shape, np.uint8)
            return quality.decode(scene.decoder, read(self.reader, scene.mask, window, "nearest", scene.sign))
        band = scene.bands[number]
        values = read(self.reader, band.asset, window, self.resampling, scene.sign)
        # 0 is no data for every optical product; files without a nodata tag still hold it. Before the offset, always.
        values = np.where(values == 0, np.float32(np.nan), values)
        return values * np.float32(band.scale) + np.float32(band.offset)


def open_cube(
    items: Iterable[pystac.Item],
    band: str | Sequence[str] | Mapping[str, str] | None = None,
    *,
    resolution: float | None = None,
    aoi: Any = None,
    buffer: float = 0.0,
    grid: GeoBox | None = None,
    loader: str | Reader = "odc",
    resampling: str = "cubic",
    sign: Sign | str | None = None,
) -> xr.Dataset:
    """Build a lazy cube of one band, or of several; no file is opened.

    Parameters
    ----------
    items : iterable of pystac.Item
    band : str, sequence of str or mapping, optional
        Common band name (`"nir"`, `"pan"`), or one per sensor (`{"sentinel-2": "nir", "landsat": "pan"}`), or several
        (`["red", "nir"]`), which `hs_robust` and `flow_net` compare at once.
        Default: each sensor's own band for matching.
    resolution : float, optional
        Pixel size [m]. Default: the finest native one. Any other than native is resampled, and said in `resampled`.
    aoi : optional
        Area to cover, in any form that `search` takes. Default: the area that all scenes share.
    buffer : float
        Extra margin around the AOI [m]; stable ground beside a glacier, say.
    grid : GeoBox, optional
        Take this grid as it is; scenes of another coordinate system are then resampled to it.
    loader : {"odc", "stackstac"} or Reader
    resampling : str
        For scenes that are not congruent with the grid; cubic keeps sharpness, bilinear blurs.
    sign : callable or str, optional
        Address to readable address, called at read time; or the name of a signer (`planetary-computer`, `usgs`, `cdse`,
        `aws-requester-pays`, `none`). Default: that of the archive in which `search` found the scene.

    Returns
    -------
    xr.Dataset
        Dimensions (time, y, x), sorted by time: `image` float32 (reflectance), `mask` uint8 (bits of
        `ogive.quality`), and per-scene coordinates (see ARCHITECTURE.md). Of several bands, `image` has the dimensions
        (time, band, y, x).

    Raises
    ------
    SearchError
        No items.
    ItemError
        An item lacks the band or its projection fields.
    GridError
        Scenes in several coordinate systems, an AOI outside every scene, or almost congruent grids.
    ParameterError
        Unknown loader or signer, a resolution that is not positive, or bands that are no names or named twice.
    """
    band = _named(band)
    several = band if isinstance(band, tuple) else ()
    ordered = [item for _, item in sorted(((_time(item), item) for item in items), key=lambda t: (t[0], str(t[1].id)))]
    if not ordered:
        raise SearchError("items", rule="must hold at least one scene", value=0, fix="widen the search")
    scenes = tuple(_scene(item, band, sign) for item in ordered)
    geobox = grid if grid is not None else _grid(scenes, aoi, buffer, resolution)
    related = ["resample" in [relation(geobox, band.asset.geobox) for band in s.bands] for s in scenes]
    for mask in {s.mask.geobox for s in scenes if s.mask}:
        relation(geobox, mask)  # refused here, not in the middle of a run
    _check_overlap(geobox, scenes)
    reader = READERS[loader]() if isinstance(loader, str) and loader in READERS else loader
    if isinstance(reader, str):
        raise ParameterError("loader", rule=f"must be one of {', '.join(READERS)}, or a Reader", value=repr(reader))
    stacks = {k: SceneStack(scenes, geobox, k, reader, resampling) for k in ("image", "mask")}
    dims = {"image": ("time", *(("band",) if several else ()), "y", "x"), "mask": ("time", "y", "x")}
    cube = xr.Dataset(
        {
            k: xr.Variable(dims[k], indexing.LazilyIndexedArray(stack), {"grid_mapping": "mapping"})
            for k, stack in stacks.items()
        },
        coords={
            **grids.coordinates(geobox),
            "mapping": grids.mapping(geobox),
            **_scene_coordinates(ordered),
            **({"band": ("band", np.array(several, object))} if several else {}),
            "resampled": ("time", np.array(related)),
        },
        attrs={"resampling": resampling, "loader": loader if isinstance(loader, str) else type(loader).__name__},
    )
    cube["image"].attrs |= {"long_name": "reflectance after scale and offset", "units": "1"}
    cube["mask"].attrs |= quality.attributes()
    # A grid that the caller chose is meant to be resampled to; the coarse look of usable_share is one.
    if grid is None and any(related):
        log.info("%d of %d scenes are resampled (%s) to the grid", sum(related), len(related), resampling)
    return cube


def usable_share(
    items: Iterable[pystac.Item], cube: xr.Dataset, band: Any = None, *, sign: Sign | str | None = None
) -> pd.Series:
    """Share of usable pixels of each scene over the cube's area, from a coarse look (about 1/16 of the resolution).

    Reads every scene once through its overviews: a missing file, a scene without pixels here and cloud over the
    glacier show up before any matching.

    Returns
    -------
    pd.Series
        0 ... 1, index = scene id, in the cube's order; NaN where the scene cannot be read for good, with a warning.

    Raises
    ------
    ReadError
        A scene cannot be read now.
    """
    full = grids.geobox_of(cube)
    factor = max(1, min(16, min(full.shape) // 16))
    coarse = full.zoom_out(factor) if factor > 1 else full
    look = open_cube(items, band, grid=coarse, resampling="nearest", sign=sign)
    share = [_usable(look.isel(time=k)) for k in range(look.sizes["time"])]
    return pd.Series(share, index=look["scene_id"].values, name="usable")


def _usable(scene: xr.Dataset) -> float:
    try:
        good = quality.usable(scene["mask"].values) & quality.finite(scene["image"].values)
    except ReadError as error:
        if not error.permanent:
            raise
        note(error)
        return math.nan
    return float(good.mean())


def _time(item: pystac.Item) -> np.datetime64:
    with understood(f"item {item.id!r:.80}"):
        stamp = item.datetime or item.common_metadata.start_datetime
        if stamp is None:
            raise ItemError(f"item {item.id}", rule="needs a datetime", fix="leave the item out")
        utc = pd.Timestamp(stamp)
        return (utc.tz_convert("UTC").tz_localize(None) if utc.tzinfo else utc).as_unit("ns").to_datetime64()


def _named(band: Any) -> str | tuple[str, ...] | Mapping[str, str] | None:
    """A band's name, several, or one for each sensor; several are two and more."""
    if band is None or isinstance(band, str):
        return band
    names = list(band.values() if isinstance(band, Mapping) else band) if isinstance(band, Iterable) else [band]
    if not names or not all(isinstance(name, str) for name in names):
        raise ParameterError(
            "band", rule="must be a name, several, or one for each sensor", value=repr(band), fix='["red", "nir"]'
        )
    if isinstance(band, Mapping):
        return band
    if len(set(names)) < len(names):
        raise ParameterError("band", rule="must name each band once", value=names, fix='["red", "nir"]')
    return tuple(names) if len(names) > 1 else str(names[0])


def _scene(item: pystac.Item, band: str | Sequence[str] | Mapping[str, str] | None, sign: Sign | str | None) -> Scene:
    with understood(f"item {item.id!r:.80}"):
        sensor = catalog.sensor_of(item)
        wanted = band.get(sensor.name) if isinstance(band, Mapping) else band
        keys = [catalog.band_asset(item, name) for name in (wanted if isinstance(wanted, tuple) else (wanted,))]
        bands = tuple(
            Band(Asset(item.id, _href(item, key), catalog.scene_geobox(item, key)), *catalog.scale_offset(item, key))
            for key in keys
        )
        mask_key = catalog.mask_asset(item)
        mask = None
        if mask_key is not None:
            mask = Asset(item.id, _href(item, mask_key), catalog.scene_geobox(item, mask_key))
        sign = item.properties.get(_access.PROPERTY) if sign is None else sign
        sign = _access.signer(sign) if isinstance(sign, str) else sign
        return Scene(bands, mask, sensor.mask_decoder or "", sign)


def _href(item: pystac.Item, key: str) -> str:
    href = item.assets[key].get_absolute_href() or item.assets[key].href
    what = f"item {item.id!r}, asset {key!r}"
    own = item.get_self_href()
    if own and is_web(own) and not is_web(check_href(href, what)):
        raise ItemError(what, rule="names a file of this machine, and comes from elsewhere", value=href)
    return check_href(href, what)


def _scene_coordinates(items: list[pystac.Item]) -> dict[str, Any]:
    rows = []
    for item in items:
        with understood(f"item {item.id!r:.80}"):
            rows.append(_words(item) | _numbers(item))
    columns = {k: [row[k] for row in rows] for k in rows[0]}
    return {
        "time": ("time", np.array([_time(item) for item in items])),
        **{k: ("time", np.array(v, np.float64 if isinstance(v[0], float) else object)) for k, v in columns.items()},
    }


def _words(item: pystac.Item) -> dict[str, Any]:
    mission, satellite, instrument = catalog.codes(item)
    return {
        "scene_id": item.id,
        "platform": catalog.platform_of(item),
        "sensor": catalog.sensor_of(item).name,
        "relative_orbit": catalog.relative_orbit(item),
        "processing_baseline": catalog.processing_baseline(item),
        "mission_code": mission,
        "satellite_code": satellite,
        "sensor_code": instrument,
    }


def _numbers(item: pystac.Item) -> dict[str, Any]:
    azimuth, elevation = catalog.sun_angles(item)
    return {
        "cloud_cover": catalog.cloud_cover(item),
        "cloud_cover_land": catalog.cloud_cover(item, land=True),
        "sun_azimuth": azimuth,
        "sun_elevation": elevation,
    }


def _grid(scenes: tuple[Scene, ...], aoi: Any, buffer: float, resolution: float | None) -> GeoBox:
    """One explicit grid, on the pixels of the reference scene."""
    images = [band.asset.geobox for s in scenes for band in s.bands]
    systems = Counter(str(s.bands[0].asset.geobox.crs) for s in scenes)
    if len(systems) > 1:
        raise GridError(
            "scenes", rule="must share one coordinate system",
            value=", ".join(f"{crs}: {n} scenes" for crs, n in sorted(systems.items())),
            fix="search one tile or path-row, or pass grid= to resample all of them to one grid",
        )  # fmt: skip
    native = [abs(image.resolution.x) for image in images]
    pixel = resolution or min(native)
    if not (pixel > 0 and math.isfinite(pixel)):
        raise ParameterError("resolution", rule="must be positive [m]", value=pixel)
    if not (buffer >= 0 and math.isfinite(buffer)):
        raise ParameterError("buffer", rule="must be 0 or more [m]", value=buffer)
    at = next((k for k, r in enumerate(native) if math.isclose(r, pixel)), 0)
    reference = images[at]
    boxes = np.array([tuple(image.boundingbox) for image in images])
    if aoi is None:
        left, bottom = boxes[:, :2].max(0)
        right, top = boxes[:, 2:].min(0)
        if left >= right or bottom >= top:
            raise GridError("scenes", rule="must share an area when no AOI is given", fix="pass aoi=")
    else:
        shape = gpd.GeoSeries([resolve_aoi(aoi)], crs=4326).to_crs(str(reference.crs)).iloc[0]
        left, bottom, right, top = shape.buffer(buffer).bounds if buffer else shape.bounds
        # Where no scene reaches, nothing can be matched; an AOI outside all of them is refused by _check_overlap.
        reach = (*boxes[:, :2].min(0), *boxes[:, 2:].max(0))
        if left < reach[2] and right > reach[0] and bottom < reach[3] and top > reach[1]:
            left, bottom = max(left, reach[0]), max(bottom, reach[1])
            right, top = min(right, reach[2]), min(top, reach[3])
    a = reference.affine
    # Whole pixels of the reference scene; a hair of tolerance keeps an edge that lies on a pixel boundary there.
    x0, x1 = math.floor((left - a.c) / pixel + 1e-6), math.ceil((right - a.c) / pixel - 1e-6)
    y0, y1 = math.floor((a.f - top) / pixel + 1e-6), math.ceil((a.f - bottom) / pixel - 1e-6)
    if max(y1 - y0, x1 - x0) > catalog.LARGEST:
        raise GridError(
            "grid", rule=f"must have at most {catalog.LARGEST} pixels a side", value=(y1 - y0, x1 - x0),
            fix="choose a smaller area or a larger resolution",
        )  # fmt: skip
    transform = Affine(pixel, 0, a.c + x0 * pixel, 0, -pixel, a.f - y0 * pixel)
    return GeoBox((max(1, y1 - y0), max(1, x1 - x0)), transform, reference.crs)


def _check_overlap(grid: GeoBox, scenes: tuple[Scene, ...]) -> None:
    """Refuse a grid that no scene touches: all-NaN cubes are the quietest of failures."""
    ours = grid.extent
    touching = [s for s in scenes if ours.intersects(s.bands[0].asset.geobox.extent.to_crs(str(grid.crs)))]
    if not touching:
        box = [round(v) for v in scenes[0].bands[0].asset.geobox.boundingbox]
        raise GridError(
            "AOI", rule="must lie inside at least one scene", value=[round(v) for v in grid.boundingbox],
            fix=f"the first scene covers {box} in {grid.crs}",
        )  # fmt: skip
