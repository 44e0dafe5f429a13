"""Stable ground: a known shift is found and removed, errors are those that were put in, nothing is computed early."""

import os
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from ogive import flags, grid, masks
from ogive.correct import modelled_error, stable_ground, stable_statistics
from ogive.errors import GridError, MaskError, ParameterError
from ogive.testing.velocity_cubes import velocity_cube

DATA = Path(os.environ.get("OGIVE_DATA", Path(__file__).parents[2] / "shared" / "data"))
DAYS = np.array([16.0, 32.0, 365.0, 5.0])
SHIFT = np.array([[120.0, -40.0], [-60.0, 30.0], [5.0, 2.0], [300.0, 0.0]])
SIGMA = 0.8  # m of displacement


def world(seed=3, size=(60, 70), chip=None):
    """Four pairs over ice (columns < 20, 200 m/yr) and rock (the rest), shifted by a known velocity."""
    rng = np.random.default_rng(seed)
    pairs = len(DAYS)
    box = GeoBox(size, Affine(80, 0, 600000, 0, -80, 5000000), "EPSG:32632")
    t1 = np.datetime64("2020-01-01", "ns") + np.arange(pairs) * np.timedelta64(1, "D")
    t2 = t1 + (DAYS * 86400e9).astype("m8[ns]")
    to_year = (365 / DAYS)[:, None, None]
    truth = np.where(np.arange(size[1]) < 20, 200.0, 0.0)[None, None, :]
    v = [truth + SHIFT[:, k, None, None] + rng.normal(0, SIGMA, (pairs, *size)) * to_year for k in (0, 1)]
    v[0][:, ::7, ::5] += 3000.0  # mismatches
    lost = rng.random((pairs, *size)) < 0.1
    vx, vy = (np.where(lost, np.nan, a).astype(np.float32) for a in v)
    middle = t1 + (t2 - t1) // 2
    rate = {"units": "meter/year"}
    data = {
        "vx": (("mid_date", "y", "x"), vx, rate),
        "vy": (("mid_date", "y", "x"), vy, rate),
        "v": (("mid_date", "y", "x"), np.hypot(vx, vy), rate),
        "flag": (("mid_date", "y", "x"), np.where(lost, flags.NO_DATA, 0).astype(np.uint16), flags.attributes()),
        "vx_error": ("mid_date", modelled_error(DAYS, 10.0), rate),
        "vy_error": ("mid_date", modelled_error(DAYS, 10.0), rate),
    }
    if chip:
        data["chip_size_width"] = (("mid_date", "y", "x"), np.full(vx.shape, chip, np.uint16))
    coords = {
        "mid_date": middle,
        "acquisition_date_img1": ("mid_date", t1),
        "acquisition_date_img2": ("mid_date", t2),
        **grid.coordinates(box),
        "mapping": grid.mapping(box),
    }
    velocity = xr.Dataset(data, coords)
    still = xr.DataArray(
        np.broadcast_to(np.arange(size[1]) >= 24, size), {"y": velocity.y, "x": velocity.x}, ("y", "x")
    )
    return velocity, still


def test_known_shift_is_removed_and_the_error_is_the_scatter():
    velocity, still = world()
    out = stable_ground(velocity, still)
    tolerance = 4 * 1.2533 * SIGMA * 365 / DAYS / np.sqrt(still.sum().item() * 0.8)
    for k, name in enumerate(("vx", "vy")):
        found = out[f"{name}_stable_shift"].values
        assert (np.abs(found - SHIFT[:, k]) < tolerance + 0.01).all()
        np.testing.assert_allclose(out[name + "_error"], SIGMA * 365 / DAYS, rtol=0.06)
        expected = velocity[name].values - found[:, None, None].astype(np.float32)
        np.testing.assert_array_equal(out[name].values, expected)
        assert np.isfinite(out[name].values).mean() > 0.85
        assert out[name].dtype == np.float32
        assert out[name].attrs["units"] == out[f"{name}_stable_shift_error"].attrs["units"] == "meter/year"
        assert abs(float(np.nanmedian(out["vx"].values[0, :, :20])) - 200) < 15
    np.testing.assert_allclose(out["v"].values, np.hypot(out["vx"].values, out["vy"].values))
    assert (out["stable_shift_flag"].values == 1).all()
    assert (out["stable_count_stationary"].values > 0.75 * still.sum().item()).all()
    assert "vx_stable_shift" not in velocity


def test_overlapping_chips_are_not_independent():
    one, four = (stable_ground(*world(chip=chip)) for chip in (None, 320))
    np.testing.assert_array_equal(one["vx_stable_shift"].values, four["vx_stable_shift"].values)
    # cells of 80 m, chips of 320 m: 16 vectors are worth one, so the error of the median grows by 4
    ratio = four["vx_stable_shift_error"].values / one["vx_stable_shift_error"].values
    np.testing.assert_allclose(ratio, 4, rtol=1e-5)


def test_too_few_stable_vectors_leave_the_pair_alone():
    velocity, still = world()
    velocity["vx"][2, :, 24:] = np.nan
    out = stable_ground(velocity, still)
    assert out["stable_shift_flag"].values.tolist() == [1, 1, 0, 1]
    assert out["vx_stable_shift"].values[2] == 0
    assert np.isnan(out["vx_stable_shift_error"].values[2])
    assert out["stable_count_stationary"].values[2] == 0
    np.testing.assert_array_equal(out["vx"].values[2], velocity["vx"].values[2])
    assert np.isfinite(out["vx"].values[2]).any()
    assert out["vx_error"].values[2] == velocity["vx_error"].values[2]
    assert out["vx_error"].values[1] != velocity["vx_error"].values[1]


@pytest.mark.parametrize("chunks", [(1, 60, 70), (4, 13, 17), (3, 60, 9)])
def test_velocities_stay_lazy_and_are_the_same_for_every_chunking(chunks):
    velocity, still = world()
    computed = []

    def watch(block):
        computed.append(block.shape)
        return block

    lazy = velocity.chunk(dict(zip(("mid_date", "y", "x"), chunks, strict=True)))
    lazy["vx"] = lazy["vx"].copy(
        data=da.map_blocks(watch, lazy["vx"].data, dtype=np.float32, meta=np.empty((0, 0, 0), "f4"))
    )
    out = stable_ground(lazy, still)
    once = len(computed)
    assert once > 0
    assert out["vx"].chunks == lazy["vx"].chunks
    expected = stable_ground(velocity, still)
    found = out.compute(scheduler="threads")
    assert len(computed) > once
    assert np.isfinite(expected["vx"].values).mean() > 0.85
    xr.testing.assert_identical(found, expected)


def test_a_block_of_the_result_needs_no_other_block():
    """The medians are taken once; each corrected block then reads its own block alone."""
    velocity, still = world()
    order = []

    def watch(block, block_info=None):
        order.append(block_info[0]["chunk-location"])
        return block

    lazy = velocity.chunk(mid_date=1, y=20, x=70)
    source = da.map_blocks(watch, lazy["vx"].data, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))
    out = stable_ground(lazy.assign(vx=lazy["vx"].copy(data=source)), still)
    assert sorted(order) == sorted(set(order))
    assert len(order) == 12
    order.clear()
    out["vx"].data.blocks[2, 1, 0].compute(scheduler="sync")
    assert order == [(2, 1, 0)]


def test_a_subset_of_many_stable_cells_gives_the_same_shift():
    velocity, still = world()
    all_of_them, some = stable_ground(velocity, still), stable_ground(velocity, still, max_count=500)
    assert (some["stable_count_stationary"] <= 500).all()
    error = np.hypot(some["vx_stable_shift_error"], all_of_them["vx_stable_shift_error"])
    difference = np.abs(some["vx_stable_shift"] - all_of_them["vx_stable_shift"])
    assert (difference < 4 * error).all()
    assert float(difference.max()) > 0


def test_statistics_without_scatter_have_a_floor():
    v = np.full((1, 100), 7.0)
    row = stable_statistics(v, v, v * np.nan, v * np.nan, 0 * v, np.array([73.0]), area=6400.0, floor=0.1)[0]
    np.testing.assert_allclose(row, [7, 0, 0.5, 7, 0, 0.5, 100, 1, 1])
    empty = stable_statistics(v * np.nan, v, v, v, 0 * v, np.array([73.0]), area=6400.0, floor=0.1)[0]
    assert np.isnan(empty[:6]).all()
    assert empty[6] == 0


def test_masks_that_cannot_be_used():
    velocity, still = world()
    with pytest.raises(MaskError, match="a mask that covers everything"):
        stable_ground(velocity, xr.zeros_like(still))
    with pytest.raises(MaskError, match="boolean"):
        stable_ground(velocity, still.astype(int))
    with pytest.raises(GridError, match="grid of the velocity"):
        stable_ground(velocity, still.isel(y=slice(1, None)))
    with pytest.raises(GridError, match="grid of the velocity"):
        stable_ground(velocity, still.assign_coords(x=still.x + 40))
    with pytest.raises(ParameterError, match="vx_error"):
        stable_ground(velocity.drop_vars("vx_error"), still)


def test_modelled_error():
    error = modelled_error(np.array([10.0, 100.0]), 15.0)
    assert error.dtype == np.float32
    np.testing.assert_allclose(error, 15 * np.hypot(0.1, 0.2) * 365 / np.array([10.0, 100.0]), rtol=1e-6)
    with pytest.raises(ParameterError, match="date_dt"):
        modelled_error([0.0, 3.0], 10.0)
    with pytest.raises(ParameterError, match="resolution"):
        modelled_error([3.0], -10.0)


@pytest.mark.real
def test_real_bedrock_around_kaskawulsh_glacier():
    """Landsat-8 velocities of 32 days; a kernel density of bedrock peaks at (-0.0195, -0.0245) m/day."""
    folder = DATA / "velocity/kaskawulsh_glaft"
    fields = {}
    for name in ("vx", "vy"):
        with rasterio.open(folder / f"20180304-20180405_velo-raw_{name}.tif") as f:
            box = GeoBox(f.shape, f.transform, f"EPSG:{f.crs.to_epsg()}")
            fields[name] = f.read(1, masked=True).filled(np.nan)[None] * 365
    t1, t2 = (np.array([t], "M8[ns]") for t in ("2018-03-04T20:23", "2018-04-05T20:23"))
    error = ("mid_date", modelled_error([32.0], 15.0))
    velocity = xr.Dataset(
        {**{k: (("mid_date", "y", "x"), v) for k, v in fields.items()}, "vx_error": error, "vy_error": error},
        {
            "mid_date": t1 + (t2 - t1) // 2,
            "acquisition_date_img1": ("mid_date", t1),
            "acquisition_date_img2": ("mid_date", t2),
            **grid.coordinates(box),
            "mapping": grid.mapping(box),
        },
    )
    still = masks.stable(velocity, rock=folder / "bedrock_V2.shp")
    out = stable_ground(velocity, still)
    shift = np.array([out["vx_stable_shift"].item(), out["vy_stable_shift"].item()]) / 365
    np.testing.assert_allclose(shift, [-0.0195, -0.0245], atol=0.02)
    assert out["stable_count_stationary"].item() > 10_000
    # the robust scatter is below the published spread of the whole distribution, 0.15 and 0.16 m/day
    assert 0.02 < out["vx_error"].item() / 365 < 0.15
    assert 0.02 < out["vy_error"].item() / 365 < 0.16
    before, after = (abs(float(v["vx"].where(still).median())) for v in (velocity, out))
    assert after < before


def test_errors_of_single_vectors_are_scaled_to_stable_ground_and_never_down():
    velocity, _ = velocity_cube("100")
    rng = np.random.default_rng(3)
    shape = velocity["vx"].shape
    given = rng.uniform(5, 15, shape)
    # Truly two and a half times as large along x, a fifth along y; the shift is known well with so many cells.
    velocity["vx"][:] = 40 + 2.5 * given * rng.standard_normal(shape)
    velocity["vy"][:] = -30 + 0.2 * given * rng.standard_normal(shape)
    for name in ("vx", "vy"):
        velocity[f"{name}_error_px"] = (velocity["vx"].dims, given.astype(np.float32), {"units": "meter/year"})
    mask = xr.ones_like(velocity["vx"].isel(mid_date=0), bool)
    corrected = stable_ground(velocity, mask)
    assert (corrected["stable_shift_flag"] == 1).all()
    assert float(corrected["vx_error_scale"].median()) == pytest.approx(2.5, abs=0.15)
    assert (corrected["vy_error_scale"] == 1).all()
    z = (corrected["vx"] / corrected["vx_error_px"]).values
    assert np.mean(np.abs(z) < 1) == pytest.approx(0.683, abs=0.03)
    assert np.mean(np.abs(z) < 1.96) == pytest.approx(0.95, abs=0.02)
    expected = np.hypot(given, corrected["vy_stable_shift_error"].values[:, None, None])
    np.testing.assert_allclose(corrected["vy_error_px"], expected, rtol=1e-5)
    lazy = stable_ground(velocity.chunk(mid_date=20), mask)
    assert lazy["vx_error_px"].chunks is not None
    np.testing.assert_array_equal(lazy["vx_error_px"].compute(), corrected["vx_error_px"])
    assert "scaled to the scatter of stable ground" in corrected["vx_error_px"].attrs["description"]
