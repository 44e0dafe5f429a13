"""Fusion: exact on one grid, vectors of a known field in another projection, means of finer cells."""

from pathlib import Path

import dask
import numpy as np
import pyproj
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

import ogive as og
from ogive import flags, grid
from ogive.errors import ParameterError
from ogive.fuse import Weights, fuse, jacobian
from ogive.testing.velocity_cubes import velocity_cube

UTM = GeoBox((12, 14), Affine(120, 0, 499_200, 0, -120, 6_786_000), "EPSG:32606")  # near Columbia Glacier


def velocity(box: GeoBox, vx: np.ndarray, vy: np.ndarray, errors: tuple[float, float] = (3.0, 4.0)) -> xr.Dataset:
    """A lazy velocity with these components (pairs, y, x)."""
    count = len(vx)
    first = np.datetime64("2020-01-01", "ns") + np.arange(count) * np.timedelta64(86400 * 10**9, "ns")
    second = first + np.timedelta64(12 * 86400 * 10**9, "ns")
    dims = ("mid_date", "y", "x")
    data = {n: (dims, v.astype(np.float32)) for n, v in (("vx", vx), ("vy", vy))}
    data |= {f"v{c}_error": ("mid_date", np.full(count, e, np.float32)) for c, e in zip("xy", errors)}
    dates = {"acquisition_date_img1": first, "acquisition_date_img2": second, "mid_date": first}
    coords = {n: ("mid_date", v) for n, v in dates.items()}
    ds = xr.Dataset(data, {**coords, **grid.coordinates(box), "mapping": grid.mapping(box)})
    return ds.chunk({"y": 5, "x": 4})


def noise(box: GeoBox, pairs: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 100, (2, pairs, *map(int, box.shape)))


def test_one_grid_keeps_the_bits_and_the_order() -> None:
    own, _ = velocity_cube("100")
    shuffled = own.isel(mid_date=np.random.default_rng(0).permutation(100))
    both = fuse([own, shuffled.chunk({"y": 5, "x": 5})], names=["ogive", "ITS_LIVE"])
    for name in ("vx", "vy", "flag", "vx_error", "acquisition_date_img1", "mid_date", "satellite_img1"):
        expected = np.concatenate([own[name].values, shuffled[name].values])
        np.testing.assert_array_equal(both[name].values, expected)
    np.testing.assert_array_equal(both["v"].values, np.hypot(both["vx"].values, both["vy"].values))
    assert both["source"].values.tolist() == ["ogive"] * 100 + ["ITS_LIVE"] * 100
    assert both["pair_id"].values.tolist() == list(range(200))
    assert both["vx"].dtype == np.float32
    assert both["vx"].chunks[0] == (200,)
    assert both.attrs["kind"] == "velocity"


def test_an_inversion_of_both_is_that_of_all_pairs() -> None:
    own, _ = velocity_cube("100")
    halves = [own.isel(mid_date=slice(0, 60)), own.isel(mid_date=slice(60, None))]
    cell = {"y": slice(3, 6), "x": slice(3, 6)}
    fused = og.invert(fuse(halves).isel(cell), every="60D")
    whole = og.invert(own.isel(cell), every="60D")
    np.testing.assert_allclose(fused["vx"].values, whole["vx"].values, rtol=1e-4)


def test_a_store_of_it_comes_back(tmp_path: Path) -> None:
    one = velocity(UTM, *noise(UTM))
    both = fuse([one, velocity(UTM, *noise(UTM, 5, 1))], names=["a", "b"])
    back = og.open_velocity(og.write(both, tmp_path / "v.zarr", progress=False))
    xr.testing.assert_equal(back.compute(), both.compute().set_coords(["image_id1", "image_id2"]))


@pytest.mark.parametrize("crs", ["EPSG:3413", "EPSG:32607"])
def test_vectors_are_turned_as_displacements(crs: str) -> None:
    """A field of true displacements, as both projections see it: points moved on the ground, then projected."""
    turn = pyproj.Transformer.from_crs("EPSG:32606", crs, always_xy=True)
    x, y = turn.transform(501_000, 6_785_000)
    box = GeoBox((6, 7), Affine(120, 0, round(x, -1) - 300, 0, -120, round(y, -1) + 300), crs)
    fine = GeoBox((400, 400), Affine(20, 0, 497_000, 0, -20, 6_789_000), "EPSG:32606")
    u, v = np.meshgrid(grid.coordinates(fine)["x"].values, grid.coordinates(fine)["y"].values)
    vx, vy = 300 + (u - 501_000) * 0.05, -500 + (v - 6_785_000) * 0.03
    here, there = turn.transform(u, v), turn.transform(u + vx, v + vy)  # a year's motion
    source = velocity(fine, vx[None], vy[None])
    out = fuse([source], like=box)
    assert grid.geobox_of(out) == box
    a = ~box.affine
    column, row = (np.floor(k).astype(int) for k in a * here)
    for name, k in (("vx", 0), ("vy", 1)):
        total = np.zeros((2, *box.shape))
        inside = (row >= 0) & (row < 6) & (column >= 0) & (column < 7)
        np.add.at(total[0], (row[inside], column[inside]), (there[k] - here[k])[inside])
        np.add.at(total[1], (row[inside], column[inside]), 1)
        assert total[1].min() > 20
        np.testing.assert_allclose(out[name].values[0], total[0] / total[1], atol=0.1)
    # Relabelling would be wrong by far; the length changes by the scales of the projections only.
    angle = np.degrees(np.arctan2(jacobian(fine, box)[1, 0], jacobian(fine, box)[0, 0]))
    assert abs(angle.mean()) > (90 if crs == "EPSG:3413" else 4)
    speed = out["v"].values / np.hypot(300, -500)
    assert 0.95 < np.median(speed) < 1.05
    ex, ey = float(out["vx_error"][0]), float(out["vy_error"][0])
    assert np.hypot(ex, ey) == pytest.approx(5, rel=0.05)


def test_errors_follow_the_axes() -> None:
    x, y = pyproj.Transformer.from_crs(32606, 3413, always_xy=True).transform(500_000, 6_785_000)
    box = GeoBox((2, 2), Affine(120, 0, x, 0, -120, y), "EPSG:3413")
    (a, b), (c, d) = jacobian(UTM, box)[:, :, 1, 1]
    out = fuse([velocity(UTM, *noise(UTM), errors=(2.0, 20.0))], like=box)
    assert float(out["vx_error"][0]) == pytest.approx(np.hypot(2 * a, 20 * b), rel=1e-6)
    assert float(out["vy_error"][0]) == pytest.approx(np.hypot(2 * c, 20 * d), rel=1e-6)


@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 5), st.integers(40, 300))
def test_means_and_nearest_as_by_hand(seed: int, right: int, down: int, size: int) -> None:
    vx, vy = noise(UTM, 2, seed)
    vx[np.random.default_rng(seed).random(vx.shape) < 0.3] = np.nan
    a = UTM.affine
    box = GeoBox((5, 6), Affine(size, 0, a.c + 37 * right, 0, -size, a.f - 53 * down), UTM.crs)
    out = fuse([velocity(UTM, vx, vy)], like=box)["vx"].values
    expected = np.full(out.shape, np.nan)
    for i in range(5):
        for j in range(6):
            left, top = box.affine * (j, i)
            if size**2 * 0.75 > 120**2:
                rows = [r for r in range(12) if top - size < a.f - (r + 0.5) * 120 <= top]
                columns = [c for c in range(14) if left <= a.c + (c + 0.5) * 120 < left + size]
            else:
                rows = [r for r in [int((a.f - top + size / 2) // 120)] if 0 <= r < 12]
                columns = [c for c in [int((left + size / 2 - a.c) // 120)] if 0 <= c < 14]
            for k in range(2):
                cells = [vx[k, r, c] for r in rows for c in columns if np.isfinite(vx[k, r, c])]
                expected[k, i, j] = np.mean(cells) if cells else np.nan
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)


def test_the_same_bits_for_any_tiling() -> None:
    x, y = pyproj.Transformer.from_crs(32606, 3413, always_xy=True).transform(500_000, 6_785_300)
    box = GeoBox((8, 9), Affine(350, 0, x - 1000, 0, -350, y + 1000), "EPSG:3413")
    source = velocity(UTM, *noise(UTM))
    whole = fuse([source.chunk({"y": -1, "x": -1})], like=box)
    tiled = fuse([source.chunk({"mid_date": 1, "y": 3, "x": 2})], like=box)
    assert tiled["vx"].data.numblocks != whole["vx"].data.numblocks
    for name in ("vx", "vy", "v", "flag"):
        np.testing.assert_array_equal(tiled[name].values, whole[name].values)
    assert np.isfinite(whole["vx"]).any()


def test_only_what_is_needed_is_read() -> None:
    read: list[tuple[int, ...]] = []

    def noted(block: np.ndarray, block_info: dict) -> np.ndarray:
        read.append(tuple(block_info[0]["chunk-location"]))
        return block

    source = velocity(UTM, *noise(UTM))
    lazy = source["vx"].data.map_blocks(noted, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    source["vx"] = (source["vx"].dims, lazy)
    half = GeoBox((6, 7), Affine(240, 0, UTM.affine.c, 0, -240, UTM.affine.f), UTM.crs)
    out = fuse([source], like=half)
    assert not read
    with dask.config.set(scheduler="synchronous"):
        out["vx"][:, :1, :1].compute()
    assert set(read) == {(0, 0, 0)} | {k for k in read if k[1] <= 2 and k[2] <= 2}
    assert len(set(read)) < 12


def test_cells_that_a_source_does_not_cover_say_so() -> None:
    vx, vy = noise(UTM)
    vx[0, 0, 0] = np.nan
    shifted = GeoBox((12, 14), UTM.affine * Affine.translation(-3, 0), UTM.crs)
    both = fuse([velocity(shifted, *noise(shifted)), velocity(UTM, vx, vy)])
    second = both["flag"].values[3:]
    assert (second[:, :, :3] == flags.OUTSIDE).all()
    assert second[0, 0, 3] == flags.NO_DATA
    np.testing.assert_array_equal(both["vx"].values[3:, :, 3:], vx[:, :, :-3].astype(np.float32))


def test_errors_of_vectors_stay_errors_of_vectors() -> None:
    one = velocity(UTM, *noise(UTM))
    spread = one["vx"] * 0 + 7
    both = fuse([one, one.assign(vx_error=spread, vy_error=spread * 2)])
    assert both["vx_error"].dims == ("mid_date", "y", "x")
    np.testing.assert_array_equal(both["vx_error"].values[:3], 3)
    np.testing.assert_array_equal(both["vy_error"].values[3:], 14)


def test_nonsense_is_refused() -> None:
    own, _ = velocity_cube("100")
    with pytest.raises(ParameterError, match="at least one velocity"):
        fuse([])
    with pytest.raises(ParameterError, match="as many names"):
        fuse([own], names=["a", "b"])
    with pytest.raises(ParameterError, match=r"velocities\[1\].*vy_error"):
        fuse([own, own.drop_vars("vy_error")])
    with pytest.raises(ParameterError, match="a series cannot be fused"):
        fuse([og.invert(own.isel(y=[0], x=[0]))])


def test_weights_cover_what_lies_on_the_grid() -> None:
    weights = Weights(UTM, GeoBox((2, 2), Affine(120, 0, 0, 0, -120, 0), UTM.crs))
    assert not weights.covered.any()
    assert weights.source.size == 0


def test_seasons_are_windows_of_an_inversion() -> None:
    own, truth = velocity_cube("500")
    windows = og.season(2017, 2019, "06-01", "07-01")
    series = og.invert(own.isel(y=slice(4, 6), x=slice(4, 6)), every=windows)
    np.testing.assert_array_equal(series["time_bnds"].values, windows)
    vx, _ = truth.velocity(windows[:, 0], windows[:, 1])
    error = series["vx"].values - vx[:, 4:6, 4:6]
    assert np.isfinite(error).all()
    assert np.abs(error / series["vx_error"].values).max() < 5
    assert og.season(2019, 2019, "11-15", "02-01")[0, 1] == np.datetime64("2020-02-01")
    with pytest.raises(ParameterError, match="no 29 February"):
        og.season(2019, 2021, "02-01", "02-29")
    with pytest.raises(ParameterError, match="must not be before 2020"):
        og.season(2020, 2019)


@pytest.mark.real
def test_points_of_two_sources_in_spring(data: Path) -> None:
    """Speed of every April from a point table and a synthetic cube of our own at the same place, in one inversion."""
    itslive = og.open_velocity(data / "timeseries" / "itslive_v2_point_columbia_61.1804_-146.9751.csv")
    turn = pyproj.Transformer.from_crs(3413, 32606, always_xy=True)
    x, y = turn.transform(itslive["x"].item(), itslive["y"].item())
    box = GeoBox((3, 3), Affine(120, 0, x - 180, 0, -120, y + 180), "EPSG:32606")
    turned = fuse([itslive], like=box)
    np.testing.assert_allclose(turned["v"].values[:, 1, 1], itslive["v"].values[:, 0, 0], rtol=0.04, atol=3)
    vx, vy = (
        turned["vx"].values[:400, 1:2, 1:2] + np.zeros((400, 3, 3)),
        turned["vy"].values[:400, 1:2, 1:2] * np.ones((400, 3, 3)),
    )
    own = turned.isel(mid_date=slice(400)).assign(vx=(("mid_date", "y", "x"), vx), vy=(("mid_date", "y", "x"), vy))
    own = own.drop_vars("source").chunk({"y": 3, "x": 3})
    both = fuse([own, itslive])
    assert set(both["source"].values.tolist()) == {"ogive", "ITS_LIVE"}
    spring = og.invert(both.isel(y=[1], x=[1]), every=og.season(2015, 2019))
    assert spring.sizes["time"] == 5
    assert (spring["v"].values[1:] > 500).all()
