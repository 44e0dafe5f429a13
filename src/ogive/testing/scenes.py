"""A synthetic archive: scenes of a glacier with known motion, as cloud-optimised GeoTIFFs with their STAC catalogue.

    plan_scenes ─► render (Surface at the scene's date, Sky over it, sensor) ─► COGs ─► STAC items ─► World

Sentinel-2 scenes have 10 m pixels on multiples of 10 m; Landsat scenes have 15 m pixels whose *centres* lie on
multiples of 15 m. Each scene is shifted as a whole by a known misregistration. Everything follows from the seed.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pystac
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from scipy.ndimage import binary_dilation, maximum_filter

from ..grid import coordinates
from .glacier import Glacier
from .items import LANDSAT_OFFSET, LANDSAT_SCALE, collections, make_item
from .plan import OFFSET_DATE, ScenePlan, WorldSpec, plan_scenes
from .sky import Sky, make_sky, sun_position
from .surface import Ground, Surface
from .textures import Floats

logger = logging.getLogger("ogive")

_VISIBLE = 0.02  # opacity from which a pixel counts as covered
# Real values of QA_PIXEL: the class bit, the confidence bits that go with it, and bit 6 where there is no cloud.
QA_FILL, QA_CLEAR, QA_DILATED, QA_CLOUD, QA_SHADOW = 1, 21824, 21762, 22280, 23888
QA_SNOW, QA_WATER, QA_CIRRUS = 30048, 21952, 54596


@dataclass(frozen=True)
class Scene:
    """One rendered scene.

    Attributes
    ----------
    plan : ScenePlan
    image : uint16 array
        Digital numbers, 0 = no data.
    classes : array
        Scene classification (uint8) or QA_PIXEL (uint16), at twice the pixel size.
    image_grid, class_grid : GeoBox
    sun : (float, float)
        Azimuth and elevation [degrees].
    cloud_cover : float
        Percent of the valid class pixels that are cloud or cirrus (Sentinel-2), cloud (Landsat).
    red : uint16 array or None
        As `image`, the red band.
    """

    plan: ScenePlan
    image: NDArray[np.uint16]
    classes: NDArray[Any]
    image_grid: GeoBox
    class_grid: GeoBox
    sun: tuple[float, float]
    cloud_cover: float
    red: NDArray[np.uint16] | None = None


@dataclass(frozen=True)
class World:
    """A synthetic archive on disk, with its truth.

    Attributes
    ----------
    glacier : Glacier
        The truth: velocity and displacement anywhere, any time.
    items : pystac.ItemCollection
        All scenes in order of time; absolute hrefs.
    catalog : Path
        Static STAC catalogue (catalog.json → collections → items), relative hrefs: the folder can be moved or served.
    items_file : Path
        The same items as one ItemCollection file; absolute hrefs.
    outlines, rock : Path
        GeoJSON: outline of the ice (RGI columns), stable ground.
    misregistration : dict
        Scene id → (dy, dx) [m], positive north and east: how far too far north and east the scene shows everything.
        A pair measures the true displacement plus that of its second less that of its first scene.
    spec : WorldSpec
    """

    glacier: Glacier
    items: pystac.ItemCollection
    catalog: Path
    items_file: Path
    outlines: Path
    rock: Path
    misregistration: dict[str, tuple[float, float]]
    spec: WorldSpec


def make_world(folder: str | Path, spec: WorldSpec | None = None, *, seed: int = 0) -> World:
    """Write a synthetic archive into a folder.

    Parameters
    ----------
    folder : path
        Created if missing; files of an earlier world are overwritten.
    spec : WorldSpec, optional
        What it contains; default: 18 Sentinel-2 and 8 Landsat scenes of two years over 9.6 x 7.6 km, about 33 MB.
    seed : int
        Seed of everything random; the same seed gives the same bytes.

    Returns
    -------
    World

    Examples
    --------
    >>> import tempfile
    >>> tiny = WorldSpec(size_km=(1.2, 1.5), n_sentinel2=2, n_landsat=0)
    >>> world = make_world(tempfile.mkdtemp(), tiny)
    >>> [item.id for item in world.items]
    ['S2A_32TMS_20211026_0_L2A', 'S2B_32TMS_20221026_0_L2A']
    """
    spec, folder = spec or WorldSpec(), Path(folder).resolve()
    (folder / "scenes").mkdir(parents=True, exist_ok=True)
    surface = make_surface(spec, seed=seed)
    plans = plan_scenes(spec, seed=seed)

    def work(plan: ScenePlan) -> pystac.Item:
        scene = render(surface, plan, noise=spec.noise, red=spec.red and plan.sensor == "sentinel-2")
        logger.debug("rendered %s", plan.id)
        return _write_scene(folder, scene)

    # The first scene alone: it builds the textures that all others share.
    items = [work(plans[0])]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        items += list(pool.map(work, plans[1:]))
    outlines, rock = folder / "outlines.geojson", folder / "rock.geojson"
    for frame, path in ((surface.glacier.outline(), outlines), (surface.glacier.rock(), rock)):
        frame.to_crs("EPSG:4326").to_file(path, driver="GeoJSON", engine="pyogrio", COORDINATE_PRECISION=9)
    catalog, items_file = _write_catalog(folder, items)
    return World(
        surface.glacier,
        pystac.ItemCollection([_absolute(i) for i in items], clone_items=False),
        catalog,
        items_file,
        outlines,
        rock,
        {p.id: p.shift for p in plans},
        spec,
    )


def make_surface(spec: WorldSpec, *, seed: int = 0) -> Surface:
    """The glacier and its looks for one specification; the textures' reference date is the middle of the period."""
    first, last = np.datetime64(spec.start, "D"), np.datetime64(spec.end, "D")
    extent = (spec.size_km[0] * 1000, spec.size_km[1] * 1000)
    glacier = Glacier(seed=seed, extent=extent, speed=spec.speed)
    reference = str(first + (last - first) // 2)
    return Surface(glacier, reference=reference, seed=seed, decorrelation=spec.decorrelation, snow=spec.snow)


def render(surface: Surface, plan: ScenePlan, *, noise: float, red: bool = False) -> Scene:
    """Render one scene.

    Parameters
    ----------
    surface : Surface
    plan : ScenePlan
    noise : float
        Sensor noise, 1 sigma [reflectance].
    red : bool
        Also the red band, of Sentinel-2.

    Returns
    -------
    Scene
    """
    glacier = surface.glacier
    (height, width), (top, left) = glacier.extent, glacier.top_left
    to_degrees = pyproj.Transformer.from_crs(glacier.crs, "EPSG:4326", always_xy=True)
    longitude, latitude = to_degrees.transform(left + width / 2, top - height / 2)
    sun = sun_position(plan.time, latitude, longitude)
    rng = np.random.default_rng([*plan.seed, 1])
    sky = make_sky((top - height, left, top, left + width), rng, cover=plan.cover, cirrus=plan.cirrus, sun=sun)
    sentinel = plan.sensor == "sentinel-2"
    if sentinel:
        image_grid, class_grid = glacier.geobox(10), glacier.geobox(20)
        seen = _seen(surface, plan, sky, image_grid, sun)
        # Bottom-of-atmosphere reflectance, corrected for the sun; offset since baseline 04.00.
        add = 1000 if plan.time >= OFFSET_DATE else 0
        numbers = (seen + noise * rng.standard_normal(seen.shape)) * 1e4 + add
    else:
        class_grid = glacier.geobox(30, inset=15)
        # As in real files: the first pixel centres of both grids coincide, so every second one does.
        rows, columns = (2 * n - 1 for n in class_grid.shape)
        image_grid = _subgrid(class_grid, 15.0, shape=(rows, columns), inset=7.5)
        # Detector of 15 m: the mean of 2 x 2 points.
        fine = _seen(surface, plan, sky, _subgrid(image_grid, 7.5, shape=(2 * rows, 2 * columns), inset=0.0), sun)
        seen = fine.reshape(rows, 2, columns, 2).mean(axis=(1, 3))
        seen = (seen + noise * rng.standard_normal(seen.shape)) * np.sin(np.deg2rad(sun[1]))
        numbers = (seen - LANDSAT_OFFSET) / LANDSAT_SCALE
    images = [numbers]
    if red:
        # Ice is a little brighter in red light.
        images.append((1.1 * seen + noise * rng.standard_normal(seen.shape)) * 1e4 + add)
    image, *other = (np.clip(np.round(band), 1, 65535).astype(np.uint16) for band in images)
    if plan.wedge:
        for band in (image, *other):
            band[_wedge(glacier, image_grid)] = 0
    classes, cover = _classes(surface, plan, sky, class_grid, sun)
    return Scene(plan, image, classes, image_grid, class_grid, sun, cover, *other)


def _subgrid(grid: GeoBox, resolution: float, *, shape: tuple[int, int], inset: float) -> GeoBox:
    """A finer grid whose top left corner lies `inset` m inside that of another."""
    a = grid.affine
    return GeoBox(shape, Affine(resolution, 0, a.c + inset, 0, -resolution, a.f - inset), grid.crs)


def _points(grid: GeoBox) -> tuple[Floats, Floats]:
    c = coordinates(grid)
    return np.asarray(c["y"].values[:, None]), np.asarray(c["x"].values[None, :])


def _ground(surface: Surface, plan: ScenePlan, grid: GeoBox, sun: tuple[float, float]) -> Ground:
    y, x = _points(grid)
    return surface.at(plan.time, y - plan.shift[0], x - plan.shift[1], sun=sun)


def _seen(surface: Surface, plan: ScenePlan, sky: Sky, grid: GeoBox, sun: tuple[float, float]) -> Floats:
    return sky.over(_ground(surface, plan, grid, sun).reflectance, *_points(grid))


def _wedge(glacier: Glacier, grid: GeoBox) -> NDArray[np.bool_]:
    """The corner beyond the edge of the swath: north-east, along the ground track."""
    y, x = _points(grid)
    (height, width), (top, left) = glacier.extent, glacier.top_left
    return np.asarray((left + width - x) / (0.14 * width) + (top - y) / (0.45 * height) < 1)


def _classes(
    surface: Surface, plan: ScenePlan, sky: Sky, grid: GeoBox, sun: tuple[float, float]
) -> tuple[NDArray[Any], float]:
    """Class raster and cloud cover [percent]: what a perfect classifier would write."""
    ground = _ground(surface, plan, grid, sun)
    # The neighbour's opacity counts too, so that no image pixel with a trace of cloud is called clear.
    cloud, shadow, cirrus = (maximum_filter(o, 3) for o in sky.opacity(*_points(grid)))
    covered, shaded, veiled = cloud > _VISIBLE, shadow > 0.1, cirrus > _VISIBLE
    # Each pixel of a class covers 2 x 2 of the image: a class pixel is empty if any part of it is.
    empty = binary_dilation(_wedge(surface.glacier, grid)) if plan.wedge else np.zeros(covered.shape, bool)
    if plan.sensor == "sentinel-2":
        tests = [(empty, 0), (cloud > 0.6, 9), (covered, 8), (veiled, 10), (shaded, 3), (ground.water, 6)]
        classes = np.select(*_columns([*tests, (ground.snow, 11)]), default=5).astype(np.uint8)
        lost = np.isin(classes, (8, 9, 10))
    else:
        thick = cloud > 0.3
        rim = (binary_dilation(thick, iterations=2) | covered) & ~thick
        tests = [(empty, QA_FILL), (thick, QA_CLOUD), (rim, QA_DILATED), (veiled, QA_CIRRUS), (shaded, QA_SHADOW)]
        tests += [(ground.water, QA_WATER), (ground.snow, QA_SNOW)]
        classes = np.select(*_columns(tests), default=QA_CLEAR).astype(np.uint16)
        lost = classes == QA_CLOUD
    return classes, float(100 * lost.sum() / max(1, int((~empty).sum())))


def _columns(tests: list[tuple[NDArray[np.bool_], int]]) -> tuple[list[NDArray[np.bool_]], list[int]]:
    return [t for t, _ in tests], [v for _, v in tests]


def _write_scene(folder: Path, scene: Scene) -> pystac.Item:
    keys = ("nir", "scl") if scene.plan.sensor == "sentinel-2" else ("pan", "qa_pixel")
    files = dict(zip(keys, ((scene.image, scene.image_grid), (scene.classes, scene.class_grid)), strict=True))
    files |= {} if scene.red is None else {"red": (scene.red, scene.image_grid)}
    assets = {}
    for key, (array, grid) in files.items():
        path = folder / "scenes" / scene.plan.id / f"{key}.tif"
        path.parent.mkdir(exist_ok=True)
        write_cog(path, array, grid, nodata=QA_FILL if key == "qa_pixel" else 0, labels=key in ("scl", "qa_pixel"))
        assets[key] = (str(path), grid)
    return make_item(scene.plan, assets, cloud_cover=scene.cloud_cover, sun=scene.sun)


def write_cog(path: Path, array: NDArray[Any], grid: GeoBox, *, nodata: int, labels: bool = False) -> None:
    """Write one band as a cloud-optimised GeoTIFF: 256-px tiles, deflate, overviews.

    Parameters
    ----------
    path : Path
    array : (rows, columns) array
    grid : GeoBox
        Its pixel grid.
    nodata : int
        The nodata tag.
    labels : bool
        Overviews by nearest neighbour (class numbers cannot be averaged).
    """
    profile = {
        "driver": "COG",
        "height": array.shape[0],
        "width": array.shape[1],
        "count": 1,
        "dtype": array.dtype,
        "crs": str(grid.crs),
        "transform": grid.affine,
        "nodata": nodata,
        "compress": "DEFLATE",
        "level": 6,
        "predictor": "STANDARD" if not labels else "NO",
        "blocksize": 256,
        "overview_resampling": "NEAREST" if labels else "AVERAGE",
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(array, 1)


def _absolute(item: pystac.Item) -> pystac.Item:
    """A free copy of the item: no parent, absolute hrefs."""
    data = item.to_dict(include_self_link=False, transform_hrefs=False)
    data["links"] = []
    return pystac.Item.from_dict(data)


def _write_catalog(folder: Path, items: list[pystac.Item]) -> tuple[Path, Path]:
    items_file = folder / "items.json"
    pystac.ItemCollection([_absolute(i) for i in items], clone_items=False).save_object(str(items_file))
    catalog = pystac.Catalog("ogive-synthetic", "Synthetic glacier scenes with exactly known motion")
    catalog.set_self_href(str(folder / "catalog.json"))
    for collection in collections():
        mine = [_absolute(i) for i in items if i.collection_id == collection.id]
        if not mine:
            continue
        catalog.add_child(collection)
        collection.set_self_href(str(folder / collection.id / "collection.json"))
        for item in mine:
            collection.add_item(item)
            item.set_self_href(str(folder / "items" / f"{item.id}.json"))
            item.make_asset_hrefs_relative()
        collection.update_extent_from_items()
    catalog.save(pystac.CatalogType.SELF_CONTAINED)
    return folder / "catalog.json", items_file
