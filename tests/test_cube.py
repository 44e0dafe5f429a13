"""From items to a cube: the right grid, the right numbers, nothing read before it is asked for, clear refusals."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

import ogive as og
from ogive import cube as cubes
from ogive import grid as grids
from ogive import options, quality
from ogive.errors import GridError, ItemError, ParameterError, ReadError, SearchError
from ogive.testing.readers import FakeReader
from ogive.testing.servers import range_server

GRID = GeoBox((300, 320), Affine(10, 0, 600000, 0, -10, 5100000), "EPSG:32632")
# Pixel centres on multiples of 15 m, quality layer of 30 m: as Landsat has them.
PAN = GeoBox((320, 300), Affine(15, 0, 465067.5, 0, -15, 6681592.5), "EPSG:32607")
QA = GeoBox((161, 151), Affine(30, 0, 465045, 0, -30, 6681615), "EPSG:32607")


def truth(grid: GeoBox) -> NDArray[np.float64]:
    """DN as a smooth function of map position."""
    a = grid.affine
    y = a.f + a.e * (np.arange(grid.shape[0])[:, None] + 0.5)
    x = a.c + a.a * (np.arange(grid.shape[1])[None, :] + 0.5)
    return 3000 + 900 * np.cos(y / 90) + 800 * np.sin(x / 110)


def paint(path: Path, grid: GeoBox, values: NDArray[Any], nodata: int | None = 0) -> str:
    profile = {"height": grid.shape[0], "width": grid.shape[1], "count": 1, "dtype": "uint16", "nodata": nodata}
    with rasterio.open(
        path, "w", driver="COG", blocksize=128, overview_resampling="nearest", crs=str(grid.crs),
        transform=grid.affine, **profile,
    ) as file:  # fmt: skip
        file.write(np.round(values).astype(np.uint16), 1)
    return str(path)


def fields(grid: GeoBox) -> dict[str, Any]:
    return {"proj:shape": list(grid.shape), "proj:transform": list(grid.affine)[:6]}


def item(
    day: int, grid: GeoBox, assets: dict[str, tuple[str, GeoBox]], *, spelling="code", **properties
) -> pystac.Item:
    """An item of a file; the sensor follows from the grid."""
    landsat = grid.crs.epsg == 32607
    stamp = pd.Timestamp("2021-07-01T10:30:00.5", tz="UTC") + pd.Timedelta(days=day)
    projection = {"proj:code": f"EPSG:{grid.crs.epsg}"} if spelling == "code" else {"proj:epsg": grid.crs.epsg}
    common = {"eo:cloud_cover": 5.0, "view:sun_azimuth": 150.0, "view:sun_elevation": 50.0, **projection}
    if landsat:
        common |= {"platform": "LANDSAT_8", "landsat:wrs_path": "063", "landsat:wrs_row": "018"}
        common |= {"landsat:collection_number": "02", "landsat:cloud_cover_land": 3.0}
    else:
        common |= {"platform": "sentinel-2a", "sat:relative_orbit": 22, "s2:processing_baseline": "03.01"}
    box = grid.geographic_extent
    document = {
        "type": "Feature", "stac_version": "1.0.0", "links": [],
        "id": f"LC08_L1TP_063018_{stamp:%Y%m%d}_02_T1" if landsat else f"S2A_32TPS_{stamp:%Y%m%d}_0_L2A",
        "collection": "landsat-c2-l1" if landsat else "sentinel-2-l2a", "geometry": box.json,
        "bbox": list(box.boundingbox), "properties": {"datetime": stamp.isoformat(), **common, **properties},
        "assets": {key: {"href": href, **fields(where)} for key, (href, where) in assets.items()},
    }  # fmt: skip
    version = "v1.1.0" if spelling == "epsg" else "v2.0.0"
    document["stac_extensions"] = [f"https://stac-extensions.github.io/projection/{version}/schema.json"]
    return pystac.Item.from_dict(document)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Files of both sensors; the second Sentinel-2 file is of baseline 04.00: DN are 1000 higher."""
    folder = tmp_path_factory.mktemp("files")
    classes = np.tile(np.repeat([0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2], 13)[:150], (160, 1)).T
    codes = np.tile(np.repeat([1, 21824, 21952, 22280, 23888, 30048, 54596, 21762], 20)[:151], (161, 1))
    return {
        "nir": paint(folder / "nir.tif", GRID, truth(GRID)),
        "new": paint(folder / "new.tif", GRID, truth(GRID) + 1000),
        "scl": paint(folder / "scl.tif", grids.coarsen(GRID, 2), classes),
        "pan": paint(folder / "pan.tif", PAN, truth(PAN)),
        "qa": paint(folder / "qa.tif", QA, codes, nodata=1),
    }


@pytest.fixture(autouse=True)
def _quick():
    with options.using(backoff=0.01, timeout=5):
        yield


def sentinel(files, day=0, name="nir", **changes) -> pystac.Item:
    assets = {"nir": (files[name], GRID), "scl": (files["scl"], grids.coarsen(GRID, 2))}
    return item(day, GRID, assets, **changes)


def landsat(files, day=0, **changes) -> pystac.Item:
    return item(day, PAN, {"pan": (files["pan"], PAN), "qa_pixel": (files["qa"], QA)}, **changes)


def dn(cube: xr.Dataset, scale: float = 1e4, offset: float = 0.0) -> NDArray[np.float64]:
    """The DN behind a cube's reflectances."""
    return (cube["image"].values.astype(float) - offset) * scale


# --- pixels and grids -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["epsg", "code"])
@pytest.mark.parametrize("sensor", ["sentinel", "landsat"])
def test_both_loaders_give_the_truth_and_each_other_s_bits(files, sensor, spelling) -> None:
    make, grid = (sentinel, GRID) if sensor == "sentinel" else (landsat, PAN)
    items = [make(files, 16 * k, spelling=spelling) for k in range(2)]
    one, two = (og.open_cube(items, loader=loader).compute() for loader in ("odc", "stackstac"))
    assert grids.geobox_of(one) == grid
    assert np.isfinite(one["image"].values).all()
    for name in ("image", "mask", "x", "y", "time"):
        np.testing.assert_array_equal(one[name].values, two[name].values)
    values = dn(one) if sensor == "sentinel" else dn(one, 1 / 2e-5, -0.1)
    assert np.abs(values - truth(grid)).max() <= 0.51
    assert float(one["x"][0]) == grid.affine.c + grid.affine.a / 2
    assert float(one["y"][0]) == grid.affine.f + grid.affine.e / 2
    assert not one["resampled"].values.any()
    assert one.attrs["loader"] == "odc"


@pytest.mark.parametrize("loader", ["odc", "stackstac"])
def test_every_window_is_the_slice_of_the_whole(files, loader) -> None:
    for make in (sentinel, landsat):
        cube = og.open_cube([make(files)], loader=loader)
        whole = cube.compute()
        assert len(np.unique(whole["mask"].values)) > 3
        rng = np.random.default_rng(4)
        for _ in range(6):
            y, x = (sorted(rng.choice(n, 2, replace=False)) for n in cube["image"].shape[1:])
            window = {"y": slice(*y), "x": slice(*x)}
            for name in ("image", "mask"):
                np.testing.assert_array_equal(cube[name].isel(window).values, whole[name].isel(window).values)


def test_indexing_of_every_kind_reads_the_right_pixels(files) -> None:
    cube = og.open_cube([sentinel(files), sentinel(files, 5)])
    whole = cube["image"].values
    assert np.isfinite(whole).all()
    lazy = cube["image"]
    for key in [
        (0, 5, 7), (slice(None), 5, 7), (1, slice(10, 40, 3), 7), (0, slice(40, 10, -2), slice(None, None, 50)),
        ([1, 0], slice(3, 9), [4, 2, 2]), (slice(0, 0), 1, 1), (-1, -1, slice(-5, None)),
    ]:  # fmt: skip
        np.testing.assert_array_equal(
            lazy[key].values, whole[np.ix_(*_lists(key, whole.shape))].reshape(lazy[key].shape)
        )


def _lists(key: tuple[Any, ...], shape: tuple[int, ...]) -> list[Any]:
    return [np.atleast_1d(np.arange(n)[k]) for k, n in zip(key, shape, strict=True)]


def test_an_aoi_is_cut_on_the_scene_s_own_pixels(files) -> None:
    # 601003 ... 601997 m by 5098004 ... 5098996 m: not on pixel edges.
    inside = GeoBox((992, 994), Affine(1, 0, 601003, 0, -1, 5098996), GRID.crs)
    aoi = inside.extent.to_crs("EPSG:4326", resolution=50).geom
    cube = og.open_cube([sentinel(files)], aoi=aoi)
    box = grids.geobox_of(cube)
    assert cubes.relation(box, GRID) == "congruent"
    left, bottom, right, top = box.boundingbox
    assert (left, top) == (601000, 5099000)
    assert right in (602000, 602010)
    assert bottom in (5098000, 5097990)
    assert np.abs(dn(cube)[0] - truth(box)).max() <= 0.51
    wider = grids.geobox_of(og.open_cube([sentinel(files)], aoi=aoi, buffer=200))
    assert [round(v) for v in wider.boundingbox] == [left - 200, bottom - 200, right + 200, top + 200]


def test_without_an_aoi_the_cube_covers_what_all_scenes_share(files, tmp_path) -> None:
    other = GeoBox((200, 400), GRID.affine * Affine.translation(-50, 40), GRID.crs)
    second = item(5, other, {"nir": (paint(tmp_path / "b.tif", other, truth(other)), other)})
    cube = og.open_cube([sentinel(files), second], "nir")
    assert grids.geobox_of(cube) == GRID[40:240, :]
    assert cube.sizes == {"time": 2, "y": 200, "x": 320}
    assert np.abs(dn(cube) - truth(GRID[40:240, :])).max() <= 0.51
    apart = item(
        6, *[GeoBox((50, 50), GRID.affine * Affine.translation(900, 0), GRID.crs)] * 1, {"nir": ("n.tif", GRID.pad(1))}
    )
    apart.assets["nir"].extra_fields |= fields(GeoBox((50, 50), GRID.affine * Affine.translation(900, 0), GRID.crs))
    with pytest.raises(GridError, match=r"scenes: must share an area when no AOI is given. Fix: pass aoi="):
        og.open_cube([sentinel(files), apart], "nir")


def test_another_resolution_is_resampled_and_said(files) -> None:
    cube = og.open_cube([sentinel(files)], resolution=15)
    box = grids.geobox_of(cube)
    assert (box.affine.a, box.affine.c, box.affine.f) == (15, 600000, 5100000)
    assert cube["resampled"].values.all()
    assert cube.attrs["resampling"] == "cubic"
    inner = np.s_[3:-3, 3:-3]
    # Half a pixel of shift would be 70 DN.
    assert np.abs(dn(cube)[0] - truth(box))[inner].max() < 5


def test_scenes_of_another_phase_are_resampled_to_the_grid_of_the_first(files, tmp_path) -> None:
    other = GeoBox(GRID.shape, GRID.affine * Affine.translation(0.5, 0.5), GRID.crs)
    second = item(5, other, {"nir": (paint(tmp_path / "b.tif", other, truth(other)), other)})
    cube = og.open_cube([sentinel(files), second], "nir")
    assert cube["resampled"].values.tolist() == [False, True]
    error = np.abs(dn(cube) - truth(grids.geobox_of(cube)))[:, 3:-3, 3:-3]
    assert error[0].max() <= 0.51
    assert error[1].max() < 1.2


def test_a_given_grid_takes_scenes_of_any_zone(files) -> None:
    target = GRID[100:160, 100:160].to_crs("EPSG:32631", resolution=10)
    cube = og.open_cube([sentinel(files)], grid=target)
    assert grids.geobox_of(cube) == target
    assert cube["resampled"].values.all()
    assert np.isfinite(cube["image"].values).mean() > 0.8


@pytest.mark.parametrize("nodata", [0, None], ids=["tagged", "untagged"])
@pytest.mark.parametrize("loader", ["odc", "stackstac"])
def test_zero_is_no_data_on_any_grid_and_does_not_bleed(tmp_path, nodata, loader) -> None:
    values = truth(GRID)
    values[100:140, 120:180] = 0
    href = paint(tmp_path / "hole.tif", GRID, values, nodata)
    # Baseline 04.00: the offset must come after the zeros have gone.
    scene = item(0, GRID, {"nir": (href, GRID)}, **{"s2:processing_baseline": "04.00"})
    hole = np.zeros(GRID.shape, bool)
    hole[100:140, 120:180] = True
    congruent = og.open_cube([scene], "nir", loader=loader)
    np.testing.assert_array_equal(np.isnan(congruent["image"].values[0]), hole)
    assert np.abs(dn(congruent, offset=-0.1)[0] - values)[~hole].max() <= 0.51
    window = GeoBox((200, 200), GRID.affine * Affine.translation(50.5, 50.5), GRID.crs)
    resampled = dn(og.open_cube([scene], "nir", grid=window, loader=loader), offset=-0.1)[0]
    assert np.isnan(resampled[52:88, 72:128]).all()
    assert np.isfinite(resampled[:45]).all()
    assert np.nanmax(np.abs(resampled - truth(window))) < 60


# --- values ---------------------------------------------------------------------------------------------------------


def test_reflectance_is_the_same_before_and_after_baseline_0400(files) -> None:
    old, new = sentinel(files), sentinel(files, 5, "new", **{"s2:processing_baseline": "04.00"})
    done = sentinel(files, 10, **{"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True})
    image = og.open_cube([old, new, done])["image"].values
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[0], np.round(truth(GRID)) / 1e4, rtol=1e-6)
    np.testing.assert_allclose(image[1], image[0], atol=1e-7)
    np.testing.assert_array_equal(image[2], image[0])


def test_masks_are_decoded_by_their_nearest_pixel(files) -> None:
    cube = og.open_cube([sentinel(files)])
    with rasterio.open(files["scl"]) as file:
        expected = quality.decode_scl(np.kron(file.read(1), np.ones((2, 2))))
    assert set(np.unique(expected)) == {0, 1, 2, 4, 8, 16, 32, 64}
    np.testing.assert_array_equal(cube["mask"].values[0], expected)
    assert cube["mask"].attrs["flag_meanings"].split()[0] == "cloud"


def test_landsat_masks_lie_under_the_pixels_of_the_pan_band(files) -> None:
    mask = og.open_cube([landsat(files)])["mask"].values[0]
    with rasterio.open(files["qa"]) as file:
        codes = quality.decode_qa_pixel(file.read(1))
    assert len(np.unique(codes)) >= 6
    # The centre of pan pixel k lies in quality pixel (k + 1.5) // 2 or, on an edge, in the one before.
    column = np.arange(PAN.shape[1])
    position = (PAN.affine.c + 15 * (column + 0.5) - QA.affine.c) / 30
    after, before = codes[0, np.floor(position).astype(int)], codes[0, np.ceil(position).astype(int) - 1]
    assert ((mask[0] == after) | (mask[0] == before)).all()
    assert (mask == mask[0]).all()


def test_a_scene_without_a_quality_layer_is_all_clear(files) -> None:
    cube = og.open_cube([item(0, GRID, {"nir": (files["nir"], GRID)})])
    assert not cube["mask"].values.any()
    assert cube["mask"].dtype == np.uint8


def test_outside_a_scene_the_mask_says_so(files) -> None:
    cube = og.open_cube([sentinel(files)], grid=GRID.pad(10))
    outside = np.ones(cube["image"].shape[1:], bool)
    outside[10:-10, 10:-10] = False
    np.testing.assert_array_equal(np.isnan(cube["image"].values[0]), outside)
    assert (cube["mask"].values[0][outside] == quality.NO_DATA).all()


def test_coordinates_describe_every_scene_in_time_order(files) -> None:
    items = [sentinel(files, 10), sentinel(files, 0, **{"eo:cloud_cover": 33.0}), sentinel(files, 5)]
    cube = og.open_cube(items)
    assert cube["time"].dtype == "datetime64[ns]"
    assert [str(t) for t in cube["time"].values] == [f"2021-07-{d:02}T10:30:00.500000000" for d in (1, 6, 11)]
    assert cube["scene_id"].values.tolist() == [items[k].id for k in (1, 2, 0)]
    assert cube["cloud_cover"].values.tolist() == [33, 5, 5]
    assert set(cube["relative_orbit"].values) == {"R022"}
    assert set(cube["processing_baseline"].values) == {"03.01"}
    assert cube["sun_azimuth"].values.tolist() == [150] * 3
    one = og.open_cube([landsat(files)])
    assert one["platform"].item() == "landsat-8"
    assert one["relative_orbit"].item() == "063018"
    assert one["cloud_cover_land"].item() == 3
    assert (one["mission_code"].item(), one["satellite_code"].item()) == ("L", "8")
    assert cube["mapping"].attrs["spatial_epsg"] == 32632


def test_rules_of_pairs_apply_to_a_cube_as_to_its_items(files) -> None:
    items = [landsat(files, 16 * k, **{"landsat:cloud_cover_land": c}) for k, c in enumerate([3.0, 80.0, 5.0])]
    for scenes in (items, og.open_cube(items)):
        pairs = og.make_pairs(scenes, max_cloud_land=60)
        assert pairs["date_dt"].tolist() == [32]
    with pytest.raises(og.OgiveError, match="3 dropped"):
        og.make_pairs(og.open_cube(items), exclude_platforms=("landsat-8",))


def test_usable_share_counts_clear_pixels(files, tmp_path) -> None:
    cloudy = paint(tmp_path / "scl.tif", grids.coarsen(GRID, 2), np.full((150, 160), 9))
    clear = paint(tmp_path / "ok.tif", grids.coarsen(GRID, 2), np.repeat([4, 9], [120, 40])[None].repeat(150, 0))
    items = [sentinel(files), sentinel(files, 5)]
    for scene, href in zip(items, (cloudy, clear), strict=True):
        scene.assets["scl"].href = href
    share = cubes.usable_share(items, og.open_cube(items))
    assert share.index.tolist() == [scene.id for scene in items]
    assert share.iloc[0] == 0
    assert share.iloc[1] == pytest.approx(0.75, abs=0.03)
    items[0].assets["nir"].href = str(tmp_path / "gone.tif")
    judged = cubes.usable_share(items, og.open_cube(items))
    assert np.isnan(judged.iloc[0])
    assert judged.iloc[1] == share.iloc[1]
    items[0].assets["nir"].href = "http://127.0.0.1:1/busy.tif"
    with pytest.raises(ReadError, match=r"busy\.tif"), options.using(attempts=1):
        cubes.usable_share(items, og.open_cube(items))


# --- several bands --------------------------------------------------------------------------------------------------


@pytest.fixture
def banded(files, tmp_path) -> Any:
    """A Sentinel-2 item with a red band, of 20 m and with a hole, beside the near-infrared one."""
    half = grids.coarsen(GRID, 2)
    values = np.round(1e4 * (0.3 + 0.1 * np.random.default_rng(2).random(half.shape)))
    values[:40] = 0
    href = paint(tmp_path / "red.tif", half, values)

    def make(day: int = 0) -> pystac.Item:
        assets = {"nir": (files["nir"], GRID), "red": (href, half), "scl": (files["scl"], half)}
        return item(day, GRID, assets)

    return make


@pytest.mark.parametrize("loader", ["odc", "stackstac"])
def test_a_cube_of_several_bands_holds_each_as_it_is_alone(banded, loader) -> None:
    items = [banded(), banded(5)]
    cube = og.open_cube(items, ["red", "nir"], loader=loader)
    assert cube["image"].dims == ("time", "band", "y", "x")
    assert cube["mask"].dims == ("time", "y", "x")
    assert cube["band"].values.tolist() == ["red", "nir"]
    # The grid is that of the finest band.
    assert grids.geobox_of(cube) == GRID
    assert cube["resampled"].values.all()
    for name in ("red", "nir"):
        alone = og.open_cube(items, name, grid=GRID, loader=loader)
        np.testing.assert_array_equal(cube["image"].sel(band=name).values, alone["image"].values)
        np.testing.assert_array_equal(cube["mask"].values, alone["mask"].values)
    whole, lazy = cube["image"].values, cube["image"]
    for key in [
        (0, 1, slice(90, 130), slice(7, 50)), (slice(None), 0, slice(100, 120), slice(3, 39)),
        (1, slice(None), slice(160, 140, -3), slice(20, 40)), ([1, 0], [1], slice(80, 95), [24, 2, 2]),
        (slice(0, 0), 1, 1, 1),
    ]:  # fmt: skip
        np.testing.assert_array_equal(
            lazy[key].values, whole[np.ix_(*_lists(key, whole.shape))].reshape(lazy[key].shape)
        )


def test_a_pixel_that_one_band_lacks_is_not_usable(banded) -> None:
    items = [banded()]
    items[0].assets.pop("scl")
    nir, red, both = (
        cubes.usable_share(items, og.open_cube(items, band, grid=GRID), band).item()
        for band in ("nir", "red", ["nir", "red"])
    )
    assert nir == 1
    assert both == red == pytest.approx(1 - 40 / 150, abs=0.02)


@pytest.mark.real
def test_bands_of_a_real_scene(data) -> None:
    """Two bands of 100 m (overviews, as they are published) and one of 200 m."""
    folder = data / "masks" / "s2_l2a_29RKH_cog"
    scene = pystac.Item.from_file(folder / "S2A_29RKH_20200219_0_L2A.json")
    names = {"red": "B04", "nir": "B08", "swir16": "B11", "scl": "SCL"}
    scene.assets = {key: scene.assets[key] for key in names}
    raw = {}
    for key, name in names.items():
        with rasterio.open(folder / f"{name}.tif") as file:
            raw[key] = file.read(1)
            place = {"proj:transform": list(file.transform)[:6], "proj:shape": list(file.shape)}
        scene.assets[key].href = str(folder / f"{name}.tif")
        scene.assets[key].extra_fields |= place
    cube = og.open_cube([scene], ["swir16", "red", "nir"])
    assert cube["image"].shape == (1, 3, *raw["red"].shape)
    image = cube["image"].isel(time=0)
    for key in ("red", "nir"):
        known = raw[key] > 0
        np.testing.assert_allclose(image.sel(band=key).values[known] * 1e4, raw[key][known], atol=0.01)
        assert np.isnan(image.sel(band=key).values[~known]).all()
    means = image.sel(band="swir16").values[:1096, :1096].reshape(548, 2, 548, 2).mean((1, 3)) * 1e4
    both = np.isfinite(means) & (raw["swir16"][:548, :548] > 0)
    assert both.mean() > 0.5
    # Resampled to the finest band by cubic convolution: the same brightness, to a few percent.
    assert np.median(np.abs(means - raw["swir16"][:548, :548])[both] / raw["swir16"][:548, :548][both]) < 0.02


def test_one_band_in_a_list_is_one_band(banded) -> None:
    assert og.open_cube([banded()], ["nir"])["image"].identical(og.open_cube([banded()], "nir")["image"])


def test_bands_that_are_wrong_are_named(banded) -> None:
    with pytest.raises(ParameterError, match=r"band: must name each band once \(found \['nir', 'nir'\]\)"):
        og.open_cube([banded()], ["nir", "nir"])
    for wrong in ([], 3, ["nir", 3], {"sentinel-2": ["nir", "red"]}, {}):
        with pytest.raises(ParameterError, match="band: must be a name, several, or one for each sensor"):
            og.open_cube([banded()], wrong)
    with pytest.raises(ItemError, match=r"has no band 'green'.*\['red', 'nir'\]"):
        og.open_cube([banded()], ["nir", "green"])


# --- lazy -----------------------------------------------------------------------------------------------------------


def test_nothing_is_read_until_values_are_asked_for_and_then_only_the_window(files) -> None:
    reader = FakeReader(lambda scene, y, x: y * 0 + x)
    # No file of these items is opened either: they do not exist.
    items = [item(k, GRID, {"nir": ("http://127.0.0.1:1/nowhere.tif", GRID)}) for k in range(3)]
    cube = og.open_cube(items, loader=reader)
    part = cube.isel(time=[2, 0], y=slice(20, 60), x=slice(30, 100))
    assert "FakeReader" in cube.attrs["loader"]
    repr(part)
    part.isel(y=slice(5, 9))
    cube.chunk(y=100)
    assert part["image"].variable.chunks is None
    assert not part["image"].variable._in_memory
    assert reader.count == 0
    values = part["image"].isel(y=slice(5, 9), x=slice(0, 7)).values
    assert values.shape == (2, 4, 7)
    # Two scenes, this window of each; not the scene between them.
    assert sorted(reader.reads) == [(items[0].id, (4, 7)), (items[2].id, (4, 7))]
    np.testing.assert_allclose(values[0, 0] * 1e4, 600305 + 10 * np.arange(7), rtol=1e-6)


def test_a_cube_is_small_to_send(files) -> None:
    cube = og.open_cube([sentinel(files, k) for k in range(2)])
    blob = pickle.dumps(cube["image"].variable)
    assert len(blob) < 6000
    np.testing.assert_array_equal(pickle.loads(blob).values, cube["image"].values)


def test_signing_happens_at_read_time_and_leaves_no_trace(files) -> None:
    signed: list[str] = []
    with range_server(Path(files["nir"]).parent) as server:
        scene = sentinel({name: f"{server.url}/{Path(path).name}" for name, path in files.items()})
        cube = og.open_cube([scene], sign=lambda url: signed.append(url) or f"{url}?sig=s3cr3t")
        assert signed == []
        assert server.requests == []
        values = cube["image"].isel(y=slice(10, 20), x=slice(10, 20)).values
        assert np.isfinite(values).all()
    assert signed == [f"{server.url}/nir.tif"]
    assert "s3cr3t" not in repr(cube.attrs) + repr(cube.to_dict(data=False))
    assert all(
        "?" not in asset.href for s in cube["image"].variable._data.array.scenes for asset in (s.bands[0].asset, s.mask)
    )
    plain = og.open_cube([scene], sign=_sign)
    assert np.array_equal(og.open_cube([sentinel(files)])["image"].values[0, 10:20, 10:20], values[0])
    assert b"s3cr3t" not in pickle.dumps(plain["image"].variable._data.array.scenes)
    assert "s3cr3t" not in json.dumps(plain.attrs)


def _sign(url: str) -> str:
    return f"{url}?sig=s3cr3t"


# --- refusals -------------------------------------------------------------------------------------------------------


def test_every_bad_input_gives_one_clear_error(files) -> None:
    good = sentinel(files)
    far = (11.0, 30.0, 11.1, 30.1)
    where = r"Fix: the first scene covers \[600000, 5097000, 603200, 5100000\] in EPSG:32632"
    with pytest.raises(GridError, match=r"AOI: must lie inside at least one scene \(found \[.*\]\). " + where):
        og.open_cube([good], aoi=far)
    with pytest.raises(SearchError, match=r"items: must hold at least one scene \(found 0\). Fix: widen the search"):
        og.open_cube([])
    zone = GeoBox(GRID.shape, GRID.affine, "EPSG:32633")
    found = r"\(found EPSG:32632: 1 scenes, EPSG:32633: 1 scenes\)"
    with pytest.raises(GridError, match=rf"must share one coordinate system {found}.*pass grid="):
        og.open_cube([good, item(5, zone, {"nir": (files["nir"], zone)})])
    with pytest.raises(ItemError, match=r"S2A_32TPS_20210701_0_L2A.*has no band 'pan'.*\['nir'.*band="):
        og.open_cube([good], "pan")
    with pytest.raises(ParameterError, match=r"loader: must be one of odc, stackstac, or a Reader \(found 'gdal'\)"):
        og.open_cube([good], loader="gdal")
    with pytest.raises(ParameterError, match=r"resolution: must be positive \[m\] \(found -10\)"):
        og.open_cube([good], resolution=-10)
    bare = sentinel(files)
    for field in ("proj:shape", "proj:transform"):
        bare.assets["nir"].extra_fields.pop(field)
    with pytest.raises(ItemError, match=r"S2A_32TPS_20210701_0_L2A.*'nir'.*needs proj:transform, proj:shape"):
        og.open_cube([bare])
    unplaced = sentinel(files)
    del unplaced.properties["proj:code"]
    with pytest.raises(ItemError, match=r"needs proj:code"):
        og.open_cube([unplaced])
    timeless = sentinel(files)
    timeless.datetime = None
    with pytest.raises(ItemError, match="S2A_32TPS_20210701_0_L2A: needs a datetime"):
        og.open_cube([timeless])
    almost = GeoBox(GRID.shape, GRID.affine * Affine.translation(0.03, 0), GRID.crs)
    with pytest.raises(GridError, match=r"must coincide.*shift 0\.0300 px"):
        og.open_cube([good], grid=almost)


def test_an_almost_congruent_quality_layer_is_refused_before_anything_is_read(files) -> None:
    scene = sentinel(files)
    shifted = GeoBox(GRID.shape, GRID.affine * Affine.translation(0.03, 0), GRID.crs)
    scene.assets["scl"].extra_fields |= fields(shifted)
    with pytest.raises(GridError, match="must coincide"):
        og.open_cube([scene])


@pytest.mark.parametrize("loader", ["odc", "stackstac"])
def test_files_that_cannot_be_read_are_errors_that_name_the_scene(files, tmp_path, loader) -> None:
    torn = tmp_path / "torn.tif"
    whole = Path(files["nir"]).read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    with range_server(tmp_path, missing=["/torn.tif"]) as server:
        for href, cause in (
            (str(torn), "torn"),
            (str(tmp_path / "gone.tif"), "No such file"),
            (f"{server.url}/torn.tif", "404"),
        ):
            scene = item(0, GRID, {"nir": (href, GRID)})
            with pytest.raises(ReadError, match=rf"scene {scene.id}: .*{href}, window 300 x 320 px.*{cause}|torn"):
                og.open_cube([scene], loader=loader)["image"].load()
