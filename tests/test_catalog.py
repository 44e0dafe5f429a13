"""Sensors, bands, grids and radiometry of real items from every provider; refusal of hostile catalogs."""

import math
import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import shapely
import yaml
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

import ogive as og
from ogive import catalog
from ogive._sources import _file
from ogive.errors import ItemError, ParameterError, SearchError, StoreError
from ogive.grid import geobox_of
from ogive.testing.plan import WorldSpec
from ogive.testing.scenes import make_world
from ogive.testing.stores import lazy_velocity

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def make(
    item_id="S2A_32TPS_20210705_0_L2A", *, when=datetime(2021, 7, 5, tzinfo=UTC), collection=None, assets=(), **props
):
    item = pystac.Item(item_id, None, None, when, props, collection=collection)
    for key in assets:
        item.add_asset(key, pystac.Asset(f"/x/{key}.tif"))
    return item


def real(name, number=0):
    return _file(DATA / "stac" / name, strict=True)[number]


EARTH_SEARCH = "eodag_provider_responses/earth_search_search.json"
PAGES = "itslive_monitoring_s2/S2B_19DEE_20231129_0_L1C_pages.json"
USGS = "itslive_monitoring_landsat_138041/landsat_scene1_return_itemcollection.json"
ALASKA = "odc_stac/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531"
# level, platform, default band, scale, offset, EPSG, pixel size, orbit, codes, baseline, mask of the first item
REAL = {
    EARTH_SEARCH: "sentinel-2-l1c sentinel-2b nir 1e-4 -0.1 32627 10 R081 S/2B/MSI 05.10 None",
    PAGES: "sentinel-2-l1c sentinel-2b nir 1e-4 -0.1 32719 10 R081 S/2B/MSI 05.09 None",
    USGS: "landsat-c2-l1 landsat-9 pan 2e-5 -0.1 32645 15 138041 L/9/C 02 qa_pixel",
    "planetary_computer/sentinel-2-l2a-pc.json": (
        "sentinel-2-l2a sentinel-2b B08 1e-4 -0.1 32647 10 R122 S/2B/MSI 05.10 SCL"
    ),
    "planetary_computer/landsat-c2-l2-pc.json": (
        "landsat-c2-l2 landsat-9 nir08 2.75e-5 -0.2 32655 30 089090 L/9/C 02 qa_pixel"
    ),
    # Its raster:bands give a radiance: DN are kept.
    "planetary_computer/landsat-c2-l1-pc.json": "landsat-c2-l1 landsat-5 nir08 1 0 32611 60 039039 L/5/M 02 qa_pixel",
    "stackstac_landsat_c2_l2/items-landsat-c2-l2.json": (
        "landsat-c2-l2 landsat-9 nir08 2.75e-5 -0.2 3031 30 089113 L/9/C 02 qa_pixel"
    ),
    "odc_stac/S2A_28QCH_20200714_0_L2A.json": (
        "sentinel-2-l2a sentinel-2a B08 1e-4 0 32628 10 R123 S/2A/MSI 02.14 SCL"
    ),
    f"{ALASKA}.json": "sentinel-2-l2a sentinel-2b B08 1e-4 0 32606 10 R043 S/2B/MSI 02.12 SCL",
    f"{ALASKA}_raster_ext.json": "sentinel-2-l2a sentinel-2b B08 1e-4 0 32606 10 R043 S/2B/MSI 02.12 SCL",
    "odc_stac/LC08_L2SP_028030_20200114_20200824_02_T1_SR.json": (
        "landsat-c2-l2 landsat-8 nir08 2.75e-5 -0.2 32615 30 028030 L/8/C 02 qa_pixel"
    ),
    "odc_stac/LC08_L2SR_081119_20200101_20200823_02_T2.json": (
        "landsat-c2-l2 landsat-8 SR_B5.TIF 2.75e-5 -0.2 3031 1164.15 081119 L/8/C 02 QA_PIXEL.TIF"
    ),
}


@pytest.mark.real
@pytest.mark.parametrize(("source", "expected"), REAL.items(), ids=REAL)
def test_real_items_of_every_provider(source, expected):
    level, platform, band, scale, offset, epsg, pixel, orbit, codes, baseline, mask = expected.split()
    mask = None if mask == "None" else mask
    item = real(source)
    assert catalog.product_of(item).name == level
    assert catalog.product_of(item) in catalog.sensor_of(item).products
    assert catalog.platform_of(item) == platform
    assert platform.startswith(catalog.sensor_of(item).name)
    assert catalog.band_asset(item) == band
    assert catalog.scale_offset(item, band) == pytest.approx((float(scale), float(offset)))
    grid = catalog.scene_geobox(item, band)
    assert grid.crs.epsg == int(epsg) == catalog.epsg_of(item)
    assert grid.resolution.x == pytest.approx(float(pixel))
    assert min(grid.shape) > 100
    assert catalog.relative_orbit(item) == orbit
    assert "/".join(catalog.codes(item)) == codes
    assert catalog.processing_baseline(item) == baseline
    assert catalog.mask_asset(item) == mask
    if mask:
        assert catalog.scale_offset(item, mask) == (1.0, 0.0)
    assert 0 <= catalog.cloud_cover(item) <= 100
    assert datetime(2012, 1, 1, tzinfo=UTC) < item.datetime < datetime(2025, 1, 1, tzinfo=UTC)


@pytest.mark.real
def test_every_item_of_every_recording_is_understood():
    count = 0
    for path in sorted((DATA / "stac").glob("*/*.json")):
        if path.name in ("sentinel-2-l2a.collection.json", "cop_dataspace_search.json"):
            continue
        for item in _file(path, strict=True):
            grid = catalog.scene_geobox(item, catalog.band_asset(item))
            assert grid.crs is not None
            assert catalog.relative_orbit(item)
            assert catalog.codes(item)[1] in {"2A", "2B", "4", "5", "7", "8", "9"}
            count += 1
    assert count == 93 + 148 + 12 + 20 + 1 + 5


@pytest.mark.real
def test_odata_answer_of_cdse_has_everything_but_bands():
    item = real("eodag_provider_responses/cop_dataspace_search.json")
    assert catalog.sensor_of(item).name == "sentinel-2"
    assert catalog.product_of(item).name == "sentinel-2-l1c"
    assert item.properties["s2:mgrs_tile"] == "54PXA"
    assert catalog.epsg_of(item) == 32654
    assert item.datetime == datetime(2020, 8, 8, 1, 3, 11, 24000, tzinfo=UTC)
    assert catalog.relative_orbit(item) == "R045"
    assert catalog.processing_baseline(item) == "05.00"
    assert catalog.cloud_cover(item) == pytest.approx(95.1367, abs=1e-3)
    with pytest.raises(ItemError, match="has no band 'nir'"):
        catalog.band_asset(item)


@pytest.mark.real
def test_pan_grid_is_that_of_the_asset_not_of_the_item():
    item = real(USGS)
    assert catalog.scene_geobox(item, "pan") == GeoBox(
        (15341, 15061), Affine(15, 0, 673192.5, 0, -15, 3152107.5), "EPSG:32645"
    )
    assert catalog.scene_geobox(item, "qa_pixel") == GeoBox(
        (7671, 7531), Affine(30, 0, 673185, 0, -30, 3152115), "EPSG:32645"
    )
    del item.assets["pan"].extra_fields["proj:transform"]
    with pytest.raises(ItemError, match="proj:transform of its own, because its pixels are 15 m"):
        catalog.scene_geobox(item, "pan")


@pytest.mark.real
def test_sun_of_planetary_computer_comes_from_the_zenith():
    azimuth, elevation = catalog.sun_angles(real("planetary_computer/sentinel-2-l2a-pc.json"))
    assert azimuth == pytest.approx(247.347, abs=1e-3)
    assert elevation == pytest.approx(90 - 75.16447, abs=1e-4)


def test_unknown_fields_are_nan_or_empty():
    item = make()
    assert all(math.isnan(angle) for angle in catalog.sun_angles(item))
    assert math.isnan(catalog.cloud_cover(item))
    assert math.isnan(catalog.cloud_cover(make(**{"eo:cloud_cover": -1})))
    assert catalog.cloud_cover(make(**{"eo:cloud_cover": 0})) == 0
    assert catalog.relative_orbit(item) == ""
    assert catalog.processing_baseline(item) == ""
    assert catalog.epsg_of(item) is None
    assert catalog.mask_asset(item) is None


def test_sensor_by_platform_constellation_and_id():
    assert catalog.sensor_of(make("x", platform="Sentinel-2B")).name == "sentinel-2"
    assert catalog.sensor_of(make("x", platform="LANDSAT_7")).name == "landsat"
    assert catalog.sensor_of(make("x", constellation="Sentinel 2")).name == "sentinel-2"
    assert catalog.sensor_of(make("LE07_L1TP_138041_20220802_20220902_02_T1")).name == "landsat"
    assert catalog.codes(make("LO08_L1TP_138041_20220802_20220902_02_T1")) == ("L", "8", "O")
    assert catalog.codes(make("LC80630182016200LGN00")) == ("L", "8", "C")
    assert catalog.relative_orbit(make("LC80630182016200LGN00")) == "063018"
    assert catalog.platform_of(make("S2C_32TPS_20250705_0_L2A")) == "sentinel-2c"
    with pytest.raises(ItemError, match=r"known sensor.*sentinel-1a"):
        catalog.sensor_of(make("S1A_IW", platform="sentinel-1a", constellation="sentinel-1"))
    with pytest.raises(ItemError, match="field 'platform'"):
        catalog.platform_of(make("x", constellation="sentinel-2"))
    with pytest.raises(ItemError, match="must be one of"):
        catalog.product_of(make("x", platform="landsat-8"))


@pytest.mark.parametrize(
    ("baseline", "when", "flag", "declared", "offset"),
    [
        ("02.14", 2019, None, None, 0.0),
        ("03.01", 2022, None, None, 0.0),  # the baseline decides, not the date
        ("04.00", 2022, None, None, -0.1),
        ("05.00", 2018, None, None, -0.1),  # reprocessed
        ("05.11", 2025, False, -0.1, -0.1),
        ("05.11", 2025, True, -0.1, 0.0),  # Earth Search: already applied, raster:bands still say -0.1
        ("02.14", 2019, False, -0.1, 0.0),
        (None, 2021, None, None, 0.0),
        (None, 2023, None, None, -0.1),
    ],
)
@pytest.mark.parametrize("collection", ["sentinel-2-l1c", "sentinel-2-l2a"])
def test_sentinel2_offset(collection, baseline, when, flag, declared, offset):
    props = {"s2:processing_baseline": baseline, "earthsearch:boa_offset_applied": flag}
    item = make(when=datetime(when, 6, 1, tzinfo=UTC), collection=collection, assets=["nir", "scl"], **props)
    if declared is not None:
        item.assets["nir"].extra_fields["raster:bands"] = [{"scale": 1e-4, "offset": declared}]
    assert catalog.scale_offset(item, "nir") == pytest.approx((1e-4, offset), abs=1e-12)
    assert catalog.scale_offset(item, "scl") == (1.0, 0.0)


def test_landsat_radiometry():
    item = make("LE07_L1TP_138041_20220802_20220902_02_T1", assets=["pan"], collection="landsat-c2-l1")
    assert catalog.scale_offset(item, "pan") == (1.0, 0.0)
    item.assets["pan"].extra_fields["raster:bands"] = [{"scale": 1.9e-3, "offset": -0.01}]
    assert catalog.scale_offset(item, "pan") == (1.9e-3, -0.01)
    # STAC 1.1 writes the fields on the asset itself.
    item.assets["pan"].extra_fields = {"raster:scale": 2e-3, "raster:offset": -0.02}
    assert catalog.scale_offset(item, "pan") == (2e-3, -0.02)


def test_band_numbers_depend_on_the_platform():
    keys = [f"B{n}" for n in range(1, 9)]
    oli = make("LC08_L1TP_138041_20220802_20220902_02_T1", assets=keys)
    etm = make("LE07_L1TP_138041_20220802_20220902_02_T1", assets=keys)
    tm = make("LT05_L1TP_138041_20110802_20220902_02_T1", assets=keys[:7])
    assert [catalog.band_asset(oli, b) for b in ("red", "nir", "swir16", None)] == ["B4", "B5", "B6", "B8"]
    assert [catalog.band_asset(etm, b) for b in ("red", "nir", "swir16", None)] == ["B3", "B4", "B5", "B8"]
    assert catalog.band_asset(tm) == "B4"
    assert catalog.band_asset(oli, "B2") == "B2"


def test_band_by_common_name_of_the_asset_and_missing_band():
    item = make(assets=["first", "second"])
    item.assets["second"].extra_fields["eo:bands"] = [{"name": "B08", "common_name": "nir"}]
    assert catalog.band_asset(item) == "second"
    with pytest.raises(ItemError, match=r"no band 'red'.*'first', 'second'"):
        catalog.band_asset(item, "red")


@pytest.mark.parametrize("field", ["proj:transform", "proj:shape", "proj:code"])
def test_grid_names_the_missing_field(field):
    fields = {"proj:transform": [10, 0, 6e5, 0, -10, 5e6], "proj:shape": [100, 80], "proj:code": "EPSG:32632"}
    item = make(assets=["nir"])
    item.assets["nir"].extra_fields |= fields
    assert catalog.scene_geobox(item, "nir").shape == (100, 80)
    del item.assets["nir"].extra_fields[field]
    with pytest.raises(ItemError, match=f"needs {field} "):
        catalog.scene_geobox(item, "nir")
    with pytest.raises(ItemError, match="must have the asset"):
        catalog.scene_geobox(item, "B99")


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    height=st.integers(1, 20000),
    width=st.integers(1, 20000),
    pixel=st.sampled_from([10.0, 15.0, 20.0, 30.0]),
    left=st.integers(-(10**6), 10**6),
    top=st.integers(-(10**7), 10**7),
    zone=st.integers(1, 60),
    spelling=st.sampled_from(["code", "epsg"]),
    on_item=st.booleans(),
    long=st.booleans(),
)
def test_grid_from_fields_is_exact(height, width, pixel, left, top, zone, spelling, on_item, long):
    transform = [pixel, 0.0, float(left), 0.0, -pixel, float(top)] + ([0.0, 0.0, 1.0] if long else [])
    crs = {"proj:code": f"EPSG:{32600 + zone}"} if spelling == "code" else {"proj:epsg": 32600 + zone}
    fields = {"proj:transform": transform, "proj:shape": [height, width]} | crs
    item = make(assets=["nir"])
    (item.properties if on_item else item.assets["nir"].extra_fields).update(fields)
    expected = GeoBox((height, width), Affine(*transform[:6]), f"EPSG:{32600 + zone}")
    assert catalog.scene_geobox(item, "nir") == expected


def test_sensor_files_hold_numbers_and_unique_collections():
    seen = []
    for sensor in catalog.sensors().values():
        for product in sensor.products:
            assert isinstance(product.scale, float)
            assert isinstance(product.offset, float)
            seen += product.collections
        for platform in sensor.platforms.values():
            assert all(isinstance(code, str) for code in platform.codes)
    assert len(seen) == len(set(seen)) > 8
    levels = {product.name for sensor in catalog.sensors().values() for product in sensor.products}
    for endpoint in catalog.endpoints().values():
        assert endpoint.url.startswith("https://")
        assert set(endpoint.collections) <= levels
        assert set(endpoint.collections.values()) <= set(seen)


def test_shipped_catalogs_open():
    stac = catalog.open_catalog("stac")
    assert set(stac) == set(catalog.endpoints()) == {"earth-search", "planetary-computer", "usgs", "cdse"}
    assert stac["usgs"].data.url == catalog.endpoints()["usgs"].url
    assert "rgi70" in list(catalog.open_catalog("products"))
    with pytest.raises(SearchError, match=r"catalog 'stak'.*products"):
        catalog.open_catalog("stak")


@pytest.mark.real
def test_products_catalog_reads_the_outlines_it_is_pointed_at():
    path = str(DATA / "outlines/rgi7_hintereisferner/rgi7g_hef.shp")
    frame = og.catalog("products", rgi70_path=path)["rgi70"].read()
    assert frame["rgi_id"].tolist() == ["RGI2000-v7.0-G-11-03116"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of a user's catalogs, with the catalog that docs/catalogs.md shows."""
    folder = tmp_path / "catalogs"
    folder.mkdir()
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "catalogs.md").read_text(), re.M | re.S)
    (folder / "mine.yaml").write_text(block.replace("s3://my-bucket/glaciers", str(tmp_path)))
    monkeypatch.setenv("OGIVE_CATALOGS", str(folder))
    return folder


def test_an_own_store_is_opened_by_name(own):
    og.write(lazy_velocity(), own.parent / "matches.zarr", progress=False)
    assert "mdg" in list(og.catalog())
    assert set(og.catalog("mine")) == {"mdg", "my-archive"}
    for opened in (og.catalog(), og.catalog("mine"), og.catalog(own / "mine.yaml")):
        velocity = opened["mdg"].read()
        assert velocity.identical(og.open_velocity(own.parent / "matches.zarr"))
    og.write(lazy_velocity((2, 20, 24)), own.parent / "other.zarr", progress=False)
    assert og.catalog("mine", mdg_store="other")["mdg"].read().sizes["mid_date"] == 2
    with pytest.raises(StoreError):
        og.catalog("mine", mdg_store="nothing")["mdg"].read()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"mdg_stor": "x"}, r"parameter 'mdg_stor': must be one of \['archive', 'mdg_store'\]"),
        ({"mdg_store": 7}, r"parameter 'mdg_store': must be a text \(found 7\)"),
        ({"mdg_store": True}, r"must be a text \(found True\)"),
        ({"mdg_store": ["a"]}, r"must be a text"),
        ({"mdg_store": "{env(HOME)}"}, r"outside the allowed lists \(found \{env\(HOME\)\}\)"),
        ({"mdg_store": "{% raw %}"}, r"outside the allowed lists"),
        ({"mdg_store": "func"}, r"outside the allowed lists"),
    ],
)
def test_parameters_are_checked(own, parameters, said):
    with pytest.raises((ParameterError, SearchError), match=said):
        og.catalog("mine", **parameters)


def test_a_number_stays_a_number():
    read = og.catalog("products", itslive_year=2019, itslive_region="RGI01A")["itslive-annual"]
    assert read.data.url.endswith("/annual/cog/ITS_LIVE_velocity_120m_RGI01A_2019_v02")
    with pytest.raises(ParameterError, match=r"'itslive_year': must be a number \(found '2019'\)"):
        og.catalog("products", itslive_year="2019")


def test_catalogs_do_not_take_each_others_names(own):
    text = (own / "mine.yaml").read_text()
    (own / "stac.yaml").write_text(text)
    with pytest.raises(SearchError, match=r"need names of their own \(found \['stac'\]\)"):
        og.catalog()
    (own / "stac.yaml").rename(own / "second.yaml")
    assert "mdg" in list(og.catalog())  # the same things may be said twice
    (own / "second.yaml").write_text(text.replace("mdg_store: matches", "mdg_store: other"))
    with pytest.raises(SearchError, match=r"catalog second: must not take user_parameters of others .*'mdg_store'"):
        og.catalog()
    assert list(og.catalog("second"))


def test_an_own_archive_is_searched_by_name(own, tmp_path):
    tiny = WorldSpec(size_km=(1.2, 1.5), n_sentinel2=2, n_landsat=0)
    world = make_world(tmp_path / "world", tiny)
    items = og.catalog("mine", archive=world.catalog)["my-archive"].read(datetime="2021/2022")
    assert [item.id for item in items] == [item.id for item in world.items]


def test_a_mosaic_is_read_by_region_and_year(tmp_path):
    folder = tmp_path / "annual" / "cog"
    folder.mkdir(parents=True)
    profile = {"driver": "GTiff", "height": 3, "width": 4, "count": 1, "dtype": "float32", "nodata": -32767}
    profile |= {"crs": "EPSG:32632", "transform": Affine(120, 0, 600000, 0, -120, 5100000)}
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    values[0, 0] = -32767
    for factor, name in enumerate(("vx", "vy", "v"), 1):
        with rasterio.open(folder / f"ITS_LIVE_velocity_120m_RGI11A_2021_v02_{name}.tif", "w", **profile) as file:
            file.write(np.where(values < 0, values, values * factor), 1)
    opened = og.catalog("products", itslive_mosaics=tmp_path, itslive_year=2021)
    mosaic = opened["itslive-annual"].read()
    assert mosaic["vy"].chunks is not None
    assert geobox_of(mosaic) == GeoBox((3, 4), profile["transform"], "EPSG:32632")
    expected = np.where(values < 0, np.nan, values * 2)
    np.testing.assert_array_equal(mosaic["vy"].values, expected)
    assert mosaic["vy"].attrs["units"] == "meter/year"
    # Not what GDAL would make of an address that is none.
    with pytest.raises(ItemError, match="must be a path or an address"):
        og.catalog("products", itslive_mosaics="/vsicurl/http://127.0.0.1:9")["itslive-annual"].read()


@pytest.mark.real
def test_cubes_of_itslive_over_a_place_are_found_in_their_table():
    table = DATA / "cubes/itslive_catalog/catalog_v02_rgi.geojson"
    columbia = og.itslive_cubes((-146.99, 61.1, -146.9, 61.2), table=table)
    assert columbia["epsg"].tolist() == [3413]
    assert columbia["share"].tolist() == pytest.approx([1.0])
    assert columbia["zarr_url"][0].endswith("ITS_LIVE_vel_EPSG3413_G0120_X-3150000_Y650000.zarr")
    alps = og.itslive_cubes((6, 45.5, 11, 47), table=table)
    assert len(alps) > 4
    assert alps["share"].is_monotonic_decreasing
    assert 0.9 < alps["share"].sum() < 1.3  # in two zones, whose cubes overlap
    assert len(og.itslive_cubes(shapely.Point(-146.95, 61.15), table=table)) == 1
    assert og.itslive_cubes((-150, 5, -149, 6), table=table).empty


def test_a_table_of_cubes_that_is_none_is_refused(tmp_path):
    with pytest.raises(SearchError, match="must be a GeoJSON that can be read"):
        og.itslive_cubes((6, 45, 7, 46), table=tmp_path / "none.geojson")
    other = tmp_path / "outlines.geojson"
    gpd.GeoDataFrame({"name": ["a"]}, geometry=[shapely.box(6, 45, 7, 46)], crs=4326).to_file(other)
    with pytest.raises(SearchError, match="columns zarr_url and epsg"):
        og.itslive_cubes((6, 45, 7, 46), table=other)


@pytest.mark.real
def test_a_cube_of_itslive_is_opened_by_its_address():
    path = DATA / "cubes/itslive_v2_single_glacier_se_tibet.zarr"
    cube = og.catalog("products", itslive_cube=path)["itslive-cube"].read()
    assert cube.sizes == og.open_velocity(path).sizes
    assert set(cube["source"].values) == set(og.open_velocity(path)["source"].values)


def hostile(changes):
    """A correct catalog; `changes` is {path of keys: value}."""
    doc = {
        "version": 2,
        "metadata": {},
        "user_parameters": {},
        "aliases": {"velocity": "velocity"},
        "data": {
            "d": {
                "datatype": "intake.readers.datatypes:STACJSON",
                "kwargs": {"url": "http://127.0.0.1:9"},
                "metadata": {},
                "user_parameters": {},
            }
        },
        "entries": {
            "velocity": {
                "reader": "ogive.catalog:StacItems",
                "output_instance": "pystac:ItemCollection",
                "kwargs": {"args": ["{data(d)}"]},
                "metadata": {},
                "user_parameters": {},
            }
        },
    }
    for path, value in changes.items():
        node = doc
        *parents, last = path.split(".")
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return doc


ATTACKS = {
    "reader is a function": {"entries.velocity.reader": "subprocess:getoutput"},
    "pickle": {
        "data.d.datatype": "intake.readers.datatypes:SKLearnPickleModel",
        "entries.velocity.reader": "intake.readers.readers:SKLearnModelReader",
    },
    "func template": {"entries.velocity.kwargs.datetime": "{func(os:getcwd)}"},
    "import template": {"data.d.kwargs.url": "{import(antigravity)}"},
    "pickle template": {
        "entries.velocity.kwargs.load": {"band": ["{pickle64(gASVEAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOULg==)}"]}
    },
    "environment": {"data.d.kwargs.url": "http://127.0.0.1/{env(HOME)}"},
    "environment in a parameter": {"user_parameters.secret": "{env(HOME)}"},
    "template in a key": {"entries.velocity.kwargs": {"{env(HOME)}": 1}},
    "typed parameter": {"user_parameters.p": {"cls": "subprocess:Popen", "args": ["true"]}},
    "class of an entry": {"entries.velocity.cls": "subprocess:Popen"},
    "class inside": {"entries.velocity.kwargs.load": {"cls": "subprocess:Popen"}},
    "function of a reader": {"entries.velocity.kwargs.func": "os:system"},
    "imported output": {"entries.velocity.output_instance": "antigravity:geohash"},
    "attribute of a parameter": {"user_parameters.p": "x", "data.d.kwargs.url": "{p.__class__}"},
    "any Zarr store, codecs unseen": {"entries.velocity.reader": "intake.readers.readers:XArrayDatasetReader"},
    "parameter of an entry": {"entries.velocity.user_parameters": {"p": {"cls": "subprocess:Popen"}}},
    "extra top level": {"pipelines": {}},
    "entry is text": {"entries.velocity": "os:system"},
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_hostile_catalog_is_refused(attack, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(hostile(attack)))
    with pytest.raises(SearchError, match="code outside the allowed lists"):
        catalog.open_catalog(path)
    path.write_text(yaml.safe_dump(hostile({})))
    assert list(catalog.open_catalog(path)) == ["velocity"]


def test_catalog_entry_without_a_field(tmp_path):
    doc = hostile({})
    del doc["entries"]["velocity"]["output_instance"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(doc))
    with pytest.raises(SearchError, match=r"lacks fields .*'velocity': output_instance"):
        catalog.open_catalog(tmp_path / "c.yaml")


@pytest.mark.parametrize("text", ["- 1", "version: 1", "a: [", "!!python/object/apply:os.system ['true']"])
def test_catalog_that_is_no_catalog(text, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(SearchError, match=r"plain YAML|version 2"):
        catalog.open_catalog(tmp_path / "c.yaml")


def test_catalogs_inside_the_package_win(tmp_path, monkeypatch):
    package = tmp_path / "ogive"
    shutil.copytree(catalog.catalog_folder(), package / "catalogs")
    monkeypatch.setattr("ogive._intake.resources.files", lambda name: package)
    assert catalog.catalog_folder() == package / "catalogs"
    assert set(catalog.open_catalog("stac")) == set(catalog.endpoints())
