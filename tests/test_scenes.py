"""The synthetic archive: what moves, moves as claimed; files, masks, metadata and catalogue tell the same story."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import odc.stac
import pystac
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from ogive.errors import ParameterError
from ogive.grid import coordinates
from ogive.testing import scenes
from ogive.testing.items import processing_baseline
from ogive.testing.plan import OFFSET_DATE, WorldSpec, plan_scenes
from ogive.testing.scenes import make_surface, make_world, render, write_cog
from ogive.testing.sky import make_sky, sun_position

TINY = WorldSpec(size_km=(2.4, 3.0), n_sentinel2=6, n_landsat=4, cloud=0.3)
PAIR = ("20210708", "20210822")  # one orbit, 45 days
STILL = WorldSpec(cloud=0, noise=0, misregistration=0, decorrelation=0, snow=False, wedge=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), TINY, seed=3)


def read(item, key):
    with rasterio.open(item.assets[key].href) as file:
        return file.read(1)


def sensor(world, name):
    items = [i for i in world.items if i.properties["platform"].startswith(name)]
    assert len(items) >= 4
    return items


def digest(world):
    files = sorted(Path(world.catalog).parent.rglob("*.tif"))
    assert len(files) == 20
    return {f.parent.name + f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def shift(one, two):
    """Displacement of a window from 1 to 2 [px] by phase correlation, written down independently of the package."""
    taper = np.hanning(one.shape[0])[:, None] * np.hanning(one.shape[1])
    a, b = (np.fft.fft2((w - w.mean()) * taper) for w in (one, two))
    cross = a.conj() * b
    peak = np.fft.ifft2(cross / np.sqrt(np.abs(cross) + 1e-12)).real
    at = np.unravel_index(peak.argmax(), peak.shape)
    out = []
    for axis, n in enumerate(peak.shape):
        index = [list(at) for _ in range(3)]
        for k, step in enumerate((-1, 0, 1)):
            index[k][axis] = (at[axis] + step) % n
        low, mid, high = (peak[tuple(i)] for i in index)
        out.append((at[axis] + n // 2) % n - n // 2 + 0.5 * (low - high) / (low - 2 * mid + high))
    return np.array(out)


# Motion ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def still():
    return make_surface(replace(STILL, size_km=(2.4, 3.0)), seed=1)


@settings(max_examples=15, deadline=None)
@given(st.integers(-360, 360), st.integers(-360, 360))
def test_ice_carries_its_brightness(still, a, b):
    glacier = still.glacier
    y, x = glacier.centre_line(np.linspace(0.35, 0.97, 40))
    y = y + np.linspace(-1, 1, 40) * 0.1 * glacier.extent[0]
    t1, t2 = np.datetime64("2022-06-01") + a, np.datetime64("2022-06-01") + b
    dy, dx = glacier.displacement(t1, t2, y, x)
    before, after = still.ice(t1, y, x), still.ice(t2, y + dy, x + dx)
    assert np.ptp(before) > 0.1
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_rendered_windows_move_by_displacement_plus_misregistration():
    spec = replace(STILL, misregistration=20.0, n_sentinel2=18, n_landsat=0)
    surface = make_surface(spec)
    first, second = (p for p in plan_scenes(spec) if p.id[10:18] in PAIR)
    one, two = (render(surface, p, noise=0) for p in (first, second))
    c = coordinates(one.image_grid)
    extra = np.array([second.shift[0] - first.shift[0], second.shift[1] - first.shift[1]])
    assert np.hypot(*extra) > 5
    errors = []
    for row, column, moves in (
        (330, 250, True),
        (430, 600, True),
        (260, 120, True),
        (700, 300, False),
        (120, 800, False),
    ):
        window = (slice(row - 48, row + 48), slice(column - 48, column + 48))
        y, x = c["y"].values[row] - 5 + 10, c["x"].values[column] - 5
        dy, dx = surface.glacier.displacement(first.time, second.time, y, x)
        assert (np.hypot(dy, dx) > 15) == moves
        want = np.array([-(dy + extra[0]), dx + extra[1]]) / 10
        errors.append(shift(one.image[window].astype(float), two.image[window].astype(float)) - want)
    assert np.abs(errors).max() < 0.25
    assert np.abs(np.median(errors, axis=0)).max() < 0.1


def test_landsat_and_sentinel2_show_the_same_ground(still):
    plans = plan_scenes(replace(STILL, n_sentinel2=0, n_landsat=3))
    scene = render(still, plans[1], noise=0)
    y, x = (coordinates(scene.image_grid)[k].values for k in "yx")
    truth = still.at(plans[1].time, y[:, None], x, sun=scene.sun).reflectance
    seen = (scene.image * 2e-5 - 0.1) / np.sin(np.deg2rad(scene.sun[1]))
    assert truth.std() > 0.1

    def agreement(a):
        return np.corrcoef(a[20:-20, 20:-20].ravel(), truth[20:-20, 20:-20].ravel())[0, 1]

    assert agreement(seen) > 0.98  # the detector's box blurs, but moves nothing:
    for axis in (0, 1):
        back, forth = agreement(np.roll(seen, 1, axis)), agreement(np.roll(seen, -1, axis))
        assert max(back, forth) < agreement(seen) - 0.03
        assert abs(back - forth) < 0.02


def test_decorrelation_grows_with_time():
    surface = make_surface(replace(STILL, size_km=(2.4, 3.0), decorrelation=0.6))
    glacier = surface.glacier
    y, x = glacier.centre_line(np.linspace(0.4, 0.8, 3000))
    start, previous = np.datetime64("2021-09-01"), 1.0
    before = surface.ice(start, y, x)
    for gap in (30, 180, 360):
        dy, dx = glacier.displacement(start, start + gap, y, x)
        r = np.corrcoef(before, surface.ice(start + gap, y + dy, x + dx))[0, 1]
        assert 0.5 < r < previous - 1e-4
        previous = r
    assert previous < 0.97


# Files ----------------------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes(world, tmp_path):
    again = make_world(tmp_path / "a", TINY, seed=3)
    assert digest(again) == digest(world)
    assert again.misregistration == world.misregistration
    for a, b in zip(again.items, world.items, strict=True):
        assert a.id == b.id
        assert a.properties == b.properties
    assert again.outlines.read_bytes() == world.outlines.read_bytes()
    other = digest(make_world(tmp_path / "b", TINY, seed=4))
    assert not set(other.values()) & set(digest(world).values())


def test_grids_are_those_of_the_sensors(world):
    for item in world.items:
        for asset in item.assets.values():
            with rasterio.open(asset.href) as file:
                assert list(file.shape) == asset.extra_fields["proj:shape"]
                assert list(file.transform)[:6] == asset.extra_fields["proj:transform"]
                assert file.crs.to_string() == item.properties["proj:code"] == "EPSG:32632"
    a = rasterio.open(sensor(world, "landsat")[0].assets["pan"].href).transform
    q = rasterio.open(sensor(world, "landsat")[0].assets["qa_pixel"].href).transform
    assert a.a == 15
    assert q.a == 30
    for first in ((a.c + 7.5, a.f - 7.5), (q.c + 15, q.f - 15)):  # pixel centres on multiples of the pixel size
        assert [v % a.a for v in first] == [0, 0]
    assert (a.c + 7.5, a.f - 7.5) == (q.c + 15, q.f - 15)
    s = rasterio.open(sensor(world, "sentinel-2")[0].assets["nir"].href).transform
    assert [s.a, s.c % 10, s.f % 10] == [10, 0, 0]


def test_files_are_cogs_with_nodata_tags(world, tmp_path):
    for item in world.items:
        for key, asset in item.assets.items():
            with rasterio.open(asset.href) as file:
                assert file.nodata == (1 if key == "qa_pixel" else 0)
                assert file.dtypes == (("uint8",) if key == "scl" else ("uint16",))
                assert file.profile["compress"] == "deflate"
                assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    grid = make_surface(WorldSpec()).glacier.geobox(10)
    labels = np.random.default_rng(0).integers(0, 2, grid.shape).astype(np.uint8) * 8 + 3
    write_cog(tmp_path / "big.tif", labels, grid, nodata=0, labels=True)
    with rasterio.open(tmp_path / "big.tif") as file:
        assert file.block_shapes == [(256, 256)]
        assert file.overviews(1) == [2, 4]
        np.testing.assert_array_equal(file.read(1), labels)
        assert set(np.unique(file.read(1, out_shape=(190, 240)))) == {3, 11}


def test_wedge_is_empty_in_image_and_classes(world):
    cut = 0
    for item in world.items:
        image, classes = (read(item, k) for k in item.assets)
        empty = image == 0
        cut += bool(empty.any())
        if empty.any():
            assert 0.01 < empty.mean() < 0.12
            assert empty[0, -1]
            assert not empty[-1].any()
        marked = classes == (0 if "scl" in item.assets else 1)
        assert marked.any() == empty.any()
        # No empty image pixel in a class pixel that is called filled.
        rows, columns = np.nonzero(empty)
        assert marked[rows // 2, columns // 2].all()
    assert 2 <= cut < len(world.items)


def test_offset_of_baseline_0400_shows_in_dark_pixels(world):
    dark = {True: [], False: []}
    for item in sensor(world, "sentinel-2"):
        image, scl = read(item, "nir"), read(item, "scl")
        after = np.datetime64(item.datetime.replace(tzinfo=None)) >= OFFSET_DATE
        lake = np.kron(scl == 6, np.ones((2, 2), bool))
        assert lake.sum() > 100 or (np.isin(scl, (3, 8, 9, 10))).mean() > 0.2
        if lake.any():
            dark[bool(after)].append(np.median(image[lake]))
        assert item.properties["s2:processing_baseline"] == (
            "03.01" if not after else processing_baseline(OFFSET_DATE)
        ) or (item.properties["s2:processing_baseline"] == "05.09")
        assert item.assets["nir"].extra_fields["raster:bands"][0]["offset"] == (-0.1 if after else 0.0)
    assert dark[True]
    assert dark[False]
    np.testing.assert_allclose(dark[False], 300, atol=60)
    np.testing.assert_allclose(dark[True], 1300, atol=60)


# Masks ----------------------------------------------------------------------------------------------------------------


def test_masks_agree_with_the_true_clouds(world):
    spec, surface = world.spec, make_surface(world.spec, seed=3)
    bare = replace(spec, cloud=0)
    seen_classes = set()
    for plan, clear in zip(plan_scenes(spec, seed=3), plan_scenes(bare, seed=3), strict=True):
        scene = render(surface, plan, noise=0)
        without = render(surface, replace(plan, cover=0.0, cirrus=False), noise=0)
        assert clear.shift == plan.shift
        unit = 1e4 if plan.sensor == "sentinel-2" else np.sin(np.deg2rad(scene.sun[1])) / 2e-5
        change = np.abs(scene.image.astype(float) - without.image) / unit
        rows, columns = (np.arange(n) // 2 for n in scene.image.shape)
        classes = scene.classes[np.ix_(rows, columns)]
        seen_classes |= set(np.unique(classes).tolist())
        clouded = (8, 9, 10) if plan.sensor == "sentinel-2" else (22280, 21762, 54596)
        shadow = 3 if plan.sensor == "sentinel-2" else 23888
        assert plan.cover < 0.01 or (change > 0.2).any()
        # Where the mask says clear, neither cloud nor cirrus nor more than a trace of shadow changed the image.
        assert change[~np.isin(classes, (*clouded, shadow, 0, 1))].max() < 0.09
        thick = classes == (9 if plan.sensor == "sentinel-2" else 22280)
        if thick.any():
            assert np.median(scene.image[thick]) > np.median(without.image[~thick & (without.image > 0)])
    assert {3, 5, 6, 8, 9, 11} <= seen_classes
    assert {21824, 21762, 22280, 23888} <= seen_classes


def test_cloud_cover_is_counted_from_the_masks(world):
    covers = []
    for item in sensor(world, "sentinel-2"):
        scl = read(item, "scl")
        covers.append(100 * np.isin(scl, (8, 9, 10)).sum() / (scl > 0).sum())
        assert item.properties["eo:cloud_cover"] == pytest.approx(covers[-1], abs=1e-3)
    for item in sensor(world, "landsat"):
        quality = read(item, "qa_pixel")
        cloud = 100 * (quality & 8 > 0).sum() / (quality & 1 == 0).sum()
        assert item.properties["eo:cloud_cover"] == pytest.approx(cloud, abs=1e-3)
        assert item.properties["landsat:cloud_cover_land"] == pytest.approx(cloud, abs=0.01)
    assert max(covers) > 10


def test_quality_bits_exclude_each_other(world):
    values = np.unique([v for i in sensor(world, "landsat") for v in np.unique(read(i, "qa_pixel"))])
    assert len(values) >= 5
    for value in values.tolist():
        fill, dilated, cirrus, cloud, shadow, snow, clear, water = (bool(value >> k & 1) for k in range(8))
        if fill:
            assert value == 1
            continue
        assert clear == (not (cloud or dilated))  # the definition of bit 6
        assert sum((dilated, cirrus, cloud, shadow, snow, water)) <= 1
        # High confidence (3) goes with the bit, low confidence (1) without.
        for flag, at in ((cloud, 8), (shadow, 10), (snow, 12), (cirrus, 14)):
            assert value >> at & 3 == (3 if flag else 1)


@pytest.mark.real
def test_quality_values_occur_in_a_real_scene(data):
    (path,) = (data / "masks" / "landsat_c2_greenland_005009").rglob("*QA_PIXEL*.[tT][iI][fF]*")
    with rasterio.open(path) as file:
        real = set(np.unique(file.read(1)).tolist())
    # An ice-sheet scene: neither bare ground nor open water.
    assert {scenes.QA_FILL, scenes.QA_CLOUD, scenes.QA_SHADOW, scenes.QA_SNOW} <= real


def test_sky_throws_shadows_away_from_the_sun():
    sky = make_sky((0, 0, 4000, 4000), np.random.default_rng(1), cover=0.2, cirrus=True, sun=(135.0, 45.0))
    dy, dx = sky.shadow_offset
    assert dy == pytest.approx(450 * np.sqrt(0.5))  # sun in the south-east: shadow to the north-west
    assert dx == pytest.approx(-450 * np.sqrt(0.5))
    y, x = np.arange(4000.0, 0, -40)[:, None], np.arange(0.0, 4000, 40)
    cloud, shadow, cirrus = sky.opacity(y, x)
    assert 0.05 < (cloud > 0.02).mean() < 0.4
    assert 0 < cirrus.max() <= 0.12
    np.testing.assert_allclose(shadow, sky.opacity(y - dy, x - dx)[0] * (1 - cloud), atol=1e-12)
    with pytest.raises(ParameterError, match="cover"):
        make_sky((0, 0, 1, 1), np.random.default_rng(1), cover=2.0, cirrus=False, sun=(0, 45))


@pytest.mark.parametrize(
    ("time", "latitude", "longitude", "azimuth", "elevation"),
    [
        ("2021-03-20T12:07", 46.5, 0.0, 180.0, 43.5),
        ("2021-06-21T12:02", 46.5, 0.0, 180.0, 66.94),
        ("2021-12-21T11:58", 46.5, 0.0, 180.0, 20.06),
        ("2021-09-22T18:00", 0.0, 0.0, 270.0, 0.0),
    ],
)
def test_sun_position(time, latitude, longitude, azimuth, elevation):
    got = sun_position(time, latitude, longitude)
    assert got[1] == pytest.approx(elevation, abs=2.1 if elevation == 0 else 0.6)
    assert got[0] == pytest.approx(azimuth, abs=1.5)


# Metadata -------------------------------------------------------------------------------------------------------------


def test_items_round_trip_through_the_catalogue(world):
    catalog = pystac.Catalog.from_file(str(world.catalog))
    found = {i.id: i for i in catalog.get_items(recursive=True)}
    again = pystac.ItemCollection.from_file(str(world.items_file))
    assert len(found) == len(again) == len(world.items) == 10
    for item, saved in zip(world.items, again, strict=True):
        assert saved.to_dict()["properties"] == item.to_dict()["properties"]
        listed = found[item.id]
        assert listed.datetime == item.datetime == saved.datetime
        assert listed.get_collection().id == item.collection_id
        for key, asset in item.assets.items():
            assert Path(asset.href).is_file()
            assert Path(asset.href).is_absolute()
            assert saved.assets[key].href == asset.href
            assert not Path(listed.assets[key].href).is_absolute()
            assert Path(listed.assets[key].get_absolute_href()).resolve() == Path(asset.href)
    text = world.catalog.read_text() + "".join(p.read_text() for p in world.catalog.parent.glob("items/*.json"))
    assert str(world.catalog.parent) not in text  # the folder can be moved
    assert [i.datetime for i in world.items] == sorted(i.datetime for i in world.items)
    assert list(world.misregistration) == [i.id for i in world.items]
    for (dy, dx), item in zip(world.misregistration.values(), world.items, strict=True):
        limit = 3.0 if "scl" in item.assets else 4.5
        assert 0.3 * limit < np.hypot(dy, dx) <= limit


def test_items_have_the_fields_of_their_sensor(world):
    common = {"platform", "constellation", "eo:cloud_cover", "proj:code", "view:sun_azimuth", "view:sun_elevation"}
    for item in sensor(world, "sentinel-2"):
        p = item.properties
        assert common | {"s2:processing_baseline", "s2:mgrs_tile", "mgrs:utm_zone"} <= set(p)
        assert p["grid:code"] == "MGRS-32TMS"
        assert p["sat:relative_orbit"] in (65, 108)
        assert item.id == f"S2{p['platform'][-1].upper()}_32TMS_{item.datetime:%Y%m%d}_0_L2A"
        assert item.collection_id == "sentinel-2-l2a"
        assert "proj:epsg" not in json.dumps(item.to_dict())
        assert list(item.assets) == ["nir", "scl"]
    for item in sensor(world, "landsat"):
        p = item.properties
        assert common | {"landsat:cloud_cover_land", "landsat:scene_id"} <= set(p)
        assert (p["landsat:wrs_path"], p["landsat:wrs_row"]) == ("195", "028")
        assert item.id.startswith(f"LC0{p['platform'][-1]}_L1TP_195028_{item.datetime:%Y%m%d}_")
        assert item.collection_id == "landsat-c2-l1"
        assert list(item.assets) == ["pan", "qa_pixel"]
    for item in world.items:
        assert 10 < item.properties["view:sun_elevation"] < 68
        assert 130 < item.properties["view:sun_azimuth"] < 175
        west, south, east, north = item.bbox
        assert 7 < west < east < 9
        assert 46 < south < north < 47


@pytest.mark.parametrize("key", ["nir", "pan"])
def test_odc_stac_reads_the_files_unchanged(world, key):
    items = [i for i in world.items if key in i.assets]
    loaded = odc.stac.load(items, bands=[key], groupby="id")[key]
    assert loaded.shape[0] == len(items) >= 4
    for item, layer in zip(sorted(items, key=lambda i: i.datetime), loaded.values, strict=True):
        image = read(item, key)
        assert image.max() > 0
        np.testing.assert_array_equal(layer, image)


def test_outlines_and_rock_are_readable(world):
    outline, rock = gpd.read_file(world.outlines), gpd.read_file(world.rock)
    assert outline.crs == rock.crs == "EPSG:4326"
    assert outline["RGIId"].tolist() == ["RGI60-00.00001"]
    area = outline.to_crs(world.glacier.crs).area.iloc[0]
    assert area == pytest.approx(world.glacier.outline().area.iloc[0], rel=1e-6)
    assert len(rock) >= 1


# Plans ----------------------------------------------------------------------------------------------------------------


def test_default_plan_offers_pairs_of_all_kinds():
    plans = plan_scenes(WorldSpec())
    two = [p for p in plans if p.sensor == "sentinel-2"]
    land = [p for p in plans if p.sensor == "landsat"]
    assert (len(two), len(land)) == (18, 8)
    assert len({p.id for p in plans}) == 26
    assert two[0].time < OFFSET_DATE < two[-1].time
    assert {p.platform for p in plans} == {"sentinel-2a", "sentinel-2b", "landsat-8", "landsat-9"}
    for orbit, least in ((108, 6), (65, 3)):
        days = np.array([p.time for p in two if p.orbit == orbit]).astype("datetime64[D]").astype(int)
        assert (np.diff(days) % 5 == 0).all()
        gaps = (days[:, None] - days)[np.triu_indices(len(days), 1)[::-1]]
        assert ((gaps > 330) & (gaps < 400)).sum() >= least
    for platform in ("landsat-8", "landsat-9"):
        days = np.array([p.time for p in land if p.platform == platform]).astype("datetime64[D]").astype(int)
        assert len(days) >= 3
        assert (np.diff(days) % 16 == 0).all()
    months = np.array([p.time for p in plans]).astype("datetime64[M]").astype(int) % 12
    assert np.isin(months, (5, 6, 7, 8)).sum() > np.isin(months, (11, 0, 1, 2)).sum()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 150), st.integers(0, 60), st.integers(0, 5))
def test_any_number_of_scenes_is_planned_without_repeats(n_sentinel2, n_landsat, seed):
    if n_sentinel2 + n_landsat == 0:
        n_landsat = 1
    plans = plan_scenes(WorldSpec(n_sentinel2=n_sentinel2, n_landsat=n_landsat), seed=seed)
    assert len({p.id for p in plans}) == len(plans) == n_sentinel2 + n_landsat
    start, end = np.datetime64("2021-06-15"), np.datetime64("2023-06-16")
    assert all(start <= p.time < end for p in plans)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"cloud": 0.9}, "cloud: must be between"),
        ({"noise": -1.0}, "noise: must not be negative"),
        ({"n_sentinel2": 0, "n_landsat": 0}, "must be at least 1"),
        ({"end": "2020-01-01"}, "end: must be after"),
    ],
)
def test_spec_names_what_is_wrong(arguments, match):
    with pytest.raises(ParameterError, match=match):
        WorldSpec(**arguments)


def test_more_scenes_than_passes_is_an_error():
    with pytest.raises(ParameterError, match=r"n_landsat: asks for 500 of \d+ passes"):
        plan_scenes(WorldSpec(n_landsat=500))
