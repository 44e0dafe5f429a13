"""Masks: exact on drawn squares, plausible on real outlines, loud when they cannot be used."""

import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from ogive import grid, masks
from ogive.errors import GridError, MaskError, ParameterError

DATA = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data"))
BOX = GeoBox((40, 50), Affine(10, 0, 600000, 0, -10, 5000400), "EPSG:32632")
SQUARE = shapely.box(600100, 5000100, 600300, 5000300)


def series(*shapes, crs="EPSG:32632"):
    return gpd.GeoSeries(list(shapes), crs=crs)


def image_grid(path):
    with rasterio.open(path) as f:
        return GeoBox(f.shape, f.transform, f"EPSG:{f.crs.to_epsg()}")


def test_a_square_is_burnt_by_cell_centres():
    mask = masks.outlines(series(SQUARE), BOX)
    assert mask.dims == ("y", "x")
    assert mask.dtype == bool
    assert int(mask.sum()) == 400
    inside = (mask.x > 600100) & (mask.x < 600300) & (mask.y > 5000100) & (mask.y < 5000300)
    assert bool((mask == inside.transpose("y", "x")).all())
    assert grid.geobox_of(mask) == BOX
    shifted = series(shapely.box(600104, 5000104, 600304, 5000304))
    assert int(masks.outlines(shifted, BOX).sum()) == 400
    assert int(masks.outlines(shifted, BOX, all_touched=True).sum()) == 441


def test_every_kind_of_source_gives_the_same_mask(tmp_path):
    expected = masks.outlines(series(SQUARE), BOX)
    assert 0 < int(expected.sum()) < expected.size
    table = gpd.GeoDataFrame({"name": ["a"]}, geometry=[SQUARE], crs="EPSG:32632")
    table.to_file(tmp_path / "a.gpkg")
    table.to_crs(4326).to_file(tmp_path / "a.geojson")
    table.to_crs(3413).to_file(tmp_path / "a.shp")
    rings = gpd.GeoDataFrame(geometry=[SQUARE.exterior], crs=None)
    lonlat = table.to_crs(4326).geometry.iloc[0]
    for source in (table, tmp_path / "a.gpkg", str(tmp_path / "a.geojson"), tmp_path / "a.shp", lonlat):
        xr.testing.assert_identical(masks.outlines(source, BOX), expected)
    xr.testing.assert_identical(masks.outlines(rings, BOX, crs="EPSG:32632"), expected)
    cube = xr.Dataset(coords={**grid.coordinates(BOX), "mapping": grid.mapping(BOX)})
    xr.testing.assert_identical(masks.outlines(table, cube), expected)


def test_buffers_grow_and_shrink():
    count = {b: int(masks.outlines(series(SQUARE), BOX, buffer=b).sum()) for b in (-50, 0, 50)}
    assert count[-50] == 100
    assert count[0] == 400
    assert 400 + 4 * 100 < count[50] <= 900


def test_stable_is_off_the_buffered_ice_and_on_the_rock():
    glacier, rock = series(SQUARE), series(shapely.box(600200, 5000000, 600500, 5000400))
    off = masks.stable(BOX, ice=glacier, buffer=30.0)
    grown = masks.ice(glacier, BOX, buffer=30.0)
    assert 0 < int(off.sum()) < off.size
    assert bool((off == ~grown).all())
    both = masks.stable(BOX, ice=glacier, rock=rock, buffer=30.0)
    assert bool((both == (off & masks.outlines(rock, BOX))).all())
    assert 0 < int(both.sum()) < int(off.sum())
    lake = series(shapely.box(600400, 5000000, 600500, 5000100))
    dry = masks.stable(BOX, rock=rock, water=lake, buffer=40.0)
    assert int(dry.sum()) == int(masks.outlines(rock, BOX).sum()) - int(masks.outlines(lake, BOX, buffer=20.0).sum())


def test_masks_that_cannot_be_used(tmp_path):
    with pytest.raises(MaskError, match="no coordinate system"):
        masks.outlines(series(SQUARE, crs=None), BOX)
    with pytest.raises(MaskError, match="no polygon covers"):
        masks.outlines(series(shapely.box(0, 0, 10, 10)), BOX)
    with pytest.raises(MaskError, match="closed lines"):
        masks.outlines(series(shapely.LineString([(600000, 5000000), (600100, 5000100)])), BOX)
    with pytest.raises(MaskError, match="holds no polygon"):
        masks.outlines(series(), BOX)
    with pytest.raises(MaskError, match="cover everything"):
        masks.stable(BOX, ice=series(SQUARE), buffer=1000.0)
    with pytest.raises(ParameterError, match="ice or rock"):
        masks.stable(BOX)
    with pytest.raises(ParameterError, match="in metres"):
        degrees = GeoBox((10, 10), Affine(0.01, 0, 9, 0, -0.01, 45.2), "EPSG:4326")
        masks.outlines(series(shapely.box(9, 45, 9.1, 45.2), crs="EPSG:4326"), degrees, buffer=10.0)
    with pytest.raises(GridError):
        masks.outlines(series(SQUARE), xr.Dataset(coords={"x": [1.0, 2.0], "y": [2.0, 1.0]}))


@pytest.mark.real
def test_real_rock_on_the_yahtse_scene():
    """2 102 rock rings of the St. Elias Mountains, without a coordinate system in the file."""
    box = image_grid(DATA / "imagery/yahtse_landsat8_2016/LC80630182016200LGN00_B8_yahtse.TIF")
    rock = DATA / "outlines/st_elias_rock/StEliasMtn_utm7v_rock.gmt"
    with pytest.raises(MaskError, match=r"no coordinate system.*crs="):
        masks.stable(box, rock=rock)
    mask = masks.stable(box, rock=rock, crs="EPSG:32607")
    assert mask.shape == (1087, 1698)
    # share of the exact polygon area is 0.04811
    assert float(mask.mean()) == pytest.approx(0.04812, abs=1e-4)


@pytest.mark.real
def test_real_glaciers_around_everest():
    box = image_grid(DATA / "imagery/everest_landsat7_20001030/LE71400412000304SGS00_B4.tif")
    file = DATA / "outlines/rgi60_15_everest/15_rgi60_glacier_outlines.gpkg"
    glaciers = gpd.read_file(file)
    ice = masks.ice(file, box)
    # the scene is smaller than the set of outlines: exact share of the clipped polygons
    window = shapely.box(*box.extent.boundingbox)
    clipped = shapely.union_all(glaciers.to_crs(32645).geometry.make_valid()).intersection(window)
    assert float(ice.mean()) == pytest.approx(clipped.area / window.area, abs=5e-4)
    assert float(ice.mean()) == pytest.approx(0.5397, abs=5e-4)
    # Khumbu, the largest: the area that the inventory states
    khumbu = glaciers.iloc[[int(np.argmax(glaciers["Area"]))]]
    whole = GeoBox.from_bbox(tuple(khumbu.to_crs(32645).buffer(100).total_bounds), "EPSG:32645", resolution=30)
    area = float(masks.ice(khumbu, whole).sum()) * 900 / 1e6
    assert area == pytest.approx(float(khumbu["Area"].iloc[0]), rel=0.01)
    still = masks.stable(box, ice=file)
    assert not bool((still & ice).any())
    assert 0.1 < float(still.mean()) < 0.3
