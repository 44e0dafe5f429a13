"""What scenes show of the ice, against the classes that the synthetic world was rendered with; one read per scene."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pystac
import pytest
from shapely.geometry import box
from tests.conftest import GRID, make_item

import ogive as og
from ogive import quality
from ogive.cover import SHARES, each_cover, ice_within, thumbnails
from ogive.errors import ParameterError, ReadError, SearchError
from ogive.testing.plan import WorldSpec
from ogive.testing.readers import FakeReader
from ogive.testing.scenes import World, make_world

SPEC = WorldSpec(size_km=(2.4, 3.0), n_sentinel2=4, n_landsat=1, start="2022-05-20", end="2022-09-20", cloud=0.3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), SPEC, seed=2)


def test_shares_over_the_ice_agree_with_the_full_mask(world: World) -> None:
    found = og.scene_cover(world.items, world.outlines)
    assert list(found.index) == [item.id for item in world.items]
    assert (found["cloud"] > 0.02).any()
    assert (found["snow"] > 0.02).any()
    for item in world.items:
        cube = og.open_cube([item])
        ice = og.masks.ice(world.outlines, cube).values
        bits = cube["mask"].isel(time=0).values[ice]
        # The outline is longer than the scenes: shares are of all the ice, the full mask knows that inside only.
        scale = found.loc[item.id, "valid"] / ((bits & quality.NO_DATA) == 0).mean()
        for name, wanted in (("cloud", quality.CLOUD | quality.CIRRUS), ("snow", quality.SNOW)):
            assert found.loc[item.id, name] == pytest.approx(((bits & wanted) != 0).mean() * scale, abs=0.03)
        assert found.loc[item.id, "usable"] == pytest.approx(quality.usable(bits).mean() * scale, abs=0.03)


def masked_item(number: int, date: str) -> pystac.Item:
    """An item with a quality band of 20 m."""
    item = make_item(number, date)
    coarse = GRID.zoom_out(2)
    fields = {"proj:shape": list(coarse.shape), "proj:transform": list(coarse.affine)[:6]}
    item.add_asset("scl", pystac.Asset(f"{item.id}_scl.tif", extra_fields=fields))
    return item


@pytest.fixture
def half_cloudy() -> Callable[..., tuple[list[pystac.Item], FakeReader]]:
    """Scenes whose western half is cloud, SCL class 9, and whose eastern half is snow, 11."""

    def make(count: int = 3) -> tuple[list[pystac.Item], FakeReader]:
        middle = GRID.affine.c + GRID.shape[1] * 5
        reader = FakeReader(lambda scene, y, x: np.where(x < middle, 9.0, 11.0) + 0 * y)
        return [masked_item(k, f"2021-07-{k + 1:02}") for k in range(count)], reader

    return make


def test_shares_are_exact_and_cost_one_small_read_each(half_cloudy: Any) -> None:
    items, reader = half_cloudy()
    area = GRID.extent.to_crs("EPSG:4326").geom.buffer(-0.001)
    found = og.scene_cover(items, area, pixels=64, loader=reader)
    assert reader.count == 3
    assert max(max(shape) for _, shape in reader.reads) <= 66
    assert found["cloud"].to_numpy() == pytest.approx(0.5, abs=0.02)
    assert found["snow"].to_numpy() == pytest.approx(0.5, abs=0.02)
    assert found["usable"].to_numpy() == pytest.approx(0.5, abs=0.02)
    assert (found["valid"] == 1).all()
    assert (found["shadow"] == 0).all()


def test_scenes_are_read_only_as_they_are_asked_for(half_cloudy: Any) -> None:
    items, reader = half_cloudy()
    rows = each_cover(items, GRID.extent.to_crs("EPSG:4326").geom, loader=reader)
    assert isinstance(rows, Iterator)
    assert reader.count == 0
    assert next(rows)[0] == items[0].id
    assert reader.count == 1


def test_a_scene_without_a_quality_band_is_unknown_and_never_clear() -> None:
    reader = FakeReader(lambda scene, y, x: x + y)
    found = og.scene_cover([make_item(0, "2021-07-01")], GRID.extent.to_crs("EPSG:4326").geom, loader=reader)
    assert found[list(SHARES)].isna().all(axis=None)
    assert reader.count == 0


def test_a_lost_scene_is_unknown_and_a_fault_that_may_pass_is_an_error(half_cloudy: Any) -> None:
    items, reader = half_cloudy(2)
    area = GRID.extent.to_crs("EPSG:4326").geom
    reader.fail[items[0].id] = FileNotFoundError("No such file")
    found = og.scene_cover(items, area, loader=reader)
    assert found.loc[items[0].id].isna().all()
    assert found.loc[items[1].id].notna().all()
    reader.fail[items[0].id] = OSError("busy")
    with og.options.using(attempts=1), pytest.raises(ReadError):
        og.scene_cover(items, area, loader=reader)


def test_no_scenes() -> None:
    with pytest.raises(SearchError, match="at least one scene"):
        og.scene_cover([], (8, 46, 9, 47))


def test_ice_within_an_area() -> None:
    ice = gpd.GeoDataFrame(geometry=[box(0, 0, 2, 2), box(5, 5, 6, 6)], crs=4326)
    assert ice_within(ice, (1, 1, 5.5, 5.5)).area == pytest.approx(1 + 0.25)
    assert ice_within(ice, (3, 3, 4, 4)).bounds == (3, 3, 4, 4)


def test_thumbnails_lie_where_the_web_map_puts_them(world: World) -> None:
    seen = thumbnails(world.items, world.outlines, pixels=96)
    assert seen.sizes["time"] == len(world.items)
    assert max(seen.sizes["y"], seen.sizes["x"]) in (96, 97)
    image = seen["image"].isel(time=0).values
    full = og.open_cube([world.items[0]])
    # The same place in both: the brightest contrast must not have moved.
    where = gpd.GeoSeries.from_xy([float(seen["x"][60])], [float(seen["y"][20])], crs=3857).to_crs(full.rio.crs)
    near = full["image"].isel(time=0).sel(x=where.x[0], y=where.y[0], method="nearest").values
    assert np.isfinite(near)
    assert image[20, 60] == pytest.approx(float(near), abs=0.12)


def test_thumbnails_end_where_web_maps_end(world: World) -> None:
    with pytest.raises(ParameterError, match="85 degrees"):
        thumbnails(world.items, (0, 84, 1, 86))


def test_the_outline_may_be_a_path(world: World) -> None:
    assert ice_within(str(world.outlines), tuple(gpd.read_file(Path(world.outlines)).total_bounds)).area > 0
