"""Training sets: labels that are the motion of the pixels, splits that nothing leaks through, the same bytes again."""

from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

import ogive as og
from ogive import learn, quality
from ogive.enhance import high_pass
from ogive.errors import GridError, MaskError, PairError, ParameterError, StoreError
from ogive.learn import _sources, _store, tiles
from ogive.learn._split import SPLITS, assign
from ogive.local import local_items
from ogive.testing.plan import WorldSpec
from ogive.testing.scenes import World, make_world

DATES = ("2020-07-01", "2020-07-11", "2021-07-01", "2021-07-11", "2021-07-21", "2022-07-01", "2022-07-11")
OPTIONS: dict[str, Any] = {"size": 64, "stride": 56, "min_ice": 0.2}
WITHOUT: dict[str, Any] = {"include_groups": False}
SPEC = WorldSpec(
    size_km=(2.4, 3.0), n_sentinel2=6, n_landsat=0, start="2022-05-20", end="2022-09-20", cloud=0.05, speed=100.0
)


def at_rate(cube: xr.Dataset, pairs: Any, vy: float, vx: float) -> xr.Dataset:
    """A velocity of these pairs that moves as the cube does [m/day], y to the north."""
    found = og.track(cube, pairs, og.NCC(chip=16, search=3, step=8))
    maps = {"vx": vx * 365, "vy": vy * 365, "vx_error_px": 3.65, "vy_error_px": 7.3}
    return found.assign({n: xr.full_like(found["vx"], v, np.float32) for n, v in maps.items()})


@pytest.fixture
def source(moving) -> learn.TileSource:
    """Three summers of a surface that moves by 2 m a day to the north and 3 to the west; ice in the west."""
    cube, _ = moving(DATES)
    velocity = at_rate(cube, og.make_pairs(cube, days=(10, 20)), 2.0, -3.0)
    ice = og.masks.ice(cube_box(cube), cube).copy()
    ice[:, 150:] = False
    return learn.TileSource("here", cube, velocity, ice)


def cube_box(cube: xr.Dataset) -> Any:
    return og.grid.geobox_of(cube).geographic_extent.geom


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_labels_are_the_motion_of_the_pixels(source, tmp_path, texture) -> None:
    table = learn.export_tiles([source], tmp_path / "a", **OPTIONS)
    assert set(table["split"]) == {"train", "validation", "test"}
    for split in SPLITS:
        rows = table[table["split"] == split].reset_index()
        got = learn.read_tiles(tmp_path / "a", split)
        assert got.image.shape == (len(rows), 2, 64, 64)
        assert got.displacement.shape == (len(rows), 2, 8, 8)
        for k, row in rows.iterrows():
            # 2 m a day to the north are 0.2 px up.
            np.testing.assert_allclose(got.displacement[k, 0], -0.2 * row["days"], rtol=1e-6)
            np.testing.assert_allclose(got.displacement[k, 1], -0.3 * row["days"], rtol=1e-6)
            np.testing.assert_allclose(got.sigma[k].mean((1, 2)), [0.002 * row["days"], 0.001 * row["days"]], rtol=1e-6)
            a, x = row["transform"], 600000 + 10 * row["x"]
            assert a[:3] == (10, 0, x)
            assert row["crs"] == "EPSG:32632"
            centre = np.arange(64) + 0.5
            # What is at a place in image 1 is there displaced in image 2.
            for number, day in ((0, 0.0), (1, row["days"])):
                gone = (row["date1"] - np.datetime64(DATES[0])).days + day
                truth = texture(a[5] + a[4] * centre[:, None] - 2 * gone, a[2] + a[0] * centre - -3 * gone)
                np.testing.assert_allclose(got.image[k, number], truth, rtol=2e-5)
        assert quality.usable(got.mask).all()
        assert got.ice.mean((1, 2)) == pytest.approx(rows["ice"])
    assert (table["ice"] >= 0.2).all()
    # Columns 0, 56, 112 and 168 would fit; from 112 on there is ice up to column 150, from 168 on none.
    assert sorted(set(table["x"])) == [0, 56, 112]
    assert (table["labelled"] == 1).all()


def years(table: pd.DataFrame) -> dict[str, set[Any]]:
    """The years of all images of each split."""
    return {
        split: {(r.glacier, d.year) for r in rows.itertuples() for d in (r.date1, r.date2)}
        for split, rows in table.groupby("split")
    }


def test_nothing_leaks_from_a_split_into_another(moving, tmp_path) -> None:
    dates = [f"{year}-07-{day}" for year in range(2016, 2022) for day in ("01", "11")]
    cube, _ = moving(tuple(dates))
    # Pairs within the summers, and each summer with the next.
    velocity = at_rate(cube, og.make_pairs(cube, days=((5, 20), (340, 380)), same_orbit=False), 2.0, -3.0)
    ice = og.masks.ice(cube_box(cube), cube)
    west, east = (ice.where((ice.x < 601300) == here, False) for here in (True, False))
    both = [learn.TileSource(name, cube, velocity, part) for name, part in (("west", west), ("east", east))]
    table = learn.export_tiles(both, tmp_path / "a", size=64, min_ice=0.9)
    pairs = table.groupby("split").apply(lambda t: {*zip(t["glacier"], t["image_id1"], t["image_id2"])}, **WITHOUT)
    images = table.groupby("split").apply(lambda t: {*zip(t["glacier"], t["image_id1"])}, **WITHOUT)
    for found in (years(table), pairs.to_dict(), images.to_dict()):
        assert set(found) == set(SPLITS)
        for one, two in combinations(SPLITS, 2):
            assert found[one]
            assert not found[one] & found[two]
    share = table["split"].value_counts(normalize=True)
    assert share["train"] == pytest.approx(0.81, abs=0.1)
    root: Any = zarr.open_group(tmp_path / "a", mode="r")
    assert 0 < root.attrs["pairs_left_out"] == 2 * velocity.sizes["mid_date"] - len(root.attrs["pairs"])


def test_glaciers_on_the_same_ground_are_one_for_the_splits(source, tmp_path) -> None:
    table = learn.export_tiles([source, replace(source, glacier="there")], tmp_path / "a", **OPTIONS)
    by_year = table.assign(year=table["date1"].dt.year).groupby("year")["split"].nunique()
    assert by_year.tolist() == [1, 1, 1]
    left, right, overlapping = [(0, 0), (64, 0)], [(0, 64), (64, 64)], [(0, 32)]
    other, third = (replace(source, glacier=name) for name in ("b", "c"))
    assert len(set(_sources._areas([source, other], [left, right], 64))) == 2
    assert len(set(_sources._areas([source, source], [left, right], 64))) == 1
    assert len(set(_sources._areas([source, other, third], [left, right, overlapping], 64))) == 1


def cost(tiles: dict[Any, int], found: dict[Any, str], ratios: tuple[float, ...]) -> float:
    """What `assign` makes as small as it can, written for reading."""
    kept = [sum(n for (a, b), n in tiles.items() if found[a] == found[b] == name) for name in SPLITS]
    apart = sum(abs(n / max(sum(kept), 1) - ratio) for n, ratio in zip(kept, ratios, strict=True))
    empty = sum(cost for n, ratio, cost in zip(kept, ratios, (5, 1, 1), strict=True) if ratio and not n)
    return apart + 1 - sum(kept) / sum(tiles.values()) + empty


WITHIN = st.dictionaries(st.integers(0, 5).map(lambda k: (k, k)), st.integers(1, 40), min_size=1)
ACROSS = st.dictionaries(st.integers(0, 4).map(lambda k: (k, k + 1)), st.integers(1, 40))
RATIOS = st.sampled_from([(0.81, 0.09, 0.10), (0.2, 0.4, 0.4), (0.9, 0.0, 0.1)])


@settings(max_examples=40)
@given(within=WITHIN, across=ACROSS, ratios=RATIOS, seed=st.integers(0, 3))
def test_splits_are_as_near_to_the_ratios_as_whole_years_allow(within, across, ratios, seed) -> None:
    tiles = within | across
    found = assign(tiles, ratios, seed)
    assert found == assign(dict(reversed(tiles.items())), ratios, seed)
    units = sorted(found)
    assert set(units) == {u for pair in tiles for u in pair}
    every = (dict(zip(units, way, strict=True)) for way in product(SPLITS, repeat=len(units)))
    assert cost(tiles, found, ratios) == pytest.approx(min(cost(tiles, way, ratios) for way in every))
    assert any(found[a] == found[b] == "train" for a, b in tiles)


@pytest.mark.parametrize("seed", range(4))
def test_many_glaciers_come_near_to_the_ratios(seed) -> None:
    rng, ratios = np.random.default_rng(seed), (0.81, 0.09, 0.10)
    # Twelve glaciers, five years each, pairs across the years only.
    tiles = {((g, y), (g, y + 1)): int(rng.integers(5, 90)) for g in range(12) for y in range(2016, 2021)}
    found = assign(tiles, ratios, seed)
    kept = [sum(n for (a, b), n in tiles.items() if found[a] == found[b] == name) for name in SPLITS]
    assert sum(kept) > 0.8 * sum(tiles.values())
    np.testing.assert_allclose(np.array(kept) / sum(tiles.values()), ratios, atol=0.1)
    assert min(kept) > 0


@pytest.mark.parametrize("turn", range(learn.tiles.TURNS))
def test_vectors_turn_with_the_pixels(turn) -> None:
    rng = np.random.default_rng(turn)
    first = rng.random((3, 12, 12)).astype(np.float32)
    moves = np.array([[2, -3], [0, 4], [-1, 0]])
    second = np.stack([np.roll(im, tuple(move), (0, 1)) for im, move in zip(first, moves, strict=True)])
    flow = np.broadcast_to(moves[:, :, None, None], (3, 2, 3, 3)).astype(np.float32)
    sigma = np.broadcast_to(np.float32([0.1, 0.2])[:, None, None], flow.shape)
    mask = rng.integers(0, 9, (3, 2, 12, 12)).astype(np.uint8)
    given_tiles = learn.Tiles(np.stack([first, second], 1), mask, first > 0.5, flow, sigma)
    laid = learn.turned(given_tiles, turn)
    assert [a.dtype for a in laid] == [a.dtype for a in given_tiles]
    for k in range(3):
        move = laid.displacement[k, :, 0, 0].astype(int)
        assert (laid.displacement[k] == move[:, None, None]).all()
        np.testing.assert_array_equal(np.roll(laid.image[k, 0], tuple(move), (0, 1)), laid.image[k, 1])
        # The axis that was uncertain still is.
        assert laid.sigma[k, np.abs(move).argmax(), 0, 0] == sigma[k, np.abs(moves[k]).argmax(), 0, 0]
    np.testing.assert_array_equal(laid.ice, laid.image[:, 0] > 0.5)
    assert sorted(laid.mask.ravel().tolist()) == sorted(mask.ravel().tolist())


def test_eight_turns_are_eight_different_ones_and_four_bring_a_tile_back() -> None:
    rng = np.random.default_rng(0)
    image, flow = rng.random((1, 2, 6, 6)).astype("f4"), rng.random((1, 2, 3, 3)).astype("f4")
    one = learn.Tiles(image, (9 * image).astype("u1"), image[:, 0] > 0.5, flow, flow + 1)
    assert len({learn.turned(one, k).image.tobytes() for k in range(8)}) == 8
    assert len({learn.turned(one, k).displacement.tobytes() for k in range(8)}) == 8
    again = one
    for _ in range(4):
        again = learn.turned(again, 1)
    for a, b, c in zip(one, again, learn.turned(learn.turned(one, 4), 4), strict=True):
        assert a.tobytes() == b.tobytes() == c.tobytes()


def test_the_same_bytes_whatever_the_chunks(source, tmp_path, monkeypatch) -> None:
    learn.export_tiles([source], tmp_path / "a", **OPTIONS)
    lazy = replace(source, cube=source.cube.chunk(time=1, y=170, x=130), velocity=source.velocity.compute())
    learn.export_tiles([lazy], tmp_path / "b", **OPTIONS)
    one, two = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert len(one) > 20
    assert one == two
    assert not list(tmp_path.glob("*.partial"))
    some = learn.read_tiles(tmp_path / "a", "train", [3, 0])
    every = learn.read_tiles(tmp_path / "a", "train")
    for a, b in zip(some, every, strict=True):
        np.testing.assert_array_equal(a, b[[3, 0]])


def test_a_window_is_read_once_for_all_its_pairs(moving, tmp_path) -> None:
    cube, reader = moving(DATES[2:])
    velocity = at_rate(cube, og.make_pairs(cube, days=(5, 30)), 2.0, -3.0).compute()
    assert velocity.sizes["mid_date"] == 4
    ice = og.masks.ice(cube_box(cube), cube)
    reader.reads.clear()
    table = learn.export_tiles([learn.TileSource("a", cube, velocity, ice)], tmp_path / "a", size=120)
    assert len(table) == 4 * 4
    assert len(reader.reads) == 4 * len(DATES[2:])  # windows times scenes
    assert max(max(shape) for _, shape in reader.reads) == 120


def test_more_tiles_than_a_shard_holds(source, tmp_path, monkeypatch) -> None:
    learn.export_tiles([source], tmp_path / "a", **OPTIONS)
    monkeypatch.setattr(_store, "SHARD", 5)
    learn.export_tiles([source], tmp_path / "b", **OPTIONS)
    for split in SPLITS:
        pair = [learn.read_tiles(tmp_path / name, split) for name in "ab"]
        for a, b in zip(*pair, strict=True):
            assert a.size
            np.testing.assert_array_equal(a, b)


def test_an_export_that_fails_leaves_nothing(source, tmp_path, monkeypatch) -> None:
    real, calls = tiles.tiles_of, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) > 2:
            raise KeyboardInterrupt
        yield from real(*arguments)

    monkeypatch.setattr(tiles, "tiles_of", failing)
    with pytest.raises(KeyboardInterrupt):
        learn.export_tiles([source], tmp_path / "a", **OPTIONS)
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tiles, "tiles_of", real)
    monkeypatch.setattr(_store.Split, "flush", full_disk)
    with pytest.raises(StoreError, match=r"cannot be written.*No space left"):
        learn.export_tiles([source], tmp_path / "a", **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def full_disk(_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_what_was_interpolated_is_no_label(source, tmp_path) -> None:
    velocity = source.velocity.compute()
    velocity["interp_mask"][:, ::2] = 1
    velocity["vx"][:, 1, 1] = np.nan
    learn.export_tiles([replace(source, velocity=velocity)], tmp_path / "a", **OPTIONS)
    got = learn.read_tiles(tmp_path / "a", rows=[0])
    assert np.isnan(got.displacement[0, :, ::2]).all()
    assert np.isnan(got.sigma[0, :, ::2]).all()
    assert np.isnan(got.displacement[0, :, 1, 1]).all()
    assert np.isfinite(got.displacement[0, :, 3::2]).all()
    assert learn.tile_table(tmp_path / "a")["labelled"].max() == 0.5


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({}, {"size": 60}, ParameterError, "divide size and stride"),
        ({}, {"min_ice": 2.0}, ParameterError, "share of ice"),
        ({}, {"size": 480}, MaskError, "no tile of 480 px"),
        ({}, {"ratios": (0.0, 0.5, 0.5)}, ParameterError, "ratios"),
        ({"cube": lambda s: s.cube.isel(time=slice(1, None))}, {}, PairError, "scenes of the cube"),
        ({"velocity": lambda s: s.velocity.isel(mid_date=[])}, {}, PairError, "at least one pair"),
        ({"ice": lambda s: s.ice[:-8]}, {}, GridError, "grid of the cube"),
        ({"velocity": lambda s: s.velocity.isel(y=slice(1, None))}, {}, GridError, "cells of the cube"),
        ({"velocity": lambda s: s.velocity.assign(stack_count=1)}, {}, ParameterError, "single pairs"),
        (
            {"velocity": lambda s: s.velocity.drop_vars(["vx_error", "vx_error_px"])},
            {}, ParameterError, "needs vx_error",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(source, tmp_path, change, options, error, message) -> None:
    changed = replace(source, **{name: make(source) for name, make in change.items()})
    with pytest.raises(error, match=message):
        learn.export_tiles([changed], tmp_path / "a", **{**OPTIONS, **options})
    assert list(tmp_path.iterdir()) == []


def test_one_summer_only_trains(source, tmp_path) -> None:
    one = replace(source, velocity=source.velocity.isel(mid_date=[0]))
    table = learn.export_tiles([one], tmp_path / "a", **OPTIONS)
    assert set(table["split"]) == {"train"}
    assert learn.read_tiles(tmp_path / "a", "test").image.shape == (0, 2, 64, 64)


def test_stores_are_not_overwritten_and_not_guessed(source, tmp_path) -> None:
    learn.export_tiles([source], tmp_path / "a", **OPTIONS)
    with pytest.raises(StoreError, match="already exists"):
        learn.export_tiles([source], tmp_path / "a", **OPTIONS)
    with pytest.raises(StoreError, match="written to a folder"):
        learn.export_tiles([source], "s3://bucket/tiles")
    with pytest.raises(StoreError, match="no store of tiles"):
        learn.tile_table(tmp_path / "b")
    with pytest.raises(ParameterError, match="split"):
        learn.read_tiles(tmp_path / "a", "all")
    with pytest.raises(ParameterError, match="turn"):
        learn.read_tiles(tmp_path / "a", turn=8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), SPEC)


def test_the_demo_glacier(world: World, tmp_path: Path) -> None:
    cube = og.open_cube(world.items)
    pairs = og.make_pairs(cube, days=(10, 60))
    velocity = og.track(cube, pairs, og.NCC(chip=24, search=8, step=8)).compute()
    source = learn.TileSource("RGI60-00.00001", cube, velocity, og.masks.ice(world.outlines, cube))
    table = learn.export_tiles([source], tmp_path / "tiles", size=64, min_ice=0.3)
    assert set(table["split"]) == {"train"}
    assert len(table) == len(pairs) * table[["y", "x"]].drop_duplicates().shape[0] > 5
    got, good = learn.read_tiles(tmp_path / "tiles"), []
    assert got.ice.mean((1, 2)).min() >= 0.3
    for k, row in table.iterrows():
        y, x = (
            (5148000 - 10 * row["y"] - 80 * np.arange(8) - 40)[:, None],
            423000 + 10 * row["x"] + 80 * np.arange(8) + 40,
        )
        dy, dx = world.glacier.displacement(row["date1"], row["date2"], y, x)
        shift = np.subtract(*(world.misregistration[row[f"image_id{n}"]] for n in (2, 1)))
        on_ice = got.ice[k].reshape(8, 8, 8, 8).mean((1, 3)) == 1
        error = np.hypot(got.displacement[k, 0] + (dy + shift[0]) / 10, got.displacement[k, 1] - (dx + shift[1]) / 10)
        good.append(error[on_ice & np.isfinite(error)])
    errors = np.concatenate(good)
    assert errors.size > 100
    assert np.median(errors) < 0.1


@pytest.mark.real
def test_labels_of_real_scenes_bring_their_pixels_together(data: Path, tmp_path: Path) -> None:
    """Yahtse, two Landsat scenes: image 2 moved back by the labels is more like image 1 than image 2 as it is."""
    cube = og.open_cube(local_items(data / "imagery/yahtse_landsat8_2016"))
    velocity = og.track(cube, og.make_pairs(cube), og.NCC(chip=32, search=8, step=8)).compute()
    rock = og.masks.outlines(data / "outlines/st_elias_rock/StEliasMtn_utm7v_rock.gmt", cube, crs="EPSG:32607")
    source = learn.TileSource("Yahtse", cube, velocity, ~rock)
    table = learn.export_tiles([source], tmp_path / "a", min_ice=0.5)
    assert 10 < len(table) <= 4 * 6
    tiles_ = learn.read_tiles(tmp_path / "a", turn=5)
    gains = []
    for one, two, flow, ice in zip(tiles_.image[:, 0], tiles_.image[:, 1], tiles_.displacement, tiles_.ice):
        dy, dx = flow.repeat(8, 1).repeat(8, 2)
        known = ice & np.isfinite(dy) & np.isfinite(one) & np.isfinite(two)
        if known.mean() > 0.3:
            y, x = np.nonzero(known)
            a, b = (high_pass(np.nan_to_num(image), known)[0] for image in (one, two))
            back = map_coordinates(b, [y + dy[known], x + dx[known]], order=3, mode="nearest")
            gains.append(np.corrcoef(a[known], back)[0, 1] - np.corrcoef(a[known], b[known])[0, 1])
    assert len(gains) > 8
    # Snow hardly moves; of the trunk two images have nothing in common until they are brought together.
    assert min(gains) > 0
    assert sum(gain > 0.5 for gain in gains) >= 3
