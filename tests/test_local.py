"""Folders of image files become items that the rest of the package reads like any other."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.transform import from_origin

from ogive import catalog
from ogive.errors import ItemError, SearchError
from ogive.local import local_items, read_mtl, write_items
from ogive.search import scene_table, search

DATA = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data"))
YAHTSE = DATA / "imagery/yahtse_landsat8_2016"
BERLIN = DATA / "imagery/s2_berlin_arosics_2016"


def image(path, crs="EPSG:32645", pixel=15.0, shape=(20, 30)):
    transform = from_origin(480000, 3090000, pixel, pixel) if crs else None
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "height": shape[0], "width": shape[1], "count": 1, "dtype": "uint16"}
    with rasterio.open(path, "w", crs=crs, transform=transform or rasterio.Affine.scale(2), **profile) as file:
        file.write(np.ones((1, *shape), np.uint16))


def collection2(folder, level="L2SP", platform="LANDSAT_9", sensor="OLI_TIRS", drop=()):
    """The groups of a Collection 2 MTL in their order: a Level-2 file repeats its Level-1 fields further down."""
    name = f"LC09_{level}_138041_20240120_20240121_02_T1"
    sr = "SR_" if level == "L2SP" else ""
    level1 = ["GROUP = LEVEL1_RADIOMETRIC_RESCALING", "REFLECTANCE_MULT_BAND_5 = 2.0000E-05"]
    level1 += ["REFLECTANCE_ADD_BAND_5 = -0.100000", "REFLECTANCE_MULT_BAND_8 = 2.0000E-05"]
    level1 += ["REFLECTANCE_ADD_BAND_8 = -0.100000", "END_GROUP = LEVEL1_RADIOMETRIC_RESCALING"]
    level2 = ["GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS", "REFLECTANCE_MULT_BAND_5 = 2.75e-05"]
    level2 += ["REFLECTANCE_ADD_BAND_5 = -0.2", "END_GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"]
    lines = [
        "GROUP = LANDSAT_METADATA_FILE",
        "GROUP = PRODUCT_CONTENTS",
        f'LANDSAT_PRODUCT_ID = "{name}"',
        f'PROCESSING_LEVEL = "{level}"',
        "COLLECTION_NUMBER = 02",
        f'FILE_NAME_BAND_1 = "{name}_{sr}B1.TIF"',
        f'FILE_NAME_BAND_5 = "{name}_{sr}B5.TIF"',
        *([f'FILE_NAME_BAND_8 = "{name}_B8.TIF"', f'FILE_NAME_BAND_10 = "{name}_B10.TIF"'] if not sr else []),
        f'FILE_NAME_QUALITY_L1_PIXEL = "{name}_QA_PIXEL.TIF"',
        "END_GROUP = PRODUCT_CONTENTS",
        "GROUP = IMAGE_ATTRIBUTES",
        f'SPACECRAFT_ID = "{platform}"',
        f'SENSOR_ID = "{sensor}"',
        "WRS_PATH = 138",
        "WRS_ROW = 41",
        "DATE_ACQUIRED = 2024-01-20",
        'SCENE_CENTER_TIME = "04:30:03.6586180Z"',
        "CLOUD_COVER = 25.87",
        "CLOUD_COVER_LAND = -1",
        "SUN_AZIMUTH = 150.13469876",
        "SUN_ELEVATION = 36.41626805",
        "END_GROUP = IMAGE_ATTRIBUTES",
        *(level2 if sr else []),
        *level1,
        "END_GROUP = LANDSAT_METADATA_FILE",
        "END",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(line for line in lines if not any(line.startswith(field) for field in drop))
    (folder / f"{name}_MTL.txt").write_text(text)
    return name


@pytest.mark.real
def test_yahtse_pair():
    items = local_items(YAHTSE)
    table = scene_table(items, (-141.5, 60.15, -141.3, 60.25))
    assert table["id"].tolist() == ["LC80630182016200LGN00", "LC80630182016216LGN00"]
    assert table["datetime"].dt.strftime("%Y-%m-%d").tolist() == ["2016-07-18", "2016-08-03"]
    assert table["relative_orbit"].tolist() == ["063018", "063018"]
    assert table["platform"].tolist() == ["landsat-8", "landsat-8"]
    assert table["epsg"].tolist() == [32607, 32607]
    assert table["sun_azimuth"].tolist() == [159.61050887, 160.66607046]
    assert table["sun_elevation"][0] == 49.49229894
    assert table["cloud_cover"][0] == 44.14
    assert table["cloud_cover_land"][0] == 14.12
    np.testing.assert_allclose(table["overlap"], 1.0)
    for item in items:
        assert catalog.codes(item) == ("L", "8", "C")
        assert catalog.band_asset(item) == "pan"
        assert catalog.scale_offset(item, "pan") == (2e-5, -0.1)
        grid = catalog.scene_geobox(item, "pan")
        assert grid.shape == (1087, 1698)
        with rasterio.open(item.assets["pan"].href) as file:
            assert tuple(grid.affine) == tuple(file.transform)
            assert grid.crs.epsg == file.crs.to_epsg() == 32607
        assert Path(item.assets["pan"].href).is_absolute()
    pystac.Item.from_dict(items[0].to_dict())


@pytest.mark.real
def test_berlin_pair():
    items = local_items(BERLIN, relative_orbit=122)
    table = scene_table(items)
    assert table["datetime"].tolist() == [datetime(2016, 5, 29, 15, 36, 31), datetime(2016, 6, 8, 15, 31, 21)]
    assert table["platform"].tolist() == ["sentinel-2a", "sentinel-2a"]
    assert table["relative_orbit"].tolist() == ["R122", "R122"]
    assert table["epsg"].tolist() == [32633, 32633]
    grids = [catalog.scene_geobox(item, catalog.band_asset(item)) for item in items]
    assert [tuple(grid.shape) for grid in grids] == [(3152, 2074), (3200, 2400)]
    assert all(grid.resolution.x == 10 for grid in grids)
    assert [item.properties["grid:code"] for item in items] == ["MGRS-33UUU"] * 2
    assert scene_table(local_items(BERLIN))["relative_orbit"].tolist() == ["", ""]
    red = local_items(BERLIN, band="red")
    assert list(red[0].assets) == ["red"]
    assert catalog.scale_offset(red[0], "red") == (1e-4, 0.0)


@pytest.mark.real
def test_written_items_are_read_back(tmp_path):
    items = local_items(YAHTSE)
    path = write_items(items, tmp_path / "items.json")
    assert [p.name for p in tmp_path.iterdir()] == ["items.json"]
    found = search((-141.5, 60.15, -141.3, 60.25), "2016-07", source=path, sensor="landsat", files=YAHTSE)
    assert [item.id for item in found] == ["LC80630182016200LGN00"]
    assert found[0].to_dict()["assets"] == json.loads(path.read_text())["features"][0]["assets"]
    assert catalog.scene_geobox(found[0], "pan") == catalog.scene_geobox(items[0], "pan")


@pytest.mark.real
def test_real_folder_without_mtl():
    with pytest.raises(ItemError, match=r"LC08_L2SP_005009.*needs its \*_MTL.txt"):
        local_items(DATA / "masks/landsat_c2_greenland_005009")


def test_collection2_level1(tmp_path):
    name = collection2(tmp_path / "a", level="L1TP")
    for band, pixel in (("B10", 30), ("B8", 15), ("B5", 30), ("QA_PIXEL", 30)):
        image(tmp_path / "a" / f"{name}_{band}_cut.TIF", pixel=pixel)
    (item,) = local_items(tmp_path)
    # B10 must not be taken for B1.
    assert sorted(item.assets) == ["nir", "pan", "qa_pixel"]
    assert item.datetime == datetime(2024, 1, 20, 4, 30, 3, 658618, tzinfo=UTC)
    assert catalog.product_of(item).name == "landsat-c2-l1"
    assert catalog.processing_baseline(item) == "02"
    assert catalog.relative_orbit(item) == "138041"
    assert np.isnan(catalog.cloud_cover(item, land=True))
    assert catalog.band_asset(item) == "pan"
    assert catalog.scale_offset(item, "nir") == (2e-5, -0.1)
    assert catalog.mask_asset(item) == "qa_pixel"
    assert catalog.scale_offset(item, "qa_pixel") == (1.0, 0.0)
    assert catalog.scene_geobox(item, "pan").resolution.x == 15


def test_collection2_level2_takes_its_own_scale(tmp_path):
    name = collection2(tmp_path)
    image(tmp_path / f"{name}_SR_B5.TIF", pixel=30)
    (item,) = local_items(tmp_path)
    assert catalog.product_of(item).name == "landsat-c2-l2"
    assert catalog.band_asset(item) == "nir"
    assert catalog.scale_offset(item, "nir") == (2.75e-5, -0.2)
    assert read_mtl(tmp_path / f"{name}_MTL.txt")["REFLECTANCE_MULT_BAND_5"] == "2.75e-05"


def test_crs_without_code_keeps_its_wkt(tmp_path):
    crs = rasterio.crs.CRS.from_proj4("+proj=tmerc +lat_0=0 +lon_0=-146.895 +k=0.9996 +datum=WGS84 +units=m")
    image(tmp_path / "S2B_20210705T101031_T06VVN.tif", crs=crs)
    (item,) = local_items(tmp_path)
    grid = catalog.scene_geobox(item, "nir")
    assert grid.crs.epsg is None
    assert "146.895" in grid.crs.to_wkt()
    assert catalog.epsg_of(item) is None


def test_sentinel2_product_names(tmp_path):
    image(tmp_path / "S2B_MSIL2A_20230705T101031_N0509_R022_T32TPS_20230705T120000_B08.tif")
    (item,) = local_items(tmp_path)
    assert catalog.product_of(item).name == "sentinel-2-l2a"
    assert catalog.relative_orbit(item) == "R022"
    assert catalog.processing_baseline(item) == "05.09"
    assert catalog.scale_offset(item, "nir") == pytest.approx((1e-4, -0.1))
    assert item.datetime == datetime(2023, 7, 5, 10, 10, 31, tzinfo=UTC)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(SearchError, match="must exist"):
        local_items(tmp_path / "nowhere")
    image(tmp_path / "dem.tif")
    with pytest.raises(SearchError, match=r"must hold Landsat images.*found 1 other images"):
        local_items(tmp_path)
    name = collection2(tmp_path / "scene")
    with pytest.raises(ItemError, match=r"needs an image of one of its bands.*no image of this scene"):
        local_items(tmp_path)
    image(tmp_path / "scene" / f"{name}_SR_QA_AEROSOL.TIF")
    with pytest.raises(ItemError, match=r"needs an image of one of its bands.*SR_QA_AEROSOL"):
        local_items(tmp_path)


def test_files_that_cannot_be_used(tmp_path):
    image(tmp_path / "a/S2A_20210705T101031_T32TPS.tif", crs=None)
    with pytest.raises(ItemError, match="needs a coordinate system"):
        local_items(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/S2A_20210705T101031_T32TPS.tif").write_text("nothing")
    with pytest.raises(ItemError, match="must be an image"):
        local_items(tmp_path / "b")


@pytest.mark.parametrize("field", ["SPACECRAFT_ID", "DATE_ACQUIRED", "WRS_ROW"])
def test_mtl_without_a_field(field, tmp_path):
    name = collection2(tmp_path, drop=[field])
    image(tmp_path / f"{name}_SR_B5.TIF")
    with pytest.raises(ItemError, match=f"must hold {field}"):
        local_items(tmp_path)


def test_mss_is_refused(tmp_path):
    name = collection2(tmp_path, platform="LANDSAT_5", sensor="MSS")
    image(tmp_path / f"{name}_SR_B5.TIF")
    with pytest.raises(ItemError, match="landsat-5 MSS"):
        local_items(tmp_path)
