"""The sample in the layout of ITS_LIVE: its pairs measure the motion that it claims."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import ogive as og
from ogive.testing.glacier import Glacier
from ogive.testing.itslive import itslive_cube, years_of_motion

GLACIER = Glacier(extent=(1200.0, 1500.0), speed=200.0)
FACTORS = {2019: 1.0, 2020: 2.0, 2021: 1.0}


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    folder = tmp_path_factory.mktemp("sample")
    return og.open_velocity(itslive_cube(folder / "cube.zarr", GLACIER, FACTORS)).compute()


def test_with_factors_of_one_it_is_the_motion_of_the_glacier() -> None:
    t1, t2 = np.array(["2019-12-20", "2020-03-01"], "M8[ns]"), np.array(["2020-01-19", "2021-02-28"], "M8[ns]")
    y, x = GLACIER.centre_line(0.4)
    for a, b, tau in zip(t1, t2, years_of_motion(t1, t2, dict.fromkeys(FACTORS, 1.0)), strict=True):
        np.testing.assert_allclose(GLACIER.advance(tau, y, x), GLACIER.displacement(a, b, y, x), rtol=1e-12)


def test_short_pairs_scatter_round_the_exact_mean_of_their_interval(cube: xr.Dataset) -> None:
    short = cube.isel(mid_date=cube["date_dt"].values <= 30)
    tau = years_of_motion(*(short[f"acquisition_date_img{k}"].values for k in (1, 2)), FACTORS)
    dy, dx = GLACIER.advance(tau[:, None, None], short["y"].values[:, None], short["x"].values)
    factor = (365 / short["date_dt"].values)[:, None, None]
    for name, metres in (("vx", dx), ("vy", dy)):
        z = ((short[name] - metres * factor) / short[f"{name}_error"]).values
        assert abs(np.nanmedian(z)) < 0.01
        # 8 % of the pairs are wrong on purpose and widen the scatter a little.
        assert 1.0 < 1.4826 * np.nanmedian(abs(z)) < 1.15


def test_half_of_the_yearly_pairs_have_lost_the_surface_and_a_tenth_is_missing(cube: xr.Dataset) -> None:
    y, x = (float(c) for c in GLACIER.centre_line(0.4))
    (i,), (j,) = og.export.locate(cube, {"middle": (x, y)})
    long = cube.isel(mid_date=cube["date_dt"].values > 300, y=int(i), x=int(j))
    speed = np.hypot(long["vx"].values, long["vy"].values)
    assert 0.35 < np.mean(speed[np.isfinite(speed)] < 20) < 0.6
    assert np.isnan(cube["vx"].values).mean() == pytest.approx(0.1, abs=0.005)


def test_the_same_seed_gives_the_same_values(cube: xr.Dataset, tmp_path: Path) -> None:
    again = og.open_velocity(itslive_cube(tmp_path / "cube.zarr", GLACIER, FACTORS))
    other = og.open_velocity(itslive_cube(tmp_path / "other.zarr", GLACIER, FACTORS, seed=1))
    np.testing.assert_array_equal(again["vx"].values, cube["vx"].values)
    assert (other["vx"].values != cube["vx"].values).any()
